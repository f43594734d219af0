"""What was measured of a step, as tables."""


def markdown(head, rows):
    """A Markdown table of rows of cells."""
    return "\n".join(f"| {' | '.join(str(x) for x in row)} |" for row in [head, ["---"] * len(head), *rows])


def title(row):
    return f"{row['size']}, B {row['batch_size']}, {row['precision']}, {row['labels']}"


def with_interval(row):
    low, high = row["ratio_interval"]
    return f"{row['ratio']:.3f} ({low:.3f} to {high:.3f})"


def arms_table(rows):
    lines = []
    for row in rows:
        peak = f"{row['peak_bytes'] / 2**20:.0f} MiB" if "peak_bytes" in row else "-"
        active = f"{row['active_fraction']:.0%}" if "active_fraction" in row else "-"
        lines.append([title(row), row["arm"], f"{row['median'] * 1e3:.1f} ms", with_interval(row), peak, active])
    return markdown(["setting", "arm", "step", "ratio to ctc (95%)", "memory", "active rows"], lines)


def parts_table(rows):
    lines = [
        [title(row), row["part"], f"{row['median'] * 1e3:.2f} ms", f"{row['share_of_ctc_step']:.2%}"] for row in rows
    ]
    return markdown(["setting", "part", "time", "share of the ctc step"], lines)


def sweep_table(series):
    lines = [
        [one["labels"], one["grows"], "x".join(map(str, p["shape"])), f"{p['seconds'] * 1e3:.2f} ms", ""]
        for one in series
        for p in one["points"]
    ]
    fits = [[one["labels"], one["grows"], "fit", "", f"{one['slope']:.2f} against {one['against']}"] for one in series]
    return markdown(["labels", "grows", "B x S x N", "time", "log-log slope"], lines + fits)


def inference_table(rows):
    lines = [[row["what"], row["model"], f"{row['median'] * 1e3:.1f} ms", with_interval(row)] for row in rows]
    return markdown(["", "model", "time", "ratio (95%)"], lines)


TABLES = {"arms": arms_table, "parts": parts_table, "sweep": sweep_table, "inference": inference_table}
