"""Views: what COMAT does, in words and in pictures. Names are imported on first use."""

from nemo_comat.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "Alignment": "plot",
        "AlignmentPictures": "pictures",
        "alignment_image": "plot",
        "describe": "description",
        "describe_steps": "description",
        "first_batch_warnings": "first_batch",
        "plot_alignment": "plot",
        "plot_utterance": "plot",
    },
)
