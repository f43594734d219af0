"""The dual ``.nemo``: to NeMo a plain CTC model, to nemo_comat the same model with its COMAT part.

The archive's config and weights are those of the nearest class of NeMo's own, so that any NeMo opens it without this
package. What is ours rides in two further members, which NeMo does not read: ``comat.yaml`` (the class and the
``comat`` block) and ``comat_weights.ckpt`` (the projection, and what a way to compress learns).
"""

import os
import tarfile
import tempfile
from pathlib import Path

import torch
from hydra.utils import get_class
from nemo.core.connectors.save_restore_connector import SaveRestoreConnector
from omegaconf import OmegaConf

COMAT_CONFIG = "comat.yaml"
COMAT_WEIGHTS = "comat_weights.ckpt"
COMAT_PREFIX = "comat."


def nemo_target(target):
    """Import path of the nearest class of NeMo's own among a class's ancestors.

    Args:
        target: import path of a model class.
    Returns:
        str; target itself where it is NeMo's.
    """
    for cls in get_class(target).__mro__:
        if cls.__module__.startswith("nemo."):
            return f"{cls.__module__}.{cls.__name__}"
    raise ValueError(f"{target} descends from no class of NeMo's; it cannot be saved as a .nemo file.")


def class_path(cls):
    """Import path by which files name a class: ours by the public name, which stays when modules are moved.

    Args:
        cls: a model class.
    Returns:
        str.
    """
    home = "nemo_comat" if cls.__module__.startswith("nemo_comat.") else cls.__module__
    return f"{home}.{cls.__name__}"


class ComatSaveRestoreConnector(SaveRestoreConnector):
    """Splits our part off when a model is saved and puts it back when one is restored."""

    def _save_state_dict_to_disk(self, state_dict, filepath):
        folder = Path(filepath).parent
        ours = {key: value for key, value in state_dict.items() if key.startswith(COMAT_PREFIX)}
        theirs = {key: value for key, value in state_dict.items() if key not in ours}
        super()._save_state_dict_to_disk(theirs, filepath)
        # the weights are written last of all members, so the config lies complete beside them
        self._split_config(folder)
        if ours:
            torch.save(ours, folder / COMAT_WEIGHTS)

    @staticmethod
    def _make_nemo_file_from_folder(filename, source_dir):
        if "://" in str(filename):
            return SaveRestoreConnector._make_nemo_file_from_folder(filename, source_dir)
        # beside it first: where the disk is full, the file that was there stays
        partial = Path(f"{filename}.partial")
        try:
            SaveRestoreConnector._make_nemo_file_from_folder(str(partial), source_dir)
            os.replace(partial, filename)
        finally:
            partial.unlink(missing_ok=True)

    def _split_config(self, folder):
        config = OmegaConf.load(folder / self.model_config_yaml)
        block = config.pop("comat", None)
        if block is not None:
            OmegaConf.save(OmegaConf.create({"target": config.target, "comat": block}), folder / COMAT_CONFIG)
        config.target = nemo_target(config.target)
        OmegaConf.save(config, folder / self.model_config_yaml)

    def load_config_and_state_dict(self, calling_cls, restore_path, override_config_path=None, *args, **kwargs):
        """As NeMo's, with the config that `read_config` joins where the caller overrides none."""
        if override_config_path is None:
            override_config_path = self.read_config(restore_path)
        return super().load_config_and_state_dict(calling_cls, restore_path, override_config_path, *args, **kwargs)

    def read_config(self, restore_path):
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

    def _join_config(self, folder):
        config = OmegaConf.load(folder / self.model_config_yaml)
        if (folder / COMAT_CONFIG).exists():
            config = OmegaConf.merge(config, OmegaConf.load(folder / COMAT_CONFIG))
        return config

    def _load_state_dict_from_disk(self, model_weights, map_location="cpu"):
        state_dict = super()._load_state_dict_from_disk(model_weights, map_location=map_location)
        ours = os.path.join(os.path.dirname(model_weights), COMAT_WEIGHTS)
        if os.path.exists(ours):
            state_dict.update(super()._load_state_dict_from_disk(ours, map_location=map_location))
        return state_dict
