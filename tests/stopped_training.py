"""Runs the training script with a callback that writes each step's loss and may send SIGTERM; for test_bad_input.py.

    python tests/stopped_training.py LOSSES STOP_AT [OVERRIDE ...]

LOSSES gets a JSON line for each step; after STOP_AT steps, unless it is 0, the process gets SIGTERM.
"""

import json
import os
import signal
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import speech_to_text_comat as script  # noqa: E402


class Losses(pl.Callback):
    """Writes the losses; sends the signal from within a batch, as from outside it would come at any time."""

    def __init__(self, file, stop_at):
        self.file, self.stop_at = file, stop_at

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        with open(self.file, "a") as lines:
            row = {"step": trainer.global_step, "loss": float(trainer.callback_metrics["train_loss"])}
            row["audio"] = float(batch[0].abs().sum())
            lines.write(json.dumps(row) + "\n")
        if trainer.global_step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    losses = Losses(sys.argv[1], int(sys.argv[2]))
    del sys.argv[1:3]
    torch.set_num_threads(1)
    pl.seed_everything(3)
    plain = script.build
    script.build = lambda cfg, callbacks: plain(cfg, [*callbacks, losses])
    script.main()
