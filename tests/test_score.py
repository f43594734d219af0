"""Scoring a run, with and without an n-gram model."""

import json
import sys
from pathlib import Path

import ngram
import numpy as np
import pytest
import score
import soundfile
from test_mixin import babbling

from nemo_comat import ComatCTCModelBPE


def test_several_channels_are_scored_as_their_mean(small_cfg, manifest, tmp_path):
    model = babbling(ComatCTCModelBPE(cfg=small_cfg)).eval()
    rows = [json.loads(line) for line in Path(manifest).read_text().splitlines()][:3]
    # 2 x and 0 have x as their mean to the last bit
    for name, shares in (("mono", [1]), ("stereo", [2, 0])):
        lines = []
        for number, row in enumerate(rows):
            samples, rate = soundfile.read(row["audio_filepath"])
            file = tmp_path / f"{name}{number}.wav"
            soundfile.write(file, np.stack([share * samples for share in shares], 1), rate, subtype="FLOAT")
            # a row that stays as it is, among those that do not
            lines.append(json.dumps({**row, "audio_filepath": str(file if number else row["audio_filepath"])}))
        (tmp_path / f"{name}.json").write_text("\n".join(lines * 6))
    # by one utterance at a time, in more than one part
    mono, stereo = (score.transcribe(model, tmp_path / f"{name}.json", 1) for name in ("mono", "stereo"))
    assert len(mono) == 18 and mono == stereo and mono[0]["transcript"] and mono[:3] * 6 == mono


def test_scoring_waits_for_the_end_of_training(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished run; train it first"):
        score.score(tmp_path, tmp_path)


def test_the_language_models_text_is_replaced_only_when_told(tmp_path, monkeypatch):
    (tmp_path / "lm.txt").write_text("mine")
    command = ["ngram.py", str(tmp_path), f"--data={tmp_path}/data", f"--text={tmp_path}/lm.txt"]
    for more, message in (([], "lm.txt exists already; .* or --overwrite"), (["--overwrite"], "holds no finished run")):
        monkeypatch.setattr(sys, "argv", [*command, *more])
        with pytest.raises(SystemExit, match=message):
            ngram.main()
    assert (tmp_path / "lm.txt").read_text() == "mine"


def test_test_is_scored_at_the_weight_that_dev_chose(tmp_path, monkeypatch):
    folder, heard, at = tmp_path / "ctc" / "seed1", {0.1: "a cat", 0.2: "a dog", 0.3: "a cat"}, []
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    (folder / "history.jsonl").write_text("")
    monkeypatch.setattr(ngram, "checkpoint_of", lambda folder: folder)
    monkeypatch.setattr(ngram.ComatCTCModelBPE, "restore_from", lambda *args, **options: None)
    monkeypatch.setattr(ngram, "use_language_model", lambda model, lm, alpha: at.append(alpha))
    monkeypatch.setattr(ngram, "transcribe", lambda model, file: [{"reference": "a dog", "transcript": heard[at[-1]]}])
    target, _ = ngram.score_with(folder, tmp_path, tmp_path / "lm.arpa", alphas=[0.1, 0.2, 0.3])
    for split in ("dev", "test"):
        assert json.loads((target / f"{split}.json").read_text())[0]["transcript"] == "a dog"
