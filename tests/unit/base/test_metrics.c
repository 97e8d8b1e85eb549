#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/metrics.h"
#include "tests/unit/crash.h"

static struct metrics *opened(uint32_t adapters) {
    struct metrics *m = NULL;
    assert_int_equal(metrics_open(&m, adapters), ERR_OK);
    return m;
}

/* Whether the rendered text has this line. */
static bool has_line(struct metrics *m, const char *line) {
    char *text = NULL;
    size_t bytes = 0;
    char wanted[256];
    (void)snprintf(wanted, sizeof wanted, "\n%s\n", line);
    assert_int_equal(metrics_render(m, &text, &bytes), ERR_OK);
    assert_int_equal(strlen(text), bytes);
    bool found = strstr(text, wanted) != NULL;
    free(text);
    return found;
}

static void counters_and_gauges(void **state) {
    (void)state;
    struct metrics *m = opened(0);
    assert_true(has_line(m, "lorry_steps_total 0"));
    metrics_add(m, METRIC_STEPS, 2);
    metrics_add(m, METRIC_STEPS, 3);
    metrics_set(m, METRIC_JOBS_HELD, 7);
    metrics_set(m, METRIC_STORE_BYTES, 4294967296.0);
    metrics_set(m, METRIC_KAFKA_UP, 1);
    metrics_set(m, METRIC_KAFKA_UP, 0.25);
    assert_int_equal(metrics_value(m, METRIC_STEPS), 5);
    assert_true(has_line(m, "lorry_steps_total 5"));
    assert_true(has_line(m, "# TYPE lorry_steps_total counter"));
    assert_true(has_line(m, "# HELP lorry_steps_total forward passes"));
    assert_true(has_line(m, "lorry_jobs_held 7"));
    assert_true(has_line(m, "# TYPE lorry_jobs_held gauge"));
    assert_true(has_line(m, "lorry_store_bytes 4294967296"));
    assert_true(has_line(m, "lorry_kafka_up 0.25"));
    metrics_close(m);
    metrics_close(NULL);
}

static void statuses(void **state) {
    (void)state;
    struct metrics *m = opened(0);
    metrics_add_status(m, METRIC_FINALS, 0, 3);
    metrics_add_status(m, METRIC_FINALS, 4, 1);
    assert_int_equal(metrics_status_value(m, METRIC_FINALS, 0), 3);
    assert_int_equal(metrics_status_value(m, METRIC_FINALS, 1), 0);
    assert_true(has_line(m, "lorry_finals_total{status=\"succeeded\"} 3"));
    assert_true(has_line(m, "lorry_finals_total{status=\"failed\"} 0"));
    assert_true(has_line(m, "lorry_finals_total{status=\"rejected\"} 0"));
    assert_true(has_line(m, "lorry_finals_total{status=\"expired\"} 0"));
    assert_true(has_line(m, "lorry_finals_total{status=\"cancelled\"} 1"));
    metrics_close(m);
}

static void buckets_are_cumulative_and_include_their_bound(void **state) {
    (void)state;
    struct metrics *m = opened(0);
    metrics_observe(m, METRIC_STEP_SECONDS, 0);
    metrics_observe(m, METRIC_STEP_SECONDS, 0.0025);
    metrics_observe(m, METRIC_STEP_SECONDS, 0.003);
    metrics_observe(m, METRIC_STEP_SECONDS, 1000000);
    assert_true(has_line(m, "# TYPE lorry_step_seconds histogram"));
    assert_true(has_line(m, "lorry_step_seconds_bucket{le=\"0.001\"} 1"));
    assert_true(has_line(m, "lorry_step_seconds_bucket{le=\"0.0025\"} 2"));
    assert_true(has_line(m, "lorry_step_seconds_bucket{le=\"0.005\"} 3"));
    assert_true(has_line(m, "lorry_step_seconds_bucket{le=\"86400\"} 3"));
    assert_true(has_line(m, "lorry_step_seconds_bucket{le=\"+Inf\"} 4"));
    assert_true(has_line(m, "lorry_step_seconds_count 4"));
    assert_true(has_line(m, "lorry_step_seconds_sum 1000000.01"));
    assert_true(has_line(m, "lorry_queue_seconds_bucket{le=\"+Inf\"} 0"));
    metrics_close(m);
}

static void adapters_have_labels_up_to_the_bound(void **state) {
    (void)state;
    struct metrics *m = opened(2);
    uint32_t base = metrics_adapter(m, NULL);
    uint32_t a = metrics_adapter(m, "a");
    uint32_t b = metrics_adapter(m, "b");
    uint32_t c = metrics_adapter(m, "c"); /* one too many */
    uint32_t d = metrics_adapter(m, "d");
    assert_int_equal(metrics_adapter(m, "a"), a);
    assert_int_equal(metrics_adapter(m, "b"), b);
    assert_int_equal(c, d);
    assert_int_not_equal(a, b);
    assert_int_not_equal(a, c);
    assert_int_not_equal(base, a);
    assert_int_not_equal(base, c);
    metrics_add_adapter(m, METRIC_ADAPTER_JOBS, base, 1);
    metrics_add_adapter(m, METRIC_ADAPTER_JOBS, a, 2);
    metrics_add_adapter(m, METRIC_ADAPTER_JOBS, b, 3);
    metrics_add_adapter(m, METRIC_ADAPTER_JOBS, c, 4);
    metrics_add_adapter(m, METRIC_ADAPTER_JOBS, d, 5);
    assert_true(has_line(m, "lorry_adapter_jobs_total{adapter=\"base\"} 1"));
    assert_true(has_line(m, "lorry_adapter_jobs_total{adapter=\"a\"} 2"));
    assert_true(has_line(m, "lorry_adapter_jobs_total{adapter=\"b\"} 3"));
    assert_true(has_line(m, "lorry_adapter_jobs_total{adapter=\"other\"} 9"));
    assert_true(has_line(m, "lorry_adapter_tokens_total{adapter=\"a\"} 0"));
    assert_false(has_line(m, "lorry_adapter_jobs_total{adapter=\"c\"} 4"));
    metrics_close(m);
    m = opened(0); /* no labels of their own at all */
    assert_int_equal(metrics_adapter(m, "a"), metrics_adapter(m, "b"));
    assert_int_not_equal(metrics_adapter(m, "a"), metrics_adapter(m, NULL));
    metrics_close(m);
}

/* What is gauged by adapter moves up and down, and "other" holds the sum of all without a label. */
static void gauges_and_times_by_adapter(void **state) {
    (void)state;
    struct metrics *m = opened(1);
    uint32_t a = metrics_adapter(m, "a");
    uint32_t b = metrics_adapter(m, "b");
    uint32_t c = metrics_adapter(m, "c");
    metrics_shift_adapter(m, METRIC_ADAPTER_BYTES_RESIDENT, a, 5000000000);
    metrics_shift_adapter(m, METRIC_ADAPTER_BYTES_RESIDENT, b, 100);
    metrics_shift_adapter(m, METRIC_ADAPTER_BYTES_RESIDENT, c, 10);
    metrics_shift_adapter(m, METRIC_ADAPTER_BYTES_RESIDENT, b, -100);
    assert_true(has_line(m, "# TYPE lorry_adapter_bytes_resident gauge"));
    assert_true(has_line(m, "lorry_adapter_bytes_resident{adapter=\"a\"} 5000000000"));
    assert_true(has_line(m, "lorry_adapter_bytes_resident{adapter=\"other\"} 10"));
    metrics_shift_adapter(m, METRIC_ADAPTER_BYTES_RESIDENT, a, -5000000000);
    assert_true(has_line(m, "lorry_adapter_bytes_resident{adapter=\"a\"} 0"));
    metrics_shift_adapter(m, METRIC_ADAPTER_JOBS_RUNNING, a, -1); /* is shown as what it is */
    assert_true(has_line(m, "lorry_adapter_jobs_running{adapter=\"a\"} -1"));
    metrics_add_adapter(m, METRIC_ADAPTER_LOAD_SECONDS, a, 1999000);
    metrics_add_adapter(m, METRIC_ADAPTER_LOAD_SECONDS, a, 2);
    assert_true(has_line(m, "# TYPE lorry_adapter_load_seconds_total counter"));
    assert_true(has_line(m, "lorry_adapter_load_seconds_total{adapter=\"a\"} 1.999002"));
    metrics_add_adapter(m, METRIC_ADAPTER_LOADS, a, 2);
    metrics_add_adapter(m, METRIC_ADAPTER_LOADS, b, 3);
    metrics_add_adapter(m, METRIC_ADAPTER_LOADS, c, 4);
    assert_int_equal(metrics_value(m, METRIC_ADAPTER_LOADS), 9); /* nobody is left out */
    metrics_close(m);
}

/* 10,000 adapters: the text stays bounded, and the sums are whole. */
static void a_render_is_bounded(void **state) {
    (void)state;
    enum { LABELS = 16, MANY = 10000 };
    struct metrics *m = opened(LABELS);
    uint64_t jobs = 0;
    for (uint32_t i = 0; i < MANY; i++) {
        char name[32];
        (void)snprintf(name, sizeof name, "adapter-%u", i);
        metrics_add_adapter(m, METRIC_ADAPTER_JOBS, metrics_adapter(m, name), i);
        jobs += i;
    }
    char *text = NULL;
    size_t bytes = 0;
    assert_int_equal(metrics_render(m, &text, &bytes), ERR_OK);
    assert_true(bytes < (LABELS + 2) * METRIC_COUNT * 80 + METRIC_COUNT * 1500);
    static const char family[] = "lorry_adapter_jobs_total{";
    unsigned lines = 0;
    uint64_t sum = 0;
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        if (strncmp(line, family, sizeof family - 1) == 0) {
            lines++;
            sum += strtoull(strrchr(line, ' ') + 1, NULL, 10);
        }
    }
    assert_int_equal(lines, LABELS + 2);
    assert_true(sum == jobs);
    assert_true(metrics_value(m, METRIC_ADAPTER_JOBS) == jobs);
    free(text);
    metrics_close(m);
}

static void sizes_have_bounds_of_their_own(void **state) {
    (void)state;
    struct metrics *m = opened(0);
    metrics_observe(m, METRIC_STEP_ADAPTERS, 0);
    metrics_observe(m, METRIC_STEP_ADAPTERS, 3);
    metrics_observe(m, METRIC_STEP_ADAPTERS, 4);
    metrics_observe(m, METRIC_STEP_ADAPTERS, 5000);
    assert_true(has_line(m, "# TYPE lorry_step_adapters histogram"));
    assert_true(has_line(m, "lorry_step_adapters_bucket{le=\"0\"} 1"));
    assert_true(has_line(m, "lorry_step_adapters_bucket{le=\"2\"} 1"));
    assert_true(has_line(m, "lorry_step_adapters_bucket{le=\"4\"} 3"));
    assert_true(has_line(m, "lorry_step_adapters_bucket{le=\"4096\"} 3"));
    assert_true(has_line(m, "lorry_step_adapters_bucket{le=\"+Inf\"} 4"));
    assert_true(has_line(m, "lorry_step_adapters_sum 5007"));
    assert_false(has_line(m, "lorry_step_adapters_bucket{le=\"0.001\"} 1"));
    metrics_close(m);
}

static void names_that_collide_or_need_escapes(void **state) {
    (void)state;
    struct metrics *m = opened(8);
    metrics_add_adapter(m, METRIC_ADAPTER_JOBS, metrics_adapter(m, "base"), 1);
    metrics_add_adapter(m, METRIC_ADAPTER_JOBS, metrics_adapter(m, "other"), 2);
    metrics_add_adapter(m, METRIC_ADAPTER_JOBS, metrics_adapter(m, "q\"b\\s\nn"), 3);
    assert_true(has_line(m, "lorry_adapter_jobs_total{adapter=\"base\"} 0"));
    assert_true(has_line(m, "lorry_adapter_jobs_total{adapter=\"other\"} 0"));
    assert_true(has_line(m, "lorry_adapter_jobs_total{adapter=\"@base\"} 1"));
    assert_true(has_line(m, "lorry_adapter_jobs_total{adapter=\"@other\"} 2"));
    assert_true(has_line(m, "lorry_adapter_jobs_total{adapter=\"q\\\"b\\\\s\\nn\"} 3"));
    char longest[METRICS_ADAPTER_BYTES_MAX + 2];
    memset(longest, 'x', sizeof longest);
    longest[METRICS_ADAPTER_BYTES_MAX + 1] = '\0';
    uint32_t too_long = metrics_adapter(m, longest); /* no id: "other" */
    longest[METRICS_ADAPTER_BYTES_MAX] = '\0';
    assert_int_not_equal(metrics_adapter(m, longest), too_long);
    metrics_add_adapter(m, METRIC_ADAPTER_JOBS, too_long, 1);
    assert_true(has_line(m, "lorry_adapter_jobs_total{adapter=\"other\"} 1"));
    metrics_close(m);
}

static void many_adapters_keep_their_indices(void **state) {
    (void)state;
    enum { MANY = 5000 };
    struct metrics *m = opened(MANY);
    static uint32_t indices[MANY];
    static bool taken[MANY + 16];
    for (int i = 0; i < 2 * MANY; i++) {
        char name[32];
        (void)snprintf(name, sizeof name, "adapter-%d", i % MANY);
        uint32_t index = metrics_adapter(m, name);
        if (i < MANY) {
            assert_true(index < MANY + 16);
            assert_false(taken[index]);
            taken[index] = true;
            indices[i] = index;
        } else {
            assert_int_equal(index, indices[i - MANY]);
        }
    }
    metrics_close(m);
}

/* HELP and TYPE stand once and first; every line is `name[{labels}] number`. */
static void the_text_is_well_formed(void **state) {
    (void)state;
    struct metrics *m = opened(1);
    char *text = NULL;
    size_t bytes = 0;
    unsigned helps = 0;
    unsigned types = 0;
    (void)metrics_adapter(m, "a");
    assert_int_equal(metrics_render(m, &text, &bytes), ERR_OK);
    assert_int_equal(text[bytes - 1], '\n');
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        helps += strncmp(line, "# HELP lorry_", 13) == 0;
        types += strncmp(line, "# TYPE lorry_", 13) == 0;
        if (line[0] != '#') {
            char *end = NULL;
            const char *value = strrchr(line, ' ');
            assert_int_equal(strncmp(line, "lorry_", 6), 0);
            assert_non_null(value);
            (void)strtod(value + 1, &end);
            assert_true(end > value + 1 && *end == '\0');
        }
    }
    assert_int_equal(helps, METRIC_COUNT);
    assert_int_equal(types, METRIC_COUNT);
    free(text);
    metrics_close(m);
}

static void add_to_a_gauge(void *m) {
    metrics_add(m, METRIC_JOBS_HELD, 1);
}

static void add_without_a_label(void *m) {
    metrics_add(m, METRIC_FINALS, 1);
}

static void add_to_no_status(void *m) {
    metrics_add_status(m, METRIC_FINALS, METRICS_STATUS_COUNT, 1);
}

static void add_to_no_adapter(void *m) {
    metrics_add_adapter(m, METRIC_ADAPTER_JOBS, 99, 1);
}

static void shift_a_counter(void *m) {
    metrics_shift_adapter(m, METRIC_ADAPTER_JOBS, 0, 1);
}

static void add_to_a_gauge_by_adapter(void *m) {
    metrics_add_adapter(m, METRIC_ADAPTER_JOBS_RUNNING, 0, 1);
}

static void misuse_crashes(void **state) {
    (void)state;
    struct metrics *m = opened(1);
    assert_true(crashes(add_to_a_gauge, m));
    assert_true(crashes(add_without_a_label, m));
    assert_true(crashes(add_to_no_status, m));
    assert_true(crashes(add_to_no_adapter, m));
    assert_true(crashes(shift_a_counter, m));
    assert_true(crashes(add_to_a_gauge_by_adapter, m));
    metrics_close(m);
}

enum { THREADS = 4, ROUNDS = 20000 };

static void *count_up(void *context) {
    struct metrics *m = context;
    for (int i = 0; i < ROUNDS; i++) {
        char name[16];
        (void)snprintf(name, sizeof name, "a%d", i % 10);
        metrics_add(m, METRIC_STEPS, 1);
        metrics_observe(m, METRIC_STEP_SECONDS, 1);
        metrics_set(m, METRIC_JOBS_HELD, i);
        metrics_set_all(
            m, (struct metrics_level[]){{METRIC_POOL_PAGES, i}, {METRIC_POOL_PAGES_KV, i}}, 2);
        metrics_shift_adapter(m, METRIC_ADAPTER_JOBS_RUNNING, 0, i % 2 == 0 ? 1 : -1);
        metrics_add_status(m, METRIC_FINALS, 1, 1);
        metrics_add_adapter(m, METRIC_ADAPTER_JOBS, metrics_adapter(m, name), 1);
    }
    return NULL;
}

/* Of the line that begins so. */
static int number_of(const char *text, const char *line_begin) {
    char wanted[64];
    (void)snprintf(wanted, sizeof wanted, "\n%s", line_begin);
    const char *line = strstr(text, wanted);
    assert_non_null(line);
    return atoi(line + strlen(wanted));
}

static void threads_lose_no_count(void **state) {
    (void)state;
    struct metrics *m = opened(5);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, count_up, m), 0);
    }
    for (int i = 0; i < 50; i++) { /* while they count */
        char *text = NULL;
        size_t bytes = 0;
        assert_int_equal(metrics_render(m, &text, &bytes), ERR_OK);
        assert_int_equal(number_of(text, "lorry_pool_pages "),
                         number_of(text, "lorry_pool_pages_kv "));
        free(text);
    }
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    }
    assert_int_equal(metrics_value(m, METRIC_STEPS), THREADS * ROUNDS);
    assert_true(has_line(m, "lorry_step_seconds_count 80000"));
    assert_true(has_line(m, "lorry_step_seconds_sum 80000"));
    assert_true(has_line(m, "lorry_finals_total{status=\"failed\"} 80000"));
    assert_true(has_line(m, "lorry_adapter_jobs_total{adapter=\"other\"} 40000"));
    assert_true(has_line(m, "lorry_adapter_jobs_running{adapter=\"base\"} 0"));
    metrics_close(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counters_and_gauges),
        cmocka_unit_test(statuses),
        cmocka_unit_test(buckets_are_cumulative_and_include_their_bound),
        cmocka_unit_test(adapters_have_labels_up_to_the_bound),
        cmocka_unit_test(gauges_and_times_by_adapter),
        cmocka_unit_test(a_render_is_bounded),
        cmocka_unit_test(sizes_have_bounds_of_their_own),
        cmocka_unit_test(names_that_collide_or_need_escapes),
        cmocka_unit_test(many_adapters_keep_their_indices),
        cmocka_unit_test(the_text_is_well_formed),
        cmocka_unit_test(misuse_crashes),
        cmocka_unit_test(threads_lose_no_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
