/* adapter_config.json: scales, and PEFT's rule for patterns. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>

#include "model/peft_config.h"

static enum err parse(const char *fields, struct model_peft *p, struct err_text *why) {
    char text[4096];
    (void)snprintf(text, sizeof text, "{\"peft_type\": \"LORA\"%s%s}", fields[0] ? ", " : "",
                   fields);
    char *copy = strdup(text);
    struct model_bytes bytes = {(uint8_t *)copy, strlen(copy)};
    enum err e = model_peft_parse(p, &bytes, why);
    free(copy);
    return e;
}

static struct model_peft accepts(const char *fields) {
    struct model_peft p = {0};
    struct err_text why = {0};
    if (parse(fields, &p, &why) != ERR_OK) {
        fail_msg("%s: %s", fields, why.message);
    }
    return p;
}

static void refuses(const char *fields, enum err error, const char *field) {
    struct model_peft p = {0};
    struct err_text why = {0};
    assert_int_equal(parse(fields, &p, &why), error);
    if (strcmp(why.field, field) != 0 || strstr(why.message, field) == NULL) {
        fail_msg("%s: field \"%s\", message \"%s\"", fields, why.field, why.message);
    }
}

#define Q0 "model.layers.0.self_attn.q_proj"
#define Q10 "model.layers.10.self_attn.q_proj"
#define UP3 "model.layers.3.mlp.up_proj"

static void test_scales(void **state) {
    (void)state;
    struct model_peft p = accepts("");
    assert_int_equal(model_peft_rank(&p, Q0), 8); /* PEFT's defaults */
    assert_true(model_peft_scale(&p, Q0, 8) == 1);
    model_peft_deinit(&p);
    p = accepts("\"r\": 16, \"lora_alpha\": 24");
    assert_int_equal(model_peft_rank(&p, UP3), 16);
    assert_true(model_peft_scale(&p, UP3, 16) == 1.5F);
    model_peft_deinit(&p);
    p = accepts("\"r\": 16, \"lora_alpha\": 24.0, \"use_rslora\": true");
    assert_true(model_peft_scale(&p, UP3, 16) == 6);
    assert_true(fabsf(model_peft_scale(&p, UP3, 5) - 24 / sqrtf(5)) < 1e-6F);
    model_peft_deinit(&p);
}

/* Each key, a path, and whether Python's re.match(rf"(.*\.)?({key})$", path) finds it. */
static void test_patterns_match_as_python_does(void **state) {
    (void)state;
    static const struct {
        const char *key, *path;
        bool matches;
    } cases[] = {
        {"q_proj", Q0, true},
        {"proj", Q0, false},
        {"self_attn.q_proj", Q0, true},
        {"attn.q_proj", Q0, false},
        {"layers.0.self_attn.q_proj", Q0, true},
        {"layers.0.self_attn.q_proj", Q10, false},
        {"0.self_attn.q_proj", Q10, false},
        {"1..self_attn.q_proj", Q10, true}, /* a dot is any character */
        {"self.attn.q.proj", Q0, true},
        {Q0, Q0, true},
        {"x" Q0, Q0, false},
        {"^model.layers.0.self_attn.q_proj", Q0, true},
        {"^layers.0.self_attn.q_proj", Q0, false},
        {"q_proj$", Q0, true},
        {"layers\\\\.\\\\d+\\\\.self_attn\\\\.(q|k)_proj", Q10, true},
        {"layers\\\\.\\\\d\\\\.self_attn\\\\.(q|k)_proj", Q10, false},
        {"layers\\\\.[0-3]\\\\.mlp\\\\.(?:up|gate)_proj", UP3, true},
        {"layers\\\\.[^0-3]\\\\.mlp\\\\.(?:up|gate)_proj", UP3, false},
        {".*q_proj", Q0, true},
        {".*_proj", UP3, true},
        {"q_proj|up_proj", UP3, true},
        {"up", UP3, false},
        {"(up_)?proj", UP3, true},
        {"(up_)+proj", Q0, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char fields[256];
        (void)snprintf(fields, sizeof fields, "\"r\": 3, \"rank_pattern\": {\"%s\": 5}",
                       cases[i].key);
        struct model_peft p = accepts(fields);
        if (model_peft_rank(&p, cases[i].path) != (cases[i].matches ? 5 : 3)) {
            fail_msg("%s on %s", cases[i].key, cases[i].path);
        }
        model_peft_deinit(&p);
    }
}

static void test_the_first_match_wins(void **state) {
    (void)state;
    struct model_peft p = accepts("\"r\": 3, \"rank_pattern\": {\"z.*none\": 9, \"q_proj\": 4, "
                                  "\"layers.0.self_attn.q_proj\": 5, \".*_proj\": 6}, "
                                  "\"lora_alpha\": 12, \"alpha_pattern\": {\"up_proj\": 1.5}");
    assert_int_equal(model_peft_rank(&p, Q0), 4);
    assert_int_equal(model_peft_rank(&p, UP3), 6);
    assert_true(model_peft_scale(&p, UP3, 6) == 0.25F);
    assert_true(model_peft_scale(&p, Q0, 4) == 3);
    model_peft_deinit(&p);
}

static void test_refuses_patterns_that_posix_reads_otherwise(void **state) {
    (void)state;
    static const char *const keys[] = {
        "(?=q)q_proj", "(?i)q_proj", "q{1}_proj", "\\\\w+", "\\\\bq_proj", "q*?_proj",
        "q++_proj",    "a|",         "|a",        "(|a)",   "(a",          "a)",
        "a)|(b",       "*q",         "[a",        "[]a]",   "[[:x:]]",     "[a\\\\d]",
        "q proj",      "(^*a)",      "()",        "",       "q_proj\\\\",  "a\\\\1",
    };
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        char fields[256];
        (void)snprintf(fields, sizeof fields, "\"rank_pattern\": {\"q_proj\": 1, \"%s\": 5}",
                       keys[i]);
        refuses(fields, ERR_UNSUPPORTED_ADAPTER, "rank_pattern");
        (void)snprintf(fields, sizeof fields, "\"alpha_pattern\": {\"%s\": 5}", keys[i]);
        refuses(fields, ERR_UNSUPPORTED_ADAPTER, "alpha_pattern");
    }
    char fields[MODEL_PATTERN_BYTES_MAX + 64] = "\"rank_pattern\": {\"";
    size_t at = strlen(fields);
    memset(fields + at, 'q', MODEL_PATTERN_BYTES_MAX + 1);
    (void)snprintf(fields + at + MODEL_PATTERN_BYTES_MAX + 1, 16, "\": 5}");
    refuses(fields, ERR_UNSUPPORTED_ADAPTER, "rank_pattern");
}

/* regcomp() would double what stands behind each +: eighty of them are more than any memory. */
static void test_refuses_patterns_that_cost_without_bound(void **state) {
    (void)state;
    static const char *const keys[] = {"(a+)+", "(a*)*", "((a+)?b)+", "(a|(b*c))+d"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        char fields[128];
        (void)snprintf(fields, sizeof fields, "\"rank_pattern\": {\"%s\": 5}", keys[i]);
        refuses(fields, ERR_UNSUPPORTED_ADAPTER, "rank_pattern");
    }
    struct model_peft p = accepts("\"rank_pattern\": {\"(layers\\\\.\\\\d+.(a|b)*)?.*q_proj\": 5}");
    assert_int_equal(model_peft_rank(&p, Q10), 5);
    model_peft_deinit(&p);
    char many[16 * (MODEL_EXPRESSIONS_MAX + 2)] = "\"alpha_pattern\": {";
    for (int i = 0; i <= MODEL_EXPRESSIONS_MAX; i++) {
        (void)snprintf(many + strlen(many), 16, "%s\"a*%d\": 5", i > 0 ? ", " : "", i);
    }
    memcpy(many + strlen(many), "}", 2);
    refuses(many, ERR_UNSUPPORTED_ADAPTER, "alpha_pattern");
}

static void test_refuses_wrong_types(void **state) {
    (void)state;
    refuses("\"r\": 0", ERR_BAD_ADAPTER, "r");
    refuses("\"r\": 8.0", ERR_BAD_ADAPTER, "r");
    refuses("\"r\": -8", ERR_BAD_ADAPTER, "r");
    refuses("\"lora_alpha\": \"16\"", ERR_BAD_ADAPTER, "lora_alpha");
    refuses("\"use_rslora\": 1", ERR_BAD_ADAPTER, "use_rslora");
    refuses("\"lora_bias\": \"yes\"", ERR_BAD_ADAPTER, "lora_bias");
    refuses("\"rank_pattern\": [4]", ERR_BAD_ADAPTER, "rank_pattern");
    refuses("\"rank_pattern\": {\"q\": 4.5}", ERR_BAD_ADAPTER, "rank_pattern");
    refuses("\"alpha_pattern\": {\"q\": \"4\"}", ERR_BAD_ADAPTER, "alpha_pattern");
    refuses("\"alpha_pattern\": {\"q\": 1e300}", ERR_BAD_ADAPTER, "alpha_pattern");
    refuses("\"bias\": 1", ERR_BAD_ADAPTER, "bias");
    refuses("\"base_model_name_or_path\": 1", ERR_BAD_ADAPTER, "base_model_name_or_path");
}

static void test_unset_fields_do_no_harm(void **state) {
    (void)state;
    struct model_peft p = accepts(
        "\"use_dora\": false, \"modules_to_save\": null, \"layer_replication\": [], "
        "\"later\": {}, \"later_still\": 0, \"last\": \"\", \"init_lora_weights\": \"gaussian\", "
        "\"target_modules\": \"all-linear\", \"lora_dropout\": 0.1, \"peft_version\": \"9\", "
        "\"base_model_name_or_path\": \"somewhere/else\", \"megatron_core\": \"megatron.core\"");
    model_peft_deinit(&p);
    refuses("\"later\": {\"a\": 0}", ERR_UNSUPPORTED_ADAPTER, "later");
    refuses("\"init_lora_weights\": \"olora\"", ERR_UNSUPPORTED_ADAPTER, "init_lora_weights");
    refuses("\"a\\u001bb\": true", ERR_UNSUPPORTED_ADAPTER, "a?b");
    refuses("\"\": 1", ERR_UNSUPPORTED_ADAPTER, "\"\"");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scales),
        cmocka_unit_test(test_patterns_match_as_python_does),
        cmocka_unit_test(test_the_first_match_wins),
        cmocka_unit_test(test_refuses_patterns_that_posix_reads_otherwise),
        cmocka_unit_test(test_refuses_patterns_that_cost_without_bound),
        cmocka_unit_test(test_refuses_wrong_types),
        cmocka_unit_test(test_unset_fields_do_no_harm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
