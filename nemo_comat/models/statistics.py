"""Statistics of the teacher's vectors over a model's training texts, taken before training starts."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch.utilities.seed import isolate_rng
from nemo.utils import logging
from torch import Tensor

from nemo_comat.config import ConfigError
from nemo_comat.models.reference import manifest_text, manifest_texts, name_samples, reader_of, reference_text
from nemo_comat.teacher import CachedTeacher
from nemo_comat.transfer import VectorStatistics, vector_statistics

# texts that are embedded in one batch
TOGETHER = 64


def keep_statistics(model: Any) -> None:
    """Takes the statistics that `comat.teacher.normalize` needs; all ranks get those of the first.

    Args:
        model: with `ComatMixin`, whose training data are set up. Statistics that it has of this teacher stay.
    Raises:
        ConfigError: the teacher has no vector of any training text.
    """
    source = vectors_source(model._teacher.description)
    if not model.comat.normalize.lacks(source):
        return
    if model.comat.normalize.number:
        logging.info("The mean of the teacher's vectors that these weights have is of another teacher: taken anew.")
    most = model.cfg.comat.teacher.normalize_texts
    # data order, dropout and augmentation stay those of a run without this
    with isolate_rng():
        # on each rank: some of NeMo's readers wait for the others' when they are made
        loader = None if isinstance(model._teacher, CachedTeacher) else _loader_of_texts(model)
        found, error = _take(model, most, loader) if model.global_rank == 0 else (None, None)
    # the other ranks wait here, so they are told of an error too
    found, said = model.trainer.strategy.broadcast((found, error and str(error)))
    if said is not None:
        raise error or ConfigError(said)
    model.comat.normalize.keep(found, source)


def _take(model: Any, most: int, loader: Any) -> tuple[VectorStatistics | None, Exception | None]:
    """Statistics, or the error that prevented them."""
    logging.info(f"Taking the mean of the teacher's vectors over at most {most} training texts.")
    try:
        found = vector_statistics(_vectors(model, most, loader))
    except ValueError as error:
        return None, ConfigError(
            f"model.comat.teacher.normalize={model.comat.normalize.method}, but {error}: the teacher reads none of "
            "the training texts; look at model.train_ds and model.comat.teacher.max_length."
        )
    except Exception as error:  # of the teacher, its cache or the data; it is raised once the others know
        return None, error
    logging.info(f"The mean is of {found.number} vectors.")
    return found, None


def vectors_source(description: Mapping[str, Any]) -> int:
    """A number that tells the vectors of a teacher from others', by `Teacher.description`: int above 0, below 2 ** 56.

    Examples:
        >>> one = {"name": "a/teacher", "layers": [0], "weights": "1234"}
        >>> vectors_source(one) == vectors_source({**one, "name": "moved"}), vectors_source(one) == vectors_source({})
        (True, False)
    """
    # what is asked of the head, the limit of length, and where known weights lie, do not change a vector; statistics of
    # before do not know the tokenizer
    apart = {"top_k", "mask", "max_length", "tokenizer", *(["name"] if description.get("weights") else [])}
    said = json.dumps({key: value for key, value in description.items() if key not in apart}, sort_keys=True)
    return 1 + int.from_bytes(hashlib.blake2b(said.encode(), digest_size=7).digest(), "little") % (2**56 - 1)


def _vectors(model: Any, most: int, loader: Any) -> Iterator[Tensor]:
    """Vectors [n, Dp] of training texts: the cache's where there is one, else of texts that are embedded now."""
    teacher = model._teacher
    if isinstance(teacher, CachedTeacher):
        yield from teacher.cache.sample(most)
        return
    batch: list[str] = []
    for text in training_texts(model, most, loader):
        batch.append(text)
        if len(batch) == TOGETHER:
            yield from (row.vectors for row in teacher.embed(batch, model.device))
            batch = []
    yield from (row.vectors for row in teacher.embed(batch, model.device))


def training_texts(model: Any, most: int, loader: Any = None) -> Iterator[str]:
    """Training texts as the teacher gets them, at most so many, the same at each call.

    Args:
        model: with `ComatMixin`, whose training data are set up. most: int.
        loader: of training data, whose batches the texts are read from; None where the data list their rows.
    Yields:
        str: of a plain manifest texts spread evenly over it, else those of the first batches.
    Examples:
        >>> from types import SimpleNamespace as Stand
        >>> rows = [Stand(text_raw=text) for text in ("one", "two", "three")]
        >>> reader = Stand(manifest_processor=Stand(collection=rows))
        >>> list(training_texts(Stand(_train_dl=Stand(dataset=reader), _reads_manifest=True), most=2))
        ['one', 'three']
    """
    if loader is not None:
        yield from _texts_of_batches(model, most, loader)
        return
    collection = _listed_rows(model)
    step = max(1, -(-len(collection) // most))
    for item in (collection[i] for i in range(0, len(collection), step)):
        yield manifest_text([item.text_raw]) if model._reads_manifest else _as_read(model, item)


def _listed_rows(model: Any) -> Any:
    """The rows of the training data that a manifest lists in whole; None where they come otherwise."""
    reader = reader_of(model._train_dl)
    # tarred data may have a manifest for each shard, which is read as its shard is
    listed = not hasattr(reader, "shard_manifests")
    return getattr(getattr(reader, "manifest_processor", None), "collection", None) if listed else None


def _loader_of_texts(model: Any) -> Any:
    """A loader of its own for data that list no rows, for the one that trains begins with its first batch; or None."""
    if _listed_rows(model) is not None:
        return None
    dataset = model.cfg.get("train_ds")
    loader = None if dataset is None else model._setup_dataloader_from_config(config={"shuffle": True, **dataset})
    if loader is None:
        raise ConfigError(
            "model.comat.teacher.normalize needs the training texts, and model.train_ds names no data; give "
            "model.train_ds, or model.comat.teacher.cache."
        )
    if model._reads_manifest:
        name_samples(loader)
    return loader


def _as_read(model: Any, item: Any) -> str:
    return reference_text(model._text_tokenizer(), [int(i) for i in item.text_tokens])


def _texts_of_batches(model: Any, most: int, loader: Any) -> Iterator[str]:
    count = 0
    for batch in loader:
        texts = manifest_texts(loader, batch[4]) if model._reads_manifest else model.transcript_texts(*batch[2:4])
        yield from texts[: most - count]
        count += len(texts)
        if count >= most:
            return
