"""Words of a batch's texts, as the recogniser's and the teacher's tokens spell them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nemo_comat.models.reference import reference_text
from nemo_comat.teacher import CachedTeacher, Teacher, upload

Key = TypeVar("Key")

# texts whose words are kept; small corpora train for many epochs
REMEMBERED = 100_000


def target_words(tokenizer: Any, ids: list[int]) -> list[int]:
    """The word of each of a transcript's tokens, counted from 0 as the text of the tokens up to it has words.

    Args:
        tokenizer: NeMo's, of any kind. ids: list of its token ids.
    Examples:
        >>> from types import SimpleNamespace
        >>> tokenizer = SimpleNamespace(ids_to_text=lambda ids: "".join(["it", " is", "n't"][i] for i in ids))
        >>> target_words(tokenizer, [0, 1, 2])
        [0, 1, 1]
    """
    # asked of the tokenizer: how pieces mark the beginning of a word differs from kind to kind
    counts = [len(reference_text(tokenizer, ids[: i + 1]).split()) for i in range(len(ids))]
    return [max(count - 1, 0) for count in counts]


class WordFinder:
    """Which word each token of a batch belongs to; remembers texts.

    Args:
        teacher: `Teacher` or `CachedTeacher`.
    """

    def __init__(self, teacher: Teacher | CachedTeacher) -> None:
        self.teacher = teacher
        self._targets: dict[tuple[int, ...], list[int]] = {}
        self._texts: dict[str, list[int]] = {}

    def find(
        self,
        tokenizer: Any,
        texts: Sequence[str],
        transcript: Tensor,
        transcript_len: Tensor,
        n_tokens: int,
        device: torch.device,
    ) -> tuple[Tensor, Tensor]:
        """Words of one batch.

        Args:
            tokenizer: the recogniser's. texts: list of B strings that the teacher reads.
            transcript, transcript_len: [B, U] and [B] the recogniser's tokens.
            n_tokens: N of the teacher's output. device: torch.device.
        Returns:
            [B, U] and [B, N] int64 on the device.
        """
        rows = [tuple(ids[:n]) for ids, n in zip(transcript.long().tolist(), transcript_len.tolist())]
        targets = _remembered(self._targets, rows, lambda new: [target_words(tokenizer, list(row)) for row in new])
        tokens = _remembered(self._texts, texts, self.teacher.word_indices)
        sizes = (transcript.shape[1], n_tokens)
        target_ids, token_ids = (upload(_padded(words, size), device) for words, size in zip((targets, tokens), sizes))
        return target_ids, token_ids


def _remembered(
    memory: dict[Key, list[int]], keys: Sequence[Key], find: Callable[[list[Key]], Iterable[list[int]]]
) -> list[list[int]]:
    new = [key for key in dict.fromkeys(keys) if key not in memory]
    if len(memory) + len(new) > REMEMBERED:
        memory.clear()
        new = list(dict.fromkeys(keys))
    memory.update(zip(new, find(new) if new else []))
    return [memory[key] for key in keys]


def _padded(rows: Sequence[list[int]], size: int) -> Tensor:
    padded = pad_sequence([torch.tensor(row[:size], dtype=torch.int64) for row in rows], batch_first=True)
    return torch.nn.functional.pad(padded, (0, size - padded.shape[1]))
