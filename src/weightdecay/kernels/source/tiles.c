// Matrix products. A library's small ones cost more before they compute than to compute; in large ones its threads have
// equal shares, and wait for one whose processor others use, too.
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
    const float *before;     // likewise, in float32
    int on_its_side;         // whether a column of it lies in a row of `full` and `before`
} Product;

// Columns that are put to their places at once: two panels, and two lines of bfloat16.
enum { PAIR = 2 * SIDE };

// 16 numbers of a row's sum, for their place.
static inline __m512 sum_at(const Product *y, int64_t place, int64_t column, __mmask16 mask, const float *c) {
    __m512 sum = _mm512_load_ps(c);
    if (y->bias) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, y->bias + column));
    if (y->before) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, y->before + place));
    if (y->stream) sum = _mm512_add_ps(sum, widened(_mm256_maskz_loadu_epi16(mask, y->stream + place)));
    return sum;
}

// Blocks [rows, PAIR] of the product to their place.
static inline void put(const Product *y, int past, int64_t row, int64_t column, int64_t rows, const float *c) {
    for (int64_t i = 0; i < SIDE && row + i < rows; i++)
        for (int64_t at = 0; at < PAIR && column + at < y->width; at += SIDE) {
            const int64_t place = (row + i) * y->width + column + at, left = y->width - column - at;
            const __mmask16 low = first_of_16(left), high = first_of_16(left - 16);
            const __m512 first = sum_at(y, place, column + at, low, c + i * PAIR + at);
            const __m512 second = sum_at(y, place + 16, column + at + 16, high, c + i * PAIR + at + 16);
            if (y->full && past) {
                _mm512_stream_ps(y->full + place, first);
                _mm512_stream_ps(y->full + place + 16, second);
            } else if (y->full) {
                _mm512_mask_storeu_ps(y->full + place, low, first);
                _mm512_mask_storeu_ps(y->full + place + 16, high, second);
            } else
                put_line(y->low + place, first, second, left, past);
        }
}

// The same of a product [rows, width] that lies on its side.
static inline void put_on_side(const Product *y, int64_t row, int64_t column, int64_t rows, const float *c) {
    __m512i numbers[16];
    for (int64_t down = 0; down < SIDE && row + down < rows; down += 16)
        for (int64_t at = 0; at < PAIR && column + at < y->width; at += 16) {
            const __mmask16 mask = first_of_16(rows - row - down);
            for (int i = 0; i < 16; i++) numbers[i] = _mm512_load_si512(c + (down + i) * PAIR + at);
            turn_pairs(numbers);
            for (int i = 0; i < 16 && column + at + i < y->width; i++) {
                const int64_t place = (column + at + i) * rows + row + down;
                __m512 sum = _mm512_castsi512_ps(numbers[i]);
                if (y->before) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, y->before + place));
                _mm512_mask_storeu_ps(y->full + place, mask, sum);
            }
        }
}

// Numbers of the second factor that are packed at once, and rows of it: what a thread reads again and again.
enum { PACKED = 1 << 20, DEEP = 1 << 12, DEEP_LAID_OUT = 1 << 10 };

// Bands that go through the second factor together: more of them where it does not stay in a core's cache, or where they
// are laid out and have whole lines of memory so; but enough threads' turns are left.
enum { TOGETHER = 4, CACHED = 1 << 19 };

static inline int64_t together_of(int64_t bands, int together, int threads) {
    const int64_t most = bands / (8 * threads);
    return !together || most < 1 ? 1 : most < TOGETHER ? most : TOGETHER;
}

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// y [rows, width] = a [rows, depth] by b, which is [depth, width], or [width, depth] where it is `turned`; where `lies`, a
// is [depth, rows]. The second factor is packed in parts, and what a part of the depth gives is added to what those
// before gave. Each block of y is one thread's, in one order, however many there are; a thread takes the next when it is
// done, since others may have the processor, too.
static void multiply(const bfloat16 *a, int lies, const bfloat16 *b, int turned, int64_t rows, int64_t depth, Product y,
                     int threads) {
    const int64_t deep = least(depth, lies ? DEEP_LAID_OUT : DEEP), most = steps_of(deep);
    const int64_t panels = steps_of(y.width), pairs = PACKED / (2 * most * STEP), at_once = least(panels, pairs > 1 ? 2 * pairs : 2);
    const int64_t bands = steps_of(rows), together = together_of(bands, lies || at_once * most * STEP > CACHED, threads);
    // Rows of whole cache lines would share few places of the cache.
    const int64_t apart = most * SIDE + SIDE, stride = lies ? rows : depth;
    bfloat16 *packed = aligned_alloc(64, at_once * most * STEP * sizeof(bfloat16));
    float *sums = depth > deep ? y.full ? y.full : aligned_alloc(64, steps_of(rows * y.width) * SIDE * sizeof(float)) : 0;
#pragma omp parallel num_threads(threads)
    {
        bfloat16 *room = aligned_alloc(64, together * SIDE * apart * sizeof(bfloat16));
        float c[SIDE * PAIR] __attribute__((aligned(64)));
        take_tiles();
        for (int64_t left = 0; left < panels; left += at_once)
            for (int64_t top = 0; top < depth; top += deep) {
                const int64_t right = least(left + at_once, panels), own = least(deep, depth - top), steps = steps_of(own);
                Product part = y;
                if (top > 0) part.before = sums;
                if (top + own < depth) part = (Product){.full = sums, .width = y.width, .before = part.before, .on_its_side = y.on_its_side};
                const int past = part.full ? goes_past(part.full, rows, y.width, sizeof(float))
                                           : goes_past(part.low, rows, y.width, sizeof(bfloat16));
                // Along its rows, as they lie.
                if (turned) {
#pragma omp for schedule(static)
                    for (int64_t panel = left; panel < right; panel++)
                        pack_turned(b + top, depth, own, y.width, panel * SIDE, packed + (panel - left) * steps * STEP);
                } else {
#pragma omp for schedule(static)
                    for (int64_t step = 0; step < steps; step++)
                        for (int64_t panel = left; panel < right; panel++)
                            pack(b + (top + step * SIDE) * y.width, y.width, least(SIDE, own - step * SIDE), y.width, panel * SIDE,
                                 packed + ((panel - left) * steps + step) * STEP);
                }
#pragma omp for schedule(dynamic)
                for (int64_t first = 0; first < bands; first += together) {
                    for (int64_t step = 0; step < (lies ? steps : 0); step++)
                        for (int64_t band = first; band < least(first + together, bands); band++)
                            lay_out(a + (top + step * SIDE) * stride, stride, least(SIDE, own - step * SIDE), rows, band * SIDE,
                                    room + (band - first) * SIDE * apart + step * SIDE, apart);
                    const int64_t last = least(first + together, bands);
                    const bfloat16 *from[TOGETHER];
                    int64_t between[TOGETHER];
                    for (int64_t band = first; band < last; band++) {
                        bfloat16 *own_room = room + (band - first) * SIDE * apart;
                        between[band - first] = lies ? apart : stride;
                        from[band - first] = lies ? own_room
                                                  : whole_rows(a + band * SIDE * stride + top, between + band - first,
                                                               rows - band * SIDE, own, own_room);
                    }
                    for (int64_t panel = left; panel < right; panel += 2)
                        for (int64_t band = first; band < last; band++) {
                            for (int64_t one = panel; one < least(panel + 2, right); one++)
                                multiply_block(from[band - first], between[band - first], packed + (one - left) * steps * STEP,
                                               steps, c + (one - panel) * SIDE, PAIR, 0);
                            if (y.on_its_side)
                                put_on_side(&part, band * SIDE, panel * SIDE, rows, c);
                            else
                                put(&part, past, band * SIDE, panel * SIDE, rows, c);
                        }
                }
            }
        _mm_sfence();
        leave_tiles();
        free(room);
    }
    free(packed);
    if (sums && sums != y.full) free(sums);
}

// y [N, O] = x [N, I]·Wᵀ + bias + stream, each of both or none.
void product(const bfloat16 *x, const bfloat16 *weight, const float *bias, const bfloat16 *stream, bfloat16 *y,
                   int64_t rows, int64_t outputs, int64_t inputs, int threads) {
    multiply(x, 0, weight, 1, rows, inputs, (Product){.low = y, .width = outputs, .bias = bias, .stream = stream}, threads);
}

// dx [N, I] = dy [N, O]·W.
void input_gradient(const bfloat16 *dy, const bfloat16 *weight, bfloat16 *dx, int64_t rows, int64_t outputs,
                          int64_t inputs, int threads) {
    multiply(dy, 0, weight, 0, rows, outputs, (Product){.low = dx, .width = inputs}, threads);
}

// dW [O, I] = dyᵀ·x, in float32, or added to what is there. The larger factor is the first: only the second is packed
// where all threads read it.
void weight_gradient(const bfloat16 *dy, const bfloat16 *x, float *dweight, int add, int64_t rows, int64_t outputs,
                     int64_t inputs, int threads) {
    const int turned = inputs > outputs;
    const Product y = {
        .full = dweight, .width = turned ? outputs : inputs, .before = add ? dweight : 0, .on_its_side = turned};
    multiply(turned ? x : dy, 1, turned ? dy : x, 0, turned ? inputs : outputs, rows, y, threads);
}
#else
int tiles_usable(void) { return 0; }
void product(void) {}
void input_gradient(void) {}
void weight_gradient(void) {}
#endif
