"""Data of a model with COMAT: read by NeMo, and where it cannot, the line of the manifest that is why."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nemo.collections.common.data.lhotse.cutset import IncompleteConfigError
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import IterableDataset

from nemo_comat.config import ConfigError
from nemo_comat.models.host import Host
from nemo_comat.models.manifest import Reader, check_dataset, is_empty, text_reader
from nemo_comat.models.reference import name_samples

# NeMo's blocks of data, and where its models keep their loaders
LOADERS = {"train_ds": "_train_dl", "validation_ds": "_validation_dl", "test_ds": "_test_dl"}


class DataMixin(Host):
    """The part of `ComatMixin` that sets up data."""

    _cfg: DictConfig

    def setup_training_data(self, train_data_config: Any) -> None:
        """As NeMo's; where the teacher reads the manifest's texts, training batches say which samples they hold."""
        if self.consistency_weight and (train_data_config or {}).get("use_dali"):
            raise ConfigError(
                "model.comat.consistency_weight doubles the rows of a batch, which DALI's batches do not allow; give "
                "model.train_ds.use_dali=false, or model.comat.consistency_weight=0."
            )
        with self._explained(train_data_config, "model.train_ds"):
            super().setup_training_data(train_data_config)
        if self._reads_manifest and self._train_dl is not None:
            name_samples(self._train_dl)

    def setup_validation_data(self, val_data_config: Any) -> None:
        """As NeMo's; raises ManifestError where a manifest cannot be read, or has no rows left."""
        with self._explained(val_data_config, "model.validation_ds"):
            super().setup_validation_data(val_data_config)

    def setup_test_data(self, test_data_config: Any) -> None:
        """As `setup_validation_data`."""
        with self._explained(test_data_config, "model.test_ds"):
            super().setup_test_data(test_data_config)

    @contextmanager
    def _explained(self, dataset: Any, name: str) -> Iterator[None]:
        """Lets NeMo read a block's data; where it fails, or finds no row, says which line of which manifest is why."""
        try:
            yield
        except Exception as error:  # of NeMo's readers and of tokenizers
            self._check_data(dataset, name)
            if name == "model.train_ds" and self._lacks_batches():
                raise ConfigError(
                    f"{name} does not tell how many samples an epoch has; give ++trainer.limit_train_batches=BATCHES."
                ) from error
            # by assertions NeMo refuses blocks that lack a key
            if isinstance(error, (IncompleteConfigError, AssertionError)) and str(error):
                raise ConfigError(f"{name}: {' '.join(str(error).split()).rstrip('.')}.") from error
            raise
        if is_empty(getattr(self, LOADERS[name.removeprefix("model.")])):
            self._check_data(dataset, name)

    def _lacks_batches(self) -> bool:
        """Whether NeMo has a training loader, of which it cannot compute how many batches an epoch has."""
        dataset = getattr(self._train_dl, "dataset", None)
        limit = getattr(self._trainer, "limit_train_batches", None)
        return isinstance(dataset, IterableDataset) and not hasattr(dataset, "__len__") and isinstance(limit, float)

    def _check_data(self, dataset: Any, name: str) -> None:
        dataset = dataset if isinstance(dataset, DictConfig) else OmegaConf.create(dataset)
        check_dataset(dataset, name, self._text_reader(dataset))

    def _text_reader(self, dataset: Any) -> Reader:
        return text_reader(self.tokenizer)

    def _setup_transcribe_dataloader(self, config: Any) -> Any:
        """As NeMo's, which looks into ``validation_ds`` even where a config has no such block."""
        cfg = self._cfg
        if cfg.get("validation_ds") is None:
            options: Any = OmegaConf.to_container(cfg)
            self._cfg = OmegaConf.create({**options, "validation_ds": {}})
        try:
            return super()._setup_transcribe_dataloader(config)
        finally:
            self._cfg = cfg
