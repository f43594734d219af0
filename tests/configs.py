"""Configs: those of conf/ as the command line gives them, and the small model's made into that of other classes."""

import string
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "examples" / "demo_corpus"
LABELS = [" ", *string.ascii_lowercase, "'"]
HYBRID = """
model_defaults: {enc_hidden: 32, pred_hidden: 24, joint_hidden: 24}
aux_ctc:
  ctc_loss_weight: 0.3
  use_cer: false
  ctc_reduction: mean_batch
  decoder: {_target_: nemo.collections.asr.modules.ConvASRDecoder, feat_in: null, num_classes: -1, vocabulary: []}
  decoding: {strategy: greedy_batch}
decoder:
  _target_: nemo.collections.asr.modules.RNNTDecoder
  normalization_mode: null
  random_state_sampling: false
  blank_as_pad: true
  prednet: {pred_hidden: 24, pred_rnn_layers: 1, t_max: null, dropout: 0.0}
joint:
  _target_: nemo.collections.asr.modules.RNNTJoint
  log_softmax: null
  preserve_memory: false
  fuse_loss_wer: false
  fused_batch_size: 4
  jointnet: {joint_hidden: 24, activation: relu, dropout: 0.0}
decoding: {strategy: greedy_batch, greedy: {max_symbols: 3}}
loss: {loss_name: pytorch}  # the default one is compiled for a minute
train_ds: {batch_size: 2}  # its time goes by the square of a batch's frames
"""


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


def characters(cfg):
    """A config, changed in place: letters stand in the place of a tokenizer."""
    with open_dict(cfg):
        cfg.pop("tokenizer")
        cfg.pop("test_ds")  # where it is null, NeMo 3.0's change_vocabulary fails
        cfg.labels = LABELS
    cfg.decoder.vocabulary = LABELS
    return cfg


def hybrid(cfg):
    """A config, changed: an RNN-T decoder beside the CTC decoder."""
    with open_dict(cfg):
        for key in ("decoder", "ctc_reduction"):
            cfg.pop(key)
        return OmegaConf.merge(cfg, OmegaConf.create(HYBRID))
