"""Fixtures shared by the tests: no network, one small model's config, and a few utterances of the demo corpus."""

import contextlib
import copy
import gc
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import data_forms
import emulated
import emulated_mas
import emulated_viterbi
import manifest_rows
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "examples" / "demo_corpus"
LONGEST_EMULATION = 3600
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


def pytest_collection_finish():
    # what is imported stays to the end: Python need not look through it for garbage, a tenth of all the time
    gc.collect()
    gc.freeze()
    gc.disable()


def pytest_runtest_teardown(item):
    if "hydra.core.hydra_config" in sys.modules:
        # a composed config stays Hydra's own for the process, and exp_manager looks at its working directory
        sys.modules["hydra.core.hydra_config"].HydraConfig.instance().cfg = None
    # nor need it look while a test runs: what is in cycles, as a model and its trainer are, goes after some tests
    item.session.torn_down = getattr(item.session, "torn_down", 0) + 1
    if item.session.torn_down % 20 == 0:
        gc.collect()


class Emulation:
    """The program of tests/emulated.py, which checks the CUDA kernels while other tests run.

    Args:
        folder: where it leaves its log, its report and, at last, its exit status.
    """

    def __init__(self, folder):
        self.folder = folder

    def start(self):
        """Starts it; returns the process of a shell, which leads a group of its own."""
        self.folder.mkdir()
        instances = self.folder / "instances.json"
        instances.write_text(json.dumps({x.NAME: x.instances() for x in (emulated_mas, emulated_viterbi)}))
        command = [sys.executable, str(ROOT / "tests" / "emulated.py"), str(instances), str(self.folder), CASES]
        script = f"{shlex.join(command)} > log 2>&1; echo $? > status.part; mv status.part status"
        return subprocess.Popen(["sh", "-c", script], cwd=self.folder, start_new_session=True)

    def report(self):
        """What it found, when it is done; fails with its log where it failed."""
        end = time.monotonic() + LONGEST_EMULATION
        while not (self.folder / "status").exists():
            assert time.monotonic() < end, f"{self.folder} has no status after {LONGEST_EMULATION} seconds"
            time.sleep(0.1)
        assert (self.folder / "status").read_text().strip() == "0", (self.folder / "log").read_text()
        return json.loads((self.folder / "report.json").read_text())


@pytest.fixture(scope="session", autouse=True)
def emulation(request, tmp_path_factory):
    """An Emulation, started before the first test if one of them waits for it; one for all workers of pytest-xdist."""
    if not emulated.available() or not any("emulated" in item.keywords for item in request.session.items):
        yield None
        return
    base, worker = tmp_path_factory.getbasetemp(), os.environ.get("PYTEST_XDIST_WORKER")
    found = Emulation((base.parent if worker else base) / "emulation")
    process = found.start() if worker in (None, "gw0") else None
    yield found
    if process is not None:
        # another worker may wait for it still
        if worker and not (request.session.shouldstop or request.session.shouldfail):
            process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="session")
def manifest(tmp_path_factory):
    """A manifest of the corpus's first 16 training utterances, decoded once for all tests, with absolute paths."""
    folder = tmp_path_factory.mktemp("data")
    rows = [json.loads(line) for line in (CORPUS / "train.json").read_text().splitlines()[:16]]
    for row in rows:
        samples, rate = soundfile.read(CORPUS / row["audio_filepath"], dtype="float32")
        row["audio_filepath"] = str(folder / Path(row["audio_filepath"]).with_suffix(".wav").name)
        soundfile.write(row["audio_filepath"], samples, rate, subtype="FLOAT")
    file = folder / "train.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture(scope="session")
def written(manifest, tmp_path_factory):
    """The manifest's utterances in each of `data_forms.FORMS`: (folder, rows)."""
    folder = tmp_path_factory.mktemp("forms")
    return folder, data_forms.write_data(folder, [json.loads(line) for line in open(manifest)])


@pytest.fixture(scope="session")
def data(manifest, tmp_path_factory):
    """What mini_librispeech/prepare.py writes: 16 utterances that are all three splits. Not to be changed."""
    import prepare

    source, folder = (tmp_path_factory.mktemp(name) for name in ("manifests", "data"))
    for split in prepare.SPLITS:
        shutil.copy(manifest, source / f"{split}.json")
    prepare.prepare([source], folder, vocab_size=40)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder, and the current one, with the files that rows of `manifest_rows` name."""
    monkeypatch.chdir(tmp_path)
    manifest_rows.fill(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def base_cfg(manifest):
    """What `small_cfg` is a copy of, with one CTC loss and one view of a batch; shared, so not to be changed."""
    cfg = OmegaConf.load(ROOT / "conf" / "conformer_ctc_comat.yaml")
    cfg.model.encoder.update(n_layers=2, d_model=32, conv_kernel_size=7)
    cfg.model.train_ds.update(manifest_filepath=manifest, batch_size=8, num_workers=0, pin_memory=False)
    cfg.model.validation_ds.update(manifest_filepath=manifest, batch_size=8, num_workers=0, pin_memory=False)
    cfg.model.test_ds = None
    cfg.model.tokenizer.dir = str(CORPUS / "tokenizer")
    cfg.model.log_prediction = False
    cfg.model.comat.weight, cfg.model.comat.transfer.loss = 10.0, "cosine"  # whose values are easily told by hand
    cfg.model.optim = {"name": "adamw", "lr": 1e-3}
    cfg.model.interctc = {"loss_weights": [], "apply_at_layers": []}
    cfg.model.comat.consistency_weight, cfg.model.spec_augment.time_masks = 0.0, 5
    return cfg


@pytest.fixture(scope="session")
def shared_cfg(base_cfg):
    """Its model config, not to be changed."""
    return base_cfg.model


@pytest.fixture
def small_cfg(base_cfg):
    """model config of a Conformer-CTC with 2 layers, as conf/conformer_ctc_comat.yaml gives it."""
    return copy.deepcopy(base_cfg).model
