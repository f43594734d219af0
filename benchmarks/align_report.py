"""What was measured of the searches, as a table."""

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
