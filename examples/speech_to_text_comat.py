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
import os
import signal
import sys
import tarfile
from numbers import Real
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

from nemo_comat import ComatCTCModel, ComatCTCModelBPE, ComatHybridRNNTCTCModelBPE, TeacherError
from nemo_comat.config import ConfigError, read_comat_config
from nemo_comat.models.data import LOADERS
from nemo_comat.models.finetune import allow_init_from, check_start, restore_to_finetune, starts_from_file
from nemo_comat.models.manifest import ManifestError, check_dataset
from nemo_comat.models.resume import Resumable
from nemo_comat.models.time_left import TimeLeft
from nemo_comat.models.tokenizer_folder import check_tokenizer_folder

CORPUS = Path(__file__).resolve().parent / "demo_corpus"
# the config that all in conf/ are based on
SHIPPED = CORPUS.parents[1] / "conf" / "conformer_ctc_comat.yaml"


def has_value(block, key):
    """True where key is there, and neither ??? nor null."""
    return not OmegaConf.is_missing(block, key) and block.get(key) is not None


@functools.cache
def shipped_model():
    """The model block of SHIPPED; not to be changed."""
    return OmegaConf.load(SHIPPED).model


def names_data(cfg, name):
    """True where a ``*_ds`` block, which may be null or absent, may name data."""
    return bool(naming_keys(cfg, name))


def naming_keys(cfg, name):
    """Keys of a ``*_ds`` block by which it may name data.

    Which keys do so is NeMo's to say, and differs from reader to reader. So it is any text, list or block that the
    config in conf/ does not have at that key, the model's labels apart; numbers and switches are options of data that
    something else names; but multi_config, of Lhotse, says that blocks name the data.
    """
    dataset, shipped = cfg.model.get(name) or OmegaConf.create(), shipped_model()[name]
    given = {key: dataset[key] for key in dataset if has_value(dataset, key)}
    known = {key: (shipped.get(key), cfg.model.get("labels")) for key in given}
    found = [key for key, value in given.items() if not isinstance(value, Real) and value not in known[key]]
    return found + ["multi_config"] * bool(dataset.get("multi_config"))


def by_characters(cfg):
    """True where the config is a character model's: it lists its labels and has no tokenizer."""
    return cfg.model.get("tokenizer") is None and has_value(cfg.model, "labels")


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
            if there and not any(f"{override}.".startswith(f"{key}.") for override in given):
                OmegaConf.update(cfg, key, value, merge=False)
    one_view = bool(views) and not cfg.model.comat.consistency_weight
    logging.info(
        f"No manifest given (model.train_ds.manifest_filepath): training on the embedded corpus in {CORPUS} with its "
        f"own short schedule, {OmegaConf.select(cfg, 'trainer.max_epochs')} epochs"
        f"{f', and one view of each batch for two (model.comat.consistency_weight={views:g})' * one_view}; with your "
        "manifests all is as the config says."
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
    if cfg.get("model") is None:
        raise ConfigError("The config has no model block; give a NeMo config of a CTC model, with a comat block.")
    if cfg.model.get("comat") is not None:
        read_comat_config(cfg.model.comat)
    named = [name for name in LOADERS if names_data(cfg, name)]
    if named:
        complete_datasets(cfg, named)
    elif cfg.get("embedded_corpus") is not None and cfg.model.get("train_ds") is not None:
        use_embedded_corpus(cfg)
    else:
        raise ConfigError("No data are named; give model.train_ds.manifest_filepath=FILE.")
    if starts_from_file(cfg):
        check_start(cfg)
        return
    check_weights(cfg)
    check_decoders(cfg)
    if not by_characters(cfg):
        check_tokenizer(cfg)


def check_decoders(cfg):
    """Raises for the RNN-T models that have no CTC decoder, or one of letters, which no class of ours is for."""
    if cfg.model.get("joint") is not None and cfg.model.get("aux_ctc") is None:
        raise ConfigError(
            "The config is of an RNN-T model, which has no CTC decoder; add NeMo's model.aux_ctc, which makes a hybrid "
            "model of it."
        )
    if cfg.model.get("aux_ctc") is not None and by_characters(cfg):
        raise ConfigError(
            "The config is of a hybrid model of letters, and COMAT trains those of subwords; give model.tokenizer.dir "
            "and model.tokenizer.type."
        )


def complete_datasets(cfg, named):
    """Checks that what must name data does; named: the ``*_ds`` blocks that do."""
    keys = ", ".join(f"model.{named[0]}.{key}" for key in naming_keys(cfg, named[0]))
    for name in LOADERS:
        dataset = cfg.model.get(name)
        if name in named and OmegaConf.is_missing(dataset, "manifest_filepath"):
            dataset.manifest_filepath = None  # the data are named by other keys, and NeMo's readers look at all keys
        elif dataset is not None and name not in named:
            if name == "train_ds":
                raise ConfigError(
                    f"model.{named[0]} names data, model.train_ds does not; give model.train_ds.manifest_filepath=FILE "
                    "too, or neither of them to train on the embedded corpus."
                )
            if "manifest_filepath" not in dataset:  # ???, or no such key; null is NeMo's way to have no data
                raise ConfigError(
                    f"model.{name}.manifest_filepath is missing; give model.{name}.manifest_filepath=FILE, "
                    f"or model.{name}=null to do without. (The embedded corpus is not used where {keys} may name data.)"
                )
    if cfg.model.get("train_ds") is None:
        raise ConfigError(
            f"model.train_ds is null, though model.{named[0]} names data; give model.train_ds.manifest_filepath=FILE."
        )


def check_loaders(cfg, model):
    """Raises where NeMo, which only warns, found nothing to train on; says where it found nothing else to read."""
    for name in LOADERS:
        if names_data(cfg, name) and not finds_data(cfg, model, name):
            said = f"NeMo finds no data by model.{name}"
            if name == "train_ds":
                raise ConfigError(
                    f"{said} (by its {', '.join(naming_keys(cfg, name))}); give model.train_ds.manifest_filepath=FILE, "
                    "or what Lhotse's loaders read with ++model.train_ds.use_lhotse=true."
                )
            logging.warning(f"{said}: the run does without; give model.{name}.manifest_filepath=FILE if it should not.")


def check_schedule(model):
    """Raises where NeMo would need the number of training samples for its schedule, and Lhotse does not tell it."""
    sched, trainer = OmegaConf.select(model.cfg, "optim.sched"), model.trainer
    if trainer is None or sched is None or sched.get("max_steps") is not None:
        return
    if trainer.max_steps >= 0 or trainer.max_epochs is None:
        return
    if model._train_dl is not None and not hasattr(getattr(model._train_dl, "dataset", None), "__len__"):
        raise ConfigError(
            f"model.optim.sched.name={sched.get('name')} needs the number of steps, which Lhotse's loaders do not "
            "tell beforehand; give trainer.max_steps=STEPS."
        )


def finds_data(cfg, model, name):
    """True where NeMo found data by a ``*_ds`` block, or is to look for them later (defer_setup)."""
    loaders = getattr(model, LOADERS[name], None)
    loaders = loaders if isinstance(loaders, (list, tuple)) and loaders else [loaders]
    there = all(loader is not None and not isinstance(loader, (list, tuple)) for loader in loaders)
    return names_data(cfg, name) and (there or bool(cfg.model[name].get("defer_setup")))


def check_weights(cfg):
    """Raises where a file whose weights are to be begun with is not there; NeMo takes one, or several by name."""
    for key in ("init_from_nemo_model", "init_from_ptl_ckpt"):
        given = cfg.get(key)
        blocks = given.values() if OmegaConf.is_dict(given) else ()
        for file in [given, *(block.get("path") for block in blocks if OmegaConf.is_dict(block))]:
            # what is no path of this machine, such as a data store's, is left to NeMo
            if isinstance(file, str) and "://" not in file and not os.path.exists(os.path.expanduser(file)):
                raise ConfigError(f"{key}: {file} does not exist (seen from {Path.cwd()}); give a file's path.")


def check_tokenizer(cfg):
    """Raises where model.tokenizer names no folder, or one without a tokenizer."""
    tokenizer = cfg.model.get("tokenizer") or OmegaConf.create()
    # an aggregate tokenizer has a folder for each language instead
    langs = tokenizer.get("langs")
    if langs is None and not has_value(tokenizer, "dir"):
        manifest = OmegaConf.select(cfg, "model.train_ds.manifest_filepath") or "train.json"
        raise ConfigError(
            "model.tokenizer.dir is missing; build a tokenizer with `python examples/build_tokenizer.py "
            f"--manifest={manifest} --data_root=tokenizers --vocab_size=128` and give model.tokenizer.dir=the folder "
            "it names."
        )
    blocks = {"": tokenizer} if langs is None else {f"langs.{lang}.": block for lang, block in langs.items()}
    for key, block in blocks.items():
        check_tokenizer_folder(block, f"model.tokenizer.{key}dir")


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
    return trainer, make_model(cfg, trainer)


def class_of(cfg):
    """The class of ours that a config of a whole model is for."""
    if cfg.model.get("aux_ctc") is not None:
        return ComatHybridRNNTCTCModelBPE
    return ComatCTCModel if by_characters(cfg) else ComatCTCModelBPE


def make_model(cfg, trainer=None):
    """The model of a config that `prepare` has completed, with the weights it is to start from."""
    if starts_from_file(cfg):
        model = restore_to_finetune(cfg, trainer)
    else:
        model = class_of(cfg)(cfg=cfg.model, trainer=trainer)
        model.maybe_init_from_pretrained_checkpoint(cfg)
    check_loaders(cfg, model)
    check_schedule(model)
    return model


@hydra_runner(config_path="../conf", config_name="conformer_ctc_comat")
def main(cfg):
    """Trains, and tests where model.test_ds names data."""
    logging.info(f"Hydra config: {OmegaConf.to_yaml(cfg)}")
    try:
        trainer, model = build(cfg, [Resumable(), TimeLeft()])
        tested = finds_data(cfg, model, "test_ds")
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
