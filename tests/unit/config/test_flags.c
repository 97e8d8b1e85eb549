#include "fixture.h"

static void both_forms_are_taken(void **state) {
    (void)state;
    struct fixture f = {.args = {"--kafka.group", "g", "--http.port=5", "--model", "/m",
                                 "--adapters=/a", "--redis.url="}};
    assert_int_equal(fixture_open(&f), ERR_OK);
    assert_string_equal(f.config->kafka_group, "g");
    assert_int_equal(f.config->http_port, 5);
    assert_string_equal(f.config->model_dir, "/m");
    assert_string_equal(f.config->adapters_dir, "/a");
    assert_string_equal(f.config->redis_url, "");
    assert_int_equal(f.rest_count, 0);
    fixture_close(&f);
}

static void switches_need_no_value(void **state) {
    (void)state;
    struct fixture f = {.args = {"--wire.strict", "--no-frames.default", "false"}};
    assert_int_equal(fixture_open(&f), ERR_OK);
    assert_true(f.config->wire_strict);
    assert_false(f.config->frames_default);
    assert_int_equal(f.rest_count, 1); /* "false" is no switch's value */
    assert_string_equal(f.rest[0], "false");
    fixture_close(&f);
    struct fixture equals = {.args = {"--wire.strict=true", "--frames.default=off"}};
    assert_int_equal(fixture_open(&equals), ERR_OK);
    assert_true(equals.config->wire_strict);
    assert_false(equals.config->frames_default);
    fixture_close(&equals);
    struct fixture surplus = {.args = {"--no-wire.strict=true"}};
    fixture_refused(&surplus, TEXTS("--no-wire.strict takes no value"));
    struct fixture no_switch = {.args = {"--no-kafka.group"}};
    fixture_refused(&no_switch, TEXTS("unknown option --no-kafka.group"));
}

static void lists_add_up_and_replace_what_the_file_says(void **state) {
    (void)state;
    struct fixture f = {
        .file = "kafka: {properties: [x=file], jobs: [file]}",
        .env = {"LORRY_KAFKA_JOBS=env"},
        .args = {"-X", "a=1", "-Xb=2,3", "--kafka.properties=c=4", "--kafka.jobs", "j"}};
    assert_int_equal(fixture_open(&f), ERR_OK);
    assert_int_equal(f.config->kafka_properties.count, 3);
    assert_string_equal(f.config->kafka_properties.items[0], "a=1");
    assert_string_equal(f.config->kafka_properties.items[1], "b=2,3");
    assert_string_equal(f.config->kafka_properties.items[2], "c=4");
    assert_int_equal(f.config->kafka_jobs.count, 1);
    assert_string_equal(f.config->kafka_jobs.items[0], "j");
    fixture_close(&f);
}

static void the_rest_moves_to_the_front_in_order(void **state) {
    (void)state;
    static const char *const expected[] = {"in.jsonl", "-o",  "--http.port", "--quiet", "--limit=3",
                                           "-",        "out", "--",          "--model", "x"};
    struct fixture f = {
        .args = {"in.jsonl", "-o", "--http.port", "--http.port", "1", "--quiet", "--limit=3", "-",
                 "--wire.strict", "out", "--", "--model", "x"},
        .own = {"--quiet", "-o=", "--limit="},
    };
    assert_int_equal(fixture_open(&f), ERR_OK);
    assert_int_equal(f.rest_count, sizeof expected / sizeof expected[0]);
    for (int i = 0; i < f.rest_count; i++) {
        assert_string_equal(f.rest[i], expected[i]);
    }
    assert_int_equal(f.config->http_port, 1);
    assert_true(f.config->wire_strict);
    assert_string_equal(f.config->model_dir, "");
    fixture_close(&f);
}

static void unknown_flags_name_the_nearest(void **state) {
    (void)state;
    static const struct {
        const char *word, *nearest;
    } cases[] = {
        {"--kafka.broker=x", "unknown option --kafka.broker; nearest is --kafka.brokers"},
        {"--mdel", "nearest is --model"},
        {"--confg=x", "nearest is --config"},
        {"--qiet", "nearest is --quiet"},
        {"--limt=5", "nearest is --limit"},
        {"--brokers=x", "nearest is --kafka.brokers"},
        {"--poool.bytes=1", "nearest is --pool.bytes"},
        {"-z", "unknown option -z"},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct fixture f = {.args = {cases[i].word}, .own = {"--quiet", "--limit="}};
        fixture_refused(&f, TEXTS(cases[i].nearest));
    }
    char long_word[200] = "--";
    memset(long_word + 2, 'k', 190);
    struct fixture too_long = {.args = {long_word}};
    fixture_refused(&too_long, TEXTS("unknown option --kkk"));
}

static void a_missing_value_is_named(void **state) {
    (void)state;
    static const char *const words[] = {"--kafka.group", "--config", "-X", "--model"};
    for (unsigned i = 0; i < sizeof words / sizeof words[0]; i++) {
        struct fixture f = {.args = {"x", words[i]}};
        fixture_refused(&f, TEXTS(words[i], "needs a value"));
    }
}

static void a_bad_value_names_the_flag(void **state) {
    (void)state;
    struct fixture f = {.args = {"--http.port", "70000"}};
    fixture_refused(&f, TEXTS("--http.port: http.port takes", "\"70000\""));
    assert_string_equal(f.why.field, "http.port");
    struct fixture property = {.args = {"-X", "group.id=g"}};
    fixture_refused(&property, TEXTS("-X", "group.id", "kafka.group"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_forms_are_taken),
        cmocka_unit_test(switches_need_no_value),
        cmocka_unit_test(lists_add_up_and_replace_what_the_file_says),
        cmocka_unit_test(the_rest_moves_to_the_front_in_order),
        cmocka_unit_test(unknown_flags_name_the_nearest),
        cmocka_unit_test(a_missing_value_is_named),
        cmocka_unit_test(a_bad_value_names_the_flag),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
