/* The sampler of the CUDA device: its distributions against the analytic ones, its tokens, stops,
 * penalties and log-probabilities against the reference of kernels.h, given the device's own
 * logits.
 *
 * All slots of a step hold the same tokens, so that their logits are equal; seeds tell the draws
 * apart. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/kernels/rig.h"
#include "tests/unit/seed.h"

enum {
    SLOTS = 256,
    PROMPT = 12,
    KNOWN = 8, /* of these the prompt in the sense of penalties */
    FEW = 40,  /* tokens of the vocabulary of a distribution */
    VOCAB_MAX = 128256,
};

static struct rig rig;
static float raw[VOCAB_MAX], scratch[VOCAB_MAX];

static bool quick(void) {
    return getenv("LORRY_GPU_QUICK") != NULL;
}

static void open_with(uint32_t vocab, uint32_t head_period, enum kern_dtype dtype) {
    const struct kern_shape shape = {.layers = 1,
                                     .hidden = 64,
                                     .heads = 1,
                                     .kv_heads = 1,
                                     .head_dim = 64,
                                     .intermediate = 64,
                                     .vocab = vocab,
                                     .positions = 64,
                                     .norm_eps = 1e-5f,
                                     .rope_scale = 1,
                                     .dtype = dtype};
    const struct rig_options options = {.ops = kern_cuda(),
                                        .page_tokens = 16,
                                        .head_period = head_period,
                                        .sequences = SLOTS,
                                        .sequence_tokens = 64,
                                        .step_tokens = SLOTS * PROMPT,
                                        .pages = SLOTS * 4};
    rig_open_with(&rig, &shape, &options);
}

/* A slot anew: the prompt is the same in all, some of its tokens twice. */
static struct kern_slot_set *slot_start(uint32_t slot) {
    struct rig_sequence *s = &rig.sequences[slot];
    rig_sequence(&rig, slot, KERN_BASE);
    for (uint32_t i = 0; i < PROMPT; i++) {
        s->ids[i] = i * i % 29 % rig.shape.vocab;
    }
    return &s->params;
}

static void step_all(uint32_t tokens) {
    struct rig_part parts[SLOTS];
    for (uint32_t s = 0; s < SLOTS; s++) {
        parts[s] = (struct rig_part){s, tokens, true};
    }
    rig_step(&rig, parts, SLOTS);
}

/* How often the first `count` tokens of a slot's sequence hold each, as kern_penalties_cpu has it.
 */
static uint32_t *seen_of(const struct rig_sequence *s, uint32_t count) {
    uint32_t *seen = calloc(rig.shape.vocab, sizeof *seen);
    assert_non_null(seen);
    for (uint32_t i = 0; i < count; i++) {
        if (i < s->params.prompt_tokens) {
            seen[s->ids[i]] |= KERN_SEEN_PROMPT;
        } else {
            seen[s->ids[i]]++;
        }
    }
    return seen;
}

/* ---- distributions ------------------------------------------------------------------------ */

struct entry {
    double weight;
    uint32_t id;
};

static int by_weight(const void *a, const void *b) {
    const struct entry *x = a, *y = b;
    if (x->weight != y->weight) {
        return x->weight > y->weight ? -1 : 1;
    }
    return x->id < y->id ? -1 : 1;
}

/* Of raw logits: penalties, then top_k, top_p and min_p in the order of kern_sample_cpu. */
static void distribution(const struct rig_sequence *s, double p[FEW]) {
    const struct kern_slot_set *o = &s->params;
    struct entry e[FEW];
    uint32_t *seen = seen_of(s, PROMPT);
    memcpy(scratch, raw, FEW * sizeof raw[0]);
    kern_penalties_cpu(scratch, FEW, o, seen);
    free(seen);
    double max = -INFINITY, total = 0, kept = 0, all = 0;
    for (uint32_t i = 0; i < FEW; i++) {
        max = fmax(max, (double)scratch[i]);
    }
    for (uint32_t i = 0; i < FEW; i++) {
        e[i] = (struct entry){exp(((double)scratch[i] - max) / (double)o->temperature), i};
    }
    qsort(e, FEW, sizeof e[0], by_weight);
    uint32_t stay = o->top_k != 0 ? o->top_k : FEW;
    for (uint32_t i = 0; i < stay; i++) {
        total += e[i].weight;
    }
    memset(p, 0, FEW * sizeof p[0]);
    for (uint32_t i = 0; i < stay && kept < (double)o->top_p * total; i++) {
        kept += e[i].weight;
        if (e[i].weight >= (double)o->min_p) {
            all += p[e[i].id] = e[i].weight;
        }
    }
    for (uint32_t i = 0; i < FEW; i++) {
        p[i] /= all;
    }
}

/* The value that chi-square exceeds with the probability of a normal deviate above z, by Wilson and
 * Hilferty. */
static double chi_bound(double freedom, double z) {
    double a = 2 / (9 * freedom), root = 1 - a + z * sqrt(a);
    return root > 0 ? freedom * root * root * root : 0;
}

/* Chi-square of counts; bins that expect less than 5 are one. */
static double chi_square(const double p[FEW], const uint32_t counts[FEW], uint32_t draws,
                         double *freedom) {
    double chi = 0, rest_expected = 0, rest_count = 0;
    *freedom = -1;
    for (uint32_t i = 0; i < FEW; i++) {
        double expected = draws * p[i];
        if (p[i] == 0) {
            assert_int_equal(counts[i], 0); /* what is cut never comes */
        } else if (expected < 5) {
            rest_expected += expected;
            rest_count += counts[i];
        } else {
            chi += (counts[i] - expected) * (counts[i] - expected) / expected;
            *freedom += 1;
        }
    }
    if (rest_expected > 1) {
        chi += (rest_count - rest_expected) * (rest_count - rest_expected) / rest_expected;
        *freedom += 1;
    }
    return chi;
}

/* The logits spread by some 4.6: temperatures are large so that many tokens come. */
static const struct option {
    const char *name;
    struct kern_slot_set params;
} options[] = {
    {"temperature 4", {.temperature = 4, .top_p = 1}},
    {"temperature 3", {.temperature = 3, .top_p = 1}},
    {"temperature 9", {.temperature = 9, .top_p = 1}},
    {"top_k", {.temperature = 4, .top_p = 1, .top_k = 7}},
    {"top_p", {.temperature = 4, .top_p = 0.7f}},
    {"min_p", {.temperature = 4, .top_p = 1, .min_p = 0.2f}},
    {"repetition_penalty", {.temperature = 4, .top_p = 1, .repetition_penalty = 1.8f}},
    {"presence_penalty", {.temperature = 4, .top_p = 1, .presence_penalty = 4}},
    {"frequency_penalty", {.temperature = 4, .top_p = 1, .frequency_penalty = -2}},
    {"all",
     {.temperature = 5,
      .top_p = 0.95f,
      .top_k = 25,
      .min_p = 0.05f,
      .repetition_penalty = 1.2f,
      .presence_penalty = 1.5f,
      .frequency_penalty = 0.8f}},
};

static void distribution_check(const struct option *option, uint64_t seed) {
    uint32_t counts[FEW] = {0}, draws = 0, rounds = quick() ? 3 : 60;
    double p[FEW], freedom = 0;
    for (uint32_t round = 0; round < rounds; round++) {
        for (uint32_t s = 0; s < SLOTS; s++) {
            struct kern_slot_set *params = slot_start(s);
            uint32_t slot = params->slot;
            *params = s == 0 ? (struct kern_slot_set){.top_p = 1} : option->params; /* 0: raw */
            params->slot = slot;
            params->prompt_tokens = KNOWN;
            params->seed = seed_next(&seed);
        }
        step_all(PROMPT);
        for (uint32_t s = 1; s < SLOTS; s++) {
            counts[rig.results[s].token]++;
            draws++;
        }
        rig_logits(&rig, 0, raw);
        if (!kern_penalises(&option->params)) {
            rig_logits(&rig, SLOTS / 2, scratch);
            assert_memory_equal(scratch, raw, FEW * sizeof raw[0]); /* of equal rows */
        }
    }
    distribution(&rig.sequences[1], p);
    double chi = chi_square(p, counts, draws, &freedom);
    print_message("%s: chi-square %.1f with %.0f degrees of freedom\n", option->name, chi, freedom);
    assert_true(freedom >= 2);
    assert_true(chi < chi_bound(freedom, 4));
    assert_true(quick() || chi > chi_bound(freedom, -4)); /* a stuck generator is far below */
}

static void test_distributions(void **state) {
    (void)state;
    uint64_t seed = seed_take(51);
    print_message("seed %llu\n", (unsigned long long)seed);
    open_with(FEW, 0, KERN_BF16);
    for (size_t i = 0; i < sizeof options / sizeof options[0]; i++) {
        distribution_check(&options[i], seed + 1000 * i);
    }
    rig_close(&rig);
}

/* ---- single draws ------------------------------------------------------------------------- */

/* The device's sums of f32 may differ from the reference's a little: then the token must lie at the
 * draw's place in the distribution function, within 1e-4. */
static void draw_near(const struct kern_slot_set *params, uint32_t token) {
    const double slack = 1e-4;
    struct kern_slot_set p = *params;
    double all = 0, before = 0;
    uint32_t random[4], vocab = rig.shape.vocab;
    float max = raw[0];
    for (uint32_t i = 1; i < vocab; i++) {
        max = raw[i] > max ? raw[i] : max;
    }
    /* kern_sample_cpu leaves the weights of what it keeps */
    memcpy(scratch, raw, vocab * sizeof raw[0]);
    (void)kern_sample_cpu(scratch, vocab, &p, PROMPT);
    for (uint32_t i = 0; i < vocab; i++) {
        all += (double)scratch[i];
        before += i < token ? (double)scratch[i] : 0;
    }
    kern_random(p.seed, PROMPT, 0, random);
    double u = random[0] * 0x1p-32;
    assert_true(u >= before / all - slack);
    assert_true(u <= (before + (double)scratch[token]) / all + slack);
}

static void draws_check(uint32_t vocab, enum kern_dtype dtype, uint64_t seed) {
    static const float temperatures[] = {0, 0.3f, 2, 7}, top_ps[] = {0.1f, 0.5f, 0.9f, 1};
    static const float min_ps[] = {0, 0, 0.05f, 0.4f};
    static const uint32_t top_ks[] = {0, 1, 5, 40, 1000};
    uint32_t others = 0, rounds = quick() ? 1 : 8;
    open_with(vocab, 0, dtype);
    for (uint32_t round = 0; round < rounds; round++) {
        for (uint32_t s = 0; s < SLOTS; s++) {
            struct kern_slot_set *p = slot_start(s);
            p->temperature = temperatures[seed_below(&seed, 4)];
            p->top_p = top_ps[seed_below(&seed, 4)];
            p->min_p = min_ps[seed_below(&seed, 4)];
            p->top_k = top_ks[seed_below(&seed, 5)];
            p->seed = seed_next(&seed);
        }
        step_all(PROMPT);
        rig_logits(&rig, 0, raw);
        for (uint32_t s = 0; s < SLOTS; s++) {
            const struct kern_slot_set *p = &rig.sequences[s].params;
            memcpy(scratch, raw, vocab * sizeof raw[0]);
            uint32_t token = kern_sample_cpu(scratch, vocab, p, PROMPT);
            assert_true(rig.results[s].token < vocab);
            if (rig.results[s].token != token) {
                assert_true(p->temperature > 0 && p->top_k != 1);
                others++;
                draw_near(p, rig.results[s].token);
            }
        }
    }
    print_message("vocabulary of %u: %u of %u draws are not the reference's, but near\n", vocab,
                  others, rounds * SLOTS);
    assert_true(others <= rounds * SLOTS / 50);
    rig_close(&rig);
}

static void test_draws_equal_the_reference(void **state) {
    (void)state;
    uint64_t seed = seed_take(52);
    print_message("seed %llu\n", (unsigned long long)seed);
    draws_check(97, KERN_BF16, seed);
    draws_check(32001, KERN_F16, seed + 1);
    draws_check(VOCAB_MAX, KERN_BF16, seed + 2);
}

/* Of equal logits the lowest id. */
static void test_greedy_ties(void **state) {
    (void)state;
    for (uint32_t vocab = 64; vocab <= 5000; vocab += 4936) {
        open_with(vocab, 16, KERN_BF16);
        uint32_t ties = 0;
        for (uint32_t s = 0; s < SLOTS; s++) { /* each another last token */
            (void)slot_start(s);
            rig.sequences[s].ids[PROMPT - 1] = s % vocab;
        }
        step_all(PROMPT);
        for (uint32_t s = 0; s < SLOTS; s++) {
            uint32_t best = 0;
            rig_logits(&rig, s, raw);
            for (uint32_t i = 1; i < vocab; i++) {
                best = raw[i] > raw[best] ? i : best;
            }
            assert_int_equal(rig.results[s].token, best);
            ties += best + 16 < vocab && raw[best + 16] == raw[best];
        }
        print_message("vocabulary of %u: %u of %d greatest logits are tied\n", vocab, ties, SLOTS);
        assert_true(ties > 0);
        rig_close(&rig);
    }
}

/* The same seeds in other slots, at other places in the batch, give the same tokens. */
static void test_seeds_are_reproducible(void **state) {
    (void)state;
    uint32_t tokens[SLOTS];
    open_with(1000, 0, KERN_BF16);
    for (uint32_t turn = 0; turn < 3; turn++) {
        struct rig_part parts[SLOTS];
        for (uint32_t i = 0; i < SLOTS; i++) { /* draw i: in slot i, then in others */
            uint32_t s = turn == 0 ? i : turn == 1 ? SLOTS - 1 - i : (i * 77 + 5) % SLOTS;
            struct kern_slot_set *p = slot_start(s);
            p->temperature = 5;
            p->seed = UINT64_C(1000003) * i;
            parts[turn == 2 ? (i * 19 + 3) % SLOTS : i] = (struct rig_part){s, PROMPT, true};
        }
        rig_step(&rig, parts, SLOTS);
        for (uint32_t i = 0; i < SLOTS; i++) {
            const struct kern_sample *r = &rig.results[turn == 2 ? (i * 19 + 3) % SLOTS : i];
            tokens[i] = turn == 0 ? r->token : tokens[i];
            assert_int_equal(r->token, tokens[i]);
        }
    }
    rig_close(&rig);
}

/* ---- history, log-probabilities, stops ---------------------------------------------------- */

static void logprobs_check(const struct kern_sample *ours, uint32_t top_count) {
    const float slack = 1e-4f;
    struct kern_sample theirs = {.token = ours->token};
    kern_logprobs_cpu(raw, rig.shape.vocab, top_count, &theirs);
    assert_int_equal(ours->top_count, theirs.top_count);
    assert_true(fabsf(ours->logprob - theirs.logprob) <= slack);
    for (uint32_t i = 0; i < theirs.top_count; i++) {
        const struct kern_logprob *a = &ours->top[i], *b = &theirs.top[i];
        assert_true(fabsf(a->logprob - b->logprob) <= slack);
        assert_true(a->token == b->token || raw[a->token] == raw[b->token]);
        for (uint32_t k = 0; k < i; k++) {
            assert_true(a->token != ours->top[k].token);
        }
        assert_true(i == 0 || raw[a[-1].token] > raw[a->token] ||
                    (raw[a[-1].token] == raw[a->token] && a[-1].token < a->token));
    }
}

enum { PAIRS = 8, NEW = 20 };

static const struct kern_slot_set strict = {.repetition_penalty = 1.5f,
                                            .presence_penalty = 2,
                                            .frequency_penalty = 1,
                                            .top_p = 1,
                                            .prompt_tokens = KNOWN,
                                            .logprobs = true};

/* Slots 2i and 2i + 1 hold the same tokens; the odd ones penalise, so that the raw logits are the
 * even ones'. */
static void pairs_start(void) {
    for (uint32_t s = 0; s < 2 * PAIRS; s++) {
        struct kern_slot_set *p = slot_start(s);
        uint32_t slot = p->slot;
        *p = s % 2 == 0 ? (struct kern_slot_set){.top_p = 1} : strict;
        p->slot = slot;
        p->top_logprobs = s % 2 == 0 ? 0 : s * 20 / (2 * PAIRS - 1);
        rig.sequences[s].ids[0] = s / 2 * 3;
    }
}

static void pairs_step(uint32_t tokens) {
    struct rig_part parts[2 * PAIRS];
    for (uint32_t s = 0; s < 2 * PAIRS; s++) {
        parts[s] = (struct rig_part){s, tokens, true};
    }
    rig_step(&rig, parts, 2 * PAIRS);
}

/* The odd slots' tokens are the greatest of the penalised raw logits; both go on with them. */
static void pairs_check(uint32_t tokens[PAIRS]) {
    for (size_t i = 0; i < PAIRS; i++) {
        struct rig_sequence *s = &rig.sequences[2 * i + 1];
        const struct kern_sample *ours = &rig.results[2 * i + 1];
        uint32_t best = 0, *seen = seen_of(s, s->position);
        rig_logits(&rig, (uint32_t)(2 * i), raw);
        logprobs_check(ours, s->params.top_logprobs);
        memcpy(scratch, raw, rig.shape.vocab * sizeof raw[0]);
        kern_penalties_cpu(scratch, rig.shape.vocab, &s->params, seen);
        for (uint32_t k = 1; k < rig.shape.vocab; k++) {
            best = scratch[k] > scratch[best] ? k : best;
        }
        assert_true(scratch[ours->token] >= scratch[best] - 1e-4f * fabsf(scratch[best]));
        tokens[i] = s->ids[s->position] = ours->token;
        rig.sequences[2 * i].ids[s->position] = ours->token;
        free(seen);
    }
}

/* Prompt and answer with tokens from the host; then fed by the device: the history of both is the
 * same. Last, prompt and half of the answer anew in one chunk, as after a preemption: rounding may
 * choose other tokens then, so each is held to its own logits. */
static void test_penalties_see_the_history(void **state) {
    (void)state;
    static uint32_t tokens[NEW + 1][PAIRS], others[PAIRS];
    open_with(300, 0, KERN_BF16);
    pairs_start();
    pairs_step(PROMPT);
    pairs_check(tokens[0]);
    for (uint32_t i = 1; i <= NEW; i++) {
        pairs_step(1);
        pairs_check(tokens[i]);
    }
    pairs_start();
    pairs_step(PROMPT);
    rig.token_last = true;
    for (uint32_t i = 0; i <= NEW; i++) {
        for (size_t k = 0; k < PAIRS; k++) {
            assert_int_equal(rig.results[2 * k + 1].token, tokens[i][k]);
        }
        pairs_step(1); /* the even slots go their own ways */
    }
    rig.token_last = false;
    pairs_start();
    for (uint32_t s = 0; s < 2 * PAIRS; s++) {
        for (uint32_t i = 0; i < NEW / 2; i++) {
            rig.sequences[s].ids[PROMPT + i] = tokens[i][s / 2];
        }
    }
    pairs_step(PROMPT + NEW / 2);
    pairs_check(others);
    for (uint32_t i = 0; i < NEW / 2; i++) {
        pairs_step(1);
        pairs_check(others);
    }
    rig_close(&rig);
}

/* What pages hold already comes with the slot: the first `known` tokens are never in a chunk. */
static void test_known_tokens(void **state) {
    (void)state;
    uint32_t tokens[PAIRS];
    open_with(300, 0, KERN_F16);
    for (uint32_t known = 4; known < PROMPT; known += 6) {
        pairs_start();
        pairs_step(PROMPT - 1);                  /* so that the pages hold something */
        for (uint32_t s = 2 * PAIRS; s-- > 0;) { /* each gets its own page again: the last freed */
            struct rig_sequence *q = &rig.sequences[s];
            q->params.known_count = q->params.prompt_tokens != 0 ? known : 0;
            q->params.prompt = q->ids;
            q->params.output = q->ids + KNOWN;
            q->open = false; /* set again, with its pages */
            q->pages_set = 0;
            rig.free_pages[rig.free_count++] = q->pages[0];
            q->position = known;
        }
        uint32_t page = rig.sequences[3].pages[0];
        pairs_step(PROMPT - known);
        assert_int_equal(rig.sequences[3].pages[0], page);
        pairs_check(tokens);
    }
    rig_close(&rig);
}

static void test_done(void **state) {
    (void)state;
    uint32_t tokens[PAIRS];
    open_with(300, 0, KERN_BF16);
    for (uint32_t turn = 0; turn < 3;
         turn++) { /* to learn the tokens; with a stop; without again */
        pairs_start();
        for (size_t i = 0; i < PAIRS && turn == 1; i++) {
            struct kern_slot_set *p = &rig.sequences[2 * i + 1].params;
            p->stop_count = i % 2 == 0 ? KERN_STOP_TOKENS_MAX : 1;
            for (uint32_t k = 0; k < p->stop_count; k++) {
                p->stop[k] = rig.shape.vocab; /* no token */
            }
            p->stop[p->stop_count - 1] = tokens[i];
        }
        pairs_step(PROMPT);
        for (uint32_t k = 0; k < 3; k++) { /* surplus steps stay done */
            for (size_t i = 0; i < PAIRS; i++) {
                assert_true(k > 0 || turn == 0 || rig.results[2 * i + 1].token == tokens[i]);
                assert_int_equal(rig.results[2 * i + 1].done, turn == 1);
                assert_false(rig.results[2 * i].done);
                tokens[i] = k == 0 ? rig.results[2 * i + 1].token : tokens[i];
            }
            rig.token_last = true;
            pairs_step(1);
            rig.token_last = false;
        }
    }
    rig_close(&rig);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_distributions),
        cmocka_unit_test(test_draws_equal_the_reference),
        cmocka_unit_test(test_greedy_ties),
        cmocka_unit_test(test_seeds_are_reproducible),
        cmocka_unit_test(test_penalties_see_the_history),
        cmocka_unit_test(test_known_tokens),
        cmocka_unit_test(test_done),
    };
    cmocka_set_test_filter(getenv("LORRY_TEST"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
