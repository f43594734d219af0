"""A frozen pre-trained language model, as transformers loads it: its layers, its table, its head, its limits.

It is an ordinary Python object, not an `nn.Module`: a model that holds one has it in no state_dict, parameter count,
optimizer or checkpoint. Nothing of it is loaded before its first use.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from nemo_comat.teacher.files import find_model
from nemo_comat.teacher.head import head_class, reads_ahead
from nemo_comat.teacher.inputs import inputs_of
from nemo_comat.teacher.limits import NO_LIMIT, Limits, find_limits, is_limit
from nemo_comat.teacher.loading import cast_parameters, fastest_dtype, load
from nemo_comat.teacher.missing import needed_weights
from nemo_comat.teacher.output import TeacherError
from nemo_comat.teacher.padding import reads_padding
from nemo_comat.teacher.quiet import quiet_transformers
from nemo_comat.teacher.texts import TextReader
from nemo_comat.teacher.upper_layers import leave_out_upper_layers
from nemo_comat.waiting import announce

TABLE = "table"
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)


class LanguageModel:
    """A language model's hidden states of token ids, and what must be known of it to read any.

    Args:
        name, layers, max_length, dtype: as of `Teacher`.
        has_head: whether it is loaded with its language-model head.
        mask: with the head, whether it is to read a mask in a token's place.
    Raises:
        TeacherError: as `Teacher`.
    """

    def __init__(
        self,
        name: str,
        layers: int | str | Iterable[int | str],
        max_length: int | None,
        dtype: Dtype,
        *,
        has_head: bool,
        mask: bool,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length must be 1 or more, or None; got {max_length}")
        if isinstance(layers, bool) or not isinstance(layers, Iterable | int):
            raise TeacherError(
                f"model.comat.teacher.layers must be a layer's number, several of them, or {TABLE}; got {layers!r}."
            )
        self.name = name
        self.layers = [layers] if isinstance(layers, (int, str)) else list(layers)
        self.mask = mask
        self.dtype: torch.dtype | None = None if dtype == "auto" else getattr(torch, dtype)
        # what the weights are in, or will be loaded in
        self._weights_dtype = self.dtype or torch.float32
        self._max_length = max_length
        self._has_head = has_head
        # the model with its head; known when it is loaded
        self._head: Any = None
        self._is_causal = False
        # and the device that it was asked for
        self._table: tuple[torch.device, Tensor] | None = None

    @functools.cached_property
    def path(self) -> str:
        """Folder or hub name that the files are read from."""
        return find_model(self.name)

    @functools.cached_property
    def _whole_config(self) -> Any:
        """As transformers reads it, with parts for what is no text."""
        from transformers import AutoConfig

        return load(AutoConfig, self.name, self.path)

    @functools.cached_property
    def config(self) -> Any:
        """The model's transformers config; loads no weights. Checks that `layers`, and a head for top_k, exist."""
        config = getattr(self._whole_config, "text_config", None) or self._whole_config
        depth, width = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
        if depth is None or width is None:
            raise TeacherError(
                f"Teacher {self.name!r} ({type(config).__name__}) has no hidden states of tokens to learn from; "
                "choose a text model such as bert-base-uncased for model.comat.teacher.name."
            )
        if self._has_head and head_class(self._whole_config) is None:
            raise self._no_head(f"transformers has no masked or causal language model for {type(config).__name__}")
        if self.reads_table:
            return config
        if not self.layers:
            raise TeacherError("model.comat.teacher.layers is empty; give a layer, such as -1, or several.")
        for layer in self.layers:
            if not isinstance(layer, int) or isinstance(layer, bool) or not -depth - 1 <= layer <= depth:
                raise TeacherError(
                    f"model.comat.teacher.layers has {layer!r}, but {self.name!r} has layers 0 (word embeddings) to "
                    f"{depth}, or -1 (last) to {-depth - 1}, or {TABLE} alone (the table of word embeddings)."
                )
        return config

    @property
    def reads_table(self) -> bool:
        """Whether the table of word embeddings is read, and no layer."""
        return self.layers == [TABLE]

    @property
    def dim(self) -> int:
        """Width Dp of the embeddings; loads no weights."""
        return self.table_width if self.reads_table else int(self.config.hidden_size)

    @functools.cached_property
    def table_width(self) -> int:
        """Width De of the table of word embeddings, narrower than the layers in some models; loads no weights.

        Raises:
            TeacherError: the model has no such table.
        """
        from transformers import AutoModel

        _ = self.config
        # built without values: what its config calls the table's width is each model's own affair
        with torch.device("meta"), quiet_transformers(bars=False):
            return int(self._table_of(lambda: AutoModel.from_config(self._whole_config)).shape[1])

    def check_table(self) -> None:
        """Raises TeacherError where `table` would for what the model's config says; loads no weights."""
        self._refuse_width(self.table_width)

    def _refuse_width(self, width: int) -> None:
        if width != self.dim:
            raise TeacherError(
                f"Teacher {self.name!r}: its table of word embeddings has width {width}, its layers "
                f"{self.dim}, so its tokens cannot be classes; set model.comat.teacher.layers={TABLE}, or "
                "model.comat.transfer.loss=cosine."
            )

    def _table_of(self, whole: Callable[[], Any]) -> Tensor:
        """The weights [V, De] of a model's table of word embeddings."""
        try:
            weight: Tensor = whole().get_input_embeddings().weight
        except Exception as error:  # of the model's own code
            raise TeacherError(
                f"Teacher {self.name!r} has no table of word embeddings ({type(error).__name__}: {error}); set "
                "model.comat.transfer.loss=cosine and model.comat.teacher.layers=0, or choose another teacher."
            ) from error
        return weight

    @functools.cached_property
    def _reader(self) -> TextReader:
        from transformers import AutoTokenizer

        return TextReader(load(AutoTokenizer, self.name, self.path), self.name, self.path)

    @property
    def tokenizer(self) -> Any:
        """The model's own tokenizer. Checks that it has a vocabulary."""
        return self._reader.tokenizer

    @functools.cached_property
    @torch.inference_mode(False)  # whose tensors have no gradients, which tell what weights are needed
    def model(self) -> Any:
        """The model, frozen and in eval mode; an encoder alone where the model has one that reads texts."""
        from transformers import AutoModel, PreTrainedModel

        # read first: a teacher whose config or tokenizer does not fit is refused before its weights are loaded
        encoder_decoder, _ = self.config.is_encoder_decoder, self.tokenizer
        # "eager": the other attentions look at the mask's values first, which waits for the device
        options = dict(attn_implementation="eager", output_loading_info=True)
        announce(f"Loading the teacher {self.name}; this takes seconds from a disk, and minutes from a hub at first.")
        auto_class = head_class(self._whole_config) if self._has_head else AutoModel
        loaded, info = load(auto_class, self.name, self.path, dtype=self._weights_dtype, **options)
        cast_parameters(loaded, self._weights_dtype)
        leave_out_generation(loaded)
        whole = loaded.base_model if self._has_head else loaded
        encoder = getattr(whole, "encoder", None)
        model = encoder if isinstance(encoder, PreTrainedModel) else whole.get_encoder() if encoder_decoder else whole
        (loaded if self._has_head else model).eval().requires_grad_(False)
        self._refuse_random_weights(loaded, model, info["missing_keys"])
        if self._has_head:
            self._check_head(loaded, info["missing_keys"], auto_class)
            self._head = loaded
        else:
            self._leave_out_upper_layers(model)
        return model

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are in memory."""
        return "model" in self.__dict__

    def _decide_dtype(self, device: torch.device) -> None:
        # cast afterwards, a model loses what it keeps in float32 on purpose, and is in memory twice as large before
        if not self.is_loaded:
            self._weights_dtype = self.dtype or fastest_dtype(device)

    def _leave_out_upper_layers(self, model: Any) -> None:
        # of the table none is needed, but a model that does not run without them is asked for its limits
        layers = [0] if self.reads_table else [layer for layer in self.layers if isinstance(layer, int)]
        # layers that are counted from the end do not say how many are needed
        if min(layers) < 0:
            return
        # of two lengths: padding is read too
        ids = self._probe.repeat(2, 1).to(next(model.parameters()).device)
        attention = torch.ones_like(ids)
        attention[1, -1] = 0
        with torch.no_grad():
            leave_out_upper_layers(
                model, self.config.num_hidden_layers, max(layers), lambda: hidden_states(model, layers, ids, attention)
            )

    @property
    def _whole(self) -> Any:
        """The model as it was loaded: with its head where one is asked for."""
        model = self.model
        return self._head if self._has_head else model

    def _check_head(self, loaded: Any, missing: Sequence[str], auto_class: Any) -> None:
        """Raises where a model that was loaded with its head is not one whose probabilities can be read."""
        ids = self._probe.to(loaded.device)

        def logits() -> Tensor:
            """What the head says of the short text: [1, N, V]."""
            found: Tensor = loaded(**inputs_of(loaded, ids, torch.ones_like(ids))).logits
            return found

        with self._as_teacher_error(loaded, "a short text", "logits"):
            names = needed_weights(loaded, loaded, missing, lambda: [logits()]) if missing else []
            width, rows = logits().shape[-1], len(loaded.get_input_embeddings().weight)
            self._is_causal = not reads_ahead(loaded, ids, int(ids[0, 0]))
        if names:
            raise self._no_head(f"its weights lack {', '.join(names[:3])}, which {type(loaded).__name__} needs")
        if width != rows:
            raise self._no_head(f"its head has {width} tokens and its table of word embeddings {rows}")
        if not self._is_causal and auto_class.__name__ == "AutoModelForCausalLM":
            raise self._no_head(f"as {type(loaded).__name__} it reads what follows a token, and does not foretell it")
        mask_id = self.tokenizer.mask_token_id
        if self.mask and (self._is_causal or mask_id is None or mask_id >= rows):
            raise TeacherError(
                f"Teacher {self.name!r} ({type(loaded).__name__}) has no mask to read in a token's place; set "
                "model.comat.teacher.mask=false, or choose a masked language model such as bert-base-uncased."
            )

    def _no_head(self, why: str) -> TeacherError:
        return TeacherError(
            f"Teacher {self.name!r} has no language-model head whose probabilities could be learnt: {why}; choose a "
            "model such as bert-base-uncased or gpt2 for model.comat.teacher.name, or another "
            "model.comat.transfer.loss."
        )

    @functools.cached_property
    def stated_length(self) -> int:
        """Most tokens of a text, special ones included, by the config and the tokenizer; loads no weights."""
        special = self.tokenizer.num_special_tokens_to_add()
        keys = ("max_position_embeddings", "max_encoder_position_embeddings", "max_seq_len")
        stated = [self.tokenizer.model_max_length, *(getattr(self.config, key, None) for key in keys)]
        return int(min([self._max_length or NO_LIMIT, *(n for n in stated if is_limit(n) and n > special)]))

    @functools.cached_property
    def max_length(self) -> int:
        """Most tokens of a text, special ones included, which is `stated_length` where the model can read so many."""
        return self._limits.tokens

    @functools.cached_property
    def _limits(self) -> Limits:
        """What the loaded model can read. Checks that it knows the tokenizer's token ids."""
        model = self.model
        self._states(model, self._probe.to(next(model.parameters()).device))
        with self._as_teacher_error(model, "short texts"):
            limits = find_limits(model, self._some_ids, self.stated_length)
        if limits.token_ids is not None:
            # a special token that no text gets, such as one for padding, is not asked for
            ids = {**self._reader.ordinary, **self._reader.of_the_unknown}
            beyond = sorted((number, token) for token, number in ids.items() if number >= limits.token_ids)
            if beyond:
                raise TeacherError(
                    f"Teacher {self.name!r}: its tokenizer gives token {beyond[0][1]!r} the id {beyond[0][0]}, but the "
                    f"model has {limits.token_ids} token embeddings ({len(beyond)} tokens too few). Call "
                    "model.resize_token_embeddings(len(tokenizer)), train them and save both, or take the model's own "
                    "tokenizer."
                )
        return limits

    @property
    def _some_ids(self) -> list[int]:
        return sorted(self._reader.ordinary.values())[:2]

    @property
    def _probe(self) -> Tensor:
        """Token ids of a short text, [1, 4]."""
        return torch.tensor([(4 * self._some_ids)[:4]])

    def _refuse_random_weights(self, whole: Any, model: Any, missing: Iterable[str]) -> None:
        """Raises where weights that the embeddings depend on were not there: transformers fills in random numbers."""
        names = needed_weights(whole, model, missing, lambda: self._states(model, self._probe)) if missing else []
        if names:
            raise TeacherError(
                f"Teacher {self.name!r}: its weights lack {', '.join(names[:3])}"
                f"{f' and {len(names) - 3} more' if len(names) > 3 else ''}, which layers {self.layers} need."
            )

    def table(self, device: torch.device) -> Tensor:
        """The table of word embeddings, a row for each token id: [V, De] float32 on a device, without gradient.

        Args:
            device: torch.device.
        Raises:
            TeacherError: as `check_table` and `checked_table`.
        """
        if self._table is None or self._table[0] != device:
            self._decide_dtype(device)
            whole = self._whole
            table = self._table_of(lambda: whole)
            self._refuse_width(table.shape[1])
            self._table = device, checked_table(table.detach().to(device, torch.float32), self.name)
        return self._table[1]

    @functools.cached_property
    def _padding(self) -> int:
        """Id that fills rows; attention passes over it, but the model must have it."""
        number, limit = self.tokenizer.pad_token_id or 0, self._limits.token_ids
        return number if limit is None or number < limit else 0

    @functools.cached_property
    def _pads(self) -> bool:
        """Whether texts of several lengths may share a batch."""
        if self.max_length < self._probe.shape[1] + 2:
            return True
        ids = self._probe.to(next(self.model.parameters()).device)

        def read(ids: Tensor, attention: Tensor) -> list[Tensor]:
            """All that is taken of texts."""
            states = self._states(self.model, ids, attention)
            if not self._has_head:
                return states
            with self._as_teacher_error(self._head, "a short text", "logits"):
                return [*states, self._head(**inputs_of(self._head, ids, attention)).logits]

        if not reads_padding(read, ids, self._padding, self._weights_dtype):
            return True
        announce(f"The teacher {self.name} reads padding as text, so it gets texts of one length at a time: slower.")
        return False

    def _hidden(self, ids: Tensor, attention: Tensor) -> Tensor:
        dtype = self.dtype or fastest_dtype(ids.device)
        if next(self.model.parameters()).device != ids.device:
            self._whole.to(ids.device, None if dtype == self._weights_dtype else dtype)
            self._weights_dtype = dtype
        # a step's autocast would make other vectors of the same text
        with torch.inference_mode(), torch.autocast(ids.device.type, enabled=False):
            states = self._states(self.model, ids, attention)
        # outside of inference mode, whose own tensors no loss can be trained against
        return torch.stack([state.float() for state in states]).mean(0)

    def _states(self, model: Any, ids: Tensor, attention: Tensor | None = None) -> list[Tensor]:
        """The chosen layers' hidden states, each [B, n, Dp]; checks that there is one for each token of ids [B, n]."""
        attention = torch.ones_like(ids) if attention is None else attention
        with self._as_teacher_error(model, f"{len(ids)} texts of up to {ids.shape[1]} tokens"):
            if self.reads_table:
                # the table's rows alone: some models scale them or add positions where they look them up
                return self._checked([model.get_input_embeddings().weight[ids]], ids)
            chosen = hidden_states(model, [int(layer) for layer in self.layers], ids, attention)
        return self._checked(chosen, ids)

    def _checked(self, chosen: list[Tensor], ids: Tensor) -> list[Tensor]:
        wanted = (*ids.shape, self.dim)
        for layer, state in zip(self.layers, chosen):
            if state.shape != wanted:
                raise TeacherError(
                    f"Teacher {self.name!r}: layer {layer} has hidden states {list(state.shape)} for {ids.shape[1]} "
                    f"tokens, expected {list(wanted)}, one for each token; choose another model.comat.teacher.layers, "
                    "or a text model such as bert-base-uncased."
                )
        return chosen

    @contextmanager
    def _as_teacher_error(self, model: object, texts: str, what: str = "hidden states") -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of the model's own code
            raise TeacherError(
                f"Teacher {self.name!r} ({type(model).__name__}) returned no {what} for {texts}: {error}; "
                "if that tells nothing to mend, choose a text model such as bert-base-uncased for "
                "model.comat.teacher.name."
            ) from error


def hidden_states(model: Any, layers: Sequence[int], ids: Tensor, attention: Tensor) -> list[Tensor]:
    """A transformers model's hidden states of some layers: list of [B, n, Dp].

    Args:
        model: PreTrainedModel, or its encoder. layers: their numbers. ids, attention: [B, n].
    Examples:
        >>> from transformers import GPT2Config, GPT2Model
        >>> model = GPT2Model(GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1))
        >>> [x.shape for x in hidden_states(model, [0, -1], torch.tensor([[1, 2]]), torch.ones(1, 2))]
        [torch.Size([1, 2, 4]), torch.Size([1, 2, 4])]
    """
    states = model(**inputs_of(model, ids, attention), output_hidden_states=True).hidden_states
    return [states[layer] for layer in layers]


def leave_out_generation(model: torch.nn.Module) -> None:
    """Lets a decoder keep no keys and values for tokens that come after: here none do.

    Args:
        model: transformers' PreTrainedModel.
    Examples:
        >>> from transformers import GPT2Config, GPT2Model
        >>> model = GPT2Model(GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1))
        >>> leave_out_generation(model)
        >>> model(torch.tensor([[1, 2]])).past_key_values is None
        True
    """
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "use_cache", False):
            config.use_cache = False


def checked_table(table: Tensor, name: str) -> Tensor:
    """A teacher's table of word embeddings [V, De] as it is.

    Raises:
        TeacherError: a row has a number that is not finite, which would make every token's loss NaN.
    Examples:
        >>> checked_table(torch.ones(2, 3), "a teacher").shape
        torch.Size([2, 3])
    """
    finite = table.sum(1).isfinite()
    if not finite.all():
        raise TeacherError(
            f"Teacher {name!r}: {int((~finite).sum())} of {len(table)} rows of its table of word embeddings are not "
            f"finite, the first of token id {int((~finite).nonzero()[0])}; mend its weights, or set "
            "model.comat.transfer.loss=cosine."
        )
    return table
