/* test_tail.c - after all cuts the frames of a job are its text, whatever attempts it took. */
#include "tests/unit/tools/test.h"

#include "tools/tail.h"

static enum tail_news give(struct tail *t, uint32_t attempt, const char *run, uint32_t seq,
                           uint32_t pos, enum wire_kind kind, const char *text) {
    struct wire_frame f = {
        .attempt = attempt, .seq = seq, .pos = pos, .kind = kind, .text = {text, strlen(text)}};
    enum tail_news news = TAIL_NOTHING;
    (void)snprintf(f.run, sizeof f.run, "%s", run);
    assert_int_equal(tail_frame(t, &f, &news), ERR_OK);
    return news;
}

static void assert_text(const struct tail *t, const char *text) {
    assert_int_equal(t->text.bytes, strlen(text));
    assert_memory_equal(t->text.data, text, t->text.bytes);
}

static void frames_join(void **state) {
    (void)state;
    struct tail t = {0};
    assert_int_equal(give(&t, 1, RUN_A, 0, 0, WIRE_START, ""), TAIL_TEXT);
    assert_int_equal(give(&t, 1, RUN_A, 1, 0, WIRE_TOKENS_FRAME, "one "), TAIL_TEXT);
    assert_int_equal(give(&t, 1, RUN_A, 2, 1, WIRE_TOKENS_FRAME, "two"), TAIL_TEXT);
    assert_false(t.ended);
    assert_int_equal(give(&t, 1, RUN_A, 3, 2, WIRE_END, "!"), TAIL_END);
    assert_true(t.ended);
    assert_text(&t, "one two!");
    tail_deinit(&t);
}

static void repeated_frame_is_dropped(void **state) {
    (void)state;
    struct tail t = {0};
    (void)give(&t, 1, RUN_A, 0, 0, WIRE_START, "");
    (void)give(&t, 1, RUN_A, 1, 0, WIRE_TOKENS_FRAME, "one ");
    assert_int_equal(give(&t, 1, RUN_A, 1, 0, WIRE_TOKENS_FRAME, "one "), TAIL_NOTHING);
    assert_text(&t, "one ");
    tail_deinit(&t);
}

static void restart_cuts_at_its_border(void **state) {
    (void)state;
    struct tail t = {0};
    (void)give(&t, 1, RUN_A, 0, 0, WIRE_START, "");
    (void)give(&t, 1, RUN_A, 1, 0, WIRE_TOKENS_FRAME, "one ");
    (void)give(&t, 1, RUN_A, 2, 1, WIRE_TOKENS_FRAME, "two ");
    (void)give(&t, 1, RUN_A, 3, 2, WIRE_TOKENS_FRAME, "lost");
    assert_int_equal(give(&t, 2, RUN_B, 0, 2, WIRE_RESTART, ""), TAIL_RESTART);
    assert_int_equal(t.text_bytes_kept, strlen("one two "));
    (void)give(&t, 2, RUN_B, 1, 2, WIRE_TOKENS_FRAME, "three");
    /* the older attempt is not dead yet, and nobody listens */
    assert_int_equal(give(&t, 1, RUN_A, 4, 3, WIRE_END, "lost"), TAIL_NOTHING);
    assert_false(t.ended);
    assert_int_equal(give(&t, 2, RUN_B, 2, 3, WIRE_END, ""), TAIL_END);
    assert_text(&t, "one two three");
    tail_deinit(&t);
}

static void start_of_a_later_run_drops_all(void **state) {
    (void)state;
    struct tail t = {0};
    (void)give(&t, 1, RUN_A, 0, 0, WIRE_START, "");
    (void)give(&t, 1, RUN_A, 1, 0, WIRE_TOKENS_FRAME, "old");
    (void)give(&t, 1, RUN_A, 2, 1, WIRE_END, "");
    assert_int_equal(give(&t, 1, RUN_B, 0, 0, WIRE_START, ""), TAIL_RESTART);
    assert_false(t.ended);
    assert_int_equal(t.text.bytes, 0);
    (void)give(&t, 1, RUN_B, 1, 0, WIRE_TOKENS_FRAME, "new");
    assert_text(&t, "new");
    tail_deinit(&t);
}

static void nothing_shown_is_no_restart(void **state) {
    (void)state;
    struct tail t = {0};
    (void)give(&t, 1, RUN_A, 0, 0, WIRE_START, "");
    assert_int_equal(give(&t, 2, RUN_B, 0, 0, WIRE_START, ""), TAIL_TEXT);
    tail_deinit(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frames_join),
        cmocka_unit_test(repeated_frame_is_dropped),
        cmocka_unit_test(restart_cuts_at_its_border),
        cmocka_unit_test(start_of_a_later_run_drops_all),
        cmocka_unit_test(nothing_shown_is_no_restart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
