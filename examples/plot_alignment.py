"""Draws one utterance: its log-mel, its segments, and which token of the language model each of them is aligned with.

    python examples/plot_alignment.py MODEL.nemo AUDIO --text "what is said" --out=alignment.png
    python examples/plot_alignment.py MODEL.nemo AUDIO --decode    # align what the model hears

MODEL.nemo is a file of ours; its teacher must be at hand (installed, a folder, or on the hub).
"""

import argparse
import math
import sys
from pathlib import Path

from nemo_comat import ComatCTCModelBPE, TeacherError, plot_alignment, plot_utterance
from nemo_comat.models.export import check_nemo_file


def draw(args):
    """Writes the picture; raises ValueError, TeacherError or ImportError in one sentence where it cannot."""
    check_nemo_file(args.model)
    if not args.audio.is_file():
        raise ValueError(f"{args.audio} does not exist; give an audio file.")
    if not args.out.absolute().parent.is_dir():
        raise ValueError(f"Folder {args.out.parent} does not exist; make it, or give another --out.")
    model = ComatCTCModelBPE.restore_from(str(args.model), map_location="cpu")
    text = model.transcribe([str(args.audio)], verbose=False)[0].text if args.decode else args.text
    if not text.strip():
        raise ValueError(
            f"The model hears nothing in {args.audio}; give --text." if args.decode else "--text is empty."
        )
    alignment = model.align_text(str(args.audio), text)
    timed = not all(math.isnan(start) for start, _ in alignment.spans)
    (plot_utterance if timed else plot_alignment)(alignment, args.out, title=text)


def parse_args(arguments=None):
    parser = argparse.ArgumentParser(description="Draw the alignment of one utterance.")
    parser.add_argument("model", type=Path, metavar="MODEL.nemo")
    parser.add_argument("audio", type=Path, metavar="AUDIO")
    parser.add_argument("--out", type=Path, default=Path("alignment.png"), help="default: %(default)s")
    said = parser.add_mutually_exclusive_group(required=True)
    said.add_argument("--text", help="what is said")
    said.add_argument("--decode", action="store_true", help="align the model's own transcript")
    return parser.parse_args(arguments)


def main():
    args = parse_args()
    try:
        draw(args)
    except (ValueError, TeacherError, ImportError) as error:
        sys.exit(str(error))
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
