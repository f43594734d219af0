"""Rows of manifests: as NeMo's own reader gives them, and the line that it cannot read is named."""

import json

import pytest
from manifest_rows import GOOD, ROWS, write
from nemo.collections.common.parts.preprocessing.manifest import item_iter

from nemo_comat.models.reference import manifest_text
from nemo_comat.models.rows import ManifestError, read_rows, read_texts


def test_rows_are_those_of_nemos_reader(folder):
    rows = [
        row for name, row in ROWS.items() if name in ("good", "audio_filename", "text_filepath", "context_duration")
    ]
    manifest = write(folder, rows[0], "", *rows[1:])
    items = list(item_iter(manifest))
    assert [row.item for row in read_rows(manifest)] == items and len(items) == 4
    assert [row.where for row in read_rows(manifest)] == [f"{manifest} line {n}" for n in (1, 3, 4, 5)]


@pytest.mark.parametrize("name", [name for name in ROWS if "text" in name or name == "good"])
def test_texts_are_those_of_nemos_reader(folder, name):
    manifest = write(folder, GOOD, ROWS[name])
    try:
        wanted = manifest_text([list(item_iter(manifest))[1]["text"]])
    except Exception:
        wanted = None
    try:
        found = list(read_texts(manifest))[1]
    except ManifestError as error:
        assert "m.json line 2 has a text that cannot be read" in str(error)
        found = None
    assert found == wanted


def test_texts_need_no_audio(folder):
    assert list(read_texts(write(folder, {"text": "hello"}, {"text": None}, {"other": 1}))) == ["hello", "", ""]


@pytest.mark.parametrize("place", [1, 5000])
def test_a_line_that_is_not_utf8_is_named(folder, place):
    lines = [json.dumps(GOOD).encode()] * (place - 1) + [
        b'{"audio_filepath": "a.wav", "duration": 1, "text": "caf\xe9"}'
    ]
    (folder / "m.json").write_bytes(b"\n".join(lines))
    with pytest.raises(UnicodeDecodeError):
        list(item_iter("m.json"))
    with pytest.raises(ManifestError, match=rf"m\.json line {place} is not UTF-8; save the file in UTF-8"):
        list(read_rows("m.json"))
