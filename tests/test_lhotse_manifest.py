"""Manifests that Lhotse reads: what its reader refuses, and only that, is said before training."""

import json
import math

import pytest
from manifest_rows import GOOD, ROWS, without, write
from nemo.collections.common.data.lhotse.cutset import read_cutset_from_config
from omegaconf import OmegaConf

from nemo_comat.models import lhotse_manifest
from nemo_comat.models.manifest import check_dataset
from nemo_comat.models.rows import ManifestError

MORE_ROWS = {
    "sampling_rate": without(sampling_rate=16000),
    "sampling_rate, audio gone": without(sampling_rate=16000, audio_filepath="gone.wav"),
    "sampling_rate, duration a string": without(sampling_rate=16000, duration="0.5"),
    "sample_rate, duration null": without(sample_rate=16000, duration=None),
    "offset, duration a string": without(offset=0.1, duration="0.5"),
    "offset, duration null": without(offset=0.1, duration=None),
    "left out": {"_skipme": True},
    "empty line": "",
}


def lhotse(manifest, **more):
    return OmegaConf.create({"use_lhotse": True, "batch_size": 1, "manifest_filepath": manifest, **more})


def lhotse_reads(dataset):
    """Whether Lhotse reads all rows and their audio."""
    try:
        for cut in read_cutset_from_config(dataset)[0]:
            cut.load_audio()
        return True
    except Exception:
        return False


@pytest.mark.parametrize("name", [*ROWS, *MORE_ROWS])
def test_a_row_is_accepted_where_lhotse_reads_it(folder, name):
    dataset = lhotse(write(folder, GOOD, {**ROWS, **MORE_ROWS}[name], GOOD))
    if lhotse_reads(dataset):
        check_dataset(dataset, "model.train_ds")
    else:
        with pytest.raises(ManifestError, match=r"m\.json line 2\W") as error:
            check_dataset(dataset, "model.train_ds")
        assert "\n" not in str(error.value)


def test_an_empty_manifest(folder):
    for rows in ((), [{"_skipme": True}]):
        with pytest.raises(ManifestError, match=r"model\.train_ds has no rows, .*m\.json is empty"):
            check_dataset(lhotse(write(folder, *rows)), "model.train_ds")


BAD = {key: value for key, value in GOOD.items() if key != "duration"}


@pytest.mark.parametrize(
    "more",
    [
        lambda good, bad: {"manifest_filepath": [good, bad]},
        lambda good, bad: {"manifest_filepath": [[good, 0.5], [bad, 2]]},
        lambda good, bad: {"input_cfg": [{"type": "nemo", "manifest_filepath": path} for path in (good, bad)]},
        lambda good, bad: {"input_cfg": [{"type": "group", "input_cfg": [{"type": "nemo", "manifest_filepath": bad}]}]},
        lambda good, bad: {"multi_config": True, "one": {"manifest_filepath": good}, "two": {"manifest_filepath": bad}},
    ],
)
def test_every_way_to_name_manifests(folder, more):
    good, bad = write(folder, GOOD), write(folder, GOOD, BAD, name="bad.json")
    check_dataset(lhotse(None, **more(good, good)), "x")
    with pytest.raises(ManifestError, match=r"bad\.json line 2 has no duration, which Lhotse's reader needs"):
        check_dataset(lhotse(None, **more(good, bad)), "x")


def test_input_cfg_in_a_file(folder):
    bad = write(folder, BAD)
    (folder / "input.yaml").write_text(json.dumps([{"type": "nemo", "manifest_filepath": bad}]))
    with pytest.raises(ManifestError, match=r"m\.json line 1 has no duration"):
        check_dataset(lhotse(None, input_cfg=str(folder / "input.yaml")), "x")


@pytest.mark.parametrize("limits", [{"max_duration": 0.3}, {"min_duration": 5}])
@pytest.mark.parametrize("inside", [False, True])
def test_nothing_left_within_the_limits(folder, limits, inside):
    paths = [write(folder, GOOD, name=name) for name in ("a.json", "b.json")]
    sources = [{"type": "nemo", "manifest_filepath": path} for path in paths]
    dataset = lhotse(paths, **limits) if not inside else lhotse(None, input_cfg=sources, **limits)
    OmegaConf.set_struct(dataset, True)
    with pytest.raises(
        ManifestError, match=r"x has no rows left of 2: 2 (long|short)er than .*, the first in .*a\.json"
    ):
        check_dataset(dataset, "x")
    multi = lhotse(None, multi_config=True, one={"manifest_filepath": paths[0], "batch_size": 1, **limits})
    with pytest.raises(ManifestError, match="x has no rows left of 1: 1 "):
        check_dataset(multi, "x")


def test_the_audio_has_the_last_word_on_the_limits(folder, monkeypatch):
    said = []
    monkeypatch.setattr("nemo_comat.models.lhotse_manifest.logging.info", said.append)
    # the file lasts a second: without an offset, Lhotse goes by the file
    dataset = lhotse(write(folder, {**GOOD, "duration": 100000}), min_duration=0.1, max_duration=20)
    check_dataset(dataset, "x")
    assert any(
        "x: 0 of 1 rows are left, by the manifests' durations; 1 longer than max_duration=20" in one for one in said
    )
    said.clear()
    check_dataset(lhotse(write(folder, GOOD, {**GOOD, "duration": 0.01}), min_duration=0.1), "x")
    assert "x: 1 of 2 rows are left" in said[0] and "m.json line 2" in said[0]


def test_a_manifest_that_is_not_there(folder):
    with pytest.raises(ManifestError, match=r"model\.train_ds: .*gone\.json does not exist"):
        check_dataset(lhotse(str(folder / "gone.json")), "model.train_ds")


@pytest.mark.parametrize(
    "more",
    [
        {"tarred_audio_filepaths": "audio_0.tar"},
        {"cuts_path": "cuts.jsonl.gz"},
        {"shar_path": "shar"},
        {"input_cfg": [{"type": "multimodal_conversation", "manifest_filepath": "gone.jsonl"}]},
        {"manifest_filepath": "pipe:cat gone.json"},
        {"manifest_filepath": "s3://bucket/gone.json"},
    ],
)
def test_what_is_read_in_other_ways_is_left_to_its_reader(more):
    check_dataset(
        lhotse(**{"manifest": "gone.json", **more})
        if "manifest_filepath" not in more
        else lhotse(more["manifest_filepath"]),
        "x",
    )


def test_a_type_that_nemo_does_not_know_is_named():
    block = lhotse(None, input_cfg=[{"type": "nemo_tared", "manifest_filepath": "gone.json"}])
    with pytest.raises(
        ManifestError, match="^x has data of type nemo_tared, which this NeMo does not know; give .*nemo"
    ):
        check_dataset(block, "x")


def test_the_reader_is_asked_once_of_each_kind_of_row_without_a_duration(folder, monkeypatch):
    asked = []

    def reads(row):
        asked.append(row)
        return lhotse_manifest_reads(row)

    lhotse_manifest_reads = lhotse_manifest._lhotse_reads
    monkeypatch.setattr(lhotse_manifest, "_lhotse_reads", reads)
    rows = [without(duration=None)] * 3 + [without(duration=None, speaker="a")] * 2 + [GOOD]
    check_dataset(lhotse(write(folder, *rows)), "x")
    assert len(asked) == 2 and asked[1]["speaker"] == "a"


def test_an_offset_says_what_is_wrong(folder):
    for offset, message in ((-0.5, "has offset -0.5; give seconds from 0 on"), ("1", 'has offset "1", a str'),
                            (math.inf, "has offset inf")):  # fmt: skip
        with pytest.raises(ManifestError, match=message):
            check_dataset(lhotse(write(folder, without(offset=offset))), "x")
