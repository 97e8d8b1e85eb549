/* common.c - flags, messages and progress of the sub-commands; interruption. */
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "tools/tool.h"

enum { PROGRESS_US = 100000 };

/* ---- flags -------------------------------------------------------------------------------- */

const char *tool_flag(const struct tool *t, const char *name) {
    size_t bytes = strlen(name);
    for (int i = 0; t->command->own_flags[i] != NULL; i++) {
        const char *flag = t->command->own_flags[i];
        bool same = strncmp(flag, name, bytes) == 0;
        if (same && (flag[bytes] == '\0' || flag[bytes] == '=')) {
            return t->values[i];
        }
    }
    CHECK(!"the command has this flag");
    return NULL;
}

enum err tool_int(const char *name, const char *text, int64_t min, int64_t max, int64_t *value,
                  struct err_text *why) {
    char *end = NULL;
    errno = 0;
    long long n = strtoll(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || n < min || n > max) {
        return err_set(why, ERR_BAD_CONFIG, "%s takes a number %lld .. %lld, not '%.64s'", name,
                       (long long)min, (long long)max, text);
    }
    *value = n;
    return ERR_OK;
}

const char *tool_folder_name(const char *folder, char room[TOOL_NAME_BYTES]) {
    char *real = realpath(folder, NULL); /* "." and links have a name too */
    const char *path = real != NULL ? real : folder;
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/') {
        end--;
    }
    size_t begin = end;
    while (begin > 0 && path[begin - 1] != '/') {
        begin--;
    }
    (void)snprintf(room, TOOL_NAME_BYTES, "%.*s", (int)(end - begin), path + begin);
    free(real);
    return room;
}

const char *tool_model_name(const struct config *c, char room[TOOL_NAME_BYTES]) {
    if (c->model_name[0] != '\0') {
        return c->model_name;
    }
    return c->model_dir[0] != '\0' ? tool_folder_name(c->model_dir, room) : NULL;
}

/* ---- messages ----------------------------------------------------------------------------- */

static void say(const char *format, va_list arguments) {
    (void)fprintf(stderr, "%slorry:%s ", tool_colour(stderr, TOOL_DIM),
                  tool_colour(stderr, TOOL_PLAIN));
    (void)vfprintf(stderr, format, arguments);
    (void)fputc('\n', stderr);
}

void tool_note(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    say(format, arguments);
    va_end(arguments);
}

int tool_fail(enum err e, const struct err_text *why) {
    const char *message = why->message[0] != '\0' ? why->message : err_text(e);
    /* many messages name their field already */
    bool named = why->field[0] == '\0' || strstr(message, why->field) != NULL;
    tool_note("%serror:%s %s%s%s", tool_colour(stderr, TOOL_RED), tool_colour(stderr, TOOL_PLAIN),
              named ? "" : why->field, named ? "" : ": ", message);
    return (int)err_exit_code(e);
}

int tool_usage(const struct tool *t, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    say(format, arguments);
    va_end(arguments);
    (void)fprintf(stderr, "usage: lorry %s %s\n`lorry help %s` tells more.\n", t->command->name,
                  t->command->arguments, t->command->name);
    return EXIT_USAGE;
}

const char *tool_colour(FILE *out, enum tool_colour colour) {
    static const char *const escapes[] = {[TOOL_PLAIN] = "\033[0m",
                                          [TOOL_GREEN] = "\033[32m",
                                          [TOOL_YELLOW] = "\033[33m",
                                          [TOOL_RED] = "\033[31m",
                                          [TOOL_DIM] = "\033[2m"};
    const char *none = getenv("NO_COLOR");
    const char *term = getenv("TERM");
    bool plain = (none != NULL && none[0] != '\0') || term == NULL || strcmp(term, "dumb") == 0 ||
                 isatty(fileno(out)) == 0;
    return plain ? "" : escapes[colour];
}

/* ---- progress ----------------------------------------------------------------------------- */

void progress_init(struct progress *p, bool quiet) {
    *p = (struct progress){.off = quiet || isatty(STDERR_FILENO) == 0, .begin_us = clock_mono_us()};
    p->next_us = p->begin_us + PROGRESS_US;
}

bool progress_due(const struct progress *p) {
    return !p->off && clock_mono_us() >= p->next_us;
}

void progress_line(struct progress *p, const char *format, ...) {
    if (p->off) {
        return;
    }
    va_list arguments;
    va_start(arguments, format);
    (void)fputs("\r\033[K", stderr);
    (void)vfprintf(stderr, format, arguments);
    (void)fflush(stderr);
    va_end(arguments);
    p->shown = true;
    p->next_us = clock_mono_us() + PROGRESS_US;
}

void progress_clear(struct progress *p) {
    if (p->shown) {
        (void)fputs("\r\033[K", stderr);
        (void)fflush(stderr);
        p->shown = false;
    }
}

double progress_seconds(const struct progress *p) {
    return (double)(clock_mono_us() - p->begin_us) / 1e6;
}

const char *tool_duration(char room[32], double seconds) {
    long s = seconds > 0 && seconds < 1e9 ? (long)(seconds + 0.5) : 0;
    if (s >= 3600) {
        (void)snprintf(room, 32, "%ld h %02ld min", s / 3600, s % 3600 / 60);
    } else if (s >= 60) {
        (void)snprintf(room, 32, "%ld min %02ld s", s / 60, s % 60);
    } else {
        (void)snprintf(room, 32, "%ld s", s);
    }
    return room;
}

/* ---- interruption ------------------------------------------------------------------------- */

static volatile sig_atomic_t interrupted; /* a handler can reach nothing else */

static void on_signal(int number) {
    (void)number;
    interrupted = 1;
}

void tool_catch_interrupts(void) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    (void)sigemptyset(&action.sa_mask);
    (void)sigaction(SIGINT, &action, NULL);
    (void)sigaction(SIGTERM, &action, NULL);
}

bool tool_interrupted(void) {
    return interrupted != 0;
}
