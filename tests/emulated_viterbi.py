"""Emulated cases of viterbi.cu: its instances, bugs to plant in it, random launches, and a plain recursion."""

import numpy as np
from emulated import ELEMENT_BYTES, INF, KINDS, Entry, Memory, integers, random_scores, to_element

NAME = "viterbi"
CASES = 6  # cases of an instance for each that is asked for

# what is planted: text of viterbi.cu, and what it is changed to
PLANTED = {
    "no barrier between frames": (
        "handed_on[t] = token_q;\n                    __syncthreads();",
        "handed_on[t] = token_q;",
    ),
    "no barrier before the first frame": (
        "thread] = token_q;\n        __syncthreads();",
        "thread] = token_q;",
    ),
    "no barrier before the ends are read": (
        "    }\n    __syncthreads();\n\n    if (!is_finite",
        "    }\n\n    if (!is_finite",
    ),
    "a barrier that pairs past the last never reach": (
        "handed_on[t] = token_q;\n                    __syncthreads();",
        "handed_on[t] = token_q;\n                    if (pair <= tokens) __syncthreads();",
    ),
    "one edge for odd and even frames": ("edge[t % 2 * threads", "edge[(t + 1) % 2 * threads"),
    "a frame past the last is read": ("first + f < frames", "first + f <= frames"),
    "padding of the reference is read": ("has_token = pair < tokens", "has_token = pair <= tokens"),
    "directions past the last pair are written": ("if (pair <= tokens) moved", "moved"),
    "directions overrun shared memory": ("(unsigned*)(end + 4)", "(unsigned*)(end + 8)"),
    "a label that does not exist is read": ("0 <= label && label < vocab ?", "0 <= label ?"),
    "a strip takes the frame of its own": ("strip ? given[t - 1]", "strip ? given[t]"),
    "ties of blanks step": ("left > blank_q", "left >= blank_q"),
    "ties of tokens step": ("token_moved = blank_q > token_q", "token_moved = blank_q >= token_q"),
    "ties of tokens skip": ("left > token_best", "left >= token_best"),
    "ties end in the token": ("end[1] > end[0]", "end[1] >= end[0]"),
    "equal neighbours touch": ("&& label != integer_at(targets, at - 1, target_bytes)", ""),
    "NaN wins": ("token_q = fmaxf(token_score + token_best, minus_infinity())", "token_q = token_score + token_best"),
    "infinite totals pass": ("if (!is_finite(fmaxf(end[0], end[1]))) {", "if (end[0] != end[0]) {"),
    "the last word of directions is not written": (" || t == frames - 1) {", ") {"),
}


def instances():
    """What emulated.py needs to know of each instance."""
    return [{"element": element} for element in ELEMENT_BYTES]


def victim(instances):
    """The instance that bugs are planted in."""
    return instances[0]


def entry(instance, source):
    parameters = (
        "long long, long long, long long, const void*, int, const void*, int, const void*, int, int, int, int, int, "
        "long long*, unsigned*, float*"
    )
    return Entry(source, "ctc_viterbi", f"const {instance['element']}*, {parameters}")


def recursion(log_probs, frames, targets, tokens, blank):
    """The path of one row [T, V] by the definition in float32: [T] states, -1 on padding or without a path.

    It keeps all values, and finds its way back by comparing them again.
    """
    most_frames, vocab = log_probs.shape
    path = np.full(most_frames, -1)
    if not 0 < frames <= most_frames or not 0 <= tokens <= len(targets):
        return path
    labels = [blank]
    for token in targets[:tokens]:
        labels += [token, blank]
    if min(labels) < 0 or max(labels) >= vocab:
        return path

    def before(t, s):
        """(value, state) of all that may come before state s of frame t, the preferred first."""
        steps = [0, 1, 2] if s % 2 and labels[s] != blank and labels[s] != labels[s - 2] else [0, 1]
        return [(value[t - 1][s - step], s - step) for step in steps if step <= s]

    value = [[-INF] * len(labels) for _ in range(frames)]
    with np.errstate(all="ignore"):
        for t in range(frames):
            for s, label in enumerate(labels):
                best = max(x for x, _ in before(t, s)) if t else np.float32(0 if s < 2 else -INF)
                q = np.float32(best + log_probs[t, label])
                value[t][s] = -INF if np.isnan(q) else q
    ends = [(value[-1][s], s) for s in ([2 * tokens, 2 * tokens - 1] if tokens else [0])]
    for t in range(frames - 1, -1, -1):
        best, path[t] = max(ends, key=lambda end: end[0])
        if t == frames - 1 and not np.isfinite(best):
            path[:] = -1
            return path
        ends = before(t, path[t])
    return path


def run_case(emulator, entry, instance, rng, *, batch, frames, tokens, vocab, kind, threads, moves_shared):
    """One random launch of an instance, compared row by row with `recursion`; AssertionError where it differs."""
    size = ELEMENT_BYTES[instance["element"]]
    log_probs = random_scores(rng, kind, (batch, frames, vocab))
    if kind == "ties":
        log_probs = np.sign(log_probs)
    blank = int(rng.integers(vocab))
    frame_len, target_len = rng.integers(0, frames + 1, batch), np.zeros(batch, int)
    for row in range(batch):
        if rng.random() < 0.7:
            frame_len[row] = frames
        target_len[row] = rng.integers(0, min(tokens, frame_len[row]) + 1)
        if rng.random() < 0.6:
            target_len[row] = min(tokens, max(0, frame_len[row] - rng.integers(0, 4)))
        if rng.random() < 0.05:
            frame_len[row] = rng.choice([-1, 0, frames + 1, 2**31 - 1])
        if rng.random() < 0.05:
            target_len[row] = rng.choice([-1, tokens + 1, 2**31 - 1])
    targets = rng.integers(0, vocab, (batch, tokens))
    if vocab > 2 and rng.random() < 0.7:
        # no blanks and no equal neighbours, which leave few paths
        targets = rng.integers(1, vocab - 1, (batch, tokens)).cumsum(1) % (vocab - 1)
        targets += targets >= blank
    # a label that does not exist is one thing in padding, and another in the reference
    for row in range(batch):
        targets[row, max(0, target_len[row]) :] = vocab + 1000
        if target_len[row] > 0 and tokens and rng.random() < 0.1:
            targets[row, rng.integers(min(target_len[row], tokens))] = rng.choice([-1, vocab])
    bits, exact = to_element(log_probs, instance["element"])

    stride_v = rng.integers(1, 3)
    stride_t = stride_v * vocab + rng.integers(0, 3)
    stride_b = stride_t * frames + rng.integers(0, 3)
    at = (
        np.arange(batch)[:, None, None] * stride_b + np.arange(frames)[:, None] * stride_t + np.arange(vocab) * stride_v
    )
    memory = Memory(size * (at.max() + 1))
    memory.array(bits.dtype)[at] = bits
    allowed = np.zeros(memory.size, np.uint8)
    for row in range(batch):
        if 0 <= target_len[row] <= tokens and 0 < frame_len[row] <= frames:
            labels = [x for x in (blank, *targets[row, : target_len[row]]) if 0 <= x < vocab]
            for byte in range(size):
                allowed[size * at[row, : frame_len[row], labels] + byte] = 1

    (frame_memory, frame_bytes), (length_memory, length_bytes) = integers(frame_len, rng), integers(target_len, rng)
    target_memory, target_bytes = integers(targets, rng)
    words = -(-frames // 8) * (tokens + 1)
    fill = int(rng.choice([0xFF, 0x7E]))
    path = Memory(8 * batch * frames)
    moved = None if moves_shared else Memory(4 * batch * words, fill)
    saved = Memory(4 * batch * 2 * frames, fill) if tokens >= threads else None
    arguments = (
        memory.address,
        stride_b,
        stride_t,
        stride_v,
        frame_memory.address,
        frame_bytes,
        target_memory.address,
        target_bytes,
        length_memory.address,
        length_bytes,
        frames,
        tokens,
        vocab,
        blank,
        path.address,
        moved.address if moved else 0,
        saved.address if saved else 0,
    )
    emulator.launch(
        entry,
        batch,
        threads,
        8 * threads + 16 + (4 * words if moves_shared else 0),
        arguments,
        seed=int(rng.integers(2**31)),
        low=memory.address,
        allowed=allowed,
    )
    found = path.array(np.int64, (batch, frames))
    for row in range(batch):
        wanted = recursion(exact[row], frame_len[row], targets[row], target_len[row], blank)
        assert np.array_equal(found[row], wanted), (
            f"{instance['element']} {kind} {(batch, frames, tokens, vocab)} row {row}, lengths {frame_len[row]}, "
            f"{target_len[row]}: wanted {wanted.tolist()}, found {found[row].tolist()}"
        )
    assert np.array_equal(memory.array(bits.dtype)[at], bits), "the log-posteriors were written to"


def run_random_case(emulator, entry, instance, case):
    """Case number `case` of an instance, which is entry `entry` of the library."""
    rng = np.random.default_rng((entry, case))
    # one warp and strips of it, or two; parts of chunks of 16 frames, of words of 8 and of walks of 24
    threads = 32 * int(rng.choice([1, 1, 2]))
    tokens = int(rng.choice([rng.integers(8), rng.integers(8, 32), rng.integers(31, 36), *rng.integers(33, 75, 2)]))
    frames = max(1, int(tokens * rng.choice([1, rng.uniform(1, 2), rng.uniform(1, 2.5)])) + int(rng.integers(20)))
    vocab = int(rng.choice([2, rng.integers(1, 7), rng.integers(3, 7), 40]))
    run_case(
        emulator,
        entry,
        instance,
        rng,
        batch=int(rng.integers(2, 6)),
        frames=frames,
        tokens=tokens,
        vocab=vocab,
        kind=KINDS[(case + entry) % len(KINDS)],
        threads=threads,
        moves_shared=bool(rng.integers(2)),
    )
