"""What a teacher can read, asked of models of many families, against trying texts one token longer each time."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    FunnelBaseModel,
    FunnelConfig,
    LEDConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5EncoderModel,
)

from nemo_comat import CachedTeacher, Teacher, TeacherError, write_cache, write_index
from nemo_comat.teacher.limits import NO_LIMIT, find_limits, is_limit
from nemo_comat.teacher.loading import cast_parameters

ROWS = 40  # of position tables
WORDS = ["the", "dog", "runs", "a", "cat", "sleeps"]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
SMALL = dict(vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20)
POSITIONS = dict(max_position_embeddings=ROWS, pad_token_id=1)
ENCODER_DECODER = dict(
    d_model=16,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=20,
    decoder_ffn_dim=20,
)
FAMILIES = {
    "albert": dict(embedding_size=8, **POSITIONS),
    "bart": dict(**ENCODER_DECODER, **POSITIONS),
    "bert": POSITIONS,
    "deberta": dict(relative_attention=True, pos_att_type=["p2c", "c2p"], **POSITIONS),
    "deberta-v2": dict(relative_attention=True, position_biased_input=False, position_buckets=8, **POSITIONS),
    "distilbert": dict(dim=16, hidden_dim=20, n_layers=2, n_heads=2, **POSITIONS),
    "electra": dict(embedding_size=8, **POSITIONS),
    "gpt2": dict(n_positions=ROWS, pad_token_id=1),
    "gptj": dict(n_embd=16, n_layer=2, n_head=2, n_positions=ROWS, rotary_dim=4, pad_token_id=1),
    "llama": POSITIONS,
    "m2m_100": dict(**ENCODER_DECODER, **POSITIONS),
    "mpnet": POSITIONS,
    "opt": dict(ffn_dim=20, word_embed_proj_dim=16, **POSITIONS),
    "roberta": POSITIONS,
    "t5": dict(d_model=16, d_kv=8, d_ff=20, num_layers=2, num_heads=2, relative_attention_num_buckets=8),
    "xlm": dict(emb_dim=16, n_layers=2, n_heads=2, n_words=60, **POSITIONS),
    "xlnet": dict(d_model=16, n_layer=2, n_head=2, d_head=8, d_inner=20, pad_token_id=1),
}
# families that count positions from 0, from padding + 1, or that have no table of them
FIT = {"roberta": ROWS - 2, "mpnet": ROWS - 2, "llama": None, "t5": None, "xlnet": None, "deberta-v2": None}
FIT["m2m_100"] = None


def make_config(family, **changes):
    return AutoConfig.for_model(family, **{**SMALL, **FAMILIES[family], **changes})


def make_model(family, **changes):
    torch.manual_seed(0)
    model = AutoModel.from_config(make_config(family, **changes), attn_implementation="eager").eval()
    encoder = getattr(model, "encoder", None)
    return encoder if isinstance(encoder, PreTrainedModel) else model


def make_tokenizer(added=(), around=True, **options):
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if around:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    options = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", **options}
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)
    made.add_tokens(list(added))
    return made


def save(folder, family, tokenizer=None, **changes):
    """A teacher's folder, its weights random; returns its name."""
    torch.manual_seed(0)
    AutoModel.from_config(make_config(family, **changes)).save_pretrained(folder)
    (tokenizer or make_tokenizer()).save_pretrained(folder)
    return str(folder)


def restate(folder, file, **changes):
    """Changes what a JSON file of a teacher's folder states."""
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def text_of(tokens):
    """A text of so many tokens, <s> and </s> included."""
    return " ".join(WORDS[i % len(WORDS)] for i in range(tokens - 2))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_limit_found_is_the_last_length_that_the_model_reads(family):
    model, longest = make_model(family), None
    for length in range(4, ROWS + 20):
        ids = torch.tensor([([5, 7] * ROWS)[:length]])
        try:
            with torch.no_grad():
                model(input_ids=ids, attention_mask=torch.ones_like(ids))
        except (IndexError, RuntimeError):
            break
        longest = length
    found = find_limits(model, [5, 7], NO_LIMIT)
    assert found.token_ids == 60
    assert found.tokens == (NO_LIMIT if longest == ROWS + 19 else longest)
    assert found.tokens == (FIT.get(family, ROWS) or NO_LIMIT)


def test_what_is_stated_is_a_limit_too():
    assert find_limits(make_model("roberta"), [5, 7], 12).tokens == 12
    assert find_limits(make_model("llama"), [5, 7], 12).tokens == 12


@pytest.mark.parametrize("number", [None, 0, -1, False, True, float("nan"), float("inf"), 10**30, "512"])
def test_no_limit_is_meant(number):
    assert not is_limit(number)


def test_a_limit_is_meant():
    assert is_limit(1) and is_limit(512) and is_limit(512.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_at_the_limit_is_read_and_one_longer_is_left_out(family, tmp_path):
    teacher = Teacher(save(tmp_path, family), layers=-1)
    stated = ROWS if family in ("llama", "deberta-v2", "m2m_100") else NO_LIMIT
    assert teacher.max_length == (FIT.get(family, ROWS) or stated)
    fits = min(teacher.max_length, ROWS + 10)
    texts = [text_of(fits), text_of(fits + 1), "the dog", ""]
    out = teacher.encode(texts)
    too_long = fits + 1 > teacher.max_length
    assert out.too_long.tolist() == [False, too_long, False, False]
    assert out.text_len.tolist() == [fits - 2, 0 if too_long else fits - 1, 2, 0]
    assert out.embeddings.isfinite().all() and (out.embeddings[0, : fits - 2] != 0).any(-1).all()
    # what pads it in the batch changes no row
    alone = Teacher(str(tmp_path), layers=-1).encode(["the dog"]).embeddings[0]
    torch.testing.assert_close(out.embeddings[2, :2], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("stated", [-1, 0, 2, int(1e30), None])
def test_a_tokenizer_whose_limit_cannot_be_meant(stated, tmp_path):
    save(tmp_path, "xlnet")
    restate(tmp_path, "tokenizer_config.json", model_max_length=stated)
    out = Teacher(str(tmp_path)).encode(["the dog", text_of(200)])
    assert out.text_len.tolist() == [2, 198] and not out.too_long.any()


def test_a_tokenizer_whose_limit_is_meant(tmp_path):
    save(tmp_path, "bert")
    restate(tmp_path, "tokenizer_config.json", model_max_length=10)
    assert Teacher(str(tmp_path)).max_length == 10


def test_a_cached_teacher_leaves_out_what_the_live_one_does(tmp_path):
    name, cache = save(tmp_path / "teacher", "roberta"), tmp_path / "cache"
    texts = [text_of(ROWS - 2), text_of(ROWS - 1), text_of(ROWS), "a cat"]
    list(write_cache(cache, Teacher(name), texts[1:]))
    write_index(cache)
    live, cached = Teacher(name).encode(texts), CachedTeacher(Teacher(name), cache).encode(texts)
    assert cached.lacking == 1
    assert live.too_long.tolist() == cached.too_long.tolist() == [False, True, True, False]
    assert live.text_len.equal(cached.text_len)
    torch.testing.assert_close(cached.embeddings, live.embeddings, rtol=2**-10, atol=1e-5)


def test_tokens_without_embeddings_are_refused_at_the_first_use(tmp_path):
    save(tmp_path, "bert", make_tokenizer(added=["zebra", "boat"]), vocab_size=len(SPECIAL + WORDS))
    with pytest.raises(
        TeacherError, match=r"token 'zebra' the id 10, but the model has 10 .* \(2 tokens too few\). Call"
    ):
        Teacher(str(tmp_path)).encode(["the dog"])
    with pytest.raises(TeacherError, match="token 'zebra' the id 10"):
        list(write_cache(tmp_path / "cache", Teacher(str(tmp_path)), ["the dog"]))


def test_added_padding_without_an_embedding_is_not_needed(tmp_path):
    tokenizer = make_tokenizer(pad_token="[PAD]")
    name = save(tmp_path, "gpt2", tokenizer, vocab_size=len(SPECIAL + WORDS))
    assert tokenizer.pad_token_id == len(SPECIAL + WORDS)
    out = Teacher(name, layers=-1).encode(["the dog", "a cat sleeps"])
    alone = Teacher(name, layers=-1).encode(["the dog"])
    torch.testing.assert_close(out.embeddings[0, :2], alone.embeddings[0])
    with pytest.raises(TeacherError, match=r"a token of 'the \[PAD\]' the id 10, but the model has 10"):
        Teacher(name).encode(["the [PAD]"])


def test_an_unknown_token_without_an_embedding_is_refused(tmp_path):
    name = save(tmp_path, "gpt2", make_tokenizer(unk_token="[UNK]"), vocab_size=len(SPECIAL + WORDS))
    with pytest.raises(TeacherError, match=r"token '\[UNK\]' the id 10"):
        Teacher(name).encode(["the dog"])


@pytest.mark.parametrize("family", ["bert", "roberta", "t5", "gpt2", "xlnet", "distilbert", "electra", "albert"])
def test_a_folder_without_a_tokenizer_is_refused(family, tmp_path):
    make_model(family).save_pretrained(tmp_path)
    make_config(family).save_pretrained(tmp_path)
    # transformers 5 makes a tokenizer of nothing, and version 4 does not
    said = "no token with a letter|cannot be loaded: "
    with pytest.raises(TeacherError, match=f"{tmp_path}.*: its tokenizer .*({said})"):
        Teacher(str(tmp_path)).encode(["the dog"])


def test_an_encoder_alone_is_enough(tmp_path):
    name = save(tmp_path, "t5")
    torch.manual_seed(0)
    encoder = T5EncoderModel.from_pretrained(name)
    whole = Teacher(name, layers=[0, -1]).encode(["the dog runs"])
    encoder.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for is_encoder_decoder in (True, False):
        restate(tmp_path, "config.json", **{**config, "is_encoder_decoder": is_encoder_decoder})
        alone = Teacher(name, layers=[0, -1]).encode(["the dog runs"])
        assert alone.embeddings.equal(whole.embeddings) and alone.text_len.tolist() == [3]


def test_upper_layers_are_needed_by_upper_layers_only(tmp_path):
    name = save(tmp_path, "bert")
    lower = Teacher(name, layers=[0, 1]).encode(["the dog"]).embeddings
    restate(tmp_path, "config.json", num_hidden_layers=3)
    assert Teacher(name, layers=[0, 1]).encode(["the dog"]).embeddings.equal(lower)
    with pytest.raises(TeacherError, match=r"weights lack encoder\.layer\.2.* and \d+ more, which layers \[-1\] need"):
        Teacher(name, layers=-1).encode(["the dog"])
    assert not any(parameter.requires_grad for parameter in Teacher(name).model.parameters())


def test_hidden_states_that_are_not_one_a_token_are_refused(tmp_path):
    options = dict(vocab_size=60, d_model=16, n_head=2, d_head=8, d_inner=20, block_sizes=[1, 1, 1], separate_cls=False)
    FunnelBaseModel(FunnelConfig(**options)).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    said = r"layer 3 has hidden states \[1, 1, 16\] for 4 tokens, expected \[1, 4, 16\], one for each token"
    with pytest.raises(TeacherError, match=said):
        Teacher(str(tmp_path), layers=3).encode(["the dog runs"])
    # its first layers have not been pooled yet
    assert Teacher(str(tmp_path), layers=1).encode(["the dog runs"]).text_len.tolist() == [3]


def test_a_width_that_the_config_does_not_state_is_refused(tmp_path):
    name = save(tmp_path, "opt", word_embed_proj_dim=8)
    with pytest.raises(TeacherError, match=r"layer -1 has hidden states \[1, 4, 8\] .*expected \[1, 4, 16\]"):
        Teacher(name, layers=-1).encode(["the dog"])


def test_a_special_token_that_no_text_gets_need_not_be_known(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<|reserved|>"], special_tokens=True)
    name = save(tmp_path, "bert", tokenizer, vocab_size=len(tokenizer) - 1)
    assert Teacher(name).encode(["the dog"]).text_len.tolist() == [2]


def test_a_tokenizer_that_fails_on_a_text_is_named(tmp_path):
    name = save(tmp_path, "bert")
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    del saved["model"]["vocab"]["<unk>"]
    saved["added_tokens"] = [token for token in saved["added_tokens"] if token["content"] != "<unk>"]
    saved["model"]["unk_token"] = "[no such token]"
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    for texts in (["the zebra"], ["the dog", "the zebra", "a cat"]):
        with pytest.raises(TeacherError, match="its tokenizer cannot read the text 'the zebra': .*check its files"):
            Teacher(name).encode(texts)
    # a cache may be of it nevertheless
    assert Teacher(name).description["tokenizer"] != Teacher(save(tmp_path / "whole", "bert")).description["tokenizer"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["deberta", "xlnet", "t5", "llama"])
def test_a_models_own_float32_weights_are_of_the_dtype_too(family, dtype, tmp_path):
    save(tmp_path, family)
    texts = ["the dog runs", "a"]
    whole, half = (Teacher(str(tmp_path), layers=-1, dtype=one).encode(texts).embeddings for one in ("float32", dtype))
    assert (half - whole).norm() < 0.02 * whole.norm() and not half.equal(whole)


@pytest.mark.parametrize("first", ["encode", "check", "table"])
def test_a_dtype_that_the_device_decides_is_that_of_loading(tmp_path, monkeypatch, first):
    save(tmp_path, "llama")
    monkeypatch.setattr("nemo_comat.teacher.language_model.fastest_dtype", lambda device: torch.bfloat16)
    teacher, given = Teacher(str(tmp_path), layers=-1), Teacher(str(tmp_path), layers=-1, dtype="bfloat16")
    getattr(teacher, first)(*[["a"]] * (first == "encode"), device=torch.device("cpu"))
    assert teacher.encode(["the dog runs"]).embeddings.equal(given.encode(["the dog runs"]).embeddings)
    kinds = {name: buffer.dtype for name, buffer in teacher.model.named_buffers()}
    # angles of 8 bits would be of other places
    assert kinds and set(kinds.values()) == {torch.float32}


def test_the_encoders_limit_is_stated_by_another_name_too(tmp_path):
    config = LEDConfig(vocab_size=60, attention_window=4, max_encoder_position_embeddings=ROWS, **ENCODER_DECODER)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert Teacher(str(tmp_path)).max_length == ROWS


def test_a_limit_that_the_model_refuses_to_pass_is_stated(tmp_path):
    """MPT has no table of positions, and a mask of so many."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("mpt", d_model=16, n_heads=2, n_layers=1, vocab_size=60, max_seq_len=16)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    out = Teacher(str(tmp_path)).encode([text_of(16), text_of(17)])
    assert out.text_len.tolist() == [14, 0] and out.too_long.tolist() == [False, True]


def test_what_a_model_keeps_in_float32_and_what_has_no_arithmetic_is_not_cast():
    model = torch.nn.ModuleDict({"wo": torch.nn.Linear(2, 1), "wi": torch.nn.Linear(2, 1)})
    model._keep_in_fp32_modules = ["wo"]
    model.wi.bias = torch.nn.Parameter(torch.zeros(1).to(torch.float8_e4m3fn), requires_grad=False)
    cast_parameters(model, torch.float16)
    assert model.wo.weight.dtype == torch.float32 and model.wi.weight.dtype == torch.float16
    assert model.wi.bias.dtype == torch.float8_e4m3fn
