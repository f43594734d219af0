"""The labels of a character model, with the methods of NeMo's tokenizers."""

from nemo.collections.common.parts.preprocessing.parsers import make_parser
from nemo.collections.common.tokenizers import TokenizerSpec


class CharacterTokenizer(TokenizerSpec):
    """What NeMo's character models have in the place of a tokenizer: a list of labels, and a parser that reads text.

    Args:
        labels: list of str; a label's place is its id.
        parser, normalize_transcripts, unk_index, blank_index: as in a ``train_ds`` block of NeMo's, defaults too.
    """

    def __init__(self, labels, parser="en", normalize_transcripts=False, unk_index=-1, blank_index=-1):
        self.vocab = list(labels)
        self._parser = make_parser(
            labels=self.vocab,
            name=parser,
            do_normalize=normalize_transcripts,
            unk_id=unk_index,
            blank_id=blank_index,
        )

    @classmethod
    def of(cls, labels, dataset):
        """The one that reads text as a dataset of NeMo's does.

        Args:
            labels: list of str. dataset: a ``train_ds`` block, or None for NeMo's defaults.
        """
        keys = ("parser", "normalize_transcripts", "unk_index", "blank_index")
        return cls(labels, **{key: dataset[key] for key in keys if key in (dataset or {})})

    @property
    def vocab_size(self):
        """Number of labels, the blank not among them."""
        return len(self.vocab)

    def text_to_ids(self, text):
        """Ids of a text, without what no label says; none where the parser's normalizing gives the text up."""
        return self.parse(text) or []

    def parse(self, text):
        """As `text_to_ids`, but None where the parser's normalizing gives the text up; NeMo leaves such rows out."""
        return self._parser(text)

    def ids_to_tokens(self, ids):
        """Labels of ids, as list of str."""
        return [self.vocab[i] for i in ids]

    def ids_to_text(self, ids):
        """Text of ids."""
        return self.tokens_to_text(self.ids_to_tokens(ids))

    def tokens_to_text(self, tokens):
        """Text of labels."""
        return "".join(tokens)

    def tokens_to_ids(self, tokens):
        """Ids of labels."""
        return [self.vocab.index(token) for token in tokens]

    def text_to_tokens(self, text):
        """Labels of a text."""
        return self.ids_to_tokens(self.text_to_ids(text))
