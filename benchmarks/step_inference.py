"""Inference from one dual .nemo file, by NeMo's own class and by ours: the same texts, in what time."""

import functools
import tempfile
from pathlib import Path

import torch
from nemo.collections.asr.models import EncDecCTCModelBPE
from step_parts import timed

from nemo_comat import ComatCTCModelBPE
from nemo_comat.models.rows import read_rows

CLASSES = (EncDecCTCModelBPE, ComatCTCModelBPE)


def require_equal(answers):
    """Raises unless all models gave the same answer; answers is a dict by name."""
    (first, wanted), *others = answers.items()
    for name, answer in others:
        if answer != wanted:
            differing = next((pair for pair in zip(wanted, answer) if pair[0] != pair[1]), (len(wanted), len(answer)))
            raise RuntimeError(f"{first} and {name} must answer alike, got {differing[0]!r} and {differing[1]!r}")


def audio_files(manifest):
    return [row.item["audio_file"] for row in read_rows(manifest)]


def restored(cfg, nemo_file, device, manifest, batch_size):
    """The same model by each class, from nemo_file or a fresh model that is saved first; with the manifest to validate.

    Args:
        cfg: config of the fresh model.
        nemo_file: a dual .nemo, or None.
    Returns:
        dict from class name to model.
    """
    data = dict(manifest_filepath=str(manifest), sample_rate=16000, batch_size=batch_size, shuffle=False, num_workers=0)
    with tempfile.TemporaryDirectory() as folder:
        if nemo_file is None:
            nemo_file = Path(folder) / "comat.nemo"
            cfg.validation_ds = data
            torch.manual_seed(0)
            ComatCTCModelBPE(cfg=cfg).save_to(str(nemo_file))
        models = {cls.__name__: cls.restore_from(str(nemo_file), map_location=device).eval() for cls in CLASSES}
    for model in models.values():
        model.setup_validation_data(data)
    return models


def measure_in_turns(models, call, device, rounds):
    """Answers and seconds of call(model) for each model in turns, after one call to warm up; answers must be equal."""
    seconds = {name: [] for name in models}
    require_equal({name: call(model) for name, model in models.items()})
    for turn in range(rounds):
        answers = {}
        for name in list(models)[:: 1 if turn % 2 else -1]:
            answers[name], took = timed(device, functools.partial(call, models[name]))
            seconds[name].append(took)
        require_equal(answers)
    return seconds


def bench_inference(models, trainer, manifest, batch_size, rounds):
    """Times transcribe() and a validation epoch of models that `restored` gave.

    Yields:
        "transcribe" and then "validation", each with a dict from class name to the seconds of each round.
    Raises:
        RuntimeError: the texts, or the validation's numbers, are not the same.
    """
    device, files = trainer.strategy.root_device, audio_files(manifest)

    def transcribe(model):
        return [one.text for one in model.transcribe(files, batch_size=batch_size, num_workers=0, verbose=False)]

    def validate(model):
        return sorted(trainer.validate(model, verbose=False)[0].items())

    for what, call in (("transcribe", transcribe), ("validation", validate)):
        yield what, measure_in_turns(models, call, device, rounds)
