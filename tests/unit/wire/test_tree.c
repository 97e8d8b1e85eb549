/* test_tree.c - messages that are not well formed, byte by byte, and the view over good ones. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/wire/cmocka_all.h"
#include "tests/unit/wire/support.h"
#include "wire/tree.h"

static void refuse(const char *data, size_t bytes, enum wire_encoding encoding, enum err wanted,
                   const char *message) {
    struct wire_tree tree;
    struct err_text why = {0};
    enum err e = wire_tree_parse(&tree, data, bytes, encoding, &why);
    if (e != wanted || strstr(why.message, message) == NULL) {
        print_message("wanted \"%s\", got %s: \"%s\"\n", message, err_name(e), why.message);
    }
    assert_int_equal(e, wanted);
    assert_non_null(strstr(why.message, message));
    assert_false(wire_value_given(tree.root));
    wire_tree_deinit(&tree);
}

#define BYTES(text) (text), sizeof(text) - 1

static void bad_msgpack(void **state) {
    static const struct {
        const char *data;
        size_t bytes;
        const char *message;
    } cases[] = {
        {BYTES(""), "is empty"},
        {BYTES("\xc1"), "byte 0 is not valid msgpack"},
        {BYTES("\x81\xa1z\xc1"), "byte 3 is not valid msgpack"},
        {BYTES("\x81"), "begins at byte 0 is cut off"},
        {BYTES("\x81\xa1"), "begins at byte 0 is cut off"}, /* two values in one byte */
        {BYTES("\x81\xa1z"), "ends too early, at byte 3"},
        {BYTES("\x92\x01\x91"), "begins at byte 2 is cut off"},
        {BYTES("\xa5"
               "abcd"),
         "cut off"},
        {BYTES("\xd9"), "cut off"},
        {BYTES("\xd9\x01"), "cut off"},
        {BYTES("\xda\x00"), "cut off"},
        {BYTES("\xdb\xff\xff\xff\xff"
               "abc"),
         "cut off"},
        {BYTES("\xc4\x02"
               "a"),
         "cut off"},
        {BYTES("\xc6\xff\xff\xff\xff"), "cut off"},
        {BYTES("\xc7\x01\x05"), "cut off"}, /* an ext without its byte */
        {BYTES("\xc9\xff\xff\xff\xff\x05"), "cut off"},
        {BYTES("\xd8\x05"
               "0123456789abcde"),
         "cut off"},
        {BYTES("\xca\x00\x00\x00"), "cut off"},
        {BYTES("\xcb\x00\x00\x00\x00\x00\x00\x00"), "cut off"},
        {BYTES("\xcf\x00\x00\x00\x00\x00\x00\x00"), "cut off"},
        {BYTES("\xdc\x00\x02\x00"), "cut off"},
        {BYTES("\xdd\xff\xff\xff\xff"
               "abc"),
         "cut off"}, /* a list of four billion */
        {BYTES("\xdf\xff\xff\xff\xff"
               "abc"),
         "cut off"},
        {BYTES("\xde\xff\xff"
               "abc"),
         "cut off"},
        {BYTES("\x80\x80"), "1 bytes follow"},
        {BYTES("\x01\x02\x03"), "2 bytes follow"},
        {BYTES("\x81\xa1z\xa2\xc3("), "a string that is not UTF-8"},
        {BYTES("\x81\xa2\xc3(\x01"), "a key that is not UTF-8"},
        {BYTES("\x91\x91\xa1\xff"), "a string that is not UTF-8"},
        {BYTES("\x81\x01\x02"), "a key that is not a string"},
        {BYTES("\x81\xc4\x01z\x02"), "a key that is not a string"}, /* bin is not a string */
        {BYTES("\x81\xa2z\x00\x02"), "a key with a NUL"},
        {BYTES("\x83\xa1z\x01\xa1y\x02\xa1z\x03"), "the key \"z\" twice"},
        {BYTES("\x91\x81\xa1q\x82\xa1z\x01\xa1z\x01"), "the key \"z\" twice"},
        {BYTES("\x82\xa0\x01\xa0\x02"), "the key \"\" twice"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        refuse(cases[i].data, cases[i].bytes, WIRE_MSGPACK, ERR_BAD_MESSAGE, cases[i].message);
    }
    refuse(NULL, 0, WIRE_MSGPACK, ERR_BAD_MESSAGE, "is empty");
    refuse(NULL, 0, WIRE_JSON, ERR_BAD_MESSAGE, "is empty");
}

static void bad_json(void **state) {
    static const char *const cases[] = {
        "{",
        "{\"a\":1,}",
        "{\"a\":1} x",
        "{\"a\":1}{",
        "{'a':1}",
        "{\"a\":NaN}",
        "{\"a\":1e400}",
        "{\"a\":9223372036854775808}",
        "{\"a\":01}",
        "{\"a\":1,\"a\":2}",
        "{\"b\":{\"a\":1,\"c\":[],\"a\":2}}",
        "{\"a\":\"\\ud800\"}",
        "{\"a\":\"\xC3(\"}",
        "{\"a\":\"\xED\xA0\x80\"}",
        "{\"a\\u0000b\":1}",
        "{\"a\":\"x\ny\"}",
        "{\"a\":\"",
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        refuse(cases[i], strlen(cases[i]), WIRE_JSON, ERR_BAD_MESSAGE, "is not valid JSON: line 1");
    }
    refuse(BYTES("{\"a\":1}\0"), WIRE_JSON, ERR_BAD_MESSAGE, "is not valid JSON");
    refuse(BYTES("{\n\n  x"), WIRE_JSON, ERR_BAD_MESSAGE, "line 3, column 3");
}

/* Copies without the NUL; returns the bytes. */
static size_t put(char *to, const char *from) {
    size_t bytes = 0;
    for (; from[bytes] != '\0'; bytes++) {
        to[bytes] = from[bytes];
    }
    return bytes;
}

/* `levels` nested lists; the innermost is empty. */
static void depth_case(size_t levels, bool map, enum err wanted) {
    char json[1024] = {0};
    char packed[1024] = {0};
    size_t json_bytes = 0;
    size_t packed_bytes = 0;
    assert_true(levels * 8 < sizeof json);
    for (size_t i = 0; i < levels; i++) {
        bool last = i == levels - 1;
        const char *open_json = map ? (last ? "{" : "{\"a\":") : "[";
        const char *open_packed = map ? (last ? "\x80" : "\x81\xa1z") : (last ? "\x90" : "\x91");
        json_bytes += put(json + json_bytes, open_json);
        packed_bytes += put(packed + packed_bytes, open_packed);
    }
    memset(json + json_bytes, map ? '}' : ']', levels);
    json_bytes += levels;
    struct wire_tree tree;
    struct err_text why = {0};
    assert_int_equal(wire_tree_parse(&tree, json, json_bytes, WIRE_JSON, &why), wanted);
    wire_tree_deinit(&tree);
    assert_int_equal(wire_tree_parse(&tree, packed, packed_bytes, WIRE_MSGPACK, &why), wanted);
    wire_tree_deinit(&tree);
    if (wanted != ERR_OK) {
        assert_string_equal(why.message, "the message is nested deeper than 32 levels");
    }
}

static void depth(void **state) {
    (void)state;
    for (int map = 0; map < 2; map++) {
        depth_case(1, map, ERR_OK);
        depth_case(WIRE_DEPTH_MAX, map, ERR_OK);
        depth_case(WIRE_DEPTH_MAX + 1, map, ERR_BAD_MESSAGE);
        depth_case(100, map, ERR_BAD_MESSAGE);
    }
}

/* A megabyte of opening brackets: no library may recurse over it. */
static void bottomless(void **state) {
    enum { BYTES_COUNT = 1 << 20 };
    char *data = malloc(BYTES_COUNT);
    (void)state;
    assert_non_null(data);
    memset(data, '[', BYTES_COUNT);
    refuse(data, BYTES_COUNT, WIRE_JSON, ERR_BAD_MESSAGE, "nested deeper");
    memset(data, 0x91, BYTES_COUNT);
    refuse(data, BYTES_COUNT, WIRE_MSGPACK, ERR_BAD_MESSAGE, "nested deeper");
    free(data);
}

static void brackets_in_strings_do_not_nest(void **state) {
    struct wire_tree tree;
    struct err_text why = {0};
    static const char json[] =
        "{\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\":\"\\\"[[[[[[[[[[[[[[[[[[[[[[["
        "[[[[[[[[[[[\\\\\",\"b\":\"{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{\"}";
    (void)state;
    assert_int_equal(wire_tree_parse(&tree, json, sizeof json - 1, WIRE_JSON, &why), ERR_OK);
    assert_int_equal(wire_value_count(tree.root), 2);
    wire_tree_deinit(&tree);
}

static void too_many_values(void **state) {
    size_t count = WIRE_VALUES_MAX; /* the list itself is one more */
    char *data = malloc(2 * count + 8);
    (void)state;
    assert_non_null(data);
    memset(data, 1, count + 5);
    data[0] = '\xdd'; /* with four bytes of length */
    data[1] = 0;
    data[2] = 0x10;
    data[3] = 0;
    data[4] = 0;
    refuse(data, count + 5, WIRE_MSGPACK, ERR_TOO_LARGE, "more than 1048576 values");
    data[0] = '[';
    for (size_t i = 0; i < count; i++) {
        (void)put(data + 1 + 2 * i, "1,");
    }
    data[2 * count] = ']';
    refuse(data, 2 * count + 1, WIRE_JSON, ERR_TOO_LARGE, "more than 1048576 values");
    free(data);
}

static void encodings(void **state) {
    (void)state;
    assert_int_equal(wire_encoding_of(BYTES("{}"), NULL), WIRE_JSON);
    assert_int_equal(wire_encoding_of(BYTES(" \r\n\t{"), NULL), WIRE_JSON);
    assert_int_equal(wire_encoding_of(BYTES("{}"), "application/msgpack"), WIRE_JSON);
    assert_int_equal(wire_encoding_of(BYTES("{}"), "text/plain"), WIRE_JSON);
    assert_int_equal(wire_encoding_of(BYTES("\x80"), NULL), WIRE_MSGPACK);
    assert_int_equal(wire_encoding_of(BYTES("\x80"), "text/plain"), WIRE_MSGPACK);
    assert_int_equal(wire_encoding_of(BYTES("\x80"), ""), WIRE_MSGPACK);
    assert_int_equal(wire_encoding_of(BYTES("["), "application/json"), WIRE_JSON);
    assert_int_equal(wire_encoding_of(BYTES("["), " Application/JSON; charset=utf-8"), WIRE_JSON);
    assert_int_equal(wire_encoding_of(BYTES("["), "application/json ;x"), WIRE_JSON);
    assert_int_equal(wire_encoding_of(BYTES("["), "application/jsonl"), WIRE_MSGPACK);
    assert_int_equal(wire_encoding_of(NULL, 0, NULL), WIRE_MSGPACK);
    assert_int_equal(wire_encoding_of(NULL, 0, "application/json"), WIRE_JSON);
    assert_int_equal(wire_encoding_of(BYTES("   "), NULL), WIRE_MSGPACK);
}

static void parse(struct wire_tree *tree, const char *data, size_t bytes,
                  enum wire_encoding encoding) {
    struct err_text why = {0};
    assert_int_equal(wire_tree_parse(tree, data, bytes, encoding, &why), ERR_OK);
}

static void the_view(void **state) {
    static const char json[] = "{\"z\":null,\"b\":true,\"i\":-7,\"r\":0.5,\"s\":\"x\\u0000y\","
                               "\"l\":[1,\"\"],\"m\":{},\"\":0}";
    size_t bytes = 0;
    char *packed = support_msgpack(json, &bytes);
    (void)state;
    for (int encoding = WIRE_MSGPACK; encoding <= WIRE_JSON; encoding++) {
        struct wire_tree tree;
        parse(&tree, encoding == WIRE_JSON ? json : packed,
              encoding == WIRE_JSON ? sizeof json - 1 : bytes, (enum wire_encoding)encoding);
        struct wire_value root = tree.root;
        int64_t i = 0;
        size_t pairs = 0;
        struct wire_iterator it = {0};
        assert_int_equal(wire_value_type(root), WIRE_TYPE_MAP);
        assert_int_equal(wire_value_count(root), 8);
        assert_int_equal(wire_value_type(wire_value_get(root, "z")), WIRE_TYPE_NULL);
        assert_true(wire_value_bool(wire_value_get(root, "b")));
        assert_true(wire_value_int(wire_value_get(root, "i"), &i) && i == -7);
        assert_true(wire_value_real(wire_value_get(root, "i")) == -7);
        assert_true(wire_value_real(wire_value_get(root, "r")) == 0.5);
        struct wire_str s = wire_value_str(wire_value_get(root, "s"));
        assert_int_equal(s.bytes, 3);
        assert_memory_equal(s.data, "x\0y", 3);
        struct wire_value list = wire_value_get(root, "l");
        assert_int_equal(wire_value_count(list), 2);
        assert_int_equal(wire_value_str(wire_value_at(list, 1)).bytes, 0);
        assert_non_null(wire_value_str(wire_value_at(list, 1)).data);
        assert_int_equal(wire_value_count(wire_value_get(root, "m")), 0);
        assert_true(wire_value_given(wire_value_get(root, "")));
        assert_false(wire_value_given(wire_value_get(root, "absent")));
        assert_false(wire_value_given(wire_value_get(wire_value_get(root, "m"), "x")));
        while (wire_map_next(root, &it)) {
            assert_true(it.key.bytes <= 1 && wire_value_given(it.value));
            pairs++;
        }
        assert_int_equal(pairs, 8);
        wire_tree_deinit(&tree);
    }
    free(packed);
}

/* Each width of integer and real, as the specification of msgpack spells them. */
static void msgpack_numbers(void **state) {
    static const char data[] = "\x9c\x7f\xe0\xcc\xff\xcd\xff\xff\xce\xff\xff\xff\xff"
                               "\xcf\x7f\xff\xff\xff\xff\xff\xff\xff\xd0\x80\xd1\x80\x00"
                               "\xd2\x80\x00\x00\x00\xd3\x80\x00\x00\x00\x00\x00\x00\x00"
                               "\xca\x3f\x00\x00\x00\xcf\xff\xff\xff\xff\xff\xff\xff\xff";
    static const int64_t wanted[] = {127,       -32,  255,    65535,     4294967295,
                                     INT64_MAX, -128, -32768, INT32_MIN, INT64_MIN};
    int64_t i = 0;
    (void)state;
    struct wire_tree tree;
    parse(&tree, data, sizeof data - 1, WIRE_MSGPACK);
    for (size_t n = 0; n < sizeof wanted / sizeof wanted[0]; n++) {
        assert_true(wire_value_int(wire_value_at(tree.root, n), &i));
        assert_int_equal(i, wanted[n]);
    }
    assert_int_equal(wire_value_type(wire_value_at(tree.root, 10)), WIRE_TYPE_REAL);
    assert_true(wire_value_real(wire_value_at(tree.root, 10)) == 0.5);
    assert_false(wire_value_int(wire_value_at(tree.root, 11), &i)); /* 2^64 - 1 */
    assert_true(wire_value_real(wire_value_at(tree.root, 11)) == ldexp(1, 64));
    wire_tree_deinit(&tree);
}

/* What JSON cannot say reaches the fields' own checks. */
static void msgpack_only_values(void **state) {
    static const struct {
        const char *data;
        size_t bytes;
        const char *message;
    } cases[] = {
        {BYTES("\x82\xa6prompt\xa1x\xa4seed\xcf\xff\xff\xff\xff\xff\xff\xff\xff"),
         "seed does not fit into 64 bits with a sign"},
        {BYTES("\x82\xa6prompt\xa1x\xabtemperature\xcb\x7f\xf8\0\0\0\0\0\0"),
         "temperature must be finite"},
        {BYTES("\x82\xa6prompt\xa1x\xabtemperature\xca\x7f\x80\0\0"), "temperature must be finite"},
        {BYTES("\x82\xa6prompt\xa1x\xa5top_p\xcb\xff\xf0\0\0\0\0\0\0"), "top_p must be finite"},
        {BYTES("\x81\xa6prompt\xc4\x01x"), "prompt must be a string, not binary data"},
        {BYTES("\x81\xa6prompt\xd4\x01x"), "prompt must be a string, not binary data"},
        {BYTES("\x82\xa6prompt\xa1x\xa1n\xc4\x00"), "n is not supported"},
    };
    struct wire_job job;
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct err_text why = {0};
        assert_int_not_equal(wire_job_decode(&job, cases[i].data, cases[i].bytes, NULL, NULL, &why),
                             ERR_OK);
        assert_string_equal(why.message, cases[i].message);
        wire_job_deinit(&job);
    }
    assert_int_equal(wire_job_decode(&job,
                                     BYTES("\x82\xa6prompt\xa1x\xa1"
                                           "e\xd4\x01x"),
                                     NULL, NULL, NULL),
                     ERR_OK);
    assert_int_equal(job.unknown_fields, 1);
    wire_job_deinit(&job);
}

static void the_root_must_be_a_map(void **state) {
    struct wire_job job;
    struct err_text why = {0};
    (void)state;
    assert_int_equal(wire_job_decode(&job, BYTES("\x91\x01"), NULL, NULL, &why), ERR_BAD_MESSAGE);
    assert_string_equal(why.message, "the message must be a map, not a list");
    assert_int_equal(job.encoding, WIRE_MSGPACK);
    wire_job_deinit(&job);
    assert_int_equal(wire_job_decode(&job, BYTES("[1]"), "application/json", NULL, &why),
                     ERR_BAD_MESSAGE);
    assert_string_equal(why.message, "the message must be a map, not a list");
    assert_int_equal(job.encoding, WIRE_JSON);
    wire_job_deinit(&job);
    assert_int_equal(wire_job_decode(&job, NULL, 0, NULL, NULL, &why), ERR_BAD_MESSAGE);
    wire_job_deinit(&job);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_msgpack),
        cmocka_unit_test(bad_json),
        cmocka_unit_test(depth),
        cmocka_unit_test(bottomless),
        cmocka_unit_test(brackets_in_strings_do_not_nest),
        cmocka_unit_test(too_many_values),
        cmocka_unit_test(encodings),
        cmocka_unit_test(the_view),
        cmocka_unit_test(msgpack_numbers),
        cmocka_unit_test(msgpack_only_values),
        cmocka_unit_test(the_root_must_be_a_map),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
