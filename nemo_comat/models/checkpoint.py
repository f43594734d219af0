"""The dual ``.nemo``: to NeMo a plain CTC model, to nemo_comat the same model with its COMAT part.

The archive's config and weights are those of the nearest class of NeMo's own, so that any NeMo opens it without this
package. What is ours rides in two further members, which NeMo does not read: ``comat.yaml`` (the class and the
``comat`` block) and ``comat_weights.ckpt`` (the projection, and what a way to compress learns).
"""

import os
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from nemo.core.connectors.save_restore_connector import SaveRestoreConnector
from nemo.utils import logging
from nemo.utils.get_rank import is_global_rank_zero
from omegaconf import DictConfig, OmegaConf

from nemo_comat.output import written_beside

COMAT_CONFIG = "comat.yaml"
COMAT_WEIGHTS = "comat_weights.ckpt"
COMAT_PREFIX = "comat."


def nemo_target(model: type[Any]) -> str:
    """Import path of the nearest class of NeMo's own among a class's ancestors.

    Args:
        model: a model class.
    Returns:
        str; the path of the class itself where it is NeMo's.
    Examples:
        >>> from nemo_comat import ComatCTCModelBPE
        >>> nemo_target(ComatCTCModelBPE)
        'nemo.collections.asr.models.ctc_bpe_models.EncDecCTCModelBPE'
    """
    for cls in model.__mro__:
        if cls.__module__.startswith("nemo."):
            return f"{cls.__module__}.{cls.__name__}"
    raise ValueError(f"{model.__name__} descends from no class of NeMo's; it cannot be saved as a .nemo file.")


def with_comat(connector: SaveRestoreConnector | None) -> "ComatSaveRestoreConnector":
    """The connector that a caller hands over, made to heed our part of a ``.nemo`` file.

    NeMo hands its plain one over in `from_pretrained`, so that a plain one cannot mean that our part is unwanted.

    Args:
        connector: a `SaveRestoreConnector` of any class, or None.
    Returns:
        connector itself where its class is ours already; else one that shares its attributes, of a class that acts as
        though connector's own class had been derived from `ComatSaveRestoreConnector`.
    Examples:
        >>> type(with_comat(SaveRestoreConnector())).__name__
        'ComatSaveRestoreConnector'
    """
    if connector is None:
        return ComatSaveRestoreConnector()
    if isinstance(connector, ComatSaveRestoreConnector):
        return connector
    own = type(connector)
    joined = ComatSaveRestoreConnector
    if own is not SaveRestoreConnector:
        made = type(own.__name__, (own, ComatSaveRestoreConnector), {"__module__": own.__module__})
        joined = cast(type[ComatSaveRestoreConnector], made)
    shared = joined.__new__(joined)
    # the caller goes on setting and reading attributes of the one that was handed over
    shared.__dict__ = connector.__dict__
    return shared


def class_path(cls: type[Any]) -> str:
    """Import path by which files name a class: ours by the public name, which stays when modules are moved.

    Args:
        cls: a model class.
    Returns:
        str.
    Examples:
        >>> class_path(ComatSaveRestoreConnector), class_path(SaveRestoreConnector).startswith("nemo.core.")
        ('nemo_comat.ComatSaveRestoreConnector', True)
    """
    home = "nemo_comat" if cls.__module__.startswith("nemo_comat.") else cls.__module__
    return f"{home}.{cls.__name__}"


class ComatSaveRestoreConnector(SaveRestoreConnector):
    """Splits our part off when a model is saved and puts it back when one is restored."""

    # class of the model that is being saved
    _saving: type[Any] | None = None

    def save_to(self, model: Any, save_path: str) -> Any:
        """As NeMo's; what is ours goes into members of its own.

        Raises:
            IsADirectoryError: save_path is a folder.
            FileExistsError: the model is to be saved unpacked, into a folder that holds one already.
        """
        # the first process alone writes, and another may come later
        writes = is_global_rank_zero()
        if writes and self.pack_nemo_file and os.path.isdir(save_path):
            raise IsADirectoryError(f"{save_path} is a folder; give the path of a .nemo file.")
        if writes and not self.pack_nemo_file:
            self._refuse_used_folder(Path(save_path).parent)
        self._saving = type(model)
        try:
            return super().save_to(model, save_path)
        finally:
            self._saving = None

    def _refuse_used_folder(self, folder: Path) -> None:
        # NeMo would stop at the first such member and leave the two models mixed
        for name in (self.model_config_yaml, self.model_weights_ckpt, COMAT_CONFIG, COMAT_WEIGHTS):
            if (folder / name).exists():
                raise FileExistsError(f"{folder} holds a model already ({name}); save into a folder of its own.")

    def _save_state_dict_to_disk(self, state_dict: Mapping[str, Any], filepath: str) -> None:
        if not self._saving:  # extract_state_dict_from writes weights alone, and wants them whole
            super()._save_state_dict_to_disk(state_dict, filepath)
            return
        folder = Path(filepath).parent
        ours = {key: value for key, value in state_dict.items() if key.startswith(COMAT_PREFIX)}
        theirs = {key: value for key, value in state_dict.items() if key not in ours}
        super()._save_state_dict_to_disk(theirs, filepath)
        # the weights are written last of all members, so the config lies complete beside them
        self._split_config(folder, self._saving)
        if ours:
            torch.save(ours, folder / COMAT_WEIGHTS)

    def _make_nemo_file_from_folder(self, filename: str, source_dir: str) -> None:
        if "://" in str(filename):
            super()._make_nemo_file_from_folder(filename, source_dir)
            return
        # where the disk is full, the file that was there stays
        with written_beside(filename) as partial:
            super()._make_nemo_file_from_folder(str(partial), source_dir)

    def _split_config(self, folder: Path, model: type[Any]) -> None:
        config: Any = OmegaConf.load(folder / self.model_config_yaml)
        block = config.pop("comat", None)
        if block is not None:
            OmegaConf.save(OmegaConf.create({"target": config.target, "comat": block}), folder / COMAT_CONFIG)
        if block is None or not block.get("feedback"):
            # with feedback it is no model of NeMo's, and must not be opened as one
            config.target = nemo_target(model)
        OmegaConf.save(config, folder / self.model_config_yaml)

    def restore_from(self, calling_cls: type[Any], *args: Any, **kwargs: Any) -> Any:
        """As NeMo's; where it fails, the next model of this process is not taken for one that is being restored."""
        try:
            return super().restore_from(calling_cls, *args, **kwargs)
        except BaseException:
            # else it would set up no data
            calling_cls._set_model_restore_state(is_being_restored=False)
            raise

    def load_config_and_state_dict(
        self, calling_cls: type[Any], restore_path: str, override_config_path: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As NeMo's, with the config that `read_config` joins where the caller overrides none."""
        if override_config_path is None:
            override_config_path = self.read_config(restore_path)
        # NeMo makes the calling class where it descends from the target, and refuses targets that are not NeMo's or
        # ours; so a class of the user's own needs no leave to read its own files
        if isinstance(override_config_path, DictConfig):
            if override_config_path.get("target") == f"{calling_cls.__module__}.{calling_cls.__name__}":
                override_config_path = override_config_path.copy()
                override_config_path.target = nemo_target(calling_cls)
        return super().load_config_and_state_dict(calling_cls, restore_path, override_config_path, *args, **kwargs)

    def read_config(self, restore_path: str) -> DictConfig:
        """The config of a ``.nemo`` file or an extracted folder, our block and class included where it has them.

        Args:
            restore_path: path of the file; ignored where `model_extracted_dir` is set.
        Returns:
            DictConfig.
        Raises:
            tarfile.ReadError: the file is cut short, or no archive.
        """
        if self.model_extracted_dir:
            return self._join_config(Path(self.model_extracted_dir))
        with tempfile.TemporaryDirectory() as folder:
            try:
                members = self._filtered_tar_info(restore_path, filter_fn=lambda name: ".yaml" in name)
                self._unpack_nemo_file(path2file=restore_path, out_folder=folder, members=members)
            except tarfile.ReadError as error:
                raise tarfile.ReadError(
                    f"{restore_path} is no whole .nemo file ({error}); copy or download it again."
                ) from error
            return self._join_config(Path(folder))

    def _join_config(self, folder: Path) -> DictConfig:
        config: Any = OmegaConf.load(folder / self.model_config_yaml)
        if (folder / COMAT_CONFIG).exists():
            config = OmegaConf.merge(config, OmegaConf.load(folder / COMAT_CONFIG))
        return config

    def _load_state_dict_from_disk(self, model_weights: str, map_location: Any = "cpu") -> dict[str, Any]:
        state_dict = super()._load_state_dict_from_disk(model_weights, map_location=map_location)
        ours = os.path.join(os.path.dirname(model_weights), COMAT_WEIGHTS)
        if not os.path.exists(ours):
            _warn_of_lost_weights(os.path.dirname(model_weights))
        else:
            state_dict.update(super()._load_state_dict_from_disk(ours, map_location=map_location))
        return state_dict


def _warn_of_lost_weights(folder: str) -> None:
    config = Path(folder, COMAT_CONFIG)
    joined: Any = OmegaConf.load(config) if config.exists() else {}
    block = joined.get("comat")
    if block is not None and block.get("weight") != 0:
        logging.warning(
            f"This .nemo file has a comat block ({COMAT_CONFIG}), but {COMAT_WEIGHTS} is missing in it: the COMAT part "
            "keeps the random values that it begins with; copy the file again if it is to be trained on."
        )
