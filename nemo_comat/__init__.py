"""COMAT for NVIDIA NeMo: CTC speech recognisers that learn spelling from a pre-trained language model.

Names are imported on first use: the functions on tensors cost no import of NeMo.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "CacheError": "teacher",
    "CachedTeacher": "teacher",
    "ComatCTCModel": "models.recognisers",
    "ComatCTCModelBPE": "models.recognisers",
    "ComatHybridRNNTCTCModelBPE": "models.recognisers",
    "ComatMixin": "models.mixin",
    "ComatSaveRestoreConnector": "models.checkpoint",
    "CompressAlignTransfer": "comat",
    "ConfigError": "config",
    "Teacher": "teacher",
    "TeacherCache": "teacher",
    "TeacherError": "teacher",
    "cif_weights": "compress",
    "cosine_score": "transfer",
    "ctc_compress": "compress",
    "ctc_viterbi": "compress",
    "describe": "views.description",
    "monotonic_align": "align",
    "one_to_one_align": "align",
    "plan_average": "align",
    "plot_alignment": "views.plot",
    "plot_utterance": "views.plot",
    "quantity_loss": "compress",
    "segment_log_softmax": "align",
    "sinkhorn": "align",
    "token_average": "transfer",
    "transfer_loss": "transfer",
    "write_cache": "teacher",
    "write_index": "teacher",
}
__all__ = list(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__():
    return sorted(list(globals()) + __all__)
