"""Word and character errors of scored rows, their interval, and which words came out right."""

from collections import Counter, defaultdict

import numpy as np
from kaldialign import align, edit_distance

GAP = "<gap>"
# a training word belongs to the last of these that it comes as often as
FREQUENCIES = (0, 1, 5, 20, 100)
# draws of the bootstrap at a time
PART = 500


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
        (change, low, high), float; -0.1 is ten percent fewer errors. The seeds' mean counts are resampled: the interval
        speaks of other utterances, not of other seeds. low and high are None where theirs are too few errors or
        utterances for one, and change is None where theirs is no error.
    Source: Bisani and Ney, ICASSP 2004.
    """
    a, b = (np.mean([counts[:, 0] for counts in side], axis=0) for side in (ours, theirs))
    if not b.sum():
        return None, None, None
    change, generator = float(a.sum() / b.sum() - 1), np.random.default_rng(seed)
    # a part of the draws at a time, for all of them at once may not fit into memory
    parts = (generator.integers(0, len(a), (min(PART, draws - done), len(a))) for done in range(0, draws, PART))
    sums = np.concatenate([np.stack((a[picks].sum(1), b[picks].sum(1))) for picks in parts], 1)
    if len(a) < 2 or not sums[1].all():
        return change, None, None
    return change, *map(float, np.quantile(sums[0] / sums[1] - 1, (0.025, 0.975)))


def aligned(rows):
    """(reference word, what stands for it) of all scored rows; `GAP` stands for what is not there."""
    return [pair for row in rows for pair in align(row["reference"].split(), row["transcript"].split(), GAP)]


def right_words(rows):
    """Counter of reference words that were transcribed as they are."""
    return Counter(ref for ref, hyp in aligned(rows) if ref == hyp)


def word_shares(rows, times=None):
    """How many reference words came out right, and how many words were added, as shares of the reference's words.

    Args:
        rows: scored rows. times: Counter of the training words, or None.
    Returns:
        dict of "right" and "added"; with times "by_frequency" too: (share of the reference words, share of these that
        came out right) for each of `FREQUENCIES`.
    """
    pairs = aligned(rows)
    right = [(ref, ref == hyp) for ref, hyp in pairs if ref != GAP]
    total = max(len(right), 1)
    found = {"right": sum(is_right for _, is_right in right) / total, "added": (len(pairs) - len(right)) / total}
    if times is not None:
        parts = defaultdict(list)
        for ref, is_right in right:
            parts[max(least for least in FREQUENCIES if least <= times[ref])].append(is_right)
        counts = [(len(parts[least]), sum(parts[least])) for least in FREQUENCIES]
        found["by_frequency"] = [(number / total, truths / max(number, 1)) for number, truths in counts]
    return found


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
