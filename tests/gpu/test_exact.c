/* Invariant 3 on CUDA: in steps of one bucket a row's bits depend on nothing but the row. And what
 * the device feeds itself is what the host would have fed it, also with two steps in flight. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/gpu/peek.h"
#include "tests/unit/kernels/rig.h"
#include "tests/unit/seed.h"

/* SmolLM2's widths; then Llama's head_dim and groups, with all that can be between. */
static const struct kern_shape smol = {.layers = 2,
                                       .hidden = 576,
                                       .heads = 9,
                                       .kv_heads = 3,
                                       .head_dim = 64,
                                       .intermediate = 1536,
                                       .vocab = 1100,
                                       .positions = 1024,
                                       .norm_eps = 1e-5f,
                                       .rope_scale = 1,
                                       .dtype = KERN_BF16};
static const struct kern_shape llama = {.layers = 2,
                                        .hidden = 512,
                                        .heads = 8,
                                        .kv_heads = 2,
                                        .head_dim = 128,
                                        .intermediate = 1000,
                                        .vocab = 1000,
                                        .positions = 1024,
                                        .norm_eps = 1e-5f,
                                        .rope_scale = 1,
                                        .window = 150,
                                        .qkv_bias = true,
                                        .qk_norm = true,
                                        .dtype = KERN_F16};

enum {
    VOCAB_MAX = 1100,
    SEQUENCES = 48,
    CONTEXT = 200, /* of the row that is watched */
    CHUNK = 20,
    GROUPS_MAX = 64,
};

static struct rig rig;

static bool quick(void) {
    return getenv("LORRY_GPU_QUICK") != NULL;
}

static void open_with(const struct kern_shape *shape, bool warm) {
    const struct rig_options options = {.ops = kern_cuda(),
                                        .page_tokens = 16,
                                        .tied = true,
                                        .warm = warm,
                                        .sequences = SEQUENCES,
                                        .sequence_tokens = 512,
                                        .step_tokens = 1200};
    rig_open_with(&rig, shape, &options);
    rig_adapter(&rig, 0, (const uint32_t[KERN_MODULES]){8, 8, 8, 8, 8, 8, 8}, ~0u);
    rig_adapter(&rig, 1, (const uint32_t[KERN_MODULES]){24, 0, 8, 40, 0, 64, 16}, ~0u);
    rig_adapter(&rig, 2, (const uint32_t[KERN_MODULES]){0, 0, 0, 0, 0, 0, 100}, 1);
    rig_adapter(&rig, 3, (const uint32_t[KERN_MODULES]){256, 1, 256, 3, 128, 128, 512}, ~0u);
}

/* ---- neighbours --------------------------------------------------------------------------- */

/* What the watched row gave in the steps of a bucket. */
struct group {
    struct peek_bucket bucket;
    uint32_t chunk, token, steps;
    float logits[VOCAB_MAX];
};

struct watch {
    struct group groups[GROUPS_MAX];
    uint32_t count, again; /* again: steps of a bucket that was seen before */
    uint64_t seed;
};

static bool bucket_equal(const struct peek_bucket *a, const struct peek_bucket *b) {
    return a->rows == b->rows && a->sample_rows == b->sample_rows && a->mixed == b->mixed &&
           a->lora == b->lora;
}

/* Compares sampling row `row` of the last step with what its bucket gave before. */
static void watch_row(struct watch *w, uint32_t row, uint32_t chunk) {
    float logits[VOCAB_MAX];
    struct peek_bucket bucket = peek_cuda_bucket(rig.device);
    rig_logits(&rig, row, logits);
    for (uint32_t i = 0; i < w->count; i++) {
        struct group *g = &w->groups[i];
        if (g->chunk == chunk && bucket_equal(&g->bucket, &bucket)) {
            assert_memory_equal(logits, g->logits, rig.shape.vocab * sizeof logits[0]);
            assert_int_equal(rig.results[row].token, g->token);
            g->steps++;
            w->again++;
            return;
        }
    }
    assert_true(w->count < GROUPS_MAX);
    struct group *g = &w->groups[w->count++];
    *g = (struct group){
        .bucket = bucket, .chunk = chunk, .token = rig.results[row].token, .steps = 1};
    memcpy(g->logits, logits, sizeof logits);
}

/* Sequence 0 with `chunk` tokens up to CONTEXT, somewhere among `others` decode rows of any
 * adapters and, where `more` is not 0, a chunk of that many tokens. */
static void neighbours_step(struct watch *w, uint32_t chunk, uint32_t others, uint32_t more,
                            bool sample) {
    struct rig_part parts[SEQUENCES];
    uint32_t count = 0, place = seed_below(&w->seed, others + 1), row = 0;
    uint32_t shift = seed_below(&w->seed, SEQUENCES - 1);
    for (uint32_t i = 0; i <= others; i++) {
        uint32_t s = 1 + (i + shift) % (SEQUENCES - 1);
        if (i == place) {
            row = sample ? count : 0;
            rig_rewind(&rig, 0, CONTEXT - chunk);
            parts[count++] = (struct rig_part){0, chunk, true};
        }
        if (i < others) {
            uint32_t tokens = i == 0 && more != 0 ? more : 1;
            if (rig.sequences[s].position + tokens > 500) {
                rig_rewind(&rig, s, seed_below(&w->seed, 100));
            }
            parts[count++] = (struct rig_part){s, tokens, sample};
        }
    }
    rig_step(&rig, parts, count);
    watch_row(w, row, chunk);
}

static void neighbours(const struct kern_shape *shape, uint32_t adapter, bool warm, bool wide) {
    static struct watch w;
    memset(&w, 0, sizeof w);
    w.seed = seed_take(21);
    open_with(shape, warm);
    wide = wide && peek_cuda_wide(rig.device);
    for (uint32_t s = 0; s < SEQUENCES; s++) {
        rig_sequence(&rig, s, s % 6 < 4 ? s % 6 : KERN_BASE);
        rig.sequences[s].adapter = s == 0 ? adapter : rig.sequences[s].adapter;
        uint32_t prompt = s == 0 ? CONTEXT : 1 + seed_below(&w.seed, 120);
        rig_step(&rig, (const struct rig_part[]){{s, prompt, false}}, 1);
    }
    for (uint32_t turn = 0; turn < (quick() ? 3 : 20); turn++) {
        neighbours_step(&w, 1, 0, 0, true);                               /* alone */
        neighbours_step(&w, 1, 8 + seed_below(&w.seed, 8), 0, true);      /* 16 rows */
        neighbours_step(&w, 1, 24 + seed_below(&w.seed, 8), 0, true);     /* 32 rows */
        neighbours_step(&w, 1, 8 + seed_below(&w.seed, 8), 300, true);    /* a chunk beside */
        neighbours_step(&w, CHUNK, 0, 0, false);                          /* a chunk alone, */
        neighbours_step(&w, CHUNK, seed_below(&w.seed, 5), 0, false);     /* with decode rows, */
        neighbours_step(&w, CHUNK, 1, 1 + seed_below(&w.seed, 4), false); /* another chunk */
        neighbours_step(&w, CHUNK, 1 + seed_below(&w.seed, 3), 230, true);
    }
    print_message("seed %llu, %s, adapter %d: %u buckets, %u steps in one seen before\n",
                  (unsigned long long)seed_take(21),
                  warm   ? "graphs"
                  : wide ? "wide"
                         : "eager",
                  (int)adapter, w.count, w.again);
    assert_true(w.again >= (quick() ? 5 : 80));
    rig_close(&rig);
}

static void test_neighbours_do_not_matter(void **state) {
    (void)state;
    for (uint32_t how = 0; how < 3; how++) {
        neighbours(&smol, KERN_BASE, how == 1, how == 2);
        neighbours(&smol, 1, how == 1, how == 2);
        neighbours(&llama, KERN_BASE, how == 1, how == 2);
        neighbours(&llama, 3, how == 1, how == 2);
    }
}

/* Rows whose values overflow stay alone with it: no tile mixes rows of two adapters. */
static void test_a_broken_row_harms_no_other(void **state) {
    (void)state;
    static float expected[3][VOCAB_MAX], logits[VOCAB_MAX];
    open_with(&smol, false);
    rig_adapter(&rig, 7, (const uint32_t[KERN_MODULES]){8, 8, 8, 8, 8, 8, 8}, ~0u);
    rig_sequence(&rig, 0, KERN_BASE);
    rig_sequence(&rig, 1, 1);
    rig_sequence(&rig, 2, 7);
    rig_sequence(&rig, 3, 3);
    const struct rig_part parts[] = {{0, 5, true}, {1, 3, true}, {2, 4, true}, {3, 6, true}};
    static const uint32_t sound[] = {0, 1, 3};
    rig_step(&rig, parts, 4);
    for (uint32_t i = 0; i < 3; i++) {
        rig_logits(&rig, sound[i], expected[i]);
    }
    for (uint32_t i = 0; i < smol.layers * KERN_MODULES; i++) {
        rig.loras[7][i].scale = 3e38f;
    }
    rig.adapter_pending[7] = true;
    for (uint32_t s = 0; s < 4; s++) {
        rig_rewind(&rig, s, 0);
    }
    rig_step(&rig, parts, 4);
    for (uint32_t i = 0; i < 3; i++) {
        rig_logits(&rig, sound[i], logits);
        assert_memory_equal(logits, expected[i], smol.vocab * sizeof logits[0]);
    }
    rig_logits(&rig, 2, logits);
    assert_true(!isfinite(logits[0]));         /* the row was really broken */
    assert_int_equal(rig.results[2].token, 0); /* a NaN counts as −∞ */
    rig_close(&rig);
}

/* ---- tokens ------------------------------------------------------------------------------- */

enum { ROWS = 5, NEW = 30, PROMPT = 9 };

struct answers {
    uint32_t tokens[NEW][ROWS];
    float logits[NEW][VOCAB_MAX]; /* of row 1 */
};

/* Slots of which three are greedy. */
static void answers_start(void) {
    for (uint32_t s = 0; s < ROWS; s++) {
        rig_sequence(&rig, s, s < 4 ? s : KERN_BASE);
        rig.sequences[s].params.temperature = s % 2 == 0 ? 0 : 3;
        rig.sequences[s].params.seed = 100 + s;
        for (uint32_t i = 0; i < PROMPT; i++) { /* the same each time */
            rig.sequences[s].ids[i] = (s * 131 + i * 17) % rig.shape.vocab;
        }
    }
}

static void parts_of(struct rig_part parts[ROWS], uint32_t step) {
    for (uint32_t s = 0; s < ROWS; s++) {
        parts[s] = (struct rig_part){s, step == 0 ? PROMPT : 1, true};
    }
}

/* Each step is read before the next, whose tokens the host or the device knows. */
static void answers_one_by_one(struct answers *a, bool token_last) {
    struct rig_part parts[ROWS];
    answers_start();
    rig.token_last = token_last;
    for (uint32_t i = 0; i < NEW; i++) {
        parts_of(parts, i);
        rig_step(&rig, parts, ROWS);
        rig_logits(&rig, 1, a->logits[i]);
        for (uint32_t s = 0; s < ROWS; s++) {
            assert_int_equal(rig.results[s].slot, s);
            a->tokens[i][s] = rig.results[s].token;
            rig.sequences[s].ids[PROMPT + i] = token_last ? 0 : rig.results[s].token;
        }
    }
}

static void step_launch(uint32_t step, uint64_t *ticket) {
    struct rig_part parts[ROWS];
    parts_of(parts, step);
    struct rig_batch *b = rig_batch(&rig, parts, ROWS);
    assert_int_equal(rig.ops->step_begin(rig.device, &b->step), ERR_OK);
    memset(b, 0xff, sizeof *b); /* it is the caller's again */
    free(b);
    rig_blocks(&rig, NULL);
    assert_int_equal(rig.ops->step_end(rig.device, ticket), ERR_OK);
}

/* Always one step ahead of what was read. */
static void answers_in_flight(struct answers *a) {
    uint64_t tickets[NEW] = {0};
    answers_start();
    rig.token_last = true;
    for (uint32_t i = 0; i <= NEW; i++) {
        if (i < NEW) {
            step_launch(i, &tickets[i]);
            assert_true(i == 0 || tickets[i] == tickets[i - 1] + 1);
        }
        if (i > 0) {
            assert_int_equal(rig.ops->step_read(rig.device, tickets[i - 1], rig.results, ROWS),
                             ERR_OK);
            for (uint32_t s = 0; s < ROWS; s++) {
                assert_int_equal(rig.results[s].slot, s);
                a->tokens[i - 1][s] = rig.results[s].token;
            }
        }
    }
}

static void test_tokens_stay_on_the_device(void **state) {
    (void)state;
    static struct answers host, device, flight;
    for (uint32_t warm = 0; warm < 2; warm++) {
        open_with(warm == 0 ? &llama : &smol, warm != 0);
        answers_one_by_one(&host, false);
        answers_one_by_one(&device, true);
        answers_in_flight(&flight);
        assert_memory_equal(device.tokens, host.tokens, sizeof host.tokens);
        assert_memory_equal(flight.tokens, host.tokens, sizeof host.tokens);
        assert_memory_equal(device.logits, host.logits, sizeof host.logits);
        rig_close(&rig);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_neighbours_do_not_matter),
        cmocka_unit_test(test_a_broken_row_harms_no_other),
        cmocka_unit_test(test_tokens_stay_on_the_device),
    };
    cmocka_set_test_filter(getenv("LORRY_TEST"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
