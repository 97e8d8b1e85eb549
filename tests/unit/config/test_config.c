#include "fixture.h"

static void defaults_stand(void **state) {
    (void)state;
    struct fixture f = {0};
    assert_int_equal(fixture_open(&f), ERR_OK);
    assert_string_equal(f.config->model_dir, "");
    assert_string_equal(f.config->kafka_brokers, "127.0.0.1:9092");
    assert_int_equal(f.config->kafka_jobs.count, 1);
    assert_string_equal(f.config->kafka_jobs.items[0], "lorry.jobs");
    assert_int_equal(f.config->kafka_properties.count, 0);
    assert_int_equal(f.config->pool_bytes, 1 << 30);
    assert_int_equal(f.config->store_bytes, (int64_t)4 << 30);
    assert_int_equal(f.config->http_port, 9470);
    assert_true(f.config->frames_default);
    assert_false(f.config->wire_strict);
    assert_string_equal(f.config->device_kind, "auto");
    fixture_close(&f);
}

static void flag_beats_environment_beats_file(void **state) {
    (void)state;
    struct fixture f = {
        .file = "http:\n  port: 1\nkafka:\n  group: file\nscheduler: {rows: 3}\n",
        .env = {"LORRY_HTTP_PORT=2", "LORRY_KAFKA_GROUP=env"},
        .args = {"--http.port=4"},
    };
    assert_int_equal(fixture_open(&f), ERR_OK);
    assert_int_equal(f.config->http_port, 4);
    assert_string_equal(f.config->kafka_group, "env");
    assert_int_equal(f.config->scheduler_rows, 3);
    fixture_close(&f);
}

static void values_that_are_overridden_are_checked_too(void **state) {
    (void)state;
    struct fixture f = {.file = "http: {port: 70000}", .args = {"--http.port=4"}};
    fixture_refused(&f, TEXTS(".yaml:1:", "http.port", "0 .. 65535", "\"70000\""));
}

static void lists_in_the_environment_are_cut_at_commas(void **state) {
    (void)state;
    struct fixture f = {.env = {"LORRY_KAFKA_JOBS=a,b,c", "LORRY_KAFKA_PROPERTIES="}};
    assert_int_equal(fixture_open(&f), ERR_OK);
    assert_int_equal(f.config->kafka_jobs.count, 3);
    assert_string_equal(f.config->kafka_jobs.items[2], "c");
    assert_int_equal(f.config->kafka_properties.count, 0);
    fixture_close(&f);
    struct fixture empty = {.env = {"LORRY_KAFKA_JOBS="}};
    fixture_refused(&empty, TEXTS("LORRY_KAFKA_JOBS", "kafka.jobs", "at least one"));
    struct fixture gap = {.env = {"LORRY_KAFKA_JOBS=a,,b"}};
    fixture_refused(&gap, TEXTS("LORRY_KAFKA_JOBS", "kafka.jobs"));
}

static void a_file_that_is_named_must_exist(void **state) {
    (void)state;
    struct fixture flag = {.args = {"--config", "/nonexistent/a.yaml"}};
    fixture_refused(&flag, TEXTS("/nonexistent/a.yaml", "No such file"));
    struct fixture env = {.env = {"LORRY_CONFIG=/nonexistent/b.yaml"}};
    fixture_refused(&env, TEXTS("/nonexistent/b.yaml", "No such file"));
    struct fixture folder = {.args = {"--config", "/tmp"}};
    fixture_refused(&folder, TEXTS("/tmp", "directory"));
    struct fixture empty = {.env = {"LORRY_CONFIG="}, .file = "http: {port: 7}"};
    assert_int_equal(fixture_open(&empty), ERR_OK);
    assert_int_equal(empty.config->http_port, 7);
    fixture_close(&empty);
}

static void a_named_file_replaces_the_default_places(void **state) {
    (void)state;
    struct fixture f = {.file = "http: {port: 7}", .args = {"--config=/dev/null"}};
    assert_int_equal(fixture_open(&f), ERR_OK);
    assert_int_equal(f.config->http_port, 9470);
    fixture_close(&f);
}

static void home_is_expanded_in_paths_only(void **state) {
    (void)state;
    struct fixture f = {.env = {"HOME=/h", "LORRY_MODEL_DIR=~/m"},
                        .args = {"--adapters", "~", "--kafka.group=~/g", "--state.dir=/s"}};
    assert_int_equal(fixture_open(&f), ERR_OK);
    assert_string_equal(f.config->model_dir, "/h/m");
    assert_string_equal(f.config->adapters_dir, "/h");
    assert_string_equal(f.config->kafka_group, "~/g");
    assert_string_equal(f.config->state_dir, "/s");
    fixture_close(&f);
    struct fixture user = {.env = {"HOME=/h"}, .args = {"--model=~bob/m"}};
    fixture_refused(&user, TEXTS("--model", "model.dir", "~user"));
    struct fixture none = {.args = {"--model=~/m"}};
    fixture_refused(&none, TEXTS("model.dir", "HOME"));
}

static void the_state_folder_comes_from_the_environment(void **state) {
    (void)state;
    struct fixture home = {.env = {"HOME=/h"}};
    assert_int_equal(fixture_open(&home), ERR_OK);
    assert_string_equal(home.config->state_dir, "/h/.local/state/lorry");
    fixture_close(&home);
    struct fixture unit = {.env = {"HOME=/h", "STATE_DIRECTORY=/var/lib/a:/var/lib/b"}};
    assert_int_equal(fixture_open(&unit), ERR_OK);
    assert_string_equal(unit.config->state_dir, "/var/lib/a");
    fixture_close(&unit);
    struct fixture none = {0};
    assert_int_equal(fixture_open(&none), ERR_OK);
    assert_string_equal(none.config->state_dir, "");
    fixture_close(&none);
}

/* What fixture_open() writes to stderr, in `room`. */
static void open_and_capture(struct fixture *f, char *room, size_t room_bytes) {
    int pipe_ends[2];
    int saved = dup(STDERR_FILENO);
    assert_int_equal(pipe(pipe_ends), 0);
    assert_true(dup2(pipe_ends[1], STDERR_FILENO) >= 0);
    enum err e = fixture_open(f);
    assert_true(dup2(saved, STDERR_FILENO) >= 0);
    (void)close(saved);
    (void)close(pipe_ends[1]);
    ssize_t bytes = read(pipe_ends[0], room, room_bytes - 1);
    (void)close(pipe_ends[0]);
    assert_int_equal(e, ERR_OK);
    room[bytes > 0 ? bytes : 0] = '\0';
}

static void unknown_variables_are_named_in_a_warning(void **state) {
    (void)state;
    char log[4096];
    struct fixture f = {.env = {"LORRY_KAFKA_BROKER=secret:1", "LORRY_CACHE=/c", "LORRY_TEST_X=1",
                                "LORRY_HTTP_PORT=1", "OTHER=1"}};
    open_and_capture(&f, log, sizeof log);
    assert_non_null(strstr(log, "warn"));
    assert_non_null(strstr(log, "name=LORRY_KAFKA_BROKER nearest=LORRY_KAFKA_BROKERS\n"));
    assert_null(strstr(log, "secret"));
    assert_null(strstr(log, "CACHE"));
    assert_null(strstr(log, "LORRY_TEST_X"));
    assert_null(strstr(log, "HTTP"));
    assert_null(strstr(log, "OTHER"));
    fixture_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_stand),
        cmocka_unit_test(flag_beats_environment_beats_file),
        cmocka_unit_test(values_that_are_overridden_are_checked_too),
        cmocka_unit_test(lists_in_the_environment_are_cut_at_commas),
        cmocka_unit_test(a_file_that_is_named_must_exist),
        cmocka_unit_test(a_named_file_replaces_the_default_places),
        cmocka_unit_test(home_is_expanded_in_paths_only),
        cmocka_unit_test(the_state_folder_comes_from_the_environment),
        cmocka_unit_test(unknown_variables_are_named_in_a_warning),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
