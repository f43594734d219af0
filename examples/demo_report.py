"""Shows what a trained model learnt: word error rate, some transcripts, one alignment, and where the checkpoint is.

    python examples/demo_report.py MODEL.nemo [--manifest=heldout.json] [--out=alignment.png] [--html=report.html]

The page of --html has the same and more: transcripts with the words that differ marked and their sound, and the curves
of training, if MODEL.nemo lies where NeMo's exp_manager has put it.
"""

import argparse
import shlex
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from nemo_comat.paths import given_path
from nemo_comat.waiting import announce, announce_nemo

HELDOUT = Path(__file__).resolve().parent / "demo_corpus" / "heldout.json"


def parse_args():
    parser = argparse.ArgumentParser(description="Show what a trained COMAT model learnt.")
    parser.add_argument("model", type=given_path, help=".nemo file")
    parser.add_argument("--manifest", type=given_path, default=HELDOUT, help="default: %(default)s")
    parser.add_argument("--out", type=given_path, help="picture of an alignment (default: alignment.png beside MODEL)")
    parser.add_argument("--html", type=given_path, help="page to write (default: none)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there already")
    return parser.parse_args()


if __name__ == "__main__":
    parse_args()  # --help and mistakes are answered before NeMo is loaded
    announce_nemo()

import soundfile
from nemo.collections.asr.metrics.wer import word_error_rate
from nemo.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parent))
from report_page import Page, chart, file_uri, some

from nemo_comat import ComatCTCModelBPE, TeacherError, plot_alignment
from nemo_comat.models.audio import cut_out, read_audio
from nemo_comat.models.export import ExportError, check_nemo_file
from nemo_comat.models.manifest import check_manifests
from nemo_comat.models.reference import manifest_text
from nemo_comat.models.rows import ManifestError, read_rows
from nemo_comat.output import check_outputs, exit_in_one_sentence, one_sentence, written_beside

# what NeMo and we log, by chart and line
CURVES = {
    "CTC loss in training": {"CTC": "train_ctc_loss"},
    "transfer loss in training": {"transfer": "train_transfer_loss"},
    "word error rate, held-out, %": {"dev": "val_wer"},
}


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


def transcripts(model, audio, batch_size=16):
    """What a model hears in audio files, as a list of str in their order; of several channels, what training heard.

    Args:
        model: of NeMo's or of ours. audio: list of paths. batch_size: int.
    """
    heard, part = [], 16 * batch_size
    for first in range(0, len(audio), part):
        # what is written for the model takes the room of some batches, not of the whole manifest
        with tempfile.TemporaryDirectory() as folder:
            places = (Path(folder, f"{number}.wav") for number in range(part))
            files = [one_channel(model, file, place) for file, place in zip(audio[first : first + part], places)]
            heard += model.transcribe(files, batch_size=batch_size, num_workers=0, verbose=False)
    return [hypothesis.text for hypothesis in heard]


def one_channel(model, file, place):
    """The audio file, or, where it has several channels, another that is written to place; NeMo refuses several."""
    try:
        channels = soundfile.info(file).channels
    except RuntimeError:  # of a kind that others read
        return file
    if channels == 1:
        return file
    rate, dataset = model.preprocessor._sample_rate, model.cfg.get("train_ds") or {}
    samples = read_audio(file, rate, dataset.get("channel_selector"))
    soundfile.write(place, samples.numpy(), rate, subtype="FLOAT", format="WAV")
    return str(place)


def read_scalars(folder):
    """What TensorBoard's files below a folder hold, also those of a run that was stopped and went on.

    Args:
        folder: path.
    Returns:
        {name: [(step, value), ...]}, by step.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for file in sorted(folder.rglob("events.out.tfevents.*"), key=lambda file: file.stat().st_mtime):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for name in events.Tags()["scalars"]:
            # a step that was made again after a stop counts as it was made last
            found.setdefault(name, {}).update({event.step: event.value for event in events.Scalars(name)})
    return {name: sorted(line.items()) for name, line in found.items()}


def curves_of(scalars):
    """The lines that `chart` draws, of `read_scalars`; error rates in percent."""
    return {
        title: {
            label: [(step, value * (100 if name == "val_wer" else 1)) for step, value in scalars.get(name, [])]
            for label, name in lines.items()
        }
        for title, lines in CURVES.items()
    }


def next_steps(model_path, demo):
    """What can be done with the model, which may be the embedded corpus's: (sentence, command)."""
    little = " It knows one synthetic voice and two hundred words: expect little." * demo
    return [
        (
            f"Transcribe a file of your own.{little}",
            f"from nemo_comat import ComatCTCModelBPE\n\nmodel = ComatCTCModelBPE.restore_from({str(model_path)!r})\n"
            'print(model.transcribe(["a.wav"])[0].text)',
        ),
        (
            "See how what is said in a file is aligned with the language model's tokens.",
            f'python examples/plot_alignment.py {shlex.quote(str(model_path))} a.wav --text "what is said"',
        ),
        (
            "Train on your own speech: a tokenizer first, then the model.",
            "python examples/build_tokenizer.py --manifest=train.json --data_root=tokenizers --vocab_size=128\n"
            "python examples/speech_to_text_comat.py --config-name=conformer_ctc_comat \\\n"
            "    model.train_ds.manifest_filepath=train.json model.validation_ds.manifest_filepath=dev.json \\\n"
            "    model.tokenizer.dir=tokenizers/tokenizer_spe_unigram_v128",
        ),
    ]


def draw_curves(model_path):
    """The chart of a run's training, or None, and a list of lines that say why there is none where one was to be."""
    folder = model_path.resolve().parent
    # exp_manager's folder of a run holds checkpoints/ and TensorBoard's files
    if folder.name != "checkpoints":
        return None, []
    try:
        return chart(curves_of(read_scalars(folder.parent)), xlabel="steps"), []
    except ImportError as error:
        return None, [f"No curves of training: {one_sentence(error)}"]


def build_page(model_path, rows, error_rate, picture, curves, *, with_comat, demo):
    """The report as a Page.

    Args:
        model_path: path. rows: list of (reference, transcript, path of the audio) of all that was transcribed.
        error_rate: of words, 0.1 is ten percent. picture: path of an alignment, or None. curves: of `chart`, or None.
        with_comat: whether the model has a COMAT part. demo: whether it transcribed the embedded corpus's sentences.
    """
    words = sum(len(reference.split()) for reference, _, _ in rows)
    page = Page(
        "What the recogniser learnt",
        f"A CTC model{' that was trained with COMAT' * with_comat}. It transcribes"
        f"{' sentences that training did not have,' * demo} without a language model.",
    )
    page.numbers(
        [
            ("word error rate", f"{100 * error_rate:.1f} %"),
            ("sentences", len(rows)),
            ("words", words),
            ("all right", sum(reference == transcript for reference, transcript, _ in rows)),
        ]
    )
    page.utterances("Transcripts", some(rows))
    note = "Below: segments of the speech. At the side: the tokens that the language model reads. Framed: the path."
    if picture is not None:
        page.picture(
            "Alignment of the first sentence",
            file_uri(picture),
            "Similarity of each segment with each token, and the path of the alignment through it",
            [note],
            wide=True,
        )
    if curves is not None:
        page.picture("Training", curves, "Losses and word error rate by training step", wide=True)
    page.commands(
        "How to go on",
        [("The model. NeMo opens it with this package, and as plain CTC without it.", model_path.resolve())]
        + next_steps(model_path, demo),
    )
    return page


def first_alignment(model, audio, texts):
    """Text and alignment of the first of ten utterances that has one.

    Raises:
        ValueError: none has, or the model is none of ours. TeacherError: the teacher is not at hand.
    """
    if not hasattr(model, "align_text"):
        raise ValueError(f"a {type(model).__name__} was not trained with COMAT.")
    for file, text in list(zip(audio, texts))[:10]:
        try:
            return text, model.align_text(file, text)
        except ValueError as error:
            reason = error
    raise reason


def draw_alignment(model, audio, texts, picture):
    """Draws the picture; returns its path, or None, and a line that says where it is or why there is none."""
    try:
        title, alignment = first_alignment(model, audio, texts)
        with written_beside(picture) as file:
            plot_alignment(alignment, file, title=title)
    except (ValueError, TeacherError, ImportError) as error:
        return None, f"No picture of an alignment: {one_sentence(error)}"
    return picture, f"Alignment of the first one: {picture}"


def report(model_path, manifest, picture=None, html=None, overwrite=False):
    """The report as lines of text; draws the alignment picture, by default beside the checkpoint, and writes the page.

    Raises:
        ExportError: model_path is no .nemo file. OutputError: picture or html is there already, and overwrite is False.
        ManifestError: the manifest cannot be read.
    """
    check_nemo_file(model_path)
    picture = picture or model_path.parent / "alignment.png"
    picture = picture.with_suffix(picture.suffix or ".png")  # as matplotlib does
    written = [picture, html] if html is not None else [picture]
    check_outputs(written, inputs=[model_path, manifest], overwrite=overwrite)
    with read_manifest(manifest) as (audio, texts):
        model = ComatCTCModelBPE.restore_from(str(model_path), map_location="cpu")
        announce(f"Transcribing {len(texts)} utterances.")
        found, demo = transcripts(model, audio), manifest.resolve() == HELDOUT
        picture, shown = draw_alignment(model, audio, texts, picture)
        rows, error_rate = list(zip(texts, found, audio, strict=True)), word_error_rate(found, texts)
        lines = [f"Word error rate on {len(texts)}{' held-out' * demo} utterances: {100 * error_rate:.1f} %", ""]
        for text, transcript, _ in some(rows):
            lines += [f"  reference   {text}", f"  transcript  {transcript}", ""]
        lines += [shown, f"Checkpoint:                 {model_path}"]
        if html is not None:
            curves, why_not = draw_curves(model_path)
            with_comat = getattr(model, "comat", None) is not None
            page = build_page(model_path, rows, error_rate, picture, curves, with_comat=with_comat, demo=demo)
            page.write(html)
            lines += [*why_not, f"Report, with sound:         {html.resolve().as_uri()}"]
    return lines


def main():
    args = parse_args()
    with exit_in_one_sentence(ExportError, ManifestError):
        print("\n".join(report(args.model, args.manifest, args.out, args.html, overwrite=args.overwrite)))


if __name__ == "__main__":
    # what NeMo warns of when it opens a model is for those who train it
    logging.setLevel(logging.ERROR)
    main()
