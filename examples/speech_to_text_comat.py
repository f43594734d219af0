"""Trains a CTC model with COMAT, as NeMo's own example scripts train theirs.

    python examples/speech_to_text_comat.py --config-name=conformer_ctc_comat \
        model.train_ds.manifest_filepath=train.json \
        model.validation_ds.manifest_filepath=dev.json \
        model.tokenizer.dir=tokenizer \
        model.comat.teacher.name=bert-base-uncased

Every override of NeMo's works. Where no data are named at all, the configs of conf/ train on the corpus in
examples/demo_corpus. A config with model.labels and without model.tokenizer makes a character model; one without
model.encoder, as finetune_ctc_comat, trains the model of init_from_nemo_model=MODEL.nemo on.
"""

import functools
import signal
import sys
import tarfile
from pathlib import Path

from nemo_comat.waiting import announce_nemo

if __name__ == "__main__":
    announce_nemo()

import lightning.pytorch as pl
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities.exceptions import SIGTERMException
from nemo.core.config import hydra_runner
from nemo.utils import logging
from nemo.utils.exp_manager import exp_manager
from nemo.utils.trainer_utils import resolve_trainer_cfg
from omegaconf import DictConfig, OmegaConf, open_dict

from nemo_comat import TeacherError
from nemo_comat.config import ConfigError, read_comat_config
from nemo_comat.models.data import LOADERS
from nemo_comat.models.finetune_config import allow_init_from, starts_from_file
from nemo_comat.models.manifest import ManifestError, check_dataset
from nemo_comat.models.named_data import check_loaders, complete_datasets, finds_data
from nemo_comat.models.resume import Resumable
from nemo_comat.models.time_left import TimeLeft
from nemo_comat.models.training_config import by_characters, check_model, check_schedule, make_model

CORPUS = Path(__file__).resolve().parent / "demo_corpus"
# the config that all in conf/ are based on
SHIPPED = CORPUS.parents[1] / "conf" / "conformer_ctc_comat.yaml"


@functools.cache
def shipped_model():
    """The model block of SHIPPED, which names no data; not to be changed."""
    return OmegaConf.load(SHIPPED).model


def use_embedded_corpus(cfg):
    """Points cfg at the embedded corpus and its short schedule, but leaves what the command line sets."""
    given = {override.split("=")[0].lstrip("+~") for override in HydraConfig.get().overrides.task}
    changes = {
        "model.train_ds.manifest_filepath": str(CORPUS / "train.json"),
        "model.validation_ds.manifest_filepath": str(CORPUS / "heldout.json"),
        "model.tokenizer.dir": str(CORPUS / "tokenizer"),
        **leaves(cfg.embedded_corpus),
    }
    if by_characters(cfg) or starts_from_file(cfg):
        del changes["model.tokenizer.dir"]
    views = OmegaConf.select(cfg, "model.comat.consistency_weight")
    with open_dict(cfg):
        for key, value in changes.items():
            there = OmegaConf.select(cfg, key.rpartition(".")[0]) is not None  # a block that is null or absent stays so
            if there and not any(overlap(key, override) for override in given):
                OmegaConf.update(cfg, key, value, merge=False)
    one_view = bool(views) and not cfg.model.comat.consistency_weight
    logging.info(
        f"No manifest given (model.train_ds.manifest_filepath): training on the embedded corpus in {CORPUS} with its "
        f"own short schedule, {OmegaConf.select(cfg, 'trainer.max_epochs')} epochs"
        f"{f', and one view of each batch for two (model.comat.consistency_weight={views:g})' * one_view}; with your "
        "manifests all is as the config says."
    )


def overlap(key, other):
    """True where two dotted keys are one, or one is of a block that the other is in."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def leaves(block, prefix=""):
    """Dotted keys and values of a nested block; a block with a name, as a scheduler's, is one value."""
    found = {}
    for key, value in block.items():
        nested = isinstance(value, DictConfig) and "name" not in value
        found.update(leaves(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value})
    return found


def prepare(cfg):
    """Checks all that can be checked before data or models are loaded; fills in the embedded corpus."""
    complete(cfg)
    check_data(cfg)


def complete(cfg):
    """Checks a config, its data apart, and fills in the embedded corpus."""
    if cfg.get("model") is None:
        raise ConfigError("The config has no model block; give a NeMo config of a CTC model, with a comat block.")
    if cfg.model.get("comat") is not None:
        read_comat_config(cfg.model.comat)
    if not complete_datasets(cfg, shipped_model()):
        if cfg.get("embedded_corpus") is None or cfg.model.get("train_ds") is None:
            raise ConfigError("No data are named; give model.train_ds.manifest_filepath=FILE.")
        use_embedded_corpus(cfg)
    check_model(cfg)


def check_data(cfg):
    """Checks the manifests of a config, and that their audio files are there."""
    for name in LOADERS:
        if cfg.model.get(name) is not None:
            check_dataset(cfg.model[name], f"model.{name}")


def build(cfg, callbacks=()):
    """Trainer and model of a config, ready for `trainer.fit(model)`; raises what is wrong before it loads anything."""
    prepare(cfg)
    trainer = pl.Trainer(**resolve_trainer_cfg(cfg.get("trainer") or OmegaConf.create()))
    trainer.callbacks.extend(callbacks)
    exp_manager(trainer, cfg.get("exp_manager", None))
    model = make_model(cfg, trainer)
    check_loaders(cfg, model, shipped_model())
    check_schedule(model)
    return trainer, model


@hydra_runner(config_path="../conf", config_name="conformer_ctc_comat")
def main(cfg):
    """Trains, and tests where model.test_ds names data."""
    logging.info(f"Hydra config: {OmegaConf.to_yaml(cfg)}")
    try:
        trainer, model = build(cfg, [Resumable(), TimeLeft()])
        tested = finds_data(cfg, model, "test_ds", shipped_model())
        trainer.fit(model)
        if tested and model.prepare_test(trainer):
            trainer.test(model)
    except SIGTERMException:
        sys.exit(128 + signal.SIGTERM)
    except (ConfigError, ManifestError, TeacherError, tarfile.ReadError) as error:
        logging.error(str(error))
        sys.exit(1)


if __name__ == "__main__":
    sys.argv = allow_init_from(sys.argv)
    main()
