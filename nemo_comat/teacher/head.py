"""A language model's own head: which class has it, and which tokens it expects in the place of each of a text's."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nemo_comat.teacher.device import upload
from nemo_comat.teacher.inputs import inputs_of

# logits that are in memory at a time
MOST_LOGITS = 2**26
# of what a change of a token changes there, what changes elsewhere by rounding alone is less
ROUNDING = 1e-4


class View(NamedTuple):
    """A text as the model reads it, and where its logits are of tokens of ours.

    ids: [n] int64. places: of the logits, one for each token asked for; -1 where no logits are of it.
    """

    ids: Tensor
    places: list[int]


def head_class(config: Any) -> Any:
    """Which of transformers' auto classes loads a checkpoint with its language-model head; None where none does.

    Of a model with an encoder and a decoder only one that reads the text by both will do. Else what the checkpoint says
    that it was saved as decides. One that says a model without a head is a masked language
    model where transformers has one of its kind and its config does not say that it is a decoder.

    Args:
        config: as `AutoConfig` reads it.
    Examples:
        >>> from transformers import BertConfig, GPT2Config, T5Config
        >>> head_class(BertConfig()).__name__, head_class(GPT2Config()).__name__, head_class(T5Config())
        ('AutoModelForMaskedLM', 'AutoModelForCausalLM', None)
    """
    import transformers

    mappings = {
        transformers.AutoModelForMaskedLM: transformers.MODEL_FOR_MASKED_LM_MAPPING,
        transformers.AutoModelForCausalLM: transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
    }
    if getattr(config, "is_encoder_decoder", False):  # alone its decoder would read without what it is made to read
        del mappings[transformers.AutoModelForCausalLM]
    offered = {auto: _names(mapping, type(config)) for auto, mapping in mappings.items() if type(config) in mapping}
    said = set(getattr(config, "architectures", None) or ())
    fitting = [auto for auto, names in offered.items() if names & said] or list(offered)
    if getattr(config, "is_decoder", False):
        fitting.reverse()
    return fitting[0] if fitting else None


def _names(mapping: Any, config_class: type) -> set[str]:
    """Names of the classes that transformers offers for a config: some have several."""
    classes = mapping[config_class]
    return {cls.__name__ for cls in (classes if isinstance(classes, tuple) else (classes,))}


@torch.no_grad()
def reads_ahead(model: Any, ids: Tensor, other: int) -> bool:
    """Whether what follows a token changes its logits, as with a masked language model, and not with a causal one.

    Args:
        model: has `logits` in what it returns. ids: [1, n] int64, n at least 2. other: an id unlike the last one.
    Examples:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1)).eval()
        >>> reads_ahead(model, torch.tensor([[1, 2, 3]]), 4)
        False
    """
    changed = ids.clone()
    changed[0, -1] = other
    before, after = (model(**inputs_of(model, x, torch.ones_like(x))).logits[0].float() for x in (ids, changed))
    change = (after - before).abs().amax(-1)
    return bool(change[0] > ROUNDING * change[-1])


def following(ids: Tensor, places: list[int], first: int | None) -> View:
    """Of a causal model: each token is foretold by the logits before it, the text's first one by those of `first`.

    Args:
        ids: [n] of a text. places: of its tokens. first: id that is set before a text that begins with a token; None
            where there is none.
    Examples:
        >>> following(torch.tensor([5, 6]), [0, 1], first=2)
        View(ids=tensor([2, 5, 6]), places=[0, 1])
        >>> following(torch.tensor([5, 6]), [0, 1], first=None)
        View(ids=tensor([5, 6]), places=[-1, 0])
    """
    if first is None or 0 not in places:
        return View(ids, [place - 1 for place in places])
    return View(torch.cat([ids.new_tensor([first]), ids]), list(places))


def masked(ids: Tensor, places: list[int], mask: int) -> list[View]:
    """Of a masked model: the text once for each token, which the mask hides there.

    Args:
        ids: [n] of a text. places: of its tokens. mask: id of the mask token.
    Examples:
        >>> masked(torch.tensor([0, 5, 6]), [1, 2], mask=9)
        [View(ids=tensor([0, 9, 6]), places=[1]), View(ids=tensor([0, 5, 9]), places=[2])]
    """
    views = []
    for place in places:
        hidden = ids.clone()
        hidden[place] = mask
        views.append(View(hidden, [place]))
    return views


def likeliest(
    model: Any,
    views: Sequence[View],
    top_k: int,
    vocabulary: int,
    padding: int,
    device: torch.device,
    pad: bool = True,
) -> tuple[Tensor, Tensor]:
    """The tokens of the largest probabilities in each place of the views.

    Args:
        model: on the device, has `logits` in what it returns.
        views: list of View. top_k: so many tokens, or all where there are fewer. vocabulary: number of logits.
        padding: id that fills a batch. device: torch.device. pad: False = a batch has views of one length.
    Returns:
        ids int64 and probabilities float32 [sum of places, K] on the device, the largest first; 0 at place -1.
    Examples:
        >>> from types import SimpleNamespace
        >>> model = lambda input_ids, attention_mask: SimpleNamespace(logits=torch.eye(3)[input_ids].mul(50))
        >>> likeliest(model, [View(torch.tensor([2, 1]), [0])], 1, 3, 0, torch.device("cpu"))
        (tensor([[2]]), tensor([[1.]]))
    """
    width = min(top_k, vocabulary)
    ids, shares = [torch.zeros(0, width, dtype=torch.int64, device=device)], [torch.zeros(0, width, device=device)]
    for batch in _batches(views, vocabulary, pad):
        padded = pad_sequence([view.ids for view in batch], batch_first=True, padding_value=padding)
        attention = pad_sequence([torch.ones_like(view.ids) for view in batch], batch_first=True)
        logits = model(**inputs_of(model, upload(padded, device), upload(attention, device))).logits
        at = [(row, place) for row, view in enumerate(batch) for place in view.places]
        flat = torch.tensor([row * padded.shape[1] + max(place, 0) for row, place in at])
        known = torch.tensor([[float(place >= 0)] for _, place in at])
        chosen = logits.flatten(0, 1).index_select(0, upload(flat, device)).float().softmax(-1)
        share, token_id = chosen.topk(width, -1)
        ids.append(token_id)
        shares.append(share * upload(known, device))
    return torch.cat(ids), torch.cat(shares)


def _batches(views: Iterable[View], vocabulary: int, pad: bool) -> Iterator[list[View]]:
    """Cuts views that have places into lists whose logits, padding included, are at most MOST_LOGITS, or one view's."""
    batch: list[View] = []
    for view in (view for view in views if view.places):
        longest = max(len(one.ids) for one in (*batch, view))
        other = not pad and batch and len(view.ids) != len(batch[0].ids)
        if batch and (other or (len(batch) + 1) * longest * vocabulary > MOST_LOGITS):
            yield batch
            batch = []
        batch.append(view)
    if batch:
        yield batch
