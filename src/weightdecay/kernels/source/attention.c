// Between the two products of attention: heads apart and together, the softmax of a block of scores and its gradient.
#include "kernels.h"
#include "logits.h"

// qkv [B, T, (H + 2·K)·E] to q [B, H, T, E], k and v [B, H, T, E], each of the K repeated for its H/K query heads. Of
// the E features of q and k the first `turning` are turned by the angle of their position, in pairs half of them apart.
void split_heads(const bfloat16 *qkv, const float *cosines, const float *sines, int64_t turning,
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
            for (int64_t i = 0; i < width; i++) sum[i] = wide(from[i]);
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

// The heads of queries and keys in qkv [B, T, (H + 2·K)·E], turned in place, or turned back.
void turn_heads(bfloat16 *qkv, const float *cosines, const float *sines, int64_t turning, int back, int64_t rows,
                int64_t time, int64_t heads, int64_t all, int64_t width, int threads) {
    const int64_t half = turning / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const float *c = cosines + row % time * turning, *s = sines + row % time * turning;
        for (int64_t head = 0; head < heads; head++) {
            bfloat16 *x = qkv + (row * all + head) * width, *y = x + half;
#pragma omp simd
            for (int64_t i = 0; i < half; i++) {
                const float a = wide(x[i]), b = wide(y[i]), sine = back ? -s[i] : s[i];
                x[i] = low(a * c[i] - b * sine);
                y[i] = low(b * c[i] + a * sine);
            }
        }
    }
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
        for (int64_t i = from; i < end; i++) logits[i] = wide(s[i]);
        logits_of(&block, head % heads, row, from, end, logits);
        float sum;
        const float most = exponentials_of(logits, from, to, end, &sum);
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
            for (int64_t i = from; i < end; i++) weights[i] = wide(s[i]);
            if (cap > 0) slopes_of_cap(&block, weights, from, end, slope);
            logits_of(&block, head % heads, row, from, end, weights);
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
