/* Invariant 3 on the CPU: a row's logits are the same bits alone and in a batch of base rows,
 * ranks 1, 4, 8, 24, 64 and others, subsets of modules, scattered pages, prompts in chunks beside
 * rows that decode; and again after all adapters were evicted and brought back elsewhere. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/model/files.h"
#include "tests/unit/model/rig.h"
#include "tests/unit/seed.h"

enum { TOKENS = 24, ROWS_MAX = 32 };

struct plan_row {
    const char *adapter;
    uint32_t prompt_count, chunk, start;
};

/* Rows of one adapter side by side, base rows between them. */
static const struct plan_row LLAMA_ROWS[] = {
    {NULL, 7, 0, 0},
    {"r1", 9, 0, 0},
    {"r1", 33, 8, 1},
    {"r4-qv", 1, 0, 0},
    {NULL, 40, 16, 2},
    {"r8-attention", 17, 5, 0},
    {"r24-mlp", 16, 0, 3},
    {"r24-mlp", 15, 0, 0},
    {"r64", 31, 7, 0},
    {"r64", 2, 0, 9},
    {"r64", 12, 0, 4},
    {"r3-down", 6, 0, 0},
    {NULL, 1, 0, 5},
    {"rslora", 20, 0, 1},
    {"rank-pattern", 13, 4, 0},
    {"alpha-pattern", 5, 0, 0},
    {"one-layer", 11, 0, 2},
    {"default-names", 3, 0, 0},
    {"lora-bias", 14, 6, 0},
    {"lora-bias", 1, 0, 3},
    {"head", 5, 2, 0},
    {"head", 18, 0, 1},
    {NULL, 4, 0, 0},
    {"embedding", 21, 4, 0},
    {"embedding-head-default", 2, 0, 1},
    {"embedding-head-default", 37, 9, 0},
};

static const struct plan_row QWEN2_ROWS[] = {
    {"r1-k", 9, 0, 0},
    {"r8", 21, 6, 1},
    {"r8", 4, 0, 0},
    {NULL, 18, 0, 0},
    {"r33-vo", 16, 0, 2},
    {"r64-mlp", 17, 3, 0},
    {NULL, 2, 0, 7},
    {"rslora-pattern", 30, 0, 0},
    {"embedding-head", 12, 5, 0},
    {"embedding-head", 1, 0, 2},
    {"head-bias", 8, 0, 1},
};

/* Prompts and chunks on both sides of the window, 24, and across it. */
static const struct plan_row MISTRAL_ROWS[] = {
    {"every", 40, 7, 0},           {"by-regex", 24, 0, 1},  {NULL, 25, 24, 0}, {NULL, 3, 0, 0},
    {"rslora-pattern", 52, 30, 2}, {"lora-bias", 23, 5, 0}, {NULL, 48, 1, 0},
};

static const struct plan_row QWEN3_ROWS[] = {
    {"every", 19, 4, 0},           {"qk", 1, 0, 3},        {"qk", 33, 8, 0}, {NULL, 16, 0, 1},
    {"rslora-pattern", 17, 16, 0}, {"lora-bias", 9, 0, 2}, {NULL, 40, 3, 0},
};

struct mix {
    struct rig rig;
    const struct plan_row *plan;
    uint32_t count;
    uint32_t vocab;
    uint32_t *prompts[ROWS_MAX];
    uint32_t adapters[ROWS_MAX];
    struct rig_row alone[ROWS_MAX], together[ROWS_MAX];
};

static void load_all(struct mix *m) {
    for (uint32_t i = 0; i < m->count; i++) {
        const char *id = m->plan[i].adapter;
        bool again = i > 0 && id != NULL && m->plan[i - 1].adapter != NULL &&
                     strcmp(m->plan[i - 1].adapter, id) == 0;
        m->adapters[i] = again ? m->adapters[i - 1] : rig_adapter(&m->rig, id);
    }
}

static void evict_all(struct mix *m) {
    for (uint32_t i = 0; i < m->count; i++) {
        if (m->adapters[i] != KERN_BASE && (i == 0 || m->adapters[i] != m->adapters[i - 1])) {
            rig_evict(&m->rig, m->adapters[i]);
        }
    }
}

static void fill_rows(struct mix *m, struct rig_row *rows, bool alone) {
    for (uint32_t i = 0; i < m->count; i++) {
        float *logits = rows[i].logits;
        if (logits == NULL) {
            logits = malloc((size_t)TOKENS * m->vocab * sizeof *logits);
            assert_non_null(logits);
        }
        memset(logits, 0, (size_t)TOKENS * m->vocab * sizeof *logits);
        rows[i] = (struct rig_row){.adapter = m->adapters[i],
                                   .prompt = m->prompts[i],
                                   .prompt_count = m->plan[i].prompt_count,
                                   .chunk = m->plan[i].chunk,
                                   .start = alone ? 0 : m->plan[i].start,
                                   .token_count = TOKENS,
                                   .logits = logits};
    }
}

static void compare_rows(const struct mix *m) {
    for (uint32_t i = 0; i < m->count; i++) {
        const struct rig_row *a = &m->alone[i];
        const struct rig_row *b = &m->together[i];
        if (memcmp(a->logits, b->logits, (size_t)TOKENS * m->vocab * sizeof(float)) != 0 ||
            memcmp(a->tokens, b->tokens, sizeof a->tokens) != 0) {
            fail_msg("row %u (%s) differs in the batch", i,
                     m->plan[i].adapter == NULL ? "base" : m->plan[i].adapter);
        }
    }
}

static void run_mix(const char *model_dir, const char *adapters, const struct plan_row *plan,
                    uint32_t count) {
    static struct mix m;
    uint64_t seed = seed_take(7);
    m = (struct mix){.plan = plan, .count = count};
    const struct rig_limits limits = {.pages = 1024,
                                      .rows = count,
                                      .row_tokens = 80,
                                      .step_tokens = 512,
                                      .adapters = 16,
                                      .adapter_pages = 256,
                                      .store_bytes = 128 << 20};
    rig_open(&m.rig, model_dir, adapters, &limits);
    m.vocab = model_facts(m.rig.model)->shape.vocab;
    for (uint32_t i = 0; i < count; i++) {
        m.prompts[i] = calloc(plan[i].prompt_count, sizeof *m.prompts[i]);
        assert_non_null(m.prompts[i]);
        for (uint32_t k = 0; k < plan[i].prompt_count; k++) {
            m.prompts[i][k] = 3 + seed_below(&seed, 300);
        }
    }
    load_all(&m);
    fill_rows(&m, m.alone, true);
    for (uint32_t i = 0; i < count; i++) {
        m.alone[i].chunk = 0; /* chunks change nothing either */
        rig_run(&m.rig, &m.alone[i], 1);
    }
    for (unsigned round = 0; round < 2; round++) {
        rig_scatter(&m.rig, seed_next(&seed)); /* free pages now; the adapters' after evict_all() */
        fill_rows(&m, m.together, false);
        rig_run(&m.rig, m.together, count);
        compare_rows(&m);
        evict_all(&m);
        rig_scatter(&m.rig, seed_next(&seed));
        load_all(&m);
    }
    for (uint32_t i = 0; i < count; i++) {
        free(m.alone[i].logits);
        free(m.together[i].logits);
        free(m.prompts[i]);
    }
    rig_close(&m.rig);
}

static void test_llama(void **state) {
    (void)state;
    run_mix(GOLDEN "tiny-llama/model", GOLDEN "tiny-llama/adapters", LLAMA_ROWS,
            sizeof LLAMA_ROWS / sizeof LLAMA_ROWS[0]);
}

static void test_qwen2(void **state) {
    (void)state;
    run_mix(GOLDEN "tiny-qwen2/model", GOLDEN "tiny-qwen2/adapters", QWEN2_ROWS,
            sizeof QWEN2_ROWS / sizeof QWEN2_ROWS[0]);
}

static void test_mistral(void **state) {
    (void)state;
    run_mix(GOLDEN "tiny-mistral/model", GOLDEN "tiny-mistral/adapters", MISTRAL_ROWS,
            sizeof MISTRAL_ROWS / sizeof MISTRAL_ROWS[0]);
}

static void test_qwen3(void **state) {
    (void)state;
    run_mix(GOLDEN "tiny-qwen3/model", GOLDEN "tiny-qwen3/adapters", QWEN3_ROWS,
            sizeof QWEN3_ROWS / sizeof QWEN3_ROWS[0]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama),
        cmocka_unit_test(test_qwen2),
        cmocka_unit_test(test_mistral),
        cmocka_unit_test(test_qwen3),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
