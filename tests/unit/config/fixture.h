/* fixture.h - opens a config from a file's text, an environment and a command line. */
#ifndef LORRY_TESTS_CONFIG_FIXTURE_H
#define LORRY_TESTS_CONFIG_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "config/config.h"

enum { FIXTURE_WORDS = 16 };

struct fixture {
    const char *file;               /* text of the default file; NULL = it does not exist */
    size_t file_bytes;              /* 0 = strlen(file) */
    const char *env[FIXTURE_WORDS]; /* "NAME=value" */
    const char *args[FIXTURE_WORDS];
    const char *own[FIXTURE_WORDS]; /* flags of the sub-command */

    struct config *config; /* filled by fixture_open() */
    struct err_text why;
    char path[64]; /* of the file */
    char *rest[FIXTURE_WORDS];
    int rest_count;
};

static inline enum err fixture_open(struct fixture *f) {
    int argc = 0;
    char *env[FIXTURE_WORDS + 1] = {0};
    (void)snprintf(f->path, sizeof f->path, "/tmp/lorry-test-%d.yaml", (int)getpid());
    const char *files[] = {"/nonexistent/lorry.yaml", f->path, NULL};
    (void)unlink(f->path);
    if (f->file != NULL) {
        FILE *out = fopen(f->path, "w");
        size_t bytes = f->file_bytes != 0 ? f->file_bytes : strlen(f->file);
        assert_non_null(out);
        assert_int_equal(fwrite(f->file, 1, bytes, out), bytes);
        assert_int_equal(fclose(out), 0);
    }
    for (int i = 0; i < FIXTURE_WORDS && f->env[i] != NULL; i++) {
        env[i] = strdup(f->env[i]);
    }
    for (; argc < FIXTURE_WORDS && f->args[argc] != NULL; argc++) {
        f->rest[argc] = strdup(f->args[argc]);
    }
    char *argv[FIXTURE_WORDS]; /* the moved words; `rest` keeps them all for freeing */
    memcpy((void *)argv, (const void *)f->rest, sizeof argv);
    struct config_input input = {argc, argv, env, files};
    f->rest_count = -1;
    f->config = NULL;
    f->why = (struct err_text){0};
    enum err e = config_open(&f->config, &input, f->own, &f->rest_count, &f->why);
    for (int i = 0; i < argc; i++) { /* the config may not point into them */
        char *word = f->rest[i];
        bool stays = false;
        for (int j = 0; j < f->rest_count; j++) {
            stays = stays || argv[j] == word;
        }
        if (!stays) {
            free(word);
        }
        f->rest[i] = NULL;
    }
    for (int i = 0; i < f->rest_count; i++) {
        f->rest[i] = argv[i];
    }
    for (int i = 0; env[i] != NULL; i++) {
        free(env[i]);
    }
    (void)unlink(f->path);
    return e;
}

static inline void fixture_close(struct fixture *f) {
    for (int i = 0; i < f->rest_count; i++) {
        free(f->rest[i]);
    }
    config_close(f->config);
    f->config = NULL;
}

/* The config is refused, and the message holds all of the texts (NULL-terminated). */
static inline void fixture_refused(struct fixture *f, const char *const *texts) {
    assert_int_equal(fixture_open(f), ERR_BAD_CONFIG);
    assert_null(f->config);
    assert_int_equal(f->rest_count, -1);
    for (; *texts != NULL; texts++) {
        if (strstr(f->why.message, *texts) == NULL) {
            fail_msg("\"%s\" is not in \"%s\"", *texts, f->why.message);
        }
    }
}

#define TEXTS(...) ((const char *const[]){__VA_ARGS__, NULL})

#endif
