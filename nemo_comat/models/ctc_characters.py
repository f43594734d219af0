"""NeMo's CTC model of characters with COMAT."""

from typing import Any

from nemo.collections.asr.models import EncDecCTCModel

from nemo_comat.models.characters import CharacterTokenizer
from nemo_comat.models.manifest import Reader
from nemo_comat.models.mixin import ComatMixin


class ComatCTCModel(ComatMixin, EncDecCTCModel):
    """NeMo's character model `EncDecCTCModel` trained with COMAT; configured, used, saved and restored as its parent.

    Args:
        cfg: NeMo's model config, with ``labels`` in the place of a ``tokenizer`` block, and a ``comat`` block.
        trainer: Lightning's Trainer, or None.
    Raises:
        ConfigError, TeacherError: as `ComatCTCModelBPE`.
    """

    def _text_tokenizer(self) -> CharacterTokenizer:
        return CharacterTokenizer.of(self.decoding.vocabulary, self._cfg.get("train_ds"))

    def _text_reader(self, dataset: Any) -> Reader:
        tokenizer = CharacterTokenizer.of(dataset.get("labels") or self._cfg.get("labels"), dataset)

        def _read(text: Any, lang: Any = None) -> Any:
            return tokenizer.parse(text)

        return _read
