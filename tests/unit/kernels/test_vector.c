/* The inner loops, in both tables, against libm and double precision. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/vector.h"
#include "kernels/kernels.h"
#include "tests/unit/seed.h"

static void test_exp(void **state) {
    (void)state;
    double worst = 0;
    for (int step = 0; step < 473000; step++) {
        double x = -87 + step * 0.00037;
        float in[LANES], out[LANES];
        for (int i = 0; i < LANES; i++) {
            in[i] = (float)fmin(x + i * 0.00004, 88);
        }
        lanes_store(out, lanes_exp(lanes_load(in)));
        for (int i = 0; i < LANES; i++) {
            double exact = exp((double)in[i]);
            double error = fabs((double)out[i] / exact - 1);
            worst = error > worst ? error : worst;
        }
    }
    print_message("worst relative error %.2e\n", worst);
    assert_true(worst < 2.4e-7);
}

static void test_exp_at_the_ends(void **state) {
    (void)state;
    const float in[LANES] = {0, -0.0f, -INFINITY, -87.5f, 88, 1e30f, -FLT_MAX, NAN};
    float out[LANES];
    lanes_store(out, lanes_exp(lanes_load(in)));
    assert_true(out[0] == 1 && out[1] == 1);
    assert_true(out[2] == 0 && out[3] == 0 && out[6] == 0);
    assert_true(isfinite(out[4]) && out[5] == out[4]);
    assert_true(isnan(out[7]));
}

/* ---- the two tables ----------------------------------------------------------------------- */

enum { ROW = 192, POSITIONS = 29, GROUP = 3, TOKEN_ROW = 2 * KERN_HEAD_DIM_MAX };
enum { PAGE = POSITIONS * TOKEN_ROW, ROWS = LANES * ROW };

static float noise(uint64_t *seed) {
    return (float)seed_below(seed, 1 << 24) * 0x1p-23f - 1;
}

static void fill(float *to, size_t count, uint64_t *seed) {
    for (size_t i = 0; i < count; i++) {
        to[i] = noise(seed);
    }
}

static double dot(const float *a, const float *b, size_t count) {
    double sum = 0;
    for (size_t i = 0; i < count; i++) {
        sum += (double)a[i] * (double)b[i];
    }
    return sum;
}

static void near(float value, double expected, double tolerance) {
    if (!(fabs((double)value - expected) <= tolerance)) {
        fail_msg("%.9g is not %.9g", (double)value, expected);
    }
}

static void rows_check(const struct cpu_vector_ops *ops) {
    uint64_t seed = 1;
    float x[ROW], w[ROW], y[ROW], gate[ROW];
    fill(x, ROW, &seed);
    fill(w, ROW, &seed);
    for (size_t i = 180; i < ROW; i++) { /* padding */
        x[i] = w[i] = 0;
    }
    ops->norm(x, w, y, ROW, 180, 1e-5f);
    for (size_t i = 0; i < ROW; i++) {
        near(y[i], (double)x[i] * (double)w[i] / sqrt(dot(x, x, ROW) / 180 + 1e-5), 1e-6);
    }
    for (size_t i = 0; i < ROW; i++) {
        gate[i] = 40 * x[i];
    }
    ops->silu(gate, w, ROW);
    for (size_t i = 0; i < ROW; i++) {
        double g = 40 * (double)x[i];
        near(gate[i], g / (1 + exp(-g)) * (double)w[i], 1e-5);
    }
    ops->add(y, w, ROW);
    near(y[185], 0, 0);
}

/* Attention over `count` positions, as one page after a first position of weight `at`. */
static void attention_check(const struct cpu_vector_ops *ops, size_t head_dim, size_t count) {
    static float q[GROUP * KERN_HEAD_DIM_MAX], out[GROUP * KERN_HEAD_DIM_MAX];
    static float scores[GROUP * 64], page[PAGE];
    uint64_t seed = head_dim * 64 + count;
    fill(q, GROUP * head_dim, &seed);
    fill(page, PAGE, &seed);
    memset(out, 0, sizeof out);
    const struct cpu_view w = {.q = q,
                               .out = out,
                               .scores = scores,
                               .group = GROUP,
                               .head_dim = head_dim,
                               .score_row = 64,
                               .token_row = TOKEN_ROW};
    ops->scores(&w, page, 1, count);
    for (size_t g = 0; g < GROUP; g++) {
        double weight[POSITIONS], sum = exp(0.3 * 0.5);
        scores[g * 64] = 0.5f;
        for (size_t t = 0; t < count; t++) {
            double score = dot(q + g * head_dim, page + t * TOKEN_ROW, head_dim);
            near(scores[g * 64 + 1 + t], score, 1e-5);
            weight[t] = exp(0.3 * score);
            sum += weight[t];
        }
        ops->softmax(scores + g * 64, count + 1, 0.3f);
        for (size_t t = 0; t < count; t++) {
            near(scores[g * 64 + 1 + t], weight[t] / sum, 3e-6);
        }
    }
    ops->values(&w, page, 1, count);
    for (size_t k = 0; k < GROUP * head_dim; k++) {
        double sum = 0;
        for (size_t t = 0; t < count; t++) {
            sum += (double)scores[k / head_dim * 64 + 1 + t] *
                   (double)page[t * TOKEN_ROW + k % head_dim];
        }
        near(out[k], sum, 1e-6);
    }
}

static void tiles_check(const struct cpu_vector_ops *ops, size_t ranks) {
    float tile[KERN_TILE_ELEMENTS], x[KERN_TILE_COLUMNS], v[KERN_BLOCK_RANKS];
    float v_out[KERN_BLOCK_RANKS], y[KERN_TILE_COLUMNS];
    uint64_t seed = ranks;
    fill(tile, KERN_TILE_ELEMENTS, &seed);
    fill(x, KERN_TILE_COLUMNS, &seed);
    fill(v, KERN_BLOCK_RANKS, &seed);
    memcpy(v_out, v, sizeof v);
    ops->shrink(tile, ranks, x, v_out);
    for (size_t r = 0; r < ranks; r++) {
        near(v_out[r], (double)v[r] + dot(tile + r * KERN_TILE_COLUMNS, x, KERN_TILE_COLUMNS),
             1e-5);
    }
    memcpy(y, x, sizeof y);
    ops->expand(tile, ranks, v, y);
    for (size_t c = 0; c < KERN_TILE_COLUMNS; c++) {
        near(y[c], (double)x[c] + dot(tile + c * ranks, v, ranks), 1e-5);
    }
}

static void weigh_check(const struct cpu_vector_ops *ops) {
    for (size_t count = 1; count < 30; count++) {
        float logits[31] = {0}, given[31];
        uint64_t seed = count;
        fill(logits, count, &seed);
        logits[count] = 7; /* behind the end */
        memcpy(given, logits, sizeof logits);
        ops->weigh(logits, count, 1, 0.25f);
        for (size_t i = 0; i < count; i++) {
            near(logits[i], exp(((double)given[i] - 1) / 0.25), 3e-7);
        }
        assert_true(logits[count] == 7);
    }
}

static void ops_check(const struct cpu_vector_ops *ops) {
    rows_check(ops);
    for (size_t head_dim = 8; head_dim <= KERN_HEAD_DIM_MAX; head_dim += 8) {
        for (size_t count = 1; count <= POSITIONS; count++) {
            attention_check(ops, head_dim, count);
        }
    }
    for (size_t ranks = 8; ranks <= KERN_BLOCK_RANKS; ranks += 8) {
        tiles_check(ops, ranks);
    }
    weigh_check(ops);
}

static void test_plain(void **state) {
    (void)state;
    ops_check(&cpu_vector_plain);
}

static void test_best(void **state) {
    (void)state;
    print_message("%s\n", cpu_vector_best() == &cpu_vector_plain ? "plain" : "AVX2");
    ops_check(cpu_vector_best());
}

/* Eight dot products at once have the bits of one at a time. */
static void test_dots(void **state) {
    (void)state;
    float rows[ROWS], x[ROW], out[LANES];
    uint64_t seed = 3;
    fill(rows, ROWS, &seed);
    fill(x, ROW, &seed);
    for (size_t count = LANES; count <= ROW; count += LANES) {
        lanes_store(out, lanes_dots(rows, ROW, x, count));
        for (size_t i = 0; i < LANES; i++) {
            assert_true(out[i] == lanes_dot(rows + i * ROW, x, count));
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exp),  cmocka_unit_test(test_exp_at_the_ends),
        cmocka_unit_test(test_dots), cmocka_unit_test(test_plain),
        cmocka_unit_test(test_best),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
