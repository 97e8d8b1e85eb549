#include "fixture.h"

#include "config/options.h"

/* What `write` prints; the caller frees it. */
static char *printed(void (*write)(FILE *out)) {
    static char *text; /* were it on the stack, gcc 12 at -O3 would say that its address leaves */
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    write(out);
    assert_int_equal(fclose(out), 0);
    return text;
}

static char *printed_config(const struct config *c) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    config_print(c, out);
    assert_int_equal(fclose(out), 0);
    return text;
}

static void values_are_printed_with_their_places(void **state) {
    (void)state;
    struct fixture f = {.file = "kafka:\n  group: g\n  jobs: [a, b]\n",
                        .env = {"LORRY_HTTP_PORT=0"},
                        .args = {"--model", "/m"}};
    assert_int_equal(fixture_open(&f), ERR_OK);
    char *text = printed_config(f.config);
    char line[256];
    (void)snprintf(line, sizeof line, "\nkafka.group=g  # %s:2\n", f.path);
    assert_non_null(strstr(text, line));
    (void)snprintf(line, sizeof line, "\nkafka.jobs=a  # %s:3\nkafka.jobs=b  # %s:3\n", f.path,
                   f.path);
    assert_non_null(strstr(text, line));
    assert_non_null(strstr(text, "model.dir=/m  # --model\n"));
    assert_non_null(strstr(text, "\nhttp.port=0  # LORRY_HTTP_PORT\n"));
    assert_non_null(strstr(text, "\nkafka.properties=  # default\n"));
    assert_non_null(strstr(text, "\npool.bytes=1G  # default\n"));
    free(text);
    fixture_close(&f);
}

static void secrets_are_masked(void **state) {
    (void)state;
    struct fixture f = {.args = {"--redis.url=redis://user:hunter2@host:1/2",
                                 "-Xsasl.password=hunter2", "-Xsasl.username=bob"}};
    assert_int_equal(fixture_open(&f), ERR_OK);
    char *text = printed_config(f.config);
    assert_null(strstr(text, "hunter2"));
    assert_non_null(strstr(text, "redis.url=redis://user:***@host:1/2  # --redis.url\n"));
    assert_non_null(strstr(text, "kafka.properties=sasl.password=***  # -X\n"));
    assert_non_null(strstr(text, "kafka.properties=sasl.username=bob  # -X\n"));
    free(text);
    fixture_close(&f);
}

static void masks_keep_what_is_harmless(void **state) {
    (void)state;
    static const struct {
        const char *text, *masked;
    } cases[] = {
        {"", ""},
        {"redis://h:1/0", "redis://h:1/0"},
        {"redis://:pw@h", "redis://:***@h"},
        {"redis://u@h", "redis://u@h"},
        {"redis://u:p@w:x@h/0", "redis://u:***@h/0"},
        {"unix:///s?password=pw&db=1", "unix:///s?***"},
        {"rediss://u:p@h?password=pw", "rediss://u:***@h?***"},
        {"debug=cgrp", "debug=cgrp"},
        {"ssl.key.PEM=x", "ssl.key.PEM=***"},
        {"SASL.Password=x=y", "SASL.Password=***"},
        {"sasl.jaas.config=x", "sasl.jaas.config=***"},
        {"sasl.oauthbearer.client.secret=x", "sasl.oauthbearer.client.secret=***"},
        {"sasl.oauthbearer.token.endpoint.url=http://a:b@c",
         "sasl.oauthbearer.token.endpoint.url=***"},
        {"sasl.oauthbearer.config=x", "sasl.oauthbearer.config=***"},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char room[256];
        assert_string_equal(config_mask(room, sizeof room, cases[i].text), cases[i].masked);
    }
}

/* The example file loads, as it is and with every option uncommented, and changes nothing. */
static void the_example_is_the_defaults(void **state) {
    (void)state;
    char *example = printed(config_write_example);
    struct fixture plain = {0};
    assert_int_equal(fixture_open(&plain), ERR_OK);
    for (int uncommented = 0; uncommented < 2; uncommented++) {
        struct fixture f = {.file = example};
        assert_int_equal(fixture_open(&f), ERR_OK);
        for (uint32_t i = 0; i < OPTION_COUNT; i++) {
            const struct config_value *a = &((struct config_store *)plain.config)->values[i];
            const struct config_value *b = &((struct config_store *)f.config)->values[i];
            assert_int_equal(a->count, b->count);
            assert_int_equal(strcmp(b->place, "default") != 0, uncommented);
            for (uint32_t j = 0; j < a->count; j++) {
                assert_string_equal(a->items[j], b->items[j]);
            }
        }
        fixture_close(&f);
        for (char *at = strstr(example, "\n  #"); at != NULL; at = strstr(at + 1, "\n  #")) {
            if (at[4] != ' ') {
                at[3] = ' ';
            }
        }
    }
    fixture_close(&plain);
    free(example);
}

static void pages_name_every_option(void **state) {
    (void)state;
    char *help = printed(config_help);
    char *page = printed(config_write_markdown);
    for (uint32_t i = 0; i < OPTION_COUNT; i++) {
        char name[OPTION_NAME_BYTES];
        assert_non_null(strstr(page, option_full_name(name, &option_table[i])));
        assert_non_null(strstr(help, name));
    }
    assert_non_null(strstr(help, "--[no-]wire.strict "));
    assert_non_null(strstr(help, "--device.kind auto|cpu|cuda "));
    free(help);
    free(page);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_are_printed_with_their_places),
        cmocka_unit_test(secrets_are_masked),
        cmocka_unit_test(masks_keep_what_is_harmless),
        cmocka_unit_test(the_example_is_the_defaults),
        cmocka_unit_test(pages_name_every_option),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
