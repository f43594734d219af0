"""Trains small models for two steps, alone or by two processes; a program for test_scale.py.

    python tests/two_processes.py FOLDER

FOLDER holds the processes' manifests, 0.json and 1.json, and a config for each scenario, NAME.yaml; each process writes
what it trained to NAME-RANK.pt there.
"""

import os
import sys
import traceback
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import OmegaConf

from nemo_comat import ComatCTCModelBPE


class Recorder(pl.Callback):
    """Keeps each batch's logged numbers, and the types of what the COMAT loss computes with."""

    def __init__(self):
        self.logged, self.dtypes = [], set()

    def on_fit_start(self, trainer, model):
        model.comat.register_forward_hook(
            lambda module, args, output: self.dtypes.update((output.loss.dtype, output.score.dtype))
        )

    def on_train_batch_end(self, trainer, *args):
        self.logged.append({key: float(value) for key, value in trainer.callback_metrics.items()})


class Images(DummyLogger):
    """Takes pictures as W&B's logger does, and keeps their names."""

    def __init__(self):
        super().__init__()
        self.names = []

    def log_image(self, key, images, **options):
        self.names.append(key)


def train(cfg, **options):
    """A model of one seed after two steps on the CPU, its data in the manifest's order: (weights, Recorder)."""
    recorder = Recorder()
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = pl.Trainer(
        **{"accelerator": "cpu", "devices": 1, "max_steps": 2, "limit_val_batches": 0, **quiet, **options},
        log_every_n_steps=1,
        callbacks=[recorder],
    )
    pl.seed_everything(7, verbose=False)
    model = ComatCTCModelBPE(cfg=cfg, trainer=trainer)
    trainer.fit(model)
    return {key: value.clone() for key, value in model.state_dict().items()}, recorder


def work(folder, rank):
    """What one of the two processes does."""
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    # a file, for a port that is free now may be taken a moment later; Lightning goes by the group that is there
    torch.distributed.init_process_group("gloo", f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    for file in sorted(folder.glob("*.yaml")):
        cfg = OmegaConf.load(file)
        cfg.train_ds.manifest_filepath = str(folder / f"{rank}.json")
        strategy = DDPStrategy(find_unused_parameters=False, process_group_backend="gloo")
        # Lightning's own sampler would shuffle
        weights, recorder = train(cfg, devices=2, strategy=strategy, use_distributed_sampler=False)
        torch.save({"weights": weights, "logged": recorder.logged}, folder / f"{file.stem}-{rank}.pt")
    # pictures are drawn by the first process alone, while the other goes on with the next step
    cfg.validation_ds, images = cfg.train_ds.copy(), Images()
    cfg.comat.teacher.max_length = None
    more = dict(limit_val_batches=1, val_check_interval=1, num_sanity_val_steps=0, logger=images)
    train(cfg, devices=2, strategy=DDPStrategy(process_group_backend="gloo"), use_distributed_sampler=False, **more)
    torch.save(images.names, folder / f"pictures-{rank}.pt")
    torch.distributed.destroy_process_group()


def main(folder):
    """Both processes, after the imports that they share; exits with 1 where one of them fails."""
    second = os.fork()
    if not second:
        try:
            work(folder, 1)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    work(folder, 0)
    sys.exit(int(os.waitpid(second, 0)[1] != 0))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
