"""Says where the time of a training step goes, in float32 and bfloat16, before a scale is chosen.

    python examples/mini_librispeech/step_time.py --data=DATA --scale=cpu_real [model.encoder.d_model=176 ...]

Plain CTC, on the CPU and one thread. Times are parts of one whole float32 step, so that they can be compared on a noisy
machine. Reading stands beside the step, because worker processes can do it.
"""

import argparse
import time
from contextlib import contextmanager
from itertools import chain, repeat
from statistics import median

from arms import RECIPE, arm_config

from nemo_comat.paths import given_path
from nemo_comat.waiting import announce_nemo


def parse_args():
    parser = argparse.ArgumentParser(description="Say where the time of a training step goes.")
    parser.add_argument("--data", type=given_path, required=True, help="folder that prepare.py wrote")
    parser.add_argument("--scale", choices=list(RECIPE.scales), default="cpu_real", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=8, help="steps of each precision (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, such as model.encoder.d_model=176")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    parse_args()  # --help and mistakes are answered before NeMo is loaded
    announce_nemo()

import torch
from hydra.errors import HydraException
from nemo.utils import logging
from omegaconf.errors import OmegaConfBaseException
from report import markdown_table

from nemo_comat import ComatCTCModelBPE, ConfigError, TeacherError
from nemo_comat.models.manifest import ManifestError
from nemo_comat.output import exit_in_one_sentence

PARTS = ("read", "features", "encoder", "loss", "backward", "optimizer")


@contextmanager
def timed(seconds, part):
    """Adds the seconds that the block takes to seconds[part]."""
    start = time.perf_counter()
    yield
    seconds[part] = seconds.get(part, 0) + time.perf_counter() - start


def time_step(model, optimizer, batch, bf16):
    """One step of plain CTC.

    Args:
        model: of NeMo's CTC classes. optimizer: of its parameters. batch: (signal, length, tokens, length).
        bf16: whether the encoder and the decoder run under autocast to bfloat16.
    Returns:
        dict of seconds for each of `PARTS` but "read".
    """
    signal, signal_len, tokens, token_len = batch
    seconds = {}
    with timed(seconds, "features"), torch.no_grad():
        features, frames = model.preprocessor(input_signal=signal, length=signal_len)
        features = model.spec_augmentation(input_spec=features, length=frames)
    with timed(seconds, "encoder"), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        encoded, encoded_len = model.encoder(audio_signal=features, length=frames)
        log_probs = model.decoder(encoder_output=encoded)
    with timed(seconds, "loss"):
        loss = model.loss(
            log_probs=log_probs.float(), targets=tokens, target_lengths=token_len, input_lengths=encoded_len
        )
    with timed(seconds, "backward"):
        loss.backward()
    with timed(seconds, "optimizer"):
        optimizer.step()
        optimizer.zero_grad()
    return seconds


def measure(data, scale, steps, extra=()):
    """Median seconds of the parts of a step: {precision: {part: seconds}}, the precisions taking turns.

    Args:
        data: folder that prepare.py wrote. scale: a name of the recipe's. steps: int, of each precision.
        extra: overrides.
    """
    extra = ["model.train_ds.num_workers=0", "model.train_ds.pin_memory=false", "trainer.accelerator=cpu", *extra]
    cfg, _ = arm_config("ctc", data, data, scale, extra)
    model = ComatCTCModelBPE(cfg=cfg.model).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    found = {"float32": [], "bfloat16": []}
    batches = chain.from_iterable(repeat(model._train_dl))
    for number in range(steps + 1):
        reading = {}
        with timed(reading, "read"):
            batch = next(batches)[:4]
        for precision, rows in found.items():
            seconds = time_step(model, optimizer, batch, precision == "bfloat16")
            if number:  # the first step also sets up what is kept
                rows.append(reading | seconds)
    return {name: {part: median(row[part] for row in rows) for part in PARTS} for name, rows in found.items()}


def table(found):
    """Markdown of `measure`'s result, in parts of the whole float32 step."""
    whole = sum(seconds for part, seconds in found["float32"].items() if part != "read")
    rows = []
    for name, parts in found.items():
        step = sum(seconds for part, seconds in parts.items() if part != "read")
        rows.append([name, *(f"{x / whole:.2f}" for x in (step, *parts.values()))])
    return "\n".join(markdown_table(["", "step", *PARTS], rows))


def main():
    args = parse_args()
    torch.set_num_threads(1)
    with exit_in_one_sentence(ConfigError, ManifestError, TeacherError, HydraException, OmegaConfBaseException):
        print(table(measure(args.data, args.scale, args.steps, args.overrides)))


if __name__ == "__main__":
    logging.setLevel(logging.ERROR)
    main()
