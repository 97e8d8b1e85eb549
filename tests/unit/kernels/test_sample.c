/* The sampler against a plain sort in double precision, and against the distribution itself. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/kernels.h"
#include "tests/unit/seed.h"

enum { VOCAB_MAX = 2000 };

static uint32_t draw(const float *logits, uint32_t vocab, struct kern_slot_set params,
                     uint32_t position) {
    float *room = calloc(vocab + 1, sizeof *room); /* exact: the sanitizer sees a read beyond */
    assert_non_null(room);
    float *copy = room + 1; /* and of no alignment */
    memcpy(copy, logits, vocab * sizeof *copy);
    uint32_t token = kern_sample_cpu(copy, vocab, &params, position);
    free(room);
    assert_true(token < vocab);
    return token;
}

/* ---- greedy ------------------------------------------------------------------------------- */

static void test_greedy(void **state) {
    (void)state;
    const struct kern_slot_set greedy = {.top_p = 1};
    assert_int_equal(draw((const float[]){1, 5, 2, 5, 5}, 5, greedy, 0), 1); /* lowest id of ties */
    assert_int_equal(draw((const float[]){-3, -2, -9}, 3, greedy, 0), 1);
    assert_int_equal(draw((const float[]){7}, 1, greedy, 0), 0);
    assert_int_equal(draw((const float[]){NAN, 1, NAN, 2}, 4, greedy, 0), 3);
    assert_int_equal(draw((const float[]){NAN, NAN}, 2, greedy, 0), 0);
    assert_int_equal(draw((const float[]){1, INFINITY, 2}, 3, greedy, 0), 1);
}

static void test_odd_logits_with_a_temperature(void **state) {
    (void)state;
    const struct kern_slot_set hot = {.top_p = 1, .temperature = 1, .seed = 1};
    for (uint32_t position = 0; position < 50; position++) {
        assert_int_equal(draw((const float[]){NAN, 1, NAN}, 3, hot, position), 1);
        assert_int_equal(draw((const float[]){-INFINITY, -INFINITY}, 2, hot, position), 0);
        assert_int_equal(draw((const float[]){1, INFINITY, 2}, 3, hot, position), 1);
        struct kern_slot_set cold = hot;
        cold.temperature = 1e-42f; /* subnormal */
        assert_int_equal(draw((const float[]){1, 1.001f, 0}, 3, cold, position), 1);
    }
}

/* ---- which tokens stay -------------------------------------------------------------------- */

/* The set of tokens drawn in many positions, as bits. */
static uint32_t drawn(const float *logits, uint32_t vocab, struct kern_slot_set params) {
    uint32_t seen = 0;
    for (uint32_t position = 0; position < 2000; position++) {
        seen |= 1u << draw(logits, vocab, params, position);
    }
    return seen;
}

static void test_top_k(void **state) {
    (void)state;
    const float logits[] = {1, 3, 2, 3, 2, 0};
    static const struct {
        uint32_t k, seen;
    } table[] = {{0, 0x3f}, {1, 0x0a}, {2, 0x0a}, {3, 0x1e},         {4, 0x1e},
                 {5, 0x1f}, {6, 0x3f}, {7, 0x3f}, {UINT32_MAX, 0x3f}};
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        const struct kern_slot_set params = {
            .temperature = 1, .top_p = 1, .seed = 5, .top_k = table[i].k};
        assert_int_equal(drawn(logits, 6, params), table[i].seen);
    }
}

static void test_top_k_with_both_signs(void **state) {
    (void)state;
    const float logits[] = {-1, -0.0f, 0.5f, -2};
    struct kern_slot_set params = {.temperature = 1, .top_p = 1, .seed = 5, .top_k = 3};
    assert_int_equal(drawn(logits, 4, params), 0x7);
    const float zeros[] = {-1, -0.0f, 0, -2}; /* the two zeros tie */
    params.top_k = 1;
    assert_int_equal(drawn(zeros, 4, params), 0x6);
}

static void test_top_p(void **state) {
    (void)state;
    /* 1/2, 1/4, 1/8, 1/8 in another order of ids: e to the power of an f32 that is not exact, so
     * borders are asked a little to either side */
    const float logits[] = {logf(0.125f), logf(0.5f), logf(0.125f), logf(0.25f)};
    static const struct {
        float p;
        uint32_t seen;
    } table[] = {{-1, 0x2},    {0, 0x2},      {1e-30f, 0x2}, {0.49f, 0x2},
                 {0.51f, 0xa}, {0.74f, 0xa},  {0.76f, 0xb},  {0.87f, 0xb},
                 {0.88f, 0xf}, {0.999f, 0xf}, {1, 0xf},      {1.5f, 0xf}};
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        const struct kern_slot_set params = {.temperature = 1, .top_p = table[i].p, .seed = 9};
        assert_int_equal(drawn(logits, 4, params), table[i].seen);
    }
}

static void test_top_p_counts_what_top_k_left(void **state) {
    (void)state;
    const float logits[] = {logf(0.4f), logf(0.3f), logf(0.2f), logf(0.1f)};
    /* of the two that stay the first has 4/7 = 0.57 */
    struct kern_slot_set params = {.temperature = 1, .top_k = 2, .top_p = 0.55f, .seed = 3};
    assert_int_equal(drawn(logits, 4, params), 0x1);
    params.top_p = 0.6f;
    assert_int_equal(drawn(logits, 4, params), 0x3);
}

static void test_min_p(void **state) {
    (void)state;
    const float logits[] = {logf(0.125f), logf(0.5f), logf(0.125f), logf(0.25f)};
    static const struct {
        float p;
        uint32_t seen;
    } table[] = {{-1, 0xf},    {0, 0xf},     {0.24f, 0xf}, {0.26f, 0xa},
                 {0.49f, 0xa}, {0.51f, 0x2}, {1, 0x2},     {7, 0x2}};
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        const struct kern_slot_set params = {
            .temperature = 1, .top_p = 1, .min_p = table[i].p, .seed = 9};
        assert_int_equal(drawn(logits, 4, params), table[i].seen);
    }
}

/* min_p comes after top_p: 0.9 of the whole keeps three of the four, though it would keep two of
 * the three that min_p leaves. */
static void test_min_p_cuts_what_top_p_left(void **state) {
    (void)state;
    const float logits[] = {logf(0.5f), logf(0.3f), logf(0.12f), logf(0.08f)};
    const struct kern_slot_set params = {
        .temperature = 1, .top_p = 0.81f, .min_p = 0.2f, .seed = 3};
    assert_int_equal(drawn(logits, 4, params), 0x7);
}

/* ---- against a sort ----------------------------------------------------------------------- */

struct entry {
    double weight;
    float logit;
    uint32_t id;
};

static int by_logit(const void *a, const void *b) {
    const struct entry *x = a, *y = b;
    if (x->logit != y->logit) {
        return x->logit > y->logit ? -1 : 1;
    }
    return x->id < y->id ? -1 : 1;
}

static int by_id(const void *a, const void *b) {
    const struct entry *x = a, *y = b;
    return x->id < y->id ? -1 : 1;
}

static uint32_t twin_draw(const float *logits, uint32_t vocab, const struct kern_slot_set *params,
                          uint32_t position) {
    static struct entry e[VOCAB_MAX];
    for (uint32_t i = 0; i < vocab; i++) {
        e[i] = (struct entry){.logit = logits[i], .id = i};
    }
    qsort(e, vocab, sizeof e[0], by_logit);
    uint32_t count = vocab;
    if (params->top_k != 0 && params->top_k < vocab) {
        for (count = params->top_k; count < vocab && e[count].logit == e[count - 1].logit;) {
            count++;
        }
    }
    double total = 0, kept = 0;
    for (uint32_t i = 0; i < count; i++) {
        e[i].weight = exp(((double)e[i].logit - (double)e[0].logit) / (double)params->temperature);
        total += e[i].weight;
    }
    uint32_t stay = 0;
    while (stay < count && (stay == 0 || kept < (double)params->top_p * total)) {
        kept += e[stay++].weight;
    }
    while (stay > 1 && e[stay - 1].weight < (double)params->min_p) { /* the greatest is 1 */
        kept -= e[--stay].weight;
    }
    qsort(e, stay, sizeof e[0], by_id);
    uint32_t random[4];
    kern_random(params->seed, position, 0, random);
    double target = random[0] * 0x1p-32 * kept, sum = 0;
    for (uint32_t i = 0; i < stay; i++) {
        sum += e[i].weight;
        if (sum > target) {
            return e[i].id;
        }
    }
    return e[stay - 1].id;
}

/* f32 weights move the borders by some 1e-7, so one draw in millions may differ: none of these. */
static void test_equals_a_sort(void **state) {
    (void)state;
    static const float temperatures[] = {0.1f, 0.7f, 1, 2}, top_ps[] = {0.1f, 0.5f, 0.9f, 1};
    static const float min_ps[] = {0, 0, 0.05f, 0.4f};
    static const uint32_t top_ks[] = {0, 1, 5, 40, 1000};
    uint64_t seed = seed_take(7);
    print_message("seed %llu\n", (unsigned long long)seed);
    static float logits[VOCAB_MAX];
    for (int i = 0; i < 2000; i++) {
        uint32_t vocab = 1 + seed_below(&seed, VOCAB_MAX);
        bool coarse = seed_below(&seed, 2) == 0; /* with many ties */
        for (uint32_t k = 0; k < vocab; k++) {
            float x = (float)seed_below(&seed, 1 << 20) * (20.0f / (1 << 20)) - 12;
            logits[k] = coarse ? floorf(x) : x;
        }
        const struct kern_slot_set params = {.temperature = temperatures[seed_below(&seed, 4)],
                                             .top_p = top_ps[seed_below(&seed, 4)],
                                             .top_k = top_ks[seed_below(&seed, 5)],
                                             .min_p = min_ps[seed_below(&seed, 4)],
                                             .seed = seed_next(&seed)};
        uint32_t position = seed_below(&seed, 1 << 20);
        assert_int_equal(draw(logits, vocab, params, position),
                         twin_draw(logits, vocab, &params, position));
    }
}

/* ---- the distribution --------------------------------------------------------------------- */

enum { FEW = 40, FEW_DRAWS = 40000 };

/* The analytic distribution of the options, in the sampler's order but by other means. */
static void distribution(const float *logits, const struct kern_slot_set *params, double p[FEW]) {
    struct entry e[FEW];
    for (uint32_t i = 0; i < FEW; i++) {
        e[i] = (struct entry){.logit = logits[i], .id = i};
    }
    qsort(e, FEW, sizeof e[0], by_logit);
    uint32_t stay = params->top_k != 0 ? params->top_k : FEW;
    double total = 0, kept = 0, all = 0;
    for (uint32_t i = 0; i < stay; i++) {
        e[i].weight = exp(((double)e[i].logit - (double)e[0].logit) / (double)params->temperature);
        total += e[i].weight;
    }
    memset(p, 0, FEW * sizeof p[0]);
    for (uint32_t i = 0; i < stay && kept < (double)params->top_p * total; i++) {
        kept += e[i].weight;
        if (e[i].weight >= (double)params->min_p) {
            all += p[e[i].id] = e[i].weight;
        }
    }
    for (uint32_t i = 0; i < FEW; i++) {
        p[i] /= all;
    }
}

/* The value that chi-square exceeds with a probability of 0.1% (z = 3.09) or 99.9% (z = −3.09), by
 * Wilson and Hilferty. */
static double chi_bound(double freedom, double z) {
    double a = 2 / (9 * freedom), root = 1 - a + z * sqrt(a);
    return root > 0 ? freedom * root * root * root : 0;
}

/* Draws of one option at a time, then of all. */
static void test_chi_square(void **state) {
    (void)state;
    static const struct {
        const char *name;
        struct kern_slot_set params;
    } options[] = {
        {"temperature 1", {.temperature = 1, .top_p = 1}},
        {"temperature 0.8", {.temperature = 0.8f, .top_p = 1}},
        {"temperature 1.7", {.temperature = 1.7f, .top_p = 1}},
        {"top_k", {.temperature = 1, .top_p = 1, .top_k = 7}},
        {"top_p", {.temperature = 1, .top_p = 0.7f}},
        {"min_p", {.temperature = 1, .top_p = 1, .min_p = 0.2f}},
        {"repetition_penalty", {.temperature = 1, .top_p = 1, .repetition_penalty = 1.8f}},
        {"presence_penalty", {.temperature = 1, .top_p = 1, .presence_penalty = 1.5f}},
        {"frequency_penalty", {.temperature = 1, .top_p = 1, .frequency_penalty = -0.5f}},
        {"all",
         {.temperature = 1.3f,
          .top_p = 0.95f,
          .top_k = 25,
          .min_p = 0.05f,
          .repetition_penalty = 1.2f,
          .presence_penalty = 0.4f,
          .frequency_penalty = 0.2f}},
    };
    for (size_t o = 0; o < sizeof options / sizeof options[0]; o++) {
        struct kern_slot_set params = options[o].params;
        params.seed = 20240229 + o;
        float logits[FEW];
        double p[FEW], chi = 0, freedom = -1;
        uint32_t counts[FEW] = {0};
        for (uint32_t i = 0; i < FEW; i++) { /* every third is in the prompt, every fifth output */
            logits[i] = 2.0f * sinf((float)i);
            uint32_t output = i % 5 == 0 ? 1 + i / 10 : 0;
            double x = (double)logits[i], repetition = (double)params.repetition_penalty;
            if (repetition != 0 && (i % 3 == 0 || output > 0)) {
                x = x > 0 ? x / repetition : x * repetition;
            }
            x -= (double)params.frequency_penalty * output;
            logits[i] = (float)(output > 0 ? x - (double)params.presence_penalty : x);
        }
        distribution(logits, &params, p);
        for (uint32_t i = 0; i < FEW; i++) {
            logits[i] = 2.0f * sinf((float)i); /* the sampler's own penalties from here */
        }
        uint32_t seen[FEW];
        for (uint32_t i = 0; i < FEW; i++) {
            seen[i] = (i % 3 == 0 ? KERN_SEEN_PROMPT : 0) + (i % 5 == 0 ? 1 + i / 10 : 0);
        }
        kern_penalties_cpu(logits, FEW, &params, seen);
        for (uint32_t position = 0; position < FEW_DRAWS; position++) {
            counts[draw(logits, FEW, params, position)]++;
        }
        for (uint32_t i = 0; i < FEW; i++) {
            if (p[i] == 0) {
                assert_int_equal(counts[i], 0); /* what is cut never comes */
                continue;
            }
            double expected = FEW_DRAWS * p[i];
            chi += (counts[i] - expected) * (counts[i] - expected) / expected;
            freedom++;
        }
        print_message("%s: chi-square %.1f with %.0f degrees of freedom\n", options[o].name, chi,
                      freedom);
        assert_true(freedom >= 2);
        assert_true(chi < chi_bound(freedom, 3.09));
        assert_true(chi > chi_bound(freedom, -3.09)); /* a stuck generator is far below */
    }
}

/* The same seed and position give the same draw; another of either gives others. */
static void test_seed_and_position_decide(void **state) {
    (void)state;
    enum { VOCAB = 1000, DRAWS = 100 };
    float logits[VOCAB] = {0};
    const struct kern_slot_set one = {.temperature = 1, .top_p = 1, .seed = 1};
    const struct kern_slot_set two = {.temperature = 1, .top_p = 1, .seed = 1ull << 32 | 1};
    uint32_t same_seed = 0, same_position = 0;
    for (uint32_t i = 0; i < DRAWS; i++) {
        assert_int_equal(draw(logits, VOCAB, one, i), draw(logits, VOCAB, one, i));
        same_seed += draw(logits, VOCAB, one, i) == draw(logits, VOCAB, one, i + DRAWS);
        same_position += draw(logits, VOCAB, one, i) == draw(logits, VOCAB, two, i);
    }
    assert_true(same_seed < 5 && same_position < 5);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_odd_logits_with_a_temperature),
        cmocka_unit_test(test_top_k),
        cmocka_unit_test(test_top_k_with_both_signs),
        cmocka_unit_test(test_top_p),
        cmocka_unit_test(test_top_p_counts_what_top_k_left),
        cmocka_unit_test(test_min_p),
        cmocka_unit_test(test_min_p_cuts_what_top_p_left),
        cmocka_unit_test(test_equals_a_sort),
        cmocka_unit_test(test_chi_square),
        cmocka_unit_test(test_seed_and_position_decide),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
