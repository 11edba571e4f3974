// Blocks of 32 × 32 of a product of bfloat16 matrices, by the processor's own instructions for them: AMX's tiles or
// AVX-512's dot products. TILES says whether the processor that this is compiled for has either.
//
// The first factor is read in rows, 32 numbers of each at once. The second is packed before: panels of 32 columns,
// each of steps of 32 rows, each of two tiles [16 pairs of rows][16 columns][2].
#pragma once
#include "bfloat16.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512BF16__)
#define TILES 1
#include <immintrin.h>

enum { SIDE = 32, TILE = 512, STEP = 2 * TILE };

static inline int64_t steps_of(int64_t depth) { return (depth + SIDE - 1) / SIDE; }

#if defined(__AMX_BF16__) && defined(__AMX_TILE__)
// A thread's tiles are all 16 rows of 64 bytes, until it lets go of them.
static inline void take_tiles(void) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        shape.bytes[tile] = 64;
        shape.rows[tile] = 16;
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(shape));
}

static inline void leave_tiles(void) { _tile_release(); }

// c [32, 32], rows `apart` from each other, = 32 rows of a by a panel of b, `steps` of 32 deep; or c + that.
static inline void multiply_block(const bfloat16 *a, int64_t stride, const bfloat16 *b, int64_t steps, float *c, int64_t apart,
                                  int add) {
    if (add) {
        _tile_loadd(0, c, apart * sizeof(float));
        _tile_loadd(1, c + 16, apart * sizeof(float));
        _tile_loadd(2, c + 16 * apart, apart * sizeof(float));
        _tile_loadd(3, c + 16 * apart + 16, apart * sizeof(float));
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t step = 0; step < steps; step++) {
        _tile_loadd(4, a + step * SIDE, stride * sizeof(bfloat16));
        _tile_loadd(6, b + step * STEP, 64);
        _tile_loadd(5, a + step * SIDE + 16 * stride, stride * sizeof(bfloat16));
        _tile_loadd(7, b + step * STEP + TILE, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, apart * sizeof(float));
    _tile_stored(1, c + 16, apart * sizeof(float));
    _tile_stored(2, c + 16 * apart, apart * sizeof(float));
    _tile_stored(3, c + 16 * apart + 16, apart * sizeof(float));
}
#else
static inline void take_tiles(void) {}
static inline void leave_tiles(void) {}

static inline void multiply_block(const bfloat16 *a, int64_t stride, const bfloat16 *b, int64_t steps, float *c, int64_t apart,
                                  int add) {
    for (int top = 0; top < SIDE; top += 8) {
        __m512 sum[8][2];
        for (int row = 0; row < 8; row++)
            for (int half = 0; half < 2; half++)
                sum[row][half] = add ? _mm512_loadu_ps(c + (top + row) * apart + 16 * half) : _mm512_setzero_ps();
        for (int64_t pair = 0; pair < 16 * steps; pair++) {
            const bfloat16 *of = b + pair / 16 * STEP + pair % 16 * SIDE;
            const __m512bh left = (__m512bh)_mm512_loadu_si512(of), right = (__m512bh)_mm512_loadu_si512(of + TILE);
            for (int row = 0; row < 8; row++) {
                int32_t both;
                memcpy(&both, a + (top + row) * stride + 2 * pair, sizeof(both));
                const __m512bh each = (__m512bh)_mm512_set1_epi32(both);
                sum[row][0] = _mm512_dpbf16_ps(sum[row][0], each, left);
                sum[row][1] = _mm512_dpbf16_ps(sum[row][1], each, right);
            }
        }
        for (int row = 0; row < 8; row++) {
            _mm512_storeu_ps(c + (top + row) * apart, sum[row][0]);
            _mm512_storeu_ps(c + (top + row) * apart + 16, sum[row][1]);
        }
    }
}
#endif

// A mask of the first `count` of 32 or 16.
static inline __mmask32 first_of_32(int64_t count) {
    const int64_t held = count < 0 ? 0 : count > 32 ? 32 : count;
    return (__mmask32)((1ull << held) - 1);
}
static inline __mmask16 first_of_16(int64_t count) { return (__mmask16)first_of_32(count); }

// Numbers of 32 bits in 16 rows of 16 become columns.
static inline void turn_pairs(__m512i x[16]) {
    __m512i y[16];
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        const __m512i low = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88), low2 = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
        const __m512i high = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd), high2 = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
        y[i] = _mm512_shuffle_i32x4(low, low2, 0x88);
        y[i + 8] = _mm512_shuffle_i32x4(low, low2, 0xdd);
        y[i + 4] = _mm512_shuffle_i32x4(high, high2, 0x88);
        y[i + 12] = _mm512_shuffle_i32x4(high, high2, 0xdd);
    }
    memcpy(x, y, sizeof(y));
}

// Up to 32 rows of up to 16 numbers, paired: [16 pairs][16 numbers][2]; zeros where there are none.
static inline void paired(const bfloat16 *x, int64_t stride, int64_t rows, int64_t columns, __m512i pairs[16]) {
    const __mmask16 mask = first_of_16(columns);
    for (int pair = 0; pair < 16; pair++) {
        const __mmask16 upper = 2 * pair < rows ? mask : 0, lower = 2 * pair + 1 < rows ? mask : 0;
        const __m256i one = _mm256_maskz_loadu_epi16(upper, x + 2 * pair * stride);
        const __m256i other = _mm256_maskz_loadu_epi16(lower, x + (2 * pair + 1) * stride);
        pairs[pair] = _mm512_or_si512(_mm512_cvtepu16_epi32(one), _mm512_slli_epi32(_mm512_cvtepu16_epi32(other), 16));
    }
}

// A panel of the second factor x [depth, columns], from its column `first` on.
static inline void pack(const bfloat16 *x, int64_t stride, int64_t depth, int64_t columns, int64_t first, bfloat16 *panel) {
    __m512i pairs[16];
    for (int64_t row = 0; row < depth; row += SIDE)
        for (int half = 0; half < 2; half++, panel += TILE) {
            const int64_t column = first + 16 * half;
            paired(x + row * stride + column, stride, depth - row, columns - column, pairs);
            memcpy(panel, pairs, sizeof(pairs));
        }
}

// The same of a factor whose columns lie in rows: x [columns, depth].
static inline void pack_turned(const bfloat16 *x, int64_t stride, int64_t depth, int64_t columns, int64_t first,
                               bfloat16 *panel) {
    __m512i lines[16];
    for (int64_t row = 0; row < depth; row += SIDE)
        for (int half = 0; half < 2; half++, panel += TILE) {
            const __mmask32 mask = first_of_32(depth - row);
            for (int line = 0; line < 16; line++) {
                const int64_t column = first + 16 * half + line;
                lines[line] = _mm512_maskz_loadu_epi16(column < columns ? mask : 0, x + column * stride + row);
            }
            turn_pairs(lines);
            memcpy(panel, lines, sizeof(lines));
        }
}

// Columns [first, first + 32) of x [depth, columns] to rows of y, which lie `apart` from each other and end with zeros.
static inline void lay_out(const bfloat16 *x, int64_t stride, int64_t depth, int64_t columns, int64_t first, bfloat16 *y,
                           int64_t apart) {
    __m512i pairs[16];
    for (int64_t row = 0; row < depth; row += SIDE)
        for (int half = 0; half < 2; half++) {
            const int64_t column = first + 16 * half;
            paired(x + row * stride + column, stride, depth - row, columns - column, pairs);
            turn_pairs(pairs);
            for (int line = 0; line < 16; line++) _mm512_storeu_si512(y + (16 * half + line) * apart + row, pairs[line]);
        }
}

// Rows of x as a first factor: themselves, or a copy [32, steps of 32] whose ends are zeros.
static inline const bfloat16 *whole_rows(const bfloat16 *x, int64_t *stride, int64_t rows, int64_t depth, bfloat16 *room) {
    if (rows >= SIDE && depth % SIDE == 0) return x;
    const int64_t apart = SIDE * steps_of(depth);
    memset(room, 0, SIDE * apart * sizeof(bfloat16));
    for (int64_t row = 0; row < rows && row < SIDE; row++) memcpy(room + row * apart, x + row * *stride, depth * sizeof(bfloat16));
    *stride = apart;
    return room;
}

static inline __m256i rounded(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

// Up to 32 numbers to y. What does not stay in the cache until somebody reads it goes `past` it: to be written there, a line
// would be read first.
static inline void put_line(bfloat16 *y, __m512 first, __m512 second, int64_t count, int past) {
    const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(rounded(first)), rounded(second), 1);
    if (past)
        _mm512_stream_si512((void *)y, both);
    else
        _mm512_mask_storeu_epi16(y, first_of_32(count), both);
}

// Whether [rows, width] numbers of some bytes go past the cache: there are many, and blocks of them are whole lines.
enum { STAYS = 1 << 20 };

static inline int goes_past(const void *y, int64_t rows, int64_t width, int64_t bytes) {
    return rows * width * bytes > STAYS && width % SIDE == 0 && (uintptr_t)y % 64 == 0;
}

static inline __m512 widened(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
#endif
