"""A model card in the form of the Hugging Face hub's, for the plain CTC model of a ``.nemo`` file. Sends nothing."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo.collections.asr.metrics.wer import word_error_rate
from omegaconf import DictConfig, OmegaConf
from torch import nn

import nemo_comat
from nemo_comat.models.export import ExportError
from nemo_comat.models.manifest import manifest_paths
from nemo_comat.views import describe_steps

if TYPE_CHECKING:
    from huggingface_hub import ModelCard, ModelCardData

Rates = Sequence[tuple[str, float]]

# the other methods' own papers, by the option that stands for them
RELATIVES = {
    "cif": "KT-RL-CIF, [arXiv 2203.03582](https://arxiv.org/abs/2203.03582)",
    "attention": "KT-RL-ATT, [arXiv 2203.03582](https://arxiv.org/abs/2203.03582)",
    "sinkhorn": "optimal transport, [arXiv 2309.13650](https://arxiv.org/abs/2309.13650)",
    "contrastive": "HKD, [arXiv 2301.13003](https://arxiv.org/abs/2301.13003)",
}
BIBTEX = """@article{choi2026comat,
  title   = {Compress, Align, and Transfer: A new method for transferring pre-trained language models
             knowledge to {CTC}-based speech recognition},
  author  = {Choi, Jieun and Kim, Dohee and Chang, Joon-Hyuk},
  journal = {Computer Speech \\& Language},
  volume  = {97},
  pages   = {1--11},
  year    = {2026},
  doi     = {10.1016/j.csl.2025.101900}
}"""


def read_word_error_rate(given: str) -> tuple[str, float]:
    """One word error rate as the user gives it.

    Args:
        given: "NAME: PERCENT", or the path of a JSON file with rows of `reference` and `transcript`, as
            examples/mini_librispeech/score.py writes it; the file's stem is the name.
    Returns:
        (name, percent), such as ("dev", 12.3).
    Raises:
        ExportError: it is neither.
    Examples:
        >>> read_word_error_rate("dev: 12.3 %")
        ('dev', 12.3)
    """
    if Path(given).is_file():
        try:
            rows = json.loads(Path(given).read_text(encoding="utf-8"))
            said, found = [row["reference"] for row in rows], [row["transcript"] for row in rows]
        except (ValueError, TypeError, KeyError):
            raise ExportError(f"{given} is no JSON list of rows with `reference` and `transcript`.") from None
        return Path(given).stem, round(100 * word_error_rate(found, said), 2)
    match = re.fullmatch(r"\s*(.*\S)\s*:\s*(\d+(?:\.\d+)?)\s*%?\s*", given)
    if not match:
        raise ExportError(f"A word error rate is 'NAME: PERCENT', such as 'dev: 12.3', or a file; got {given!r}.")
    return match[1], float(match[2])


def model_card(
    model: Any,
    block: DictConfig | None,
    name: str,
    *,
    wer: Rates = (),
    license: str | None = None,
    language: Sequence[str] = (),
    datasets: Sequence[str] = (),
) -> "ModelCard":
    """Card of a plain CTC model, with the hub's metadata; what is not given or found in the model is not claimed.

    Args:
        model: as `plain_model` gives it.
        block: the ``comat`` block it was trained with, or None.
        name: of the model, and of its .nemo file without the ending.
        wer: pairs of a test set's name and the word error rate in percent.
        license: the hub's name of a licence, such as "apache-2.0", or None.
        language: codes, such as "en".
        datasets: the hub's names of the training data.
    Returns:
        huggingface_hub.ModelCard.
    """
    from huggingface_hub import ModelCard

    metadata = _metadata(model, block, name, wer, license, language, datasets)
    sections = {
        f"# {name}": _method(block),
        "## Model": _facts(model, block),
        "## Training data": _training_data(model.cfg, datasets),
        "## Word error rate": _word_error_rates(wer),
        "## Use": _use(model, name),
        "## Licence": license or "Not given.",
    }
    if block is not None:
        sections["## Citation"] = f"```bibtex\n{BIBTEX}\n```"
    body = "\n\n".join(f"{title}\n\n{text}" for title, text in sections.items())
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}\n")


def _metadata(
    model: Any,
    block: DictConfig | None,
    name: str,
    wer: Rates,
    license: str | None,
    language: Sequence[str],
    datasets: Sequence[str],
) -> "ModelCardData":
    from huggingface_hub import EvalResult, ModelCardData

    task = "automatic-speech-recognition"
    tags = [task, "speech", "audio", "CTC", type(model.encoder).__name__.removesuffix("Encoder"), "NeMo"]
    results = [
        EvalResult(
            task_type=task, dataset_type=of, dataset_name=of, metric_type="wer", metric_name="WER", metric_value=value
        )
        for of, value in wer
    ]
    return ModelCardData(
        language=list(language) or None,
        license=license,
        library_name="nemo",
        pipeline_tag=task,
        tags=tags + (["COMAT"] if block is not None else []),
        datasets=list(datasets) or None,
        metrics=["wer"] if results else None,
        model_name=name if results else None,
        eval_results=results or None,
    )


def _method(block: DictConfig | None) -> str:
    if block is None:
        return "A CTC speech recogniser for [NVIDIA NeMo](https://github.com/NVIDIA/NeMo)."
    steps = describe_steps(block)
    used = (block.compress.method, block.align.method, block.transfer.loss)
    follows = " and ".join(RELATIVES[key] for key in used if key in RELATIVES)
    return (
        "A CTC speech recogniser for [NVIDIA NeMo](https://github.com/NVIDIA/NeMo) whose encoder learnt from a frozen "
        "language model while it trained, after COMAT (Choi, Kim and Chang, "
        "[Computer Speech & Language 97, 2026](https://doi.org/10.1016/j.csl.2025.101900)). "
        f"Frames were compressed ({steps['compress']}), aligned with the language model's tokens of the reference "
        f"({steps['align']}), and trained to tell them ({steps['transfer']}). "
        "The language model has no part in this file: inference is plain CTC, as fast as without."
        + (f"\n\nThe options chosen follow {follows}." if follows else "")
    )


def _facts(model: Any, block: DictConfig | None) -> str:
    encoder = model.cfg.encoder
    size = [f"{encoder[key]} {word}" for key, word in (("n_layers", "layers"), ("d_model", "wide")) if key in encoder]
    rows = {
        "class": f"`{type(model).__name__}` of NeMo {model.cfg.get('nemo_version', '')}".rstrip(),
        "encoder": ", ".join([type(model.encoder).__name__, *size, f"{_millions(model.encoder)} parameters"]),
        "parameters in all": _millions(model),
        "tokenizer": _tokenizer(model),
        "audio": f"{model.cfg.sample_rate} Hz, one channel" if "sample_rate" in model.cfg else "not said in the config",
    }
    if block is not None:
        rows["teacher"] = describe_steps(block)["teacher"]
        rows["weight of its loss"] = f"{block.weight:g}, beside CTC's 1"
        interctc = model.cfg.get("interctc") or {}
        if interctc.get("loss_weights"):
            weights, layers = (", ".join(map(str, interctc[key])) for key in ("loss_weights", "apply_at_layers"))
            rows["InterCTC"] = f"weight {weights} at layer {layers}, counted from 0"
        if block.consistency_weight:
            rows["CR-CTC"] = f"two views of each batch, weight {block.consistency_weight:g}"
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def _millions(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.3g}M"


def _tokenizer(model: Any) -> str:
    if getattr(model, "tokenizer", None) is None:
        return f"{len(model.decoder.vocabulary)} characters"
    kind = type(model.tokenizer).__name__.removesuffix("Tokenizer")
    return f"{kind} (`type: {model.cfg.tokenizer.type}`), {model.tokenizer.vocab_size} tokens"


def _training_data(cfg: DictConfig, datasets: Sequence[str]) -> str:
    names = [Path(path).name for path in manifest_paths(cfg.get("train_ds") or OmegaConf.create())]
    said = [f"Datasets: {', '.join(datasets)}."] if datasets else []
    if names:
        said.append(f"Manifests that the model's config names: {', '.join(f'`{name}`' for name in names)}.")
    return " ".join(said) or "Not given."


def _word_error_rates(wer: Rates) -> str:
    if not wer:
        return "Not measured: none was given when this card was written."
    return "\n".join(
        ["| test set | word error rate, % |", "|---|---|", *(f"| {of} | {value:g} |" for of, value in wer)]
    )


def _use(model: Any, name: str) -> str:
    cls = type(model).__name__
    return f"""With NeMo alone:

```python
from nemo.collections.asr.models import {cls}

model = {cls}.restore_from("{name}.nemo")
print(model.transcribe(["a.wav"])[0].text)
```

With nemo_comat {nemo_comat.__version__}, to train on with COMAT:

```
python examples/speech_to_text_comat.py --config-name=finetune_ctc_comat init_from_nemo_model={name}.nemo …
```"""
