"""Statistics of the teacher's vectors where several processes train: what each of them does."""

from types import SimpleNamespace as Stand

import pytest
import torch

from nemo_comat import ConfigError
from nemo_comat.models import statistics
from nemo_comat.transfer import VectorStatistics
from nemo_comat.transfer.normalize import TeacherNormalization

SENT = VectorStatistics(torch.tensor([0.5]), torch.tensor([2.0]), 7)


def model_of(rank, broadcast):
    """What `keep_statistics` asks of a model, in one of several processes."""
    return Stand(
        global_rank=rank,
        cfg=Stand(comat=Stand(teacher=Stand(normalize_texts=10))),
        comat=Stand(normalize=TeacherNormalization(1)),
        trainer=Stand(strategy=Stand(broadcast=broadcast)),
        _teacher=Stand(description={"name": "bert"}),
    )


def test_each_process_makes_the_loader_and_keeps_what_the_first_one_found(monkeypatch):
    made = []
    monkeypatch.setattr(statistics, "_loader_of_texts", made.append)
    model = model_of(1, lambda sent: (SENT, None))
    statistics.keep_statistics(model)
    # NeMo's reader of tarred data may wait for the others' when it is made
    assert made == [model] and model.comat.normalize.mean.item() == 0.5 and model.comat.normalize.number == 7


def test_an_error_of_the_first_process_ends_the_others(monkeypatch):
    monkeypatch.setattr(statistics, "_loader_of_texts", lambda model: None)
    model = model_of(1, lambda sent: (None, "its disk is full"))
    with pytest.raises(ConfigError, match="its disk is full"):
        statistics.keep_statistics(model)
    assert model.comat.normalize.number == 0


def test_without_training_data_of_its_own_a_model_says_what_it_lacks():
    for dataset in (None, {"manifest_filepath": None}):
        # NeMo makes no loader of a block that names no data
        model = Stand(_train_dl=None, cfg={"train_ds": dataset}, _setup_dataloader_from_config=lambda config: None)
        with pytest.raises(ConfigError, match="training texts, and model.train_ds names no data; give model.train_ds"):
            statistics._loader_of_texts(model)


def test_the_first_process_sends_its_error_and_raises_it(monkeypatch):
    def fail(*given):
        raise OSError("its disk is full")

    sent = []
    monkeypatch.setattr(statistics, "_loader_of_texts", lambda model: None)
    monkeypatch.setattr(statistics, "_vectors", fail)
    with pytest.raises(OSError, match="its disk is full"):
        statistics.keep_statistics(model_of(0, lambda found: sent.append(found) or found))
    assert sent == [(None, "its disk is full")]
