"""Modules that NeMo freezes for some updates: looked at before training, where NeMo looks at the first batch."""

from typing import Any

from nemo_comat.config import ConfigError


def check_freeze_updates(model: Any) -> None:
    """Raises where ``model.freeze_updates`` names what NeMo cannot freeze.

    Args:
        model: a NeMo model.
    Raises:
        ConfigError: no module is named, or one that the model lacks, or one without `freeze`, as what is ours.
    Examples:
        >>> from types import SimpleNamespace
        >>> given = {"enabled": True, "modules": {"encodr": 100}}
        >>> check_freeze_updates(SimpleNamespace(cfg={"freeze_updates": given}, encoder=SimpleNamespace(freeze=print)))
        Traceback (most recent call last):
        nemo_comat.config.ConfigError: model.freeze_updates.modules has encodr, ...
    """
    given = model.cfg.get("freeze_updates") or {}
    if not given.get("enabled"):
        return
    if not given.get("modules"):
        raise ConfigError(
            "model.freeze_updates.enabled is true, but model.freeze_updates.modules names none; give a module and its "
            "updates, such as model.freeze_updates.modules.encoder=500."
        )
    for name in given["modules"]:
        if not hasattr(getattr(model, name, None), "freeze"):
            raise ConfigError(
                f"model.freeze_updates.modules has {name}, which NeMo cannot freeze in this model; name modules of "
                "NeMo's, such as encoder or decoder."
            )
