"""The model classes by the path that they had up to version 0.1, which configs and files of then name them by."""

from nemo_comat.models.ctc_bpe import ComatCTCModelBPE
from nemo_comat.models.ctc_characters import ComatCTCModel
from nemo_comat.models.hybrid import ComatHybridRNNTCTCModelBPE
from nemo_comat.models.mixin import ComatMixin

__all__ = ["ComatCTCModel", "ComatCTCModelBPE", "ComatHybridRNNTCTCModelBPE", "ComatMixin"]
