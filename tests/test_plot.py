"""The alignment picture: what is on its axes."""

import sys

import pytest
import torch

from nemo_comat.plot import Alignment, plot_alignment

ALIGNMENT = Alignment(
    score=torch.rand(5, 3, generator=torch.Generator().manual_seed(0)),
    path=torch.tensor([0, 0, 1, 2, 2]),
    tokens=["the", "old", "boat"],
    labels=["▁the", "▁o", "ld", "▁bo", "at"],
    spans=[(0.0, 0.12), (0.2, 0.28), (0.28, 0.4), (0.44, 0.6), (0.6, 0.8)],
)


def test_picture_shows_tokens_labels_and_times(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    plot_alignment(ALIGNMENT, tmp_path / "a.png", title="the old boat")
    axes = figures[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ALIGNMENT.tokens
    assert [label.get_text() for label in axes.get_xticklabels()] == ["_the", "_o", "ld", "_bo", "at"]
    boxes = [(p.get_x() + 0.5, p.get_y() + 0.5) for p in axes.patches]
    assert boxes == [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2)]
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_segments_without_label_or_frame_are_drawn(tmp_path):
    nan = float("nan")
    plot_alignment(ALIGNMENT._replace(labels=[""] * 5, spans=[(nan, nan)] * 5), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_without_matplotlib_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'nemo_comat\[demo\]'"):
        plot_alignment(ALIGNMENT, tmp_path / "a.png")
