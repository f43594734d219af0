"""Reads texts by a teacher's tokenizer: token ids, which of them are no special tokens, and their words."""

import functools
import re
from collections.abc import Sequence
from typing import Any

from nemo_comat.teacher.output import TeacherError
from nemo_comat.teacher.words import words_of

SENTENCEPIECE_UNKNOWN = "⁇"


class TextReader:
    """A tokenizer, and what a teacher asks of it; "⁇" in a text is read as the tokenizer's unknown token.

    Args:
        tokenizer: transformers'.
        name, path: the teacher's, for messages.
    Raises:
        TeacherError: the tokenizer has no vocabulary.
    """

    def __init__(self, tokenizer: Any, name: str, path: str) -> None:
        self.tokenizer, self.name, self.path = tokenizer, name, path
        # without its files, transformers makes some tokenizers of their special tokens alone
        if not any(letter.isalnum() for token in self.ordinary for letter in token):
            raise TeacherError(
                f"Teacher {name!r}: its tokenizer ({type(tokenizer).__name__}) has no token with a letter, so "
                f"every text would be unknown; put the tokenizer's files (tokenizer.json or its like) into {path}."
            )

    @functools.cached_property
    def ordinary(self) -> dict[str, int]:
        """The vocabulary but for special tokens: dict from token to id."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        special = {*self.tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)}
        return {token: number for token, number in self.tokenizer.get_vocab().items() if number not in special}

    @functools.cached_property
    def unknown(self) -> str:
        """What is read where the recogniser's tokenizer has no letter: the unknown or the mask token."""
        return self.tokenizer.unk_token or self.tokenizer.mask_token or ""

    @functools.cached_property
    def unknown_id(self) -> int | None:
        """Token id of `unknown`; None where there is none."""
        return self.tokenizer.convert_tokens_to_ids(self.unknown) if self.unknown else None

    @property
    def of_the_unknown(self) -> dict[str, int]:
        """The tokens of `unknown` as a text, special ones included: dict from token to id."""
        ids = self.tokenizer(self.unknown)["input_ids"]
        return dict(zip(self.tokenizer.convert_ids_to_tokens(ids), ids))

    def readable(self, text: str) -> str:
        """A text with the unknown token, as a word of its own, in place of each "⁇"; half a surrogate pair is "?"."""
        text = text.encode(errors="replace").decode()
        # one space between, for to some tokenizers more of them are tokens
        parts = re.split(rf"\s*({SENTENCEPIECE_UNKNOWN})\s*", text)
        read = (self.unknown if part == SENTENCEPIECE_UNKNOWN else part for part in parts)
        return " ".join(part for part in read if part)

    def code(self, texts: Sequence[str], **more: bool) -> list[tuple[Any, ...]]:
        """Token ids of texts.

        Args:
            texts: B strings. more: return_offsets_mapping=True, for the spans of letters.
        Returns:
            list of B tuples: ids, places of those that are no special tokens, and the spans where asked for; all lists.
        Raises:
            TeacherError: the tokenizer fails.
        """
        if not texts:
            return []
        has_unknown = [SENTENCEPIECE_UNKNOWN in text for text in texts]
        read = [self.readable(text) for text in texts]
        options = dict(padding=False, truncation=False, return_special_tokens_mask=True, verbose=False, **more)
        try:
            coded = self.tokenizer(read, **options)
        except Exception as error:  # tokenizers raises plain ones
            if len(texts) > 1:  # one of them fails alone, and is named
                return [row for text in texts for row in self.code([text], **more)]
            raise TeacherError(
                f"Teacher {self.name!r}: its tokenizer cannot read the text {read[0]!r}: {error}; check its files in "
                f"{self.path}."
            ) from error
        masks = coded["special_tokens_mask"]
        kept = [[i for i, special in enumerate(mask) if not special] for mask in masks]
        for row, ids in enumerate(coded["input_ids"]):
            if has_unknown[row]:
                kept[row] = [i for i in kept[row] if not self._is_space_beside_unknown(ids, i)]
        return list(zip(coded["input_ids"], kept, *([coded["offset_mapping"]] if more else [])))

    def _is_space_beside_unknown(self, ids: Sequence[int], i: int) -> bool:
        """Whether a token is the space beside the unknown token, of which some tokenizers make one of its own."""
        if self.unknown_id is None or self.unknown_id not in (*ids[max(i - 1, 0) : i], *ids[i + 1 : i + 2]):
            return False
        written: str = self.tokenizer.convert_tokens_to_string(self.tokenizer.convert_ids_to_tokens([ids[i]]))
        return not written.strip()

    def tokens(self, text: str) -> list[str]:
        """A text's tokens as strings, special ones dropped."""
        ((ids, kept),) = self.code([text])
        tokens: list[str] = self.tokenizer.convert_ids_to_tokens([ids[i] for i in kept])
        return tokens

    def word_indices(self, texts: Sequence[str]) -> list[list[int]]:
        """Which word each token belongs to, counted from 0: B lists, an int for each token that is not special.

        Raises:
            TeacherError: the tokenizer does not say where its tokens stand in the text.
        """
        if not self.tokenizer.is_fast:
            raise TeacherError(
                f"Teacher {self.name!r}: its tokenizer ({type(self.tokenizer).__name__}) does not say which letters a "
                "token stands for, so its words cannot be told; take a teacher with a fast tokenizer, or set "
                "model.comat.teacher.units=token and model.comat.align.within_words=false."
            )
        rows = self.code(texts, return_offsets_mapping=True)
        return [words_of(self.readable(text), [spans[i] for i in kept]) for text, (_, kept, spans) in zip(texts, rows)]
