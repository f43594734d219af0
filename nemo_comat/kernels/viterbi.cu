// Most probable CTC path of a reference, one utterance to a block. State 2u is the blank before token u, state 2u + 1 token
// u, state 2 * tokens the last blank:
//     Q[t, s] = log_probs[t, label(s)] + max(Q[t-1, s], Q[t-1, s-1], Q[t-1, s-2]),
// from state 0 or 1 to one of the last two; s-2 only for a token that is neither the blank nor the token before it.
//
// Geometry   grid [B], block [32 * any number of warps]. A thread owns the pair of states 2u and 2u + 1 and keeps their Q in
//            registers; of other threads it needs the token before its own alone. References of more pairs than threads are
//            done strip after strip, the last token of a strip being handed on in global memory (`saved`).
// Time       One barrier a frame: a thread leaves the Q of its token in `edge`, which has a row for odd frames and one for
//            even ones, so that nobody overwrites what another still reads.
// Scores     Each thread reads its label's log-posterior and the blank's through their strides, into registers, CHUNK
//            frames ahead. Frames past frame_len, and labels that are not the reference's, are never read.
// Directions Two bits a state, four a pair (the blank's lower): how many states back the path came from. Eight frames of a
//            pair to a word, the first in the lowest bits: [ceil(T / 8)][U + 1] words, in shared memory behind `end`, or in
//            global memory (`moved` not null).
// Backtrack  One warp, 24 frames at a time: a path goes down by a pair a frame at most, so that 32 lanes hold the words of
//            all pairs it can meet, and pass them round.
// Ties       go to the last blank before the last token, to staying before one state, to one state before two. NaN counts
//            as -inf. A row with lengths out of range, a label out of range, too few frames, or a best path that is not
//            finite is -1 throughout; so is padding.
// Shared     edge 8 * threads, end 16, then directions. viterbi_cuda.py computes the same sum.
//
// viterbi_cuda.py compiles one instance for each type of log_probs: -DVITERBI_ELEMENT=Elem, behind elements.cu. No headers
// are needed.

constexpr int CHUNK = 16, WORD_FRAMES = 8, WALK_WORDS = 3;
// viterbi_cuda.py launches no more; with it, a thread may have 128 registers
constexpr int MAX_THREADS = 512;

// The next CHUNK log-posteriors of one label, from frame `first` on; `from` is null for a thread without a label.
template <typename Elem>
__device__ __forceinline__ void read_ahead(Elem (&to)[CHUNK], const Elem* from, long long stride_t, int first, int frames) {
#pragma unroll
    for (int f = 0; f < CHUNK; ++f) to[f] = from && first + f < frames ? read_global(from + (first + f) * stride_t) : Elem();
}

template <typename Elem>
__device__ __forceinline__ void ctc_viterbi(const Elem* log_probs, long long stride_b, long long stride_t, long long stride_v,
                                            const void* frame_len, int frame_bytes, const void* targets, int target_bytes,
                                            const void* target_len, int length_bytes, int max_frames, int max_tokens,
                                            int vocab, int blank, long long* path, unsigned* moved, float* saved) {
    DYNAMIC_SHARED(shared);
    const int b = blockIdx.x, thread = threadIdx.x, threads = blockDim.x, lane = thread % 32;
    float* edge = (float*)shared;
    float* end = edge + 2 * threads;

    path += (long long)b * max_frames;
    const long long frames_given = integer_at(frame_len, b, frame_bytes);
    const long long tokens_given = integer_at(target_len, b, length_bytes);
    const bool in_range = 0 < frames_given && frames_given <= max_frames && 0 <= tokens_given && tokens_given <= max_tokens;
    const bool fits = in_range && tokens_given <= frames_given;
    const int frames = in_range ? (int)frames_given : 0, tokens = (int)tokens_given;
    for (int t = (fits ? frames : 0) + thread; t < max_frames; t += threads) path[t] = -1;
    if (!fits) return;

    const int pitch = max_tokens + 1;
    if (moved)
        moved += (long long)b * ceil_div(max_frames, WORD_FRAMES) * pitch;
    else
        moved = (unsigned*)(end + 4);
    if (saved) saved += (long long)b * 2 * max_frames;
    log_probs += b * stride_b;

    for (int strip = 0; strip <= tokens; strip += threads) {
        const bool strip_follows = strip + threads <= tokens;
        const float* given = saved + strip / threads % 2 * max_frames;
        float* handed_on = saved + (strip / threads + 1) % 2 * max_frames;
        const int pair = strip + thread;
        const bool has_token = pair < tokens;
        const long long at = (long long)b * max_tokens + pair;
        const long long label = has_token ? integer_at(targets, at, target_bytes) : -1;
        const bool skips = has_token && pair && label != blank && label != integer_at(targets, at - 1, target_bytes);
        // a label that does not exist has probability 0, so that no path fits
        const Elem* token_from = 0 <= label && label < vocab ? log_probs + label * stride_v : nullptr;
        const Elem* blank_from = pair <= tokens ? log_probs + blank * stride_v : nullptr;

        // before its first frame a path is in a blank of probability 1 at the start, from which it stays or steps
        float blank_q = pair ? minus_infinity() : 0.0f, token_q = minus_infinity();
        unsigned bits = 0;
        Elem token_x[CHUNK], blank_x[CHUNK];
        read_ahead(token_x, token_from, stride_t, strip, frames);
        read_ahead(blank_x, blank_from, stride_t, strip, frames);
        edge[(strip + 1) % 2 * threads + thread] = token_q;
        __syncthreads();

        // no pair is reached before the frame of its own number
        for (int base = strip; base < frames; base += CHUNK) {
            Elem next_token[CHUNK], next_blank[CHUNK];
            read_ahead(next_token, token_from, stride_t, base + CHUNK, frames);
            read_ahead(next_blank, blank_from, stride_t, base + CHUNK, frames);
#pragma unroll
            for (int f = 0; f < CHUNK; ++f) {
                const int t = base + f;
                if (t < frames) {
                    const float left = thread  ? edge[(t + 1) % 2 * threads + thread - 1]
                                       : strip ? given[t - 1]
                                               : minus_infinity();
                    const unsigned blank_moved = left > blank_q;
                    unsigned token_moved = blank_q > token_q;
                    float token_best = token_moved ? blank_q : token_q;
                    if (skips && left > token_best) token_best = left, token_moved = 2;
                    const float token_score = token_from ? to_float(token_x[f]) : minus_infinity();
                    // fmaxf passes over NaN
                    blank_q = fmaxf(to_float(blank_x[f]) + (blank_moved ? left : blank_q), minus_infinity());
                    token_q = fmaxf(token_score + token_best, minus_infinity());
                    bits |= (blank_moved | token_moved << 2) << f % WORD_FRAMES * 4;
                    if (f % WORD_FRAMES == WORD_FRAMES - 1 || t == frames - 1) {
                        if (pair <= tokens) moved[(long long)(t / WORD_FRAMES) * pitch + pair] = bits;
                        bits = 0;
                    }
                    edge[t % 2 * threads + thread] = token_q;
                    if (strip_follows && thread == threads - 1) handed_on[t] = token_q;
                    __syncthreads();
                }
            }
#pragma unroll
            for (int f = 0; f < CHUNK; ++f) token_x[f] = next_token[f], blank_x[f] = next_blank[f];
        }

        if (pair == tokens) end[0] = blank_q;
        if (pair == tokens && !tokens) end[1] = minus_infinity();
        if (pair == tokens - 1) end[1] = token_q;
    }
    __syncthreads();

    if (!is_finite(fmaxf(end[0], end[1]))) {
        for (int t = thread; t < frames; t += threads) path[t] = -1;
        return;
    }
    if (thread >= 32) return;
    int state = 2 * tokens - (end[1] > end[0]);
    for (int top = ceil_div(frames, WORD_FRAMES); top > 0; top -= WALK_WORDS) {
        const int pair = state / 2;
        unsigned words[WALK_WORDS];
#pragma unroll
        for (int w = 0; w < WALK_WORDS; ++w) {
            const int row = top - 1 - w, mine = pair > lane ? pair - lane : 0;
            words[w] = row < 0 ? 0 : moved[(long long)row * pitch + mine];
        }
        int state_of_lane = 0;
#pragma unroll
        for (int back = 0; back < WALK_WORDS * WORD_FRAMES; ++back) {
            const int t = top * WORD_FRAMES - 1 - back;
            if (0 <= t && t < frames) {
                if (lane == back) state_of_lane = state;
                const unsigned word = __shfl_sync(~0u, words[back / WORD_FRAMES], pair - state / 2);
                state -= word >> t % WORD_FRAMES * 4 + state % 2 * 2 & 3;
            }
        }
        const int t = top * WORD_FRAMES - 1 - lane;
        if (lane < WALK_WORDS * WORD_FRAMES && 0 <= t && t < frames) path[t] = state_of_lane;
    }
}

#ifdef VITERBI_ELEMENT
extern "C" __global__ void __launch_bounds__(MAX_THREADS)
    viterbi(const VITERBI_ELEMENT* log_probs, long long stride_b, long long stride_t, long long stride_v,
            const void* frame_len, int frame_bytes, const void* targets, int target_bytes, const void* target_len,
            int length_bytes, int max_frames, int max_tokens, int vocab, int blank, long long* path, unsigned* moved,
            float* saved) {
    ctc_viterbi(log_probs, stride_b, stride_t, stride_v, frame_len, frame_bytes, targets, target_bytes, target_len,
                length_bytes, max_frames, max_tokens, vocab, blank, path, moved, saved);
}
#endif
