"""What a model of transformers is called with."""

from inspect import Parameter, signature
from typing import Any

from torch import Tensor


def inputs_of(model: Any, ids: Tensor, attention: Tensor) -> dict[str, Tensor]:
    """A batch's inputs by name; without the mask for a model that takes none, as FNet in older transformers.

    Args:
        model: transformers' PreTrainedModel. ids, attention: [B, n].
    Examples:
        >>> import torch
        >>> sorted(inputs_of(lambda input_ids: None, torch.ones(1, 2), torch.ones(1, 2)))
        ['input_ids']
    """
    parameters = signature(getattr(model, "forward", model)).parameters
    takes = "attention_mask" in parameters or any(p.kind == Parameter.VAR_KEYWORD for p in parameters.values())
    return {"input_ids": ids, "attention_mask": attention} if takes else {"input_ids": ids}
