"""Tells how many segments are aligned with a token of their own word, as the model aligns and in other ways.

    python examples/mini_librispeech/alignments.py RUNS/comat/seed1/…/MODEL.nemo DATA/dev.json --utterances=120

The segments are forced labels, so the word of each is known, and so is that of each token: alignments can be checked.
Beside the model's own alignment, of the same cosines: by the cosines themselves (comat.align.temperature=null), by
segment_log_softmax at --temperatures, and by the order alone, with segments spread evenly over tokens.
"""

import argparse
import sys
import tempfile
from itertools import islice
from pathlib import Path

from nemo_comat.paths import given_path
from nemo_comat.waiting import announce_nemo


def parse_args():
    parser = argparse.ArgumentParser(description="Share of segments aligned with a token of their own word.")
    parser.add_argument("model", type=given_path, help=".nemo file of a model with COMAT and forced labels")
    parser.add_argument("manifest", type=given_path, help="whose texts are aligned with its audio")
    parser.add_argument("--utterances", type=int, default=120, help="of it, the first ones (default: %(default)s)")
    parser.add_argument("--temperatures", type=float, nargs="*", default=[], metavar="T", help="to try beside")
    return parser.parse_args()


if __name__ == "__main__":
    parse_args()  # --help and mistakes are answered before NeMo is loaded
    announce_nemo()

import torch
from tqdm import tqdm

from nemo_comat import ComatCTCModelBPE, ConfigError, TeacherError, monotonic_align, segment_log_softmax
from nemo_comat.models.audio import cut_out
from nemo_comat.models.export import ExportError, check_nemo_file
from nemo_comat.models.mixin import ComatMixin
from nemo_comat.models.reference import manifest_text
from nemo_comat.models.rows import ManifestError, read_rows
from nemo_comat.output import exit_in_one_sentence


def words_of_labels(labels):
    """Number of the word that each SentencePiece label is in."""
    return (torch.tensor([label.startswith("▁") for label in labels]).cumsum(0) - 1).clamp(min=0).tolist()


def paths_of(alignment, temperatures):
    """Token of each segment, by way of aligning: dict of lists."""
    segs, tokens = alignment.score.shape
    score, seg_len, text_len = alignment.score[None], torch.tensor([segs]), torch.tensor([tokens])
    even = -(torch.arange(segs)[:, None] / max(segs - 1, 1) - torch.arange(tokens) / max(tokens - 1, 1)).abs()
    shares = {f"at temperature {t:g}": segment_log_softmax(score, seg_len, temperature=t) for t in temperatures}
    paths = {
        way: monotonic_align(scores, seg_len, text_len)[0].tolist()
        for way, scores in {"by cosine": score, **shares, "evenly": even[None]}.items()
    }
    return {"as the model aligns": alignment.path.tolist(), **paths}


def right_shares(model, manifest, utterances, temperatures=()):
    """Share of segments that are aligned with a token of their word: dict by way of aligning.

    Args:
        model: ComatCTCModelBPE, with forced labels. manifest: path. utterances: how many of it, from the first on.
        temperatures: of segment_log_softmax.
    Raises:
        ConfigError: the segments are not the SentencePiece pieces of the text.
    """
    right, total = {}, 0
    for row in tqdm(list(islice(read_rows(manifest), utterances)), unit="utt"):
        text = manifest_text([row.item["text"]])
        try:
            with tempfile.TemporaryDirectory() as folder:
                alignment = model.align_text(cut_out(row.item, Path(folder, "part.wav")), text)
        except ValueError as error:
            tqdm.write(f"left out: {row.where}: {error}")
            continue
        of_label, of_token = words_of_labels(alignment.labels), model._teacher.word_indices([text])[0]
        if of_label[-1] + 1 != len(text.split()) or "blank" in alignment.labels:
            raise ConfigError(
                f"{row.where} has segments {' '.join(alignment.labels)}, which do not spell {text!r}; give a model of "
                "SentencePiece pieces whose comat.compress has labels: forced and blanks: drop."
            )
        total += len(of_label)
        for way, path in paths_of(alignment, temperatures).items():
            right[way] = right.get(way, 0) + sum(of_token[n] == word for n, word in zip(path, of_label))
    return {way: count / total for way, count in right.items()}


def main():
    args = parse_args()
    with exit_in_one_sentence(ManifestError, TeacherError, ExportError, ConfigError):
        check_nemo_file(args.model)
        model = ComatCTCModelBPE.restore_from(str(args.model), map_location="cpu")
        if not isinstance(model, ComatMixin):
            sys.exit(f"{args.model} holds a {type(model).__name__}, which has no alignments; give one of ours.")
        shares = right_shares(model, args.manifest, args.utterances, args.temperatures)
    if not shares:
        sys.exit(f"No utterance of {args.manifest} could be aligned; the lines above say why.")
    for way, share in shares.items():
        print(f"{100 * share:.1f} % {way}")


if __name__ == "__main__":
    main()
