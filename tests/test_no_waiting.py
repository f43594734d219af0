"""Nothing in the loss reads a tensor's values on the host, so on a GPU the host never waits for the device.

Tensors on PyTorch's meta device stand for those of a GPU: they have no values, so what needs one on the host, such as
item(), a copy to the CPU or a shape that depends on them, raises.
"""

from contextlib import nullcontext
from typing import get_args

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nemo_comat import CompressAlignTransfer
from nemo_comat.models.bad_audio import silence_bad_audio
from nemo_comat.teacher import TeacherOutput
from nemo_comat.transfer import Reduction, consistency_loss, reduce_rows

B, T, D, U, N, V, DIM, WORDS, K = 3, 20, 8, 6, 4, 11, 12, 40, 2
FORMS = [
    ({"labels": labels, "blanks": blanks, "pool": pool}, {}, {})
    for labels in ("forced", "greedy")
    for blanks in ("drop", "keep")
    for pool in ("avg", "weighted", "softmax")
] + [
    ({"method": "cif"}, {"method": "one_to_one"}, {}),
    ({"method": "cif"}, {}, {"loss": "contrastive"}),
    ({"method": "attention", "heads": 2}, {"method": "one_to_one"}, {"loss": "mse"}),
    ({"method": "none"}, {"method": "sinkhorn"}, {}),
    ({"method": "none"}, {}, {}),
    ({}, {}, {"loss": "classify", "negatives": 5}),
    ({}, {}, {"loss": "classify"}),
    ({}, {}, {"loss": "distribution", "negatives": 5}),
]


class Copies(TorchDispatchMode):
    """Lists what is copied between devices while it is active."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        tensors = [x for x in (*arguments, *(options or {}).values(), result) if isinstance(x, torch.Tensor)]
        devices = [tensor.device.type for tensor in tensors]
        if function.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_) and len(set(devices)) > 1:
            self.seen.append(f"{function} {' '.join(devices)}")
        return result


class NoGenerator:
    """In place of PyTorch's, whose seed is set on the host."""

    def __init__(self, device):
        pass

    def manual_seed(self, seed):
        """None, with which PyTorch draws from its own."""


def one_step(compress, align, transfer, context_layers=0):
    """The module and a call of its loss, what is logged of it, and backward."""
    there = dict(device="meta")
    comat = CompressAlignTransfer(
        D,
        V - 1,
        compress=compress,
        align={"backend": "torch", **align},
        projection={"dim": DIM},
        transfer=transfer,
        context={"layers": context_layers},
    ).to("meta")
    hidden = torch.randn(B, T, D, requires_grad=True, **there)
    log_probs = torch.randn(B, T, V, requires_grad=True, **there)
    frame_len, target_len, text_len = (torch.full((B,), n, **there) for n in (T, U, N))
    teacher = TeacherOutput(
        torch.randn(B, N, DIM, **there),
        text_len,
        torch.zeros(B, N, dtype=torch.int64, **there),
        torch.zeros(B, dtype=torch.bool, **there),
        table=torch.randn(WORDS, DIM, **there),
        predicted=(torch.zeros(B, N, K, dtype=torch.int64, **there), torch.rand(B, N, K, **there)),
    )
    targets = torch.zeros(B, U, dtype=torch.int64, **there)

    def step():
        output = comat(hidden, frame_len, log_probs, targets, target_len, teacher)
        assert output.alignment_score.shape == ()
        output.loss.sum().backward()

    return comat, step


@pytest.fixture(autouse=True)
def what_the_meta_device_lacks(monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **options: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
    monkeypatch.setattr(torch, "Generator", NoGenerator)


@pytest.mark.parametrize("context_layers", [0, 1])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_loss_never_waits_for_the_device(form, context_layers):
    comat, call = one_step(*form, context_layers)
    with Copies() as copies:
        call()
    assert not copies.seen
    assert all(parameter.grad is not None for parameter in comat.parameters())


@pytest.mark.parametrize("reduction", get_args(Reduction))
def test_what_else_a_step_has_never_waits(reduction):
    there = dict(device="meta")
    length, log_probs = torch.full((B,), U, **there), torch.randn(2 * B, T, V, requires_grad=True, **there)
    with Copies() as copies:
        batch, bad = silence_bad_audio((torch.randn(B, 99, **there), length, torch.zeros(B, U, **there), length))
        rows = consistency_loss(log_probs, torch.cat([batch[1], length]))
        reduce_rows(rows, torch.cat([batch[3], length]), reduction).backward()
    assert bad.shape == (B,) and log_probs.grad.shape == log_probs.shape and not copies.seen


@pytest.mark.parametrize("read", [torch.Tensor.item, torch.Tensor.nonzero, torch.Tensor.cpu, lambda x: 1 if x else 0])
def test_what_would_wait_is_found(read):
    with pytest.raises(RuntimeError):
        read(torch.ones(1, device="meta"))


def test_a_copy_to_the_device_is_found():
    with Copies() as copies:
        torch.ones(2).to("meta")
        torch.ones(2, device="meta").copy_(torch.ones(2))
    assert len(copies.seen) == 2
