
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker/source.h"

static char input[256], output[256];
static struct source *source;
static const struct source_ops *ops;

static void open_with(const char *lines, size_t bytes) {
    (void)snprintf(input, sizeof input, "%s/source-in-%d", LORRY_BINARY_DIR, (int)getpid());
    (void)snprintf(output, sizeof output, "%s/source-out-%d", LORRY_BINARY_DIR, (int)getpid());
    FILE *file = fopen(input, "we");
    assert_non_null(file);
    assert_int_equal(fwrite(lines, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
    struct err_text why = {0};
    assert_int_equal(source_open_file(&source, &ops, input, output, &why), ERR_OK);
    struct source_event e;
    ops->poll(source, &e, 0);
    assert_int_equal(e.kind, SOURCE_ASSIGNED);
}

static void close_all(void) {
    ops->close(source);
    (void)unlink(input);
    (void)unlink(output);
}

static void next_record(const char *value, int64_t offset) {
    struct source_event e;
    ops->poll(source, &e, 0);
    assert_int_equal(e.kind, SOURCE_RECORD);
    assert_int_equal(e.record->value_bytes, strlen(value));
    assert_memory_equal(e.record->value, value, strlen(value));
    assert_int_equal(e.record->at.offset, offset);
    assert_string_equal(e.record->content_type, "application/json");
    ops->free_record(source, e.record);
}

static void next_is(enum source_event_kind kind) {
    struct source_event e;
    ops->poll(source, &e, 0);
    assert_int_equal(e.kind, kind);
}

/* Blank lines count as lines, a last line without its end is a line, carriage returns go. */
static void test_lines(void **state) {
    (void)state;
    static const char lines[] = "{\"a\":1}\n\n  \t\n{\"b\":2}\r\nlast";
    open_with(lines, sizeof lines - 1);
    next_record("{\"a\":1}", 0);
    next_record("{\"b\":2}", 3);
    next_record("last", 4);
    next_is(SOURCE_END);
    next_is(SOURCE_NOTHING);
    close_all();
}

static void test_empty_file(void **state) {
    (void)state;
    open_with("", 0);
    next_is(SOURCE_END);
    close_all();
}

static void test_nul_bytes_are_passed_on(void **state) {
    (void)state;
    open_with("a\0b\n", 4);
    struct source_event e;
    ops->poll(source, &e, 0);
    assert_int_equal(e.kind, SOURCE_RECORD);
    assert_int_equal(e.record->value_bytes, 3);
    assert_memory_equal(e.record->value, "a\0b", 3);
    ops->free_record(source, e.record);
    close_all();
}

static void test_hold(void **state) {
    (void)state;
    open_with("x\ny\n", 4);
    ops->hold(source, 0, -1);
    next_is(SOURCE_NOTHING);
    ops->release(source, 0, -1);
    next_record("x", 0);
    close_all();
}

/* Finals are written and reported, frames and dead letters go nowhere; a full queue of reports says
 * so. */
static void test_produce(void **state) {
    (void)state;
    open_with("", 0);
    struct err_text why = {0};
    int tag = 0;
    struct source_message m = {
        .output = SOURCE_FINAL, .value = "{}", .value_bytes = 2, .tag = &tag};
    assert_int_equal(ops->produce(source, &m, &why), ERR_OK);
    m.output = SOURCE_DEAD;
    assert_int_equal(ops->produce(source, &m, &why), ERR_OK);
    m = (struct source_message){.output = SOURCE_FRAME, .value = "f", .value_bytes = 1};
    assert_int_equal(ops->produce(source, &m, &why), ERR_OK);
    struct source_report reports[4];
    assert_int_equal(ops->reports(source, reports, 4, 0), 2);
    assert_ptr_equal(reports[0].tag, &tag);
    assert_int_equal(reports[1].error, ERR_OK);
    m = (struct source_message){.output = SOURCE_DEAD, .tag = &tag};
    uint32_t accepted = 0;
    while (ops->produce(source, &m, &why) == ERR_OK) {
        accepted++;
    }
    assert_true(accepted > 0);
    assert_int_equal(ops->reports(source, reports, 4, 0), 4);
    assert_int_equal(ops->produce(source, &m, &why), ERR_OK);
    char text[16] = "";
    FILE *file = fopen(output, "re");
    assert_non_null(file);
    assert_int_equal(fread(text, 1, sizeof text, file), 3);
    assert_string_equal(text, "{}\n");
    assert_int_equal(fclose(file), 0);
    close_all();
}

static void test_bad_paths(void **state) {
    (void)state;
    struct err_text why = {0};
    assert_int_equal(source_open_file(&source, &ops, "/nowhere/in", "-", &why), ERR_BAD_CONFIG);
    assert_non_null(strstr(why.message, "/nowhere/in"));
    assert_int_equal(source_open_file(&source, &ops, "/dev/null", "/nowhere/out", &why),
                     ERR_BAD_CONFIG);
    assert_non_null(strstr(why.message, "/nowhere/out"));
}

/* A full disk is the cluster's kind of error: the process must not go on as if it had written. */
static void test_full_disk(void **state) {
    (void)state;
    struct err_text why = {0};
    assert_int_equal(source_open_file(&source, &ops, "/dev/null", "/dev/full", &why), ERR_OK);
    struct source_message m = {.output = SOURCE_FINAL, .value = "{}", .value_bytes = 2};
    assert_int_equal(ops->produce(source, &m, &why), ERR_BROKER);
    assert_non_null(strstr(why.message, "/dev/full"));
    ops->close(source);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines),     cmocka_unit_test(test_empty_file),
        cmocka_unit_test(test_hold),      cmocka_unit_test(test_nul_bytes_are_passed_on),
        cmocka_unit_test(test_produce),   cmocka_unit_test(test_bad_paths),
        cmocka_unit_test(test_full_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
