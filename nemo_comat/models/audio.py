"""One audio file as the recogniser hears it: at its sample rate, in one channel."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import soundfile
import torch
from nemo.collections.asr.parts.preprocessing.segment import AudioSegment
from nemo.utils import logging
from omegaconf import OmegaConf
from torch import Tensor

from nemo_comat.output import PathLike


def read_audio(file: PathLike, sample_rate: int, channel_selector: str | int | Sequence[int] | None = None) -> Tensor:
    """Reads an audio file for a recogniser of one channel.

    Args:
        file: path.
        sample_rate: Hz to resample to.
        channel_selector: as in a ``train_ds`` block of NeMo's: "average", the number of a channel, a list of one
            number, or None. Several channels are averaged where it names none of them.
    Returns:
        float32 [samples].
    Raises:
        ValueError: the file cannot be read as audio, has no samples, or lacks the channel.
    Examples:
        >>> read_audio("/no/a.wav", 16000)
        Traceback (most recent call last):
        ValueError: /no/a.wav does not exist; give an audio file.
    """
    if not Path(file).is_file():
        found = "is a folder" if Path(file).is_dir() else "does not exist"
        raise ValueError(f"{file} {found}; give an audio file.")
    try:
        heard = AudioSegment.from_file(str(file))
    except Exception as error:  # of soundfile, pydub or ffmpeg, by NeMo's version and the file's name
        reason = " ".join(str(error).split())
        raise ValueError(f"{file} cannot be read as audio ({reason}); give a WAV, FLAC or Ogg file.") from error
    if not heard.samples.size:
        raise ValueError(f"{file} has no samples; give an audio file with speech in it.")
    channel = _channel(file, 1 if heard.samples.ndim == 1 else heard.samples.shape[1], channel_selector)
    one = AudioSegment(heard.samples, heard.sample_rate, target_sr=sample_rate, channel_selector=channel)
    return torch.as_tensor(one.samples, dtype=torch.float32)


def cut_out(item: Mapping[str, Any], file: PathLike) -> str:
    """What a manifest's row names of its audio, as NeMo reads it; it is written where no file holds just that.

    Args:
        item: dict with NeMo's `audio_file`, `offset` and `duration`, as `nemo_comat.models.rows.read_rows` gives it.
        file: path of a WAV file to write to, where the row is a part of a file or names several.
    Returns:
        str, the row's audio file, or `file`.
    Examples:
        >>> cut_out({"audio_file": "a.wav", "offset": None, "duration": None}, "cut.wav")
        'a.wav'
    """
    if item["offset"] is None and isinstance(item["audio_file"], str) and not _ends_before(item):
        return item["audio_file"]
    heard = AudioSegment.from_file(
        item["audio_file"],
        offset=item["offset"] or 0,
        duration=item["duration"] or 0,  # 0 = to the end
    )
    soundfile.write(file, heard.samples, heard.sample_rate, subtype="FLOAT", format="WAV")
    return str(file)


def _ends_before(item: Mapping[str, Any]) -> bool:
    """Whether a row ends before its file does, by more than rounding; no where the file's length cannot be told."""
    try:
        return item["duration"] is not None and item["duration"] < soundfile.info(item["audio_file"]).duration - 0.01
    except RuntimeError:  # of what is no file, or of a kind that others read
        return False


def _channel(file: PathLike, channels: int, selector: Any) -> str | int:
    """What NeMo is told: "average", or the number of a channel that the file has."""
    if OmegaConf.is_list(selector) or isinstance(selector, (list, tuple)):
        if len(selector) != 1:
            raise ValueError(
                f"train_ds.channel_selector is {list(selector)}, but the recogniser hears one channel; give the number "
                "of one, or average."
            )
        selector = selector[0]
    if isinstance(selector, int):
        if not -channels <= selector < channels:
            raise ValueError(
                f"{file} has {channels} channel{'s' * (channels > 1)}, but train_ds.channel_selector of the model's "
                f"config is {selector}, counted from 0; give a file that has that channel."
            )
        return selector if channels > 1 else "average"
    if channels > 1 and selector != "average":
        # Lhotse's other strings are keys of manifests, which say it for each utterance
        logging.info(f"{file} has {channels} channels, and the model's config names none of them: they are averaged.")
    return "average"
