"""Fine-tuning by conf/finetune_ctc_comat: a trained file of NeMo's or of ours learns new speech."""

import copy
import json
from types import SimpleNamespace

import cache_teacher
import configs
import pytest
import speech_to_text_comat as script
import torch
from build_tokenizer import build_tokenizer
from configs import CORPUS, composed
from nemo.collections.asr.models import EncDecCTCModel, EncDecCTCModelBPE, EncDecHybridRNNTCTCBPEModel
from nemo.core.classes import ModelPT
from nemo.core.connectors.save_restore_connector import SaveRestoreConnector
from nemo.utils import logging
from omegaconf import OmegaConf, open_dict
from test_mixin import Recorder, quiet_trainer, with_comat
from test_mixin import train as train_new
from test_model_life import moved, parts, transcripts, weights

from nemo_comat import ComatCTCModel, ComatCTCModelBPE, ComatHybridRNNTCTCModelBPE, ConfigError
from nemo_comat.models import finetune as module
from nemo_comat.models.adapters import adapter_class
from nemo_comat.models.finetune import class_for, restore_to_finetune
from nemo_comat.models.finetune_config import joined

PLAIN = SaveRestoreConnector


@pytest.fixture(scope="module")
def trained(base_cfg, tmp_path_factory):
    """A file of NeMo's own class, of a small model that was trained for a while; and its last losses."""
    cfg = with_comat(base_cfg.model, None)
    cfg.optim.lr = 5e-3
    cfg.spec_augment.update(time_masks=1, freq_masks=0)
    model, logged = train_new(EncDecCTCModelBPE, cfg, steps=30)
    file = tmp_path_factory.mktemp("trained") / "plain.nemo"
    model.save_to(str(file))
    return str(file), [step["train_loss"] for step in logged[-4:]]


@pytest.fixture
def finetune(manifest):
    """Fine-tunes a file for some steps by the script's own way: (model, weights before, numbers logged)."""

    def run(file, *overrides, steps=6):
        cfg = configured(manifest, f"++init_from_nemo_model={file}", *overrides)
        script.prepare(cfg)
        recorder = Recorder()
        trainer = quiet_trainer(steps, recorder)
        model = script.make_model(cfg, trainer)
        before = weights(model)
        if steps:
            trainer.fit(model)
        return model, before, recorder.steps

    return run


def configured(manifest, *overrides):
    """The config, on the 16 utterances of a manifest."""
    small = [f"model.{key}.{item}" for key in ("train_ds", "validation_ds") for item in (
        f"manifest_filepath={manifest}", "batch_size=8", "num_workers=0", "pin_memory=false")]  # fmt: skip
    return composed("finetune_ctc_comat", *small, "model.log_prediction=false", *overrides)


def stored(file, cls=EncDecCTCModelBPE):
    """Weights of a file as NeMo reads them."""
    return cls.restore_from(str(file), map_location="cpu", save_restore_connector=PLAIN()).state_dict()


def test_the_files_model_goes_on_learning_with_its_own_tokenizer(finetune, trained, manifest, tmp_path):
    file, losses = trained
    model, before, logged = finetune(file, "model.optim.lr=1e-3", steps=10)
    assert type(model) is ComatCTCModelBPE
    # it begins where the file ends
    theirs = stored(file)
    assert all(before[key].equal(value) for key, value in theirs.items())
    assert {key.split(".")[0] for key in before.keys() - theirs.keys()} == {"comat"}
    assert logged[0]["train_ctc_loss"] < 1.3 * max(losses)
    # and goes on with all of it, and with COMAT
    assert parts(moved(before, model)) == {"encoder", "decoder", "comat"}
    assert all(step["train_active_fraction"] == 1 for step in logged)
    for key in ("train_ctc_loss", "train_transfer_loss"):
        assert sum(step[key] for step in logged[-3:]) < sum(step[key] for step in logged[:3])
    # NeMo opens what is saved
    model.save_to(str(tmp_path / "tuned.nemo"))
    plain = EncDecCTCModelBPE.restore_from(
        str(tmp_path / "tuned.nemo"), map_location="cpu", save_restore_connector=PLAIN()
    )
    assert transcripts(plain.eval(), manifest) == transcripts(model.eval(), manifest)


def test_what_the_config_says_stands_and_null_is_the_files(finetune, trained, manifest):
    model, *_ = finetune(trained[0], "++model.spec_augment.time_masks=7", "++model.encoder.dropout=0.25", steps=0)
    cfg = model.cfg
    assert (cfg.optim.lr, cfg.optim.sched.name, "d_model" in cfg.optim.sched) == (2e-4, "CosineAnnealing", False)
    assert cfg.train_ds.manifest_filepath == manifest and cfg.train_ds.sample_rate == cfg.sample_rate == 16000
    assert cfg.encoder.d_model == 32 and cfg.encoder.dropout == 0.25 == model.encoder.layers[0].dropout.p
    masks = model.spec_augmentation.spec_augment
    assert masks.time_masks == 7 and masks.freq_masks == 0  # the file's
    assert cfg.comat.weight == 3 and model.training
    assert not cfg.keys() & {"adapter", "char_labels", "init_from_nemo_model"}
    assert cfg.tokenizer.keys() >= {"dir", "type"} and "update_tokenizer" not in cfg.tokenizer


def test_the_configs_optimizer_replaces_the_files_whole():
    for own in ({"_target_": "torch.optim.SGD", "momentum": 0.9}, {"name": "novograd", "sched": {"_target_": "S"}}):
        given = OmegaConf.create({"optim": {"name": "adamw", "lr": 1}})
        assert joined(OmegaConf.create({"optim": own}), given).optim == given.optim


def test_one_key_of_a_block_leaves_the_others_the_files(finetune, trained):
    decoding = finetune(trained[0], steps=0)[0].cfg.decoding
    off = "model.interctc={loss_weights: [], apply_at_layers: []}"
    model, *_ = finetune(trained[0], "++model.decoding.greedy.preserve_alignments=true", off, steps=0)
    assert model.cfg.decoding == OmegaConf.merge(decoding, {"greedy": {"preserve_alignments": True}})
    assert not model.is_interctc_enabled()


def test_inter_ctc_of_a_file_is_changed_by_one_of_its_keys():
    own = {"interctc": {"loss_weights": [0.3], "apply_at_layers": [3]}, "freeze_updates": {"modules": {"encoder": 5}}}
    given = {"interctc": {"loss_weights": [0.1]}, "freeze_updates": {"enabled": False}, "optim_param_groups": {"a": {}}}
    both = joined(OmegaConf.create({**own, "optim_param_groups": {"b": {}}}), OmegaConf.create(given))
    assert both.interctc == {"loss_weights": [0.1], "apply_at_layers": [3]}
    assert both.freeze_updates == given["freeze_updates"] and both.optim_param_groups == given["optim_param_groups"]


def test_a_schedule_of_its_own_ends_with_the_run(finetune, trained):
    model, *_ = finetune(trained[0], steps=10)
    assert model._scheduler["scheduler"].max_steps == 10 and model._scheduler["scheduler"].warmup_steps == 1
    assert model._optimizer.param_groups[0]["lr"] < 2e-5


def test_rates_for_parts_of_the_model(finetune, trained):
    model, *_ = finetune(trained[0], "model.optim_param_groups={decoder: {lr: 1e-3}}", steps=1)
    assert [group["initial_lr"] for group in model._optimizer.param_groups] == [2e-4, 1e-3]


def test_a_dual_file_keeps_its_comat_part_where_it_fits(finetune, trained, tmp_path, monkeypatch):
    model, *_ = finetune(trained[0], steps=2)
    model.save_to(str(tmp_path / "dual.nemo"))
    learnt = weights(model)
    said = []
    monkeypatch.setattr(logging, "info", lambda text, *args, **kwargs: said.append(text))
    _, before, _ = finetune(f"{tmp_path}/dual.nemo", steps=0)
    assert before.keys() == learnt.keys() and all(before[key].equal(value) for key, value in learnt.items())
    assert not any("begins anew" in text for text in said)
    method = ["model.comat.compress.method=cif", "model.comat.align.method=one_to_one"]
    model, before, logged = finetune(f"{tmp_path}/dual.nemo", *method, steps=1)
    assert [text.split(" of ")[0] for text in said if "begins anew" in text] == ["The compressor"]
    assert all(before[key].equal(value) for key, value in learnt.items())
    assert logged[0]["train_quantity_loss"] > 0
    # a context is new, and what was learnt of the rest stays
    model, before, logged = finetune(f"{tmp_path}/dual.nemo", "model.comat.context.layers=1", steps=1)
    assert all(before[key].equal(value) for key, value in learnt.items())
    assert sum("begins anew" in text for text in said) == 1 and any("no context network" in text for text in said)
    model.save_to(str(tmp_path / "context.nemo"))
    learnt_there = weights(model)
    _, before, _ = finetune(f"{tmp_path}/context.nemo", "model.comat.context.layers=2", steps=0)
    assert sum("context network of these weights is not of this" in text for text in said) == 1
    assert all(before[key].equal(value) for key, value in learnt_there.items() if not key.startswith("comat.context."))
    model, _, logged = finetune(f"{tmp_path}/dual.nemo", "model.comat.weight=0", steps=1)
    assert model.comat is None and "train_transfer_loss" not in logged[0]


def test_a_new_tokenizer_gets_a_new_decoder(finetune, trained, manifest, tmp_path):
    texts = [json.loads(line)["text"] for line in open(manifest)]
    build_tokenizer(texts, tmp_path / "tokenizer", vocab_size=40)
    new = ["model.tokenizer.update_tokenizer=true", f"model.tokenizer.dir={tmp_path}/tokenizer"]
    groups = "model.optim_param_groups={decoder: {lr: 1e-2}}"
    model, before, logged = finetune(trained[0], *new, groups, steps=10)
    theirs = stored(trained[0])
    assert all(before[key].equal(value) for key, value in theirs.items() if not key.startswith("decoder."))
    assert model.decoder.num_classes_with_blank == 41 and model.comat.compressor.options["blank"] == 40
    assert all(step["train_active_fraction"] == 1 for step in logged)
    assert logged[-1]["train_ctc_loss"] < 0.8 * logged[0]["train_ctc_loss"]
    model.save_to(str(tmp_path / "m.nemo"))
    again = ComatCTCModelBPE.restore_from(str(tmp_path / "m.nemo"), map_location="cpu")
    assert again.tokenizer.vocab_size == 40 and again.tokenizer.ids_to_text([5]) == model.tokenizer.ids_to_text([5])


def test_a_frozen_encoder_is_set_free_after_its_updates(finetune, trained):
    for steps, expected in ((2, {"decoder", "comat"}), (4, {"encoder", "decoder", "comat"})):
        frozen = ["model.freeze_updates.enabled=true", "model.freeze_updates.modules.encoder=2"]
        model, before, logged = finetune(trained[0], *frozen, steps=steps)
        assert len(logged) == steps and parts(moved(before, model)) == expected


def test_an_encoder_frozen_to_the_end_is_told_of(finetune, trained, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *args, **kwargs: said.append(text))
    frozen = ["model.freeze_updates.enabled=true", "model.freeze_updates.modules.encoder=-1"]
    finetune(trained[0], frozen[0], "model.freeze_updates.modules.encoder=[0,-1]", steps=0)
    assert sum("COMAT, which teaches the encoder" in str(text) for text in said) == 1
    said.clear()
    with pytest.raises(ConfigError, match="freeze_updates.modules names none; give a module and its updates"):
        finetune(trained[0], frozen[0], "model.freeze_updates.modules=null", steps=1)
    model, before, _ = finetune(trained[0], *frozen, steps=3)
    assert parts(moved(before, model)) == {"decoder", "comat"}
    assert sum("COMAT, which teaches the encoder" in str(text) for text in said) == 1
    finetune(trained[0], *frozen, "model.comat.weight=0", steps=0)
    assert sum("COMAT, which teaches the encoder" in str(text) for text in said) == 1


def test_an_adapter_is_trained_alone(finetune, trained, manifest, tmp_path):
    adapter = ["model.adapter.adapter_name=mine", "model.adapter.dim=8", "model.optim.lr=1e-2"]
    model, before, logged = finetune(trained[0], *adapter, steps=12)
    theirs = stored(trained[0])
    assert all(before[key].equal(value) for key, value in theirs.items())
    change = moved(before, model)
    assert parts(change) == {"encoder", "comat"}
    assert all(".adapter_layer.mine." in name for name in change if name.startswith("encoder."))
    # the statistics of batch norm too are the file's
    assert all(model.state_dict()[key].equal(value) for key, value in theirs.items())
    # an epoch is two batches, and one may be harder than the other
    first, last = (sum(step["train_ctc_loss"] for step in steps) for steps in (logged[:2], logged[-2:]))
    assert last < first
    model.save_to(str(tmp_path / "m.nemo"))
    said = transcripts(model.eval(), manifest)
    for cls, connector in ((ComatCTCModelBPE, None), (EncDecCTCModelBPE, PLAIN())):
        again = cls.restore_from(str(tmp_path / "m.nemo"), map_location="cpu", save_restore_connector=connector)
        assert again.get_enabled_adapters() == ["mine"] and transcripts(again.eval(), manifest) == said
    # a second one beside it
    model, before, _ = finetune(f"{tmp_path}/m.nemo", *adapter[1:], "model.adapter.adapter_name=other", steps=2)
    assert all("mine" not in name for name in moved(before, model)) and model.get_enabled_adapters() == ["other"]


@pytest.mark.parametrize(
    "theirs, ours, change",
    [
        (EncDecCTCModel, ComatCTCModel, configs.characters),
        (EncDecHybridRNNTCTCBPEModel, ComatHybridRNNTCTCModelBPE, configs.hybrid),
    ],
)
def test_characters_and_hybrid_models(finetune, base_cfg, tmp_path, theirs, ours, change):
    cfg = change(with_comat(copy.deepcopy(base_cfg.model), None))
    theirs(cfg=cfg).save_to(str(tmp_path / "m.nemo"))
    model, _, logged = finetune(tmp_path / "m.nemo", f"model.train_ds.batch_size={cfg.train_ds.batch_size}", steps=2)
    assert type(model) is ours and all(step["train_active_fraction"] == 1 for step in logged)


def test_a_part_of_a_hybrids_ctc_decoder_is_changed_key_by_key(finetune, base_cfg, tmp_path):
    cfg = configs.hybrid(with_comat(copy.deepcopy(base_cfg.model), None))
    EncDecHybridRNNTCTCBPEModel(cfg=cfg).save_to(str(tmp_path / "m.nemo"))
    model, *_ = finetune(
        tmp_path / "m.nemo", "++model.aux_ctc.ctc_loss_weight=0.5", "++model.joint.fused_batch_size=2", steps=0
    )
    assert model.ctc_loss_weight == 0.5 and len(model.ctc_decoder.vocabulary) == 32
    assert model.joint._fused_batch_size == 2


def test_feedback_is_the_files(finetune, base_cfg, tmp_path):
    cfg = copy.deepcopy(base_cfg.model)
    cfg.comat.update(feedback=True, encoder_layer=[0])
    model = ComatCTCModelBPE(cfg=cfg)
    torch.nn.init.ones_(model.nemo_comat_feedback[0].back.weight)
    model.save_to(str(tmp_path / "m.nemo"))
    model, before, _ = finetune(tmp_path / "m.nemo", steps=2)
    assert model.cfg.comat.encoder_layer == [0] and before["nemo_comat_feedback.0.back.weight"].all()
    adapter = ["model.adapter.adapter_name=mine", "model.adapter.dim=8"]
    model, before, _ = finetune(tmp_path / "m.nemo", *adapter, steps=2)
    # it and what it feeds back are the recogniser's, and stay the file's
    change = moved(before, model)
    assert change and not [name for name in change if name.startswith(("nemo_comat_feedback", "comat.projection"))]
    # another compressor leaves what is fed back as it is
    other = ["++model.comat.compress.method=attention", "++model.comat.align.method=one_to_one"]
    _, now, _ = finetune(tmp_path / "m.nemo", *other, steps=0)
    fed = [key for key in now if key.startswith(("comat.projection", "nemo_comat_feedback"))]
    assert fed and all(now[key].equal(before[key]) for key in fed)
    for overrides, message in [
        ("++model.comat.feedback=false", r"feedback is False, .* null, or give .*feedback=true .*layer=\[0\]"),
        ("++model.comat.encoder_layer=1", r"encoder_layer is 1, but the file's recogniser was trained with feedback"),
        ("++model.comat.projection.dim=12", "The feedback of these weights does not fit this model"),
        ("++model.comat.projection.depth=2", "The feedback of these weights does not fit this model"),
    ]:
        with pytest.raises(ConfigError, match=message):
            finetune(tmp_path / "m.nemo", overrides, steps=0)


def test_masks_of_two_views_are_told_of_where_one_is_trained_on(finetune, base_cfg, tmp_path, monkeypatch):
    said = []
    cfg = base_cfg.model.copy()
    cfg.spec_augment.time_masks = 12
    cfg.comat.consistency_weight = 0.2
    ComatCTCModelBPE(cfg=cfg).save_to(f"{tmp_path}/two.nemo")
    monkeypatch.setattr(logging, "warning", said.append)
    told = "12 time masks, and this trains on one with as many; give fewer, such as ++model.spec_augment.time_masks=5,"
    for override, times in (("model.comat.weight=0", 1), ("++model.spec_augment.time_masks=5", 0),
                            ("model.comat.consistency_weight=0.2", 0)):  # fmt: skip
        said.clear()
        finetune(f"{tmp_path}/two.nemo", override, steps=0)
        assert sum(told in sentence for sentence in said) == times


def test_one_rate_for_all_is_no_longer_the_files_rates(finetune, trained, tmp_path):
    groups = "model.optim_param_groups={decoder: {lr: 1e-3}}"
    model, *_ = finetune(trained[0], groups, steps=1)
    assert len(model._optimizer.param_groups) == 2
    model.save_to(str(tmp_path / "m.nemo"))
    model, *_ = finetune(tmp_path / "m.nemo", steps=1)
    assert len(model._optimizer.param_groups) == 1


@pytest.mark.parametrize("of_data_alone", [False, True])
def test_new_labels_of_a_character_model(finetune, base_cfg, tmp_path, of_data_alone):
    cfg = configs.characters(with_comat(copy.deepcopy(base_cfg.model), None))
    if of_data_alone:
        with open_dict(cfg):
            for dataset in (cfg.train_ds, cfg.validation_ds):
                dataset.labels = list(cfg.labels)
            cfg.decoder.vocabulary = list(cfg.labels)
            del cfg.labels
    EncDecCTCModel(cfg=cfg).save_to(str(tmp_path / "m.nemo"))
    if of_data_alone:
        model, _, logged = finetune(tmp_path / "m.nemo", steps=1)
        assert logged[0]["train_active_fraction"] == 1 and list(model.cfg.labels) == list(model.decoder.vocabulary)
    labels = ",".join("zyxwvutsrqponmlkjihgfedcba")
    model, _, logged = finetune(
        tmp_path / "m.nemo", "model.char_labels.update_labels=true", f"model.char_labels.labels=[' ',{labels}]", steps=1
    )
    assert list(model.decoder.vocabulary)[:3] == [" ", "z", "y"] == list(model.cfg.labels)[:3]
    assert model._train_dl.dataset.manifest_processor.parser("z y") == [1, 0, 2]
    assert logged[0]["train_active_fraction"] == 1


def test_a_name_that_nemo_downloads(trained, manifest, monkeypatch):
    found = classmethod(lambda cls, model_name, refresh_cache=False: (cls, trained[0]))
    monkeypatch.setattr(ModelPT, "_get_hf_hub_pretrained_model_info", found)
    cfg = configured(manifest, "++init_from_pretrained_model=me/x")
    script.prepare(cfg)
    before = weights(restore_to_finetune(cfg))
    assert all(before[key].equal(value) for key, value in stored(trained[0]).items())


def test_without_a_manifest_the_embedded_corpus_is_used(trained):
    cfg = composed("finetune_ctc_comat", f"++init_from_nemo_model={trained[0]}", "exp_manager=null")
    trainer, model = script.build(cfg)
    assert trainer.max_epochs == cfg.embedded_corpus.trainer.max_epochs == 3
    assert len(model._train_dl.dataset) == 420 and len(model._validation_dl.dataset) == 60
    assert model.cfg.spec_augment.freq_masks == 0 and model.cfg.optim.sched.warmup_ratio == 0.1


def test_the_cache_is_filled_with_the_files_tokenizer(trained, manifest, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(CORPUS.parent))
    cfg = configured(manifest, f"++init_from_nemo_model={trained[0]}", f"model.comat.teacher.cache={tmp_path}/cache")
    tokenizer = cache_teacher.tokenizer_of(cfg)
    assert tokenizer.vocab_size == 32 and "decoder" not in dir(tokenizer)
    assert cache_teacher.fill(cfg) == 16


def test_mistakes_get_one_sentence(trained, manifest):
    start = f"++init_from_nemo_model={trained[0]}"
    for overrides, message in [
        ([], "no model.encoder, and no model to take it from; give init_from_nemo_model="),
        ([start, "++init_from_pretrained_model=me/x"], "two models to take it from"),
        (["++init_from_nemo_model=gone.nemo"], "gone.nemo does not exist"),
        (["++init_from_nemo_model={a: {path: x}}"], "One model is needed"),
        ([f"++init_from_nemo_model={manifest}"], "is no archive; give a .nemo file"),
        ([start, "model.tokenizer={update_tokenizer: true, dir: gone}"], "model.tokenizer.dir=gone is no folder"),
        ([start, "model.tokenizer.dir=x"], "tokenizer.dir is given, .* give model.tokenizer.update_tokenizer=true"),
        ([start, "model.tokenizer.update_tokenizer=true"], "model.tokenizer.dir is missing"),
        ([start, "model.char_labels.labels=[a,b]"], "char_labels.labels is given, .*char_labels.update_labels=true"),
        ([start, "++model.labels=[a,b]"], "model.labels is given, .* give model.char_labels.update_labels=true"),
        (
            [
                start,
                f"model.tokenizer={{update_tokenizer: true, dir: {CORPUS}/tokenizer}}",
                "model.adapter.adapter_name=mine",
            ],
            "trains the adapter alone, but a new tokenizer needs a new decoder",
        ),
    ]:
        with pytest.raises(ConfigError, match=message) as error:
            script.prepare(configured(manifest, *overrides))
        assert "\n" not in str(error.value)


def test_what_does_not_go_with_the_file_gets_one_sentence(trained, manifest, base_cfg, tmp_path, monkeypatch):
    characters = configs.characters(with_comat(copy.deepcopy(base_cfg.model), None))
    EncDecCTCModel(cfg=characters).save_to(str(tmp_path / "characters.nemo"))
    monkeypatch.setattr(ModelPT, "restore_from", None)  # all is found before the weights are read
    labels = ["model.char_labels.update_labels=true", "model.char_labels.labels=[a,b]"]
    tokenizer = ["model.tokenizer.update_tokenizer=true", f"model.tokenizer.dir={CORPUS}/tokenizer"]
    for file, overrides, message in [
        (
            trained[0],
            labels,
            "plain.nemo holds a model of subwords, which has no labels of its own; give",
        ),
        (
            f"{tmp_path}/characters.nemo",
            tokenizer,
            "holds a model of characters, .*give model.char_labels",
        ),
        (
            trained[0],
            ["++model.sample_rate=8000"],
            "model.sample_rate is 8000, but the file's features are of 16000",
        ),
        (trained[0], ["++model.train_ds.sample_rate=8000"], "model.train_ds.sample_rate is 8000, but the file's"),
    ]:
        with pytest.raises(ConfigError, match=message):
            restore_to_finetune(configured(manifest, f"++init_from_nemo_model={file}", *overrides))


def test_a_file_may_be_named_from_home(trained, manifest, monkeypatch):
    folder, _, name = trained[0].rpartition("/")
    monkeypatch.setenv("HOME", folder)
    cfg = configured(manifest, f"++init_from_nemo_model='~/{name}'")
    script.prepare(cfg)
    assert type(restore_to_finetune(cfg)) is ComatCTCModelBPE


def test_files_that_cannot_be_tuned_get_one_sentence():
    prompted = "nemo.collections.asr.models.EncDecHybridRNNTCTCBPEModelWithPrompt"
    for target in ("nemo.collections.asr.models.EncDecRNNTModel", "os.system", "no.such.Model", prompted):
        with pytest.raises(ConfigError, match=f"m.nemo holds a {target}.*; COMAT trains EncDecHybrid"):
            class_for(target, "m.nemo")


class Descendant(ComatCTCModelBPE):
    """A user's own."""


def test_a_class_of_the_users_own_is_kept(small_cfg, manifest, tmp_path):
    Descendant(cfg=small_cfg).save_to(str(tmp_path / "own.nemo"))
    cfg = configured(manifest, f"++init_from_nemo_model={tmp_path}/own.nemo")
    script.prepare(cfg)
    assert type(restore_to_finetune(cfg)) is Descendant


def test_init_strict_is_heeded(trained, manifest, monkeypatch):
    asked = {}
    monkeypatch.setattr(module, "class_for", lambda *a: SimpleNamespace(restore_from=lambda *a, **k: asked.update(k)))
    for name in ("change_labels", "check_kind"):
        monkeypatch.setattr(module, name, lambda *a: None)
    cfg = configured(manifest, f"++init_from_nemo_model={trained[0]}", "++init_strict=false")
    script.prepare(cfg)
    module._restore(cfg)
    assert asked["strict"] is False


def test_an_adapter_needs_an_encoder_that_takes_one():
    with pytest.raises(ConfigError, match="NeMo has no adapters for torch.nn.Linear; leave model.adapter.adapter_name"):
        adapter_class("torch.nn.Linear")
