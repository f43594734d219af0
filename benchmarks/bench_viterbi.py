"""Times the Viterbi search of forced labels by backend, beside torchaudio's forced_align, and checks every answer.

    python benchmarks/bench_viterbi.py                      # on the GPU where there is one
    python benchmarks/bench_viterbi.py --shapes 32,400,80,1025 --device cpu

A shape is B,T,U,V: utterances, frames, tokens of each reference, vocabulary with the blank. torchaudio's function takes
one utterance a call, so a batch is B calls of it. Contestants take turns on the same log-posteriors, and the median
counts. A path must spell the reference, and its total must be as high as the best contestant's. On a GPU times are CUDA
events around many calls; on a CPU read the ratios, not the times.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from align_contestants import Contestant, captured
from align_measure import judge, measure, rows_of
from align_report import require_right, table
from arguments import shape_of, times
from machine import line_of, the_device, where

from nemo_comat.compress.viterbi import ctc_viterbi, state_labels
from nemo_comat.kernels import backends
from nemo_comat.output import check_outputs, exit_in_one_sentence, written_beside
from nemo_comat.paths import given_path

SHAPES = ((16, 200, 40, 129), (32, 400, 80, 129), (32, 400, 80, 1025), (64, 800, 200, 1025))


def fits(batch, frames, tokens, vocab):
    """Whether a reference of so many tokens, no two the same in a row, goes into the frames and the vocabulary."""
    return frames >= tokens and vocab >= 3


def random_inputs(shape, device, dtype, count=4):
    """(log_probs, frame_len, targets, target_len), full rows, the blank last, no token twice in a row."""
    batch, frames, tokens, vocab = shape
    generator = torch.Generator(device).manual_seed(0)
    lengths = [torch.full((batch,), n, device=device) for n in (frames, tokens)]
    for _ in range(count):
        scores = torch.randn(batch, frames, vocab, generator=generator, device=device)
        steps = torch.randint(1, vocab - 1, (batch, tokens), generator=generator, device=device)
        yield scores.log_softmax(-1).to(dtype), lengths[0], steps.cumsum(1) % (vocab - 1), lengths[1]


def ours(backend, blank):
    """Ours; its answer as labels [B, T]."""

    def run(inputs):
        return ctc_viterbi(*inputs, blank=blank, backend=backend), inputs

    def read(answer):
        path, (_, _, targets, target_len) = answer
        return state_labels(targets, target_len, blank).gather(1, path.clamp(min=0)).masked_fill(path < 0, -1)

    return Contestant(f"nemo_comat {backend}", lambda *inputs: inputs, run, read)


def torchaudios(blank):
    """torchaudio's, a call for each utterance."""
    from torchaudio.functional import forced_align

    def prepare(log_probs, frame_len, targets, target_len):
        if log_probs.dtype == torch.bfloat16:
            log_probs = log_probs.float()  # it takes no bfloat16
        rows = zip(log_probs.split(1), targets.int().split(1), frame_len.split(1), target_len.split(1), strict=True)
        return list(rows)

    def run(rows):
        return [forced_align(*row, blank=blank)[0] for row in rows]

    return Contestant("torchaudio forced_align", prepare, run, torch.cat)


def contestants(device, blank):
    """Those that can run on a device, the first one the reference of all ratios; and why others cannot, by name."""
    found, missing = [], {}
    if device.type == "cuda":
        reason = backends.why_no_cuda(device)
        if reason:
            missing["nemo_comat cuda"] = reason
        else:
            found += [ours("cuda", blank), captured(ours("cuda", blank))]
    else:
        found.append(ours("cpu", blank))
    found.append(ours("torch", blank))
    try:
        found.append(torchaudios(blank))
    except (ImportError, OSError) as error:  # OSError: built for another torch
        missing["torchaudio forced_align"] = str(error)
    return found, missing


def spells(labels, targets, blank):
    """Whether each row of labels [B, T], repeats merged and blanks dropped, is its targets [B, U]."""
    starts = torch.ones_like(labels, dtype=torch.bool)
    starts[:, 1:] = labels[:, 1:] != labels[:, :-1]
    kept = starts & (labels != blank)
    rows = zip(labels, kept, targets, strict=True)
    return torch.tensor([row[keep].equal(wanted) for row, keep, wanted in rows], device=labels.device)


def total(inputs, labels, blank):
    """Each row's sum of log-posteriors, in float64, and whether its labels spell the reference."""
    log_probs, _, targets, _ = inputs
    labels = labels.long()
    sums = log_probs.gather(2, labels.clamp(min=0)[..., None])[..., 0].double().sum(1)
    return sums, spells(labels, targets, blank)


def bench(shape, device, dtype, rounds):
    """Rows {shape, contestant, seconds, …} or {shape, contestant, skipped} for one shape."""
    batch, frames, tokens, vocab = shape
    pool = list(random_inputs(shape, device, dtype))
    field, missing = contestants(device, vocab - 1)
    measured = measure(field, pool, device, rounds)
    # of the posteriors only the reference's tokens and the blank are needed
    moved = batch * frames * (tokens + 1) * dtype.itemsize + 8 * batch * (frames + tokens)
    verdicts = judge(pool, [answers for _, answers, _ in measured], partial(total, blank=vocab - 1))
    rows = [{"shape": shape, "contestant": name, "skipped": why} for name, why in missing.items()]
    return rows + [{"shape": shape, **row} for row in rows_of(measured, verdicts, moved, device)]


def read_options(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    shape = partial(shape_of, axes="B,T,U,V with T >= U >= 1 and V >= 3", right=fits)
    parser.add_argument("--shapes", nargs="+", type=shape, default=SHAPES, metavar="B,T,U,V")
    parser.add_argument("--device", help="default: the GPU where there is one")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=times, default=7, help="times that each contestant is measured")
    parser.add_argument("--out", type=given_path, default=Path("bench_viterbi"), help="folder for viterbi.json")
    parser.add_argument("--overwrite", action="store_true", help="replace the results of another measurement there")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Measures, prints the table and writes it; ends with status 1 where an answer of ours is wrong."""
    options = read_options(arguments)
    file = options.out / "viterbi.json"
    with exit_in_one_sentence():
        check_outputs([file], overwrite=options.overwrite)
    device, rows = the_device(options.device), []
    place = where(device)
    print(line_of(place))
    for shape in options.shapes:
        rows += bench(shape, device, getattr(torch, options.dtype), options.rounds)
        print(f"measured {shape}", flush=True)
    print(table(rows, device.type == "cuda", "B, T, U, V"))
    with exit_in_one_sentence(), written_beside(file) as part:
        part.write_text(json.dumps({**place, "dtype": options.dtype, "rounds": options.rounds, "rows": rows}, indent=1))
    print(f"written: {file}")
    require_right(rows)


if __name__ == "__main__":
    main()
