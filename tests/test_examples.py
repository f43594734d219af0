"""The scripts and the configs: every file in conf/ builds and trains a step, and mistakes end in one sentence."""

import json
import sys
from pathlib import Path

import data_forms
import numpy as np
import pytest
import soundfile
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from scripts import load_script
from sentencepiece import SentencePieceProcessor
from test_mixin import train

from nemo_comat import ComatCTCModel, ComatCTCModelBPE, ConfigError, TeacherCache, TeacherError
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
ENCODERS = {"conformer_ctc_comat_demo": (0.5, 2), "citrinet_ctc_comat": (20, 22), "finetune_ctc_comat": (0.02, 0.1)}
# the same architecture, small and quick
SHRUNK = {
    "fastconformer_ctc_comat": [
        *(f"model.encoder.{key}" for key in ("n_layers=2", "d_model=32", "subsampling_conv_channels=16")),
        "model.optim.lr=1e-2",
        "model.interctc.apply_at_layers=[0]",
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


@pytest.fixture
def started_from(small_cfg, tmp_path):
    """The override that a config without an encoder needs to be instantiated: a small model's file."""

    def make(name):
        if not name.startswith("finetune"):
            return []
        ComatCTCModelBPE(cfg=small_cfg).save_to(str(tmp_path / "m.nemo"))
        return [f"init_from_nemo_model={tmp_path}/m.nemo"]

    return make


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_instantiated(script, name, started_from):
    cfg = composed(name, *started_from(name))
    script.prepare(cfg)
    model = script.make_model(cfg)
    least, most = ENCODERS.get(name, (12, 14))
    assert least < sum(p.numel() for p in model.encoder.parameters()) / 1e6 < most
    assert model.comat is not None and len(model._train_dl.dataset) == 420
    built = (type(model.comat.compressor), type(model.comat.aligner), model.comat.transfer.options["loss"])
    loss = "cosine" if name.startswith("finetune") else "classify"
    assert built == BUILT.get(name, (CTCCompressor, MonotonicAligner, loss))
    # a fine-tuned file's own is kept, the relatives' papers have none, Citrinet's blocks differ in width
    assert model.is_interctc_enabled() == (name not in {*BUILT, "finetune_ctc_comat", "citrinet_ctc_comat"})


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_says_how_it_is_launched(name):
    header = (ROOT / "conf" / f"{name}.yaml").read_text().split("\n\n")[0]
    assert f"python examples/speech_to_text_comat.py --config-name={name}" in header


def test_every_config_has_a_name_of_its_own():
    names = {OmegaConf.load(ROOT / "conf" / f"{name}.yaml").name for name in CONFIGS}
    assert len(names) == len(CONFIGS)


def test_a_second_view_that_was_asked_for_stays_on_the_embedded_corpus(script, monkeypatch):
    said = []
    monkeypatch.setattr(script.logging, "info", said.append)
    cfg = composed("conformer_ctc_comat", "model.comat.consistency_weight=0.5")
    script.prepare(cfg)
    assert cfg.model.comat.consistency_weight == 0.5 and "one view" not in " ".join(said)


def test_without_a_manifest_the_embedded_corpus_is_said_in_one_line(script, monkeypatch):
    said = []
    monkeypatch.setattr(script, "logging", type("L", (), {"info": staticmethod(said.append)}))
    cfg = composed("conformer_ctc_comat", "trainer.max_epochs=3", "model.optim.lr=0.125")
    script.prepare(cfg)
    assert len(said) == 1 and "No manifest given" in said[0] and "embedded corpus" in said[0] and "3 epochs" in said[0]
    assert "epochs, and one view of each batch for two (model.comat.consistency_weight=0.2); with" in said[0]
    # what the command line sets stands before the corpus's own schedule
    assert cfg.trainer.max_epochs == 3 and cfg.model.optim.lr == 0.125
    assert cfg.model.optim.sched.warmup_steps == cfg.embedded_corpus.model.optim.sched.warmup_steps
    cfg = composed("conformer_ctc_comat", "model.optim={name:adamw,lr:0.125}", "~model.optim.sched")
    script.prepare(cfg)
    assert cfg.model.optim.lr == 0.125 and "sched" not in cfg.model.optim


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
    folder = CORPUS / "tokenizer"
    cfg = composed(
        "conformer_ctc_comat", f"model.train_ds.manifest_filepath={manifest}", f"model.tokenizer.dir={folder}"
    )
    cfg.model.validation_ds = None
    script.prepare(cfg)
    cfg.model.tokenizer = {"type": "agg", "langs": {"en": {"dir": str(folder), "type": "bpe"}}}
    script.prepare(cfg)
    # files of the tokenizer's own need no folder
    cfg.model.tokenizer = {"type": "bpe", "dir": "x", "model_path": str(folder / "tokenizer.model")}
    script.prepare(cfg)


def test_mistakes_get_one_sentence(script, manifest):
    tokenizer = f"model.tokenizer.dir={CORPUS / 'tokenizer'}"
    train, dev = f"model.train_ds.manifest_filepath={manifest}", f"model.validation_ds.manifest_filepath={manifest}"
    for overrides, message in [
        ([train, dev], f"tokenizer.dir is missing; .*examples/build_tokenizer.py --manifest={manifest}"),
        ([train], "model.validation_ds.manifest_filepath is missing.* where model.train_ds.manifest_filepath may name"),
        ([dev], "names data, model.train_ds does not"),
        (["model.train_ds.manifest_filepath=gone.json", dev, tokenizer], "gone.json does not exist"),
        (
            [train, dev, "model.tokenizer.dir=gone"],
            r"model.tokenizer.dir=gone is no folder \(seen from .*; give the folder",
        ),
        ([train, dev, f"{tokenizer}/tokenizer.model"], "tokenizer.model is no folder"),
        ([train, dev, f"model.tokenizer.dir={CORPUS}"], "has no tokenizer.model, which a tokenizer of type bpe is in"),
        ([train, dev, tokenizer, "+init_from_nemo_model=gone.nemo"], "init_from_nemo_model: gone.nemo does not exist"),
        (
            [train, dev, tokenizer, "+init_from_ptl_ckpt={a: {path: gone.ckpt, include: [encoder]}}"],
            "init_from_ptl_ckpt: gone.ckpt does not exist",
        ),
        (["+model.comat.wieght=1"], "model.comat.wieght is not known"),
        (["model.comat.compress.pool=max"], "compress.pool must be one of"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            script.prepare(composed("conformer_ctc_comat", *overrides))
        assert "\n" not in str(error.value)


# what names data to one of NeMo's readers, and not by manifest_filepath; FOLDER is that of data_forms
NAMED = {
    "multi_config": {
        "use_lhotse": True, "multi_config": True, "seed": 0, "shard_seed": 0,
        "first": {"manifest_filepath": "FOLDER/train.json", "batch_size": 4},
        "second": {"cuts_path": "FOLDER/cuts.jsonl.gz", "batch_size": 4},
    },
    "input_cfg": {"use_lhotse": True, "input_cfg": [{"type": "nemo", "manifest_filepath": "FOLDER/train.json"}]},
    "input_cfg in a file": {"use_lhotse": True, "input_cfg": "FOLDER/input.yaml"},
    "cuts_path": {"use_lhotse": True, "cuts_path": "FOLDER/cuts.jsonl.gz"},
    "shar_path": {"use_lhotse": True, "shar_path": "FOLDER/shar", "shuffle_buffer_size": 16},
    "shar_path by field": {
        "use_lhotse": True, "shuffle_buffer_size": 16, "shar_path": {
            "cuts": ["FOLDER/shar/cuts.000000.jsonl.gz"], "recording": ["FOLDER/shar/recording.000000.tar"],
        },
    },
}  # fmt: skip


def named_by(block, folder, *overrides, name="train_ds"):
    """The small config whose train_ds, or another block, gets more keys, and keeps its ??? for the manifest."""
    cfg = composed(
        "conformer_ctc_comat_demo", "exp_manager=null", f"model.tokenizer.dir={CORPUS}/tokenizer", *overrides
    )
    OmegaConf.set_struct(cfg, False)
    options = {"num_workers": 0, "pin_memory": False, **data_forms.at(block, folder)}
    cfg.model[name] = OmegaConf.merge(cfg.model[name], options)
    OmegaConf.set_struct(cfg, True)
    return cfg


@pytest.mark.parametrize("name", NAMED)
def test_data_that_are_named_in_any_way_are_trained_on(script, cache_teacher, written, name):
    folder, rows = written
    (folder / "input.yaml").write_text(OmegaConf.to_yaml(data_forms.at(NAMED["input_cfg"]["input_cfg"], folder)))
    cfg = named_by(
        NAMED[name], folder, "model.validation_ds=null", "trainer.max_steps=2", "+trainer.limit_train_batches=2"
    )
    _, model = script.build(cfg)
    # the embedded corpus's texts have neither capitals nor commas, and its audio other lengths
    lengths = {row["samples"] for row in rows}
    batch = next(iter(model._train_dl))
    assert len(batch[1]) and all(min(abs(n - length) for length in lengths) <= 1 for n in batch[1].tolist())
    texts = list(cache_teacher.texts_of(cfg.model.train_ds, model.tokenizer, "manifest"))
    assert texts and set(texts) <= {row["text"] for row in rows}
    assert cfg.trainer.max_epochs != cfg.embedded_corpus.trainer.max_epochs


def test_several_validation_sets_with_keys_of_their_own(script, manifest):
    items = [
        {"name": n, "manifest_filepath": manifest, "sample_rate": 16000, "batch_size": 4, "shuffle": False}
        for n in "ab"
    ]
    train = f"model.train_ds.manifest_filepath={manifest}"
    cfg = named_by({"ds_item": items}, "", train, "model.train_ds.num_workers=0", name="validation_ds")
    _, model = script.build(cfg)
    assert model._validation_names == ["a", "b"] and [len(loader.dataset) for loader in model._validation_dl] == [
        16,
        16,
    ]
    items[1]["manifest_filepath"] = "gone.json"
    with pytest.raises(
        ManifestError, match=r"model\.validation_ds\.ds_item\[1\]\.manifest_filepath=gone.json does not"
    ):
        script.build(named_by({"ds_item": items}, "", train, name="validation_ds"))


def test_lhotse_and_a_schedule_need_the_number_of_steps(script, written):
    cfg = named_by(NAMED["cuts_path"], written[0], "model.validation_ds=null")
    with pytest.raises(ConfigError, match="NoamAnnealing needs the number of steps.*give trainer.max_steps=STEPS"):
        script.build(cfg)
    for overrides in (["trainer.max_steps=2"], ["~model.optim.sched"]):
        script.build(named_by(NAMED["cuts_path"], written[0], "model.validation_ds=null", *overrides))


@pytest.mark.parametrize("form", ["shar_path", "shar_path by field"])
def test_lhotse_and_an_epoch_need_the_number_of_batches(script, written, form):
    cfg = named_by(NAMED[form], written[0], "model.validation_ds=null", "trainer.max_steps=2")
    with pytest.raises(
        ConfigError, match=r"model.train_ds does not tell .* give \+\+trainer.limit_train_batches=BATCHES"
    ):
        script.build(cfg)


@pytest.mark.parametrize(
    "overrides",
    [
        ["+model.train_ds.multi_config=true", "model.validation_ds=null"],
        ["+model.train_ds.multi_config=true", "+model.train_ds.use_lhotse=true", "model.validation_ds=null"],
        ["+model.train_ds.a_reader_of_tomorrow={path: x}"],
        ["+model.train_ds.a_reader_of_tomorrow=[x]"],
        ["+model.train_ds.hf_data_cfg={path: x}"],
        ["model.train_ds.tarred_audio_filepaths=x.tar"],
        ["model.test_ds.manifest_filepath=x.json"],
        ["model.train_ds=null"],
        ["~model.train_ds"],
        ["~embedded_corpus"],
        ["embedded_corpus=null"],
    ],
)
def test_the_embedded_corpus_takes_nobodys_place(script, overrides):
    cfg = composed(
        "conformer_ctc_comat_demo", "exp_manager=null", f"model.tokenizer.dir={CORPUS}/tokenizer", *overrides
    )
    try:
        script.complete(cfg)
    except ConfigError as error:
        assert "\n" not in str(error)
    for name in ("train_ds", "validation_ds"):
        assert str(CORPUS) not in str(OmegaConf.select(cfg, f"model.{name}.manifest_filepath", throw_on_missing=False))


OPTIONS = ["model.train_ds.batch_size=4", "++model.train_ds.trim_silence=true", "++model.train_ds.max_utts=3"]
WITHOUT_BLOCK = ["model.test_ds=null", "model.validation_ds=null", "~model.test_ds", "~model.spec_augment"]


@pytest.mark.parametrize("option", [*OPTIONS, *WITHOUT_BLOCK])
def test_options_alone_leave_the_embedded_corpus(script, option):
    cfg = composed("conformer_ctc_comat_demo", "exp_manager=null", option)
    script.prepare(cfg)
    assert cfg.model.train_ds.manifest_filepath == str(CORPUS / "train.json")
    # a block that is left out stays out
    for name in ("test_ds", "validation_ds", "spec_augment"):
        assert (cfg.model.get(name) is None) is (option in (f"model.{name}=null", f"~model.{name}"))


@pytest.mark.parametrize(
    "block, message",
    [
        (
            {"parser": "en"},
            r"NeMo finds no data by model.train_ds \(by its parser\); give model.train_ds.manifest_filepath=FILE",
        ),
        ({"input_cfg": []}, "NeMo finds no data by model.train_ds"),
        ({"is_tarred": True, "tarred_audio_filepaths": "x.tar"}, "NeMo finds no data by model.train_ds"),
        ({"use_lhotse": True, "parser": "en"}, "model.train_ds: You must specify either: manifest_filepath"),
        ({"multi_config": True}, "NeMo finds no data by model.train_ds"),
        ({"multi_config": True, "use_lhotse": True}, "model.train_ds: In a multi-config setting.*'seed', 'shard_seed'"),
    ],
)
def test_what_names_nothing_to_nemo_is_refused_before_training(script, block, message):
    with pytest.raises(ConfigError, match=message) as error:
        script.build(named_by(block, "", "model.validation_ds=null"))
    assert "\n" not in str(error.value)


def nemos_own(folder, manifest, **changes):
    """A config as users of NeMo have it, with our block: no embedded_corpus, no keys that NeMo does not need."""
    cfg = OmegaConf.load(ROOT / "conf" / "conformer_ctc_comat.yaml").model
    keys = ("sample_rate", "preprocessor", "encoder", "decoder", "comat")
    model = {key: value for key, value in OmegaConf.to_container(cfg, resolve=False).items() if key in keys}
    del model["preprocessor"]["window_stride"], model["preprocessor"]["window_size"]
    model["encoder"].update(n_layers=2, d_model=32, conv_kernel_size=7)
    model["comat"] = {"pictures": 1, "encoder_layer": 0}
    model["train_ds"] = {"manifest_filepath": manifest, "sample_rate": 16000, "batch_size": 8, "shuffle": True}
    model["tokenizer"] = {"dir": str(CORPUS / "tokenizer"), "type": "bpe"}
    model["optim"] = {"name": "adamw", "lr": 1e-3}
    trainer = {"accelerator": "cpu", "devices": 1, "max_steps": 2, "logger": False, "enable_checkpointing": False}
    model = {key: value for key, value in {**model, **changes}.items() if value != "absent"}
    folder.mkdir(exist_ok=True)
    OmegaConf.save(OmegaConf.create({"name": "own", "trainer": trainer, "model": model}), folder / "own.yaml")


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("tested", ["absent", None, {"manifest_filepath": None, "shuffle": False}, "data"])
def test_a_config_of_nemos_own_trains_to_the_end(tmp_path, manifest, script, monkeypatch, validated, tested):
    data = {"manifest_filepath": manifest, "sample_rate": 16000, "batch_size": 8, "shuffle": False}
    test_ds, validation_ds = data if tested == "data" else tested, data if validated else "absent"
    nemos_own(tmp_path / "conf", manifest, test_ds=test_ds, validation_ds=validation_ds)
    ran = []
    for step in ("fit", "test"):
        original = getattr(script.pl.Trainer, step)
        run = lambda trainer, *args, step=step, original=original: ran.append(step) or original(trainer, *args)  # noqa: E731
        monkeypatch.setattr(script.pl.Trainer, step, run)
    monkeypatch.setattr(sys, "argv", ["x", f"--config-path={tmp_path / 'conf'}", "--config-name=own"])
    monkeypatch.chdir(tmp_path)
    script.main()
    assert ran == (["fit", "test"] if tested == "data" else ["fit"])


def test_blocks_of_nemos_character_configs_that_name_no_data(tmp_path, manifest, script, monkeypatch):
    ran, original = [], script.pl.Trainer.test
    monkeypatch.setattr(script.pl.Trainer, "test", lambda *args: ran.append("test") or original(*args))
    labels = [" ", *"abcdefghijklmnopqrstuvwxyz"]
    empty = {"manifest_filepath": None, "labels": "${model.labels}", "shuffle": False}
    nemos_own(tmp_path, manifest, labels=labels, tokenizer=None, validation_ds=empty, test_ds={**empty, "parser": "en"})
    cfg = OmegaConf.load(tmp_path / "own.yaml")
    cfg.model.decoder.vocabulary = labels
    OmegaConf.save(cfg, tmp_path / "own.yaml")
    said = []
    monkeypatch.setattr(script.logging, "warning", said.append)
    monkeypatch.setattr(sys, "argv", ["x", f"--config-path={tmp_path}", "--config-name=own"])
    monkeypatch.chdir(tmp_path)
    script.main()
    assert (
        not ran and sum("NeMo finds no data by model.test_ds: the run does without" in str(line) for line in said) == 1
    )
    assert not any("NeMo finds no data by model.validation_ds" in str(line) for line in said)
    # nor are labels data: what is missing is said
    cfg.model.validation_ds.manifest_filepath = "???"
    with pytest.raises(ConfigError, match="model.validation_ds.manifest_filepath is missing"):
        script.prepare(cfg)


@pytest.mark.parametrize("validation_ds", ["absent", None])
def test_a_model_whose_config_has_no_validation_data_transcribes(tmp_path, manifest, validation_ds):
    nemos_own(tmp_path, manifest, validation_ds=validation_ds)
    model = ComatCTCModelBPE(cfg=OmegaConf.load(tmp_path / "own.yaml").model)
    before = OmegaConf.to_container(model.cfg)
    audio = [json.loads(line)["audio_filepath"] for line in open(manifest)][:2]
    found = [one.text for one in model.transcribe(audio, verbose=False)]
    assert OmegaConf.to_container(model.cfg) == before
    OmegaConf.update(model.cfg, "validation_ds", {}, force_add=True)
    assert found == [one.text for one in model.transcribe(audio, verbose=False)]


def test_the_alignment_of_a_model_whose_config_leaves_keys_to_nemo(tmp_path, manifest):
    nemos_own(tmp_path, manifest)
    row = json.loads(open(manifest).readline())
    alignment = ComatCTCModelBPE(cfg=OmegaConf.load(tmp_path / "own.yaml").model).align_text(
        row["audio_filepath"], row["text"]
    )
    assert alignment.frame_seconds == 0.01 and 0 < alignment.spans[-1][1] <= row["duration"] + 0.08


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"train_ds": {"manifest_filepath": "???"}}, "No data are named; give model.train_ds.manifest_filepath=FILE"),
        ({"train_ds": "absent"}, "No data are named"),
        (
            {"train_ds": None, "test_ds": {"manifest_filepath": "x"}},
            "model.train_ds is null, though model.test_ds names",
        ),
        ({"tokenizer": "absent"}, "model.tokenizer.dir is missing"),
        ({"test_ds": {"shuffle": False}}, "model.test_ds.manifest_filepath is missing"),
        ({"validation_ds": {"manifest_filepath": "???"}}, "model.validation_ds.manifest_filepath is missing"),
        (
            {"test_ds": {"manifest_filepath": "gone.json"}},
            r"model\.test_ds\.manifest_filepath=gone.json does not exist",
        ),
    ],
)
def test_what_a_config_of_nemos_own_lacks_is_said_before_training(tmp_path, manifest, script, changes, message):
    nemos_own(tmp_path, manifest, **changes)
    with pytest.raises(ValueError, match=message) as error:
        script.prepare(OmegaConf.load(tmp_path / "own.yaml"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("lacking", ["comat", "trainer", "train_ds"])
def test_cache_teacher_with_a_config_of_nemos_own(tmp_path, manifest, cache_teacher, lacking):
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


def test_cache_teacher_refuses_data_without_manifests(cache_teacher):
    with pytest.raises(ConfigError, match="model.train_ds names no manifests"):
        next(cache_teacher.transcripts(OmegaConf.create({"hf_data_cfg": {"path": "x"}})))


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


def test_tokenizer_script_reads_long_texts_too(tmp_path):
    script = load_script("build_tokenizer")
    long = " ".join(["dog"] * 1500 + ["ñandú", "żółw"] + ["cat"] * 1500)
    # a text without spaces, of letters of three bytes each
    other = "犬猫" * 2000
    script.build_tokenizer([long, other, "a dog"] * 5, tmp_path, vocab_size=24, spe_type="char")
    tokenizer = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert tokenizer.unk_id() not in tokenizer.encode("ñandú żółw 犬猫 dog")
    assert script.lines_of("a  dog ") == ["a  dog "]


def test_tokenizer_script_learns_from_texts_only(tmp_path, capsys):
    script = load_script("build_tokenizer")
    spans = [{"str": "der", "lang": "de"}, {"str": "dog", "lang": "en"}]
    rows = [{"text": "a dog"}, {"text": None}, {}, {"text": ""}, {"normalized_text": "a cat"}, {"text": spans}]
    (tmp_path / "train.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert script.read_texts([tmp_path / "train.json"]) == ["a dog", "a cat", "der dog"]
    assert "3 of 6 rows have no text, or an empty one: left out." in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"text": "a"}\n{"text": "caf\xe9"}', "train.json line 2 is not UTF-8"),
        (b'{"text": 5}', "train.json line 1 has a text that cannot be read, 5"),
        (b"{oops", "train.json line 1 is not JSON"),
        (b"", "there is no text to build a tokenizer from"),
        (None, "train.json does not exist"),
    ],
)
def test_tokenizer_script_names_what_it_cannot_read(tmp_path, monkeypatch, content, message):
    if content is not None:
        (tmp_path / "train.json").write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["x", f"--manifest={tmp_path}/train.json", f"--data_root={tmp_path}"])
    with pytest.raises(SystemExit, match=message) as error:
        load_script("build_tokenizer").main()
    assert "\n" not in str(error.value)


def test_report_reads_manifests_as_nemo_does(tmp_path):
    script = load_script("demo_report")
    (tmp_path / "a.wav").touch()
    rows = [{"audio_filename": "a.wav", "duration": 1, "normalized_text": "a dog"}]
    (tmp_path / "m.json").write_text(json.dumps(rows[0]))
    with script.read_manifest(tmp_path / "m.json") as read:
        assert read == ([str(tmp_path / "a.wav")], ["a dog"])
    for content, message in (
        ("{oops", "line 1 is not JSON"),
        ("", "has no rows"),
        (json.dumps({**rows[0], "offset": "1"}), "offset"),
    ):
        (tmp_path / "m.json").write_text(content)
        with pytest.raises(ManifestError, match=message), script.read_manifest(tmp_path / "m.json"):
            pass


def test_report_hears_the_part_of_a_file_that_a_row_names(tmp_path):
    script = load_script("demo_report")
    samples = (np.arange(32000, dtype="float32") / 32000).reshape(-1, 2)
    soundfile.write(tmp_path / "a.wav", samples, 8000, subtype="FLOAT")
    parts = [{"offset": 0.5, "duration": 0.25}, {"offset": 1.5, "duration": None}, {"duration": 1}]
    lines = [json.dumps({"audio_filepath": "a.wav", "text": "a dog", **part}) for part in parts]
    (tmp_path / "m.json").write_text("\n".join(lines))
    with script.read_manifest(tmp_path / "m.json") as (audio, texts):
        heard = [soundfile.read(file, dtype="float32") for file in audio]
    assert [rate for _, rate in heard] == [8000] * 3 and texts == ["a dog"] * 3
    for (found, _), wanted in zip(heard, (samples[4000:6000], samples[12000:], samples[:8000])):
        np.testing.assert_array_equal(found, wanted)


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
        ([f"{tmp_path}/m.nemo", f"--out={tmp_path}/a.png", "--manifest=gone"], "gone does not exist .*; give"),
    ]:
        monkeypatch.setattr(sys, "argv", ["x", *arguments])
        with pytest.raises(SystemExit, match=message):
            script.main()
    assert (tmp_path / "alignment.png").read_text() == "mine"


def test_a_report_does_without_what_cannot_be_aligned(small_cfg, manifest, tmp_path):
    model = tmp_path / "m.nemo"
    ComatCTCModelBPE(cfg=small_cfg).save_to(str(model))
    rows = [json.loads(line) for line in open(manifest)][:2]
    script = load_script("demo_report")
    for texts, picture in ((["", rows[1]["text"]], True), (["", "a " * 200], False)):
        (tmp_path / "m.json").write_text("\n".join(json.dumps({**row, "text": t}) for row, t in zip(rows, texts)))
        out = tmp_path / f"{picture}.png"
        lines = script.report(model, tmp_path / "m.json", out.with_suffix(""), tmp_path / f"{picture}.html")
        assert out.exists() is picture and any("No picture of an alig" in line for line in lines) is not picture
        page = (tmp_path / f"{picture}.html").read_text()
        assert lines[0].startswith("Word error rate on 2 utterances") and "expect little" not in page
        assert "was trained with COMAT. It transcribes without a language model" in page


def test_a_report_hears_several_channels(small_cfg, manifest, tmp_path):
    model, script = tmp_path / "m.nemo", load_script("demo_report")
    ComatCTCModelBPE(cfg=small_cfg).save_to(str(model))
    row, lines = json.loads(open(manifest).readline()), []
    samples, rate = soundfile.read(row["audio_filepath"])
    for name, shares in (("mono", [1]), ("stereo", [2, 0])):
        channels = np.stack([share * samples for share in shares], 1)
        soundfile.write(tmp_path / f"{name}.wav", channels, rate, subtype="FLOAT")
        (tmp_path / "m.json").write_text(json.dumps({**row, "audio_filepath": f"{tmp_path}/{name}.wav"}))
        out = tmp_path / f"{name}.png"
        lines.append(script.report(model, tmp_path / "m.json", out, tmp_path / f"{name}.html"))
        assert out.exists()
    assert lines[0][:4] == lines[1][:4]


class Aligner:
    """Stands for a model whose align_text fails."""

    def __init__(self, error=None):
        self.error, self.asked = error, 0

    def align_text(self, audio, text):
        self.asked += 1
        if self.error is not None:
            raise self.error


def test_a_report_says_why_it_has_no_picture(tmp_path, monkeypatch):
    script = load_script("demo_report")
    absent = TeacherError("Teacher 'x' cannot be loaded: no network.\nTry again.")

    def no_matplotlib(*args, **options):
        raise ImportError("Pictures of alignments need matplotlib: pip install 'nemo_comat[demo]'")

    monkeypatch.setattr(script, "plot_alignment", no_matplotlib)
    for model, asked, why in [
        (Aligner(absent), 1, "Teacher 'x' cannot be loaded: no network. Try again."),
        (Aligner(ValueError("too short")), 3, "too short"),
        (Aligner(), 1, "Pictures of alignments need matplotlib: pip install 'nemo_comat[demo]'"),
        (object(), None, "a object was not trained with COMAT."),
    ]:
        found = script.draw_alignment(model, ["a", "b", "c"], ["x", "y", "z"], tmp_path / "a.png")
        assert found == (None, f"No picture of an alignment: {why}") and not list(tmp_path.iterdir())
        assert getattr(model, "asked", None) == asked


def test_a_report_says_why_it_has_no_curves(tmp_path, monkeypatch):
    script = load_script("demo_report")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(script, "read_scalars", lambda folder: {"val_wer": [(1, 0.5)]})
    curves, (line,) = script.draw_curves(tmp_path / "checkpoints" / "m.nemo")
    assert curves is None and line.startswith("No curves of training: ") and "matplotlib" in line
    assert script.draw_curves(tmp_path / "m.nemo") == (None, [])
    monkeypatch.setattr(script, "read_scalars", lambda folder: {})
    assert script.draw_curves(tmp_path / "checkpoints" / "m.nemo") == (None, [])


def test_the_report_as_a_page_has_the_curves_of_a_run_that_went_on(small_cfg, tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    model = tmp_path / "run" / "checkpoints" / "m.nemo"
    ComatCTCModelBPE(cfg=small_cfg).save_to(str(model))
    for steps, value in (((1, 2), 3.0), ((2, 3), 1.0)):
        with SummaryWriter(tmp_path / "run") as writer:
            for step in steps:
                writer.add_scalar("train_ctc_loss", value, step)
                writer.add_scalar("val_wer", value / 4, step)
    script = load_script("demo_report")
    scalars = script.read_scalars(tmp_path / "run")
    assert scalars["train_ctc_loss"] == [(1, 3.0), (2, 1.0), (3, 1.0)]
    assert script.curves_of(scalars)["word error rate, held-out, %"]["dev"] == [(1, 75), (2, 25), (3, 25)]
    lines = script.report(model, CORPUS / "heldout.json", html=tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:audio/ogg") == 5 and page.count("data:image/png") == page.count("data:image/svg+xml") == 1
    assert str(model) in page and (tmp_path / "report.html").as_uri() in lines[-1]
    assert f"<dd>{lines[0].removeprefix('Word error rate on 60 held-out utterances: ')}</dd>" in page
    with pytest.raises(ValueError, match="report.html exists already"):
        script.report(model, CORPUS / "heldout.json", tmp_path / "a.png", html=tmp_path / "report.html")


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
    overrides = [*LETTERS, "model.encoder.n_layers=3", "model.decoder.vocabulary=${model.labels}"]
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


@pytest.mark.parametrize("duration", [None, "1"])
def test_cache_teacher_reads_lhotses_rows_of_unknown_length(cache_teacher, tmp_path, manifest, duration):
    rows = [json.loads(line) for line in open(manifest)]
    rows[5]["duration"] = duration
    (tmp_path / "train.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = OmegaConf.create({"use_lhotse": True, "manifest_filepath": str(tmp_path / "train.json")})
    found = list(cache_teacher.texts_of(dataset, None, "manifest"))
    assert set(found) == {row["text"] for row in rows}


@pytest.mark.parametrize("row", [{"text": None}, {"text": 5}, {"text": ["a"]}, {"text": [{"str": "a"}]}])
@pytest.mark.parametrize("text", ["tokens", "manifest"])
def test_cache_teacher_names_the_row_that_training_would_refuse(cache_teacher, tmp_path, row, text):
    tokenizer = cache_teacher.Tokenizer(OmegaConf.create({"dir": str(CORPUS / "tokenizer"), "type": "bpe"})).tokenizer
    rows = [{"audio_filepath": "a", "duration": 1, "text": "a dog"}, {"audio_filepath": "a", "duration": 1, **row}]
    (tmp_path / "train.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = OmegaConf.create({"manifest_filepath": str(tmp_path / "train.json")})
    with pytest.raises(ManifestError, match="train.json line 2 has a text that the tokenizer cannot read"):
        list(cache_teacher.texts_of(dataset, tokenizer, text))


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
