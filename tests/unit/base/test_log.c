#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"

/* stderr goes into a pipe from here to release(). */
struct capture {
    int saved, read_end;
};

static struct capture capture_stderr(void) {
    int ends[2];
    struct capture c = {.saved = dup(STDERR_FILENO)};
    assert_int_equal(pipe2(ends, O_NONBLOCK), 0);
    assert_true(dup2(ends[1], STDERR_FILENO) >= 0);
    (void)close(ends[1]);
    c.read_end = ends[0];
    return c;
}

static const char *release(struct capture c, char *room, size_t room_bytes) {
    ssize_t bytes = read(c.read_end, room, room_bytes - 1);
    (void)dup2(c.saved, STDERR_FILENO);
    (void)close(c.saved);
    (void)close(c.read_end);
    room[bytes > 0 ? bytes : 0] = '\0';
    return room;
}

static void a_line_has_its_parts_in_order(void **state) {
    (void)state;
    char text[4096];
    log_configure(LOG_INFO, NULL);
    struct capture c = capture_stderr();
    log_info("admit", "job is rejected id=%s code=%d", "a/1", 7);
    (void)release(c, text, sizeof text);
    assert_int_equal(strlen(text), strlen("2000-01-01T00:00:00.000Z info  admit ") +
                                       strlen("job is rejected id=a/1 code=7\n"));
    static const char shape[] = "dddd-dd-ddTdd:dd:dd.dddZ ";
    for (unsigned i = 0; shape[i] != '\0'; i++) {
        if (shape[i] == 'd') {
            assert_in_range(text[i], '0', '9');
        } else {
            assert_int_equal(text[i], shape[i]);
        }
    }
    assert_string_equal(text + strlen(shape), "info  admit job is rejected id=a/1 code=7\n");
}

static void levels_and_facilities_choose(void **state) {
    (void)state;
    char text[8192];
    log_configure(LOG_WARN, "pool,engine");
    struct capture c = capture_stderr();
    log_error("x", "e1");
    log_warn("x", "w1");
    log_info("x", "i1");
    log_info("pool", "i2"); /* only debug lines are chosen by facility */
    log_debug("x", "d1");
    log_debug("pool", "d2");
    log_debug("engine", "d3");
    log_debug("eng", "d4");
    log_debug("engines", "d5");
    (void)release(c, text, sizeof text);
    static const char *const shown[] = {" error x e1\n", " warn  x w1\n", " debug pool d2\n",
                                        " debug engine d3\n"};
    static const char *const hidden[] = {"i1", "i2", "d1", "d4", "d5"};
    for (unsigned i = 0; i < sizeof shown / sizeof shown[0]; i++) {
        assert_non_null(strstr(text, shown[i]));
    }
    for (unsigned i = 0; i < sizeof hidden / sizeof hidden[0]; i++) {
        assert_null(strstr(text, hidden[i]));
    }
    log_configure(LOG_DEBUG, NULL);
    assert_true(log_enabled(LOG_DEBUG, "x"));
    log_configure(LOG_ERROR, "");
    assert_true(log_enabled(LOG_ERROR, "x"));
    assert_false(log_enabled(LOG_WARN, "x"));
    assert_false(log_enabled(LOG_DEBUG, "x"));
}

static void names_of_levels(void **state) {
    (void)state;
    static const char *const names[] = {"error", "warn", "info", "debug"};
    enum log_level level = LOG_ERROR;
    for (unsigned i = 0; i < 4; i++) {
        assert_true(log_level_parse(names[i], &level));
        assert_int_equal(level, i);
    }
    assert_false(log_level_parse("trace", &level));
    assert_false(log_level_parse("", &level));
    assert_int_equal(level, LOG_DEBUG); /* untouched */
}

static void long_lines_are_cut_and_still_end(void **state) {
    (void)state;
    char text[8192];
    char body[3 * LOG_LINE_BYTES];
    memset(body, 'x', sizeof body);
    body[sizeof body - 1] = '\0';
    log_configure(LOG_INFO, NULL);
    struct capture c = capture_stderr();
    log_info("x", "%s", body);
    (void)release(c, text, sizeof text);
    assert_int_equal(strlen(text), LOG_LINE_BYTES);
    assert_int_equal(text[LOG_LINE_BYTES - 1], '\n');
}

static void values_are_quoted_where_needed(void **state) {
    (void)state;
    static const struct {
        const char *text, *quoted;
    } cases[] = {
        {"plain/1:@", "plain/1:@"},
        {"", "\"\""},
        {"a b", "\"a b\""},
        {"a=b", "\"a=b\""},
        {"a\"b", "\"a\\\"b\""},
        {"a\\b", "\"a\\\\b\""},
        {"a\nb", "\"a\\nb\""},
        {"a\tb\x7f", "\"a?b?\""},
        {"é", "é"},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char room[64];
        assert_string_equal(log_quote(room, sizeof room, cases[i].text), cases[i].quoted);
    }
}

static void the_stated_room_is_enough_and_less_cuts(void **state) {
    (void)state;
    char worst[64];
    memset(worst, '"', sizeof worst);
    worst[sizeof worst - 1] = '\0';
    for (size_t room_bytes = 1; room_bytes <= 2 * 63 + 3; room_bytes++) {
        char *room = malloc(room_bytes); /* on the heap, so that the sanitizer sees its end */
        assert_non_null(room);
        const char *quoted = log_quote(room, room_bytes, worst);
        assert_true(strlen(quoted) < room_bytes);
        if (room_bytes == 2 * 63 + 3) {
            assert_int_equal(strlen(quoted), 2 * 63 + 2);
        }
        free(room);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_line_has_its_parts_in_order),
        cmocka_unit_test(levels_and_facilities_choose),
        cmocka_unit_test(names_of_levels),
        cmocka_unit_test(long_lines_are_cut_and_still_end),
        cmocka_unit_test(values_are_quoted_where_needed),
        cmocka_unit_test(the_stated_room_is_enough_and_less_cuts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
