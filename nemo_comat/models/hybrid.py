"""NeMo's hybrid model, of an RNN-T and a CTC decoder, with COMAT."""

from typing import Any

from lightning.pytorch import Trainer
from nemo.collections.asr.models import EncDecHybridRNNTCTCBPEModel
from omegaconf import DictConfig

from nemo_comat.config import ConfigError
from nemo_comat.models.mixin import ComatMixin


class ComatHybridRNNTCTCModelBPE(ComatMixin, EncDecHybridRNNTCTCBPEModel):
    """NeMo's `EncDecHybridRNNTCTCBPEModel` trained with COMAT, by its CTC decoder; the RNN-T decoder is NeMo's.

    Args:
        cfg: NeMo's model config, with a ``comat`` block.
        trainer: Lightning's Trainer, or None.
    Raises:
        ConfigError, TeacherError: as `ComatCTCModelBPE`; also where ``aux_ctc.ctc_loss_weight`` is 0.
    """

    def __init__(self, cfg: DictConfig, trainer: Trainer | None = None) -> None:
        super().__init__(cfg=cfg, trainer=trainer)
        self._check_ctc_weight()

    def on_train_start(self) -> None:
        """As `ComatMixin`'s."""
        self._check_ctc_weight()
        super().on_train_start()

    def _check_ctc_weight(self) -> None:
        if (self.comat is not None or self.consistency_weight) and not self.ctc_loss_weight > 0:
            raise ConfigError(
                f"model.aux_ctc.ctc_loss_weight must be above 0, got {self.ctc_loss_weight}: COMAT's segments and "
                "the posteriors of comat.consistency_weight come from the CTC decoder, which would not be trained."
            )

    @staticmethod
    def _ctc_config(cfg: DictConfig) -> DictConfig:
        # without it NeMo says what is missing
        return cfg.get("aux_ctc") or cfg

    def _ctc_decoder(self) -> Any:
        return self.ctc_decoder

    def _as_nemo_reads(self, batch: Any) -> Any:
        if not isinstance(batch, (tuple, list)):
            return batch
        # the RNN-T loss wants as many columns as the longest transcript has, which may be one that was silenced
        *audio, transcript, transcript_len = batch
        return *audio, transcript[:, : int(transcript_len.max())], transcript_len

    def _log(self, step: dict[str, Any], numbers: dict[str, Any]) -> None:
        # this model of NeMo's logs for itself, the CTC loss alone among it
        numbers.pop("train_ctc_loss", None)
        self.log_dict(numbers)
