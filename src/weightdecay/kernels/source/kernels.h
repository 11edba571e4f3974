// What kernels of other files `branch_at_once.c` puts together; each is explained where it is.
#pragma once
#include "bfloat16.h"

// Where [batch, heads, time, width] lies: numbers from one to the next.
typedef struct {
    int64_t batch, head, time;
} Strides;

typedef void Activation(const bfloat16 *h, const float *bias, bfloat16 *y, bfloat16 *slopes, int64_t rows, int64_t width,
                        int threads);

void norm_forward(const bfloat16 *x, const float *gain, const float *bias, float offset, float eps, int centred,
                  bfloat16 *y, float *means, float *rstds, int64_t rows, int64_t width, int threads);
void norm_backward(const bfloat16 *dy, const bfloat16 *dstream, const bfloat16 *x, const float *gain, float offset,
                   int centred, const float *means, const float *rstds, bfloat16 *dx, float *dgain, float *dbias,
                   float *sums, int64_t rows, int64_t width, int threads);
void column_sums(const bfloat16 *x, float *sums, int64_t rows, int64_t width, int threads);
void times_slopes(const bfloat16 *dy, const bfloat16 *slopes, bfloat16 *dh, float *sums, int64_t times, int64_t rows,
                  int64_t width, int threads);
void turn_heads(bfloat16 *qkv, const float *cosines, const float *sines, int64_t turning, int back, int64_t rows,
                int64_t time, int64_t heads, int64_t all, int64_t width, int threads);

void product(const bfloat16 *x, const bfloat16 *weight, const float *bias, const bfloat16 *stream, bfloat16 *y, int64_t rows,
             int64_t outputs, int64_t inputs, int threads);
void input_gradient(const bfloat16 *dy, const bfloat16 *weight, bfloat16 *dx, int64_t rows, int64_t outputs, int64_t inputs,
                    int threads);
void weight_gradient(const bfloat16 *dy, const bfloat16 *x, float *dweight, int add, int64_t rows, int64_t outputs,
                     int64_t inputs, int threads);

void causal_forward(const bfloat16 *q, const bfloat16 *k, const bfloat16 *v, const int64_t *lies, bfloat16 *y,
                    float *logsums, const float *slopes, float scale, float cap, int64_t window, int64_t batch,
                    int64_t time, int64_t heads, int64_t kv_heads, int64_t width, int64_t value_width, int threads);
void causal_backward(const bfloat16 *dy, const bfloat16 *q, const bfloat16 *k, const bfloat16 *v, const int64_t *lies,
                     bfloat16 *dq, bfloat16 *dk, bfloat16 *dv, const int64_t *lie, const float *logsums,
                     const float *slopes, float scale, float cap, int64_t window, int64_t batch, int64_t time,
                     int64_t heads, int64_t kv_heads, int64_t width, int64_t value_width, int threads);
