"""Alignments of a model, to look at."""

import pytest
from omegaconf import OmegaConf
from test_mixin import RELATIVES, ROOT, with_comat

from nemo_comat import ComatCTCModelBPE, plot_alignment


@pytest.mark.parametrize("name", RELATIVES[:3])
def test_relatives_give_an_alignment_to_look_at(small_cfg, manifest, tmp_path, name):
    small_cfg.comat = OmegaConf.merge(small_cfg.comat, OmegaConf.load(ROOT / "conf" / f"{name}.yaml").model.comat)
    row = OmegaConf.create(open(manifest).readline())
    alignment = ComatCTCModelBPE(cfg=small_cfg).align_text(row.audio_filepath, row.text)
    assert len(alignment.path) == len(alignment.labels) == len(alignment.spans) == len(alignment.score)
    if name == "optimal_transport":
        assert "" not in alignment.labels and all(end > start for start, end in alignment.spans)
    else:
        assert alignment.path.tolist() == list(range(len(alignment.tokens))) and set(alignment.labels) == {""}
        plot_alignment(alignment, tmp_path / "a.png")


@pytest.mark.parametrize("labels", ["forced", "greedy"])
def test_alignment_of_one_utterance(small_cfg, manifest, tmp_path, labels):
    small_cfg.comat.compress.labels = labels
    model = ComatCTCModelBPE(cfg=small_cfg).train()
    row = OmegaConf.create(open(manifest).readline())
    if labels == "greedy":
        # an untrained model's output has too few segments for the text
        with pytest.raises(ValueError, match="no alignment with"):
            model.align_text(row.audio_filepath, row.text + " and the very long boat" * 20)
        return
    alignment = model.align_text(row.audio_filepath, row.text)
    assert model.training
    assert "".join(alignment.labels).replace("▁", " ").split() == row.text.split()
    assert " ".join(alignment.tokens).replace(" ##", "") == row.text
    assert alignment.path[0] == 0 and alignment.path[-1] == len(alignment.tokens) - 1
    assert all(0 <= start < end <= row.duration + 0.1 for start, end in alignment.spans)
    assert all(a[1] <= b[0] for a, b in zip(alignment.spans, alignment.spans[1:]))
    plot_alignment(alignment, tmp_path / "a.png", title=row.text)
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_aligning_without_comat_says_so(small_cfg, manifest):
    model = ComatCTCModelBPE(cfg=with_comat(small_cfg, None))
    with pytest.raises(ValueError, match="no active comat block"):
        model.align_text("x.wav", "hello")
