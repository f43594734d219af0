"""Makes the recipe's data folder: NeMo manifests of three splits, and a tokenizer of the training text.

    python examples/mini_librispeech/prepare.py --out=DATA FOLDER
    python examples/mini_librispeech/prepare.py --out=DATA --train=train-clean-5 --dev=dev-clean-2 --test=test-clean \
        train-clean-5.tar.gz dev-clean-2.tar.gz test-clean.tar.gz
    python examples/mini_librispeech/prepare.py --out=DATA --download

Each source is a folder with train.json, dev.json and test.json (taken as they are), a folder in LibriSpeech's layout
(…/SPLIT/speaker/chapter/*.flac with *.trans.txt), or a tarball of one. --download fetches Mini LibriSpeech and
test-clean (about 0.8 GB, CC BY 4.0) from OpenSLR 31 and 12. DATA gets train.json, dev.json, test.json and tokenizer/.
--decode writes the audio there as WAV, which takes a thirtieth of Opus's time to read. --speeds=0.9,1.1 adds copies of
the training audio that are played so much slower or faster, so that training need not resample at each epoch. --hours
keeps a part of the training speech, drawn from all its speakers, the same at each call. The tokenizer is of lower-case
text; --no_lower_case keeps the capitals of manifests.
What was downloaded or unpacked is not fetched or unpacked again; manifests and a tokenizer that are there already are
replaced with --overwrite alone.
"""

import argparse
import functools
import gzip
import hashlib
import json
import lzma
import os
import random
import re
import socket
import sys
import tarfile
import tempfile
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import soundfile
import soxr
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from build_tokenizer import FILES, build_tokenizer, read_texts

from nemo_comat.output import check_outputs, exit_in_one_sentence, written_beside
from nemo_comat.paths import given_path
from nemo_comat.waiting import announce_nemo

# suffixes of audio, beside which a folder may hold other files of an utterance
FORMATS = {*soundfile.available_formats(), "OPUS", "M4A", "MP4"}
SPLITS = {"train": "train-clean-5", "dev": "dev-clean-2", "test": "test-clean"}
RESOURCES = {"train": 31, "dev": 31, "test": 12}
PACKED = re.compile(r"\.(tar(\.\w+)?|tgz|tbz2?|txz)$", re.IGNORECASE)
# of a tarball that ends too soon or was damaged
DAMAGED = (EOFError, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)
# libsndfile decodes these to floats: asked for int16, it gives silence, or lets loud samples wrap
FLOATS = {"FLOAT", "DOUBLE", "VORBIS", "OPUS", "MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III"}


class PrepareError(ValueError):
    """A source cannot be used; the message says which and why."""


def download(out):
    """Fetches the three tarballs into a folder, each once; returns their paths."""
    socket.setdefaulttimeout(60)  # of silence
    files = []
    for split, number in RESOURCES.items():
        file = out / f"{SPLITS[split]}.tar.gz"
        if not file.exists():
            part = file.with_suffix(".part")
            url = f"https://www.openslr.org/resources/{number}/{file.name}"
            with tqdm(unit="B", unit_scale=True, desc=file.name) as bar:
                urllib.request.urlretrieve(url, part, lambda blocks, size, total: bar.update(blocks * size - bar.n))
            part.rename(file)
        files.append(file)
    return files


def unpack(source, out):
    """A folder: the source itself, or what its tarball holds, unpacked once under a folder."""
    if source.is_dir():
        return source
    try:
        if not source.is_file() or not tarfile.is_tarfile(source):
            raise PrepareError(
                f"{source} is neither a folder nor a tarball; give what holds the audio or the manifests."
            )
        return unpack_tarball(source, out / "audio" / PACKED.sub("", source.name))
    except DAMAGED as error:
        raise PrepareError(f"{source} cannot be unpacked ({error}); fetch it again.") from error


def unpack_tarball(source, folder):
    """The folder, with what the tarball holds; it says which tarball that was, for several may have one name."""
    which, mark = f"{source.name}, {source.stat().st_size} bytes", folder / "unpacked"
    # those of before say nothing
    if mark.exists() and mark.read_text() in (which, ""):
        return folder
    if folder.exists():
        raise PrepareError(f"{folder} is there already, and is no whole unpacked {source.name}; remove or rename it.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as beside:
        inside = Path(beside, folder.name)
        with tarfile.open(source) as archive:
            # the first releases of Python 3.10 and 3.11 have no filters
            archive.extractall(inside, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        (inside / "unpacked").write_text(which)
        inside.rename(folder)
    return folder


def rows_of_manifest(file):
    """Rows of a NeMo manifest by NeMo's usual keys, audio paths made absolute; checks that the audio is there."""
    announce_nemo()
    from nemo_comat.models.manifest import check_manifests
    from nemo_comat.models.rows import read_rows

    check_manifests([str(file)], str(file), {})
    rows = []
    for row in read_rows(file):
        audio = row.item["audio_file"]
        audio = str(Path(audio).resolve()) if isinstance(audio, str) else [str(Path(one).resolve()) for one in audio]
        # NeMo would take this spelling before the usual one
        given = {key: value for key, value in row.given.items() if key != "audio_filename"}
        usual = {"audio_filepath": audio, "duration": row.item["duration"], "text": row.item["text"]}
        rows.append({**given, **usual})
    return rows


def rows_of_librispeech(folder):
    """Rows of a folder in LibriSpeech's layout: one for each line of its *.trans.txt files, lower case."""
    rows = []
    for transcripts in tqdm(sorted(folder.rglob("*.trans.txt")), desc=folder.name, unit="chapter"):
        # not splitlines, which parts a text at signs such as U+2028 too
        for line in filter(str.strip, transcripts.read_text(encoding="utf-8").split("\n")):
            name, text = [*line.split(maxsplit=1), ""][:2]
            beside = sorted(transcripts.parent.glob(f"{name}.*"))
            audio = next((file for file in beside if file.suffix.upper().lstrip(".") in FORMATS), None)
            if audio is None:
                raise PrepareError(f"{transcripts} names {name}, but there is no such audio file beside it.")
            rows.append(
                {
                    "audio_filepath": str(audio.resolve()),
                    "duration": round(soundfile.info(audio).duration, 3),
                    "text": text.strip().lower(),
                }
            )
    return rows


def find_rows(folders, split, directory):
    """Rows of one split, from the first folder that has it."""
    for folder in folders:
        if (folder / f"{split}.json").is_file():
            return rows_of_manifest(folder / f"{split}.json")
        found = [path for path in [folder, *sorted(folder.rglob(directory))] if path.name == directory]
        if found and (rows := rows_of_librispeech(found[0])):
            return rows
    raise PrepareError(
        f"No {split}.json and no folder {directory} with transcripts in {', '.join(map(str, folders))}; name the "
        f"folder by --{split}, or give its manifest."
    )


def seconds_of(row):
    """Seconds of a row's audio, by the file where the manifest does not say."""
    if row["duration"] is not None:
        return row["duration"]
    audio = row["audio_filepath"]
    audio = audio if isinstance(audio, str) else audio[0]  # several are channels of one sound
    return soundfile.info(audio).duration - (row.get("offset") or 0)


def own_rows(rows):
    """The rows without copies at other speeds, where a source is what was prepared before."""
    own = [row for row in rows if "speed" not in row]
    if len(own) < len(rows):
        print(f"train: {len(rows) - len(own)} rows are copies at another speed of what is there: left out")
    return own


def part_of(rows, hours):
    """Rows of about so many hours, drawn at random with a fixed seed and in their order; all where there are fewer."""
    left, kept = hours * 3600, set()
    for index in random.Random(0).sample(range(len(rows)), len(rows)):
        if left <= 0:
            break
        left -= seconds_of(rows[index])
        kept.add(index)
    return [row for index, row in enumerate(rows) if index in kept]


def decode(rows, folder):
    """Writes each row's audio as 16-bit WAV in a folder, once; returns the rows that name it."""
    folder.mkdir(parents=True, exist_ok=True)
    files = in_threads(lambda row: decode_file(row["audio_filepath"], folder), rows, f"decoding {folder.name}")
    return [{**row, "audio_filepath": str(file.resolve())} for row, file in zip(rows, files, strict=True)]


def in_threads(function, rows, what):
    """The function's answers for the rows, in their order, with a progress bar."""
    with ThreadPoolExecutor() as pool:
        return list(tqdm(pool.map(function, rows), desc=what, unit="file", total=len(rows)))


def at_speed(rows, speed):
    """Rows of decoded audio played faster by a factor, their pitch with it; written beside it, once.

    Each says its `speed`, which tells it from a row of its own.
    """

    def play(row):
        source = Path(row["audio_filepath"])
        file = source.with_name(f"{source.stem}-{speed:g}.wav")
        if not file.exists():
            samples, rate = soundfile.read(source, dtype="float32")
            faster = soxr.resample(samples, rate, rate / speed)
            with written_beside(file) as part:
                soundfile.write(part, faster, rate, subtype="PCM_16", format="WAV")
        times = {"duration": seconds_of(row), "offset": row.get("offset")}
        times = {key: seconds / speed for key, seconds in times.items() if seconds}
        return {**row, "audio_filepath": str(file), **times, "speed": speed}

    return in_threads(play, rows, f"speed {speed:g}")


def decode_file(source, folder):
    """Writes one file's audio as 16-bit WAV in the folder, once; returns the new file."""
    if not isinstance(source, str):
        raise PrepareError(
            f"{', '.join(source)} are the audio of one row, of which no one WAV can be made; leave --decode out."
        )
    # files of one name lie in several folders, and what lay there before may have been decoded here
    at = os.stat(source)
    which = f"{source} {at.st_size} {at.st_mtime_ns}"
    which = hashlib.blake2b(which.encode(), digest_size=6).hexdigest()
    file = folder / f"{Path(source).stem}-{which}.wav"
    if not file.exists():
        dtype = "float32" if soundfile.info(source).subtype in FLOATS else "int16"
        samples, rate = soundfile.read(source, dtype=dtype)
        with written_beside(file) as part:
            soundfile.write(part, samples, rate, subtype="PCM_16", format="WAV")
    return file


def check_spelling(rows, lower_case=True):
    """Looks before the work for words that the tokenizer cannot give back, which would count as errors.

    These are capitals, for a tokenizer of lower case, and for each what Unicode has several spellings of: letters with
    an accent of their own, ligatures, fractions.

    Args:
        rows: by split. lower_case: as of `build_tokenizer`.
    Raises:
        PrepareError: a text of dev or test has such a word.
    """
    from nemo_comat.models.reference import manifest_text

    texts = [(split, manifest_text([row["text"]])) for split in ("dev", "test") for row in rows.get(split, ())]
    for split, text in texts:
        if respelt(text, lower_case) == text.split():
            continue
        word = next((word for word in text.split() if respelt(word, lower_case) != [word]), text)
        helps = "give --no_lower_case, or manifests in lower case" * (respelt(text, False) == text.split())
        raise PrepareError(
            f"{split} has words that the tokenizer writes otherwise, such as {word!r}, which becomes "
            f"{' '.join(respelt(word, lower_case))!r}; {helps or 'give manifests that write them so'}."
        )


@functools.cache
def normalizer(lower_case):
    """SentencePiece's rules, as `build_tokenizer` has NeMo give them to a tokenizer."""
    from sentencepiece import SentencePieceNormalizer

    return SentencePieceNormalizer(rule_name="nmt_nfkc_cf" if lower_case else "nmt_nfkc")


def respelt(text, lower_case):
    """A text's words as a tokenizer gives them back."""
    return normalizer(lower_case).normalize(text).replace("\N{LOWER ONE EIGHTH BLOCK}", " ").split()


def written(out, splits):
    """What `prepare` writes in a folder, its audio apart."""
    return [*(out / f"{split}.json" for split in splits), *(out / "tokenizer" / name for name in FILES)]


def prepare(
    sources,
    out,
    directories=SPLITS,
    vocab_size=128,
    hours=None,
    wav=False,
    speeds=(),
    overwrite=False,
    lower_case=True,
):
    """Writes OUT/train.json, dev.json, test.json and tokenizer/; returns the rows by split.

    Args:
        sources: folders or tarballs. out: folder. directories: LibriSpeech folder name of each split.
        vocab_size: pieces of the tokenizer. hours: of training audio to keep, None = all. wav: decode all audio to WAV.
        speeds: of copies of the training audio beside it, with wav alone.
        overwrite: True where what is there already may be replaced. lower_case: as of `build_tokenizer`.
    Raises:
        PrepareError: a source is missing or damaged, lacks a split, or has words that the tokenizer writes otherwise.
        ManifestError, ValueError: a manifest cannot be used.
        OutputError: what would be written is read, or is there already.
    """
    read = [source / f"{split}.json" for source in sources for split in directories]
    check_outputs(written(out, directories), inputs=[*sources, *read], overwrite=overwrite)
    folders = [unpack(source, out) for source in sources]
    rows = {split: find_rows(folders, split, directory) for split, directory in directories.items()}
    check_spelling(rows, lower_case)
    rows["train"] = own_rows(rows["train"])
    if hours is not None:
        rows["train"] = part_of(rows["train"], hours)
    if wav:
        rows = {split: decode(split_rows, out / "wav" / split) for split, split_rows in rows.items()}
        rows["train"] += [row for speed in speeds for row in at_speed(rows["train"], speed)]
    with ExitStack() as files:
        parts = {split: files.enter_context(written_beside(out / f"{split}.json")) for split in rows}
        for split, part in parts.items():
            with open(part, "w", encoding="utf-8") as manifest:
                manifest.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[split])
        # before they take their places: a vocabulary may be too small for the texts' letters
        texts = read_texts([parts["train"]])
        build_tokenizer(texts, out / "tokenizer", vocab_size=vocab_size, lower_case=lower_case, overwrite=overwrite)
    return rows


def speeds_of(text):
    """The numbers of 0.9,1.1; 1 is there already."""
    speeds = tuple(float(number) for number in text.split(","))
    if any(not 0.5 <= speed <= 2 or speed == 1 for speed in speeds) or len(set(speeds)) < len(speeds):
        raise argparse.ArgumentTypeError(f"speeds are different numbers from 0.5 to 2 other than 1, got {text!r}")
    return speeds


def main():
    parser = argparse.ArgumentParser(description="Make manifests and a tokenizer for the recipe.")
    parser.add_argument("sources", nargs="*", type=given_path, help="folders or tarballs")
    parser.add_argument("--out", type=given_path, required=True, help="folder to write to")
    parser.add_argument("--download", action="store_true", help="fetch Mini LibriSpeech and test-clean first")
    for split, directory in SPLITS.items():
        parser.add_argument(f"--{split}", default=directory, help="LibriSpeech folder (default: %(default)s)")
    parser.add_argument("--vocab_size", type=int, default=128, help="pieces of the tokenizer (default: %(default)s)")
    parser.add_argument("--hours", type=float, help="hours of training audio to keep (default: all)")
    parser.add_argument("--decode", action="store_true", help="write all audio as WAV, which is quick to read")
    parser.add_argument("--speeds", type=speeds_of, default=(), help="with --decode, of copies of the training audio")
    parser.add_argument("--no_lower_case", action="store_true", help="keep the manifests' capitals in the tokenizer")
    parser.add_argument("--overwrite", action="store_true", help="replace manifests and tokenizer that are there")
    args = parser.parse_args()
    if not args.sources and not args.download:
        parser.error("give a folder, a tarball or --download")
    if args.speeds and not args.decode:
        parser.error("--speeds writes WAV, so it needs --decode")
    with exit_in_one_sentence(ValueError, RuntimeError):  # of a source or a manifest
        if args.download:  # which takes long
            check_outputs(written(args.out, SPLITS), overwrite=args.overwrite)
        args.out.mkdir(parents=True, exist_ok=True)
        sources = args.sources + (download(args.out) if args.download else [])
        directories = {split: getattr(args, split) for split in SPLITS}
        rows = prepare(
            sources,
            args.out,
            directories,
            vocab_size=args.vocab_size,
            hours=args.hours,
            wav=args.decode,
            speeds=args.speeds,
            overwrite=args.overwrite,
            lower_case=not args.no_lower_case,
        )
    for split, split_rows in rows.items():
        with exit_in_one_sentence(RuntimeError):  # of audio that cannot be read, whose length no manifest says
            hours = sum(map(seconds_of, split_rows)) / 3600
        words = sum(len(str(row["text"] or "").split()) for row in split_rows)
        print(f"{split}: {len(split_rows)} utterances, {words} words, {hours:.2f} h")
    print(f"written: {args.out}; train with --data={args.out}")


if __name__ == "__main__":
    main()
