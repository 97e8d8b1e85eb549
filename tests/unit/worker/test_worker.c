/* The whole worker in one process: the file source, a tiny model, adapters of every kind. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "wire/wire.h"
#include "worker/worker.h"

#define TINY LORRY_SOURCE_DIR "/tests/golden/tiny-llama"

enum { ARGUMENTS_MAX = 32, LINE_BYTES = 4096 };

static char input[256], output[256];
static uint64_t preemptions, merges, tokens_cached, tokens_prompt; /* of the last run */

static int setup(void **state) {
    (void)state;
    (void)snprintf(input, sizeof input, "%s/worker-in-%d.jsonl", LORRY_BINARY_DIR, (int)getpid());
    (void)snprintf(output, sizeof output, "%s/worker-out-%d.jsonl", LORRY_BINARY_DIR,
                   (int)getpid());
    log_configure(LOG_ERROR, NULL);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    (void)unlink(input);
    (void)unlink(output);
    return 0;
}

static struct config *configure(const char *const *extra) {
    char *argv[ARGUMENTS_MAX];
    int argc = 0;
    argv[argc++] = strdup("--model=" TINY "/model");
    argv[argc++] = strdup("--adapters=" TINY "/adapters");
    argv[argc++] = strdup("--device.kind=cpu"); /* wherever the test runs */
    argv[argc++] = strdup("--pool.bytes=64M");
    for (; *extra != NULL; extra++) {
        argv[argc++] = strdup(*extra);
    }
    static const char *const no_files[] = {NULL};
    struct config_input in = {.argc = argc, .argv = argv, .files = no_files};
    struct config *c = NULL;
    struct err_text why = {0};
    int rest = 0;
    enum err e = config_open(&c, &in, NULL, &rest, &why);
    if (e != ERR_OK) {
        fail_msg("%s: %s", why.field, why.message);
    }
    assert_int_equal(rest, 0);
    for (int i = 0; i < argc; i++) {
        free(argv[i]);
    }
    return c;
}

/* Runs the input file; the finals by id. */
static json_t *run_file(const char *const *extra, struct worker_report *report) {
    struct config *c = configure(extra);
    struct worker *w = NULL;
    struct source *source = NULL;
    const struct source_ops *ops = NULL;
    struct err_text why = {0};
    enum err e = worker_open(&w, &(struct worker_options){.config = c}, &why);
    if (e == ERR_OK) {
        e = source_open_file(&source, &ops, input, output, &why);
    }
    if (e == ERR_OK) {
        e = worker_run(w, source, ops, &why);
    }
    if (e != ERR_OK) {
        fail_msg("%s %s: %s", err_name(e), why.field, why.message);
    }
    *report = worker_report(w);
    preemptions = metrics_value(worker_metrics(w), METRIC_PREEMPTIONS);
    merges = metrics_value(worker_metrics(w), METRIC_MERGES);
    tokens_cached = metrics_value(worker_metrics(w), METRIC_TOKENS_CACHED);
    tokens_prompt = metrics_value(worker_metrics(w), METRIC_TOKENS_PROMPT);
    worker_close(w);
    config_close(c);
    json_t *finals = json_object();
    FILE *file = fopen(output, "re");
    assert_non_null(file);
    char *line = NULL;
    size_t room = 0;
    while (getline(&line, &room, file) > 0) {
        json_error_t at;
        json_t *final = json_loads(line, JSON_ALLOW_NUL, &at);
        if (final == NULL) {
            fail_msg("%s: %s", at.text, line);
        }
        const char *id = json_string_value(json_object_get(final, "id"));
        assert_non_null(id);
        assert_null(json_object_get(finals, id)); /* one final a job */
        assert_int_equal(json_object_set_new(finals, id, final), 0);
    }
    free(line);
    assert_int_equal(fclose(file), 0);
    return finals;
}

static const char *text_of(const json_t *finals, const char *id, const char *field) {
    return json_string_value(json_object_get(json_object_get(finals, id), field));
}

static FILE *open_input(void) {
    FILE *file = fopen(input, "we");
    assert_non_null(file);
    return file;
}

/* Writes each prompt of the goldens as a job `times` times; the ids are adapter/prompt/time. */
static size_t write_goldens(const json_t *cases, int times) {
    FILE *file = open_input();
    size_t count = 0;
    size_t c = 0;
    size_t p = 0;
    json_t *one = NULL;
    json_t *prompt = NULL;
    for (int time = 0; time < times; time++) {
        json_array_foreach(cases, c, one) {
            json_array_foreach(json_object_get(one, "prompts"), p, prompt) {
                const char *adapter = json_string_value(json_object_get(one, "adapter"));
                char *tokens = json_dumps(json_object_get(prompt, "tokens"), JSON_COMPACT);
                (void)fprintf(file,
                              "{\"id\":\"%zu/%zu/%d\",\"adapter\":\"%s\",\"tokens\":%s,"
                              "\"max_tokens\":64,\"temperature\":0,\"ignore_eos\":true}\n",
                              c, p, time, adapter != NULL ? adapter : "", tokens);
                free(tokens);
                count++;
            }
        }
    }
    assert_int_equal(fclose(file), 0);
    return count;
}

/* ---- preemption and prefixes -------------------------------------------------------------- */

enum { SYSTEM_TOKENS = 55, PREFIX_ROUNDS = 8 };

/* Jobs that begin alike, on the base and three adapters: the same system prompt, then nothing of
 * their own or up to 33 tokens, so that borders of pages lie everywhere; some are the same
 * throughout but for the seed. Half of them sample; some have penalties, which need to know what
 * the shared pages hold. */
static size_t write_alike(void) {
    static const char *const adapters[] = {"", "r1", "r3-down", "rank-pattern"};
    static const unsigned own[] = {0, 1, 8, 9, 10, 33, 0};
    FILE *file = open_input();
    size_t count = 0;
    for (unsigned round = 0; round < PREFIX_ROUNDS; round++) {
        for (size_t a = 0; a < sizeof adapters / sizeof adapters[0]; a++) {
            unsigned tokens = SYSTEM_TOKENS + own[(round + a) % (sizeof own / sizeof own[0])];
            (void)fprintf(file, "{\"id\":\"%zu/%u\",\"adapter\":\"%s\",\"tokens\":[", a, round,
                          adapters[a]);
            for (unsigned i = 0; i < tokens; i++) {
                unsigned token = i < SYSTEM_TOKENS ? 3 + i * 7 % 250 : 3 + (i + round / 2) % 250;
                (void)fprintf(file, "%s%u", i > 0 ? "," : "", token);
            }
            (void)fprintf(file, "],\"max_tokens\":%u,\"temperature\":%s,\"seed\":%u%s}\n",
                          16 + 48 * (round % 4), round % 2 == 0 ? "0.9" : "0", 100 + round,
                          round % 4 == 3 ? ",\"repetition_penalty\":1.2,\"ignore_eos\":true" : "");
            count++;
        }
    }
    assert_int_equal(fclose(file), 0);
    return count;
}

static uint32_t cached_tokens(const json_t *final) {
    const json_t *usage = json_object_get(final, "usage");
    const json_t *details = json_object_get(usage, "prompt_tokens_details");
    uint32_t cached = (uint32_t)json_integer_value(json_object_get(details, "cached_tokens"));
    assert_int_equal(cached % 16, 0);
    assert_true(cached < json_integer_value(json_object_get(usage, "prompt_tokens")));
    return cached;
}

static bool same_final(const json_t *one, const json_t *other) {
    static const char *const fields[] = {"status", "finish_reason", "tokens", "text", "revision"};
    bool same = true;
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        same =
            same && json_equal(json_object_get(one, fields[i]), json_object_get(other, fields[i]));
    }
    return same;
}

/* All succeeded with the same tokens and text; returns how many were told of cached tokens. */
static size_t check_same(json_t *expected, json_t *finals) {
    const char *id = NULL;
    json_t *one = NULL;
    size_t cached = 0;
    assert_int_equal(json_object_size(finals), json_object_size(expected));
    json_object_foreach(expected, id, one) {
        const json_t *other = json_object_get(finals, id);
        assert_string_equal(text_of(finals, id, "status"), "succeeded");
        assert_true(same_final(one, other));
        cached += cached_tokens(other) > 0;
    }
    return cached;
}

/* Invariant 3 on the CPU: jobs that share pages, that are preempted and go on, in a pool where
 * prefixes are given up and adapters evicted, say bit for bit what they say alone. */
static void test_prefixes_and_preemption(void **state) {
    (void)state;
    size_t count = write_alike();
    struct worker_report report;
    json_t *alone = run_file(
        (const char *const[]){"--pool.prefixes=false", "--scheduler.rows=1", NULL}, &report);
    assert_int_equal(json_object_size(alone), count);
    assert_int_equal(check_same(alone, alone), 0);
    assert_int_equal(preemptions + tokens_cached, 0);
    uint64_t computed = tokens_prompt;

    json_t *shared = run_file((const char *const[]){NULL}, &report);
    size_t cached = check_same(alone, shared);
    assert_true(cached > count / 2);
    assert_int_equal(preemptions, 0);
    assert_int_equal(tokens_cached + tokens_prompt, computed);
    json_decref(shared);

    static const char *const small[] = {"--pool.pages=32",
                                        "--pool.adapters=2",
                                        "--scheduler.rows=8",
                                        "--scheduler.step_tokens=32",
                                        "--scheduler.chunk_tokens=24",
                                        NULL,
                                        NULL};
    const char *extra[7];
    memcpy(extra, small, sizeof extra);
    json_t *preempted = run_file(extra, &report);
    (void)check_same(alone, preempted);
    assert_true(preemptions > 0);
    assert_true(tokens_cached > 0);
    print_message("small pool, prefixes: %llu preempted, %llu tokens found\n",
                  (unsigned long long)preemptions, (unsigned long long)tokens_cached);
    json_decref(preempted);

    extra[5] = "--pool.prefixes=false";
    preempted = run_file(extra, &report);
    assert_int_equal(check_same(alone, preempted), 0);
    assert_true(preemptions > 0);
    assert_int_equal(tokens_cached, 0);
    print_message("small pool, no prefixes: %llu preempted\n", (unsigned long long)preemptions);
    json_decref(preempted);
    json_decref(alone);
}

/* A text of an object; NULL: absent or null. */
static void check_text(const json_t *object, const char *key, const char *expected) {
    const char *got = json_string_value(json_object_get(object, key));
    if ((got == NULL) != (expected == NULL) || (got != NULL && strcmp(got, expected) != 0)) {
        fail_msg("%s is %s, not %s", key, got != NULL ? got : "null",
                 expected != NULL ? expected : "null");
    }
}

static void check_golden(const json_t *final, const char *id, const json_t *greedy) {
    check_text(final, "status", "succeeded");
    check_text(final, "finish_reason", "length");
    if (!json_equal(json_object_get(final, "tokens"), greedy)) {
        fail_msg("job %s differs from the golden tokens", id);
    }
}

static void check_goldens(const json_t *cases, const json_t *finals, int times) {
    size_t c = 0;
    size_t p = 0;
    json_t *one = NULL;
    json_t *prompt = NULL;
    for (int time = 0; time < times; time++) {
        json_array_foreach(cases, c, one) {
            json_array_foreach(json_object_get(one, "prompts"), p, prompt) {
                char id[64];
                (void)snprintf(id, sizeof id, "%zu/%zu/%d", c, p, time);
                check_golden(json_object_get(finals, id), id, json_object_get(prompt, "greedy"));
            }
        }
    }
}

static void run_goldens(const char *const *extra, int times) {
    json_t *golden = json_load_file(TINY "/golden.json", 0, NULL);
    assert_non_null(golden);
    const json_t *cases = json_object_get(golden, "cases");
    size_t count = write_goldens(cases, times);
    struct worker_report report;
    json_t *finals = run_file(extra, &report);
    assert_int_equal(json_object_size(finals), count);
    assert_int_equal(report.finals[WIRE_SUCCEEDED], count);
    assert_int_equal(report.received, count);
    check_goldens(cases, finals, times);
    json_decref(finals);
    json_decref(golden);
}

/* PEFT's tokens through the whole worker, all adapters mixed in the batches. */
static void test_goldens_mixed(void **state) {
    (void)state;
    run_goldens((const char *const[]){NULL}, 3);
}

/* The same with a pool so small that adapters are evicted and sequences preempted, and a backlog
 * that holds the source. */
static void test_goldens_in_a_small_pool(void **state) {
    (void)state;
    run_goldens((const char *const[]){"--pool.pages=48", "--backlog.jobs=16", "--pool.adapters=2",
                                      "--scheduler.rows=6", "--scheduler.step_tokens=16",
                                      "--scheduler.chunk_tokens=16", NULL},
                2);
}

/* The same where steps of one adapter run with its product in the weights: with many adapters in a
 * batch, with few, and with evictions and preemptions. Not so by default. */
static void test_goldens_merged(void **state) {
    (void)state;
    run_goldens((const char *const[]){"--scheduler.rows=2", NULL}, 1);
    assert_int_equal(merges, 0);
    static const char *const runs[][8] = {
        {"--scheduler.merged=true", NULL},
        {"--scheduler.merged=true", "--scheduler.rows=2", NULL},
        {"--scheduler.merged=true", "--scheduler.rows=1", "--pool.adapters=1",
         "--scheduler.policy=arrival", NULL},
        {"--scheduler.merged=true", "--pool.pages=48", "--pool.adapters=2", "--scheduler.rows=4",
         "--scheduler.step_tokens=16", "--scheduler.chunk_tokens=16", NULL},
    };
    for (size_t run = 0; run < sizeof runs / sizeof runs[0]; run++) {
        run_goldens(runs[run], 2);
        print_message("run %zu: merged %llu times, %llu preemptions\n", run,
                      (unsigned long long)merges, (unsigned long long)preemptions);
        assert_true(merges > 0 || run == 0);
    }
}

static void test_one_row_at_a_time(void **state) {
    (void)state;
    run_goldens((const char *const[]){"--scheduler.rows=1", "--backlog.jobs=2", NULL}, 1);
}

/* Of transformers' log-probabilities, in float32. What is measured is printed. */
static const double LOGPROB_TOLERANCE = 1e-4;

static double apart(const json_t *ours, const json_t *theirs) {
    return fabs(json_number_value(ours) - json_number_value(theirs));
}

/* One token's entry against the golden logprob and the golden [[token, logprob], …]. Returns the
 * largest difference. */
static double check_logprobs(const json_t *entry, const json_t *chosen, const json_t *top) {
    double worst = apart(json_object_get(entry, "logprob"), chosen);
    const json_t *ours = json_object_get(entry, "top");
    assert_int_equal(json_array_size(ours), json_array_size(top));
    for (size_t i = 0; i < json_array_size(top); i++) {
        const json_t *mine = json_array_get(ours, i), *pair = json_array_get(top, i);
        double difference = apart(json_array_get(mine, 1), json_array_get(pair, 1));
        worst = difference > worst ? difference : worst;
        const json_t *next = json_array_get(json_array_get(top, i + 1), 1);
        const json_t *before = i > 0 ? json_array_get(json_array_get(top, i - 1), 1) : NULL;
        bool tied =
            next == NULL || apart(json_array_get(pair, 1), next) < 2 * LOGPROB_TOLERANCE ||
            (before != NULL && apart(json_array_get(pair, 1), before) < 2 * LOGPROB_TOLERANCE);
        assert_true(tied || json_equal(json_array_get(mine, 0), json_array_get(pair, 0)));
    }
    return worst;
}

/* transformers' generate(): greedy tokens under a repetition penalty are the same, and the
 * log-probabilities of the raw logits (tests/golden/sampling.py). */
static void test_sampling_goldens(void **state) {
    (void)state;
    json_t *cases = json_load_file(TINY "/sampling.json", 0, NULL);
    assert_non_null(cases);
    FILE *file = open_input();
    size_t c = 0;
    const json_t *one = NULL;
    json_array_foreach(cases, c, one) {
        const char *adapter = json_string_value(json_object_get(one, "adapter"));
        char *prompt = json_dumps(json_object_get(one, "prompt"), JSON_COMPACT);
        (void)fprintf(file,
                      "{\"id\":\"%zu\",\"adapter\":\"%s\",\"tokens\":%s,\"temperature\":0,"
                      "\"repetition_penalty\":%g,\"max_tokens\":%zu,\"ignore_eos\":true,"
                      "\"logprobs\":%zu}\n",
                      c, adapter != NULL ? adapter : "", prompt,
                      json_number_value(json_object_get(one, "repetition_penalty")),
                      json_array_size(json_object_get(one, "tokens")),
                      json_array_size(json_array_get(json_object_get(one, "top"), 0)));
        free(prompt);
    }
    assert_int_equal(fclose(file), 0);
    struct worker_report report;
    json_t *finals = run_file((const char *const[]){NULL}, &report);
    double worst = 0;
    json_array_foreach(cases, c, one) {
        char id[32];
        (void)snprintf(id, sizeof id, "%zu", c);
        const json_t *final = json_object_get(finals, id), *entry = NULL;
        check_golden(final, id, json_object_get(one, "tokens"));
        size_t i = 0;
        json_array_foreach(json_object_get(final, "logprobs"), i, entry) {
            assert_true(json_equal(json_object_get(entry, "token"),
                                   json_array_get(json_object_get(one, "tokens"), i)));
            double difference =
                check_logprobs(entry, json_array_get(json_object_get(one, "logprobs"), i),
                               json_array_get(json_object_get(one, "top"), i));
            worst = difference > worst ? difference : worst;
        }
        assert_int_equal(i, json_array_size(json_object_get(one, "tokens")));
    }
    print_message("%zu cases, largest difference of a log-probability %.1e\n", c, worst);
    assert_true(c >= 12 && worst <= LOGPROB_TOLERANCE);
    json_decref(finals);
    json_decref(cases);
}

/* Jobs with every sampling option, seeds given and not, over the base and adapters. */
static size_t write_sampled(void) {
    static const char *const options[] = {
        "\"temperature\":1.3,\"seed\":7",
        "\"temperature\":0.9,\"min_p\":0.02,\"top_p\":0.95",
        "\"temperature\":1,\"top_k\":40,\"presence_penalty\":1.5,\"frequency_penalty\":0.5",
        "\"temperature\":0,\"repetition_penalty\":1.3",
        "\"temperature\":0.8,\"repetition_penalty\":1.1,\"frequency_penalty\":-0.5,\"seed\":-1",
        "\"temperature\":0,\"presence_penalty\":-2,\"logprobs\":0",
    };
    static const char *const adapters[] = {"", "r1", "r8-attention"};
    FILE *file = open_input();
    size_t count = 0;
    for (size_t a = 0; a < sizeof adapters / sizeof adapters[0]; a++) {
        for (size_t o = 0; o < sizeof options / sizeof options[0]; o++) {
            for (size_t logprobs = 0; logprobs < 2; logprobs++) {
                (void)fprintf(file,
                              "{\"id\":\"%zu/%zu/%zu\",\"adapter\":\"%s\",\"tokens\":[1,%zu,9,9,5,"
                              "%zu,3,2,8],\"max_tokens\":60,\"ignore_eos\":true,%s%s}\n",
                              a, o, logprobs, adapters[a], 20 + o, 30 + a, options[o],
                              logprobs == 1 && o != 5 ? ",\"logprobs\":4" : "");
                count++;
            }
        }
    }
    assert_int_equal(fclose(file), 0);
    return count;
}

static void check_sampled(json_t *finals, const json_t *first, size_t run) {
    const char *id = NULL;
    json_t *final = NULL;
    json_object_foreach(finals, id, final) {
        const json_t *tokens = json_object_get(final, "tokens");
        const json_t *logprobs = json_object_get(final, "logprobs");
        bool asked = id[strlen(id) - 1] == '1' || id[2] == '5';
        assert_int_equal(json_array_size(tokens), 60);
        assert_int_equal(json_array_size(logprobs), asked ? 60 : 0);
        const json_t *same = json_object_get(first, id);
        if (!json_equal(tokens, json_object_get(same, "tokens")) ||
            !json_equal(logprobs, json_object_get(same, "logprobs"))) {
            fail_msg("job %s of run %zu differs from the first", id, run);
        }
    }
}

/* Design, invariant 3: on the CPU a job's tokens and log-probabilities are the same alone, in a
 * large batch, and preempted again and again. */
static void test_sampling_in_any_batch(void **state) {
    (void)state;
    static const char *const runs[][8] = {
        {NULL},
        {"--scheduler.rows=1", NULL},
        {"--pool.pages=24", "--pool.adapters=1", "--scheduler.rows=8", "--scheduler.step_tokens=16",
         "--scheduler.chunk_tokens=16", NULL},
    };
    json_t *first = NULL;
    for (size_t run = 0; run < sizeof runs / sizeof runs[0]; run++) {
        size_t count = write_sampled();
        struct worker_report report;
        json_t *finals = run_file(runs[run], &report);
        assert_int_equal(report.finals[WIRE_SUCCEEDED], count);
        check_sampled(finals, first != NULL ? first : finals, run);
        if (first == NULL) {
            first = finals;
        } else {
            json_decref(finals);
        }
        /* The runs must do what they are there for. */
        print_message("run %zu: %llu preemptions\n", run, (unsigned long long)preemptions);
        assert_true((preemptions > 0) == (run == 2));
    }
    json_decref(first);
}

/* Each bad job gets its own final and the good ones beside it are not disturbed. */
static void test_bad_jobs(void **state) {
    (void)state;
    FILE *file = open_input();
    (void)fputs("{\"id\":\"good\",\"prompt\":\"abc\",\"max_tokens\":4,\"temperature\":0}\n"
                "no json\n"
                "{\"id\":\"nobody\",\"prompt\":\"abc\",\"adapter\":\"nobody\"}\n"
                "{\"id\":\"path\",\"prompt\":\"abc\",\"adapter\":\"../model\"}\n"
                "{\"id\":\"empty\",\"prompt\":\"\"}\n"
                "{\"id\":\"negative\",\"prompt\":\"abc\",\"max_tokens\":-1}\n"
                "{\"id\":\"vocabulary\",\"tokens\":[1,100000]}\n"
                "\n"
                "{\"id\":\"good2\",\"prompt\":\"abc\",\"adapter\":\"r1\",\"max_tokens\":4}\n"
                "{\"id\":\"huge\",\"prompt\":\"abc\",\"temperature\":1e300,\"max_tokens\":4,"
                "\"repetition_penalty\":1e300,\"logprobs\":20}\n"
                "{\"id\":\"tiny\",\"prompt\":\"abc\",\"temperature\":1e-300,\"max_tokens\":4,"
                "\"repetition_penalty\":1e-300,\"min_p\":1e-300,\"top_p\":1e-300}\n",
                file);
    assert_int_equal(fclose(file), 0);
    struct worker_report report;
    json_t *finals = run_file((const char *const[]){NULL}, &report);
    static const struct {
        const char *id, *status, *code, *field;
    } expected[] = {
        {"good", "succeeded", NULL, NULL},
        {"@file/0/1", "rejected", "bad_message", NULL},
        {"nobody", "rejected", "unknown_adapter", "adapter"},
        {"path", "rejected", "bad_field", "adapter"},
        {"empty", "rejected", "bad_field", "prompt"},
        {"negative", "rejected", "bad_field", "max_tokens"},
        {"vocabulary", "rejected", "bad_field", "tokens"},
        {"good2", "succeeded", NULL, NULL},
        {"huge", "succeeded", NULL, NULL},
        {"tiny", "succeeded", NULL, NULL},
    };
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
        if (text_of(finals, expected[i].id, "status") == NULL) {
            fail_msg("no final of %s", expected[i].id);
        }
        assert_string_equal(text_of(finals, expected[i].id, "status"), expected[i].status);
        const json_t *error = json_object_get(json_object_get(finals, expected[i].id), "error");
        check_text(error, "code", expected[i].code);
        check_text(error, "field", expected[i].field);
    }
    assert_int_equal(json_object_size(finals), sizeof expected / sizeof expected[0]);
    json_decref(finals);
}

/* The job of a bad adapter: its error's code, and all words that its message must have. */
static void check_refusal(const json_t *finals, const json_t *expected) {
    const char *name = json_string_value(json_object_get(expected, "adapter"));
    const json_t *error = json_object_get(json_object_get(finals, name), "error");
    check_text(error, "code", json_string_value(json_object_get(expected, "error")));
    const char *message = json_string_value(json_object_get(error, "message"));
    size_t w = 0;
    json_t *word = NULL;
    json_array_foreach(json_object_get(expected, "words"), w, word) {
        if (strstr(message, json_string_value(word)) == NULL) {
            fail_msg("%s: no %s in: %s", name, json_string_value(word), message);
        }
    }
}

/* Refused adapters: every bad folder of the goldens fails its own job by name. */
static void test_bad_adapters(void **state) {
    (void)state;
    json_t *bad = json_load_file(TINY "/bad.json", 0, NULL);
    assert_non_null(bad);
    FILE *file = open_input();
    size_t index = 0;
    json_t *expected = NULL;
    json_array_foreach(bad, index, expected) {
        const char *name = json_string_value(json_object_get(expected, "adapter"));
        (void)fprintf(file, "{\"id\":\"%s\",\"prompt\":\"a\",\"adapter\":\"%s\"}\n", name, name);
    }
    assert_int_equal(fclose(file), 0);
    struct worker_report report;
    json_t *finals = run_file((const char *const[]){"--adapters.dir=" TINY "/bad", NULL}, &report);
    size_t count = json_array_size(bad);
    assert_true(count > 0);
    json_array_foreach(bad, index, expected) {
        check_refusal(finals, expected);
    }
    json_decref(finals);
    json_decref(bad);
}

/* The labels of metrics are the names on the wire. */
static void test_status_labels(void **state) {
    (void)state;
    for (int i = 0; i < METRICS_STATUS_COUNT; i++) {
        assert_string_equal(METRICS_STATUS[i], wire_status_name((enum wire_status)i));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goldens_mixed),    cmocka_unit_test(test_goldens_in_a_small_pool),
        cmocka_unit_test(test_goldens_merged),   cmocka_unit_test(test_one_row_at_a_time),
        cmocka_unit_test(test_bad_jobs),         cmocka_unit_test(test_bad_adapters),
        cmocka_unit_test(test_status_labels),    cmocka_unit_test(test_prefixes_and_preemption),
        cmocka_unit_test(test_sampling_goldens), cmocka_unit_test(test_sampling_in_any_batch),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
