"""The folder of a tokenizer, looked at before NeMo reads it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemo_comat.config import ConfigError

# by type, what NeMo reads in the folder where the block names no file of its own
FILES = {"bpe": "tokenizer.model", "wpe": "vocab.txt"}
OWN_FILES = ("model_path", "vocab_path")


@contextmanager
def tokenizer_errors() -> Iterator[None]:
    """Turns what NeMo says of a tokenizer's block that it cannot use into a ConfigError.

    Examples:
        >>> with tokenizer_errors():
        ...     raise ValueError("`tokenizer.type` cannot be None")
        Traceback (most recent call last):
        nemo_comat.config.ConfigError: model.tokenizer cannot be used: `tokenizer.type` cannot be None; ...
    """
    try:
        yield
    except ValueError as error:
        raise ConfigError(
            f"model.tokenizer cannot be used: {' '.join(str(error).split()).rstrip('.')}; tokenizers by "
            "examples/build_tokenizer.py have model.tokenizer.type=bpe."
        ) from error


def check_tokenizer_folder(block: Mapping[str, Any], key: str = "model.tokenizer.dir") -> None:
    """Raises where the folder that a tokenizer's block names, or the file in it, is not there.

    Args:
        block: as NeMo's ``model.tokenizer``, or one of its ``langs``. key: how the message calls its ``dir``.
    Raises:
        ConfigError: says what is missing.
    Examples:
        >>> check_tokenizer_folder({"dir": "/no/tokenizer", "type": "bpe"})
        Traceback (most recent call last):
        nemo_comat.config.ConfigError: model.tokenizer.dir=/no/tokenizer is no folder (seen from ...
    """
    folder, kind = block.get("dir"), str(block.get("type")).lower()
    if not isinstance(folder, str) or "://" in folder or any(block.get(own) is not None for own in OWN_FILES):
        return
    advice = "give the folder that examples/build_tokenizer.py named"
    if not Path(folder).is_dir():
        raise ConfigError(f"{key}={folder} is no folder (seen from {Path.cwd()}); {advice}.")
    if kind in FILES and not Path(folder, FILES[kind]).exists():
        raise ConfigError(f"{key}={folder} has no {FILES[kind]}, which a tokenizer of type {kind} is in; {advice}.")
