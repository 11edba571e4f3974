// Around the products that make gradients of weights: their first factor laid out as products read it, and their sums.
#include "bfloat16.h"

typedef uint16_t Eight __attribute__((vector_size(16)));

#ifdef __clang__
#define INTERLEAVED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define INTERLEAVED(a, b, ...) __builtin_shuffle(a, b, (Eight){__VA_ARGS__})
#endif

// Eight rows of eight: to be a column, a row's numbers are interleaved three times with those of the row four below.
static inline void turn_eight(const bfloat16 *from, int64_t stride, bfloat16 *to, int64_t apart) {
    Eight now[8], next[8];
    for (int i = 0; i < 8; i++) memcpy(&now[i], from + i * stride, sizeof(Eight));
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 4; i++) {
            next[2 * i] = INTERLEAVED(now[i], now[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
            next[2 * i + 1] = INTERLEAVED(now[i], now[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
        }
        memcpy(now, next, sizeof(now));
    }
    for (int i = 0; i < 8; i++) memcpy(to + i * apart, &now[i], sizeof(Eight));
}

// Columns [first, first + columns) of x [rows, width] to the rows of y, which lie `apart` from each other; in tiles whose
// lines of memory are read and written whole.
void transpose(const bfloat16 *x, bfloat16 *y, int64_t rows, int64_t width, int64_t first, int64_t columns,
               int64_t apart, int threads) {
    const int64_t tile = 32;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t left = 0; left < columns; left += tile)
        for (int64_t top = 0; top < rows; top += tile) {
            const int64_t right = left + tile < columns ? left + tile : columns;
            const int64_t bottom = top + tile < rows ? top + tile : rows;
            for (int64_t column = left; column < right; column += 8)
                for (int64_t row = top; row < bottom; row += 8) {
                    const bfloat16 *from = x + row * width + first + column;
                    bfloat16 *to = y + column * apart + row;
                    if (column + 8 <= right && row + 8 <= bottom)
                        turn_eight(from, width, to, apart);
                    else
                        for (int64_t i = 0; i < 8 && column + i < right; i++)
                            for (int64_t j = 0; j < 8 && row + j < bottom; j++) to[i * apart + j] = from[j * width + i];
                }
        }
}

// Low-precision gradients to float32 sums: sum ← x, or sum + x.
void widen(float *sum, const bfloat16 *x, int add, int64_t size, int threads) {
    if (add)
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t i = 0; i < size; i++) sum[i] += wide(x[i]);
    else
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t i = 0; i < size; i++) sum[i] = wide(x[i]);
}
