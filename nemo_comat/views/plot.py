"""Pictures of an alignment: as a matrix of segments against the language model's tokens, and along the time axis."""

import functools
import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from nemo_comat.output import PathLike

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

DPI = 130
# Okabe and Ito's, told apart by colour-blind readers too; neighbouring tokens get different ones
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
GREY = "#777777"
# of the picture along time: inches, points
WIDTH, ROW_HEIGHT, SECONDS_A_ROW, FONT = 13.0, 3.1, 4.0, 8.5


class Alignment(NamedTuple):
    """One utterance's alignment.

    score: [S, N]. path: [S] token of each segment. tokens: N strings, the teacher's. labels: S strings, the
    recogniser's token of each segment, "" where segments have none. spans: S pairs of start and end in seconds, NaN
    for a segment without a frame of its own. features: [F, frames] log-mel, or None. frame_seconds: from one of their
    frames to the next.
    """

    score: Tensor
    path: Tensor
    tokens: list[str]
    labels: list[str]
    spans: list[tuple[float, float]]
    features: Tensor | None = None
    frame_seconds: float = math.nan


def plot_alignment(alignment: Alignment, file: PathLike, *, title: str = "") -> None:
    """Draws the score of each segment with each token, and the path through it, as a PNG.

    Args:
        alignment: Alignment.
        file: path of the picture; its folder must exist.
        title: text above the picture.
    Raises:
        ImportError: matplotlib is missing.
    Examples:
        >>> import torch
        >>> score, spans = torch.eye(2), [(0.0, 0.1), (0.1, 0.2)]
        >>> alignment = Alignment(score, torch.tensor([0, 1]), ["the", "dog"], ["the", "dog"], spans)
        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile(suffix=".png") as file:
        ...     plot_alignment(alignment, file.name)
        ...     file.read()[1:4]
        b'PNG'
    """
    _matrix(alignment, title).savefig(file, dpi=DPI)


def alignment_image(alignment: Alignment, *, title: str = "", dpi: float = 80) -> "npt.NDArray[np.uint8]":
    """The picture of `plot_alignment` as pixels, for loggers.

    Args:
        alignment: Alignment.
        title: text above the picture.
        dpi: pixels an inch.
    Returns:
        numpy uint8 [height, width, 3].
    Raises:
        ImportError: matplotlib is missing.
    Examples:
        >>> import torch
        >>> score, spans = torch.eye(2), [(0.0, 0.1), (0.1, 0.2)]
        >>> alignment = Alignment(score, torch.tensor([0, 1]), ["the", "dog"], ["the", "dog"], spans)
        >>> alignment_image(alignment, dpi=20).shape[2], alignment_image(alignment, dpi=20).dtype
        (3, dtype('uint8'))
    """
    import numpy

    figure = _matrix(alignment, title, dpi=dpi)
    canvas: Any = figure.canvas
    canvas.draw()
    return numpy.asarray(canvas.buffer_rgba())[..., :3].copy()


def plot_utterance(alignment: Alignment, file: PathLike, *, title: str = "") -> None:
    """Draws an utterance along its time axis as a PNG: log-mel, segments, and which token each of them is aligned with.

    Long utterances go over several rows, broken between tokens where they can be.

    Args:
        alignment: Alignment with features and at least one segment that has a span.
        file: path of the picture; its folder must exist.
        title: text above the picture.
    Raises:
        ImportError: matplotlib is missing.
        ValueError: the alignment has no features, or no segment has a place in time.
    Examples:
        >>> import torch
        >>> score, spans = torch.eye(2), [(0.0, 0.1), (0.1, 0.2)]
        >>> alignment = Alignment(score, torch.tensor([0, 1]), ["the", "dog"], ["the", "dog"], spans)
        >>> plot_utterance(alignment, "utterance.png")
        Traceback (most recent call last):
        ValueError: This alignment has no features or no places in time; draw it with plot_alignment.
    """
    features = alignment.features
    if features is None or all(math.isnan(start) for start, _ in alignment.spans):
        raise ValueError("This alignment has no features or no places in time; draw it with plot_alignment.")
    rows = _rows(alignment, features.shape[1] * alignment.frame_seconds)
    figure = _figure(WIDTH, 0.5 + ROW_HEIGHT * len(rows))
    grid = figure.add_gridspec(2 * len(rows), 1, height_ratios=[1.2, 1.6] * len(rows))
    for number, (start, end) in enumerate(rows):
        mel = figure.add_subplot(grid[2 * number])
        _draw_features(mel, features, alignment.frame_seconds)
        lanes = figure.add_subplot(grid[2 * number + 1], sharex=mel)
        for index in _segments_between(alignment, start, end):
            _draw_segment(mel, lanes, alignment, index)
        _draw_lanes(lanes, alignment, start, end)
        mel.tick_params(labelbottom=False)
        # rows of one scale: the last may end early
        mel.set_xlim(start, start + max(b - a for a, b in rows))
    figure.axes[-1].set_xlabel("time in seconds; the number below a token is the mean cosine of its segments with it")
    figure.suptitle(_text(textwrap.fill(title, 120)), fontsize=FONT + 2.5)
    figure.savefig(file, dpi=DPI)


def _figure(width: float, height: float, dpi: float = DPI) -> "Figure":
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Pictures of alignments need matplotlib: pip install 'nemo_comat[demo]'") from error
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _text(text: str) -> str:
    # matplotlib would set what stands between two dollars as a formula, and fonts lack the word mark
    return text.replace("$", r"\$").replace("▁", "_")


def _matrix(alignment: Alignment, title: str, dpi: float = DPI) -> "Figure":
    segs, tokens = alignment.score.shape
    # beyond some size the picture would be too large to open, and labels too small to read
    wide, high = min(0.38, 20 / segs), min(0.36, 14 / tokens)
    figure = _figure(2.5 + max(3, wide * segs), 2.2 + max(1.5, high * tokens), dpi)
    axes = figure.add_subplot()
    image = axes.imshow(alignment.score.T.numpy(), aspect="auto", cmap="viridis", interpolation="nearest")
    for s, n in enumerate(alignment.path.tolist()):
        axes.add_patch(_box(s, n, linewidth=min(2.5, 12 * min(wide, high))))
    axes.set_yticks(range(tokens), [_text(token) for token in alignment.tokens], fontsize=min(9, 50 * high))
    axes.set_ylabel("token of the language model")
    if segs > 120:
        axes.set_xlabel("segment, its start in seconds above")
    else:
        labels = [_text(label) for label in alignment.labels]
        axes.set_xticks(range(segs), labels, rotation=60, fontsize=min(9, 50 * wide))
        axes.set_xlabel("segment: CTC label, and start in seconds above")
    above = axes.secondary_xaxis("top")
    shown = range(0, segs, math.ceil(segs / 60))
    starts = [f"{alignment.spans[s][0]:.2f}".replace("nan", "") for s in shown]
    above.set_xticks(shown, starts, rotation=60, fontsize="small")
    figure.colorbar(image, ax=axes, label="cosine", shrink=0.9, aspect=30, pad=0.01)
    if title:
        figure.suptitle(_text(textwrap.fill(title, max(50, int(9 * figure.get_figwidth())))))
    return figure


def _box(segment: int, token: int, linewidth: float) -> "Rectangle":
    from matplotlib.patches import Rectangle

    return Rectangle((segment - 0.5, token - 0.5), 1, 1, fill=False, edgecolor="white", linewidth=linewidth)


def _token(alignment: Alignment, segment: int) -> int:
    return int(alignment.path[segment])


def _centre(alignment: Alignment, segment: int) -> float:
    return sum(alignment.spans[segment]) / 2


def _segments_between(alignment: Alignment, start: float, end: float) -> list[int]:
    """Numbers of the segments whose middle lies in an interval of time; those without a place lie in none."""
    return [s for s in range(len(alignment.spans)) if start <= _centre(alignment, s) < end]


def _rows(alignment: Alignment, duration: float) -> list[tuple[float, float]]:
    """Intervals of time, one a row: as few as give all labels room, broken between tokens where one ends nearby."""
    timed = [s for s, (start, _) in enumerate(alignment.spans) if not math.isnan(start)]
    gaps = [
        ((alignment.spans[a][1] + alignment.spans[b][0]) / 2, bool(alignment.path[a] != alignment.path[b]))
        for a, b in zip(timed, timed[1:])
    ]
    least = max(1, math.ceil(duration / SECONDS_A_ROW))
    for count in range(least, max(least, len(timed) + 1) + 1):
        row = duration / count
        inner = {_break_near(gaps, row * number, row / 5) for number in range(1, count)}
        edges = [0.0, *sorted(inner), duration]
        rows = list(zip(edges, edges[1:]))
        if all(_has_room(alignment, *row) for row in rows):
            break
    return rows


def _break_near(gaps: Sequence[tuple[float, bool]], time: float, reach: float) -> float:
    """The gap between tokens nearest to a time, within reach; else the gap between segments; else the time itself."""
    between = [at for at, tokens in gaps if tokens and abs(at - time) < reach]
    return min(between or [at for at, _ in gaps] or [time], key=lambda at: abs(at - time))


def _has_room(alignment: Alignment, start: float, end: float) -> bool:
    segments = _segments_between(alignment, start, end)
    tokens = dict.fromkeys(_token(alignment, s) for s in segments)
    room = WIDTH - 1.5
    labels = sum(_width(_label(alignment, s)) for s in segments)
    return labels < room and sum(_token_width(alignment.tokens[n]) for n in tokens) < room


def _label(alignment: Alignment, segment: int) -> str:
    return "" if alignment.labels[segment] == "blank" else alignment.labels[segment]


@functools.cache
def _width(text: str) -> float:
    """Width of a text with the room around it, in inches."""
    from matplotlib.textpath import TextPath

    return (TextPath((0, 0), _text(text), size=FONT).get_extents().width / 72 + 0.09) if text else 0.0


def _token_width(token: str) -> float:
    # its cosine stands below it
    return max(_width(token), _width("-0.00"))


def _spread(centres: Sequence[float], widths: Sequence[float], low: float, high: float) -> list[float]:
    """Places nearest to the centres (in the sum of squares) at which labels of these widths do not touch.

    Args:
        centres, widths: lists in ascending order of centres. low, high: where the first begins and the last ends.
    Returns:
        list of places.
    """
    from scipy.optimize import isotonic_regression

    if not centres:
        return []
    offsets = [0.0]
    for left, right in zip(widths, widths[1:]):
        offsets.append(offsets[-1] + (left + right) / 2)
    free = isotonic_regression([centre - offset for centre, offset in zip(centres, offsets)]).x
    first, last = low + widths[0] / 2, high - widths[-1] / 2 - offsets[-1]
    return [max(first, min(place, last)) + offset for place, offset in zip(free, offsets)]


def _colour(token: int) -> str:
    return COLOURS[token % len(COLOURS)]


def _draw_features(axes: "Axes", features: Tensor, frame_seconds: float) -> None:
    channels, frames = features.shape
    extent = (0, frames * frame_seconds, 0.5, channels + 0.5)
    axes.imshow(features.numpy(), aspect="auto", origin="lower", extent=extent, cmap="gray_r")
    axes.set_ylabel("log-mel\nchannel", fontsize=FONT)
    axes.tick_params(labelsize=FONT - 1)


def _draw_segment(mel: "Axes", lanes: "Axes", alignment: Alignment, segment: int) -> None:
    (start, end), blank = alignment.spans[segment], alignment.labels[segment] == "blank"
    colour = GREY if blank else _colour(_token(alignment, segment))
    mel.axvspan(start, end, facecolor=colour, alpha=0.25, linewidth=0)
    for edge in (start, end):
        mel.axvline(edge, color=colour, linewidth=0.7)
    lanes.broken_barh([(start, end - start)], (0.93, 0.07), facecolor=colour, edgecolor="white", linewidth=0.5)


def _draw_lanes(axes: "Axes", alignment: Alignment, start: float, end: float) -> None:
    """Labels, links, tokens and cosines of one row's segments."""
    scale = (end - start) / (WIDTH - 1.5)
    segments = [s for s in _segments_between(alignment, start, end) if alignment.labels[s] != "blank"]
    by_token: dict[int, list[int]] = {}
    for s in segments:
        by_token.setdefault(_token(alignment, s), []).append(s)
    middle = {n: sum(_centre(alignment, s) for s in own) / len(own) for n, own in by_token.items()}
    tokens = sorted(by_token, key=middle.__getitem__)
    widths = [scale * _token_width(alignment.tokens[n]) for n in tokens]
    place = dict(zip(tokens, _spread([middle[n] for n in tokens], widths, start, end)))
    centres = [_centre(alignment, s) for s in segments]
    places = _spread(centres, [scale * _width(_label(alignment, s)) for s in segments], start, end)
    for s, centre, at in zip(segments, centres, places):
        token = _token(alignment, s)
        line: dict[str, Any] = dict(color=_colour(token), linewidth=1, solid_capstyle="round")
        axes.plot([centre, at], [0.93, 0.84], **line)
        axes.text(at, 0.78, _text(_label(alignment, s)), ha="center", va="center", fontsize=FONT)
        axes.plot([at, place[token]], [0.72, 0.45], **line)
    for n in tokens:
        _draw_token(axes, alignment, n, by_token[n], place[n])
    axes.set_ylim(0, 1)
    axes.set_yticks([0.96, 0.78, 0.38, 0.24, 0.07], ["segments", "CTC labels", "tokens", "cosine", "their times"])
    axes.tick_params(axis="both", labelsize=FONT - 1)
    axes.tick_params(axis="y", length=0)


def _draw_token(axes: "Axes", alignment: Alignment, token: int, segments: list[int], at: float) -> None:
    colour = _colour(token)
    box = dict(boxstyle="round,pad=0.18", facecolor=colour, edgecolor=colour, alpha=0.3)
    axes.text(at, 0.38, _text(alignment.tokens[token]), ha="center", va="center", fontsize=FONT, bbox=box)
    cosine = alignment.score[segments, token].mean().item()
    axes.text(at, 0.24, f"{cosine:.2f}", ha="center", va="center", fontsize=FONT - 2, color=GREY)
    first, last = alignment.spans[segments[0]][0], max(alignment.spans[s][1] for s in segments)
    axes.plot([at, (first + last) / 2], [0.18, 0.11], color=colour, linewidth=0.7)
    axes.broken_barh([(first, last - first)], (0.03, 0.08), facecolor=colour, edgecolor="white", linewidth=0.5)
