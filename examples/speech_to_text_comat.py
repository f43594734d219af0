"""Trains a CTC model with COMAT, as NeMo's own example scripts train theirs.

    python examples/speech_to_text_comat.py --config-name=conformer_ctc_comat \
        model.train_ds.manifest_filepath=train.json \
        model.validation_ds.manifest_filepath=dev.json \
        model.tokenizer.dir=tokenizer \
        model.comat.teacher.name=bert-base-uncased

Every override of NeMo's works. Without manifests it trains on the corpus in examples/demo_corpus. A config with
model.labels and without model.tokenizer makes a character model.
"""

import signal
import sys
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

from nemo_comat import ComatCTCModel, ComatCTCModelBPE, TeacherError
from nemo_comat.config import ConfigError, read_comat_config
from nemo_comat.models.manifest import ManifestError, check_dataset
from nemo_comat.models.resume import Resumable

CORPUS = Path(__file__).resolve().parent / "demo_corpus"
DATA_KEYS = ("manifest_filepath", "input_cfg", "shar_path", "cuts_path", "tarred_audio_filepaths")


def allow_init_from(arguments):
    """Lets init_from_nemo_model=… and its like be given without Hydra's +, though no config lists them."""
    return [f"++{argument}" if argument.startswith("init_from_") else argument for argument in arguments]


def has_value(block, key):
    """True where key is there, and neither ??? nor null."""
    return not OmegaConf.is_missing(block, key) and block.get(key) is not None


def has_data(dataset):
    """True where a ``*_ds`` block, which may be null, names a source of data."""
    return dataset is not None and any(has_value(dataset, key) for key in DATA_KEYS)


def by_characters(cfg):
    """True where the config is a character model's: it lists its labels and has no tokenizer."""
    return "tokenizer" not in cfg.model and has_value(cfg.model, "labels")


def use_embedded_corpus(cfg):
    """Points cfg at the embedded corpus and its short schedule, but leaves what the command line sets."""
    given = {override.split("=")[0].lstrip("+~") for override in HydraConfig.get().overrides.task}
    changes = {
        "model.train_ds.manifest_filepath": str(CORPUS / "train.json"),
        "model.validation_ds.manifest_filepath": str(CORPUS / "heldout.json"),
        "model.tokenizer.dir": str(CORPUS / "tokenizer"),
        **leaves(cfg.embedded_corpus),
    }
    if by_characters(cfg):
        del changes["model.tokenizer.dir"]
    with open_dict(cfg):
        for key, value in changes.items():
            if not any(f"{override}.".startswith(f"{key}.") for override in given):
                OmegaConf.update(cfg, key, value, merge=False)
    logging.info(
        f"No manifest given (model.train_ds.manifest_filepath): training on the embedded corpus in {CORPUS} with its "
        f"own short schedule, {cfg.trainer.max_epochs} epochs or {cfg.trainer.max_time} (d:h:m:s) at most; with your "
        "manifests the config's schedule stands."
    )


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
    if cfg.model.get("comat") is not None:
        read_comat_config(cfg.model.comat)
    if not has_data(cfg.model.train_ds):
        if has_data(cfg.model.validation_ds):
            raise ConfigError(
                "model.validation_ds names data, model.train_ds does not; give model.train_ds.manifest_filepath=FILE "
                "too, or neither of them to train on the embedded corpus."
            )
        use_embedded_corpus(cfg)
    elif cfg.model.validation_ds is not None and not has_data(cfg.model.validation_ds):
        raise ConfigError(
            "model.validation_ds.manifest_filepath is missing; give model.validation_ds.manifest_filepath=FILE, "
            "or model.validation_ds=null to train without validation."
        )
    if not by_characters(cfg):
        check_tokenizer(cfg)


def check_tokenizer(cfg):
    """Raises where model.tokenizer names no folder."""
    tokenizer = cfg.model.get("tokenizer") or OmegaConf.create()
    # an aggregate tokenizer has a folder for each language instead
    if "langs" not in tokenizer and not has_value(tokenizer, "dir"):
        manifest = cfg.model.train_ds.get("manifest_filepath") or "train.json"
        raise ConfigError(
            "model.tokenizer.dir is missing; build a tokenizer with `python examples/build_tokenizer.py "
            f"--manifest={manifest} --data_root=tokenizers --vocab_size=128` and give model.tokenizer.dir=the folder "
            "it names."
        )


def check_data(cfg):
    """Checks the manifests of a config, and that their audio files are there."""
    for name in ("train_ds", "validation_ds", "test_ds"):
        if cfg.model.get(name) is not None:
            check_dataset(cfg.model[name], f"model.{name}")


def build(cfg, callbacks=()):
    """Trainer and model of a config, ready for `trainer.fit(model)`; raises what is wrong before it loads anything."""
    prepare(cfg)
    trainer = pl.Trainer(**resolve_trainer_cfg(cfg.trainer))
    trainer.callbacks.extend(callbacks)
    exp_manager(trainer, cfg.get("exp_manager", None))
    model = (ComatCTCModel if by_characters(cfg) else ComatCTCModelBPE)(cfg=cfg.model, trainer=trainer)
    model.maybe_init_from_pretrained_checkpoint(cfg)
    return trainer, model


@hydra_runner(config_path="../conf", config_name="conformer_ctc_comat")
def main(cfg):
    """Trains, and tests where model.test_ds names data."""
    logging.info(f"Hydra config: {OmegaConf.to_yaml(cfg)}")
    try:
        trainer, model = build(cfg, [Resumable()])
        trainer.fit(model)
    except SIGTERMException:
        sys.exit(128 + signal.SIGTERM)
    except (ConfigError, ManifestError, TeacherError) as error:
        logging.error(str(error))
        sys.exit(1)
    if has_data(cfg.model.test_ds) and model.prepare_test(trainer):
        trainer.test(model)


if __name__ == "__main__":
    sys.argv = allow_init_from(sys.argv)
    main()
