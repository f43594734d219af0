"""NeMo's CTC models with COMAT. Another one of NeMo's becomes one of ours by inheriting `ComatMixin` first."""

from nemo.collections.asr.models import EncDecCTCModel, EncDecCTCModelBPE, EncDecHybridRNNTCTCBPEModel

from nemo_comat.config import ConfigError
from nemo_comat.models.characters import CharacterTokenizer
from nemo_comat.models.mixin import ComatMixin


class ComatCTCModelBPE(ComatMixin, EncDecCTCModelBPE):
    """NeMo's `EncDecCTCModelBPE` trained with COMAT; configured, used, saved and restored as its parent.

    Args:
        cfg: NeMo's model config, with a ``comat`` block of `nemo_comat.config.ComatConfig`'s keys. Without the block,
            or with ``weight: 0``, it is plain CTC.
        trainer: Lightning's Trainer, or None.
    Raises:
        ConfigError: an unknown key or value in ``comat``; before any data or model is loaded.
        TeacherError: the teacher's config cannot be read.
    Source: COMAT, Computer Speech & Language 97, 2026, doi 10.1016/j.csl.2025.101900.
    """


class ComatCTCModel(ComatMixin, EncDecCTCModel):
    """NeMo's character model `EncDecCTCModel` trained with COMAT; configured, used, saved and restored as its parent.

    Args:
        cfg: NeMo's model config, with ``labels`` in the place of a ``tokenizer`` block, and a ``comat`` block.
        trainer: Lightning's Trainer, or None.
    Raises:
        ConfigError, TeacherError: as `ComatCTCModelBPE`.
    """

    def _text_tokenizer(self):
        return CharacterTokenizer.of(self.decoding.vocabulary, self._cfg.get("train_ds"))

    def _text_reader(self, dataset):
        tokenizer = CharacterTokenizer.of(dataset.get("labels") or self._cfg.get("labels"), dataset)
        return lambda text, lang=None: tokenizer.parse(text)


class ComatHybridRNNTCTCModelBPE(ComatMixin, EncDecHybridRNNTCTCBPEModel):
    """NeMo's `EncDecHybridRNNTCTCBPEModel` trained with COMAT, by its CTC decoder; the RNN-T decoder is NeMo's.

    Args:
        cfg: NeMo's model config, with a ``comat`` block.
        trainer: Lightning's Trainer, or None.
    Raises:
        ConfigError, TeacherError: as `ComatCTCModelBPE`; also where ``aux_ctc.ctc_loss_weight`` is 0.
    """

    def __init__(self, cfg, trainer=None):
        super().__init__(cfg=cfg, trainer=trainer)
        if self.comat is not None and not self.ctc_loss_weight > 0:
            raise ConfigError(
                f"model.aux_ctc.ctc_loss_weight must be above 0, got {self.ctc_loss_weight}: COMAT's segments come "
                "from the CTC decoder, which would not be trained."
            )

    @staticmethod
    def _ctc_config(cfg):
        return cfg.aux_ctc

    def _ctc_decoder(self):
        return self.ctc_decoder

    def _log(self, step, numbers):
        # this model of NeMo's logs for itself, the CTC loss alone among it
        del numbers["train_ctc_loss"]
        self.log_dict(numbers)
