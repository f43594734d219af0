"""Ways of a model with COMAT into files and out of them."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from nemo.core.connectors.save_restore_connector import SaveRestoreConnector
from nemo.utils import logging
from omegaconf import DictConfig
from torch import Tensor

from nemo_comat.config import ConfigError
from nemo_comat.models.checkpoint import COMAT_PREFIX, with_comat
from nemo_comat.models.host import Host
from nemo_comat.models.safe_load import check_checkpoint

FEEDBACK_PREFIX = "nemo_comat_feedback."
# statistics of the teacher's vectors, which a model has where its config asks for them
STATISTICS_PREFIX = f"{COMAT_PREFIX}normalize."
CONTEXT_PREFIX = f"{COMAT_PREFIX}context."
PROJECTION_PREFIXES = (f"{COMAT_PREFIX}projection.", f"{COMAT_PREFIX}lower_projections.")
# numbers of the encoder's layers that are fed back; older files have no such tensor
FED_LAYERS = f"{FEEDBACK_PREFIX}layers"
OTHER_FEEDBACK = (
    "The feedback of these weights does not fit this model; give the model.comat.feedback and model.comat.encoder_layer"
    " that they were trained with, and a model.comat.teacher and a model.comat.projection of their shape."
)
# what is trained of ours
OURS = (COMAT_PREFIX, FEEDBACK_PREFIX)
# parts of COMAT that one of two models may lack, and what the log calls them
OPTIONAL = {"context": "context network", "normalize": "statistics of the teacher's vectors"}


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
    theirs = shapes_of(state_dict, OURS, without=(STATISTICS_PREFIX, FED_LAYERS))  # which are no weights
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


def refuse_other_feedback(
    ours: Mapping[str, Tensor], state_dict: Mapping[str, Tensor], *, of_projections: bool = False
) -> None:
    """Raises where weights to begin with have feedback and the model has one of other shapes or none.

    Args:
        ours: the model's weights by name. state_dict: the others.
        of_projections: True where the model feeds projections back (`comat.feedback: true`), which must fit too then.
    Raises:
        ConfigError: without their feedback the recogniser's weights say something else.
    Examples:
        >>> refuse_other_feedback({"nemo_comat_feedback.w": torch.zeros(2)}, {"encoder.w": torch.zeros(3)})
        >>> refuse_other_feedback({}, {"nemo_comat_feedback.w": torch.zeros(2)})
        Traceback (most recent call last):
        nemo_comat.config.ConfigError: The feedback of these weights does not fit this model; ...
    """
    if not shapes_of(state_dict, FEEDBACK_PREFIX):
        return
    prefixes = (FEEDBACK_PREFIX, *PROJECTION_PREFIXES) if of_projections else (FEEDBACK_PREFIX,)
    if shapes_of(state_dict, prefixes, FED_LAYERS) != shapes_of(ours, prefixes, FED_LAYERS):
        raise ConfigError(OTHER_FEEDBACK)


def refuse_other_layers(ours: Mapping[str, Tensor], state_dict: Mapping[str, Tensor]) -> None:
    """Raises where weights have feedback of other layers than the model's; their shapes would not tell.

    Args:
        ours: the model's weights by name. state_dict: the others.
    Raises:
        ConfigError: as `refuse_other_feedback`.
    Examples:
        >>> refuse_other_layers({FED_LAYERS: torch.tensor([1])}, {FED_LAYERS: torch.tensor([2])})
        Traceback (most recent call last):
        nemo_comat.config.ConfigError: The feedback of these weights does not fit this model; ...
    """
    both = FED_LAYERS in ours and FED_LAYERS in state_dict
    if both and ours[FED_LAYERS].tolist() != state_dict[FED_LAYERS].tolist():
        raise ConfigError(OTHER_FEEDBACK)


def begin_anew(ours: Mapping[str, Tensor], state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Weights to begin with, where each part of COMAT that has other shapes than the model's has the model's values.

    Args:
        ours: the model's weights by name. state_dict: the others.
    Returns:
        dict; the log says what was left out. Weights without any COMAT part are as they were.
    Examples:
        >>> ours = {"comat.projection.w": torch.zeros(2), "comat.compressor.w": torch.zeros(1)}
        >>> theirs = {"comat.projection.w": torch.ones(2), "comat.compressor.w": torch.ones(9)}
        >>> begin_anew(ours, theirs)
        {'comat.projection.w': tensor([1., 1.]), 'comat.compressor.w': tensor([0.])}
    """
    mine, theirs = (_by_part(weights) for weights in (ours, state_dict))
    if not mine.keys() - OPTIONAL or not theirs.keys() - OPTIONAL:
        return state_dict
    for part in sorted(mine.keys() | theirs.keys()):
        names = mine.get(part, {}), theirs.get(part, {})
        # what is optional and on one side alone, loading sees to
        if names[0] == names[1] or (part in OPTIONAL and not all(names)):
            continue
        then = "it begins anew" if names[0] else "it is left out"
        what = OPTIONAL.get(part, part)
        logging.info(f"The {what} of these weights is not of this comat block's shape: {then}.")
        kept = {key: value for key, value in state_dict.items() if key not in names[1]}
        state_dict = {**kept, **{key: ours[key] for key in names[0]}}
    return state_dict


def _by_part(weights: Mapping[str, Tensor]) -> dict[str, dict[str, torch.Size]]:
    """Shapes of COMAT's weights by part and name; the projections of all layers are one part."""
    found: dict[str, dict[str, torch.Size]] = {}
    for name, shape in shapes_of(weights, COMAT_PREFIX).items():
        part = name.removeprefix(COMAT_PREFIX).partition(".")[0]
        found.setdefault("projection" if part == "lower_projections" else part, {})[name] = shape
    return found


class SavingMixin(Host):
    """The part of `ComatMixin` that sees to ``.nemo`` and ``.ckpt`` files."""

    _cfg: DictConfig
    _save_restore_connector: SaveRestoreConnector

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, *args: Any, **kwargs: Any) -> Any:
        """As PyTorch's; a plain CTC model's weights are accepted whole, and ours are left out where COMAT is off.

        With strict=False, as in NeMo's ways to begin with a file's weights, parts of COMAT of other shapes are left
        out.
        """
        ours = self.state_dict()
        refuse_other_layers(ours, state_dict)
        if not strict:
            state_dict = self.to_begin_with(state_dict)
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
        if FED_LAYERS in ours:
            state_dict = {FED_LAYERS: ours[FED_LAYERS], **state_dict}
        return super().load_state_dict(state_dict, strict, *args, **kwargs)

    def to_begin_with(self, state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
        """Weights that a model of another comat block may have left, as far as they fit this one.

        Args:
            state_dict: by name.
        Raises:
            ConfigError: their feedback is another.
        """
        ours = self.state_dict()
        of_projections = (self._cfg.get("comat") or {}).get("feedback") is True
        refuse_other_feedback(ours, state_dict, of_projections=of_projections)
        return begin_anew(ours, state_dict)

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
