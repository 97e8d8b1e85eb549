/* test_limits.c - each limit of wire.h: the largest that is accepted, and one more. */
#include <stdlib.h>
#include <string.h>

#include "tests/unit/wire/cmocka_all.h"
#include "tests/unit/wire/support.h"
#include "wire/emit.h"

/* Encodes, decodes in both encodings, and expects this. */
static void expect(const struct wire_job *job, enum err wanted, const char *field) {
    for (int encoding = WIRE_MSGPACK; encoding <= WIRE_JSON; encoding++) {
        struct wire_buffer out = {0};
        struct wire_job back;
        struct err_text why = {0};
        assert_int_equal(wire_job_encode(job, (enum wire_encoding)encoding, &out), ERR_OK);
        enum err e = wire_job_decode(&back, out.data, out.bytes, NULL, NULL, &why);
        if (e != wanted) {
            print_message("%s\n", why.message);
        }
        assert_int_equal(e, wanted);
        assert_string_equal(why.field, field);
        if (e == ERR_OK) {
            assert_null(support_job_differs(job, &back));
        }
        wire_job_deinit(&back);
        wire_buffer_deinit(&out);
    }
}

static char text[WIRE_JOB_BYTES_MAX + 1];

static int fill(void **state) {
    (void)state;
    memset(text, 'x', sizeof text);
    return 0;
}

static void ids(void **state) {
    const struct {
        size_t offset;
        const char *name;
    } fields[] = {
        {offsetof(struct wire_job, id), "id"},
        {offsetof(struct wire_job, custom_id), "custom_id"},
        {offsetof(struct wire_job, batch_id), "batch_id"},
        {offsetof(struct wire_job, adapter), "adapter"},
        {offsetof(struct wire_job, tenant), "tenant"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        struct wire_job job = {.prompt = {"x", 1}};
        struct wire_str *field = (void *)((char *)&job + fields[i].offset);
        *field = (struct wire_str){text, WIRE_ID_BYTES_MAX};
        expect(&job, ERR_OK, "");
        field->bytes++;
        expect(&job, ERR_BAD_FIELD, fields[i].name);
    }
}

static void messages(void **state) {
    struct wire_message *many = calloc(WIRE_MESSAGES_MAX + 1, sizeof *many);
    (void)state;
    assert_non_null(many);
    for (size_t i = 0; i <= WIRE_MESSAGES_MAX; i++) {
        many[i] = (struct wire_message){{text, 64}, {text, i % 3}};
    }
    struct wire_job job = {
        .input = WIRE_MESSAGES, .messages = many, .message_count = WIRE_MESSAGES_MAX};
    expect(&job, ERR_OK, "");
    job.message_count++;
    expect(&job, ERR_BAD_FIELD, "messages");
    job.message_count = 2;
    many[1].role.bytes = 65;
    expect(&job, ERR_BAD_FIELD, "messages[1].role");
    free(many);
}

static void stops(void **state) {
    struct wire_str strings[WIRE_STOPS_MAX + 1];
    uint32_t tokens[WIRE_STOP_TOKENS_MAX + 1] = {0};
    (void)state;
    for (size_t i = 0; i <= WIRE_STOPS_MAX; i++) {
        strings[i] = (struct wire_str){text, WIRE_STOP_BYTES_MAX};
    }
    struct wire_job job = {.prompt = {"x", 1},
                           .stop = strings,
                           .stop_count = WIRE_STOPS_MAX,
                           .stop_token_ids = tokens,
                           .stop_token_count = WIRE_STOP_TOKENS_MAX};
    expect(&job, ERR_OK, "");
    job.stop_count++;
    expect(&job, ERR_BAD_FIELD, "stop");
    job.stop_count = 3;
    strings[2].bytes++;
    expect(&job, ERR_BAD_FIELD, "stop[2]");
    job.stop_count = 0;
    job.stop_token_count++;
    expect(&job, ERR_BAD_FIELD, "stop_token_ids");
}

static void metadata(void **state) {
    struct wire_pair pairs[WIRE_METADATA_MAX + 1];
    char keys[WIRE_METADATA_MAX + 1][WIRE_METADATA_KEY_BYTES_MAX + 1];
    (void)state;
    memset(keys, 'k', sizeof keys);
    for (int i = 0; i <= WIRE_METADATA_MAX; i++) {
        keys[i][0] = (char)('a' + i);
        pairs[i] = (struct wire_pair){{keys[i], WIRE_METADATA_KEY_BYTES_MAX},
                                      {text, WIRE_METADATA_VALUE_BYTES_MAX}};
    }
    struct wire_job job = {
        .prompt = {"x", 1}, .metadata = pairs, .metadata_count = WIRE_METADATA_MAX};
    expect(&job, ERR_OK, "");
    job.metadata_count++;
    expect(&job, ERR_BAD_FIELD, "metadata");
    job.metadata_count = 1;
    pairs[0].value.bytes++;
    expect(&job, ERR_BAD_FIELD,
           "metadata.akkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk");
    pairs[0].value.bytes = 0;
    pairs[0].key.bytes++;
    expect(&job, ERR_BAD_FIELD, "metadata");
}

static void tokens(void **state) {
    enum { LARGE = 1 << 19 };
    uint32_t *many = malloc(LARGE * sizeof *many);
    (void)state;
    assert_non_null(many);
    for (uint32_t i = 0; i < LARGE; i++) {
        many[i] = i % 3 == 0 ? INT32_MAX : i;
    }
    const struct wire_job job = {.input = WIRE_TOKENS, .tokens = many, .token_count = LARGE};
    expect(&job, ERR_OK, "");
    free(many);
}

static void the_whole_message(void **state) {
    static const char head[] = "{\"id\":\"a\",\"prompt\":\"";
    static char json[WIRE_JOB_BYTES_MAX + 1];
    struct wire_job job;
    struct err_text why = {0};
    (void)state;
    memset(json, 'x', sizeof json);
    memcpy(json, head, sizeof head - 1);
    json[WIRE_JOB_BYTES_MAX - 2] = '"';
    json[WIRE_JOB_BYTES_MAX - 1] = '}';
    assert_int_equal(wire_job_decode(&job, json, WIRE_JOB_BYTES_MAX, NULL, NULL, &why), ERR_OK);
    assert_int_equal(job.prompt.bytes, WIRE_JOB_BYTES_MAX - (sizeof head - 1) - 2);
    wire_job_deinit(&job);
    json[WIRE_JOB_BYTES_MAX] = ' ';
    assert_int_equal(wire_job_decode(&job, json, WIRE_JOB_BYTES_MAX + 1, NULL, NULL, &why),
                     ERR_TOO_LARGE);
    assert_non_null(strstr(why.message, "8388609 bytes"));
    assert_int_equal(job.encoding, WIRE_JSON);
    wire_job_deinit(&job);
}

static void reals_survive(void **state) {
    static const double values[] = {0,      0.1,      1.0 / 3,
                                    0.7,    1e22,     123456789.123456789,
                                    5e-324, 1.79e308, 1e15,
                                    1e17,   3.0,      4503599627370497.5,
                                    2.5e-7, 1e-5,     99999999999999984};
    (void)state;
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        const struct wire_job job = {.prompt = {"x", 1}, .temperature = {values[i], true}};
        expect(&job, ERR_OK, "");
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids),           cmocka_unit_test(messages),
        cmocka_unit_test(stops),         cmocka_unit_test(metadata),
        cmocka_unit_test(tokens),        cmocka_unit_test(the_whole_message),
        cmocka_unit_test(reals_survive),
    };
    return cmocka_run_group_tests(tests, fill, NULL);
}
