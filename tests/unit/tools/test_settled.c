/* test_settled.c - the line up to which all is settled, in whatever order reports come. */
#include "tests/unit/tools/test.h"

#include "tools/settled.h"

static uint64_t send(struct settled *s, uint64_t line) {
    uint64_t number = 0;
    assert_int_equal(settled_send(s, line, &number), ERR_OK);
    assert_int_equal(settled_line(s, number), line);
    return number;
}

static void goes_on_only_without_a_gap(void **state) {
    (void)state;
    struct settled s = {0};
    uint64_t a = send(&s, 0);
    uint64_t b = send(&s, 3); /* lines 1 and 2 are blank or bad */
    uint64_t c = send(&s, 4);
    assert_int_equal(s.lines, 0);
    settled_done(&s, b);
    assert_int_equal(s.lines, 0);
    assert_int_equal(s.count, 0);
    settled_done(&s, a);
    assert_int_equal(s.lines, 4);
    assert_int_equal(s.count, 2);
    settled_done(&s, c);
    assert_int_equal(s.lines, 5);
    (void)send(&s, 9);
    assert_int_equal(s.lines, 9); /* 5 to 8 were no jobs */
    assert_int_equal(s.count, 3);
    settled_deinit(&s);
}

static void begins_where_an_earlier_part_ended(void **state) {
    (void)state;
    struct settled s = {.lines = 100, .count = 90};
    settled_done(&s, send(&s, 100));
    assert_int_equal(s.lines, 101);
    assert_int_equal(s.count, 91);
    settled_deinit(&s);
}

/* Against the plain definition, with reports in a random order. */
static void agrees_with_its_definition(void **state) {
    enum { JOBS = 5000 };
    static bool done[JOBS];
    static uint64_t waiting[JOBS];
    (void)state;
    struct settled s = {0};
    uint64_t seed = 7;
    uint32_t sent = 0;
    uint32_t waiting_count = 0;
    uint32_t prefix = 0;
    while (prefix < JOBS) {
        seed = seed * 6364136223846793005U + 1442695040888963407U;
        if (sent < JOBS && (seed >> 40) % 3 != 0) {
            uint64_t number = send(&s, sent);
            assert_int_equal(number, sent);
            waiting[waiting_count++] = sent++;
        } else if (waiting_count > 0) {
            uint32_t at = (uint32_t)((seed >> 33) % waiting_count);
            uint64_t number = waiting[at];
            waiting[at] = waiting[--waiting_count];
            done[number] = true;
            settled_done(&s, number);
        }
        while (prefix < sent && done[prefix]) {
            prefix++;
        }
        assert_int_equal(s.lines, prefix);
        assert_int_equal(s.count, prefix);
    }
    settled_deinit(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(goes_on_only_without_a_gap),
        cmocka_unit_test(begins_where_an_earlier_part_ended),
        cmocka_unit_test(agrees_with_its_definition),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
