// The non-linearities between up and down, and their gradients: one pass each, arithmetic in float32.
#include "bfloat16.h"

typedef struct {
    float value, slope;
} Curve;

static inline Curve relu(float x) { return (Curve){x > 0 ? x : 0 * x, x > 0 ? 1.0f : 0.0f}; }

static inline Curve relu_squared(float x) {
    float r = x > 0 ? x : 0 * x;
    return (Curve){r * r, 2 * r};
}

static inline Curve silu(float x) {
    float s = sigmoid(x);
    return (Curve){x * s, s + x * s * (1 - s)};
}

// x·(1 + tanh(u))/2 with u = √(2/π)·(x + 0.044715·x³), which is x·sigmoid(2u).
static inline Curve gelu_tanh(float x) {
    const float a = 1.5957691216f, b = 0.044715f;
    float s = sigmoid(a * (x + b * x * x * x));
    return (Curve){x * s, s + x * s * (1 - s) * a * (1 + 3 * b * x * x)};
}

// x·Φ(x); Φ by Abramowitz & Stegun 7.1.26, within 1.5e-7.
static inline Curve gelu(float x) {
    float z = fabsf(x) * 0.70710678f;
    float t = reciprocal(1.0f + 0.3275911f * z);
    float e = exponential(-z * z);
    float tail = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    float half = 0.5f * tail * e;  // Φ(−|x|)
    float phi = x < 0 ? half : 1.0f - half;
    return (Curve){x * phi, phi + x * e * 0.39894228f};
}

#define PLAIN(name, curve)                                                                                      \
    void name##_forward(const bfloat16 *h, bfloat16 *y, int64_t rows, int64_t width, int threads) {             \
        _Pragma("omp parallel for num_threads(threads) schedule(static)") for (int64_t row = 0; row < rows; row++) { \
            const bfloat16 *hr = h + row * width;                                                               \
            bfloat16 *yr = y + row * width;                                                                     \
            for (int64_t i = 0; i < width; i++) yr[i] = low(curve(wide(hr[i])).value);                          \
        }                                                                                                       \
    }                                                                                                           \
    void name##_backward(const bfloat16 *dy, const bfloat16 *h, bfloat16 *dh, int64_t rows, int64_t width,      \
                         int threads) {                                                                         \
        _Pragma("omp parallel for num_threads(threads) schedule(static)") for (int64_t row = 0; row < rows; row++) { \
            const bfloat16 *dr = dy + row * width, *hr = h + row * width;                                       \
            bfloat16 *out = dh + row * width;                                                                   \
            for (int64_t i = 0; i < width; i++) out[i] = low(wide(dr[i]) * curve(wide(hr[i])).slope);           \
        }                                                                                                       \
    }

// Rows of h are the gate, then what it lets through.
#define GATED(name, curve)                                                                                      \
    void name##_forward(const bfloat16 *h, bfloat16 *y, int64_t rows, int64_t width, int threads) {             \
        _Pragma("omp parallel for num_threads(threads) schedule(static)") for (int64_t row = 0; row < rows; row++) { \
            const bfloat16 *gate = h + 2 * row * width, *up = gate + width;                                     \
            bfloat16 *yr = y + row * width;                                                                     \
            for (int64_t i = 0; i < width; i++) yr[i] = low(curve(wide(gate[i])).value * wide(up[i]));          \
        }                                                                                                       \
    }                                                                                                           \
    void name##_backward(const bfloat16 *dy, const bfloat16 *h, bfloat16 *dh, int64_t rows, int64_t width,      \
                         int threads) {                                                                         \
        _Pragma("omp parallel for num_threads(threads) schedule(static)") for (int64_t row = 0; row < rows; row++) { \
            const bfloat16 *dr = dy + row * width, *gate = h + 2 * row * width, *up = gate + width;             \
            bfloat16 *dgate = dh + 2 * row * width, *dup = dgate + width;                                       \
            for (int64_t i = 0; i < width; i++) {                                                               \
                Curve c = curve(wide(gate[i]));                                                                 \
                float d = wide(dr[i]);                                                                          \
                dgate[i] = low(d * wide(up[i]) * c.slope);                                                      \
                dup[i] = low(d * c.value);                                                                      \
            }                                                                                                   \
        }                                                                                                       \
    }

PLAIN(relu, relu)
PLAIN(relu_squared, relu_squared)
PLAIN(gelu, gelu)
PLAIN(gelu_tanh, gelu_tanh)
GATED(swiglu, silu)
GATED(geglu, gelu)
GATED(geglu_tanh, gelu_tanh)
