/* crash.h - asserts that a call ends the process as a failed CHECK does. */
#ifndef LORRY_TESTS_UNIT_CRASH_H
#define LORRY_TESTS_UNIT_CRASH_H

#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* Whether `call(context)` aborts, tried in a child so that the test goes on. */
static inline bool crashes(void (*call)(void *context), void *context) {
    (void)fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        struct rlimit no_core = {0, 0};
        (void)setrlimit(RLIMIT_CORE, &no_core);
        (void)signal(SIGABRT, SIG_DFL);
        if (freopen("/dev/null", "w", stderr) != NULL) {
            call(context);
        }
        _exit(0);
    }
    int status = 0;
    return child > 0 && waitpid(child, &status, 0) == child && WIFSIGNALED(status) &&
           WTERMSIG(status) == SIGABRT;
}

#endif
