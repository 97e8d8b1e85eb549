/* test_memory.c - each allocation fails in turn: an error, no leak, no crash. */
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/wire/cmocka_all.h"
#include "tests/unit/wire/support.h"

/* The linker sends wire/'s own allocations here; jansson is told to. msgpack-c's stay real. */
void *__real_malloc(size_t bytes);
void *__real_realloc(void *old, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_realloc(void *old, size_t bytes);

static long allocations_left = -1; /* < 0: no limit */

static bool allocation_fails(void) {
    if (allocations_left < 0) {
        return false;
    }
    if (allocations_left == 0) {
        errno = ENOMEM; /* as malloc does */
        return true;
    }
    allocations_left--;
    return false;
}

void *__wrap_malloc(size_t bytes) {
    return allocation_fails() ? NULL : __real_malloc(bytes);
}

void *__wrap_realloc(void *old, size_t bytes) {
    return allocation_fails() ? NULL : __real_realloc(old, bytes);
}

static const char json[] =
    "{\"id\":\"a\",\"custom_id\":\"c\",\"adapter\":\"p\",\"tokens\":[1,2,3],\"stop\":[\"x\",\"y\"],"
    "\"stop_token_ids\":[4],\"metadata\":{\"k\":\"v\"},\"tenant\":\"t\"}";
static const char chat[] =
    "{\"custom_id\":\"c\",\"body\":{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":"
    "[{\"type\":\"text\",\"text\":\"U\"}]},{\"role\":\"user\",\"content\":\"two\"}]}}";

/* Returns after how many allocations it worked. */
static long decode_until_it_works(const char *text, enum wire_encoding encoding) {
    size_t bytes = strlen(text);
    char *packed = support_msgpack(text, &bytes);
    const char *data = encoding == WIRE_JSON ? text : packed;
    enum err e = ERR_NO_MEMORY;
    long limit = -1;
    bytes = encoding == WIRE_JSON ? strlen(text) : bytes;
    while (e != ERR_OK) {
        struct wire_job job;
        struct err_text why = {0};
        assert_true(++limit < 1000);
        allocations_left = limit;
        e = wire_job_decode(&job, data, bytes, NULL, NULL, &why);
        allocations_left = -1;
        if (e != ERR_OK && e != ERR_NO_MEMORY) {
            print_message("allocation %ld: %s\n", limit, why.message);
        }
        assert_true(e == ERR_OK || e == ERR_NO_MEMORY);
        assert_true(e == ERR_OK || why.message[0] != '\0');
        wire_job_deinit(&job);
    }
    free(packed);
    return limit;
}

static void decoding(void **state) {
    (void)state;
    assert_true(decode_until_it_works(json, WIRE_JSON) > 10);
    assert_true(decode_until_it_works(json, WIRE_MSGPACK) >= 1);
    assert_true(decode_until_it_works(chat, WIRE_JSON) > 10);
    assert_true(decode_until_it_works(chat, WIRE_MSGPACK) >= 1);
}

static void encoding_fails_whole(void **state) {
    static char text[100000];
    struct wire_buffer out = {0};
    const struct wire_final f = {.id = {"a", 1}, .text = {text, sizeof text}};
    enum err e = ERR_NO_MEMORY;
    long limit = -1;
    (void)state;
    memset(text, 'x', sizeof text);
    assert_int_equal(wire_final_openai(&f, &out), ERR_OK);
    size_t before = out.bytes; /* a failure leaves what was there */
    out.room = out.bytes;
    while (e != ERR_OK) {
        assert_true(++limit < 100);
        allocations_left = limit;
        e = wire_final_encode(&f, WIRE_MSGPACK, &out);
        allocations_left = -1;
        assert_true(e == ERR_OK ? out.bytes > before + sizeof text : out.bytes == before);
    }
    assert_true(limit >= 1);
    wire_buffer_deinit(&out);
}

int main(void) {
    json_set_alloc_funcs(__wrap_malloc, free);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decoding),
        cmocka_unit_test(encoding_fails_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
