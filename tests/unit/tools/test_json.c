/* test_json.c - what --json prints is one line of JSON, whatever the text. */
#include "tests/unit/tools/test.h"

#include "tools/json.h"
#include "wire/wire.h"

static char line[512];

static void print(json_t *root) {
    FILE *f = fopen("line", "w");
    assert_non_null(f);
    json_line(f, root);
    assert_int_equal(fclose(f), 0);
    (void)file_read("line", line, sizeof line);
}

static void one_line_each(void **state) {
    (void)state;
    print(json_pack("{so, so}", "a", json_text("x\ny\"z"), "b", json_text(NULL)));
    assert_string_equal(line, "{\"a\":\"x\\ny\\\"z\",\"b\":null}\n");
    print(NULL);
    assert_string_equal(line, "null\n");
}

static void bytes_that_are_no_text_are_told(void **state) {
    (void)state;
    print(json_pack("[o, o]", json_text("h\xc3\xa9"), json_text("a\xff z")));
    assert_string_equal(line, "[\"h\xc3\xa9\",\"a? z\"]\n");
}

static void numbers_are_numbers(void **state) {
    (void)state;
    print(json_pack("[o, o, o, o]", json_number("12"), json_number(""), json_number("1x"),
                    json_number("-3")));
    assert_string_equal(line, "[12,null,null,-3]\n");
}

static void statuses_have_names(void **state) {
    (void)state;
    const uint64_t counts[WIRE_CANCELLED + 1] = {[WIRE_SUCCEEDED] = 3, [WIRE_CANCELLED] = 1};
    print(json_statuses(counts, WIRE_CANCELLED + 1));
    assert_string_equal(line, "{\"succeeded\":3,\"cancelled\":1}\n");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_line_each),
        cmocka_unit_test(bytes_that_are_no_text_are_told),
        cmocka_unit_test(numbers_are_numbers),
        cmocka_unit_test(statuses_have_names),
    };
    return cmocka_run_group_tests(tests, scratch_enter, scratch_leave);
}
