"""What a teacher gives for texts, live or from a cache, and the error that it raises."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class TeacherError(RuntimeError):
    """The teacher cannot be loaded or used as configured; the message says what to change."""


class TeacherOutput(NamedTuple):
    """Embedded texts, special tokens dropped.

    embeddings: [B, N, Dp] float32, 0 on padding, no gradient. text_len: [B] int64 tokens; 0 for an empty text and for
    one that is too long. token_id: [B, N] int64 ids in the teacher's vocabulary. too_long: [B] bool. lacking: number of
    texts that a cache, where there is one, did not have. table: [V, Dp] the word embeddings, where they are asked for.
    words: [B, U] and [B, N] int64, the word of each of the recogniser's and of the teacher's tokens, where asked for.
    predicted: ids int64 and probabilities float32 [B, N, K] of the tokens that the model expects in each token's place,
    the largest first, where the teacher has `top_k`; probabilities of 0 where it expects none.
    """

    embeddings: Tensor
    text_len: Tensor
    token_id: Tensor
    too_long: Tensor
    lacking: int = 0
    table: Tensor | None = None
    words: tuple[Tensor, Tensor] | None = None
    predicted: tuple[Tensor, Tensor] | None = None


class Embedded(NamedTuple):
    """One text: vectors [n, Dp] on the device, token_id [n] int64 on the CPU, too_long bool, size in bytes.

    predicted: ids and probabilities [n, K] on the device, or None; as in TeacherOutput.
    """

    vectors: Tensor
    token_id: Tensor
    too_long: bool
    size: int
    predicted: tuple[Tensor, Tensor] | None = None


def pad_predicted(rows: Sequence[tuple[Tensor, Tensor] | None]) -> tuple[Tensor, Tensor] | None:
    """Pads (ids, probabilities), each [n, K], of texts to [B, N, K] with zeros, N at least 1; None where one has none.

    Examples:
        >>> ids, shares = pad_predicted([(torch.ones(2, 3), torch.ones(2, 3)), (torch.ones(1, 3), torch.ones(1, 3))])
        >>> shares.sum(2).tolist()
        [[3.0, 3.0], [3.0, 0.0]]
    """
    known = [row for row in rows if row is not None]
    if not known or len(known) < len(rows):
        return None
    ids, shares = (pad_sequence(list(column), batch_first=True) for column in zip(*known))
    missing = (0, 0, 0, 1 - min(1, ids.shape[1]))
    return torch.nn.functional.pad(ids, missing), torch.nn.functional.pad(shares, missing)
