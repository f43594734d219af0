"""What the log says of a first batch that teaches nothing, or that the teacher cannot read."""

from types import SimpleNamespace

import pytest
import torch
from test_limits import restate, save, text_of

from nemo_comat import CachedTeacher, CompressAlignTransfer, Teacher, write_cache, write_index
from nemo_comat.teacher import Pending, TeacherOutput
from nemo_comat.views.first_batch import first_batch_warnings

FRAMES, VOCABULARY = 12, 6


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "teacher", "bert")
    return tmp_path


@pytest.fixture(params=["live", "cached"])
def warnings(request, folder):
    """Warnings of a batch of texts."""

    def warn(texts, labels=3, bad_audio=None, **options):
        teacher = Teacher(str(folder / "teacher"), **options)
        if request.param == "cached":
            list(write_cache(folder / "cache", teacher, texts))
            write_index(folder / "cache")
            teacher = CachedTeacher(teacher, folder / "cache", missing="error")
        return warnings_of(teacher, texts, labels, bad_audio)

    return warn


def warnings_of(teacher, texts, labels, bad_audio=None):
    batch = len(texts)
    bad_audio = torch.zeros(batch, dtype=torch.bool) if bad_audio is None else torch.tensor(bad_audio)
    read = Pending(teacher, texts, torch.device("cpu")).result()
    read = read._replace(text_len=torch.where(bad_audio, 0, read.text_len))
    torch.manual_seed(0)
    comat = CompressAlignTransfer(8, VOCABULARY - 1, compress={}, align={}, projection={"dim": 16}, transfer={})
    targets = (torch.arange(labels) % (VOCABULARY - 1)).expand(batch, -1)
    output = comat(
        torch.randn(batch, FRAMES, 8),
        torch.full((batch,), FRAMES),
        torch.randn(batch, FRAMES, VOCABULARY).log_softmax(-1),
        targets,
        torch.full((batch,), labels),
        read,
    )
    return first_batch_warnings(texts, teacher, read, output, bad_audio)


def test_nothing_is_said_where_all_is_well(warnings):
    # one row that takes part is enough, and one known word in five
    assert warnings(["the dog", text_of(50), ""]) == []
    assert warnings(["the zebra zebra zebra zebra"], labels=6) == []


@pytest.mark.parametrize(
    ("texts", "options", "reason"),
    [
        ([text_of(9), text_of(12)], dict(max_length=8), "2 with a text of more than the 8 tokens that the"),
        (["", ""], {}, "2 with a text of no token"),
        (["the dog", "a cat"], dict(bad_audio=[True, True]), "2 with audio that is not finite"),
        (["the dog", "a cat"], dict(labels=20), "2 without a segment: too few frames"),
        (["the dog runs a cat", "a cat sleeps the dog"], {}, "2 with fewer segments than the teacher has tokens"),
        (["", "the dog runs a cat"], {}, "1 with a text of no token; 1 with fewer segments"),
    ],
)
def test_a_batch_of_which_no_row_is_left_says_why(warnings, texts, options, reason):
    (said,) = warnings(texts, **options)
    start = (
        "COMAT: none of the 2 rows of the first batch takes part in the transfer loss, so nothing is learnt from the "
    )
    assert said.startswith(f"{start}teacher: {reason}") and said.count(";") == reason.count(";")


def test_unknown_words_are_named_with_an_example(warnings):
    (said,) = warnings(["THE DOG RUNS", "THE CAT"])
    assert "5 of the 5 tokens of the first batch are unknown to the teacher" in said
    assert "as in 'THE DOG RUNS': the teacher's tokenizer has no such words" in said


def test_letters_that_the_recogniser_lacks_are_another_reason(warnings):
    (said,) = warnings(["⁇ ⁇", "⁇"])
    assert "3 of the 3 tokens" in said and "the recogniser's tokenizer has no letters for them" in said


def test_a_teacher_that_knows_of_nothing_unknown(folder):
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / "teacher" / file).exists():
            restate(folder / "teacher", file, unk_token=None, mask_token=None)
    teacher = Teacher(str(folder / "teacher"))
    assert teacher.unknown_id is None and warnings_of(teacher, ["the dog"], 3) == []


def test_scores_that_are_not_finite_are_a_reason_too():
    read = TeacherOutput(torch.zeros(1, 2, 4), torch.tensor([2]), torch.tensor([[7, 8]]), torch.tensor([False]))
    output = SimpleNamespace(active=torch.tensor([False]), compressed=SimpleNamespace(seg_len=torch.tensor([3])))
    teacher = SimpleNamespace(unknown_id=None, name="bert", stated_length=9)
    (said,) = first_batch_warnings(["the dog"], teacher, read, output, torch.tensor([False]))
    assert "1 without an alignment of finite score" in said
    # as where the cache lacks the text and nobody can embed it
    read = read._replace(text_len=torch.tensor([0]), lacking=1)
    (said,) = first_batch_warnings(["the dog"], teacher, read, output, torch.tensor([False]))
    assert "1 with a text that the cache lacks, while the teacher's weights are not at hand" in said
