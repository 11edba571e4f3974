// The non-linearities between up and down. One pass forward, which also keeps the slopes; one multiplication back.
#include "kernels.h"

typedef struct {
    float value, slope;
} Curve;

static inline Curve relu_at(float x) { return (Curve){x > 0 ? x : 0 * x, x > 0 ? 1.0f : 0.0f}; }

static inline Curve relu_squared_at(float x) {
    float r = x > 0 ? x : 0 * x;
    return (Curve){r * r, 2 * r};
}

static inline Curve silu_at(float x) {
    float s = sigmoid(x);
    return (Curve){x * s, s + x * s * (1 - s)};
}

// x·(1 + tanh(u))/2 with u = √(2/π)·(x + 0.044715·x³), which is x·sigmoid(2u).
static inline Curve gelu_tanh_at(float x) {
    const float a = 1.5957691216f, b = 0.044715f;
    float s = sigmoid(a * (x + b * x * x * x));
    return (Curve){x * s, s + x * s * (1 - s) * a * (1 + 3 * b * x * x)};
}

// x·Φ(x); Φ by Abramowitz & Stegun 7.1.26, within 1.5e-7.
static inline Curve gelu_at(float x) {
    float z = fabsf(x) * 0.70710678f;
    float t = reciprocal(1.0f + 0.3275911f * z);
    float e = exponential(-z * z);
    float tail = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    float half = 0.5f * tail * e;  // Φ(−|x|)
    float phi = x < 0 ? half : 1.0f - half;
    return (Curve){x * phi, phi + x * e * 0.39894228f};
}

#define EACH_ROW _Pragma("omp parallel for num_threads(threads) schedule(static)") for (int64_t row = 0; row < rows; row++)

// y = curve(h + bias), and its slopes, which may take the place of h, unless nobody wants them; bias may be missing.
#define PLAIN(name, curve)                                                                                         \
    void name(const bfloat16 *h, const float *bias, bfloat16 *y, bfloat16 *slopes, int64_t rows, int64_t width,    \
              int threads) {                                                                                       \
        EACH_ROW {                                                                                                 \
            const bfloat16 *from = h + row * width;                                                                \
            bfloat16 *to = y + row * width, *kept = slopes + row * width;                                          \
            if (slopes)                                                                                            \
                _Pragma("omp simd") for (int64_t i = 0; i < width; i++) {                                                              \
                    Curve c = curve(wide(from[i]) + (bias ? bias[i] : 0.0f));                                      \
                    to[i] = low(c.value);                                                                          \
                    kept[i] = low(c.slope);                                                                        \
                }                                                                                                  \
            else                                                                                                   \
                for (int64_t i = 0; i < width; i++)                                                                \
                    to[i] = low(curve(wide(from[i]) + (bias ? bias[i] : 0.0f)).value);                             \
        }                                                                                                          \
    }

// y = curve(gate)·up, where rows of h + bias are the gate, then up; and its slopes by both, laid out like h, whose
// place they may take.
#define GATED(name, curve)                                                                                         \
    void name(const bfloat16 *h, const float *bias, bfloat16 *y, bfloat16 *slopes, int64_t rows, int64_t width,    \
              int threads) {                                                                                       \
        const float *more = bias + width;                                                                          \
        EACH_ROW {                                                                                                 \
            const bfloat16 *gate = h + 2 * row * width, *up = gate + width;                                        \
            bfloat16 *to = y + row * width, *by_gate = slopes + 2 * row * width, *by_up = by_gate + width;         \
            if (slopes)                                                                                            \
                _Pragma("omp simd") for (int64_t i = 0; i < width; i++) {                                                              \
                    Curve c = curve(wide(gate[i]) + (bias ? bias[i] : 0.0f));                                      \
                    float u = wide(up[i]) + (bias ? more[i] : 0.0f);                                               \
                    to[i] = low(c.value * u);                                                                      \
                    by_gate[i] = low(c.slope * u);                                                                 \
                    by_up[i] = low(c.value);                                                                       \
                }                                                                                                  \
            else                                                                                                   \
                for (int64_t i = 0; i < width; i++)                                                                \
                    to[i] = low(curve(wide(gate[i]) + (bias ? bias[i] : 0.0f)).value *                             \
                                (wide(up[i]) + (bias ? more[i] : 0.0f)));                                          \
        }                                                                                                          \
    }

PLAIN(relu, relu_at)
PLAIN(relu_squared, relu_squared_at)
PLAIN(gelu, gelu_at)
PLAIN(gelu_tanh, gelu_tanh_at)
GATED(swiglu, silu_at)
GATED(geglu, gelu_at)
GATED(geglu_tanh, gelu_tanh_at)

// dh = dy·slope, for each of the `times` slopes that a y has; and Σ over rows of dh, in the first row of
// [threads, times·width] or missing. dh may be dy where there is one slope.
void times_slopes(const bfloat16 *dy, const bfloat16 *slopes, bfloat16 *dh, float *sums, int64_t times, int64_t rows,
                  int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int thread = 0; thread < threads; thread++) {
        float *own = sums ? sums + thread * times * width : 0;
        if (own) memset(own, 0, times * width * sizeof(float));
        for (int64_t row = rows * thread / threads; row < rows * (thread + 1) / threads; row++) {
            const bfloat16 *from = dy + row * width;
            for (int64_t part = 0; part < times; part++) {
                const bfloat16 *slope = slopes + (row * times + part) * width;
                bfloat16 *to = dh + (row * times + part) * width;
                if (own)
#pragma omp simd
                    for (int64_t i = 0; i < width; i++) {
                        float d = wide(from[i]) * wide(slope[i]);
                        own[part * width + i] += d;
                        to[i] = low(d);
                    }
                else
#pragma omp simd
                    for (int64_t i = 0; i < width; i++) to[i] = low(wide(from[i]) * wide(slope[i]));
            }
        }
    }
    join(sums, times * width, threads);
}
