/* config.json and generation_config.json: every field that is read, and every one that is refused.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <jansson.h>
#include <math.h>

#include "model/config.h"
#include "tests/unit/model/files.h"

/* A Llama's config.json with `changes` (a JSON object) laid over it; null takes a field out. */
static char *config_with(const char *changes) {
    json_t *config = json_pack(
        "{s:[s],s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:f,s:i,s:s,s:b}", "architectures", "LlamaForCausalLM",
        "hidden_size", 96, "intermediate_size", 160, "num_hidden_layers", 3, "num_attention_heads",
        4, "num_key_value_heads", 2, "vocab_size", 320, "max_position_embeddings", 2048,
        "rms_norm_eps", 1e-5, "eos_token_id", 2, "hidden_act", "silu", "use_cache", 1);
    json_t *over = json_loads(changes, 0, NULL);
    assert_non_null(over);
    const char *key = NULL;
    json_t *value = NULL;
    json_object_foreach(over, key, value) {
        if (json_is_null(value)) {
            (void)json_object_del(config, key);
        } else {
            (void)json_object_set(config, key, value);
        }
    }
    char *text = json_dumps(config, 0);
    json_decref(config);
    json_decref(over);
    return text;
}

static enum err parse(const char *changes, const char *generation, struct model_facts *facts,
                      float **freq, struct err_text *why) {
    char *text = config_with(changes);
    struct model_bytes config = {(uint8_t *)text, strlen(text)};
    struct model_bytes second = {0};
    char *copy = strdup(generation);
    second.data = (uint8_t *)copy;
    second.count = strlen(copy);
    enum err e = model_config_parse(facts, freq, &config, &second, why);
    free(copy);
    free(text);
    return e;
}

static struct model_facts accepts(const char *changes, const char *generation) {
    struct model_facts facts;
    struct err_text why = {0};
    float *freq = NULL;
    if (parse(changes, generation, &facts, &freq, &why) != ERR_OK) {
        fail_msg("%s: %s", changes, why.message);
    }
    free(freq);
    facts.shape.rope_freq = NULL;
    return facts;
}

static void refuses(const char *changes, const char *generation, const char *field) {
    struct model_facts facts;
    struct err_text why = {0};
    float *freq = NULL;
    assert_int_equal(parse(changes, generation, &facts, &freq, &why), ERR_BAD_MODEL);
    if (strcmp(why.field, field) != 0 || strstr(why.message, field) == NULL) {
        fail_msg("%s: field \"%s\", message \"%s\"", changes, why.field, why.message);
    }
}

static void test_reads_the_shape(void **state) {
    (void)state;
    struct model_facts f = accepts("{}", "");
    assert_string_equal(f.architecture, "LlamaForCausalLM");
    assert_int_equal(f.shape.layers, 3);
    assert_int_equal(f.shape.hidden, 96);
    assert_int_equal(f.shape.heads, 4);
    assert_int_equal(f.shape.kv_heads, 2);
    assert_int_equal(f.shape.head_dim, 24);
    assert_int_equal(f.shape.intermediate, 160);
    assert_int_equal(f.shape.vocab, 320);
    assert_int_equal(f.shape.positions, 2048);
    assert_int_equal(f.shape.window, 0);
    assert_true(f.shape.norm_eps == 1e-5F);
    assert_true(f.shape.rope_scale == 1);
    assert_false(f.shape.qkv_bias);
    assert_false(f.tied);
    assert_true(accepts("{\"tie_word_embeddings\": true}", "").tied);
    assert_int_equal(accepts("{\"head_dim\": 64}", "").shape.head_dim, 64);
    assert_int_equal(accepts("{\"num_key_value_heads\": null}", "").shape.kv_heads, 4);
}

#define LLAMA "{\"architectures\": [\"LlamaForCausalLM\"], "
#define MISTRAL "{\"architectures\": [\"MistralForCausalLM\"], "
#define QWEN2 "{\"architectures\": [\"Qwen2ForCausalLM\"], "
#define QWEN3 "{\"architectures\": [\"Qwen3ForCausalLM\"], "

static void test_reads_a_qwen2(void **state) {
    (void)state;
    struct model_facts f = accepts("{\"architectures\": [\"Qwen2ForCausalLM\"], "
                                   "\"sliding_window\": 4096, \"use_sliding_window\": false, "
                                   "\"max_window_layers\": 1, \"layer_types\": "
                                   "[\"full_attention\", \"full_attention\", \"full_attention\"]}",
                                   "");
    assert_true(f.shape.qkv_bias);
    assert_false(f.shape.qk_norm);
    assert_int_equal(f.shape.window, 0);
    refuses(QWEN2 "\"num_key_value_heads\": null}", "", "num_key_value_heads");
}

static void test_reads_a_qwen3(void **state) {
    (void)state;
    struct model_facts f = accepts(QWEN3 "\"head_dim\": 64, \"attention_bias\": false}", "");
    assert_true(f.shape.qk_norm);
    assert_false(f.shape.qkv_bias);
    assert_int_equal(f.shape.head_dim, 64);
    assert_int_equal(f.shape.window, 0);
    refuses(QWEN3 "\"head_dim\": null}", "", "head_dim"); /* transformers would assume 128 */
    refuses(QWEN3 "\"head_dim\": 64, \"num_key_value_heads\": null}", "", "num_key_value_heads");
    refuses(QWEN3 "\"head_dim\": 64, \"attention_bias\": true}", "", "attention_bias");
}

static void test_reads_a_mistral(void **state) {
    (void)state;
    struct model_facts f = accepts(MISTRAL "\"sliding_window\": 512}", "");
    assert_int_equal(f.shape.window, 512);
    assert_int_equal(f.shape.head_dim, 24);
    assert_false(f.shape.qkv_bias || f.shape.qk_norm);
    f = accepts(MISTRAL "\"sliding_window\": null, \"head_dim\": 32}", "");
    assert_int_equal(f.shape.head_dim, 32);
    assert_int_equal(accepts(MISTRAL "\"hidden_act\": \"silu\"}", "").shape.window, 4096);
    refuses(MISTRAL "\"num_key_value_heads\": null}", "", "num_key_value_heads");
    refuses(MISTRAL "\"sliding_window\": 0}", "", "sliding_window");
    refuses(MISTRAL "\"sliding_window\": \"4096\"}", "", "sliding_window");
    refuses(MISTRAL "\"use_sliding_window\": true}", "", "use_sliding_window");
}

/* The same attention in all layers, or refused: one case for each way to say it. */
static void test_windows(void **state) {
    (void)state;
#define FULL "\"full_attention\""
#define SLIDING "\"sliding_attention\""
    static const struct {
        const char *family, *fields;
        const char *refused; /* by which field; NULL: accepted, with */
        uint32_t window;
    } cases[] = {
        {QWEN2, "\"use_sliding_window\": true", NULL, 0}, /* 28 layers stay full, of 3 */
        {QWEN2, "\"use_sliding_window\": true, \"max_window_layers\": 3", NULL, 0},
        {QWEN2, "\"use_sliding_window\": true, \"max_window_layers\": 2", "max_window_layers", 0},
        {QWEN2, "\"use_sliding_window\": true, \"max_window_layers\": 0", NULL, 4096},
        {QWEN2, "\"use_sliding_window\": true, \"max_window_layers\": 0, \"sliding_window\": 64",
         NULL, 64},
        {QWEN2, "\"use_sliding_window\": false, \"max_window_layers\": 0", NULL, 0},
        {QWEN2, "\"use_sliding_window\": 1", "use_sliding_window", 0},
        {QWEN2, "\"use_sliding_window\": true, \"max_window_layers\": -1", "max_window_layers", 0},
        {QWEN2, "\"layer_types\": [" FULL ", " SLIDING ", " SLIDING "]", "layer_types", 0},
        {QWEN2, "\"layer_types\": [" SLIDING ", " SLIDING ", " SLIDING "]", "layer_types", 0},
        {QWEN2, "\"layer_types\": [" FULL ", " FULL "]", "layer_types", 0},
        {QWEN2, "\"layer_types\": [" FULL ", " FULL ", \"chunked_attention\"]", "layer_types", 0},
        {QWEN2, "\"layer_types\": [" FULL ", " FULL ", 7]", "layer_types", 0},
        {QWEN2,
         "\"use_sliding_window\": true, \"sliding_window\": 9, "
         "\"layer_types\": [" SLIDING ", " SLIDING ", " SLIDING "]",
         NULL, 9},
        {QWEN2,
         "\"use_sliding_window\": true, \"sliding_window\": 9, \"max_window_layers\": 0, "
         "\"layer_types\": [" FULL ", " FULL ", " FULL "]",
         NULL, 0},
        {MISTRAL, "\"sliding_window\": 9, \"layer_types\": [" SLIDING ", " SLIDING ", " SLIDING "]",
         NULL, 9},
        {MISTRAL, "\"sliding_window\": 9, \"layer_types\": [" FULL ", " FULL ", " FULL "]",
         "layer_types", 0},
        {LLAMA, "\"layer_types\": [" FULL ", " FULL ", " FULL "]", NULL, 0},
        {LLAMA, "\"layer_types\": [" SLIDING ", " SLIDING ", " SLIDING "]", "layer_types", 0},
        {LLAMA, "\"use_sliding_window\": true", "use_sliding_window", 0},
        {LLAMA, "\"use_sliding_window\": false", NULL, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[512];
        (void)snprintf(text, sizeof text, "%s%s}", cases[i].family, cases[i].fields);
        if (cases[i].refused != NULL) {
            refuses(text, "", cases[i].refused);
        } else if (accepts(text, "").shape.window != cases[i].window) {
            fail_msg("%s: not a window of %u", text, cases[i].window);
        }
    }
}

/* The tensors decide; the field is what the model was trained in, old name and new. */
static void test_dtype_does_not_matter(void **state) {
    (void)state;
    (void)accepts("{\"torch_dtype\": \"bfloat16\"}", "");
    (void)accepts("{\"dtype\": \"float16\"}", "");
}

static double number(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    assert_true(json_is_number(value) || json_is_boolean(value));
    return json_is_boolean(value) ? json_boolean_value(value) : json_number_value(value);
}

static void published(const json_t *one) {
    char *config = json_dumps(json_object_get(one, "config"), 0);
    char *generation = json_dumps(json_object_get(one, "generation"), 0);
    const struct model_bytes files[] = {{(uint8_t *)config, strlen(config)},
                                        {(uint8_t *)generation, strlen(generation)}};
    struct model_facts f;
    struct err_text why = {0};
    float *freq = NULL;
    const char *name = json_string_value(json_object_get(one, "name"));
    if (model_config_parse(&f, &freq, &files[0], &files[1], &why) != ERR_OK) {
        fail_msg("%s: %s", name, why.message);
    }
    const json_t *shape = json_object_get(one, "shape");
    const struct kern_shape *s = &f.shape;
    double longest = 2 * M_PI / (double)freq[s->head_dim / 2 - 1];
    bool equal =
        number(shape, "layers") == s->layers && number(shape, "window") == s->window &&
        number(shape, "kv_heads") == s->kv_heads && number(shape, "head_dim") == s->head_dim &&
        number(shape, "qkv_bias") == s->qkv_bias && number(shape, "qk_norm") == s->qk_norm &&
        number(shape, "tied") == f.tied && fabs(number(shape, "longest") / longest - 1) < 1e-5 &&
        (float)number(one, "temperature") == f.temperature &&
        (float)number(one, "top_p") == f.top_p && number(one, "top_k") == f.top_k;
    const json_t *eos = json_object_get(one, "eos");
    equal = equal && json_array_size(eos) == f.eos_count;
    for (uint32_t i = 0; i < f.eos_count && equal; i++) {
        equal = json_integer_value(json_array_get(eos, i)) == f.eos[i];
    }
    if (!equal) {
        fail_msg("%s: not read as it should be", name);
    }
    free(freq);
    free(generation);
    free(config);
}

/* The fields that the families' own checkpoints carry; `longest` is the longest wavelength of the
 * rotary embeddings, in tokens. */
static void test_reads_published_configs(void **state) {
    (void)state;
    json_t *list = json_read(GOLDEN, "published_configs.json");
    assert_true(json_array_size(list) >= 12);
    size_t i = 0;
    const json_t *one = NULL;
    json_array_foreach(list, i, one) {
        published(one);
    }
    json_decref(list);
}

/* What docs/COMPATIBILITY.md says of configs that are refused, and with which words. */
static void test_refuses_the_bad_configs(void **state) {
    (void)state;
    json_t *list = json_read(GOLDEN, "bad_configs.json");
    assert_true(json_array_size(list) >= 29);
    size_t i = 0;
    const json_t *one = NULL;
    json_array_foreach(list, i, one) {
        char *changes = json_dumps(json_object_get(one, "config"), 0);
        const char *field = json_string_value(json_object_get(one, "field"));
        const char *words = json_string_value(json_object_get(one, "words"));
        struct model_facts facts;
        struct err_text why = {0};
        float *freq = NULL;
        assert_int_equal(parse(changes, "", &facts, &freq, &why), ERR_BAD_MODEL);
        if (strcmp(why.field, field) != 0 || strstr(why.message, words) == NULL) {
            fail_msg("%s: field \"%s\", message \"%s\"", changes, why.field, why.message);
        }
        free(changes);
    }
    json_decref(list);
}

static void test_refuses_what_it_does_not_build(void **state) {
    (void)state;
    static const char *const changes[][2] = {
        {"architectures", "[\"MixtralForCausalLM\"]"},
        {"architectures", "\"LlamaForCausalLM\""},
        {"architectures", "[]"},
        {"architectures", "[7]"},
        {"quantization_config", "{\"bits\": 4}"},
        {"attention_bias", "true"},
        {"mlp_bias", "true"},
        {"sliding_window", "4096"},
        {"hidden_act", "\"gelu\""},
        {"pretraining_tp", "2"},
        {"partial_rotary_factor", "0.5"},
        {"rope_interleaved", "true"},
        {"final_logit_softcapping", "30.0"},
        {"attn_logit_softcapping", "50.0"},
        {"residual_multiplier", "0.22"},
        {"embedding_multiplier", "12"},
        {"logits_scaling", "8"},
        {"attention_multiplier", "0.015"},
        {"num_local_experts", "8"},
        {"layer_types", "\"full_attention\""},
        {"auto_map", "{\"AutoModel\": \"m.M\"}"},
        {"is_causal", "false"},
        {"rope_scaling", "{\"type\": \"dynamic\", \"factor\": 2.0}"},
        {"rope_scaling", "{\"factor\": 2.0}"},
        {"rope_scaling", "7"},
        {"rope_parameters", "{\"rope_type\": \"yarn\", \"rope_theta\": 1e4}"},
        {"rope_parameters", "{\"full_attention\": {\"rope_type\": \"default\"}}"},
        {"rope_parameters", "{\"partial_rotary_factor\": 0.25}"},
        {"rope_theta", "0"},
        {"rope_theta", "\"1e4\""},
        {"hidden_size", "0"},
        {"hidden_size", "-96"},
        {"hidden_size", "96.0"},
        {"hidden_size", "1099511627776"},
        {"num_hidden_layers", "100000"},
        {"num_key_value_heads", "3"},
        {"num_key_value_heads", "8"},
        {"num_attention_heads", "7"},
        {"head_dim", "20"},
        {"head_dim", "512"},
        {"rms_norm_eps", "-1"},
        {"tie_word_embeddings", "1"},
        {"eos_token_id", "-1"},
        {"eos_token_id", "\"2\""},
        {"eos_token_id", "[2, null]"},
        {"eos_token_id", "[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]"},
    };
    for (size_t i = 0; i < sizeof changes / sizeof changes[0]; i++) {
        char text[256];
        (void)snprintf(text, sizeof text, "{\"%s\": %s, \"num_key_value_heads\": 1}", changes[i][0],
                       changes[i][1]);
        if (strcmp(changes[i][0], "num_key_value_heads") == 0) {
            (void)snprintf(text, sizeof text, "{\"%s\": %s}", changes[i][0], changes[i][1]);
        }
        refuses(text, "", changes[i][0]);
    }
}

static void test_refuses_missing_fields(void **state) {
    (void)state;
    static const char *const fields[] = {
        "architectures",       "hidden_size", "intermediate_size",       "num_hidden_layers",
        "num_attention_heads", "vocab_size",  "max_position_embeddings", "rms_norm_eps"};
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        char text[64];
        (void)snprintf(text, sizeof text, "{\"%s\": null}", fields[i]);
        refuses(text, "", fields[i]);
    }
}

/* Names of the file are quoted in messages; what a terminal would obey is not. */
static void test_messages_hold_nothing_but_text(void **state) {
    (void)state;
    static const char *const texts[] = {"{\"architectures\": [\"L\\u001bma\"]}",
                                        "{\"rope_scaling\": {\"type\": \"\\u001b[2J\"}}",
                                        "{\"rope_scaling\": {\"\\u001b[2J\": 1}}"};
    for (size_t i = 0; i <= sizeof texts / sizeof texts[0]; i++) {
        struct model_facts facts;
        struct err_text why = {0};
        float *freq = NULL;
        const char *broken = i == 0 ? "{\"a\": \033" : ""; /* not JSON, here and there */
        const char *config = i == 0 ? "{}" : texts[i - 1];
        assert_int_equal(parse(config, broken, &facts, &freq, &why), ERR_BAD_MODEL);
        assert_non_null(strchr(why.message, '?'));
        assert_null(strchr(why.message, '\033'));
    }
}

static void test_ignores_what_does_no_harm(void **state) {
    (void)state;
    (void)accepts(
        "{\"quantization_config\": {}, \"attention_bias\": false, \"pretraining_tp\": 1, "
        "\"partial_rotary_factor\": 1.0, \"rope_scaling\": {}, \"torch_dtype\": \"bfloat16\", "
        "\"initializer_range\": 0.02, \"is_llama_config\": true, \"num_experts\": 0, "
        "\"rope_interleaved\": false, \"some_new_field\": {\"a\": 1}}",
        "");
}

/* In both notations, old and of transformers 5; agreeing twice is fine. */
static void test_rope_frequencies(void **state) {
    (void)state;
    static const char *const same[] = {
        "{\"rope_theta\": 500000.0}",
        "{\"rope_theta\": 500000, \"rope_scaling\": null}",
        "{\"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 500000.0}}",
        "{\"rope_theta\": 5e5, \"rope_parameters\": {\"type\": \"default\", \"rope_theta\": 5e5}}",
        "{\"rope_theta\": 5e5, \"rope_scaling\": {\"rope_type\": \"default\"}}",
    };
    for (size_t i = 0; i < sizeof same / sizeof same[0]; i++) {
        struct model_facts f;
        float *freq = NULL;
        assert_int_equal(parse(same[i], "", &f, &freq, NULL), ERR_OK);
        assert_ptr_equal(f.shape.rope_freq, freq);
        assert_true(freq[0] == 1);
        for (uint32_t k = 0; k < f.shape.head_dim / 2; k++) {
            double want = pow(500000.0, -2.0 * k / f.shape.head_dim);
            assert_true(fabs(freq[k] - want) <= 1e-6 * want);
        }
        free(freq);
    }
    refuses("{\"rope_theta\": 1e4, \"rope_parameters\": {\"rope_theta\": 5e5}}", "", "rope_theta");
    struct model_facts f;
    float *freq = NULL;
    assert_int_equal(parse("{}", "", &f, &freq, NULL), ERR_OK);
    assert_true(fabs(freq[1] - pow(10000.0, -2.0 / 24)) < 1e-6);
    free(freq);
}

static void test_eos_is_the_union(void **state) {
    (void)state;
    struct model_facts f = accepts("{\"eos_token_id\": [5, 7]}", "{\"eos_token_id\": [7, 9, 5]}");
    const uint32_t want[] = {5, 7, 9};
    assert_int_equal(f.eos_count, 3);
    assert_memory_equal(f.eos, want, sizeof want);
    assert_int_equal(accepts("{\"eos_token_id\": null}", "{\"eos_token_id\": 3}").eos[0], 3);
    assert_int_equal(accepts("{\"eos_token_id\": null}", "").eos_count, 0);
    assert_int_equal(accepts("{\"eos_token_id\": 320}", "").eos_count, 0); /* beyond the vocab */
}

static void test_sampling_defaults(void **state) {
    (void)state;
    struct model_facts f = accepts("{}", "");
    assert_true(f.temperature == 1 && f.top_p == 1 && f.top_k == 0);
    f = accepts("{}",
                "{\"temperature\": 0.5, \"top_p\": 0.75, \"top_k\": 20, \"do_sample\": true}");
    assert_true(f.temperature == 0.5F && f.top_p == 0.75F && f.top_k == 20);
    assert_true(accepts("{}", "{\"do_sample\": false}").temperature == 0);
    assert_true(accepts("{}", "{\"do_sample\": false, \"temperature\": 0.5}").temperature == 0.5F);
    assert_true(f.min_p == 0 && f.repetition_penalty == 1);
    f = accepts("{}", "{\"repetition_penalty\": 1.5, \"min_p\": 0.25}");
    assert_true(f.min_p == 0.25F && f.repetition_penalty == 1.5F);
    (void)accepts("{}", "{\"typical_p\": 0.5}"); /* warned of */
    refuses("{}", "{\"repetition_penalty\": 0}", "repetition_penalty");
    refuses("{}", "{\"min_p\": 1.5}", "min_p");
    refuses("{}", "{\"temperature\": -1}", "temperature");
    refuses("{}", "{\"top_p\": 1.5}", "top_p");
    refuses("{}", "{\"top_k\": 1.5}", "top_k");
    refuses("{}", "{\"do_sample\": 0}", "do_sample");
    refuses("{}", "[]", "generation_config.json");
    refuses("{}", "{\"top_k\": 1, \"top_k\": 2}", "generation_config.json");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_the_shape),
        cmocka_unit_test(test_reads_a_qwen2),
        cmocka_unit_test(test_reads_a_qwen3),
        cmocka_unit_test(test_reads_a_mistral),
        cmocka_unit_test(test_windows),
        cmocka_unit_test(test_dtype_does_not_matter),
        cmocka_unit_test(test_reads_published_configs),
        cmocka_unit_test(test_refuses_the_bad_configs),
        cmocka_unit_test(test_refuses_what_it_does_not_build),
        cmocka_unit_test(test_refuses_missing_fields),
        cmocka_unit_test(test_messages_hold_nothing_but_text),
        cmocka_unit_test(test_ignores_what_does_no_harm),
        cmocka_unit_test(test_rope_frequencies),
        cmocka_unit_test(test_eos_is_the_union),
        cmocka_unit_test(test_sampling_defaults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
