"""Audio files: the channel and the rate that the recogniser hears, and one sentence for what it cannot."""

import copy

import configs
import numpy as np
import pytest
import soundfile
from omegaconf import OmegaConf, open_dict

from nemo_comat import ComatCTCModel, ComatCTCModelBPE, ComatHybridRNNTCTCModelBPE
from nemo_comat.models.audio import cut_out, read_audio

LEFT, RIGHT = np.float32([0.5, 0.25, -0.5, 0.0] * 1000), np.float32([0.0, 0.25, 0.5, -1.0] * 1000)


@pytest.fixture
def stereo(tmp_path):
    soundfile.write(tmp_path / "stereo.wav", np.stack([LEFT, RIGHT], 1), 16000, subtype="FLOAT")
    return tmp_path / "stereo.wav"


@pytest.fixture
def mono(tmp_path):
    soundfile.write(tmp_path / "mono.wav", LEFT, 16000, subtype="FLOAT")
    return tmp_path / "mono.wav"


@pytest.mark.parametrize(
    "selector, wanted",
    [
        (None, (LEFT + RIGHT) / 2),
        ("average", (LEFT + RIGHT) / 2),
        ("channel_of_this_row", (LEFT + RIGHT) / 2),
        (0, LEFT),
        (1, RIGHT),
        (-1, RIGHT),
        ([1], RIGHT),
        (OmegaConf.create([0]), LEFT),
    ],
)
def test_two_channels_become_one(stereo, selector, wanted):
    assert read_audio(stereo, 16000, selector).tolist() == wanted.tolist()


@pytest.mark.parametrize("selector", [None, "average", 0, [0]])
def test_one_channel_is_taken_as_it_is(mono, selector):
    assert read_audio(mono, 16000, selector).tolist() == LEFT.tolist()


def test_another_rate_is_resampled(stereo, tmp_path):
    assert len(read_audio(stereo, 8000)) == 2000
    # a tone stays the tone that it was
    tone = np.sin(2 * np.pi * 440 * np.arange(48000) / 48000)
    soundfile.write(tmp_path / "tone.wav", np.stack([tone, tone], 1), 48000, subtype="FLOAT")
    spectrum = np.abs(np.fft.rfft(read_audio(tmp_path / "tone.wav", 16000).numpy()))
    assert spectrum.argmax() == 440


def test_what_cannot_be_heard_gets_one_sentence(stereo, mono, tmp_path):
    (tmp_path / "text.wav").write_text("no audio")
    for rate, name in ((16000, "empty"), (8000, "empty8")):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros((0, 2)), rate)
    for file, selector, message in [
        (tmp_path, None, f"{tmp_path} is a folder; give an audio file"),
        (tmp_path / "gone.wav", None, "gone.wav does not exist; give an audio file"),
        (tmp_path / "text.wav", None, r"text.wav cannot be read as audio \(.*\); give a WAV, FLAC or Ogg file"),
        (tmp_path / "empty.wav", None, "empty.wav has no samples; give an audio file with speech in it"),
        (tmp_path / "empty8.wav", 1, "empty8.wav has no samples"),
        (mono, 1, "mono.wav has 1 channel, but train_ds.channel_selector of the model's config is 1, counted from 0"),
        (stereo, 2, "stereo.wav has 2 channels, but train_ds.channel_selector of the model's config is 2"),
        (stereo, [0, 1], r"channel_selector is \[0, 1\], but the recogniser hears one channel; give the number of one"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            read_audio(file, 16000, selector)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "cls, change",
    [
        (ComatCTCModelBPE, lambda cfg: cfg),
        (ComatCTCModel, configs.characters),
        (ComatHybridRNNTCTCModelBPE, configs.hybrid),
    ],
)
def test_a_model_hears_the_channel_of_its_config(base_cfg, manifest, tmp_path, cls, change):
    model = cls(cfg=change(copy.deepcopy(base_cfg).model)).eval()
    row = OmegaConf.create(open(manifest).readline())
    speech, rate = soundfile.read(row.audio_filepath, dtype="float32")
    soundfile.write(tmp_path / "mono.wav", speech, rate, subtype="FLOAT")
    soundfile.write(tmp_path / "two.wav", np.stack([0 * speech, speech], 1), rate, subtype="FLOAT")
    with open_dict(model.cfg):
        model.cfg.train_ds.channel_selector = 1
    two = model.align_text(str(tmp_path / "two.wav"), row.text)
    # a model without training data in its config hears all there is
    with open_dict(model.cfg):
        model.cfg.train_ds = None
    mono = model.align_text(str(tmp_path / "mono.wav"), row.text)
    assert two.path.tolist() == mono.path.tolist() and two.features.equal(mono.features)
    assert model.read_audio(tmp_path / "two.wav").numpy() == pytest.approx(speech / 2)


def test_a_row_is_cut_where_nemo_cuts_it(manifest, tmp_path):
    file = OmegaConf.create(open(manifest).readline()).audio_filepath
    speech, rate = soundfile.read(file, dtype="float32")
    rows = [(None, None), (None, len(speech) / rate), (None, 0.5), (0.25, 0.5), (0.25, None)]
    for number, (offset, duration) in enumerate(rows):
        cut = cut_out({"audio_file": file, "offset": offset, "duration": duration}, tmp_path / f"{number}.wav")
        assert (cut == file) == (number < 2)
        wanted = speech[int((offset or 0) * rate) :][: int((duration or 99) * rate)]
        assert soundfile.read(cut, dtype="float32")[0].tolist() == wanted.tolist()
