"""What a run is to be: an arm's whole config, and whether a folder holds a run of other settings. Imports no NeMo.

Every script that trains asks here, and so does run.py before it starts any of them.
"""

import argparse
import hashlib
import json
import re
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import OmegaConf
from records import checkpoint_of, json_lines

import nemo_comat

# what the recipe writes for the encoder's middle
LAYER = re.compile(r"\bLAYER\b")
HERE = Path(__file__).resolve().parent
RECIPE = OmegaConf.load(HERE / "recipe.yaml")
# 1,000 times a seed, and an epoch, is what random numbers are drawn from; NumPy takes 32 bits
MOST_SEED = 4_000_000
# where the data lie, by block of the model
PLACES = {"train_ds": "manifest_filepath", "validation_ds": "manifest_filepath", "tokenizer": "dir"}


def given_seed(text):
    """The seed that an option names.

    Raises:
        ArgumentTypeError: it is none that each epoch can have a seed of its own from.
    """
    if not text.isdecimal() or int(text) > MOST_SEED:
        raise argparse.ArgumentTypeError(f"a seed is a whole number from 0 to {MOST_SEED:,}, got {text!r}")
    return int(text)


def run_name(text):
    """The name that an option gives to a run: that of a folder.

    Raises:
        ArgumentTypeError: it is none, or a path, where report.py would not look.
    """
    if Path(text).name != text or text == "..":
        raise argparse.ArgumentTypeError(f"a run's name is that of a folder in OUT, without a /; got {text!r}")
    return text


def run_folder(out, name, seed):
    """Where a run is; its parent has all seeds."""
    return out / name / f"seed{seed}"


def quoted(places):
    """Overrides that set paths: {"a=/b (c)": "a='/b (c)'"}, as run.json has them, and as Hydra takes any sign in them.

    Args:
        places: {key: path}.
    """
    signs = {key: QuotedString(str(path), Quote.single).with_quotes() for key, path in places.items()}
    return {f"{key}={path}": f"{key}={signs[key]}" for key, path in places.items()}


def arm_config(arm, data, folder, scale, extra=(), start=None):
    """The arm's whole config.

    Args:
        arm: a name of recipe.yaml's arms. data, folder: paths. scale: a name of its scales. extra: overrides.
        start: path of a .nemo file whose weights are begun with, or None.
    Returns:
        DictConfig as examples/speech_to_text_comat.py gets it, and the list of all overrides.
    """
    data, parts = data.resolve(), RECIPE.arms[arm]
    places = quoted(
        {
            "model.train_ds.manifest_filepath": data / "train.json",
            "model.validation_ds.manifest_filepath": data / "dev.json",
            "model.tokenizer.dir": data / "tokenizer",
            # a folder of its own: exp_manager moves the files that it finds there when it resumes
            "+exp_manager.explicit_log_dir": folder.resolve() / "nemo",
        }
    )
    begun = quoted({"++init_from_nemo_model": start.resolve()} if start is not None else {})
    overrides = [*RECIPE.shared, *RECIPE.scales[scale], *parts.overrides, *places, *extra, *begun]
    places |= begun
    with initialize_config_dir(str(HERE.parents[1] / "conf"), version_base=None):
        config = parts.get("config", "conformer_ctc_comat")
        layers = compose(config, [places.get(o, o) for o in overrides if o in places or not LAYER.search(o)])
        middle = str((layers.model.encoder.n_layers - 1) // 2)
        overrides = [o if o in places else LAYER.sub(middle, o) for o in overrides]
        cfg = compose(config, [places.get(o, o) for o in overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    cfg = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    OmegaConf.set_struct(cfg, True)
    return cfg, overrides


def settings(arm, seed, data, folder, scale, extra=(), start=None):
    """The config of a run, and what run.json says of its settings.

    Args:
        arm, data, folder, scale, extra: as in `arm_config`. seed: int.
        start: folder of a finished run's seeds, whose weights are begun with, or None.
    Raises:
        FileNotFoundError: there is no finished run in start.
    """
    checkpoint = checkpoint_of(start / f"seed{seed}") if start is not None else None
    cfg, overrides = arm_config(arm, data, folder, scale, extra, checkpoint)
    return cfg, {
        "arm": arm,
        "seed": seed,
        "overrides": [o for o in overrides if "manifest_filepath" not in o and "explicit_log_dir" not in o],
        "model": OmegaConf.to_container(cfg.model, resolve=True),
        "data": digests(data),
        **({} if checkpoint is None else {"start": digest(checkpoint.read_bytes())}),
    }


def digest(content):
    """Sixteen letters that tell bytes from others."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def digests(data):
    """What tells the data of a folder that prepare.py wrote from others', wherever they lie: a digest by file name."""
    found = {}
    for name in ("train.json", "dev.json"):
        rows = json_lines((data / name).read_text(encoding="utf-8")) if (data / name).is_file() else []
        rows = [{key: value for key, value in row.items() if key != "audio_filepath"} for row in rows]
        found[name] = json.dumps(rows).encode()
    tokenizer = data / "tokenizer" / "tokenizer.model"
    found[tokenizer.name] = tokenizer.read_bytes() if tokenizer.is_file() else b""
    return {name: digest(content) for name, content in found.items()}


def recorded(folder, asked):
    """What run.json says of the run in a folder; an empty dict where it has none.

    Args:
        folder: path. asked: of `settings`.
    Raises:
        ConfigError: the folder holds a run of other settings, or on other data.
    """
    file = folder / "run.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    # runs of before recorded fewer digests
    known = {key: asked.get(key) if key in before else None for key in ("data", "start")}
    if before and _compared(before) != _compared(asked | known):
        # imports PyTorch, which whoever only compares can do without
        raise nemo_comat.ConfigError(
            f"{folder} holds a run of other settings, or on other data; give another --name or --out, or remove it."
        )
    return before


def _compared(run):
    """What two runs of the same settings have in common; where files lie is none of it if digests tell them."""
    data, start, model, overrides = (run.get(key) for key in ("data", "start", "model", "overrides"))
    if start:
        overrides = [o for o in overrides if not o.startswith("++init_from_nemo_model=")]
    if data:
        model = dict(model)
        for block, place in PLACES.items():
            model[block] = {key: value for key, value in model[block].items() if key != place}
        overrides = [o for o in overrides if not o.startswith("model.tokenizer.dir=")]
    return data, start, model, overrides
