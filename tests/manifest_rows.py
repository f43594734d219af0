"""Rows of manifests, good and odd, and a folder for them to name files in."""

import json
import math

import numpy as np
import soundfile

GOOD = {"audio_filepath": "a.wav", "duration": 0.5, "text": "hello"}


def fill(folder):
    """Puts an audio file of a second, a text file, one in Latin-1, and an empty folder into a folder."""
    soundfile.write(folder / "a.wav", np.zeros(16000, dtype="float32"), 16000)
    (folder / "said.txt").write_text("hello\n")
    (folder / "latin.txt").write_bytes("café".encode("latin1"))
    (folder / "empty").mkdir()


def write(folder, *rows, name="m.json"):
    """Writes rows, or lines, to a manifest; returns its path."""
    file = folder / name
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(file)


def without(*keys, **changes):
    """A good row without some keys, and with others changed."""
    return {**{key: value for key, value in GOOD.items() if key not in keys}, **changes}


# rows by what is odd about them; NeMo says which are read
ROWS = {
    "good": GOOD,
    "audio_filename": without("audio_filepath", audio_filename="a.wav"),
    "audio_filename before audio_filepath": without(audio_filename="gone.wav"),
    "context as audio": without("audio_filepath", context="a.wav"),
    "only video": without("audio_filepath", video_filepath="a.wav"),
    "no audio": without("audio_filepath"),
    "audio null": without(audio_filepath=None),
    "audio a number": without(audio_filepath=5),
    "audio empty": without(audio_filepath=""),
    "audio in a list": without(audio_filepath=["a.wav"]),
    "audio in a list, one gone": without(audio_filepath=["a.wav", "gone.wav"]),
    "no audio in a list": without(audio_filepath=[]),
    "audio gone": without(audio_filepath="gone.wav"),
    "audio a folder": without(audio_filepath="empty"),
    "no duration": without("duration"),
    "context_duration": without("duration", context_duration=0.5),
    "duration null": without(duration=None),
    "duration a string": without(duration="0.5"),
    "duration a list": without(duration=[0.5]),
    "duration true": without(duration=True),
    "duration negative": without(duration=-1),
    "duration 0": without(duration=0),
    "duration NaN": without(duration=math.nan),
    "duration infinite": without(duration=math.inf),
    "duration longer than the audio": without(duration=3.5),
    "offset": without(offset=0.25),
    "offset null": without(offset=None),
    "offset a string": without(offset="0.25"),
    "offset negative": without(offset=-0.25),
    "offset infinite": without(offset=math.inf),
    "offset NaN": without(offset=math.nan),
    "text missing": without("text"),
    "text empty": without(text=""),
    "text null": without(text=None),
    "text a number": without(text=5),
    "text a list": without(text=["hello"]),
    "text empty list": without(text=[]),
    "text of spans": without(text=[{"str": "hello", "lang": "en"}]),
    "text of spans without lang": without(text=[{"str": "hello"}]),
    "text_filepath": without("text", text_filepath="said.txt"),
    "text_filepath gone": without("text", text_filepath="gone.txt"),
    "text_filepath a folder": without("text", text_filepath="empty"),
    "text_filepath null": without("text", text_filepath=None),
    "text_filepath in Latin-1": without("text", text_filepath="latin.txt"),
    "text_filepath unread beside text": without(text_filepath="gone.txt"),
    "normalized_text": without("text", normalized_text="hello"),
    "normalized_text null": without("text", normalized_text=None),
    "token_labels": without(text=None, token_labels=[1, 2]),
    "token_labels a string": without(token_labels="ab"),
    "token_labels of strings": without(token_labels=["a"]),
    "token_labels a number": without(token_labels=1),
    "token_labels empty": without(token_labels=[]),
    "language": without(lang="en"),
    "language unknown": without(lang="xx"),
    "rttm null": without(rttm_filepath=None),
    "rttm a number": without(rttm_filepath=5),
    "feature a number": without(feature_filepath=5),
    "orig_sample_rate a string": without(orig_sample_rate="16000"),
    "unknown key": without(_skipme=True),
    "no object": "[1]",
    "a string": '"audio_filepath"',
    "null": "null",
    "no JSON": "{oops",
    "a byte order mark": "\ufeff" + json.dumps(GOOD),
    "letters escaped": '{"audio_filepath": "a.wav", "duration": 0.5, "text": "caf\\u00e9"}',
}
