"""Manifest checks: what NeMo's reader refuses, and only that, is said in one sentence that names file and line."""

import re
from pathlib import Path

import pytest
from manifest_rows import GOOD, ROWS, without, write
from nemo.collections.asr.data.audio_to_text import AudioToBPEDataset, AudioToCharDataset, TarredAudioToBPEDataset
from nemo.collections.common.tokenizers.aggregate_tokenizer import AggregateTokenizer
from nemo.collections.common.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from omegaconf import OmegaConf

from nemo_comat.models.characters import CharacterTokenizer
from nemo_comat.models.manifest import check_dataset, manifest_paths, text_reader
from nemo_comat.models.rows import ManifestError

CORPUS = Path(__file__).resolve().parents[1] / "examples" / "demo_corpus"


@pytest.fixture(scope="module")
def tokenizer():
    return SentencePieceTokenizer(str(CORPUS / "tokenizer" / "tokenizer.model"))


@pytest.fixture
def said(monkeypatch):
    """What is logged, as pairs of level and sentence."""
    lines = []
    log = {level: staticmethod(lambda line, level=level: lines.append((level, line))) for level in ("info", "warning")}
    monkeypatch.setattr("nemo_comat.models.manifest.logging", type("L", (), log))
    return lines


def checks(manifest, read=None, **options):
    """Whether our check lets a block's data through."""
    try:
        check_dataset(OmegaConf.create({"manifest_filepath": manifest, **options}), "model.train_ds", read)
        return True
    except ManifestError as error:
        assert "\n" not in str(error) and str(manifest) in str(error)
        return False


def nemo_reads(dataset, *args, **options):
    """Whether NeMo's own dataset can be built and every row of it read; the error's text where it cannot."""
    try:
        data = dataset(*args, sample_rate=16000, **options)
        return all(len(data[i]) == 4 for i in range(len(data))) and len(data) > 0
    except Exception:
        return False


@pytest.mark.parametrize("min_duration", [None, 0.1])
@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_accepted_where_nemo_reads_it(folder, tokenizer, name, min_duration):
    manifest = write(folder, GOOD, "", ROWS[name])
    options = {"min_duration": min_duration}
    wanted = nemo_reads(AudioToBPEDataset, manifest, tokenizer, use_start_end_token=False, **options)
    assert checks(manifest, text_reader(tokenizer), **options) is wanted
    if not wanted:
        with pytest.raises(ManifestError, match=r"m\.json line 3\W"):
            check_dataset(OmegaConf.create({"manifest_filepath": manifest, **options}), "x", text_reader(tokenizer))
    # what no tokenizer is needed for is known before there is one
    assert checks(manifest, **options) or not wanted


@pytest.mark.parametrize("name", [name for name in ROWS if name.startswith(("good", "text", "token", "lang"))])
def test_a_row_for_several_tokenizers(folder, tokenizer, name):
    both = AggregateTokenizer({"en": tokenizer, "de": tokenizer})
    manifest = write(folder, {**GOOD, "lang": "en"}, ROWS[name])
    wanted = nemo_reads(AudioToBPEDataset, manifest, both, use_start_end_token=False)
    assert checks(manifest, text_reader(both)) is wanted


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", [name for name in ROWS if name.startswith(("good", "text", "token"))])
def test_a_row_for_characters(folder, said, name, normalize):
    labels = [" ", *"abcdefghijklmnopqrstuvwxyz"]
    manifest = write(folder, GOOD, ROWS[name])
    wanted = nemo_reads(AudioToCharDataset, manifest, labels, normalize=normalize)
    read = CharacterTokenizer(labels, normalize_transcripts=normalize).parse
    assert checks(manifest, lambda text, lang: read(text)) is wanted
    if wanted:
        data = AudioToCharDataset(manifest, labels, sample_rate=16000, normalize=normalize)
        # where the parser gives a text up, NeMo leaves the row out, and we say so
        assert any("1 of 2 rows are left" in line for _, line in said) is (len(data) == 1)


@pytest.mark.parametrize("name", [name for name in ROWS if name.startswith(("good", "audio", "only", "dur", "off"))])
def test_a_row_of_tarred_data(folder, tokenizer, name):
    manifest = write(folder, GOOD, ROWS[name])
    args = ["audio.tar", manifest, tokenizer]
    try:
        TarredAudioToBPEDataset(*args, sample_rate=16000, use_start_end_token=False, world_size=1)
        built = True
    except Exception:
        built = False
    # what is wrong with an offset or a length comes up when NeMo reads the audio
    late = name in ("offset a string", "offset infinite", "duration infinite")
    assert checks(manifest, is_tarred=True, tarred_audio_filepaths="audio.tar") is (built and not late)


LIMITS = [
    {},
    {"min_duration": 0.3},
    {"max_duration": 0.6},
    {"min_duration": 0.3, "max_duration": 0.6},
    {"max_utts": 2},
    {"max_utts": 2, "min_duration": 0.3},
    {"max_duration": 0.1},
    {"min_duration": 5},
]


@pytest.mark.parametrize("limits", LIMITS)
def test_the_rows_that_are_left_are_those_of_nemo(folder, tokenizer, said, limits):
    # what is beyond the limits is not looked at, by NeMo neither
    rows = [{**GOOD, "duration": d} for d in (0.2, 0.4, 0.6, 0.8, None)]
    rows += [{**GOOD, "duration": 0.01, "audio_filepath": "gone.wav"}] if "min_duration" in limits else []
    manifest = write(folder, *rows)
    left = len(AudioToBPEDataset(manifest, tokenizer, sample_rate=16000, use_start_end_token=False, **limits))
    check_dataset(OmegaConf.create({"manifest_filepath": manifest, **limits}), "model.train_ds")
    wanted = [f"model.train_ds: {left} of {len(rows)} rows are left; "] if left < len(rows) else []
    assert [line[: len(w)] for (_, line), w in zip(said, wanted, strict=True)] == wanted


def test_why_rows_are_left_out(folder, said):
    rows = [{**GOOD, "duration": d} for d in (0.5, 20, 0.05, 30, 0.5, 0.5)]
    options = {"min_duration": 0.1, "max_duration": 16.7, "max_utts": 2}
    check_dataset(OmegaConf.create({"manifest_filepath": write(folder, *rows), **options}), "model.train_ds")
    ((_, line),) = said
    for why in (
        "2 of 6 rows are left",
        "2 longer than max_duration=16.7, the first in .*m.json line 2;",
        "1 shorter than min_duration=0.1, the first in .*m.json line 3;",
        "1 beyond max_utts=2, the first in .*m.json line 6.",
    ):
        assert re.search(why, line), line


@pytest.mark.parametrize(
    "rows, options, message",
    [
        ([], {}, r"model\.train_ds has no rows, .*m\.json is empty; give"),
        (["", "  "], {}, r"model\.train_ds has no rows, .*m\.json is empty; give"),
        ([{**GOOD, "duration": 20}] * 2, {"max_duration": 16.7}, "no rows left of 2: 2 longer than max_duration=16.7"),
    ],
)
def test_nothing_left_is_an_error(folder, rows, options, message):
    cfg = OmegaConf.create({"manifest_filepath": write(folder, *rows), **options})
    with pytest.raises(ManifestError, match=message):
        check_dataset(cfg, "model.train_ds")


def test_paths_as_nemo_takes_them(folder, monkeypatch):
    good, other = write(folder, GOOD, ""), write(folder, GOOD, name="n.json")
    monkeypatch.setenv("HOME", str(folder))
    for paths in (good, f"{good},{other}", [good, other], "~/m.json", None):
        check_dataset(OmegaConf.create({"manifest_filepath": paths}), "model.train_ds")
    check_dataset(OmegaConf.create({"manifest_filepath": [[good, other]], "is_concat": True}), "model.train_ds")
    check_dataset(OmegaConf.create({"manifest_filepath": [f"{good},{other}"], "is_concat": True}), "model.train_ds")
    with pytest.raises(ManifestError, match=r"model\.train_ds\.manifest_filepath=.* is a list of lists"):
        check_dataset(OmegaConf.create({"manifest_filepath": [[good], [other]]}), "model.train_ds")


@pytest.mark.parametrize(
    "path, message",
    [
        ("none.json", r"none\.json does not exist \(seen from .*\); give"),
        ("empty", "empty is a folder; give the manifest's path"),
    ],
)
def test_manifests_that_are_no_files(folder, path, message):
    with pytest.raises(ManifestError, match=message):
        check_dataset(OmegaConf.create({"manifest_filepath": path}), "model.train_ds")


@pytest.mark.parametrize(
    "row, message",
    [
        ({"audio_filepath": "b.wav", "duration": 1}, "line 2: audio file .*b.wav does not exist; .*remove the line"),
        ({"audio_filepath": "empty", "duration": 1}, "line 2: audio file .*empty is a folder; give a file"),
        ({"duration": 1}, "line 2 has no audio.* file; each row needs an audio_filepath and a duration in seconds"),
        ({"audio_filepath": "a.wav"}, "line 2 has no duration; each row needs"),
        ({**GOOD, "duration": "1"}, 'line 2 has duration "1", a str; give seconds as a number'),
        ({**GOOD, "offset": "1"}, 'line 2 has offset "1", a str; give seconds as a number'),
        ({**GOOD, "offset": 500.5}, r"line 2 has offset 500\.5, but .*a\.wav ends at .* s; mend the offset"),
        (without("text", text_filepath="t.txt"), r"line 2 names a text_filepath that cannot be read, t\.txt \(No such"),
        (without("text", text_filepath="latin.txt"), r"line 2 names a text_filepath that is not UTF-8, latin\.txt"),
        ("{oops", "line 2 is not JSON"),
        ("[1]", "line 2 is list, not a JSON object"),
    ],
)
def test_what_is_said(folder, row, message):
    with pytest.raises(ManifestError, match=message):
        check_dataset(OmegaConf.create({"manifest_filepath": write(folder, GOOD, row)}), "model.train_ds")


def test_a_text_that_the_tokenizer_cannot_read(folder, tokenizer):
    cfg = OmegaConf.create({"manifest_filepath": write(folder, GOOD, without(text=None))})
    with pytest.raises(ManifestError, match="line 2 has a text that the tokenizer cannot read, null of lang None"):
        check_dataset(cfg, "model.train_ds", text_reader(tokenizer))


def test_each_dataset_of_a_list_is_checked(folder):
    good = {"name": "a", "manifest_filepath": write(folder, GOOD)}
    check_dataset(OmegaConf.create({"ds_item": [good, good]}), "model.validation_ds")
    with pytest.raises(ManifestError, match=r"gone.json does not exist"):
        check_dataset(OmegaConf.create({"ds_item": [good, {**good, "manifest_filepath": "gone.json"}]}), "x")
    with pytest.raises(ManifestError, match=r"model\.validation_ds\.ds_item\[1\] has no rows"):
        bad = {**good, "manifest_filepath": write(folder, name="n.json")}
        check_dataset(OmegaConf.create({"ds_item": [good, bad]}), "model.validation_ds")


def test_weights_in_lhotses_lists_are_no_paths():
    assert manifest_paths(OmegaConf.create({"manifest_filepath": [["a.json", 0.3], ["b.json", 2]]})) == [
        "a.json",
        "b.json",
    ]


def test_the_hubs_reader_is_left_to_itself():
    check_dataset(OmegaConf.create({"manifest_filepath": None, "hf_data_cfg": {"path": "x"}}), "model.train_ds")


def test_sharded_manifests_are_expanded(folder):
    for number in range(2):
        write(folder, {**GOOD, "audio_filepath": "in_a_tar.wav"}, name=f"manifest_{number}.json")
    cfg = {"is_tarred": True, "shard_manifests": True, "manifest_filepath": "manifest__OP_0..1_CL_.json"}
    check_dataset(OmegaConf.create(cfg), "model.train_ds")
    with pytest.raises(ManifestError, match="manifest_2.json does not exist"):
        check_dataset(OmegaConf.create({**cfg, "manifest_filepath": "manifest__OP_0..2_CL_.json"}), "model.train_ds")


def test_transcripts_by_another_name_are_no_empty_ones(folder):
    rows = [{**without("text"), "transcript": "hello"}] * 2
    cfg = OmegaConf.create({"manifest_filepath": write(folder, *rows)})
    message = (
        "model.train_ds has no row with a text: .*m.json line 1 has the keys audio_filepath, duration, transcript; name"
    )
    with pytest.raises(ManifestError, match=message):
        check_dataset(cfg, "model.train_ds")
    # noise among speech has no transcript, and what is only heard needs none
    check_dataset(OmegaConf.create({"manifest_filepath": write(folder, GOOD, *rows)}), "model.train_ds")
    check_dataset(cfg, "model.test_ds")


def test_empty_transcripts_are_counted(folder, said):
    rows = [GOOD, {**GOOD, "text": " "}, GOOD, {**GOOD, "text": ""}]
    check_dataset(OmegaConf.create({"manifest_filepath": write(folder, *rows)}), "model.train_ds")
    ((_, line),) = said
    assert "model.train_ds has 2 empty transcripts, the first in " in line and "m.json line 2:" in line
