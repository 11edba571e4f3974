// The halves of a block in one call each, where all their products are ours: of a small model's step, calls one by one
// would cost as much as what they compute. The order of the kernels is that of `branch_by_parts.py`.
#include <stdlib.h>

#include "tiles.h"

#ifdef TILES
#include "kernels.h"

static void *room_for(int64_t bytes) { return aligned_alloc(64, (bytes + 63) / 64 * 64); }

// Room for the sums of all threads, of which a kernel leaves the whole ones in the first row; none where nobody wants them.
static float *sums_for(const float *wanted, int64_t width, int threads) {
    return wanted ? room_for(threads * width * sizeof(float)) : 0;
}

static void hand_over(float *sums, float *wanted, int64_t width) {
    if (wanted) memcpy(wanted, sums, width * sizeof(float));
    free(sums);
}

// `norm_backward` in the place of dy, whose sums over rows come out in one row each; statistics are means, then rstds.
static void norm_back(bfloat16 *dx, const bfloat16 *dstream, const bfloat16 *x, const float *gain, float offset, int centred,
                      const float *statistics, float *dgain, float *dshift, float *dsums, int64_t rows, int64_t width,
                      int threads) {
    float *of_gain = sums_for(dgain, width, threads), *of_shift = sums_for(dshift, width, threads);
    float *of_stream = sums_for(dsums, width, threads);
    norm_backward(dx, dstream, x, gain, offset, centred, statistics, statistics + rows, dx, of_gain, of_shift, of_stream,
                  rows, width, threads);
    hand_over(of_gain, dgain, width);
    hand_over(of_shift, dshift, width);
    hand_over(of_stream, dsums, width);
}

typedef struct {
    int64_t batch, time, width, centred;           // of the stream, and its norm
    int64_t heads, kv_heads, head, turning, window;  // see `causal.c` and `turn_heads`
} AttentionSizes;

// Queries, keys and values in the rows of projections.
typedef struct {
    int64_t rows, all, features, keys, values;  // heads in a row and their numbers; where keys and values begin
    Strides lie[3];
} Projections;

static Projections projections_of(const AttentionSizes *of) {
    const int64_t all = of->heads + 2 * of->kv_heads, features = all * of->head;
    const Strides each = {of->time * features, of->head, features};
    return (Projections){of->batch * of->time,           all,
                         features,                       of->heads * of->head,
                         (of->heads + of->kv_heads) * of->head, {each, each, each}};
}

// y = x + out·attention(qkv·norm(x) + b) + b'; what stands before y is kept for the way back.
void attention_branch(const bfloat16 *x, const float *gain, const float *shift, float offset, float eps,
                      const bfloat16 *qkv_weight, const float *qkv_bias, const float *cosines, const float *sines,
                      const float *slopes, float scale, float cap, const bfloat16 *out_weight, const float *out_bias,
                      bfloat16 *normed, float *statistics, bfloat16 *qkv, float *logsums, bfloat16 *inner, bfloat16 *y,
                      const int64_t *sizes, int threads) {
    const AttentionSizes *of = (const AttentionSizes *)sizes;
    const Projections lies = projections_of(of);
    const int64_t rows = lies.rows, width = of->width, inputs = of->heads * of->head;
    norm_forward(x, gain, shift, offset, eps, of->centred, normed, statistics, statistics + rows, rows, width, threads);
    product(normed, qkv_weight, qkv_bias, 0, qkv, rows, lies.features, width, threads);
    if (of->turning)
        turn_heads(qkv, cosines, sines, of->turning, 0, rows, of->time, of->heads + of->kv_heads, lies.all, of->head, threads);
    causal_forward(qkv, qkv + lies.keys, qkv + lies.values, (const int64_t *)lies.lie, inner, logsums, slopes, scale, cap,
                   of->window, of->batch, of->time, of->heads, of->kv_heads, of->head, of->head, threads);
    product(inner, out_weight, out_bias, x, y, rows, width, inputs, threads);
}

// The gradients of all that `attention_branch` is given, of those that are wanted.
void attention_branch_backward(const bfloat16 *dy, const bfloat16 *x, const float *gain, float offset,
                               const float *statistics, const bfloat16 *normed, const bfloat16 *qkv, const float *logsums,
                               const bfloat16 *inner, const bfloat16 *qkv_weight, const bfloat16 *out_weight,
                               const float *cosines, const float *sines, const float *slopes, float scale, float cap,
                               bfloat16 *dx, float *dgain, float *dshift, float *dqkv_weight, float *dqkv_bias,
                               float *dout_weight, float *dout_bias, const int64_t *sizes, int threads) {
    const AttentionSizes *of = (const AttentionSizes *)sizes;
    const Projections lies = projections_of(of);
    const int64_t rows = lies.rows, width = of->width, inputs = of->heads * of->head;
    bfloat16 *dinner = room_for(rows * (inputs + lies.features) * sizeof(bfloat16)), *dqkv = dinner + rows * inputs;
    if (dout_weight) weight_gradient(dy, inner, dout_weight, 0, rows, width, inputs, threads);
    input_gradient(dy, out_weight, dinner, rows, width, inputs, threads);
    causal_backward(dinner, qkv, qkv + lies.keys, qkv + lies.values, (const int64_t *)lies.lie, dqkv, dqkv + lies.keys,
                    dqkv + lies.values, (const int64_t *)lies.lie, logsums, slopes, scale, cap, of->window, of->batch,
                    of->time, of->heads, of->kv_heads, of->head, of->head, threads);
    if (of->turning)
        turn_heads(dqkv, cosines, sines, of->turning, 1, rows, of->time, of->heads + of->kv_heads, lies.all, of->head, threads);
    if (dqkv_bias) {
        float *sums = sums_for(dqkv_bias, lies.features, threads);
        column_sums(dqkv, sums, rows, lies.features, threads);
        hand_over(sums, dqkv_bias, lies.features);
    }
    if (dqkv_weight) weight_gradient(dqkv, normed, dqkv_weight, 0, rows, lies.features, width, threads);
    input_gradient(dqkv, qkv_weight, dx, rows, lies.features, width, threads);
    norm_back(dx, dy, x, gain, offset, of->centred, statistics, dgain, dshift, dout_bias, rows, width, threads);
    free(dinner);
}

typedef struct {
    int64_t rows, width, centred;  // of the stream, and its norm
    int64_t hidden, times;         // numbers of an activation, and of its argument for each of them
} FeedForwardSizes;

// y = x + down·act(up·norm(x) + b) + b'; normed, statistics, slopes and inner are kept for the way back. Slopes, unless
// nobody wants them, take the place of h.
void feedforward_branch(const bfloat16 *x, const float *gain, const float *shift, float offset, float eps,
                        const bfloat16 *up_weight, const float *up_bias, const void *activation,
                        const bfloat16 *down_weight, const float *down_bias, bfloat16 *normed, float *statistics,
                        bfloat16 *h, bfloat16 *slopes, bfloat16 *inner, bfloat16 *y, const int64_t *sizes, int threads) {
    const FeedForwardSizes *of = (const FeedForwardSizes *)sizes;
    const int64_t rows = of->rows, width = of->width, hidden = of->hidden;
    norm_forward(x, gain, shift, offset, eps, of->centred, normed, statistics, statistics + rows, rows, width, threads);
    product(normed, up_weight, 0, 0, h, rows, of->times * hidden, width, threads);
    ((Activation *)activation)(h, up_bias, inner, slopes, rows, hidden, threads);
    product(inner, down_weight, down_bias, x, y, rows, width, hidden, threads);
}

// The gradients of all that `feedforward_branch` is given, of those that are wanted.
void feedforward_branch_backward(const bfloat16 *dy, const bfloat16 *x, const float *gain, float offset,
                                 const float *statistics, const bfloat16 *normed, const bfloat16 *slopes,
                                 const bfloat16 *inner, const bfloat16 *up_weight, const bfloat16 *down_weight,
                                 bfloat16 *dx, float *dgain, float *dshift, float *dup_weight, float *dup_bias,
                                 float *ddown_weight, float *ddown_bias, const int64_t *sizes, int threads) {
    const FeedForwardSizes *of = (const FeedForwardSizes *)sizes;
    const int64_t rows = of->rows, width = of->width, hidden = of->hidden, features = of->times * hidden;
    bfloat16 *dinner = room_for(rows * (hidden + (of->times > 1 ? features : 0)) * sizeof(bfloat16));
    bfloat16 *dh = of->times > 1 ? dinner + rows * hidden : dinner;
    if (ddown_weight) weight_gradient(dy, inner, ddown_weight, 0, rows, width, hidden, threads);
    input_gradient(dy, down_weight, dinner, rows, width, hidden, threads);
    float *sums = sums_for(dup_bias, features, threads);
    times_slopes(dinner, slopes, dh, sums, of->times, rows, hidden, threads);
    hand_over(sums, dup_bias, features);
    if (dup_weight) weight_gradient(dh, normed, dup_weight, 0, rows, features, width, threads);
    input_gradient(dh, up_weight, dx, rows, features, width, threads);
    norm_back(dx, dy, x, gain, offset, of->centred, statistics, dgain, dshift, ddown_bias, rows, width, threads);
    free(dinner);
}
#else
void attention_branch(void) {}
void attention_branch_backward(void) {}
void feedforward_branch(void) {}
void feedforward_branch_backward(void) {}
#endif
