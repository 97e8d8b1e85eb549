#include "fixture.h"

#include "config/options.h"

static void names_are_unique_and_well_formed(void **state) {
    (void)state;
    for (uint32_t i = 0; i < OPTION_COUNT; i++) {
        const struct option *o = &option_table[i];
        char a[OPTION_NAME_BYTES];
        char b[OPTION_NAME_BYTES];
        assert_true(strlen(o->help) > 0);
        assert_true(o->min <= o->max);
        assert_int_equal(option_find(o->section, o->name), i);
        assert_true(strspn(o->name, "abcdefghijklmnopqrstuvwxyz_") == strlen(o->name));
        for (uint32_t j = 0; j < i; j++) { /* a_b.c and a.b_c would be one variable */
            assert_string_not_equal(option_env_name(a, o), option_env_name(b, &option_table[j]));
        }
        if (o->type == OPTION_REAL || o->type == OPTION_INT || o->type == OPTION_BYTES) {
            assert_true(o->max > 0);
        }
    }
    assert_int_equal(option_find("kafka", "nothing"), OPTION_COUNT);
    assert_int_equal(option_find_section("nothing"), OPTION_COUNT);
}

static void sections_are_contiguous(void **state) {
    (void)state; /* the pages and --help print a heading where the section changes */
    for (uint32_t i = 1; i < OPTION_COUNT; i++) {
        if (strcmp(option_table[i].section, option_table[i - 1].section) != 0) {
            assert_int_equal(option_find_section(option_table[i].section), i);
        }
    }
}

static void names_are_spelled_for_each_place(void **state) {
    (void)state;
    char room[OPTION_NAME_BYTES];
    const struct option *o = &option_table[OPTION_ID_kafka_group_instance_id];
    assert_string_equal(option_full_name(room, o), "kafka.group_instance_id");
    assert_string_equal(option_env_name(room, o), "LORRY_KAFKA_GROUP_INSTANCE_ID");
}

static void distance_is_levenshteins(void **state) {
    (void)state;
    assert_int_equal(option_distance("", ""), 0);
    assert_int_equal(option_distance("abc", ""), 3);
    assert_int_equal(option_distance("", "abc"), 3);
    assert_int_equal(option_distance("kitten", "sitting"), 3);
    assert_int_equal(option_distance("brokers", "broker"), 1);
    assert_int_equal(option_distance("flaw", "lawn"), 2);
    char long_a[200];
    memset(long_a, 'a', sizeof long_a);
    long_a[199] = '\0';
    assert_int_equal(option_distance(long_a, ""), OPTION_NAME_BYTES - 1);
}

static void bytes_take_suffixes(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int64_t value; /* < 0: refused */
    } cases[] = {
        {"0", 0},
        {"17", 17},
        {"1K", 1024},
        {"64k", 65536},
        {"3M", 3145728},
        {"1G", 1 << 30},
        {"2T", (int64_t)2 << 40},
        {"", -1},
        {"K", -1},
        {"1KB", -1},
        {"1 K", -1},
        {" 1", -1},
        {"+1", -1},
        {"1.5G", -1},
        {"0x10", -1},
        {"9223372036854775807", INT64_MAX},
        {"9223372036854775808", -1},
        {"9007199254740992K", -1},
        {"8388608T", -1},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int64_t value = -7;
        bool good = option_parse_bytes(cases[i].text, &value);
        assert_int_equal(good, cases[i].value >= 0);
        if (good) {
            assert_int_equal(value, cases[i].value);
        }
    }
}

static void words_of_an_enum_come_from_its_help(void **state) {
    (void)state;
    const char *word;
    size_t bytes;
    const struct option *o = &option_table[OPTION_ID_device_kind];
    assert_true(option_enum_word(o, 0, &word, &bytes));
    assert_memory_equal(word, "auto|", bytes + 1);
    assert_true(option_enum_word(o, 2, &word, &bytes));
    assert_memory_equal(word, "cuda:", bytes + 1);
    assert_false(option_enum_word(o, 3, &word, &bytes));
    char room[160];
    assert_string_equal(option_takes(room, sizeof room, o), "one of auto, cpu, cuda");
    o = &option_table[OPTION_ID_log_level]; /* no explanation after the words */
    assert_true(option_enum_word(o, 3, &word, &bytes));
    assert_string_equal(word, "debug");
    assert_int_equal(bytes, 5);
    assert_false(option_enum_word(o, 4, &word, &bytes));
}

static void numbers_are_whole_and_in_range(void **state) {
    (void)state;
    static const char *const bad[] = {"",   " 1",    "1 ",  "1.0", "1e3",
                                      "-1", "65536", "0x1", "+1",  "99999999999999999999"};
    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct fixture f = {.args = {"--http.port", bad[i]}};
        fixture_refused(&f, TEXTS("--http.port", "0 .. 65535"));
    }
    static const char *const good[] = {"0", "65535", "007"};
    for (unsigned i = 0; i < sizeof good / sizeof good[0]; i++) {
        struct fixture f = {.args = {"--http.port", good[i]}};
        assert_int_equal(fixture_open(&f), ERR_OK);
        assert_int_equal(f.config->http_port, atoi(good[i]));
        fixture_close(&f);
    }
}

static void lengths_are_bounded(void **state) {
    (void)state;
    char flag[300] = "--kafka.group=";
    size_t at = strlen(flag);
    memset(flag + at, 'g', 249);
    struct fixture fits = {.args = {flag}};
    assert_int_equal(fixture_open(&fits), ERR_OK);
    fixture_close(&fits);
    flag[at + 249] = 'g';
    struct fixture too_long = {.args = {flag}};
    fixture_refused(&too_long, TEXTS("kafka.group", "1 .. 249"));
    struct fixture empty = {.args = {"--kafka.group="}};
    fixture_refused(&empty, TEXTS("kafka.group", "1 .. 249"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_are_unique_and_well_formed),
        cmocka_unit_test(sections_are_contiguous),
        cmocka_unit_test(names_are_spelled_for_each_place),
        cmocka_unit_test(distance_is_levenshteins),
        cmocka_unit_test(bytes_take_suffixes),
        cmocka_unit_test(words_of_an_enum_come_from_its_help),
        cmocka_unit_test(numbers_are_whole_and_in_range),
        cmocka_unit_test(lengths_are_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
