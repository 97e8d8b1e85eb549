#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/err.h"

static void the_table_is_complete(void **state) {
    (void)state;
    for (int i = 0; i < ERR_COUNT; i++) {
        const char *name = err_name((enum err)i);
        const char *text = err_text((enum err)i);
        assert_non_null(name);
        assert_non_null(text);
        assert_true(strlen(name) > 0 &&
                    strspn(name, "abcdefghijklmnopqrstuvwxyz_") == strlen(name));
        assert_true(strlen(text) > 0);
        assert_int_not_equal(text[strlen(text) - 1], '.');
        for (int j = 0; j < i; j++) {
            assert_string_not_equal(name, err_name((enum err)j));
            assert_string_not_equal(text, err_text((enum err)j));
        }
    }
}

static void only_ok_is_zero_and_harmless(void **state) {
    (void)state;
    assert_int_equal(ERR_OK, 0);
    for (int i = 0; i < ERR_COUNT; i++) {
        bool ok = i == ERR_OK;
        assert_int_equal(err_disposition((enum err)i) == ERR_DO_NOTHING, ok);
        assert_int_equal(err_exit_code((enum err)i) == EXIT_DONE, ok);
        assert_in_range(err_exit_code((enum err)i), EXIT_DONE, EXIT_FENCED);
    }
}

/* These are published: finals, exit codes and the reader's handling depend on them. */
static void published_entries_stay(void **state) {
    (void)state;
    static const struct {
        enum err e;
        const char *name;
        enum err_disposition disposition;
        enum exit_code exit;
    } cases[] = {
        {ERR_NO_SPACE, "no_space", ERR_RETRY, EXIT_JOBS},
        {ERR_ADAPTER_UNREADABLE, "adapter_unreadable", ERR_LATER, EXIT_MODEL},
        {ERR_BAD_MESSAGE, "bad_message", ERR_REJECT, EXIT_JOBS},
        {ERR_UNKNOWN_ADAPTER, "unknown_adapter", ERR_REJECT, EXIT_MODEL},
        {ERR_ADAPTER_CHANGED, "adapter_changed", ERR_FAIL, EXIT_MODEL},
        {ERR_RESULT_TOO_LARGE, "result_too_large", ERR_FAIL, EXIT_JOBS},
        {ERR_BAD_CONFIG, "bad_config", ERR_FATAL, EXIT_USAGE},
        {ERR_BAD_MODEL, "bad_model", ERR_FATAL, EXIT_MODEL},
        {ERR_DEVICE, "device", ERR_FATAL, EXIT_DEVICE},
        {ERR_BROKER, "broker", ERR_FATAL, EXIT_BROKER},
        {ERR_FENCED, "fenced", ERR_FATAL, EXIT_FENCED},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_string_equal(err_name(cases[i].e), cases[i].name);
        assert_int_equal(err_disposition(cases[i].e), cases[i].disposition);
        assert_int_equal(err_exit_code(cases[i].e), cases[i].exit);
    }
    assert_int_equal(EXIT_USAGE, 2);
    assert_int_equal(EXIT_FENCED, 6);
}

static void set_fills_and_returns(void **state) {
    (void)state;
    struct err_text why = {.field = "before"};
    assert_int_equal(err_set(&why, ERR_DEVICE, "card %d", 3), ERR_DEVICE);
    assert_string_equal(why.message, "card 3");
    assert_string_equal(why.field, "");
    assert_int_equal(err_set_field(&why, ERR_BAD_FIELD, "top_p", "is %s", "2"), ERR_BAD_FIELD);
    assert_string_equal(why.message, "is 2");
    assert_string_equal(why.field, "top_p");
    assert_int_equal(err_set(NULL, ERR_DEVICE, "%s", "x"), ERR_DEVICE);
    assert_int_equal(err_set_field(NULL, ERR_DEVICE, "f", "%s", "x"), ERR_DEVICE);
}

static void long_texts_are_cut(void **state) {
    (void)state;
    struct err_text why = {0};
    char text[2 * ERR_TEXT_BYTES];
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = '\0';
    assert_int_equal(err_set_field(&why, ERR_INTERNAL, text, "%s", text), ERR_INTERNAL);
    assert_int_equal(strlen(why.message), ERR_TEXT_BYTES - 1);
    assert_int_equal(strlen(why.field), ERR_FIELD_BYTES - 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_table_is_complete),  cmocka_unit_test(only_ok_is_zero_and_harmless),
        cmocka_unit_test(published_entries_stay), cmocka_unit_test(set_fills_and_returns),
        cmocka_unit_test(long_texts_are_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
