"""Feedback into the encoder: what it adds where, that it is kept in files, and who can open them."""

import json

import pytest
import torch
from build_tokenizer import build_tokenizer
from nemo.collections.asr.models import EncDecCTCModelBPE
from test_mixin import Recorder, train, with_comat

from nemo_comat import ComatCTCModelBPE, ConfigError
from nemo_comat.models.captured import captured
from nemo_comat.models.export import ExportError, plain_model
from nemo_comat.views.description import describe

KINDS = [True, "ctc"]


def with_feedback(cfg, feedback, **more):
    cfg.comat.update({"encoder_layer": 0, "feedback": feedback, **more})
    return cfg


def hear(model):
    torch.manual_seed(3)
    model.eval()
    with torch.no_grad():
        return model(input_signal=torch.randn(2, 16000), input_signal_length=torch.tensor([16000, 12000]))


@pytest.mark.parametrize("feedback", KINDS)
def test_it_begins_as_nothing_and_learns_from_the_ctc_loss(small_cfg, feedback):
    small_cfg.comat.encoder_layer = 0
    _, plain = train(ComatCTCModelBPE, small_cfg, steps=1)
    model, fed = train(ComatCTCModelBPE, with_feedback(small_cfg, feedback), steps=1)
    assert fed[0]["train_ctc_loss"] == plain[0]["train_ctc_loss"]
    grads = next(c for c in model.trainer.callbacks if isinstance(c, Recorder)).grads
    assert grads["nemo_comat_feedback.0.back.weight"].any()
    assert model.nemo_comat_feedback[0].back.weight.any()


@pytest.mark.parametrize("feedback", KINDS)
def test_the_next_layer_reads_the_frames_with_their_view(small_cfg, feedback):
    model = ComatCTCModelBPE(cfg=with_feedback(small_cfg, feedback))
    back = model.nemo_comat_feedback[0].back
    torch.nn.init.normal_(back.weight)
    read = {}

    def look(module, args, kwargs):
        read["x"] = kwargs["x"]

    model.encoder.layers[1].register_forward_pre_hook(look, with_kwargs=True)
    with captured(layer=model.encoder.layers[0]) as seen:
        hear(model)
    frames = seen["layer"]
    if feedback == "ctc":
        weights = model.decoder.decoder_layers[0]
        view = (frames @ weights.weight[..., 0].T + weights.bias).softmax(-1)
    else:
        view = torch.nn.functional.normalize(model.comat.projection(frames), dim=-1)
    torch.testing.assert_close(read["x"], frames + view @ back.weight.T + back.bias, atol=1e-5, rtol=1e-5)


def test_the_temperature_of_decoding_is_not_fed_back(small_cfg):
    model = ComatCTCModelBPE(cfg=with_feedback(small_cfg, "ctc"))
    torch.nn.init.normal_(model.nemo_comat_feedback[0].back.weight)
    plain = hear(model)[0]
    model.decoder.temperature = 3.0
    torch.testing.assert_close(hear(model)[0], (plain / 3).log_softmax(-1))
    assert model.decoder.temperature == 3.0


def test_posteriors_of_a_layer_are_those_of_the_encoders_own_width(small_cfg):
    small_cfg.encoder.feat_out = 16
    model, _ = train(ComatCTCModelBPE, with_feedback(small_cfg, "ctc"), steps=1)
    assert model.nemo_comat_feedback[0].back.weight.any()


def test_the_last_layer_of_a_list_is_taught_alone(small_cfg):
    small_cfg.comat.update(encoder_layer=[-1, 0], feedback=True)
    model, logged = train(ComatCTCModelBPE, small_cfg, steps=1)
    torch.nn.init.normal_(model.nemo_comat_feedback[0].back.weight)
    read = {}
    model.encoder.layers[1].register_forward_pre_hook(lambda _, args, kwargs: read.update(kwargs), with_kwargs=True)
    with captured(layer=model.encoder.layers[0]) as seen:
        hear(model)
    # the second of the list's projections is that of layer 0
    view = torch.nn.functional.normalize(model.comat.projection(seen["layer"]), dim=-1)
    fed = seen["layer"] + model.nemo_comat_feedback[0].back(view)
    torch.testing.assert_close(read["x"], fed, atol=1e-5, rtol=1e-5)
    assert len(model.nemo_comat_feedback) == 1 and logged[0]["train_transfer_loss"] > 0


@pytest.mark.parametrize("feedback", KINDS)
def test_files_keep_it_and_are_no_plain_models(small_cfg, feedback, tmp_path):
    model = ComatCTCModelBPE(cfg=with_feedback(small_cfg, feedback))
    torch.nn.init.normal_(model.nemo_comat_feedback[0].back.weight)
    file = str(tmp_path / "m.nemo")
    model.save_to(file)
    again = ComatCTCModelBPE.restore_from(file, map_location="cpu")
    assert again.cfg.comat.feedback == feedback
    assert hear(again)[0].equal(hear(model)[0])
    with pytest.raises(ExportError, match="trained with comat.feedback=.*, so it holds no plain CTC model"):
        plain_model(file)


def test_it_starts_from_a_plain_model(small_cfg):
    with_feedback(small_cfg, True)
    plain = EncDecCTCModelBPE(cfg=with_comat(small_cfg, None))
    model = ComatCTCModelBPE(cfg=small_cfg)
    model.load_state_dict(plain.state_dict())
    assert hear(model)[0].equal(hear(plain)[0])


@pytest.mark.parametrize("feedback", KINDS)
def test_weights_that_are_fed_into_another_layer_are_refused(small_cfg, feedback):
    small_cfg.encoder.n_layers = 3
    model = ComatCTCModelBPE(cfg=with_feedback(small_cfg, feedback))
    torch.nn.init.normal_(model.nemo_comat_feedback[0].back.weight)
    of_before = model.state_dict()
    del of_before["nemo_comat_feedback.layers"]  # which older files do not have
    again = ComatCTCModelBPE(cfg=small_cfg)
    again.load_state_dict(of_before)
    assert hear(again)[0].equal(hear(model)[0])
    other = ComatCTCModelBPE(cfg=with_feedback(small_cfg.copy(), feedback, encoder_layer=1))
    for strict in (True, False):
        with pytest.raises(ConfigError, match="The feedback of these weights does not fit this model"):
            other.load_state_dict(model.state_dict(), strict=strict)


def test_self_conditioned_ctc_needs_no_teacher(small_cfg):
    small_cfg.interctc = {"loss_weights": [0.3], "apply_at_layers": [0]}
    model, logged = train(ComatCTCModelBPE, with_feedback(small_cfg, "ctc", weight=0), steps=2)
    assert model.comat is None and model.nemo_comat_feedback[0].back.weight.any()
    assert "train_transfer_loss" not in logged[0] and "posteriors are fed back" in describe(model)


def test_a_vocabulary_is_asked_for_only_where_its_posteriors_are_fed_back(small_cfg):
    model = ComatCTCModelBPE(cfg=with_feedback(small_cfg, True))
    del model.decoder._ConvASRDecoder__vocabulary  # a decoder may have none
    assert model._fed_pieces() is None


def test_the_feedback_of_posteriors_is_of_its_pieces(small_cfg, manifest, tmp_path):
    model = ComatCTCModelBPE(cfg=with_feedback(small_cfg, "ctc"))
    (fed,) = model.nemo_comat_feedback
    torch.nn.init.ones_(fed.back.weight)
    model.change_vocabulary(new_tokenizer_dir=small_cfg.tokenizer.dir, new_tokenizer_type="bpe")
    assert fed.back.weight.all()  # the same pieces
    before = torch.get_rng_state()
    model._renew_feedback_of_posteriors()
    assert torch.get_rng_state().equal(before)
    (fed,) = model.nemo_comat_feedback
    torch.nn.init.ones_(fed.back.weight)
    # as many, but others
    texts = [json.loads(line)["text"][::-1] for line in open(manifest)]
    build_tokenizer(texts, tmp_path, vocab_size=len(model.decoder.vocabulary))
    model.change_vocabulary(new_tokenizer_dir=str(tmp_path), new_tokenizer_type="bpe")
    assert len(model.decoder.vocabulary) == fed.back.in_features - 1 and not fed.back.weight.any()
    # and fewer
    build_tokenizer(texts, tmp_path / "fewer", vocab_size=len(model.decoder.vocabulary) - 3)
    model.change_vocabulary(new_tokenizer_dir=str(tmp_path / "fewer"), new_tokenizer_type="bpe")
    assert len(model.decoder.vocabulary) == model.nemo_comat_feedback[0].back.in_features - 1


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"encoder_layer": None},
            "feedback=True needs .*encoder_layer, a layer before the last .*; got None",
        ),
        ({"encoder_layer": -1}, r"goes into the layer after each of .* \[-1\], but 1 is the last one; .* 0 to 0 too"),
        ({"weight": 0}, "feedback=true feeds back what the transfer loss teaches, but model.comat.weight is 0"),
        ({"feedback": "lm"}, "feedback must be one of false, true, ctc; got 'lm'"),
    ],
)
def test_what_cannot_be_fed_back_is_refused(small_cfg, change, message):
    with_feedback(small_cfg, True).comat.update(change)
    with pytest.raises(ConfigError, match=message):
        ComatCTCModelBPE(cfg=small_cfg)
