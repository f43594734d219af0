"""Runs the recipe's whole table: trains every arm with every seed, scores, reports. Stop it and call it again to go on.

    python examples/mini_librispeech/prepare.py --out=DATA FOLDER
    python examples/mini_librispeech/run.py --data=DATA --out=RUNS --scale=gpu --seeds 1 2 --jobs 4

What is finished is not done again; a folder with runs of other settings is refused. --jobs runs share the machine; each
has its log in RUNS/NAME/seedN/log. --overrides hold for all arms. A setting of your own beside the arms: train.py with
--name, score.py, report.py.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

from arms import HERE, RECIPE, given_seed, recorded, run_folder, settings
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from report import load_matplotlib, report
from tqdm import tqdm

from nemo_comat.output import exit_in_one_sentence
from nemo_comat.paths import given_path

# by prepare.py
WRITTEN = ("train.json", "dev.json", "test.json", "tokenizer")
# of whoever stops the table: kill, Ctrl-C, and a terminal that is closed
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def commands(args, arm, seed):
    """The two commands of one run."""
    data, folder = f"--data={args.data}", run_folder(args.out, arm, seed)
    options = [data, f"--out={args.out}", f"--scale={args.scale}", f"--arm={arm}", f"--seed={seed}"]
    options += [f"--start={args.start}"] * bool(args.start) + args.overrides
    train, score = ([sys.executable, str(HERE / f"{step}.py")] for step in ("train", "score"))
    return [[*train, *options], [*score, data, str(folder)]]


def start(args, arm, seed, command):
    """Starts a command of one run in the background; what it says goes into the run's log."""
    folder = run_folder(args.out, arm, seed)
    folder.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, len(os.sched_getaffinity(0)) // args.jobs))
    environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **os.environ}
    with open(folder / "log", "a", encoding="utf-8") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


@contextmanager
def deferred(*numbers):
    """Lets signals wait until the block has ended, and then act as ever."""
    caught = []
    before = {number: signal.signal(number, lambda number, frame: caught.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in caught:
        signal.raise_signal(number)


def launch(args, running, run, todo):
    """Starts the first of a run's commands; whoever stops the table meanwhile stops this one too."""
    with deferred(*STOPS):
        running[run] = start(args, *run, todo[0]), todo[1:]


def check_settings(args):
    """Looks before the first run at the configs, and at the runs that are there: these would be reported as others.

    Raises:
        ConfigError: a folder holds a run of other settings. FileNotFoundError: there is no finished run in --start, or
            nothing that prepare.py wrote in --data.
        HydraException: an override fits no arm's config.
    """
    missing = [name for name in WRITTEN if not (args.data / name).exists()]
    if missing:
        raise FileNotFoundError(f"{args.data} has no {missing[0]}; give the folder that prepare.py wrote.")
    for seed in args.seeds:
        for arm in args.arms:
            folder = run_folder(args.out, arm, seed)
            recorded(folder, settings(arm, seed, args.data, folder, args.scale, args.overrides, args.start)[1])


def done(args, arm, seed):
    """True where a run is trained and scored."""
    return all((run_folder(args.out, arm, seed) / f"{split}.json").exists() for split in ("dev", "test"))


def ended(args, running):
    """Takes out the runs that are over; a run whose first command went well goes on with its next.

    Args:
        args: of the command line. running: {(arm, seed): (process, commands still to come)}.
    Yields:
        (arm, seed) and exit status.
    """
    for run, (process, rest) in list(running.items()):
        if process.poll() is None:
            continue
        del running[run]
        if process.returncode == 0 and rest:
            launch(args, running, run, rest)
        else:
            yield run, process.returncode


def run_all(args):
    """Keeps --jobs runs going until all are done; returns those that failed."""
    waiting = [(arm, seed) for seed in args.seeds for arm in args.arms if not done(args, arm, seed)]
    total, running, failed = len(args.seeds) * len(args.arms), {}, []
    try:
        with tqdm(total=total, initial=total - len(waiting), unit="run") as bar:
            while waiting or running:
                while waiting and len(running) < args.jobs:
                    run = waiting.pop(0)
                    launch(args, running, run, commands(args, *run))
                    bar.set_postfix_str(", ".join(f"{arm} seed {seed}" for arm, seed in running))
                time.sleep(1)
                for run, status in ended(args, running):
                    failed += [run] * (status != 0)
                    bar.update()
    finally:
        for process, _ in running.values():
            os.killpg(process.pid, signal.SIGTERM)
    return failed


def stop_as_ctrl_c():
    """Lets what stops this process stop its runs too; what it ignores, as under nohup, it goes on to ignore."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: sys.exit(128 + number))


def main():
    parser = argparse.ArgumentParser(description="Train, score and compare the recipe's arms.")
    parser.add_argument("--data", type=given_path, required=True, help="folder that prepare.py wrote")
    parser.add_argument("--out", type=given_path, required=True, help="folder of all runs")
    parser.add_argument("--scale", choices=list(RECIPE.scales), default="gpu", help="default: %(default)s")
    parser.add_argument("--arms", nargs="+", choices=list(RECIPE.arms), default=list(RECIPE.arms), help="default: all")
    parser.add_argument("--seeds", nargs="+", type=given_seed, default=[1, 2], help="default: 1 2")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: %(default)s)")
    parser.add_argument("--start", type=given_path, help="RUNS/NAME whose weights of the same seed all arms begin with")
    parser.add_argument("--overrides", nargs="+", default=[], help="Hydra overrides for every arm")
    args = parser.parse_args()
    args.arms, args.seeds = list(dict.fromkeys(args.arms)), list(dict.fromkeys(args.seeds))
    if args.jobs < 1:
        parser.error(f"--jobs is the number of runs at a time, 1 or more; got {args.jobs}")
    stop_as_ctrl_c()
    with exit_in_one_sentence(ValueError, ImportError, HydraException, OmegaConfBaseException):
        load_matplotlib()  # the report's, which comes last
        check_settings(args)
    with exit_in_one_sentence():
        failed = run_all(args)
    for arm, seed in failed:
        print(f"{arm} seed {seed} failed; see {args.out / arm / f'seed{seed}' / 'log'}", file=sys.stderr)
    with exit_in_one_sentence(ValueError):
        print(report(args.out, data=args.data))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
