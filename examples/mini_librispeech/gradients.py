"""Says how hard the transfer loss pulls: both losses' gradients at the frames that COMAT reads, for finished runs.

    python examples/mini_librispeech/gradients.py --data=DATA RUNS/comat/seed1 RUNS/comat_w3/seed1

For each run: the median over dev batches of |weight · transfer gradient| / |CTC gradient|, the cosine of the two (below
0 they pull against each other), the transfer loss a token, and the share of active rows.
"""

import argparse
from statistics import median

from nemo_comat.paths import given_path
from nemo_comat.waiting import announce_nemo


def parse_args():
    parser = argparse.ArgumentParser(description="Compare the gradients of CTC and of the transfer.")
    parser.add_argument("folders", nargs="+", type=given_path, help="RUNS/NAME/seedN, of COMAT runs")
    parser.add_argument("--data", type=given_path, required=True, help="folder that prepare.py wrote")
    parser.add_argument("--batches", type=int, default=10, help="default: %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    parse_args()  # --help and mistakes are answered before NeMo is loaded
    announce_nemo()

import torch
from nemo.utils import logging
from score import restore_on_dev

from nemo_comat import TeacherError
from nemo_comat.models.captured import captured
from nemo_comat.models.manifest import ManifestError
from nemo_comat.output import exit_in_one_sentence
from nemo_comat.transfer import reduce_rows


def gradients(model, batch):
    """One batch's numbers, as a dict of floats; the model's weights get no gradient.

    Args:
        model: a COMAT model. batch: NeMo's (signal, signal_len, transcript, transcript_len).
    """
    signal, signal_len, targets, target_len = batch
    with captured(**model._watched()) as seen:
        log_probs, frame_len, _ = model(input_signal=signal, input_signal_length=signal_len)
    ctc = model.loss(log_probs=log_probs, targets=targets, input_lengths=frame_len, target_lengths=target_len)
    teacher = model._pending(targets, target_len).result()
    (output,) = model._comat_outputs(seen, targets, target_len, teacher)
    transfer = reduce_rows(output.loss, output.text_len, model.cfg.get("ctc_reduction", "mean_batch"))
    # what comes after the last layer is the encoder's own output
    frames = [seen.get(f"layer {layer}", seen["encoder"][0]) for layer in model._layers]
    of_ctc, of_transfer = (
        torch.cat([part.flatten() for part in torch.autograd.grad(loss, frames, retain_graph=True)])
        for loss in (ctc, transfer)
    )
    return {
        "ratio": float(model.cfg.comat.weight * of_transfer.norm() / of_ctc.norm()),
        "cosine": float(torch.cosine_similarity(of_ctc, of_transfer, dim=0)),
        "transfer_per_token": float(output.loss.sum() / output.text_len.sum()),
        "active": float(output.active.float().mean()),
    }


def measure(folder, data, batches=10):
    """Medians over a run's first dev batches."""
    model = restore_on_dev(folder, data)
    if model.comat is None:
        raise ValueError(f"{folder} was trained without COMAT, so there is no transfer loss; give runs with it.")
    found = [gradients(model, batch) for _, batch in zip(range(batches), model._validation_dl)]
    return {key: median(numbers[key] for numbers in found) for key in found[0]}


def main():
    args = parse_args()
    for folder in args.folders:
        with exit_in_one_sentence(ManifestError, TeacherError, ValueError):
            numbers = measure(folder, args.data, args.batches)
        logging.info(f"{folder}: " + ", ".join(f"{key} {value:.3f}" for key, value in numbers.items()))


if __name__ == "__main__":
    main()
