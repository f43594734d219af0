"""A table's runs: started, stopped, gone on with, and compared with what was asked for."""

import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import arms
import pytest
import run
import score
import train
from recipe import RECIPE, scored

# seconds that a process may take on a loaded machine
PATIENCE = 600


@pytest.fixture(autouse=True)
def handlers():
    """Puts the handlers of the signals back that run.py changes in its process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests run under nohup
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(sys, "argv", ["run.py", f"--data={data}", f"--out={tmp_path}/runs", "--scale=cpu"])
    with pytest.raises(SystemExit, match="Curves need matplotlib"):
        run.main()


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
