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

// Up to 64 rows of x as a first factor: themselves, or a copy [64, whole steps of width] with zeros where there are none.
static const bfloat16 *as_factor(const bfloat16 *x, int64_t *stride, int64_t rows, int64_t width, bfloat16 *room) {
    const int64_t apart = padded_to_side(width);
    if (rows == QUERIES && width == apart) return x;
    memset(room, 0, QUERIES * apart * sizeof(bfloat16));
    for (int64_t row = 0; row < rows; row++) memcpy(room + row * apart, x + row * *stride, width * sizeof(bfloat16));
    *stride = apart;
    return room;
}

// Rows that will be read soon are fetched while others are worked on.
static inline void fetch(const bfloat16 *x, int64_t stride, int64_t rows, int64_t width) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < width; i += 32) _mm_prefetch((const char *)(x + row * stride + i), _MM_HINT_T1);
}

// Products of rows [64, width] with each of the keys that the block's queries see, at s [64, span], without what nobody
// sees. `keys` are packed, `width` deep.
static void products_with_keys(const bfloat16 *rows, int64_t stride, const bfloat16 *keys, int64_t width, const Block *of,
                               float *s) {
    const int64_t steps = steps_of(width), span = of->span;
    for (int64_t top = 0; top < of->rows; top += SIDE)
        for (int64_t key = 0; key < span && of->begin + key < of->first + top + SIDE; key += SIDE)
            multiply_block(rows + top * stride, stride, keys + (of->begin + key) / SIDE * steps * STEP, steps,
                           s + top * span + key, span, 0);
}

// y [64, width], of which `rows` are wanted, = shares · weights [64, span] by what is packed of the positions from `begin`
// on.
static void products_with_weights(const bfloat16 *weights, const float *shares, const bfloat16 *packed, int64_t steps,
                                  int64_t begin, int64_t span, int64_t rows, int64_t width, bfloat16 *y, int64_t stride,
                                  int past) {
    float c[SIDE * SIDE] __attribute__((aligned(64)));
    for (int64_t top = 0; top < rows; top += SIDE)
        for (int64_t column = 0; column < width; column += SIDE) {
            multiply_block(weights + top * span, span, packed + (column / SIDE * steps + begin / SIDE) * STEP, span / SIDE, c,
                           SIDE, 0);
            for (int64_t row = top; row < rows && row < top + SIDE; row++) {
                const __m512 share = _mm512_set1_ps(shares[row]);
                const float *from = c + (row - top) * SIDE;
                put_line(y + row * stride + column, _mm512_mul_ps(share, _mm512_load_ps(from)),
                         _mm512_mul_ps(share, _mm512_load_ps(from + 16)), width - column, past);
            }
        }
}

// Sums over queries: sum [span, width] += weights [64, span]ᵀ by rows [64, width], which are packed.
static void add_over_queries(const bfloat16 *weights, const bfloat16 *packed, int64_t span, int64_t width, float *sum) {
    bfloat16 laid_out[SIDE * QUERIES] __attribute__((aligned(64)));
    const int64_t apart = padded_to_side(width), steps = QUERIES / SIDE;
    for (int64_t key = 0; key < span; key += SIDE) {
        lay_out(weights, span, QUERIES, span, key, laid_out, QUERIES);
        for (int64_t column = 0; column < width; column += SIDE)
            multiply_block(laid_out, QUERIES, packed + column / SIDE * steps * STEP, steps, sum + key * apart + column, apart, 1);
    }
}

static const float LOG2_E = 1.44269504f;

// 2^x within 2e-7 of itself; what is below 2^-126 becomes that.
static inline __m512 powers_of_2(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);
    const __m512 n = _mm512_roundscale_ps(x, 0), r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(1.326472731e-3f), r, _mm512_set1_ps(9.671512991e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.550733581e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.402224243e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.931470037e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
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

// Zeros where nothing is seen. Whole vectors, since a call for so few would take longer.
static inline void put_zeros(const Row *row, int64_t span, bfloat16 *x) {
    const __m256i zeros = _mm256_setzero_si256();
    for (int64_t i = 0; i < row->begin; i += 16) _mm256_storeu_si256((__m256i *)(x + i), zeros);
    for (int64_t i = row->end; i < span; i += 16) _mm256_storeu_si256((__m256i *)(x + i), zeros);
}

// Of one query's scores e^(logit − the largest), and what they are to be multiplied by to be its weights; log Σ exp of
// the logits.
static inline float weights_of(const Block *of, float *s, int64_t head, int64_t row, bfloat16 *weights, float *share) {
    const Row own = row_of(of, head, row, s);
    const __m512 scale = _mm512_set1_ps(own.scale * LOG2_E);
    __m512 largest = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    for (int64_t i = own.begin; i < own.end; i += 16)
        largest = _mm512_mask_max_ps(largest, seen_of(&own, i), _mm512_mul_ps(_mm512_loadu_ps(s + i), scale), largest);
    const float most = _mm512_reduce_max_ps(largest);
    for (int64_t i = own.begin; i < own.end; i += 16) {
        const __m512 power = powers_of_2(_mm512_fmsub_ps(_mm512_loadu_ps(s + i), scale, _mm512_set1_ps(most)));
        const __m512 weight = _mm512_maskz_mov_ps(seen_of(&own, i), power);
        sum = _mm512_add_ps(sum, weight);
        _mm256_storeu_si256((__m256i *)(weights + i), rounded(weight));
    }
    const float all = _mm512_reduce_add_ps(sum);
    put_zeros(&own, of->span, weights);
    *share = 1.0f / all;
    return most / LOG2_E + logf(all);
}

// Scores of one query become its weights once more, and the gradients d of these the scores'.
static inline void score_gradients(const Block *of, float *s, const float *d, float logsum, int64_t head, int64_t row,
                                   bfloat16 *weights, bfloat16 *scores) {
    float slope[of->cap > 0 ? of->span : 1];
    if (of->cap > 0) slopes_of_cap(of, s, 0, of->span, slope);
    const Row own = row_of(of, head, row, s);
    const __m512 scale = _mm512_set1_ps(own.scale * LOG2_E), less = _mm512_set1_ps(logsum * LOG2_E);
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = own.begin; i < own.end; i += 16) {
        const __mmask16 mask = seen_of(&own, i);
        const __m512 power = powers_of_2(_mm512_fmsub_ps(_mm512_loadu_ps(s + i), scale, less));
        const __m512 weight = _mm512_maskz_mov_ps(mask, power);
        sum = _mm512_mask3_fmadd_ps(weight, _mm512_loadu_ps(d + i), sum, mask);
        _mm512_storeu_ps(s + i, weight);
    }
    const __m512 of_scores = _mm512_set1_ps(of->scale), along = _mm512_set1_ps(_mm512_reduce_add_ps(sum) * of->scale);
    for (int64_t i = own.begin; i < own.end; i += 16) {
        const __mmask16 mask = seen_of(&own, i);
        const __m512 weight = _mm512_loadu_ps(s + i);
        __m512 score = _mm512_maskz_mul_ps(mask, weight, _mm512_fmsub_ps(_mm512_loadu_ps(d + i), of_scores, along));
        if (of->cap > 0) score = _mm512_maskz_mul_ps(mask, score, _mm512_loadu_ps(slope + i));
        _mm256_storeu_si256((__m256i *)(weights + i), rounded(weight));
        _mm256_storeu_si256((__m256i *)(scores + i), rounded(score));
    }
    put_zeros(&own, of->span, weights);
    put_zeros(&own, of->span, scores);
}

// Sums [time, whole steps of width] to bfloat16 rows.
static void put_sums(const float *sums, int64_t time, int64_t width, bfloat16 *y, int64_t stride, int past) {
    for (int64_t row = 0; row < time; row++)
        for (int64_t column = 0; column < width; column += SIDE) {
            const float *from = sums + row * padded_to_side(width) + column;
            put_line(y + row * stride + column, _mm512_loadu_ps(from), _mm512_loadu_ps(from + 16), width - column, past);
        }
}

// The queries from `first` on and the keys that some of them see.
static inline Block block_of(int64_t first, int64_t time, int64_t heads, float scale, float cap, const float *slopes,
                             int64_t window) {
    const int64_t rows = first + QUERIES < time ? QUERIES : time - first;
    const int64_t begin = window > 0 && first >= window ? (first - window + 1) / SIDE * SIDE : 0;
    return (Block){scale, cap, slopes, first, begin, rows, padded_to_side(first + rows - begin), heads, window};
}

// Where a head of a sequence begins.
static inline int64_t place_of(const Strides *at, int64_t sequence, int64_t head) {
    return sequence * at->batch + head * at->head;
}

// Whether what lies like this goes past the cache.
static inline int all_past(const bfloat16 *x, const Strides *at, int64_t rows, int64_t width) {
    return (at->batch | at->head | at->time) % SIDE == 0 && goes_past(x, rows, width, sizeof(bfloat16));
}

// Heads that a thread takes at once: it fetches the next one's rows while it works on one's.
static inline int64_t in_turn(int64_t items, int threads) { return items < 16 * threads ? 1 : items / (8 * threads); }

// y [B, T, H·V] of q [B, H, T, E], k [B, K, T, E] and v [B, K, T, V], which lie by their strides; log Σ exp of each
// query's logits [B, H, T] is kept.
void causal_forward(const bfloat16 *q, const bfloat16 *k, const bfloat16 *v, const int64_t *lies, bfloat16 *y,
                    float *logsums, const float *slopes, float scale, float cap, int64_t window, int64_t batch,
                    int64_t time, int64_t heads, int64_t kv_heads, int64_t width, int64_t value_width, int threads) {
    const Strides *at_q = (const Strides *)lies, *at_k = at_q + 1, *at_v = at_q + 2;
    const Strides at_y = {time * heads * value_width, value_width, heads * value_width};
    const int64_t steps = steps_of(time), longest = padded_to_side(time) + SIDE, group = heads / kv_heads;
    const int64_t wide_key = padded_to_side(width), wide_value = padded_to_side(value_width), items = batch * kv_heads;
    const int past = all_past(y, &at_y, batch * time * heads, value_width);
#pragma omp parallel num_threads(threads)
    {
        bfloat16 *keys = aligned_alloc(64, steps * SIDE * (wide_key + wide_value) * sizeof(bfloat16));
        bfloat16 *values = keys + steps * SIDE * wide_key;
        float *s = aligned_alloc(64, QUERIES * longest * (sizeof(float) + sizeof(bfloat16))), shares[QUERIES];
        bfloat16 *weights = (bfloat16 *)(s + QUERIES * longest), room[QUERIES * wide_key];
        take_tiles();
#pragma omp for schedule(dynamic, in_turn(items, threads))
        for (int64_t item = 0; item < items; item++) {
            const int64_t b = item / kv_heads, kv = item % kv_heads, next = (item + 1) % items;
            pack_all_turned(k + place_of(at_k, b, kv), at_k->time, width, time, keys);
            pack_all(v + place_of(at_v, b, kv), at_v->time, time, value_width, values);
            for (int64_t head = kv * group; head < (kv + 1) * group; head++)
                for (int64_t first = 0; first < time; first += QUERIES) {
                    const Block of = block_of(first, time, heads, scale, cap, slopes, window);
                    const int64_t rows = of.rows, span = of.span;
                    int64_t stride = at_q->time;
                    const bfloat16 *queries = as_factor(q + place_of(at_q, b, head) + first * stride, &stride, rows, width, room);
                    products_with_keys(queries, stride, keys, width, &of, s);
                    for (int64_t row = 0; row < rows; row++)
                        logsums[(b * heads + head) * time + first + row] =
                            weights_of(&of, s + row * span, head, row, weights + row * span, shares + row);
                    memset(weights + rows * span, 0, (QUERIES - rows) * span * sizeof(bfloat16));
                    products_with_weights(weights, shares, values, steps, of.begin, span, rows, value_width,
                                          y + place_of(&at_y, b, head) + first * at_y.time, at_y.time, past);
                    if (head % group > 0) continue;
                    const int64_t b_next = next / kv_heads, kv_next = next % kv_heads;
                    fetch(q + place_of(at_q, b_next, kv_next * group) + first * at_q->time, at_q->time, rows, width);
                    fetch(k + place_of(at_k, b_next, kv_next) + first * at_k->time, at_k->time, rows, width);
                    fetch(v + place_of(at_v, b_next, kv_next) + first * at_v->time, at_v->time, rows, value_width);
                }
        }
        _mm_sfence();
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
    const Strides *at_q = (const Strides *)lies, *at_k = at_q + 1, *at_v = at_q + 2;
    const Strides *to_q = (const Strides *)lie, *to_k = to_q + 1, *to_v = to_q + 2;
    const Strides at_y = {time * heads * value_width, value_width, heads * value_width};
    const int64_t steps = steps_of(time), longest = padded_to_side(time), group = heads / kv_heads, items = batch * kv_heads;
    const int64_t wide_key = padded_to_side(width), wide_value = padded_to_side(value_width), both = wide_key + wide_value;
    const int past_q = all_past(dq, to_q, batch * time * heads, width), past_k = all_past(dk, to_k, batch * time * heads, width);
    const int past_v = all_past(dv, to_v, batch * time * heads, value_width);
#pragma omp parallel num_threads(threads)
    {
        bfloat16 *keys = aligned_alloc(64, longest * (both + wide_key) * sizeof(bfloat16));
        bfloat16 *values = keys + longest * wide_key, *keys_down = values + longest * wide_value;
        float *sums = aligned_alloc(64, longest * both * sizeof(float)), *value_sums = sums + longest * wide_key;
        float *s = aligned_alloc(64, QUERIES * longest * 2 * (sizeof(float) + sizeof(bfloat16)));
        float *d = s + QUERIES * longest;
        bfloat16 *weights = (bfloat16 *)(d + QUERIES * longest), *scores = weights + QUERIES * longest;
        bfloat16 room[QUERIES * wide_key], room_above[QUERIES * wide_value], packed[QUERIES * both];
        bfloat16 *packed_above = packed + QUERIES * wide_key;
        float ones[QUERIES];
        for (int row = 0; row < QUERIES; row++) ones[row] = 1;
        take_tiles();
#pragma omp for schedule(dynamic, in_turn(items, threads))
        for (int64_t item = 0; item < items; item++) {
            const int64_t b = item / kv_heads, kv = item % kv_heads, next = (item + 1) % items;
            const bfloat16 *own_keys = k + place_of(at_k, b, kv), *own = v + place_of(at_v, b, kv);
            pack_all_turned(own_keys, at_k->time, width, time, keys);
            pack_all_turned(own, at_v->time, value_width, time, values);
            pack_all(own_keys, at_k->time, time, width, keys_down);
            memset(sums, 0, longest * both * sizeof(float));
            for (int64_t head = kv * group; head < (kv + 1) * group; head++)
                for (int64_t first = 0; first < time; first += QUERIES) {
                    const Block of = block_of(first, time, heads, scale, cap, slopes, window);
                    const int64_t rows = of.rows, span = of.span, place = place_of(&at_y, b, head) + first * at_y.time;
                    int64_t stride = at_q->time, stride_above = at_y.time;
                    const bfloat16 *queries = as_factor(q + place_of(at_q, b, head) + first * stride, &stride, rows, width, room);
                    const bfloat16 *above = as_factor(dy + place, &stride_above, rows, value_width, room_above);
                    products_with_keys(queries, stride, keys, width, &of, s);
                    products_with_keys(above, stride_above, values, value_width, &of, d);
                    for (int64_t row = 0; row < rows; row++)
                        score_gradients(&of, s + row * span, d + row * span, logsums[(b * heads + head) * time + first + row],
                                        head, row, weights + row * span, scores + row * span);
                    memset(weights + rows * span, 0, (QUERIES - rows) * span * sizeof(bfloat16));
                    memset(scores + rows * span, 0, (QUERIES - rows) * span * sizeof(bfloat16));
                    products_with_weights(scores, ones, keys_down, steps, of.begin, span, rows, width,
                                          dq + place_of(to_q, b, head) + first * to_q->time, to_q->time, past_q);
                    pack_all(queries, stride, QUERIES, width, packed);
                    pack_all(above, stride_above, QUERIES, value_width, packed_above);
                    add_over_queries(scores, packed, span, width, sums + of.begin * wide_key);
                    add_over_queries(weights, packed_above, span, value_width, value_sums + of.begin * wide_value);
                    if (head % group > 0) continue;
                    const int64_t b_next = next / kv_heads, kv_next = next % kv_heads;
                    const int64_t place_next = place_of(&at_y, b_next, kv_next * group) + first * at_y.time;
                    fetch(q + place_of(at_q, b_next, kv_next * group) + first * at_q->time, at_q->time, rows, width);
                    fetch(k + place_of(at_k, b_next, kv_next) + first * at_k->time, at_k->time, rows, width);
                    fetch(v + place_of(at_v, b_next, kv_next) + first * at_v->time, at_v->time, rows, value_width);
                    fetch(dy + place_next, at_y.time, rows, value_width);
                }
            put_sums(sums, time, width, dk + place_of(to_k, b, kv), to_k->time, past_k);
            put_sums(value_sums, time, value_width, dv + place_of(to_v, b, kv), to_v->time, past_v);
        }
        _mm_sfence();
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
