"""Manifest checks: what is missing is said at the start."""

import json

import pytest
from omegaconf import OmegaConf

from nemo_comat.models.manifest import ManifestError, check_dataset, check_manifest


def write(folder, *rows):
    (folder / "a.wav").touch()
    file = folder / "m.json"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(file)


def test_good_manifests_pass(tmp_path):
    good = write(tmp_path, {"audio_filepath": "a.wav", "duration": 1, "text": "hello"}, "")
    check_manifest(good)
    for paths in (good, f"{good},{good}", [good, [good]], None):
        check_dataset(OmegaConf.create({"manifest_filepath": paths}), "model.train_ds")


def test_tarred_and_lhotse_data_are_left_to_their_readers():
    check_dataset(OmegaConf.create({"manifest_filepath": "nowhere.json", "is_tarred": True}), "model.train_ds")
    check_dataset(OmegaConf.create({"manifest_filepath": "nowhere.json", "use_lhotse": True}), "model.train_ds")


@pytest.mark.parametrize(
    "row, message",
    [
        ({"audio_filepath": "b.wav", "text": "x"}, r"line 2: audio file b.wav does not exist; .*remove the line"),
        ({"text": "x"}, "line 2 has no audio_filepath"),
        ("{oops", "line 2 is not JSON"),
        ("[1]", "line 2 is list, not a JSON object"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    with pytest.raises(ManifestError, match=message):
        check_manifest(write(tmp_path, {"audio_filepath": "a.wav", "text": "x"}, row))


def test_missing_manifest(tmp_path):
    cfg = OmegaConf.create({"manifest_filepath": str(tmp_path / "none.json")})
    with pytest.raises(ManifestError, match=r"model\.train_ds\.manifest_filepath=.*none\.json does not exist"):
        check_dataset(cfg, "model.train_ds")


def test_empty_transcripts_are_counted(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("nemo_comat.models.manifest.logging", type("L", (), {"warning": staticmethod(said.append)}))
    row = {"audio_filepath": "a.wav", "text": "x"}
    check_manifest(write(tmp_path, row, {**row, "text": " "}, row, {**row, "text": ""}))
    assert len(said) == 1 and "2 empty transcripts, the first in line 2" in said[0]
