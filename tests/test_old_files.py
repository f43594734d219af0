"""Files and configs of version 0.1.0, which name the classes by paths of then, still open and say the same."""

import json
import tarfile
from pathlib import Path

import pytest
import torch
from hydra.utils import get_class
from nemo.collections.asr.models import ASRModel, EncDecCTCModelBPE, EncDecHybridRNNTCTCBPEModel
from omegaconf import OmegaConf

import nemo_comat
from nemo_comat import ComatCTCModelBPE, ComatHybridRNNTCTCModelBPE, ComatSaveRestoreConnector

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data"
NEMO, CKPT, YAML = (DATA / f"comat-0.1.0.{ending}" for ending in ("nemo", "ckpt", "yaml"))
HYBRID = DATA / "comat-0.1.0-hybrid.nemo"
SAID, HYBRID_SAID = (json.loads((DATA / f"comat-0.1.0{kind}.json").read_text()) for kind in ("", "-hybrid"))
OLD_TARGET = "nemo_comat.model.ComatCTCModelBPE"


@pytest.fixture
def folder_of_then(tmp_path, monkeypatch):
    """The working folder has the tokenizer where the config says that it is."""
    (tmp_path / "tokenizer").mkdir()
    with tarfile.open(NEMO) as archive:
        for member in archive.getmembers():
            if member.name.endswith(("tokenizer.model", "vocab.txt")):
                file = tmp_path / "tokenizer" / member.name.rsplit("_", 1)[1]
                file.write_bytes(archive.extractfile(member).read())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def says_the_same(model):
    tone = torch.sin(torch.arange(8000) / 5.0)[None]
    with torch.no_grad():
        log_probs, *_ = model.eval().forward(input_signal=tone, input_signal_length=torch.tensor([8000]))
    return log_probs[0, :, 0].tolist() == pytest.approx(SAID["log_probs"], abs=1e-4)


def aligns_the_same(model, said=SAID):
    alignment = model.align_text(str(ROOT / "examples" / "demo_corpus" / said["audio"]), said["text"])
    score = alignment.score.mean(1).tolist()
    same_path = alignment.path.tolist() == said["path"] and alignment.labels == said["labels"]
    return same_path and score == pytest.approx(said["score"], abs=1e-4)


@torch.no_grad()
def both_decoders_say_the_same(model):
    tone = torch.sin(torch.arange(8000) / 5.0)[None]
    encoded, _ = model.eval().forward(input_signal=tone, input_signal_length=torch.tensor([8000]))
    log_probs = model.ctc_decoder(encoder_output=encoded)[0, :, 0].tolist()
    predicted, *_ = model.decoder(targets=torch.tensor([[3, 5]]), target_length=torch.tensor([2]))
    joint = model.joint(encoder_outputs=encoded, decoder_outputs=predicted)[0, 0, :, 0].tolist()
    same_ctc = log_probs == pytest.approx(HYBRID_SAID["log_probs"], abs=1e-4)
    return same_ctc and joint == pytest.approx(HYBRID_SAID["joint"], abs=1e-4)


def test_the_files_are_of_then():
    with tarfile.open(NEMO) as archive:
        config = OmegaConf.load(archive.extractfile("./comat.yaml"))
    checkpoint = torch.load(CKPT, map_location="cpu", weights_only=False)
    targets = [config.target, checkpoint["hyper_parameters"]["cfg"].target, OmegaConf.load(YAML).target]
    assert targets == 3 * [OLD_TARGET]


@pytest.mark.parametrize("cls", [ComatCTCModelBPE, ASRModel])
def test_a_nemo_file_gives_the_same_model(cls):
    connector = ComatSaveRestoreConnector()
    model = cls.restore_from(str(NEMO), map_location="cpu", save_restore_connector=connector)
    assert type(model) is ComatCTCModelBPE
    assert says_the_same(model) and aligns_the_same(model)


def test_nemo_alone_opens_it_too():
    model = ASRModel.restore_from(str(NEMO), map_location="cpu")
    assert type(model) is EncDecCTCModelBPE and says_the_same(model)


def test_a_hybrid_models_file_gives_the_same_model():
    model = ComatHybridRNNTCTCModelBPE.restore_from(str(HYBRID), map_location="cpu")
    assert type(model) is ComatHybridRNNTCTCModelBPE
    assert both_decoders_say_the_same(model) and aligns_the_same(model, HYBRID_SAID)
    plain = ASRModel.restore_from(str(HYBRID), map_location="cpu")
    assert type(plain) is EncDecHybridRNNTCTCBPEModel and both_decoders_say_the_same(plain)


def test_saved_again_it_names_the_class_by_a_path_that_stays(tmp_path):
    model = ComatCTCModelBPE.restore_from(str(NEMO), map_location="cpu")
    model.save_to(str(tmp_path / "again.nemo"))
    with tarfile.open(tmp_path / "again.nemo") as archive:
        assert OmegaConf.load(archive.extractfile("./comat.yaml")).target == "nemo_comat.ComatCTCModelBPE"
    again = ComatCTCModelBPE.restore_from(str(tmp_path / "again.nemo"), map_location="cpu")
    assert says_the_same(again) and aligns_the_same(again)


def test_a_checkpoint_gives_the_same_model(folder_of_then):
    model = ComatCTCModelBPE.load_from_checkpoint(str(CKPT), map_location="cpu")
    assert says_the_same(model) and aligns_the_same(model)


def test_a_config_makes_the_class_that_it_names(folder_of_then, manifest):
    cfg = OmegaConf.load(YAML)
    for dataset in (cfg.train_ds, cfg.validation_ds):
        dataset.manifest_filepath = manifest
    model = ASRModel.from_config_dict(cfg)
    assert type(model) is ComatCTCModelBPE and model.cfg.comat.weight == cfg.comat.weight > 0


@pytest.mark.parametrize("name", [name for name in nemo_comat.__all__ if name.startswith(("ComatCTC", "ComatHybrid"))])
@pytest.mark.parametrize("home", ["nemo_comat", "nemo_comat.model"])
def test_paths_of_then_and_of_now_are_one_class(home, name):
    assert get_class(f"{home}.{name}") is getattr(nemo_comat, name)
