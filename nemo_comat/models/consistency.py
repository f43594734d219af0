"""Two views of each batch, which are to be heard alike: consistency-regularised CTC."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from nemo.utils import logging
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from nemo_comat.config import ConfigError
from nemo_comat.models.captured import captured
from nemo_comat.models.host import Host
from nemo_comat.transfer import consistency_loss, reduce_rows


class ConsistencyMixin(Host):
    """The part of `ComatMixin` that trains on two views of each batch; the key is `comat.consistency_weight`.

    A batch's rows are doubled before NeMo's step. SpecAugment and dropout draw for each row, which makes the two views.
    """

    _views_are_unseen = True

    @property
    def consistency_weight(self) -> float:
        """Weight of the consistency loss; 0 where there is one view of a batch."""
        block = self._cfg.get("comat")
        return 0.0 if block is None else block.consistency_weight

    def training_step(self, batch: Any, batch_nb: int) -> Any:
        """NeMo's step, on two views of the batch, plus the weighted consistency loss."""
        weight = self.consistency_weight
        if not weight:
            return super().training_step(batch, batch_nb)
        batch = two_views(batch)
        unseen, self._views_are_unseen = self._views_are_unseen, False
        watched = captured(encoder=self.encoder, decoder=self._ctc_decoder())
        with watched as seen, self._views_compared() if unseen else nullcontext():
            step = super().training_step(batch, batch_nb)
        reduction = self._ctc_config(self._cfg).get("ctc_reduction", "mean_batch")
        # reduced as NeMo's CTC is: the mean over the rows of both views is the paper's half of their sum
        consistency = reduce_rows(consistency_loss(seen["decoder"], seen["encoder"][1]), batch[3], reduction)
        ctc_loss = step["loss"]
        step["loss"] = ctc_loss + weight * consistency
        numbers = dict(train_loss=step["loss"], train_ctc_loss=ctc_loss, train_consistency_loss=consistency)
        self._log(step, numbers)
        return step

    @contextmanager
    def _views_compared(self) -> Iterator[None]:
        """Says so where nothing makes a batch's two views differ; reads values back, so it is for one batch only."""
        augmented: list[bool] = []
        with ExitStack() as hooks:
            if self.spec_augmentation is not None:
                given: list[Tensor] = []
                # a copy: cut-outs and Numba's SpecAugment write into what they get
                keep = self.preprocessor.register_forward_hook(lambda _, args, out: given.append(out[0].clone()))
                compare = self.spec_augmentation.register_forward_hook(
                    lambda _, args, out: augmented.append(not out.equal(given[-1]))
                )
                hooks.callback(keep.remove)
                hooks.callback(compare.remove)
            yield
        # in evaluation neither draws, and a model, or a part that is frozen by hand, stays in it while it is trained
        dropout = any(isinstance(part, _DropoutNd) and part.p > 0 and part.training for part in self.encoder.modules())
        if not any(augmented) and not dropout:
            logging.warning(
                "COMAT: the two views of the first batch are equal, so model.comat.consistency_weight="
                f"{self.consistency_weight:g} teaches nothing: neither model.spec_augment nor dropout changes a row; "
                "turn one of them on (both are off where the model is in evaluation: call model.train()), or set the "
                "weight to 0."
            )


def two_views(batch: Any) -> tuple[Tensor, ...]:
    """A batch's tensors with each row twice: rows b and b + B are one utterance.

    Args:
        batch: tuple or list of tensors [B, ...].
    Raises:
        ConfigError: it is another thing, as DALI's batches are.
    Examples:
        >>> [tensor.tolist() for tensor in two_views((torch.tensor([[0.5], [0.25]]), torch.tensor([1, 1])))]
        [[[0.5], [0.25], [0.5], [0.25]], [1, 1, 1, 1]]
    """
    if not isinstance(batch, (tuple, list)):
        raise ConfigError(
            f"model.comat.consistency_weight doubles the rows of a batch, which a {type(batch).__name__} does not "
            "allow; read the data without DALI, or set model.comat.consistency_weight=0."
        )
    return tuple(torch.cat([tensor, tensor]) for tensor in batch)
