"""NeMo's CTC model of subwords with COMAT; another model of NeMo's becomes one of ours as it did, by `ComatMixin`."""

from nemo.collections.asr.models import EncDecCTCModelBPE

from nemo_comat.models.mixin import ComatMixin


class ComatCTCModelBPE(ComatMixin, EncDecCTCModelBPE):
    """NeMo's `EncDecCTCModelBPE` trained with COMAT; configured, used, saved and restored as its parent.

    Args:
        cfg: NeMo's model config, with a ``comat`` block of `nemo_comat.config.ComatConfig`'s keys. Without the block,
            or with ``weight: 0`` and neither ``consistency_weight`` nor ``feedback``, it is plain CTC.
        trainer: Lightning's Trainer, or None.
    Raises:
        ConfigError: an unknown key or value in ``comat``; before any data or model is loaded.
        TeacherError: the teacher's config cannot be read.
    Source: COMAT, Computer Speech & Language 97, 2026, doi 10.1016/j.csl.2025.101900.
    """
