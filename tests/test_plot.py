"""The alignment picture: what is on its axes."""

import sys

import pytest
import torch

from nemo_comat.views.plot import COLOURS, Alignment, _spread, alignment_image, plot_alignment, plot_utterance

ALIGNMENT = Alignment(
    score=torch.rand(5, 3, generator=torch.Generator().manual_seed(0)),
    path=torch.tensor([0, 0, 1, 2, 2]),
    tokens=["the", "old", "boat"],
    labels=["▁the", "▁o", "ld", "▁bo", "at"],
    spans=[(0.0, 0.12), (0.2, 0.28), (0.28, 0.4), (0.44, 0.6), (0.6, 0.8)],
)


TIMED = ALIGNMENT._replace(features=torch.rand(8, 90), frame_seconds=0.01)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved during a test."""
    from matplotlib.figure import Figure

    saved, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (saved.append(self), save(self, *a, **k)))
    return saved


def test_picture_shows_tokens_labels_and_times(tmp_path, figures):
    plot_alignment(ALIGNMENT, tmp_path / "a.png", title="the old boat")
    axes = figures[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ALIGNMENT.tokens
    assert [label.get_text() for label in axes.get_xticklabels()] == ["_the", "_o", "ld", "_bo", "at"]
    boxes = [(p.get_x() + 0.5, p.get_y() + 0.5) for p in axes.patches]
    assert boxes == [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2)]
    assert (axes.images[0].get_array() == ALIGNMENT.score.T.numpy()).all()
    shown = axes.child_axes[0].get_xticklabels()
    assert [label.get_text() for label in shown] == ["0.00", "0.20", "0.28", "0.44", "0.60"]
    assert figures[0]._suptitle.get_text() == "the old boat"
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_segments_without_label_or_frame_are_drawn(tmp_path, figures):
    nan = float("nan")
    plot_alignment(ALIGNMENT._replace(labels=[""] * 5, spans=[(nan, nan)] * 5), tmp_path / "a.png")
    assert {label.get_text() for label in figures[0].axes[0].child_axes[0].get_xticklabels()} == {""}
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_without_matplotlib_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'nemo_comat\[demo\]'"):
        plot_alignment(ALIGNMENT, tmp_path / "a.png")


def test_pixels_for_loggers_are_the_picture():
    image = alignment_image(ALIGNMENT, title="the old boat")
    assert image.dtype == "uint8" and image.ndim == 3 and image.shape[2] == 3
    other = alignment_image(ALIGNMENT._replace(score=-ALIGNMENT.score), title="the old boat")
    assert image.shape == other.shape and (image != other).any()


def test_dollars_are_no_formula_and_long_utterances_stay_of_a_size():
    alignment_image(ALIGNMENT._replace(tokens=["$a$", "$x^$", "$"]), title="$5 or $\\frac")
    segs, n = 200, 30
    long = Alignment(torch.rand(segs, n), torch.arange(segs) * n // segs, ["x"] * n, ["y"] * segs, [(0.0, 1.0)] * segs)
    assert max(alignment_image(long).shape) < 2000


def test_utterance_shows_segments_at_their_times_and_links_them_with_their_tokens(tmp_path, figures):
    plot_utterance(TIMED, tmp_path / "a.png", title="the old boat")
    mel, lanes = figures[0].axes
    assert mel.images[0].origin == "lower"
    assert mel.images[0].get_array().shape == (8, 90) and tuple(mel.images[0].get_extent()[:2]) == (0, 0.9)
    edges = [line.get_xdata()[0] for line in mel.lines]
    assert edges == [edge for span in TIMED.spans for edge in span]
    bars = [bar.get_paths()[0].get_extents() for bar in lanes.collections]
    assert [(bar.x0, bar.x1) for bar in bars] == [*TIMED.spans, (0.0, 0.28), (0.28, 0.4), (0.44, 0.8)]
    at = {text.get_text(): text.get_position() for text in lanes.texts}
    assert {"_the", "_o", "ld", "_bo", "at", "the", "old", "boat"} < set(at)
    links = [(*line.get_xydata().tolist(), line.get_color()) for line in lanes.lines]
    for label, token in zip(["_the", "_o", "ld", "_bo", "at"], ["the", "the", "old", "boat", "boat"]):
        ends = [at[label][0], 0.72], [at[token][0], 0.45]
        assert (*ends, COLOURS[TIMED.tokens.index(token)]) in links
    cosine = TIMED.score[[3, 4], 2].mean()
    assert f"{cosine:.2f}" in at


def test_few_segments_of_a_long_utterance_are_drawn(tmp_path, figures):
    long = TIMED._replace(features=torch.rand(8, 3000))
    plot_utterance(long, tmp_path / "a.png")
    first, *_, last = (axes.get_xlim() for axes in figures[0].axes[::2])
    assert first[0] == 0 and last[1] == 30


def test_labels_of_an_utterance_do_not_touch(tmp_path, figures):
    generator, segs = torch.Generator().manual_seed(1), 60
    starts = (torch.rand(segs, generator=generator).sort().values * 3).tolist()
    crowd = Alignment(
        torch.rand(segs, 15, generator=generator),
        torch.arange(segs) * 15 // segs,
        [f"token{n}" for n in range(15)],
        [["wide", "i"][s % 2] for s in range(segs)],
        list(zip(starts, [*starts[1:], 3.0])),
        torch.rand(8, 300),
        0.01,
    )
    plot_utterance(crowd, tmp_path / "a.png", title="many words " * 40)
    labels = 0
    for lanes in figures[0].axes[1::2]:
        low, high = lanes.get_xlim()
        for height in (0.78, 0.38, 0.24):
            texts = [text for text in lanes.texts if text.get_position()[1] == height]
            boxes = sorted((text.get_window_extent() for text in texts), key=lambda box: box.x0)
            assert all(left.x1 < right.x0 for left, right in zip(boxes, boxes[1:]))
            assert all(low <= text.get_position()[0] <= high for text in texts)
            labels += len(texts) if height == 0.78 else 0
    assert labels == segs and len(figures[0].axes) >= 4


def test_what_has_no_time_or_label_is_left_out_of_an_utterance(tmp_path, figures):
    nan = float("nan")
    alignment = TIMED._replace(spans=[(nan, nan), *TIMED.spans[1:]], labels=["x", "blank", "", "_bo", "at"])
    plot_utterance(alignment, tmp_path / "a.png")
    assert not {"x", "blank", "the"} & {text.get_text() for text in figures[0].axes[1].texts}
    for wrong in (TIMED._replace(spans=[(nan, nan)] * 5), ALIGNMENT):
        with pytest.raises(ValueError, match="draw it with plot_alignment"):
            plot_utterance(wrong, tmp_path / "b.png")


@pytest.mark.parametrize(
    "centres, widths, wanted",
    [
        ([1, 5, 9], [1, 1, 1], [1, 5, 9]),
        ([5, 5], [2, 2], [4, 6]),
        ([0, 9.9], [2, 2], [1, 9]),
        ([5, 5, 5.6], [1, 1, 1], [4.2, 5.2, 6.2]),
        ([], [], []),
    ],
)
def test_labels_move_as_little_as_they_must(centres, widths, wanted):
    assert _spread(centres, widths, 0, 10) == pytest.approx(wanted)
