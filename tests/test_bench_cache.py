"""The benchmark of a cache: it measures what it says, on texts that the live teacher has not seen."""

import itertools
import json
import sys

import bench_cache


def test_look_ups_are_held_against_texts_that_are_new_to_the_live_teacher(tmp_path, monkeypatch, capsys):
    whole, given = bench_cache.live, []
    monkeypatch.setattr(bench_cache, "live", lambda batches: given.extend(batches) or whole(batches))
    monkeypatch.setattr("machine.copy_bandwidth", lambda device: 1e9)
    options = ["--texts=20", "--batch=2", "--batches=3", "--seconds", "1", "2", f"--out={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["bench_cache.py", *options])
    bench_cache.main()
    assert len(given) == bench_cache.LIVE and len(set(itertools.chain(*given))) == 2 * bench_cache.LIVE
    found = json.loads((tmp_path / "cache.json").read_text())
    assert found["texts"] == 20 and found["index_bytes"] > 0 and found["shard_bytes"] > 20 * 384
    said = capsys.readouterr().out
    assert "| batch of 2, time by that of MiniLM live | " in said and f"written: {tmp_path}/cache.json" in said
    assert [path.name for path in tmp_path.iterdir()] == ["cache.json"]
