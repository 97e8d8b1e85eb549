/* test_top.c - what top makes of heartbeats and metrics, and that its page fits a screen. */
#include "tests/unit/tools/test.h"

#include "tools/json.h"
#include "tools/top.h"

static struct top_state s;
static char page[1 << 16];

static void heartbeat(const char *id, const char *running, const char *rate, const char *http) {
    char values[TOP_FIELDS][TOP_FIELD_BYTES] = {"99000", "6", "4", "", "7", "", ""};
    (void)snprintf(values[3], TOP_FIELD_BYTES, "%s", running);
    (void)snprintf(values[5], TOP_FIELD_BYTES, "%s", rate);
    (void)snprintf(values[6], TOP_FIELD_BYTES, "%s", http);
    top_add_heartbeat(&s, id, values);
}

static void print(int columns, int rows) {
    FILE *f = fopen("page", "w");
    assert_non_null(f);
    top_print(f, &s, columns, rows, "\n");
    assert_int_equal(fclose(f), 0);
    (void)file_read("page", page, sizeof page);
}

static const char metrics[] = "# HELP lorry_tokens_sampled_total tokens\n"
                              "# TYPE lorry_tokens_sampled_total counter\n"
                              "lorry_tokens_sampled_total 1500\n"
                              "lorry_finals_total{status=\"failed\"} 3\n"
                              "lorry_partitions 12\nlorry_adapters_resident 5\n"
                              "lorry_jobs_running 9\nlorry_jobs_waiting NaN\n";

static void metrics_are_found_by_name(void **state) {
    (void)state;
    double v = -1;
    assert_true(top_metric(metrics, "lorry_partitions", &v) && v == 12);
    assert_true(top_metric(metrics, "lorry_tokens_sampled_total", &v) && v == 1500);
    assert_false(top_metric(metrics, "lorry_partition", &v));
    assert_false(top_metric(metrics, "lorry_finals_total", &v)); /* it has labels */
    assert_false(top_metric(metrics, "lorry_jobs_waiting", &v)); /* no number */
    assert_false(top_metric("", "x", &v));
    assert_false(top_metric("x", "x", &v));
    assert_false(top_metric("x ", "x", &v));
}

static void heartbeats_are_taken_as_far_as_they_go(void **state) {
    (void)state;
    top_begin(&s, 100000);
    heartbeat("b", "3", "12.5", "127.0.0.1:9470");
    heartbeat("a\033[2J", "-5", "", "");
    assert_int_equal(s.worker_count, 2);
    assert_int_equal(s.workers[0].running, 3);
    assert_int_equal(s.workers[0].age_ms, 1000);
    assert_true(s.workers[0].tokens_s == 12.5);
    assert_int_equal(s.workers[1].running, 0);
    assert_true(s.workers[1].tokens_s < 0);
    assert_string_equal(s.workers[1].name, "a?[2J"); /* a terminal gets no escapes of others */
    top_sort(&s);
    assert_string_equal(s.workers[1].name, "b");
}

static void metrics_win_over_the_heartbeat(void **state) {
    (void)state;
    struct top_sample last = {0};
    top_begin(&s, 100000);
    heartbeat("a", "3", "12.5", "127.0.0.1:9470");
    assert_true(top_add_metrics(&s, "127.0.0.1:9470", metrics, 1000000, &last));
    assert_int_equal(s.worker_count, 1);
    assert_int_equal(s.workers[0].running, 9);
    assert_int_equal(s.workers[0].waiting, 0);
    assert_true(s.workers[0].tokens_s == 12.5); /* no rate of one sample */
    last.tokens = 500;
    assert_true(top_add_metrics(&s, "127.0.0.1:9470", metrics, 3000000, &last));
    assert_true(s.workers[0].tokens_s == 500); /* 1000 in 2 s */
    last.tokens = 99999;                       /* it was started anew */
    assert_true(top_add_metrics(&s, "other:1", metrics, 5000000, &last));
    assert_int_equal(s.worker_count, 2);
    assert_true(s.workers[1].tokens_s < 0);
    assert_false(top_add_metrics(&s, "other:2", "<html>", 5000000, &last));
    assert_int_equal(s.worker_count, 2);
}

static const char of_adapters[] =
    "lorry_tokens_sampled_total 1500\n"
    "lorry_pool_page_bytes 2097152\nlorry_pool_pages 400\nlorry_pool_pages_free 40\n"
    "lorry_pool_pages_cached 20\nlorry_pool_pages_kv 240\nlorry_pool_pages_adapters 96\n"
    "lorry_pool_pages_pending 4\n"
    "lorry_step_adapters_sum 250\nlorry_step_adapters_count 100\n"
    "# TYPE lorry_adapter_jobs_running gauge\n"
    "lorry_adapter_jobs_running{adapter=\"base\"} 0\n"
    "lorry_adapter_jobs_running{adapter=\"a\\\"\\\\\"} 3\n"
    "lorry_adapter_jobs_running{adapter=\"b\"} 2\n"
    "lorry_adapter_jobs_running{adapter=\"c\"\n"   /* no number, */
    "lorry_adapter_jobs_running{adapter=\"c} 3\n"  /* no end, */
    "lorry_adapter_jobs_running{worker=\"c\"} 3\n" /* another label, */
    "lorry_adapter_wit{adapter=\"c\"} 3\n"         /* another family */
    "lorry_adapter_jobs_running{adapter=\"c\"} x\n"
    "lorry_adapter_jobs_waiting{adapter=\"b\"} 123456\n"
    "lorry_adapter_tokens_sampled_total{adapter=\"base\"} 0\n"
    "lorry_adapter_tokens_sampled_total{adapter=\"a\\\"\\\\\"} 100\n"
    "lorry_adapter_tokens_sampled_total{adapter=\"b\"} 1400\n"
    "lorry_adapter_loads_total{adapter=\"b\"} 4\n"
    "lorry_adapter_load_seconds_total{adapter=\"b\"} 0.050000\n"
    "lorry_adapter_evictions_total{adapter=\"b\"} 3\n"
    "lorry_adapter_bytes_stored{adapter=\"a\\\"\\\\\"} 88080384\n"
    "lorry_adapter_bytes_resident{adapter=\"b\"} 1610612736\n"
    "lorry_adapter_bytes_stored{adapter=\"b\"} 1610612736";

static const struct top_adapter *adapter_named(const char *name) {
    for (uint32_t i = 0; i < s.adapter_count; i++) {
        if (strcmp(s.adapters[i].name, name) == 0) {
            return &s.adapters[i];
        }
    }
    return NULL;
}

static void adapters_are_summed_over_workers(void **state) {
    (void)state;
    struct top_sample one = {0};
    struct top_sample two = {0};
    top_begin(&s, 100000);
    assert_true(top_add_metrics(&s, "one:1", of_adapters, 1000000, &one));
    assert_true(top_add_metrics(&s, "two:1", of_adapters, 1000000, &two));
    assert_int_equal(s.adapter_count, 3);
    assert_null(adapter_named("c"));
    assert_non_null(adapter_named("a\"\\"));
    assert_true(adapter_named("b")->figures[TOP_RUNNING] == 4);
    assert_true(adapter_named("b")->tokens_s < 0); /* one look gives no rate */
    one.tokens = two.tokens = 500;
    one.labels[2] = 400; /* b, the third: 1,000 in 2 s, on each */
    two.labels[2] = 400;
    one.steps = 50, one.step_adapters = 50; /* since then 200 in 50 steps */
    top_begin(&s, 100000);
    assert_true(top_add_metrics(&s, "one:1", of_adapters, 3000000, &one));
    assert_true(top_add_metrics(&s, "two:1", of_adapters, 3000000, &two));
    assert_true(adapter_named("b")->tokens_s == 1000);
    assert_true(adapter_named("a\"\\")->tokens_s == 0);
    assert_true(s.workers[0].adapters_step == 4);
    assert_true(s.workers[0].pool.kv == 240);
    one.tokens = 99999; /* it was started anew: no rate of what its labels had */
    top_begin(&s, 100000);
    assert_true(top_add_metrics(&s, "one:1", of_adapters, 5000000, &one));
    assert_true(adapter_named("b")->tokens_s < 0);
    top_sample_free(&one);
    top_sample_free(&two);
}

static void the_busiest_adapter_comes_first(void **state) {
    (void)state;
    struct top_sample last = {0};
    top_begin(&s, 100000);
    assert_true(top_add_metrics(&s, "one:1", of_adapters, 1000000, &last));
    last.tokens = last.steps = last.step_adapters = 0;
    last.labels[1] = 0, last.labels[2] = 1300; /* 100 tokens each: a has more that run */
    top_begin(&s, 100000);
    assert_true(top_add_metrics(&s, "one:1", of_adapters, 2000000, &last));
    top_sort(&s);
    assert_string_equal(s.adapters[0].name, "a\"\\");
    assert_string_equal(s.adapters[1].name, "b");
    print(80, 100);
    const char *a = strstr(page, "a\"\\ ");
    const char *b = strstr(page, "\nb ");
    assert_true(a != NULL && b != NULL && a < b);
    assert_non_null(strstr(a, " stored     84M     0     3      0    100     0     -     0\n"));
    assert_non_null(strstr(b, " resident  1.5G  123k     2      0    100     4    12     3\n"));
    assert_null(strstr(page, "\nbase ")); /* nobody used it */
    assert_non_null(strstr(page, "     400   60%      24%     5%      1%   10%      2.5\n"));
    json_t *root = top_json(&s);
    json_t *first = json_array_get(json_object_get(root, "adapters"), 0);
    assert_string_equal(json_string_value(json_object_get(first, "state")), "stored");
    assert_int_equal(json_array_size(json_object_get(root, "adapters")), 3);
    json_t *worker = json_array_get(json_object_get(root, "workers"), 0);
    assert_true(json_number_value(json_object_get(json_object_get(worker, "pool"), "kv")) == 240);
    json_decref(root);
    top_sample_free(&last);
}

/* Of more adapters than there is room for the rest adds to "other": the sum leaves nobody out. */
static void too_many_adapters_are_summed(void **state) {
    (void)state;
    enum { MANY = TOP_ADAPTERS_MAX + 500, LINE = 64 };
    struct top_sample last = {0};
    char *text = calloc(MANY + 1, LINE);
    assert_non_null(text);
    int at = sprintf(text, "lorry_tokens_sampled_total 1\n");
    for (int i = 0; i < MANY; i++) {
        at += sprintf(text + at, "lorry_adapter_jobs_total{adapter=\"n%d\"} 2\n", i);
    }
    top_begin(&s, 100000);
    assert_true(top_add_metrics(&s, "one:1", text, 1000000, &last));
    assert_int_equal(s.adapter_count, TOP_ADAPTERS_MAX);
    double jobs = 0;
    for (uint32_t i = 0; i < s.adapter_count; i++) {
        jobs += s.adapters[i].figures[TOP_JOBS];
    }
    assert_true(jobs == 2 * MANY);
    assert_true(adapter_named("other")->figures[TOP_JOBS] == 2 * 501);
    top_sort(&s);
    print(80, 30);
    assert_non_null(strstr(page, "more\n"));
    top_sample_free(&last);
    free(text);
}

static void a_page_fits_its_screen(void **state) {
    (void)state;
    char name[64];
    top_begin(&s, 100000);
    for (int i = 0; i < TOP_WORKERS_MAX + 3; i++) {
        (void)snprintf(name, sizeof name, "a-host-with-a-long-name.of.a.domain.example-%d", i);
        heartbeat(name, "4000000000", "123456", "");
    }
    top_problem(&s, "Redis (redis.url): %0200d", 1);
    s.topics[s.topic_count++] = (struct top_topic){.name = "lorry.jobs", .lag = 123456789};
    struct top_sample last = {0};
    assert_true(top_add_metrics(&s, "", of_adapters, 1000000, &last));
    top_sample_free(&last);
    for (int columns = 20; columns <= 200; columns += 20) {
        print(columns, 24);
        int rows = 0;
        for (char *at = page; *at != '\0'; at += strcspn(at, "\n") + 1, rows++) {
            assert_true(strcspn(at, "\n") <= (size_t)columns);
        }
        assert_int_equal(rows, 24);
    }
    print(80, 10000);
    assert_non_null(strstr(page, "and 3 more"));
    assert_non_null(strstr(page, "example-7 ")); /* the end of a name tells more */
    assert_non_null(strstr(page, "queue 123456789"));
}

static void an_unknown_queue_is_not_zero(void **state) {
    (void)state;
    top_begin(&s, 100000);
    print(80, 24);
    assert_non_null(strstr(page, "queue -"));
    s.topics[s.topic_count++] = (struct top_topic){.name = "t", .lag = -1};
    s.topics[s.topic_count++] = (struct top_topic){.name = "u", .lag = 5};
    print(80, 24);
    assert_non_null(strstr(page, "queue -"));
    json_t *root = top_json(&s);
    assert_non_null(root);
    assert_true(json_is_null(json_object_get(root, "queue")));
    json_decref(root);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(metrics_are_found_by_name),
        cmocka_unit_test(heartbeats_are_taken_as_far_as_they_go),
        cmocka_unit_test(metrics_win_over_the_heartbeat),
        cmocka_unit_test(adapters_are_summed_over_workers),
        cmocka_unit_test(the_busiest_adapter_comes_first),
        cmocka_unit_test(too_many_adapters_are_summed),
        cmocka_unit_test(a_page_fits_its_screen),
        cmocka_unit_test(an_unknown_queue_is_not_zero),
    };
    return cmocka_run_group_tests(tests, scratch_enter, scratch_leave);
}
