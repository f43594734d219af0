"""Leaving nemo_comat: the plain CTC model in a ``.nemo`` file of ours.

Graphs (ONNX, TorchScript) are made by NeMo's own `export`.
"""

import tarfile
from pathlib import Path
from typing import Any

from nemo.collections.asr.models import ASRModel
from omegaconf import DictConfig

from nemo_comat.config import read_comat_config
from nemo_comat.models.checkpoint import ComatSaveRestoreConnector
from nemo_comat.output import PathLike


class ExportError(ValueError):
    """What was asked for cannot be exported; the message says what came and what to do."""


def check_nemo_file(file: PathLike) -> None:
    """Raises ExportError where a path is not a ``.nemo`` file's.

    Args:
        file: path.
    Raises:
        ExportError: there is no such file, or it is another kind of file.
    Examples:
        >>> check_nemo_file("/no/model.nemo")
        Traceback (most recent call last):
        nemo_comat.models.export.ExportError: /no/model.nemo does not exist; give a .nemo file.
    """
    if not Path(file).is_file() or not tarfile.is_tarfile(file):
        found = "is no archive" if Path(file).exists() else "does not exist"
        raise ExportError(f"{file} {found}; give a .nemo file.")


def plain_model(file: PathLike) -> Any:
    """The plain CTC model in a ``.nemo`` file, as NeMo alone opens it: a class of NeMo's, none of our weights or keys.

    Args:
        file: path of a dual ``.nemo`` file of ours, or of any CTC model of NeMo's.
    Returns:
        the model on the CPU, in evaluation mode; its `save_to` and `export` are NeMo's own.
    Raises:
        ExportError: there is no such file, or it is another kind of file.
    Examples:
        >>> plain_model("/no/model.nemo")
        Traceback (most recent call last):
        nemo_comat.models.export.ExportError: /no/model.nemo does not exist; give a .nemo file.
    """
    block = _block_in(file)
    if block is not None and block.get("feedback"):
        raise ExportError(
            f"{file} was trained with comat.feedback={block.feedback}, so it holds no plain CTC model; open it with "
            "nemo_comat, whose `export` writes ONNX and TorchScript of the whole."
        )
    return ASRModel.restore_from(str(file), map_location="cpu").eval()


def _block_in(file: PathLike) -> DictConfig | None:
    """The ``comat`` block in a file as it stands there."""
    check_nemo_file(file)
    block: DictConfig | None = ComatSaveRestoreConnector().read_config(str(file)).get("comat")
    return block


def comat_block(file: PathLike) -> DictConfig | None:
    """The complete ``comat`` block that a ``.nemo`` file was trained with.

    Args:
        file: path of the file.
    Returns:
        DictConfig, or None where there is none or its weight is 0.
    Raises:
        ExportError: there is no such file, or it is another kind of file.
    Examples:
        >>> comat_block("/no/model.nemo")
        Traceback (most recent call last):
        nemo_comat.models.export.ExportError: /no/model.nemo does not exist; give a .nemo file.
    """
    block = _block_in(file)
    block = None if block is None else read_comat_config(block)
    return block if block is not None and block.weight > 0 else None
