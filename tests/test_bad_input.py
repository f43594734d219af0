"""Bad data and bad files: a clear error or a counted row, never a NaN in the weights nor a file outside its folder.

More of them is where its subject is: an empty transcript and texts beyond the teacher's length in test_mixin.py, bad
manifests in test_manifest.py, teachers with missing files in test_language_model.py, unknown keys and methods in
test_config.py and test_comat.py, and whatever hypothesis finds in test_fuzz.py.
"""

import io
import json
import os
import pickle
import resource
import tarfile

import nemo
import numpy as np
import pytest
import soundfile
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from omegaconf import OmegaConf
from test_mixin import train

from nemo_comat import ComatCTCModelBPE, ComatSaveRestoreConnector
from nemo_comat.models.manifest import ManifestError

# --- data ---


def with_rows(cfg, folder, rows):
    (folder / "bad.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg.train_ds.update(manifest_filepath=str(folder / "bad.json"), min_duration=0.0)
    return cfg


def good_rows(manifest, count=7):
    return [json.loads(line) for line in open(manifest).read().splitlines()[:count]]


def spoken(folder, row, change):
    """The row with its samples changed, as a float wav, which may hold anything."""
    samples, rate = soundfile.read(row["audio_filepath"], dtype="float32")
    samples = change(samples)
    soundfile.write(folder / "bad.wav", samples, rate, subtype="FLOAT")
    return {**row, "audio_filepath": str(folder / "bad.wav"), "duration": len(samples) / rate}


def with_sample(value):
    def change(samples):
        samples[1000] = value
        return samples

    return change


def said(text):
    return lambda folder, row: {**row, "text": text}


def heard(change):
    return lambda folder, row: spoken(folder, row, change)


# what is done to the eighth row; whether it still takes part in the transfer loss, and is counted as bad audio
BAD_ROWS = {
    "empty transcript": (said(""), False, False),
    "unknown characters only": (said("漢字 仮名"), True, False),
    "more text than frames": (said("the boat " * 100), False, False),
    "0.01 s": (heard(lambda samples: samples[:160]), False, False),
    "no sample": (heard(lambda samples: samples[:0]), False, False),
    "zeros": (heard(np.zeros_like), True, False),
    "NaN": (heard(with_sample(np.nan)), False, True),
    "infinity": (heard(with_sample(-np.inf)), False, True),
    "a square that overflows": (heard(with_sample(1e30)), False, True),
}


def assert_finite(model):
    # buffers too: the statistics of batch norm
    assert all(x.isfinite().all() for x in model.state_dict().values())


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_harms_no_other(small_cfg, manifest, tmp_path, name):
    change, active, bad_audio = BAD_ROWS[name]
    rows = good_rows(manifest)
    model, logged = train(ComatCTCModelBPE, with_rows(small_cfg, tmp_path, [*rows, change(tmp_path, rows[0])]), steps=2)
    assert_finite(model)
    assert [step["train_active_fraction"] for step in logged] == [1.0 if active else 7 / 8] * 2
    assert [step["train_bad_audio"] for step in logged] == [float(bad_audio)] * 2
    assert all(0 < step["train_loss"] < 1000 for step in logged)


@pytest.mark.parametrize(
    "block", [{"consistency_weight": 0.2}, {"feedback": "ctc", "encoder_layer": 0}], ids=["two views", "feedback"]
)
def test_bad_audio_harms_no_other_without_a_teacher_either(small_cfg, manifest, tmp_path, block):
    small_cfg.comat.update(weight=0, **block)
    rows = good_rows(manifest)
    cfg = with_rows(small_cfg, tmp_path, [*rows, BAD_ROWS["NaN"][0](tmp_path, rows[0])])
    model, logged = train(ComatCTCModelBPE, cfg, steps=1)
    assert_finite(model)
    assert logged[0]["train_bad_audio"] == 1 and 0 < logged[0]["train_loss"] < 1000


@pytest.mark.parametrize("name", ["empty transcript", "more text than frames", "NaN"])
@pytest.mark.parametrize("reduction", ["mean_batch", "mean_volume"])
def test_a_batch_of_which_nothing_is_left(small_cfg, manifest, tmp_path, name, reduction):
    bad = BAD_ROWS[name][0](tmp_path, good_rows(manifest)[0])
    # mean_volume divides by the number of labels, which is 0 here: NeMo's loss is no number
    small_cfg.update(ctc_reduction=reduction, skip_nan_grad=reduction == "mean_volume")
    model, logged = train(ComatCTCModelBPE, with_rows(small_cfg, tmp_path, [bad]), steps=2)
    assert_finite(model)
    assert all(step["train_active_fraction"] == 0 and step["train_transfer_loss"] == 0 for step in logged)


def test_one_utterance_alone(small_cfg, manifest, tmp_path):
    model, logged = train(ComatCTCModelBPE, with_rows(small_cfg, tmp_path, good_rows(manifest, 1)), steps=2)
    assert_finite(model)
    assert [step["train_active_fraction"] for step in logged] == [1, 1]


def test_one_utterance_too_short_for_batch_norm_is_an_error_and_left_out_by_min_duration(small_cfg, manifest, tmp_path):
    short = BAD_ROWS["0.01 s"][0](tmp_path, good_rows(manifest)[0])
    cfg = with_rows(small_cfg, tmp_path, [short])
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        train(ComatCTCModelBPE, cfg, steps=1)
    cfg = with_rows(small_cfg, tmp_path, [*good_rows(manifest, 1), short])
    cfg.train_ds.min_duration = 0.1
    assert len(ComatCTCModelBPE(cfg=cfg).train_dataloader().dataset) == 1


@pytest.mark.parametrize("use_lhotse", [False, True])
def test_a_corrupt_audio_file_is_named(small_cfg, manifest, tmp_path, use_lhotse):
    (tmp_path / "corrupt.wav").write_bytes(b"no audio")
    bad = {**good_rows(manifest)[0], "audio_filepath": str(tmp_path / "corrupt.wav")}
    cfg = with_rows(small_cfg, tmp_path, [*good_rows(manifest), bad])
    cfg.train_ds.update(use_lhotse=use_lhotse, batch_size=8)
    # NeMo 2.7 names it in its log, and asks ffmpeg, which may be absent
    named = "corrupt.wav|ffprobe" if nemo.__version__ < "3" else "corrupt.wav"
    with pytest.raises(Exception, match=named):
        next(iter(ComatCTCModelBPE(cfg=cfg).train_dataloader()))


# what is done to the eighth row of a manifest that NeMo's reader then refuses; what is said
REFUSED = {
    "text null": ({"text": None}, "bad.json line 8 has a text that the tokenizer cannot read, null"),
    "text a list": ({"text": ["a"]}, "bad.json line 8 has a text that the tokenizer cannot read"),
    "duration a string": ({"duration": "1"}, "bad.json line 8 has duration"),
    "text_filepath gone": ({"text_filepath": "gone.txt"}, "bad.json line 8 names a text_filepath that cannot be read"),
}


def refused(cls, cfg, folder, rows, name, block="train_ds"):
    """Builds a model on data that NeMo refuses; the sentence that comes of it."""
    change, message = REFUSED[name]
    bad = {**{key: value for key, value in rows[0].items() if key != "text" or "text_filepath" not in change}, **change}
    (folder / "bad.json").write_text("".join(json.dumps(row) + "\n" for row in [*rows[:7], bad]))
    cfg[block] = {**cfg.train_ds, "manifest_filepath": str(folder / "bad.json")}
    with pytest.raises(ManifestError, match=message) as error:
        cls(cfg=cfg)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", REFUSED)
def test_a_manifest_that_nemo_refuses_is_explained(small_cfg, manifest, tmp_path, name):
    refused(ComatCTCModelBPE, small_cfg, tmp_path, good_rows(manifest), name)


@pytest.mark.parametrize("block", ["validation_ds", "test_ds"])
def test_so_are_those_of_validation_and_test(small_cfg, manifest, tmp_path, block):
    refused(ComatCTCModelBPE, small_cfg, tmp_path, good_rows(manifest), "text null", block)


@pytest.mark.parametrize("block", ["train_ds", "validation_ds"])
def test_data_of_which_no_row_is_left(small_cfg, manifest, tmp_path, block):
    small_cfg[block].max_duration = 0.2
    with pytest.raises(ManifestError, match=rf"model\.{block} has no rows left of 16: 16 longer than max_duration=0.2"):
        ComatCTCModelBPE(cfg=small_cfg)


def test_what_is_no_fault_of_a_manifest_stays_nemos_error(small_cfg):
    small_cfg.train_ds.augmentor = {"no_such_perturbation": {"prob": 1.0}}
    with pytest.raises(KeyError, match="Invalid perturbation name"):
        ComatCTCModelBPE(cfg=small_cfg)


def test_nemos_skip_nan_grad_works_here_too(small_cfg, monkeypatch):
    small_cfg.skip_nan_grad = True
    before = ComatCTCModelBPE.on_after_backward

    def poisoned(model):
        next(model.encoder.parameters()).grad.fill_(torch.nan)
        before(model)

    monkeypatch.setattr(ComatCTCModelBPE, "on_after_backward", poisoned)
    model, _ = train(ComatCTCModelBPE, small_cfg, steps=2)
    assert_finite(model)


# --- files ---


class Evil:
    """Pickled, it is a command that makes a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.fixture(scope="module")
def saved(manifest, tmp_path_factory):
    """An archive with the members that matter, as (folder, .nemo)."""
    folder = tmp_path_factory.mktemp("saved") / "in"
    folder.mkdir()
    (folder / "model_config.yaml").write_text("target: nemo.x.Y\nsample_rate: 16000\n")
    (folder / "comat.yaml").write_text("target: nemo_comat.ComatCTCModelBPE\ncomat: {weight: 0.3}\n")
    for name in ("model_weights.ckpt", "comat_weights.ckpt"):
        torch.save({name: torch.ones(2**16)}, folder / name)
    file = folder.parent / "m.nemo"
    ComatSaveRestoreConnector()._make_nemo_file_from_folder(str(file), str(folder))
    return folder, file


@pytest.mark.parametrize("share", [0, 0.01, 0.4, 0.7, 0.98])
def test_a_file_cut_short_is_named(saved, tmp_path, share):
    content = saved[1].read_bytes()
    (tmp_path / "cut.nemo").write_bytes(content[: int(share * len(content))])
    with pytest.raises(tarfile.ReadError, match=r"cut.nemo is no whole .nemo file .*; copy or download it again"):
        ComatSaveRestoreConnector().read_config(tmp_path / "cut.nemo")


@pytest.mark.parametrize("name", ["../out.yaml", "deep/../../out.yaml", "{}/out.yaml", "link"])
def test_nothing_is_written_outside(saved, tmp_path, name):
    bad = tarfile.TarInfo(name.format(tmp_path))
    if name == "link":
        (tmp_path / "secret").write_text("comat: {weight: 7}")
        bad.name, bad.type, bad.linkname = "./comat.yaml", tarfile.SYMTYPE, str(tmp_path / "secret")
    with tarfile.open(saved[1]) as source, tarfile.open(tmp_path / "bad.nemo", "w") as target:
        for member in source:
            if member.name != bad.name:
                target.addfile(member, source.extractfile(member) if member.isfile() else None)
        bad.size = 0 if name == "link" else 4
        target.addfile(bad, io.BytesIO(b"a: 1"))
    (tmp_path / "inner").mkdir()
    connector = ComatSaveRestoreConnector()
    connector._unpack_nemo_file(str(tmp_path / "bad.nemo"), str(tmp_path / "inner"))
    assert {path.name for path in tmp_path.iterdir()} <= {"bad.nemo", "inner", "secret"}
    assert not list(tmp_path.rglob("out.yaml")) and not any(path.is_symlink() for path in tmp_path.rglob("*"))
    config = connector.read_config(tmp_path / "bad.nemo")
    assert config.sample_rate == 16000 and OmegaConf.select(config, "comat.weight") != 7


@pytest.mark.parametrize("member", ["model_weights.ckpt", "comat_weights.ckpt"])
@pytest.mark.parametrize("raw", [False, True])
def test_pickled_code_is_not_run(saved, tmp_path, member, raw):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("model_weights.ckpt", "comat_weights.ckpt"):
        (folder / name).write_bytes((saved[0] / name).read_bytes())
    content = {"x": Evil(tmp_path / "ran")}
    (folder / member).write_bytes(pickle.dumps(content)) if raw else torch.save(content, folder / member)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        ComatSaveRestoreConnector()._load_state_dict_from_disk(str(folder / "model_weights.ckpt"))
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def small_disk():
    """Files end at 100 kB here, as on a disk that is full: a write beyond is an OSError."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_last_good_nemo_file(saved, tmp_path, small_disk):
    file, connector = tmp_path / "m.nemo", ComatSaveRestoreConnector()
    connector._make_nemo_file_from_folder(str(file), str(saved[0]))
    before = file.read_bytes()
    small_disk()
    with pytest.raises(OSError, match="File too large"):
        connector._make_nemo_file_from_folder(str(file), str(saved[0]))
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


def test_a_full_disk_leaves_lightnings_last_good_checkpoint(tmp_path, small_disk):
    file = tmp_path / "last.ckpt"
    TorchCheckpointIO().save_checkpoint({"x": torch.ones(2**16)}, file)
    small_disk()
    with pytest.raises(OSError, match="File too large"):
        TorchCheckpointIO().save_checkpoint({"x": torch.zeros(2**16)}, file)
    assert torch.load(file)["x"].eq(1).all()
