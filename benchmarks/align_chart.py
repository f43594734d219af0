"""What was measured of the aligners, as a chart."""

import matplotlib
from matplotlib.figure import Figure


def chart(rows, title, file):
    """Time over the first contestant's by shape, a line for each contestant; above 1 is slower."""
    timed = [row for row in rows if "seconds" in row]
    shapes = list(dict.fromkeys(row["shape"] for row in timed))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(dict.fromkeys(row["contestant"] for row in timed)):
        points = [(shapes.index(row["shape"]), row["ratio"]) for row in timed if row["contestant"] == name]
        style = dict(marker="o", linewidth=2.5) if number == 0 else dict(marker="s", linewidth=1.2, markersize=4)
        axes.plot(*zip(*points, strict=True), label=name, **style)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(range(len(shapes)), [f"{b} x\n{s} x {n}" for b, s, n in shapes])
    axes.set_xlabel("utterances x segments x tokens")
    axes.set_ylabel(f"time, {timed[0]['contestant']} = 1")
    axes.grid(axis="y", alpha=0.3)
    axes.set_title(title, fontsize=11)
    figure.legend(fontsize=8, loc="outside lower center", ncols=3)
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text: a small file
        figure.savefig(file, metadata={"Date": None})
