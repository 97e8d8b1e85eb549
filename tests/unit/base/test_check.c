#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/check.h"

/* Runs `body` in a child; what it writes to stderr goes to `room`. Returns the wait status. */
static int in_child(void (*body)(void), char *room, size_t room_bytes) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        (void)signal(SIGABRT, SIG_DFL); /* cmocka's handlers are not the child's */
        (void)dup2(ends[1], STDERR_FILENO);
        body();
        _exit(0);
    }
    (void)close(ends[1]);
    ssize_t bytes = read(ends[0], room, room_bytes - 1);
    room[bytes > 0 ? bytes : 0] = '\0';
    (void)close(ends[0]);
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static void holds(void) {
    CHECK(1 + 1 == 2);
    DCHECK(1 + 1 == 2);
}

static void fails(void) {
    CHECK(1 + 1 == 3);
}

static void a_check_that_holds_goes_on(void **state) {
    (void)state;
    char text[256];
    int status = in_child(holds, text, sizeof text);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_string_equal(text, "");
}

static void a_check_that_fails_names_the_place_and_aborts(void **state) {
    (void)state;
    char text[256];
    int status = in_child(fails, text, sizeof text);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGABRT);
    assert_non_null(strstr(text, "test_check.c:"));
    assert_non_null(strstr(text, "check failed: 1 + 1 == 3\n"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_check_that_holds_goes_on),
        cmocka_unit_test(a_check_that_fails_names_the_place_and_aborts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
