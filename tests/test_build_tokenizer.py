"""The tokenizer script: it learns from a manifest's texts what the model reads."""

import json
import sys

import build_tokenizer as script
import pytest
from sentencepiece import SentencePieceProcessor

from nemo_comat import ComatCTCModelBPE


def test_tokenizer_script_builds_what_the_model_reads(manifest, tmp_path, monkeypatch, small_cfg, capfd):
    monkeypatch.setattr(sys, "argv", ["x", f"--manifest={manifest}", f"--data_root={tmp_path}", "--vocab_size=40"])
    folder = "tokenizer_spe_unigram_v40"
    script.main()
    said = capfd.readouterr()
    assert said.out.endswith(
        f"Tokenizer of 40 pieces built; train with model.tokenizer.dir={tmp_path}/tokenizer_spe_unigram_v40\n"
    )
    # SentencePiece's own log, which is of about ninety lines
    assert "trainer" not in said.err and "EM sub_iter" not in said.err
    small_cfg.tokenizer.dir = str(tmp_path / "tokenizer_spe_unigram_v40")
    model = ComatCTCModelBPE(cfg=small_cfg)
    assert model.tokenizer.vocab_size == 40
    text = json.loads(open(manifest).readline())["text"]
    assert model.tokenizer.ids_to_text(model.tokenizer.text_to_ids(text)) == text
    with pytest.raises(ValueError, match="no text to build a tokenizer from"):
        script.build_tokenizer([], tmp_path, vocab_size=40)
    # a tokenizer that models were trained with stays
    folder = tmp_path / "tokenizer_spe_unigram_v40"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "tokenizer.model").unlink()
    with pytest.raises(SystemExit, match="No tokenizer built: .*tokenizer.vocab exists already; .* or --overwrite"):
        script.main()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--overwrite"])
    script.main()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(sys, "argv", ["x", f"--manifest={manifest}", f"--data_root={tmp_path}/file"])
    with pytest.raises(SystemExit, match="No tokenizer built: .*file is no folder; give another place"):
        script.main()


def test_tokenizer_script_reads_long_texts_too(tmp_path):
    long = " ".join(["dog"] * 1500 + ["ñandú", "żółw"] + ["cat"] * 1500)
    # a text without spaces, of letters of three bytes each
    other = "犬猫" * 2000
    script.build_tokenizer([long, other, "a dog"] * 5, tmp_path, vocab_size=24, spe_type="char")
    tokenizer = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert tokenizer.unk_id() not in tokenizer.encode("ñandú żółw 犬猫 dog")
    assert script.lines_of("a  dog ") == ["a  dog "]


def test_tokenizer_script_learns_from_texts_only(tmp_path, capsys):
    spans = [{"str": "der", "lang": "de"}, {"str": "dog", "lang": "en"}]
    rows = [{"text": "a dog"}, {"text": None}, {}, {"text": ""}, {"normalized_text": "a cat"}, {"text": spans}]
    (tmp_path / "train.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert script.read_texts([tmp_path / "train.json"]) == ["a dog", "a cat", "der dog"]
    assert "3 of 6 rows have no text, or an empty one: left out." in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"text": "a"}\n{"text": "caf\xe9"}', "train.json line 2 is not UTF-8"),
        (b'{"text": 5}', "train.json line 1 has a text that cannot be read, 5"),
        (b"{oops", "train.json line 1 is not JSON"),
        (b"", "there is no text to build a tokenizer from"),
        (None, "train.json does not exist"),
    ],
)
def test_tokenizer_script_names_what_it_cannot_read(tmp_path, monkeypatch, content, message):
    if content is not None:
        (tmp_path / "train.json").write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["x", f"--manifest={tmp_path}/train.json", f"--data_root={tmp_path}"])
    with pytest.raises(SystemExit, match=message) as error:
        script.main()
    assert "\n" not in str(error.value)
