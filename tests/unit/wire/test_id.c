#include <string.h>

#include "tests/unit/wire/cmocka_all.h"
#include "wire/wire.h"

static struct wire_str str(const char *text) {
    return (struct wire_str){text, strlen(text)};
}

static void job_ids(void **state) {
    char text[WIRE_ID_BYTES_MAX + 2];
    (void)state;
    assert_true(wire_id_valid(str("a")));
    assert_true(wire_id_valid(str("AZaz09._:@/-")));
    assert_true(wire_id_valid(str("01ARYZ6S41TSV4RRFFQ69G5FAV/17")));
    assert_true(wire_id_valid(str(".a")));
    assert_false(wire_id_valid(str("")));
    assert_false(wire_id_valid((struct wire_str){0}));
    assert_false(wire_id_valid(str("@a")));
    assert_false(wire_id_valid(str("a b")));
    assert_false(wire_id_valid(str("a#b")));
    assert_false(wire_id_valid(str("\xC3\xA4")));
    assert_false(wire_id_valid((struct wire_str){"a\0b", 3}));
    memset(text, 'x', sizeof text);
    assert_true(wire_id_valid((struct wire_str){text, WIRE_ID_BYTES_MAX}));
    assert_false(wire_id_valid((struct wire_str){text, WIRE_ID_BYTES_MAX + 1}));
}

static void adapter_ids(void **state) {
    (void)state;
    assert_true(wire_adapter_id_valid(str("AZaz09._:@-")));
    assert_false(wire_adapter_id_valid(str("")));
    assert_false(wire_adapter_id_valid(str(".")));
    assert_false(wire_adapter_id_valid(str("..")));
    assert_false(wire_adapter_id_valid(str(".hidden")));
    assert_false(wire_adapter_id_valid(str("@a")));
    assert_false(wire_adapter_id_valid(str("a/b")));
    assert_false(wire_adapter_id_valid(str("../../etc/passwd")));
    assert_false(wire_adapter_id_valid(str("a#b")));
    assert_false(wire_adapter_id_valid(str("a\\b")));
}

/* The time is the example of the ULID specification; the random part counts 0 .. 9. */
static void ulid_vectors(void **state) {
    const uint8_t counting[10] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
    const uint8_t ones[10] = {255, 255, 255, 255, 255, 255, 255, 255, 255, 255};
    const uint8_t zeros[10] = {0};
    char text[WIRE_ULID_BYTES + 1];
    (void)state;
    wire_ulid(text, 1469918176385, zeros);
    assert_string_equal(text, "01ARYZ6S410000000000000000");
    wire_ulid(text, 1469918176385, counting);
    assert_string_equal(text, "01ARYZ6S41000G40R40M30E209");
    wire_ulid(text, 0, zeros);
    assert_string_equal(text, "00000000000000000000000000");
    wire_ulid(text, (INT64_C(1) << 48) - 1, ones); /* the largest of the specification */
    assert_string_equal(text, "7ZZZZZZZZZZZZZZZZZZZZZZZZZ");
}

static void ulid_order(void **state) {
    char before[WIRE_ULID_BYTES + 1];
    char after[WIRE_ULID_BYTES + 1];
    const uint8_t ones[10] = {255, 255, 255, 255, 255, 255, 255, 255, 255, 255};
    uint8_t counter[10] = {0};
    (void)state;
    for (int64_t ms = 1; ms < INT64_C(1) << 47; ms = ms * 3 + 1) { /* time outweighs the rest */
        wire_ulid(before, ms - 1, ones);
        wire_ulid(after, ms, counter);
        assert_true(strcmp(before, after) < 0);
    }
    for (int byte = 9; byte >= 0; byte--) { /* and a higher byte the lower ones */
        wire_ulid(before, 7, counter);
        counter[byte] = 1;
        wire_ulid(after, 7, counter);
        assert_true(strcmp(before, after) < 0);
    }
}

static void ulid_time(void **state) {
    const uint8_t random[10] = {9, 8, 7, 6, 5, 4, 3, 2, 1, 0};
    char text[WIRE_ULID_BYTES + 1];
    (void)state;
    for (int64_t ms = 0; ms < INT64_C(1) << 48; ms = ms * 5 + 1) {
        wire_ulid(text, ms, random);
        assert_int_equal(wire_ulid_ms(text), ms);
    }
    assert_int_equal(wire_ulid_ms(""), -1);
    assert_int_equal(wire_ulid_ms("01ARYZ6S41000G40R40M30E20"), -1);   /* short */
    assert_int_equal(wire_ulid_ms("01ARYZ6S41000G40R40M30E2099"), -1); /* long */
    assert_int_equal(wire_ulid_ms("01ARYZ6S41000G40R40M30E20U"), -1);  /* no digit */
    assert_int_equal(wire_ulid_ms("81ARYZ6S41000G40R40M30E209"), -1);  /* above 128 bits */
    assert_int_equal(wire_ulid_ms("01aryz6s41000g40r40m30e209"), -1);  /* compared as text */
}

static void supersedes(void **state) {
    const char *low = "01ARYZ6S410000000000000000";
    const char *high = "01ARYZ6S410000000000000001";
    (void)state;
    assert_true(wire_supersedes(1, high, 2, low)); /* the attempt decides first */
    assert_false(wire_supersedes(2, low, 1, high));
    assert_true(wire_supersedes(1, low, 1, high));
    assert_false(wire_supersedes(1, high, 1, low));
    assert_false(wire_supersedes(1, low, 1, low)); /* the same one is no newer */
    assert_true(wire_supersedes(0, "", 0, low));
    assert_true(wire_supersedes(0, "", UINT32_MAX, ""));
    assert_false(wire_supersedes(UINT32_MAX, "", 0, high));
}

static void content_types(void **state) {
    (void)state;
    assert_string_equal(wire_content_type(WIRE_MSGPACK), "application/msgpack");
    assert_string_equal(wire_content_type(WIRE_JSON), "application/json");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(job_ids),       cmocka_unit_test(adapter_ids),
        cmocka_unit_test(ulid_vectors),  cmocka_unit_test(ulid_order),
        cmocka_unit_test(ulid_time),     cmocka_unit_test(supersedes),
        cmocka_unit_test(content_types),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
