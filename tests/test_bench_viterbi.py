"""The benchmark of the Viterbi search: right answers and wrong ones are told apart, and all of it is shown."""

import functools
import json
import sys

import align_measure
import bench_viterbi
import machine
import pytest
import torch
from align_contestants import Contestant

CPU = torch.device("cpu")
SHAPE = (2, 7, 3, 6)


def labels_first(inputs):
    """Spells each reference, and is the best path by chance alone: its labels in the first frames, then blanks."""
    log_probs, _, targets, _ = inputs
    blanks = log_probs.shape[1] - targets.shape[1]
    return torch.nn.functional.pad(targets, (0, blanks), value=log_probs.shape[2] - 1)


def blanks_alone(inputs):
    return torch.full(inputs[0].shape[:2], inputs[0].shape[2] - 1)


@pytest.fixture(autouse=True)
def field(monkeypatch):
    """Ours, two that answer wrongly, and one that is not there."""
    ways = (("not the best", labels_first), ("spells nothing", blanks_alone))
    wrong = [Contestant(name, lambda *inputs: inputs, run) for name, run in ways]
    found = [bench_viterbi.ours("torch", SHAPE[3] - 1), *wrong]
    monkeypatch.setattr(bench_viterbi, "contestants", lambda device, blank: (list(found), {"a peer": "is not there"}))
    for module in (align_measure, machine):
        monkeypatch.setattr(module, "copy_bandwidth", lambda device: 1e9)
    return found


def test_answers_are_judged():
    rows = bench_viterbi.bench(SHAPE, CPU, torch.float32, rounds=1)
    assert rows[0] == {"shape": SHAPE, "contestant": "a peer", "skipped": "is not there"}
    verdicts = {row["contestant"]: (row["valid"], row["optimal"]) for row in rows[1:]}
    assert verdicts == {
        "nemo_comat torch": (True, True),
        "not the best": (True, False),
        "spells nothing": (False, False),
    }
    assert rows[1]["ratio"] == 1 and rows[1]["bytes"] == 4 * 2 * 7 * (3 + 1) + 8 * 2 * (7 + 3)


def test_what_a_path_spells():
    targets, blank = torch.tensor([[1, 2], [1, 2], [1, 2], [1, 1], [1, 1]]), 0
    labels = torch.tensor([[1, 1, 0, 2], [1, 2, 0, 2], [1, 0, 0, 0], [1, 1, 1, 0], [1, 0, 1, 1]])
    assert bench_viterbi.spells(labels, targets, blank).tolist() == [True, False, False, False, True]


def test_inputs_can_be_spelt_and_are_distributions():
    for log_probs, frame_len, targets, target_len in bench_viterbi.random_inputs(SHAPE, CPU, torch.float16):
        assert log_probs.shape == (2, 7, 6) and log_probs.dtype == torch.float16
        assert log_probs.float().exp().sum(-1).allclose(torch.ones(2, 7), atol=1e-2)
        assert targets.shape == (2, 3) and 0 <= targets.min() and targets.max() < 5
        assert (targets[:, 1:] != targets[:, :-1]).all()
        assert frame_len.tolist() == [7, 7] and target_len.tolist() == [3, 3]


def test_torchaudio_gets_one_utterance_a_call(monkeypatch):
    calls = []

    def forced_align(log_probs, targets, frame_len, target_len, blank):
        calls.append((log_probs.dtype, log_probs.shape, targets.dtype, targets.shape, blank))
        path = bench_viterbi.ours("cpu", blank)
        answer = path.read(path.run((log_probs, frame_len, targets, target_len)))
        return answer, torch.zeros_like(answer)

    module = type(sys)("torchaudio.functional")
    module.forced_align = forced_align
    monkeypatch.setitem(sys.modules, "torchaudio", type(sys)("torchaudio"))
    monkeypatch.setitem(sys.modules, "torchaudio.functional", module)
    pool = list(bench_viterbi.random_inputs(SHAPE, CPU, torch.bfloat16, count=2))
    theirs, mine = bench_viterbi.torchaudios(5), bench_viterbi.ours("torch", 5)
    answers = [[one.read(one.run(one.prepare(*inputs))) for inputs in pool] for one in (theirs, mine)]
    total = functools.partial(bench_viterbi.total, blank=5)
    assert align_measure.judge(pool, answers, total) == [[True, True], [True, True]]
    assert calls == [(torch.float32, (1, 7, 6), torch.int32, (1, 3), 5)] * 4


def test_the_script_writes_what_it_measured_and_ends_with_an_error_where_ours_is_wrong(tmp_path, capsys, field):
    arguments = ["--device=cpu", "--shapes", "2,7,3,6", "--rounds=1", f"--out={tmp_path}"]
    bench_viterbi.main(arguments)
    result = json.loads((tmp_path / "viterbi.json").read_text())
    assert [row["contestant"] for row in result["rows"]][:2] == ["a peer", "nemo_comat torch"]
    assert "| 2, 7, 3, 6 | nemo_comat torch |" in capsys.readouterr().out
    field[0].run, field[0].read = blanks_alone, lambda answer: answer
    with pytest.raises(SystemExit, match="viterbi.json exists already"):
        bench_viterbi.main(arguments)
    with pytest.raises(SystemExit, match="an answer of nemo_comat is not right"):
        bench_viterbi.main([*arguments, "--overwrite"])


@pytest.mark.parametrize("shape", ["1,2,1", "0,2,1,3", "1,2,3,4", "1,2,2,2"])
def test_a_shape_that_cannot_be_spelt_is_refused(shape, capsys):
    with pytest.raises(SystemExit):
        bench_viterbi.read_options(["--shapes", shape])
    assert "a shape is B,T,U,V with T >= U >= 1 and V >= 3" in capsys.readouterr().err
