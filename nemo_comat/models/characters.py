"""The labels of a character model, with the methods of NeMo's tokenizers."""

from collections.abc import Mapping, Sequence
from typing import Any

from nemo.collections.common.parts.preprocessing.parsers import make_parser
from nemo.collections.common.tokenizers import TokenizerSpec


class CharacterTokenizer(TokenizerSpec):
    """What NeMo's character models have in the place of a tokenizer: a list of labels, and a parser that reads text.

    Args:
        labels: list of str; a label's place is its id.
        parser, normalize_transcripts, unk_index, blank_index: as in a ``train_ds`` block of NeMo's, defaults too.
    Examples:
        >>> tokenizer = CharacterTokenizer([" ", "a", "b"])
        >>> tokenizer.text_to_ids("ab a"), tokenizer.ids_to_text([2, 1])
        ([1, 2, 0, 1], 'ba')
    """

    def __init__(
        self,
        labels: Sequence[str],
        parser: str = "en",
        normalize_transcripts: bool = False,
        unk_index: int = -1,
        blank_index: int = -1,
    ) -> None:
        self.vocab = list(labels)
        self._parser = make_parser(
            labels=self.vocab,
            name=parser,
            do_normalize=normalize_transcripts,
            unk_id=unk_index,
            blank_id=blank_index,
        )

    @classmethod
    def of(cls, labels: Sequence[str], dataset: Mapping[str, Any] | None) -> "CharacterTokenizer":
        """The one that reads text as a dataset of NeMo's does.

        Args:
            labels: list of str. dataset: a ``train_ds`` block, or None for NeMo's defaults.
        """
        keys = ("parser", "normalize_transcripts", "unk_index", "blank_index")
        given = dataset or {}
        return cls(labels, **{key: given[key] for key in keys if key in given})

    @property
    def vocab_size(self) -> int:
        """Number of labels, the blank not among them."""
        return len(self.vocab)

    def text_to_ids(self, text: str) -> list[int]:
        """Ids of a text, without what no label says; none where the parser's normalizing gives the text up."""
        return self.parse(text) or []

    def parse(self, text: str) -> list[int] | None:
        """As `text_to_ids`, but None where the parser's normalizing gives the text up; NeMo leaves such rows out."""
        return self._parser(text)

    def ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Labels of ids, as list of str."""
        return [self.vocab[i] for i in ids]

    def ids_to_text(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        return self.tokens_to_text(self.ids_to_tokens(ids))

    def tokens_to_text(self, tokens: Sequence[str]) -> str:
        """Text of labels."""
        return "".join(tokens)

    def tokens_to_ids(self, tokens: Sequence[str]) -> list[int]:
        """Ids of labels."""
        return [self.vocab.index(token) for token in tokens]

    def text_to_tokens(self, text: str) -> list[str]:
        """Labels of a text."""
        return self.ids_to_tokens(self.text_to_ids(text))
