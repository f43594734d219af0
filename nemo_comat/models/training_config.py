"""Checks a training config's model before anything is loaded, and makes the model that it describes."""

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf

from nemo_comat import ComatCTCModel, ComatCTCModelBPE, ComatHybridRNNTCTCModelBPE
from nemo_comat.config import ConfigError
from nemo_comat.models.finetune import restore_to_finetune
from nemo_comat.models.finetune_config import check_start, starts_from_file
from nemo_comat.models.named_data import has_value
from nemo_comat.models.tokenizer_folder import check_tokenizer_folder


def by_characters(cfg: DictConfig) -> bool:
    """True where a config is a character model's: it lists its labels and has no tokenizer.

    Examples:
        >>> by_characters(OmegaConf.create({"model": {"labels": ["a", "b"]}}))
        True
    """
    return cfg.model.get("tokenizer") is None and has_value(cfg.model, "labels")


def check_model(cfg: DictConfig) -> None:
    """Checks what a config says of its model: its decoders, its tokenizer, and the files that it starts from.

    Args:
        cfg: the whole config, with a model block.
    Raises:
        ConfigError: COMAT cannot train such a model, or a file or folder is not there.
    Examples:
        >>> check_model(OmegaConf.create({"model": {"encoder": {"_target_": "E"}, "joint": {}}}))
        Traceback (most recent call last):
        nemo_comat.config.ConfigError: The config is of an RNN-T model, which has no CTC decoder; ...
    """
    if starts_from_file(cfg):
        check_start(cfg)
        return
    _check_weights(cfg)
    _check_decoders(cfg)
    if not by_characters(cfg):
        _check_tokenizer(cfg)


def _check_weights(cfg: DictConfig) -> None:
    """Raises where a file whose weights are to be begun with is not there; NeMo takes one, or several by name."""
    for key in ("init_from_nemo_model", "init_from_ptl_ckpt"):
        given = cfg.get(key)
        blocks = given.values() if OmegaConf.is_dict(given) else ()
        for file in [given, *(block.get("path") for block in blocks if OmegaConf.is_dict(block))]:
            # what is no path of this machine, such as a data store's, is left to NeMo
            if isinstance(file, str) and "://" not in file and not os.path.exists(os.path.expanduser(file)):
                raise ConfigError(f"{key}: {file} does not exist (seen from {Path.cwd()}); give a file's path.")


def _check_decoders(cfg: DictConfig) -> None:
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


def _check_tokenizer(cfg: DictConfig) -> None:
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


def check_schedule(model: Any) -> None:
    """Raises where NeMo would need the number of training samples for its schedule, and Lhotse does not tell it.

    Args:
        model: NeMo's, with its trainer and loaders.
    Raises:
        ConfigError: trainer.max_steps is needed.
    Examples:
        >>> from types import SimpleNamespace
        >>> trainer, loader = SimpleNamespace(max_steps=-1, max_epochs=9), SimpleNamespace(dataset=iter([]))
        >>> cfg = OmegaConf.create({"optim": {"sched": {"name": "CosineAnnealing"}}})
        >>> check_schedule(SimpleNamespace(cfg=cfg, trainer=trainer, _train_dl=loader))
        Traceback (most recent call last):
        nemo_comat.config.ConfigError: model.optim.sched.name=CosineAnnealing needs the number of steps, which ...
    """
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


def class_of(cfg: DictConfig) -> type[ComatCTCModelBPE | ComatCTCModel | ComatHybridRNNTCTCModelBPE]:
    """The class of ours that a config of a whole model is for.

    Examples:
        >>> class_of(OmegaConf.create({"model": {"labels": ["a", "b"]}})).__name__
        'ComatCTCModel'
    """
    if cfg.model.get("aux_ctc") is not None:
        return ComatHybridRNNTCTCModelBPE
    return ComatCTCModel if by_characters(cfg) else ComatCTCModelBPE


def make_model(cfg: DictConfig, trainer: Trainer | None = None) -> Any:
    """The model of a config that `check_model` accepts, with its data and the weights that it is to start from.

    Args:
        cfg: the whole config. trainer: Lightning's Trainer, or None.
    Raises:
        ConfigError: as `restore_to_finetune` where the config leaves the architecture to a file.
    Examples:
        >>> make_model(OmegaConf.create({"model": {}}))
        Traceback (most recent call last):
        nemo_comat.config.ConfigError: The config has no model.encoder, and no model to take it from; ...
    """
    if starts_from_file(cfg):
        return restore_to_finetune(cfg, trainer)
    model = class_of(cfg)(cfg=cfg.model, trainer=trainer)
    model.maybe_init_from_pretrained_checkpoint(cfg)
    return model
