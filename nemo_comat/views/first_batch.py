"""What a first training batch tells: whether the teacher teaches anything at all, and if not, why."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nemo_comat.teacher import SENTENCEPIECE_UNKNOWN, CachedTeacher, Teacher, TeacherOutput

if TYPE_CHECKING:
    from nemo_comat.comat import ComatOutput

# share of a batch's tokens from which on a teacher that knows none of them says so
MOSTLY = 0.9


def first_batch_warnings(
    texts: Sequence[str],
    teacher: Teacher | CachedTeacher,
    read: TeacherOutput,
    output: "ComatOutput",
    bad_audio: Tensor,
) -> list[str]:
    """What is amiss with a first batch; reads values back from the device, so it is for one batch only.

    Args:
        texts: list of B reference texts. teacher: `Teacher` or `CachedTeacher`.
        read: TeacherOutput of the texts, text_len 0 where the audio is bad.
        output: ComatOutput. bad_audio: [B] bool.
    Returns:
        list of sentences, empty where all is well.
    Examples:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> teacher, output = SimpleNamespace(unknown_id=7, name="bert"), SimpleNamespace(active=torch.tensor([True]))
        >>> read = TeacherOutput(torch.zeros(1, 2, 4), torch.tensor([2]), torch.tensor([[7, 7]]), torch.tensor([False]))
        >>> first_batch_warnings(["xq zq"], teacher, read, output, torch.tensor([False]))
        ["COMAT: 2 of the 2 tokens of the first batch are unknown to the teacher 'bert', as in 'xq zq': ..."]
    """
    found = [_why_no_row_is_active(texts, teacher, read, output, bad_audio), _what_is_unknown(texts, teacher, read)]
    return [sentence for sentence in found if sentence]


def reasons_of(
    texts: Sequence[str],
    teacher: Teacher | CachedTeacher,
    read: TeacherOutput,
    output: "ComatOutput",
    bad_audio: Tensor,
) -> dict[str, Tensor]:
    """Why a row has no alignment: dict from what it is with, or without, to [B] bool; the first that holds counts.

    Args:
        texts, teacher, read, output, bad_audio: as of `first_batch_warnings`.
    Examples:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> compressed = SimpleNamespace(seg_len=torch.tensor([1]))
        >>> read = TeacherOutput(torch.zeros(1, 2, 4), torch.tensor([2]), torch.tensor([[7, 7]]), torch.tensor([False]))
        >>> given = (["a dog"], SimpleNamespace(stated_length=512), read, SimpleNamespace(compressed=compressed))
        >>> next(words for words, holds in reasons_of(*given, torch.tensor([False])).items() if holds[0])
        'with fewer segments than the teacher has tokens'
    """
    segments, tokens = output.compressed.seg_len, read.text_len
    lacking = torch.tensor([bool(text and read.lacking) for text in texts], device=tokens.device)
    return {
        f"with a text of more than the {teacher.stated_length} tokens that the teacher reads at most (a shorter "
        "train_ds.max_duration or another model.comat.teacher.name or max_length helps)": read.too_long,
        "with audio that is not finite": bad_audio,
        "with a text that the cache lacks, while the teacher's weights are not at hand": (tokens == 0) & lacking,
        "with a text of no token": tokens == 0,
        "without a segment: too few frames for the text, or with compress.labels=greedy nothing but blanks, which "
        "is usual at first": segments == 0,
        "with fewer segments than the teacher has tokens": segments < tokens,
        "without an alignment of finite score": tokens >= 0,
    }


def _why_no_row_is_active(
    texts: Sequence[str],
    teacher: Teacher | CachedTeacher,
    read: TeacherOutput,
    output: "ComatOutput",
    bad_audio: Tensor,
) -> str | None:
    if output.active.any():
        return None
    counted, left = [], ~output.active
    for words, holds in reasons_of(texts, teacher, read, output, bad_audio).items():
        if number := int((left & holds).sum()):
            counted.append(f"{number} {words}")
        left = left & ~holds
    return (
        f"COMAT: none of the {len(left)} rows of the first batch takes part in the transfer loss, so nothing is learnt "
        f"from the teacher: {'; '.join(counted)}. If train_active_fraction stays 0, this is plain CTC."
    )


def _what_is_unknown(texts: Sequence[str], teacher: Teacher | CachedTeacher, read: TeacherOutput) -> str | None:
    ids = [row[:length] for row, length in zip(read.token_id.tolist(), read.text_len.tolist())]
    of_unknown = [row.count(teacher.unknown_id) for row in ids]
    total = sum(map(len, ids))
    if teacher.unknown_id is None or sum(of_unknown) <= MOSTLY * total:
        return None
    example = texts[max(range(len(texts)), key=of_unknown.__getitem__)]
    why = (
        f"the recogniser's tokenizer has no letters for them and gives {SENTENCEPIECE_UNKNOWN}; build one from these "
        "texts for model.tokenizer.dir"
        if SENTENCEPIECE_UNKNOWN in example
        else "the teacher's tokenizer has no such words; take a teacher of this language and case, or with cased texts "
        "model.comat.teacher.text=manifest"
    )
    return (
        f"COMAT: {sum(of_unknown)} of the {total} tokens of the first batch are unknown to the teacher "
        f"{teacher.name!r}, as in {example!r}: {why}."
    )
