"""The small model's config made into that of other classes."""

import string

from omegaconf import OmegaConf, open_dict

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
