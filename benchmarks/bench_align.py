"""Times monotonic alignment search by backend, beside the peers that are installed, and checks every answer.

    python benchmarks/bench_align.py                  # the shapes of docs/aligner.md, on the GPU where there is one
    python benchmarks/bench_align.py --shapes 64,800,200 --dtype bfloat16 --layout frames --device cpu

Each contestant gets scores in the layout that it wants, prepared outside the clock, in inputs that take turns;
contestants take turns too, and the median counts. What a peer copies between devices, or before it overwrites its
input, is inside the clock. An answer is checked twice: the path is monotonic from the first token to the last, and its
total is as high as the best contestant's. On a GPU times are CUDA events around many calls; on a CPU read the ratios,
not the times.

Peers: monotonic-alignment-search (PyPI), NeMo's b_mas (numba, all cores), Super-MAS (Triton, where it is importable),
and on a CPU mas_avx2.cpp, one thread of C++ as yardstick for the cpu backend.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from align_chart import chart
from align_measure import bench
from align_report import require_right, table
from arguments import shape_of, times
from machine import line_of, the_device, where

from nemo_comat.output import check_outputs, exit_in_one_sentence, written_beside
from nemo_comat.paths import given_path

SHAPES = ((16, 60, 30), (32, 200, 60), (64, 800, 200), (16, 2000, 400), (32, 4096, 1024), (256, 4096, 1024))


def read_options(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    shape = partial(shape_of, axes="B,S,N with S >= N >= 1", right=lambda _, segments, tokens: segments >= tokens)
    parser.add_argument("--shapes", nargs="+", type=shape, default=SHAPES, metavar="B,S,N")
    parser.add_argument("--device", help="default: the GPU where there is one")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--layout", choices=["text", "frames"], default="text", help="the innermost axis of the scores")
    parser.add_argument("--rounds", type=times, default=7, help="times that each contestant is measured")
    parser.add_argument("--out", type=given_path, default=Path("bench_align"), help="for align.json and align.svg")
    parser.add_argument("--overwrite", action="store_true", help="replace the results of another measurement there")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Measures, prints the table, and writes it and the chart; ends with status 1 where an answer of ours is wrong."""
    options = read_options(arguments)
    with exit_in_one_sentence():
        check_outputs([options.out / name for name in ("align.json", "align.svg")], overwrite=options.overwrite)
    device, dtype = the_device(options.device), getattr(torch, options.dtype)
    place, rows = where(device), []
    print(line_of(place))
    for shape in options.shapes:
        rows += bench(shape, device, dtype, options.layout, options.rounds)
        print(f"measured {shape}", flush=True)
    print(table(rows, device.type == "cuda"))
    if not any("seconds" in row for row in rows):
        raise SystemExit("no shape was measured, for want of memory; give smaller --shapes")
    settings = {"dtype": options.dtype, "layout": options.layout, "rounds": options.rounds}
    with exit_in_one_sentence(), written_beside(options.out / "align.json") as file:
        file.write_text(json.dumps({**place, **settings, "rows": rows}, indent=1) + "\n")
    with exit_in_one_sentence(), written_beside(options.out / "align.svg") as file:
        chart(rows, f"Monotonic alignment search on {place['machine']}, {options.dtype}", file)
    print(f"written: {options.out / 'align.json'}, {options.out / 'align.svg'}")
    require_right(rows)


if __name__ == "__main__":
    main()
