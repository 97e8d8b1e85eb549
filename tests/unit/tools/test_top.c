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
        cmocka_unit_test(a_page_fits_its_screen),
        cmocka_unit_test(an_unknown_queue_is_not_zero),
    };
    return cmocka_run_group_tests(tests, scratch_enter, scratch_leave);
}
