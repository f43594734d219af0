"""Fixtures shared by the tests: no network, one small model's config, and a few utterances of the demo corpus."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import data_forms
import emulated
import emulated_mas
import emulated_viterbi
import manifest_rows
import pytest
import torch
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "examples" / "demo_corpus"
CASES = os.environ.get("EMULATED_CASES", "2")  # random cases for each instance of a kernel


class NoNemo:
    """Skips the module or the test that imports NeMo, before it takes its time."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("nemo", "lightning"):
            pytest.skip("imports NeMo", allow_module_level=True)


def pytest_addoption(parser):
    parser.addoption("--without-nemo", action="store_true", help="only the tests that do not import NeMo")


def pytest_configure(config):
    if config.getoption("--without-nemo"):
        sys.meta_path.insert(0, NoNemo())


def pytest_runtest_setup(item):
    if item.get_closest_marker("nemo") and item.config.getoption("--without-nemo"):
        pytest.skip("imports NeMo")
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def pytest_collection_modifyitems(items):
    # these wait for a program that checks the CUDA kernels in the background
    items.sort(key=lambda item: "emulated" in item.keywords)


@pytest.fixture(scope="session", autouse=True)
def emulation_in_background(request, tmp_path_factory):
    """tests/emulated.py, started before the first test if one of them waits for it: (process, folder)."""
    if not emulated.available() or not any("emulated" in item.keywords for item in request.session.items):
        yield None
        return
    folder = tmp_path_factory.mktemp("emulation")
    instances = folder / "instances.json"
    instances.write_text(json.dumps({x.NAME: x.instances() for x in (emulated_mas, emulated_viterbi)}))
    command = [sys.executable, str(ROOT / "tests" / "emulated.py"), str(instances), str(folder), CASES]
    with open(folder / "log", "w") as log, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process:
        yield process, folder
        process.kill()


@pytest.fixture(scope="session")
def manifest(tmp_path_factory):
    """A manifest of the corpus's first 16 training utterances, with absolute paths."""
    rows = [json.loads(line) for line in (CORPUS / "train.json").read_text().splitlines()[:16]]
    for row in rows:
        row["audio_filepath"] = str(CORPUS / row["audio_filepath"])
    file = tmp_path_factory.mktemp("data") / "train.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture(scope="session")
def written(manifest, tmp_path_factory):
    """The manifest's utterances in each of `data_forms.FORMS`: (folder, rows)."""
    folder = tmp_path_factory.mktemp("forms")
    return folder, data_forms.write_data(folder, [json.loads(line) for line in open(manifest)])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder, and the current one, with the files that rows of `manifest_rows` name."""
    monkeypatch.chdir(tmp_path)
    manifest_rows.fill(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def base_cfg(manifest):
    """What `small_cfg` is a copy of, for fixtures that several tests share; not to be changed."""
    cfg = OmegaConf.load(ROOT / "conf" / "conformer_ctc_comat.yaml")
    cfg.model.encoder.update(n_layers=2, d_model=32, conv_kernel_size=7)
    cfg.model.train_ds.update(manifest_filepath=manifest, batch_size=8, num_workers=0, pin_memory=False)
    cfg.model.validation_ds.update(manifest_filepath=manifest, batch_size=8, num_workers=0, pin_memory=False)
    cfg.model.test_ds = None
    cfg.model.tokenizer.dir = str(CORPUS / "tokenizer")
    cfg.model.log_prediction = False
    cfg.model.optim = {"name": "adamw", "lr": 1e-3}
    return cfg


@pytest.fixture(scope="session")
def shared_cfg(base_cfg):
    """Its model config, not to be changed."""
    return base_cfg.model


@pytest.fixture
def small_cfg(base_cfg):
    """model config of a Conformer-CTC with 2 layers, as conf/conformer_ctc_comat.yaml gives it."""
    return copy.deepcopy(base_cfg).model
