/* Invariant 3 on the CPU: a row's bits depend on nothing but the row. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/kernels/rig.h"
#include "tests/unit/seed.h"

/* SmolLM2's widths, so that the GEMM's calls are the real ones. */
static const struct kern_shape real = {.layers = 2,
                                       .hidden = 576,
                                       .heads = 9,
                                       .kv_heads = 3,
                                       .head_dim = 64,
                                       .intermediate = 1536,
                                       .vocab = 1100,
                                       .positions = 256,
                                       .norm_eps = 1e-5f,
                                       .rope_scale = 1};
static const struct kern_shape odd = {.layers = 2,
                                      .hidden = 100,
                                      .heads = 4,
                                      .kv_heads = 2,
                                      .head_dim = 80,
                                      .intermediate = 1000,
                                      .vocab = 257,
                                      .positions = 256,
                                      .norm_eps = 1e-5f,
                                      .rope_scale = 1,
                                      .window = 33,
                                      .qkv_bias = true,
                                      .qk_norm = true};

enum { VOCAB_MAX = 1100, PROMPT = 70 };

static void logits_equal(struct rig *r, uint32_t row, const float *expected) {
    static float logits[VOCAB_MAX];
    rig_logits(r, row, logits);
    assert_memory_equal(logits, expected, r->shape.vocab * sizeof logits[0]);
}

static void adapters_load(struct rig *r) {
    rig_adapter(r, 0, (const uint32_t[KERN_MODULES]){1, 1, 1, 1, 1, 1, 1}, ~0u);
    rig_adapter(r, 1, (const uint32_t[KERN_MODULES]){24, 0, 8, 40, 0, 64, 16}, ~0u);
    rig_adapter(r, 2, (const uint32_t[KERN_MODULES]){0, 0, 0, 0, 0, 0, 100}, 1);
}

/* A decode row alone; then at every place of two blocks of 16 rows, among decode rows of other
 * sequences and adapters, with others behind it. */
static void alone_and_at_every_place(const struct kern_shape *shape, uint32_t adapter) {
    static struct rig r;
    static float expected[VOCAB_MAX];
    rig_open(&r, shape, 16, 2, true);
    adapters_load(&r);
    rig_sequence(&r, 0, adapter);
    rig_step(&r, (const struct rig_part[]){{0, 21, false}}, 1);
    rig_step(&r, (const struct rig_part[]){{0, 1, true}}, 1);
    rig_logits(&r, 0, expected);
    uint32_t token = r.results[0].token;

    for (uint32_t s = 1; s < 40; s++) {
        rig_sequence(&r, s, s % 5 < 3 ? s % 5 : KERN_BASE);
    }
    for (uint32_t place = 0; place < 34; place++) {
        struct rig_part parts[40];
        uint32_t count = 0;
        for (uint32_t s = 1; s <= place; s++) {
            parts[count++] = (struct rig_part){s, 1, true};
        }
        rig_rewind(&r, 0, 21);
        parts[count++] = (struct rig_part){0, 1, true};
        for (uint32_t s = place + 1; s < 40 && s < place + 1 + place % 7; s++) {
            parts[count++] = (struct rig_part){s, 1 + s % 3, true};
        }
        rig_step(&r, parts, count);
        logits_equal(&r, place, expected);
        assert_int_equal(r.results[place].token, token);
    }
    rig_close(&r);
}

static void test_alone_and_at_every_place(void **state) {
    (void)state;
    alone_and_at_every_place(&real, KERN_BASE);
    alone_and_at_every_place(&real, 1);
    alone_and_at_every_place(&odd, 0);
    alone_and_at_every_place(&odd, 1);
}

static uint64_t kv_elems(const struct rig *r, uint32_t number) {
    return (uint64_t)r->shape.layers * r->sequences[number].pages_set * r->device->page_elems;
}

/* All of a sequence's K and V in pages, layer by layer. */
static float *kv_copy(const struct rig *r, uint32_t number) {
    const struct rig_sequence *s = &r->sequences[number];
    uint64_t elems = r->device->page_elems;
    float *kv = calloc(kv_elems(r, number), sizeof *kv);
    assert_non_null(kv);
    for (uint32_t layer = 0; layer < r->shape.layers; layer++) {
        for (uint32_t i = 0; i < s->pages_set; i++) {
            memcpy(kv + ((uint64_t)layer * s->pages_set + i) * elems,
                   cpu_page(r->device, layer, s->pages[i]), elems * sizeof *kv);
        }
    }
    return kv;
}

/* A prompt at once, then in chunks of every size, among others; the logits and all K, V are equal.
 */
static void chunks_of_any_size(const struct kern_shape *shape, uint32_t adapter) {
    static const uint32_t sizes[] = {1, 3, 7, 15, 16, 17, 33, 69};
    static struct rig r;
    static float expected[VOCAB_MAX];
    rig_open(&r, shape, 16, 2, false);
    adapters_load(&r);
    rig_sequence(&r, 0, adapter);
    rig_step(&r, (const struct rig_part[]){{0, PROMPT, true}}, 1);
    rig_logits(&r, 0, expected);
    float *kv = kv_copy(&r, 0);
    rig_sequence(&r, 1, 1);
    rig_sequence(&r, 2, KERN_BASE);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        rig_rewind(&r, 0, 0);
        rig_rewind(&r, 1, 0);
        for (uint32_t left = PROMPT; left > 0;) {
            uint32_t chunk = left < sizes[i] ? left : sizes[i];
            left -= chunk;
            const struct rig_part parts[] = {
                {1, 1 + (uint32_t)i, false}, {0, chunk, left == 0}, {2, 1, false}};
            if (r.sequences[1].position + parts[0].count > 200 || r.sequences[2].position > 200) {
                rig_rewind(&r, 1, 0);
                rig_rewind(&r, 2, 0);
            }
            rig_step(&r, parts, 3);
        }
        logits_equal(&r, 0, expected);
        float *again = kv_copy(&r, 0);
        assert_memory_equal(again, kv, kv_elems(&r, 0) * sizeof *kv);
        free(again);
    }
    free(kv);
    rig_close(&r);
}

static void test_chunks_of_any_size(void **state) {
    (void)state;
    chunks_of_any_size(&real, KERN_BASE);
    chunks_of_any_size(&real, 1);
    chunks_of_any_size(&odd, 2);
}

/* The same with one thread and with many; and other pages, since `free_pages` goes on. */
static void test_threads_and_pages_do_not_matter(void **state) {
    (void)state;
    static struct rig r;
    static float expected[VOCAB_MAX], logits[VOCAB_MAX];
    for (uint32_t threads = 1; threads <= 5; threads += 2) {
        rig_open(&r, &real, threads == 1 ? 16 : 32, threads, true);
        adapters_load(&r);
        rig_sequence(&r, 0, 1);
        rig_step(&r, (const struct rig_part[]){{0, PROMPT, true}}, 1);
        rig_logits(&r, 0, threads == 1 ? expected : logits);
        if (threads > 1) {
            assert_memory_equal(logits, expected, real.vocab * sizeof logits[0]);
        }
        rig_close(&r);
    }
}

/* Rows whose values overflow stay alone with it. */
static void test_a_broken_row_harms_no_other(void **state) {
    (void)state;
    static struct rig r;
    static float expected[VOCAB_MAX];
    rig_open(&r, &odd, 16, 2, false);
    rig_adapter(&r, 3, (const uint32_t[KERN_MODULES]){8, 8, 8, 8, 8, 8, 8}, ~0u);
    for (uint32_t i = 0; i < odd.layers * KERN_MODULES; i++) {
        r.loras[3][i].scale = 3e38f;
    }
    rig_sequence(&r, 0, KERN_BASE);
    rig_sequence(&r, 1, 3);
    rig_step(&r, (const struct rig_part[]){{0, 5, true}}, 1);
    rig_logits(&r, 0, expected);
    rig_rewind(&r, 0, 0);
    rig_step(&r, (const struct rig_part[]){{1, 3, true}, {0, 5, true}}, 2);
    logits_equal(&r, 1, expected);
    static float broken[VOCAB_MAX];
    rig_logits(&r, 0, broken);
    assert_true(broken[0] != broken[0]); /* NaN: the row was really broken */
    rig_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_alone_and_at_every_place),
        cmocka_unit_test(test_chunks_of_any_size),
        cmocka_unit_test(test_threads_and_pages_do_not_matter),
        cmocka_unit_test(test_a_broken_row_harms_no_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
