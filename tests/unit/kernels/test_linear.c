/* The GEMM: right, and the same bits for a row at any place, among any neighbours. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cblas.h>
#include <cmocka.h>

#include "kernels/cpu/cpu.h"
#include "tests/unit/seed.h"

static const struct {
    uint32_t out, in;
} shapes[] = {{64, 64},    {1, 1},      {576, 576},  {192, 576},  {1536, 576},
              {576, 1536}, {100, 80},   {65, 961},   {1000, 960}, {130, 2048},
              {63, 4096},  {200, 5000}, {257, 1919}, {896, 4864}};

enum { SHAPES = sizeof shapes / sizeof shapes[0], ROWS = 48 };

struct fixture {
    struct kern_device device; /* threads only */
    struct cpu_matrix m;
    struct cpu_projection p;
    float *w; /* [out][in] */
    uint64_t seed;
};

static float *floats(struct fixture *f, uint64_t count) {
    float *v = calloc(count, sizeof *v);
    assert_non_null(v);
    for (uint64_t i = 0; i < count; i++) {
        v[i] = (float)seed_below(&f->seed, 1 << 24) * 0x1p-23f - 1;
    }
    return v;
}

static void fixture_open(struct fixture *f, uint32_t shape) {
    uint32_t out = shapes[shape].out, in = shapes[shape].in;
    *f = (struct fixture){.seed = shape};
    assert_int_equal(threads_open(&f->device.threads, 2), ERR_OK);
    openblas_set_num_threads(1); /* as device_open() does */
    f->m = (struct cpu_matrix){.out = out, .in = in};
    f->w = floats(f, (uint64_t)out * in);
    f->m.panels = calloc((size_t)out * in, sizeof(float));
    assert_non_null(f->m.panels);
    for (uint32_t o = 0; o < out; o++) { /* the layout as cpu.h tells it */
        uint32_t begin = o / 64 * 64, columns = out - begin < 64 ? out - begin : 64;
        for (uint32_t i = 0; i < in; i++) {
            f->m.panels[(size_t)begin * in + (size_t)i * columns + (o - begin)] =
                f->w[(size_t)o * in + i];
        }
    }
    f->p = (struct cpu_projection){.w = &f->m, .x_row = cpu_row(in), .y_row = cpu_row(out)};
    f->p.x = calloc((size_t)ROWS * f->p.x_row, sizeof(float));
    f->p.y = calloc((size_t)ROWS * f->p.y_row, sizeof(float));
    assert_non_null(f->p.x);
    assert_non_null(f->p.y);
}

static void fixture_close(struct fixture *f) {
    threads_close(f->device.threads);
    free(f->w);
    free(f->m.panels);
    free(f->p.x);
    free(f->p.y);
}

/* Row `row` of y against a plain sum in double precision. */
static void row_check(const struct fixture *f, uint32_t row) {
    const float *x = f->p.x + (size_t)row * f->p.x_row, *y = f->p.y + (size_t)row * f->p.y_row;
    for (uint32_t o = 0; o < f->p.y_row; o++) {
        double sum = 0;
        for (uint32_t i = 0; o < f->m.out && i < f->m.in; i++) {
            sum += (double)x[i] * (double)f->w[(size_t)o * f->m.in + i];
        }
        assert_true(fabs((double)y[o] - sum) <= 3e-6 * sqrt(f->m.in));
        assert_true(o < f->m.out || y[o] == 0); /* the padding stays zero */
    }
}

static void test_right(void **state) {
    (void)state;
    enum { SOME_ROWS = 19 };
    for (uint32_t shape = 0; shape < SHAPES; shape++) {
        struct fixture f;
        fixture_open(&f, shape);
        float *x = floats(&f, (uint64_t)SOME_ROWS * f.m.in);
        for (size_t r = 0; r < SOME_ROWS; r++) {
            memcpy(f.p.x + r * f.p.x_row, x + r * f.m.in, f.m.in * sizeof *x);
        }
        cpu_linear(&f.device, &f.p, SOME_ROWS);
        for (uint32_t r = 0; r < SOME_ROWS; r++) {
            row_check(&f, r);
        }
        free(x);
        fixture_close(&f);
    }
}

static void test_a_row_is_a_row(void **state) {
    (void)state;
    for (uint32_t shape = 0; shape < SHAPES; shape++) {
        struct fixture f;
        fixture_open(&f, shape);
        float *row = floats(&f, f.m.in), *expected = calloc(f.m.out, sizeof *expected);
        assert_non_null(expected);
        memcpy(f.p.x, row, f.m.in * sizeof *row);
        cpu_linear(&f.device, &f.p, 1);
        memcpy(expected, f.p.y, f.m.out * sizeof *expected);
        for (uint32_t place = 0; place < ROWS; place++) {
            uint32_t rows = place + 1 + seed_below(&f.seed, ROWS - place);
            float *others = floats(&f, (uint64_t)rows * f.p.x_row);
            memcpy(f.p.x, others, (size_t)rows * f.p.x_row * sizeof *others);
            free(others);
            if (place % 3 == 1) { /* neighbours that spoil what they touch */
                f.p.x[(size_t)(place - 1) * f.p.x_row] = NAN;
            }
            memcpy(f.p.x + (size_t)place * f.p.x_row, row, f.m.in * sizeof *row);
            cpu_linear(&f.device, &f.p, rows);
            assert_memory_equal(f.p.y + (size_t)place * f.p.y_row, expected,
                                f.m.out * sizeof *expected);
        }
        free(row);
        free(expected);
        fixture_close(&f);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_right),
        cmocka_unit_test(test_a_row_is_a_row),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
