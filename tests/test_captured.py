"""What a module gives is kept once, and nothing stays on it."""

import pytest
import torch

from nemo_comat.models.captured import InputOf, captured


def test_the_first_call_of_a_module_is_captured():
    double = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(double.weight, 2)
    with captured(double=double) as seen:
        double(torch.ones(1))
        double(torch.zeros(1))
    assert seen["double"].item() == 2 and not double._forward_hooks


def test_an_error_leaves_nothing_on_it_either():
    double = torch.nn.Linear(1, 1)
    with pytest.raises(KeyError), captured(double=double):
        raise KeyError
    assert not double._forward_hooks


def test_an_input_is_captured_before_other_hooks_change_it():
    double = torch.nn.Linear(1, 1, bias=False)
    hook = double.register_forward_pre_hook(lambda module, args, kwargs: ((args[0] + 1,), kwargs), with_kwargs=True)
    with captured(given=InputOf(double)) as seen:
        double(torch.ones(1))
        double(torch.zeros(1))
    assert seen["given"].item() == 1 and list(double._forward_pre_hooks) == [hook.id]
