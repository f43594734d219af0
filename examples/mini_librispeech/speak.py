"""Lets one synthetic voice read the transcripts of NeMo manifests: the recipe's corpus where real speech is too much.

    pip install hibari-tts==0.2.1
    python examples/mini_librispeech/speak.py --data=mini_librispeech --out=spoken --minutes=train:120,dev:12,test:30

Each transcript of DATA's train.json, dev.json and test.json is cut into pieces of 4 to 12 words; pieces are drawn by
chance, never twice the same, and none of dev or test is in train. OUT gets the audio and manifests of the same names,
to be given to prepare.py. One clean voice: figures on it say nothing about real speech.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

EXAMPLES = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES / "demo_corpus")]
from build_corpus import load_tts, synthesise, write_opus  # noqa: E402
from build_tokenizer import read_texts  # noqa: E402

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


def read_pieces(manifest, rng):
    """All different pieces of a manifest's transcripts, in random order."""
    pieces = list(dict.fromkeys(piece for text in read_texts([manifest]) for piece in cut(text, rng)))
    rng.shuffle(pieces)
    return pieces


def speak(tts, pieces, minutes, split, out, seed):
    """Reads pieces aloud until so many minutes are full; writes OUT/split.json and returns the texts used."""
    (out / split).mkdir(parents=True, exist_ok=True)
    used, seconds = [], 0.0
    with open(out / f"{split}.json", "w", encoding="utf-8") as manifest, tqdm(total=minutes, unit="min") as bar:
        for number, text in enumerate(pieces):
            if seconds >= 60 * minutes:
                break
            relative = f"{split}/{number:05d}.opus"
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
    parser.add_argument("--data", type=Path, required=True, help="folder with SPLIT.json manifests")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--minutes", type=minutes_of, default="train:120,dev:12,test:30", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    missing = [split for split in args.minutes if not (args.data / f"{split}.json").is_file()]
    if missing:
        sys.exit(f"{args.data} has no {missing[0]}.json; give the folder that prepare.py wrote")
    tts, seen = load_tts(), set()
    for split, minutes in args.minutes.items():
        pieces = read_pieces(args.data / f"{split}.json", np.random.default_rng(args.seed))
        seen.update(speak(tts, [piece for piece in pieces if piece not in seen], minutes, split, args.out, args.seed))


if __name__ == "__main__":
    main()
