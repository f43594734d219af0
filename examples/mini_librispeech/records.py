"""Reads and keeps what finished and scored runs leave in RUNS/NAME/seedN/, compressed by gzip or not."""

import gzip
import json
import re
import zlib
from collections import defaultdict
from pathlib import Path

from nemo_comat.output import written_beside

# what a finished and scored run leaves that the report reads
RECORDS = ("run.json", "history.jsonl", "dev.json", "test.json")
SEED = re.compile(r"seed\d+")
# of absolute paths in quotes, in a list or in a dict; no URL has one slash alone
FOLDERS = re.compile(r"""(?<=['"\[,{:\s])/(?!/)(?:[^'"\],}]*/)?""")


def json_lines(text):
    """What the lines of a text hold; not by splitlines, which parts a line at signs such as U+2028 too."""
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def training_texts(data):
    """Training texts of a folder that prepare.py wrote, each once: its copies at other speeds are left out."""
    rows = json_lines((data / "train.json").read_text(encoding="utf-8"))
    return [row["text"] for row in rows if "speed" not in row and row.get("text")]


def checkpoint_of(folder):
    """The run's .nemo file, the checkpoint of lowest dev WER.

    Raises:
        FileNotFoundError: the run is not finished.
    """
    settings = folder / "run.json"
    found = sorted((folder / "nemo" / "checkpoints").glob("*.nemo"), key=lambda file: file.stat().st_mtime)
    # a run that was killed while it wrote one leaves NeMo's backup of the one before
    found = [file for file in found if not re.search(r"-v\d+$", file.stem)] or found
    if not settings.exists() or not json.loads(settings.read_text()).get("finished") or not found:
        raise FileNotFoundError(f"{folder} holds no finished run; train it first with train.py or run.py.")
    return found[-1]


def record(folder, name):
    """Path of a run's record, as it is or with .gz; None where it has neither."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)


def read_record(folder, name):
    """Text of a run's record."""
    path = record(folder, name)
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        return file.read()


def parsed(folder, name):
    """What a run's record holds.

    Raises:
        ValueError: it is damaged, or has nothing in it.
    """
    try:
        found = (json_lines if name.endswith(".jsonl") else json.loads)(read_record(folder, name))
    except (ValueError, EOFError, zlib.error) as error:
        raise ValueError(f"{record(folder, name)} is damaged ({error}); train or score this run again.") from error
    if not found:
        raise ValueError(f"{record(folder, name)} has nothing in it; train or score this run again.")
    return found


def without_places(value):
    """A run's settings with absolute paths cut to their last part: where files lay is the machine's business.

    The paths may be quoted, and stand in a list, as Hydra's overrides have them.
    """
    if isinstance(value, dict):
        return {key: without_places(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_places(entry) for entry in value]
    if not isinstance(value, str):
        return value
    key, equals, path = ("", "", value) if value.startswith("/") else value.partition("=")
    return f"{key}{equals}{Path(path).name}" if path.startswith("/") else FOLDERS.sub("", value)


def keep(out, names, target, seeds=()):
    """Copies the records of finished and scored runs into target/NAME/seedN; the transcripts are compressed.

    What target holds already of a run is written over: it is that run's record.

    Raises:
        ValueError: target is out, whose runs would be written over.
    """
    if target.resolve() == out.resolve():
        raise ValueError(f"{target} holds the runs themselves; give --keep another folder.")
    for folder in finished(out, names, seeds):
        place = target / folder.parent.name / folder.name
        for name in RECORDS:
            source = record(folder, name)
            content, packed = source.read_bytes(), source.suffix == ".gz"
            if name == "run.json" and not packed:
                content = (json.dumps(without_places(json.loads(content)), indent=1) + "\n").encode()
            if not packed and name not in ("run.json", "history.jsonl"):
                # without a time and a name, so that the same transcripts are the same bytes
                content, packed = gzip.compress(content, mtime=0), True
            with written_beside(place / (f"{name}.gz" if packed else name)) as file:
                file.write_bytes(content)


def finished(out, names=(), seeds=()):
    """Folders of finished and scored runs, in the order of their names; of some names or seeds (numbers) only.

    Raises:
        ValueError: there is none of a name or a seed that is given.
    """
    wanted = {f"seed{seed}" for seed in seeds}
    folders = [folder for folder in out.glob("*/seed*") if SEED.fullmatch(folder.name)]
    folders = [folder for folder in folders if not names or folder.parent.name in names]
    folders = sorted(folder for folder in folders if not seeds or folder.name in wanted)
    folders = [folder for folder in folders if all(record(folder, name) for name in RECORDS)]
    lacking = [name for name in names if name not in {folder.parent.name for folder in folders}]
    lacking += sorted(wanted - {folder.name for folder in folders})
    if lacking:
        there = ", ".join(sorted({folder.parent.name for folder in folders})) or "none"
        raise ValueError(f"{out} has no finished and scored run {lacking[0]}; of what is asked for it has {there}.")
    return folders


def read_runs(out, names=(), seeds=(), first=()):
    """Finished and scored runs: {name: [{"seed", "run", "history", "dev", "test"}, ...]}, a list entry for each seed.

    Those that are named in first come first.

    Raises:
        ValueError: as `finished`; or a record is damaged, or has nothing in it.
    """
    runs = defaultdict(list)
    for folder in finished(out, names, seeds):
        run, history, dev, test = (parsed(folder, name) for name in RECORDS)
        steps = {row["step"]: row for row in history}
        history = [steps[step] for step in sorted(steps)]
        runs[folder.parent.name].append({"seed": folder.name, "run": run, "history": history, "dev": dev, "test": test})
    order = [*(name for name in first if name in runs), *(name for name in runs if name not in first)]
    return {name: runs[name] for name in order}
