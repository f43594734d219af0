"""Hypothesis looks for inputs that end in anything but the right answer or the documented error.

Shapes with 0 and 1, lengths and labels in and out of range, every dtype of floats and integers, strides, infinities,
NaN, huge and subnormal numbers. The answers are those of slow loops over one row at a time. A few cases run here;
`make fuzz` sets FUZZ_CASES to run 10,000.
"""

import math
import os
from collections import Counter

import numpy as np
import pytest
import torch
from emulated_viterbi import recursion
from test_ctc import slow_compress
from test_monotonic import oracle

from nemo_comat import (
    CompressAlignTransfer,
    ctc_compress,
    ctc_viterbi,
    monotonic_align,
    segment_log_softmax,
    transfer_loss,
)
from nemo_comat.compress import BLANKS, LABELS, POOLS
from nemo_comat.teacher import TeacherOutput
from nemo_comat.transfer import LOSSES

pytest.importorskip("hypothesis", reason="pip install hypothesis")

from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

CASES = int(os.environ.get("FUZZ_CASES", "120"))
SHRINK = bool(os.environ.get("SHRINK"))
# the same cases each time where there are few, new ones where many are asked for
FUZZ = settings(
    max_examples=CASES,
    deadline=None,
    derandomize="FUZZ_CASES" not in os.environ,
    database=None,
    print_blob=True,
    report_multiple_bugs=False,
    phases=[Phase.explicit, Phase.generate] + [Phase.shrink] * SHRINK,
    suppress_health_check=list(HealthCheck),
)
INF, NAN = float("inf"), float("nan")
# what the slow loops gave an answer for, so that a run tells when it compares nothing
COMPARED = Counter()
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64)
NO_INTEGERS = (torch.float32, torch.float16, torch.bool, torch.complex64)
# what is put into tensors beside ordinary numbers
KINDS = {
    "plain": (),
    "ties": (),
    "not finite": (INF, -INF, NAN),
    "impossible": (-INF,),
    "huge": (3e38, -3e38, 1e30, -1e30, 65504.0, -65504.0),
    "tiny": (1e-45, -1e-45, 1e-38, 6e-8, 0.0, -0.0),
    "all": (INF, -INF, NAN, 3e38, -3e38, 1e-45, 0.0),
}
# how often a case is given a mistake that must be refused
MISTAKE = st.integers(0, 7).map(lambda n: n == 0)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors are so small here that threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- what is drawn ---


def sizes(most):
    # one of one time in two is 0 or 1: few would be left to compare where a case needs several sizes at once
    return st.sampled_from(range(most + 1))


def numbers(draw, shape, kind=None):
    """Random float64 array; the kind's special values are strewn into it."""
    kind = kind or draw(st.sampled_from(sorted(KINDS)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if kind == "ties":
        return rng.integers(-2, 3, shape).astype(float)
    values = rng.normal(size=shape) * draw(st.sampled_from([0.1, 1.0, 10.0]))
    if KINDS[kind]:
        strewn = rng.random(shape) < draw(st.sampled_from([0.02, 0.2, 0.8]))
        values = np.where(strewn, rng.choice(KINDS[kind], shape), values)
    return values


def floats(draw, shape, kind=None, dtype=None):
    """Random tensor of a float dtype, laid out in memory in any way."""
    dtype = dtype or draw(st.sampled_from(FLOATS))
    with np.errstate(over="ignore"):
        tensor = torch.tensor(numbers(draw, shape, kind)).to(dtype)
    return laid_out(draw, tensor)


def laid_out(draw, tensor):
    """The same numbers with other strides."""
    how = draw(st.sampled_from(["contiguous", "transposed", "every second", "expanded", "offset"]))
    if how == "transposed" and tensor.dim() > 1:
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if how == "every second":
        return torch.stack((tensor, tensor), -1)[..., 0]
    if how == "expanded" and len(tensor):
        return tensor[:1].expand_as(tensor)
    if how == "offset":
        return torch.cat((tensor[:1], tensor))[min(1, len(tensor)) :]
    return tensor


def lengths(draw, batch, limit, dtype=None):
    """[B] integers in 0..limit of any integer dtype."""
    # half of them whole: of two lengths of a row the shorter one decides what is left to compare
    length = st.sampled_from([*range(limit + 1), *[limit] * limit])
    values = draw(st.lists(length, min_size=batch, max_size=batch))
    return laid_out(draw, torch.tensor(values, dtype=torch.int64).to(dtype or draw(st.sampled_from(INTEGERS))))


def wrong_lengths(draw, batch, limit):
    """Lengths that must be refused: out of range, of no integer dtype, or of another shape."""
    how = draw(st.sampled_from(["beyond", "negative", "dtype", "shape", "0-d"] if batch else ["dtype", "shape", "0-d"]))
    good = torch.zeros(batch, dtype=torch.int64)
    if how == "beyond":
        good[draw(st.integers(0, batch - 1))] = limit + draw(st.sampled_from([1, 2, 1000, 2**62]))
    if how == "negative":
        good[draw(st.integers(0, batch - 1))] = -draw(st.sampled_from([1, 2, 2**62]))
    if how == "dtype":
        good = good.to(draw(st.sampled_from(NO_INTEGERS)))
    if how == "shape":
        good = draw(st.sampled_from([good[None], torch.zeros(batch + 1, dtype=torch.int64), good[:, None]]))
    return torch.tensor(0) if how == "0-d" else good


def refused(function, *arguments, **options):
    with pytest.raises(ValueError) as error:
        function(*arguments, **options)
    # a sentence of ours, not one of PyTorch's
    assert "got" in str(error.value) or "needs" in str(error.value), error.value


def untouched(*tensors):
    """What to call at the end: asserts that none of the tensors was written."""
    kept = [tensor.clone() for tensor in tensors]

    def check():
        for tensor, before in zip(tensors, kept):
            torch.testing.assert_close(tensor.detach(), before.detach(), rtol=0, atol=0, equal_nan=True)

    return check


# --- align ---


@FUZZ
@given(st.data())
def test_monotonic_align(data):
    draw = data.draw
    batch, segs, tokens = draw(sizes(4)), draw(sizes(14)), draw(sizes(9))
    score = floats(draw, (batch, segs, tokens))
    seg_len, text_len = lengths(draw, batch, segs), lengths(draw, batch, tokens)
    backends = ("cpu", "torch", "auto")
    if draw(MISTAKE):
        mistake = draw(st.sampled_from(["seg_len", "text_len", "dim", "dtype", "backend"]))
        event(f"mistake: {mistake}")
        backend = "numba" if mistake == "backend" else draw(st.sampled_from(backends))
        if mistake == "dim":
            score = draw(st.sampled_from([score[None], score.flatten(0, 1), torch.tensor(0.0)]))
        if mistake == "dtype":
            score = score.nan_to_num().to(draw(st.sampled_from([torch.int64, torch.bool, torch.complex64])))
        seg_len = wrong_lengths(draw, batch, segs) if mistake == "seg_len" else seg_len
        text_len = wrong_lengths(draw, batch, tokens) if mistake == "text_len" else text_len
        return refused(monotonic_align, score, seg_len, text_len, backend=backend)
    check = untouched(score, seg_len, text_len)
    paths = [monotonic_align(score, seg_len, text_len, backend=backend) for backend in backends]
    check()
    wanted = torch.full((batch, segs), -1, dtype=torch.int32)
    for row, (s, n) in enumerate(zip(seg_len.tolist(), text_len.tolist())):
        if 0 < n <= s:
            row_score = score[row, :s, :n].float().numpy()
            wanted[row, :s] = torch.tensor(oracle(row_score, np.float32))
            COMPARED["align"] += bool(1 < n < s and wanted[row, 0] >= 0)
            assert_optimal(row_score, wanted[row, :s].tolist())
    for path in paths:
        assert path.dtype == torch.int32 and path.equal(wanted)


def assert_optimal(score, path):
    """Against the float64 recursion, as far as float32 sums can tell paths apart."""
    best = oracle(score)
    if path[0] < 0 or best[0] < 0:
        return
    total, most = (np.float64(score)[np.arange(len(path)), p].sum() for p in (path, best))
    largest = np.abs(np.float64(score[np.isfinite(score)])).max()
    assert total >= most - 1e-6 * len(path) * (1 + largest)


# --- viterbi ---


@FUZZ
@given(st.data())
def test_ctc_viterbi(data):
    draw = data.draw
    batch, frames, tokens, vocab = draw(sizes(4)), draw(sizes(12)), draw(sizes(6)), draw(sizes(6))
    log_probs = floats(draw, (batch, frames, vocab))
    blank = draw(st.integers(0, max(0, vocab - 1)))
    frame_len = lengths(draw, batch, frames)
    target_len = lengths(draw, batch, tokens if vocab else 0)
    targets = lengths(draw, batch * tokens, max(0, vocab - 1)).view(batch, tokens)
    backends = ("cpu", "torch", "auto")
    if draw(MISTAKE):
        mistakes = ["frame_len", "target_len", "dim", "dtype", "targets", "blank", "rows", "label"]
        mistake = draw(st.sampled_from(mistakes))
        event(f"mistake: {mistake}")
        if mistake == "dim":
            log_probs = draw(st.sampled_from([log_probs[None], log_probs.flatten(0, 1)]))
        if mistake == "dtype":
            log_probs = log_probs.nan_to_num().to(draw(st.sampled_from([torch.int64, torch.bool, torch.complex64])))
        if mistake == "targets":
            no_integers = [targets.to(dtype) for dtype in NO_INTEGERS]
            targets = draw(st.sampled_from([targets[None], *no_integers]))
        if mistake == "rows":
            targets = torch.zeros(batch + 1, tokens, dtype=torch.int64)
        if mistake == "blank":
            vocab, log_probs = (vocab, log_probs) if vocab else (1, log_probs.new_zeros(batch, frames, 1))
            blank = draw(st.sampled_from([-1, vocab, 2**40]))
        if mistake == "label":
            if not batch * tokens * vocab:
                return
            targets = targets.long().clone()
            targets[0, 0], target_len = draw(st.sampled_from([-1, vocab, 2**62])), torch.full((batch,), tokens)
        frame_len = wrong_lengths(draw, batch, frames) if mistake == "frame_len" else frame_len
        target_len = wrong_lengths(draw, batch, tokens) if mistake == "target_len" else target_len
        backend = draw(st.sampled_from(backends))
        return refused(ctc_viterbi, log_probs, frame_len, targets, target_len, blank=blank, backend=backend)
    check = untouched(log_probs, frame_len, targets, target_len)
    paths = [
        ctc_viterbi(log_probs, frame_len, targets, target_len, blank=blank, backend=backend) for backend in backends
    ]
    check()
    rows = zip(log_probs.float().numpy(), frame_len.tolist(), targets.tolist(), target_len.tolist())
    wanted = [recursion(*row, blank) if vocab else np.full(frames, -1) for row in rows]
    wanted = torch.tensor(np.array(wanted).reshape(batch, frames), dtype=torch.int64)
    COMPARED["viterbi"] += int(((wanted >= 0).any(1) & (target_len.long() > 0)).sum())
    for path in paths:
        assert path.dtype == torch.int64 and path.equal(wanted)


# --- compress ---


@FUZZ
@given(st.data())
def test_ctc_compress(data):
    draw = data.draw
    batch, frames, tokens, vocab, dim = (draw(sizes(n)) for n in (4, 12, 6, 5, 3))
    # a logarithm of a posterior is not above 0
    hidden, log_probs = floats(draw, (batch, frames, dim)), -floats(draw, (batch, frames, vocab)).abs()
    blank = draw(st.integers(0, max(0, vocab - 1)))
    frame_len = lengths(draw, batch, frames)
    target_len = lengths(draw, batch, tokens if vocab else 0)
    targets = lengths(draw, batch * tokens, max(0, vocab - 1)).view(batch, tokens)
    labels, blanks, pool = (draw(st.sampled_from(options)) for options in (LABELS, BLANKS, POOLS))
    arguments = dict(blank=blank, labels=labels, blanks=blanks, pool=pool, targets=targets, target_len=target_len)
    if draw(MISTAKE):
        mistake = draw(st.sampled_from(["frame_len", "frames", "integers", "labels", "blanks", "pool", "blank"]))
        event(f"mistake: {mistake}")
        if mistake in ("labels", "blanks", "pool"):
            arguments[mistake] = draw(st.sampled_from(["", "none", None]))
        if mistake == "blank":
            arguments["blank"] = draw(st.sampled_from([-1, max(1, vocab)]))
            log_probs = log_probs if vocab else log_probs.new_zeros(batch, frames, 1)
        if mistake == "frames":
            log_probs = log_probs.new_zeros(batch, frames + 1, vocab)
        if mistake == "integers":
            hidden = torch.zeros(batch, frames, dim, dtype=torch.int64)
        frame_len = wrong_lengths(draw, batch, frames) if mistake == "frame_len" else frame_len
        return refused(ctc_compress, hidden, frame_len, log_probs, **arguments)
    hidden = hidden.clone().requires_grad_()
    if not vocab:
        return refused(ctc_compress, hidden, frame_len, log_probs, **arguments)
    check = untouched(hidden, log_probs, frame_len, targets, target_len)
    out = ctc_compress(hidden, frame_len, log_probs, **arguments)
    check()
    assert out.segments.dtype == hidden.dtype and out.segments.shape[::2] == (batch, dim)
    rows = zip(frame_len.tolist(), targets.tolist(), target_len.tolist())
    for row, of in enumerate(rows):
        assert_compressed_as_slowly(out, row, hidden[row].detach(), log_probs[row], *of, arguments)
    out.segments.sum().backward()
    assert hidden.grad is None or hidden.grad.isfinite().all()


def assert_compressed_as_slowly(out, row, hidden, log_probs, frames, targets, tokens, options):
    """One row of ctc_compress against slow_compress, in float64."""
    blank, emission = options["blank"], log_probs.double().numpy()
    if options["labels"] == "greedy":
        run = label = emission.argmax(-1) if emission.size else []
    else:
        run = recursion(log_probs.float().numpy(), frames, targets, tokens, blank)
        label = [blank if state < 0 or state % 2 == 0 else targets[state // 2] for state in run]
        frames = 0 if (run < 0).all() else frames
    with np.errstate(all="ignore"):
        wanted = slow_compress(
            hidden.double().numpy(), frames, emission, run, label, options["blanks"], options["pool"], blank
        )
    COMPARED[options["pool"]] += bool(wanted) and hidden.numel() > 0
    assert out.seg_len[row] == len(wanted)
    assert (out.segments[row, len(wanted) :] == 0).all() and (out.seg_label[row, len(wanted) :] == -1).all()
    tolerance = 8 * torch.finfo(hidden.dtype).eps + 8 * torch.finfo(log_probs.dtype).eps
    for vector, exact in zip(out.segments[row].detach().double().numpy(), wanted):
        # weights that vanish in float64 are tested in test_ctc.py
        if np.isfinite(exact).all() and np.abs(exact).max(initial=0) < torch.finfo(torch.float32).max / 100:
            np.testing.assert_allclose(vector, exact, rtol=tolerance, atol=tolerance * (1 + largest(hidden)))


def largest(x):
    """Largest absolute value of a tensor that is finite, else 0."""
    return float(torch.nan_to_num(x.double(), 0, 0, 0).abs().amax()) if x.numel() else 0.0


# --- transfer ---


@pytest.mark.parametrize("loss", LOSSES)
@FUZZ
@given(data=st.data())
def test_transfer_loss(loss, data):
    draw = data.draw
    batch, tokens, dim = (draw(sizes(n)) for n in (3, 5, 4))
    shape = (batch, tokens, dim)
    student, teacher = floats(draw, shape).clone().requires_grad_(), floats(draw, shape)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = torch.tensor(rng.random((batch, tokens)) < draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])))
    temperature = draw(st.sampled_from([0.05, 0.1, 1.0, 10.0]))
    token_id = torch.tensor(rng.integers(0, 4, (batch, tokens))) if draw(st.booleans()) or loss == "classify" else None
    table = torch.tensor(rng.standard_normal((4, dim)), dtype=torch.float32)
    predicted = likely_tokens(rng, batch, tokens, 4)
    if draw(MISTAKE):
        mistakes = ["loss", "student", "table", "mask", "mask dtype", "temperature", "token_id", "dim", "predicted"]
        mistake = draw(st.sampled_from(mistakes))
        event(f"mistake: {mistake}")
        if mistake == "loss":
            loss = draw(st.sampled_from(["", "l1", None]))
        if mistake == "student":
            student = torch.zeros(batch, tokens + 1, dim)
        if mistake == "mask":
            mask = draw(st.sampled_from([mask[None], torch.ones(batch + 1, tokens, dtype=torch.bool)]))
        if mistake == "mask dtype":
            mask = mask.to(draw(st.sampled_from([torch.float32, torch.int64])))
        if mistake == "temperature":
            loss, temperature = "contrastive", draw(st.sampled_from([0.0, -1.0, NAN]))
        if mistake == "table":
            return refused(transfer_loss, student, teacher, mask, loss="classify", token_id=token_id)
        if mistake == "predicted":
            given = draw(st.sampled_from([{}, dict(table=table), dict(predicted=predicted)]))
            return refused(transfer_loss, student, teacher, mask, loss="distribution", **given)
        if mistake == "token_id":
            loss, token_id = "contrastive", torch.zeros(batch, tokens + 1, dtype=torch.int64)
        if mistake == "dim":
            student, teacher = torch.zeros(batch, tokens), torch.zeros(batch, tokens)
        return refused(transfer_loss, student, teacher, mask, loss=loss, temperature=temperature, token_id=token_id)
    check = untouched(student, teacher, mask, *predicted)
    given = dict(token_id=token_id, table=table, predicted=predicted)
    out = transfer_loss(student, teacher, mask, loss=loss, temperature=temperature, **given)
    out.sum().backward()
    check()
    assert out.shape == (batch,) and out.dtype == torch.float32
    used = mask[..., None].expand(shape)
    finite = (student.detach().float().isfinite() & teacher.float().isfinite() | ~used).all(2).all(1)
    largest_used = max(largest(x.detach()[used]) for x in (student, teacher))
    if loss == "contrastive":
        finite[:] = finite.all()
    with np.errstate(all="ignore"):
        known = token_id, table.double().numpy(), predicted
        wanted = slow_transfer(student.detach(), teacher, mask, loss, temperature, *known)
    for row in range(batch):
        assert mask[row].any() or (out[row] == 0 and (student.grad[row] == 0).all())
        if finite[row] and loss != "mse" and student.dtype != torch.float16:
            assert out[row].isfinite() and student.grad[row].isfinite().all()
        # beyond, squares overflow in float32
        if finite[row] and largest_used < 1e18:
            tolerance = dict(rel=1e-3, abs=1e-3 * max(1, 1 / temperature), nan_ok=True)
            assert out[row].item() == pytest.approx(wanted[row], **tolerance)
            COMPARED["transfer", loss] += bool(mask[row].any() and dim > 1)


def likely_tokens(rng, batch, tokens, words):
    """Ids [B, N, 3], different ones for each token, and probabilities, of some tokens 0; or no more than words."""
    ids = rng.random((batch, tokens, words)).argsort(-1)[..., :3]
    shares = rng.random(ids.shape) / 3 * (rng.random((batch, tokens, 1)) < 0.8)
    return torch.tensor(ids), torch.tensor(np.flip(np.sort(shares), -1).copy(), dtype=torch.float32)


def slow_transfer(student, teacher, mask, loss, temperature, token_id, table, predicted):
    """The losses by their definitions, a token at a time, in float64."""
    places = [(b, n) for b, row in enumerate(mask.tolist()) for n, counts in enumerate(row) if counts]
    rows = [0.0] * len(mask)
    student, teacher = (x.float().double().numpy() for x in (student, teacher))
    for b, n in places:
        if loss == "mse":
            # no features, no mean
            rows[b] += np.square(student[b, n] - teacher[b, n]).mean() if student.shape[2] else NAN
        elif loss == "cosine":
            rows[b] += 1 - cosine(student[b, n], teacher[b, n])
        elif loss == "distribution":
            logits = np.array([cosine(student[b, n], row) / temperature for row in table])
            log_q = logits - logits.max() - math.log(np.exp(logits - logits.max()).sum())
            ids, shares = (x[b, n].double().numpy() for x in predicted)
            rows[b] += sum(p * (math.log(p) - log_q[int(i)]) for i, p in zip(ids, shares / shares.sum()) if p > 0)
        else:
            others = [
                (c, m) for c, m in places
                if (c, m) == (b, n) or token_id is None or token_id[c, m] != token_id[b, n]
            ]  # fmt: skip
            classes = table if loss == "classify" else [teacher[place] for place in others]
            logits = [cosine(student[b, n], row) / temperature for row in classes]
            own = cosine(student[b, n], table[token_id[b, n]] if loss == "classify" else teacher[b, n]) / temperature
            top = max(logits)
            rows[b] += top + math.log(sum(math.exp(logit - top) for logit in logits)) - own
    return rows


def cosine(a, b):
    """Of two vectors; one that is as good as 0 has none."""
    a, b = (x / max(np.linalg.norm(x), 1e-12) for x in (a, b))
    return float(a @ b)


# --- all three ---


@FUZZ
@given(st.data())
def test_compress_align_transfer(data):
    draw = data.draw
    batch, frames, tokens, vocab, dim, width = (draw(sizes(n)) for n in (4, 12, 5, 5, 3, 3))
    batch, frames, vocab, dim, width = (max(1, n) for n in (batch, frames, vocab, dim, width))
    texts = draw(st.integers(1, 4))  # a teacher gives at least one column
    compress, align = draw(st.sampled_from(["ctc", "none", "cif", "attention"])), "monotonic"
    if draw(st.integers(0, 3)) == 0:
        align = "one_to_one" if compress in ("cif", "attention") else "sinkhorn"
    loss, labels, pool = (draw(st.sampled_from(options)) for options in (LOSSES, LABELS, POOLS))
    torch.manual_seed(draw(st.integers(0, 1000)))
    module = CompressAlignTransfer(
        dim, vocab - 1,
        compress={"method": compress, "labels": labels, "blanks": draw(st.sampled_from(BLANKS)), "pool": pool,
                  "heads": 1},
        align={"method": align}, projection={"dim": width, "depth": draw(st.integers(1, 2))}, transfer={"loss": loss},
    )  # fmt: skip
    kind = draw(st.sampled_from(["plain", "ties", "not finite", "impossible"]))
    hidden = floats(draw, (batch, frames, dim), kind).clone().requires_grad_()
    log_probs = floats(draw, (batch, frames, vocab)).clone().requires_grad_()
    lens = [torch.int64, torch.int32]
    frame_len = lengths(draw, batch, frames, draw(st.sampled_from(lens)))
    target_len = lengths(draw, batch, tokens, draw(st.sampled_from(lens)))
    targets = lengths(draw, batch * tokens, vocab - 1, draw(st.sampled_from(lens))).view(batch, tokens)
    text_len = lengths(draw, batch, texts, torch.int64)
    inside = torch.arange(texts) < text_len[:, None]
    embeddings = floats(draw, (batch, texts, width), "plain", torch.float32).masked_fill(~inside[..., None], 0)
    teacher = TeacherOutput(embeddings, text_len, torch.arange(batch * texts).view(batch, texts), text_len > texts)
    if loss in ("classify", "distribution"):
        teacher = teacher._replace(table=torch.randn(batch * texts, width))
    if loss == "distribution":
        teacher = teacher._replace(predicted=likely_tokens(np.random.default_rng(0), batch, texts, batch * texts))
    check = untouched(hidden, log_probs, targets, embeddings)
    out = module(hidden, frame_len, log_probs, targets, target_len, teacher)
    out.loss.sum().backward()
    check()
    event(f"active: {bool(out.active.any())}")
    assert out.loss.isfinite().all() and (out.loss[~out.active] == 0).all()
    assert hidden.grad.isfinite().all() and (hidden.grad[~out.active] == 0).all()
    assert log_probs.grad is None or log_probs.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
    assert (text_len[out.active] > 0).all() and (frame_len.long()[out.active] > 0).all()
    assert out.text_len.equal(torch.where(out.active, text_len, 0))
    arguments = hidden.detach(), frame_len, log_probs.detach(), targets, target_len, teacher
    for row in range(batch):
        if align == "monotonic":
            s, n = int(out.compressed.seg_len[row]), int(text_len[row])
            shares = segment_log_softmax(out.score[row, None, :s, :n], torch.tensor([s]))[0]
            wanted = oracle(shares.numpy(), np.float32) if 0 < n <= s else [-1] * s
            assert out.path[row].tolist() == wanted + [-1] * (out.path.shape[1] - s)
            COMPARED["aligned"] += 1 < n < s
        if loss != "contrastive":
            assert_as_alone(module, row, out, arguments)
    if align == "monotonic" and loss == "cosine":
        assert_cosine_by_definition(module, out, embeddings)


def assert_as_alone(module, row, out, arguments):
    """A row's neighbours and its padding change nothing for it."""
    *tensors, teacher = arguments
    one = slice(row, row + 1)
    predicted = teacher.predicted and tuple(x[one] for x in teacher.predicted)
    known = TeacherOutput(*(x[one] for x in teacher[:4]), table=teacher.table, predicted=predicted)
    alone = module(*(x[one] for x in tensors), known)
    assert alone.active[0] == out.active[row]
    torch.testing.assert_close(alone.loss[0], out.loss[row], rtol=1e-4, atol=1e-4)


def assert_cosine_by_definition(module, out, embeddings):
    """The loss from the segments and the path, in float64."""
    segments = torch.where(out.compressed.segments.isfinite(), out.compressed.segments, 0)
    student = module.projection(segments).detach().double().numpy()
    for row in out.active.nonzero()[:, 0].tolist():
        wanted = out.compressed.loss[row].item()
        for n in range(int(out.text_len[row])):
            mean = student[row][out.path[row].numpy() == n].mean(0)
            wanted += 1 - cosine(mean, embeddings[row, n].double().numpy())
        assert out.loss[row].item() == pytest.approx(wanted, abs=1e-3)


def test_what_was_compared():
    """The tests above, run as a whole, had something to compare for each option."""
    if "align" not in COMPARED or "aligned" not in COMPARED:
        pytest.skip("not all of the tests above have run")
    counts = {
        what: COMPARED[what] for what in ("align", "viterbi", "aligned", *POOLS, *(("transfer", x) for x in LOSSES))
    }
    assert min(counts.values()) >= 3, counts
