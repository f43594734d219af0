"""What the tests of examples/mini_librispeech share."""

import json
from pathlib import Path

import numpy as np
import soundfile

RECIPE = Path(__file__).resolve().parents[1] / "examples" / "mini_librispeech"
TINY = [
    "model.encoder.n_layers=2",
    "model.encoder.d_model=32",
    "model.encoder.conv_kernel_size=7",
    "model.optim.sched.warmup_steps=2",
    "trainer.check_val_every_n_epoch=1",
    "trainer.enable_progress_bar=false",
]


def librispeech(folder, splits):
    """A corpus in LibriSpeech's layout: one chapter of two utterances for each split."""
    for split, words in splits.items():
        chapter = folder / "LibriSpeech" / split / "19" / "198"
        chapter.mkdir(parents=True)
        for number in range(len(words)):
            soundfile.write(chapter / f"19-198-{number:04d}.flac", np.zeros(16000 * (number + 1)), 16000)
        lines = [f"19-198-{number:04d} {text}" for number, text in enumerate(words)]
        (chapter / "19-198.trans.txt").write_text("\n".join(lines) + "\n")


def scored(folder, transcripts, references=("the cat sat", "on the mat", "a dog ran far"), dev=None, **costs):
    """A finished run's folder with given transcripts of test, and of dev, which are the same if it is None."""
    folder.mkdir(parents=True)
    for split, heard in (("dev", dev or transcripts), ("test", transcripts)):
        rows = [{"reference": ref, "transcript": hyp} for ref, hyp in zip(references, heard, strict=True)]
        (folder / f"{split}.json").write_text(json.dumps(rows))
    settings = {
        "commit": "abc",
        "machine": "a chip",
        "device": "CPU",
        "encoder_parameters": 1e6,
        "steps": 4,
        "finished": True,
    }
    (folder / "run.json").write_text(json.dumps(settings))
    history = [{"step": 2, "val_wer": 0.9}, {"step": 4, "val_wer": 0.5}, {"step": 2, "val_wer": 0.8}]
    history = [{**row, "step_seconds": 0.1, "peak_bytes": 10, **costs} for row in history]
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
