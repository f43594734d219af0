"""The report's page: words that differ are marked, sound and pictures are in it, and nothing is fetched."""

import base64
import io
import json
import re
import struct
import wave
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import report_page
import soundfile
from report_page import Page, Sound, chart, compared, file_uri, manifest_audio, sound_uri

VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Texts by tag, and attributes; fails on a tag that is closed by another's end."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.attributes = [], {}, []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and data.strip():
            self.texts.setdefault(self.open[-1], []).append(data.strip())


@pytest.mark.parametrize(
    "reference, transcript, said, heard",
    [
        ("a dog runs", "a dog runs", [], []),
        ("a dog runs", "a fog runs", ["dog"], ["fog"]),
        ("a dog runs", "dog runs", ["a"], []),
        ("a dog runs", "a dog runs now", [], ["now"]),
        ("a dog", "", ["a", "dog"], []),
        ("", "a dog", [], ["a", "dog"]),
    ],
)
def test_words_that_differ_are_marked(reference, transcript, said, heard):
    found = compared(reference, transcript)
    assert [[word for word, _ in side] for side in found] == [reference.split(), transcript.split()]
    assert [[word for word, same in side if not same] for side in found] == [said, heard]


@pytest.fixture
def sound(tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 4, "NONE", ""))
        file.writeframes(struct.pack("<4h", 0, 1, -1, 0))
    return tmp_path / "a.wav"


def test_a_page_holds_all_of_it(tmp_path, sound):
    page = Page("A <title>", "A lead.")
    page.numbers([("word error rate", "12.3 %")])
    page.utterances("Said", [("a dog & cat", "a <b>fog</b>", sound), ("x", "", None)])
    page.picture("Curves", chart({"loss": {"one": [(1, 2.0), (2, 1.0)]}}, xlabel="steps"), 'what "it" shows')
    page.table("Runs", ["arm", "WER"], [["ctc", "50 %"]])
    page.commands("Go on", [("Do this.", "python x.py --a=<b>")])
    page.write(tmp_path / "new" / "report.html")
    read = Reader((tmp_path / "new" / "report.html").read_text(encoding="utf-8"))
    assert read.texts["title"] == read.texts["h1"] == ["A <title>"] and read.texts["h2"] == [
        "Said",
        "Curves",
        "Runs",
        "Go on",
    ]
    assert read.texts["del"] == ["dog", "&", "cat", "x"] and read.texts["ins"] == ["<b>fog</b>"]
    assert "12.3 %" in read.texts["dd"] and "(nothing)" in read.texts["dd"]
    assert read.texts["td"] == ["ctc", "50 %"] and read.texts["pre"] == ["python x.py --a=<b>"]
    sources = {tag: value for tag, name, value in read.attributes if name == "src"}
    assert sources.keys() == {"audio", "img"}
    assert base64.b64decode(sources["audio"].removeprefix("data:audio/wav;base64,")) == sound.read_bytes()
    assert base64.b64decode(sources["img"].removeprefix("data:image/svg+xml;base64,")).lstrip().startswith(b"<?xml")
    # nothing is fetched from anywhere
    assert not [
        value for _, name, value in read.attributes if name in ("src", "href") and not value.startswith("data:")
    ]
    assert ("img", "alt", 'what "it" shows') in read.attributes


def test_sound_is_named_as_browsers_know_it(tmp_path):
    for name, kind in (
        ("a.ogg", "audio/ogg"),
        ("a.FLAC", "audio/flac"),
        ("a.png", "image/png"),
        ("a.q9x", "application/octet-stream"),
    ):
        Path(tmp_path, name).write_bytes(b"x")
        assert file_uri(tmp_path / name) == f"data:{kind};base64,eA=="
    with pytest.raises(FileNotFoundError):
        file_uri(tmp_path / "gone.wav")


def test_only_what_a_row_names_is_in_the_page(tmp_path):
    samples = (np.arange(1200) - 600).astype(np.int16)
    for name, content in (("a", samples), ("b", -samples), ("two", np.stack([samples, -samples], 1))):
        soundfile.write(tmp_path / f"{name}.wav", content, 100)
    rows = [
        {"audio_filepath": "a.wav", "offset": 3, "duration": 1.5},
        {"audio_filepath": "a.wav", "offset": 9, "duration": None},
        {"audio_filepath": "a.wav", "duration": 2.0},
        {"audio_filepath": ["a.wav", str(tmp_path / "b.wav")], "duration": 12},
        {"audio_filepath": "two.wav", "offset": 1, "duration": 2},
        {"audio_filepath": "a.wav", "duration": 12.0},
    ]
    (tmp_path / "m.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    *parts, whole = (sound_uri(sound) for sound in manifest_audio(tmp_path / "m.json"))
    assert whole == file_uri(tmp_path / "a.wav")
    nothing = np.zeros(1200, np.int16)
    for part, wanted in zip(parts, (samples[300:450], samples[900:], samples[:200], nothing, nothing[:200])):
        content = base64.b64decode(part.removeprefix("data:audio/wav;base64,"))
        found, rate = soundfile.read(io.BytesIO(content), dtype="int16")
        assert rate == 100 and np.abs(found - wanted).max() <= 1
    page = Page("x")
    page.utterances("y", [("a", "a", manifest_audio(tmp_path / "m.json")[0])])
    assert parts[0] in page.html()
    with pytest.raises(FileNotFoundError):
        sound_uri(Sound([tmp_path / "gone.wav"], None, 1.0))


def test_charts_of_nothing_are_left_out():
    assert chart({"loss": {"one": []}, "rate": {}}, xlabel="steps") is None
    both = chart({"loss": {"one": [(1, 2.0)], "two": [(1, 3.0)], "none": []}, "rate": {}}, xlabel="steps")
    drawn = base64.b64decode(both.split(",", 1)[1]).decode()
    words = re.findall(r"<text[^>]*>([^<]*)</text>", drawn)
    assert {"loss", "one", "two", "steps"} <= set(words) and not {"rate", "none"} & set(words)


def test_the_template_is_beside_the_module():
    assert (Path(report_page.__file__).parent / report_page.TEMPLATE).is_file()
