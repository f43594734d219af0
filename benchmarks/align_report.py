"""What was measured of the aligners, as a table and as a chart."""


def table(rows, on_gpu, sizes="B, S, N"):
    """The rows as Markdown; times on a GPU, on a CPU only what they are to the first contestant's."""
    time_of = "time | " if on_gpu else ""
    head = f"| {sizes} | contestant | {time_of}ratio | valid | optimal | share of copy bandwidth |"
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    for row in rows:
        start = f"| {', '.join(str(n) for n in row['shape'])} | {row['contestant']} |"
        if "skipped" in row:
            lines.append(f"{start} skipped: {row['skipped']} {'| ' * (head.count('|') - 3)}")
            continue
        seconds = f" {row['seconds'] * 1e6:.1f} us |" if on_gpu else ""
        good = " | ".join("yes" if row[key] else "NO" for key in ("valid", "optimal"))
        lines.append(f"{start}{seconds} {row['ratio']:.2f} | {good} | {row['share_of_copy_bandwidth']:.1%} |")
    return "\n".join(lines)


def require_right(rows):
    """Ends the program where an answer of ours is not valid, or not the best."""
    own = [row for row in rows if "seconds" in row and "nemo_comat" in row["contestant"]]
    if not all(row["valid"] and row["optimal"] for row in own):
        raise SystemExit("an answer of nemo_comat is not right; see the table")


def chart(rows, title, file):
    """Time over the first contestant's by shape, a line for each contestant; above 1 is slower."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text: a small file
    import matplotlib.pyplot as plt

    timed = [row for row in rows if "seconds" in row]
    shapes = list(dict.fromkeys(row["shape"] for row in timed))
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
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
    figure.savefig(file, metadata={"Date": None})
