"""The teacher's answer for a batch, while the recogniser is still at work on it."""

import functools

import torch


class Pending:
    """A teacher's answer for one batch, under way on a CUDA stream of its own while other work goes on.

    Args:
        teacher: has `encode`.
        texts: list of B strings.
        device: torch.device; on a CPU the answer is there at once.
        add: function of the TeacherOutput that returns it with more in it, called on the present stream.
    Attributes:
        texts: as given.
    """

    def __init__(self, teacher, texts, device, add=None):
        self.texts = texts
        self._device, self._stream = device, _side_stream(device)
        if self._stream is None:
            self._output = teacher.encode(texts, device)
        else:
            # what this stream reads may have been made on the present one
            self._stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(self._stream):
                self._output = teacher.encode(texts, device)
        if add is not None:
            self._output = add(self._output)

    def result(self):
        """TeacherOutput, for use on the current stream, which waits for it; the host does not."""
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for tensor in self._output[:4]:
                # memory of this answer must not be given to another while the current stream reads it
                tensor.record_stream(current)
        return self._output


@functools.cache
def _side_stream(device):
    return torch.cuda.Stream(device) if device.type == "cuda" else None
