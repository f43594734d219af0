"""Checks the manifests of a config before training starts: what NeMo reads is accepted, what it refuses is named.

What is accepted is not decided here: each row goes through NeMo's `item_iter`, and the checks after it are those of
what NeMo's datasets do with a row that they keep.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from numbers import Real
from typing import Any

from nemo.collections.common.tokenizers.aggregate_tokenizer import AggregateTokenizer, TokenizerWrapper
from nemo.utils import logging
from nemo.utils.model_utils import _VAL_TEST_FASTPATH_KEY as NESTED
from omegaconf import DictConfig, ListConfig

from nemo_comat.models.lhotse_manifest import check_lhotse_dataset
from nemo_comat.models.rows import (
    ManifestError,
    Row,
    check_audio,
    check_offset,
    expand,
    flat,
    number_of,
    open_manifest,
    read_rows,
    short,
)
from nemo_comat.models.tally import Tally, beyond

# where NeMo's reader looks for a transcript
TEXT_KEYS = ("text", "text_filepath", "normalized_text")
# how a dataset reads a text of a language: its token ids, None where it gives the text up
Reader = Callable[[Any, Any], Any]


def check_dataset(dataset: Any, name: str, read: Reader | None = None) -> None:
    """Checks the manifests of one ``*_ds`` block of a NeMo config, and says how many of their rows training will see.

    The hub's data sets are left to their reader. Audio is looked for where it is not in tar files.

    Args:
        dataset: DictConfig, as NeMo's `setup_training_data` takes it.
        name: how messages call it, such as "model.train_ds".
        read: the function of (text, language) by which the dataset reads a text, or None where it is not there yet:
            texts that some tokenizers read and others do not are then taken as they are.
    Raises:
        ManifestError: NeMo would refuse the data, or no row is left of them.
    Examples:
        >>> check_dataset(DictConfig({"manifest_filepath": "/no/train.json"}), "model.train_ds")
        Traceback (most recent call last):
        nemo_comat.models.rows.ManifestError: model.train_ds.manifest_filepath=/no/train.json does not exist ...
    """
    blocks = nested_blocks(dataset)
    for number, block in enumerate(blocks):
        check_dataset(block, f"{name}.{NESTED}[{number}]", read)
    if blocks:
        return
    if dataset.get("use_lhotse"):
        check_lhotse_dataset(dataset, name)
        return
    if "hf_data_cfg" in dataset:
        return
    tarred = is_tarred(dataset)
    _check_nesting(dataset, name, tarred)
    paths = manifest_paths(dataset)
    if dataset.get("shard_manifests"):
        paths = [one for path in paths for one in expand(path)]
    if paths:
        check_manifests(paths, name, dataset, tarred=tarred, read=read)


def text_reader(tokenizer: Any) -> Reader:
    """The function of (text, language) by which NeMo's datasets turn a manifest's text to ids.

    Args:
        tokenizer: NeMo's; an aggregate of them reads lists of one-language spans ``{"str": …, "lang": …}`` too.
    Examples:
        >>> from nemo_comat.models.characters import CharacterTokenizer
        >>> text_reader(CharacterTokenizer(["a", "b"]))("ba", None)
        [1, 0]
    """
    encode = TokenizerWrapper(tokenizer)
    return partial(_read_spans, encode) if isinstance(tokenizer, AggregateTokenizer) else encode


def _read_spans(encode: Reader, text: Any, lang: Any = None) -> Any:
    if isinstance(text, list):
        return [i for span in text for i in encode(span["str"], span["lang"])]
    return encode(text, lang)


def is_empty(loader: Any) -> bool:
    """Whether a loader of NeMo's reads a dataset that knows that it has no rows.

    Examples:
        >>> from types import SimpleNamespace
        >>> is_empty(SimpleNamespace(dataset=[])), is_empty(SimpleNamespace(dataset=iter([])))
        (True, False)
    """
    dataset: Any = getattr(loader, "dataset", None)
    return hasattr(dataset, "__len__") and len(dataset) == 0


def nested_blocks(dataset: Mapping[str, Any]) -> list[Any]:
    """The blocks of a ``validation_ds`` or ``test_ds`` that lists several datasets, each with keys of its own.

    Examples:
        >>> nested_blocks({"manifest_filepath": "dev.json"}), nested_blocks({NESTED: [{"name": "dev"}]})
        ([], [{'name': 'dev'}])
    """
    found = dataset.get(NESTED)
    return (
        [one for one in found if isinstance(one, (dict, DictConfig))] if isinstance(found, (list, ListConfig)) else []
    )


def is_tarred(dataset: Mapping[str, Any]) -> bool:
    """Whether NeMo takes a block's audio from tar files.

    Examples:
        >>> is_tarred({"is_tarred": True}), is_tarred({"manifest_filepath": "dev.json"})
        (True, False)
    """
    mixed = dataset.get("is_code_switched") or dataset.get("use_dali")
    return bool(dataset.get("is_tarred") or (mixed and dataset.get("tarred_audio_filepaths")))


def manifest_paths(dataset: Mapping[str, Any]) -> list[str]:
    """Paths that a ``*_ds`` block's manifest_filepath names: one, several joined by commas, or nested lists of them.

    Examples:
        >>> manifest_paths({"manifest_filepath": "a.json,b.json"}), manifest_paths({"manifest_filepath": None})
        (['a.json', 'b.json'], [])
    """
    paths = dataset.get("manifest_filepath") or []
    if isinstance(paths, str):
        return paths.split(",")
    # those who put several readers behind one another read each element as a string of its own
    split = dataset.get("is_concat") or dataset.get("is_code_switched")
    return [one for path in flat(paths) for one in (path.split(",") if split else [path])]


def check_manifests(
    paths: Iterable[str],
    name: str,
    dataset: Mapping[str, Any],
    *,
    tarred: bool = False,
    read: Reader | None = None,
) -> None:
    """Checks manifests that are read as one; warns of empty transcripts, whose rows take no part in the transfer.

    Args:
        paths: the manifests. name, read: as in `check_dataset`.
        dataset: dict with what limits the rows: min_duration, max_duration, max_utts; other keys are ignored.
        tarred: bool, the audio is in tar files.
    Raises:
        ManifestError: as `check_dataset`.
    Examples:
        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w", suffix=".json") as file:
        ...     print('{"audio_filepath": "/a.wav", "duration": 9}', file=file, flush=True)
        ...     check_manifests([file.name], "model.train_ds", {"max_duration": 5})
        Traceback (most recent call last):
        nemo_comat.models.rows.ManifestError: model.train_ds has no rows left of 1: 1 longer than max_duration=5, ...
    """
    for path in paths:
        try:
            open_manifest(path).close()
        except ManifestError as error:
            raise ManifestError(f"{name}.manifest_filepath={error}") from error
    most = 0 if tarred else dataset.get("max_utts") or 0
    tally, empty, wordless = Tally(), [], []
    for path in paths:
        for row in read_rows(path):
            full = most and tally.kept == most
            reason = f"beyond max_utts={most}" if full else _reason_to_leave(row, dataset, read)
            tally.add(row.where, reason)
            if reason is not None:
                continue
            _check_kept(row, tarred)
            if row.item["token_labels"] is None and isinstance(row.item["text"], str) and not row.item["text"].strip():
                empty.append(row.where)
                wordless += [row] * (row.given.keys().isdisjoint(TEXT_KEYS))
    if wordless and len(wordless) == tally.kept and name == "model.train_ds":
        raise ManifestError(
            f"{name} has no row with a text: {wordless[0].where} has the keys {', '.join(wordless[0].given)}; name the "
            f"transcript {' or '.join(TEXT_KEYS)}, as NeMo reads it."
        )
    _say_what_is_left(name, paths, tally)
    if empty:
        logging.warning(
            f"{name} has {len(empty)} empty transcripts, the first in {empty[0]}: they train CTC towards silence "
            "and stay out of the transfer loss; remove the lines if that is not meant."
        )


def _say_what_is_left(name: str, paths: Iterable[str], tally: Tally) -> None:
    if not tally.rows:
        raise ManifestError(f"{name} has no rows, {', '.join(paths)} is empty; give a file of one JSON object a line.")
    if not tally.kept:
        raise ManifestError(tally.none_left(name))
    if tally.kept < tally.rows:
        logging.info(f"{name}: {tally.kept} of {tally.rows} rows are left; {tally.why()}.")


def _reason_to_leave(row: Row, dataset: Mapping[str, Any], read: Reader | None) -> str | None:
    """Why NeMo leaves a row out, or None; raises where it would fail instead."""
    duration = row.item["duration"]
    if duration is not None and (reason := beyond(number_of(duration, "duration", row.where), dataset)):
        return reason
    text = row.item["text"]
    if row.item["token_labels"] is not None or text == "" or read is None:
        return None
    try:
        ids = read(text, row.item["lang"])
    except Exception as error:  # of any tokenizer
        raise ManifestError(
            f"{row.where} has a text that the tokenizer cannot read, {short(text)} of lang {row.item['lang']!r} "
            f"({type(error).__name__}: {error}); give a string, and a lang of the tokenizer's where it has several."
        ) from error
    return "with a text that the parser gives up" if ids is None else None


def _check_kept(row: Row, tarred: bool) -> None:
    """Raises for what would stop the training when NeMo comes to the row."""
    if row.item["token_labels"] is not None:
        _check_token_labels(row)
    if row.item["offset"] is not None:
        number_of(row.item["offset"], "offset", row.where)
    for key in ("duration", "offset"):
        if row.item[key] is not None and math.isinf(row.item[key]) and row.item[key] > 0:
            raise ManifestError(f"{row.where} has {key} {row.item[key]}; give seconds.")
    audio = row.item["audio_file"]
    if tarred:
        if not isinstance(audio, str):
            raise ManifestError(f"{row.where} has the audio {short(audio)}; give one name, as it is in the tar file.")
    elif not audio:
        raise ManifestError(f"{row.where} names no audio file; give its audio_filepath.")
    else:
        for one in [audio] if isinstance(audio, str) else audio:
            check_audio(one, row.where)
            if row.item["offset"]:
                check_offset(one, row.item["offset"], row.where)


def _check_token_labels(row: Row) -> None:
    labels = row.item["token_labels"]
    if not isinstance(labels, list) or not all(isinstance(label, Real) for label in labels):
        raise ManifestError(f"{row.where} has token_labels {short(labels)}; give a list of token ids.")


def _check_nesting(dataset: Mapping[str, Any], name: str, tarred: bool) -> None:
    paths = dataset.get("manifest_filepath")
    behind = tarred or dataset.get("is_concat") or dataset.get("is_code_switched")
    if isinstance(paths, (list, ListConfig)) and not behind and not all(isinstance(path, str) for path in paths):
        raise ManifestError(
            f"{name}.manifest_filepath={paths} is a list of lists, which NeMo reads for tarred, concatenated and "
            "code-switched data only; give one list of paths."
        )
