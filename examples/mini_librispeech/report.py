"""Compares the runs of the recipe: error rates with intervals, costs, and the words that were mended or broken.

    python examples/mini_librispeech/report.py [names ...] --out=RUNS [--data=DATA] [--seeds 1] [--against ctc]

Reads what train.py and score.py left in RUNS/NAME/seed*/, compressed by gzip or not; writes report.md, report.json and
dev_wer.svg into RUNS, or into --to. These are written anew at each call, for RUNS grows with each run.
--keep=results/SCALE copies what the table needs, no checkpoints, into a folder to commit. --html writes a page too,
with transcripts to compare and, with --data, to hear.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from statistics import mean, median, stdev

from records import keep, read_runs, training_texts
from word_errors import FREQUENCIES, errors, mended_and_broken, paired_interval, rate, word_shares

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from report_page import Page, chart, line_of, load_matplotlib, manifest_audio, some

from nemo_comat.output import exit_in_one_sentence, written_beside
from nemo_comat.paths import given_path

BASELINES = ("ctc", "interctc")
WORDS_SAY = "Of 100 test words so many came out right, and so many were added"


def spread(values):
    """Mean and standard deviation over seeds; the latter None for one seed."""
    return {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else None, "seeds": len(values)}


def check_test_set(runs):
    """Looks whether all runs were scored on the same utterances, without which they cannot be compared.

    Args:
        runs: of `read_runs`.
    Raises:
        ValueError: two of them were not.
    """
    for split in ("dev", "test"):
        said = [
            (f"{name} {seed['seed'].replace('seed', 'seed ')}", [row["reference"] for row in seed[split]])
            for name, seeds in runs.items()
            for seed in seeds
        ]
        for run, references in said:
            if references != said[0][1]:
                raise ValueError(
                    f"{run} was scored on another {split} set than {said[0][0]}; name runs of one {split} set, or "
                    "score one of these two again."
                )


def summary(runs, times=None, against=BASELINES):
    """What the report says, by run name, as plain numbers; runs are compared on the seeds that both have.

    Args:
        runs: of `read_runs`. times: Counter of the training words, or None. against: names of runs that the others are
            compared with, where they are there; words are mended and broken against the first.
    Raises:
        ValueError: the runs were scored on different sets.
    """
    check_test_set(runs)
    words = {name: [errors(seed["test"]) for seed in seeds] for name, seeds in runs.items()}
    found = {}
    for name, seeds in runs.items():
        # an epoch of one step has none
        times_of_steps = [row["step_seconds"] for seed in seeds for row in seed["history"] if "step_seconds" in row]
        of = found[name] = {
            "test_wer": spread([rate(counts) for counts in words[name]]),
            "test_cer": spread([rate(errors(seed["test"], list)) for seed in seeds]),
            "dev_wer": spread([rate(errors(seed["dev"])) for seed in seeds]),
            "step_seconds": median(times_of_steps) if times_of_steps else None,
            "peak_bytes": max(row["peak_bytes"] for seed in seeds for row in seed["history"]),
            # of before, no run says its machine
            "machines": sorted({seed["run"].get("machine", "") for seed in seeds}),
            "commits": sorted({seed["run"]["commit"] for seed in seeds}),
        }
        active = [row["train_active_fraction"] for s in seeds for row in s["history"] if "train_active_fraction" in row]
        of["active_fraction"] = mean(active) if active else None
        of["words"] = word_shares([row for seed in seeds for row in seed["test"]], times)
        of["against"] = {}
        for base in against:
            both = {seed["seed"] for seed in seeds} & {seed["seed"] for seed in runs.get(base, ())}
            if base == name or not both:
                continue
            pair = [[seed["test"] for seed in runs[one] if seed["seed"] in both] for one in (name, base)]
            interval = paired_interval(*([errors(rows) for rows in side] for side in pair))
            of["against"][base] = dict(zip(("change", "low", "high"), interval), seeds=len(both))
            if base == against[0]:
                of["mended"], of["broken"] = mended_and_broken(*pair)
    return found


def percent(numbers):
    """12.3 ± 0.4 %."""
    sd = f" ± {100 * numbers['sd']:.1f}" if numbers["sd"] is not None else ""
    return f"{100 * numbers['mean']:.1f}{sd} %"


def change_of(of, base):
    """-4.2 % (-6.0 to -2.3); with the number of seeds that both have, where it is not all of the run's.

    Nothing where the other made no error, and no interval where there are too few.
    """
    change = of["against"].get(base)
    if change is None or change["change"] is None:
        return ""
    fewer = f", {change['seeds']} of the seeds" if change["seeds"] < of["test_wer"]["seeds"] else ""
    bounds = "" if change["low"] is None else f" ({100 * change['low']:+.1f} to {100 * change['high']:+.1f})"
    return f"{100 * change['change']:+.1f} %{bounds}{fewer}"


def ratio(cost, base):
    """1.23, or nothing where one of them is not known."""
    return "" if None in (cost, base) or not base else f"{cost / base:.2f}"


def head(against=BASELINES):
    """The table's columns."""
    changes = [f"against {base}" for base in against]
    return ["arm", "seeds", "dev WER", "test WER", "test CER", *changes, "step", "memory", "active"]


def table(found, against=BASELINES):
    """Rows of cells below `head`, one for each arm.

    Args:
        found: of `summary`. against: as there.
    """
    base = next(iter(found.values()))
    rows = []
    for name, of in found.items():
        active = "" if of["active_fraction"] is None else f"{of['active_fraction']:.2f}"
        alike = of["machines"] == base["machines"] and len(of["machines"]) == 1 and of["machines"] != [""]
        costs = [ratio(of[key], base[key]) if alike else "" for key in ("step_seconds", "peak_bytes")]
        wers = [percent(of[key]) for key in ("dev_wer", "test_wer", "test_cer")]
        rows.append([name, of["test_wer"]["seeds"], *wers, *(change_of(of, b) for b in against), *costs, active])
    return rows


def word_head(found):
    """The columns of `word_table`, with the share of the test words in each where the training words are known."""
    columns = ["arm", "right", "added"]
    shares = next(iter(found.values()))["words"].get("by_frequency")
    if shares:
        spans = [f"{low} to {high - 1}" for low, high in zip(FREQUENCIES[1:], FREQUENCIES[2:])]
        names = ["never in training", *(f"{span} times" for span in spans), f"{FREQUENCIES[-1]} or more"]
        columns += [f"{name} ({100 * share:.0f} %)" for name, (share, _) in zip(names, shares)]
    return columns


def word_table(found):
    """Shares of the test words that came out right, and were added, a row for each arm.

    Args:
        found: of `summary`.
    """
    rows = []
    for name, of in found.items():
        words = of["words"]
        shares = [words["right"], words["added"], *(right for _, right in words.get("by_frequency", ()))]
        rows.append([name, *(f"{100 * share:.1f} %" for share in shares)])
    return rows


def remarks(found, against=BASELINES):
    """The words that were mended and broken, as sentences.

    Args:
        found: of `summary`. against: as there.
    """
    said = []
    for name, of in found.items():
        for kind in ("mended", "broken"):
            if of.get(kind):
                listed = ", ".join(f"{word} {times:+.1f}" for word, times in of[kind])
                said.append(f"{name}, most often {kind} against {against[0]}: {listed}")
    return said


def markdown(found, runs, against=BASELINES):
    """The summary as a Markdown text."""
    lines = ["# Report", "", *markdown_table(head(against), table(found, against)), "", *explanation(runs), ""]
    lines += [f"{WORDS_SAY}:", "", *markdown_table(word_head(found), word_table(found)), ""]
    lines += [f"- {sentence}" for sentence in remarks(found, against)]
    return "\n".join(lines) + "\n"


def markdown_table(columns, rows):
    """Lines of a Markdown table."""
    written = [" | ".join(map(str, row)) for row in (columns, *rows)]
    return [f"| {written[0]} |", "|---" * len(columns) + "|", *(f"| {row} |" for row in written[1:])]


def build_page(found, runs, data=None, against=BASELINES):
    """The summary as a Page: table, dev curves, and transcripts of the best arm's first seed.

    Args:
        found: of `summary`. runs: of `read_runs`. data: folder whose test.json tells where the audio is, or None.
        against: as in `summary`.
    """
    best = min(found, key=lambda name: found[name]["test_wer"]["mean"])
    page = Page("Arms of the recipe, compared", "Runs of one seed begin with the same weights and read the same data.")
    page.numbers([(f"test WER, {name}", percent(of["test_wer"])) for name, of in found.items()])
    notes = [part for part in explanation(runs) if part]
    page.table("Error rates and costs", head(against), table(found, against), notes)
    first = {name: seeds[0]["history"] for name, seeds in trained(runs).items()}
    curves = {name: [(row["step"], 100 * row["val_wer"]) for row in rows] for name, rows in first.items()}
    if curves:
        page.picture(
            "Training",
            chart({"dev WER of the first seeds, %": curves}, xlabel="steps"),
            "Word error rate on dev by training step, a line for each arm",
            wide=True,
        )
    rows = runs[best][0]["test"]
    # the rows are in the manifest's order; see score.py
    audio = manifest_audio(data / "test.json") if data is not None else [None] * len(rows)
    if len(audio) != len(rows):
        raise ValueError(
            f"{data / 'test.json'} has {len(audio)} rows, but {len(rows)} were scored; give the --data of these runs."
        )
    shown = [(row["reference"], row["transcript"], file) for row, file in zip(rows, audio, strict=True)]
    page.utterances(f"Test transcripts of {best}, which has the lowest error rate", some(shown))
    page.table("Words", word_head(found), word_table(found), [f"{WORDS_SAY}."])
    if remarks(found, against):
        page.sentences("Words that changed", remarks(found, against))
    return page


def explanation(runs):
    """What the table's numbers are, and where they come from."""
    every = [seed for seeds in runs.values() for seed in seeds]
    commits, devices = (", ".join(sorted({seed["run"][key] for seed in every})) for key in ("commit", "device"))
    test, steps = every[0]["test"], sorted({max(row["step"] for row in seed["history"]) for seed in every})
    decoded = ", ".join(name for name in runs if name not in trained(runs))
    fused = f", with a language model for {decoded}," * bool(decoded)
    sizes = dict.fromkeys(f"{seed['run']['encoder_parameters'] / 1e6:.1f}" for seed in every)
    return [
        f"Test: {len(test)} utterances, {sum(len(row['reference'].split()) for row in test)} words; greedy decoding"
        f"{fused} of the checkpoint of lowest dev WER. ± is the standard deviation over seeds. Changes are relative, "
        "with the 95 % interval of a paired bootstrap over utterances (10,000 draws of the seeds' mean errors; it says "
        "nothing of other seeds). Step time (median, data loading included) and peak memory are ratios to "
        f"{next(iter(runs))}, where both were trained on one kind of machine; active is the mean share of rows in the "
        "transfer loss.",
        "",
        f"Encoder of {' or '.join(sizes)} M parameters, {' or '.join(map(str, steps))} steps; {devices}; commit "
        f"{commits}.",
    ]


def trained(runs):
    """Those of the runs whose history is of what was scored; ngram.py's is of the run that it decoded otherwise."""
    return {name: seeds for name, seeds in runs.items() if all("language_model" not in seed["run"] for seed in seeds)}


def dev_chart(runs, file):
    """Dev WER against steps: a thin line for each seed, a thick one for their mean.

    The scale is logarithmic where the error rates differ by more than a factor of 3.
    """
    matplotlib, Figure = load_matplotlib()
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, (name, seeds) in enumerate(runs.items()):
        curves = [{row["step"]: 100 * row["val_wer"] for row in seed["history"]} for seed in seeds]
        steps = sorted(set.intersection(*map(set, curves)))
        means = [mean(curve[step] for curve in curves) for step in steps]
        axes.plot(steps, means, label=name, **line_of(number))
        for curve in curves:
            axes.plot(curve.keys(), curve.values(), linewidth=0.6, alpha=0.5, **line_of(number))
    axes.set(xlabel="steps", ylabel="dev WER, % (thin: each seed)")
    rates = [row["val_wer"] for seeds in runs.values() for seed in seeds for row in seed["history"]]
    if max(rates) > 3 * min(rates) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(file, metadata={"Date": None})


def report(out, names=(), data=None, html=None, seeds=(), against=BASELINES, to=None):
    """Writes report.md, report.json, dev_wer.svg and, if it is asked for, a page; returns the Markdown.

    Args:
        out: folder of all runs. names: those to compare, all by default. data: folder whose train.json tells the
            training words, and whose test.json where the audio is, or None. html: path of the page, or None.
        seeds: numbers of those to compare, all by default. against: names of runs that the others are compared with.
        to: folder to write to, by default out.
    Raises:
        ValueError: no run is finished and scored, or none that is named in against where that is not the default; or
            the runs were scored on different test sets.
    """
    runs = read_runs(out, names, seeds, against)
    if not runs:
        raise ValueError(f"{out} holds no finished and scored run; train and score with run.py first.")
    missing = [name for name in against if name not in runs]
    if missing and tuple(against) != BASELINES:
        raise ValueError(
            f"--against {missing[0]}: {out} has no such finished run among those to compare; it has {', '.join(runs)}."
        )
    texts = training_texts(data) if data is not None else None
    times = None if texts is None else Counter(word for text in texts for word in text.split())
    found = summary(runs, times, against)
    text = markdown(found, runs, against)
    numbers = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    for name, content in (("report.md", text), ("report.json", numbers)):
        with written_beside((to or out) / name) as file:
            file.write_text(content, encoding="utf-8")
    if trained(runs):
        with written_beside((to or out) / "dev_wer.svg") as file:
            dev_chart(trained(runs), file)
    if html is not None:
        build_page(found, runs, data, against).write(html)
    return text


def main():
    parser = argparse.ArgumentParser(description="Compare the runs of the recipe.")
    parser.add_argument("names", nargs="*", help="runs to compare (default: all)")
    parser.add_argument("--out", type=given_path, required=True, help="folder of all runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="seeds to compare (default: all)")
    parser.add_argument(
        "--against", nargs="+", default=BASELINES, metavar="NAME", help="runs that the others are compared with"
    )
    parser.add_argument("--data", type=given_path, help="that prepare.py wrote: tells how often training has a word")
    parser.add_argument("--to", type=given_path, metavar="FOLDER", help="folder to write to (default: OUT)")
    parser.add_argument("--keep", type=given_path, help="folder that gets the runs' records, to commit")
    parser.add_argument("--html", type=given_path, help="page to write; as report.md, it is written anew at each call")
    args = parser.parse_args()
    with exit_in_one_sentence(ValueError, ImportError, RuntimeError):  # of audio that cannot be read, too
        if args.keep is not None:
            keep(args.out, args.names, args.keep, args.seeds)
        print(report(args.out, args.names, args.data, args.html, args.seeds, args.against, args.to))


if __name__ == "__main__":
    main()
