"""InterCTC is NeMo's own; what is here says before training that a layer of it does not exist."""

from nemo.core.classes.mixins import AccessMixin
from omegaconf import DictConfig
from torch import nn

from nemo_comat.config import ConfigError


def check_interctc(cfg: DictConfig, encoder: nn.Module) -> None:
    """Raises where InterCTC names a layer that the encoder lacks or does not give; NeMo says so after the first step.

    Args:
        cfg: the model's config.
        encoder: its encoder; one whose layers cannot be counted is left to NeMo.
    Raises:
        ConfigError: `interctc.apply_at_layers` names a layer that the encoder does not have, or one of an encoder that
            does not give its layers' outputs.
    Examples:
        >>> from omegaconf import OmegaConf
        >>> cfg = OmegaConf.create({"interctc": {"loss_weights": [0.3], "apply_at_layers": [0]}})
        >>> check_interctc(cfg, nn.LSTM(2, 2))
        Traceback (most recent call last):
        nemo_comat.config.ConfigError: model.interctc.apply_at_layers is [0], but LSTM does not give its layers' ...
    """
    interctc = cfg.get("interctc") or {}
    layers = list(interctc.get("apply_at_layers") or [])
    if layers and not any(isinstance(module, AccessMixin) for module in encoder.modules()):
        raise ConfigError(
            f"model.interctc.apply_at_layers is {layers}, but {type(encoder).__name__} does not give its layers' "
            "outputs; empty lists here and in model.interctc.loss_weights turn InterCTC off."
        )
    # a Conformer's layers, or a convolutional encoder's blocks
    depth = len(getattr(encoder, "layers", None) or getattr(encoder, "encoder", None) or ())
    if depth and any(layer not in range(depth) for layer in layers):
        raise ConfigError(
            f"model.interctc.apply_at_layers is {layers}, but {type(encoder).__name__} has layers 0 to {depth - 1}; "
            f"the middle one is [{(depth - 1) // 2}], and empty lists here and in model.interctc.loss_weights turn "
            "InterCTC off."
        )
