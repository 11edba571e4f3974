// What all kernels share: bfloat16 in memory, float32 in registers, and an exponential that vectorises.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t bfloat16;

static inline float wide(bfloat16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

// To the nearest, ties to even; a NaN stays one.
static inline bfloat16 low(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bfloat16)(f == f ? rounded : 0x7fc0);
}

// e^x within 2e-7 of itself, as 2^n · e^r with |r| <= ln(2)/2; held between e^-87 and e^87, NaN stays NaN.
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 87.0f ? 87.0f : x;
    float n = rintf(x * 1.44269504f);
    float r = fmaf(n, 2.12194440e-4f, fmaf(n, -0.693359375f, x));  // fused: the compiler may not join the constants
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = ((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return p * scale;
}

// 1/x for 0 < x < 1e38, by Newton's iterations: a division would cost a vector as much as all the rest.
static inline float reciprocal(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits = 0x7ef311c7u - bits;  // within 12 %
    float y;
    memcpy(&y, &bits, 4);
    y *= 2.0f - x * y;
    y *= 2.0f - x * y;
    return y * (2.0f - x * y);  // within 1e-7
}

// Each thread's sums, [threads, width], added to those of the first, in the threads' order.
static inline void join(float *sums, int64_t width, int threads) {
    for (int64_t thread = 1; sums && thread < threads; thread++)
        for (int64_t i = 0; i < width; i++) sums[i] += sums[thread * width + i];
}

static inline float sigmoid(float x) { return reciprocal(1.0f + exponential(-x)); }

static inline float tangent(float x) { return 1.0f - 2.0f * reciprocal(exponential(2.0f * x) + 1.0f); }
