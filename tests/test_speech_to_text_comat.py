"""The training script: what it takes, and mistakes that end in one sentence."""

import json
import sys

import cache_teacher
import data_forms
import pytest
import speech_to_text_comat as script
from configs import CORPUS, composed, nemos_own
from omegaconf import OmegaConf

from nemo_comat import ComatCTCModel, ComatCTCModelBPE, ConfigError
from nemo_comat.models.manifest import ManifestError


def test_a_second_view_that_was_asked_for_stays_on_the_embedded_corpus(monkeypatch):
    said = []
    monkeypatch.setattr(script.logging, "info", said.append)
    cfg = composed("conformer_ctc_comat", "model.comat.consistency_weight=0.5")
    script.prepare(cfg)
    assert cfg.model.comat.consistency_weight == 0.5 and "one view" not in " ".join(said)


def test_without_a_manifest_the_embedded_corpus_is_said_in_one_line(monkeypatch):
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


def test_own_manifests_keep_nemos_schedule(manifest):
    cfg = composed(
        "conformer_ctc_comat",
        f"model.train_ds.manifest_filepath={manifest}",
        f"model.validation_ds.manifest_filepath={manifest}",
        f"model.tokenizer.dir={CORPUS / 'tokenizer'}",
    )
    before = OmegaConf.to_yaml(cfg)
    script.prepare(cfg)
    assert OmegaConf.to_yaml(cfg) == before and cfg.trainer.max_epochs == 1000


def test_validation_and_tokenizer_may_be_given_in_nemos_other_ways(manifest):
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


def test_mistakes_get_one_sentence(manifest):
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
def test_data_that_are_named_in_any_way_are_trained_on(written, name):
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


def test_several_validation_sets_with_keys_of_their_own(manifest):
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


def test_lhotse_and_a_schedule_need_the_number_of_steps(written):
    cfg = named_by(NAMED["cuts_path"], written[0], "model.validation_ds=null")
    with pytest.raises(ConfigError, match="NoamAnnealing needs the number of steps.*give trainer.max_steps=STEPS"):
        script.build(cfg)
    for overrides in (["trainer.max_steps=2"], ["~model.optim.sched"]):
        script.build(named_by(NAMED["cuts_path"], written[0], "model.validation_ds=null", *overrides))


@pytest.mark.parametrize("form", ["shar_path", "shar_path by field"])
def test_lhotse_and_an_epoch_need_the_number_of_batches(written, form):
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
def test_the_embedded_corpus_takes_nobodys_place(overrides):
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
def test_options_alone_leave_the_embedded_corpus(option):
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
def test_what_names_nothing_to_nemo_is_refused_before_training(block, message):
    with pytest.raises(ConfigError, match=message) as error:
        script.build(named_by(block, "", "model.validation_ds=null"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("tested", ["absent", None, {"manifest_filepath": None, "shuffle": False}, "data"])
def test_a_config_of_nemos_own_trains_to_the_end(tmp_path, manifest, monkeypatch, validated, tested):
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


def test_blocks_of_nemos_character_configs_that_name_no_data(tmp_path, manifest, monkeypatch):
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
def test_what_a_config_of_nemos_own_lacks_is_said_before_training(tmp_path, manifest, changes, message):
    nemos_own(tmp_path, manifest, **changes)
    with pytest.raises(ValueError, match=message) as error:
        script.prepare(OmegaConf.load(tmp_path / "own.yaml"))
    assert "\n" not in str(error.value)


def test_init_from_needs_no_plus():
    given = ["x.py", "init_from_nemo_model=a.nemo", "+init_from_ptl_ckpt=b.ckpt", "model.optim.lr=1"]
    _, *overrides = script.allow_init_from(given)
    cfg = composed("conformer_ctc_comat", *overrides, "model.train_ds.num_workers=0", "model.train_ds.pin_memory=false")
    assert cfg.init_from_nemo_model == "a.nemo" and cfg.init_from_ptl_ckpt == "b.ckpt"


LETTERS = ["~model.tokenizer", "+model.labels=[' ',a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q,r,s,t,u,v,w,x,y,z]"]


def test_labels_in_the_place_of_a_tokenizer_make_a_character_model():
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
