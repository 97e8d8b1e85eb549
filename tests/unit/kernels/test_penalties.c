/* Penalties and log-probabilities: the functions against naive ones in double precision, and the
 * history that a slot keeps, however its tokens came. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/kernels/rig.h"
#include "tests/unit/seed.h"

enum { VOCAB = 50, PROMPT = 21, NEW = 24 };

static const struct kern_shape tiny = {.layers = 1,
                                       .hidden = 32,
                                       .heads = 2,
                                       .kv_heads = 2,
                                       .head_dim = 32,
                                       .intermediate = 48,
                                       .vocab = VOCAB,
                                       .positions = 256,
                                       .norm_eps = 1e-5f,
                                       .rope_scale = 1};

/* ---- the naive ones ------------------------------------------------------------------------- */

/* The penalised logit of a token, by looking through all of the sequence. */
static double penalised(double logit, uint32_t token, const struct kern_slot_set *p,
                        const uint32_t *ids, uint32_t count) {
    bool seen = false;
    uint32_t output = 0;
    for (uint32_t i = 0; i < count; i++) {
        seen = seen || ids[i] == token;
        output += i >= p->prompt_tokens && ids[i] == token;
    }
    if (seen && p->repetition_penalty != 0) {
        logit = logit > 0 ? logit / (double)p->repetition_penalty
                          : logit * (double)p->repetition_penalty;
    }
    logit -= (double)p->frequency_penalty * output;
    return output > 0 ? logit - (double)p->presence_penalty : logit;
}

static double naive_logprob(const float *logits, uint32_t vocab, uint32_t token) {
    double sum = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        sum += exp((double)logits[i]);
    }
    return (double)logits[token] - log(sum);
}

static void logprobs_match(const float *logits, uint32_t vocab, uint32_t asked,
                           const struct kern_sample *s) {
    assert_true(fabs((double)s->logprob - naive_logprob(logits, vocab, s->token)) < 1e-5);
    assert_int_equal(s->top_count, asked < vocab ? asked : vocab);
    for (uint32_t i = 0; i < s->top_count; i++) {
        uint32_t before = 0; /* those that stand before it in the right order */
        uint32_t token = s->top[i].token;
        for (uint32_t k = 0; k < vocab; k++) {
            before += logits[k] > logits[token] || (logits[k] == logits[token] && k < token);
        }
        assert_int_equal(before, i);
        assert_true(fabs((double)s->top[i].logprob - naive_logprob(logits, vocab, token)) < 1e-5);
    }
}

/* ---- the functions -------------------------------------------------------------------------- */

static void test_penalties_equal_naive_ones(void **state) {
    (void)state;
    uint64_t seed = seed_take(11);
    print_message("seed %llu\n", (unsigned long long)seed);
    static const float repetitions[] = {0, 1, 0.5f, 1.1f, 2}, others[] = {0, -2, 0.25f, 2};
    for (int round = 0; round < 500; round++) {
        uint32_t ids[200], count = seed_below(&seed, 200);
        uint32_t vocab = 1 + seed_below(&seed, 300);
        const struct kern_slot_set p = {.repetition_penalty = repetitions[seed_below(&seed, 5)],
                                        .presence_penalty = others[seed_below(&seed, 4)],
                                        .frequency_penalty = others[seed_below(&seed, 4)],
                                        .prompt_tokens = seed_below(&seed, 200)};
        uint32_t seen[300] = {0};
        for (uint32_t i = 0; i < count; i++) {
            ids[i] = seed_below(&seed, vocab);
            if (i < p.prompt_tokens) {
                seen[ids[i]] |= KERN_SEEN_PROMPT;
            } else {
                seen[ids[i]]++;
            }
        }
        float logits[300], raw[300];
        for (uint32_t i = 0; i < vocab; i++) {
            raw[i] = logits[i] = (float)seed_below(&seed, 2001) / 100 - 10;
        }
        kern_penalties_cpu(logits, vocab, &p, seen);
        for (uint32_t i = 0; i < vocab; i++) {
            double expected = penalised((double)raw[i], i, &p, ids, count);
            assert_true(fabs((double)logits[i] - expected) <= 1e-5 * fmax(1, fabs(expected)));
        }
    }
}

static void test_what_penalises(void **state) {
    (void)state;
    assert_false(kern_penalises(&(struct kern_slot_set){0}));
    assert_false(kern_penalises(&(struct kern_slot_set){.repetition_penalty = 1}));
    assert_true(kern_penalises(&(struct kern_slot_set){.repetition_penalty = 0.9f}));
    assert_true(kern_penalises(&(struct kern_slot_set){.presence_penalty = -1}));
    assert_true(kern_penalises(&(struct kern_slot_set){.frequency_penalty = 0.1f}));
}

static void test_logprobs_equal_naive_ones(void **state) {
    (void)state;
    uint64_t seed = seed_take(12);
    print_message("seed %llu\n", (unsigned long long)seed);
    for (int round = 0; round < 300; round++) {
        float logits[400];
        uint32_t vocab = 1 + seed_below(&seed, 400);
        bool coarse = seed_below(&seed, 2) == 0; /* with ties */
        for (uint32_t i = 0; i < vocab; i++) {
            float x = (float)seed_below(&seed, 1 << 20) * (30.0f / (1 << 20)) - 15;
            logits[i] = coarse ? floorf(x) : x;
        }
        uint32_t asked = seed_below(&seed, KERN_LOGPROBS_MAX + 1);
        struct kern_sample s = {.token = seed_below(&seed, vocab)};
        kern_logprobs_cpu(logits, vocab, asked, &s);
        logprobs_match(logits, vocab, asked, &s);
    }
}

static void test_odd_logprobs(void **state) {
    (void)state;
    struct kern_sample s = {.token = 0};
    kern_logprobs_cpu((const float[]){NAN, 1, -INFINITY, 1}, 4, 20, &s);
    assert_true(s.logprob == -INFINITY);
    assert_int_equal(s.top_count, 4);
    assert_int_equal(s.top[0].token, 1);
    assert_int_equal(s.top[1].token, 3);
    assert_true(fabsf(s.top[0].logprob - logf(0.5f)) < 1e-6f);
    assert_true(s.top[2].logprob == -INFINITY && s.top[3].logprob == -INFINITY);
    kern_logprobs_cpu((const float[]){INFINITY, 1}, 2, 2, &s); /* certain */
    assert_true(s.logprob == 0 && s.top[1].logprob == -INFINITY);
    kern_logprobs_cpu((const float[]){1000, 0}, 2, 0, &s); /* no overflow */
    assert_true(s.logprob == 0 && s.top_count == 0);
}

/* ---- a slot's history ----------------------------------------------------------------------- */

static const struct kern_slot_set strict = {.repetition_penalty = 1.5f,
                                            .presence_penalty = 0.5f,
                                            .frequency_penalty = 0.25f,
                                            .top_p = 1,
                                            .prompt_tokens = PROMPT,
                                            .logprobs = true,
                                            .top_logprobs = 5};

/* The result of row 0 is the greatest of the naively penalised logits, and its log-probabilities
 * are those of the raw ones. Returns the token. */
static uint32_t result_matches(struct rig *r, uint32_t sequence) {
    const struct rig_sequence *s = &r->sequences[sequence];
    float logits[VOCAB];
    rig_logits(r, 0, logits);
    uint32_t best = 0;
    double most = -INFINITY;
    for (uint32_t i = 0; i < VOCAB; i++) {
        double x = penalised((double)logits[i], i, &s->params, s->ids, s->position);
        best = x > most ? i : best;
        most = x > most ? x : most;
    }
    assert_int_equal(r->results[0].token, best);
    logprobs_match(logits, VOCAB, s->params.top_logprobs, &r->results[0]);
    return best;
}

static void start(struct rig *r, uint32_t sequence, struct kern_slot_set params) {
    rig_sequence(r, sequence, KERN_BASE);
    params.slot = sequence;
    r->sequences[sequence].params = params;
}

/* The prompt in chunks, then tokens by KERN_TOKEN_LAST; then the same sequence anew, as after a
 * preemption: prompt and the answer so far in one chunk, and the rest comes out the same. */
static void test_history(void **state) {
    (void)state;
    static struct rig r;
    uint32_t ids[PROMPT + NEW];
    rig_open(&r, &tiny, 16, 2, true);
    r.token_last = true;
    start(&r, 0, strict);
    rig_step(&r, (const struct rig_part[]){{0, 16, false}}, 1);
    rig_step(&r, (const struct rig_part[]){{0, PROMPT - 16, true}}, 1);
    for (uint32_t i = 0; i < NEW; i++) {
        r.sequences[0].ids[PROMPT + i] = result_matches(&r, 0);
        rig_step(&r, (const struct rig_part[]){{0, 1, true}}, 1);
    }
    uint32_t last = result_matches(&r, 0);
    memcpy(ids, r.sequences[0].ids, sizeof ids);

    for (uint32_t cut = 0; cut <= NEW; cut += 6) {
        start(&r, 0, strict);
        memcpy(r.sequences[0].ids, ids, sizeof ids);
        rig_step(&r, (const struct rig_part[]){{0, PROMPT + cut, true}}, 1);
        for (uint32_t i = cut; i < NEW; i++) {
            assert_int_equal(result_matches(&r, 0), ids[PROMPT + i]);
            rig_step(&r, (const struct rig_part[]){{0, 1, true}}, 1);
        }
        assert_int_equal(result_matches(&r, 0), last);
    }
    rig_close(&r);
}

/* Tokens that the pages hold already come with the slot: of the prompt alone, or of both. */
static void test_known_tokens(void **state) {
    (void)state;
    static struct rig r;
    rig_open(&r, &tiny, 16, 2, true);
    for (uint32_t known = 16; known <= 32; known += 16) {
        start(&r, 0, strict);
        struct rig_sequence *s = &r.sequences[0];
        s->params.known_count = known;
        s->params.prompt = s->ids;
        s->params.output = s->ids + PROMPT;
        s->position = known; /* the pages hold whatever they do: the logits are what they are */
        rig_step(&r, (const struct rig_part[]){{0, 4, true}}, 1);
        (void)result_matches(&r, 0);
    }
    rig_close(&r);
}

/* A slot's next user has no history, and no results that it did not ask for. */
static void test_reuse(void **state) {
    (void)state;
    static struct rig r;
    rig_open(&r, &tiny, 16, 2, true);
    for (int i = 0; i < 3; i++) {
        start(&r, 0, strict);
        rig_step(&r, (const struct rig_part[]){{0, 30, true}}, 1);
        (void)result_matches(&r, 0);
    }
    start(&r, 0, (struct kern_slot_set){.top_p = 1});
    rig_step(&r, (const struct rig_part[]){{0, 30, true}}, 1);
    assert_int_equal(r.results[0].top_count, 0);
    assert_true(r.results[0].logprob == 0);
    rig_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_penalties_equal_naive_ones),
        cmocka_unit_test(test_what_penalises),
        cmocka_unit_test(test_logprobs_equal_naive_ones),
        cmocka_unit_test(test_odd_logprobs),
        cmocka_unit_test(test_history),
        cmocka_unit_test(test_known_tokens),
        cmocka_unit_test(test_reuse),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
