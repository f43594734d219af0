"""Checks a NeMo manifest before training, so that a bad row is found at the start and not after hours."""

import json
from pathlib import Path

from nemo.collections.common.parts.preprocessing.manifest import get_full_path
from nemo.utils import logging


class ManifestError(ValueError):
    """A manifest, or an audio file that it names, is missing or unreadable; the message says which."""


def check_dataset(dataset, name):
    """Checks the manifests of one ``*_ds`` block of a NeMo config; tarred and Lhotse data are left to their readers.

    Args:
        dataset: DictConfig with manifest_filepath: a path, several joined by commas, a list of them, or None.
        name: how messages call it, such as "model.train_ds".
    Raises:
        ManifestError: a manifest is missing, a line is no JSON object, or an audio file is missing.
    """
    if dataset.get("is_tarred") or dataset.get("use_lhotse") or dataset.get("tarred_audio_filepaths"):
        return
    for path in manifest_paths(dataset):
        check_manifest(path, name)


def manifest_paths(dataset):
    """Paths that a ``*_ds`` block's manifest_filepath names: one, several joined by commas, or nested lists of them."""
    paths = dataset.get("manifest_filepath") or []
    return paths.split(",") if isinstance(paths, str) else list(_flat(paths))


def check_manifest(path, name="manifest"):
    """Checks one manifest; warns of empty transcripts, whose rows train CTC but take no part in the transfer.

    Args:
        path: the manifest, one JSON object a line; audio paths are relative to it.
        name: how messages call it.
    Raises:
        ManifestError: as `check_dataset`.
    """
    if not Path(path).is_file():
        raise ManifestError(
            f"{name}.manifest_filepath={path} does not exist (seen from {Path.cwd()}); give a NeMo manifest's path."
        )
    empty = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                row = _read_row(line, path, number)
                _check_audio(row, path, number)
                if "text" in row and not str(row["text"]).strip():
                    empty.append(number)
    if empty:
        logging.warning(
            f"{path} has {len(empty)} empty transcripts, the first in line {empty[0]}: they train CTC towards silence "
            "and stay out of the transfer loss; remove the lines if that is not meant."
        )


def _read_row(line, path, number):
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ManifestError(f"{path} line {number} is not JSON ({error}); each line must be one JSON object.") from None
    if not isinstance(row, dict):
        raise ManifestError(f"{path} line {number} is {type(row).__name__}, not a JSON object.")
    return row


def _check_audio(row, path, number):
    audio = row.get("audio_filepath") or row.get("audio_filename")
    if not isinstance(audio, str):
        if row.get("audio_filepath") is None:
            raise ManifestError(f"{path} line {number} has no audio_filepath; give the path of its audio file.")
        return
    if not Path(get_full_path(audio, path)).is_file():
        raise ManifestError(
            f"{path} line {number}: audio file {audio} does not exist; paths are relative to the manifest's folder. "
            "Mend the path or remove the line."
        )


def _flat(paths):
    for path in paths:
        if isinstance(path, str):
            yield path
        else:
            yield from _flat(path)
