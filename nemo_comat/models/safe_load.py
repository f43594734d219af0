"""`.ckpt` files are read without running code that is pickled in them.

Lightning 2.4 unpickles a `.ckpt` with all that it holds. PyTorch's own `weights_only` reading refuses every one of
NeMo's, for the settings in them; so do NeMo's `init_from_ptl_ckpt` and, in 2.7, its `save_best_model`, which read that
way. Both are mended by naming the settings' types, which do nothing when they are read, to PyTorch.
"""

import pickle
import re
import sys
import typing
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import omegaconf
import torch
from lightning.fabric.utilities.cloud_io import _load

PLAIN = (int, float, bool, complex, str, bytes, list, tuple, dict, set, defaultdict, OrderedDict)
TYPING = [getattr(typing, name) for name in ("Any", "Dict", "List", "Optional", "Tuple", "Union")]
# settings among NeMo's dataclasses; others open files when they are made
SETTINGS = ("Config", "Params", "Item")


def settings_types() -> list[Any]:
    """The types of what NeMo's checkpoints hold beside tensors, as far as they are imported.

    Returns:
        list of types and of NumPy's functions that make arrays.
    Examples:
        >>> omegaconf.DictConfig in settings_types(), Path in settings_types()
        (True, False)
    """
    numpy_types: set[Any] = {type(np.dtype(code)) for code in np.typecodes["All"]}
    makers = {value.__reduce__()[0] for value in (np.zeros(1), np.float64(0))}
    numpy_types |= {np.ndarray, np.dtype, *makers}
    omegaconf_types = {omegaconf.base.Metadata, omegaconf.base.ContainerMetadata, *_descendants(omegaconf.base.Node)}
    return [*PLAIN, *TYPING, *numpy_types, *omegaconf_types, *_nemo_settings()]


def allow_settings() -> None:
    """Names `settings_types` to `torch.load(weights_only=True)`, for the whole process.

    Examples:
        >>> allow_settings()
        >>> omegaconf.DictConfig in torch.serialization.get_safe_globals()
        True
    """
    torch.serialization.add_safe_globals(settings_types())


def check_checkpoint(path: str | Path | IO[bytes]) -> None:
    """Reads a checkpoint without its weights' values, to see that it holds tensors and settings alone.

    Args:
        path: path, URL or file object.
    Raises:
        pickle.UnpicklingError: it holds more than that, or is cut short.
        FileNotFoundError: there is none.
    Examples:
        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile(suffix=".ckpt") as file:
        ...     torch.save({"state_dict": {}, "callback": print}, file.name)
        ...     check_checkpoint(file.name)
        Traceback (most recent call last):
        _pickle.UnpicklingError: ... is no whole checkpoint of weights and settings alone (it asks for ...
    """
    allow_settings()
    try:
        # no values are read for the "meta" device
        _load(path, map_location="meta", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        # damaged files end in errors of many kinds
        asked = re.search(r"nsupported (?:global: )?GLOBAL (\S+)", str(error))
        reason = f"it asks for {asked[1]}" if asked else type(error).__name__
        raise pickle.UnpicklingError(
            f"{path} is no whole checkpoint of weights and settings alone ({reason}); copy or download it again, or, "
            "if you trust who made it, give weights_only=False."
        ) from error
    if hasattr(path, "seek"):
        path.seek(0)


def _descendants(cls: type[Any]) -> set[type[Any]]:
    return {cls}.union(*(_descendants(child) for child in cls.__subclasses__()))


def _nemo_settings() -> Iterator[type[Any]]:
    for name, module in list(sys.modules.items()):
        if name.startswith("nemo."):
            for cls in list(vars(module).values()):
                # some of NeMo's stand-ins for what is not installed raise when they are asked for an attribute
                own = vars(cls) if isinstance(cls, type) else {}
                if "__dataclass_fields__" in own and own["__module__"] == name and cls.__name__.endswith(SETTINGS):
                    yield cls
