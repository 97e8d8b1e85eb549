/* test_files.c - lines with a bound, and output that is there whole or not at all. */
#include "tests/unit/tools/test.h"

#include "tools/tool.h"

static void expect(struct lines *l, const char *text, uint64_t index) {
    assert_int_equal(lines_next(l), LINES_LINE);
    assert_string_equal(l->text, text);
    assert_int_equal(l->bytes, strlen(text));
    assert_int_equal(l->index, index);
}

static void lines_are_counted_with_blank_ones(void **state) {
    static const char text[] = "\n  \none\r\n\ntwo\nlast";
    (void)state;
    struct lines l;
    struct err_text why = {0};
    file_write("l", text, sizeof text - 1);
    assert_int_equal(lines_open(&l, "l", 100, &why), ERR_OK);
    assert_true(l.regular);
    for (int round = 0; round < 2; round++) {
        expect(&l, "one", 2);
        expect(&l, "two", 4);
        expect(&l, "last", 5);
        assert_int_equal(lines_next(&l), LINES_END);
        assert_int_equal(lines_rewind(&l, &why), ERR_OK);
    }
    lines_close(&l);
}

static void long_line_is_passed_over(void **state) {
    (void)state;
    struct lines l;
    struct err_text why = {0};
    char text[300];
    memset(text, 'x', sizeof text);
    text[100] = '\n'; /* 100: the limit; then 150 */
    text[251] = '\n';
    file_write("l", text, sizeof text);
    assert_int_equal(lines_open(&l, "l", 100, &why), ERR_OK);
    assert_int_equal(lines_next(&l), LINES_LINE);
    assert_int_equal(l.bytes, 100);
    assert_int_equal(lines_next(&l), LINES_TOO_LONG);
    assert_int_equal(l.index, 1);
    assert_int_equal(lines_next(&l), LINES_LINE);
    assert_int_equal(l.bytes, 48);
    assert_int_equal(l.index, 2);
    lines_close(&l);
}

static void a_nul_is_a_byte_of_a_line(void **state) {
    (void)state;
    struct lines l;
    struct err_text why = {0};
    file_write("l", "a\0b\nc\n", 6);
    assert_int_equal(lines_open(&l, "l", 100, &why), ERR_OK);
    assert_int_equal(lines_next(&l), LINES_LINE);
    assert_int_equal(l.bytes, 3);
    expect(&l, "c", 1);
    lines_close(&l);
}

static void what_is_no_file_is_named(void **state) {
    (void)state;
    struct lines l;
    struct err_text why = {0};
    assert_int_equal(lines_open(&l, "none", 100, &why), ERR_BAD_CONFIG);
    assert_non_null(strstr(why.message, "none"));
    lines_close(&l);
    assert_int_equal(lines_open(&l, "/", 100, &why), ERR_BAD_CONFIG);
    lines_close(&l);
}

static int count_here(void) {
    FILE *p = popen("ls -A | wc -l", "r");
    int count = -1;
    assert_non_null(p);
    assert_int_equal(fscanf(p, "%d", &count), 1);
    (void)pclose(p);
    return count;
}

static void output_appears_at_its_commit(void **state) {
    (void)state;
    struct output o;
    struct err_text why = {0};
    struct stat st;
    char text[16];
    file_write("out", "old", 3);
    assert_int_equal(output_open(&o, "out", &why), ERR_OK);
    assert_true(fputs("new", o.file) >= 0);
    (void)file_read("out", text, sizeof text);
    assert_string_equal(text, "old");
    assert_int_equal(output_commit(&o, &why), ERR_OK);
    (void)file_read("out", text, sizeof text);
    assert_string_equal(text, "new");
    mode_t mask = umask(022);
    (void)umask(mask);
    assert_int_equal(stat("out", &st), 0);
    assert_int_equal(st.st_mode & 0777, 0666 & ~mask);
}

static void abandoned_output_leaves_nothing(void **state) {
    (void)state;
    struct output o;
    struct err_text why = {0};
    int before = count_here();
    assert_int_equal(output_open(&o, "never", &why), ERR_OK);
    assert_true(fputs("new", o.file) >= 0);
    assert_int_equal(count_here(), before + 1);
    output_abandon(&o);
    assert_int_equal(count_here(), before);
    output_abandon(&o);
}

static void device_is_written_directly(void **state) {
    (void)state;
    struct output o;
    struct err_text why = {0};
    assert_int_equal(output_open(&o, "/dev/null", &why), ERR_OK);
    assert_null(o.beside);
    assert_int_equal(output_commit(&o, &why), ERR_OK);
    assert_int_equal(output_open(&o, "/dev/full", &why), ERR_OK);
    assert_true(fputs("x", o.file) >= 0);
    assert_int_equal(output_commit(&o, &why), ERR_BAD_CONFIG);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_are_counted_with_blank_ones),
        cmocka_unit_test(long_line_is_passed_over),
        cmocka_unit_test(a_nul_is_a_byte_of_a_line),
        cmocka_unit_test(what_is_no_file_is_named),
        cmocka_unit_test(output_appears_at_its_commit),
        cmocka_unit_test(abandoned_output_leaves_nothing),
        cmocka_unit_test(device_is_written_directly),
    };
    return cmocka_run_group_tests(tests, scratch_enter, scratch_leave);
}
