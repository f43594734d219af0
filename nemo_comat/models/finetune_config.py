"""What a config says of the trained model that it starts from, and what becomes of it and the file's own config."""

from collections.abc import Iterable
from pathlib import Path
from tarfile import is_tarfile
from typing import Any, cast

from nemo.collections.asr.models import EncDecCTCModelBPE, EncDecHybridRNNTCTCBPEModel
from nemo.utils import logging
from omegaconf import DictConfig, OmegaConf, open_dict

from nemo_comat import ComatMixin
from nemo_comat.config import ConfigError
from nemo_comat.models.data import LOADERS
from nemo_comat.models.tokenizer_folder import check_tokenizer_folder

# what a config's model block says of the start; the file's own blocks of these names stay
STEPS = ("tokenizer", "char_labels", "adapter")
# of the training and not of the network, so a config's own replace the file's as wholes
REPLACED = ("optim", "optim_param_groups", "comat", "freeze_updates", *LOADERS)
# times as many SpecAugment's time masks as one view has, as in CR-CTC's paper
MASKS_OF_TWO_VIEWS = 2.5
# null says something of its own here, and is not the file's
NULLABLE = ("optim_param_groups",)


def allow_init_from(arguments: Iterable[str]) -> list[str]:
    """Arguments for Hydra that let init_from_nemo_model=… and its like be given without +, though no config lists them.

    Examples:
        >>> allow_init_from(["train.py", "init_from_nemo_model=m.nemo"])
        ['train.py', '++init_from_nemo_model=m.nemo']
    """
    return [f"++{argument}" if argument.startswith("init_from_") else argument for argument in arguments]


def starts_from_file(cfg: DictConfig) -> bool:
    """True where a config leaves the architecture to the file that it starts from.

    Examples:
        >>> starts_from_file(OmegaConf.create({"model": {"optim": {"lr": 0.001}}}))
        True
    """
    return OmegaConf.select(cfg, "model.encoder._target_") is None


def check_start(cfg: DictConfig) -> None:
    """Checks what a config says of its start, before anything is loaded.

    Args:
        cfg: the whole config, for which `starts_from_file` is true.
    Raises:
        ConfigError: no file is named or it is not there, or the keys contradict each other.
    Examples:
        >>> check_start(OmegaConf.create({"model": {}}))
        Traceback (most recent call last):
        nemo_comat.config.ConfigError: The config has no model.encoder, and no model to take it from; ...
    """
    file, name = cfg.get("init_from_nemo_model"), cfg.get("init_from_pretrained_model")
    if (file is None) == (name is None):
        raise ConfigError(
            f"The config has no model.encoder, and {'no model' if file is None else 'two models'} to take it from; "
            "give init_from_nemo_model=MODEL.nemo, or init_from_pretrained_model=NAME."
        )
    if not isinstance(file or name, str):
        raise ConfigError(f"One model is needed to take the architecture from, got {file or name}; give its file.")
    place = None if file is None else Path(file).expanduser()
    if place is not None and not place.exists():
        raise ConfigError(f"init_from_nemo_model: {file} does not exist; give a .nemo file.")
    if place is not None and not place.is_dir() and not is_tarfile(place):
        raise ConfigError(f"init_from_nemo_model: {file} is no archive; give a .nemo file.")
    if cfg.model.get("labels") is not None:
        raise ConfigError(
            "model.labels is given, but the decoder's are the file's; give model.char_labels.update_labels=true and "
            "model.char_labels.labels to replace them."
        )
    tokenizer, labels = (cfg.model.get(key) or {} for key in ("tokenizer", "char_labels"))
    check_pair("tokenizer.update_tokenizer", tokenizer.get("update_tokenizer"), "tokenizer.dir", tokenizer.get("dir"))
    check_pair("char_labels.update_labels", labels.get("update_labels"), "char_labels.labels", labels.get("labels"))
    if tokenizer.get("update_tokenizer"):
        check_tokenizer_folder(tokenizer)
    if tokenizer.get("update_tokenizer") or labels.get("update_labels"):
        if adapter_name(cfg.model) is not None:
            raise ConfigError(
                "model.adapter trains the adapter alone, but a new tokenizer needs a new decoder; give one of the two."
            )


def check_pair(switch: str, on: object, key: str, value: object) -> None:
    """Raises where a switch is on without its value, or off with one.

    Examples:
        >>> check_pair("tokenizer.update_tokenizer", True, "tokenizer.dir", None)
        Traceback (most recent call last):
        nemo_comat.config.ConfigError: model.tokenizer.update_tokenizer is true, but model.tokenizer.dir is missing; ...
    """
    if on and value is None:
        raise ConfigError(f"model.{switch} is true, but model.{key} is missing; give model.{key} too.")
    if value is not None and not on:
        raise ConfigError(f"model.{key} is given, but the file's own is kept; give model.{switch}=true to replace it.")


def adapter_name(model_cfg: DictConfig) -> str | None:
    """Name of the adapter that is to be trained, or None.

    Examples:
        >>> adapter_name(OmegaConf.create({"adapter": {"adapter_name": "few"}})), adapter_name(OmegaConf.create({}))
        ('few', None)
    """
    return (model_cfg.get("adapter") or {}).get("adapter_name")


def check_kind(cls: type[ComatMixin], given: DictConfig, path: str) -> None:
    """Raises ConfigError where a file of characters is to get a tokenizer, or one of subwords labels.

    Examples:
        >>> given = OmegaConf.create({"char_labels": {"update_labels": True}})
        >>> check_kind(EncDecCTCModelBPE, given, "m.nemo")
        Traceback (most recent call last):
        nemo_comat.config.ConfigError: m.nemo holds a model of subwords, which has no labels of its own; ...
    """
    of_subwords = issubclass(cls, (EncDecCTCModelBPE, EncDecHybridRNNTCTCBPEModel))
    if of_subwords and (given.get("char_labels") or {}).get("update_labels"):
        raise ConfigError(
            f"{path} holds a model of subwords, which has no labels of its own; give model.tokenizer.update_tokenizer="
            "true and model.tokenizer.dir in place of model.char_labels."
        )
    if not of_subwords and (given.get("tokenizer") or {}).get("update_tokenizer"):
        raise ConfigError(
            f"{path} holds a model of characters, which has no tokenizer; give model.char_labels.update_labels=true "
            "and model.char_labels.labels in place of model.tokenizer."
        )


def check_sample_rates(own: DictConfig, given: DictConfig, both: DictConfig) -> None:
    """Raises ConfigError where data would come at another sample rate than the file's features are made at.

    Args:
        own: the file's model config. given: the config's model block. both: `joined`.
    Examples:
        >>> own = OmegaConf.create({"preprocessor": {"sample_rate": 16000}})
        >>> check_sample_rates(own, OmegaConf.create({"train_ds": {"sample_rate": 8000}}), own)
        Traceback (most recent call last):
        nemo_comat.config.ConfigError: model.train_ds.sample_rate is 8000, but the file's features are of 16000 Hz; ...
    """
    expected = OmegaConf.select(both, "preprocessor.sample_rate")
    for key in ("", *(f"{name}." for name in LOADERS)):
        rate = OmegaConf.select(given, f"{key}sample_rate")
        if None not in (rate, expected) and rate not in (expected, own.get("sample_rate")):
            raise ConfigError(
                f"model.{key}sample_rate is {rate}, but the file's features are of {expected} Hz; leave it null: NeMo "
                "resamples what is recorded at another rate."
            )


def complete_from(cfg: DictConfig, own: DictConfig) -> DictConfig:
    """The config's model block without its interpolations, at the file's sample rate where it names none.

    Examples:
        >>> cfg = OmegaConf.create({"lr": 0.1, "model": {"optim": {"lr": "${lr}"}}})
        >>> OmegaConf.to_container(complete_from(cfg, OmegaConf.create({"sample_rate": 8000})))
        {'optim': {'lr': 0.1}, 'sample_rate': 8000}
    """
    cfg = cfg.copy()
    with open_dict(cfg):
        if cfg.model.get("sample_rate") is None:
            cfg.model.sample_rate = own.get("sample_rate") or own.preprocessor.sample_rate
    complete: Any = OmegaConf.to_container(cfg, resolve=True)
    return cast(DictConfig, OmegaConf.create(complete["model"]))


def joined(own: DictConfig, given: DictConfig) -> DictConfig:
    """The file's model config with what a config changes; see `restore_to_finetune`.

    Examples:
        >>> own, given = {"encoder": {"_target_": "E", "d_model": 8}}, {"encoder": {"dropout": 0.1}, "optim": {"lr": 1}}
        >>> OmegaConf.to_container(joined(OmegaConf.create(own), OmegaConf.create(given)))
        {'encoder': {'_target_': 'E', 'd_model': 8, 'dropout': 0.1}, 'optim': {'lr': 1}}
    """
    own = own.copy()
    with open_dict(own):
        for key, value in given.items():
            if key in NULLABLE and value is None:
                own.pop(key, None)
            if key in STEPS or value is None:
                continue
            blocks = OmegaConf.is_dict(value) and OmegaConf.is_dict(own.get(key)) and key not in REPLACED
            changes = blocks and "_target_" not in value
            own[key] = OmegaConf.merge(own[key], value) if changes else value
    return own


def keep_labels(own: DictConfig) -> None:
    """Names a file's characters in its model config, from which NeMo gives them to new data, if its data alone do.

    Args:
        own: the file's model config, changed in place.
    Examples:
        >>> own = OmegaConf.create({"decoder": {"vocabulary": ["a", "b"]}, "train_ds": {"labels": ["a", "b"]}})
        >>> keep_labels(own)
        >>> own.labels
        ['a', 'b']
    """
    if own.get("tokenizer") is None and own.get("labels") is None:
        with open_dict(own):
            own.labels = OmegaConf.select(own, "decoder.vocabulary")


def keep_feedback(own: DictConfig, given: DictConfig) -> None:
    """Takes the file's `comat.feedback` over, which its recogniser needs, into a comat block where it is null.

    Args:
        own: the file's model config. given: the config's model block, changed in place.
    Raises:
        ConfigError: the block says otherwise.
    Examples:
        >>> given = OmegaConf.create({"comat": {"weight": 3}})
        >>> keep_feedback(OmegaConf.create({"comat": {"feedback": True, "encoder_layer": [0]}}), given)
        >>> given.comat
        {'weight': 3, 'feedback': True, 'encoder_layer': [0]}
    """
    theirs, ours = own.get("comat") or {}, given.get("comat")
    if ours is None or not theirs.get("feedback"):
        return
    for key in ("feedback", "encoder_layer"):
        if ours.get(key) is None:
            ours[key] = theirs[key]
        if ours[key] != theirs[key]:
            wanted = " ".join(f"model.comat.{name}={theirs[name]}".lower() for name in ("feedback", "encoder_layer"))
            raise ConfigError(
                f"model.comat.{key} is {ours[key]}, but the file's recogniser was trained with feedback and needs it; "
                f"set it to null, or give {wanted}."
            )


def warn_of_masks(own: DictConfig, given: DictConfig) -> None:
    """Says that a file's SpecAugment is that of two views of a batch, where one is trained on.

    Examples:
        >>> from unittest.mock import patch
        >>> own = OmegaConf.create({"comat": {"consistency_weight": 0.2}, "spec_augment": {"time_masks": 12}})
        >>> with patch.object(logging, "warning", lambda sentence: print(sentence.partition(";")[0])):
        ...     warn_of_masks(own, OmegaConf.create({"comat": {"consistency_weight": 0}}))
        The file was trained on two views of each batch, with 12 time masks, and this trains on one with as many
    """
    before, now = ((cfg.get("comat") or {}).get("consistency_weight") for cfg in (own, given))
    masks = (own.get("spec_augment") or {}).get("time_masks")
    if before and now == 0 and masks and given.get("spec_augment") is None:
        fewer = max(1, round(masks / MASKS_OF_TWO_VIEWS))
        logging.warning(
            f"The file was trained on two views of each batch, with {masks} time masks, and this trains on one with as "
            f"many; give fewer, such as ++model.spec_augment.time_masks={fewer}, or "
            f"model.comat.consistency_weight={before:g}."
        )
