// Monotonic alignment search, one utterance to a block:
//     Q[s, n] = score[s, n] + max(Q[s-1, n], Q[s-1, n-1]),   from (0, 0) to (segs-1, tokens-1).
//
// Geometry   grid [B], block [32 * WARPS]. A lane owns COLUMNS neighbouring tokens and keeps their Q in registers; a warp
//            owns 32 * COLUMNS, a block WARPS times that: one strip. Longer texts are done strip after strip, the last
//            column of Q being handed on in global memory (`saved`).
// Time       Frames are taken in chunks of FRAMES. Warp w works on chunk i - w in turn i, so that one barrier a chunk is
//            enough: the warp to its left has left the Q of its last column in `edge`. In a warp, two frames share one
//            exchange: a lane computes its left neighbour's last column a frame ahead by itself.
// Scores     Each warp copies its own columns to its own ring of STAGES chunks in shared memory, STAGES - 1 ahead, with
//            cp.async where the device has it (ASYNC), through registers one chunk ahead where not. Rows past segs and
//            columns past tokens are never read, and chunks in which none of a warp's cells lies on a path are skipped.
// Directions One bit a cell, set where the path came from token n-1; 32 frames of a token to a word, the latest frame in
//            bit 0. In shared memory behind the ring, or in global memory (`moved` not null).
// Backtrack  One warp, a word row (32 frames) at a time: x & -x is the latest move left, x ^ (x - 1) what it rules out.
// Ties       stay on the current token. NaN counts as -inf: fmaxf passes over it. A row with lengths out of range, too
//            few segments, or a best path that is not finite is -1 throughout; so is padding.
// Shared     ring WARPS * STAGES * Slab::BYTES, edge 4 * (WARPS + 1) * 4 * FRAMES, best 16, then directions. mas_cuda.py
//            computes the same sum. The backtrack stages global directions where the ring was.
//
// mas_cuda.py compiles one instance a plan: -DMAS_PLAN=Elem,COLUMNS,WARPS,FRAMES,STAGES,COPY,ASYNC, behind
// elements.cu. No headers are needed.

#ifndef EMULATED
// Copies `valid` bytes of BYTES to shared memory and zeros the rest; lands at wait_for_copies.
template <int BYTES>
__device__ __forceinline__ void copy_async(void* to, const void* from, int valid) {
#if __CUDA_ARCH__ >= 800
    unsigned shared = (unsigned)__cvta_generic_to_shared(to);
    if (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(valid) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared), "l"(from), "r"(valid) : "memory");
#endif
}

__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most PENDING of this thread's groups of copies are still under way.
template <int PENDING>
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}
#endif  // EMULATED

// How scores are read: 16 or 4 bytes along the text, 4 bytes along the frames, or one element at a time at any strides.
enum Copy { TEXT16, TEXT4, FRAMES4, ELEMENTS };

template <int BYTES>
struct UnitOf;
template <>
struct UnitOf<16> {
    typedef uint4 type;
};
template <>
struct UnitOf<4> {
    typedef unsigned type;
};
template <>
struct UnitOf<2> {
    typedef unsigned short type;
};

__device__ __forceinline__ int clamped(int x, int high) { return x < 0 ? 0 : x < high ? x : high; }

// One utterance's scores, and how many of its frames and tokens are valid.
template <typename Elem>
struct Scores {
    const Elem* at;
    int stride_s, stride_n, segs, tokens;
};

// The ring of chunks of one warp: rows of 32 * COLUMNS scores, a row a frame. Two-byte scores with frames innermost keep
// two frames in a word, as they come, a row a pair of frames.
template <typename Elem, int COLUMNS, int FRAMES, int STAGES, int COPY, bool ASYNC>
struct Slab {
    static constexpr bool PAIRED = COPY == FRAMES4 && sizeof(Elem) == 2;
    static constexpr int CELL = PAIRED ? 4 : sizeof(Elem);
    static constexpr int ROWS = PAIRED ? FRAMES / 2 : FRAMES;
    static constexpr int LANE = COLUMNS * CELL;
    // 16 bytes more than the row: copies along the frames then meet other banks from row to row
    static constexpr int PITCH = 32 * LANE + 16;
    static constexpr int BYTES = ROWS * PITCH;
    static constexpr int UNIT = COPY == TEXT16 ? 16 : COPY == ELEMENTS ? (int)sizeof(Elem) : 4;
    static constexpr int UNITS = ROWS * LANE / UNIT;
    typedef typename UnitOf<UNIT>::type Unit;

    unsigned char* ring;
    const Elem* from;  // where this lane's first unit of chunk 0 comes from
    int lane, lane_row, lane_byte, first_column;
    Unit staged[ASYNC ? 1 : UNITS];

    __device__ __forceinline__ unsigned char* chunk_at(int chunk) { return ring + chunk % STAGES * BYTES; }

    // Lanes that own 32 bytes read them as two times 16; every other quarter warp finds the two exchanged, and no bank twice.
    static __device__ __forceinline__ int placed(int byte) { return LANE == 32 ? byte ^ (byte >> 7 & 1) << 4 : byte; }

    // A lane's unit u lies row_of(u) rows and byte_of(u) bytes from its first: along the text a row's units go to
    // neighbouring lanes, along the frames a column's do.
    static constexpr int PER_ROW = 32 * LANE / UNIT;
    static __device__ __forceinline__ constexpr int row_of(int u) {
        return COPY == FRAMES4 ? 0 : PER_ROW < 32 ? u * (32 / PER_ROW) : u / (PER_ROW / 32 ? PER_ROW / 32 : 1);
    }
    static __device__ __forceinline__ constexpr int byte_of(int u) {
        return COPY == FRAMES4 ? u * (32 / ROWS) * CELL
               : PER_ROW < 32  ? 0
                               : u % (PER_ROW / 32 ? PER_ROW / 32 : 1) * 32 * UNIT;
    }

    __device__ __forceinline__ void start_at(const Scores<Elem>& scores, int column) {
        first_column = column;
        lane_row = COPY == FRAMES4 ? lane % ROWS : lane / PER_ROW;
        lane_byte = COPY == FRAMES4 ? lane / ROWS * CELL : lane % PER_ROW * UNIT;
        const long long frame = lane_row * (PAIRED ? 2 : 1), token = column + lane_byte / CELL;
        from = scores.at + frame * scores.stride_s + token * scores.stride_n;
    }

    // The bytes of unit u of a chunk that are valid.
    __device__ __forceinline__ int valid_bytes(const Scores<Elem>& scores, int chunk, int u) {
        const int s = chunk * FRAMES + (lane_row + row_of(u)) * (PAIRED ? 2 : 1);
        const int n = first_column + (lane_byte + byte_of(u)) / CELL;
        const int along = COPY == FRAMES4 ? scores.segs - s : scores.tokens - n;
        const bool inside = COPY == FRAMES4 ? n < scores.tokens : s < scores.segs;
        return inside ? clamped(along * (int)sizeof(Elem), UNIT) : 0;
    }

    __device__ __forceinline__ int ring_offset(int u) {
        return (lane_row + row_of(u)) * PITCH + placed(lane_byte + byte_of(u));
    }

    static __device__ __forceinline__ Unit load(const Elem* from, int valid) {
        if (valid == UNIT) return read_global((const Unit*)from);
        union {
            Unit whole;
            unsigned short halves[UNIT / 2];
        } unit;
        unit.whole = Unit();
#pragma unroll
        for (int i = 0; i < UNIT / 2; ++i)
            if (2 * i < valid) unit.halves[i] = read_global((const unsigned short*)from + i);
        return unit.whole;
    }

    __device__ __forceinline__ void fetch(const Scores<Elem>& scores, int chunk) {
        unsigned char* to = chunk_at(chunk);
        const Elem* chunk_from = from + (long long)(chunk * FRAMES) * scores.stride_s;
#pragma unroll
        for (int u = 0; u < UNITS; ++u) {
            const Elem* unit_from = chunk_from + (long long)row_of(u) * scores.stride_s +
                                    (long long)(byte_of(u) / CELL) * scores.stride_n;
            const int valid = valid_bytes(scores, chunk, u);
            if (ASYNC)
                copy_async<UNIT>(to + ring_offset(u), unit_from, valid);
            else
                staged[u] = load(unit_from, valid);
        }
    }

    __device__ __forceinline__ void place(int chunk) {
        unsigned char* to = chunk_at(chunk);
#pragma unroll
        for (int u = 0; u < UNITS; ++u) *(Unit*)(to + ring_offset(u)) = staged[u];
    }

    __device__ __forceinline__ void read_words(unsigned (&words)[LANE / 4], const unsigned char* row) {
        const unsigned char* mine = row + lane * LANE;
        if (LANE == 32) {
            const int flip = lane >> 2 & 1;
            *(uint4*)words = ((const uint4*)mine)[flip];
            *(uint4*)(words + LANE / 8) = ((const uint4*)mine)[1 - flip];
        } else if (LANE == 16) {
            *(uint4*)words = *(const uint4*)mine;
        } else if (LANE == 8) {
            *(uint2*)words = *(const uint2*)mine;
        } else {
            words[0] = *(const unsigned*)mine;
        }
    }

    __device__ __forceinline__ void read_row(float (&x)[COLUMNS], const unsigned char* chunk, int frame) {
        alignas(16) unsigned words[LANE / 4];
        read_words(words, chunk + (PAIRED ? frame / 2 : frame) * PITCH);
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) {
            if (sizeof(Elem) == 4) {
                x[c] = __uint_as_float(words[c]);
            } else {
                const unsigned word = PAIRED ? words[c] : words[c / 2];
                Elem value;
                *(unsigned short*)&value = (unsigned short)((PAIRED ? frame : c) & 1 ? word >> 16 : word);
                x[c] = to_float(value);
            }
        }
    }
};

// One frame: q and the direction bits of a lane's columns move on. `left` is Q of the column before them at the last frame.
template <int COLUMNS>
__device__ __forceinline__ void advance(float (&q)[COLUMNS], unsigned (&bits)[COLUMNS], float left,
                                        const float (&x)[COLUMNS]) {
#pragma unroll
    for (int c = COLUMNS - 1; c >= 0; --c) {
        const float stay = q[c], step = c ? q[c ? c - 1 : 0] : left;
        // the sign of the difference is the direction; NaN is made -inf for it, beside the chain that the next frame waits
        // for. Q starts from +0 and is -0 only where a sum was flushed to zero, so equal values have a difference without a
        // sign
        const float difference = fmaxf(stay, minus_infinity()) - fmaxf(step, minus_infinity());
        bits[c] = __funnelshift_l(__float_as_uint(difference), bits[c], 1);
        q[c] = x[c] + fmaxf(stay, step);
    }
}

// The path of 32 frames, back from token n at the last of them. `words` holds the directions of token n - low at n - low.
// Returns the token before the first of the frames.
__device__ __forceinline__ int walk_back(const unsigned* words, int low, int n, int first_frame, int segs, int lane,
                                         int* path) {
    const int frames = segs - first_frame;
    unsigned open = frames < 32 ? ~0u << (32 - frames) : ~0u, moves = 0;
    for (int token = n - low; open; token -= 8) {
        unsigned word[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) word[i] = words[token > i ? token - i : 0];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const unsigned set = word[i] & open;
            moves |= set & (0u - set);
            open = ~(set ^ (set - 1u));
        }
    }
    if (lane < frames) path[first_frame + lane] = n - __popc(moves & ((1u << (31 - lane)) - 1u));
    return n - __popc(moves);
}

template <typename Elem, int COLUMNS, int WARPS, int FRAMES, int STAGES, int COPY, bool ASYNC>
__device__ __forceinline__ void monotonic_align(const Elem* score, long long stride_b, int stride_s,
                                                int stride_n, const void* seg_len, int seg_bytes,
                                                const void* text_len, int text_bytes, int max_segs, int max_tokens,
                                                int* path, unsigned* moved, float* saved) {
    typedef Slab<Elem, COLUMNS, FRAMES, STAGES, COPY, ASYNC> Ring;
    constexpr int WARP_WIDTH = 32 * COLUMNS, WIDTH = WARPS * WARP_WIDTH, SLOTS = 4 * FRAMES;
    // the backtrack stages TILE_ROWS word rows of global directions at a time, with all the tokens they can lead to
    constexpr int TILE_ROWS = 8, TILE_WIDTH = 32 * TILE_ROWS + 4;
    static_assert(COLUMNS >= 2 && STAGES >= 2 && FRAMES >= 2 && 32 % FRAMES == 0, "no such plan");
    static_assert(TILE_ROWS * TILE_WIDTH * 4 <= WARPS * STAGES * Ring::BYTES, "the ring is too small to stage directions");

    DYNAMIC_SHARED(shared);
    float* edge = (float*)(shared + WARPS * STAGES * Ring::BYTES);
    float* best = edge + (WARPS + 1) * SLOTS;

    const int b = blockIdx.x, thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    path += (long long)b * max_segs;
    const long long segs_given = integer_at(seg_len, b, seg_bytes), tokens_given = integer_at(text_len, b, text_bytes);
    const bool in_range = 0 < tokens_given && tokens_given <= segs_given && segs_given <= max_segs && tokens_given <= max_tokens;
    const int segs = in_range ? (int)segs_given : 0, tokens = in_range ? (int)tokens_given : 0;
    for (int s = segs + thread; s < max_segs; s += 32 * WARPS) path[s] = -1;
    if (!in_range) return;

    const Scores<Elem> scores = {score + b * stride_b, stride_s, stride_n, segs, tokens};
    const bool global_moves = moved != nullptr;
    const int pitch = ceil_div(max_tokens, WARP_WIDTH) * WARP_WIDTH;
    if (global_moves)
        moved += (long long)b * ceil_div(max_segs, 32) * pitch;
    else
        moved = (unsigned*)(best + 4);
    if (saved) saved += (long long)b * max_segs;

    Ring ring;
    ring.ring = shared + warp * STAGES * Ring::BYTES;
    ring.lane = lane;
    const float* from_left = edge + warp * SLOTS;
    float* to_right = edge + (warp + 1) * SLOTS;

    for (int strip = 0; strip < tokens; strip += WIDTH) {
        const bool strip_follows = strip + WIDTH < tokens;
        const int column = strip + warp * WARP_WIDTH;
        // chunks with a cell that a path from the first cell to the last can visit
        const int first = column / FRAMES;
        const int last = column < tokens ? ceil_div(min(segs, segs - tokens + column + WARP_WIDTH), FRAMES) : 0;
        const int busy_warps = min(WARPS, ceil_div(tokens - strip, WARP_WIDTH));
        const int turns = ceil_div(min(segs, segs - tokens + strip + busy_warps * WARP_WIDTH), FRAMES) + busy_warps - 1;

        float q[COLUMNS];
        unsigned bits[COLUMNS];
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) q[c] = minus_infinity(), bits[c] = 0;
        float ahead = strip && warp == 0 && lane < FRAMES && strip + lane <= segs ? saved[strip - 1 + lane] : 0.0f;

        const int begin = strip / FRAMES;
        ring.start_at(scores, column);
#pragma unroll 1
        for (int stage = 0; stage < (ASYNC ? STAGES - 1 : 1); ++stage) {
            const int chunk = begin - warp + stage;
            const bool wanted = first <= chunk && chunk < last;
            if (wanted) ring.fetch(scores, chunk);
            if (ASYNC)
                commit_copies();
            else if (wanted)
                ring.place(chunk);
        }

        for (int turn = begin; turn < turns; ++turn) {
            const int chunk = turn - warp, next = chunk + (ASYNC ? STAGES - 1 : 1);
            const bool fetches = first <= next && next < last;
            if (fetches) ring.fetch(scores, next);
            if (ASYNC) {
                commit_copies();
                wait_for_copies<STAGES - 1>();
            }
            if (first <= chunk && chunk < last) {
                const int frame = chunk * FRAMES, slot = frame % SLOTS, next_slot = (frame + FRAMES) % SLOTS;
                if (warp == 0 && lane < FRAMES) {
                    // left of the first token there is only the start; left of a strip, what the last one saved
                    edge[slot + lane] = strip ? ahead : frame + lane ? minus_infinity() : 0.0f;
                    if (strip && frame + FRAMES + lane <= segs) ahead = saved[frame + FRAMES - 1 + lane];
                }
                __syncwarp();
                const unsigned char* rows = ring.chunk_at(chunk);
                if (frame + FRAMES <= segs) {
#pragma unroll
                    for (int f = 0; f < FRAMES; f += 2) {
                        float x0[COLUMNS], x1[COLUMNS];
                        ring.read_row(x0, rows, f);
                        ring.read_row(x1, rows, f + 1);
                        const float last_q = __shfl_up_sync(~0u, q[COLUMNS - 1], 1);
                        const float last_but_one = __shfl_up_sync(~0u, q[COLUMNS - 2], 1);
                        const float last_x = __shfl_up_sync(~0u, x0[COLUMNS - 1], 1);
                        const float2 given = *(const float2*)(from_left + slot + f);
                        const float left0 = lane ? last_q : given.x;
                        const float left1 = lane ? last_x + fmaxf(last_q, last_but_one) : given.y;
                        advance(q, bits, left0, x0);
                        if (lane == 31) to_right[slot + f + 1] = q[COLUMNS - 1];
                        advance(q, bits, left1, x1);
                        if (lane == 31) to_right[f + 2 < FRAMES ? slot + f + 2 : next_slot] = q[COLUMNS - 1];
                    }
                } else {
#pragma unroll 1
                    for (int f = 0; f < segs - frame; ++f) {
                        float x[COLUMNS];
                        ring.read_row(x, rows, f);
                        const float last_q = __shfl_up_sync(~0u, q[COLUMNS - 1], 1);
                        advance(q, bits, lane ? last_q : from_left[slot + f], x);
                        if (lane == 31) to_right[slot + f + 1] = q[COLUMNS - 1];
                    }
                }
                const int done = min(frame + FRAMES, segs);
                if (done % 32 == 0 || chunk == last - 1) {
                    unsigned* word = moved + (long long)((done - 1) / 32) * pitch + column + lane * COLUMNS;
#pragma unroll
                    for (int c = 0; c < COLUMNS; c += 2)
                        *(uint2*)(word + c) = make_uint2(bits[c] << (-done & 31), bits[c + 1] << (-done & 31));
                }
                if (strip_follows && warp == WARPS - 1) {
                    __syncwarp();
                    if (lane < done - frame) saved[frame + lane] = to_right[(slot + lane + 1) % SLOTS];
                }
            }
            if (!ASYNC && fetches) ring.place(next);
            __syncthreads();
        }

        if (!strip_follows) {
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c)
                if (column + lane * COLUMNS + c == tokens - 1) *best = q[c];
            __syncthreads();
        }
    }

    if (!is_finite(*best)) {
        for (int s = thread; s < segs; s += 32 * WARPS) path[s] = -1;
        return;
    }

    int n = tokens - 1;
    if (!global_moves) {
        if (warp == 0)
            for (int row = (segs - 1) / 32; row >= 0; --row)
                n = walk_back(moved + row * pitch, 0, n, 32 * row, segs, lane, path);
        return;
    }
    unsigned* tile = (unsigned*)shared;
    int* handed_over = (int*)best;
    for (int top = ceil_div(segs, 32); top > 0; top -= TILE_ROWS) {
        const int bottom = max(0, top - TILE_ROWS), low = max(0, n - 32 * TILE_ROWS), width = n - low + 1;
        for (int row = bottom; row < top; ++row)
            for (int i = thread; i < width; i += 32 * WARPS)
                tile[(row - bottom) * TILE_WIDTH + i] = moved[(long long)row * pitch + low + i];
        __syncthreads();
        if (warp == 0) {
            for (int row = top - 1; row >= bottom; --row)
                n = walk_back(tile + (row - bottom) * TILE_WIDTH, low, n, 32 * row, segs, lane, path);
            if (lane == 0) *handed_over = n;
        }
        __syncthreads();
        n = *handed_over;
    }
}

#ifdef MAS_PLAN
template <typename Elem, int COLUMNS, int WARPS, int FRAMES, int STAGES, int COPY, bool ASYNC>
struct Instance {
    typedef Elem Score;
    static constexpr int THREADS = 32 * WARPS;
    template <typename... Arguments>
    static __device__ __forceinline__ void run(Arguments... arguments) {
        monotonic_align<Elem, COLUMNS, WARPS, FRAMES, STAGES, COPY, ASYNC>(arguments...);
    }
};

extern "C" __global__ void __launch_bounds__(Instance<MAS_PLAN>::THREADS)
    mas(const Instance<MAS_PLAN>::Score* score, long long stride_b, int stride_s, int stride_n,
        const void* seg_len, int seg_bytes, const void* text_len, int text_bytes, int max_segs, int max_tokens, int* path,
        unsigned* moved, float* saved) {
    Instance<MAS_PLAN>::run(score, stride_b, stride_s, stride_n, seg_len, seg_bytes, text_len, text_bytes, max_segs,
                            max_tokens, path, moved, saved);
}
#endif
