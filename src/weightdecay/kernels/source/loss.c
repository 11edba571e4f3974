// Cross-entropy of rows of logits, whose gradient takes their place.
#include "bfloat16.h"

// logit = cap·tanh(multiplier·x/cap), or multiplier·x without a cap. Of each row the loss −log p[target] and log Σ exp;
// then x ← d/dx of weight·(loss + z·(log Σ exp)²).
void cross_entropy(bfloat16 *x, const int64_t *targets, float *losses, float *logsums, float weight, float z,
                   float multiplier, float cap, int gradient, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        bfloat16 *xr = x + row * width;
        const int64_t target = targets[row];
        float most = -INFINITY, sum = 0;
        if (cap > 0) {
#pragma omp simd reduction(max : most)
            for (int64_t i = 0; i < width; i++) {
                float logit = cap * tangent(wide(xr[i]) * multiplier / cap);
                most = logit > most ? logit : most;
            }
        } else {
#pragma omp simd reduction(max : most)
            for (int64_t i = 0; i < width; i++) {
                float logit = wide(xr[i]) * multiplier;
                most = logit > most ? logit : most;
            }
        }
        if (cap > 0)
            for (int64_t i = 0; i < width; i++) sum += exponential(cap * tangent(wide(xr[i]) * multiplier / cap) - most);
        else
            for (int64_t i = 0; i < width; i++) sum += exponential(wide(xr[i]) * multiplier - most);
        const float logsum = most + logf(sum);
        const float tanged = cap > 0 ? tangent(wide(xr[target]) * multiplier / cap) : 0;
        const float at_target = cap > 0 ? cap * tanged : wide(xr[target]) * multiplier;
        losses[row] = logsum - at_target;
        logsums[row] = logsum;
        if (!gradient) continue;

        const float all = weight * multiplier * (1 + 2 * z * logsum), one = weight * multiplier;
        const float own = exponential(at_target - logsum) * all - one;
        if (cap > 0)
            for (int64_t i = 0; i < width; i++) {
                float t = tangent(wide(xr[i]) * multiplier / cap);
                xr[i] = low(exponential(cap * t - logsum) * all * (1 - t * t));
            }
        else
            for (int64_t i = 0; i < width; i++) xr[i] = low(exponential(wide(xr[i]) * multiplier - logsum) * all);
        xr[target] = low(cap > 0 ? own * (1 - tanged * tanged) : own);
    }
}

// table[tokens[i]] += rows[i], in the order of the tokens; each thread has some of the columns.
void add_rows(float *table, const int64_t *tokens, const float *rows, int64_t count, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int thread = 0; thread < threads; thread++) {
        const int64_t from = width * thread / threads, to = width * (thread + 1) / threads;
        for (int64_t row = 0; row < count; row++) {
            float *own = table + tokens[row] * width;
            for (int64_t i = from; i < to; i++) own[i] += rows[row * width + i];
        }
    }
}
