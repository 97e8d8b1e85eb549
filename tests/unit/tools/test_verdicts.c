/* test_verdicts.c - a root of adapters of all kinds, good and bad: `lorry adapters check` gives
 * exactly the expected verdicts, and `lorry run` exactly PEFT's answers for the good ones beside
 * finals that reject the jobs of the bad ones, all in one run. */
#include "tests/unit/tools/test.h"

#include <sys/wait.h>

#include <jansson.h>
#include <stdbool.h>

#define TINY LORRY_SOURCE_DIR "/tests/golden/tiny-llama"

static json_t *golden, *bad; /* golden.json's cases, bad.json */

static json_t *json_of(const char *path) {
    json_t *value = json_load_file(path, 0, NULL);
    assert_non_null(value);
    return value;
}

static const char *text_of(const json_t *object, const char *key) {
    return json_string_value(json_object_get(object, key));
}

/* A root of links to the folders of both lists; fails where a name is in both. */
static void root_make(void) {
    char from[512];
    char to[256];
    size_t i = 0;
    const json_t *one = NULL;
    assert_int_equal(mkdir("root", 0700), 0);
    json_array_foreach(golden, i, one) {
        if (json_is_string(json_object_get(one, "adapter"))) {
            (void)snprintf(from, sizeof from, TINY "/adapters/%s", text_of(one, "adapter"));
            (void)snprintf(to, sizeof to, "root/%s", text_of(one, "adapter"));
            assert_int_equal(symlink(from, to), 0);
        }
    }
    json_array_foreach(bad, i, one) {
        (void)snprintf(from, sizeof from, TINY "/bad/%s", text_of(one, "adapter"));
        (void)snprintf(to, sizeof to, "root/%s", text_of(one, "adapter"));
        assert_int_equal(symlink(from, to), 0);
    }
}

static int enter(void **state) {
    json_t *document = json_of(TINY "/golden.json");
    golden = json_incref(json_object_get(document, "cases"));
    json_decref(document);
    bad = json_of(TINY "/bad.json");
    int rc = scratch_enter(state);
    root_make();
    return rc;
}

static int leave(void **state) {
    json_decref(golden);
    json_decref(bad);
    return scratch_leave(state);
}

static const json_t *entry_of(const json_t *list, const char *adapter) {
    size_t i = 0;
    const json_t *one = NULL;
    json_array_foreach(list, i, one) {
        const char *name = text_of(one, "adapter");
        if (name != NULL && strcmp(name, adapter) == 0) {
            return one;
        }
    }
    return NULL;
}

/* Runs `lorry ARGUMENTS`, which exits with 1, and gives its lines, each an object by "id". */
static json_t *lorry_lines(const char *arguments) {
    char command[1024];
    (void)snprintf(command, sizeof command,
                   "env -u LORRY_CONFIG %s/tools/lorry %s --device.kind cpu --model " TINY
                   "/model --adapters root 2>errors </dev/null",
                   LORRY_BINARY_DIR, arguments);
    FILE *p = popen(command, "r");
    assert_non_null(p);
    json_t *lines = json_object();
    json_t *line = NULL;
    while ((line = json_loadf(p, JSON_DISABLE_EOF_CHECK | JSON_ALLOW_NUL, NULL)) != NULL) {
        assert_null(json_object_get(lines, text_of(line, "id"))); /* one of each */
        assert_int_equal(json_object_set_new(lines, text_of(line, "id"), line), 0);
    }
    int status = pclose(p);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) != 1) {
        char errors[4096];
        (void)file_read("errors", errors, sizeof errors);
        fail_msg("lorry %s exits with %d: %s", arguments, WEXITSTATUS(status), errors);
    }
    return lines;
}

static void assert_refused(const char *id, const char *code, const char *message,
                           const json_t *expected) {
    size_t i = 0;
    const json_t *word = NULL;
    assert_string_equal(code, text_of(expected, "error"));
    json_array_foreach(json_object_get(expected, "words"), i, word) {
        if (strstr(message, json_string_value(word)) == NULL) {
            fail_msg("%s: \"%s\" does not hold \"%s\"", id, message, json_string_value(word));
        }
    }
}

static void check_gives_the_expected_verdicts(void **state) {
    (void)state;
    json_t *verdicts = lorry_lines("adapters check --json");
    size_t good = 0;
    const char *id = NULL;
    json_t *verdict = NULL;
    json_object_foreach(verdicts, id, verdict) {
        bool ok = json_is_true(json_object_get(verdict, "ok"));
        const json_t *expected = entry_of(bad, id);
        good += ok ? 1 : 0;
        assert_int_equal(ok, expected == NULL);
        if (!ok) {
            assert_refused(id, text_of(verdict, "code"), text_of(verdict, "message"), expected);
            assert_true(text_of(verdict, "field")[0] != '\0');
        }
    }
    assert_int_equal(good, json_array_size(golden) - 1); /* the base is a case, too */
    assert_int_equal(json_object_size(verdicts), good + json_array_size(bad));
    assert_true(good >= 15);
    json_decref(verdicts);
}

static void job_write(FILE *f, const char *id, const char *adapter, json_t *tokens) {
    json_t *job = json_pack("{s:s, s:O, s:i, s:i, s:b}", "id", id, "tokens", tokens, "max_tokens",
                            64, "temperature", 0, "ignore_eos", 1);
    assert_non_null(job);
    if (adapter != NULL) {
        assert_int_equal(json_object_set_new(job, "adapter", json_string(adapter)), 0);
    }
    assert_int_equal(json_dumpf(job, f, JSON_COMPACT), 0);
    (void)fputc('\n', f);
    json_decref(job);
}

/* A job for each prompt of the goldens, "CASE/PROMPT", and one for each bad adapter. */
static void jobs_write(void) {
    FILE *f = fopen("jobs", "w");
    assert_non_null(f);
    char id[64];
    size_t i = 0, k = 0;
    const json_t *one = NULL, *prompt = NULL;
    json_array_foreach(golden, i, one) {
        json_array_foreach(json_object_get(one, "prompts"), k, prompt) {
            (void)snprintf(id, sizeof id, "%zu/%zu", i, k);
            job_write(f, id, text_of(one, "adapter"), json_object_get(prompt, "tokens"));
        }
    }
    json_t *tokens = json_pack("[i, i]", 5, 6);
    json_array_foreach(bad, i, one) {
        job_write(f, text_of(one, "adapter"), text_of(one, "adapter"), tokens);
    }
    json_decref(tokens);
    assert_int_equal(fclose(f), 0);
}

/* The finals of a case's prompts: PEFT's tokens. */
static size_t answers_compare(const json_t *finals, size_t number, const json_t *one) {
    size_t k = 0;
    const json_t *prompt = NULL;
    json_array_foreach(json_object_get(one, "prompts"), k, prompt) {
        char id[64];
        (void)snprintf(id, sizeof id, "%zu/%zu", number, k);
        const json_t *final = json_object_get(finals, id);
        assert_non_null(final);
        assert_string_equal(text_of(final, "status"), "succeeded");
        if (!json_equal(json_object_get(final, "tokens"), json_object_get(prompt, "greedy"))) {
            fail_msg("%s: other tokens than those of PEFT with %s", id, text_of(one, "adapter"));
        }
    }
    return k;
}

static void run_gives_the_expected_answers(void **state) {
    (void)state;
    jobs_write();
    json_t *finals = lorry_lines("run jobs --quiet");
    size_t i = 0;
    size_t answers = 0;
    const json_t *one = NULL;
    json_array_foreach(golden, i, one) {
        answers += answers_compare(finals, i, one);
    }
    json_array_foreach(bad, i, one) {
        const json_t *final = json_object_get(finals, text_of(one, "adapter"));
        const json_t *error = json_object_get(final, "error");
        assert_non_null(error);
        assert_string_equal(text_of(final, "status"), "rejected");
        assert_refused(text_of(one, "adapter"), text_of(error, "code"), text_of(error, "message"),
                       one);
    }
    assert_int_equal(json_object_size(finals), answers + json_array_size(bad));
    json_decref(finals);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_gives_the_expected_verdicts),
        cmocka_unit_test(run_gives_the_expected_answers),
    };
    return cmocka_run_group_tests(tests, enter, leave);
}
