// Monotonic alignment search on one thread with AVX2, the yardstick of the CPU backend: the same contract but for NaN, which
// it does not expect. Directions are one bit a cell. Compiled by bench_align.py.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

extern "C" void mas_avx2(const float* score, const long long* seg_len, const long long* text_len, int* path, int batch,
                         int max_segs, int max_tokens) {
    const float minus_infinity = -std::numeric_limits<float>::infinity();
    const int columns = (max_tokens + 7) / 8 * 8;
    std::vector<float> rows(2 * (columns + 16), minus_infinity);
    std::vector<unsigned char> moved((size_t)max_segs * columns / 8);
    for (int b = 0; b < batch; ++b) {
        const int segs = seg_len[b], tokens = text_len[b];
        int* row_path = path + (size_t)b * max_segs;
        std::fill(row_path, row_path + max_segs, -1);
        if (tokens < 1 || tokens > segs) continue;
        std::fill(rows.begin(), rows.end(), minus_infinity);
        // eight cells before each row stand for the token before the first
        float *before = rows.data() + 8, *now = before + columns + 8;
        const float* first = score + (size_t)b * max_segs * max_tokens;
        before[0] = first[0];
        for (int s = 1; s < segs; ++s) {
            const float* x = first + (size_t)s * max_tokens;
            unsigned char* bits = moved.data() + (size_t)s * columns / 8;
            const int low = std::max(0, tokens - segs + s) / 8 * 8, high = std::min(s + 1, tokens);
            int n = low;
            for (; n + 8 <= high; n += 8) {
                const __m256 stay = _mm256_loadu_ps(before + n), step = _mm256_loadu_ps(before + n - 1);
                _mm256_storeu_ps(now + n, _mm256_add_ps(_mm256_loadu_ps(x + n), _mm256_max_ps(stay, step)));
                bits[n / 8] = _mm256_movemask_ps(_mm256_cmp_ps(step, stay, _CMP_GT_OQ));
            }
            if (n < high) bits[n / 8] = 0;
            for (; n < high; ++n) {
                const float stay = before[n], step = before[n - 1];
                now[n] = x[n] + std::max(stay, step);
                bits[n / 8] |= (step > stay) << n % 8;
            }
            std::swap(before, now);
        }
        if (!std::isfinite(before[tokens - 1])) continue;
        for (int s = segs - 1, n = tokens - 1; s >= 0; --s) {
            row_path[s] = n;
            if (s) n -= moved[(size_t)s * columns / 8 + n / 8] >> n % 8 & 1;
        }
    }
}
