"""Compares the runs of the recipe: error rates with intervals, costs, and the words that were mended or broken.

    python examples/mini_librispeech/report.py [names ...] --out=RUNS [--data=DATA] [--seeds 1] [--against ctc]

Reads what train.py and score.py left in RUNS/NAME/seed*/, compressed by gzip or not; writes report.md, report.json and
dev_wer.svg into RUNS. These are written anew at each call, for RUNS grows with each run. --keep=results/SCALE copies
what the table needs, no checkpoints, into a folder to commit. --html writes a page too, with transcripts to compare
and, with --data, to hear.
"""

import argparse
import gzip
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from statistics import mean, median, stdev

import numpy as np
from kaldialign import align, edit_distance

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from build_tokenizer import read_texts  # noqa: E402
from report_page import Page, chart, manifest_audio, some  # noqa: E402

from nemo_comat.output import exit_in_one_sentence, written_beside  # noqa: E402

BASELINES = ("ctc", "interctc")
GAP = "<gap>"
# what a finished and scored run leaves that the report reads
RECORDS = ("run.json", "history.jsonl", "dev.json", "test.json")


def record(folder, name):
    """Path of a run's record, as it is or with .gz; None where it has neither."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)


def read_record(folder, name):
    """Text of a run's record."""
    path = record(folder, name)
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        return file.read()


def without_places(value):
    """A run's settings with absolute paths cut to their last part: where files lay is the machine's business."""
    if isinstance(value, dict):
        return {key: without_places(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_places(entry) for entry in value]
    if not isinstance(value, str):
        return value
    key, equals, path = value.rpartition("=")
    return f"{key}{equals}{Path(path).name}" if path.startswith("/") else value


def keep(out, names, target, seeds=()):
    """Copies the records of finished and scored runs into target/NAME/seedN; the transcripts are compressed.

    What target holds already of a run is written over: it is that run's record.
    """
    for folder in finished(out, names, seeds):
        place = target / folder.parent.name / folder.name
        for name in RECORDS:
            source = record(folder, name)
            content, packed = source.read_bytes(), source.suffix == ".gz"
            if name == "run.json" and not packed:
                content = (json.dumps(without_places(json.loads(content)), indent=1) + "\n").encode()
            if not packed and name not in ("run.json", "history.jsonl"):
                # without a time and a name, so that the same transcripts are the same bytes
                content, packed = gzip.compress(content, mtime=0), True
            with written_beside(place / (f"{name}.gz" if packed else name)) as file:
                file.write_bytes(content)


def finished(out, names=(), seeds=()):
    """Folders of finished and scored runs, in the order of their names; of some names or seeds (numbers) only."""
    wanted = {f"seed{seed}" for seed in seeds}
    folders = [folder for folder in out.glob("*/seed*") if not names or folder.parent.name in names]
    folders = sorted(folder for folder in folders if not seeds or folder.name in wanted)
    return [folder for folder in folders if all(record(folder, name) for name in RECORDS)]


def read_runs(out, names=(), seeds=(), against=BASELINES):
    """Finished and scored runs: {name: [{"run", "history", "dev", "test"}, ...]}, a list entry for each seed.

    Those of against, which the others are compared with, come first.
    """
    runs = defaultdict(list)
    for folder in finished(out, names, seeds):
        run = json.loads(read_record(folder, "run.json"))
        steps = {row["step"]: row for row in map(json.loads, read_record(folder, "history.jsonl").splitlines())}
        splits = {split: json.loads(read_record(folder, f"{split}.json")) for split in ("dev", "test")}
        runs[folder.parent.name].append({"run": run, "history": [steps[step] for step in sorted(steps)], **splits})
    order = [*(name for name in against if name in runs), *(name for name in runs if name not in against)]
    return {name: runs[name] for name in order}


def errors(rows, units=str.split):
    """[utterances, 2] edit errors and reference length in units: words, or characters by `list`."""
    pairs = [(units(row["reference"]), units(row["transcript"])) for row in rows]
    return np.array([(edit_distance(ref, hyp)["total"], len(ref)) for ref, hyp in pairs])


def rate(counts):
    """Errors over length of [utterances, 2] counts."""
    return counts[:, 0].sum() / counts[:, 1].sum()


def paired_interval(ours, theirs, draws=10000, seed=0):
    """Relative change of an error rate, and its 95 % interval by a paired bootstrap over utterances.

    Args:
        ours, theirs: lists over seeds of [utterances, 2] counts of the same utterances.
        draws: resamples. seed: of the resampling.
    Returns:
        (change, low, high); -0.1 is ten percent fewer errors. The seeds' mean counts are resampled: the interval speaks
        of other utterances, not of other seeds.
    Source: Bisani and Ney, ICASSP 2004.
    """
    a, b = (np.mean([counts[:, 0] for counts in side], axis=0) for side in (ours, theirs))
    picks = np.random.default_rng(seed).integers(0, len(a), (draws, len(a)))
    changes = a[picks].sum(1) / np.maximum(b[picks].sum(1), 1e-9) - 1
    return (a.sum() / b.sum() - 1, *np.quantile(changes, (0.025, 0.975)))


def word_pairs(rows):
    """(reference word, what stands for it) of all scored rows, words that were put in left out."""
    for row in rows:
        pairs = align(row["reference"].split(), row["transcript"].split(), GAP)
        yield from (pair for pair in pairs if pair[0] != GAP)


def right_words(rows):
    """Counter of reference words that were transcribed as they are."""
    return Counter(ref for ref, hyp in word_pairs(rows) if ref == hyp)


def unseen_words(rows, known):
    """Share of reference words that training never has, and the shares of these and of the others that came out wrong.

    Args:
        rows: scored rows. known: set of the training words.
    """
    wrong = {seen: [ref != hyp for ref, hyp in word_pairs(rows) if (ref in known) is seen] for seen in (True, False)}
    shares = {seen: sum(wrong[seen]) / max(len(wrong[seen]), 1) for seen in wrong}
    total = len(wrong[True]) + len(wrong[False])
    return {"share": len(wrong[False]) / total, "wrong": shares[False], "wrong_of_others": shares[True]}


def mended_and_broken(ours, theirs, most=10):
    """Words that came out right more, and less, often than in the other runs: lists of (word, times per seed).

    Args:
        ours, theirs: lists over seeds of scored rows. most: length of each list.
    """
    change = Counter()
    for side, sign in ((ours, 1), (theirs, -1)):
        for rows in side:
            change.update({word: sign * times / len(side) for word, times in right_words(rows).items()})
    order = sorted(change.items(), key=lambda item: (-item[1], item[0]))
    return [x for x in order[:most] if x[1] > 0], [x for x in order[::-1][:most] if x[1] < 0]


def spread(values):
    """Mean and standard deviation over seeds; the latter None for one seed."""
    return {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else None, "seeds": len(values)}


def summary(runs, known=None, against=BASELINES):
    """What the report says, by run name, as plain numbers.

    Args:
        runs: of `read_runs`. known: set of the training words, or None. against: names of runs that the others are
            compared with, where they are there; words are mended and broken against the first.
    """
    words = {name: [errors(seed["test"]) for seed in seeds] for name, seeds in runs.items()}
    found = {}
    for name, seeds in runs.items():
        of = found[name] = {
            "test_wer": spread([rate(counts) for counts in words[name]]),
            "test_cer": spread([rate(errors(seed["test"], list)) for seed in seeds]),
            "dev_wer": spread([rate(errors(seed["dev"])) for seed in seeds]),
            "step_seconds": median(row["step_seconds"] for seed in seeds for row in seed["history"]),
            "peak_bytes": max(row["peak_bytes"] for seed in seeds for row in seed["history"]),
            "commits": sorted({seed["run"]["commit"] for seed in seeds}),
        }
        active = [row["train_active_fraction"] for s in seeds for row in s["history"] if "train_active_fraction" in row]
        of["active_fraction"] = mean(active) if active else None
        if known is not None:
            of["unseen"] = unseen_words([row for seed in seeds for row in seed["test"]], known)
        of["against"] = {
            base: dict(zip(("change", "low", "high"), map(float, paired_interval(words[name], words[base]))))
            for base in against
            if base in runs and base != name
        }
        if against[0] in runs and name != against[0]:
            lists = mended_and_broken([seed["test"] for seed in seeds], [seed["test"] for seed in runs[against[0]]])
            of["mended"], of["broken"] = lists
    return found


def percent(numbers):
    """12.3 ± 0.4 %."""
    sd = f" ± {100 * numbers['sd']:.1f}" if numbers["sd"] is not None else ""
    return f"{100 * numbers['mean']:.1f}{sd} %"


def change_of(of, base):
    """-4.2 % (-6.0 to -2.3)."""
    if base not in of["against"]:
        return ""
    change = of["against"][base]
    return f"{100 * change['change']:+.1f} % ({100 * change['low']:+.1f} to {100 * change['high']:+.1f})"


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
        costs = [f"{of[key] / base[key]:.2f}" for key in ("step_seconds", "peak_bytes")]
        wers = [percent(of[key]) for key in ("dev_wer", "test_wer", "test_cer")]
        rows.append([name, of["test_wer"]["seeds"], *wers, *(change_of(of, b) for b in against), *costs, active])
    return rows


def remarks(found, against=BASELINES):
    """What the words say, as sentences: those that training never has, and those mended and broken.

    Args:
        found: of `summary`. against: as there.
    """
    said = []
    for name, of in found.items():
        if "unseen" in of:
            share, wrong, others = (f"{100 * of['unseen'][key]:.0f} %" for key in ("share", "wrong", "wrong_of_others"))
            said.append(
                f"{name}: {share} of the test words are not in training; {wrong} of them wrong, {others} of others"
            )
    for name, of in found.items():
        for kind in ("mended", "broken"):
            if of.get(kind):
                listed = ", ".join(f"{word} {times:+.1f}" for word, times in of[kind])
                said.append(f"{name}, most often {kind} against {against[0]}: {listed}")
    return said


def markdown(found, runs, against=BASELINES):
    """The summary as a Markdown text."""
    columns = head(against)
    lines = ["# Report", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table(found, against)]
    lines += ["", *explanation(runs), "", *(f"- {sentence}" for sentence in remarks(found, against))]
    return "\n".join(lines) + "\n"


def build_page(found, runs, data=None, against=BASELINES):
    """The summary as a Page: table, dev curves, and transcripts of the best arm's first seed.

    Args:
        found: of `summary`. runs: of `read_runs`. data: folder whose test.json tells where the audio is, or None.
        against: as in `summary`.
    """
    best = min(found, key=lambda name: found[name]["test_wer"]["mean"])
    page = Page("Arms of the recipe, compared", "The same encoder, first weights, data order, steps and schedule.")
    page.numbers([(f"test WER, {name}", percent(of["test_wer"])) for name, of in found.items()])
    notes = [part for part in explanation(runs) if part]
    page.table("Error rates and costs", head(against), table(found, against), notes)
    curves = {name: [(row["step"], 100 * row["val_wer"]) for row in runs[name][0]["history"]] for name in runs}
    page.picture(
        "Training",
        chart({"dev WER of the first seeds, %": curves}, xlabel="steps"),
        "Word error rate on dev by training step, a line for each arm",
        wide=True,
    )
    rows = runs[best][0]["test"]
    # the rows are in the manifest's order; see score.py
    audio = manifest_audio(data / "test.json") if data is not None else [None] * len(rows)
    shown = [(row["reference"], row["transcript"], file) for row, file in zip(rows, audio, strict=True)]
    notes = ["Words that were not recognised are crossed out; words that stand in their place are underlined."]
    page.utterances(f"Test transcripts of {best}, which has the lowest error rate", some(shown), notes)
    if remarks(found, against):
        page.sentences("Words", remarks(found, against))
    return page


def explanation(runs):
    """What the table's numbers are, and where they come from."""
    every = [seed for seeds in runs.values() for seed in seeds]
    commits, devices = (", ".join(sorted({seed["run"][key] for seed in every})) for key in ("commit", "device"))
    test = every[0]["test"]
    return [
        f"Test: {len(test)} utterances, {sum(len(row['reference'].split()) for row in test)} words; greedy decoding of "
        "the checkpoint of lowest dev WER. ± is the standard deviation over seeds. Changes are relative, with the 95 % "
        "interval of a paired bootstrap over utterances (10,000 draws of the seeds' mean errors; it says nothing of "
        "other seeds). Step time (median, data loading included) and peak memory are ratios to "
        f"{next(iter(runs))} as trained here; active is the mean share of rows in the transfer loss.",
        "",
        f"Encoder of {every[0]['run']['encoder_parameters'] / 1e6:.1f} M parameters, {every[0]['run']['steps']} steps; "
        f"{devices}; commit {commits}.",
    ]


def dev_chart(runs, file):
    """Dev WER against steps: a thin line for each seed, a thick one for their mean."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.fonttype"] = "none"
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for number, (name, seeds) in enumerate(runs.items()):
        curves = [{row["step"]: 100 * row["val_wer"] for row in seed["history"]} for seed in seeds]
        steps = sorted(set.intersection(*map(set, curves)))
        axes.plot(steps, [mean(curve[step] for curve in curves) for step in steps], color=f"C{number}", label=name)
        for curve in curves:
            axes.plot(curve.keys(), curve.values(), color=f"C{number}", linewidth=0.6, alpha=0.5)
    axes.set(xlabel="steps", ylabel="dev WER, %", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def report(out, names=(), data=None, html=None, seeds=(), against=BASELINES):
    """Writes report.md, report.json, dev_wer.svg and, if it is asked for, a page; returns the Markdown.

    Args:
        out: folder of all runs. names: those to compare, all by default. data: folder whose train.json tells the
            training words, and whose test.json where the audio is, or None. html: path of the page, or None.
        seeds: numbers of those to compare, all by default. against: names of runs that the others are compared with.
    Raises:
        ValueError: no run is finished and scored, or none that is named in against where that is not the default.
    """
    runs = read_runs(out, names, seeds, against)
    if not runs:
        raise ValueError(f"{out} holds no finished and scored run; train and score with run.py first.")
    missing = [name for name in against if name not in runs]
    if missing and tuple(against) != BASELINES:
        raise ValueError(
            f"--against {missing[0]}: {out} has no such finished run among those to compare; it has {', '.join(runs)}."
        )
    texts = read_texts([data / "train.json"]) if data is not None else None
    found = summary(runs, texts and {word for text in texts for word in text.split()}, against)
    text = markdown(found, runs, against)
    numbers = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    for name, content in (("report.md", text), ("report.json", numbers)):
        with written_beside(out / name) as file:
            file.write_text(content, encoding="utf-8")
    with written_beside(out / "dev_wer.svg") as file:
        dev_chart(runs, file)
    if html is not None:
        build_page(found, runs, data, against).write(html)
    return text


def main():
    parser = argparse.ArgumentParser(description="Compare the runs of the recipe.")
    parser.add_argument("names", nargs="*", help="runs to compare (default: all)")
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="seeds to compare (default: all)")
    parser.add_argument(
        "--against", nargs="+", default=BASELINES, metavar="NAME", help="runs that the others are compared with"
    )
    parser.add_argument("--data", type=Path, help="folder that prepare.py wrote: tells the words training never has")
    parser.add_argument("--keep", type=Path, help="folder that gets the runs' records, to commit")
    parser.add_argument("--html", type=Path, help="page to write; as report.md, it is written anew at each call")
    args = parser.parse_args()
    with exit_in_one_sentence(ValueError):
        if args.keep is not None:
            keep(args.out, args.names, args.keep, args.seeds)
        print(report(args.out, args.names, args.data, args.html, args.seeds, args.against))


if __name__ == "__main__":
    main()
