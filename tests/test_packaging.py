"""What is shipped: the wheel has the configs and what the commands run, the sdist all that its tests need."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
import yaml
from configs import ROOT

import nemo_comat
from nemo_comat import command

TRACKED = ("conf", "examples", "tests", "tools", "benchmarks", "docs", "nemo_comat")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(wheel, sdist) of the working tree, built by setuptools from a copy, with nothing fetched."""
    folder = tmp_path_factory.mktemp("build")
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "demo_output", "__pycache__", "site")
    shutil.copytree(ROOT, folder / "src", ignore=ignored)
    shutil.copy(ROOT / ".pre-commit-config.yaml", folder / "src")
    code = (
        "from setuptools import build_meta\n"
        f"build_meta.build_sdist({str(folder)!r}), build_meta.build_wheel({str(folder)!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder / "src", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """A folder with what the wheel holds, as site-packages would have it."""
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(built[0]).extractall(folder)
    return folder


def files(*folders):
    """Paths, from the root, of the files in folders; no caches."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in found if "__pycache__" not in path.parts}


def test_the_wheel_has_the_package_the_configs_and_the_commands(built):
    names = set(zipfile.ZipFile(built[0]).namelist())
    assert files("nemo_comat") <= names
    assert {f"nemo_comat/shipped/{name}" for name in files("conf")} <= names
    assert {f"nemo_comat/shipped/{name}" for name in files("examples/demo_corpus")} <= names
    read = zipfile.ZipFile(built[0]).read
    info = next(name.rsplit("/", 1)[0] for name in names if name.endswith(".dist-info/METADATA"))
    metadata = read(f"{info}/METADATA").decode()
    assert f"Version: {nemo_comat.__version__}\n" in metadata and "Author: nemo_comat developers\n" in metadata
    scripts = re.findall(r"^(\S+) = nemo_comat\.command:(\w+)$", read(f"{info}/entry_points.txt").decode(), re.M)
    assert dict(scripts) == {"comat-train": "train", "comat-tokenizer": "tokenizer"}
    assert all(callable(getattr(command, function)) for _, function in scripts)
    assert not [name for name in names if name.startswith(("tests/", "conf/", "examples/"))]


def test_the_sdist_has_what_its_tests_need(built):
    with tarfile.open(built[1]) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames() if "/" in name}
    assert files(*TRACKED) <= names
    assert {"Makefile", "constraints-lock.txt", "pyproject.toml", "CONTRIBUTING.md", ".pre-commit-config.yaml"} <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


@pytest.mark.nemo
def test_comat_train_takes_a_configs_name_and_overrides(installed, tmp_path):
    overrides = ["trainer.max_steps=2", "+trainer.limit_val_batches=1", "model.encoder.n_layers=3"]
    name = "--config-name=conformer_ctc_comat_demo"
    # in a process of its own, which does not see the repository
    code = f"import sys; sys.path.insert(0, {str(installed)!r}); from nemo_comat import command; command.train()"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command_line = [sys.executable, "-c", code, name, *overrides, "exp_manager.exp_dir=out"]
    done = subprocess.run(command_line, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout + done.stderr
    assert "`Trainer.fit` stopped: `max_steps=2` reached." in said
    assert f"training on the embedded corpus in {installed}/nemo_comat/shipped/examples/demo_corpus " in said
    assert "n_layers: 3\n" in said and list((tmp_path / "out").rglob("*.nemo"))


@pytest.fixture
def in_process(installed, monkeypatch, tmp_path):
    """`(function, *arguments)` runs a command in this process, with the scripts and configs of the installation."""
    find = command.find_script
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "find_script", lambda name: find(name, installed / "nemo_comat"))

    def call(function, *arguments):
        monkeypatch.setattr(sys, "argv", [f"comat-{function}", *arguments])
        getattr(command, function)()

    return call


@pytest.mark.nemo
def test_the_tokenizer_command_is_the_script(in_process, tmp_path):
    text = ROOT / "examples" / "demo_corpus" / "train.json"
    in_process("tokenizer", f"--manifest={text}", "--data_root=t", "--vocab_size=40")
    assert (tmp_path / "t" / "tokenizer_spe_unigram_v40" / "tokenizer.model").is_file()


@pytest.mark.nemo
def test_a_config_that_is_not_there_is_named(in_process, installed, capsys):
    with pytest.raises(SystemExit) as ended:
        in_process("train", "--config-name=gone")
    said = capsys.readouterr().err
    assert ended.value.code != 0 and "gone" in said and str(installed) in said


def test_an_editable_installation_runs_the_repositorys_scripts(tmp_path):
    assert command.find_script("speech_to_text_comat") == ROOT / "examples" / "speech_to_text_comat.py"
    with pytest.raises(FileNotFoundError, match="gone.py is neither in .*shipped.examples nor in .*; install"):
        command.find_script("gone")


def test_the_citation_and_the_hooks_are_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == nemo_comat.__version__ and citation["authors"] == [{"name": "nemo_comat developers"}]
    assert citation["preferred-citation"]["doi"] in (ROOT / "README.md").read_text()
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {"ruff==" + re.search(r"^ruff==(\S+)", (ROOT / "constraints.txt").read_text(), re.M)[1]} == {
        one for hook in hooks for one in hook["additional_dependencies"]
    }
