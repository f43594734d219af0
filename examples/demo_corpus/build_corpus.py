"""Synthesise the demo corpus: audio, NeMo manifests and a SentencePiece tokenizer from two text files.

The sentences in ``sentences.txt`` (training) and ``sentences_heldout.txt`` (held out) are read aloud by the
default voice of hibari-tts, a small offline text-to-speech package. Each utterance gets its own speaking rate,
level and a little background noise, and is stored as 16 kHz mono Ogg Opus::

    pip install hibari-tts==0.2.1 soxr                               # beside nemo_comat
    python examples/demo_corpus/build_corpus.py --overwrite          # rebuild in place
    python examples/demo_corpus/build_corpus.py --out my_corpus      # or elsewhere

Files written under ``--out``: ``train/NNNN.ogg``, ``heldout/NNNN.ogg``, the manifests ``train.json`` and
``heldout.json`` (audio paths relative to the manifest), and ``tokenizer/`` by ``examples/build_tokenizer.py``.

Everything random is drawn from ``--seed``: two runs give the same manifests, tokenizer and decoded samples. The
Opus files themselves differ in the random stream serial number which libsndfile puts into an Ogg header.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from build_tokenizer import FILES, build_tokenizer

from nemo_comat.output import check_outputs, exit_in_one_sentence, written_beside
from nemo_comat.paths import given_path

SPLITS = {"train": "sentences.txt", "heldout": "sentences_heldout.txt"}

# The corpus in this folder was made with hibari-tts 0.2.1; another version may speak differently.
TTS_REQUIREMENT = "hibari-tts==0.2.1"

SAMPLE_RATE = 16000
SPEED_RANGE = (0.5, 0.7)  # speaking rate; 1.0, the voice's own, is about 4 words a second
SNR_RANGE_DB = (25.0, 40.0)  # speech level over the added noise
PEAK_RANGE = (0.35, 0.75)  # peak amplitude, the gain variation
EDGE_RANGE_S = (0.1, 0.2)  # silence kept at each end
TRIM_DB = -40.0  # frames quieter than this, relative to the loudest frame, count as silence
OPUS_COMPRESSION = 0.985  # libsndfile's 0..1 scale; about 12 kbit/s for mono speech, Ogg headers included

AUXILIARIES = frozenset(
    {"is", "are", "was", "were", "do", "did", "does", "has", "have", "had", "can", "will", "should"}
)
QUESTION_WORDS = frozenset({"what", "when", "where", "who", "why", "how"})


def load_tts():
    """Return a hibari-tts synthesiser with its default voice, or exit and say how to install it."""
    try:
        from hibari import Hibari
    except ImportError as err:
        sys.exit(f"This script needs hibari-tts, which could not be imported ({err}): pip install {TTS_REQUIREMENT}")
    return Hibari(threads=1)


def read_sentences(path: Path) -> list[str]:
    """Read one sentence per line and make sure that each is plain lower-case words."""
    if not path.is_file():
        sys.exit(f"Sentence file not found: {path}")
    sentences = path.read_text(encoding="utf-8").splitlines()
    for number, sentence in enumerate(sentences, 1):
        words = sentence.split()
        plain = all(w.isascii() and w.isalpha() and w.islower() for w in words)
        if len(words) < 2 or sentence != " ".join(words) or not plain:
            sys.exit(f"{path.name}, line {number}: expected lower-case words with single spaces, got {sentence!r}")
    return sentences


def check_splits(train: list[str], heldout: list[str]) -> None:
    """Refuse repeated sentences and held-out words that the training sentences lack."""
    if len(set(train + heldout)) != len(train) + len(heldout):
        sys.exit("A sentence occurs twice in the sentence files.")
    unknown = {w for s in heldout for w in s.split()} - {w for s in train for w in s.split()}
    if unknown:
        sys.exit(f"Held-out words missing from the training sentences: {', '.join(sorted(unknown))}")


def is_question(words: list[str]) -> bool:
    """Guess from the first two words whether a sentence is a question; it only steers the intonation."""
    first, second = words[0], words[1]
    if first in AUXILIARIES:
        return second not in {"not", "some"}  # "do not open it", "have some soup"
    if first == "when":
        return second in AUXILIARIES  # not "when he was young ..."
    return first in QUESTION_WORDS and second != "a"  # not "what a day"


def spoken_form(sentence: str) -> str:
    """Add the capitals and the final mark that the synthesiser takes its intonation from."""
    words = sentence.split()
    text = " ".join("I" if w == "i" else w for w in words)
    return text[0].upper() + text[1:] + ("?" if is_question(words) else ".")


def trim_silence(audio: np.ndarray, frame: int = 160) -> np.ndarray:
    """Cut the quiet frames (10 ms each) off both ends."""
    count = len(audio) // frame
    energy = np.square(audio[: count * frame]).reshape(count, frame).mean(axis=1)
    loud = np.flatnonzero(energy > energy.max() * 10 ** (TRIM_DB / 10))
    return audio[loud[0] * frame : (loud[-1] + 1) * frame]


def make_noise(length: int, rng: np.random.Generator) -> np.ndarray:
    """White or pink noise, one or the other by chance, with unit power."""
    noise = rng.standard_normal(length)
    if rng.random() < 0.5:
        spectrum = np.fft.rfft(noise)
        spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1.0))
        noise = np.fft.irfft(spectrum, length)
    return noise / np.sqrt(np.mean(noise**2))


def synthesise(tts, sentence: str, rng: np.random.Generator, speed_range=SPEED_RANGE) -> np.ndarray:
    """Speak one sentence at 16 kHz with its own rate, edge silence, noise and level."""
    speed = rng.uniform(*speed_range)
    audio = tts(spoken_form(sentence), speed=speed, seed=int(rng.integers(2**31)))
    speech = trim_silence(soxr.resample(audio.astype(np.float64), tts.sample_rate, SAMPLE_RATE))
    edges = [int(s * SAMPLE_RATE) for s in rng.uniform(*EDGE_RANGE_S, size=2)]
    snr_db = rng.uniform(*SNR_RANGE_DB)
    noise_rms = np.sqrt(np.mean(speech**2)) * 10 ** (-snr_db / 20)
    padded = np.pad(speech, edges)
    noisy = padded + noise_rms * make_noise(len(padded), rng)
    return (noisy * rng.uniform(*PEAK_RANGE) / np.abs(noisy).max()).astype(np.float32)


def write_opus(path: Path, audio: np.ndarray) -> float:
    """Store the audio as Ogg Opus and return the duration in seconds of the file written."""
    sf.write(path, audio, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=OPUS_COMPRESSION)
    info = sf.info(path)
    if info.samplerate != SAMPLE_RATE or info.channels != 1 or info.frames != len(audio):
        sys.exit(f"{path} does not read back as written: {info}")
    return info.frames / info.samplerate


def build_split(tts, name: str, sentences: list[str], out: Path, seed: int) -> float:
    """Write the audio files and the manifest of one split; return its duration in seconds."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    # which names audio that is replaced from here on
    (out / f"{name}.json").unlink(missing_ok=True)
    for stale in folder.glob("*.ogg"):
        stale.unlink()
    split_id = list(SPLITS).index(name)
    total = 0.0
    with written_beside(out / f"{name}.json") as file, open(file, "w", encoding="utf-8", newline="\n") as manifest:
        for number, sentence in enumerate(tqdm(sentences, desc=name, unit="utt"), 1):
            rng = np.random.default_rng([seed, split_id, number])
            relative = f"{name}/{number:04d}.ogg"
            duration = write_opus(out / relative, synthesise(tts, sentence, rng))
            entry = {"audio_filepath": relative, "duration": round(duration, 4), "text": sentence}
            manifest.write(json.dumps(entry) + "\n")
            total += duration
    return total


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Build the demo corpus (audio, manifests, tokenizer).")
    parser.add_argument("--out", type=given_path, default=HERE, help="folder to write to (default: the script's own)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)")
    parser.add_argument("--vocab_size", type=int, default=32, help="tokenizer pieces (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace a corpus there, its *.ogg files included")
    return parser.parse_args()


def main() -> None:
    """Build both splits and the tokenizer, then print a summary."""
    args = parse_args()
    with exit_in_one_sentence():
        build(args)


def check_place(out: Path, overwrite: bool) -> None:
    """Refuse to replace a corpus, or audio of any kind in its folders, unless told to."""
    written = [out / f"{name}.json" for name in SPLITS] + [out / "tokenizer" / name for name in FILES]
    audio = [file for name in SPLITS for file in sorted((out / name).glob("*.ogg"))]
    check_outputs(written + audio, overwrite=overwrite)


def build(args: argparse.Namespace) -> None:
    """Build what the command line asks for, then print a summary."""
    texts = {name: read_sentences(HERE / file_name) for name, file_name in SPLITS.items()}
    check_splits(texts["train"], texts["heldout"])
    out = args.out.resolve()
    check_place(out, args.overwrite)
    tts = load_tts()
    build_tokenizer(texts["train"], out / "tokenizer", vocab_size=args.vocab_size, overwrite=args.overwrite)
    seconds = {name: build_split(tts, name, sentences, out, args.seed) for name, sentences in texts.items()}
    for name, sentences in texts.items():
        size = sum(f.stat().st_size for f in (out / name).glob("*.ogg"))
        print(
            f"{name}: {len(sentences)} utterances, {seconds[name] / 60:.2f} min, "
            f"{size / 1e6:.2f} MB, {8 * size / seconds[name] / 1000:.1f} kbit/s"
        )


if __name__ == "__main__":
    main()
