"""Words of a text, which white space parts, and the tokens that spell them."""

import hashlib

import torch
from torch import Tensor


def words_of(text: str, spans: list[tuple[int, int]]) -> list[int]:
    """Which word of a text each token stands in, counted from 0.

    Args:
        text: as it was tokenized. spans: begin and end of each token in it, as a fast tokenizer's offsets have them.
    Returns:
        list of int, one for each span. A token of white space alone belongs to the word that follows it.
    Examples:
        >>> words_of("it isn't", [(0, 2), (2, 6), (6, 7), (7, 8)])
        [0, 1, 1, 1]
    """
    word_at, word, inside = [], -1, False
    for letter in text:
        word += not inside and not letter.isspace()
        inside = not letter.isspace()
        word_at.append(word if inside else word + 1)
    last = max(word, 0)
    # a token's last letter: those of some tokenizers begin with the space before their word
    return [min(word_at[end - 1], last) if end > 0 else 0 for _, end in spans]


def average_words(vectors: Tensor, token_id: Tensor, words: list[int]) -> tuple[Tensor, Tensor]:
    """Means of the vectors of each word's tokens.

    Args:
        vectors: [n, D]. token_id: [n] int64. words: n ints that do not fall, each token's word.
    Returns:
        [m, D], in the words' order, and [m] int64 below 2**31, equal for words of equal tokens.
    Examples:
        >>> average_words(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([5, 6, 7]), [0, 1, 1])[0].tolist()
        [[1.0], [3.0]]
    """
    if not words:
        return vectors, token_id
    _, sizes = torch.unique_consecutive(torch.tensor(words), return_counts=True)
    sizes = sizes.tolist()
    means = torch.stack([part.mean(0) for part in vectors.split(sizes)])
    return means, torch.tensor([_word_id(part.tolist()) for part in token_id.split(sizes)])


def _word_id(ids: list[int]) -> int:
    if len(ids) == 1:
        return ids[0]
    # beyond all vocabularies' ids; caches keep 32 bits
    digest = hashlib.blake2b(repr(ids).encode(), digest_size=4).digest()
    return 2**30 + int.from_bytes(digest, "little") % 2**30
