"""Shows what a trained model learnt: word error rate, some transcripts, one alignment, and where the checkpoint is.

python examples/demo_report.py MODEL.nemo [--manifest=heldout.json] [--out=alignment.png]
"""

import argparse
import tempfile
from contextlib import contextmanager
from pathlib import Path

from nemo_comat.waiting import announce_nemo

if __name__ == "__main__":
    announce_nemo()

from nemo.collections.asr.metrics.wer import word_error_rate
from nemo.utils import logging

from nemo_comat import ComatCTCModelBPE, plot_alignment
from nemo_comat.models.audio import cut_out
from nemo_comat.models.export import ExportError, check_nemo_file
from nemo_comat.models.manifest import check_manifests
from nemo_comat.models.reference import manifest_text
from nemo_comat.models.rows import ManifestError, read_rows
from nemo_comat.output import check_outputs, exit_in_one_sentence, written_beside

CORPUS = Path(__file__).resolve().parent / "demo_corpus"


@contextmanager
def read_manifest(path):
    """Audio paths and texts of a manifest's rows, as NeMo reads them; what is cut out of longer files lies beside.

    Args:
        path: of the manifest.
    Yields:
        List of paths, and list of texts.
    Raises:
        ManifestError: the manifest cannot be read, names no audio that is there, or has no rows.
    """
    check_manifests([str(path)], str(path), {})
    items = [row.item for row in read_rows(path)]
    with tempfile.TemporaryDirectory() as folder:
        audio = [cut_out(item, Path(folder, f"{number}.wav")) for number, item in enumerate(items)]
        yield audio, [manifest_text([item["text"]]) for item in items]


def report(model_path, manifest, picture=None, shown=5, overwrite=False):
    """The report as lines of text; draws the alignment picture, by default beside the checkpoint.

    Raises:
        ExportError: model_path is no .nemo file. OutputError: picture is there already, and overwrite is False.
        ManifestError: the manifest cannot be read.
    """
    check_nemo_file(model_path)
    picture = picture or model_path.parent / "alignment.png"
    check_outputs([picture], inputs=[model_path, manifest], overwrite=overwrite)
    with read_manifest(manifest) as (audio, texts):
        model = ComatCTCModelBPE.restore_from(str(model_path), map_location="cpu")
        found = [hypothesis.text for hypothesis in model.transcribe(audio, batch_size=16, verbose=False)]
        with written_beside(picture) as file:
            plot_alignment(model.align_text(audio[0], texts[0]), file, title=texts[0])
    lines = [f"Word error rate on {len(texts)} held-out utterances: {100 * word_error_rate(found, texts):.1f} %", ""]
    for i in list(range(0, len(texts), max(1, len(texts) // shown)))[:shown]:
        lines += [f"  reference   {texts[i]}", f"  transcript  {found[i]}", ""]
    return lines + [f"Alignment of the first one: {picture}", f"Checkpoint:                 {model_path}"]


def parse_args():
    parser = argparse.ArgumentParser(description="Show what a trained COMAT model learnt.")
    parser.add_argument("model", type=Path, help=".nemo file")
    parser.add_argument("--manifest", type=Path, default=CORPUS / "heldout.json", help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="picture of an alignment (default: alignment.png beside MODEL.nemo)")
    parser.add_argument("--overwrite", action="store_true", help="replace a picture that is there already")
    return parser.parse_args()


def main():
    args = parse_args()
    with exit_in_one_sentence(ExportError, ManifestError):
        print("\n".join(report(args.model, args.manifest, args.out, overwrite=args.overwrite)))


if __name__ == "__main__":
    # what NeMo warns of when it opens a model is for those who train it
    logging.setLevel(logging.ERROR)
    main()
