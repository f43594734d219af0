"""Every way of NeMo's into a dual .nemo and out of it, for each class: all that is ours comes through."""

import copy
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import configs
import pytest
import torch
from nemo.collections.asr.models import ASRModel
from nemo.core.classes import ModelPT
from nemo.core.classes.mixins import hf_io_mixin
from nemo.core.connectors import save_restore_connector
from nemo.core.connectors.save_restore_connector import SaveRestoreConnector
from nemo.utils import logging
from omegaconf import OmegaConf

from nemo_comat import ComatCTCModel, ComatCTCModelBPE, ComatHybridRNNTCTCModelBPE, ComatSaveRestoreConnector
from nemo_comat.models import checkpoint

CLASSES = {
    "bpe": (ComatCTCModelBPE, lambda cfg: cfg),
    "characters": (ComatCTCModel, configs.characters),
    "hybrid": (ComatHybridRNNTCTCModelBPE, configs.hybrid),
}


@pytest.fixture(scope="module", params=CLASSES)
def dual(request, base_cfg, tmp_path_factory):
    """A model of each class, and its file."""
    cls, change = CLASSES[request.param]
    model = cls(cfg=change(copy.deepcopy(base_cfg).model)).eval()
    file = tmp_path_factory.mktemp("dual") / "m.nemo"
    model.save_to(str(file))
    return model, file


@pytest.fixture
def hub(monkeypatch):
    """Call it with what `from_pretrained` is to find: a file, or the folder of an unpacked one."""

    def holds(found):
        monkeypatch.setattr(
            ModelPT,
            "_get_hf_hub_pretrained_model_info",
            classmethod(lambda cls, model_name, refresh_cache=False: (cls, str(found))),
        )

    return holds


def unpacked(file, folder):
    """Folder with the members of a .nemo file."""
    with tarfile.open(file) as tar:
        tar.extractall(folder, filter="data")
    return folder


def is_whole(again, model):
    """Whether a model has class, weights and comat block of another one."""
    ours, theirs = again.state_dict(), model.state_dict()
    return (
        type(again) is type(model)
        and any(key.startswith("comat.") for key in ours)
        and ours.keys() == theirs.keys()
        and all(ours[key].equal(theirs[key]) for key in ours)
        and again.cfg.comat == model.cfg.comat
    )


def restored(cls, file, connector=None, **options):
    return cls.restore_from(str(file), map_location="cpu", save_restore_connector=connector, **options)


# --- ways in ---


def test_from_pretrained(dual, hub, tmp_path):
    model, file = dual
    for found in (file, unpacked(file, tmp_path / "folder")):
        hub(found)
        assert is_whole(type(model).from_pretrained("me/x", map_location="cpu"), model)
        assert type(model).from_pretrained("me/x", return_config=True).comat == model.cfg.comat


def test_a_plain_connector_handed_over(dual, tmp_path):
    model, file = dual
    assert is_whole(restored(type(model), file, SaveRestoreConnector()), model)
    assert restored(type(model), file, SaveRestoreConnector(), return_config=True).comat == model.cfg.comat
    unpacks = SaveRestoreConnector()
    unpacks.model_extracted_dir = str(unpacked(file, tmp_path / "folder"))
    again = restored(type(model), "not looked at", unpacks)
    assert is_whole(again, model)
    # what is saved of it is a dual file again
    again.save_to(str(tmp_path / "again.nemo"))
    assert is_whole(restored(type(model), tmp_path / "again.nemo"), model)
    plain = restored(ASRModel, tmp_path / "again.nemo", strict=True)
    assert type(plain).__module__.startswith("nemo.") and "comat" not in plain.cfg


@pytest.mark.parametrize("key, given", [("init_from_pretrained_model", "me/x"), ("init_from_nemo_model", "FILE")])
def test_starting_from_it(dual, hub, key, given):
    model, file = dual
    hub(file)
    given = given.replace("FILE", str(file))
    name = "name" if "pretrained" in key else "path"
    parts = {
        "a": {name: given, "include": ["encoder", "comat"]},
        "b": {name: given, "exclude": ["encoder", "comat"]},
    }
    for start in (given, parts):
        fresh = type(model)(cfg=copy.deepcopy(model.cfg))
        assert not is_whole(fresh, model)
        fresh.maybe_init_from_pretrained_checkpoint(OmegaConf.create({key: start}))
        assert is_whole(fresh, model)


def test_starting_with_another_teacher_begins_its_part_anew(dual, tmp_path):
    model, file = dual
    torch.save({"state_dict": model.state_dict()}, tmp_path / "m.ckpt")
    cfg = copy.deepcopy(model.cfg)
    cfg.comat.projection.dim = 12  # a teacher's of this width
    for key, given in (("init_from_nemo_model", file), ("init_from_ptl_ckpt", tmp_path / "m.ckpt")):
        fresh = type(model)(cfg=cfg)
        before = copy.deepcopy(fresh.comat.state_dict())
        fresh.maybe_init_from_pretrained_checkpoint(OmegaConf.create({key: str(given)}))
        assert all(fresh.encoder.state_dict()[name].equal(one) for name, one in model.encoder.state_dict().items())
        assert all(fresh.comat.state_dict()[name].equal(one) for name, one in before.items())


class Counting(SaveRestoreConnector):
    """A user's own: scales all weights when it reads, names the config otherwise, and keeps count."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.model_config_yaml = "my_config.yaml"

    def load_config_and_state_dict(self, calling_cls, restore_path, override_config_path=None, *args, **kwargs):
        self.calls.append(override_config_path)
        return super().load_config_and_state_dict(calling_cls, restore_path, override_config_path, *args, **kwargs)

    def modify_state_dict(self, conf, state_dict):
        return {key: 2 * value for key, value in state_dict.items()}

    @staticmethod
    def _make_nemo_file_from_folder(filename, source_dir):
        shutil.make_archive(filename, "tar", source_dir)
        Path(f"{filename}.tar").rename(filename)


def test_a_connector_of_the_users_own_keeps_its_ways(dual, tmp_path):
    model, _ = dual
    model = copy.copy(model)
    model._save_restore_connector = Counting()
    model.save_to(str(tmp_path / "m.nemo"))
    with tarfile.open(tmp_path / "m.nemo") as tar:
        names = {Path(name).name for name in tar.getnames()}
    assert {"my_config.yaml", "model_weights.ckpt", "comat.yaml", "comat_weights.ckpt"} <= names
    assert "model_config.yaml" not in names
    connector = Counting()
    again = restored(type(model), tmp_path / "m.nemo", connector)
    # its method was called with what the caller gave, and the caller's object heard of it
    assert connector.calls == [None] and isinstance(again._save_restore_connector, Counting)
    assert again.cfg.comat == model.cfg.comat
    weights = model.state_dict()
    assert all(value.equal(2 * weights[key]) for key, value in again.state_dict().items())
    # NeMo's own class, with the same connector, gets what it ever got
    plain = restored(ASRModel, tmp_path / "m.nemo", Counting())
    assert type(plain).__module__.startswith("nemo.") and "comat" not in plain.cfg


class Mine(ComatCTCModelBPE):
    """A user's own class; NeMo lets no config name it as its target."""


def test_a_class_of_the_users_own_reads_its_own_file(small_cfg, tmp_path):
    model = Mine(cfg=small_cfg)
    model.save_to(str(tmp_path / "m.nemo"))
    again = restored(Mine, tmp_path / "m.nemo")
    assert is_whole(again, model) and again.cfg.target == model.cfg.target == f"{__name__}.Mine"
    given = model.cfg.copy()
    Mine.restore_from(str(tmp_path / "m.nemo"), map_location="cpu", override_config_path=given)
    assert given == model.cfg  # the caller's own


def test_lost_weights_of_ours_are_told(dual, tmp_path, monkeypatch):
    model, file = dual
    said = []
    monkeypatch.setattr(logging, "warning", lambda message, *args, **kwargs: said.append(message))
    connector = SaveRestoreConnector()
    connector.model_extracted_dir = str(unpacked(file, tmp_path / "folder"))
    restored(type(model), file, connector)
    assert not [message for message in said if "comat" in message and "missing" in message]
    (tmp_path / "folder" / "comat_weights.ckpt").unlink()
    again = restored(type(model), file, connector)
    assert [message for message in said if "comat_weights.ckpt is missing in it" in message]
    assert again.comat is not None and not is_whole(again, model)


# --- ways out ---


def test_weights_are_extracted_whole(dual, tmp_path):
    model, file = dual
    weights = model.state_dict()
    for connector in (None, SaveRestoreConnector(), ComatSaveRestoreConnector()):
        folder = tmp_path / type(connector).__name__
        found = type(model).extract_state_dict_from(str(file), str(folder), save_restore_connector=connector)
        on_disk = torch.load(folder / "model_weights.ckpt")
        for extracted in (found, on_disk):
            assert extracted.keys() == weights.keys() and all(extracted[key].equal(weights[key]) for key in weights)
        assert [path.name for path in folder.iterdir()] == ["model_weights.ckpt"]
    type(model).extract_state_dict_from(str(file), str(tmp_path / "parts"), split_by_module=True)
    part, wanted = torch.load(tmp_path / "parts" / "comat.ckpt"), model.comat.state_dict()
    assert part.keys() == wanted.keys() and all(part[key].equal(wanted[key]) for key in wanted)


@pytest.mark.parametrize("pack", [True, False])
def test_the_hub_gets_everything(dual, hub, tmp_path, monkeypatch, pack):
    model, file = dual

    class Api:
        """Stands for the hub's: what is sent to it is copied to a folder."""

        def __init__(self, **options):
            pass

        def create_repo(self, repo_id, **options):
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, folder_path, **options):
            shutil.copytree(folder_path, tmp_path / "sent")

    monkeypatch.setattr(hf_io_mixin, "HfApi", Api)
    # restored by NeMo's plain connector, as from_pretrained does
    restored(type(model), file, SaveRestoreConnector()).push_to_hf_hub("me/x", pack_nemo_file=pack, model_card="x")
    hub(tmp_path / "sent" / "x.nemo" if pack else tmp_path / "sent")
    assert is_whole(type(model).from_pretrained("me/x", map_location="cpu"), model)
    assert type(ASRModel.from_pretrained("me/x", map_location="cpu")).__module__.startswith("nemo.")


def test_folders_are_never_mixed_or_replaced(dual, tmp_path, monkeypatch):
    model, file = dual
    again = restored(type(model), file)
    with pytest.raises(IsADirectoryError, match=f"{tmp_path} is a folder; give the path of a .nemo file"):
        again.save_to(str(tmp_path))
    # an unpacked plain model is in the folder
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "model_weights.ckpt").write_text("mine")
    again._save_restore_connector.pack_nemo_file = False
    with pytest.raises(FileExistsError, match=r"used holds a model already \(model_weights.ckpt\); save into a folder"):
        again.save_to(str(tmp_path / "used" / "m.nemo"))
    # a process that writes nothing has nothing to refuse
    with monkeypatch.context() as others:
        others.setattr(checkpoint, "is_global_rank_zero", lambda: False)
        others.setattr(save_restore_connector, "is_global_rank_zero", lambda: False)
        again.save_to(str(tmp_path / "used" / "m.nemo"))
    assert [path.read_text() for path in (tmp_path / "used").iterdir()] == ["mine"]
    again.save_to(str(tmp_path / "new" / "m.nemo"))
    connector = SaveRestoreConnector()
    connector.model_extracted_dir = str(tmp_path / "new")
    assert is_whole(restored(type(model), "not looked at", connector), model)


# --- inside another model ---


class Parent(ModelPT):
    """A NeMo model with a recogniser in it, made of its config or read from its file."""

    def __init__(self, cfg, trainer=None):
        super().__init__(cfg=cfg, trainer=trainer)
        cls = CLASSES[cfg.kind][0]
        child = restored(cls, cfg.file) if cfg.get("child") is None else cls(cfg=cfg.child)
        self.register_nemo_submodule("child", "child", child)

    def setup_training_data(self, config):
        """None here."""

    def setup_validation_data(self, config):
        """None here."""

    @classmethod
    def list_available_models(cls):
        """None."""


def test_inside_another_nemo_model(dual, tmp_path, monkeypatch):
    from nemo.core.classes import common

    model, file = dual
    # NeMo asks it of every model class outside its own package
    allowed = [*getattr(common, "ALLOWED_TARGET_PREFIXES", []), f"{__name__}."]
    monkeypatch.setattr(common, "ALLOWED_TARGET_PREFIXES", allowed, raising=False)
    kind = next(kind for kind, (cls, _) in CLASSES.items() if cls is type(model))
    parent = Parent(OmegaConf.create({"kind": kind, "file": str(file), "child": None}))
    assert is_whole(parent.child, model)
    parent.save_to(str(tmp_path / "parent.nemo"))
    again = restored(Parent, tmp_path / "parent.nemo")
    assert is_whole(again.child, model)
    again.child.save_to(str(tmp_path / "child.nemo"))
    assert is_whole(restored(type(model), tmp_path / "child.nemo"), model)
