"""Starts from a trained model: its ``.nemo`` file gives architecture, tokenizer and weights, a config the rest.

The keys are those of NeMo's own scripts for fine-tuning and for adapters.
"""

import os
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from nemo.collections.asr.models import ASRModel, EncDecCTCModel, EncDecCTCModelBPE, EncDecHybridRNNTCTCBPEModel
from nemo.core.classes import ModelPT
from nemo.utils import logging
from nemo.utils.model_utils import import_class_by_path
from omegaconf import DictConfig, OmegaConf

from nemo_comat import ComatCTCModel, ComatCTCModelBPE, ComatHybridRNNTCTCModelBPE, ComatMixin
from nemo_comat.config import ConfigError
from nemo_comat.models.adapters import adapter_class, train_adapter_alone
from nemo_comat.models.checkpoint import ComatSaveRestoreConnector
from nemo_comat.models.finetune_config import (
    adapter_name,
    check_kind,
    check_sample_rates,
    check_start,
    complete_from,
    joined,
    keep_feedback,
    keep_labels,
    warn_of_masks,
)

# a class of NeMo's, and ours for files of it
CLASSES = {
    EncDecHybridRNNTCTCBPEModel: ComatHybridRNNTCTCModelBPE,
    EncDecCTCModelBPE: ComatCTCModelBPE,
    EncDecCTCModel: ComatCTCModel,
}


class FinetuneConnector(ComatSaveRestoreConnector):
    """Restores a model whose COMAT may differ from the file's: parts that do begin anew, and the log says so."""

    def load_instance_with_state_dict(self, instance: Any, state_dict: Mapping[str, Any], strict: bool) -> None:
        """As NeMo's; what does not fit of the file's COMAT is left out."""
        super().load_instance_with_state_dict(instance, instance.to_begin_with(state_dict), strict)


def restore_to_finetune(cfg: DictConfig, trainer: Trainer | None = None) -> ModelPT:
    """The model of a file, ready to be trained on a config's data.

    Args:
        cfg: the whole config, with ``init_from_nemo_model`` or ``init_from_pretrained_model`` and a ``model`` block. A
            key of that block that is null is the file's, but for `NULLABLE`; a block changes keys of the file's block,
            but for `REPLACED` and one of another class; these, and every other key, replace the file's.
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
    keep_labels(own)
    keep_feedback(own, given)
    warn_of_masks(own, given)
    if adapter_name(given) is not None:
        own.encoder._target_ = adapter_class(own.encoder._target_)
    both = joined(own, given)
    check_sample_rates(own, given, both)
    model = cls.restore_from(
        path,
        override_config_path=both,
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
