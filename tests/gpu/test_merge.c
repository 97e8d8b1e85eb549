/* Adapters merged into the weights on CUDA: each element of each projection against the same in
 * double precision; the base's to the bit afterwards; and the tokens' logits near those of the
 * adapter beside the weights, from graphs and not.
 *
 * Widths that no tile divides, ranks of 1 to 512 and every width of a last block, projections and
 * layers that an adapter leaves alone, scattered pages between pages of NaN, both types. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/gpu/peek.h"
#include "tests/unit/kernels/half.h"
#include "tests/unit/kernels/rig.h"

static const struct kern_shape ragged = {.layers = 3,
                                         .hidden = 328,
                                         .heads = 5,
                                         .kv_heads = 5,
                                         .head_dim = 64,
                                         .intermediate = 1096,
                                         .vocab = 500,
                                         .positions = 256,
                                         .norm_eps = 1e-5f,
                                         .rope_scale = 1,
                                         .dtype = KERN_BF16};
static const struct kern_shape wide = {.layers = 2,
                                       .hidden = 2048,
                                       .heads = 16,
                                       .kv_heads = 4,
                                       .head_dim = 128,
                                       .intermediate = 4224,
                                       .vocab = 500,
                                       .positions = 256,
                                       .norm_eps = 1e-5f,
                                       .rope_scale = 1,
                                       .qkv_bias = true,
                                       .dtype = KERN_BF16};

enum { VOCAB = 500, ROWS = 6, PROMPT = 33, STEPS = 4, ADAPTERS = 5 };

static const uint32_t ranks[ADAPTERS][KERN_MODULES] = {{16, 16, 16, 16, 16, 16, 16},
                                                       {8, 24, 32, 40, 56, 64, 72},
                                                       {1, 0, 33, 0, 100, 0, 7},
                                                       {512, 256, 200, 512, 96, 128, 320},
                                                       {0, 0, 0, 0, 0, 0, 48}};

static struct rig rig;

static void start(const struct kern_shape *shape, enum kern_dtype dtype, bool warm) {
    const struct rig_options options = {.ops = kern_cuda(),
                                        .page_tokens = 16,
                                        .warm = warm,
                                        .merging = true,
                                        .sequences = 16,
                                        .sequence_tokens = 128,
                                        .step_tokens = 512};
    struct kern_shape typed = *shape;
    typed.dtype = dtype;
    rig_open_with(&rig, &typed, &options);
    for (uint32_t a = 0; a < ADAPTERS; a++) {
        rig_adapter(&rig, a, ranks[a], a == 2 ? 2 : ~0u);
    }
    rig_poison(&rig);
}

/* ---- the weights -------------------------------------------------------------------------- */

/* W + scale · B A of one element, and what f32 sums may be off. */
static double exact(const struct twin_lora *t, const float *w, uint32_t in, uint32_t row,
                    uint32_t column, double *slop) {
    double value = (double)w[(uint64_t)row * in + column], sum = 0, size = 0;
    *slop = 0;
    if (t->rank == 0) {
        return value;
    }
    for (uint32_t r = 0; r < t->rank; r++) {
        double part =
            (double)t->b[(uint64_t)row * t->rank + r] * (double)t->a[(uint64_t)r * in + column];
        sum += part;
        size += fabs(part);
    }
    *slop = (t->rank + 2) * 0x1p-24 * (size * (double)t->scale + fabs(value));
    return value + (double)t->scale * sum;
}

/* The element's error, of its bound. */
static double element_check(const struct twin_lora *t, const float *w, uint32_t in, uint32_t row,
                            uint32_t column, uint16_t got) {
    const double unit = rig.shape.dtype == KERN_BF16 ? 0x1p-8 : 0x1p-11;
    double slop = 0, value = exact(t, w, in, row, column, &slop);
    double ours = (double)half_float(got, rig.shape.dtype), error = fabs(ours - value);
    double bound = unit * fabs(value) + slop + 0x1p-25; /* and of small ones in f16 */
    if (!(error <= bound)) {
        fail_msg("[%u][%u]: %.9g, not %.9g", row, column, ours, value);
    }
    return error / bound;
}

/* Compares some rows, of small matrices all; the greatest error, of its bound. */
static double matrix_check(uint32_t adapter, uint32_t layer, enum kern_module module) {
    static const struct twin_lora none;
    const struct kern_shape *s = &rig.shape;
    uint32_t in = kern_module_in(s, module), out = kern_module_out(s, module);
    const struct twin_lora *t =
        adapter == KERN_BASE ? &none : &rig.adapters[adapter].lora[layer * KERN_MODULES + module];
    const float *w = rig.weights.layers[layer].module[module];
    uint16_t *got = calloc((size_t)in * out, sizeof *got);
    assert_non_null(got);
    peek_cuda_matrix(rig.device, layer, module, got);
    double worst = 0;
    uint32_t stride = out > 400 ? 37 : 1; /* prime: every place of a tile comes */
    for (uint32_t row = 0; row < out; row += stride) {
        for (uint32_t column = 0; column < in; column++) {
            uint16_t element = got[(uint64_t)row * in + column];
            worst = fmax(worst, element_check(t, w, in, row, column, element));
        }
    }
    free(got);
    return worst;
}

static void weights_check(uint32_t adapter) {
    double worst = 0;
    for (uint32_t layer = 0; layer < rig.shape.layers; layer++) {
        for (enum kern_module m = KERN_Q; m < KERN_MODULES; m++) {
            worst = fmax(worst, matrix_check(adapter, layer, m));
        }
    }
    print_message("  adapter %d: greatest error %.3f of its bound\n", (int)adapter, worst);
}

/* ---- steps -------------------------------------------------------------------------------- */

/* A prompt of each of ROWS sequences and some tokens, all of one adapter; the last logits. */
static void run(uint32_t adapter, float logits[ROWS][VOCAB]) {
    struct rig_part prompts[ROWS], rows[ROWS];
    for (uint32_t s = 0; s < ROWS; s++) {
        rig.seed = 77 + s; /* the same tokens each time */
        rig_sequence(&rig, s, adapter);
        prompts[s] = (struct rig_part){s, PROMPT + s, false};
        rows[s] = (struct rig_part){s, 1, true};
    }
    rig_step(&rig, prompts, ROWS);
    for (uint32_t i = 0; i < STEPS; i++) {
        rig_step(&rig, rows, ROWS);
    }
    for (uint32_t s = 0; s < ROWS; s++) {
        rig_logits(&rig, s, logits[s]);
    }
}

/* Root mean square of the difference, of the first's. */
static double apart(float a[ROWS][VOCAB], float b[ROWS][VOCAB]) {
    double size = 0, sum = 0;
    for (uint32_t s = 0; s < ROWS; s++) {
        for (uint32_t i = 0; i < VOCAB; i++) {
            double difference = (double)a[s][i] - (double)b[s][i];
            sum += difference * difference;
            size += (double)a[s][i] * (double)a[s][i];
        }
    }
    return sqrt(sum / size);
}

static void merge_all(const struct kern_shape *shape, enum kern_dtype dtype, bool warm) {
    static float base[ROWS][VOCAB], beside[ADAPTERS][ROWS][VOCAB], first[ADAPTERS][ROWS][VOCAB];
    static float logits[ROWS][VOCAB];
    const double unit = dtype == KERN_BF16 ? 0x1p-8 : 0x1p-11;
    start(shape, dtype, warm);
    run(KERN_BASE, base);
    for (uint32_t a = 0; a < ADAPTERS; a++) {
        run(a, beside[a]);
    }
    for (uint32_t a = 0; a < ADAPTERS; a++) {
        rig_merge(&rig, a);
        run(a, first[a]);
        weights_check(a);
        double difference = apart(beside[a], first[a]) / unit;
        print_message("  logits differ by %.2f units from the unmerged; the adapter's from the "
                      "base's by %.0f\n",
                      difference, apart(base, beside[a]) / unit);
        assert_true(difference < 8); /* as two orders of rounding do after some layers */
    }
    rig_merge(&rig, KERN_BASE);
    run(KERN_BASE, logits);
    assert_memory_equal(logits, base, sizeof base);
    weights_check(KERN_BASE);
    for (uint32_t a = ADAPTERS; a-- > 0;) { /* whatever was merged before */
        rig_merge(&rig, a);
        run(a, logits);
        assert_memory_equal(logits, first[a], sizeof logits);
    }
    rig_merge(&rig, KERN_BASE);
    run(3, logits);
    assert_memory_equal(logits, beside[3], sizeof logits);
    rig_close(&rig);
}

static void test_bf16_eagerly(void **state) {
    (void)state;
    merge_all(&ragged, KERN_BF16, false);
}

static void test_f16_from_graphs(void **state) {
    (void)state;
    merge_all(&ragged, KERN_F16, true);
}

static void test_wide_from_graphs(void **state) {
    (void)state;
    merge_all(&wide, KERN_BF16, true);
}

/* The sequences of adapter `a` in step `i`: first their prompts, then the last token again. */
static void in_flight_parts(uint32_t i, uint32_t a, struct rig_part parts[ROWS]) {
    for (uint32_t s = 0; s < ROWS; s++) {
        uint32_t number = a * ROWS + s, tokens = PROMPT + s + STEPS;
        if (i < 2) {
            rig.seed = 77 + s;
            rig_sequence(&rig, number, a);
        } else {
            rig_rewind(&rig, number, tokens - 1);
        }
        parts[s] = (struct rig_part){number, i < 2 ? tokens : 1, i >= 2};
    }
}

/* Merges and steps follow each other without a pause, one ahead of what is read: the weights
 * change only between the steps that read them. */
static void test_in_flight(void **state) {
    static float expected[2][ROWS][VOCAB], seen[2][ROWS][VOCAB], logits[ROWS][VOCAB];
    bool is_seen[2] = {false};
    uint64_t tickets[2] = {0};
    (void)state;
    start(&wide, KERN_BF16, true);
    for (uint32_t a = 0; a < 2; a++) {
        rig_merge(&rig, a);
        run(a, expected[a]);
    }
    for (uint32_t i = 0; i < 200; i++) {
        const uint32_t a = i % 2;
        struct rig_part parts[ROWS];
        in_flight_parts(i, a, parts);
        rig_merge(&rig, a);
        struct rig_batch *b = rig_batch(&rig, parts, ROWS);
        assert_int_equal(rig.ops->step_begin(rig.device, &b->step), ERR_OK);
        rig_blocks(&rig, NULL);
        assert_int_equal(rig.ops->step_end(rig.device, &tickets[a]), ERR_OK);
        free(b);
        if (i > 0) {
            assert_int_equal(
                rig.ops->step_read(rig.device, tickets[1 - a], rig.results, i - 1 < 2 ? 0 : ROWS),
                ERR_OK);
        }
        if (i < 2 || i % 7 >= 2) { /* looking waits for the step */
            continue;
        }
        for (uint32_t s = 0; s < ROWS; s++) {
            rig_logits(&rig, s, logits[s]);
        }
        assert_true(apart(expected[a], logits) < 8 * 0x1p-8); /* prompts came in other buckets */
        if (is_seen[a]) {
            assert_memory_equal(logits, seen[a], sizeof logits);
        }
        memcpy(seen[a], logits, sizeof logits);
        is_seen[a] = true;
    }
    assert_int_equal(rig.ops->step_read(rig.device, tickets[1], rig.results, ROWS), ERR_OK);
    rig_close(&rig);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bf16_eagerly),
        cmocka_unit_test(test_f16_from_graphs),
        cmocka_unit_test(test_wide_from_graphs),
        cmocka_unit_test(test_in_flight),
    };
    cmocka_set_test_filter(getenv("LORRY_TEST"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
