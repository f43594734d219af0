"""Says how hard the transfer loss pulls: both losses' gradients at the frames that COMAT reads, for finished runs.

    python examples/mini_librispeech/gradients.py --data=DATA RUNS/comat/seed1 RUNS/comat_w3/seed1

For each run: the median over dev batches of |weight · transfer gradient| / |CTC gradient|, the cosine of the two (below
0 they pull against each other), the transfer loss a token (1 - cosine by default), and the share of active rows.
"""

import argparse
from pathlib import Path
from statistics import median

import torch
from nemo.utils import logging
from score import checkpoint_of

from nemo_comat import ComatCTCModelBPE
from nemo_comat.model import captured


def gradients(model, batch):
    """One batch's numbers, as a dict of floats; the model's weights get no gradient.

    Args:
        model: a COMAT model in training mode. batch: NeMo's (signal, signal_len, transcript, transcript_len).
    """
    with captured(**model._watched()) as seen:
        log = model.training_step(batch, 0)["log"]
    frames = seen["layer"] if "layer" in seen else seen["encoder"][0]
    ctc, transfer = (
        torch.autograd.grad(log[key], frames, retain_graph=True)[0] for key in ("train_ctc_loss", "train_transfer_loss")
    )
    texts = model._reference_texts(batch[2], batch[3])
    tokens = model._teacher.encode(texts).text_len.float().mean()
    return {
        "ratio": float(log["comat_weight"] * transfer.norm() / ctc.norm()),
        "cosine": float(torch.cosine_similarity(ctc.flatten(), transfer.flatten(), dim=0)),
        "transfer_per_token": float(log["train_transfer_loss"] / tokens),
        "active": float(log["train_active_fraction"]),
    }


def measure(folder, data, batches=10):
    """Medians over a run's first dev batches."""
    model = ComatCTCModelBPE.restore_from(str(checkpoint_of(folder)))
    model.setup_validation_data({**model.cfg.validation_ds, "manifest_filepath": str(data / "dev.json")})
    model.train()
    model.spec_augmentation = None
    found = [gradients(model, batch) for _, batch in zip(range(batches), model._validation_dl)]
    return {key: median(numbers[key] for numbers in found) for key in found[0]}


def main():
    parser = argparse.ArgumentParser(description="Compare the gradients of CTC and of the transfer.")
    parser.add_argument("folders", nargs="+", type=Path, help="RUNS/NAME/seedN, of COMAT runs")
    parser.add_argument("--data", type=Path, required=True, help="folder that prepare.py wrote")
    parser.add_argument("--batches", type=int, default=10, help="default: %(default)s")
    args = parser.parse_args()
    for folder in args.folders:
        numbers = measure(folder, args.data, args.batches)
        logging.info(f"{folder}: " + ", ".join(f"{key} {value:.3f}" for key, value in numbers.items()))


if __name__ == "__main__":
    main()
