"""The files of a cache of a teacher's embeddings: a folder of safetensors files that are mapped into memory, not read.

`shard-*.safetensors` hold a few thousand texts each, as float16 rows; `index.safetensors` says by a hash of the text in
which shard and row it is; `table.safetensors` holds the table of word embeddings, which some transfer losses read. All
name the teacher that wrote them. `cache_writer` makes such a folder.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from torch import Tensor

from nemo_comat.output import PathLike
from nemo_comat.teacher.output import TeacherError

FORMAT = 1
INDEX = "index.safetensors"
SHARD = "shard-{}.safetensors"
TABLE_FILE = "table.safetensors"
# a shard's tensors of what the language model expects, where it has them
PREDICTED = ("predicted_id", "predicted")
# of a description: what tells other weights from these, where both sides have it
HASHES = ("weights", "tensors")
# and what caches of before lack
NEWER = ("tokenizer",)
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
    # JSON may hold half of a pair of surrogates
    return np.frombuffer(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest(), dtype=np.int64)


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
        index, metadata = open_file(self.folder / INDEX, self.folder)
        self.description, self.shards = json.loads(metadata["teacher"]), json.loads(metadata["shards"])
        unlisted = sorted({file.name for file in shard_files(self.folder)} - set(self.shards))
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

    def check_shards(self) -> None:
        """Raises CacheError where a file that the index names is not there, or not whole."""
        for name in self.shards:
            open_file(self.folder / name, self.folder)

    def get(self, text: str) -> CachedText | None:
        """CachedText, or None where the cache does not have the text."""
        first, second = text_key(text)
        at = int(np.searchsorted(self._first, first))
        while at < len(self._first) and self._first[at] == first:
            if self._second[at] == second:
                return self._read(at)
            at += 1
        return None

    def sample(self, most: int) -> Iterator[Tensor]:
        """Vectors of at most so many texts, spread evenly over the shards, in an order that is always the same.

        Args:
            most: int.
        Yields:
            float16 [n, Dp] of a text; too long ones are left out.
        """
        for at in range(0, len(self), max(1, -(-len(self) // most))):
            row = self._read(at)
            if not row.too_long:
                yield row.vectors

    def table(self) -> Tensor | None:
        """The table of word embeddings, float16 [V, De] mapped from the file; None in a cache that has none."""
        if not (self.folder / TABLE_FILE).exists():
            return None
        file, metadata = open_file(self.folder / TABLE_FILE, self.folder)
        refuse_another(json.loads(metadata["teacher"]), self.description, self.folder)
        table: Tensor = file.get_tensor("table")
        return table

    def _read(self, at: int) -> CachedText:
        shard, row = self._place[at].tolist()
        if shard not in self._open_shards:
            file, _ = open_file(self.folder / self.shards[shard], self.folder)
            of_head = PREDICTED if "top_k" in self.description else ()
            names = ("key", "embeddings", "token_id", "start", "too_long", *of_head)
            self._open_shards[shard] = [file.get_tensor(name) for name in names]
        keys, embeddings, token_id, start, too_long, *predicted = self._open_shards[shard]
        if row >= len(keys) or keys[row].tolist() != [self._first[at], self._second[at]]:
            raise CacheError(
                f"Cache file {self.folder / self.shards[shard]} is not the one that the index is of: it was written "
                f"anew since; {RUN_AGAIN}"
            )
        begin, end = start[row : row + 2].tolist()
        ids_and_shares = (predicted[0][begin:end], predicted[1][begin:end]) if predicted else None
        return CachedText(embeddings[begin:end], token_id[begin:end], bool(too_long[row]), ids_and_shares)


def open_file(path: Path, folder: Path) -> tuple[Any, dict[str, str]]:
    """Opens a file of a cache: safetensors' handle and the file's metadata.

    Raises:
        CacheError: the file is not there, cannot be read, or is of another format.
    Examples:
        >>> open_file(Path("gone", INDEX), Path("gone"))
        Traceback (most recent call last):
        nemo_comat.teacher.cache_files.CacheError: Cache gone has no index.safetensors; ...
    """
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


def shard_files(folder: Path) -> list[Path]:
    """A cache's shards in the order of their names; none of a folder that is not there.

    Examples:
        >>> shard_files(Path("gone"))
        []
    """
    return sorted(folder.glob(SHARD.format("*")))


def refuse_another(found: Mapping[str, Any], expected: Mapping[str, Any], folder: Path) -> None:
    """Raises CacheError where two teacher descriptions do not give the same embeddings; names both.

    The names may differ where the weights are known to be the same, as when a folder was moved.

    Examples:
        >>> one, other = ({"name": name, "layers": [0], "weights": None} for name in ("bert", "gpt2"))
        >>> refuse_another(one, other, Path("cache"))
        Traceback (most recent call last):
        nemo_comat.teacher.cache_files.CacheError: Cache cache was written by another teacher: it has name bert, ...
    """
    # tokens are said by no key, and caches of before have no hash of the tensors
    found, expected = ({"units": "token", "tensors": None, **side} for side in (found, expected))
    expected = {key: value for key, value in expected.items() if key not in NEWER or key in found}
    keys = [key for key in expected if key not in ("name", *HASHES) and found.get(key) != expected[key]]
    known = [key for key in HASHES if found[key] and expected[key]]
    others = [key for key in known if found[key] != expected[key]]
    keys += others
    if found["name"] != expected["name"] and (others or not known):
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
        nemo_comat.teacher.cache_files.CacheError: Cache cache has no probabilities of tokens, which ...
    """
    if found.get("top_k", 0) < expected.get("top_k", 0):
        has = f"{found['top_k']} probabilities for each token" if "top_k" in found else "no probabilities of tokens"
        raise CacheError(
            f"Cache {folder} has {has}, which model.comat.transfer.loss=distribution with transfer.top_k="
            f"{expected['top_k']} learns from; point model.comat.teacher.cache elsewhere and run "
            "examples/cache_teacher.py with the same overrides as training."
        )
