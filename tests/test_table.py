"""The table of a teacher's word embeddings: its width whatever the model calls it, and tables that are of no use."""

import pytest
import test_limits
import torch
from test_head import save
from transformers import AutoModel

from nemo_comat import Teacher, TeacherError, write_cache

# each names the table's width in its own way; the layers have 16
NARROW = {
    "albert": {},
    "electra": {},
    "opt": dict(word_embed_proj_dim=8),
    "rembert": dict(input_embedding_size=8),
}


@pytest.fixture(autouse=True)
def more_families(monkeypatch):
    for family in ("rembert", "canine"):
        monkeypatch.setitem(test_limits.FAMILIES, family, test_limits.POSITIONS)


@pytest.mark.parametrize("family", NARROW)
def test_a_table_may_be_narrower_than_the_layers(tmp_path, family):
    name = save(tmp_path, family, AutoModel, **NARROW[family])
    table = AutoModel.from_pretrained(name).get_input_embeddings().weight
    teacher = Teacher(name, layers="table")
    assert teacher.table_width == teacher.dim == 8 and table.shape[1] == 8
    teacher.check_table()
    out = teacher.encode(["the dog"])
    assert out.embeddings[0].equal(table[out.token_id[0]].detach())
    assert teacher.table(torch.device("cpu")).equal(table)


@pytest.mark.parametrize("family", NARROW)
def test_a_narrow_table_is_no_class_for_the_layers(tmp_path, family):
    teacher = Teacher(save(tmp_path, family, AutoModel, **NARROW[family]))
    assert teacher.dim == 16
    for ask in (teacher.check_table, lambda: teacher.table(torch.device("cpu"))):
        with pytest.raises(TeacherError, match="width 8, its layers 16, so .*layers=table, or .*loss=cosine"):
            ask()


def test_a_narrow_table_is_not_cached(tmp_path):
    teacher = Teacher(save(tmp_path / "model", "albert", AutoModel))
    assert list(write_cache(tmp_path / "cache", teacher, ["the dog"])) == [1]
    assert not (tmp_path / "cache" / "table.safetensors").exists()


def test_no_weights_are_read_for_the_width(tmp_path):
    name = save(tmp_path, "albert", AutoModel)
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    assert Teacher(name, layers="table").dim == 8


def test_a_model_without_a_table(tmp_path):
    # CANINE reads letters by hashes
    teacher = Teacher(save(tmp_path, "canine", AutoModel))
    with pytest.raises(TeacherError, match="has no table of word embeddings .*loss=cosine"):
        teacher.check_table()
