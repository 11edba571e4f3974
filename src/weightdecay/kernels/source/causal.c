// Causal attention, forward and back, of whole sequences: some queries of a head at a time, with the keys that they see,
// from scores to outputs in the cache. A head's work is one thread's, in one order, however many there are.
#include <stdlib.h>

#include "logits.h"
#include "tiles.h"

#ifdef TILES
#include "kernels.h"

enum { QUERIES = 2 * SIDE };

static inline int64_t padded_to_side(int64_t x) { return steps_of(x) * SIDE; }

static void pack_all(const bfloat16 *x, int64_t stride, int64_t depth, int64_t columns, bfloat16 *packed) {
    const int64_t panel = steps_of(depth) * STEP;
    for (int64_t first = 0; first < columns; first += SIDE) pack(x, stride, depth, columns, first, packed + first / SIDE * panel);
}

static void pack_all_turned(const bfloat16 *x, int64_t stride, int64_t depth, int64_t columns, bfloat16 *packed) {
    const int64_t panel = steps_of(depth) * STEP;
    for (int64_t first = 0; first < columns; first += SIDE)
        pack_turned(x, stride, depth, columns, first, packed + first / SIDE * panel);
}

// Rows of x to [64, whole steps of width], zeros where there are none.
static void copy_rows(const bfloat16 *x, int64_t stride, int64_t rows, int64_t width, bfloat16 *to) {
    const int64_t apart = padded_to_side(width);
    memset(to, 0, QUERIES * apart * sizeof(bfloat16));
    for (int64_t row = 0; row < rows; row++) memcpy(to + row * apart, x + row * stride, width * sizeof(bfloat16));
}

// Products of rows [64, width] with each of the keys that the block's queries see, at s [64, span], without what nobody
// sees. `keys` are packed, `width` deep.
static void products_with_keys(const bfloat16 *rows, const bfloat16 *keys, int64_t width, const Block *of, float *s) {
    const int64_t steps = steps_of(width), span = of->span;
    for (int64_t top = 0; top < of->rows; top += SIDE)
        for (int64_t key = 0; key < span && of->begin + key < of->first + top + SIDE; key += SIDE)
            multiply_block(rows + top * steps * SIDE, steps * SIDE, keys + (of->begin + key) / SIDE * steps * STEP, steps,
                           s + top * span + key, span);
}

// y [64, width], of which `rows` are wanted, = weights [64, span] by what is packed of the positions from `begin` on.
static void products_with_weights(const bfloat16 *weights, const bfloat16 *packed, int64_t steps, int64_t begin,
                                  int64_t span, int64_t rows, int64_t width, bfloat16 *y, int64_t stride) {
    float c[SIDE * SIDE] __attribute__((aligned(64)));
    for (int64_t top = 0; top < rows; top += SIDE)
        for (int64_t column = 0; column < width; column += SIDE) {
            multiply_block(weights + top * span, span, packed + (column / SIDE * steps + begin / SIDE) * STEP, span / SIDE, c, SIDE);
            for (int64_t row = top; row < rows && row < top + SIDE; row++)
                for (int64_t half = 0; half < SIDE && column + half < width; half += 16)
                    _mm256_mask_storeu_epi16(y + row * stride + column + half, first_of_16(width - column - half),
                                             rounded(_mm512_load_ps(c + (row - top) * SIDE + half)));
        }
}

// Sums over queries: sum [span, width] += weights [64, span]ᵀ by rows [64, width], which are packed.
static void add_over_queries(const bfloat16 *weights, const bfloat16 *packed, int64_t span, int64_t width, float *sum) {
    bfloat16 laid_out[SIDE * QUERIES] __attribute__((aligned(64)));
    float c[SIDE * SIDE] __attribute__((aligned(64)));
    const int64_t apart = padded_to_side(width);
    for (int64_t key = 0; key < span; key += SIDE) {
        lay_out(weights, span, QUERIES, span, key, laid_out, QUERIES);
        for (int64_t column = 0; column < width; column += SIDE) {
            multiply_block(laid_out, QUERIES, packed + column / SIDE * (QUERIES / SIDE) * STEP, QUERIES / SIDE, c, SIDE);
            for (int64_t row = 0; row < SIDE; row++)
                for (int64_t half = 0; half < SIDE; half += 16) {
                    float *to = sum + (key + row) * apart + column + half;
                    _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), _mm512_load_ps(c + row * SIDE + half)));
                }
        }
    }
}

// e^x within 2e-7 of itself for x up to 87; what is below e^-87 becomes that.
static inline __m512 exponentials(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-87.0f), x);
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-0.693359375f), x), p = _mm512_set1_ps(1.9875691500e-4f);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), r);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

// One query's keys: those from `from` to `to` are seen, in whole vectors from `begin` to `end`.
typedef struct {
    int64_t from, to, begin, end;
    float scale;  // of its scores, if they are no logits yet
} Row;

static inline __mmask16 seen_of(const Row *row, int64_t i) {
    return first_of_16(row->to - i) & (__mmask16)~first_of_16(row->from - i);
}

// Scores that are capped or lose ALiBi's share become logits first.
static inline Row row_of(const Block *of, int64_t head, int64_t row, float *s) {
    Row own;
    seen(of, row, &own.from, &own.to);
    own.begin = own.from / 16 * 16;
    own.end = padded(of, own.to);
    own.scale = of->scale;
    if (of->cap > 0 || of->slopes) {
        logits_of(of, head, row, own.begin, own.end, s);
        own.scale = 1;
    }
    return own;
}

static inline void put_zeros(const Row *row, int64_t span, bfloat16 *x) {
    memset(x, 0, row->begin * sizeof(bfloat16));
    memset(x + row->end, 0, (span - row->end) * sizeof(bfloat16));
}

// Scores of one query become its weights; log Σ exp of the logits.
static inline float weights_of(const Block *of, float *s, int64_t head, int64_t row, bfloat16 *weights) {
    const Row own = row_of(of, head, row, s);
    const __m512 scale = _mm512_set1_ps(own.scale);
    __m512 largest = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    for (int64_t i = own.begin; i < own.end; i += 16)
        largest = _mm512_mask_max_ps(largest, seen_of(&own, i), _mm512_mul_ps(_mm512_loadu_ps(s + i), scale), largest);
    const float most = _mm512_reduce_max_ps(largest);
    for (int64_t i = own.begin; i < own.end; i += 16) {
        const __m512 logit = _mm512_fmsub_ps(_mm512_loadu_ps(s + i), scale, _mm512_set1_ps(most));
        const __m512 weight = _mm512_maskz_mov_ps(seen_of(&own, i), exponentials(logit));
        sum = _mm512_add_ps(sum, weight);
        _mm512_storeu_ps(s + i, weight);
    }
    const float all = _mm512_reduce_add_ps(sum);
    const __m512 share = _mm512_set1_ps(1.0f / all);
    for (int64_t i = own.begin; i < own.end; i += 16)
        _mm256_storeu_si256((__m256i *)(weights + i), rounded(_mm512_mul_ps(_mm512_loadu_ps(s + i), share)));
    put_zeros(&own, of->span, weights);
    return most + logf(all);
}

// Scores of one query become its weights once more, and the gradients d of these the scores'.
static inline void score_gradients(const Block *of, float *s, const float *d, float logsum, int64_t head, int64_t row,
                                   bfloat16 *weights, bfloat16 *scores) {
    float slope[of->cap > 0 ? of->span : 1];
    if (of->cap > 0) slopes_of_cap(of, s, 0, of->span, slope);
    const Row own = row_of(of, head, row, s);
    const __m512 scale = _mm512_set1_ps(own.scale), of_scores = _mm512_set1_ps(of->scale);
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = own.begin; i < own.end; i += 16) {
        const __m512 logit = _mm512_fmsub_ps(_mm512_loadu_ps(s + i), scale, _mm512_set1_ps(logsum));
        const __m512 weight = _mm512_maskz_mov_ps(seen_of(&own, i), exponentials(logit));
        sum = _mm512_mask3_fmadd_ps(weight, _mm512_loadu_ps(d + i), sum, seen_of(&own, i));
        _mm512_storeu_ps(s + i, weight);
    }
    const __m512 along = _mm512_set1_ps(_mm512_reduce_add_ps(sum));
    for (int64_t i = own.begin; i < own.end; i += 16) {
        const __m512 weight = _mm512_loadu_ps(s + i);
        __m512 score = _mm512_mul_ps(weight, of_scores);
        score = _mm512_maskz_mul_ps(seen_of(&own, i), score, _mm512_sub_ps(_mm512_loadu_ps(d + i), along));
        if (of->cap > 0) score = _mm512_maskz_mul_ps(seen_of(&own, i), score, _mm512_loadu_ps(slope + i));
        _mm256_storeu_si256((__m256i *)(weights + i), rounded(weight));
        _mm256_storeu_si256((__m256i *)(scores + i), rounded(score));
    }
    put_zeros(&own, of->span, weights);
    put_zeros(&own, of->span, scores);
}

// Sums [time, whole steps of width] to bfloat16 rows.
static void put_sums(const float *sums, int64_t time, int64_t width, bfloat16 *y, int64_t stride) {
    for (int64_t row = 0; row < time; row++)
        for (int64_t column = 0; column < width; column += 16)
            _mm256_mask_storeu_epi16(y + row * stride + column, first_of_16(width - column),
                                     rounded(_mm512_loadu_ps(sums + row * padded_to_side(width) + column)));
}

// The queries from `first` on and the keys that some of them see.
static inline Block block_of(int64_t first, int64_t time, int64_t heads, float scale, float cap, const float *slopes,
                             int64_t window) {
    const int64_t rows = first + QUERIES < time ? QUERIES : time - first;
    const int64_t begin = window > 0 && first >= window ? (first - window + 1) / SIDE * SIDE : 0;
    return (Block){scale, cap, slopes, first, begin, rows, padded_to_side(first + rows - begin), heads, window};
}

// y [B, T, H·V] of q [B, H, T, E], k [B, K, T, E] and v [B, K, T, V], which lie by their strides; log Σ exp of each
// query's logits [B, H, T] is kept.
void causal_forward(const bfloat16 *q, const bfloat16 *k, const bfloat16 *v, const int64_t *lies, bfloat16 *y,
                    float *logsums, const float *slopes, float scale, float cap, int64_t window, int64_t batch,
                    int64_t time, int64_t heads, int64_t kv_heads, int64_t width, int64_t value_width, int threads) {
    const Strides *at = (const Strides *)lies, at_q = at[0], at_k = at[1], at_v = at[2];
    const int64_t steps = steps_of(time), longest = padded_to_side(time) + SIDE, group = heads / kv_heads;
    const int64_t wide_key = padded_to_side(width), wide_value = padded_to_side(value_width);
#pragma omp parallel num_threads(threads)
    {
        bfloat16 *keys = aligned_alloc(64, steps * SIDE * (wide_key + wide_value) * sizeof(bfloat16));
        bfloat16 *values = keys + steps * SIDE * wide_key;
        float *s = aligned_alloc(64, QUERIES * longest * (sizeof(float) + sizeof(bfloat16)));
        bfloat16 *weights = (bfloat16 *)(s + QUERIES * longest);
        bfloat16 queries[QUERIES * wide_key];
        take_tiles();
#pragma omp for schedule(static)
        for (int64_t item = 0; item < batch * kv_heads; item++) {
            const int64_t b = item / kv_heads, kv = item % kv_heads;
            pack_all_turned(k + b * at_k.batch + kv * at_k.head, at_k.time, width, time, keys);
            pack_all(v + b * at_v.batch + kv * at_v.head, at_v.time, time, value_width, values);
            for (int64_t head = kv * group; head < (kv + 1) * group; head++)
                for (int64_t first = 0; first < time; first += QUERIES) {
                    const Block of = block_of(first, time, heads, scale, cap, slopes, window);
                    const int64_t rows = of.rows, span = of.span;
                    copy_rows(q + b * at_q.batch + head * at_q.head + first * at_q.time, at_q.time, rows, width, queries);
                    products_with_keys(queries, keys, width, &of, s);
                    for (int64_t row = 0; row < rows; row++)
                        logsums[(b * heads + head) * time + first + row] =
                            weights_of(&of, s + row * span, head, row, weights + row * span);
                    memset(weights + rows * span, 0, (QUERIES - rows) * span * sizeof(bfloat16));
                    products_with_weights(weights, values, steps, of.begin, span, rows, value_width,
                                          y + ((b * time + first) * heads + head) * value_width, heads * value_width);
                }
        }
        leave_tiles();
        free(keys);
        free(s);
    }
}

// The gradients of q, k and v of that of y, each where its own strides say.
void causal_backward(const bfloat16 *dy, const bfloat16 *q, const bfloat16 *k, const bfloat16 *v, const int64_t *lies,
                     bfloat16 *dq, bfloat16 *dk, bfloat16 *dv, const int64_t *lie, const float *logsums,
                     const float *slopes, float scale, float cap, int64_t window, int64_t batch, int64_t time,
                     int64_t heads, int64_t kv_heads, int64_t width, int64_t value_width, int threads) {
    const Strides *at = (const Strides *)lies, at_q = at[0], at_k = at[1], at_v = at[2];
    const Strides *to = (const Strides *)lie, to_q = to[0], to_k = to[1], to_v = to[2];
    const int64_t steps = steps_of(time), longest = padded_to_side(time), group = heads / kv_heads;
    const int64_t wide_key = padded_to_side(width), wide_value = padded_to_side(value_width), both = wide_key + wide_value;
#pragma omp parallel num_threads(threads)
    {
        bfloat16 *keys = aligned_alloc(64, longest * (both + wide_key) * sizeof(bfloat16));
        bfloat16 *values = keys + longest * wide_key, *keys_down = values + longest * wide_value;
        float *sums = aligned_alloc(64, longest * both * sizeof(float)), *value_sums = sums + longest * wide_key;
        float *s = aligned_alloc(64, QUERIES * longest * 2 * (sizeof(float) + sizeof(bfloat16)));
        float *d = s + QUERIES * longest;
        bfloat16 *weights = (bfloat16 *)(d + QUERIES * longest), *scores = weights + QUERIES * longest;
        bfloat16 queries[QUERIES * wide_key], above[QUERIES * wide_value], packed[QUERIES * both];
        bfloat16 *packed_above = packed + QUERIES * wide_key;
        take_tiles();
#pragma omp for schedule(static)
        for (int64_t item = 0; item < batch * kv_heads; item++) {
            const int64_t b = item / kv_heads, kv = item % kv_heads;
            const bfloat16 *own_keys = k + b * at_k.batch + kv * at_k.head, *own = v + b * at_v.batch + kv * at_v.head;
            pack_all_turned(own_keys, at_k.time, width, time, keys);
            pack_all_turned(own, at_v.time, value_width, time, values);
            pack_all(own_keys, at_k.time, time, width, keys_down);
            memset(sums, 0, longest * both * sizeof(float));
            for (int64_t head = kv * group; head < (kv + 1) * group; head++)
                for (int64_t first = 0; first < time; first += QUERIES) {
                    const Block of = block_of(first, time, heads, scale, cap, slopes, window);
                    const int64_t rows = of.rows, span = of.span, outputs = heads * value_width;
                    copy_rows(q + b * at_q.batch + head * at_q.head + first * at_q.time, at_q.time, rows, width, queries);
                    copy_rows(dy + (b * time + first) * outputs + head * value_width, outputs, rows, value_width, above);
                    products_with_keys(queries, keys, width, &of, s);
                    products_with_keys(above, values, value_width, &of, d);
                    for (int64_t row = 0; row < rows; row++)
                        score_gradients(&of, s + row * span, d + row * span,
                                        logsums[(b * heads + head) * time + first + row], head, row,
                                        weights + row * span, scores + row * span);
                    memset(weights + rows * span, 0, (QUERIES - rows) * span * sizeof(bfloat16));
                    memset(scores + rows * span, 0, (QUERIES - rows) * span * sizeof(bfloat16));
                    products_with_weights(scores, keys_down, steps, of.begin, span, rows, width,
                                          dq + b * to_q.batch + head * to_q.head + first * to_q.time, to_q.time);
                    pack_all(queries, wide_key, QUERIES, width, packed);
                    pack_all(above, wide_value, QUERIES, value_width, packed_above);
                    add_over_queries(scores, packed, span, width, sums + of.begin * wide_key);
                    add_over_queries(weights, packed_above, span, value_width, value_sums + of.begin * wide_value);
                }
            put_sums(sums, time, width, dk + b * to_k.batch + kv * to_k.head, to_k.time);
            put_sums(value_sums, time, value_width, dv + b * to_v.batch + kv * to_v.head, to_v.time);
        }
        leave_tiles();
        free(keys);
        free(sums);
        free(s);
    }
}
#else
void causal_forward(void) {}
void causal_backward(void) {}
#endif
