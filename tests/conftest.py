"""Fixtures shared by the tests: no network, one small model's config, and a few utterances of the demo corpus."""

import json
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "examples" / "demo_corpus"


def pytest_runtest_setup(item):
    if "gpu" in item.keywords and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def manifest(tmp_path_factory):
    """A manifest of the corpus's first 16 training utterances, with absolute paths."""
    rows = [json.loads(line) for line in (CORPUS / "train.json").read_text().splitlines()[:16]]
    for row in rows:
        row["audio_filepath"] = str(CORPUS / row["audio_filepath"])
    file = tmp_path_factory.mktemp("data") / "train.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def small_cfg(manifest):
    """model config of a Conformer-CTC with 2 layers, as conf/conformer_ctc_comat.yaml gives it."""
    cfg = OmegaConf.load(ROOT / "conf" / "conformer_ctc_comat.yaml")
    cfg.model.encoder.update(n_layers=2, d_model=32, conv_kernel_size=7)
    cfg.model.train_ds.update(manifest_filepath=manifest, batch_size=8, num_workers=0, pin_memory=False)
    cfg.model.validation_ds.update(manifest_filepath=manifest, batch_size=8, num_workers=0, pin_memory=False)
    cfg.model.test_ds = None
    cfg.model.tokenizer.dir = str(CORPUS / "tokenizer")
    cfg.model.log_prediction = False
    cfg.model.optim = {"name": "adamw", "lr": 1e-3}
    return cfg.model
