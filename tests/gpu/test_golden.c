/* The CUDA device on the goldens' models and adapters, teacher-forced at every position of prompt
 * and answer: its error against float32 is at most 1.5 times that of transformers in the same
 * 16-bit type (tests/golden/errors16.py), each a root mean square over the vocabulary, in the mean
 * over the positions of a prompt.
 *
 * float32 is the CPU device, which test_golden.c of the model holds to transformers' float32 within
 * 1e-3. Two correct ways to round differ by some 10% in a prompt's mean and by up to a factor
 * of 2.5 at one position (measured: transformers' two kinds of attention); so a single position may
 * have 4 times the greater of transformers' error there and its mean.
 *
 * First token by token, as decode; then in chunks, whose last positions are compared, as prefill.
 * All these steps are replayed from graphs. Then merged into the weights, which rounds each of
 * these once more: twice transformers' error in the mean. */
#include <glob.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/check.h"
#include "tests/unit/model/files.h"
#include "tests/unit/model/rig.h"

static const double MEAN_FACTOR = 1.5, POSITION_FACTOR = 4, MERGED_FACTOR = 4.0 / 3;

enum { TOKENS_MAX = 320, MODELS_MAX = 64 };

/* One prompt with its answer. */
struct text {
    const char *name, *adapter;
    uint32_t tokens[TOKENS_MAX], count;
    const json_t *errors; /* of transformers, [count] */
    float *exact;         /* [count][vocab] */
};

static void text_read(struct text *t, const json_t *prompt, const json_t *errors) {
    uint32_t prompt_count = 0, greedy_count = 0;
    uint32_t *tokens = rig_tokens(prompt, "tokens", &prompt_count);
    uint32_t *greedy = rig_tokens(prompt, "greedy", &greedy_count);
    t->count = prompt_count + greedy_count - 1;
    assert_true(t->count <= TOKENS_MAX);
    memcpy(t->tokens, tokens, prompt_count * sizeof *tokens);
    memcpy(t->tokens + prompt_count, greedy, (greedy_count - 1) * sizeof *greedy);
    free(tokens);
    free(greedy);
    t->errors = errors;
    assert_int_equal(json_array_size(errors), t->count);
}

/* The logits at the end of each chunk, [chunks][vocab]. */
static float *run(struct rig *r, uint32_t adapter, const struct text *t, uint32_t chunk) {
    uint32_t vocab = model_facts(r->model)->shape.vocab;
    struct rig_row row = {.adapter = adapter,
                          .prompt = t->tokens,
                          .prompt_count = t->count,
                          .chunk = chunk,
                          .forced = true,
                          .token_count = (t->count + chunk - 1) / chunk};
    CHECK(row.token_count > 0 && vocab > 0);
    row.logits = calloc((size_t)row.token_count * vocab, sizeof *row.logits);
    assert_non_null(row.logits);
    rig_run(r, &row, 1);
    return row.logits;
}

static double rms(const float *ours, const float *exact, uint32_t vocab) {
    double sum = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        double difference = (double)ours[i] - (double)exact[i];
        sum += difference * difference;
    }
    return sqrt(sum / vocab);
}

struct verdict {
    double mean, position; /* greatest factors */
};

static void text_check(struct rig *r, uint32_t adapter, const struct text *t, uint32_t chunk,
                       struct verdict *v) {
    const double more = r->merged == KERN_BASE ? 1 : MERGED_FACTOR;
    uint32_t vocab = model_facts(r->model)->shape.vocab, count = 0;
    double ours = 0, theirs = 0, worst = 0;
    float *logits = run(r, adapter, t, chunk);
    for (uint32_t i = 0; i < t->count; i++) {
        theirs += json_number_value(json_array_get(t->errors, i)) / t->count;
    }
    for (uint32_t at = chunk < t->count ? chunk : t->count, k = 0;
         k < (t->count + chunk - 1) / chunk; k++) {
        double error = rms(logits + (size_t)k * vocab, t->exact + (size_t)(at - 1) * vocab, vocab);
        double usual = json_number_value(json_array_get(t->errors, at - 1));
        double factor = error / fmax(usual, theirs);
        if (!(factor <= POSITION_FACTOR * more)) {
            fail_msg("%s, %s, chunks of %u: error %g at position %u of %u, transformers' %g there "
                     "and %g in the mean",
                     t->name, t->adapter, chunk, error, at - 1, t->count, usual, theirs);
        }
        worst = fmax(worst, factor);
        ours += error;
        count++;
        at = at + chunk < t->count ? at + chunk : t->count;
    }
    ours /= count;
    /* The mean of few positions says little. */
    if (count >= 16 && !(ours <= MEAN_FACTOR * more * theirs)) {
        fail_msg("%s, %s, chunks of %u: error %g in the mean of %u positions, transformers' %g",
                 t->name, t->adapter, chunk, ours, count, theirs);
    }
    v->mean = count >= 16 ? fmax(v->mean, ours / theirs) : v->mean;
    v->position = fmax(v->position, worst);
    free(logits);
}

struct model {
    struct rig cpu, cuda;
    char folder[PATH_BYTES];
    const char *name;
};

/* A prompt in chunks of each size. */
static void chunks_check(struct rig *r, uint32_t adapter, const struct text *t, struct verdict *v) {
    static const uint32_t chunks[] = {1, 3, 7, 37, 64};
    for (size_t k = 0; k < sizeof chunks / sizeof chunks[0]; k++) {
        text_check(r, adapter, t, chunks[k], v);
    }
}

static void case_check(struct model *m, size_t number, const json_t *golden, const json_t *errors) {
    const char *id = json_string_value(json_object_get(golden, "adapter")); /* NULL: the base */
    const char *other = json_string_value(json_object_get(errors, "adapter"));
    const json_t *prompts = json_object_get(golden, "prompts");
    assert_true((id == NULL) == (other == NULL) && (id == NULL || strcmp(id, other) == 0));
    rig_scatter(&m->cuda, number);
    uint32_t adapter[2] = {rig_adapter(&m->cpu, id), rig_adapter(&m->cuda, id)};
    struct verdict v = {0}, merged = {0};
    for (size_t i = 0; i < json_array_size(prompts); i++) {
        struct text t = {.name = m->name, .adapter = id == NULL ? "base" : id};
        text_read(&t, json_array_get(prompts, i),
                  json_array_get(json_object_get(errors, "prompts"), i));
        t.exact = run(&m->cpu, adapter[0], &t, 1);
        chunks_check(&m->cuda, adapter[1], &t, &v);
        if (rig_mergeable(&m->cuda, adapter[1])) {
            rig_merge(&m->cuda, adapter[1]);
            chunks_check(&m->cuda, adapter[1], &t, &merged);
            rig_merge(&m->cuda, KERN_BASE);
        }
        free(t.exact);
    }
    print_message("%s, %s: error %.2f of transformers' in a prompt's mean, %.2f at one position\n",
                  m->name, id == NULL ? "base" : id, v.mean, v.position);
    if (merged.mean > 0) {
        print_message("  merged: %.2f, %.2f\n", merged.mean, merged.position);
    }
    if (id != NULL) {
        rig_evict(&m->cpu, adapter[0]);
        rig_evict(&m->cuda, adapter[1]);
    }
}

static void test_model(void **state) {
    static struct model m;
    char model_dir[PATH_BYTES], adapters[PATH_BYTES];
    (void)snprintf(m.folder, sizeof m.folder, "%s", (const char *)*state);
    m.name = strrchr(m.folder, '/') + 1;
    path_join(model_dir, m.folder, "model");
    path_join(adapters, m.folder, "adapters");
    struct rig_limits limits = {.pages = 512,
                                .rows = 1,
                                .row_tokens = TOKENS_MAX,
                                .step_tokens = 64,
                                .adapters = 1,
                                .adapter_pages = 256,
                                .store_bytes = 64 << 20};
    rig_open(&m.cpu, model_dir, adapters, &limits);
    limits.ops = kern_cuda();
    limits.merging = true;
    rig_open(&m.cuda, model_dir, adapters, &limits);
    json_t *golden = json_read(m.folder, "golden.json"),
           *errors = json_read(m.folder, "errors16.json");
    const json_t *cases = json_object_get(golden, "cases");
    assert_int_equal(json_array_size(cases), json_array_size(json_object_get(errors, "cases")));
    bool half = strcmp(json_string_value(json_object_get(errors, "dtype")), "float16") == 0;
    assert_int_equal(m.cuda.ops->elem(m.cuda.device), half ? KERN_F16 : KERN_BF16);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        case_check(&m, i, json_array_get(cases, i),
                   json_array_get(json_object_get(errors, "cases"), i));
    }
    json_decref(errors);
    json_decref(golden);
    rig_close(&m.cuda);
    rig_close(&m.cpu);
}

int main(void) {
    glob_t found;
    struct CMUnitTest tests[MODELS_MAX];
    size_t count = 0;
    char pattern[PATH_BYTES]; /* LORRY_GOLDEN: the folder, where the tests were built elsewhere */
    const char *folder = getenv("LORRY_GOLDEN");
    path_join(pattern, folder == NULL ? GOLDEN : folder, "tiny-*");
    if (glob(pattern, 0, NULL, &found) != 0 || found.gl_pathc > MODELS_MAX) {
        print_error("no goldens: %s\n", pattern);
        return 1;
    }
    for (; count < found.gl_pathc; count++) {
        tests[count] = (struct CMUnitTest){.name = strrchr(found.gl_pathv[count], '/') + 1,
                                           .test_func = test_model,
                                           .initial_state = found.gl_pathv[count]};
    }
    count = getenv("LORRY_GPU_QUICK") != NULL ? 1 : count;
    int failed = _cmocka_run_group_tests("goldens", tests, count, NULL, NULL);
    globfree(&found);
    return failed;
}
