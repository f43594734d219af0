"""Alignment that keeps to words: a segment is aligned with a token of its own word only."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from nemo_comat.lengths import length_mask


def segment_words(seg_label: Tensor, target_word: Tensor, blank: int) -> Tensor:
    """The word of each segment of a forced CTC path; a blank's is that of the label before it.

    Args:
        seg_label: [B, S] label of each segment, in the reference's order; the blank where blanks are kept.
        target_word: [B, U] the word of each of the reference's tokens, counted from 0.
        blank: id of the blank.
    Returns:
        [B, S] int64; on padding a word that means nothing.
    Examples:
        >>> segment_words(torch.tensor([[9, 4, 9, 5]]), torch.tensor([[0, 1]]), 9)
        tensor([[0, 0, 0, 1]])
    """
    target_word = pad(target_word, (0, 1))  # where all references are empty there is no token to point to
    place = ((seg_label != blank).cumsum(1) - 1).clamp(0, target_word.shape[1] - 1)
    return target_word.gather(1, place)


def within_words(
    score: Tensor, seg_word: Tensor, token_word: Tensor, seg_len: Tensor, text_len: Tensor
) -> tuple[Tensor, Tensor]:
    """Forbids pairs of a segment and a token of different words, in the rows where every word can be kept.

    A row's words cannot be kept where the two sides do not have the same words, or a word has fewer segments than
    tokens; such a row stays as it is.

    Args:
        score: [B, S, N] similarity.
        seg_word, token_word: [B, S] and [B, N] int64, counted from 0, that do not fall along a row.
        seg_len, text_len: [B] valid segments / tokens.
    Returns:
        [B, S, N], -inf where a pair is forbidden; and [B] bool, True = a row whose words are kept.
    Source: ours.
    Examples:
        >>> one, two = torch.zeros(1, 2, 2), torch.tensor([[0, 1]])
        >>> within_words(one, two, two, torch.tensor([2]), torch.tensor([2]))
        (tensor([[[0., -inf],
                 [-inf, 0.]]]), tensor([True]))
    """
    words = max(score.shape[1:])
    segments, tokens = (_per_word(word, n, words) for word, n in ((seg_word, seg_len), (token_word, text_len)))
    kept = ((segments >= tokens) & ((segments > 0) == (tokens > 0))).all(1) & (text_len > 0)
    kept &= segments[:, -1] + tokens[:, -1] == 0  # words beyond are counted together
    forbidden = (seg_word[:, :, None] != token_word[:, None]) & kept[:, None, None]
    return score.masked_fill(forbidden, float("-inf")), kept


def _per_word(word: Tensor, length: Tensor, words: int) -> Tensor:
    """How many of a row's entries each word has, and in a last column those of words beyond: [B, words + 1]."""
    inside = length_mask(length, word.shape[1])
    count = torch.zeros(len(word), words + 1, dtype=torch.int64, device=word.device)
    return count.scatter_add(1, word.clamp(0, words), inside.long())
