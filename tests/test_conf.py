"""Every file in conf/ builds and is launched as it says; other encoders train."""

import json
from pathlib import Path

import pytest
import speech_to_text_comat as script
from configs import CORPUS, composed
from omegaconf import OmegaConf
from test_mixin import train

from nemo_comat import ComatCTCModelBPE, ConfigError
from nemo_comat.align import MonotonicAligner, OneToOneAligner, SinkhornAligner
from nemo_comat.compress import AttentionCompressor, CIFCompressor, CTCCompressor, FrameCompressor

ROOT = Path(__file__).resolve().parents[1]
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
def test_every_config_is_instantiated(name, started_from):
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
