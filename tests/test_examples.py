"""The scripts and the configs: every file in conf/ builds and trains a step, and mistakes end in one sentence."""

import json
import sys
from pathlib import Path

import data_forms
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from scripts import load_script
from test_mixin import train

from nemo_comat import ComatCTCModel, ComatCTCModelBPE, ConfigError, TeacherCache
from nemo_comat.align import MonotonicAligner, OneToOneAligner, SinkhornAligner
from nemo_comat.compress import AttentionCompressor, CIFCompressor, CTCCompressor, FrameCompressor
from nemo_comat.models.manifest import ManifestError

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "examples" / "demo_corpus"
CONFIGS = sorted(path.stem for path in (ROOT / "conf").glob("*.yaml"))
# the classes and the loss that a config chooses, where they are not COMAT's own
BUILT = {
    "kt_rl_cif": (CIFCompressor, OneToOneAligner, "cosine"),
    "kt_rl_att": (AttentionCompressor, OneToOneAligner, "cosine"),
    "optimal_transport": (FrameCompressor, SinkhornAligner, "cosine"),
    "hkd": (CIFCompressor, OneToOneAligner, "contrastive"),
}
# millions of weights of a config's encoder, where it is not Conformer small's
ENCODERS = {"conformer_ctc_comat_demo": (0.5, 2), "citrinet_ctc_comat": (20, 22)}
# the same architecture, small and quick
SHRUNK = {
    "fastconformer_ctc_comat": [
        *(f"model.encoder.{key}" for key in ("n_layers=2", "d_model=32", "subsampling_conv_channels=16")),
        "model.optim.lr=1e-2",
    ],
    "citrinet_ctc_comat": [f"model.model_defaults.{key}" for key in ("filters=32", "enc_final=48")],
}


@pytest.fixture(scope="module")
def script():
    return load_script("speech_to_text_comat")


@pytest.fixture(scope="module")
def cache_teacher():
    sys.path.insert(0, str(ROOT / "examples"))
    return load_script("cache_teacher")


def composed(name, *overrides):
    """A config with the command line's overrides, as the script gets it."""
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        cfg = compose(name, overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    OmegaConf.set_readonly(cfg.hydra, False)
    OmegaConf.set_struct(cfg, False)
    cfg.pop("hydra")
    OmegaConf.set_struct(cfg, True)
    return cfg


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_instantiated(script, name):
    cfg = composed(name)
    script.prepare(cfg)
    model = ComatCTCModelBPE(cfg=cfg.model)
    least, most = ENCODERS.get(name, (12, 14))
    assert least < sum(p.numel() for p in model.encoder.parameters()) / 1e6 < most
    assert model.comat is not None and len(model._train_dl.dataset) == 420
    built = (type(model.comat.compressor), type(model.comat.aligner), model.comat.transfer.options["loss"])
    assert built == BUILT.get(name, (CTCCompressor, MonotonicAligner, "cosine"))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_says_how_it_is_launched(name):
    header = (ROOT / "conf" / f"{name}.yaml").read_text().split("\n\n")[0]
    assert f"python examples/speech_to_text_comat.py --config-name={name}" in header


def test_every_config_has_a_name_of_its_own():
    names = {OmegaConf.load(ROOT / "conf" / f"{name}.yaml").name for name in CONFIGS}
    assert len(names) == len(CONFIGS)


def test_without_a_manifest_the_embedded_corpus_is_said_in_one_line(script, monkeypatch):
    said = []
    monkeypatch.setattr(script, "logging", type("L", (), {"info": staticmethod(said.append)}))
    cfg = composed("conformer_ctc_comat", "trainer.max_epochs=3", "model.optim.lr=0.125")
    script.prepare(cfg)
    assert len(said) == 1 and "No manifest given" in said[0] and "embedded corpus" in said[0] and "3 epochs" in said[0]
    # what the command line sets stands before the corpus's own schedule
    assert cfg.trainer.max_epochs == 3 and cfg.model.optim.lr == 0.125
    assert cfg.model.optim.sched.warmup_steps == cfg.embedded_corpus.model.optim.sched.warmup_steps


def test_own_manifests_keep_nemos_schedule(script, manifest):
    cfg = composed(
        "conformer_ctc_comat",
        f"model.train_ds.manifest_filepath={manifest}",
        f"model.validation_ds.manifest_filepath={manifest}",
        f"model.tokenizer.dir={CORPUS / 'tokenizer'}",
    )
    before = OmegaConf.to_yaml(cfg)
    script.prepare(cfg)
    assert OmegaConf.to_yaml(cfg) == before and cfg.trainer.max_epochs == 1000


def test_validation_and_tokenizer_may_be_given_in_nemos_other_ways(script, manifest):
    cfg = composed("conformer_ctc_comat", f"model.train_ds.manifest_filepath={manifest}", "model.tokenizer.dir=x")
    cfg.model.validation_ds = None
    script.prepare(cfg)
    cfg.model.tokenizer = {"type": "agg", "langs": {"en": {"dir": "x", "type": "bpe"}}}
    script.prepare(cfg)


def test_mistakes_get_one_sentence(script, manifest):
    train, dev = f"model.train_ds.manifest_filepath={manifest}", f"model.validation_ds.manifest_filepath={manifest}"
    for overrides, message in [
        ([train, dev], f"tokenizer.dir is missing; .*examples/build_tokenizer.py --manifest={manifest}"),
        ([train], "model.validation_ds.manifest_filepath is missing"),
        ([dev], "names data, model.train_ds does not"),
        (["model.train_ds.manifest_filepath=gone.json", dev, "model.tokenizer.dir=x"], "gone.json does not exist"),
        (["+model.comat.wieght=1"], "model.comat.wieght is not known"),
        (["model.comat.compress.pool=max"], "compress.pool must be one of"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            script.prepare(composed("conformer_ctc_comat", *overrides))
        assert "\n" not in str(error.value)


def test_init_from_needs_no_plus(script):
    given = ["x.py", "init_from_nemo_model=a.nemo", "+init_from_ptl_ckpt=b.ckpt", "model.optim.lr=1"]
    _, *overrides = script.allow_init_from(given)
    cfg = composed("conformer_ctc_comat", *overrides, "model.train_ds.num_workers=0", "model.train_ds.pin_memory=false")
    assert cfg.init_from_nemo_model == "a.nemo" and cfg.init_from_ptl_ckpt == "b.ckpt"


def test_tokenizer_script_builds_what_the_model_reads(manifest, tmp_path, monkeypatch, small_cfg, capfd):
    script = load_script("build_tokenizer")
    monkeypatch.setattr(sys, "argv", ["x", f"--manifest={manifest}", f"--data_root={tmp_path}", "--vocab_size=40"])
    folder = "tokenizer_spe_unigram_v40"
    script.main()
    said = capfd.readouterr()
    assert said.out.endswith(
        f"Tokenizer of 40 pieces built; train with model.tokenizer.dir={tmp_path}/tokenizer_spe_unigram_v40\n"
    )
    # SentencePiece's own log, which is of about ninety lines
    assert "trainer" not in said.err and "EM sub_iter" not in said.err
    small_cfg.tokenizer.dir = str(tmp_path / "tokenizer_spe_unigram_v40")
    model = ComatCTCModelBPE(cfg=small_cfg)
    assert model.tokenizer.vocab_size == 40
    text = json.loads(open(manifest).readline())["text"]
    assert model.tokenizer.ids_to_text(model.tokenizer.text_to_ids(text)) == text
    with pytest.raises(ValueError, match="no text to build a tokenizer from"):
        script.build_tokenizer([], tmp_path, vocab_size=40)
    # a tokenizer that models were trained with stays
    folder = tmp_path / "tokenizer_spe_unigram_v40"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "tokenizer.model").unlink()
    with pytest.raises(SystemExit, match="No tokenizer built: .*tokenizer.vocab exists already; .* or --overwrite"):
        script.main()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--overwrite"])
    script.main()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(sys, "argv", ["x", f"--manifest={manifest}", f"--data_root={tmp_path}/file"])
    with pytest.raises(SystemExit, match="No tokenizer built: .*file is no folder; give another place"):
        script.main()


def test_report_shows_error_rate_transcripts_picture_and_checkpoint(small_cfg, tmp_path, monkeypatch):
    ComatCTCModelBPE(cfg=small_cfg).save_to(str(tmp_path / "m.nemo"))
    script = load_script("demo_report")
    lines = script.report(tmp_path / "m.nemo", CORPUS / "heldout.json")
    assert lines[0].startswith("Word error rate on 60 held-out utterances: ") and lines[0].endswith(" %")
    assert sum(line.startswith("  reference") for line in lines) == 5
    assert (tmp_path / "alignment.png").exists() and str(tmp_path / "m.nemo") in lines[-1]
    (tmp_path / "alignment.png").write_text("mine")
    for arguments, message in [
        ([f"{tmp_path}/m.nemo"], "alignment.png exists already; give another place to write to, or --overwrite"),
        ([f"{tmp_path}/m.nemo", f"--out={tmp_path}/m.nemo", "--overwrite"], "m.nemo is what is read"),
        ([f"{tmp_path}/gone.nemo"], "gone.nemo does not exist; give a .nemo file"),
        ([f"{tmp_path}/m.nemo", f"--out={tmp_path}/a.png", "--manifest=gone"], "gone: No such file or directory; give"),
    ]:
        monkeypatch.setattr(sys, "argv", ["x", *arguments])
        with pytest.raises(SystemExit, match=message):
            script.main()
    assert (tmp_path / "alignment.png").read_text() == "mine"


def test_corpus_is_what_it_says():
    words = {}
    for split, least, most in (("train", 240, 500), ("heldout", 40, 100)):
        rows = [json.loads(line) for line in (CORPUS / f"{split}.json").read_text().splitlines()]
        assert least <= len(rows) <= most
        assert all((CORPUS / row["audio_filepath"]).is_file() for row in rows)
        assert all(3 <= len(row["text"].split()) <= 12 for row in rows)
        words[split] = [row["text"] for row in rows]
    vocabulary = {word for text in words["train"] for word in text.split()}
    assert 180 <= len(vocabulary) <= 220
    assert {word for text in words["heldout"] for word in text.split()} <= vocabulary
    assert not set(words["train"]) & set(words["heldout"])
    assert sum(file.stat().st_size for file in CORPUS.rglob("*") if file.is_file()) < 4e6


@pytest.fixture
def shrunk(manifest):
    """A model config of conf/ by name, shrunk, on the 16 utterances of `manifest`."""

    def make(name, *overrides):
        given = [f"model.{key}.{item}" for key in ("train_ds", "validation_ds") for item in (
            f"manifest_filepath={manifest}", "batch_size=8", "num_workers=0", "pin_memory=false")]  # fmt: skip
        cfg = composed(name, *SHRUNK[name], *given, f"model.tokenizer.dir={CORPUS / 'tokenizer'}", *overrides).model
        if "jasper" in cfg.encoder:
            blocks = [{**cfg.encoder.jasper[i], "repeat": 1} for i in (0, 1, 7, 14, 22)]
            cfg.encoder.jasper = blocks
        return cfg

    return make


@pytest.mark.parametrize("name", SHRUNK)
def test_other_encoders_train(shrunk, manifest, name):
    cfg = shrunk(name, "model.optim.sched.warmup_steps=1", "model.log_prediction=false")
    model, logged = train(ComatCTCModelBPE, cfg, steps=10)
    assert model.encoder.subsampling_factor == 8 and all(p.isfinite().all() for p in model.parameters())
    assert [step["train_active_fraction"] for step in logged] == [1.0] * 10
    for key in ("train_ctc_loss", "train_transfer_loss"):
        assert sum(step[key] for step in logged[-2:]) < 0.95 * sum(step[key] for step in logged[:2])
    row = json.loads(open(manifest).readline())
    alignment = model.align_text(row["audio_filepath"], row["text"])
    assert "".join(alignment.labels).replace("▁", " ").split() == row["text"].split()
    assert 0.5 * row["duration"] < alignment.spans[-1][1] <= row["duration"] + 0.16


def test_citrinet_has_no_layers_to_choose_from(shrunk):
    message = "encoder_layer is 1, but ConvASREncoder has 0 layers to choose from, none; null takes the last frames"
    with pytest.raises(ConfigError, match=message):
        ComatCTCModelBPE(cfg=shrunk("citrinet_ctc_comat", "model.comat.encoder_layer=1"))


LETTERS = ["~model.tokenizer", "+model.labels=[' ',a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q,r,s,t,u,v,w,x,y,z]"]


def test_labels_in_the_place_of_a_tokenizer_make_a_character_model(script, cache_teacher):
    overrides = [*LETTERS, "model.encoder.n_layers=1", "model.decoder.vocabulary=${model.labels}"]
    cfg = composed("conformer_ctc_comat_demo", *overrides, "exp_manager=null")
    trainer, model = script.build(cfg)
    assert type(model) is ComatCTCModel and trainer.max_epochs == cfg.embedded_corpus.trainer.max_epochs
    # the texts of training's batches are those that would be cached
    text = json.loads((CORPUS / "train.json").read_text().splitlines()[0])["text"]
    assert next(cache_teacher.texts_of(cfg.model.train_ds, cache_teacher.tokenizer_of(cfg))) == text
    with pytest.raises(ConfigError, match="tokenizer.dir is missing"):
        data = [f"model.{key}.manifest_filepath={CORPUS}/train.json" for key in ("train_ds", "validation_ds")]
        script.prepare(composed("conformer_ctc_comat", "~model.tokenizer", *data))


def texts_in(folder, texts):
    cache = TeacherCache(folder)
    return len(cache), [text for text in texts if cache.get(text) is None]


@pytest.mark.parametrize("text", ["tokens", "manifest"])
@pytest.mark.parametrize("form", data_forms.FORMS)
def test_cache_teacher_reads_every_form(cache_teacher, written, form, text):
    folder, rows = written
    tokenizer = cache_teacher.Tokenizer(OmegaConf.create({"dir": str(CORPUS / "tokenizer"), "type": "bpe"})).tokenizer
    dataset = OmegaConf.create({"is_tarred": False, "shuffle": False, **data_forms.block(form, folder)})
    wanted = [row["text"] for row in rows]
    if text == "tokens":
        wanted = [tokenizer.ids_to_text(tokenizer.text_to_ids(one)).strip() for one in wanted]
    assert sorted(cache_teacher.texts_of(dataset, tokenizer, text)) == sorted(wanted)


def test_cache_teacher_reads_aggregate_tokenizers(cache_teacher, tmp_path):
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
def test_cache_teacher_fills_what_training_asks_for(cache_teacher, manifest, written, tmp_path, text):
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


def test_a_cache_that_cannot_be_written_is_one_sentence(cache_teacher, manifest, tmp_path, monkeypatch):
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


def test_a_demo_corpus_is_replaced_only_when_told(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    script = load_script("demo_corpus/build_corpus")
    monkeypatch.setattr(script, "load_tts", lambda: pytest.fail("the work was begun"))
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "song.ogg").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["x", f"--out={tmp_path}"])
    with pytest.raises(SystemExit, match="song.ogg exists already; give another place to write to, or --overwrite"):
        script.main()
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit, match="train.json exists already"):
        script.main()
    script.check_place(CORPUS, overwrite=True)


def test_only_the_first_rank_looks_for_every_audio_file(cache_teacher, manifest, tmp_path, monkeypatch):
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
