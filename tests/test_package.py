"""The package as a whole: what importing it costs, its docstrings, its files."""

import ast
import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import nemo_comat

ROOT = Path(nemo_comat.__file__).resolve().parents[1]
MODULES = sorted((ROOT / "nemo_comat").rglob("*.py"))


def test_a_name_costs_its_own_module_alone():
    """What a function on tensors, a view or a list of names needs of other packages: no NeMo, and no model."""
    code = (
        "import sys, torch\n"
        "from nemo_comat import monotonic_align, ctc_compress, transfer_loss, CompressAlignTransfer, Teacher\n"
        "from nemo_comat.views import describe, plot_alignment\n"
        "import nemo_comat.models as models\n"
        "monotonic_align(torch.zeros(1, 2, 1), torch.tensor([2]), torch.tensor([1]))\n"
        "found = {'nemo', 'lightning', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "print(sorted(found), 'ComatMixin' in dir(models))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "[] True"


ROOMS = ("compress", "align", "transfer", "teacher", "kernels", "views", "models")


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_offers_names_and_nothing_else(room):
    module = import_module(f"nemo_comat.{room}")
    assert module.__all__ and all(hasattr(module, name) for name in module.__all__)
    tree = ast.parse(Path(module.__file__).read_text())
    assert ast.get_docstring(tree)
    assert all(isinstance(node, ast.ImportFrom | ast.Assign) for node in tree.body[1:])


def test_public_names():
    assert set(nemo_comat.__all__) <= set(dir(nemo_comat))
    with pytest.raises(AttributeError, match="no attribute 'comet'"):
        _ = nemo_comat.comet


@pytest.mark.parametrize("name", nemo_comat.__all__)
def test_public_docstrings(name):
    thing = getattr(nemo_comat, name)
    doc = inspect.getdoc(thing)
    assert doc, name
    if inspect.isfunction(thing):
        assert "Args:" in doc and ("Returns:" in doc or "Raises:" in doc)
        documented = set(re.findall(r"\w+", doc))
        assert set(inspect.signature(thing).parameters) <= documented
        takes_tensors = {"score", "hidden", "log_probs", "student", "segments"} & set(
            inspect.signature(thing).parameters
        )
        assert not takes_tensors or re.search(r"\[B, ", doc)


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_public_definition_has_a_docstring(file):
    tree = ast.parse(file.read_text())
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        public = isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
        if public and node.name not in ("hook", "extra_repr"):
            assert ast.get_docstring(node), f"{file.name}: {node.name}"


def modules_of_ours(tree):
    """Names by which a module knows other modules of ours."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nemo_comat"):
            for alias in node.names:
                if (ROOT / node.module.replace(".", "/") / f"{alias.name}.py").exists():
                    yield alias.asname or alias.name


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_module_reads_the_private_names_of_another(file):
    tree = ast.parse(file.read_text())
    ours = set(modules_of_ours(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nemo_comat"):
            assert not [alias.name for alias in node.names if alias.name.startswith("_")], node.module
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ours:
            assert not node.attr.startswith("_"), f"{node.value.id}.{node.attr}"
