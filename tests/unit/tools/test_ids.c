/* test_ids.c - the set of ids against what it was given, over its growth. */
#include "tests/unit/tools/test.h"

#include "tools/ids.h"

static void indices_are_dense_and_stable(void **state) {
    (void)state;
    struct ids s = {0};
    char id[32];
    uint32_t index = 0;
    bool added = false;
    for (int round = 0; round < 2; round++) {
        for (uint32_t i = 0; i < 5000; i++) {
            int bytes = snprintf(id, sizeof id, "job-%u", i * 7919);
            assert_int_equal(ids_add(&s, id, (size_t)bytes, i, &index, &added), 0);
            assert_int_equal(index, i);
            assert_int_equal(added, round == 0);
        }
    }
    assert_int_equal(s.count, 5000);
    assert_int_equal(s.items[4999].tag, 4999);
    assert_string_equal(s.items[3].id, "job-23757");
    ids_deinit(&s);
}

static void a_prefix_is_another_id(void **state) {
    (void)state;
    struct ids s = {0};
    uint32_t index = 0;
    bool added = false;
    assert_int_equal(ids_add(&s, "ab", 2, 0, &index, &added), 0);
    assert_int_equal(ids_add(&s, "ab", 1, 0, &index, &added), 0);
    assert_true(added);
    assert_int_equal(index, 1);
    ids_deinit(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(indices_are_dense_and_stable),
        cmocka_unit_test(a_prefix_is_another_id),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
