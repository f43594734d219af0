"""What was measured of the aligners, as a table and as a chart."""

import matplotlib
from matplotlib.figure import Figure
from step_report import markdown


def table(rows, on_gpu, sizes="B, S, N"):
    """The rows as Markdown; times on a GPU, on a CPU only what they are to the first contestant's."""
    head = [sizes, "contestant", *["time"] * on_gpu, "ratio", "valid", "optimal", "share of copy bandwidth"]
    cells = []
    for row in rows:
        start = [", ".join(str(n) for n in row["shape"]), row["contestant"]]
        if "skipped" in row:
            cells.append([*start, f"skipped: {row['skipped']}", *[""] * (len(head) - 3)])
            continue
        seconds = [f"{row['seconds'] * 1e6:.1f} us"] if on_gpu else []
        good = ["yes" if row[key] else "NO" for key in ("valid", "optimal")]
        cells.append([*start, *seconds, f"{row['ratio']:.2f}", *good, f"{row['share_of_copy_bandwidth']:.1%}"])
    return markdown(head, cells)


def require_right(rows):
    """Ends the program where an answer of ours is not valid, or not the best."""
    own = [row for row in rows if "seconds" in row and "nemo_comat" in row["contestant"]]
    if not all(row["valid"] and row["optimal"] for row in own):
        raise SystemExit("an answer of nemo_comat is not right; see the table")


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
