// LayerNorm and RMSNorm over the rows of x, and the sums over rows that gradients of gains and biases are; also Σ x² of
// many tensors.
#include "kernels.h"

// y = (x − mean)·rstd·(gain + offset) + bias; without `centred` the mean is 0. gain, bias and mean may be missing.
void norm_forward(const bfloat16 *x, const float *gain, const float *bias, float offset, float eps, int centred,
                  bfloat16 *y, float *means, float *rstds, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const bfloat16 *xr = x + row * width;
        bfloat16 *yr = y + row * width;
        float sum = 0, square = 0;
        if (centred)
            for (int64_t i = 0; i < width; i++) sum += wide(xr[i]);
        const float mean = sum / width;
        for (int64_t i = 0; i < width; i++) {
            float d = wide(xr[i]) - mean;
            square += d * d;
        }
        const float rstd = 1.0f / sqrtf(square / width + eps);
        means[row] = mean;
        rstds[row] = rstd;
        if (gain && bias)
            for (int64_t i = 0; i < width; i++)
                yr[i] = low((wide(xr[i]) - mean) * rstd * (gain[i] + offset) + bias[i]);
        else if (gain)
            for (int64_t i = 0; i < width; i++) yr[i] = low((wide(xr[i]) - mean) * rstd * (gain[i] + offset));
        else
            for (int64_t i = 0; i < width; i++) yr[i] = low((wide(xr[i]) - mean) * rstd);
    }
}

// dx = dstream + rstd·(g − [mean(g)] − x̂·mean(g·x̂)) with g = dy·(gain + offset), dstream or nothing; the gradients of gain
// and bias, and Σ over rows of dstream, each in the first row of [threads, width] or missing.
void norm_backward(const bfloat16 *dy, const bfloat16 *dstream, const bfloat16 *x, const float *gain, float offset,
                   int centred, const float *means, const float *rstds, bfloat16 *dx, float *dgain, float *dbias,
                   float *sums, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int thread = 0; thread < threads; thread++) {
        float *own_gain = dgain ? dgain + thread * width : 0, *own_bias = dbias ? dbias + thread * width : 0;
        if (own_gain) memset(own_gain, 0, width * sizeof(float));
        if (own_bias) memset(own_bias, 0, width * sizeof(float));
        float *own_sums = sums ? sums + thread * width : 0;
        if (own_sums) memset(own_sums, 0, width * sizeof(float));
        float g[width];
        for (int64_t row = rows * thread / threads; row < rows * (thread + 1) / threads; row++) {
            const bfloat16 *dr = dy + row * width, *xr = x + row * width;
            bfloat16 *out = dx + row * width;
            const float mean = means[row], rstd = rstds[row];
            if (own_gain)
                for (int64_t i = 0; i < width; i++) own_gain[i] += wide(dr[i]) * (wide(xr[i]) - mean) * rstd;
            if (own_bias)
                for (int64_t i = 0; i < width; i++) own_bias[i] += wide(dr[i]);
            if (own_sums)
                for (int64_t i = 0; i < width; i++) own_sums[i] += wide(dstream[row * width + i]);
            float sum = 0, along = 0;
            if (gain)
                for (int64_t i = 0; i < width; i++) g[i] = wide(dr[i]) * (gain[i] + offset);
            else
                for (int64_t i = 0; i < width; i++) g[i] = wide(dr[i]);
            if (centred)
                for (int64_t i = 0; i < width; i++) sum += g[i];
            for (int64_t i = 0; i < width; i++) along += g[i] * (wide(xr[i]) - mean);
            const float shift = sum / width, tilt = along * rstd * rstd / width;
            for (int64_t i = 0; i < width; i++) g[i] = rstd * (g[i] - shift - (wide(xr[i]) - mean) * tilt);
            if (dstream)
                for (int64_t i = 0; i < width; i++) out[i] = low(g[i] + wide(dstream[row * width + i]));
            else
                for (int64_t i = 0; i < width; i++) out[i] = low(g[i]);
        }
    }
    join(dgain, width, threads);
    join(dbias, width, threads);
    join(sums, width, threads);
}

// y ← x + y + bias, where either may be missing.
void add_branch(const bfloat16 *x, bfloat16 *y, const float *bias, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const bfloat16 *xr = x + row * width;
        bfloat16 *yr = y + row * width;
        if (!x)
            for (int64_t i = 0; i < width; i++) yr[i] = low(wide(yr[i]) + bias[i]);
        else if (bias)
            for (int64_t i = 0; i < width; i++) yr[i] = low(wide(xr[i]) + wide(yr[i]) + bias[i]);
        else
            for (int64_t i = 0; i < width; i++) yr[i] = low(wide(xr[i]) + wide(yr[i]));
    }
}

// Σ over rows, in the first row of [threads, width].
void column_sums(const bfloat16 *x, float *sums, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int thread = 0; thread < threads; thread++) {
        float *own = sums + thread * width;
        memset(own, 0, width * sizeof(float));
        for (int64_t row = rows * thread / threads; row < rows * (thread + 1) / threads; row++) {
            const bfloat16 *xr = x + row * width;
            for (int64_t i = 0; i < width; i++) own[i] += wide(xr[i]);
        }
    }
    join(sums, width, threads);
}

// Σ x² over the numbers of many tensors, in float64; of each tensor, each of `shares` sums has its part.
void sums_of_squares(const int64_t *places, const int64_t *counts, double *sums, int64_t tensors, int64_t shares,
                     int threads) {
    (void)threads;  // of the few sums alone
#pragma omp parallel for num_threads(shares) schedule(static)
    for (int64_t share = 0; share < shares; share++) {
        double all = 0;
        for (int64_t tensor = 0; tensor < tensors; tensor++) {
            const float *x = (const float *)(intptr_t)places[tensor];
            const int64_t end = counts[tensor] * (share + 1) / shares;
            double sum = 0;
            for (int64_t i = counts[tensor] * share / shares; i < end; i++) sum += (double)x[i] * x[i];
            all += sum;
        }
        sums[share] = all;
    }
}
