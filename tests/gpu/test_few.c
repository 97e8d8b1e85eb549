/* The linears of few rows (linear_few.cu) against sums in double precision: shapes that end inside
 * a tile, a chunk or a group, both types, every kind of result, every number of rows; what lies
 * behind the rows; that a row's bits do not depend on its neighbours. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cuda/cuda.h"
#include "tests/unit/kernels/half.h"

enum { OUT_MAX = 16400, IN_MAX = 3000, ROWS = CUDA_FEW_ROWS };

/* Bytes of y. */
#define Y_BYTES ((size_t)ROWS * (OUT_MAX + 8) * sizeof(float))

struct few_case {
    uint32_t in, out;
    bool add, floats;
};

static const struct few_case cases[] = {
    {8, 16, false, false},      {72, 40, true, false},     {88, 264, false, false},
    {240, 1000, false, true},   {328, 72, true, false},    {1024, 1536, false, false},
    {1032, 7184, false, false}, {3000, 520, true, false},  {1024, 1024, true, false},
    {2056, 2112, true, false},  {264, 16400, false, true}, {1160, 16385, false, true},
    {512, 16400, false, false},
};

struct rig {
    struct kern_device d;
    uint16_t *w, *x; /* host */
    void *w_there, *x_there, *y_there, *y;
};

static void demand(cudaError_t result) {
    if (result != cudaSuccess) {
        fail_msg("%s", cudaGetErrorString(result));
    }
}

static uint32_t random_next(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

/* Numbers in -1 .. 1 that both types have. */
static void random_fill(uint16_t *to, size_t count, enum kern_dtype elem, uint32_t seed) {
    for (size_t i = 0; i < count; i++) {
        float v = (float)(random_next(&seed) % 255) / 128.0f - 127.0f / 128.0f;
        to[i] = half_of(v, elem);
    }
}

static void rig_open(struct rig *r, enum kern_dtype elem) {
    *r = (struct rig){.d = {.elem = elem}};
    struct err_text why;
    int major = 0;
    demand(cudaDeviceGetAttribute(&r->d.sm_count, cudaDevAttrMultiProcessorCount, 0));
    demand(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    demand(cudaStreamCreate(&r->d.stream));
    r->d.launches_early = major == 9 && cuda_code_waits();
    assert_int_equal(cuda_few_open(&r->d, &why), ERR_OK);
    r->w = calloc((size_t)OUT_MAX * IN_MAX, sizeof *r->w);
    r->x = calloc((size_t)ROWS * IN_MAX, sizeof *r->x);
    r->y = malloc(Y_BYTES);
    assert_true(r->w != NULL && r->x != NULL && r->y != NULL);
    random_fill(r->w, (size_t)OUT_MAX * IN_MAX, elem, 1);
    random_fill(r->x, (size_t)ROWS * IN_MAX, elem, 2);
    demand(cudaMalloc(&r->w_there, (size_t)OUT_MAX * IN_MAX * sizeof *r->w));
    demand(cudaMalloc(&r->x_there, (size_t)ROWS * IN_MAX * sizeof *r->x));
    demand(cudaMalloc(&r->y_there, Y_BYTES));
    demand(cudaMemcpy(r->w_there, r->w, (size_t)OUT_MAX * IN_MAX * sizeof *r->w,
                      cudaMemcpyHostToDevice));
}

static void rig_close(struct rig *r) {
    demand(cudaFree(r->w_there));
    demand(cudaFree(r->x_there));
    demand(cudaFree(r->y_there));
    demand(cudaStreamDestroy(r->d.stream));
    free(r->w);
    free(r->x);
    free(r->y);
}

/* Runs the product twice into y of ones, the second time right behind the first: with `add` on top
 * of it. Behind the rows, and at their ends, the ones stay. */
static void run(struct rig *r, const struct few_case *c, uint32_t rows) {
    const uint32_t y_row = c->out + 8;
    const uint16_t one = half_of(1, r->d.elem);
    for (size_t i = 0; i < (size_t)ROWS * y_row; i++) {
        if (c->floats) {
            ((float *)r->y)[i] = 1;
        } else {
            ((uint16_t *)r->y)[i] = one;
        }
    }
    demand(cudaMemcpy(r->y_there, r->y, Y_BYTES, cudaMemcpyHostToDevice));
    demand(
        cudaMemcpy(r->x_there, r->x, (size_t)ROWS * c->in * sizeof *r->x, cudaMemcpyHostToDevice));
    const struct cuda_product p = {.w = r->w_there,
                                   .x = r->x_there,
                                   .y = r->y_there,
                                   .in = c->in,
                                   .out = c->out,
                                   .rows = rows,
                                   .y_row = y_row,
                                   .add = c->add,
                                   .floats = c->floats};
    cuda_linear_few(&r->d, &p);
    cuda_linear_few(&r->d, &p);
    assert_int_equal(r->d.failed, ERR_OK);
    demand(cudaStreamSynchronize(r->d.stream));
    demand(cudaMemcpy(r->y, r->y_there, Y_BYTES, cudaMemcpyDeviceToHost));
}

static double y_at(const struct rig *r, const struct few_case *c, uint32_t row, uint32_t out) {
    size_t i = (size_t)row * (c->out + 8) + out;
    return c->floats ? (double)((const float *)r->y)[i]
                     : (double)half_float(((const uint16_t *)r->y)[i], r->d.elem);
}

/* What y may be: what the double sum says, and how far from it. */
static double want_at(const struct rig *r, const struct few_case *c, uint32_t row, uint32_t out,
                      double *slack) {
    const double unit = c->floats ? 0 : r->d.elem == KERN_F16 ? 0x1p-11 : 0x1p-8;
    double sum = 0, most = 0;
    for (uint32_t k = 0; k < c->in; k++) {
        double term = (double)half_float(r->w[(size_t)out * c->in + k], r->d.elem) *
                      (double)half_float(r->x[(size_t)row * c->in + k], r->d.elem);
        sum += term;
        most += fabs(term);
    }
    double want = c->add ? 1 + 2 * sum : sum;
    double first = c->add ? 1 + sum : 0; /* was rounded, too */
    *slack = unit * (fabs(want) + fabs(first)) + 1e-6 * most + 1e-7;
    return want;
}

static void check_at(const struct rig *r, const struct few_case *c, uint32_t rows, uint32_t row,
                     uint32_t out) {
    double slack = 0, got = y_at(r, c, row, out);
    double want = row < rows && out < c->out ? want_at(r, c, row, out, &slack) : 1;
    if (!(fabs(got - want) <= slack)) {
        fail_msg("%u in, %u out, %u rows: row %u, output %u is %g, not %g within %g", c->in, c->out,
                 rows, row, out, got, want, slack);
    }
}

/* Some outputs, and the last ones. */
static void check(const struct rig *r, const struct few_case *c, uint32_t rows) {
    const uint32_t stride = 1 + c->out / 50;
    for (uint32_t row = 0; row < ROWS; row++) {
        for (uint32_t out = 0; out < c->out + 8; out += out + 24 < c->out ? stride : 1) {
            check_at(r, c, rows, row, out);
        }
    }
}

static void test_sums(void **state) {
    (void)state;
    static const enum kern_dtype elems[] = {KERN_BF16, KERN_F16};
    for (size_t e = 0; e < 2; e++) {
        struct rig r;
        rig_open(&r, elems[e]);
        for (size_t i = 0; r.d.few_linears && i < sizeof cases / sizeof cases[0]; i++) {
            static const uint32_t sizes[] = {1, 2, 4, 8, 11, 16};
            for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
                run(&r, &cases[i], sizes[s]);
                check(&r, &cases[i], sizes[s]);
            }
        }
        bool ran = r.d.few_linears;
        rig_close(&r);
        if (!ran) {
            skip(); /* no shared memory for it */
        }
    }
}

/* Other neighbours, NaN among them. */
static void test_neighbours(void **state) {
    (void)state;
    struct rig r;
    rig_open(&r, KERN_BF16);
    for (size_t i = 0; r.d.few_linears && i < sizeof cases / sizeof cases[0]; i++) {
        const struct few_case *c = &cases[i];
        const uint32_t rows = i % 2 == 0 ? 16 : 8, mine = 5;
        const size_t bytes = c->out * (c->floats ? sizeof(float) : sizeof(uint16_t));
        const size_t at =
            (size_t)mine * (c->out + 8) * (c->floats ? sizeof(float) : sizeof(uint16_t));
        run(&r, c, rows);
        void *before = malloc(bytes);
        assert_non_null(before);
        memcpy(before, (const char *)r.y + at, bytes);
        for (uint32_t row = 0; row < rows; row++) {
            for (uint32_t k = 0; row != mine && k < c->in; k++) {
                r.x[(size_t)row * c->in + k] = row == mine + 1 ? 0x7fff : (uint16_t)(k + row);
            }
        }
        run(&r, c, rows);
        assert_memory_equal(before, (const char *)r.y + at, bytes);
        free(before);
    }
    rig_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sums),
        cmocka_unit_test(test_neighbours),
    };
    cmocka_set_test_filter(getenv("LORRY_TEST"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
