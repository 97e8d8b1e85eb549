/* test_manifest.c - the manifest comes back as it was written; a damaged one is named. */
#include "tests/unit/tools/test.h"

#include "tools/batch.h"

static struct manifest example(void) {
    struct manifest m = {.batch_id = BATCH_ID,
                         .count = 200,
                         .complete = true,
                         .lines = 210,
                         .input_bytes = 54321,
                         .partition_count = 2,
                         .other_count = 1,
                         .submitted_ms = 1763750000000};
    m.topic = strdup("lorry.jobs");
    m.results_topic = strdup("lorry.results");
    m.offsets = calloc(2, sizeof *m.offsets);
    m.offsets[1] = 42;
    m.other_batch_ids[0] = strdup("mine");
    return m;
}

static void comes_back_as_written(void **state) {
    (void)state;
    struct err_text why = {0};
    struct manifest m = example();
    struct manifest back;
    assert_int_equal(manifest_write(&m, "m.json", &why), ERR_OK);
    assert_int_equal(manifest_read(&back, "m.json", &why), ERR_OK);
    assert_string_equal(back.batch_id, m.batch_id);
    assert_string_equal(back.topic, m.topic);
    assert_string_equal(back.results_topic, m.results_topic);
    assert_int_equal(back.count, 200);
    assert_true(back.complete);
    assert_int_equal(back.lines, 210);
    assert_int_equal(back.input_bytes, 54321);
    assert_int_equal(back.partition_count, 2);
    assert_int_equal(back.offsets[0], 0);
    assert_int_equal(back.offsets[1], 42);
    assert_int_equal(back.submitted_ms, m.submitted_ms);
    assert_int_equal(back.other_count, 1);
    assert_string_equal(back.other_batch_ids[0], "mine");
    manifest_deinit(&m);
    manifest_deinit(&back);
}

/* Manifests of before there was --resume. */
static void may_lack_how_far_it_came(void **state) {
    static char text[4096];
    (void)state;
    struct err_text why = {0};
    struct manifest m = example();
    struct manifest back;
    assert_int_equal(manifest_write(&m, "m.json", &why), ERR_OK);
    (void)file_read("m.json", text, sizeof text);
    char *from = strstr(text, "  \"lines\"");
    char *to = strstr(text, "  \"topic\"");
    assert_true(from != NULL && to != NULL && from < to);
    memmove(from, to, strlen(to) + 1);
    file_write("old.json", text, strlen(text));
    assert_int_equal(manifest_read(&back, "old.json", &why), ERR_OK);
    assert_int_equal(back.lines, 0);
    assert_int_equal(back.count, 200);
    manifest_deinit(&m);
    manifest_deinit(&back);
}

static void knows_its_batch_ids(void **state) {
    (void)state;
    struct manifest m = example();
    assert_true(manifest_has(&m, (struct wire_str){BATCH_ID, strlen(BATCH_ID)}));
    assert_true(manifest_has(&m, (struct wire_str){"mine", 4}));
    assert_false(manifest_has(&m, (struct wire_str){"min", 3}));
    assert_false(manifest_has(&m, (struct wire_str){0}));
    manifest_deinit(&m);
}

static void damage_is_named(void **state) {
    static const struct {
        const char *from, *to, *named;
    } damages[] = {
        {"\"v\": 1", "\"v\": 2", "v"},
        {BATCH_ID, "no-ulid", "batch_id"},
        {"\"count\": 200", "\"count\": -1", "count"},
        {"\"count\": 200", "\"count\": \"200\"", "count"},
        {"\"complete\": true", "\"complete\": 1", "complete"},
        {"\"lines\": 210", "\"lines\": -1", "lines"},
        {"\"input_bytes\": 54321", "\"input_bytes\": {}", "input_bytes"},
        {"\"lorry.results\"", "\"\"", "results_topic"},
        {"    42", "    -42", "results_offsets"},
        {"\"mine\"", "7", "other_batch_ids"},
        {"\"count\": 200,", "\"count\": 200", "not a manifest"},
    };
    (void)state;
    struct err_text why = {0};
    struct manifest m = example();
    char text[4096];
    char damaged[4096];
    assert_int_equal(manifest_write(&m, "m.json", &why), ERR_OK);
    (void)file_read("m.json", text, sizeof text);
    for (size_t i = 0; i < sizeof damages / sizeof damages[0]; i++) {
        struct manifest back;
        char *at = strstr(text, damages[i].from);
        assert_non_null(at);
        (void)snprintf(damaged, sizeof damaged, "%.*s%s%s", (int)(at - text), text, damages[i].to,
                       at + strlen(damages[i].from));
        file_write("d.json", damaged, strlen(damaged));
        assert_int_equal(manifest_read(&back, "d.json", &why), ERR_BAD_CONFIG);
        assert_non_null(strstr(why.message, "d.json"));
        assert_non_null(strstr(why.message, damages[i].named));
    }
    manifest_deinit(&m);
}

static void missing_file_and_folder_are_errors(void **state) {
    (void)state;
    struct err_text why = {0};
    struct manifest m = example();
    struct manifest back;
    assert_int_equal(manifest_read(&back, "none.json", &why), ERR_BAD_CONFIG);
    assert_non_null(strstr(why.message, "none.json"));
    assert_int_equal(manifest_write(&m, "no/such/folder.json", &why), ERR_BAD_CONFIG);
    manifest_deinit(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(comes_back_as_written),
        cmocka_unit_test(may_lack_how_far_it_came),
        cmocka_unit_test(knows_its_batch_ids),
        cmocka_unit_test(damage_is_named),
        cmocka_unit_test(missing_file_and_folder_are_errors),
    };
    return cmocka_run_group_tests(tests, scratch_enter, scratch_leave);
}
