"""The examples in docstrings: each public function ends on one, and what they say is so."""

import ast
import doctest
from importlib import import_module
from pathlib import Path

import pytest

import nemo_comat

ROOT = Path(nemo_comat.__file__).parent
FILES = [
    *(
        ROOT / f"{name}.py"
        for name in ("config", "comat", "output", "lazy", "command", "lengths", "positions", "waiting")
    ),
    *(file for file in sorted(ROOT.glob("*/*.py")) if file.parent.name != "shipped"),
]
# they read so much of a whole model that an example would be longer than they are
WHOLE = {"model_card", "keep_statistics"}


def module_name(file):
    return ".".join(("nemo_comat", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_what_the_examples_say_is_so(file):
    said = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in doctest.DocTestFinder().find(import_module(module_name(file))):
        runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_each_public_function_ends_on_an_example(file):
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            if node.name in WHOLE:
                continue
            _, header, example = ast.get_docstring(node).rpartition("Examples:\n")
            assert header and doctest.DocTestParser().get_examples(example), node.name


def test_a_false_example_is_found(tmp_path, monkeypatch):
    (tmp_path / "wrong.py").write_text(
        'def half(x):\n    """Half.\n\n    >>> half(4)\n    3\n    """\n    return x / 2\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("test_docstrings.module_name", lambda file: "wrong")
    with pytest.raises(AssertionError, match="2.0"):
        test_what_the_examples_say_is_so(tmp_path / "wrong.py")
