"""Trains one arm of the recipe with one seed; a second call goes on where the first was stopped.

    python examples/mini_librispeech/train.py --data=DATA --out=RUNS --scale=cpu --arm=comat --seed=1 \
        [--name=comat_w1 model.comat.weight=1]

DATA is what prepare.py wrote. All arms of a seed begin with the same weights and read the data in the same order.
--start=OTHER/ctc begins with the weights of that run's checkpoint of the same seed, instead of random ones.
RUNS/NAME/seed1 gets `history.jsonl` (a row for each validation), `run.json`, and NeMo's logs and checkpoints in nemo/.
"""

import argparse
import fcntl
import json
import os
import resource
import signal
import socket
import sys
import time
from contextlib import contextmanager
from statistics import median

from arms import HERE, RECIPE, given_seed, recorded, run_folder, run_name, settings

from nemo_comat.paths import given_path
from nemo_comat.waiting import announce_nemo


def parse_args():
    parser = argparse.ArgumentParser(description="Train one arm of the recipe with one seed.")
    parser.add_argument("--data", type=given_path, required=True, help="folder that prepare.py wrote")
    parser.add_argument("--out", type=given_path, required=True, help="folder of all runs")
    parser.add_argument("--scale", choices=list(RECIPE.scales), default="gpu", help="default: %(default)s")
    parser.add_argument("--arm", choices=list(RECIPE.arms), required=True, help="of recipe.yaml")
    parser.add_argument("--name", type=run_name, help="the run's folder in OUT (default: the arm)")
    parser.add_argument("--seed", type=given_seed, default=1, help="of weights and data order (default: %(default)s)")
    parser.add_argument("--start", type=given_path, help="RUNS/NAME whose weights of the same seed are begun with")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, such as model.comat.weight=1")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    parse_args()  # --help and mistakes are answered before NeMo is loaded
    announce_nemo()

import lightning.pytorch as pl
import torch
from features import remembered
from hydra.errors import HydraException
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from nemo.utils import logging
from nemo.utils.get_rank import is_global_rank_zero
from omegaconf.errors import OmegaConfBaseException

sys.path.insert(0, str(HERE.parent))
from speech_to_text_comat import build

from nemo_comat import ConfigError, TeacherError
from nemo_comat.models.manifest import ManifestError
from nemo_comat.output import exit_in_one_sentence, written_beside
from nemo_comat.provenance import commit_here, processor_name

LOGGED = (
    "val_wer",
    "val_loss",
    "train_ctc_loss",
    "train_transfer_loss",
    "train_consistency_loss",
    "train_active_fraction",
)


class History(pl.Callback):
    """Writes a row for each validation; seeds each epoch, so that a resumed run and every arm see the same data.

    With worker processes the first epoch after a resume is shuffled before it can be seeded.

    Args:
        file: JSON lines are appended; of rows with one step the last counts.
        seed: int.
    """

    def __init__(self, file, seed):
        self.file, self.seed = file, seed
        self.seconds, self.last, self.active = [], None, []
        self.steps, self.timed_out = None, False

    def on_train_epoch_start(self, trainer, model):
        """Seeds the epoch."""
        pl.seed_everything(1000 * self.seed + trainer.current_epoch, verbose=False)
        self.last = None

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        """Takes the time since the step before, data loading included, and the share of rows that took part."""
        now = time.perf_counter()
        if self.last is not None:
            self.seconds.append(now - self.last)
        self.last = now
        active = outputs.get("log", {}).get("train_active_fraction") if isinstance(outputs, dict) else None
        if active is not None:
            self.active.append(active.detach())

    def on_train_end(self, trainer, model=None):
        """Keeps how far the run came: NeMo goes back to the best checkpoint after this."""
        self.steps, epochs = trainer.global_step, trainer.max_epochs or -1
        whole = 0 <= epochs <= trainer.current_epoch or 0 <= trainer.max_steps <= self.steps
        timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]
        self.timed_out = not whole and any(timer.time_remaining() <= 0 for timer in timers)

    def on_validation_end(self, trainer, model):
        """Writes the row."""
        metrics = trainer.callback_metrics
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step, "peak_bytes": peak_bytes(model.device)}
        row.update({key: float(metrics[key]) for key in LOGGED if key in metrics})
        if self.active:
            row["train_active_fraction"] = torch.stack(self.active).mean().item()
        if self.seconds:
            row["step_seconds"] = median(self.seconds)
        if trainer.is_global_zero:
            with open(self.file, "a", encoding="utf-8") as lines:
                lines.write(json.dumps(row) + "\n")
        self.seconds, self.last, self.active = [], None, []


def peak_bytes(device):
    """Most memory that was in use: the tensors of a GPU, or on a CPU the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def surroundings(accelerator):
    """Where a run was trained, for run.json; accelerator: of its trainer."""
    gpu = torch.cuda.is_available() and accelerator != "cpu"
    return {
        "commit": commit_here(),
        "torch": torch.__version__,
        "machine": torch.cuda.get_device_name() if gpu else processor_name(),
        "device": torch.cuda.get_device_name() if gpu else f"CPU, threads: {torch.get_num_threads()}",
    }


def joined(before, here):
    """Where all parts of a run were trained: values of `surroundings`, with "; " between those that differ.

    Args:
        before: run.json of the parts that were trained before, or an empty dict. here: of this part.
    """
    parts = {key: [*filter(None, before.get(key, "").split("; ")), value] for key, value in here.items()}
    return {key: "; ".join(dict.fromkeys(values)) for key, values in parts.items()}


@contextmanager
def locked(folder):
    """Keeps other processes from training the run in a folder; the lock goes with the process, however it ends.

    Raises:
        BlockingIOError: another process trains it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # the other processes of a run on several GPUs are the same run
    if not is_global_rank_zero():
        yield
        return
    with open(folder / "lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise BlockingIOError(
                f"{folder} is being trained by {file.read() or 'another process'}; wait for its end, stop it, or give "
                "another --name or --out."
            ) from None
        except OSError as error:  # of some file systems of clusters
            logging.warning(f"{folder} cannot be locked ({error.strerror}); do not train this run twice at a time.")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def write_settings(file, run):
    """Writes a run.json; a run that is stopped meanwhile leaves the one before."""
    with written_beside(file) as part:
        part.write_text(json.dumps(run, indent=1) + "\n")


def train(arm, name, seed, data, out, scale, extra=(), start=None):
    """Trains, or goes on; returns the run's folder.

    Args:
        arm, scale, extra: as in `arm_config`. name: the run's folder in out. seed: int. data, out: paths.
        start: folder of a finished run's seeds, whose weights are begun with.
    Raises:
        FileNotFoundError: there is no finished run in start.
        ConfigError: the folder holds a run of other settings. BlockingIOError: another process trains it.
        TimeoutError: as in `fit`.
    """
    folder = run_folder(out, name, seed)
    cfg, asked = settings(arm, seed, data, folder, scale, extra, start)
    with locked(folder):
        before = recorded(folder, asked)
        if not before.get("finished"):
            fit(cfg, {**asked, **joined(before, surroundings(cfg.trainer.get("accelerator")))}, folder)
    return folder


def fit(cfg, run, folder):
    """Trains what `settings` described, from its last checkpoint on; run: what run.json is to say.

    Raises:
        TimeoutError: `exp_manager.max_time_per_run` was over before the schedule.
        ConfigError: `trainer.max_time` is given, which would be over in the next part of the run too.
    """
    if cfg.trainer.get("max_time") is not None:
        raise ConfigError("trainer.max_time is of all parts of a run; give +exp_manager.max_time_per_run=DD:HH:MM:SS.")
    pl.seed_everything(run["seed"])
    history = History(folder / "history.jsonl", run["seed"])
    trainer, model = build(cfg, [history])
    if cfg.model.preprocessor.get("dither") == 0 and cfg.model.train_ds.get("augmentor") is None:
        model.preprocessor.forward = remembered(model.preprocessor.forward)
    run["encoder_parameters"] = sum(p.numel() for p in model.encoder.parameters())
    # not before: what cannot be built leaves no settings behind, which would stand against those that can
    write_settings(folder / "run.json", run)
    pl.seed_everything(1000 * run["seed"])
    trainer.fit(model)
    if history.steps is None:
        # left out where nothing is left to train, and where NeMo's own timer ends the run
        history.on_train_end(trainer)
    if history.timed_out:
        raise TimeoutError(
            f"{folder} ran out of its time at step {history.steps}; the same command goes on from there."
        )
    write_settings(folder / "run.json", {**run, "steps": history.steps, "finished": True})


def main():
    args = parse_args()
    name = args.name or args.arm
    try:
        with exit_in_one_sentence(ConfigError, ManifestError, TeacherError, HydraException, OmegaConfBaseException):
            folder = train(args.arm, name, args.seed, args.data, args.out, args.scale, args.overrides, args.start)
    except SIGTERMException:  # which Python takes for a good end
        sys.exit(128 + signal.SIGTERM)
    logging.info(f"Trained: {folder}")


if __name__ == "__main__":
    main()
