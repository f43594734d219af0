"""The cache script: it reads the texts that training asks for, in every form of data."""

import json

import cache_teacher
import data_forms
import pytest
from configs import CORPUS, composed, nemos_own
from omegaconf import OmegaConf

from nemo_comat import ComatCTCModelBPE, ConfigError, TeacherCache
from nemo_comat.models.manifest import ManifestError


@pytest.mark.parametrize("lacking", ["comat", "trainer", "train_ds"])
def test_cache_teacher_with_a_config_of_nemos_own(tmp_path, manifest, lacking):
    nemos_own(tmp_path, manifest, **({} if lacking == "trainer" else {lacking: "absent"}))
    cfg = OmegaConf.load(tmp_path / "own.yaml")
    if lacking == "trainer":
        del cfg.trainer
    if lacking != "comat":
        cfg.model.comat.teacher = {"cache": str(tmp_path / "cache")}
        if lacking == "train_ds":
            cfg.model.test_ds = {"manifest_filepath": manifest}
            with pytest.raises(ConfigError, match="model.train_ds is null, though model.test_ds"):
                cache_teacher.fill(cfg)
        else:
            assert cache_teacher.fill(cfg) == 16
    else:
        with pytest.raises(ConfigError, match="model.comat is missing"):
            cache_teacher.fill(cfg)


def test_cache_teacher_refuses_data_without_manifests():
    with pytest.raises(ConfigError, match="model.train_ds names no manifests"):
        next(cache_teacher.transcripts(OmegaConf.create({"hf_data_cfg": {"path": "x"}})))


def texts_in(folder, texts):
    cache = TeacherCache(folder)
    return len(cache), [text for text in texts if cache.get(text) is None]


@pytest.mark.parametrize("text", ["tokens", "manifest"])
@pytest.mark.parametrize("form", data_forms.FORMS)
def test_cache_teacher_reads_every_form(written, form, text):
    folder, rows = written
    tokenizer = cache_teacher.Tokenizer(OmegaConf.create({"dir": str(CORPUS / "tokenizer"), "type": "bpe"})).tokenizer
    dataset = OmegaConf.create({"is_tarred": False, "shuffle": False, **data_forms.block(form, folder)})
    wanted = [row["text"] for row in rows]
    if text == "tokens":
        wanted = [tokenizer.ids_to_text(tokenizer.text_to_ids(one)).strip() for one in wanted]
    assert sorted(cache_teacher.texts_of(dataset, tokenizer, text)) == sorted(wanted)


@pytest.mark.parametrize("duration", [None, "1"])
def test_cache_teacher_reads_lhotses_rows_of_unknown_length(tmp_path, manifest, duration):
    rows = [json.loads(line) for line in open(manifest)]
    rows[5]["duration"] = duration
    (tmp_path / "train.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = OmegaConf.create({"use_lhotse": True, "manifest_filepath": str(tmp_path / "train.json")})
    found = list(cache_teacher.texts_of(dataset, None, "manifest"))
    assert set(found) == {row["text"] for row in rows}


@pytest.mark.parametrize("row", [{"text": None}, {"text": 5}, {"text": ["a"]}, {"text": [{"str": "a"}]}])
@pytest.mark.parametrize("text", ["tokens", "manifest"])
def test_cache_teacher_names_the_row_that_training_would_refuse(tmp_path, row, text):
    tokenizer = cache_teacher.Tokenizer(OmegaConf.create({"dir": str(CORPUS / "tokenizer"), "type": "bpe"})).tokenizer
    rows = [{"audio_filepath": "a", "duration": 1, "text": "a dog"}, {"audio_filepath": "a", "duration": 1, **row}]
    (tmp_path / "train.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = OmegaConf.create({"manifest_filepath": str(tmp_path / "train.json")})
    with pytest.raises(ManifestError, match="train.json line 2 has a text that the tokenizer cannot read"):
        list(cache_teacher.texts_of(dataset, tokenizer, text))


def test_cache_teacher_reads_aggregate_tokenizers(tmp_path):
    spans = [{"str": "a", "lang": "en"}, {"str": "dog", "lang": "de"}]
    rows = [{"audio_filepath": "a", "duration": 1, "text": "a dog", "lang": lang} for lang in ("en", "de")]
    rows.append({"audio_filepath": "a", "duration": 1, "text": spans})
    (tmp_path / "train.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one = {"dir": str(CORPUS / "tokenizer"), "type": "bpe"}
    cfg = OmegaConf.create({"type": "agg", "langs": {"en": one, "de": one}})
    tokenizer = cache_teacher.Tokenizer(cfg).tokenizer
    dataset = OmegaConf.create({"manifest_filepath": str(tmp_path / "train.json")})
    for text in ("tokens", "manifest"):
        assert list(cache_teacher.texts_of(dataset, tokenizer, text)) == ["a dog"] * 3


@pytest.mark.parametrize("text", ["tokens", "manifest"])
def test_cache_teacher_fills_what_training_asks_for(manifest, written, tmp_path, text):
    overrides = [
        f"model.comat.teacher.cache={tmp_path}/cache",
        f"model.comat.teacher.text={text}",
        f"model.train_ds.manifest_filepath={written[0]}/train.json",
        f"model.validation_ds.manifest_filepath={manifest}",
        f"model.tokenizer.dir={CORPUS / 'tokenizer'}",
    ]
    cfg = composed("conformer_ctc_comat", *overrides, "model.train_ds.num_workers=0", "model.train_ds.pin_memory=false")
    assert cache_teacher.fill(cfg) == cache_teacher.fill(cfg) == 16
    model = ComatCTCModelBPE(cfg=cfg.model)
    texts = [text for batch in model._train_dl for text in model._reference_texts(*batch[2:])]
    assert len(texts) == 16 and texts_in(tmp_path / "cache", texts) == (16, [])
    assert (set(texts) == {row["text"] for row in written[1]}) is (text == "manifest")
    with pytest.raises(ConfigError, match="teacher.cache is missing; give"):
        cache_teacher.fill(composed("conformer_ctc_comat", *overrides[1:]))


def test_a_cache_that_cannot_be_written_is_one_sentence(manifest, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    overrides = [
        f"model.comat.teacher.cache={tmp_path}/file",
        f"model.train_ds.manifest_filepath={manifest}",
        f"model.validation_ds.manifest_filepath={manifest}",
        f"model.tokenizer.dir={CORPUS / 'tokenizer'}",
    ]
    said = []
    monkeypatch.setattr(cache_teacher.logging, "error", said.append)
    with pytest.raises(SystemExit):
        cache_teacher.main(composed("conformer_ctc_comat", *overrides))
    assert said == [f"{tmp_path}/file: File exists; give another path."]
    assert (tmp_path / "file").read_text() == "mine"


def test_only_the_first_rank_looks_for_every_audio_file(manifest, tmp_path, monkeypatch):
    row = {"audio_filepath": "gone.wav", "duration": 1, "text": "a dog"}
    (tmp_path / "train.json").write_text(json.dumps(row))
    overrides = [
        f"model.comat.teacher.cache={tmp_path}/cache",
        f"model.train_ds.manifest_filepath={tmp_path}/train.json",
        f"model.validation_ds.manifest_filepath={manifest}",
        f"model.tokenizer.dir={CORPUS / 'tokenizer'}",
    ]
    with pytest.raises(ManifestError, match="gone.wav does not exist"):
        cache_teacher.fill(composed("conformer_ctc_comat", *overrides))
    monkeypatch.setattr(cache_teacher, "place", lambda cfg: (1, 1, "cpu"))
    assert cache_teacher.fill(composed("conformer_ctc_comat", *overrides)) is None
