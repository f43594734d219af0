"""The embedded corpus is what its page says."""

import json
import sys

import build_corpus as script
import pytest
from configs import CORPUS


def test_corpus_is_what_it_says():
    words = {}
    for split, least, most in (("train", 240, 500), ("heldout", 40, 100)):
        rows = [json.loads(line) for line in (CORPUS / f"{split}.json").read_text().splitlines()]
        assert least <= len(rows) <= most
        assert all((CORPUS / row["audio_filepath"]).is_file() for row in rows)
        assert all(3 <= len(row["text"].split()) <= 12 for row in rows)
        words[split] = [row["text"] for row in rows]
    vocabulary = {word for text in words["train"] for word in text.split()}
    assert 180 <= len(vocabulary) <= 220
    assert {word for text in words["heldout"] for word in text.split()} <= vocabulary
    assert not set(words["train"]) & set(words["heldout"])
    assert sum(file.stat().st_size for file in CORPUS.rglob("*") if file.is_file()) < 4e6


def test_a_demo_corpus_is_replaced_only_when_told(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "load_tts", lambda: pytest.fail("the work was begun"))
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "song.ogg").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["x", f"--out={tmp_path}"])
    with pytest.raises(SystemExit, match="song.ogg exists already; give another place to write to, or --overwrite"):
        script.main()
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit, match="train.json exists already"):
        script.main()
    script.check_place(CORPUS, overwrite=True)
