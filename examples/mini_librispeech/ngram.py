"""Scores a finished run with an n-gram language model of the training text, by NeMo's own greedy_batch decoding.

    python examples/mini_librispeech/ngram.py --data=DATA --text=lm.txt RUNS/ctc/seed1
    lmplz -o 5 --discount_fallback < lm.txt > lm.arpa        # KenLM; any tool that writes ARPA will do
    python examples/mini_librispeech/ngram.py --data=DATA --lm=lm.arpa RUNS/ctc/seed1

The first writes the training text in the run's tokens, as NeMo's n-gram models have them: a character for each token.
The last writes RUNS/ctc_ngram/seed1 with what report.py reads. The model's weight is chosen by dev WER.
"""

import argparse
import json
import shutil
from copy import deepcopy

from nemo_comat.paths import given_path
from nemo_comat.waiting import announce_nemo

ALPHAS = (0.1, 0.2, 0.3, 0.5, 0.7)


def parse_args():
    parser = argparse.ArgumentParser(description="Score a finished run with an n-gram language model.")
    parser.add_argument("folder", type=given_path, help="RUNS/NAME/seedN")
    parser.add_argument("--data", type=given_path, required=True, help="folder that prepare.py wrote")
    parser.add_argument("--alphas", type=float, nargs="+", default=list(ALPHAS), help="weights to try on dev")
    parser.add_argument("--overwrite", action="store_true", help="replace a text or a result that is there already")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--text", type=given_path, help="write the training text in tokens to this file")
    task.add_argument("--lm", type=given_path, help="ARPA file of an n-gram model of that text")
    return parser.parse_args()


if __name__ == "__main__":
    parse_args()  # --help and mistakes are answered before NeMo is loaded
    announce_nemo()

from nemo.collections.asr.parts.submodules.ngram_lm.constants import DEFAULT_TOKEN_OFFSET
from nemo.utils import logging
from omegaconf import open_dict
from records import RECORDS, checkpoint_of, training_texts
from score import transcribe, write_rows
from word_errors import errors, rate

from nemo_comat import ComatCTCModelBPE
from nemo_comat.models.rows import ManifestError
from nemo_comat.output import check_outputs, exit_in_one_sentence, written_beside


def as_characters(tokenizer, text):
    """A text's tokens as NeMo's n-gram models have them: a character each, with spaces between."""
    return " ".join(chr(token + DEFAULT_TOKEN_OFFSET) for token in tokenizer.text_to_ids(text))


def use_language_model(model, lm, alpha):
    """Sets the decoding to greedy_batch with an n-gram model (path of an ARPA file) at weight alpha."""
    decoding = deepcopy(model.cfg.decoding)
    with open_dict(decoding):
        decoding.strategy = "greedy_batch"
        decoding.greedy = {**decoding.get("greedy", {}), "ngram_lm_model": str(lm), "ngram_lm_alpha": alpha}
    model.change_decoding_strategy(decoding, verbose=False)


def score_with(folder, data, lm, alphas=ALPHAS, overwrite=False):
    """Chooses the weight on dev, scores test once; returns the new run's folder and the dev WER of each weight.

    Args:
        folder: of a finished run. data: as prepare.py wrote it. lm: path of an ARPA file. alphas: weights to try.
        overwrite: True where a result that is there already may be replaced.
    Raises:
        OutputError: there is one already, and overwrite is False.
    """
    folder = folder.resolve()
    target = folder.parent.with_name(f"{folder.parent.name}_ngram") / folder.name
    check_outputs([target / name for name in RECORDS], inputs=[folder], overwrite=overwrite)
    model = ComatCTCModelBPE.restore_from(str(checkpoint_of(folder)), map_location="cpu")
    dev = {}
    for alpha in alphas:
        use_language_model(model, lm, alpha)
        dev[alpha] = transcribe(model, data / "dev.json")
        logging.info(f"alpha {alpha}: dev WER {100 * rate(errors(dev[alpha])):.1f} %")
    wers = {alpha: float(rate(errors(rows))) for alpha, rows in dev.items()}
    best = min(wers, key=wers.get)
    use_language_model(model, lm, best)
    target.mkdir(parents=True, exist_ok=True)
    # a result is whole with its run.json, which comes last
    (target / "run.json").unlink(missing_ok=True)
    write_rows(dev[best], target / "dev.json")
    write_rows(transcribe(model, data / "test.json"), target / "test.json")
    shutil.copyfile(folder / "history.jsonl", target / "history.jsonl")
    run = json.loads((folder / "run.json").read_text())
    run["language_model"] = {"file": lm.name, "alpha": best, "dev_wer": wers}
    with written_beside(target / "run.json") as part:
        part.write_text(json.dumps(run, indent=1) + "\n")
    return target, wers


def main():
    args = parse_args()
    with exit_in_one_sentence(ManifestError):
        if args.text is not None:
            check_outputs([args.text], inputs=[args.data], overwrite=args.overwrite)
            tokenizer = ComatCTCModelBPE.restore_from(str(checkpoint_of(args.folder)), map_location="cpu").tokenizer
            lines = [as_characters(tokenizer, text) + "\n" for text in training_texts(args.data)]
            with written_beside(args.text) as part:
                part.write_text("".join(lines), encoding="utf-8")
            return
        if not args.lm.is_file():
            raise FileNotFoundError(f"{args.lm} is no file; give an ARPA file made of the text that --text writes.")
        folder, _ = score_with(args.folder, args.data, args.lm, args.alphas, args.overwrite)
        logging.info(f"written: {folder}; report.py has it as an arm")


if __name__ == "__main__":
    main()
