"""Builds a SentencePiece tokenizer from NeMo manifests, for `model.tokenizer.dir`.

    python examples/build_tokenizer.py --manifest=train.json --data_root=tokenizers --vocab_size=128

A tokenizer that is there already is replaced with --overwrite alone: models that were trained with it need it.

The options and the folder's name are among those of NeMo's scripts/tokenizers/process_asr_text_tokenizer.py, which is
not in NeMo's wheel; the tokenizer itself is built by NeMo's `create_spt_model`.
"""

import argparse
import os
import shutil
import sys
import tempfile
import textwrap
from pathlib import Path

from nemo_comat.output import check_outputs, one_sentence, written_beside
from nemo_comat.waiting import announce, announce_nemo, kept_out

FILES = ("tokenizer.model", "tokenizer.vocab", "vocab.txt")
# letters, each of four bytes at the most
LINE = 1000


def read_texts(manifests):
    """Transcripts of several manifests; rows without one are left out, and counted on stderr.

    Raises:
        ManifestError: a manifest, or one of its texts, cannot be read.
    """
    announce_nemo()
    from nemo_comat.models.rows import read_texts as texts_of

    texts = [text for path in manifests for text in texts_of(path)]
    said = [text for text in texts if text]
    if len(said) < len(texts):
        left_out = len(texts) - len(said)
        print(f"{left_out} of {len(texts)} rows have no text, or an empty one: left out.", file=sys.stderr)
    return said


def load_builder():
    """NeMo's `create_spt_model`."""
    announce_nemo()
    from nemo.collections.common.tokenizers.sentencepiece_tokenizer import create_spt_model

    return create_spt_model


def build_tokenizer(
    texts, folder, *, vocab_size, spe_type="unigram", character_coverage=1.0, lower_case=True, overwrite=False
):
    """Writes tokenizer.model, tokenizer.vocab and vocab.txt into a folder.

    Args:
        texts: list of strings.
        folder: made if missing.
        vocab_size: pieces, <unk> included.
        spe_type: SentencePiece's unigram, bpe, char or word.
        character_coverage: share of the characters that get a piece of their own.
        lower_case: bool.
        overwrite: True where a tokenizer in the folder may be replaced.
    Raises:
        ValueError: texts is empty, or a tokenizer is there already.
        RuntimeError: SentencePiece cannot make so many pieces of so little text.
    """
    if not texts:
        raise ValueError("there is no text to build a tokenizer from; give manifests whose rows have a text")
    folder = Path(folder).resolve()
    check_outputs([folder / name for name in FILES], overwrite=overwrite)
    create_spt_model = load_builder()
    announce(f"Building a tokenizer of {len(texts)} texts; this takes about 10 seconds for each 100,000 of them.")
    start = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        # SentencePiece writes the paths that it is given into the model, so it is given relative ones
        os.chdir(scratch)
        try:
            lines = (line for text in texts for line in lines_of(text))
            Path("document.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            with kept_out():
                create_spt_model(
                    "document.txt",
                    vocab_size=vocab_size,
                    sample_size=-1,
                    do_lower_case=lower_case,
                    tokenizer_type=spe_type,
                    output_dir="tokenizer",
                    character_coverage=character_coverage,
                )
        finally:
            os.chdir(start)
        for name in FILES:
            with written_beside(folder / name) as file:
                shutil.copyfile(Path(scratch, "tokenizer", name), file)


def lines_of(text):
    """A text, cut at spaces where it is long: SentencePiece passes over lines of more than 4,192 bytes."""
    return textwrap.wrap(text, LINE, break_on_hyphens=False) if len(text) > LINE else [text]


def parse_args():
    parser = argparse.ArgumentParser(description="Build a SentencePiece tokenizer from NeMo manifests.")
    parser.add_argument("--manifest", required=True, help="manifest, or several joined by commas")
    parser.add_argument("--data_root", required=True, help="folder in which the tokenizer's folder is made")
    parser.add_argument("--vocab_size", type=int, default=128, help="pieces (default: %(default)s)")
    parser.add_argument("--spe_type", default="unigram", choices=["unigram", "bpe", "char", "word"])
    parser.add_argument("--spe_character_coverage", type=float, default=1.0)
    parser.add_argument("--no_lower_case", action="store_true", help="keep capitals")
    parser.add_argument("--overwrite", action="store_true", help="replace a tokenizer that is there already")
    return parser.parse_args()


def main():
    args = parse_args()
    folder = Path(args.data_root) / f"tokenizer_spe_{args.spe_type}_v{args.vocab_size}"
    try:
        build_tokenizer(
            read_texts(args.manifest.split(",")),
            folder,
            vocab_size=args.vocab_size,
            spe_type=args.spe_type,
            character_coverage=args.spe_character_coverage,
            lower_case=not args.no_lower_case,
            overwrite=args.overwrite,
        )
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"No tokenizer built: {one_sentence(error)}")
    # SentencePiece makes fewer where the texts do not give so many
    pieces = (folder / "tokenizer.vocab").read_bytes().count(b"\n")
    print(f"Tokenizer of {pieces} pieces built; train with model.tokenizer.dir={folder}")


if __name__ == "__main__":
    main()
