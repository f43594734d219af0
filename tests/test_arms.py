"""The recipe's arms and the settings of a run."""

import argparse
import json
import shutil
import subprocess
import sys

import arms
import pytest
import run
import train
from recipe import RECIPE


@pytest.mark.parametrize("scale", train.RECIPE.scales)
def test_arms_differ_only_in_their_losses(data, tmp_path, scale):
    configs = {arm: arms.arm_config(arm, data, tmp_path, scale)[0] for arm in train.RECIPE.arms}
    layer = (configs["ctc"].model.encoder.n_layers - 1) // 2
    for arm, cfg in configs.items():
        conditioned, two_views = arm == "self_conditioned", arm in ("default", "cr_ctc", "interctc_cr")
        between = arm in ("interctc", "one_view", "default", "self_conditioned", "interctc_cr")
        assert cfg.model.interctc == {"loss_weights": [0.3] * between, "apply_at_layers": [layer] * between}
        without = ("ctc", "interctc", "self_conditioned", "cr_ctc", "interctc_cr")
        assert (cfg.model.comat.weight != 0) == (arm not in without)
        assert cfg.model.comat.consistency_weight == (0.2 if two_views else 0)
        assert cfg.model.spec_augment.time_masks == (12 if two_views else 5)
        cfg.model.spec_augment.time_masks = 0
        assert cfg.model.comat.feedback == ("ctc" if conditioned else False)
    methods = {arm: (cfg.model.comat.compress.method, cfg.model.comat.align.method) for arm, cfg in configs.items()}
    assert methods["kt_rl_cif"] == ("cif", "one_to_one") and methods["optimal_transport"] == ("none", "sinkhorn")
    for cfg in configs.values():
        del cfg.model.comat, cfg.model.interctc, cfg.name
        assert cfg.model == configs["ctc"].model and cfg.trainer == configs["ctc"].trainer


def test_paths_may_have_any_sign(tmp_path):
    place = tmp_path / 'jürgen\'s [LAYER] (5h), a=b \\ "x"' / "数据"
    start = place / "m.nemo"
    cfg, overrides = arms.arm_config("interctc", place, place / "run", "cpu", ["model.optim.lr=1"], start)
    assert cfg.model.train_ds.manifest_filepath == str(place / "train.json")
    assert cfg.model.validation_ds.manifest_filepath == str(place / "dev.json")
    assert cfg.model.tokenizer.dir == str(place / "tokenizer") and cfg.init_from_nemo_model == str(start)
    assert cfg.exp_manager.explicit_log_dir == str(place / "run" / "nemo")
    # as they were recorded before
    assert f"model.tokenizer.dir={place}/tokenizer" in overrides and overrides[-2] == "model.optim.lr=1"
    assert overrides[-1] == f"++init_from_nemo_model={start}" and cfg.model.interctc.apply_at_layers == [1]
    # who gives a path himself has the last word
    own = ["model.tokenizer.dir=mine", "model.comat.teacher.name=/MULTILAYER-bert"]
    cfg, _ = arms.arm_config("ctc", place, place / "run", "cpu", own)
    assert cfg.model.tokenizer.dir == "mine" and cfg.model.comat.teacher.name == "/MULTILAYER-bert"


def test_data_are_known_by_what_they_say(data, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    text = (moved / "train.json").read_text()
    (moved / "train.json").write_text(text.replace(str(data.parent), "/elsewhere"))
    assert arms.digests(moved) == arms.digests(data)
    (moved / "train.json").write_text(text.replace('"text": "', '"text": "other '))
    assert {name for name, digest in arms.digests(moved).items() if digest != arms.digests(data)[name]} == {
        "train.json"
    }


def test_a_run_goes_on_where_its_data_were_moved(data, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for place in (here, there):
        shutil.copytree(data, place)
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    before = arms.settings("ctc", 1, here, run_folder, "cpu")[1]
    (run_folder / "run.json").write_text(json.dumps(before))
    assert arms.recorded(run_folder, arms.settings("ctc", 1, there, run_folder, "cpu")[1]) == before
    with pytest.raises(ValueError, match="holds a run of other settings"):
        arms.recorded(run_folder, arms.settings("ctc", 1, there, run_folder, "cpu", ["trainer.max_epochs=3"])[1])


def test_a_run_goes_on_where_what_it_began_with_was_moved(data, tmp_path):
    def begun(name, content):
        folder = tmp_path / name / "ctc" / "seed1"
        (folder / "nemo" / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text('{"finished": true}')
        (folder / "nemo" / "checkpoints" / "a.nemo").write_bytes(content)
        return arms.settings("ctc", 1, data, tmp_path, "cpu", start=folder.parent)[1]

    before = begun("old", b"weights")
    (tmp_path / "run.json").write_text(json.dumps(before))
    assert arms.recorded(tmp_path, begun("new", b"weights")) == before
    for other in (begun("new", b"others"), arms.settings("ctc", 1, data, tmp_path, "cpu")[1]):
        with pytest.raises(ValueError, match="holds a run of other settings"):
            arms.recorded(tmp_path, other)
    # a run of before has the place alone
    del before["start"]
    (tmp_path / "run.json").write_text(json.dumps(before))
    assert arms.recorded(tmp_path, begun("old", b"others")) == before
    with pytest.raises(ValueError, match="holds a run of other settings"):
        arms.recorded(tmp_path, begun("new", b"weights"))


@pytest.mark.parametrize("text", ["-1", "4000001", "1.5", "20240101", "one", ""])
def test_a_seed_whose_epochs_would_have_none_is_refused(text, capsys, monkeypatch):
    assert arms.given_seed("0") == 0 and arms.given_seed("4000000") == arms.MOST_SEED
    monkeypatch.setattr(sys, "argv", ["run.py", "--data=a", "--out=b", "--seeds", "1", text])
    with pytest.raises(SystemExit):
        run.main()
    said = capsys.readouterr().err
    assert f"a seed is a whole number from 0 to 4,000,000, got {text!r}" in said or text == "-1"


@pytest.mark.parametrize("text", ["a/b", "..", "a/"])
def test_a_name_that_report_would_not_find_is_refused(text):
    assert arms.run_name("a b") == "a b"
    with pytest.raises(argparse.ArgumentTypeError, match="a run's name is that of a folder in OUT"):
        arms.run_name(text)


def test_settings_are_compared_without_nemo():
    check = "import run, sys; sys.exit('nemo' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=RECIPE).returncode == 0
