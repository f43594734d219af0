"""The scripts that look into a run: alignments, gradients, a probe, the time of a step."""

import json
import sys
import time
from types import SimpleNamespace

import alignments
import gradients
import probe
import pytest
import step_time
import torch
from recipe import TINY

from nemo_comat import ComatCTCModelBPE, ConfigError, TeacherError
from nemo_comat.views.plot import Alignment


def test_the_pull_is_measured_at_each_layer_that_is_taught(small_cfg):
    small_cfg.comat.encoder_layer = [0, 1]
    model = ComatCTCModelBPE(cfg=small_cfg).eval()
    pull = gradients.gradients(model, next(iter(model._validation_dl)))
    assert pull["active"] == 1 and pull["ratio"] > 0 and abs(pull["cosine"]) <= 1


def test_the_time_of_a_step_is_told_by_its_parts(data, monkeypatch):
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *args: time.sleep(0.3) or step(*args))
    # more than the data's two batches
    found = step_time.measure(data, "cpu_real", 3, [*TINY, "model.train_ds.batch_size=4"])
    assert list(found) == ["float32", "bfloat16"]
    for parts in found.values():
        assert list(parts) == list(step_time.PARTS) and all(seconds > 0 for seconds in parts.values())
        assert parts["optimizer"] > 0.3 > parts["features"]


def test_times_are_parts_of_the_whole_float32_step():
    whole = dict(zip(step_time.PARTS, (5.0, 1.0, 2.0, 1.0, 4.0, 2.0)))
    half = {part: seconds / 2 for part, seconds in whole.items()}
    assert step_time.table({"float32": whole, "bfloat16": half}).splitlines()[2:] == [
        "| float32 | 1.00 | 0.50 | 0.10 | 0.20 | 0.10 | 0.40 | 0.20 |",
        "| bfloat16 | 0.50 | 0.25 | 0.05 | 0.10 | 0.05 | 0.20 | 0.10 |",
    ]


def test_pieces_find_the_teachers_tokens_by_their_letters():
    # "the played ox": tokens the, play, ##ed, ox
    offsets = [(0, 3), (4, 8), (8, 10), (11, 13)]
    pieces = ["▁th", "e", "▁", "pl", "ay", "ed", "▁o", "x"]
    assert probe.token_of_pieces(pieces, offsets) == [0, 0, 1, 1, 1, 2, 3, 3]


def test_alignments_are_checked_by_words(tmp_path):
    tokens, labels = ["the", "play", "##ed", "ox"], ["▁the", "▁", "pl", "ay", "ed", "▁o", "x"]
    assert alignments.words_of_labels(labels) == [0, 1, 1, 1, 1, 2, 2]
    # the cosines draw all but the ends to "play", though each segment fits its own token better than the others do
    path = torch.tensor([0, 1, 1, 1, 2, 3, 3])
    score = torch.tensor([0.0, 1.0, 0.0, 0.0]) + 0.3 * torch.nn.functional.one_hot(path)

    class Model:
        _teacher = SimpleNamespace(word_indices=lambda texts: [[0, 1, 1, 2]])

        def align_text(self, audio, text):
            if text == "none":
                raise ValueError
            return Alignment(score, path, tokens, labels, [])

    (tmp_path / "m.json").write_text(
        "".join(
            json.dumps({"audio_filepath": "a.wav", "duration": 1, "text": text}) + "\n"
            for text in ("the played ox", "none")
        )
    )
    shares = alignments.right_shares(Model(), tmp_path / "m.json", 2, [0.1])
    assert shares["as the model aligns"] == 1 and shares["by cosine"] == pytest.approx(6 / 7)
    assert 0.5 < shares["evenly"] < 1 and shares["at temperature 0.1"] == 1
    for other in (list("theplayedox"), ["▁the", "blank", "▁played", "▁ox"]):
        labels[:] = other
        with pytest.raises(
            ConfigError, match="m.json line 1 has segments .*, which do not spell 'the played ox'; give"
        ):
            alignments.right_shares(Model(), tmp_path / "m.json", 2)


def test_alignments_of_no_model_or_no_utterance_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["alignments.py", f"{tmp_path}/gone.nemo", f"{tmp_path}/m.json"])
    with pytest.raises(SystemExit, match="gone.nemo does not exist; give a .nemo file"):
        alignments.main()
    monkeypatch.setattr(alignments, "check_nemo_file", lambda file: None)
    monkeypatch.setattr(alignments.ComatCTCModelBPE, "restore_from", lambda *args, **options: "NeMo's own")
    with pytest.raises(SystemExit, match="gone.nemo holds a str, which has no alignments; give one of ours"):
        alignments.main()
    monkeypatch.setattr(alignments, "ComatMixin", str)
    monkeypatch.setattr(alignments, "right_shares", lambda *args: {})
    with pytest.raises(SystemExit, match="No utterance of .*m.json could be aligned"):
        alignments.main()


@pytest.mark.parametrize("script, work", [(alignments, "right_shares"), (gradients, "measure"), (probe, "collect")])
def test_a_teacher_that_cannot_be_had_is_one_sentence(tmp_path, monkeypatch, script, work):
    def no_teacher(*args):
        raise TeacherError("Teacher 'x' cannot be loaded: no network.")

    monkeypatch.setattr(script, work, no_teacher)
    monkeypatch.setattr(alignments, "check_nemo_file", lambda file: None)
    monkeypatch.setattr(alignments.ComatCTCModelBPE, "restore_from", lambda *args, **options: "a model")
    monkeypatch.setattr(alignments, "ComatMixin", str)
    monkeypatch.setattr(probe, "restore_on_dev", lambda *args: SimpleNamespace(_validation_dl=None))
    given = [f"{tmp_path}/m.json"] if script is alignments else [f"--data={tmp_path}"]
    monkeypatch.setattr(sys, "argv", [script.__name__, f"{tmp_path}/m", *given])
    with pytest.raises(SystemExit, match="^Teacher 'x' cannot be loaded: no network.$"):
        script.main()


def test_the_probe_finds_what_is_there_and_nothing_else():
    torch.manual_seed(0)
    token_id = torch.randint(0, 20, (600,))
    text, fitted = torch.randn(20, 8)[token_id], torch.arange(600) < 400
    cosine, mean, same = probe.fit(text @ torch.randn(8, 16), text, token_id, fitted)
    assert cosine > 0.99 and same == 1 and abs(mean) < 0.6
    cosine, mean, same = probe.fit(torch.randn(600, 16), text, token_id, fitted)
    assert cosine < mean + 0.1 and same < 0.2
