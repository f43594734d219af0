"""The labels of a character model as a tokenizer."""

import pytest
from configs import LABELS
from omegaconf import OmegaConf

from nemo_comat.models.characters import CharacterTokenizer


@pytest.mark.parametrize(
    "options, text, said",
    [
        ({}, "don't 5", "don't "),  # no label says 5
        ({}, "Dr. No", "r o"),  # not normalised, and capitals have no label
        ({"normalize_transcripts": True}, "Dr. No", "doctor no"),
        ({"normalize_transcripts": True, "parser": "base"}, " Up ", "up"),
        ({"unk_index": 0}, "a5b", "a b"),
    ],
)
def test_labels_read_text_as_nemos_data_does(options, text, said):
    tokenizer = CharacterTokenizer.of(LABELS, OmegaConf.create({"batch_size": 8, **options}))
    ids = tokenizer.text_to_ids(text)
    assert tokenizer.ids_to_text(ids) == said == "".join(tokenizer.text_to_tokens(text))
    assert tokenizer.tokens_to_ids(list(said)) == ids and tokenizer.vocab_size == 28
