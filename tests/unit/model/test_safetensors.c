/* The format's rules, each broken once. The adapters of tests/golden/tiny-llama/bad break more of
 * them on the way through a whole adapter (test_adapter.c). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/safetensors.h"
#include "tests/unit/model/files.h"

static const struct model_origin ORIGIN = {"file.safetensors", ERR_BAD_MODEL};

/* Parses header + zeros and demands the error; `word` is in its message. */
static void refuses(const char *header, size_t data_bytes, const char *word) {
    size_t bytes = 0;
    uint8_t *file = safetensors_make(header, data_bytes, &bytes);
    struct model_st st;
    struct err_text why = {0};
    assert_int_equal(model_st_parse(&st, file, bytes, ORIGIN, &why), ERR_BAD_MODEL);
    if (strstr(why.message, word) == NULL) {
        fail_msg("\"%s\" does not hold \"%s\"", why.message, word);
    }
    assert_non_null(strstr(why.message, "file.safetensors"));
    assert_null(st.tensors);
    assert_null(st.header);
    free(file);
}

static void test_reads_tensors_in_the_order_of_their_bytes(void **state) {
    (void)state;
    size_t bytes = 0;
    uint8_t *file =
        safetensors_make("{\"__metadata__\":{\"format\":\"pt\"},"
                         "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[4,16]},"
                         "\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
                         "\"empty\":{\"dtype\":\"F32\",\"shape\":[0,9],\"data_offsets\":[16,16]},"
                         "\"c\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[16,24]}}   ",
                         24, &bytes);
    struct model_st st;
    assert_int_equal(model_st_parse(&st, file, bytes, ORIGIN, NULL), ERR_OK);
    assert_int_equal(st.count, 4);
    assert_string_equal(st.tensors[0].name, "a");
    assert_int_equal(st.tensors[0].elements, 1);
    assert_int_equal(st.tensors[0].dims, 0);
    assert_string_equal(st.tensors[1].name, "b");
    assert_int_equal(st.tensors[1].dtype, KERN_BF16);
    assert_int_equal(st.tensors[1].shape[1], 3);
    assert_ptr_equal(st.tensors[1].data, file + st.header_bytes + 4);
    assert_string_equal(st.tensors[2].name, "empty");
    assert_string_equal(st.tensors[3].name, "c");
    assert_false(st.tensors[3].is_float);
    char room[MODEL_ST_SHAPE_TEXT_BYTES];
    assert_string_equal(model_tensor_shape(&st.tensors[1], room), "[2, 3]");
    assert_string_equal(model_tensor_shape(&st.tensors[0], room), "[]");
    model_st_deinit(&st);
    free(file);
}

#define TENSOR(name, dtype, shape, begin, end)                                                     \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end \
    "]}"

static void test_refuses_what_lies(void **state) {
    (void)state;
    refuses("{" TENSOR("a", "F32", "[2]", 0, 4) "}", 4, "a: data_offsets do not agree");
    refuses("{" TENSOR("a", "F32", "[1]", 0, 8) "}", 8, "a: data_offsets do not agree");
    refuses("{" TENSOR("a", "F32", "[4611686018427387904,4]", 0, 0) "}", 0, "a: shape is too");
    refuses("{" TENSOR("a", "F32", "[4611686018427387904]", 0, 0) "}", 0, "a: data_offsets");
    refuses("{" TENSOR("a", "F32", "[99999999999999999999]", 0, 0) "}", 0, "integer");
    refuses("{" TENSOR("a", "F32", "[1.0]", 0, 4) "}", 4, "a: shape");
    refuses("{" TENSOR("a", "F32", "[1,1,1,1,1,1,1,1,1]", 0, 4) "}", 4, "a: shape");
    refuses("{" TENSOR("a", "F32", "[1]", 0, 4) "}", 8, "4 bytes after the last tensor");
    refuses("{" TENSOR("a", "F32", "[1]", 4, 8) "}", 8, "a: a gap");
    refuses("{" TENSOR("a", "F32", "[1]", 0, 4) "," TENSOR("b", "F32", "[1]", 0, 4) "}", 4,
            "overlaps");
    refuses("{" TENSOR("a", "F32", "[2]", 0, 8) "," TENSOR("b", "F32", "[1]", 4, 8) "}", 8,
            "b: it overlaps");
    refuses("{" TENSOR("a", "F32", "[1]", 0, 4) "," TENSOR("a", "F32", "[1]", 0, 4) "}", 4,
            "duplicate");
    refuses("{" TENSOR("a", "F32", "[1]", 4, 0) "}", 4, "a: data_offsets lie");
    refuses("{" TENSOR("a", "F32", "[1]", 0, 4) "}", 3, "a: data_offsets lie");
    refuses("{" TENSOR("a", "Q4", "[1]", 0, 4) "}", 4, "a: its dtype");
    refuses("{\"a\":{\"dtype\":7,\"shape\":[],\"data_offsets\":[0,4]}}", 4, "a: dtype");
    refuses("{\"a\":[]}", 0, "a: its entry");
    refuses("{\"a\":{}}", 0, "a: its entry");
    refuses("{\"__metadata__\":7}", 0, "__metadata__");
    refuses("{" TENSOR("", "F32", "[1]", 0, 4) "}", 4, "name");
    refuses("{" TENSOR("a\\u001b[2J", "F32", "[1]", 0, 4) "}", 4, "not printable");
    refuses("", 0, "line 1");
    refuses("{} {}", 0, "line 1");
    refuses("{\"a", 0, "line 1");
}

static void test_refuses_a_header_longer_than_the_file(void **state) {
    (void)state;
    uint8_t file[16] = {9, 0, 0, 0, 0, 0, 0, 0, '{', '}', ' ', ' ', ' ', ' ', ' ', ' '};
    struct model_st st;
    assert_int_equal(model_st_parse(&st, file, 16, ORIGIN, NULL), ERR_BAD_MODEL);
    memset(file, 0xff, 8); /* 8 + the length would wrap around */
    assert_int_equal(model_st_parse(&st, file, 16, ORIGIN, NULL), ERR_BAD_MODEL);
    memset(file, 0, 8);
    file[0] = 8;
    assert_int_equal(model_st_parse(&st, file, 16, ORIGIN, NULL), ERR_OK);
    assert_int_equal(st.count, 0);
    model_st_deinit(&st);
    for (size_t cut = 0; cut < 16; cut++) {
        assert_int_equal(model_st_parse(&st, file, cut, ORIGIN, NULL), ERR_BAD_MODEL);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_tensors_in_the_order_of_their_bytes),
        cmocka_unit_test(test_refuses_what_lies),
        cmocka_unit_test(test_refuses_a_header_longer_than_the_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
