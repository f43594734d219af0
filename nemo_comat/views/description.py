"""What COMAT does in one model, in words: for the log at the start of training, and for a model card."""

import math
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from nemo_comat.compress import BLANKS, LABELS, POOLS
from nemo_comat.teacher import TABLE

COMPRESS = {
    "ctc": "a segment for each run of frames with one label of {labels}, blanks {blanks}, {pool} of its frames",
    "cif": "continuous integrate-and-fire makes a segment for each token; {quantity_weight:g} * quantity loss",
    "attention": "a positional query for each token attends to the frames, with {heads} heads",
    "none": "each frame is a segment",
}
ALIGN = {
    "monotonic": "monotonic alignment search on {aligned}: in order, a token for each segment, none left out",
    "one_to_one": "segment n with token n",
    "sinkhorn": "a soft plan by optimal transport, epsilon {epsilon:g}, {iterations} iterations of Sinkhorn's",
}
TRANSFER = {
    "cosine": "1 - cosine with each token's embedding",
    "mse": "mean squared difference from each token's embedding",
    "contrastive": "contrastive loss with each token's embedding, temperature {temperature:g}",
    "classify": "cross entropy of each token among {among}, by the table of word embeddings, temperature "
    "{temperature:g}",
    "distribution": "divergence from the teacher's probabilities of the {top_k} likeliest tokens in each place, "
    "among {among}, by the table of word embeddings, temperature {temperature:g}",
}
INFERENCE = {
    False: "unchanged, plain {decoder}: teacher, alignment and projection take no part",
    True: "{decoder}; the projected frames are fed back into the encoder, teacher and alignment take no part",
    "ctc": "{decoder}; intermediate posteriors are fed back into the encoder, teacher and alignment take no part",
}
NORMALIZE = {
    "none": "",
    "center": ", less the mean vector",
    "standardize": ", less the mean vector, over the deviation",
}
# of each option of compress, in words
OPTIONS: dict[str, dict[Any, str]] = {
    "labels": dict(zip(LABELS, ("the model's greedy output", "the reference's CTC Viterbi path"), strict=True)),
    "blanks": dict(zip(BLANKS, ("dropped", "kept"), strict=True)),
    "pool": dict(zip(POOLS, ("mean", "mean by posterior", "softmax-weighted mean"), strict=True)),
}


def describe(model: Any) -> str:
    """What a model of ours learns from where while it trains, and that inference is unchanged; loads no teacher.

    Args:
        model: `ComatCTCModelBPE`, or another model with `ComatMixin`.
    Returns:
        str of a few lines.
    Examples:
        >>> from types import SimpleNamespace
        >>> describe(SimpleNamespace(cfg={}))
        'COMAT is off (no comat block): this trains plain CTC.'
    """
    block = model.cfg.get("comat")
    if block is None or not block.weight:
        why = "no comat block" if block is None else "comat.weight is 0"
        return f"COMAT is off ({why}): this trains {_without_comat(model, block or {})}."
    steps = describe_steps(block)
    return "\n".join(
        [
            "COMAT: while it trains, the encoder learns from a frozen language model.",
            f"  teacher    {steps['teacher']}, width {block.projection.dim}; it reads the reference texts",
            f"  compress   {_frames(model)}: {steps['compress']}",
            f"  align      {steps['align']}",
            f"  transfer   {_projection(model)}: {steps['transfer']}",
            f"  loss       {_recogniser(model)}{_consistency(block)} + {block.weight:g} * transfer{_rise(block)}",
            f"  inference  {INFERENCE[block.feedback].format(decoder='RNN-T or CTC' if _is_hybrid(model) else 'CTC')}",
        ]
    )


def describe_steps(block: DictConfig) -> dict[str, str]:
    """The parts of a complete ``comat`` block in words.

    Args:
        block: DictConfig as `nemo_comat.config.read_comat_config` gives it.
    Returns:
        dict from "teacher", "compress", "align" and "transfer" to str.
    Examples:
        >>> from nemo_comat.config import read_comat_config
        >>> block = read_comat_config({"compress": {"method": "cif"}, "align": {"method": "one_to_one"}})
        >>> describe_steps(block)["align"]
        'segment n with token n'
    """
    words = {key: words[block.compress[key]] for key, words in OPTIONS.items()}
    # a teacher given as a folder is called by the folder's name: where it lay is nobody's business
    name = str(block.teacher.name).rstrip("/")
    name = name.split("/")[-1] if name.startswith(("/", "~", ".")) else name
    return {
        "teacher": f"{name}, {_layers(block.teacher.layers)}{_units(block.teacher.units)}"
        + NORMALIZE[block.teacher.normalize],
        "compress": _words_of(block.compress.method, COMPRESS).format(**{**block.compress, **words}),
        "align": _words_of(block.align.method, ALIGN).format(aligned=_aligned(block.align.temperature), **block.align)
        + ", within words" * block.align.within_words,
        "transfer": _context(block)
        + _words_of(block.transfer.loss, TRANSFER).format(among=_among(block.transfer.negatives), **block.transfer),
    }


def _words_of(name: str, words: Mapping[str, str]) -> str:
    """What is said of a method or a loss: its name where a user added it, for which there are no words."""
    return words.get(name, name)


def _aligned(temperature: float | None) -> str:
    if temperature is None:
        return "cosines"
    return f"the log softmax of each token's cosines over the segments, temperature {temperature:g}"


def _context(block: DictConfig) -> str:
    if not block.context.layers:
        return ""
    layers, heads, mask = block.context.layers, block.context.heads, block.context.mask
    depth = f"{layers} transformer layer{'s' * (layers > 1)}"
    return f"in context ({depth} of {heads} heads, {mask:g} of the segments masked), "


def _units(units: str) -> str:
    return {"token": "", "word": ", a vector for each word"}[units]


def _among(negatives: int | None) -> str:
    return "the teacher's vocabulary" if negatives is None else f"the batch's and {negatives} other tokens"


def _layers(layers: Any) -> str:
    if layers == TABLE:
        return "table of word embeddings"
    if not isinstance(layers, int):
        return f"mean of layers {', '.join(str(layer) for layer in layers)}"
    return {-1: "last layer", 0: "word embeddings"}.get(layers, f"layer {layers}")


def _frames(model: Any) -> str:
    seconds = model.frame_seconds()
    return "frames" if math.isnan(seconds) else f"frames of {1000 * seconds:g} ms"


def _projection(model: Any) -> str:
    block = model.cfg.comat
    layers = block.encoder_layer
    layer = "last frames" if layers is None else f"layer{'s' * (not isinstance(layers, int))} {layers}"
    first = model.comat.projection.layers[0]
    depth = "a linear layer" if block.projection.depth == 1 else f"{block.projection.depth} layers with GELU"
    return f"{type(model.encoder).__name__}'s {layer}, width {first.in_features} -> {depth} -> {block.projection.dim}"


def _without_comat(model: Any, block: Mapping[str, Any] | DictConfig) -> str:
    what = "CTC whose intermediate posteriors are fed back" if block.get("feedback") else _recogniser(model)
    return ("plain CTC" if what == "CTC" else what) + _consistency(block)


def _consistency(block: Mapping[str, Any] | DictConfig) -> str:
    weight = block.get("consistency_weight")
    return f" + {weight:g} * consistency of two views of each batch" if weight else ""


def _is_hybrid(model: Any) -> bool:
    return model.cfg.get("aux_ctc") is not None


def _recogniser(model: Any) -> str:
    """The losses of the decoder or the two, and of InterCTC."""
    main, interctc = "CTC", model.cfg.get("interctc") or {}
    if _is_hybrid(model):
        main = f"{1 - model.ctc_loss_weight:g} * RNN-T + {model.ctc_loss_weight:g} * CTC"
    weights, layers = interctc.get("loss_weights") or (), interctc.get("apply_at_layers") or ()
    if not weights:
        return main
    between = [f"{weight:g} * CTC of layer {layer}" for weight, layer in zip(weights, layers, strict=True)]
    main = f"({main})" if _is_hybrid(model) else main
    return " + ".join([f"{1 - sum(weights):g} * {main}", *between])


def _rise(block: DictConfig) -> str:
    return f", the weight rising from 0 over {block.warmup_steps} steps" if block.warmup_steps else ""
