"""Lets one synthetic voice read the transcripts of NeMo manifests: the recipe's corpus where real speech is too much.

    pip install hibari-tts==0.2.1
    python examples/mini_librispeech/speak.py --data=mini_librispeech --out=spoken --minutes=train:120,dev:12,test:30

Each transcript of DATA's train.json, dev.json and test.json is cut into pieces of 4 to 12 words; pieces are drawn by
chance, in one call never twice the same, so none of dev or test is in train. --words=500 keeps to the 500 words most
frequent in train, so that nearly every word of dev and test is one that training has, and a small model converges
sooner. OUT gets the audio and manifests of the same names, to be given to prepare.py; what is there already is replaced
with --overwrite alone. One clean voice: figures on it say nothing about real speech.
"""

import argparse
import json
import sys
from collections import Counter
from itertools import groupby
from pathlib import Path

import numpy as np
from tqdm import tqdm

EXAMPLES = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES / "demo_corpus")]
from build_corpus import load_tts, synthesise, write_opus

from nemo_comat.output import check_outputs, exit_in_one_sentence, written_beside
from nemo_comat.paths import given_path
from nemo_comat.waiting import announce_nemo

WORDS = (4, 12)
SPEED_RANGE = (0.65, 0.85)  # of the voice's own pace, about 4 words a second


def cut(text, rng):
    """Pieces of 4 to 12 words of a transcript, in order; what is left over at its end is dropped."""
    words, pieces = text.split(), []
    while len(words) >= WORDS[0]:
        size = min(int(rng.integers(WORDS[0], WORDS[1] + 1)), len(words))
        pieces.append(" ".join(words[:size]))
        words = words[size:]
    return pieces


def transcripts(manifest):
    """A manifest's transcripts; copies at other speeds, which prepare.py adds to train, say nothing new."""
    announce_nemo()
    from nemo_comat.models.rows import read_objects, read_texts

    rows = zip(read_objects(manifest), read_texts(manifest), strict=True)
    return [text for (_, row), text in rows if text and "speed" not in row]


def frequent_words(manifest, most):
    """Set of the `most` words that are most frequent in a manifest's transcripts."""
    counts = Counter(word for text in transcripts(manifest) for word in text.split())
    return {word for word, _ in counts.most_common(most)}


def stretches(text, words):
    """The longest stretches of a transcript that have only words of a set; the whole of it where words is None."""
    if words is None:
        return [text]
    runs = groupby(text.split(), key=words.__contains__)
    return [" ".join(run) for known, run in runs if known]


def read_pieces(manifest, rng, words=None):
    """All different pieces of a manifest's transcripts, in random order; words: a set to keep to, or None."""
    parts = (part for text in transcripts(manifest) for part in stretches(text, words))
    pieces = list(dict.fromkeys(piece for part in parts for piece in cut(part, rng)))
    rng.shuffle(pieces)
    return pieces


def speak(tts, pieces, minutes, split, out, seed):
    """Reads pieces aloud until so many minutes are full; writes OUT/split.json and returns the texts used."""
    (out / split).mkdir(parents=True, exist_ok=True)
    # which names audio that is written over from here on
    (out / f"{split}.json").unlink(missing_ok=True)
    used, seconds = [], 0.0
    with (
        written_beside(out / f"{split}.json") as file,
        open(file, "w", encoding="utf-8") as manifest,
        tqdm(total=minutes, unit="min") as bar,
    ):
        for number, text in enumerate(pieces):
            if seconds >= 60 * minutes:
                break
            relative = f"{split}/{number:05d}.ogg"
            # a stream of its own for each utterance: a longer corpus begins with the shorter one
            audio = synthesise(tts, text, np.random.default_rng([seed, len(split), number]), SPEED_RANGE)
            duration = write_opus(out / relative, audio)
            row = {"audio_filepath": relative, "duration": round(duration, 4), "text": text}
            manifest.write(json.dumps(row) + "\n")
            used.append(text)
            seconds += duration
            bar.update(duration / 60)
    if seconds < 60 * minutes:
        print(f"{split}: the transcripts gave {seconds / 60:.0f} of {minutes:g} minutes")
    return used


def minutes_of(text):
    """train:120,dev:12,test:30 as a dict."""
    try:
        return {split: float(minutes) for split, minutes in (part.split(":") for part in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected SPLIT:MINUTES joined by commas, got {text!r}") from None


def main():
    parser = argparse.ArgumentParser(description="Let a synthetic voice read the transcripts of NeMo manifests.")
    parser.add_argument("--data", type=given_path, required=True, help="folder with SPLIT.json manifests")
    parser.add_argument("--out", type=given_path, required=True, help="folder to write to")
    parser.add_argument("--minutes", type=minutes_of, default="train:120,dev:12,test:30", help="default: %(default)s")
    parser.add_argument("--words", type=int, help="keep to so many words, the most frequent of train (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace audio and manifests that are there already")
    args = parser.parse_args()
    with exit_in_one_sentence(ValueError):  # of a manifest
        speak_all(args)


def speak_all(args):
    """Speaks all that the command line asks for; nothing is begun where something would be written over."""
    manifests = [f"{split}.json" for split in args.minutes]
    audio = [args.out / split / "00000.ogg" for split in args.minutes]
    read = [args.data / name for name in (*manifests, "train.json")]
    check_outputs([*(args.out / name for name in manifests), *audio], inputs=read, overwrite=args.overwrite)
    needed = {*args.minutes, *(["train"] if args.words else [])}
    missing = [split for split in sorted(needed) if not (args.data / f"{split}.json").is_file()]
    if missing:
        sys.exit(f"{args.data} has no {missing[0]}.json; give the folder that prepare.py wrote")
    words = frequent_words(args.data / "train.json", args.words) if args.words else None
    tts, seen = load_tts(), set()
    for split, minutes in args.minutes.items():
        pieces = read_pieces(args.data / f"{split}.json", np.random.default_rng(args.seed), words)
        seen.update(speak(tts, [piece for piece in pieces if piece not in seen], minutes, split, args.out, args.seed))


if __name__ == "__main__":
    main()
