/* The file of revisions: what is written is read again, and nothing that is damaged is believed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/model/files.h"
#include "worker/revisions.h"

#define ROOT "/srv/adapters"

struct told {
    uint32_t count;
    char id[POOL_ID_BYTES]; /* of the last */
    struct model_adapter_known known;
};

static void tell(void *context, const char *id, const struct model_adapter_known *known) {
    struct told *t = context;
    t->count++;
    (void)snprintf(t->id, sizeof t->id, "%s", id);
    t->known = *known;
}

static struct told read_all(const char *dir, const char *root) {
    struct told t = {0};
    struct revisions *r = NULL;
    assert_int_equal(revisions_open(&r, dir, root, tell, &t), ERR_OK);
    revisions_close(r);
    return t;
}

static struct model_adapter_known known_of(uint32_t number) {
    struct model_adapter_known k = {.stamp = {.device = UINT64_MAX,
                                              .inode = number,
                                              .bytes = 12345678901,
                                              .mtime_ns = INT64_MAX - number}};
    memset(k.revision, 'a' + (int)(number % 6), sizeof k.revision - 1);
    return k;
}

static void add(const char *dir, const char *root, const char *id, uint32_t number) {
    struct told t = {0};
    struct revisions *r = NULL;
    struct model_adapter_known k = known_of(number);
    assert_int_equal(revisions_open(&r, dir, root, tell, &t), ERR_OK);
    revisions_add(r, id, &k);
    revisions_close(r);
}

static void assert_last(const struct told *t, uint32_t count, const char *id, uint32_t number) {
    struct model_adapter_known k = known_of(number);
    assert_int_equal(t->count, count);
    assert_string_equal(t->id, id);
    assert_true(model_adapter_stamp_equal(&t->known.stamp, &k.stamp));
    assert_string_equal(t->known.revision, k.revision);
}

static void test_lines_come_back(void **state) {
    (void)state;
    char dir[PATH_BYTES], longest[POOL_ID_BYTES];
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    scratch_make(dir);
    assert_int_equal(read_all(dir, ROOT).count, 0);
    add(dir, ROOT, "a", 1);
    add(dir, "/elsewhere", "a", 2);
    add(dir, ROOT, longest, 3);
    struct told t = read_all(dir, ROOT);
    assert_last(&t, 2, longest, 3);
    t = read_all(dir, "/elsewhere");
    assert_last(&t, 1, "a", 2);
    scratch_remove(dir);
}

/* Cut anywhere, or with any one byte changed, a line is not believed; what follows it is. */
static void test_damage(void **state) {
    (void)state;
    char dir[PATH_BYTES];
    scratch_make(dir);
    add(dir, ROOT, "first", 1);
    size_t bytes = 0;
    char *whole = file_read(dir, "revisions", &bytes);
    for (size_t i = 0; i < bytes; i++) {
        file_write(dir, "revisions", whole, i);
        add(dir, ROOT, "second", 2);
        struct told t = read_all(dir, ROOT);
        bool all = i + 1 >= bytes; /* but for its last newline */
        assert_last(&t, all ? 2 : 1, "second", 2);
        char kept = whole[i];
        whole[i] = kept == 'b' ? 'c' : 'b';
        file_write(dir, "revisions", whole, bytes);
        t = read_all(dir, ROOT);
        assert_int_equal(t.count, 0);
        whole[i] = kept;
    }
    free(whole);
    scratch_remove(dir);
}

static void test_where_nothing_can_be_kept(void **state) {
    (void)state;
    struct told t = read_all("/nonexistent", ROOT);
    assert_int_equal(t.count, 0);
    add("/nonexistent", ROOT, "a", 1);
    revisions_close(NULL);
}

static void test_a_large_file_is_begun_anew(void **state) {
    (void)state;
    char dir[PATH_BYTES], path[PATH_BYTES];
    scratch_make(dir);
    add(dir, ROOT, "old", 1);
    path_join(path, dir, "revisions");
    assert_int_equal(truncate(path, (off_t)64 << 20), 0);
    add(dir, ROOT, "new", 2);
    struct told t = read_all(dir, ROOT);
    assert_last(&t, 1, "new", 2);
    scratch_remove(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines_come_back),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_where_nothing_can_be_kept),
        cmocka_unit_test(test_a_large_file_is_begun_anew),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
