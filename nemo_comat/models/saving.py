"""Ways of a model with COMAT into files and out of them."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from nemo.core.connectors.save_restore_connector import SaveRestoreConnector
from nemo.utils import logging
from torch import Tensor

from nemo_comat.config import ConfigError
from nemo_comat.models.checkpoint import COMAT_PREFIX, with_comat
from nemo_comat.models.host import Host
from nemo_comat.models.safe_load import check_checkpoint

FEEDBACK_PREFIX = "nemo_comat_feedback."
# statistics of the teacher's vectors, which a model has where its config asks for them
STATISTICS_PREFIX = f"{COMAT_PREFIX}normalize."
CONTEXT_PREFIX = f"{COMAT_PREFIX}context."


# what is trained of ours
OURS = (COMAT_PREFIX, FEEDBACK_PREFIX)


def shapes_of(
    weights: Mapping[str, Tensor], prefix: str | tuple[str, ...], without: str | tuple[str, ...] = ()
) -> dict[str, torch.Size]:
    """Shapes by name of the weights whose names begin with a prefix, and with none of others.

    Args:
        weights: by name. prefix, without: one or several.
    Examples:
        >>> shapes_of({"comat.w": torch.zeros(2), "encoder.w": torch.zeros(3)}, "comat.")
        {'comat.w': torch.Size([2])}
    """
    return {
        name: weight.shape
        for name, weight in weights.items()
        if name.startswith(prefix) and not name.startswith(without)
    }


def refuse_another_part(mine: Mapping[str, torch.Size], state_dict: Mapping[str, Tensor]) -> None:
    """Raises where a checkpoint's weights of our part are not those that a model trains.

    Args:
        mine: shapes of the model's weights by name. state_dict: the checkpoint's.
    Raises:
        ConfigError: names some that differ.
    Examples:
        >>> refuse_another_part({"comat.w": torch.Size([2])}, {"comat.w": torch.zeros(2), "encoder.w": torch.zeros(3)})
        >>> refuse_another_part({"comat.w": torch.Size([2])}, {"encoder.w": torch.zeros(3)})
        Traceback (most recent call last):
        nemo_comat.config.ConfigError: The checkpoint to go on from has another comat block: it lacks comat.w; ...
    """
    theirs = shapes_of(state_dict, OURS, without=STATISTICS_PREFIX)  # statistics are no weights
    named = {
        "it lacks": sorted(mine.keys() - theirs.keys()),
        "it has": sorted(theirs.keys() - mine.keys()),
        "it has another shape of": sorted(name for name in mine.keys() & theirs.keys() if mine[name] != theirs[name]),
    }
    said = [f"{what} {', '.join(names[:2])}{' and more' * (len(names) > 2)}" for what, names in named.items() if names]
    if said:
        raise ConfigError(
            f"The checkpoint to go on from has another comat block: {'; '.join(said)}; give the comat block of then, "
            "or begin anew in another folder, with +init_from_ptl_ckpt=FILE for the weights."
        )


def _as_ours(
    state_dict: Mapping[str, Any], ours: Mapping[str, Any], prefix: str, lacking: str, spare: str | None = None
) -> Mapping[str, Any]:
    """Weights that have a part where our model has it, and nowhere else.

    Args:
        state_dict: the weights that are loaded. ours: those of the model. prefix: of the part's names.
        lacking: what the log says where only ours has the part, which then keeps its present values.
        spare: what it says where only the loaded weights have it, which is then left out; None leaves it to PyTorch.
    Returns:
        dict.
    """
    mine, theirs = ({key for key in weights if key.startswith(prefix)} for weights in (ours, state_dict))
    if mine and not theirs:
        logging.info(lacking)
        return {**state_dict, **{key: ours[key] for key in mine}}
    if theirs and not mine and spare is not None:
        logging.info(spare)
        return {key: value for key, value in state_dict.items() if key not in theirs}
    return state_dict


def refuse_other_feedback(ours: Mapping[str, Tensor], state_dict: Mapping[str, Tensor]) -> None:
    """Raises where the weights to begin with have feedback and the model has another or none.

    Args:
        ours: the model's weights by name. state_dict: the others.
    Raises:
        ConfigError: without their feedback the recogniser's weights say something else.
    Examples:
        >>> refuse_other_feedback({"nemo_comat_feedback.w": torch.zeros(2)}, {"encoder.w": torch.zeros(3)})
        >>> refuse_other_feedback({}, {"nemo_comat_feedback.w": torch.zeros(2)})
        Traceback (most recent call last):
        nemo_comat.config.ConfigError: The feedback of these weights does not fit this model; ...
    """
    theirs, mine = (shapes_of(weights, FEEDBACK_PREFIX) for weights in (state_dict, ours))
    if theirs and theirs != mine:
        raise ConfigError(
            "The feedback of these weights does not fit this model; give the model.comat.feedback and "
            "model.comat.encoder_layer that they were trained with, and a model.comat.teacher and a "
            "model.comat.projection of their width."
        )


def begin_anew(ours: Mapping[str, Tensor], state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Weights to begin with, without a COMAT part, or a context network, that has other shapes than the model's.

    Args:
        ours: the model's weights by name. state_dict: the others.
    Returns:
        dict; the log says what was left out.
    Examples:
        >>> list(begin_anew({"comat.w": torch.zeros(2)}, {"comat.w": torch.zeros(9), "encoder.w": torch.zeros(3)}))
        ['encoder.w']
    """
    # the context and the statistics may be on one side alone, which loading sees to
    apart = (CONTEXT_PREFIX, STATISTICS_PREFIX)
    for what, prefix, without in (
        ("COMAT part", COMAT_PREFIX, apart),
        ("context network", CONTEXT_PREFIX, ()),
        ("statistics of the teacher's vectors", STATISTICS_PREFIX, ()),
    ):
        mine, theirs = (shapes_of(weights, prefix, without) for weights in (ours, state_dict))
        if mine and theirs and mine != theirs:
            logging.info(f"The {what} of these weights is not of this comat block's shape: it begins anew.")
            state_dict = {key: value for key, value in state_dict.items() if not key.startswith(prefix)}
    return state_dict


class SavingMixin(Host):
    """The part of `ComatMixin` that sees to ``.nemo`` and ``.ckpt`` files."""

    _save_restore_connector: SaveRestoreConnector

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, *args: Any, **kwargs: Any) -> Any:
        """As PyTorch's; a plain CTC model's weights are accepted whole, and ours are left out where COMAT is off.

        With strict=False, as in NeMo's ways to begin with a file's weights, a COMAT part of other shapes is left out.
        """
        ours = self.state_dict()
        if not strict:
            refuse_other_feedback(ours, state_dict)
            state_dict = begin_anew(ours, state_dict)
        state_dict = _as_ours(
            state_dict,
            ours,
            COMAT_PREFIX,
            "These weights have no COMAT part: it keeps its present values.",
            "COMAT is off in this model: the COMAT part of these weights is left out.",
        )
        state_dict = _as_ours(
            state_dict,
            ours,
            STATISTICS_PREFIX,
            "These weights have no statistics of the teacher's vectors: they are taken when training starts.",
            "comat.teacher.normalize is none in this model: these weights' statistics are left out.",
        )
        state_dict = _as_ours(
            state_dict,
            ours,
            CONTEXT_PREFIX,
            "These weights have no context network: it keeps its present values.",
            "comat.context.layers is 0 in this model: these weights' context network is left out.",
        )
        # a model without feedback refuses weights with it: they would say something else there
        state_dict = _as_ours(state_dict, ours, FEEDBACK_PREFIX, "These weights have no feedback: it begins as none.")
        return super().load_state_dict(state_dict, strict, *args, **kwargs)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As NeMo's; where training is to go on, our part must be the one that the optimizer's state is of.

        Raises:
            ConfigError: the checkpoint's comat block gave our part other weights.
        """
        super().on_load_checkpoint(checkpoint)
        trainer = self._trainer
        if trainer is not None and trainer.state.fn == TrainerFn.FITTING and checkpoint.get("optimizer_states"):
            refuse_another_part(shapes_of(dict(self.named_parameters()), OURS), checkpoint["state_dict"])

    def save_to(self, save_path: str) -> None:
        """As NeMo's, as a dual ``.nemo``, whichever connector the model was given meanwhile."""
        self._save_restore_connector = with_comat(self._save_restore_connector)
        super().save_to(save_path)

    @classmethod
    def update_save_restore_connector(cls, save_restore_connector: Any) -> None:
        """As NeMo's, with our part heeded: all of NeMo's ways into a ``.nemo`` file set their connector here."""
        super().update_save_restore_connector(with_comat(save_restore_connector))

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, weights_only: bool = True, **kwargs: Any) -> Any:
        """As NeMo's; weights_only=False reads a ``.ckpt`` whose pickles do more, of someone who is trusted."""
        if weights_only:
            check_checkpoint(checkpoint_path)
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)
