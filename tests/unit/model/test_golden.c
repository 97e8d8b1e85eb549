/* Invariant 4: an adapter's output equals PEFT's. Each tiny model, alone and with each adapter of
 * every supported kind, beside the weights and merged into them, against the logits and greedy
 * tokens of transformers and peft in float32 (tests/golden/generate.py). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>
#include <openssl/evp.h>

#include "tests/unit/model/files.h"
#include "tests/unit/model/rig.h"

/* Of the largest logit. What is measured is printed, and is some hundred times less. */
static const float TOLERANCE = 1e-3F;

static float *decode_logits(const char *base64, uint32_t vocab) {
    size_t length = strlen(base64);
    uint8_t *raw = malloc(length);
    assert_non_null(raw);
    int bytes = EVP_DecodeBlock(raw, (const uint8_t *)base64, (int)length);
    assert_true(bytes >= (int)(vocab * sizeof(float)) && bytes <= (int)(vocab * sizeof(float)) + 2);
    float *logits = malloc(vocab * sizeof *logits);
    assert_non_null(logits);
    memcpy(logits, raw, vocab * sizeof *logits);
    free(raw);
    return logits;
}

static float compare(const float *ours, const float *theirs, uint32_t vocab) {
    float largest = 0;
    float difference = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        assert_true(isfinite(ours[i]));
        largest = fmaxf(largest, fabsf(theirs[i]));
        difference = fmaxf(difference, fabsf(ours[i] - theirs[i]));
    }
    return difference / largest;
}

static float run_prompt(struct rig *r, uint32_t adapter, const json_t *prompt) {
    uint32_t vocab = model_facts(r->model)->shape.vocab;
    uint32_t greedy_count = 0;
    struct rig_row row = {.adapter = adapter, .chunk = 64};
    uint32_t *tokens = rig_tokens(prompt, "tokens", &row.prompt_count);
    uint32_t *greedy = rig_tokens(prompt, "greedy", &greedy_count);
    assert_int_equal(greedy_count, 64);
    row.prompt = tokens;
    row.token_count = greedy_count;
    row.logits = calloc((size_t)greedy_count * vocab, sizeof *row.logits);
    assert_non_null(row.logits);
    rig_run(r, &row, 1);
    float *theirs = decode_logits(json_string_value(json_object_get(prompt, "logits")), vocab);
    float worst = compare(row.logits, theirs, vocab);
    assert_true(worst <= TOLERANCE);
    assert_memory_equal(row.tokens, greedy, greedy_count * sizeof *greedy);
    free(theirs);
    free(row.logits);
    free(greedy);
    free(tokens);
    return worst;
}

/* Which family each stands for: tests/golden/generate.py and families.py. */
static const struct tiny {
    const char *name;
    size_t cases; /* at least: the base and its adapters */
} tinies[] = {
    {"tiny-llama", 3},  {"tiny-qwen2", 3},  {"tiny-mha", 3},     {"tiny-llama2", 3},
    {"tiny-llama3", 3}, {"tiny-linear", 3}, {"tiny-llama32", 2}, {"tiny-mistral", 6},
    {"tiny-nemo", 3},   {"tiny-qwen25", 6}, {"tiny-qwen3", 6},   {"tiny-qwen3-untied", 4},
};

/* The largest difference of all prompts of a case. */
static float run_prompts(struct rig *r, uint32_t adapter, const json_t *prompts) {
    float worst = 0;
    size_t k = 0;
    const json_t *prompt = NULL;
    json_array_foreach(prompts, k, prompt) {
        worst = fmaxf(worst, run_prompt(r, adapter, prompt));
    }
    return worst;
}

static void run_model(const struct tiny *tiny) {
    struct rig r;
    char folder[256];
    char model_dir[272];
    char adapters[272];
    (void)snprintf(folder, sizeof folder, GOLDEN "%s", tiny->name);
    (void)snprintf(model_dir, sizeof model_dir, "%s/model", folder);
    (void)snprintf(adapters, sizeof adapters, "%s/adapters", folder);
    const struct rig_limits limits = {.pages = 512,
                                      .rows = 1,
                                      .row_tokens = 256,
                                      .step_tokens = 64,
                                      .adapters = 1,
                                      .adapter_pages = 256,
                                      .store_bytes = 64 << 20,
                                      .merging = true};
    rig_open(&r, model_dir, adapters, &limits);
    json_t *golden = json_read(folder, "golden.json");
    const json_t *cases = json_object_get(golden, "cases");
    assert_true(json_array_size(cases) >= tiny->cases);
    size_t i = 0;
    const json_t *one = NULL;
    json_array_foreach(cases, i, one) {
        const char *id = json_string_value(json_object_get(one, "adapter")); /* NULL: the base */
        rig_scatter(&r, i);
        uint32_t adapter = rig_adapter(&r, id);
        const json_t *prompts = json_object_get(one, "prompts");
        print_message("%s: %zu prompts, largest difference %.1e of the largest logit",
                      id == NULL ? "base" : id, json_array_size(prompts),
                      (double)run_prompts(&r, adapter, prompts));
        if (rig_mergeable(&r, adapter)) {
            rig_merge(&r, adapter);
            print_message(", merged %.1e", (double)run_prompts(&r, adapter, prompts));
            rig_merge(&r, KERN_BASE);
        }
        print_message("\n");
        if (id != NULL) {
            rig_evict(&r, adapter);
        }
    }
    json_decref(golden);
    rig_close(&r);
}

enum { TINIES = sizeof tinies / sizeof tinies[0] };

static void test_tiny(void **state) {
    run_model(*state);
}

int main(void) {
    struct CMUnitTest tests[TINIES];
    struct tiny copies[TINIES];
    memcpy(copies, tinies, sizeof copies); /* cmocka's state is not const */
    for (size_t i = 0; i < TINIES; i++) {
        tests[i] = (struct CMUnitTest){
            .name = copies[i].name, .test_func = test_tiny, .initial_state = &copies[i]};
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
