"""Feedback into a model's encoder, in training and at inference: such a model is no plain CTC any more."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F

from nemo_comat.config import ConfigError, encoder_layers
from nemo_comat.models.captured import first_input
from nemo_comat.models.host import Host
from nemo_comat.models.layers import layers_of
from nemo_comat.transfer import Feedback


class FeedbackMixin(Host):
    """The part of `ComatMixin` that feeds frames back; the key is `comat.feedback`.

    What goes back is added where the next layer reads its input: what a layer gives to the transfer loss and to
    InterCTC is from before it.
    """

    def _add_feedback(self) -> None:
        """Builds what `comat.feedback` asks for, and hooks it into the encoder."""
        # by this name NeMo without this package says what a file needs: such weights are in no plain CTC model
        self.nemo_comat_feedback: Any = None
        block = self._cfg.get("comat")
        if block is None or not block.get("feedback"):
            return
        layers = self._feedback_layers(block)
        dim = self._ctc_decoder().num_classes_with_blank if block.feedback == "ctc" else block.projection.dim
        with torch.random.fork_rng(devices=[]):
            self.nemo_comat_feedback = nn.ModuleList(Feedback(dim, self._layer_width()) for _ in layers)
        # weights that are fed into other layers are refused by it, though their shapes are the same
        self.nemo_comat_feedback.register_buffer("layers", torch.tensor([layer for _, layer in layers]))
        for number, (named, layer) in enumerate(layers):
            following = layers_of(self.encoder, self._cfg.encoder)[layer + 1][0]
            following.register_forward_pre_hook(self._feed(number, named), with_kwargs=True)

    def fed_projections(self) -> list[nn.Module]:
        """The projections whose output is fed back, at inference too; none but with `comat.feedback` true."""
        if self.nemo_comat_feedback is None or self._cfg.comat.feedback == "ctc":
            return []
        projections = self.comat.layer_projections()
        return [projections[named] for named, _ in self._feedback_layers(self._cfg.comat)]

    def _fed_pieces(self) -> list[str] | None:
        """The vocabulary whose posteriors are fed back; None where none are."""
        fed = self.nemo_comat_feedback is not None and self._cfg.comat.feedback == "ctc"
        return list(self._ctc_decoder().vocabulary) if fed else None

    def _renew_feedback_of_posteriors(self) -> None:
        """Begins the feedback of posteriors anew, for a vocabulary of other pieces."""
        size = self._ctc_decoder().num_classes_with_blank
        with torch.random.fork_rng(devices=[]):
            for fed in self.nemo_comat_feedback:
                fed.back = Feedback(size, fed.back.out_features).back.to(self.device)

    def _feedback_layers(self, block: DictConfig) -> list[tuple[int, int]]:
        """Of each layer that is fed back its place in `encoder_layer` and in the encoder: list of pairs of int."""
        layers, depth = encoder_layers(block)[0], len(layers_of(self.encoder, self._cfg.encoder))
        if None in layers or not depth:
            raise ConfigError(
                f"model.comat.feedback={block.feedback} needs model.comat.encoder_layer, a layer before the last of "
                f"{type(self.encoder).__name__}'s {depth}; got {block.encoder_layer}."
            )
        named = [(number, layer % depth) for number, layer in enumerate(layers) if layer is not None]
        # nothing comes after the last layer: it is taught alone
        places = [(number, layer) for number, layer in named if layer != depth - 1]
        if not places:
            raise ConfigError(
                f"model.comat.feedback={block.feedback} goes into the layer after each of model.comat.encoder_layer "
                f"{layers}, but {depth - 1} is the last one; give one of 0 to {depth - 2} too."
            )
        return places

    def _feed(self, number: int, named: int) -> Callable[..., tuple[Any, Any]]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
            frames = first_input(args, kwargs)
            fed = self.nemo_comat_feedback[number](frames, self._view(frames, named))
            return (args, {**kwargs, "x": fed}) if "x" in kwargs else ((fed, *args[1:]), kwargs)

        return hook

    def _view(self, frames: Tensor, named: int) -> Tensor:
        """[B, T, D] frames of a layer in the teacher's space, or as the CTC decoder sees them: [B, T, dim]."""
        if self._cfg.comat.feedback == "ctc":
            if getattr(self.encoder, "out_proj", None) is not None:  # the decoder reads feat_out features
                frames = self.encoder.out_proj(frames)
            with _untempered(self._ctc_decoder()) as decoder:
                # not called as a module: what watches the decoder is to see its own call
                return decoder.forward(encoder_output=frames.transpose(1, 2)).exp()
        return F.normalize(self.comat.layer_projections()[named](frames), dim=-1)


@contextmanager
def _untempered(decoder: Any) -> Iterator[Any]:
    """The decoder without the temperature that a decoding config gave it: what is fed back is as in training."""
    temperature = getattr(decoder, "temperature", 1.0)
    if temperature == 1.0:
        yield decoder
        return
    decoder.temperature = 1.0
    try:
        yield decoder
    finally:
        decoder.temperature = temperature
