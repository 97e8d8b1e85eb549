#include <string.h>

#include "tests/unit/wire/cmocka_all.h"
#include "wire/wire.h"

static const char *value_of(const struct wire_header *headers, uint32_t count, const char *name) {
    for (uint32_t i = 0; i < count; i++) {
        if (strcmp(headers[i].name, name) == 0) {
            return headers[i].value;
        }
    }
    return NULL;
}

static void all_headers(void **state) {
    struct wire_header h[WIRE_DEAD_HEADERS];
    struct err_text why = {.message = "max_tokens must be at least 1", .field = "max_tokens"};
    (void)state;
    uint32_t count =
        wire_dead_headers(h, "lorry.jobs", 11, INT64_MAX, "lorry", ERR_BAD_FIELD, &why);
    assert_int_equal(count, 8);
    assert_string_equal(value_of(h, count, "__dlq.errors.topic"), "lorry.jobs");
    assert_string_equal(value_of(h, count, "__dlq.errors.partition"), "11");
    assert_string_equal(value_of(h, count, "__dlq.errors.offset"), "9223372036854775807");
    assert_string_equal(value_of(h, count, "__dlq.errors.group"), "lorry");
    assert_string_equal(value_of(h, count, "__dlq.errors.code"), "bad_field");
    assert_string_equal(value_of(h, count, "__dlq.errors.message"), why.message);
    assert_string_equal(value_of(h, count, "__dlq.errors.field"), "max_tokens");
    assert_string_equal(value_of(h, count, "__dlq.errors.version"), LORRY_VERSION);
}

static void absent_ones_are_left_out(void **state) {
    struct wire_header h[WIRE_DEAD_HEADERS];
    struct err_text empty = {0};
    (void)state;
    uint32_t count = wire_dead_headers(h, "@file", 0, 3, NULL, ERR_BAD_MESSAGE, NULL);
    assert_int_equal(count, 6);
    assert_null(value_of(h, count, "__dlq.errors.group"));
    assert_null(value_of(h, count, "__dlq.errors.field"));
    assert_string_equal(value_of(h, count, "__dlq.errors.message"), err_text(ERR_BAD_MESSAGE));
    count = wire_dead_headers(h, "@file", 0, 3, "", ERR_BAD_VERSION, &empty);
    assert_int_equal(count, 6);
    assert_string_equal(value_of(h, count, "__dlq.errors.message"), err_text(ERR_BAD_VERSION));
}

static void a_cut_character_is_dropped(void **state) {
    struct wire_header h[WIRE_DEAD_HEADERS];
    struct err_text why = {0};
    (void)state;
    memset(why.message, 'a', ERR_TEXT_BYTES - 2);
    why.message[ERR_TEXT_BYTES - 2] = '\xC3';
    uint32_t count = wire_dead_headers(h, "t", 0, 0, NULL, ERR_BAD_FIELD, &why);
    const char *message = value_of(h, count, "__dlq.errors.message");
    assert_int_equal(strlen(message), ERR_TEXT_BYTES - 2);
    assert_int_equal(message[ERR_TEXT_BYTES - 3], 'a');
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_headers),
        cmocka_unit_test(absent_ones_are_left_out),
        cmocka_unit_test(a_cut_character_is_dropped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
