/* Adapters that move: evicted and loaded to other pages a thousand times, while steps run, with the
 * sequences kept. The logits stay the same bit by bit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/kernels/rig.h"
#include "tests/unit/seed.h"

static const struct kern_shape shape = {.layers = 2,
                                        .hidden = 192,
                                        .heads = 4,
                                        .kv_heads = 2,
                                        .head_dim = 64,
                                        .intermediate = 328,
                                        .vocab = 512,
                                        .positions = 512,
                                        .norm_eps = 1e-5f,
                                        .rope_scale = 1,
                                        .dtype = KERN_BF16};

enum {
    ROWS = 6,
    MOVED = 3, /* adapters; one of them has matrices on the embedding and the head */
    PROMPT = 50,
    LENGTH = 8, /* tokens that are decoded again and again */
    CYCLES = 1000,
    HOST_PAGE = 4096,
};

static struct rig rig;
static float expected[LENGTH][ROWS][512];

/* An image as large as the largest, of nothing but NaN in either type. */
static void *poison_make(uint64_t *bytes) {
    *bytes = 0;
    for (uint32_t i = 0; i < MOVED; i++) {
        *bytes = rig.image_bytes[i] > *bytes ? rig.image_bytes[i] : *bytes;
    }
    void *poison = aligned_alloc(HOST_PAGE, *bytes);
    assert_non_null(poison);
    assert_int_equal(rig.ops->pin(poison, *bytes), ERR_OK);
    uint16_t *halves = poison;
    for (uint64_t i = 0; i < *bytes / 2; i++) {
        halves[i] = 0x7fff;
    }
    return poison;
}

static void start(bool warm) {
    const struct rig_options options = {.ops = kern_cuda(),
                                        .page_tokens = 16,
                                        .warm = warm,
                                        .sequences = 16,
                                        .sequence_tokens = 128,
                                        .step_tokens = 512};
    rig_open_with(&rig, &shape, &options);
    rig_adapter(&rig, 0, (const uint32_t[KERN_MODULES]){16, 16, 16, 16, 16, 16, 16}, ~0u);
    rig_adapter(&rig, 1, (const uint32_t[KERN_MODULES]){0, 64, 3, 0, 0, 100, 8}, ~0u);
    rig_adapter(&rig, 2, (const uint32_t[KERN_MODULES]){512, 0, 0, 0, 33, 0, 0}, 2);
    struct rig_part parts[ROWS];
    for (uint32_t s = 0; s < ROWS; s++) {
        rig_sequence(&rig, s, s % 4 < MOVED ? s % 4 : KERN_BASE);
        parts[s] = (struct rig_part){s, PROMPT, false};
    }
    rig_step(&rig, parts, ROWS);
}

/* The step of cycle `cycle`: decode of all rows, begun and not read. Returns its ticket. */
static uint64_t launch(uint32_t cycle) {
    struct rig_part parts[ROWS];
    for (uint32_t s = 0; s < ROWS; s++) {
        if (cycle % LENGTH == 0) {
            rig_rewind(&rig, s, PROMPT);
        }
        parts[s] = (struct rig_part){s, 1, true};
    }
    struct rig_batch *b = rig_batch(&rig, parts, ROWS);
    uint64_t ticket = 0;
    assert_int_equal(rig.ops->step_begin(rig.device, &b->step), ERR_OK);
    rig_blocks(&rig, NULL);
    assert_int_equal(rig.ops->step_end(rig.device, &ticket), ERR_OK);
    free(b);
    return ticket;
}

static void logits_take(float logits[ROWS][512]) {
    for (uint32_t s = 0; s < ROWS; s++) {
        rig_logits(&rig, s, logits[s]);
    }
}

/* While the step of `ticket` runs, the adapter's image goes to other pages; once it has ended,
 * these are the adapter's, and those before hold NaN. */
static void move(uint32_t adapter, uint64_t ticket, const void *poison) {
    uint32_t *pages = rig.adapter_pages[adapter], count = rig.adapter_page_count[adapter];
    uint32_t *fresh = calloc(count, sizeof *fresh);
    assert_non_null(fresh);
    for (uint32_t i = 0; i < count; i++) {
        fresh[i] = rig_page_take(&rig);
    }
    uint64_t event = rig_adapter_load(&rig, adapter, rig.images[adapter], fresh);
    assert_int_equal(rig.ops->step_read(rig.device, ticket, rig.results, ROWS), ERR_OK);
    (void)rig_adapter_load(&rig, adapter, poison, pages);
    rig_event_wait(&rig, event); /* the poison's is never waited for: loads keep their order */
    for (uint32_t i = 0; i < count; i++) {
        rig.free_pages[rig.free_count++] = pages[i];
        pages[i] = fresh[i];
    }
    rig.adapter_pending[adapter] = true;
    free(fresh);
}

static void reload(bool warm, uint32_t cycles) {
    static float logits[ROWS][512];
    start(warm);
    for (uint32_t i = 0; i < LENGTH; i++) {
        uint64_t ticket = launch(i);
        logits_take(expected[i]);
        assert_int_equal(rig.ops->step_read(rig.device, ticket, rig.results, ROWS), ERR_OK);
    }
    uint64_t bytes = 0, seed = seed_take(33);
    print_message("seed %llu\n", (unsigned long long)seed);
    void *poison = poison_make(&bytes);
    for (uint32_t cycle = 0; cycle < cycles; cycle++) {
        uint64_t ticket = launch(cycle);
        move(seed_below(&seed, MOVED), ticket, poison);
        logits_take(logits);
        assert_memory_equal(logits, expected[cycle % LENGTH], sizeof logits);
    }
    rig_event_wait(&rig, rig_adapter_load(&rig, 0, rig.images[0], rig.adapter_pages[0]));
    rig.ops->unpin(poison, bytes);
    free(poison);
    rig_close(&rig);
}

static void test_reload_from_graphs(void **state) {
    (void)state;
    reload(true, getenv("LORRY_GPU_QUICK") != NULL ? 20 : CYCLES);
}

static void test_reload_eagerly(void **state) {
    (void)state;
    reload(false, getenv("LORRY_GPU_QUICK") != NULL ? 20 : CYCLES / 5);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reload_from_graphs),
        cmocka_unit_test(test_reload_eagerly),
    };
    cmocka_set_test_filter(getenv("LORRY_TEST"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
