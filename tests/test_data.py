"""Every form of data that NeMo reads trains with COMAT, and the teacher reads the right text for each row."""

import copy
import json
import math
import re

import data_forms
import lightning.pytorch as pl
import pytest
import torch
from omegaconf import OmegaConf

from nemo_comat import ComatCTCModelBPE, ConfigError, Teacher
from nemo_comat.models.reference import manifest_text

# NeMo 3.0.0 asks for the length of a reader that has none, unless this is a number
LIMITED = ("lhotse tarred", "lhotse tarred by a worker", "lhotse shar")


class Recorder(pl.Callback):
    """Keeps each step's batch and logged numbers, and the texts that the teacher gets."""

    def __init__(self, monkeypatch):
        self.batches, self.steps, self.texts, encode = [], [], [], Teacher.encode
        monkeypatch.setattr(Teacher, "encode", lambda *args: self.texts.append(args[1]) or encode(*args))

    def on_train_batch_start(self, trainer, model, batch, number):
        self.batches.append(batch)

    def on_train_batch_end(self, trainer, *args):
        self.steps.append({key: float(value) for key, value in trainer.callback_metrics.items()})


@pytest.fixture(scope="module")
def build(base_cfg):
    """A model by what its teacher reads and its tokenizer; one is built of each and used by all tests."""
    models = {}

    def build(text, aggregate=False):
        if (text, aggregate) not in models:
            cfg = copy.deepcopy(base_cfg).model
            cfg.comat.teacher.text = text
            if aggregate:
                one = {"dir": cfg.tokenizer.dir, "type": "bpe"}
                cfg.tokenizer = {"type": "agg", "langs": {"en": one, "de": one}}
                cfg.train_ds.manifest_filepath = cfg.validation_ds.manifest_filepath = None
            models[text, aggregate] = ComatCTCModelBPE(cfg=cfg)
        return models[text, aggregate]

    return build


@pytest.fixture
def train(base_cfg, monkeypatch):
    """Trains a model for some steps on a train_ds block, and returns what was recorded."""

    def train(model, block, steps=3, **options):
        recorder = Recorder(monkeypatch)
        quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
        trainer = pl.Trainer(
            accelerator="cpu", devices=1, max_steps=steps, callbacks=[recorder], **quiet,
            **{"limit_val_batches": 0, "log_every_n_steps": 1, **options},
        )  # fmt: skip
        model.set_trainer(trainer)
        model.setup_training_data(train_ds(base_cfg, block))
        trainer.fit(model)
        assert len(recorder.steps) == steps and all(math.isfinite(step["train_loss"]) for step in recorder.steps)
        return recorder

    return train


def train_ds(base_cfg, block):
    """The config's own train_ds, shuffled, with a form's keys."""
    own = OmegaConf.to_container(base_cfg.model.train_ds, resolve=True)
    assert own["shuffle"]
    return OmegaConf.create({**own, "batch_size": 4, **block})


def rows_of(batch, rows):
    """The manifest rows of a batch, found by the length of their audio, which each reader keeps to a sample."""
    lengths = sorted(row["samples"] for row in rows)
    assert min(b - a for a, b in zip(lengths, lengths[1:])) > 4
    return [min(rows, key=lambda row: abs(row["samples"] - samples)) for samples in batch[1].tolist()]


def letters(text):
    """What a manifest's text and the tokenizer's have in common; the tokenizer drops case."""
    return re.sub("<unk>|[^a-z]", "", text.lower())


def round_trip(tokenizer, row):
    """A row's text as the tokenizer gives it back."""
    return tokenizer.ids_to_text(tokenizer.text_to_ids(row["text"])).strip()


def check_rows(recorder, tokenizer, rows, reads):
    """Each row's teacher text is that of the manifest row whose audio it has, as `reads` gives it; all are active."""
    assert len(recorder.texts) == len(recorder.batches)
    for texts, batch in zip(recorder.texts, recorder.batches):
        found = rows_of(batch, rows)
        assert texts == [reads(row) for row in found] and len(batch) == 4
        said = [tokenizer.ids_to_text(ids[:n]) for ids, n in zip(batch[2].tolist(), batch[3].tolist())]
        assert [letters(text) for text in said] == [letters(row["text"]) for row in found]
    assert all(step["train_active_fraction"] == 1 for step in recorder.steps)


def options_of(form):
    return {"limit_train_batches": 4} if form in LIMITED else {}


@pytest.mark.parametrize("form", data_forms.FORMS)
def test_every_form_trains_on_the_tokens_text(build, train, written, form):
    model, (folder, rows) = build("tokens"), written
    tokenizer = model.tokenizer
    recorder = train(model, data_forms.block(form, folder), **options_of(form))
    check_rows(recorder, tokenizer, rows, lambda row: round_trip(tokenizer, row))


@pytest.mark.parametrize("form", [*data_forms.NAMED, *data_forms.BY_LHOTSE])
def test_the_manifests_text_stays_with_its_row(build, train, written, form):
    model, (folder, rows) = build("manifest"), written
    recorder = train(model, data_forms.block(form, folder), **options_of(form))
    check_rows(recorder, model.tokenizer, rows, lambda row: row["text"])


@pytest.mark.parametrize("form", data_forms.UNNAMED)
def test_the_manifests_text_is_refused_where_samples_have_no_names(build, base_cfg, written, form):
    message = r"teacher.text=manifest cannot be had from NeMo's .*Dataset, .*; .* \+\+model.train_ds.use_lhotse=true"
    with pytest.raises(ConfigError, match=message) as error:
        build("manifest").setup_training_data(train_ds(base_cfg, data_forms.block(form, written[0])))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["tokens", "manifest"])
def test_cuts_that_lhotse_joins_have_the_texts_of_all(build, train, written, text):
    form = {**data_forms.LHOTSE, "pretokenize": False, "concatenate_samples": True, "db_norm": None}
    model, (folder, rows) = build(text), written
    recorder = train(model, data_forms.at({**form, "concatenate_duration_factor": 2.0}, folder), steps=1)
    said = [letters(text) for text in recorder.texts[0]]
    ids, lens = recorder.batches[0][2:]
    assert said == [letters(model.tokenizer.ids_to_text(row[:n])) for row, n in zip(ids.tolist(), lens.tolist())]
    whole = {letters(row["text"]) for row in rows}
    # which cuts are joined is chance; a long one may stay alone
    assert set(said) - whole and all(any(one in text for one in whole) for text in said)


@pytest.mark.parametrize("text", ["tokens", "manifest"])
@pytest.mark.parametrize("form", ["manifest", "lhotse"])
def test_an_aggregate_of_tokenizers(build, train, written, form, text):
    model, (folder, rows) = build(text, aggregate=True), written
    one = next(iter(model.tokenizer.tokenizers_dict.values()))
    reads = {"tokens": lambda row: re.sub(" ⁇ ?", "⁇", round_trip(one, row)), "manifest": lambda row: row["text"]}
    # NeMo 3.0.0 computes no error rate with an aggregate: neither in validation nor where training logs
    recorder = train(model, data_forms.block(form, folder), steps=2, log_every_n_steps=100)
    check_rows(recorder, model.tokenizer, rows, reads[text])
    assert any((batch[2] >= one.vocab_size).any() for batch in recorder.batches)  # both languages' ids came
    audio, said = str(folder / rows[0]["audio_filepath"]), rows[0]["text"]
    texts = [reads[text](rows[0])] if text == "tokens" else [said]
    english, german = (model.align_text(audio, said, lang) for lang in ("en", "de"))
    assert english.tokens == german.tokens == model._teacher.tokens(texts[0]) and english.labels == german.labels
    with pytest.raises(ValueError, match="has pieces of en, de, so lang must be one of them; got None"):
        model.align_text(audio, said)


@pytest.mark.parametrize("text", ["tokens", "manifest"])
@pytest.mark.parametrize("form", ["manifest", "tarred", "lhotse"])
def test_rows_without_a_text_stay_out_of_the_transfer(build, train, written, tmp_path, form, text):
    folder, rows = written
    kept = copy.deepcopy(rows[:6])
    kept[1]["text"] = ""
    del kept[2]["text"]
    for row in kept if form != "tarred" else ():
        row["audio_filepath"] = str(folder / row["audio_filepath"])
    (tmp_path / "train.json").write_text("".join(json.dumps(row) + "\n" for row in kept))
    singly = {"manifest_filepath": f"{tmp_path}/train.json", "batch_size": 1}
    recorder = train(build(text), {**data_forms.block(form, folder), **singly}, steps=len(kept))
    assert sum(texts == [""] for texts in recorder.texts) == 2
    for texts, step in zip(recorder.texts, recorder.steps):
        assert step["train_active_fraction"] == float(texts != [""])


def test_several_validation_sets_are_logged_each(build, train, base_cfg, written):
    model, (folder, _) = build("manifest"), written
    before = copy.deepcopy(model.cfg.validation_ds)
    two = {**data_forms.at(data_forms.HALVES, folder), "shuffle": False}
    model.setup_multiple_validation_data(train_ds(base_cfg, two))
    recorder = train(model, data_forms.block("manifest", folder), steps=4, limit_val_batches=1)
    logged = model.trainer.callback_metrics
    for name in ("wer", "loss"):
        assert {key for key in logged if f"val_{name}" in key} == {f"val_{name}", f"_0_val_{name}", f"_1_val_{name}"}
    assert all(math.isfinite(logged[key]) for key in logged)
    # the teacher reads for training only
    assert len(recorder.texts) == 4
    model.setup_multiple_validation_data(before)


def test_a_batch_straight_from_the_loader(build, base_cfg, written, monkeypatch):
    model, (folder, rows), logged = build("manifest"), written, {}
    monkeypatch.setattr(model, "log_dict", lambda log, **options: logged.update(log))  # where no trainer runs
    model.set_trainer(pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False))
    model.setup_training_data(train_ds(base_cfg, data_forms.block("manifest", folder)))
    *batch, samples = next(iter(model._train_dl))
    texts = model._reference_texts(*batch[2:], samples)
    assert texts == [row["text"] for row in rows_of(batch, rows)]
    model.setup_optimization()
    assert model.training_step((*batch, samples), 0)["loss"].isfinite() and logged["train_active_fraction"] == 1
    moved = model.train().transfer_batch_to_device((*batch, samples), torch.device("cpu"), 0)
    assert model.training_step(moved, 0)["loss"].isfinite() and len(moved) == 4
    with pytest.raises(ConfigError, match="a batch came that does not say which manifest lines it holds"):
        model.training_step(batch, 0)


def test_lines_are_those_of_the_loader_in_use(build, base_cfg, written, tmp_path, monkeypatch):
    """Lightning goes on with the loader that it began with, also where the model sets up other data."""
    model, (folder, rows), recorder = build("manifest"), written, Recorder(monkeypatch)
    other = [{**row, "audio_filepath": str(folder / row["audio_filepath"])} for row in rows[::-1]]
    (tmp_path / "other.json").write_text("".join(json.dumps(row) + "\n" for row in other))
    model.setup_training_data(train_ds(base_cfg, data_forms.block("manifest", folder)))

    class Change(pl.Callback):
        def on_train_start(self, trainer, model):
            model.setup_training_data(train_ds(base_cfg, {"manifest_filepath": str(tmp_path / "other.json")}))

    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_steps=2,
        limit_val_batches=0, enable_model_summary=False, callbacks=[Change(), recorder],
    )  # fmt: skip
    trainer.fit(model)
    assert recorder.texts == [[row["text"] for row in rows_of(batch, rows)] for batch in recorder.batches]


def test_training_data_may_be_validated_on(build, base_cfg, written):
    model, (folder, _) = build("manifest"), written
    model.setup_training_data(train_ds(base_cfg, data_forms.block("manifest", folder)))
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, limit_val_batches=1)
    (found,) = trainer.validate(model, model._train_dl, verbose=False)
    assert found["val_wer"] > 0
    # nor is a loader of the user's own one whose lines are known
    model._train_dl, samples = None, torch.tensor([0])
    with pytest.raises(ConfigError, match="does not say which manifest lines it holds"):
        model._reference_texts(torch.zeros(1, 1), torch.tensor([1]), samples)


def test_only_training_batches_name_their_samples(build, train, base_cfg, written):
    model, (folder, _) = build("manifest"), written
    for form in ("manifest", "lhotse"):
        model.setup_training_data(train_ds(base_cfg, data_forms.block(form, folder)))
        model.setup_validation_data({**train_ds(base_cfg, data_forms.block(form, folder)), "shuffle": False})
        assert len(next(iter(model._train_dl))) == 5 and len(next(iter(model._validation_dl))) == 4
        # what a checkpoint keeps is what NeMo without this package can train with
        assert "return_sample_id" not in model.cfg.train_ds and "return_cuts" not in model.cfg.train_ds


def test_plain_ctc_is_left_alone(base_cfg, written):
    cfg = copy.deepcopy(base_cfg).model
    cfg.comat.update(weight=0)
    cfg.comat.teacher.text = "manifest"
    cfg.train_ds.manifest_filepath = f"{written[0]}/train.json"
    assert len(next(iter(ComatCTCModelBPE(cfg=cfg)._train_dl))) == 4


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([" The Dog. "], "The Dog."),
        (["The", None, " ", "Dog"], "The Dog"),
        ([None], ""),
        ([[{"str": "The ", "lang": "en"}, {"str": "Hund", "lang": "de"}]], "The Hund"),
    ],
)
def test_manifest_text(parts, text):
    assert manifest_text(parts) == text
    assert manifest_text(OmegaConf.create(parts)) == text


@pytest.mark.parametrize(("text", "marks"), [("tokens", ["[UNK]", "[UNK]"]), ("manifest", [",", "."])])
def test_an_alignment_shows_the_tokens_that_the_teacher_reads(build, written, text, marks):
    folder, rows = written
    model = build(text)
    alignment = model.align_text(str(folder / rows[0]["audio_filepath"]), rows[0]["text"])
    assert [token for token in alignment.tokens if not token.strip("#").isalpha()] == marks
    assert alignment.path[-1] == len(alignment.tokens) - 1 and alignment.score.shape[1] == len(alignment.tokens)
