"""Which ``*_ds`` blocks of a training config name data, by which keys, and whether NeMo found data there.

Which keys name data is NeMo's to say, and differs from reader to reader. So a key does whose value is a text, a list or
a block, and not that of a config known to name none. Numbers and switches are options of data that something else
names.
"""

from collections.abc import Sequence
from numbers import Real
from typing import Any

from nemo.utils import logging
from omegaconf import DictConfig, OmegaConf

from nemo_comat.config import ConfigError
from nemo_comat.models.data import LOADERS


def has_value(block: DictConfig, key: str) -> bool:
    """True where a key is there, and neither ??? nor null.

    Examples:
        >>> block = OmegaConf.create({"a": "???", "b": None, "c": 0})
        >>> [has_value(block, key) for key in "abcd"]
        [False, False, True, False]
    """
    return not OmegaConf.is_missing(block, key) and block.get(key) is not None


def naming_keys(cfg: DictConfig, name: str, known: DictConfig) -> list[str]:
    """Keys of a ``*_ds`` block, which may be null or absent, by which it may name data.

    Args:
        cfg: the whole config. name: of the block.
        known: a model block that names no data; what a block has from there, or from the model's labels, names none.
    Examples:
        >>> cfg = OmegaConf.create({"model": {"train_ds": {"cuts_path": "a.jsonl", "use_lhotse": True}}})
        >>> naming_keys(cfg, "train_ds", OmegaConf.create())
        ['cuts_path']
    """
    dataset, plain = cfg.model.get(name) or OmegaConf.create(), known.get(name) or {}
    given = {str(key): dataset[key] for key in dataset if has_value(dataset, str(key))}
    options = {key: (plain.get(key), cfg.model.get("labels")) for key in given}
    found = [key for key, value in given.items() if not isinstance(value, Real) and value not in options[key]]
    # Lhotse's switch, which says that blocks name the data
    return found + ["multi_config"] * bool(dataset.get("multi_config"))


def complete_datasets(cfg: DictConfig, known: DictConfig) -> list[str]:
    """Names of the ``*_ds`` blocks that name data; where one does, checks that all that must do.

    Args:
        cfg, known: as in `naming_keys`. In cfg a manifest_filepath that is ??? becomes null where other keys name the
            data, for NeMo's readers look at all keys.
    Raises:
        ConfigError: a block that must name data does not.
    Examples:
        >>> cfg = OmegaConf.create({"model": {"train_ds": {}, "test_ds": {"manifest_filepath": "test.json"}}})
        >>> complete_datasets(cfg, OmegaConf.create())
        Traceback (most recent call last):
        nemo_comat.config.ConfigError: model.test_ds names data, model.train_ds does not; ...
    """
    naming = {name: naming_keys(cfg, name, known) for name in LOADERS}
    named = [name for name in LOADERS if naming[name]]
    if not named:
        return named
    first, *_ = named
    keys = ", ".join(f"model.{first}.{key}" for key in naming[first])
    for name in LOADERS:
        dataset = cfg.model.get(name)
        if name in named and OmegaConf.is_missing(dataset, "manifest_filepath"):
            dataset.manifest_filepath = None
        elif dataset is not None and name not in named:
            if name == "train_ds":
                raise ConfigError(
                    f"model.{first} names data, model.train_ds does not; give model.train_ds.manifest_filepath=FILE "
                    "too, or neither of them to train on the embedded corpus."
                )
            if "manifest_filepath" not in dataset:  # ???, or no such key; null is NeMo's way to have no data
                raise ConfigError(
                    f"model.{name}.manifest_filepath is missing; give model.{name}.manifest_filepath=FILE, "
                    f"or model.{name}=null to do without. (The embedded corpus is not used where {keys} may name data.)"
                )
    if cfg.model.get("train_ds") is None:
        raise ConfigError(
            f"model.train_ds is null, though model.{first} names data; give model.train_ds.manifest_filepath=FILE."
        )
    return named


def finds_data(cfg: DictConfig, model: Any, name: str, known: DictConfig) -> bool:
    """True where a model of a config found data by a ``*_ds`` block, or is to look for them later (defer_setup).

    Args:
        cfg, name, known: as in `naming_keys`. model: with loaders as NeMo's models keep them.
    Examples:
        >>> from types import SimpleNamespace
        >>> cfg = OmegaConf.create({"model": {"test_ds": {"manifest_filepath": "test.json"}}})
        >>> finds_data(cfg, SimpleNamespace(_test_dl=None), "test_ds", OmegaConf.create())
        False
    """
    loaders = getattr(model, LOADERS[name], None)
    loaders = loaders if isinstance(loaders, Sequence) and loaders else [loaders]
    there = all(loader is not None and not isinstance(loader, Sequence) for loader in loaders)
    return bool(naming_keys(cfg, name, known)) and (there or bool(cfg.model[name].get("defer_setup")))


def check_loaders(cfg: DictConfig, model: Any, known: DictConfig) -> None:
    """Raises where NeMo, which only warns, found nothing to train on; says where it found nothing else to read.

    Args:
        cfg, model, known: as in `finds_data`.
    Raises:
        ConfigError: names the keys by which nothing was found.
    Examples:
        >>> from types import SimpleNamespace
        >>> cfg = OmegaConf.create({"model": {"train_ds": {"cuts_path": "a.jsonl"}}})
        >>> check_loaders(cfg, SimpleNamespace(_train_dl=None), OmegaConf.create())
        Traceback (most recent call last):
        nemo_comat.config.ConfigError: NeMo finds no data by model.train_ds (by its cuts_path); ...
    """
    for name in LOADERS:
        keys = naming_keys(cfg, name, known)
        if keys and not finds_data(cfg, model, name, known):
            said = f"NeMo finds no data by model.{name}"
            if name == "train_ds":
                raise ConfigError(
                    f"{said} (by its {', '.join(keys)}); give model.train_ds.manifest_filepath=FILE, or what Lhotse's "
                    "loaders read with ++model.train_ds.use_lhotse=true."
                )
            logging.warning(f"{said}: the run does without; give model.{name}.manifest_filepath=FILE if it should not.")
