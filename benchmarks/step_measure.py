"""Measures the arms in turns, the parts of a step, and memory."""

import itertools
import multiprocessing
import random
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch
from machine import clock, resident
from nemo.collections.asr.models import EncDecCTCModelBPE
from nemo.collections.common.tokenizers import SentencePieceTokenizer
from step_arms import Setting, as_read, autocast, configs_of_arms, make_arm, make_trainer, model_config, train_step
from step_data import make_batches
from step_inference import bench_inference, restored
from step_parts import sweep, time_parts

from nemo_comat.config import teacher_arguments
from nemo_comat.models.reference import reference_texts
from nemo_comat.teacher import build_teacher


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
        blocks = {arm.name: arm.model.cfg.comat for arm in arms if "comat" in arm.model.cfg}
        teachers = {
            name: build_teacher(**teacher_arguments(block.teacher, block.transfer)) for name, block in blocks.items()
        }
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


def allocated(device):
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def make_ready(name, cfg, trainer, batch, device, precision):
    """An arm that has taken a step of the longest batch: compiled, with its teacher, and the memory that it holds."""
    before = allocated(device)
    arm = make_arm(name, cfg, trainer, device)
    train_step(arm, as_read(arm, batch), device, precision)
    arm.optimizer.zero_grad()
    arm.held_bytes = allocated(device) - before
    return arm


def take_turn(arm, batches, device, precision):
    """Measures an arm's steps on some batches in a row: time, memory, active rows."""
    turns, before = iter([as_read(arm, batch) for batch in batches]), allocated(device)
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
    batches = [as_read(arm, batch) for batch in batches]
    Path("/proc/self/clear_refs").write_text("5")  # largest = present
    before = resident("VmRSS")
    for batch in batches:
        train_step(arm, batch, options.device, setting.precision)
    return resident("VmHWM") - before


def prepare(options):
    if options.threads:
        torch.set_num_threads(options.threads)
