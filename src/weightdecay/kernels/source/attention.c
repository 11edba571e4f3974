// Between the two products of attention: heads apart and together, the softmax of a block of scores and its gradient.
#include "bfloat16.h"

// qkv [B, T, (H + 2·K)·E] + bias to q [B, H, T, E], k and v [B, H, T, E], each of the K repeated for its H/K query heads. Of
// the E features of q and k the first `turning` are turned by the angle of their position, in pairs half of them apart.
void split_heads(const bfloat16 *qkv, const float *bias, const float *cosines, const float *sines, int64_t turning,
                 bfloat16 *q, bfloat16 *k, bfloat16 *v, int64_t batch, int64_t time, int64_t heads, int64_t kv_heads,
                 int64_t width, int threads) {
    const int64_t all = heads + 2 * kv_heads, group = heads / kv_heads, half = turning / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < batch * time; row++) {
        const int64_t b = row / time, t = row % time;
        const float *c = cosines + t * turning, *s = sines + t * turning;
        float sum[width];
        for (int64_t head = 0; head < all; head++) {
            const bfloat16 *from = qkv + (row * all + head) * width;
            const int64_t own = head < heads ? head : (head - heads) % kv_heads * group;
            bfloat16 *to = (head < heads ? q : head < heads + kv_heads ? k : v) + ((b * heads + own) * time + t) * width;
            for (int64_t i = 0; i < width; i++) sum[i] = wide(from[i]) + (bias ? bias[head * width + i] : 0.0f);
            if (turning && head < heads + kv_heads)
                for (int64_t i = 0; i < half; i++) {
                    float x = sum[i], y = sum[i + half];
                    sum[i] = x * c[i] - y * s[i];
                    sum[i + half] = y * c[i] + x * s[i];
                }
            for (int64_t i = 0; i < width; i++) to[i] = low(sum[i]);
            if (head >= heads)
                for (int64_t copy = 1; copy < group; copy++)
                    memcpy(to + copy * time * width, to, width * sizeof(bfloat16));
        }
    }
}

// The gradient of `split_heads`: repeated heads are summed, turned ones turned back; the bias's in the first row of
// [threads, (H + 2·K)·E], or missing.
void split_heads_backward(const bfloat16 *dq, const bfloat16 *dk, const bfloat16 *dv, const float *cosines,
                          const float *sines, int64_t turning, bfloat16 *dqkv, float *dbias, int64_t batch,
                          int64_t time, int64_t heads, int64_t kv_heads, int64_t width, int threads) {
    const int64_t all = heads + 2 * kv_heads, group = heads / kv_heads, half = turning / 2, rows = batch * time;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int thread = 0; thread < threads; thread++) {
        float *sums = dbias ? dbias + thread * all * width : 0;
        if (sums) memset(sums, 0, all * width * sizeof(float));
        for (int64_t row = rows * thread / threads; row < rows * (thread + 1) / threads; row++) {
            const int64_t b = row / time, t = row % time;
            const float *c = cosines + t * turning, *s = sines + t * turning;
            float sum[width];
            for (int64_t head = 0; head < all; head++) {
                bfloat16 *to = dqkv + (row * all + head) * width;
                const int64_t own = head < heads ? head : (head - heads) % kv_heads * group;
                const bfloat16 *from =
                    (head < heads ? dq : head < heads + kv_heads ? dk : dv) + ((b * heads + own) * time + t) * width;
                for (int64_t i = 0; i < width; i++) sum[i] = wide(from[i]);
                if (head >= heads)
                    for (int64_t copy = 1; copy < group; copy++)
                        for (int64_t i = 0; i < width; i++) sum[i] += wide(from[copy * time * width + i]);
                if (turning && head < heads + kv_heads)
                    for (int64_t i = 0; i < half; i++) {
                        float x = sum[i], y = sum[i + half];
                        sum[i] = x * c[i] + y * s[i];
                        sum[i + half] = y * c[i] - x * s[i];
                    }
                for (int64_t i = 0; i < width; i++) to[i] = low(sum[i]);
                if (sums)
                    for (int64_t i = 0; i < width; i++) sums[head * width + i] += sum[i];
            }
        }
    }
    join(dbias, all * width, threads);
}

// Rows `first` and after of every head, [B·H, rows, E], to their places in [B, T, H, E]; or, `apart`, back.
void move_rows(bfloat16 *together, bfloat16 *block, int apart, int64_t first, int64_t rows, int64_t batch, int64_t time,
               int64_t heads, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < batch * rows; row++) {
        const int64_t b = row / rows, t = row % rows;
        for (int64_t head = 0; head < heads; head++) {
            bfloat16 *one = together + ((b * time + first + t) * heads + head) * width;
            bfloat16 *other = block + ((b * heads + head) * rows + t) * width;
            memcpy(apart ? other : one, apart ? one : other, width * sizeof(bfloat16));
        }
    }
}

typedef struct {
    float scale, cap;       // of the scores; cap 0 caps nothing
    const float *slopes;    // of ALiBi, one a head, or none
    int64_t first, begin;   // position of the first query, and of the first key
    int64_t rows, span;     // queries and keys of the block
    int64_t heads, window;  // window 0 sees everything before
} Block;

// Keys [from, to) of the block are seen by the query of row `row`.
static inline void seen(const Block *block, int64_t row, int64_t *from, int64_t *to) {
    const int64_t position = block->first + row;
    int64_t earliest = block->window > 0 ? position - block->window + 1 - block->begin : 0;
    *from = earliest > 0 ? earliest : 0;
    *to = position + 1 - block->begin < block->span ? position + 1 - block->begin : block->span;
}

// Keys up to which a row is worked on: whole vectors, since one number by itself costs as much as sixteen.
static inline int64_t padded(const Block *block, int64_t to) {
    const int64_t end = (to + 15) / 16 * 16;
    return end < block->span ? end : block->span;
}

// Scores become logits, in float32.
static inline void logits_of(const Block *block, const bfloat16 *scores, int64_t head, int64_t row, int64_t from,
                             int64_t to, float *logits) {
    if (block->cap > 0)
        for (int64_t i = from; i < to; i++)
            logits[i] = block->cap * tangent(wide(scores[i]) * block->scale / block->cap);
    else
        for (int64_t i = from; i < to; i++) logits[i] = wide(scores[i]) * block->scale;
    if (block->slopes) {
        const float slope = block->slopes[head];
        const float distance = (float)(block->first + row - block->begin);
        for (int64_t i = from; i < to; i++) logits[i] -= slope * (distance - (float)i);
    }
}

// Scores [B·H, rows, span] become attention weights, in place; log Σ exp of each row's logits is kept.
void softmax_forward(bfloat16 *scores, float *logsums, const float *slopes, float scale, float cap, int64_t window,
                     int64_t first, int64_t begin, int64_t rows, int64_t span, int64_t batch, int64_t heads,
                     int64_t time, int threads) {
    const Block block = {scale, cap, slopes, first, begin, rows, span, heads, window};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t line = 0; line < batch * heads * rows; line++) {
        const int64_t head = line / rows, row = line % rows;
        bfloat16 *s = scores + line * span;
        float logits[span];
        int64_t from, to;
        seen(&block, row, &from, &to);
        const int64_t end = padded(&block, to);
        logits_of(&block, s, head % heads, row, from, end, logits);
        const float limit = to;  // compared as floats, or the compiler would make two loops of one
        float most = logits[from], sum = 0;
#pragma omp simd reduction(max : most)
        for (int64_t i = from; i < end; i++) {
            logits[i] = (float)i < limit ? logits[i] : -INFINITY;
            most = logits[i] > most ? logits[i] : most;
        }
#pragma omp simd reduction(+ : sum)
        for (int64_t i = from; i < end; i++) {
            float weight = exponential(logits[i] - most);
            logits[i] = (float)i < limit ? weight : 0;  // not e^-87: products of such numbers are slow
            sum += logits[i];
        }
        const float share = 1.0f / sum;
        memset(s, 0, from * sizeof(bfloat16));
        for (int64_t i = from; i < end; i++) s[i] = low(logits[i] * share);
        memset(s + to, 0, (span - to) * sizeof(bfloat16));
        logsums[head * time + first + row] = most + logf(sum);
    }
}

// Scores become weights once more, unless they are weights already, and their gradients dP those of the scores, both in
// place:
//     dS = P·(dP − Σ P·dP)·scale, times 1 − (logit/cap)² where scores are capped
void softmax_backward(bfloat16 *scores, bfloat16 *gradients, const float *logsums, const float *slopes, float scale,
                      float cap, int64_t window, int64_t first, int64_t begin, int64_t rows, int64_t span,
                      int64_t batch, int64_t heads, int64_t time, int threads) {
    const Block block = {scale, cap, slopes, first, begin, rows, span, heads, window};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t line = 0; line < batch * heads * rows; line++) {
        const int64_t head = line / rows, row = line % rows;
        bfloat16 *s = scores + line * span, *d = gradients + line * span;
        float weights[span], slope[cap > 0 ? span : 1];
        int64_t from, to;
        seen(&block, row, &from, &to);
        const int64_t end = padded(&block, to);
        float along = 0;
        if (logsums) {
            const float logsum = logsums[head * time + first + row];
            logits_of(&block, s, head % heads, row, from, end, weights);
            if (cap > 0)
                for (int64_t i = from; i < end; i++) {
                    float t = tangent(wide(s[i]) * scale / cap);
                    slope[i] = 1.0f - t * t;
                }
            for (int64_t i = from; i < end; i++) weights[i] = exponential(weights[i] - logsum);
            memset(s, 0, from * sizeof(bfloat16));
            for (int64_t i = from; i < end; i++) s[i] = low(weights[i]);
            memset(s + to, 0, (span - to) * sizeof(bfloat16));
        }
        for (int64_t i = from; i < end; i++) along += wide(s[i]) * wide(d[i]);  // weights behind `to` are 0
        memset(d, 0, from * sizeof(bfloat16));
        if (cap > 0)
            for (int64_t i = from; i < end; i++) d[i] = low(wide(s[i]) * (wide(d[i]) - along) * scale * slope[i]);
        else
            for (int64_t i = from; i < end; i++) d[i] = low(wide(s[i]) * (wide(d[i]) - along) * scale);
        memset(d + to, 0, (span - to) * sizeof(bfloat16));
    }
}
