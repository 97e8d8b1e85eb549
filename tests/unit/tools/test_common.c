/* test_common.c - flags, numbers, the base's name, interruption. */
#include "tests/unit/tools/test.h"

#include <signal.h>

#include "tools/tool.h"

static void numbers_have_bounds(void **state) {
    static const char *const bad[] = {"", "x", "5x", "0", "11", "99999999999999999999", "5.0"};
    (void)state;
    int64_t value = 0;
    struct err_text why = {0};
    assert_int_equal(tool_int("--n", "10", 1, 10, &value, &why), ERR_OK);
    assert_int_equal(value, 10);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        value = 7;
        assert_int_equal(tool_int("--n", bad[i], 1, 10, &value, &why), ERR_BAD_CONFIG);
        assert_int_equal(value, 7);
        assert_non_null(strstr(why.message, "--n"));
    }
}

static void flags_are_found_by_name(void **state) {
    static const char *const own[] = {"--topic=", "-o=", "--quiet", NULL};
    (void)state;
    const struct command c = {.own_flags = own};
    const struct tool t = {.command = &c, .values = {"jobs", NULL, ""}};
    assert_string_equal(tool_flag(&t, "--topic"), "jobs");
    assert_null(tool_flag(&t, "-o"));
    assert_string_equal(tool_flag(&t, "--quiet"), "");
}

static void base_is_named_by_its_folder(void **state) {
    char room[TOOL_NAME_BYTES];
    (void)state;
    struct config c = {.model_name = "", .model_dir = ""};
    assert_null(tool_model_name(&c, room));
    c.model_dir = "/no/such/Model-1/";
    assert_string_equal(tool_model_name(&c, room), "Model-1");
    assert_int_equal(mkdir("here", 0777), 0);
    c.model_dir = "here/.";
    assert_string_equal(tool_model_name(&c, room), "here");
    c.model_name = "said";
    assert_string_equal(tool_model_name(&c, room), "said");
}

static void durations_are_short(void **state) {
    char room[32];
    (void)state;
    assert_string_equal(tool_duration(room, 12.4), "12 s");
    assert_string_equal(tool_duration(room, 185), "3 min 05 s");
    assert_string_equal(tool_duration(room, 3720), "1 h 02 min");
    assert_string_equal(tool_duration(room, -1), "0 s");
}

static void first_interrupt_only_tells(void **state) {
    (void)state;
    assert_false(tool_interrupted());
    tool_catch_interrupts();
    assert_int_equal(raise(SIGINT), 0);
    assert_true(tool_interrupted());
    struct sigaction now;
    assert_int_equal(sigaction(SIGINT, NULL, &now), 0);
    assert_true(now.sa_handler == SIG_DFL); /* the second one kills */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers_have_bounds),         cmocka_unit_test(flags_are_found_by_name),
        cmocka_unit_test(base_is_named_by_its_folder), cmocka_unit_test(durations_are_short),
        cmocka_unit_test(first_interrupt_only_tells),
    };
    return cmocka_run_group_tests(tests, scratch_enter, scratch_leave);
}
