"""A corpus that is spoken: its texts, and what is not written over."""

import json
import sys

import numpy as np
import pytest
import speak


def test_texts_to_speak_are_cut_in_order():
    words = [f"w{i}" for i in range(100)]
    pieces = speak.cut(" ".join(words), np.random.default_rng(0))
    assert all(4 <= len(piece.split()) <= 12 for piece in pieces)
    spoken = " ".join(pieces).split()
    assert spoken == words[: len(spoken)] and len(spoken) > 96


def test_speech_can_keep_to_the_frequent_words(tmp_path):
    texts = ["a b a b a c a b b a", "c a a b a b"]
    (tmp_path / "train.json").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = speak.frequent_words(tmp_path / "train.json", 2)
    assert words == {"a", "b"}
    # copies at another speed add nothing
    copies = [json.dumps({"text": "c c c c c c", "speed": 0.9}), json.dumps({"text": None})]
    with open(tmp_path / "train.json", "a") as manifest:
        manifest.write("\n".join(copies) + "\n")
    assert speak.frequent_words(tmp_path / "train.json", 2) == words
    assert speak.transcripts(tmp_path / "train.json") == texts
    assert speak.stretches(texts[0], words) == ["a b a b a", "a b b a"]
    assert speak.stretches(texts[0], None) == texts[:1]
    pieces = speak.read_pieces(tmp_path / "train.json", np.random.default_rng(0), words)
    assert pieces and all(set(piece.split()) <= words and len(piece.split()) >= 4 for piece in pieces)


def test_speaking_never_writes_over_the_transcripts(data, tmp_path, monkeypatch):
    monkeypatch.setattr(speak, "load_tts", lambda: pytest.fail("the work was begun"))
    before = (data / "train.json").read_bytes()
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "00000.ogg").write_text("mine")
    for out, message in ((data, "train.json is what is read"), (tmp_path, "00000.ogg exists already")):
        arguments = [f"--data={data}", f"--out={out}", *["--overwrite"] * (out == data)]
        monkeypatch.setattr(sys, "argv", ["speak.py", "--minutes=train:1,dev:1", *arguments])
        with pytest.raises(SystemExit, match=message):
            speak.main()
    assert (data / "train.json").read_bytes() == before


def test_a_manifest_never_stands_beside_audio_of_other_texts(tmp_path, monkeypatch):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev.json").write_text("of the audio before")
    monkeypatch.setattr(speak, "write_opus", lambda file, audio: file.write_text("new") and 1.0)

    def synthesise(tts, text, *options):
        if text == "b":
            raise KeyboardInterrupt

    monkeypatch.setattr(speak, "synthesise", synthesise)
    with pytest.raises(KeyboardInterrupt):
        speak.speak(None, ["a", "b"], 1, "dev", tmp_path, seed=0)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["00000.ogg", "dev"]
