"""Emulated cases of mas.cu: its instances, bugs to plant in it, random launches, and a plain recursion."""

import numpy as np
from emulated import ELEMENT_BYTES, INF, KINDS, Entry, Memory, integers, random_scores, to_element

NAME = "mas"
CASES = 1  # cases of an instance for each that is asked for

# what is planted: text of mas.cu, and what it is changed to
PLANTED = {
    "no barrier between turns": (
        "            __syncthreads();\n        }\n\n        if (!strip_follows)",
        "        }\n\n        if (!strip_follows)",
    ),
    "a wait that lets one group too many pass": ("wait_for_copies<STAGES - 1>", "wait_for_copies<STAGES>"),
    "a copy that overwrites the chunk in use": (
        "next = chunk + (ASYNC ? STAGES - 1 : 1)",
        "next = chunk + (ASYNC ? STAGES : 1)",
    ),
    "no warp barrier after the wait": (
        "                __syncwarp();\n                const unsigned char* rows",
        "                const unsigned char* rows",
    ),
    "a barrier that one lane never reaches": (
        "                __syncwarp();\n                const unsigned char* rows",
        "                if (lane) __syncwarp();\n                const unsigned char* rows",
    ),
    "an edge too short for the warps' distance": ("SLOTS = 4 * FRAMES", "SLOTS = 2 * FRAMES"),
    "a row past the last is read": ("s < scores.segs;", "s <= scores.segs;"),
    "a column past the last is read": ("scores.tokens - n;", "scores.tokens + 1 - n;"),
    "a saved column is read past its end": (" && strip + lane <= segs ?", " ?"),
    "shared memory is overrun": ("(WARPS + 1) * SLOTS;\n", "(WARPS + 1) * SLOTS + 8;\n"),
    "ties step": (
        "fmaxf(stay, minus_infinity()) - fmaxf(step, minus_infinity())",
        "-(fmaxf(step, minus_infinity()) - fmaxf(stay, minus_infinity()))",
    ),
    "NaN wins over a step": ("fmaxf(stay, minus_infinity()) - fmaxf", "fabsf(stay) - fmaxf"),
    "the last word of directions is not aligned": ("bits[c] << (-done & 31)", "bits[c]"),
    "infinite totals pass": ("if (!is_finite(*best)) {", "if (*best != *best) {"),
}


def all_instances():
    """Every instance that the launcher can choose: on devices with asynchronous copies and without."""
    from nemo_comat.kernels.cuda import ELEMENTS
    from nemo_comat.kernels.mas_cuda import COPIES, PLANS, Instance

    return [
        Instance(plan, element, copy, asynchronous)
        for plan in PLANS
        for element in ELEMENTS.values()
        for copy in COPIES
        for asynchronous in ([True, False] if copy != "ELEMENTS" else [False])
    ]


def instances():
    """What emulated.py needs to know of each instance."""
    return [
        {
            "columns": x.plan.columns,
            "warps": x.plan.warps,
            "element": x.element,
            "copy": x.copy,
            "macro": x.macro,
            "shared_bytes": x.shared_bytes,
        }
        for x in all_instances()
    ]


def victim(instances):
    """The instance that bugs are planted in."""
    return next(x for x in instances if x["macro"].startswith("float,2,2,") and x["macro"].endswith("TEXT16,true"))


def entry(instance, source):
    parameters = "long long, int, int, const void*, int, const void*, int, int, int, int*, unsigned*, float*"
    function = f"monotonic_align<{instance['macro']}>"
    return Entry(source, function, f"const {instance['element']}*, {parameters}")


def recursion(score, segs, tokens, dtype=np.float32):
    """The path of one row [S, N] by the definition, in `dtype`: [S] token indices, -1 on padding or without a path."""
    path = np.full(score.shape[0], -1)
    if not 0 < tokens <= segs <= score.shape[0] or tokens > score.shape[1]:
        return path
    with np.errstate(all="ignore"):
        score = np.where(np.isnan(score), -INF, score).astype(dtype)[:segs, :tokens]
        stepped = np.zeros(score.shape, bool)
        value = np.full(tokens, -INF, dtype)
        value[0] = score[0, 0]
        for s in range(1, segs):
            before = np.concatenate(([dtype(-INF)], value[:-1]))
            stepped[s] = before > value
            value = score[s] + np.where(stepped[s], before, value)
            value = np.where(np.isnan(value), dtype(-INF), value)
    if not np.isfinite(value[-1]):
        return path
    token = tokens - 1
    for s in range(segs - 1, -1, -1):
        path[s] = token
        token -= stepped[s, token]
    return path


def run_case(emulator, entry, instance, rng, *, batch, segs, tokens, kind, moves_shared, full=False):
    """One random launch of an instance, compared row by row with `recursion`; AssertionError where it differs."""
    element, copy = instance["element"], instance["copy"]
    size = ELEMENT_BYTES[element]
    score = random_scores(rng, kind, (batch, segs, tokens))
    seg_len = rng.integers(0, segs + 1, batch) if not full else np.full(batch, segs)
    text_len = (
        np.array([rng.integers(0, min(tokens, n + 1) + 1) for n in seg_len]) if not full else np.full(batch, tokens)
    )
    for row in range(batch):
        if not full and rng.random() < 0.3:
            seg_len[row] = segs
            text_len[row] = rng.choice([1, min(segs, tokens), rng.integers(1, min(segs, tokens) + 1)])
        if not full and rng.random() < 0.05:
            text_len[row] = rng.choice([-1, tokens + 1, 2**31 - 1])
    bits, exact = to_element(score, element)

    # strides in elements: exact rows, or rows, utterances and an address with room, as the way of copying allows
    unit = {"TEXT16": 16, "TEXT4": 4, "FRAMES4": 4, "ELEMENTS": size}[copy] // size
    room = unit * rng.integers(0, 3)
    if copy == "FRAMES4":
        stride_s, stride_n = 1, -(-segs // unit) * unit + room
        stride_b = stride_n * tokens + unit * rng.integers(0, 2)
    elif copy == "ELEMENTS":
        stride_n = rng.integers(1, 4)
        stride_s = stride_n * tokens + room
        stride_b = stride_s * segs + rng.integers(0, 3)
    else:
        stride_s, stride_n = -(-tokens // unit) * unit + room, 1
        stride_b = stride_s * segs + unit * rng.integers(0, 2)
    at = np.arange(batch)[:, None, None] * stride_b + np.arange(segs)[:, None] * stride_s + np.arange(tokens) * stride_n
    memory = Memory(size * (at.max() + 1), before=size * unit * (copy != "TEXT16") * rng.integers(0, 2))
    memory.array(bits.dtype)[at] = bits
    valid = (np.arange(segs)[:, None] < seg_len[:, None, None]) & (np.arange(tokens) < text_len[:, None, None])
    valid &= ((0 < text_len) & (text_len <= seg_len) & (text_len <= tokens))[:, None, None]
    allowed = np.zeros(memory.size, np.uint8)
    for byte in range(size):
        allowed[size * at[valid] + byte] = 1

    plan = instance
    width = 32 * plan["columns"]
    words = -(-segs // 32) * -(-tokens // width) * width
    shared = plan["shared_bytes"] + (4 * words if moves_shared else 0)
    (seg_memory, seg_bytes), (text_memory, text_bytes) = integers(seg_len, rng), integers(text_len, rng)
    fill = int(rng.choice([0xFF, 0x7E]))
    path = Memory(4 * batch * segs)
    moved = None if moves_shared else Memory(4 * batch * words, fill)
    saved = Memory(4 * batch * segs, fill) if tokens > width * plan["warps"] else None
    arguments = (
        memory.address,
        stride_b,
        stride_s,
        stride_n,
        seg_memory.address,
        seg_bytes,
        text_memory.address,
        text_bytes,
        segs,
        tokens,
        path.address,
        moved.address if moved else 0,
        saved.address if saved else 0,
    )
    emulator.launch(
        entry,
        batch,
        32 * plan["warps"],
        shared,
        arguments,
        seed=int(rng.integers(2**31)),
        low=memory.address,
        allowed=allowed,
    )
    found = path.array(np.int32, (batch, segs))
    for row in range(batch):
        wanted = recursion(exact[row], seg_len[row], text_len[row])
        assert np.array_equal(found[row], wanted), (
            f"{instance['macro']} {kind} {(batch, segs, tokens)} row {row}, lengths {seg_len[row]}, {text_len[row]}: "
            f"wanted {wanted.tolist()}, found {found[row].tolist()}"
        )
    assert np.array_equal(memory.array(bits.dtype)[at], bits), "the scores were written to"


def random_shape(instance, rng):
    """(segs, tokens) that reach all of an instance: part of a warp, all warps, and strips."""
    width = 32 * instance["columns"] * instance["warps"]
    tokens = int(
        rng.choice([1, 2, rng.integers(1, width + 1), rng.integers(1, width + 1), width, width + 1, width + 70])
    )
    longest = 1.1 if tokens > 300 else 2.5
    segs = int(tokens * rng.choice([1, rng.uniform(1, longest)]) + rng.choice([0, rng.integers(90)]))
    return segs, tokens


def run_random_case(emulator, entry, instance, case):
    """Case number `case` of an instance, which is entry `entry` of the library."""
    rng = np.random.default_rng((entry, case))
    segs, tokens = random_shape(instance, rng)
    # half of the cases are as large as they get, so that wide plans are busy throughout
    full = bool(rng.integers(2))
    options = dict(kind=KINDS[(case + entry) % len(KINDS)], moves_shared=bool(rng.integers(2)), full=full)
    batch = 1 if segs * tokens > 20000 else 3
    run_case(emulator, entry, instance, rng, batch=batch, segs=segs, tokens=tokens, **options)
