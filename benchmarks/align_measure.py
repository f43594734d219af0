"""Measures the contestants in turns, and judges their answers."""

import functools
import itertools
import statistics

import torch
from align_contestants import contestants
from machine import clock, copy_bandwidth, memory_left


def random_inputs(shape, device, dtype, layout):
    """Up to four (score, seg_len, text_len), full rows, to take turns; one that no cache can hold is enough."""
    batch, segs, tokens = shape
    size = batch * segs * tokens * dtype.itemsize
    count = 1 if size >= 1 << 28 else max(1, min(4, memory_left(device) // 4 // size))
    generator = torch.Generator(device).manual_seed(0)
    lengths = [torch.full((batch,), n, device=device) for n in (segs, tokens)]
    for _ in range(count):
        score = torch.randn(shape, generator=generator, device=device).to(dtype)
        yield score if layout == "text" else score.transpose(1, 2).contiguous().transpose(1, 2), *lengths


def measure(field, pool, device, rounds):
    """Answers and seconds of a call of each contestant, measured in turns: [(contestant, answers, times)]."""
    ready = []
    for contestant in field:
        prepared = [contestant.prepare(*inputs) for inputs in pool]
        answers = [contestant.read(contestant.run(inputs)) for inputs in prepared]
        once = clock(device, functools.partial(contestant.run, prepared[0]))
        calls = max(1, int(0.02 / max(once, 1e-6)))
        ready.append((contestant, prepared, answers, calls, rounds if once < 1 else min(rounds, 3), []))
    for turn in range(rounds):
        for contestant, prepared, _, calls, its_rounds, times in ready:
            if turn < its_rounds:
                inputs = itertools.cycle(prepared[turn % len(pool) :] + prepared[: turn % len(pool)])
                times.append(clock(device, lambda run=contestant.run, turns=inputs: run(next(turns)), calls))
    return [(contestant, answers, times) for contestant, _, answers, _, _, times in ready]


def total(inputs, path):
    """Each path's sum of scores, in float64, and whether it is monotonic from the first token to the last."""
    score, path = inputs[0], path.long()
    tokens, steps = score.shape[2], path.diff(dim=1)
    valid = (path[:, 0] == 0) & (path[:, -1] == tokens - 1) & ((steps == 0) | (steps == 1)).all(1)
    return score.gather(2, path.clamp(0, tokens - 1)[..., None])[..., 0].double().sum(1), valid


def judge(pool, answers_of_all, total):
    """For each contestant whether all its paths are valid, and whether they are as good as the best one's.

    Args:
        pool: list of inputs, the scores [B, T, …] first. answers_of_all: of each contestant its answers.
        total: function of inputs and an answer; gives each row's sum, and whether its path is valid.
    """
    judged = [[True, True] for _ in answers_of_all]
    for inputs, *answers in zip(pool, *answers_of_all, strict=True):
        totals = [total(inputs, answer) for answer in answers]
        best = torch.stack([sums.masked_fill(~valid, float("-inf")) for sums, valid in totals]).max(0).values
        for verdict, (sums, valid) in zip(judged, totals, strict=True):
            verdict[0] &= bool(valid.all())
            # float32 totals are rounded: a path is as good as the best within that
            verdict[1] &= bool((sums.masked_fill(~valid, float("-inf")) >= best - 1e-5 * inputs[0].shape[1]).all())
    return judged


def fitting(candidates, room, turns):
    """Those contestants, in their order, that fit into memory together.

    Args:
        candidates: list of Contestant. room: of memory, in float32 arrays of the scores' size.
        turns: number of inputs, for each of which all keep what they prepare.
    """
    field, kept, largest = [], 0, 0
    for contestant in candidates:
        its_kept, its_largest = kept + contestant.kept * turns, max(largest, contestant.arrays)
        if its_kept + its_largest <= room:
            field.append(contestant)
            kept, largest = its_kept, its_largest
    return field


def bench(shape, device, dtype, layout, rounds):
    """Rows {shape, contestant, seconds, …} or {shape, contestant, skipped} for one shape."""
    batch, segs, tokens = shape
    left, cells = memory_left(device), batch * segs * tokens
    pool = list(random_inputs(shape, device, dtype, layout))
    taken = len(pool) * cells * dtype.itemsize
    candidates, missing = contestants(device)
    field = fitting(candidates, (0.8 * left - taken) / (4 * cells), len(pool))
    missing |= {x.name: "its copies do not fit in memory" for x in candidates if x not in field}
    rows = [{"shape": shape, "contestant": name, "skipped": why} for name, why in missing.items()]
    if not field:
        return rows
    measured = measure(field, pool, device, rounds)
    # scores off every path from the first token to the last need not be read
    moved = batch * ((segs - tokens + 1) * tokens * dtype.itemsize + 4 * segs)
    verdicts = judge(pool, [answers for _, answers, _ in measured], total)
    return rows + [{"shape": shape, **row} for row in rows_of(measured, verdicts, moved, device)]


def rows_of(measured, verdicts, moved, device):
    """Rows {contestant, seconds, valid, optimal, ratio, …} of what was measured, ratios by the first contestant's."""
    for (contestant, _, times), (valid, optimal) in zip(measured, verdicts, strict=True):
        seconds = statistics.median(times)
        yield {
            "contestant": contestant.name,
            "seconds": seconds,
            "valid": valid,
            "optimal": optimal,
            "ratio": seconds / statistics.median(measured[0][2]),
            "spread": (max(times) - min(times)) / seconds,
            "bytes": moved,
            "share_of_copy_bandwidth": moved / seconds / copy_bandwidth(device),
        }
