"""The reference texts of a training batch: what the teacher reads.

Either the transcript as the recogniser's tokenizer gives it back, or the text that the manifest has, with its case and
punctuation. NeMo's batches carry token ids only; for the manifest's text its readers are told to add a fifth item that
says which samples a batch holds.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from nemo_comat.config import ConfigError
from nemo_comat.teacher import SENTENCEPIECE_UNKNOWN


def reference_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """A transcript as the recogniser's tokenizer gives it back.

    Args:
        tokenizer: NeMo's. ids: list of its token ids.
    Examples:
        >>> from types import SimpleNamespace
        >>> reference_text(SimpleNamespace(ids_to_text=lambda ids: " the <unk> barks"), [5, 0, 9])
        'the ⁇ barks'
    """
    # an aggregate of tokenizers begins with a space, which some teachers take for a token, and spells the unknown piece
    return tokenizer.ids_to_text(ids).replace("<unk>", SENTENCEPIECE_UNKNOWN).strip()


def reference_texts(tokenizer: Any, transcript: Tensor, transcript_len: Tensor) -> list[str]:
    """`reference_text` of each row of a batch.

    Args:
        tokenizer: NeMo's.
        transcript: [B, U] its token ids, of any dtype, padding ignored.
        transcript_len: [B] valid ids.
    Examples:
        >>> from types import SimpleNamespace
        >>> tokenizer = SimpleNamespace(ids_to_text=lambda ids: "".join("abc"[i] for i in ids))
        >>> reference_texts(tokenizer, torch.tensor([[0, 1, 2], [2, 0, 0]]), torch.tensor([3, 1]))
        ['abc', 'c']
    """
    rows = zip(transcript.long().tolist(), transcript_len.tolist())
    return [reference_text(tokenizer, ids[:length]) for ids, length in rows]


def manifest_text(parts: Iterable[Any]) -> str:
    """One utterance's text as its manifest has it.

    Args:
        parts: iterable of its texts, of which there are several where Lhotse joins cuts. A text is a string, None, or a
            list of one-language spans ``{"str": …, "lang": …}``, as manifests for aggregate tokenizers may have.
    Examples:
        >>> manifest_text([" The dog ", None, [{"str": "barks.", "lang": "en"}]])
        'The dog barks.'
    """
    texts = (part if isinstance(part, str) else manifest_text(span["str"] for span in part or ()) for part in parts)
    return " ".join(text.strip() for text in texts if text.strip())


def name_samples(loader: Any) -> None:
    """Makes a NeMo training loader add to each batch, as its fifth item, which samples it holds.

    It is set on the reader and not in its config, which a checkpoint keeps and which plain NeMo cannot train with.

    Args:
        loader: as `model.setup_training_data` builds it.
    Raises:
        ConfigError: its samples have no names that tell them apart.
    Examples:
        >>> from types import SimpleNamespace
        >>> reader = SimpleNamespace(return_sample_id=False, get_manifest_sample=None)
        >>> name_samples(SimpleNamespace(dataset=reader))
        >>> reader.return_sample_id
        True
    """
    reader = reader_of(loader)
    if hasattr(reader, "return_cuts"):
        reader.return_cuts = True
    elif hasattr(reader, "return_sample_id") and hasattr(reader, "get_manifest_sample"):
        reader.return_sample_id = True
    else:
        raise ConfigError(
            f"model.comat.teacher.text=manifest cannot be had from NeMo's {type(reader).__name__}, which does not say "
            "which manifest line a sample is from; read the data with ++model.train_ds.use_lhotse=true, or set "
            "model.comat.teacher.text=tokens."
        )


def manifest_texts(loader: Any, samples: Any) -> list[str]:
    """`manifest_text` of each row of a batch.

    Args:
        loader: that the batch is from, after `name_samples`; None where the model made none.
        samples: the batch's fifth item: [B] numbers of manifest lines, or Lhotse's CutSet; None where there is none.
    Raises:
        ConfigError: samples is None, or there are numbers and no loader that knows their lines.
    Examples:
        >>> from types import SimpleNamespace
        >>> cut = SimpleNamespace(supervisions=[SimpleNamespace(text="The dog"), SimpleNamespace(text="barks.")])
        >>> manifest_texts(None, [cut])
        ['The dog barks.']
    """
    if samples is None or (loader is None and isinstance(samples, torch.Tensor)):
        raise ConfigError(
            "model.comat.teacher.text=manifest, but a batch came that does not say which manifest lines it holds; let "
            "model.setup_training_data make the training loader, or set model.comat.teacher.text=tokens."
        )
    if isinstance(samples, torch.Tensor):
        find = reader_of(loader).get_manifest_sample
        return [manifest_text([find(number).text_raw]) for number in samples.tolist()]
    return [manifest_text(supervision.text for supervision in cut.supervisions) for cut in samples]


def reader_of(loader: Any) -> Any:
    """The dataset that reads what a NeMo loader gives.

    Examples:
        >>> from types import SimpleNamespace
        >>> reader_of(SimpleNamespace(dataset=SimpleNamespace(dataset="what Lhotse wraps")))
        'what Lhotse wraps'
    """
    # DALI's reader is its own loader, and Lhotse wraps its reader where it samples in the workers
    reader = getattr(loader, "dataset", loader)
    return getattr(reader, "dataset", reader)
