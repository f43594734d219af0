"""The demo's report: error rate, transcripts, an alignment, and why one of them is missing."""

import json
import sys

import demo_report as script
import numpy as np
import pytest
import soundfile
from configs import CORPUS

from nemo_comat import ComatCTCModelBPE, TeacherError
from nemo_comat.models.manifest import ManifestError


def test_report_reads_manifests_as_nemo_does(tmp_path):
    (tmp_path / "a.wav").touch()
    rows = [{"audio_filename": "a.wav", "duration": 1, "normalized_text": "a dog"}]
    (tmp_path / "m.json").write_text(json.dumps(rows[0]))
    with script.read_manifest(tmp_path / "m.json") as read:
        assert read == ([str(tmp_path / "a.wav")], ["a dog"])
    for content, message in (
        ("{oops", "line 1 is not JSON"),
        ("", "has no rows"),
        (json.dumps({**rows[0], "offset": "1"}), "offset"),
    ):
        (tmp_path / "m.json").write_text(content)
        with pytest.raises(ManifestError, match=message), script.read_manifest(tmp_path / "m.json"):
            pass


def test_report_hears_the_part_of_a_file_that_a_row_names(tmp_path):
    samples = (np.arange(32000, dtype="float32") / 32000).reshape(-1, 2)
    soundfile.write(tmp_path / "a.wav", samples, 8000, subtype="FLOAT")
    parts = [{"offset": 0.5, "duration": 0.25}, {"offset": 1.5, "duration": None}, {"duration": 1}]
    lines = [json.dumps({"audio_filepath": "a.wav", "text": "a dog", **part}) for part in parts]
    (tmp_path / "m.json").write_text("\n".join(lines))
    with script.read_manifest(tmp_path / "m.json") as (audio, texts):
        heard = [soundfile.read(file, dtype="float32") for file in audio]
    assert [rate for _, rate in heard] == [8000] * 3 and texts == ["a dog"] * 3
    for (found, _), wanted in zip(heard, (samples[4000:6000], samples[12000:], samples[:8000])):
        np.testing.assert_array_equal(found, wanted)


def test_report_shows_error_rate_transcripts_picture_and_checkpoint(small_cfg, tmp_path, monkeypatch):
    ComatCTCModelBPE(cfg=small_cfg).save_to(str(tmp_path / "m.nemo"))
    lines = script.report(tmp_path / "m.nemo", CORPUS / "heldout.json")
    assert lines[0].startswith("Word error rate on 60 held-out utterances: ") and lines[0].endswith(" %")
    assert sum(line.startswith("  reference") for line in lines) == 5
    assert (tmp_path / "alignment.png").exists() and str(tmp_path / "m.nemo") in lines[-1]
    (tmp_path / "alignment.png").write_text("mine")
    for arguments, message in [
        ([f"{tmp_path}/m.nemo"], "alignment.png exists already; give another place to write to, or --overwrite"),
        ([f"{tmp_path}/m.nemo", f"--out={tmp_path}/m.nemo", "--overwrite"], "m.nemo is what is read"),
        ([f"{tmp_path}/gone.nemo"], "gone.nemo does not exist; give a .nemo file"),
        ([f"{tmp_path}/m.nemo", f"--out={tmp_path}/a.png", "--manifest=gone"], "gone does not exist .*; give"),
    ]:
        monkeypatch.setattr(sys, "argv", ["x", *arguments])
        with pytest.raises(SystemExit, match=message):
            script.main()
    assert (tmp_path / "alignment.png").read_text() == "mine"


def test_a_report_does_without_what_cannot_be_aligned(small_cfg, manifest, tmp_path):
    model = tmp_path / "m.nemo"
    ComatCTCModelBPE(cfg=small_cfg).save_to(str(model))
    rows = [json.loads(line) for line in open(manifest)][:2]
    for texts, picture in ((["", rows[1]["text"]], True), (["", "a " * 200], False)):
        (tmp_path / "m.json").write_text("\n".join(json.dumps({**row, "text": t}) for row, t in zip(rows, texts)))
        out = tmp_path / f"{picture}.png"
        lines = script.report(model, tmp_path / "m.json", out.with_suffix(""), tmp_path / f"{picture}.html")
        assert out.exists() is picture and any("No picture of an alig" in line for line in lines) is not picture
        page = (tmp_path / f"{picture}.html").read_text()
        assert lines[0].startswith("Word error rate on 2 utterances") and "expect little" not in page
        assert "was trained with COMAT. It transcribes without a language model" in page


def test_a_report_hears_several_channels(small_cfg, manifest, tmp_path):
    model = tmp_path / "m.nemo"
    ComatCTCModelBPE(cfg=small_cfg).save_to(str(model))
    row, lines = json.loads(open(manifest).readline()), []
    samples, rate = soundfile.read(row["audio_filepath"])
    for name, shares in (("mono", [1]), ("stereo", [2, 0])):
        channels = np.stack([share * samples for share in shares], 1)
        soundfile.write(tmp_path / f"{name}.wav", channels, rate, subtype="FLOAT")
        (tmp_path / "m.json").write_text(json.dumps({**row, "audio_filepath": f"{tmp_path}/{name}.wav"}))
        out = tmp_path / f"{name}.png"
        lines.append(script.report(model, tmp_path / "m.json", out, tmp_path / f"{name}.html"))
        assert out.exists()
    assert lines[0][:4] == lines[1][:4]


class Aligner:
    """Stands for a model whose align_text fails."""

    def __init__(self, error=None):
        self.error, self.asked = error, 0

    def align_text(self, audio, text):
        self.asked += 1
        if self.error is not None:
            raise self.error


def test_a_report_says_why_it_has_no_picture(tmp_path, monkeypatch):
    absent = TeacherError("Teacher 'x' cannot be loaded: no network.\nTry again.")

    def no_matplotlib(*args, **options):
        raise ImportError("Pictures of alignments need matplotlib: pip install 'nemo_comat[demo]'")

    monkeypatch.setattr(script, "plot_alignment", no_matplotlib)
    for model, asked, why in [
        (Aligner(absent), 1, "Teacher 'x' cannot be loaded: no network. Try again."),
        (Aligner(ValueError("too short")), 3, "too short"),
        (Aligner(), 1, "Pictures of alignments need matplotlib: pip install 'nemo_comat[demo]'"),
        (object(), None, "a object was not trained with COMAT."),
    ]:
        found = script.draw_alignment(model, ["a", "b", "c"], ["x", "y", "z"], tmp_path / "a.png")
        assert found == (None, f"No picture of an alignment: {why}") and not list(tmp_path.iterdir())
        assert getattr(model, "asked", None) == asked


def test_a_report_says_why_it_has_no_curves(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(script, "read_scalars", lambda folder: {"val_wer": [(1, 0.5)]})
    curves, (line,) = script.draw_curves(tmp_path / "checkpoints" / "m.nemo")
    assert curves is None and line.startswith("No curves of training: ") and "matplotlib" in line
    assert script.draw_curves(tmp_path / "m.nemo") == (None, [])
    monkeypatch.setattr(script, "read_scalars", lambda folder: {})
    assert script.draw_curves(tmp_path / "checkpoints" / "m.nemo") == (None, [])


def test_the_report_as_a_page_has_the_curves_of_a_run_that_went_on(small_cfg, tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    model = tmp_path / "run" / "checkpoints" / "m.nemo"
    ComatCTCModelBPE(cfg=small_cfg).save_to(str(model))
    for steps, value in (((1, 2), 3.0), ((2, 3), 1.0)):
        with SummaryWriter(tmp_path / "run") as writer:
            for step in steps:
                writer.add_scalar("train_ctc_loss", value, step)
                writer.add_scalar("val_wer", value / 4, step)
    scalars = script.read_scalars(tmp_path / "run")
    assert scalars["train_ctc_loss"] == [(1, 3.0), (2, 1.0), (3, 1.0)]
    assert script.curves_of(scalars)["word error rate, held-out, %"]["dev"] == [(1, 75), (2, 25), (3, 25)]
    lines = script.report(model, CORPUS / "heldout.json", html=tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:audio/ogg") == 5 and page.count("data:image/png") == page.count("data:image/svg+xml") == 1
    assert str(model) in page and (tmp_path / "report.html").as_uri() in lines[-1]
    assert f"<dd>{lines[0].removeprefix('Word error rate on 60 held-out utterances: ')}</dd>" in page
    with pytest.raises(ValueError, match="report.html exists already"):
        script.report(model, CORPUS / "heldout.json", tmp_path / "a.png", html=tmp_path / "report.html")
