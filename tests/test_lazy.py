"""Names that are imported on first use."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

from nemo_comat.lazy import lazy_names

LAZY = ("nemo_comat", "nemo_comat.models", "nemo_comat.views")


def test_a_name_is_the_one_of_its_module():
    get, names, offered = lazy_names("xml", {"parse": "dom.minidom"})
    from xml.dom.minidom import parse

    assert get("parse") is parse and offered == ["parse"] and "parse" in names()
    with pytest.raises(AttributeError, match="module 'xml' has no attribute 'parser'"):
        get("parser")


@pytest.mark.parametrize("package", LAZY)
def test_type_checkers_see_the_same_names(package):
    """The stub beside a lazy `__init__` imports each name, and from where it comes."""
    room = import_module(package)
    stub = ast.parse(Path(room.__file__).with_suffix(".pyi").read_text())
    seen = {}
    for node in stub.body:
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name == alias.asname for alias in node.names)
            seen.update((alias.name, node.module) for alias in node.names)
    assert sorted(seen) == sorted(room.__all__)
    for name, module in seen.items():
        assert getattr(room, name) is getattr(import_module(module), name)
