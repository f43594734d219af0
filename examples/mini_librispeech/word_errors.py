"""Word and character errors of scored rows, their interval, and which words came out right."""

from collections import Counter, defaultdict

import numpy as np
from kaldialign import align, edit_distance

GAP = "<gap>"
# a training word belongs to the last of these that it comes as often as
FREQUENCIES = (0, 1, 5, 20, 100)


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


def aligned(rows):
    """(reference word, what stands for it) of all scored rows; `GAP` stands for what is not there."""
    return [pair for row in rows for pair in align(row["reference"].split(), row["transcript"].split(), GAP)]


def right_words(rows):
    """Counter of reference words that were transcribed as they are."""
    return Counter(ref for ref, hyp in aligned(rows) if ref == hyp)


def added_words(rows):
    """Words that were put in where the reference has none, as a share of the reference's words."""
    pairs = aligned(rows)
    return sum(ref == GAP for ref, _ in pairs) / max(sum(ref != GAP for ref, _ in pairs), 1)


def right_by_frequency(rows, times):
    """How the reference words came out, by how often training has them.

    Args:
        rows: scored rows. times: Counter of the training words.
    Returns:
        list of (share of the reference words, share of these that came out right), an entry for each of `FREQUENCIES`.
    """
    right = defaultdict(list)
    for ref, hyp in aligned(rows):
        if ref != GAP:
            right[max(least for least in FREQUENCIES if least <= times[ref])].append(ref == hyp)
    total = max(sum(map(len, right.values())), 1)
    return [(len(right[least]) / total, sum(right[least]) / max(len(right[least]), 1)) for least in FREQUENCIES]


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
