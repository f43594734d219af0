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
from nemo_comat.transfer import vector_statistics

# texts that are embedded in one batch
TOGETHER = 64


def keep_statistics(model: Any) -> None:
    """Takes the statistics that `comat.teacher.normalize` needs; all ranks get those of the first.

    Args:
        model: with `ComatMixin`, whose training data are set up. Statistics that it has of this teacher stay.
    Raises:
        ConfigError: the teacher has no vector of any training text.
    """
    source = vectors_source(getattr(model._teacher, "teacher", model._teacher).description)
    if not model.comat.normalize.lacks(source):
        return
    if model.comat.normalize.number:
        logging.info("The mean of the teacher's vectors that these weights have is of another teacher: taken anew.")
    most, found = model.cfg.comat.teacher.normalize_texts, None
    if model.global_rank == 0:
        logging.info(f"Taking the mean of the teacher's vectors over at most {most} training texts.")
        try:
            # data order, dropout and augmentation stay those of a run without this
            with isolate_rng():
                found = vector_statistics(_vectors(model, most))
        except ValueError as error:
            raise ConfigError(
                f"model.comat.teacher.normalize={model.comat.normalize.method}, but {error}: the teacher reads none of "
                "the training texts; look at model.train_ds and model.comat.teacher.max_length."
            ) from None
        logging.info(f"The mean is of {found.number} vectors.")
    model.comat.normalize.keep(model.trainer.strategy.broadcast(found), source)


def vectors_source(description: Mapping[str, Any]) -> int:
    """A number that tells the vectors of a teacher from others', by `Teacher.description`: int above 0, below 2 ** 56.

    Examples:
        >>> one = {"name": "a/teacher", "layers": [0], "weights": "1234"}
        >>> vectors_source(one) == vectors_source({**one, "name": "moved"}), vectors_source(one) == vectors_source({})
        (True, False)
    """
    # what is asked of the head, the limit of length, and where known weights lie, do not change a vector
    apart = {"top_k", "mask", "max_length", *(["name"] if description.get("weights") else [])}
    said = json.dumps({key: value for key, value in description.items() if key not in apart}, sort_keys=True)
    return 1 + int.from_bytes(hashlib.blake2b(said.encode(), digest_size=7).digest(), "little") % (2**56 - 1)


def _vectors(model: Any, most: int) -> Iterator[Tensor]:
    """Vectors [n, Dp] of training texts: the cache's where there is one, else of texts that are embedded now."""
    teacher = model._teacher
    if hasattr(teacher, "cache"):
        yield from teacher.cache.sample(most)
        return
    batch: list[str] = []
    for text in training_texts(model, most):
        batch.append(text)
        if len(batch) == TOGETHER:
            yield from (row.vectors for row in teacher.embed(batch, model.device))
            batch = []
    yield from (row.vectors for row in teacher.embed(batch, model.device))


def training_texts(model: Any, most: int) -> Iterator[str]:
    """Training texts as the teacher gets them, at most so many, the same at each call.

    Args:
        model: with `ComatMixin`, whose training data are set up. most: int.
    Yields:
        str: of a plain manifest texts spread evenly over it, else those of the first batches.
    Examples:
        >>> from types import SimpleNamespace as Stand
        >>> rows = [Stand(text_raw=text) for text in ("one", "two", "three")]
        >>> reader = Stand(manifest_processor=Stand(collection=rows))
        >>> list(training_texts(Stand(_train_dl=Stand(dataset=reader), _reads_manifest=True), most=2))
        ['one', 'three']
    """
    reader = reader_of(model._train_dl)
    collection = getattr(getattr(reader, "manifest_processor", None), "collection", None)
    # tarred data may have a manifest for each shard, which is read as its shard is
    if collection is not None and not hasattr(reader, "shard_manifests"):
        step = max(1, -(-len(collection) // most))
        for item in (collection[i] for i in range(0, len(collection), step)):
            yield manifest_text([item.text_raw]) if model._reads_manifest else _as_read(model, item)
        return
    yield from _texts_of_batches(model, most)


def _as_read(model: Any, item: Any) -> str:
    return reference_text(model._text_tokenizer(), [int(i) for i in item.text_tokens])


def _texts_of_batches(model: Any, most: int) -> Iterator[str]:
    # a loader of its own: the one that trains begins with its first batch
    loader = model._setup_dataloader_from_config(config={"shuffle": True, **model.cfg.train_ds})
    if model._reads_manifest:
        name_samples(loader)
    count = 0
    for batch in loader:
        texts = manifest_texts(loader, batch[4]) if model._reads_manifest else model.transcript_texts(*batch[2:4])
        yield from texts[: most - count]
        count += len(texts)
        if count >= most:
            return
