/* Each block against the twin, over shapes, ragged batches, scattered pages and adapters. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "tests/unit/kernels/rig.h"
#include "tests/unit/seed.h"

struct shape_case {
    const char *name;
    struct kern_shape shape;
    uint32_t page_tokens;
    bool tied;
};

static const struct shape_case shapes[] = {
    {"two heads a group",
     {.layers = 2,
      .hidden = 64,
      .heads = 4,
      .kv_heads = 2,
      .head_dim = 64,
      .intermediate = 96,
      .vocab = 97,
      .positions = 256,
      .norm_eps = 1e-5f,
      .rope_scale = 1},
     16,
     true},
    {"head_dim 80, one kv head, sizes of no multiple",
     {.layers = 2,
      .hidden = 100,
      .heads = 3,
      .kv_heads = 1,
      .head_dim = 80,
      .intermediate = 130,
      .vocab = 301,
      .positions = 256,
      .norm_eps = 1e-6f,
      .rope_scale = 1.1f,
      .qkv_bias = true},
     16,
     false}, /* pages of 2560 */
    {"no groups, a window, small heads",
     {.layers = 2,
      .hidden = 72,
      .heads = 4,
      .kv_heads = 4,
      .head_dim = 16,
      .intermediate = 200,
      .vocab = 64,
      .positions = 256,
      .norm_eps = 1e-5f,
      .rope_scale = 1,
      .window = 5},
     16,
     false}, /* pages of 2048 */
    {"three kv heads",
     {.layers = 1,
      .hidden = 576,
      .heads = 9,
      .kv_heads = 3,
      .head_dim = 64,
      .intermediate = 1536,
      .vocab = 500,
      .positions = 256,
      .norm_eps = 1e-5f,
      .rope_scale = 1},
     32,
     true}, /* pages of 12288 */
    {"qwen-like",
     {.layers = 3,
      .hidden = 128,
      .heads = 8,
      .kv_heads = 2,
      .head_dim = 24,
      .intermediate = 64,
      .vocab = 130,
      .positions = 200,
      .norm_eps = 1e-6f,
      .rope_scale = 1,
      .qkv_bias = true,
      .window = 40},
     64,
     true},
    {"qwen3-like: norms on q and k, a head_dim of its own",
     {.layers = 2,
      .hidden = 64,
      .heads = 4,
      .kv_heads = 2,
      .head_dim = 40,
      .intermediate = 96,
      .vocab = 97,
      .positions = 256,
      .norm_eps = 1e-3f, /* large enough to be missed */
      .rope_scale = 1,
      .qk_norm = true},
     16,
     false}, /* pages of 2560 */
    {"norms on q and k after a bias, a window",
     {.layers = 2,
      .hidden = 48,
      .heads = 6,
      .kv_heads = 6,
      .head_dim = 16,
      .intermediate = 72,
      .vocab = 64,
      .positions = 256,
      .norm_eps = 1e-6f,
      .rope_scale = 1.2f,
      .qkv_bias = true,
      .qk_norm = true,
      .window = 7},
     16,
     true}, /* pages of 3072 */
};

enum { SHAPES = sizeof shapes / sizeof shapes[0] };

/* Ranks by module, as trained, and in which layers. */
static const struct {
    uint32_t ranks[KERN_MODULES];
    uint32_t layers;
} adapters[] = {
    {{1, 1, 1, 1, 1, 1, 1}, ~0u},      {{4, 0, 4, 0, 0, 0, 0}, ~0u},
    {{8, 8, 8, 8, 8, 8, 8}, 2},        {{24, 0, 0, 24, 0, 24, 0}, ~0u},
    {{64, 3, 17, 40, 33, 8, 64}, ~0u}, {{0, 0, 0, 0, 0, 0, 512}, 1},
    {{512, 0, 9, 0, 100, 0, 0}, ~0u},  {{0, 0, 0, 0, 0, 0, 0}, ~0u},
};

_Static_assert(sizeof adapters / sizeof adapters[0] == RIG_ADAPTERS, "one for each");

static void adapters_load(struct rig *r) {
    for (uint32_t i = 0; i < RIG_ADAPTERS; i++) {
        rig_adapter(r, i, adapters[i].ranks, adapters[i].layers);
    }
}

static void done(struct rig *r, const char *name) {
    print_message("%s: greatest difference %.1e\n", name, r->worst);
    assert_true(r->worst > 0); /* something was compared */
    rig_close(r);
}

static void test_base(void **state) {
    (void)state;
    for (uint32_t i = 0; i < SHAPES; i++) {
        static struct rig r;
        rig_open(&r, &shapes[i].shape, shapes[i].page_tokens, 2, shapes[i].tied);
        r.compare = true;
        rig_sequence(&r, 0, KERN_BASE);
        rig_sequence(&r, 1, KERN_BASE);
        rig_step(&r, (const struct rig_part[]){{0, 1, true}}, 1);
        rig_step(&r, (const struct rig_part[]){{1, 37, false}, {0, 1, true}}, 2);
        rig_step(&r, (const struct rig_part[]){{0, 5, true}, {1, 1, true}}, 2);
        rig_step(&r, (const struct rig_part[]){{1, 50, true}, {0, 33, true}}, 2);
        done(&r, shapes[i].name);
    }
}

/* Prefill of everything at once, then decode of everything at once, then a ragged mix. */
static void test_adapters_mixed(void **state) {
    (void)state;
    for (uint32_t i = 0; i < SHAPES; i++) {
        static struct rig r;
        rig_open(&r, &shapes[i].shape, shapes[i].page_tokens, 2, shapes[i].tied);
        r.compare = true;
        adapters_load(&r);
        struct rig_part parts[RIG_ADAPTERS + 2];
        uint32_t count = 0;
        for (uint32_t s = 0; s < RIG_ADAPTERS + 2; s++) {
            rig_sequence(&r, s, s < RIG_ADAPTERS ? s : KERN_BASE);
            parts[count++] = (struct rig_part){s, 3 + s * 2, s % 2 == 0};
        }
        rig_step(&r, parts, count);
        for (uint32_t s = 0; s < count; s++) {
            parts[s] = (struct rig_part){s, 1, true};
        }
        rig_step(&r, parts, count);
        for (uint32_t s = 0; s < count; s++) {
            parts[s] = (struct rig_part){(s * 7 + 3) % count, 1 + s * 3 % 8, s % 3 != 0};
        }
        rig_step(&r, parts, count);
        done(&r, shapes[i].name);
    }
}

/* A segment of several sequences, longer than a piece of LoRA work; an adapter that is loaded anew
 * elsewhere, under the same index and with other ranks. */
static void test_long_segments_and_reload(void **state) {
    (void)state;
    static struct rig r;
    rig_open(&r, &shapes[0].shape, shapes[0].page_tokens, 3, shapes[0].tied);
    r.compare = true;
    adapters_load(&r);
    for (uint32_t s = 0; s < 5; s++) {
        rig_sequence(&r, s, s < 3 ? 4 : 6);
    }
    rig_step(&r,
             (const struct rig_part[]){
                 {0, 31, true}, {1, 18, true}, {2, 1, true}, {3, 40, true}, {4, 17, true}},
             5);
    rig_adapter(&r, 4, (const uint32_t[KERN_MODULES]){0, 16, 0, 72, 0, 2, 0}, ~0u);
    rig_sequence(&r, 0, 4);
    rig_step(&r, (const struct rig_part[]){{0, 20, true}, {4, 2, true}}, 2);
    done(&r, "reload");
}

/* Slots, chunk sizes and adapters at random, with slots that are used again and again. */
static void test_random_histories(void **state) {
    (void)state;
    static struct rig r;
    rig_open(&r, &shapes[4].shape, shapes[4].page_tokens, 2, shapes[4].tied);
    r.compare = true;
    adapters_load(&r);
    for (uint32_t s = 0; s < 12; s++) {
        rig_sequence(&r, s, KERN_BASE);
    }
    for (int step = 0; step < 25; step++) {
        struct rig_part parts[12];
        uint32_t count = 0, tokens = 0;
        for (uint32_t s = 0; s < 12; s++) {
            uint32_t chunk = seed_below(&r.seed, 3) == 0 ? 1 + seed_below(&r.seed, 24) : 1;
            if (seed_below(&r.seed, 8) == 0 || r.sequences[s].position + chunk > 100) {
                uint32_t adapter = seed_below(&r.seed, RIG_ADAPTERS + 1);
                rig_sequence(&r, s, adapter == RIG_ADAPTERS ? KERN_BASE : adapter);
            }
            if (seed_below(&r.seed, 4) != 0 && tokens + chunk <= RIG_TOKENS) {
                parts[count++] = (struct rig_part){s, chunk, seed_below(&r.seed, 2) == 0};
                tokens += chunk;
            }
        }
        rig_step(&r, parts, count);
    }
    done(&r, "histories");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_base),
        cmocka_unit_test(test_adapters_mixed),
        cmocka_unit_test(test_long_segments_and_reload),
        cmocka_unit_test(test_random_histories),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
