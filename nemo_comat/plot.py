"""A picture of an alignment: segments against the language model's tokens."""

from typing import NamedTuple

import torch


class Alignment(NamedTuple):
    """One utterance's alignment.

    score: [S, N]. path: [S] token of each segment. tokens: N strings, the teacher's. labels: S strings, the
    recogniser's token of each segment, "" where segments have none. spans: S pairs of start and end in seconds, NaN
    for a segment without a frame of its own.
    """

    score: torch.Tensor
    path: torch.Tensor
    tokens: list
    labels: list
    spans: list


def plot_alignment(alignment, file, *, title=""):
    """Draws the score of each segment with each token, and the path through it, as a PNG.

    Args:
        alignment: Alignment.
        file: path of the picture; its folder must exist.
        title: text above the picture.
    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot_alignment needs matplotlib: pip install 'nemo_comat[demo]'") from error

    segs, tokens = alignment.score.shape
    figure = Figure(figsize=(2.5 + 0.38 * segs, 2.2 + 0.36 * tokens), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(alignment.score.T.numpy(), aspect="auto", cmap="viridis", interpolation="nearest")
    for s, n in enumerate(alignment.path.tolist()):
        axes.add_patch(_box(s, n))
    axes.set_yticks(range(tokens), alignment.tokens)
    axes.set_ylabel("token of the language model")
    axes.set_xticks(range(segs), [label.replace("▁", "_") for label in alignment.labels], rotation=60)
    axes.set_xlabel("segment: CTC label, and start in seconds above")
    above = axes.secondary_xaxis("top")
    starts = [f"{start:.2f}".replace("nan", "") for start, _ in alignment.spans]
    above.set_xticks(range(segs), starts, rotation=60, fontsize="small")
    figure.colorbar(image, ax=axes, label="cosine", shrink=0.9)
    if title:
        figure.suptitle(title)
    figure.savefig(file, dpi=130)


def _box(segment, token):
    from matplotlib.patches import Rectangle

    return Rectangle((segment - 0.5, token - 0.5), 1, 1, fill=False, edgecolor="white", linewidth=2.5)
