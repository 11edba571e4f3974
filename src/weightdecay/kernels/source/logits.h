// How scores of a block of queries become logits, and which of its keys each query sees.
#pragma once
#include "bfloat16.h"

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

// The slope of a cap at each score.
static inline void slopes_of_cap(const Block *block, const float *scores, int64_t from, int64_t to, float *slope) {
    for (int64_t i = from; i < to; i++) {
        float t = tangent(scores[i] * block->scale / block->cap);
        slope[i] = 1.0f - t * t;
    }
}

// Scores become logits, in place.
static inline void logits_of(const Block *block, int64_t head, int64_t row, int64_t from, int64_t to, float *scores) {
    if (block->cap > 0)
        for (int64_t i = from; i < to; i++)
            scores[i] = block->cap * tangent(scores[i] * block->scale / block->cap);
    else
        for (int64_t i = from; i < to; i++) scores[i] *= block->scale;
    if (block->slopes) {
        const float slope = block->slopes[head];
        const float distance = (float)(block->first + row - block->begin);
        for (int64_t i = from; i < to; i++) scores[i] -= slope * (distance - (float)i);
    }
}

// Logits become weights before they are divided by their sum, in place: zero from `to` to `end`. The largest and the sum.
static inline float exponentials_of(float *logits, int64_t from, int64_t to, int64_t end, float *sum) {
    const float limit = to;  // compared as floats, or the compiler would make two loops of one
    float most = logits[from], all = 0;
#pragma omp simd reduction(max : most)
    for (int64_t i = from; i < end; i++) {
        logits[i] = (float)i < limit ? logits[i] : -INFINITY;
        most = logits[i] > most ? logits[i] : most;
    }
#pragma omp simd reduction(+ : all)
    for (int64_t i = from; i < end; i++) {
        float weight = exponential(logits[i] - most);
        logits[i] = (float)i < limit ? weight : 0;  // not e^-87: products of such numbers are slow
        all += logits[i];
    }
    *sum = all;
    return most;
}
