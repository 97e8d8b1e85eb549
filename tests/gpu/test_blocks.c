/* Every block of the CUDA device against its twin, the CPU's, over shapes, ragged batches,
 * scattered pages, long contexts and adapters of every kind; eagerly, and from graphs.
 * LORRY_GPU_QUICK=1 takes less of it, for the sanitizers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/gpu/pair.h"
#include "tests/unit/seed.h"

struct shape_case {
    const char *name;
    struct kern_shape shape;
    uint32_t page_tokens, pages;
    bool tied;
};

/* rope_scale 1 and norm_eps 1e-5 unless set. */
static const struct shape_case shapes[] = {
    {"head_dim 32, no groups, hidden 72, bf16",
     {.layers = 2,
      .hidden = 72,
      .heads = 4,
      .kv_heads = 4,
      .head_dim = 32,
      .intermediate = 200,
      .vocab = 97,
      .dtype = KERN_BF16},
     .page_tokens = 16,
     .pages = 2048}, /* pages of 4,096 */
    {"head_dim 64, groups of 2, hidden 120, bias, f16",
     {.layers = 2,
      .hidden = 120,
      .heads = 4,
      .kv_heads = 2,
      .head_dim = 64,
      .intermediate = 136,
      .vocab = 301,
      .qkv_bias = true,
      .dtype = KERN_F16},
     .page_tokens = 16,
     .pages = 2048,
     .tied = true},
    {"head_dim 80, groups of 3, window, bf16",
     {.layers = 2,
      .hidden = 240,
      .heads = 3,
      .kv_heads = 1,
      .head_dim = 80,
      .intermediate = 328,
      .vocab = 320,
      .rope_scale = 1.1f,
      .window = 40,
      .dtype = KERN_BF16},
     .page_tokens = 16,
     .pages = 4096}, /* pages of 2,560 */
    {"head_dim 128, groups of 7, bias, bf16",
     {.layers = 2,
      .hidden = 256,
      .heads = 7,
      .kv_heads = 1,
      .head_dim = 128,
      .intermediate = 520,
      .vocab = 1000,
      .norm_eps = 1e-6f,
      .qkv_bias = true,
      .dtype = KERN_BF16},
     .page_tokens = 32,
     .pages = 2048},
    {"head_dim 96, groups of 4, window, f16",
     {.layers = 2,
      .hidden = 192,
      .heads = 8,
      .kv_heads = 2,
      .head_dim = 96,
      .intermediate = 256,
      .vocab = 500,
      .window = 129,
      .dtype = KERN_F16},
     .page_tokens = 32,
     .pages = 1024},
    {"head_dim 128, groups of 8, norms on q and k, bf16",
     {.layers = 2,
      .hidden = 512,
      .heads = 16,
      .kv_heads = 2,
      .head_dim = 128,
      .intermediate = 1536,
      .vocab = 1100,
      .norm_eps = 1e-6f,
      .qk_norm = true,
      .dtype = KERN_BF16},
     .page_tokens = 128,
     .pages = 512,
     .tied = true},                   /* pages of 65,536 */
    {"head_dim 64, groups of 3, f16", /* SmolLM2's widths */
     {.layers = 2,
      .hidden = 576,
      .heads = 9,
      .kv_heads = 3,
      .head_dim = 64,
      .intermediate = 1536,
      .vocab = 1100,
      .dtype = KERN_F16},
     .page_tokens = 128,
     .pages = 512,
     .tied = true},
    {"head_dim 128, groups of 4, bf16", /* a quarter of Llama 3.1 8B's widths */
     {.layers = 1,
      .hidden = 1024,
      .heads = 8,
      .kv_heads = 2,
      .head_dim = 128,
      .intermediate = 3584,
      .vocab = 4008,
      .dtype = KERN_BF16},
     .page_tokens = 16,
     .pages = 2048},
    {"head_dim 64, no groups, norms after a bias, a short window, f16",
     {.layers = 2,
      .hidden = 88,
      .heads = 2,
      .kv_heads = 2,
      .head_dim = 64,
      .intermediate = 72,
      .vocab = 64,
      .norm_eps = 1e-3f,
      .rope_scale = 1.2f,
      .window = 5,
      .qkv_bias = true,
      .qk_norm = true,
      .dtype = KERN_F16},
     .page_tokens = 32,
     .pages = 2048},
};

enum {
    SHAPES = sizeof shapes / sizeof shapes[0],
    LONGEST = 2048, /* of a sequence */
    LARGEST = 1600, /* of a step: above every graph, and of no multiple of 128 */
    MOST = 300,     /* sequences */
    OTHERS = RIG_ADAPTERS + 2,
};

/* Ranks by module, as trained, and in which layers. The rig gives some of these biases, and some
 * LoRA on the embedding and the head. */
static const struct {
    uint32_t ranks[KERN_MODULES];
    uint32_t layers;
} adapters[RIG_ADAPTERS] = {
    {{8, 8, 8, 8, 8, 8, 8}, ~0u},       {{16, 16, 16, 16, 16, 16, 16}, ~0u},
    {{4, 0, 4, 0, 0, 0, 0}, 2},         {{64, 3, 17, 40, 33, 8, 64}, ~0u},
    {{24, 0, 0, 24, 0, 24, 0}, ~0u},    {{0, 0, 0, 0, 0, 0, 512}, 1},
    {{512, 0, 256, 0, 100, 0, 0}, ~0u}, {{1, 128, 1, 72, 0, 128, 9}, ~0u},
};

static bool quick(void) {
    return getenv("LORRY_GPU_QUICK") != NULL;
}

/* Of a step; a quick run has fewer, and so fewer graphs. */
static uint32_t tokens_max(void) {
    return quick() ? 400 : LARGEST;
}

static uint32_t sequences_max(void) {
    return quick() ? 70 : MOST;
}

/* Shapes that a quick run leaves out. It keeps one for each way that prefill attention has, by
 * mma.sync (a head_dim of 80) and by warpgroups (64, 128). */
static bool left_out(uint32_t shape) {
    return quick() && shape != 1 && shape != 2 && shape != 7;
}

static void open_with(struct pair *p, const struct shape_case *c, bool warm) {
    struct kern_shape shape = c->shape;
    shape.positions = LONGEST;
    shape.rope_scale = shape.rope_scale != 0 ? shape.rope_scale : 1;
    shape.norm_eps = shape.norm_eps != 0 ? shape.norm_eps : 1e-5f;
    const struct rig_options options = {.page_tokens = c->page_tokens,
                                        .tied = c->tied,
                                        .warm = warm,
                                        .sequences = sequences_max(),
                                        .sequence_tokens = LONGEST,
                                        .step_tokens = tokens_max(),
                                        .pages = c->pages};
    pair_open(p, c->name, &shape, &options);
    for (uint32_t i = 0; i < RIG_ADAPTERS; i++) {
        pair_adapter(p, i, adapters[i].ranks, adapters[i].layers);
    }
}

static uint32_t adapter_of(uint32_t sequence) {
    return sequence % OTHERS < RIG_ADAPTERS ? sequence % OTHERS : KERN_BASE;
}

/* ---- batches ------------------------------------------------------------------------------ */

/* One token; prefill of everything; decode of everything; a ragged mix; base rows between. */
static void ragged(struct pair *p) {
    struct rig_part parts[OTHERS];
    for (uint32_t s = 0; s < OTHERS; s++) {
        pair_sequence(p, s, adapter_of(s));
        parts[s] = (struct rig_part){s, 3 + s * 2, s % 2 == 0};
    }
    pair_step(p, (const struct rig_part[]){{3, 1, true}}, 1);
    pair_rewind(p, 3, 0);
    pair_step(p, parts, OTHERS);
    for (uint32_t s = 0; s < OTHERS; s++) {
        parts[s] = (struct rig_part){s, 1, true};
    }
    pair_step(p, parts, OTHERS);
    p->guard = false;
    pair_step(p, (const struct rig_part[]){{OTHERS - 1, 1, true}, {OTHERS - 2, 1, true}}, 2);
    for (uint32_t s = 0; s < OTHERS; s++) { /* 7 and 10 share no factor: all, in another order */
        parts[s] =
            (struct rig_part){(s * 7 + 3) % OTHERS, s % 3 == 0 ? 1 : 1 + s * 13 % 50, s % 4 != 0};
    }
    pair_step(p, parts, OTHERS);
    pair_step(p, parts, 3); /* none of these samples but two */
}

/* Segments of many sequences and rows: prefill of three that share adapter 3, base rows, decode
 * rows of one adapter. */
static void segments(struct pair *p) {
    static const uint32_t owner[] = {3, 3, 3, KERN_BASE, 6, 6, 6, 6, KERN_BASE, 7};
    struct rig_part parts[OTHERS];
    for (uint32_t s = 0; s < OTHERS; s++) {
        pair_sequence(p, s, owner[s]);
        parts[s] = (struct rig_part){s, s < 3 ? 60 + s : 2 + s, s % 2 == 0};
    }
    pair_step(p, parts, OTHERS);
    for (uint32_t s = 0; s < OTHERS; s++) {
        parts[s].count = s < 3 ? 17 : 1;
    }
    pair_step(p, parts, OTHERS);
    for (uint32_t s = 0; s < OTHERS; s++) {
        parts[s].count = 1;
    }
    pair_step(p, parts, OTHERS);
}

/* Contexts up to 2,000, in chunks that begin anywhere in a page, beside short ones. */
static void long_contexts(struct pair *p) {
    uint32_t longest = quick() ? 300 : 2000, first = longest / 3 + 7, second = longest / 2 - 30;
    pair_sequence(p, 0, 3);
    pair_sequence(p, 1, KERN_BASE);
    pair_sequence(p, 2, 1);
    pair_sequence(p, 3, KERN_BASE);
    pair_step(p, (const struct rig_part[]){{0, first, false}, {1, 1, true}, {3, 33, true}}, 3);
    pair_step(p, (const struct rig_part[]){{1, 1, true}, {0, second, true}, {2, 130, false}}, 3);
    pair_step(p, (const struct rig_part[]){{3, 64, false}, {0, longest - first - second, true}}, 2);
    for (uint32_t i = 0; i < 3; i++) {
        pair_step(p,
                  (const struct rig_part[]){{2, 1, true}, {1, 1, true}, {0, 1, true}, {3, 1, true}},
                  4);
    }
}

/* The largest step, and decode of as many sequences as there are. */
static void largest(struct pair *p) {
    struct rig_part parts[MOST];
    uint32_t count = 0, tokens = 0, most = tokens_max();
    for (uint32_t s = 0; s < sequences_max(); s++) {
        pair_sequence(p, s, adapter_of(s / 3)); /* segments of three rows */
    }
    for (uint32_t s = 0; s < sequences_max() && tokens < most; s++) {
        uint32_t chunk = s < 3 ? most / 8 : s % 9 == 0 ? 29 : 1;
        chunk = chunk < most - tokens ? chunk : most - tokens;
        parts[count++] = (struct rig_part){s, chunk, true};
        tokens += chunk;
    }
    parts[2].count += most - tokens;
    pair_step(p, parts, count);
    for (uint32_t s = 0; s < count; s++) {
        parts[s] = (struct rig_part){s, 1, true};
    }
    pair_step(p, parts, count);
}

/* ---- tests -------------------------------------------------------------------------------- */

static struct pair pair; /* some tens of MiB */

static void test_ragged(void **state) {
    (void)state;
    for (uint32_t i = 0; i < SHAPES; i++) {
        if (left_out(i)) {
            continue;
        }
        open_with(&pair, &shapes[i], false);
        pair.guard = shapes[i].page_tokens < 128; /* a copy of a large pool takes its time */
        ragged(&pair);
        segments(&pair);
        pair_close(&pair);
    }
}

static void test_long_contexts(void **state) {
    (void)state;
    for (uint32_t i = 0; i < SHAPES; i++) {
        if (left_out(i)) {
            continue;
        }
        open_with(&pair, &shapes[i], false);
        long_contexts(&pair);
        pair_close(&pair);
    }
}

static void test_largest(void **state) {
    (void)state;
    static const uint32_t some[] = {1, 2, 5, 7};
    for (uint32_t i = 0; i < sizeof some / sizeof some[0] && !(quick() && i > 0); i++) {
        open_with(&pair, &shapes[some[i]], false);
        largest(&pair);
        pair_close(&pair);
    }
}

/* All linears with LoRA's part in them (linear_wide.cu), whatever is faster. */
static void test_wide(void **state) {
    (void)state;
    for (uint32_t i = 0; i < SHAPES; i++) {
        if (left_out(i)) {
            continue;
        }
        open_with(&pair, &shapes[i], false);
        const bool there = peek_cuda_wide(pair.cuda.device);
        pair.guard = there && shapes[i].page_tokens < 128;
        ragged(&pair);
        if (there) {
            segments(&pair);
            largest(&pair);
        }
        pair_close(&pair);
    }
}

/* Graphs: the same bucket three times with other sequences, adapters, pages and contexts; then one
 * bucket after the other; then steps above them all. */
static void graphs(struct pair *p) {
    for (uint32_t turn = 0; turn < 3; turn++) {
        for (uint32_t s = 0; s < OTHERS; s++) {
            pair_sequence(p, s, adapter_of(s + 3 * turn));
            struct rig_part start = {s, 5 + 11 * s * (turn + 1) % 60, s % 2 == 0};
            pair_step(p, &start, 1);
        }
        struct rig_part parts[OTHERS];
        for (uint32_t s = 0; s < OTHERS; s++) {
            parts[s] = (struct rig_part){(s * 3 + turn) % OTHERS, 1, s != turn};
        }
        pair_step(p, parts, OTHERS);
        pair_step(p, parts, OTHERS - turn);
    }
    pair_step(p, (const struct rig_part[]){{OTHERS - 1, 1, true}}, 1); /* base rows alone */
    uint32_t decode = 1, mixed = 2;
    for (; decode < sequences_max(); decode = decode * 2 + 1) {
        struct rig_part parts[MOST];
        for (uint32_t s = 0; s < decode; s++) {
            pair_sequence(p, s, adapter_of(s / 4));
            parts[s] = (struct rig_part){s, 1, true};
        }
        pair_step(p, parts, decode);
    }
    for (; mixed < tokens_max(); mixed = mixed * 2 + 3) {
        pair_sequence(p, 0, 3);
        pair_sequence(p, 1, KERN_BASE);
        pair_step(
            p, (const struct rig_part[]){{2, 1, true}, {0, mixed / 2, true}, {1, mixed / 2, false}},
            3);
    }
    largest(p);
}

static void test_graphs(void **state) {
    (void)state;
    static const uint32_t some[] = {1, 3, 6};
    for (uint32_t i = 0; i < sizeof some / sizeof some[0] && !(quick() && i > 0); i++) {
        open_with(&pair, &shapes[some[i]], true);
        graphs(&pair);
        pair_close(&pair);
    }
}

/* A checkpoint in f32 is rounded to bf16 as it comes: the difference includes that of all weights.
 */
static void test_weights_of_f32(void **state) {
    (void)state;
    struct shape_case c = shapes[0];
    c.name = "weights of f32";
    c.shape.dtype = KERN_F32;
    open_with(&pair, &c, true);
    ragged(&pair);
    pair_close(&pair);
}

enum { HISTORIES = 12 };

/* A step of some of the sequences; slots are used again and again. */
static void history_step(struct pair *p, uint64_t *seed) {
    struct rig_part parts[HISTORIES];
    uint32_t count = 0;
    for (uint32_t s = 0; s < HISTORIES; s++) {
        uint32_t chunk = seed_below(seed, 3) == 0 ? 1 + seed_below(seed, tokens_max() / 13) : 1;
        if (seed_below(seed, 8) == 0 || p->cpu.sequences[s].position + chunk > 400) {
            pair_sequence(p, s, adapter_of(seed_below(seed, OTHERS)));
        }
        if (seed_below(seed, 4) != 0) {
            parts[count++] = (struct rig_part){s, chunk, seed_below(seed, 2) == 0};
        }
    }
    if (count > 0) {
        pair_step(p, parts, count);
    }
}

/* An adapter gets other ranks and pages under its index; its sequences begin anew. */
static void history_adapter(struct pair *p, uint64_t *seed) {
    uint32_t a = seed_below(seed, RIG_ADAPTERS), b = seed_below(seed, RIG_ADAPTERS);
    pair_adapter(p, a, adapters[b].ranks, adapters[b].layers);
    for (uint32_t s = 0; s < HISTORIES; s++) {
        if (p->cpu.sequences[s].adapter == a) {
            pair_sequence(p, s, a);
        }
    }
}

static void test_random_histories(void **state) {
    (void)state;
    static const uint32_t some[] = {0, 4};
    uint64_t seed = seed_take(9);
    print_message("seed %llu\n", (unsigned long long)seed);
    for (uint32_t i = 0; i < sizeof some / sizeof some[0] && !(quick() && i > 0); i++) {
        open_with(&pair, &shapes[some[i]], false);
        for (uint32_t s = 0; s < HISTORIES; s++) {
            pair_sequence(&pair, s, KERN_BASE);
        }
        for (int step = 0; step < (quick() ? 4 : 25); step++) {
            if (seed_below(&seed, 6) == 0) {
                history_adapter(&pair, &seed);
            }
            history_step(&pair, &seed);
        }
        pair_close(&pair);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ragged),         cmocka_unit_test(test_long_contexts),
        cmocka_unit_test(test_largest),        cmocka_unit_test(test_graphs),
        cmocka_unit_test(test_weights_of_f32), cmocka_unit_test(test_random_histories),
        cmocka_unit_test(test_wide),
    };
    cmocka_set_test_filter(getenv("LORRY_TEST"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
