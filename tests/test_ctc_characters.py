"""Character models: NeMo's `EncDecCTCModel` by the mixin."""

import tarfile

import configs
import pytest
from configs import LABELS
from nemo.collections.asr.models import ASRModel, EncDecCTCModel
from nemo.core.connectors.save_restore_connector import SaveRestoreConnector
from omegaconf import OmegaConf
from test_bad_input import REFUSED, good_rows, refused
from test_mixin import babbling, train, with_comat

from nemo_comat import ComatCTCModel, Teacher


@pytest.fixture
def character_cfg(small_cfg):
    """small_cfg with letters in the place of a tokenizer."""
    return configs.characters(small_cfg)


@pytest.fixture
def model(character_cfg):
    return babbling(ComatCTCModel(cfg=character_cfg))


def rows(manifest):
    return [OmegaConf.create(line) for line in open(manifest).read().splitlines()]


def transcripts(model, manifest):
    audio = [row.audio_filepath for row in rows(manifest)[:4]]
    return [h.text for h in model.transcribe(audio, batch_size=4, verbose=False)]


def test_a_character_model_trains_and_its_teacher_reads_the_manifests_texts(character_cfg, manifest, monkeypatch):
    seen, encode = [], Teacher.encode
    monkeypatch.setattr(Teacher, "encode", lambda self, texts, *a: seen.extend(texts) or encode(self, texts, *a))
    character_cfg.optim.lr = 5e-3
    model, logged = train(ComatCTCModel, character_cfg, steps=6)
    assert sorted(seen[:16]) == sorted(row.text for row in rows(manifest))
    assert [step["train_active_fraction"] for step in logged] == [1.0] * 6
    assert model.comat.compressor.options["blank"] == len(LABELS)
    transfer = [step["train_transfer_loss"] for step in logged]
    assert sum(transfer[-2:]) < 0.95 * sum(transfer[:2])


@pytest.mark.parametrize("name", REFUSED)
def test_a_manifest_that_nemo_refuses_is_explained(character_cfg, manifest, tmp_path, name):
    refused(ComatCTCModel, character_cfg, tmp_path, good_rows(manifest), name)


def test_without_comat_a_character_model_is_nemos(character_cfg):
    nemo, _ = train(EncDecCTCModel, with_comat(character_cfg, None), steps=2)
    ours, _ = train(ComatCTCModel, with_comat(character_cfg, None), steps=2)
    theirs, mine = nemo.state_dict(), ours.state_dict()
    assert theirs.keys() == mine.keys() and all(mine[key].equal(theirs[key]) for key in theirs)


def test_a_character_model_is_saved_twice_over_and_restored(model, manifest, tmp_path):
    model.save_to(str(tmp_path / "m.nemo"))
    with tarfile.open(tmp_path / "m.nemo") as tar:
        tar.extractall(tmp_path / "out", filter="data")
    config = OmegaConf.load(tmp_path / "out" / "model_config.yaml")
    assert config.target == "nemo.collections.asr.models.ctc_models.EncDecCTCModel" and "comat" not in config
    again = ComatCTCModel.restore_from(str(tmp_path / "m.nemo"), map_location="cpu")
    assert again.cfg.comat == model.cfg.comat
    assert all(again.state_dict()[key].equal(value) for key, value in model.state_dict().items())
    plain = ASRModel.restore_from(
        str(tmp_path / "m.nemo"), map_location="cpu", strict=True, save_restore_connector=SaveRestoreConnector()
    )
    assert type(plain) is EncDecCTCModel
    said = transcripts(model, manifest)
    assert any(said) and transcripts(again.eval(), manifest) == said == transcripts(plain.eval(), manifest)


def test_alignment_of_one_utterance_by_characters(model, manifest):
    row = rows(manifest)[0]
    alignment = model.align_text(row.audio_filepath, row.text)
    assert "".join(alignment.labels) == row.text
    assert " ".join(alignment.tokens).replace(" ##", "") == row.text
    assert alignment.path[0] == 0 and alignment.path[-1] == len(alignment.tokens) - 1
    assert all(0 <= start < end <= row.duration + 0.1 for start, end in alignment.spans)


def test_a_character_vocabulary_is_changed(model, character_cfg, manifest, tmp_path):
    kept = {key: value.clone() for key, value in model.comat.state_dict().items()}
    labels = [*LABELS, "é", "?"]
    model.change_vocabulary(labels)
    model.save_to(str(tmp_path / "m.nemo"))
    for changed in (model, ComatCTCModel.restore_from(str(tmp_path / "m.nemo"), map_location="cpu")):
        assert changed.comat.compressor.options["blank"] == 30 == changed.decoder.num_classes_with_blank - 1
        assert all(changed.comat.state_dict()[key].equal(value) for key, value in kept.items())
        ids = changed._text_tokenizer().text_to_ids("é?")
        assert ids == [28, 29] and changed._text_tokenizer().ids_to_text(ids) == "é?"
        row = rows(manifest)[0]
        assert "".join(changed.align_text(row.audio_filepath, row.text).labels) == row.text
