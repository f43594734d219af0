"""The model classes by the path that they had up to version 0.1, which configs and files of then name them by."""

from nemo_comat.models.mixin import ComatMixin
from nemo_comat.models.recognisers import ComatCTCModel, ComatCTCModelBPE, ComatHybridRNNTCTCModelBPE

__all__ = ["ComatCTCModel", "ComatCTCModelBPE", "ComatHybridRNNTCTCModelBPE", "ComatMixin"]
