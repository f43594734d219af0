"""Preparing a corpus: manifests, tarballs, decoded audio, copies at other speeds."""

import json
import os
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import prepare
import pytest
import soundfile
from recipe import librispeech
from sentencepiece import SentencePieceProcessor


def test_manifests_are_read_as_nemo_reads_them(tmp_path):
    (tmp_path / "a.wav").touch()
    row = {"audio_filename": "a.wav", "duration": 1, "normalized_text": "a dog", "speaker": 3}
    (tmp_path / "m.json").write_text(json.dumps(row))
    audio = {"audio_filepath": str(tmp_path / "a.wav"), "text": "a dog"}
    del row["audio_filename"]
    assert prepare.rows_of_manifest(tmp_path / "m.json") == [{**row, **audio}]
    for bad, message in ((b"{oops", "not JSON"), (b'{"text": "caf\xe9"}', "not UTF-8"), (b"{}", "has no audio")):
        (tmp_path / "m.json").write_bytes(bad)
        with pytest.raises(ValueError, match=f"m.json line 1 .*{message}"):
            prepare.rows_of_manifest(tmp_path / "m.json")


def test_rows_without_a_duration_are_as_long_as_their_audio(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(24000), 16000)
    rows = [{"audio_filepath": str(tmp_path / "a.wav"), "duration": None, "text": "a"}] * 4
    assert prepare.seconds_of(rows[0]) == 1.5
    assert len(prepare.part_of(rows, 2.9 / 3600)) == 2
    with pytest.raises(prepare.PrepareError, match="b.wav are the audio of one row.*leave --decode out"):
        prepare.decode([{**rows[0], "audio_filepath": ["a.wav", "b.wav"]}], tmp_path / "wav")


def test_rows_without_a_duration_end_where_their_audio_does(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(24000), 16000)
    row = {"audio_filepath": str(tmp_path / "a.wav"), "duration": None, "text": "a", "offset": 1.25}
    assert prepare.seconds_of(row) == 0.25
    (played,) = prepare.at_speed([row], 0.5)
    assert (played["offset"], played["duration"]) == (2.5, 0.5)


@pytest.mark.parametrize("packed", [False, True])
def test_librispeech_folders_and_tarballs(tmp_path, packed):
    splits = {"train-x": ["THE CAT SAT", "A DOG RAN AWAY"], "dev-x": ["ONE TWO", "THREE"], "test-x": ["X Y", "Z"]}
    librispeech(tmp_path / "source", splits)
    source = tmp_path / "source"
    if packed:
        source = tmp_path / "all.tar.gz"
        with tarfile.open(source, "w:gz") as archive:
            archive.add(tmp_path / "source" / "LibriSpeech", "LibriSpeech")
    names = {"train": "train-x", "dev": "dev-x", "test": "test-x"}
    prepare.prepare([source], tmp_path / "data", names, vocab_size=20)
    for split, name in names.items():
        rows = [json.loads(line) for line in (tmp_path / "data" / f"{split}.json").read_text().splitlines()]
        assert [row["text"] for row in rows] == [text.lower() for text in splits[name]]
        assert [row["duration"] for row in rows] == [1.0, 2.0]
        assert all(Path(row["audio_filepath"]).is_file() for row in rows)
    assert (tmp_path / "data" / "tokenizer" / "tokenizer.model").exists()


def test_an_utterances_other_files_are_not_its_audio(tmp_path):
    librispeech(tmp_path, {"x": ["ONE", "TWO"]})
    (chapter,) = tmp_path.rglob("198")
    for name in ("19-198-0000.TextGrid", "19-198-0000.align.json", "19-198-0001.lab"):
        (chapter / name).write_text("words")
    rows = prepare.rows_of_librispeech(tmp_path)
    assert [Path(row["audio_filepath"]).name for row in rows] == ["19-198-0000.flac", "19-198-0001.flac"]
    (chapter / "19-198-0001.flac").unlink()
    with pytest.raises(prepare.PrepareError, match="names 19-198-0001, but there is no such audio file beside it"):
        prepare.rows_of_librispeech(tmp_path)


def test_what_is_there_is_replaced_only_when_told(data, manifest, tmp_path, monkeypatch):
    source = tmp_path / "data"
    shutil.copytree(data, source)
    before = {path: path.read_bytes() for path in source.rglob("*.json")}
    for arguments, message in [
        ([f"--out={source}", str(source), "--overwrite"], "train.json is what is read; give another place"),
        ([f"--out={source}", str(data)], "train.json exists already; give another place .* or --overwrite"),
        ([f"--out={source}/train.json/x", str(data)], "train.json.*: Not a directory; give another path"),
    ]:
        monkeypatch.setattr(sys, "argv", ["prepare.py", "--vocab_size=40", *arguments])
        with pytest.raises(SystemExit, match=message):
            prepare.main()
    assert {path: path.read_bytes() for path in source.rglob("*.json")} == before
    (source / "train.json").write_text("old")
    prepare.prepare([data], source, vocab_size=40, overwrite=True)
    assert {path: path.read_bytes() for path in source.rglob("*.json")} == before
    # a folder that unpacking would write into is another's
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        archive.add(data, "x")
    (source / "audio" / "x").mkdir(parents=True)
    with pytest.raises(prepare.PrepareError, match="audio/x is there already, and is no whole unpacked x.tar.gz"):
        prepare.unpack(tmp_path / "x.tar.gz", source)


def test_nothing_is_written_where_the_tokenizer_cannot_be_built(data, tmp_path):
    with pytest.raises((RuntimeError, ValueError)):
        prepare.prepare([data], tmp_path / "new", vocab_size=5)
    assert not list((tmp_path / "new").glob("*.json"))


def test_what_cannot_be_done_is_refused_before_anything_is_fetched(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "download", lambda out: pytest.fail("it was fetched"))
    (tmp_path / "dev.json").write_text("mine")
    for option, message in (("--speeds=0.9", "--speeds writes WAV"), ("--decode", "dev.json exists already")):
        monkeypatch.setattr(sys, "argv", ["prepare.py", f"--out={tmp_path}", "--download", option])
        with pytest.raises(SystemExit) as error:
            prepare.main()
        assert message in f"{error.value}{capsys.readouterr().err}"


def test_files_of_one_name_are_decoded_apart_and_once(tmp_path):
    rows = []
    for number in (1, 2):
        (tmp_path / f"{number}").mkdir()
        soundfile.write(tmp_path / f"{number}" / "a.flac", np.full(160, number / 4), 16000)
        rows.append({"audio_filepath": f"{tmp_path}/{number}/a.flac", "text": f"{number}"})
    found = prepare.decode(rows, tmp_path / "wav")
    for number, row in zip((1, 2), found):
        samples, rate = soundfile.read(row["audio_filepath"])
        assert rate == 16000 and samples == pytest.approx(number / 4) and row["text"] == f"{number}"
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "wav").iterdir()}
    assert prepare.decode(rows, tmp_path / "wav") == found and len(times) == 2
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "wav").iterdir()} == times


def test_manifests_are_taken_as_they_are(data, manifest):
    rows = Path(manifest).read_text().splitlines()
    assert [json.loads(line) for line in (data / "dev.json").read_text().splitlines()] == list(map(json.loads, rows))


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(prepare.PrepareError, match="neither a folder nor a tarball"):
        prepare.prepare([tmp_path / "gone"], tmp_path / "data")
    librispeech(tmp_path / "source", {"train-clean-5": ["ONE"]})
    with pytest.raises(prepare.PrepareError, match="No dev.json and no folder dev-clean-2 .* by --dev"):
        prepare.prepare([tmp_path / "source"], tmp_path / "data")


def test_a_part_of_training_is_the_same_each_time_and_in_order():
    rows = [{"duration": 60 + n % 7} for n in range(100)]
    part = prepare.part_of(rows, 0.5)
    seconds = sum(row["duration"] for row in part)
    assert 1800 <= seconds < 1800 + 67 and part == prepare.part_of(rows, 0.5)
    places = [next(n for n, row in enumerate(rows) if row is kept) for kept in part]
    assert places == sorted(places) and min(places) < 25 and max(places) > 75
    assert prepare.part_of(rows, 10) == rows


def test_decoded_audio_has_the_samples_it_had(tmp_path):
    samples = np.random.default_rng(0).integers(-9000, 9000, 1600).astype(np.int16)
    soundfile.write(tmp_path / "a.flac", samples, 16000)
    (row,) = prepare.decode([{"audio_filepath": str(tmp_path / "a.flac"), "text": "a"}], tmp_path / "wav")
    assert row["text"] == "a" and Path(row["audio_filepath"]).suffix == ".wav"
    assert (soundfile.read(row["audio_filepath"], dtype="int16")[0] == samples).all()


def test_audio_that_is_another_since_is_decoded_anew(tmp_path):
    source = tmp_path / "a.wav"
    for seconds in (1, 2, 2):
        soundfile.write(source, np.zeros(16000 * seconds), 16000)
        assert soundfile.info(prepare.decode_file(str(source), tmp_path / "wav")).duration == seconds
    os.utime(source, ns=(0, 0))  # the same length, at another time
    before = set((tmp_path / "wav").iterdir())
    assert prepare.decode_file(str(source), tmp_path / "wav") not in before


@pytest.mark.parametrize("name", ["a.wav FLOAT", "a.wav DOUBLE", "a.aiff FLOAT", "a.ogg VORBIS", "a.wav PCM_24"])
def test_decoded_audio_is_as_loud_as_it_was(tmp_path, name):
    name, subtype = name.split()
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    soundfile.write(tmp_path / name, tone, 16000, subtype=subtype)
    samples, _ = soundfile.read(prepare.decode_file(str(tmp_path / name), tmp_path))
    assert np.abs(samples - soundfile.read(tmp_path / name)[0]).max() < 1e-4 and np.abs(samples).max() > 0.4


def test_samples_that_are_too_loud_are_clipped(tmp_path):
    soundfile.write(tmp_path / "a.wav", [0.5, 1.5, -2.0], 16000, subtype="FLOAT")
    samples, _ = soundfile.read(prepare.decode_file(str(tmp_path / "a.wav"), tmp_path), dtype="int16")
    assert samples[0] == pytest.approx(16384, abs=1) and samples[1:].tolist() == [32767, -32768]
    # what was cut off before it was encoded comes back louder than full scale
    tone = np.clip(3 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000), -1, 1)
    soundfile.write(tmp_path / "a.ogg", tone, 16000)
    loud, _ = soundfile.read(tmp_path / "a.ogg")
    samples, _ = soundfile.read(prepare.decode_file(str(tmp_path / "a.ogg"), tmp_path))
    assert np.abs(loud).max() > 1.05 and np.abs(samples - np.clip(loud, -1, 1)).max() < 1e-3


def test_capitals_are_kept_or_refused_before_the_work(manifest, tmp_path, monkeypatch):
    rows = [json.loads(line) for line in Path(manifest).read_text().splitlines()]
    source, command = tmp_path / "source", ["prepare.py", f"--out={tmp_path}/data", f"{tmp_path}/source"]
    source.mkdir()
    for split in prepare.SPLITS:
        texts = ({**row, "text": row["text"].title() if split != "dev" else row["text"]} for row in rows)
        (source / f"{split}.json").write_text("".join(json.dumps(row) + "\n" for row in texts))
    monkeypatch.setattr(sys, "argv", [*command, "--vocab_size=50", "--decode"])
    word = rows[0]["text"].split()[0].title()
    with pytest.raises(SystemExit, match=f"test has words that .* as '{word}', .*; give --no_lower_case") as error:
        prepare.main()
    assert "\n" not in str(error.value) and not (tmp_path / "data" / "wav").exists()
    monkeypatch.setattr(sys, "argv", [*command, "--vocab_size=50", "--no_lower_case"])
    prepare.main()
    tokenizer = SentencePieceProcessor(model_file=str(tmp_path / "data" / "tokenizer" / "tokenizer.model"))
    references = [json.loads(line)["text"] for line in (tmp_path / "data" / "test.json").read_text().splitlines()]
    assert references[0].istitle() and [tokenizer.decode(tokenizer.encode(text)) for text in references] == references


def test_spelling_is_what_the_tokenizer_gives_back():
    row = {"text": "über  der brücke, 3 ελα"}
    prepare.check_spelling({"train": [{"text": "A"}], "dev": [row, {"text": None}], "test": [row]})
    prepare.check_spelling({"dev": [{"text": "Straße"}]}, lower_case=False)
    spans = [{"str": "die Straße", "lang": "de"}]
    for text, lower_case, message in [
        (spans, True, "such as 'Straße', which becomes 'straße'; give --no_lower_case, or"),
        ("a Cafe\N{COMBINING ACUTE ACCENT}", True, "becomes 'café'; give manifests that write them so"),
        ("a Cafe\N{COMBINING ACUTE ACCENT}", False, "becomes 'Café'; give manifests that write them so"),
        ("a\N{ZERO WIDTH SPACE}b", False, "becomes 'a b'; give manifests"),
        ("\N{ZERO WIDTH SPACE} a", False, "such as .*, which becomes 'a'; give manifests|becomes ''; give manifests"),
    ]:
        with pytest.raises(prepare.PrepareError, match=f"^dev has words that the tokenizer .*{message}"):
            prepare.check_spelling({"dev": [{"text": "so"}, {"text": text}]}, lower_case)


def tarball(file, content):
    """A tarball of one file, `which`, with this content."""
    file.parent.mkdir(exist_ok=True)
    (file.parent / "which").write_bytes(content)
    with tarfile.open(file, "w:gz") as archive:
        archive.add(file.parent / "which", "which")
    return file


def test_tarballs_of_like_names_are_unpacked_apart(tmp_path):
    for name in ("x-v1.0", "x-v1.1"):
        folder = prepare.unpack(tarball(tmp_path / f"{name}.tar.gz", name.encode()), tmp_path)
        assert (folder / "which").read_text() == name and folder.name == name
    again = prepare.unpack(tmp_path / "x-v1.0.tar.gz", tmp_path)
    assert (again / "which").read_text() == "x-v1.0"
    # one that was unpacked before said nothing of where it was from
    (again / "unpacked").write_text("")
    assert prepare.unpack(tmp_path / "x-v1.0.tar.gz", tmp_path) == again
    other = tarball(tmp_path / "b" / "x-v1.1.tgz", bytes(range(256)))
    with pytest.raises(prepare.PrepareError, match="x-v1.1 is there already, and is no whole unpacked x-v1.1.tgz"):
        prepare.unpack(other, tmp_path)


def test_tarballs_are_unpacked_where_python_has_no_filters(tmp_path, monkeypatch):
    given, original = [], tarfile.TarFile.extractall

    def extractall(archive, path, **options):
        given.append(options)
        original(archive, path, **options)

    monkeypatch.setattr(tarfile.TarFile, "extractall", extractall)
    prepare.unpack(tarball(tmp_path / "new.tar", b"new"), tmp_path)
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    folder = prepare.unpack(tarball(tmp_path / "old.tar", b"old"), tmp_path)
    assert (folder / "which").read_bytes() == b"old" and given[1] == {}


@pytest.mark.parametrize("kept", [5, 50000])
def test_a_tarball_that_ends_too_soon_is_one_sentence(tmp_path, monkeypatch, kept):
    whole = tarball(tmp_path / "whole.tar.gz", np.random.default_rng(0).bytes(100000)).read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[:kept])
    monkeypatch.setattr(sys, "argv", ["prepare.py", f"--out={tmp_path}/data", f"{tmp_path}/cut.tar.gz"])
    with pytest.raises(SystemExit, match="cut.tar.gz (cannot be unpacked .*; fetch it again|is neither a folder nor)"):
        prepare.main()
    assert not (tmp_path / "data" / "audio" / "cut").exists()


def test_copies_at_other_speeds_are_made_once_of_training_alone(data, tmp_path, monkeypatch):
    arguments = [str(data), f"--out={tmp_path}", "--vocab_size=40", "--speeds=0.9,1.25"]
    monkeypatch.setattr(sys, "argv", ["prepare.py", *arguments])
    with pytest.raises(SystemExit):
        prepare.main()
    monkeypatch.setattr(sys, "argv", ["prepare.py", *arguments, "--decode"])
    prepare.main()
    rows = {split: prepare.rows_of_manifest(tmp_path / f"{split}.json") for split in prepare.SPLITS}
    number = {split: len(prepare.rows_of_manifest(data / f"{split}.json")) for split in prepare.SPLITS}
    assert [len(rows[split]) for split in rows] == [number["train"] * 3, number["dev"], number["test"]]
    as_it_was, *copies = (rows["train"][k * number["train"] : (k + 1) * number["train"]] for k in range(3))
    for speed, played in zip((0.9, 1.25), copies):
        for row, copy in zip(as_it_was, played):
            assert copy["text"] == row["text"] and copy["audio_filepath"] != row["audio_filepath"]
            assert copy["duration"] == pytest.approx(row["duration"] / speed, abs=1e-3)
    # what was prepared is a source too: its copies are not copied
    prepare.prepare([tmp_path], tmp_path / "again", vocab_size=40, wav=True, speeds=(0.9,))
    again = prepare.rows_of_manifest(tmp_path / "again" / "train.json")
    assert [row.get("speed") for row in again] == [None] * number["train"] + [0.9] * number["train"]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "wav").rglob("*.wav")}
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--overwrite"])
    prepare.main()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "wav").rglob("*.wav")} == times


def test_a_tone_that_is_played_faster_is_higher(tmp_path):
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000), 16000)
    (row,) = prepare.at_speed([{"audio_filepath": str(tmp_path / "a.wav"), "text": "a", "duration": 1.0}], 1.25)
    samples, rate = soundfile.read(row["audio_filepath"])
    assert rate == 16000 and len(samples) == 12800 and row["duration"] == 0.8
    assert np.abs(np.fft.rfft(samples)).argmax() * rate / len(samples) == pytest.approx(1250, abs=2)
    # a part of a file stays that part
    part = {"audio_filepath": str(tmp_path / "a.wav"), "text": "a", "offset": 0.5, "duration": 0.25}
    (played,) = prepare.at_speed([part], 1.25)
    assert (played["offset"], played["duration"], played["speed"]) == (0.4, 0.2, 1.25)


@pytest.mark.parametrize("text", ["1", "0.9,0.9", "3", "0.4", "fast"])
def test_speeds_that_are_none_are_refused(text, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["prepare.py", f"--out={tmp_path}", "--decode", f"--speeds={text}", "a"])
    with pytest.raises(SystemExit):
        prepare.main()
    assert "--speeds" in capsys.readouterr().err
