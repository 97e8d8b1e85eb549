/* test_finals.c - collect's upsert by the reader's rule, its order and its lines. */
#include "tests/unit/tools/test.h"

#include "tools/finals.h"

static void give_encoded(struct finals *f, const struct wire_final *made,
                         enum wire_encoding encoding) {
    struct wire_buffer buffer = {0};
    struct wire_final read;
    struct err_text why = {0};
    assert_int_equal(wire_final_encode(made, encoding, &buffer), ERR_OK);
    assert_int_equal(wire_final_decode(&read, buffer.data, buffer.bytes, &why), ERR_OK);
    assert_int_equal(finals_upsert(f, BATCH_ID, &read, buffer.data, buffer.bytes), ERR_OK);
    wire_final_deinit(&read);
    wire_buffer_deinit(&buffer);
}

static struct wire_final make(const char *id, const char *run, const char *text) {
    struct wire_final made = {.id = {id, strlen(id)},
                              .attempt = 1,
                              .status = WIRE_SUCCEEDED,
                              .text = {text, strlen(text)},
                              .completion_tokens = 2,
                              .topic = {"t", 1},
                              .timing = {-1, -1, -1}};
    (void)snprintf(made.run, sizeof made.run, "%s", run);
    return made;
}

static void give(struct finals *f, const char *id, uint32_t generation, uint32_t attempt,
                 const char *run, enum wire_status status, const char *text) {
    struct wire_final made = make(id, run, text);
    made.generation = generation;
    made.attempt = attempt;
    made.status = status;
    give_encoded(f, &made, WIRE_JSON);
}

static bool holds(const struct finals_entry *e, const char *text) {
    return memmem(e->value, e->bytes, text, strlen(text)) != NULL;
}

static void greater_attempt_wins_in_any_order(void **state) {
    (void)state;
    struct finals f = {0};
    give(&f, "a", 0, 2, RUN_A, WIRE_SUCCEEDED, "second");
    give(&f, "a", 0, 1, RUN_B, WIRE_FAILED, "first");
    give(&f, "b", 0, 1, RUN_B, WIRE_FAILED, "first");
    give(&f, "b", 0, 2, RUN_A, WIRE_SUCCEEDED, "second");
    assert_int_equal(f.count, 2);
    assert_true(holds(&f.entries[0], "second"));
    assert_true(holds(&f.entries[1], "second"));
    assert_int_equal(f.statuses[WIRE_SUCCEEDED], 2);
    assert_int_equal(f.statuses[WIRE_FAILED], 0);
    finals_deinit(&f);
}

static void of_equal_attempts_the_later_run_wins(void **state) {
    (void)state;
    struct finals f = {0};
    give(&f, "a", 0, 1, RUN_B, WIRE_SUCCEEDED, "later");
    give(&f, "a", 0, 1, RUN_A, WIRE_SUCCEEDED, "earlier");
    give(&f, "a", 0, 1, RUN_B, WIRE_SUCCEEDED, "repeated");
    assert_int_equal(f.count, 1);
    assert_true(holds(&f.entries[0], "later"));
    finals_deinit(&f);
}

static void greater_generation_wins(void **state) {
    (void)state;
    struct finals f = {0};
    give(&f, "a", 1, 1, RUN_A, WIRE_SUCCEEDED, "replayed");
    give(&f, "a", 0, 9, RUN_B, WIRE_SUCCEEDED, "original");
    assert_true(holds(&f.entries[0], "replayed"));
    finals_deinit(&f);
}

static void order_is_by_line_then_arrival(void **state) {
    (void)state;
    static const char *const wanted[] = {"0", "2", "10", "x", "y"};
    struct finals f = {0};
    give(&f, "own-2", 0, 1, RUN_A, WIRE_SUCCEEDED, "x");
    give(&f, BATCH_ID "/10", 0, 1, RUN_A, WIRE_SUCCEEDED, "10");
    give(&f, "own-1", 0, 1, RUN_A, WIRE_SUCCEEDED, "y");
    give(&f, BATCH_ID "/2", 0, 1, RUN_A, WIRE_EXPIRED, "2");
    give(&f, BATCH_ID "/0", 0, 1, RUN_A, WIRE_SUCCEEDED, "0");
    finals_sort(&f);
    for (uint32_t i = 0; i < 5; i++) {
        struct wire_final read;
        struct err_text why = {0};
        assert_int_equal(wire_final_decode(&read, f.entries[i].value, f.entries[i].bytes, &why),
                         ERR_OK);
        assert_int_equal(read.text.bytes, strlen(wanted[i]));
        assert_memory_equal(read.text.data, wanted[i], read.text.bytes);
        wire_final_deinit(&read);
    }
    finals_deinit(&f);
}

static void lines_are_json_and_one_each(void **state) {
    (void)state;
    struct finals f = {0};
    struct wire_buffer lines = {0};
    struct err_text why = {0};
    give(&f, "a", 0, 1, RUN_A, WIRE_SUCCEEDED, "json");
    struct wire_final packed = make("b", RUN_A, "packed");
    give_encoded(&f, &packed, WIRE_MSGPACK);
    assert_int_equal(finals_line(&f.entries[0], FINALS_JSONL, &lines, &why), ERR_OK);
    assert_int_equal(lines.bytes, f.entries[0].bytes + 1);
    assert_memory_equal(lines.data, f.entries[0].value, f.entries[0].bytes);
    assert_int_equal(lines.data[lines.bytes - 1], '\n');
    lines.bytes = 0;
    assert_int_equal(finals_line(&f.entries[1], FINALS_JSONL, &lines, &why), ERR_OK);
    assert_int_equal(lines.data[0], '{');
    assert_int_equal(lines.data[lines.bytes - 1], '\n');
    assert_non_null(memmem(lines.data, lines.bytes, "packed", 6));
    wire_buffer_deinit(&lines);
    finals_deinit(&f);
}

/* A producer may write JSON over several lines; a JSONL file may not. */
static void pretty_json_becomes_one_line(void **state) {
    (void)state;
    static char pretty[] = "{\n \"id\": \"a\",\n \"status\": \"succeeded\",\n \"text\": \"t\"\n}";
    const struct finals_entry entry = {.value = pretty, .bytes = sizeof pretty - 1};
    struct wire_buffer line = {0};
    struct err_text why = {0};
    assert_int_equal(finals_line(&entry, FINALS_JSONL, &line, &why), ERR_OK);
    assert_ptr_equal(memchr(line.data, '\n', line.bytes), line.data + line.bytes - 1);
    wire_buffer_deinit(&line);
}

static void openai_lines_tell_success_from_error(void **state) {
    (void)state;
    struct finals f = {0};
    struct wire_buffer line = {0};
    struct err_text why = {0};
    give(&f, "a", 0, 1, RUN_A, WIRE_SUCCEEDED, "fine");
    give(&f, "b", 0, 1, RUN_A, WIRE_EXPIRED, "");
    assert_int_equal(finals_line(&f.entries[0], FINALS_OPENAI, &line, &why), ERR_OK);
    assert_non_null(memmem(line.data, line.bytes, "\"status_code\":200", 17));
    line.bytes = 0;
    assert_int_equal(finals_line(&f.entries[1], FINALS_OPENAI, &line, &why), ERR_OK);
    assert_non_null(memmem(line.data, line.bytes, "batch_expired", 13));
    wire_buffer_deinit(&line);
    finals_deinit(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greater_attempt_wins_in_any_order),
        cmocka_unit_test(of_equal_attempts_the_later_run_wins),
        cmocka_unit_test(greater_generation_wins),
        cmocka_unit_test(order_is_by_line_then_arrival),
        cmocka_unit_test(lines_are_json_and_one_each),
        cmocka_unit_test(pretty_json_becomes_one_line),
        cmocka_unit_test(openai_lines_tell_success_from_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
