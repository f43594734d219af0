"""Ways of a model with COMAT into files and out of them."""

from nemo.utils import logging

from nemo_comat.models.checkpoint import COMAT_PREFIX, with_comat
from nemo_comat.models.safe_load import check_checkpoint

# statistics of the teacher's vectors, which a model has where its config asks for them
FEEDBACK_PREFIX = "nemo_comat_feedback."
STATISTICS = f"{COMAT_PREFIX}normalize."


def _with_our_statistics(ours, state_dict):
    """Weights whose statistics of the teacher's vectors are as ours where only one side has some."""
    mine, theirs = ({key for key in keys if key.startswith(STATISTICS)} for keys in (ours, state_dict))
    if mine and not theirs:
        logging.info("These weights have no statistics of the teacher's vectors: they are taken when training starts.")
        return {**state_dict, **{key: ours[key] for key in mine}}
    if theirs and not mine:
        logging.info("comat.teacher.normalize is none in this model: these weights' statistics are left out.")
        return {key: value for key, value in state_dict.items() if key not in theirs}
    return state_dict


class SavingMixin:
    """The part of `ComatMixin` that sees to ``.nemo`` and ``.ckpt`` files."""

    def load_state_dict(self, state_dict, strict=True, *args, **kwargs):
        """As PyTorch's; a plain CTC model's weights are accepted whole, and ours are left out where COMAT is off."""
        ours = {key: value for key, value in self.state_dict().items() if key.startswith(COMAT_PREFIX)}
        theirs = {key for key in state_dict if key.startswith(COMAT_PREFIX)}
        if ours and not theirs:
            logging.info("These weights have no COMAT part: it keeps its present values.")
            state_dict = {**state_dict, **ours}
        if theirs and not ours:
            logging.info("COMAT is off in this model: the COMAT part of these weights is left out.")
            state_dict = {key: value for key, value in state_dict.items() if key not in theirs}
        elif ours and theirs:
            state_dict = _with_our_statistics(ours, state_dict)
        if self.nemo_comat_feedback is not None and not any(key.startswith(FEEDBACK_PREFIX) for key in state_dict):
            logging.info("These weights have no feedback: it begins as none.")
            fed = {key: value for key, value in self.state_dict().items() if key.startswith(FEEDBACK_PREFIX)}
            state_dict = {**state_dict, **fed}
        return super().load_state_dict(state_dict, strict, *args, **kwargs)

    def save_to(self, save_path):
        """As NeMo's, as a dual ``.nemo``, whichever connector the model was given meanwhile."""
        self._save_restore_connector = with_comat(self._save_restore_connector)
        super().save_to(save_path)

    @classmethod
    def update_save_restore_connector(cls, save_restore_connector):
        """As NeMo's, with our part heeded: all of NeMo's ways into a ``.nemo`` file set their connector here."""
        super().update_save_restore_connector(with_comat(save_restore_connector))

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path, *args, weights_only=True, **kwargs):
        """As NeMo's; weights_only=False reads a ``.ckpt`` whose pickles do more, of someone who is trusted."""
        if weights_only:
            check_checkpoint(checkpoint_path)
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)
