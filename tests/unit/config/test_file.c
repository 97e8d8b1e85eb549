#include "fixture.h"

#include "config/options.h"

static void lists_and_scalars_are_read(void **state) {
    (void)state;
    struct fixture f = {.file = "# comment\n"
                                "kafka:\n"
                                "  jobs:\n"
                                "    - a\n"
                                "    - \"b\"\n"
                                "  properties: ['debug=cgrp,fetch', sasl.password=x#y]\n"
                                "  group: 'it''s'\n"
                                "pool:\n"
                                "  bytes: 2G\n"
                                "wire: {strict: yes}\n"};
    assert_int_equal(fixture_open(&f), ERR_OK);
    assert_int_equal(f.config->kafka_jobs.count, 2);
    assert_string_equal(f.config->kafka_jobs.items[1], "b");
    assert_string_equal(f.config->kafka_properties.items[0], "debug=cgrp,fetch");
    assert_string_equal(f.config->kafka_properties.items[1], "sasl.password=x#y");
    assert_string_equal(f.config->kafka_group, "it's");
    assert_int_equal(f.config->pool_bytes, (int64_t)2 << 30);
    assert_true(f.config->wire_strict);
    fixture_close(&f);
}

static void a_plain_value_is_a_list_of_one(void **state) {
    (void)state;
    struct fixture f = {.file = "kafka: {jobs: only, properties: []}"};
    assert_int_equal(fixture_open(&f), ERR_OK);
    assert_int_equal(f.config->kafka_jobs.count, 1);
    assert_string_equal(f.config->kafka_jobs.items[0], "only");
    assert_int_equal(f.config->kafka_properties.count, 0);
    fixture_close(&f);
}

static void empty_values_leave_the_default(void **state) {
    (void)state;
    static const char *const files[] = {
        "",
        "# only a comment\n",
        "---\n",
        "~\n",
        "kafka:",
        "kafka: {group: }",
        "kafka: {group: ~}",
        "kafka:\n  group: null\n",
    };
    for (unsigned i = 0; i < sizeof files / sizeof files[0]; i++) {
        struct fixture f = {.file = files[i]};
        assert_int_equal(fixture_open(&f), ERR_OK);
        assert_string_equal(f.config->kafka_group, "lorry");
        fixture_close(&f);
    }
    struct fixture quoted = {.file = "kafka: {group: 'null', group_instance_id: \"\"}"};
    assert_int_equal(fixture_open(&quoted), ERR_OK);
    assert_string_equal(quoted.config->kafka_group, "null");
    fixture_close(&quoted);
}

static void unknown_keys_name_line_and_nearest(void **state) {
    (void)state;
    struct fixture key = {.file = "http:\n  port: 1\nkafka:\n  group: g\n  broker: x\n"};
    fixture_refused(&key, TEXTS(".yaml:5:", "\"kafka.broker\"", "nearest is \"kafka.brokers\""));
    struct fixture section = {.file = "kafak:\n  brokers: x\n"};
    fixture_refused(&section, TEXTS(".yaml:1:", "\"kafak\"", "\"kafka."));
    struct fixture elsewhere = {.file = "kafka:\n  page_tokens: 8\n"};
    fixture_refused(&elsewhere, TEXTS(".yaml:2:", "nearest is \"pool.page_tokens\""));
    struct fixture top = {.file = "brokers: x\n"};
    fixture_refused(&top, TEXTS(".yaml:1:", "\"brokers\"", "nearest is \"kafka.brokers\""));
    struct fixture dotted = {.file = "kafka.brokers: x\n"};
    fixture_refused(&dotted, TEXTS(".yaml:1:", "nested", "\"kafka:\"", "\"brokers:\""));
    char long_key[600] = "kafka:\n  ";
    memset(long_key + strlen(long_key), 'k', 400);
    memcpy(long_key + 409, ": 1\n", 5);
    struct fixture too_long = {.file = long_key};
    fixture_refused(&too_long, TEXTS(".yaml:2:", "unknown key \"kafka.kkk"));
}

static void what_is_given_twice_is_refused(void **state) {
    (void)state;
    struct fixture key = {.file = "kafka:\n  group: a\n  frames: f\n  group: b\n"};
    fixture_refused(&key, TEXTS(".yaml:4:", "kafka.group", "twice", "line 2"));
    struct fixture section = {.file = "kafka: {group: a}\nhttp: {port: 1}\nkafka: {frames: b}\n"};
    fixture_refused(&section, TEXTS(".yaml:3:", "\"kafka\"", "twice", "line 1"));
    struct fixture nothing = {.file = "kafka:\n  group:\n  group: b\n"};
    fixture_refused(&nothing, TEXTS(".yaml:3:", "twice"));
}

static void wrong_shapes_are_refused_with_their_line(void **state) {
    (void)state;
    static const struct {
        const char *file, *place, *text;
    } cases[] = {
        {"- a\n", ":1:", "sections"},
        {"just text\n", ":1:", "sections"},
        {"kafka: text\n", ":1:", "\"kafka\" must hold options"},
        {"kafka:\n  - a\n", ":2:", "must hold options"},
        {"kafka:\n  group: [a]\n", ":2:", "kafka.group takes one value, not a list"},
        {"kafka:\n  group: {a: b}\n", ":2:", "kafka.group takes a plain value"},
        {"kafka:\n  jobs:\n    - a\n    - {b: c}\n", ":4:", "kafka.jobs takes a list of plain"},
        {"kafka:\n  jobs: [[a]]\n", ":2:", "kafka.jobs takes a list of plain"},
        {"kafka:\n  [a]: b\n", ":2:", "a key must be plain text"},
        {"kafka:\n  group: &x a\n  frames: *x\n", ":3:", "aliases (*x)"},
        {"kafka: {group: a}\n---\nkafka: {group: b}\n", ":2:", "second document"},
        {"kafka: {group: \"a\\0b\"}\n", ":1:", "NUL"},
        {"kafka: {group: a\n", ":2:", "expected"},
        {"kafka:\n\tgroup: a\n", ":2:", "cannot start any token"},
        {"http:\n  port: x1\n", ":2:", "http.port takes a whole number 0 .. 65535, not \"x1\""},
        {"log:\n\n  level: loud\n", ":3:", "one of error, warn, info, debug, not \"loud\""},
        {"wire: {strict: maybe}", ":1:", "true or false"},
        {"pool: {bytes: 1X}", ":1:", "a size 1M .. 1T, not \"1X\""},
        {"kafka: {jobs: []}", ":1:", "at least one"},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct fixture f = {.file = cases[i].file};
        fixture_refused(&f, TEXTS(cases[i].place, cases[i].text));
    }
}

static void bad_bytes_are_refused(void **state) {
    (void)state;
    struct fixture utf8 = {.file = "kafka: {group: \"\xff\xfe\"}"};
    fixture_refused(&utf8, TEXTS("byte 16", "UTF-8"));
    struct fixture nul = {.file = "kafka: \0 {}", .file_bytes = 11};
    fixture_refused(&nul, TEXTS("control characters"));
}

static void sizes_are_bounded(void **state) {
    (void)state;
    size_t bytes = CONFIG_FILE_BYTES_MAX + 1;
    char *large = malloc(bytes + 1);
    assert_non_null(large);
    memset(large, '#', bytes);
    large[bytes] = '\0';
    struct fixture file = {.file = large};
    fixture_refused(&file, TEXTS("larger than"));
    large[bytes - 1] = '\0'; /* just fits */
    assert_int_equal(fixture_open(&file), ERR_OK);
    fixture_close(&file);
    free(large);

    char items[8192] = "kafka:\n  jobs: [";
    for (int i = 0; i <= OPTION_LIST_MAX; i++) {
        (void)snprintf(items + strlen(items), 16, "%s%d", i > 0 ? "," : "", i);
    }
    memcpy(items + strlen(items), "]\n", 3);
    struct fixture list = {.file = items};
    fixture_refused(&list, TEXTS("kafka.jobs has more than 256 items"));
}

static void secrets_are_not_repeated(void **state) {
    (void)state;
    struct fixture f = {.file = "kafka: {properties: [hunter2]}"};
    fixture_refused(&f, TEXTS("kafka.properties", "name=value"));
    assert_null(strstr(f.why.message, "hunter2"));
    struct fixture url = {.file = "redis: {url: 'http://u:hunter2@h'}"};
    fixture_refused(&url, TEXTS("redis.url"));
    assert_null(strstr(url.why.message, "hunter2"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lists_and_scalars_are_read),
        cmocka_unit_test(a_plain_value_is_a_list_of_one),
        cmocka_unit_test(empty_values_leave_the_default),
        cmocka_unit_test(unknown_keys_name_line_and_nearest),
        cmocka_unit_test(what_is_given_twice_is_refused),
        cmocka_unit_test(wrong_shapes_are_refused_with_their_line),
        cmocka_unit_test(bad_bytes_are_refused),
        cmocka_unit_test(sizes_are_bounded),
        cmocka_unit_test(secrets_are_not_repeated),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
