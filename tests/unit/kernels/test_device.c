/* The device's edges: what open, weight and pool refuse; slots, tickets, loads; what crashes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/crash.h"
#include "tests/unit/kernels/rig.h"

static const struct kern_shape tiny = {.layers = 2,
                                       .hidden = 32,
                                       .heads = 2,
                                       .kv_heads = 2,
                                       .head_dim = 32,
                                       .intermediate = 48,
                                       .vocab = 50,
                                       .positions = 256,
                                       .norm_eps = 1e-5f,
                                       .rope_scale = 1};

static const float freq[KERN_HEAD_DIM_MAX / 2] = {1};

/* ---- open --------------------------------------------------------------------------------- */

static enum err open_with(struct kern_shape shape, uint32_t page_tokens, struct err_text *why) {
    const struct kern_limits limits = {.slots = 4,
                                       .adapters = 2,
                                       .step_tokens = 8,
                                       .step_samples = 4,
                                       .slot_pages = 4,
                                       .adapter_pages = 4,
                                       .page_tokens = page_tokens,
                                       .threads = 0};
    struct kern_device *d = NULL;
    shape.rope_freq = freq;
    enum err e = kern_cpu()->open(&d, &shape, &limits, why);
    assert_true((e == ERR_OK) == (d != NULL));
    kern_cpu()->close(d);
    return e;
}

static void test_open_refuses(void **state) {
    (void)state;
    struct err_text why = {0};
    assert_int_equal(open_with(tiny, 16, &why), ERR_OK);

    struct kern_shape s = tiny;
    s.head_dim = 36;
    assert_int_equal(open_with(s, 16, &why), ERR_BAD_MODEL);
    assert_string_equal(why.field, "head_dim");
    s.head_dim = KERN_HEAD_DIM_MAX + 8;
    assert_int_equal(open_with(s, 16, &why), ERR_BAD_MODEL);
    s = tiny;
    s.heads = 3;
    assert_int_equal(open_with(s, 16, &why), ERR_BAD_MODEL);
    assert_string_equal(why.field, "num_attention_heads");
    s = tiny;
    s.layers = 0;
    assert_int_equal(open_with(s, 16, &why), ERR_BAD_MODEL);
    s = tiny;
    s.vocab = UINT32_MAX;
    assert_int_equal(open_with(s, 16, &why), ERR_BAD_MODEL);

    assert_int_equal(open_with(tiny, 0, &why), ERR_BAD_CONFIG);
    assert_int_equal(open_with(tiny, 24, &why), ERR_BAD_CONFIG);
    assert_int_equal(open_with(tiny, 8, &why), ERR_BAD_CONFIG); /* 1024 elements: below a tile */
    assert_string_equal(why.field, "page_tokens");
    s = tiny;
    s.kv_heads = s.heads = 13;
    s.head_dim = 88;
    assert_int_equal(open_with(s, 1, &why), ERR_BAD_CONFIG); /* 2288: no multiple of 64 */
    kern_cpu()->close(NULL);
}

/* ---- weights ------------------------------------------------------------------------------ */

static struct kern_device *tiny_open(void) {
    const struct kern_limits limits = {.slots = 4,
                                       .adapters = 2,
                                       .step_tokens = 8,
                                       .step_samples = 4,
                                       .slot_pages = 4,
                                       .adapter_pages = 4,
                                       .page_tokens = 16,
                                       .threads = 2};
    struct kern_device *d = NULL;
    struct kern_shape shape = tiny;
    shape.qkv_bias = true;
    shape.qk_norm = true;
    shape.rope_freq = freq;
    struct err_text why = {0};
    assert_int_equal(kern_cpu()->open(&d, &shape, &limits, &why), ERR_OK);
    assert_int_equal(kern_cpu()->elem(d), KERN_F32);
    assert_true(kern_cpu()->pool_room(d) == UINT64_MAX);
    return d;
}

static void test_wrong_shapes_are_named(void **state) {
    (void)state;
    struct kern_device *d = tiny_open();
    static const float data[4096] = {0};
    static const struct {
        struct kern_weight w;
        const char *name;
    } table[] = {
        {{.tensor = KERN_EMBED, .rows = 50, .columns = 31}, "embed_tokens.weight"},
        {{.tensor = KERN_LM_HEAD, .rows = 32, .columns = 50}, "lm_head.weight"},
        {{.tensor = KERN_FINAL_NORM, .rows = 2, .columns = 16}, "norm.weight"},
        {{.tensor = KERN_INPUT_NORM, .layer = 1, .rows = 1, .columns = 33},
         "layers.1.input_layernorm.weight"},
        {{.tensor = KERN_POST_NORM, .rows = 32, .columns = 1},
         "layers.0.post_attention_layernorm.weight"},
        {{.tensor = KERN_WEIGHT, .layer = 1, .module = KERN_DOWN, .rows = 48, .columns = 32},
         "layers.1.down_proj.weight"},
        {{.tensor = KERN_BIAS, .module = KERN_K, .rows = 1, .columns = 32}, "layers.0.k_proj.bias"},
        {{.tensor = KERN_Q_NORM, .layer = 1, .rows = 1, .columns = 64},
         "layers.1.self_attn.q_norm.weight"},
        {{.tensor = KERN_K_NORM, .rows = 2, .columns = 16}, "layers.0.self_attn.k_norm.weight"},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        struct kern_weight w = table[i].w;
        w.data = data;
        struct err_text why = {0};
        assert_int_equal(kern_cpu()->weight(d, &w, &why), ERR_BAD_MODEL);
        assert_string_equal(why.field, table[i].name);
        assert_non_null(strstr(why.message, table[i].name));
    }
    kern_cpu()->close(d);
}

/* All tensors of the tiny shape; the later ones stand for each layer's. */
static const struct kern_weight tensors[] = {
    {.tensor = KERN_EMBED, .rows = 50, .columns = 32},
    {.tensor = KERN_FINAL_NORM, .rows = 1, .columns = 32},
    {.tensor = KERN_INPUT_NORM, .rows = 1, .columns = 32},
    {.tensor = KERN_POST_NORM, .rows = 1, .columns = 32},
    {.tensor = KERN_WEIGHT, .module = KERN_Q, .rows = 64, .columns = 32},
    {.tensor = KERN_WEIGHT, .module = KERN_K, .rows = 64, .columns = 32},
    {.tensor = KERN_WEIGHT, .module = KERN_V, .rows = 64, .columns = 32},
    {.tensor = KERN_WEIGHT, .module = KERN_O, .rows = 32, .columns = 64},
    {.tensor = KERN_WEIGHT, .module = KERN_GATE, .rows = 48, .columns = 32},
    {.tensor = KERN_WEIGHT, .module = KERN_UP, .rows = 48, .columns = 32},
    {.tensor = KERN_WEIGHT, .module = KERN_DOWN, .rows = 32, .columns = 48},
    {.tensor = KERN_BIAS, .module = KERN_Q, .rows = 1, .columns = 64},
    {.tensor = KERN_BIAS, .module = KERN_K, .rows = 1, .columns = 64},
    {.tensor = KERN_BIAS, .module = KERN_V, .rows = 1, .columns = 64},
    {.tensor = KERN_Q_NORM, .rows = 1, .columns = 32},
    {.tensor = KERN_K_NORM, .rows = 1, .columns = 32},
};
enum { TENSORS = sizeof tensors / sizeof tensors[0] };

static bool per_layer(uint32_t tensor) {
    return tensors[tensor].tensor >= KERN_INPUT_NORM;
}

/* Gives all but one; a tensor per layer is left out of the last layer. */
static void all_but_one_give(struct kern_device *d, uint32_t missing) {
    static const float data[4096] = {0};
    for (uint32_t i = 0; i < TENSORS; i++) {
        for (uint32_t layer = 0; layer < 2; layer++) {
            struct kern_weight w = tensors[i];
            w.data = data;
            w.layer = layer;
            if (i != missing || (layer == 0 && per_layer(i))) {
                assert_int_equal(kern_cpu()->weight(d, &w, NULL), ERR_OK);
            }
        }
    }
}

static void test_missing_weights_are_named(void **state) {
    (void)state;
    for (uint32_t missing = 0; missing <= TENSORS; missing++) {
        struct kern_device *d = tiny_open();
        struct err_text why = {0};
        all_but_one_give(d, missing);
        assert_int_equal(kern_cpu()->pool(d, 4, &why), missing == TENSORS ? ERR_OK : ERR_BAD_MODEL);
        assert_int_equal(why.field[0] == '\0', missing == TENSORS);
        if (missing < TENSORS && per_layer(missing)) {
            assert_non_null(strstr(why.field, "layers.1."));
        }
        kern_cpu()->close(d);
    }
}

static void test_pool_too_large(void **state) {
    (void)state;
    static struct rig r;
    rig_open(&r, &tiny, 16, 1, true);
    cpu_memory_release(&r.device->pool_memory);
    r.device->planes = NULL;
    struct err_text why = {0};
    assert_int_equal(r.ops->pool(r.device, UINT32_MAX, &why), ERR_NO_SPACE);
    assert_non_null(strstr(why.message, "4294967295 pages"));
    rig_close(&r);
}

/* f32, f16 and bf16, at an odd address, seen through the embedding and a vector. */
static void test_dtypes(void **state) {
    (void)state;
    struct kern_device *d = tiny_open();
    static const struct {
        enum kern_dtype dtype;
        uint32_t bits;
        float value;
    } table[] = {
        {KERN_F32, 0x3fc00001, 1.50000011920929f},
        {KERN_F32, 0x80000001, -0x1p-149f},
        {KERN_BF16, 0x3fc0, 1.5f},
        {KERN_BF16, 0xc2f7, -123.5f},
        {KERN_F16, 0x3e00, 1.5f},
        {KERN_F16, 0xc000, -2},
        {KERN_F16, 0x7bff, 65504},
        {KERN_F16, 0x0001, 0x1p-24f},
        {KERN_F16, 0x83ff, -1023 * 0x1p-24f},
        {KERN_F16, 0x0400, 0x1p-14f},
        {KERN_F16, 0x8000, -0.0f},
        {KERN_F16, 0xfc00, -__builtin_inff()},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        const uint64_t last = 50 * 32 - 1, bytes = table[i].dtype == KERN_F32 ? 4 : 2;
        unsigned char *data = calloc(1, (last + 1) * bytes + 1); /* exact, and odd */
        assert_non_null(data);
        memcpy(data + 1 + last * bytes, &table[i].bits, bytes);
        const struct kern_weight w = {.tensor = KERN_EMBED,
                                      .dtype = table[i].dtype,
                                      .data = data + 1,
                                      .rows = 50,
                                      .columns = 32};
        struct err_text why = {0};
        assert_int_equal(kern_cpu()->weight(d, &w, &why), ERR_OK);
        float row[32];
        cpu_matrix_row(&d->embed, 49, row);
        assert_memory_equal(&row[31], &table[i].value, 4);
        cpu_matrix_row(&d->embed, 48, row);
        assert_true(row[31] == 0);
        free(data);
    }
    kern_cpu()->close(d);
}

/* ---- slots and results -------------------------------------------------------------------- */

/* Greedy decode by KERN_TOKEN_LAST equals decode by ids that were read back. */
static void test_token_last(void **state) {
    (void)state;
    enum { NEW = 12 };
    static struct rig r;
    static float expected[NEW][50], logits[50];
    rig_open(&r, &tiny, 16, 2, true);
    rig_sequence(&r, 0, KERN_BASE);
    rig_step(&r, (const struct rig_part[]){{0, 5, true}}, 1);
    for (uint32_t i = 0; i < NEW; i++) {
        r.sequences[0].ids[5 + i] = r.results[0].token;
        rig_step(&r, (const struct rig_part[]){{0, 1, true}}, 1);
        rig_logits(&r, 0, expected[i]);
    }
    r.token_last = true;
    rig_rewind(&r, 0, 0);
    rig_step(&r, (const struct rig_part[]){{0, 5, true}}, 1);
    for (uint32_t i = 0; i < NEW; i++) {
        assert_int_equal(r.results[0].token, r.sequences[0].ids[5 + i]);
        rig_step(&r, (const struct rig_part[]){{0, 1, true}}, 1);
        rig_logits(&r, 0, logits);
        assert_memory_equal(logits, expected[i], sizeof logits);
    }
    rig_close(&r);
}

/* A slot that was used before starts anew: other parameters, no pages, not done. */
static void test_slot_reuse_and_done(void **state) {
    (void)state;
    static struct rig r;
    static float expected[50], logits[50];
    rig_open(&r, &tiny, 16, 2, true);
    rig_sequence(&r, 0, KERN_BASE);
    struct rig_sequence fresh = r.sequences[0];
    rig_step(&r, (const struct rig_part[]){{0, 20, true}}, 1);
    assert_false(r.results[0].done);
    rig_logits(&r, 0, expected);
    uint32_t token = r.results[0].token;

    rig_sequence(&r, 0, KERN_BASE); /* other tokens, then a stop */
    r.sequences[0].params.stop_count = 2;
    r.sequences[0].params.stop[0] = token == 0 ? 1 : 0;
    r.sequences[0].params.stop[1] = token;
    memcpy(r.sequences[0].ids, fresh.ids, sizeof fresh.ids);
    rig_step(&r, (const struct rig_part[]){{0, 20, true}}, 1);
    rig_logits(&r, 0, logits);
    assert_memory_equal(logits, expected, sizeof logits);
    assert_int_equal(r.results[0].token, token);
    assert_true(r.results[0].done);
    rig_step(&r, (const struct rig_part[]){{0, 1, true}}, 1); /* a surplus step stays done */
    assert_true(r.results[0].done);

    rig_sequence(&r, 0, KERN_BASE); /* and the next user of the slot is not */
    memcpy(r.sequences[0].ids, fresh.ids, sizeof fresh.ids);
    rig_step(&r, (const struct rig_part[]){{0, 20, true}}, 1);
    assert_false(r.results[0].done);
    assert_int_equal(r.results[0].token, token);
    rig_close(&r);
}

/* The device samples as kern_sample_cpu does, at the position of the token drawn. */
static void test_sampling_parameters_reach_the_sampler(void **state) {
    (void)state;
    static struct rig r;
    rig_open(&r, &tiny, 16, 2, true);
    for (uint32_t s = 0; s < 6; s++) {
        rig_sequence(&r, s, KERN_BASE);
        r.sequences[s].params.temperature = 1.5f;
        r.sequences[s].params.seed = 77 + s;
        r.sequences[s].params.top_k = s < 3 ? 0 : 5;
        r.sequences[s].params.top_p = s % 2 == 0 ? 1 : 0.8f;
    }
    for (uint32_t step = 0; step < 10; step++) {
        struct rig_part parts[6];
        for (uint32_t s = 0; s < 6; s++) {
            parts[s] = (struct rig_part){s, step == 0 ? 3 + s : 1, true};
        }
        rig_step(&r, parts, 6);
        for (uint32_t s = 0; s < 6; s++) {
            float logits[50];
            rig_logits(&r, s, logits);
            assert_int_equal(r.results[s].slot, s);
            assert_int_equal(r.results[s].token, kern_sample_cpu(logits, 50, &r.sequences[s].params,
                                                                 r.sequences[s].position));
        }
    }
    rig_close(&r);
}

/* Only some rows sample; their results come in the order of the chunks. */
static void test_results_in_order(void **state) {
    (void)state;
    static struct rig r;
    rig_open(&r, &tiny, 16, 2, true);
    for (uint32_t s = 0; s < 5; s++) {
        rig_sequence(&r, s, KERN_BASE);
    }
    rig_step(&r,
             (const struct rig_part[]){
                 {3, 2, true}, {0, 1, false}, {4, 3, true}, {1, 1, true}, {2, 1, false}},
             5);
    assert_int_equal(r.results[0].slot, 3);
    assert_int_equal(r.results[1].slot, 4);
    assert_int_equal(r.results[2].slot, 1);
    rig_step(&r, (const struct rig_part[]){{0, 4, false}}, 1); /* none */
    rig_step(&r, NULL, 0);                                     /* nothing but deltas */
    rig_close(&r);
}

/* ---- the pool ----------------------------------------------------------------------------- */

static void test_load_places_each_plane(void **state) {
    (void)state;
    static struct rig r;
    rig_open(&r, &tiny, 16, 2, true);
    const uint32_t pages[] = {17, 3, 4000};
    uint64_t elems = r.device->page_elems, event[2] = {0, 0};
    float *image = malloc(6 * elems * sizeof *image);
    assert_non_null(image);
    for (uint64_t i = 0; i < 6 * elems; i++) {
        image[i] = (float)i;
    }
    assert_int_equal(r.ops->load(r.device, image, pages, 3, &event[0]), ERR_OK);
    for (size_t layer = 0; layer < 2; layer++) {
        for (size_t i = 0; i < 3; i++) {
            assert_memory_equal(r.device->planes + (layer * RIG_PAGES + pages[i]) * elems,
                                image + (layer * 3 + i) * elems, elems * sizeof *image);
        }
    }
    assert_int_equal(r.ops->load(r.device, image, pages, 1, &event[1]), ERR_OK);
    assert_true(event[0] >= 1 && event[1] > event[0]);
    assert_true(r.ops->event_done(r.device, event[0]) && r.ops->event_done(r.device, event[1]));
    free(image);
    rig_close(&r);
}

/* ---- tickets ------------------------------------------------------------------------------ */

static void empty_step(struct rig *r, uint64_t *ticket) {
    const struct kern_step step = {0};
    assert_int_equal(r->ops->step_begin(r->device, &step), ERR_OK);
    assert_int_equal(r->ops->step_end(r->device, ticket), ERR_OK);
}

static void third_unread(void *context) {
    struct rig *r = context;
    uint64_t ticket;
    empty_step(r, &ticket);
}

static void read_out_of_order(void *context) {
    struct rig *r = context;
    (void)r->ops->step_read(r->device, 2, NULL, 0);
}

static void test_tickets(void **state) {
    (void)state;
    static struct rig r;
    rig_open(&r, &tiny, 16, 1, true);
    uint64_t ticket = 0;
    empty_step(&r, &ticket);
    assert_int_equal(ticket, 1);
    empty_step(&r, &ticket);
    assert_int_equal(ticket, 2);
    assert_true(crashes(third_unread, &r));
    assert_true(crashes(read_out_of_order, &r));
    assert_int_equal(r.ops->step_read(r.device, 1, NULL, 0), ERR_OK);
    assert_int_equal(r.ops->step_read(r.device, 2, NULL, 0), ERR_OK);
    rig_close(&r);
}

/* ---- what our own loop must never do ------------------------------------------------------ */

struct bad_step {
    struct rig *r;
    struct kern_step step;
};

static void begin(void *context) {
    struct bad_step *b = context;
    (void)b->r->ops->step_begin(b->r->device, &b->step);
}

static bool refused(struct rig *r, struct kern_step step) {
    struct bad_step b = {.r = r, .step = step};
    return crashes(begin, &b);
}

static void test_bad_steps_crash(void **state) {
    (void)state;
    static struct rig r;
    rig_open(&r, &tiny, 16, 1, true);
    rig_sequence(&r, 0, KERN_BASE);
    rig_step(&r, (const struct rig_part[]){{0, 3, false}}, 1);

    const uint32_t good[2] = {1, 2}, unknown[1] = {50}, last[1] = {KERN_TOKEN_LAST};
    struct kern_chunk c[2] = {{.slot = 0, .token_count = 1, .position = 3}};
    struct kern_step step = {.token_count = 1, .chunk_count = 1, .tokens = good, .chunks = c};
    assert_false(refused(&r, step));

    step.tokens = unknown;
    assert_true(refused(&r, step));
    step.tokens = last; /* it never sampled */
    assert_true(refused(&r, step));
    step.tokens = good;
    c[0].slot = 1; /* not open */
    assert_true(refused(&r, step));
    c[0].slot = RIG_SEQUENCES;
    assert_true(refused(&r, step));
    c[0].slot = 0;
    c[0].position = 16; /* its second page was never set */
    assert_true(refused(&r, step));
    c[0].position = 256;
    assert_true(refused(&r, step));
    c[0].position = 3;
    c[1] = (struct kern_chunk){.slot = 0, .token_begin = 1, .token_count = 1, .position = 4};
    step.token_count = step.chunk_count = 2; /* one slot twice */
    assert_true(refused(&r, step));
    step.chunk_count = 1; /* a token in no chunk */
    assert_true(refused(&r, step));
    step.token_count = 1;

    struct kern_segment segment = {.adapter = 0, .token_begin = 0, .token_count = 1};
    step.segments = &segment; /* the adapter was never set */
    step.segment_count = 1;
    assert_true(refused(&r, step));
    step.segment_count = 0;

    struct kern_slot_page page = {.slot = 0, .index = 0, .page = RIG_PAGES};
    step.slot_pages = &page;
    step.slot_page_count = 1;
    assert_true(refused(&r, step));
    step.slot_page_count = 0;

    struct kern_lora lora[2 * KERN_MODULES + KERN_OUTERS] = {{.rank = 8, .a = 0, .b = 4096}};
    const uint32_t pages[2] = {0, 1};
    struct kern_adapter_set set = {.adapter = 0, .lora = lora, .pages = pages, .page_count = 2};
    step.adapter_sets = &set;
    step.adapter_set_count = 1;
    assert_true(refused(&r, step)); /* B lies beyond the pages, of 2048 each */
    lora[0].b = 512;
    assert_false(refused(&r, step));
    lora[0].rank = 12;
    assert_true(refused(&r, step));
    rig_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open_refuses),
        cmocka_unit_test(test_wrong_shapes_are_named),
        cmocka_unit_test(test_missing_weights_are_named),
        cmocka_unit_test(test_pool_too_large),
        cmocka_unit_test(test_dtypes),
        cmocka_unit_test(test_token_last),
        cmocka_unit_test(test_slot_reuse_and_done),
        cmocka_unit_test(test_sampling_parameters_reach_the_sampler),
        cmocka_unit_test(test_results_in_order),
        cmocka_unit_test(test_load_places_each_plane),
        cmocka_unit_test(test_tickets),
        cmocka_unit_test(test_bad_steps_crash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
