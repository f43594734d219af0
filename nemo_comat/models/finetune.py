"""Starts from a trained model: its ``.nemo`` file gives architecture, tokenizer and weights, a config the rest.

The keys are those of NeMo's own scripts for fine-tuning and for adapters.
"""

import os
from collections.abc import Iterable, Mapping
from tarfile import is_tarfile
from typing import Any, cast

from hydra.utils import get_class
from lightning.pytorch import Trainer
from nemo.collections.asr.models import ASRModel, EncDecCTCModel, EncDecCTCModelBPE, EncDecHybridRNNTCTCBPEModel
from nemo.core.classes import ModelPT
from nemo.core.classes.mixins.adapter_mixins import get_registered_adapter
from nemo.utils import logging
from nemo.utils.model_utils import import_class_by_path
from omegaconf import DictConfig, OmegaConf, open_dict

from nemo_comat import ComatCTCModel, ComatCTCModelBPE, ComatHybridRNNTCTCModelBPE, ComatMixin
from nemo_comat.config import ConfigError
from nemo_comat.models.checkpoint import ComatSaveRestoreConnector
from nemo_comat.models.data import LOADERS
from nemo_comat.models.tokenizer_folder import check_tokenizer_folder

# a class of NeMo's, and ours for files of it
CLASSES = {
    EncDecHybridRNNTCTCBPEModel: ComatHybridRNNTCTCModelBPE,
    EncDecCTCModelBPE: ComatCTCModelBPE,
    EncDecCTCModel: ComatCTCModel,
}
# what a config's model block says of the start; the file's own blocks of these names stay
STEPS = ("tokenizer", "char_labels", "adapter")
# no part of the network, so a config's own replace the file's as wholes
REPLACED = ("optim", *LOADERS)
# times as many SpecAugment's time masks as one view has, as in CR-CTC's paper
MASKS_OF_TWO_VIEWS = 2.5
# null says something of its own here, and is not the file's
NULLABLE = ("optim_param_groups",)


class FinetuneConnector(ComatSaveRestoreConnector):
    """Restores a model whose COMAT may differ from the file's: parts that do begin anew, and the log says so."""

    def load_instance_with_state_dict(self, instance: Any, state_dict: Mapping[str, Any], strict: bool) -> None:
        """As NeMo's; what does not fit of the file's COMAT is left out."""
        super().load_instance_with_state_dict(instance, instance.to_begin_with(state_dict), strict)


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
    if file is not None and not os.path.exists(os.path.expanduser(file)):
        raise ConfigError(f"init_from_nemo_model: {file} does not exist; give a .nemo file.")
    if file is not None and not os.path.isdir(os.path.expanduser(file)) and not is_tarfile(os.path.expanduser(file)):
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


def restore_to_finetune(cfg: DictConfig, trainer: Trainer | None = None) -> ModelPT:
    """The model of a file, ready to be trained on a config's data.

    Args:
        cfg: the whole config, with ``init_from_nemo_model`` or ``init_from_pretrained_model`` and a ``model`` block. A
            key of that block that is null is the file's, but for `NULLABLE`; a block without a class changes keys of
            the file's block that has one, or whose parts have; every other key replaces the file's.
        trainer: Lightning's Trainer, or None.
    Returns:
        a model of ours, in training mode, with its data.
    Raises:
        ConfigError: see `check_start`; also where the file's model is of no class that COMAT trains.
    Examples:
        >>> restore_to_finetune(OmegaConf.create({"init_from_nemo_model": "/no/model.nemo", "model": {}}))
        Traceback (most recent call last):
        nemo_comat.config.ConfigError: init_from_nemo_model: /no/model.nemo does not exist; give a .nemo file.
    """
    model, given = _restore(cfg, trainer)
    for name, setup in (
        ("train_ds", model.setup_training_data),
        ("validation_ds", model.setup_multiple_validation_data),
        ("test_ds", model.setup_multiple_test_data),
    ):
        if given.get(name) is not None:
            setup(given[name])
    model.train()
    if adapter_name(given) is not None:
        train_adapter_alone(model, given.adapter)
    warn_of_frozen_encoder(model)
    return model


def recogniser_tokenizer(cfg: DictConfig) -> object:
    """The tokenizer with which a config that starts from a file will train.

    Args:
        cfg: as in `restore_to_finetune`.
    Raises:
        ConfigError: as in `restore_to_finetune`.
    Examples:
        >>> recogniser_tokenizer(OmegaConf.create({"init_from_nemo_model": "/no/model.nemo", "model": {}}))
        Traceback (most recent call last):
        nemo_comat.config.ConfigError: init_from_nemo_model: /no/model.nemo does not exist; give a .nemo file.
    """
    return _restore(cfg)[0]._text_tokenizer()


def _restore(cfg: DictConfig, trainer: Trainer | None = None) -> tuple[ModelPT, DictConfig]:
    """Model without data, of the labels that it is to have, and the config's model block with what the file gives."""
    check_start(cfg)
    path, connector = find_file(cfg)
    own = connector.read_config(path)
    cls, given = class_for(own.target, path), complete_from(cfg, own)
    check_kind(cls, given, path)
    check_sample_rates(own, given)
    keep_feedback(own, given)
    warn_of_masks(own, given)
    if adapter_name(given) is not None:
        own.encoder._target_ = adapter_class(own.encoder._target_)
    model = cls.restore_from(
        path,
        override_config_path=joined(own, given),
        map_location="cpu",
        strict=cfg.get("init_strict", True),
        trainer=trainer,
        save_restore_connector=connector,
    )
    change_labels(model, given)
    return model, given


def find_file(cfg: DictConfig) -> tuple[str, FinetuneConnector]:
    """Path of the file, or of its unpacked folder, and what reads it.

    Examples:
        >>> find_file(OmegaConf.create({"init_from_nemo_model": "model.nemo"}))[0]
        'model.nemo'
    """
    connector = FinetuneConnector()
    path = cfg.get("init_from_nemo_model")
    if path is None:
        path = ASRModel.from_pretrained(cfg.init_from_pretrained_model, return_model_file=True)
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        connector.model_extracted_dir = path
    return path, connector


def class_for(target: str, path: str) -> type[ComatMixin]:
    """Class of ours for a file whose config names a target class, which is imported; a descendant of ours is itself.

    Raises:
        ConfigError: COMAT trains no such class.
    Examples:
        >>> class_for("nemo.collections.asr.models.EncDecCTCModel", "m.nemo").__name__
        'ComatCTCModel'
    """
    found, why = None, ""
    try:
        found = import_class_by_path(target)
    except Exception as error:  # of the user's own module
        why = f", which cannot be imported ({error})"
    if isinstance(found, type) and issubclass(found, ComatMixin):
        return found
    # NeMo would make a descendant of its classes what it is, without COMAT
    if found in CLASSES:
        return CLASSES[found]
    trained = ", ".join(cls.__name__ for cls in CLASSES)
    raise ConfigError(f"{path} holds a {target}{why}; COMAT trains {trained}, and descendants of its own classes.")


def check_kind(cls: type[ComatMixin], given: DictConfig, path: str) -> None:
    """Raises ConfigError where a file of characters is to get a tokenizer, or one of subwords labels.

    Examples:
        >>> given = OmegaConf.create({"char_labels": {"update_labels": True}})
        >>> check_kind(ComatCTCModelBPE, given, "m.nemo")
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


def check_sample_rates(own: DictConfig, given: DictConfig) -> None:
    """Raises ConfigError where data would come at another sample rate than the file's features are made at.

    Args:
        own: the file's model config. given: the config's model block.
    Examples:
        >>> own = OmegaConf.create({"preprocessor": {"sample_rate": 16000}})
        >>> check_sample_rates(own, OmegaConf.create({"train_ds": {"sample_rate": 8000}}))
        Traceback (most recent call last):
        nemo_comat.config.ConfigError: model.train_ds.sample_rate is 8000, but the file's features are of 16000 Hz; ...
    """
    expected = OmegaConf.select(joined(own, given), "preprocessor.sample_rate")
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
            changes = blocks and has_class(own[key]) and "_target_" not in value
            own[key] = OmegaConf.merge(own[key], value) if changes else value
    return own


def has_class(block: DictConfig) -> bool:
    """Whether a block, or one right in it, is what a class is made from.

    Examples:
        >>> has_class(OmegaConf.create({"ctc_loss_weight": 0.3, "decoder": {"_target_": "D"}}))
        True
    """
    return "_target_" in block or any(OmegaConf.is_dict(part) and "_target_" in part for part in block.values())


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


def change_labels(model: ModelPT, given: DictConfig) -> None:
    """Gives the model the config's new tokenizer or labels, and a new decoder with them.

    Examples:
        >>> from unittest.mock import Mock
        >>> model = Mock()
        >>> change_labels(model, OmegaConf.create({"char_labels": {"update_labels": True, "labels": ["a", "b"]}}))
        >>> model.change_vocabulary.call_args.kwargs, model.cfg.labels
        ({'new_vocabulary': ['a', 'b']}, ['a', 'b'])
    """
    tokenizer: Any = given.get("tokenizer") or {}
    labels: Any = given.get("char_labels") or {}
    if tokenizer.get("update_tokenizer"):
        model.change_vocabulary(new_tokenizer_dir=tokenizer.dir, new_tokenizer_type=tokenizer.type)
    if labels.get("update_labels"):
        model.change_vocabulary(new_vocabulary=list(labels.labels))
        # NeMo changes them in the datasets that the file had, and new ones are given these
        model.cfg.labels = list(labels.labels)


def adapter_class(target: str) -> str:
    """Import path of the class with adapters for an encoder's class.

    Examples:
        >>> adapter_class("nemo.collections.asr.modules.ConformerEncoder").rpartition(".")[2]
        'ConformerEncoderAdapter'
    """
    found = get_registered_adapter(get_class(target))
    if found is None:
        raise ConfigError(f"NeMo has no adapters for {target}; leave model.adapter.adapter_name=null.")
    return found.adapter_class_path


def train_adapter_alone(model: ModelPT, adapter: DictConfig) -> None:
    """Adds an adapter to the encoder and freezes all but it and the COMAT part, as NeMo's script does.

    Raises:
        ConfigError: the adapter's width is not given, and the encoder does not say it.
    Examples:
        >>> from types import SimpleNamespace as Stand
        >>> adapter = OmegaConf.create({"adapter_name": "few", "in_features": None})
        >>> train_adapter_alone(Stand(cfg=OmegaConf.create({"encoder": {}})), adapter)
        Traceback (most recent call last):
        nemo_comat.config.ConfigError: model.adapter.in_features is missing; give the width of the encoder's blocks.
    """
    adapter = adapter.copy()
    name = adapter.pop("adapter_name")
    if adapter.in_features is None:
        adapter.in_features = model.cfg.encoder.get("d_model")
    if adapter.in_features is None:
        raise ConfigError("model.adapter.in_features is missing; give the width of the encoder's blocks.")
    model.add_adapter(name, cfg=adapter)
    model.set_enabled_adapters(enabled=False)
    model.set_enabled_adapters(name, enabled=True)
    model.freeze()
    model.train()
    model.unfreeze_enabled_adapters()
    if model.comat is not None:
        model.comat.requires_grad_(True)
        for fed in model.fed_projections():  # at inference too, so they stay the file's
            fed.requires_grad_(False)


def warn_of_frozen_encoder(model: ModelPT) -> None:
    """Says that COMAT teaches nothing where the encoder is frozen to the end.

    Examples:
        >>> from unittest.mock import Mock, patch
        >>> model = Mock(cfg={"freeze_updates": {"enabled": True, "modules": {"encoder": -1}}})
        >>> with patch.object(logging, "warning", lambda sentence: print(sentence.partition(":")[0])):
        ...     warn_of_frozen_encoder(model)
        model.freeze_updates freezes the encoder to the end
    """
    freezing = model.cfg.get("freeze_updates") or {}
    frozen: Any = (freezing.get("modules") or {}).get("encoder")
    to_the_end = frozen == -1 or OmegaConf.is_list(frozen) and frozen[-1] == -1
    if model.comat is not None and freezing.get("enabled") and to_the_end:
        logging.warning(
            "model.freeze_updates freezes the encoder to the end: COMAT, which teaches the encoder, changes nothing in "
            "the recogniser; free the encoder after some steps, or give model.comat.weight=0."
        )
