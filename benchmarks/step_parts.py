"""The parts of a step that are COMAT's, timed one by one; and how their time grows with the sizes."""

import math
import statistics

import torch
from machine import clock

from nemo_comat import CompressAlignTransfer, cosine_score, ctc_viterbi, token_average
from nemo_comat.compress import pool_segments, run_segments
from nemo_comat.lengths import length_mask
from nemo_comat.models.captured import captured
from nemo_comat.teacher import TeacherOutput
from nemo_comat.transfer import VOCABULARY_LOSSES

SMALLEST = (4, 64, 16)  # B, S, N
FACTORS = {"B": (1, 2, 4, 8), "S": (1, 2, 4, 8), "N": (1, 2, 3), "B, S, N": (1, 2, 4)}


def timed(device, call):
    """What a call returns, and its seconds."""
    answers = []
    seconds = clock(device, lambda: answers.append(call()))
    return answers[0], seconds


def forward_tensors(model, batch, device, autocast):
    """One forward of the recogniser: frames [B, T, D] as a leaf for gradients, lengths, log-probs, targets, lengths."""
    signal, signal_len, targets, target_len = (part.to(device) for part in batch)
    with torch.no_grad(), autocast, captured(encoder=model.encoder, decoder=model.decoder) as seen:
        model(input_signal=signal, input_signal_length=signal_len)
    encoded, frame_len = seen["encoder"][:2]
    return encoded.transpose(1, 2).float().requires_grad_(), frame_len, seen["decoder"].float(), targets, target_len


def time_parts(model, teachers, batch, texts, device, autocast):
    """Seconds of each part of one step of ours.

    Args:
        model: ComatCTCModelBPE with method ctc, average pooling without blanks, and monotonic alignment.
        teachers: the `Teacher` of each arm by its name, none of which has seen the texts; the last one is the model's.
        batch: signal, lengths, transcript, lengths on the CPU. texts: the B transcripts.
        device: the model's. autocast: the context of the step's precision.
    Returns:
        dict from part to seconds, and dict of the sizes B, T, S, N, U.
    """
    seconds, comat = {}, model.comat
    for name, teacher in teachers.items():
        embedded, seconds[f"teacher, {name}"] = timed(device, lambda one=teacher: one.encode(texts, device=device))
    if comat.transfer.options["loss"] in VOCABULARY_LOSSES:
        *_, own = teachers.values()
        embedded = embedded._replace(table=own.table(device))
    hidden, frame_len, log_probs, targets, target_len = given = forward_tensors(model, batch, device, autocast)
    (run, is_blank), seconds["labels"] = timed(device, lambda: labels_of(comat, *given[1:]))
    bound = targets.shape[1] if comat.compressor.options["labels"] == "forced" else hidden.shape[1]

    def pool():
        seg_of_frame, _ = run_segments(run, is_blank, frame_len)
        return pool_segments(hidden, seg_of_frame, None, bound)

    _, seconds["pooling"] = timed(device, pool)
    compressed = comat.compressor(*given, embedded.text_len, embedded.embeddings.shape[1])

    def project():
        student = comat.projection(compressed.segments)
        return student, cosine_score(student, embedded.embeddings)

    (student, score), seconds["projection and score"] = timed(device, project)
    (path, _), seconds["alignment"] = timed(device, lambda: comat.aligner(score, compressed.seg_len, embedded.text_len))

    if comat.context is not None:
        student, seconds["context"] = timed(device, lambda: comat.context(student, compressed.seg_len))

    def transfer():
        inside = length_mask(embedded.text_len, score.shape[2], device=device)
        mask = inside & (path >= 0).any(1)[:, None]
        average = token_average(student, path, score.shape[2])
        more = dict(table=embedded.table, predicted=embedded.predicted)
        return comat.transfer(average, embedded.embeddings, mask, embedded.token_id, **more)

    _, seconds["transfer"] = timed(device, transfer)
    output, seconds["forward from labels to transfer"] = timed(device, lambda: comat(*given, embedded))
    wanted = [hidden, *comat.parameters()]
    _, seconds["their backward"] = timed(device, lambda: torch.autograd.grad(output.loss.mean(), wanted))
    sizes = dict(zip("BTSNU", (*hidden.shape[:2], *score.shape[1:], targets.shape[1])))
    return seconds, sizes


def labels_of(comat, frame_len, log_probs, targets, target_len):
    """What the runs are of: labels, or states of the CTC path; and which of them are blank."""
    blank = comat.compressor.options["blank"]
    if comat.compressor.options["labels"] == "greedy":
        label = log_probs.argmax(2)
        return label, label == blank
    state = ctc_viterbi(log_probs, frame_len, targets, target_len, blank=blank)
    return state, state % 2 == 0


def random_step(shape, labels, device, width=176, pieces=128, teacher_width=384):
    """The loss and its backward as one call, on random tensors with about S segments: S tokens in 3S frames if forced.

    With greedy labels there are S frames, of which nearly each is a segment of its own.
    """
    batch, segs, tokens = shape
    frames = 3 * segs if labels == "forced" else segs
    comat = CompressAlignTransfer(
        width, pieces, compress={"labels": labels}, align={}, projection={"dim": teacher_width}, transfer={}
    ).to(device)
    hidden = torch.randn(batch, frames, width, device=device, requires_grad=True)
    # the blank is left out, so that greedy labels give segments
    log_probs = torch.randn(batch, frames, pieces + 1, device=device).log_softmax(2)
    log_probs[:, :, pieces] = -20
    embedded = TeacherOutput(
        torch.randn(batch, tokens, teacher_width, device=device),
        torch.full((batch,), tokens, device=device),
        torch.randint(1000, (batch, tokens), device=device),
        torch.zeros(batch, dtype=torch.bool, device=device),
    )
    targets = torch.randint(pieces, (batch, segs), device=device)
    frame_len, target_len = (torch.full((batch,), n, device=device) for n in (frames, segs))

    def call():
        output = comat(hidden, frame_len, log_probs, targets, target_len, embedded)
        output.loss.mean().backward()
        return output

    return call


def sweep(labels, device, rounds, series):
    """Time over growing B, S and N, one at a time and together; appends a dict for each to series.

    The search has B*S*N cells and the pooling fewer, so the time is held against that product. Forced labels search
    B*T*U cells on top, with T and U both growing with S: they are held against the sum of the two products. The least
    of a shape's times counts, the one that was disturbed least.
    """
    torch.manual_seed(0)
    for grows, factors in FACTORS.items():
        points = []
        for factor in factors:
            shape = tuple(n * factor if axis in grows else n for axis, n in zip("BSN", SMALLEST))
            call = random_step(shape, labels, device)
            output = call()  # warm
            if not output.active.all():
                raise RuntimeError(f"rows of the sweep are inactive at {shape} with {labels} labels")
            times = [clock(device, call) for _ in range(rounds)]
            points.append({"shape": shape, "cells": cells(shape, labels), "all": times, "seconds": min(times)})
        against = "B*S*N" if labels == "greedy" else "B*(S*N + T*U)"
        series.append({"labels": labels, "grows": grows, "against": against, "slope": slope(points), "points": points})


def cells(shape, labels):
    batch, segs, tokens = shape
    return batch * (segs * tokens + (3 * segs * segs if labels == "forced" else 0))


def slope(points):
    """Least squares of log seconds over log cells: 1 where the time is in proportion, below where some is fixed."""
    return statistics.linear_regression(
        [math.log(point["cells"]) for point in points], [math.log(point["seconds"]) for point in points]
    ).slope
