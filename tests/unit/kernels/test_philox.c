/* Philox against the known answers that Random123 publishes (kat_vectors, philox4x32 10). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/kernels.h"
#include "kernels/philox.h"

static void test_known_answers(void **state) {
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } table[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        uint32_t out[4];
        philox_4x32_10(table[i].counter, table[i].key, out);
        assert_memory_equal(out, table[i].out, sizeof out);
    }
}

/* What a seed, a position and a round mean: part of the contract, since draws must be equal on
 * every device. */
static void test_random_is_keyed_by_the_seed(void **state) {
    (void)state;
    const uint32_t counter[4] = {7, 3, 0, 0}, key[2] = {0x89abcdef, 0x01234567};
    uint32_t expected[4], out[4];
    philox_4x32_10(counter, key, expected);
    kern_random(0x0123456789abcdef, 7, 3, out);
    assert_memory_equal(out, expected, sizeof out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_answers),
        cmocka_unit_test(test_random_is_keyed_by_the_seed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
