"""The arms of a comparison: their configs, models and optimizers, and the step that they take."""

import functools
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import lightning.pytorch as pl
import torch
from hydra import compose, initialize_config_dir
from nemo.collections.asr.models import EncDecCTCModelBPE
from omegaconf import OmegaConf, open_dict
from step_data import random_bert
from step_options import RANDOM_TEACHER, SIZES

from nemo_comat import ComatCTCModelBPE, write_cache, write_index
from nemo_comat.config import ConfigError, teacher_arguments
from nemo_comat.models.consistency import two_views
from nemo_comat.teacher import build_teacher

CONFIG = Path(__file__).resolve().parents[1] / "conf" / "conformer_ctc_comat.yaml"
ROWS_TWICE = "ctc, rows twice"


@dataclass(frozen=True)
class Setting:
    """What one comparison is measured with; the arms differ in nothing else."""

    size: str
    batch_size: int
    precision: str
    labels: str


# what an override would not change, and what does
SET_HERE = {
    "model.interctc": "on in an arm of its own",
    "model.tokenizer.dir": "--tokenizer's",
    "model.comat.compress.labels": "--labels'",
    "model.comat.teacher.name": "--teacher's",
    "model.optim": "one that hardly moves the weights",
    "model.train_ds": "null",
    "model.validation_ds": "null",
    "model.test_ds": "null",
}


@dataclass
class Arm:
    """One model and what was measured of it; seconds and active (share of rows) have an entry for each round.

    rows_twice: the batch's rows are doubled beforehand, as two views double them within the step.
    """

    name: str
    model: EncDecCTCModelBPE
    optimizer: torch.optim.Optimizer
    rows_twice: bool = False
    logged: dict = field(default_factory=dict)
    held_bytes: int = 0
    step_bytes: int = 0
    seconds: list = field(default_factory=list)
    active: list = field(default_factory=list)


def model_config(options, setting):
    """The shipped config, with one view of a batch and the overrides, at a size, without data or InterCTC.

    Raises:
        ConfigError: an override of what is set here. HydraException, OmegaConfBaseException: one that fits no key.
    """
    for override in options.overrides:
        key = override.lstrip("+~").partition("=")[0]
        if not key.startswith("model."):
            raise ConfigError(f"{override} is none of the model's keys, which alone are measured; leave it out.")
        for own, instead in SET_HERE.items():
            if f"{key}.".startswith(f"{own}.") or f"{own}.".startswith(f"{key}."):
                raise ConfigError(f"{override} is set by the measurement: {own} is {instead}; leave this override out.")
    sizes = [f"model.encoder.{key}={value}" for key, value in SIZES[setting.size].items()]
    masks = f"model.spec_augment.time_masks={10 if setting.size == 'large' else 5}"
    with initialize_config_dir(str(CONFIG.parent), version_base=None):
        overrides = [*sizes, masks, "model.comat.consistency_weight=0", *options.overrides]
        cfg = compose(CONFIG.stem, overrides).model
    OmegaConf.set_struct(cfg, False)
    cfg.tokenizer.dir = str(options.tokenizer)
    cfg.comat.compress.labels = setting.labels
    cfg.interctc = {"loss_weights": [], "apply_at_layers": []}
    cfg.update(train_ds=None, validation_ds=None, test_ds=None, log_prediction=False)
    # which hardly moves the weights
    cfg.optim = {"name": "adamw", "lr": 1e-6, "betas": [0.9, 0.98], "weight_decay": 1e-3}
    return cfg


def plain_config(cfg):
    cfg = cfg.copy()
    with open_dict(cfg):
        del cfg["comat"]
    return cfg


def interctc_config(cfg):
    """The config with InterCTC at the encoder's middle, as the shipped one has it."""
    cfg = cfg.copy()
    cfg.interctc = {"loss_weights": [0.3], "apply_at_layers": [(cfg.encoder.n_layers - 1) // 2]}
    return cfg


def live_config(cfg, teacher):
    cfg = cfg.copy()
    cfg.comat.teacher.name = random_bert_base() if teacher == RANDOM_TEACHER else teacher
    return cfg


def cached_config(cfg, texts, folder):
    """The config with these texts' embeddings in a cache in the folder."""
    for _ in write_cache(folder, build_teacher(**teacher_arguments(cfg.comat.teacher, cfg.comat.transfer)), texts):
        pass
    write_index(folder)
    cfg = cfg.copy()
    with open_dict(cfg):
        cfg.comat.teacher.update(cache=str(folder), missing="error")
    return cfg


@functools.cache
def random_bert_base():
    """A folder with a model of BERT-base's size, of random weights; deleted at the end."""
    folder = tempfile.TemporaryDirectory(prefix=RANDOM_TEACHER)
    random_bert_base.folder = folder  # lives as long as the program
    random_bert(folder.name)
    return folder.name


def configs_of_arms(options, setting, texts, folder):
    """The config of each arm by its name, ctc first."""
    cfg = model_config(options, setting)
    plain, cached = plain_config(cfg), cached_config(live_config(cfg, options.teacher[0]), texts, folder)
    configs = {"ctc": plain, "interctc": interctc_config(plain)}
    if cfg.comat.consistency_weight:
        configs[ROWS_TWICE] = plain
    configs.update({"cached": cached, "cached, interctc": interctc_config(cached)})
    configs.update((f"live {teacher}", live_config(cfg, teacher)) for teacher in options.teacher)
    return configs


def make_trainer(device):
    """A trainer to attach to models, for NeMo's steps ask it for the step's number."""
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    accelerator, devices = ("gpu", [device.index]) if device.type == "cuda" else ("cpu", 1)
    return pl.Trainer(accelerator=accelerator, devices=devices, max_steps=1_000_000, num_sanity_val_steps=0, **quiet)


def make_arm(name, cfg, trainer, device):
    """A model on the device, its weights from one seed whatever the arm."""
    torch.manual_seed(0)
    model = (ComatCTCModelBPE if "comat" in cfg else EncDecCTCModelBPE)(cfg=cfg, trainer=trainer)
    model = model.to(device).train()
    optimizer = model.configure_optimizers()
    arm = Arm(name, model, optimizer[0][0] if isinstance(optimizer, tuple) else optimizer, name == ROWS_TWICE)
    # NeMo's step hands its numbers to Lightning, which takes them inside fit only
    model.log_dict = lambda numbers, **options: arm.logged.update(numbers)
    return arm


def autocast(device, precision):
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def as_read(arm, batch):
    """A batch as an arm reads it: with its rows twice, where the arm stands beside those of two views."""
    if not arm.rows_twice:
        return batch
    return tuple(part.pin_memory() if batch[0].is_pinned() else part for part in two_views(batch))


def train_step(arm, batch, device, precision):
    """One step, as Lightning takes it, of a batch of `as_read`."""
    batch = arm.model.transfer_batch_to_device(batch, device, 0)
    with autocast(device, precision):
        loss = arm.model.training_step(batch, 0)["loss"]
    arm.optimizer.zero_grad()
    loss.backward()
    arm.optimizer.step()
