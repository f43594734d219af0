"""Consistency-regularised CTC: the divergence of two views, and the training step on both."""

import signal
from types import SimpleNamespace

import configs
import pytest
import torch
from nemo.collections.asr.models import EncDecCTCModelBPE
from nemo.utils import logging
from omegaconf import open_dict
from test_mixin import quiet_trainer, train, with_comat
from test_resume import fit

from nemo_comat import ComatCTCModel, ComatCTCModelBPE, ComatHybridRNNTCTCModelBPE, ConfigError, Teacher, describe
from nemo_comat.comat import CompressAlignTransfer
from nemo_comat.models.consistency import two_views
from nemo_comat.models.export import plain_model
from nemo_comat.transfer import consistency_loss

ALONE = {"weight": 0, "consistency_weight": 0.2}


def unchanging(cfg):
    """A config, changed in place, with which both views of a batch are equal."""
    cfg.spec_augment.update(freq_masks=0, time_masks=0)
    cfg.encoder.update(dropout=0, dropout_pre_encoder=0, dropout_emb=0, dropout_att=0)
    cfg.preprocessor.dither = 0
    return cfg


# --- the loss ---


def test_it_is_the_divergence_of_each_view_from_the_other_summed_over_frames():
    one, two = [[0.5, 0.5], [0.9, 0.1]], [[0.25, 0.75], [0.6, 0.4]]
    log_probs = torch.tensor([one, two], dtype=torch.float64).log()
    kl = [
        sum(p * torch.tensor(p / q).log().item() for a, b in zip(other, own) for p, q in zip(a, b))
        for own, other in ((one, two), (two, one))
    ]
    assert consistency_loss(log_probs, torch.tensor([2, 2])).tolist() == pytest.approx(kl, rel=1e-5)
    assert kl[0] != pytest.approx(kl[1], rel=1e-2)


def test_the_other_view_is_a_target_without_gradient():
    logits = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    frames = torch.tensor([3, 2, 3, 2])
    loss = consistency_loss(logits.log_softmax(-1), frames)
    (grad,) = torch.autograd.grad(loss[0], logits)
    assert grad[0].any() and not grad[1:].any()
    # of KL(p || softmax(z)) in z it is softmax(z) - p
    probs = logits.detach().softmax(-1)
    torch.testing.assert_close(grad[0], probs[0] - probs[2], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("padding", [0.0, float("nan"), float("-inf"), 1e30])
def test_padding_counts_for_nothing(padding):
    log_probs = torch.randn(2, 4, 3).log_softmax(-1)
    longer = torch.cat([log_probs, torch.full((2, 2, 3), padding)], 1).requires_grad_()
    frames = torch.tensor([4, 4])
    loss = consistency_loss(longer, frames)
    torch.testing.assert_close(loss, consistency_loss(log_probs, frames))
    loss.sum().backward()
    assert longer.grad.isfinite().all() and not longer.grad[:, 4:].any()
    assert consistency_loss(longer, torch.tensor([0, 0])).tolist() == [0, 0]


def test_half_precision_is_summed_in_whole():
    log_probs = torch.randn(2, 4, 3).log_softmax(-1).bfloat16()
    loss = consistency_loss(log_probs, torch.tensor([4, 4]))
    assert loss.dtype == torch.float32
    assert loss.equal(consistency_loss(log_probs.float(), torch.tensor([4, 4])))


def test_an_odd_number_of_rows_is_refused():
    with pytest.raises(ValueError, match=r"two views of each utterance; got \(3, 1, 2\)"):
        consistency_loss(torch.zeros(3, 1, 2), torch.ones(3))


# --- the training step ---


def test_it_trains_without_a_teacher(small_cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(Teacher, "encode", None)
    small_cfg.optim.lr = 5e-3
    model, logged = train(ComatCTCModelBPE, with_comat(small_cfg, ALONE), steps=8)
    for step in logged:
        weighted = step["train_ctc_loss"] + 0.2 * step["train_consistency_loss"]
        assert step["train_loss"] == pytest.approx(weighted, rel=1e-5) and step["train_consistency_loss"] > 0
        assert "train_transfer_loss" not in step
    assert logged[-1]["train_ctc_loss"] < logged[0]["train_ctc_loss"]
    assert describe(model).endswith("this trains plain CTC + 0.2 * consistency of two views of each batch.")
    model.save_to(str(tmp_path / "m.nemo"))
    plain = plain_model(tmp_path / "m.nemo")
    assert type(plain) is EncDecCTCModelBPE and "comat" not in plain.cfg
    assert all(plain.state_dict()[key].equal(value) for key, value in model.state_dict().items())
    again = ComatCTCModelBPE.restore_from(str(tmp_path / "m.nemo"), map_location="cpu")
    assert again.consistency_weight == 0.2


def test_its_gradient_is_what_it_adds(small_cfg):
    weights = {}
    for weight in (1e-9, 5.0):
        model, _ = train(ComatCTCModelBPE, with_comat(small_cfg, {**ALONE, "consistency_weight": weight}), steps=1)
        weights[weight] = model.decoder.decoder_layers[0].weight
    assert not weights[1e-9].allclose(weights[5.0])


@pytest.mark.parametrize("weight", [0, 10])
def test_where_nothing_draws_both_views_are_the_batch_and_it_is_said(small_cfg, monkeypatch, weight):
    said = []
    monkeypatch.setattr(logging, "warning", said.append)
    unchanging(small_cfg)
    _, one = train(ComatCTCModelBPE, with_comat(small_cfg, {"weight": 3}), steps=2)
    assert not any("two views" in sentence for sentence in said)
    _, two = train(ComatCTCModelBPE, with_comat(small_cfg, {"weight": weight, "consistency_weight": 0.2}), steps=2)
    assert sum("views of the first batch are equal, so model.comat.consistency_weight=0.2" in s for s in said) == 1
    assert two[0]["train_ctc_loss"] == pytest.approx(one[0]["train_ctc_loss"], rel=1e-5)
    assert two[0]["train_consistency_loss"] == pytest.approx(0, abs=1e-3)
    if weight:
        for key in ("train_transfer_loss", "train_alignment_score", "train_active_fraction"):
            assert two[0][key] == pytest.approx(one[0][key], rel=1e-4)


@pytest.mark.parametrize("change", ["spec_augment", "cutout", "dropout"])
def test_each_of_what_draws_is_enough(small_cfg, monkeypatch, change):
    said = []
    monkeypatch.setattr(logging, "warning", said.append)
    unchanging(small_cfg)
    if change == "dropout":
        with open_dict(small_cfg):
            small_cfg.spec_augment = None
        small_cfg.encoder.dropout = 0.1
    elif change == "cutout":
        # NeMo cuts these out of the features in place
        small_cfg.spec_augment.update(rect_masks=9, rect_time=20, rect_freq=40)
    else:
        small_cfg.spec_augment.time_masks = 5
    _, logged = train(ComatCTCModelBPE, with_comat(small_cfg, ALONE), steps=1)
    assert not any("views" in sentence for sentence in said) and logged[0]["train_consistency_loss"] > 1e-3


def test_it_is_said_of_each_fit_in_which_nothing_draws(small_cfg, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", said.append)
    small_cfg.encoder.dropout = 0.1
    model = ComatCTCModelBPE(cfg=with_comat(small_cfg, ALONE))
    for training, times in ((True, 0), (False, 1), (False, 2), (True, 2)):
        # fit keeps the mode that it finds
        model.train(training)
        trainer = quiet_trainer(1)
        model.set_trainer(trainer)
        trainer.fit(model)
        assert sum("views of the first batch are equal" in sentence for sentence in said) == times
    assert "call model.train()" in next(sentence for sentence in said if "views of the first" in sentence)


def test_the_teacher_is_asked_of_each_text_once_and_rows_are_counted_once(small_cfg, monkeypatch):
    asked, said, encode = [], [], Teacher.encode
    monkeypatch.setattr(
        Teacher, "encode", lambda self, texts, device: asked.append(texts) or encode(self, texts, device)
    )
    monkeypatch.setattr(logging, "warning", said.append)
    small_cfg.comat.update(consistency_weight=0.2)
    small_cfg.comat.align.within_words = True
    small_cfg.comat.transfer.update(loss="classify", negatives=20)
    _, logged = train(ComatCTCModelBPE, small_cfg, steps=1)
    assert [len(texts) for texts in asked] == [8]
    assert logged[0]["train_active_fraction"] == 1 and logged[0]["train_transfer_loss"] > 0
    small_cfg.comat.teacher.max_length = 4
    _, logged = train(ComatCTCModelBPE, small_cfg, steps=1)
    assert logged[0]["train_text_too_long"] == 8 and any("none of the 8 rows" in sentence for sentence in said)


@pytest.mark.parametrize("loss", ["mse", "contrastive", "classify"])
def test_each_view_is_a_batch_of_its_own(small_cfg, loss):
    unchanging(small_cfg)
    small_cfg.comat.transfer.loss = loss
    steps = []
    for weight in (0, 0.2):
        small_cfg.comat.consistency_weight = weight
        steps += train(ComatCTCModelBPE, small_cfg, steps=1)[1]
    # the other view's tokens are no negatives of the contrastive loss, which they would double
    assert steps[1]["train_transfer_loss"] == pytest.approx(steps[0]["train_transfer_loss"], rel=1e-4)


def test_what_is_drawn_differs_by_view_and_is_the_same_again(small_cfg, monkeypatch):
    seeds, forward = [], CompressAlignTransfer.forward
    monkeypatch.setattr(
        CompressAlignTransfer, "forward", lambda *a, seed, **more: seeds.append(seed) or forward(*a, seed=seed, **more)
    )
    for weight in (0.2, 0.2, 0):
        small_cfg.comat.consistency_weight = weight
        train(ComatCTCModelBPE, small_cfg, steps=2)
    twice, again, one_view = seeds[:4], seeds[4:8], seeds[8:]
    assert twice == again and len(set(twice)) == 4 and one_view == twice[::2]


def test_with_interctc_and_feedback(small_cfg):
    small_cfg.interctc = {"loss_weights": [0.3], "apply_at_layers": [0]}
    small_cfg.comat.update(consistency_weight=0.2, encoder_layer=0, feedback="ctc")
    model, logged = train(ComatCTCModelBPE, small_cfg, steps=2)
    for step in logged:
        parts = 0.2 * step["train_consistency_loss"] + 10 * step["train_transfer_loss"]
        assert step["train_loss"] == pytest.approx(step["train_ctc_loss"] + parts, rel=1e-5)
        assert "inter_ctc_loss_l0" in step
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("weight", [0, 10])
def test_hybrid_models_train(small_cfg, weight):
    cfg = configs.hybrid(small_cfg)
    cfg.comat.update(weight=weight, consistency_weight=0.2)
    _, logged = train(ComatHybridRNNTCTCModelBPE, cfg, steps=2)
    for step in logged:
        nemos = 0.7 * step["train_rnnt_loss"] + 0.3 * step["train_ctc_loss"]
        ours = 0.2 * step["train_consistency_loss"] + (10 * step["train_transfer_loss"] if weight else 0)
        assert step["train_loss"] == pytest.approx(nemos + ours, rel=1e-5) and step["train_consistency_loss"] > 0


def test_a_hybrid_models_ctc_decoder_must_be_trained(small_cfg):
    cfg = configs.hybrid(small_cfg)
    cfg.aux_ctc.ctc_loss_weight = 0
    cfg.comat.update(**ALONE)
    with pytest.raises(
        ConfigError, match=r"ctc_loss_weight must be above 0, got 0: .* posteriors of comat\.consistency"
    ):
        ComatHybridRNNTCTCModelBPE(cfg=cfg)


def test_the_rnnt_loss_may_be_fused(small_cfg):
    cfg = configs.hybrid(small_cfg)
    cfg.joint.update(fuse_loss_wer=True, fused_batch_size=3)
    cfg.comat.update(**ALONE)
    _, logged = train(ComatHybridRNNTCTCModelBPE, cfg, steps=1)
    step = logged[0]
    nemos = 0.7 * step["train_rnnt_loss"] + 0.3 * step["train_ctc_loss"]
    assert step["train_loss"] == pytest.approx(nemos + 0.2 * step["train_consistency_loss"], rel=1e-5)


def test_a_ctc_weight_that_became_0_is_refused_too(small_cfg):
    cfg = configs.hybrid(small_cfg)
    cfg.comat.update(**ALONE)
    trainer = quiet_trainer(1)
    model = ComatHybridRNNTCTCModelBPE(cfg=cfg, trainer=trainer)
    model.ctc_loss_weight = 0
    with pytest.raises(ConfigError, match="ctc_loss_weight must be above 0, got 0"):
        trainer.fit(model)


def test_character_models_train_from_lhotse(small_cfg):
    cfg = configs.characters(small_cfg)
    cfg.comat.update(**ALONE)
    with open_dict(cfg):
        cfg.train_ds.update(use_lhotse=True)
    _, logged = train(ComatCTCModel, cfg, steps=1)
    assert logged[0]["train_consistency_loss"] > 0


def test_a_reduction_to_no_number_is_refused(small_cfg):
    small_cfg.ctc_reduction = "none"
    with pytest.raises(ConfigError, match="ctc_reduction must be one of"):
        ComatCTCModelBPE(cfg=with_comat(small_cfg, ALONE))


def test_dali_is_refused_before_its_data_is_read(small_cfg):
    with open_dict(small_cfg):
        small_cfg.train_ds.use_dali = True
    with pytest.raises(ConfigError, match=r"DALI's batches do not allow; give model\.train_ds\.use_dali=false, or"):
        ComatCTCModelBPE(cfg=with_comat(small_cfg, ALONE))


def test_a_batch_whose_rows_cannot_be_doubled_is_refused():
    with pytest.raises(ConfigError, match="which a SimpleNamespace does not allow; read the data without DALI"):
        two_views(SimpleNamespace())


def test_a_stopped_run_goes_on_exactly(small_cfg, tmp_path):
    small_cfg.train_ds.batch_size = 4
    cfg = with_comat(small_cfg, ALONE)
    whole = fit(cfg, tmp_path / "whole")
    parts = [fit(cfg, tmp_path / "parts", *stop) for stop in ((1, signal.SIGTERM), (None, None))]
    assert {**parts[0], **parts[1]} == pytest.approx(whole, rel=1e-4) and len(whole) == 8
