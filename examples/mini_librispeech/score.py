"""Transcribes dev and test with a finished run of the recipe, greedily.

    python examples/mini_librispeech/score.py --data=DATA RUNS/comat/seed1

The run's folder gets dev.json and test.json, rows of `reference` and `transcript` in the manifest's order. What is
there already is left as it is, so that test is read once.
"""

import argparse
import json
import sys
from pathlib import Path

from nemo_comat.paths import given_path
from nemo_comat.waiting import announce_nemo


def parse_args():
    parser = argparse.ArgumentParser(description="Transcribe dev and test with a finished run.")
    parser.add_argument("folder", type=given_path, help="RUNS/NAME/seedN")
    parser.add_argument("--data", type=given_path, required=True, help="folder that prepare.py wrote")
    parser.add_argument("--splits", nargs="+", default=["dev", "test"], help="default: dev test")
    return parser.parse_args()


if __name__ == "__main__":
    parse_args()  # --help and mistakes are answered before NeMo is loaded
    announce_nemo()

from nemo.utils import logging
from records import checkpoint_of

from nemo_comat import ComatCTCModelBPE
from nemo_comat.models.manifest import ManifestError
from nemo_comat.output import exit_in_one_sentence, written_beside

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from demo_report import read_manifest, transcripts


def restore_on_dev(folder, data):
    """A finished run's model in evaluation mode, on the CPU, with dev in `_validation_dl`."""
    model = ComatCTCModelBPE.restore_from(str(checkpoint_of(folder)), map_location="cpu").eval()
    model.setup_validation_data({**model.cfg.validation_ds, "manifest_filepath": str(data / "dev.json")})
    return model


def transcribe(model, manifest, batch_size=16):
    """Rows of `reference` and `transcript`, in the manifest's order."""
    with read_manifest(manifest) as (audio, texts):
        found = transcripts(model, audio, batch_size)
    return [{"reference": text, "transcript": heard} for text, heard in zip(texts, found, strict=True)]


def write_rows(rows, file):
    """Writes scored rows as a JSON list."""
    with written_beside(file) as part:
        part.write_text(json.dumps(rows, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
    logging.info(f"written: {file}")


def score(folder, data, splits=("dev", "test"), batch_size=16):
    """Writes FOLDER/SPLIT.json for each split that has none yet."""
    missing = [split for split in splits if not (folder / f"{split}.json").exists()]
    if not missing:
        return
    model = ComatCTCModelBPE.restore_from(str(checkpoint_of(folder)))
    for split in missing:
        write_rows(transcribe(model, data / f"{split}.json", batch_size), folder / f"{split}.json")


def main():
    args = parse_args()
    with exit_in_one_sentence(ManifestError):
        score(args.folder, args.data, args.splits)


if __name__ == "__main__":
    main()
