"""Adapters, which are trained in the place of the encoder that they are put into."""

from nemo.core.classes import ModelPT
from nemo.core.classes.mixins.adapter_mixins import get_registered_adapter
from nemo.utils.model_utils import import_class_by_path
from omegaconf import DictConfig, open_dict

from nemo_comat.config import ConfigError


def adapter_class(target: str) -> str:
    """Import path of the class with adapters for an encoder's class.

    Examples:
        >>> adapter_class("nemo.collections.asr.modules.ConformerEncoder").rpartition(".")[2]
        'ConformerEncoderAdapter'
    """
    found = get_registered_adapter(import_class_by_path(target))
    if found is None:
        raise ConfigError(f"NeMo has no adapters for {target}; leave model.adapter.adapter_name=null.")
    return found.adapter_class_path


def train_adapter_alone(model: ModelPT, adapter: DictConfig) -> None:
    """Adds an adapter to the encoder and freezes all but it and the COMAT part, as NeMo's script does.

    Raises:
        ConfigError: the adapter's width is not given, and the encoder does not say it.
    Examples:
        >>> from types import SimpleNamespace as Stand
        >>> from omegaconf import OmegaConf
        >>> adapter = OmegaConf.create({"adapter_name": "few"})
        >>> train_adapter_alone(Stand(cfg=OmegaConf.create({"encoder": {}})), adapter)
        Traceback (most recent call last):
        nemo_comat.config.ConfigError: model.adapter.in_features is missing; give the width of the encoder's blocks.
    """
    adapter = adapter.copy()
    name = adapter.pop("adapter_name")
    with open_dict(adapter):
        adapter.in_features = adapter.get("in_features") or model.cfg.encoder.get("d_model")
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
