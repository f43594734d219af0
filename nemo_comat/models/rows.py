"""Reads NeMo manifests by NeMo's own reader, and says in one sentence which line it refuses."""

import functools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, TextIO, cast

import soundfile
from nemo.collections.asr.data.audio_to_text import expand_sharded_filepaths
from nemo.collections.common.parts.preprocessing.manifest import item_iter
from nemo.utils.data_utils import DataStoreObject, is_datastore_path

from nemo_comat.models.reference import manifest_text
from nemo_comat.output import PathLike

# what Python reads a byte as that is no text in a file's encoding
NO_TEXT = re.compile("[\udc80-\udcff]")


class ManifestError(ValueError):
    """A manifest, or an audio file that it names, is missing or unreadable; the message says which."""


class Row(NamedTuple):
    """One row of a manifest: where it is, the JSON object as it stands, and what NeMo's reader makes of it."""

    where: str
    given: dict[str, Any]
    item: dict[str, Any]


def read_rows(path: PathLike) -> Iterator[Row]:
    """Rows of one manifest, as NeMo's reader gives them.

    Args:
        path: as NeMo takes it: a file, "~" allowed, or an object in a data store.
    Yields:
        Row; its item has `audio_file` (a path, or a list of them), `duration`, `text`, `offset` and NeMo's other keys,
        whichever of NeMo's spellings the manifest has.
    Raises:
        ManifestError: the file or one of its lines cannot be read; the message names it.
    Examples:
        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w", suffix=".json") as file:
        ...     print('{"audio_filename": "/a.wav", "duration": 1.5, "text": "a dog"}', file=file, flush=True)
        ...     [(row.item["audio_file"], row.item["text"]) for row in read_rows(file.name)]
        [('/a.wav', 'a dog')]
    """
    path = str(path)
    items = item_iter(path)
    for number, given in read_objects(path):
        where = f"{path} line {number}"
        try:
            item = next(items)
        except Exception as error:  # NeMo's reader raises whatever a row's values bring about
            raise ManifestError(f"{where} {_refusal(error, given)}") from error
        yield Row(where, given, item)


def read_texts(path: PathLike) -> Iterator[str]:
    """Transcripts of one manifest, a string for each row, "" where it has none; rows need neither audio nor duration.

    Args:
        path: as in `read_rows`.
    Raises:
        ManifestError: as `read_objects`; also where a text is neither a string, null nor a list of spans.
    Examples:
        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w", suffix=".json") as file:
        ...     print('{"text": "a dog"}', '{}', file=file, flush=True, sep=chr(10))
        ...     list(read_texts(file.name))
        ['a dog', '']
    """
    for number, given in read_objects(path):
        try:
            yield manifest_text([_text_of(given)])
        except Exception as error:  # of a file, or of spans that are none
            text = short(given.get("text", given.get("text_filepath")))
            why = f"{type(error).__name__}: {error}"
            raise ManifestError(
                f"{path} line {number} has a text that cannot be read, {text} ({why}); give a string."
            ) from error


def _text_of(given: Mapping[str, Any]) -> Any:
    """The text of a row by the keys that NeMo's reader looks for, in its order."""
    if "text" in given or "text_filepath" not in given:
        return given.get("text", given.get("normalized_text"))
    with open(given["text_filepath"]) as file:
        return file.read().replace("\n", "")


def read_objects(path: PathLike) -> Iterator[tuple[int, dict[str, Any]]]:
    """Pairs of line number and JSON object of one manifest, whatever its keys are; empty lines are left out.

    Args:
        path: as in `read_rows`.
    Raises:
        ManifestError: the file is missing, a folder or no text, or a line is no JSON object.
    Examples:
        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w", suffix=".json") as file:
        ...     print('{"text": "a dog"}', file=file, flush=True)
        ...     list(read_objects(file.name))
        [(1, {'text': 'a dog'})]
    """
    for number, line in read_lines(path):
        if line:
            yield number, parse_object(line, f"{path} line {number}")


def parse_object(line: str, where: str) -> dict[str, Any]:
    """The JSON object of a line; where: how messages call it. Raises ManifestError where it is none.

    Examples:
        >>> parse_object('["a dog"]', "train.json line 1")
        Traceback (most recent call last):
        nemo_comat.models.rows.ManifestError: train.json line 1 is list, not a JSON object.
    """
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ManifestError(f"{where} is not JSON ({error}); each line must be one JSON object.") from None
    if not isinstance(row, dict):
        raise ManifestError(f"{where} is {type(row).__name__}, not a JSON object.")
    return row


def read_lines(path: PathLike) -> Iterator[tuple[int, str]]:
    """Pairs of number and stripped text of a file's lines; raises ManifestError, as `read_objects`.

    Examples:
        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w", suffix=".json") as file:
        ...     print(" a dog ", file=file, flush=True)
        ...     list(read_lines(file.name))
        [(1, 'a dog')]
    """
    # as NeMo opens it, in the locale's encoding
    with open_manifest(path) as lines:
        bad = next((number for number, line in enumerate(lines, 1) if NO_TEXT.search(line)), 0)
        if bad:
            raise ManifestError(
                f"{path} line {bad} is not {lines.encoding.upper()}; save the file in {lines.encoding.upper()}, such "
                f"as by `iconv -f LATIN1 -t {lines.encoding.upper()}` where it is Latin-1."
            )
    with open_manifest(path) as lines:
        yield from ((number, line.strip()) for number, line in enumerate(lines, 1))


def open_manifest(path: PathLike) -> TextIO:
    """The text file of a manifest, fetched from a data store where it is in one; bytes that are no text are kept.

    Args:
        path: as in `read_rows`.
    Raises:
        ManifestError: it is missing, a folder, or cannot be read.
    Examples:
        >>> open_manifest("/no/train.json")
        Traceback (most recent call last):
        nemo_comat.models.rows.ManifestError: /no/train.json does not exist ...
    """
    try:
        file = os.path.expanduser(DataStoreObject(str(path)).get())
    except (RuntimeError, ValueError, OSError) as error:
        raise ManifestError(f"{path} cannot be had from its data store ({error}).") from error
    if os.path.isdir(file):
        raise ManifestError(f"{path} is a folder; give the manifest's path, a file of one JSON object a line.")
    if not os.path.exists(file):
        raise ManifestError(f"{path} does not exist (seen from {Path.cwd()}); give a NeMo manifest's path.")
    try:
        return open(file, errors="surrogateescape")
    except OSError as error:
        raise ManifestError(f"{path} cannot be read ({error.strerror}).") from error


def _refusal(error: Exception, given: Mapping[str, Any]) -> str:
    """What NeMo's reader says of a row, with what to do."""
    lacking = re.search(r"without proper (.+) key", str(error))
    if lacking:
        return (
            f"has no {lacking[1]}; each row needs an audio_filepath and a duration in seconds (null where it is not "
            "known)."
        )
    if isinstance(error, OSError) and error.filename:
        return (
            f"names a text_filepath that cannot be read, {error.filename} ({error.strerror}); such paths are relative "
            f"to the folder of the command, {Path.cwd()}."
        )
    if isinstance(error, UnicodeDecodeError):
        return f"names a text_filepath that is not {error.encoding.upper()}, {given.get('text_filepath')}; convert it."
    return f"is refused by NeMo's reader ({type(error).__name__}: {error}); mend or remove it."


def number_of(value: Any, key: str, where: str) -> float:
    """The value, if it is a number; where: how messages call its row. Raises ManifestError otherwise.

    Examples:
        >>> number_of("2", "duration", "train.json line 1")
        Traceback (most recent call last):
        nemo_comat.models.rows.ManifestError: train.json line 1 has duration "2", a str; give seconds as a number.
    """
    if not isinstance(value, Real):
        what = f"{short(value)}, a {type(value).__name__}"
        raise ManifestError(f"{where} has {key} {what}; give seconds as a number.")
    return cast(float, value)


def check_audio(audio: str, where: str) -> None:
    """Raises ManifestError where an audio file is missing or a folder; data stores are not looked into.

    Args:
        audio: path. where: how messages call its row.
    Examples:
        >>> check_audio("/no/a.wav", "train.json line 1")
        Traceback (most recent call last):
        nemo_comat.models.rows.ManifestError: train.json line 1: audio file /no/a.wav does not exist; ...
    """
    if is_datastore_path(audio):
        return
    if os.path.isdir(audio):
        raise ManifestError(f"{where}: audio file {audio} is a folder; give a file, or remove the line.")
    if not os.path.exists(audio):
        raise ManifestError(
            f"{where}: audio file {audio} does not exist; paths are relative to the manifest's folder. "
            "Mend the path or remove the line."
        )


def check_offset(audio: str, offset: float, where: str) -> None:
    """Raises ManifestError where a row begins after its audio file has ended, which NeMo's reader dies of.

    Args:
        audio: path. offset: in seconds. where: how messages call the row.
    Examples:
        >>> import tempfile, numpy
        >>> with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        ...     soundfile.write(file.name, numpy.zeros(8000), 8000)
        ...     check_offset(file.name, 2.5, "train.json line 1")
        Traceback (most recent call last):
        nemo_comat.models.rows.ManifestError: train.json line 1 has offset 2.5, but ... ends at 1.00 s; ...
    """
    length = _seconds(audio)
    if length is not None and offset >= length:
        raise ManifestError(
            f"{where} has offset {offset:g}, but {audio} ends at {length:.2f} s; mend the offset or remove the line."
        )


@functools.lru_cache(maxsize=1024)
def _seconds(audio: str) -> float | None:
    """How long an audio file is; None where its header cannot be read without decoding it, or from here."""
    try:
        return float(soundfile.info(audio).duration)
    except (RuntimeError, OSError):  # of a data store, or of a kind that NeMo reads by other means
        return None


def short(value: object, most: int = 60) -> str:
    """A value as messages show it, cut to so many characters.

    Examples:
        >>> short(["a dog"]), short("barks and barks", most=6)
        ('["a dog"]', '"barks…')
    """
    said = json.dumps(value, ensure_ascii=False, default=str)
    return said if len(said) <= most else f"{said[:most]}…"


def expand(path: str) -> list[str]:
    """Paths that NeMo's brace patterns stand for, such as manifest__OP_0..7_CL_.json; one path where there is none.

    Examples:
        >>> expand("train__OP_0..2_CL_.json")
        ['train_0.json', 'train_1.json', 'train_2.json']
    """
    return expand_sharded_filepaths(path, shard_strategy="replicate", world_size=1, global_rank=0)


def flat(paths: Iterable[Any]) -> Iterator[str]:
    """The paths in nested lists.

    Examples:
        >>> list(flat([["a.json", 0.5], [["b.json"]], "c.json"]))
        ['a.json', 'b.json', 'c.json']
    """
    for path in paths:
        if isinstance(path, str):
            yield path
        elif not isinstance(path, Real):  # a number is a weight, in a list for Lhotse
            yield from flat(path)
