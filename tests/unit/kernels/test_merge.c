/* Adapters merged into the weights: the same outputs as beside them, block by block against the
 * twin, which knows adapters alone; and the base's weights come back to the bit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/kernels/rig.h"

/* Widths that no tile divides; a group, a window, biases and norms of the base. */
static const struct kern_shape odd = {.layers = 3,
                                      .hidden = 100,
                                      .heads = 4,
                                      .kv_heads = 2,
                                      .head_dim = 80,
                                      .intermediate = 330,
                                      .vocab = 257,
                                      .positions = 256,
                                      .norm_eps = 1e-5f,
                                      .rope_scale = 1,
                                      .window = 33,
                                      .qkv_bias = true,
                                      .qk_norm = true};

enum { VOCAB = 257, PROMPT = 40, ROWS = 3, ADAPTERS = 4 };

static struct rig rig;

static void start(void) {
    const struct rig_options options = {.page_tokens = 16, .threads = 2, .merging = true};
    rig_open_with(&rig, &odd, &options);
    rig_adapter(&rig, 0, (const uint32_t[KERN_MODULES]){8, 8, 8, 8, 8, 8, 8}, ~0u);
    rig_adapter(&rig, 1, (const uint32_t[KERN_MODULES]){24, 0, 8, 40, 0, 64, 16}, ~0u);
    rig_adapter(&rig, 2, (const uint32_t[KERN_MODULES]){0, 0, 0, 0, 0, 0, 100}, 2);
    rig_adapter(&rig, 3, (const uint32_t[KERN_MODULES]){256, 1, 33, 3, 128, 512, 512}, 5);
}

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
    for (uint32_t i = 0; i < 4; i++) {
        rig_step(&rig, rows, ROWS);
    }
    for (uint32_t s = 0; s < ROWS; s++) {
        rig_logits(&rig, s, logits[s]);
    }
}

static void test_merged_equals_the_twin(void **state) {
    static float logits[ROWS][VOCAB];
    (void)state;
    start();
    rig.compare = true;
    for (uint32_t a = 0; a < ADAPTERS; a++) {
        rig_merge(&rig, a); /* from adapter to adapter, too */
        run(a, logits);
    }
    rig_merge(&rig, KERN_BASE);
    run(KERN_BASE, logits);
    print_message("greatest difference %.1e\n", rig.worst);
    rig_close(&rig);
}

static void test_restored_to_the_bit(void **state) {
    static float base[ROWS][VOCAB], unmerged[ROWS][VOCAB], logits[ROWS][VOCAB];
    (void)state;
    start();
    run(KERN_BASE, base);
    run(3, unmerged);
    rig_merge(&rig, 3);
    run(3, logits);
    assert_memory_not_equal(logits, base, sizeof base);
    rig_merge(&rig, KERN_BASE);
    run(KERN_BASE, logits);
    assert_memory_equal(logits, base, sizeof base);
    run(3, logits);
    assert_memory_equal(logits, unmerged, sizeof unmerged);
    rig_merge(&rig, 1); /* asked for and taken back before a step: nothing happens */
    rig_merge(&rig, KERN_BASE);
    run(KERN_BASE, logits);
    assert_memory_equal(logits, base, sizeof base);
    rig_close(&rig);
}

static void test_one_after_the_other(void **state) {
    static float alone[ROWS][VOCAB], logits[ROWS][VOCAB];
    (void)state;
    start();
    rig_merge(&rig, 1);
    run(1, alone);
    for (uint32_t a = 0; a < ADAPTERS; a++) { /* what they leave alone comes back, too */
        rig_merge(&rig, a);
        run(a, logits);
        rig_merge(&rig, 1);
        run(1, logits);
        assert_memory_equal(logits, alone, sizeof alone);
    }
    rig_close(&rig);
}

/* Another adapter takes the index of the one that is merged. */
static void test_an_index_used_again(void **state) {
    static float expected[ROWS][VOCAB], logits[ROWS][VOCAB];
    static const uint32_t ranks[KERN_MODULES] = {16, 16, 0, 16, 0, 16, 16};
    (void)state;
    start();
    rig_merge(&rig, 0);
    run(0, logits);
    rig.seed = 5;
    rig_adapter(&rig, 0, ranks, ~0u);
    rig_merge(&rig, 0);
    run(0, logits);
    rig_merge(&rig, KERN_BASE);
    run(KERN_BASE, expected);
    rig_merge(&rig, 0);
    run(0, expected);
    assert_memory_equal(logits, expected, sizeof expected);
    rig_close(&rig);
}

/* Nothing that does not lie in the projections. */
static void test_which_can_be(void **state) {
    (void)state;
    struct kern_lora lora[2 * KERN_MODULES + KERN_OUTERS] = {0};
    assert_true(kern_lora_mergeable(lora, 2));
    lora[9].rank = 8;
    assert_true(kern_lora_mergeable(lora, 2));
    lora[9].bias = 64;
    assert_false(kern_lora_mergeable(lora, 2));
    lora[9].bias = 0;
    for (uint32_t outer = 0; outer < KERN_OUTERS; outer++) {
        lora[2 * KERN_MODULES + outer].rank = 8;
        assert_false(kern_lora_mergeable(lora, 2));
        lora[2 * KERN_MODULES + outer].rank = 0;
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_merged_equals_the_twin), cmocka_unit_test(test_restored_to_the_bit),
        cmocka_unit_test(test_one_after_the_other),    cmocka_unit_test(test_an_index_used_again),
        cmocka_unit_test(test_which_can_be),
    };
    cmocka_set_test_filter(getenv("LORRY_TEST"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
