"""Leaves nemo_comat: writes the plain CTC model in a .nemo file, which NeMo opens without this package.

    python examples/export_ctc.py MODEL.nemo my_asr/my_asr.nemo
    python examples/export_ctc.py MODEL.nemo my_asr/my_asr.nemo --onnx --torchscript    # my_asr.onnx, my_asr.ts too
    python examples/export_ctc.py MODEL.nemo my_asr/my_asr.nemo --card --wer "dev: 12.3" \
        --wer runs/comat/seed1/test.json --license cc-by-4.0 --language en --dataset openslr/librispeech_asr

A file that is there already stays, and is replaced with --overwrite alone; MODEL.nemo is never written over.

With --card the folder is ready for a hub: the model, its graphs and a README.md with the hub's metadata. Nothing is
sent. The graphs take log-mel features [B, F, T] and their lengths [B], and give log-probabilities [B, T, V], the blank
last.
"""

import argparse

from nemo_comat.paths import given_path
from nemo_comat.waiting import announce_nemo


def parse_args(arguments=None):
    parser = argparse.ArgumentParser(description="Write the plain CTC model of a .nemo file.")
    parser.add_argument("model", type=given_path, metavar="MODEL.nemo")
    parser.add_argument("out", type=given_path, metavar="OUT.nemo", help="its folder is made where it is missing")
    parser.add_argument("--onnx", action="store_true", help="OUT.onnx beside it")
    parser.add_argument("--torchscript", action="store_true", help="OUT.ts beside it")
    parser.add_argument("--card", action="store_true", help="README.md beside it, a model card as the hub has them")
    parser.add_argument("--wer", action="append", default=[], help='"NAME: PERCENT", or a file of score.py; repeatable')
    parser.add_argument("--license", help="as the hub names it, such as apache-2.0 or cc-by-4.0")
    parser.add_argument("--language", action="append", default=[], help="code, such as en; repeatable")
    parser.add_argument("--dataset", action="append", default=[], help="hub name of training data; repeatable")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there already")
    args = parser.parse_args(arguments)
    if not args.card and (args.wer or args.license or args.language or args.dataset):
        parser.error("--wer, --license, --language and --dataset go into the model card; give --card too.")
    return args


if __name__ == "__main__":
    parse_args()  # --help and mistakes are answered before NeMo is loaded
    announce_nemo()

from nemo.collections.asr.models import EncDecHybridRNNTCTCModel
from nemo.utils import logging

from nemo_comat.models.card import model_card, read_word_error_rate
from nemo_comat.models.export import ExportError, comat_block, plain_model
from nemo_comat.output import check_outputs, exit_in_one_sentence, written_beside


def export(args):
    """Writes what the command line asks for; returns the files written."""
    if args.out.suffix != ".nemo":
        raise ExportError(f"OUT must end in .nemo, got {args.out}.")
    card = [args.out.parent / "README.md"] * args.card
    graphs = [args.out.with_suffix(suffix) for suffix in [".onnx"] * args.onnx + [".ts"] * args.torchscript]
    check_outputs([args.out, *card, *graphs], inputs=[args.model, *args.wer], overwrite=args.overwrite)
    wer = [read_word_error_rate(given) for given in args.wer]
    model = plain_model(args.model)
    with written_beside(args.out) as file:
        model.save_to(str(file))
    for path in card:
        options = dict(wer=wer, license=args.license, language=args.language, datasets=args.dataset)
        with written_beside(path) as file:
            model_card(model, comat_block(args.model), args.out.stem, **options).save(file)
    if isinstance(model, EncDecHybridRNNTCTCModel):
        # else NeMo writes the RNN-T's two graphs, by other names
        model.cur_decoder = "ctc"
    # last: NeMo's export changes the model
    for path in graphs:
        with written_beside(path) as file:
            model.export(str(file))
    return [args.out, *card, *graphs]


def main():
    with exit_in_one_sentence(ExportError):
        written = export(parse_args())
    print("\n".join(f"written: {file}" for file in written))


if __name__ == "__main__":
    # what NeMo warns of when it opens a model is for those who train it
    logging.setLevel(logging.ERROR)
    main()
