/* The real model and the trained adapters against transformers and peft in float32. Skipped where
 * the model (tools/setup model) or the goldens are not there. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <math.h>

#include "tests/unit/model/files.h"
#include "tests/unit/model/rig.h"

#define GOLDENS GOLDEN "smollm2"
#define ADAPTERS LORRY_SOURCE_DIR "/demo/adapters"

enum { PROMPTS_MAX = 8 };

/* The goldens keep the greatest logits only, and the largest absolute value of all. */
static float compare(const float *ours, const json_t *prompt) {
    const json_t *tokens = json_object_get(prompt, "top_tokens");
    const json_t *logits = json_object_get(prompt, "top_logits");
    double largest = json_number_value(json_object_get(prompt, "max_abs"));
    double difference = 0;
    assert_int_equal(json_array_size(tokens), 64);
    for (size_t i = 0; i < json_array_size(tokens); i++) {
        double theirs = json_number_value(json_array_get(logits, i));
        json_int_t token = json_integer_value(json_array_get(tokens, i));
        difference = fmax(difference, fabs((double)ours[token] - theirs));
    }
    return (float)(difference / largest);
}

static void run_case(struct rig *r, const json_t *one) {
    const json_t *prompts = json_object_get(one, "prompts");
    const char *id = json_string_value(json_object_get(one, "adapter"));
    uint32_t count = (uint32_t)json_array_size(prompts);
    uint32_t vocab = model_facts(r->model)->shape.vocab;
    uint32_t adapter = rig_adapter(r, id);
    struct rig_row rows[PROMPTS_MAX] = {0};
    uint32_t *tokens[PROMPTS_MAX] = {0};
    assert_true(count > 0 && count <= PROMPTS_MAX);
    for (uint32_t i = 0; i < count; i++) {
        const json_t *prompt = json_array_get(prompts, i);
        tokens[i] = rig_tokens(prompt, "tokens", &rows[i].prompt_count);
        rows[i].adapter = adapter;
        rows[i].prompt = tokens[i];
        rows[i].token_count = RIG_TOKENS_MAX;
        rows[i].logits = calloc((size_t)RIG_TOKENS_MAX * vocab, sizeof(float));
        assert_non_null(rows[i].logits);
    }
    rig_run(r, rows, count);
    float worst = 0;
    for (uint32_t i = 0; i < count; i++) {
        const json_t *prompt = json_array_get(prompts, i);
        uint32_t greedy_count = 0;
        uint32_t *greedy = rig_tokens(prompt, "greedy", &greedy_count);
        assert_int_equal(greedy_count, RIG_TOKENS_MAX);
        worst = fmaxf(worst, compare(rows[i].logits, prompt));
        assert_true(worst <= 1e-3F);
        assert_memory_equal(rows[i].tokens, greedy, greedy_count * sizeof *greedy);
        free(greedy);
        free(rows[i].logits);
        free(tokens[i]);
    }
    print_message("%s: %u prompts, largest difference %.1e of the largest logit\n",
                  id == NULL ? "base" : id, count, (double)worst);
    if (id != NULL) {
        rig_evict(r, adapter);
    }
}

static void note(void *context, const char *name, bool valid) {
    struct rig *r = context;
    char file[PATH_BYTES];
    (void)snprintf(file, sizeof file, "%s.json", name);
    assert_true(valid);
    json_t *golden = json_read(GOLDENS, file); /* every adapter has its golden */
    run_case(r, json_array_get(json_object_get(golden, "cases"), 0));
    json_decref(golden);
}

static void test_equals_transformers_and_peft(void **state) {
    (void)state;
    char dir[PATH_BYTES];
    char file[PATH_BYTES];
    const char *given = getenv("LORRY_TEST_MODEL");
    const char *home = getenv("HOME");
    (void)snprintf(dir, sizeof dir, "%s/.cache/lorry/models/SmolLM2-135M-Instruct",
                   home == NULL ? "" : home);
    const char *model = given == NULL ? dir : given;
    path_join(file, model, "config.json");
    if (access(file, R_OK) != 0 || access(GOLDENS "/base.json", R_OK) != 0) {
        print_message("skipped: no model in %s, or no goldens\n", model);
        skip();
    }
    struct rig r;
    const struct rig_limits limits = {.pages = 4096,
                                      .rows = PROMPTS_MAX,
                                      .row_tokens = 192,
                                      .step_tokens = 1024,
                                      .adapters = 1,
                                      .adapter_pages = 1024,
                                      .store_bytes = 512 << 20};
    rig_open(&r, model, ADAPTERS, &limits);
    json_t *golden = json_read(GOLDENS, "base.json");
    run_case(&r, json_array_get(json_object_get(golden, "cases"), 0));
    json_decref(golden);
    assert_int_equal(model_adapter_list(ADAPTERS, note, &r, NULL), ERR_OK);
    rig_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_equals_transformers_and_peft),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
