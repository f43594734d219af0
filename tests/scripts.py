"""The scripts in examples/ and tools/ as modules."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


def load_script(name):
    """A fresh module of examples/NAME.py."""
    return load_file(EXAMPLES / f"{name}.py")


def load_file(path):
    """A fresh module of a file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
