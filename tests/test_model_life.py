"""What happens to a model after its making: new vocabularies, other decoders, adapters, freezing."""

from importlib.util import find_spec

import pytest
import torch
from build_tokenizer import build_tokenizer
from nemo.collections.asr.models import EncDecCTCModelBPE
from nemo.collections.common.parts.adapter_modules import LinearAdapterConfig
from nemo.core.classes.mixins.adapter_mixins import get_registered_adapter
from nemo.core.connectors.save_restore_connector import SaveRestoreConnector
from omegaconf import OmegaConf
from test_mixin import Recorder, babbling, quiet_trainer, train

from nemo_comat import ComatCTCModelBPE, ConfigError
from nemo_comat.models.words import target_words

# decoding strategies of NeMo 3.0 by the module that each needs beside NeMo; wfst needs a GPU
DECODERS = {
    "greedy": None,
    "greedy_batch": None,
    "beam_batch": None,
    "pyctcdecode": "pyctcdecode",
    "flashlight": "flashlight.lib.text.decoder.kenlm",
    "beam": "ctc_decoders",
}


def rows(manifest):
    return [OmegaConf.create(line) for line in open(manifest).read().splitlines()]


def transcripts(model, manifest):
    audio = [row.audio_filepath for row in rows(manifest)[:4]]
    return [h.text for h in model.transcribe(audio, batch_size=4, verbose=False)]


def saved_and_restored(model, tmp_path, cls=ComatCTCModelBPE):
    model.save_to(str(tmp_path / "m.nemo"))
    connector = None if issubclass(cls, ComatCTCModelBPE) else SaveRestoreConnector()
    return cls.restore_from(str(tmp_path / "m.nemo"), map_location="cpu", save_restore_connector=connector)


def train_on(model, steps=2):
    """Trains a model that is there already; what it logged, and the last step's gradients by parameter."""
    recorder = Recorder()
    trainer = quiet_trainer(steps, recorder)
    model.set_trainer(trainer)
    model.setup_training_data(model.cfg.train_ds)
    model.setup_optimization()
    trainer.fit(model)
    return recorder.steps, recorder.grads


def unigrams(vocabulary, file):
    """Writes a language model to which all pieces are alike; the file's name."""
    words = ["<unk>", "<s>", "</s>", *vocabulary]
    lines = "".join(f"-2\t{word}\t0\n" for word in dict.fromkeys(words))
    heads = f"\\data\\\nngram 1={len(set(words))}\nngram 2=1\n\n"
    file.write_text(f"{heads}\\1-grams:\n{lines}\n\\2-grams:\n-1\t<s> </s>\n\n\\end\\\n")
    return str(file)


def weights(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def moved(before, model):
    """Parameters, without buffers, that are no longer what they were."""
    return {name for name, p in model.named_parameters() if not p.equal(before[name])}


def parts(names):
    """The modules that parameters belong to."""
    return {name.split(".")[0] for name in names}


@pytest.fixture
def model(small_cfg):
    return babbling(ComatCTCModelBPE(cfg=small_cfg))


@pytest.fixture
def other_tokenizer(manifest, tmp_path):
    build_tokenizer([row.text for row in rows(manifest)], tmp_path / "tokenizer", vocab_size=40)
    return str(tmp_path / "tokenizer")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_new_vocabulary(model, manifest, other_tokenizer, tmp_path, when):
    assert model.comat.compressor.options["blank"] == 32
    learnt = weights(model.comat)
    if when == "after":
        model = saved_and_restored(model, tmp_path)
    model.change_vocabulary(other_tokenizer, "bpe")
    if when == "before":
        model = saved_and_restored(model, tmp_path)
    assert model.decoder.num_classes_with_blank - 1 == 40 == model.comat.compressor.options["blank"]
    assert all(model.comat.state_dict()[key].equal(value) for key, value in learnt.items())
    logged, grads = train_on(model.train())
    assert [step["train_active_fraction"] for step in logged] == [1.0, 1.0]
    assert grads["decoder.decoder_layers.0.weight"].shape[0] == 41
    assert grads["comat.projection.layers.0.weight"].abs().sum() > 0
    row = rows(manifest)[0]
    labels = model.align_text(row.audio_filepath, row.text).labels
    assert labels == model.tokenizer.text_to_tokens(row.text)
    plain = saved_and_restored(model, tmp_path, EncDecCTCModelBPE)
    assert transcripts(plain, manifest) == transcripts(model, manifest)


def test_a_new_vocabulary_spells_other_words(small_cfg, other_tokenizer):
    small_cfg.comat.align.within_words = True
    model = ComatCTCModelBPE(cfg=small_cfg)

    def words():
        transcript = torch.arange(1, 31)[None]
        given = ["a"], transcript, torch.tensor([30]), 1, torch.device("cpu")
        return model._words.find(model.tokenizer, *given)[0][0].tolist()

    before = words()
    model.change_vocabulary(other_tokenizer, "bpe")
    assert words() == target_words(model.tokenizer, list(range(1, 31))) != before


@pytest.mark.parametrize("method", ["cif", "attention", "none"])
def test_ways_to_compress_that_know_no_blank_stay_as_they_are(small_cfg, other_tokenizer, method):
    small_cfg.comat.compress.method, small_cfg.comat.align.method = method, "sinkhorn"
    model = ComatCTCModelBPE(cfg=small_cfg)
    before = weights(model.comat)
    model.change_vocabulary(other_tokenizer, "bpe")
    assert moved(before, model.comat) == set() and before.keys() == model.comat.state_dict().keys()


@pytest.mark.parametrize("strategy", DECODERS)
def test_other_decoders(model, manifest, tmp_path, strategy):
    module = DECODERS[strategy]
    if module is not None and not (find_spec(module.split(".")[0]) and find_spec(module)):
        pytest.skip(f"NeMo's decoder {strategy!r} needs {module.split('.')[0]}")
    cfg = OmegaConf.create({"strategy": strategy, "beam": {"beam_size": 3, "beam_beta": 0.5}})
    if strategy in ("flashlight", "beam"):
        cfg.beam.ngram_lm_model = unigrams(model.decoder.vocabulary, tmp_path / "lm.arpa")
    model.change_decoding_strategy(cfg)
    said = transcripts(model, manifest)
    assert any(said)
    for cls in (ComatCTCModelBPE, EncDecCTCModelBPE):
        again = saved_and_restored(model, tmp_path, cls)
        assert again.cfg.decoding.strategy == strategy and transcripts(again, manifest) == said
    if strategy == "greedy":
        again.change_decoding_strategy(OmegaConf.create({"strategy": "greedy_batch"}))
        assert transcripts(again, manifest) == said


def test_adapters_move_alone_and_are_restored(model, manifest, tmp_path):
    model.save_to(str(tmp_path / "m.nemo"))
    cfg = ComatCTCModelBPE.restore_from(str(tmp_path / "m.nemo"), return_config=True)
    cfg.encoder._target_ = get_registered_adapter(cfg.encoder._target_).adapter_class_path
    model = ComatCTCModelBPE.restore_from(str(tmp_path / "m.nemo"), map_location="cpu", override_config_path=cfg)
    model.add_adapter("mine", LinearAdapterConfig(in_features=32, dim=8))
    model.freeze()
    model.unfreeze_enabled_adapters()
    before = weights(model)
    logged, _ = train_on(model)
    adapters = {name for name in before if ".adapter_layer.mine." in name}
    assert adapters and moved(before, model) and moved(before, model) <= adapters
    assert [step["train_active_fraction"] for step in logged] == [1.0, 1.0]
    # with the projection in training too
    model.comat.requires_grad_(True)
    before = weights(model)
    train_on(model)
    ours = {f"comat.{name}" for name, _ in model.comat.named_parameters()}
    assert ours <= moved(before, model) <= adapters | ours
    again = saved_and_restored(model, tmp_path)
    assert again.get_enabled_adapters() == ["mine"]
    assert all(again.state_dict()[key].equal(value) for key, value in weights(model).items())
    said = transcripts(model.eval(), manifest)
    assert any(said) and transcripts(again.eval(), manifest) == said
    assert transcripts(saved_and_restored(model, tmp_path, EncDecCTCModelBPE), manifest) == said


def test_a_frozen_encoder_gets_no_gradients_and_the_rest_does(model):
    model.train().encoder.freeze()
    before = weights(model)
    logged, grads = train_on(model)
    assert parts(grads) == parts(moved(before, model)) == {"decoder", "comat"}
    assert all(step["train_active_fraction"] == 1 and step["train_transfer_loss"] > 0 for step in logged)
    # NeMo's partial unfreezing gives back what was trainable before
    model.encoder.unfreeze(partial=True)
    _, grads = train_on(model)
    assert parts(grads) == {"encoder", "decoder", "comat"}


def test_one_layer_unfrozen_gets_gradients_from_the_transfer_too(model):
    model.freeze()
    model.encoder.layers[1].requires_grad_(True)
    before = weights(model)
    logged, grads = train_on(model)
    assert grads and all(name.startswith("encoder.layers.1.") for name in grads)
    assert moved(before, model) <= set(grads)
    assert [step["train_active_fraction"] for step in logged] == [1.0, 1.0]
    pulls = {}
    for weight in (1e-9, 1000.0):
        model.cfg.comat.weight = weight
        _, pulls[weight] = train_on(model, steps=1)
    assert any(pulls[1000.0][name].norm() > 2 * grad.norm() for name, grad in pulls[1e-9].items())


def test_a_frozen_model_reads_the_manifests_texts(small_cfg):
    small_cfg.comat.teacher.text = "manifest"
    model = ComatCTCModelBPE(cfg=small_cfg)
    model.freeze()
    model.encoder.layers[1].requires_grad_(True)
    logged, grads = train_on(model)
    assert grads and [step["train_active_fraction"] for step in logged] == [1.0, 1.0]


@pytest.mark.parametrize("name", ["comat", "encodr"])
def test_what_nemo_cannot_freeze_is_refused_before_the_first_batch(small_cfg, name):
    small_cfg.freeze_updates = {"enabled": True, "modules": {name: 2}}
    with pytest.raises(ConfigError, match=f"freeze_updates.modules has {name}, which NeMo cannot freeze"):
        train_on(ComatCTCModelBPE(cfg=small_cfg))


def test_a_frozen_model_is_unfrozen_whole(model):
    model.freeze()
    assert not any(p.requires_grad for p in model.parameters())
    model.unfreeze()
    _, grads = train_on(model.train())
    assert {f"comat.{name}" for name, _ in model.comat.named_parameters()} < set(grads)


@pytest.mark.parametrize("masks", ["on", "off", "none"])
def test_with_and_without_spectrogram_augmentation(small_cfg, masks):
    assert small_cfg.spec_augment.time_masks == 5
    if masks == "off":
        small_cfg.spec_augment.update(freq_masks=0, time_masks=0)
    if masks == "none":
        small_cfg.spec_augment = None
    model, logged = train(ComatCTCModelBPE, small_cfg, steps=2)
    assert (model.spec_augmentation is None) == (masks == "none")
    assert [step["train_active_fraction"] for step in logged] == [1.0, 1.0]
    assert all(p.isfinite().all() for p in model.parameters())
