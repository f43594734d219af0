"""The benchmark of the aligner: right answers and wrong ones are told apart, and all of it is shown."""

import functools
import json

import align_contestants
import align_measure
import align_report
import bench_align
import machine
import pytest
import torch

SHAPE = (2, 6, 3)


def most_to_the_last(inputs):
    """Monotonic and complete, but the best path by chance alone: all tokens but the last have one segment."""
    score = inputs[0]
    return torch.arange(score.shape[1]).clamp(max=score.shape[2] - 1).expand(score.shape[:2])


def no_path(inputs):
    return torch.zeros(inputs[0].shape[:2], dtype=torch.int32)


@pytest.fixture(autouse=True)
def field(monkeypatch):
    """Ours, two that answer wrongly, and one that is not there."""
    wrong = [
        align_contestants.Contestant(name, lambda *inputs: inputs, run)
        for name, run in (("not the best", most_to_the_last), ("no path", no_path))
    ]
    found = [align_contestants.ours("torch"), *wrong]
    monkeypatch.setattr(align_measure, "contestants", lambda device: (list(found), {"a peer": "is not installed"}))
    for module in (align_measure, machine):
        monkeypatch.setattr(module, "copy_bandwidth", lambda device: 1e9)
    return found


def test_answers_are_judged():
    rows = align_measure.bench(SHAPE, torch.device("cpu"), torch.float32, "text", rounds=2)
    assert rows[0] == {"shape": SHAPE, "contestant": "a peer", "skipped": "is not installed"}
    verdicts = {row["contestant"]: (row["valid"], row["optimal"]) for row in rows[1:]}
    assert verdicts == {"nemo_comat torch": (True, True), "not the best": (True, False), "no path": (False, False)}
    assert rows[1]["ratio"] == 1 and rows[1]["bytes"] == 4 * 2 * 4 * 3 + 4 * 2 * 6  # of six segments a token has four
    lines = align_report.table(rows, on_gpu=False).splitlines()
    assert {line.count("|") for line in lines} == {7} and lines[-1].startswith("| 2, 6, 3 | no path |")
    assert "| NO | NO |" in lines[-1] and "skipped: is not installed" in lines[2]


@pytest.mark.parametrize("layout", ["text", "frames"])
def test_inputs_have_the_layout_that_was_asked_for(layout):
    for score, seg_len, text_len in align_measure.random_inputs(SHAPE, torch.device("cpu"), torch.bfloat16, layout):
        assert score.shape == SHAPE and score.dtype == torch.bfloat16
        assert score.stride() == ((18, 3, 1) if layout == "text" else (18, 1, 6))
        assert seg_len.tolist() == [6, 6] and text_len.tolist() == [3, 3]


def test_the_script_writes_what_it_measured(tmp_path, capsys):
    arguments = ["--device=cpu", "--shapes", "2,6,3", "3,5,5", "--rounds=1", f"--out={tmp_path}"]
    bench_align.main(arguments)
    result = json.loads((tmp_path / "align.json").read_text())
    assert {tuple(row["shape"]) for row in result["rows"]} == {(2, 6, 3), (3, 5, 5)} and result["rounds"] == 1
    picture = (tmp_path / "align.svg").read_text()
    assert "nemo_comat torch" in picture and "not the best" in picture and "a peer" not in picture
    assert "| 3, 5, 5 | nemo_comat torch |" in capsys.readouterr().out


def test_a_shape_that_does_not_fit_is_left_out(tmp_path, monkeypatch, capsys):
    arguments = ["--device=cpu", "--shapes", "2,6,3", "9,60,30", "--rounds=1", f"--out={tmp_path}"]
    monkeypatch.setattr(align_measure, "memory_left", lambda device: 30000)
    bench_align.main(arguments)
    rows = json.loads((tmp_path / "align.json").read_text())["rows"]
    assert {tuple(row["shape"]) for row in rows if "seconds" in row} == {(2, 6, 3)} and len(rows) == 8
    assert capsys.readouterr().out.count("skipped: its copies do not fit in memory") == 3
    monkeypatch.setattr(align_measure, "memory_left", lambda device: 30)
    with pytest.raises(SystemExit, match="no shape was measured"):
        bench_align.main([*arguments, "--overwrite"])
    assert len(json.loads((tmp_path / "align.json").read_text())["rows"]) == 8


def test_what_all_contestants_keep_must_fit_together():
    contestant = functools.partial(align_contestants.Contestant, prepare=None, run=None)
    small, keeps, calls = (contestant(name, kept=k, arrays=a) for name, k, a in [("a", 0, 0), ("b", 2, 2), ("c", 0, 3)])
    for room, turns, wanted in [
        (-1, 1, []),
        (2, 1, [small]),
        (4, 1, [small, keeps]),
        (5, 1, [small, keeps, calls]),
        (5, 2, [small, calls]),
        (7, 2, [small, keeps, calls]),
    ]:
        assert align_measure.fitting([small, keeps, calls], room, turns) == wanted


def test_memory_that_holds_files_can_be_had():
    assert (
        0
        < machine.memory_left(torch.device("cpu"))
        == pytest.approx(machine.kilobytes("/proc/meminfo", "MemAvailable"), rel=0.2)
    )


def test_a_wrong_answer_of_ours_ends_with_an_error(tmp_path, field):
    field[0].run = no_path
    with pytest.raises(SystemExit, match="an answer of nemo_comat is not right"):
        bench_align.main(["--device=cpu", "--shapes", "2,6,3", "--rounds=1", f"--out={tmp_path}"])
    assert (tmp_path / "align.json").exists()


@pytest.mark.parametrize("shape", ["1,2", "0,2,1", "1,2,3"])
def test_a_shape_that_cannot_be_aligned_is_refused(shape, capsys):
    with pytest.raises(SystemExit):
        bench_align.read_options(["--shapes", shape])
    assert "a shape is B,S,N with S >= N >= 1, got" in capsys.readouterr().err
