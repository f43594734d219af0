"""Draws one utterance: its log-mel, its segments, and which token of the language model each of them is aligned with.

    python examples/plot_alignment.py MODEL.nemo AUDIO --text "what is said" --out=alignment.png
    python examples/plot_alignment.py MODEL.nemo AUDIO --decode --out=heard.png    # align what the model hears

MODEL.nemo is a file of ours; its teacher must be at hand (installed, a folder, or on the hub). A picture that is there
already is replaced with --overwrite alone.
"""

import argparse
import math
from pathlib import Path

from nemo_comat.paths import given_path
from nemo_comat.waiting import announce_nemo


def parse_args(arguments=None):
    parser = argparse.ArgumentParser(description="Draw the alignment of one utterance.")
    parser.add_argument("model", type=given_path, metavar="MODEL.nemo")
    parser.add_argument("audio", type=given_path, metavar="AUDIO")
    parser.add_argument("--out", type=given_path, default=Path("alignment.png"), help="default: %(default)s")
    parser.add_argument("--lang", help="language of the text, for a model of several")
    parser.add_argument("--overwrite", action="store_true", help="replace a picture that is there already")
    said = parser.add_mutually_exclusive_group(required=True)
    said.add_argument("--text", help="what is said")
    said.add_argument("--decode", action="store_true", help="align the model's own transcript")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    parse_args()  # --help and mistakes are answered before NeMo is loaded
    announce_nemo()

from nemo.utils import logging

from nemo_comat import ComatCTCModelBPE, TeacherError, plot_alignment, plot_utterance
from nemo_comat.models.export import check_nemo_file
from nemo_comat.models.mixin import ComatMixin
from nemo_comat.output import check_outputs, exit_in_one_sentence, written_beside


def draw(args):
    """Writes the picture and returns its path; raises ValueError, TeacherError, ImportError or OSError otherwise."""
    check_nemo_file(args.model)
    out = args.out.with_suffix(args.out.suffix or ".png")
    check_outputs([out], inputs=[args.model, args.audio], overwrite=args.overwrite)
    model = ComatCTCModelBPE.restore_from(str(args.model), map_location="cpu")
    if not isinstance(model, ComatMixin):
        raise ValueError(
            f"{args.model} holds a {type(model).__name__}, which this script cannot align; give one of ours."
        )
    # NeMo would read the file otherwise than align_text does: by Lhotse, and with all its channels
    signal = model.read_audio(args.audio)
    text = model.transcribe([signal], verbose=False)[0].text if args.decode else args.text
    if not text.strip():
        raise ValueError(
            f"The model hears nothing in {args.audio}; give --text." if args.decode else "--text is empty."
        )
    alignment = model.align_text(str(args.audio), text, args.lang)
    timed = not all(math.isnan(start) for start, _ in alignment.spans)
    with written_beside(out) as file:
        (plot_utterance if timed else plot_alignment)(alignment, file, title=text)
    return out


def main():
    args = parse_args()
    with exit_in_one_sentence(ValueError, TeacherError, ImportError):
        print(f"written: {draw(args)}")


if __name__ == "__main__":
    # what NeMo warns of when it opens a model is for those who train it
    logging.setLevel(logging.ERROR)
    main()
