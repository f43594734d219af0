"""Checks the NeMo manifests that Lhotse's loaders read: their rules are fewer than those of NeMo's other readers.

Tarred data, Lhotse's own cuts and other formats are left to their readers.
"""

import json
import math
import tempfile
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from lhotse.serialization import load_yaml
from nemo.collections.common.data.lhotse.cutset import (
    get_known_config_data_types,
    get_parser_fn,
    read_nemo_manifest,
)
from nemo.collections.common.data.lhotse.dataloader import (
    get_lhotse_sampler_from_config,
    make_structured_with_schema_warnings,
)
from nemo.collections.common.data.lhotse.nemo_adapters import LazyNeMoIterator
from nemo.collections.common.parts.preprocessing.manifest import get_full_path
from nemo.utils import logging
from nemo.utils.data_utils import is_datastore_path
from omegaconf import DictConfig, OmegaConf

from nemo_comat.models.rows import (
    ManifestError,
    check_audio,
    expand,
    flat,
    number_of,
    open_manifest,
    parse_object,
    read_lines,
)
from nemo_comat.models.tally import Tally, beyond


def check_lhotse_dataset(dataset: Any, name: str) -> None:
    """Checks the plain NeMo manifests of a ``*_ds`` block with use_lhotse.

    Args:
        dataset: DictConfig. name: how messages call it, such as "model.train_ds".
    Raises:
        ManifestError: Lhotse would refuse a row, or there is none.
    Examples:
        >>> check_lhotse_dataset(OmegaConf.create({"manifest_filepath": "/no/train.json"}), "model.train_ds")
        Traceback (most recent call last):
        nemo_comat.models.rows.ManifestError: model.train_ds: /no/train.json does not exist ...
    """
    for block in multi_blocks(dataset):
        tally, sources = Tally(), lhotse_blocks(block)
        # a list, so that every source is looked at
        seen_whole = all([_check_source(source, name, block, tally) for source in sources])
        if seen_whole and not tally.kept and _reads_nothing(block):
            raise ManifestError(tally.none_left(name))
        if tally.kept < tally.rows:
            logging.info(
                f"{name}: {tally.kept} of {tally.rows} rows are left, by the manifests' durations; {tally.why()}."
            )


def _check_source(source: Any, name: str, limits: Mapping[str, Any], tally: Tally) -> bool:
    """Checks one block that names data itself; True where it names no more than rows that `tally` has counted."""
    if source.get("manifest_filepath") is None or not _is_plain(source, name):
        return False
    paths = [one for path in flat([source.manifest_filepath]) for one in expand(path)]
    # what Lhotse opens by other means than as a file is left to it
    local = [path for path in paths if not (is_datastore_path(path) or path.startswith("pipe:"))]
    local = [path for path in local if not path.endswith(".gz")]
    rows = sum(check_lhotse_manifest(path, name, limits, tally) for path in local)
    if local == paths and not rows:
        raise ManifestError(f"{name} has no rows, {', '.join(paths)} is empty; give one JSON object a line.")
    return local == paths


def _reads_nothing(block: Any) -> bool:
    """Whether NeMo's sampler makes no batch of a block: where there is no offset, it goes by the audio's durations."""
    options: Any = OmegaConf.to_container(block)
    try:
        config = make_structured_with_schema_warnings(OmegaConf.create({**options, "force_finite": True}))
        sampler, _ = get_lhotse_sampler_from_config(config=config, global_rank=0, world_size=1)
        return next(iter(sampler), None) is None
    except Exception:  # what NeMo refuses in a block, it says itself when the model is built
        return False


def lhotse_blocks(dataset: Any) -> list[Any]:
    """The blocks of a ``*_ds`` block, of which `multi_blocks` has none more, that name data: itself or input_cfg's.

    Examples:
        >>> both = [{"manifest_filepath": "a.json"}, {"manifest_filepath": "b.json"}]
        >>> [block.manifest_filepath for block in lhotse_blocks(OmegaConf.create({"input_cfg": both}))]
        ['a.json', 'b.json']
    """
    listed = dataset.get("input_cfg")
    if listed is None:
        return [dataset]
    listed = OmegaConf.create(load_yaml(listed)) if isinstance(listed, str) else listed
    return [one for item in listed for one in lhotse_blocks(item)]


def multi_blocks(dataset: Any) -> list[Any]:
    """The blocks that have settings of their own: a ``*_ds`` block, or, with multi_config, each block within it.

    Examples:
        >>> both = {"multi_config": True, "read": {"seed": 1}, "spoken": {"seed": 2}, "sampler_weights": {"read": 1}}
        >>> [block.seed for block in multi_blocks(OmegaConf.create(both))]
        [1, 2]
    """
    if not dataset.get("multi_config"):
        return [dataset]
    return [one for key, one in dataset.items() if isinstance(one, DictConfig) and key != "sampler_weights"]


def _is_plain(block: Any, name: str) -> bool:
    kind, known = block.get("type", "nemo"), get_known_config_data_types()
    if kind not in known:
        raise ManifestError(f"{name} has data of type {kind}, which this NeMo does not know; give {', '.join(known)}.")
    lhotses = any(block.get(key) is not None for key in ("cuts_path", "shar_path", "tarred_audio_filepaths"))
    return not lhotses and get_parser_fn(kind) is read_nemo_manifest


def check_lhotse_manifest(path: str, name: str, limits: Mapping[str, Any], tally: Tally) -> int:
    """Checks one plain NeMo manifest as Lhotse reads it; returns the number of its rows.

    Args:
        path: of the file. name: as in `check_lhotse_dataset`.
        limits: dict with what limits the rows, min_duration and max_duration. tally: `Tally` that counts them.
    Raises:
        ManifestError: a line or an audio file cannot be read.
    Examples:
        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w", suffix=".json") as file:
        ...     print('{"audio_filepath": "/a.wav"}', file=file, flush=True)
        ...     check_lhotse_manifest(file.name, "model.train_ds", {}, Tally())
        Traceback (most recent call last):
        nemo_comat.models.rows.ManifestError: ... line 1 has no duration, ...
    """
    try:
        open_manifest(path).close()
    except ManifestError as error:
        raise ManifestError(f"{name}: {error}") from error
    rows, read = 0, set[Any]()
    for number, line in read_lines(path):
        where = f"{path} line {number}"
        if not line:
            raise ManifestError(f"{where} is empty, which Lhotse's reader refuses; remove the line.")
        row = parse_object(line, where)
        if not row.get("_skipme", False):
            _check_row(row, path, where, read)
            known = isinstance(row["duration"], Real)
            tally.add(where, beyond(row["duration"], limits) if known else None)
            rows += 1
    return rows


def _check_row(row: Mapping[str, Any], path: str, where: str, read: set[Any]) -> None:
    """Raises ManifestError for a row that Lhotse refuses; read: the kinds of rows without a duration that it reads."""
    for key in ("audio_filepath", "duration"):
        if key not in row:
            raise ManifestError(f"{where} has no {key}, which Lhotse's reader needs in each row; give it.")
    offset = row.get("offset")
    if offset is not None and not 0 <= number_of(offset, "offset", where) < math.inf:
        raise ManifestError(f"{where} has offset {offset}; give seconds from 0 on.")
    audio = get_full_path(str(row["audio_filepath"]), str(path), force_cache=False)
    check_audio(audio, where)
    # Lhotse takes a duration from the audio, unless other keys have it do something with the row's
    kind = type(row["duration"]), frozenset(key for key, value in row.items() if value is not None)
    if not isinstance(row["duration"], Real) and kind not in read:
        if not _lhotse_reads({**row, "audio_filepath": audio}):
            number_of(row["duration"], "duration", where)
        read.add(kind)


def _lhotse_reads(row: Mapping[str, Any]) -> bool:
    """Whether Lhotse's reader, of whatever version, makes a cut of a row."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder, "row.json")
        manifest.write_text(json.dumps(row) + "\n", encoding="utf-8")
        try:
            return next(iter(LazyNeMoIterator(str(manifest))), None) is not None
        except Exception:  # of whatever kind: it is asked, not run
            return False
