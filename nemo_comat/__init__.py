"""COMAT for NVIDIA NeMo: CTC speech recognisers that learn spelling from a pre-trained language model.

Names are imported on first use: the functions on tensors cost no import of NeMo.
"""

from nemo_comat.lazy import lazy_names

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "CacheError": "teacher",
        "CachedTeacher": "teacher",
        "ComatCTCModel": "models",
        "ComatCTCModelBPE": "models",
        "ComatHybridRNNTCTCModelBPE": "models",
        "ComatMixin": "models",
        "ComatSaveRestoreConnector": "models",
        "CompressAlignTransfer": "comat",
        "ConfigError": "config",
        "Teacher": "teacher",
        "TeacherCache": "teacher",
        "TeacherError": "teacher",
        "cif_weights": "compress",
        "cosine_score": "transfer",
        "ctc_compress": "compress",
        "ctc_viterbi": "compress",
        "describe": "views",
        "monotonic_align": "align",
        "one_to_one_align": "align",
        "plan_average": "align",
        "plot_alignment": "views",
        "plot_utterance": "views",
        "quantity_loss": "compress",
        "segment_log_softmax": "align",
        "sinkhorn": "align",
        "token_average": "transfer",
        "transfer_loss": "transfer",
        "write_cache": "teacher",
        "write_index": "teacher",
    },
)
