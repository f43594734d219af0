"""Trains one arm of the recipe with one seed; a second call goes on where the first was stopped.

    python examples/mini_librispeech/train.py --data=DATA --out=RUNS --scale=cpu --arm=comat --seed=1 \
        [--name=comat_w1 model.comat.weight=1]

DATA is what prepare.py wrote. All arms of a seed begin with the same weights and read the data in the same order.
--start=OTHER/ctc begins with the weights of that run's checkpoint of the same seed, instead of random ones.
RUNS/NAME/seed1 gets `history.jsonl` (a row for each validation), `run.json`, and NeMo's logs and checkpoints in nemo/.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from nemo_comat.waiting import announce_nemo

if __name__ == "__main__":
    announce_nemo()

import lightning.pytorch as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from nemo.utils import logging
from omegaconf import OmegaConf

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from features import remembered  # noqa: E402
from score import checkpoint_of  # noqa: E402
from speech_to_text_comat import build  # noqa: E402

from nemo_comat import ConfigError, TeacherError  # noqa: E402
from nemo_comat.models.manifest import ManifestError  # noqa: E402
from nemo_comat.output import exit_in_one_sentence, written_beside  # noqa: E402

RECIPE = OmegaConf.load(HERE / "recipe.yaml")
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

    def on_validation_end(self, trainer, model):
        """Writes the row."""
        metrics = trainer.callback_metrics
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step, "peak_bytes": peak_bytes()}
        row.update({key: float(metrics[key]) for key in LOGGED if key in metrics})
        if self.active:
            row["train_active_fraction"] = torch.stack(self.active).mean().item()
        if self.seconds:
            row["step_seconds"] = median(self.seconds)
        with open(self.file, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
        self.seconds, self.last, self.active = [], None, []


def peak_bytes():
    """Most memory that was in use: the GPU's tensors, or on a CPU the whole process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def arm_config(arm, data, folder, scale, extra=()):
    """The arm's whole config.

    Args:
        arm: a name of recipe.yaml's arms. data, folder: paths. scale: a name of its scales. extra: overrides.
    Returns:
        DictConfig as examples/speech_to_text_comat.py gets it, and the list of all overrides.
    """
    data, parts = data.resolve(), RECIPE.arms[arm]
    overrides = [
        *RECIPE.shared,
        *RECIPE.scales[scale],
        *parts.overrides,
        f"model.train_ds.manifest_filepath={data / 'train.json'}",
        f"model.validation_ds.manifest_filepath={data / 'dev.json'}",
        f"model.tokenizer.dir={data / 'tokenizer'}",
        # a folder of its own: exp_manager moves the files that it finds there when it resumes
        f"+exp_manager.explicit_log_dir={folder.resolve() / 'nemo'}",
        *extra,
    ]
    with initialize_config_dir(str(HERE.parents[1] / "conf"), version_base=None):
        config = parts.get("config", "conformer_ctc_comat")
        layers = compose(config, [o for o in overrides if "LAYER" not in o]).model.encoder.n_layers
        overrides = [override.replace("LAYER", str((layers - 1) // 2)) for override in overrides]
        cfg = compose(config, overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    cfg = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    OmegaConf.set_struct(cfg, True)
    return cfg, overrides


def commit_here():
    """The commit of this clone, "+changes" where it was edited; "unknown" without git or outside a clone."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--exclude=*", "--dirty=+changes"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def describe(arm, seed, overrides, cfg):
    """What a run was: for run.json, and to refuse to resume another one."""
    gpu = torch.cuda.is_available()
    return {
        "arm": arm,
        "seed": seed,
        "overrides": [o for o in overrides if "manifest_filepath" not in o and "explicit_log_dir" not in o],
        "model": OmegaConf.to_container(cfg.model, resolve=True),
        "commit": commit_here(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads",
    }


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
        ConfigError: the folder holds a run of other settings.
    """
    folder = out / name / f"seed{seed}"
    if start is not None:
        extra = [*extra, f"++init_from_nemo_model={checkpoint_of(start / f'seed{seed}').resolve()}"]
    cfg, overrides = arm_config(arm, data, folder, scale, extra)
    run = describe(arm, seed, overrides, cfg)
    settings = folder / "run.json"
    if settings.exists():
        before = json.loads(settings.read_text())
        if before["model"] != run["model"] or before["overrides"] != run["overrides"]:
            raise ConfigError(f"{folder} holds a run of other settings; give another --name or --out, or remove it.")
        if before.get("finished"):
            return folder
    write_settings(settings, run)
    pl.seed_everything(seed)
    trainer, model = build(cfg, [History(folder / "history.jsonl", seed)])
    if cfg.model.preprocessor.get("dither") == 0 and cfg.model.train_ds.get("augmentor") is None:
        model.preprocessor.forward = remembered(model.preprocessor.forward)
    run["encoder_parameters"] = sum(p.numel() for p in model.encoder.parameters())
    pl.seed_everything(1000 * seed)
    trainer.fit(model)
    write_settings(settings, {**run, "steps": trainer.global_step, "finished": True})
    return folder


def main():
    parser = argparse.ArgumentParser(description="Train one arm of the recipe with one seed.")
    parser.add_argument("--data", type=Path, required=True, help="folder that prepare.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--scale", choices=list(RECIPE.scales), default="gpu", help="default: %(default)s")
    parser.add_argument("--arm", choices=list(RECIPE.arms), required=True)
    parser.add_argument("--name", help="the run's folder in OUT (default: the arm)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=Path, help="RUNS/NAME whose weights of the same seed are begun with")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, such as model.comat.weight=1")
    args = parser.parse_intermixed_args()
    with exit_in_one_sentence(ConfigError, ManifestError, TeacherError):
        name = args.name or args.arm
        folder = train(args.arm, name, args.seed, args.data, args.out, args.scale, args.overrides, args.start)
    logging.info(f"Trained: {folder}")


if __name__ == "__main__":
    main()
