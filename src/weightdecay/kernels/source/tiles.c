// Matrix products that are too small for a library's: what such a call costs before it computes is more than the product.
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tiles.h"

#ifdef TILES
#include "kernels.h"

// Whether this process may use what the kernels were compiled for: the system is asked for AMX's registers.
int tiles_usable(void) {
#if defined(__AMX_BF16__) && defined(__AMX_TILE__)
    const long ask = 0x1023, of_tiles = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, ask, of_tiles) == 0;
#else
    return 1;
#endif
}

typedef struct {
    bfloat16 *low;           // the product in bfloat16, or
    float *full;             // in float32
    int64_t width;           // of its rows
    const float *bias;       // added to each row, or none
    const bfloat16 *stream;  // of the product's shape, added to it, or none
} Product;

// A block of the product to its place.
static inline void put(const Product *y, int64_t row, int64_t column, int64_t rows, const float *c) {
    const int64_t many = row + SIDE < rows ? SIDE : rows - row, width = y->width;
    for (int64_t half = 0; half < SIDE && column + half < width; half += 16) {
        const __mmask16 mask = first_of_16(width - column - half);
        const int64_t first = row * width + column + half;
        const __m512 bias = y->bias ? _mm512_maskz_loadu_ps(mask, y->bias + column + half) : _mm512_setzero_ps();
        c += half;
        if (y->full)
            for (int64_t i = 0; i < many; i++)
                _mm512_mask_storeu_ps(y->full + first + i * width, mask, _mm512_load_ps(c + i * SIDE));
        else if (y->stream)
            for (int64_t i = 0; i < many; i++) {
                const __m512 beside = widened(_mm256_maskz_loadu_epi16(mask, y->stream + first + i * width));
                const __m512 sum = _mm512_add_ps(_mm512_add_ps(_mm512_load_ps(c + i * SIDE), bias), beside);
                _mm256_mask_storeu_epi16(y->low + first + i * width, mask, rounded(sum));
            }
        else
            for (int64_t i = 0; i < many; i++) {
                const __m512 sum = _mm512_add_ps(_mm512_load_ps(c + i * SIDE), bias);
                _mm256_mask_storeu_epi16(y->low + first + i * width, mask, rounded(sum));
            }
    }
}

// y [rows, width] = a [rows, depth] by b, which is [depth, width], or [width, depth] where it is `turned`; where `lies`, a
// is [depth, rows]. Each block of y is one thread's, in one order, however many there are.
static void multiply(const bfloat16 *a, int lies, const bfloat16 *b, int turned, int64_t rows, int64_t depth, Product y,
                     int threads) {
    const int64_t steps = steps_of(depth), panels = steps_of(y.width), bands = steps_of(rows);
    // Rows of whole cache lines would share few places of the cache.
    const int64_t apart = steps * SIDE + SIDE, stride = lies ? rows : depth;
    bfloat16 *packed = aligned_alloc(64, panels * steps * STEP * sizeof(bfloat16));
    bfloat16 *laid_out = lies ? aligned_alloc(64, bands * SIDE * apart * sizeof(bfloat16)) : 0;
#pragma omp parallel num_threads(threads)
    {
        bfloat16 room[lies ? 1 : SIDE * steps * SIDE];
        float c[SIDE * SIDE] __attribute__((aligned(64)));
#pragma omp for schedule(static) nowait
        for (int64_t panel = 0; panel < panels; panel++)
            (turned ? pack_turned : pack)(b, turned ? depth : y.width, depth, y.width, panel * SIDE,
                                          packed + panel * steps * STEP);
#pragma omp for schedule(static)
        for (int64_t band = 0; band < (lies ? bands : 0); band++)
            lay_out(a, stride, depth, rows, band * SIDE, laid_out + band * SIDE * apart, apart);
        take_tiles();
#pragma omp for schedule(static)
        for (int64_t band = 0; band < bands; band++) {
            int64_t between = lies ? apart : stride;
            const bfloat16 *from = lies ? laid_out + band * SIDE * apart
                                        : whole_rows(a + band * SIDE * stride, &between, rows - band * SIDE, depth, room);
            for (int64_t panel = 0; panel < panels; panel++) {
                multiply_block(from, between, packed + panel * steps * STEP, steps, c, SIDE);
                put(&y, band * SIDE, panel * SIDE, rows, c);
            }
        }
        leave_tiles();
    }
    free(packed);
    free(laid_out);
}

// y [N, O] = x [N, I]·Wᵀ + bias + stream, each of both or none.
void small_product(const bfloat16 *x, const bfloat16 *weight, const float *bias, const bfloat16 *stream, bfloat16 *y,
                   int64_t rows, int64_t outputs, int64_t inputs, int threads) {
    multiply(x, 0, weight, 1, rows, inputs, (Product){y, 0, outputs, bias, stream}, threads);
}

// dx [N, I] = dy [N, O]·W.
void small_input_gradient(const bfloat16 *dy, const bfloat16 *weight, bfloat16 *dx, int64_t rows, int64_t outputs,
                          int64_t inputs, int threads) {
    multiply(dy, 0, weight, 0, rows, outputs, (Product){dx, 0, inputs, 0, 0}, threads);
}

// dW [O, I] = dyᵀ·x, in float32.
void small_weight_gradient(const bfloat16 *dy, const bfloat16 *x, float *dweight, int64_t rows, int64_t outputs,
                           int64_t inputs, int threads) {
    multiply(dy, 1, x, 0, outputs, rows, (Product){0, dweight, inputs, 0, 0}, threads);
}
#else
int tiles_usable(void) { return 0; }
void small_product(void) {}
void small_input_gradient(void) {}
void small_weight_gradient(void) {}
#endif
