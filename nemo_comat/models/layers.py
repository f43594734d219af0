"""The layers that an encoder counts, which may be several modules each."""

from typing import Any

from torch import nn


def layers_of(encoder: Any, cfg: Any) -> list[list[nn.Module]]:
    """The modules of each of an encoder's layers, in the order in which they run; an empty list where it lists none.

    Args:
        encoder: of a NeMo model; its `layers` are a list of modules. cfg: its config, whose ``n_layers`` counts them.
    Examples:
        >>> encoder = nn.Module()
        >>> encoder.layers = nn.ModuleList([nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2), nn.Dropout()])
        >>> [len(layer) for layer in layers_of(encoder, {"n_layers": 2})]
        [2, 2]
    """
    modules = list(getattr(encoder, "layers", ()))
    count = cfg.get("n_layers") or len(modules)
    # an RNNEncoder has an LSTM, a norm and a dropout for each layer
    size = len(modules) // count if modules and len(modules) % count == 0 else 1
    return [modules[i : i + size] for i in range(0, len(modules), size)]
