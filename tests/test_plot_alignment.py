"""The script that draws one utterance: what it draws of which model, and one sentence for every mistake."""

import copy
import json
import sys
from pathlib import Path

import configs
import numpy as np
import plot_alignment as script
import pytest
import soundfile
import torch
from nemo.collections.asr.models import EncDecHybridRNNTCTCBPEModel
from nemo.collections.asr.parts.preprocessing.segment import AudioSegment
from test_mixin import babbling

from nemo_comat import ComatCTCModelBPE

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def utterance(manifest):
    """Audio path and text."""
    row = json.loads(open(manifest).readline())
    return row["audio_filepath"], row["text"]


@pytest.fixture(scope="module")
def nemo_files(base_cfg, tmp_path_factory):
    """Paths of a COMAT model that says something, and of a plain one."""
    torch.manual_seed(0)  # what it says is the same whatever ran before
    folder, plain = tmp_path_factory.mktemp("models"), copy.deepcopy(base_cfg.model)
    plain.comat = None
    for name, cfg in (("comat", base_cfg.model), ("plain", plain)):
        babbling(ComatCTCModelBPE(cfg=cfg)).save_to(str(folder / f"{name}.nemo"))
    return str(folder / "comat.nemo"), str(folder / "plain.nemo")


def test_an_utterance_is_drawn_along_time(nemo_files, utterance, tmp_path, monkeypatch):
    audio, text = utterance
    seen = []
    monkeypatch.setattr(
        script, "plot_utterance", lambda alignment, file, title: file.touch() or seen.append((alignment, file, title))
    )
    script.draw(script.parse_args([nemo_files[0], audio, "--text", text, f"--out={tmp_path}/a.png"]))
    ((alignment, file, title),) = seen
    assert (file.name, title) == ("a.png", text)
    assert " ".join(alignment.tokens).replace(" ##", "") == text
    seconds = alignment.features.shape[1] * alignment.frame_seconds
    assert alignment.features.shape[0] == 80 and alignment.spans[-1][1] <= seconds + 0.04
    assert seconds == pytest.approx(soundfile.info(audio).duration, abs=0.02)


def test_the_models_own_transcript_is_aligned(nemo_files, utterance, tmp_path, monkeypatch):
    said, heard, seen = type("Hypothesis", (), {"text": utterance[1]}), [], []
    monkeypatch.setattr(ComatCTCModelBPE, "transcribe", lambda self, audio, verbose: heard.extend(audio) or [said])
    monkeypatch.setattr(script, "plot_utterance", lambda alignment, file, title: file.touch() or seen.append(title))
    script.draw(script.parse_args([nemo_files[0], utterance[0], "--decode", f"--out={tmp_path}/a.png"]))
    assert seen == [utterance[1]]
    assert heard[0].tolist() == AudioSegment.from_file(utterance[0], target_sr=16000).samples.tolist()


@pytest.mark.parametrize("decode", [True, False])
def test_two_channels_are_drawn_as_their_mean(nemo_files, utterance, tmp_path, monkeypatch, decode):
    audio, text = utterance
    samples, rate = soundfile.read(audio)
    # 2 x and 0 have x as their mean to the last bit, so that no near tie of the model's can tip
    for name, shares in (("mono", [1]), ("stereo", [2, 0])):
        channels = np.stack([share * samples for share in shares], 1)
        soundfile.write(tmp_path / f"{name}.wav", channels, rate, subtype="FLOAT")
    seen = []
    monkeypatch.setattr(
        script, "plot_utterance", lambda alignment, file, title: file.touch() or seen.append((alignment, title))
    )
    for name in ("mono", "stereo"):
        said = ["--decode"] if decode else ["--text", text]
        script.draw(script.parse_args([nemo_files[0], f"{tmp_path}/{name}.wav", *said, f"--out={tmp_path}/{name}.png"]))
    (mono, heard), (stereo, heard_twice) = seen
    assert heard == heard_twice and stereo.path.tolist() == mono.path.tolist()
    assert stereo.features.equal(mono.features)


def test_mistakes_get_one_sentence_and_exit_1(nemo_files, utterance, tmp_path, monkeypatch):
    comat, plain = nemo_files
    audio, text = utterance
    soundfile.write(tmp_path / "empty.wav", [], 8000)
    (tmp_path / "there.png").write_text("mine")
    for arguments, message in [
        ([f"{tmp_path}/gone.nemo", audio, "--text", text], "gone.nemo does not exist; give a .nemo file."),
        ([audio, audio, "--text", text], "is no archive; give a .nemo file."),
        ([comat, f"{tmp_path}/gone.wav", "--text", text], "gone.wav does not exist; give an audio file."),
        ([comat, f"{tmp_path}/gone.wav", "--decode"], "gone.wav does not exist; give an audio file."),
        ([comat, f"{tmp_path}/empty.wav", "--text", text], "empty.wav has no samples; give an audio file with speech"),
        ([comat, f"{tmp_path}/empty.wav", "--decode"], "empty.wav has no samples; give an audio file with speech"),
        ([comat, comat, "--decode"], "comat.nemo cannot be read as audio .*; give a WAV, FLAC or Ogg file"),
        ([comat, comat, "--text", text], "comat.nemo cannot be read as audio .*; give a WAV, FLAC or Ogg file"),
        ([comat, audio, "--text", " "], "--text is empty."),
        ([comat, audio, "--text", text, f"--out={tmp_path}/there.png"], "there.png exists already; .* or --overwrite"),
        ([comat, audio, "--text", text, f"--out={tmp_path}/there"], "there.png exists already; .* or --overwrite"),
        ([comat, audio, "--text", text, f"--out={audio}", "--overwrite"], f"{audio} is what is read; give another"),
        ([comat, audio, "--text", text, f"--out={comat}", "--overwrite"], "comat.nemo is what is read; give another"),
        ([comat, audio, "--text", text, f"--out={tmp_path}/there.png/a.png"], "there.png is no folder; give another"),
        ([comat, audio, "--text", text * 9], "has no alignment with"),
        ([plain, audio, "--text", text], "no active comat block"),
    ]:
        monkeypatch.setattr(sys, "argv", ["plot_alignment.py", *arguments])
        with pytest.raises(SystemExit, match=message) as error:
            script.main()
        assert "\n" not in str(error.value)
    assert (tmp_path / "there.png").read_text() == "mine"
    monkeypatch.setattr(sys, "argv", ["x", comat, audio, "--text", text, f"--out={tmp_path}/there", "--overwrite"])
    script.main()
    assert (tmp_path / "there.png").read_bytes()[:4] == b"\x89PNG" and not (tmp_path / "there").exists()


def test_a_model_that_is_none_of_ours_is_refused(base_cfg, utterance, tmp_path):
    cfg = configs.hybrid(copy.deepcopy(base_cfg).model)
    cfg.comat = None
    EncDecHybridRNNTCTCBPEModel(cfg=cfg).save_to(str(tmp_path / "m.nemo"))
    arguments = [f"{tmp_path}/m.nemo", utterance[0], "--text", "x", f"--out={tmp_path}/a.png"]
    with pytest.raises(ValueError, match="m.nemo holds a EncDecHybridRNNTCTCBPEModel, which this script cannot align"):
        script.draw(script.parse_args(arguments))
