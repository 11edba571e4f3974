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

// The factors of a product [rows, width]: the first [rows, depth], or its columns where it `lies`; the second
// [depth, width], or its columns where it is `turned`.
typedef struct {
    const bfloat16 *first, *second;
    int lies, turned;
    int64_t rows, depth, width;
} Factors;

// What is worked on at once: the panels [left, right) of the second factor, `steps` of the depth from `top` on.
typedef struct {
    int64_t left, right, top, depth, steps;
    Product to;
    int past;
} Part;

// Numbers of the second factor in a part, and rows of it; and how many stay in a core's cache.
enum { PACKED = 1 << 20, DEEP = 1 << 12, DEEP_LAID_OUT = 1 << 10, CACHED = 1 << 19 };

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// What comes of the depth before waits in `sums` until the last part of it.
static Part part_of(const Factors *of, const Product *y, float *sums, int64_t left, int64_t panels, int64_t top, int64_t deep) {
    const int64_t depth = least(deep, of->depth - top);
    Part part = {left, least(left + panels, steps_of(of->width)), top, depth, steps_of(depth), *y, 0};
    if (top > 0) part.to.before = sums;
    if (top + depth < of->depth)
        part.to = (Product){.full = sums, .width = y->width, .before = part.to.before, .on_its_side = y->on_its_side};
    else
        part.past = y->full ? goes_past(y->full, of->rows, y->width, sizeof(float))
                            : goes_past(y->low, of->rows, y->width, sizeof(bfloat16));
    return part;
}

// The threads pack the second factor, along its rows as they lie.
static void pack_part(const Factors *of, const Part *part, bfloat16 *packed) {
    if (of->turned) {
#pragma omp for schedule(static)
        for (int64_t panel = part->left; panel < part->right; panel++)
            pack_turned(of->second + part->top, of->depth, part->depth, of->width, panel * SIDE,
                        packed + (panel - part->left) * part->steps * STEP);
    } else {
#pragma omp for schedule(static)
        for (int64_t step = 0; step < part->steps; step++)
            for (int64_t panel = part->left; panel < part->right; panel++)
                pack(of->second + (part->top + step * SIDE) * of->width, of->width, least(SIDE, part->depth - step * SIDE),
                     of->width, panel * SIDE, packed + ((panel - part->left) * part->steps + step) * STEP);
    }
}

// Bands of 32 rows that go through the second factor together: several where it does not stay in the cache, or where they
// are laid out and have whole lines of memory so; but some turns are left for each thread.
enum { BANDS = 4 };

static inline int64_t together_of(int64_t bands, int several, int threads) {
    const int64_t most = least(bands / (8 * threads), BANDS);
    return several && most > 1 ? most : 1;
}

// The bands [first, last) of the product. There is room for as many, rows of which lie `apart`.
static void multiply_bands(const Factors *of, const Part *part, const bfloat16 *packed, int64_t first, int64_t last,
                           bfloat16 *room, int64_t apart) {
    const int64_t stride = of->lies ? of->rows : of->depth;
    const bfloat16 *from[BANDS];
    int64_t between[BANDS];
    for (int64_t step = 0; step < (of->lies ? part->steps : 0); step++)
        for (int64_t band = first; band < last; band++)
            lay_out(of->first + (part->top + step * SIDE) * stride, stride, least(SIDE, part->depth - step * SIDE), of->rows,
                    band * SIDE, room + (band - first) * SIDE * apart + step * SIDE, apart);
    for (int64_t band = first; band < last; band++) {
        bfloat16 *own = room + (band - first) * SIDE * apart;
        between[band - first] = of->lies ? apart : stride;
        from[band - first] = of->lies ? own
                                      : whole_rows(of->first + band * SIDE * stride + part->top, between + band - first,
                                                   of->rows - band * SIDE, part->depth, own);
    }
    float c[SIDE * PAIR] __attribute__((aligned(64)));
    for (int64_t panel = part->left; panel < part->right; panel += 2)
        for (int64_t band = first; band < last; band++) {
            for (int64_t one = panel; one < least(panel + 2, part->right); one++)
                multiply_block(from[band - first], between[band - first], packed + (one - part->left) * part->steps * STEP,
                               part->steps, c + (one - panel) * SIDE, PAIR, 0);
            if (part->to.on_its_side)
                put_on_side(&part->to, band * SIDE, panel * SIDE, of->rows, c);
            else
                put(&part->to, part->past, band * SIDE, panel * SIDE, of->rows, c);
        }
}

// Each block of the product is one thread's, in one order, however many there are; a thread takes the next bands when it is
// done, since others may have its processor, too.
static void multiply(Factors of, Product y, int threads) {
    const int64_t most = of.lies ? DEEP_LAID_OUT : DEEP, deep = of.depth > 0 ? least(of.depth, most) : 1;
    const int64_t steps = steps_of(deep), bands = steps_of(of.rows), parts = of.depth > 0 ? (of.depth + deep - 1) / deep : 1;
    const int64_t pairs = PACKED / (2 * steps * STEP), panels = least(steps_of(of.width), pairs > 1 ? 2 * pairs : 2);
    const int64_t together = together_of(bands, of.lies || panels * steps * STEP > CACHED, threads);
    const int64_t apart = steps * SIDE + SIDE;  // rows of whole cache lines would share few places of the cache
    bfloat16 *packed = aligned_alloc(64, panels * steps * STEP * sizeof(bfloat16));
    float *sums = y.full;
    if (!sums && of.depth > deep) sums = aligned_alloc(64, steps_of(of.rows * of.width) * SIDE * sizeof(float));
#pragma omp parallel num_threads(threads)
    {
        bfloat16 *room = aligned_alloc(64, together * SIDE * apart * sizeof(bfloat16));
        take_tiles();
        for (int64_t left = 0; left < steps_of(of.width); left += panels)
            for (int64_t number = 0; number < parts; number++) {  // one of nothing, where the sums are of nothing
                const Part part = part_of(&of, &y, sums, left, panels, number * deep, deep);
                pack_part(&of, &part, packed);
#pragma omp for schedule(dynamic)
                for (int64_t first = 0; first < bands; first += together)
                    multiply_bands(&of, &part, packed, first, least(first + together, bands), room, apart);
            }
        _mm_sfence();
        leave_tiles();
        free(room);
    }
    free(packed);
    if (sums != y.full) free(sums);
}

// y [N, O] = x [N, I]·Wᵀ + bias + stream, each of both or none.
void product(const bfloat16 *x, const bfloat16 *weight, const float *bias, const bfloat16 *stream, bfloat16 *y, int64_t rows,
             int64_t outputs, int64_t inputs, int threads) {
    const Product to = {.low = y, .width = outputs, .bias = bias, .stream = stream};
    multiply((Factors){x, weight, 0, 1, rows, inputs, outputs}, to, threads);
}

// dx [N, I] = dy [N, O]·W.
void input_gradient(const bfloat16 *dy, const bfloat16 *weight, bfloat16 *dx, int64_t rows, int64_t outputs, int64_t inputs,
                    int threads) {
    multiply((Factors){dy, weight, 0, 0, rows, outputs, inputs}, (Product){.low = dx, .width = inputs}, threads);
}

// dW [O, I] = dyᵀ·x, in float32, or added to what is there. The larger factor is the first: only the second is packed
// where all threads read it.
void weight_gradient(const bfloat16 *dy, const bfloat16 *x, float *dweight, int add, int64_t rows, int64_t outputs,
                     int64_t inputs, int threads) {
    const int turned = inputs > outputs;
    const int64_t height = turned ? inputs : outputs, width = turned ? outputs : inputs;
    const Product to = {.full = dweight, .width = width, .before = add ? dweight : 0, .on_its_side = turned};
    multiply((Factors){turned ? x : dy, turned ? dy : x, 1, 0, height, rows, width}, to, threads);
}
#else
int tiles_usable(void) { return 0; }
void product(void) {}
void input_gradient(void) {}
void weight_gradient(void) {}
#endif
