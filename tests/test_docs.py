"""README.md and docs/: each command is one that its program takes, each Python block runs, each figure has a source.

A block that needs a GPU, a hub or hours has `<!-- not run: why -->` in the line before it.
"""

import argparse
import copy
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
import pytest
import soundfile
import speech_to_text_comat
from configs import CORPUS, composed
from omegaconf import OmegaConf

from nemo_comat import ComatCTCModelBPE

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"(?:<!-- not run: (?P<reason>.+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)\n```", re.S)
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")
# languages of blocks that are neither commands nor Python
SHOWN = {"json", "text"}


class Block(NamedTuple):
    page: Path
    language: str
    text: str
    reason: str | None


def blocks(*pages):
    """The fenced blocks of pages."""
    found = [(page, match) for page in pages for match in FENCE.finditer(page.read_text(encoding="utf-8"))]
    return [Block(page, match["language"], match["text"], match["reason"]) for page, match in found]


def commands():
    """(page, words) of each command that is not marked."""
    for block in blocks(*PAGES):
        if block.language == "sh" and not block.reason:
            for line in block.text.replace("\\\n", " ").splitlines():
                yield block.page.name, shlex.split(line, comments=True)


def table_rows(text):
    """The cells of all tables, joined by row."""
    return [line for line in text.splitlines() if line.startswith("|")]


def test_every_block_says_what_it_is():
    assert {block.language for block in blocks(*PAGES)} <= {"sh", "python", *SHOWN}
    # a fence that FENCE overlooks would not be looked at
    for page in PAGES:
        assert page.read_text().count("```") == 2 * len(blocks(page)), page


class Parsed(Exception):
    """An argument parser has taken its arguments."""


def check_make(words, folder):
    found = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def check_pip(words, folder):
    extras = re.search(r"\.\[(.+)\]", words[-1])[1].split(",")
    declared = (ROOT / "setup.py").read_text()
    assert words[0] == "install" and all(f'"{extra}": [' in declared for extra in extras)
    for option, file in zip(words, words[1:]):
        assert option != "-c" or (ROOT / file).is_file()


def check_tensorboard(words, folder):
    assert find_spec("tensorboard") and words == ["--logdir", "nemo_experiments"]


def check_pytest(words, folder):
    assert all((ROOT / word).is_file() for word in words if word.startswith("tests/"))


def check_training(name, words):
    """Composes the config and checks it as the script does, data included."""
    script = importlib.import_module(name)
    words = speech_to_text_comat.allow_init_from(words)
    config = next((word.split("=")[1] for word in words if word.startswith("--config-name=")), "conformer_ctc_comat")
    cfg = composed(config, *(word for word in words if not word.startswith("--")))
    script.complete(cfg)
    script.check_data(cfg)


def check_script(path, words, monkeypatch):
    """Runs a script up to the point where its parser has taken the arguments."""
    for name in ("parse_args", "parse_intermixed_args"):
        parse = getattr(argparse.ArgumentParser, name)

        def stop(parser, *args, parse=parse):
            parse(parser, *args)  # ends the program where it refuses the arguments
            raise Parsed

        monkeypatch.setattr(argparse.ArgumentParser, name, stop)
    monkeypatch.setattr(sys, "argv", [path, *words])
    module = importlib.import_module(Path(path).stem)
    with pytest.raises(Parsed):
        module.main()


@pytest.fixture(scope="module")
def small_model(base_cfg):
    """A model to be saved for the commands and blocks that read one; it says something."""
    model = ComatCTCModelBPE(cfg=copy.deepcopy(base_cfg).model)
    model.decoder.decoder_layers[0].bias.data[-1] = -5
    return model


@pytest.fixture
def folder(small_model, manifest, base_cfg, tmp_path, monkeypatch):
    """The working folder of a reader: manifests, a tokenizer, audio, MODEL.nemo, and conf/ with a small encoder."""
    for name in ("train.json", "dev.json", "test.json", "data/dev.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(manifest, tmp_path / name)
    shutil.copytree(CORPUS / "tokenizer", tmp_path / "tokenizers" / "tokenizer_spe_unigram_v128")
    audio = next((CORPUS / "train").glob("*.ogg"))
    soundfile.write(tmp_path / "a.wav", *soundfile.read(audio))
    small_model.save_to(str(tmp_path / "MODEL.nemo"))
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    cfg = copy.deepcopy(base_cfg)
    for dataset in (cfg.model.train_ds, cfg.model.validation_ds):
        dataset.manifest_filepath = "???"
    OmegaConf.save(cfg, tmp_path / "conf" / "conformer_ctc_comat.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "page, words", [pytest.param(*command, id=f"{command[0]}-{i}") for i, command in enumerate(commands())]
)
def test_every_command_is_one_that_its_program_takes(folder, monkeypatch, page, words):
    while "=" in words[0]:  # an environment variable
        words = words[1:]
    program, *words = words
    if program == "python" and words[:2] == ["-m", "pytest"]:
        check_pytest(words[2:], folder)
    elif program == "python" and words[0] in ("examples/speech_to_text_comat.py", "examples/cache_teacher.py"):
        monkeypatch.syspath_prepend(str(ROOT / "examples"))
        check_training(Path(words[0]).stem, words[1:])
    elif program == "python":
        check_script(words[0], words[1:], monkeypatch)
    else:
        {"make": check_make, "pip": check_pip, "tensorboard": check_tensorboard}[program](words, folder)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.language == "python" for b in blocks(page))], ids=lambda p: p.name
)
def test_every_python_block_runs(folder, monkeypatch, page):
    once = dict(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    trainer = pl.Trainer
    monkeypatch.setattr(pl, "Trainer", lambda **given: trainer(**{**given, **once}))
    names = {}
    for block in blocks(page):
        if block.language == "python" and not block.reason:
            exec(compile(block.text, page.name, "exec"), names)
    assert names


def numbers(rows):
    return {number.lstrip("+").replace(",", "") for row in rows for number in NUMBER.findall(row)}


def test_the_figures_of_the_front_pages_are_those_of_the_evidence():
    docs = ROOT / "docs"
    evidence = numbers(table_rows((docs / "evidence.md").read_text()))
    measured = numbers(table_rows((docs / "cost.md").read_text())) | numbers([(ROOT / "RESULTS.md").read_text()])
    assert evidence <= measured | {"1"}, "docs/evidence.md has figures that RESULTS.md lacks"
    for page in (ROOT / "README.md", docs / "choose.md"):
        rows = [re.sub(r"`[^`]*`", "", row) for row in table_rows(page.read_text())]
        assert numbers(rows) <= evidence | measured | {"1", "95"}, page


def cells(text, heading):
    """Of each row of a section's one table its label, and the numbers of each of its other cells."""
    section = text.partition(f"## {heading}")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table_rows(section)[2:]]
    return [(label, [numbers([cell]) for cell in others]) for label, *others in rows]


def test_figures_that_stand_side_by_side_are_of_one_measured_row():
    results, evidence, front = ((ROOT / name).read_text() for name in ("RESULTS.md", "docs/evidence.md", "README.md"))
    measured = [numbers([row]) for row in table_rows(results)]
    sections = {"Real speech, three seeds": (0, 2), "One synthetic voice, one seed": (2, 4)}
    for heading, (begin, end) in sections.items():
        rows = cells(evidence, heading)
        assert len(rows) > 6
        for label, row in rows:
            assert any(set().union(*row) <= of for of in measured), f"docs/evidence.md: {label}"
        gains = cells(front, "What it gains")
        assert len(gains) > 6
        for label, row in gains:
            of_both = set().union(*row[begin:end])
            assert any(of_both <= set().union(*of) for _, of in rows), f"README.md: {label}"


def test_links_lead_to_files_that_are_there():
    for page in [*PAGES, ROOT / "RESULTS.md"]:
        for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
