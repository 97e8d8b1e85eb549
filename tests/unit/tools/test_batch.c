/* test_batch.c - what submit makes of a line, and the line in an id. */
#include "tests/unit/tools/test.h"

#include "tools/batch.h"

static int open_batch(void **state) {
    struct batch *b = calloc(1, sizeof *b);
    assert_non_null(b);
    (void)snprintf(b->id, sizeof b->id, "%s", BATCH_ID);
    *state = b;
    return 0;
}

static int close_batch(void **state) {
    batch_deinit(*state);
    free(*state);
    return 0;
}

static enum err convert(struct batch *b, uint64_t line, const char *text, struct batch_record *r,
                        struct err_text *why) {
    const struct wire_options options = {.model_name = "tiny"};
    return batch_convert(b, line, text, strlen(text), &options, r, why);
}

/* Converts, expects success, and decodes what would be sent. */
static void convert_and_read(struct batch *b, uint64_t line, const char *text,
                             struct batch_record *r, struct wire_job *sent) {
    struct err_text why = {0};
    assert_int_equal(convert(b, line, text, r, &why), ERR_OK);
    assert_int_equal(wire_job_decode(sent, r->value, r->bytes, NULL, NULL, &why), ERR_OK);
}

static void assert_str(struct wire_str s, const char *text) {
    assert_int_equal(s.bytes, strlen(text));
    assert_memory_equal(s.data, text, s.bytes);
}

static void job_with_both_ids_goes_as_it_is(void **state) {
    static const char line[] =
        "{ \"id\":\"a\", \"batch_id\" : \"mine\",\"prompt\":\"x\",\"later\":1}";
    struct batch_record r;
    struct err_text why = {0};
    assert_int_equal(convert(*state, 0, line, &r, &why), ERR_OK);
    assert_ptr_equal(r.value, line);
    assert_int_equal(r.bytes, strlen(line));
    assert_int_equal(((struct batch *)*state)->others.count, 1);
    assert_string_equal(((struct batch *)*state)->others.items[0].id, "mine");
    batch_record_deinit(&r);
}

static void job_without_ids_gets_them(void **state) {
    struct batch_record r;
    struct wire_job sent;
    convert_and_read(*state, 17,
                     "{\"adapter\":\"p\",\"prompt\":\"x\",\"max_tokens\":3,\"temperature\":0.5,"
                     "\"metadata\":{\"k\":\"v\"}}",
                     &r, &sent);
    assert_str(sent.id, BATCH_ID "/17");
    assert_str(sent.batch_id, BATCH_ID);
    assert_str(sent.adapter, "p");
    assert_str(sent.prompt, "x");
    assert_int_equal(sent.max_tokens.value, 3);
    assert_true(sent.temperature.value == 0.5);
    assert_int_equal(sent.metadata_count, 1);
    assert_int_equal(((struct batch *)*state)->ids.count, 0); /* ours need no memory */
    wire_job_deinit(&sent);
    batch_record_deinit(&r);
}

static void job_with_one_id_keeps_it(void **state) {
    struct batch_record r;
    struct wire_job sent;
    convert_and_read(*state, 0, "{\"id\":\"a\",\"prompt\":\"x\"}", &r, &sent);
    assert_str(sent.id, "a");
    assert_str(sent.batch_id, BATCH_ID);
    wire_job_deinit(&sent);
    batch_record_deinit(&r);
    convert_and_read(*state, 1, "{\"batch_id\":\"b\",\"prompt\":\"x\"}", &r, &sent);
    assert_str(sent.id, BATCH_ID "/1");
    assert_str(sent.batch_id, "b");
    wire_job_deinit(&sent);
    batch_record_deinit(&r);
}

static void openai_line_becomes_a_job(void **state) {
    struct batch_record r;
    struct wire_job sent;
    convert_and_read(*state, 3,
                     "{\"custom_id\":\"c1\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\","
                     "\"body\":{\"model\":\"pirate\",\"max_tokens\":5,\"messages\":"
                     "[{\"role\":\"user\",\"content\":\"h\\u00e9\"}]}}",
                     &r, &sent);
    assert_str(sent.id, BATCH_ID "/3");
    assert_str(sent.batch_id, BATCH_ID);
    assert_str(sent.custom_id, "c1");
    assert_str(sent.adapter, "pirate");
    assert_str(r.job.adapter, "pirate"); /* the record's key */
    assert_int_equal(sent.message_count, 1);
    assert_str(sent.messages[0].content, "h\xc3\xa9");
    assert_null(memmem(r.value, r.bytes, "body", 4));
    wire_job_deinit(&sent);
    batch_record_deinit(&r);
}

static void model_name_is_the_base(void **state) {
    struct batch_record r;
    struct err_text why = {0};
    assert_int_equal(convert(*state, 0,
                             "{\"custom_id\":\"c\",\"body\":{\"model\":\"tiny\",\"prompt\":\"x\"}}",
                             &r, &why),
                     ERR_OK);
    assert_null(r.job.adapter.data); /* no key: any partition */
    batch_record_deinit(&r);
}

static void bad_lines_name_their_field(void **state) {
    static const struct {
        const char *text, *field;
        enum err e;
    } bad[] = {
        {"{\"prompt\":\"x\",\"max_tokens\":-1}", "max_tokens", ERR_BAD_FIELD},
        {"{\"prompt\":\"x\",\"id\":\"@a\"}", "id", ERR_BAD_FIELD},
        {"{\"adapter\":\"../x\",\"prompt\":\"x\"}", "adapter", ERR_BAD_FIELD},
        {"{\"custom_id\":\"c\",\"body\":{\"prompt\":\"x\",\"n\":2}}", "n", ERR_UNSUPPORTED_FIELD},
        {"{\"prompt\":", "", ERR_BAD_MESSAGE},
        {"plain text", "", ERR_BAD_MESSAGE},
        {"\x81\xa6prompt\xa1x", "", ERR_BAD_MESSAGE}, /* msgpack is no line */
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct batch_record r;
        struct err_text why = {0};
        assert_int_equal(convert(*state, i, bad[i].text, &r, &why), bad[i].e);
        assert_true(why.message[0] != '\0');
        assert_non_null(strstr(why.field, bad[i].field));
        batch_record_deinit(&r);
    }
}

static void an_id_is_given_once(void **state) {
    struct batch_record r;
    struct err_text why = {0};
    assert_int_equal(convert(*state, 4, "{\"id\":\"a\",\"prompt\":\"x\"}", &r, &why), ERR_OK);
    batch_record_deinit(&r);
    assert_int_equal(convert(*state, 5, "{\"id\":\"a\",\"prompt\":\"y\"}", &r, &why),
                     ERR_BAD_FIELD);
    assert_string_equal(why.field, "id");
    assert_non_null(strstr(why.message, "line 5")); /* counted from 1 for people */
    batch_record_deinit(&r);
}

static void other_batch_ids_are_bounded(void **state) {
    struct err_text why = {0};
    for (int i = 0; i <= BATCH_OTHERS_MAX; i++) {
        struct batch_record r;
        char text[64];
        (void)snprintf(text, sizeof text, "{\"batch_id\":\"b%d\",\"prompt\":\"x\"}", i);
        enum err e = convert(*state, (uint64_t)i, text, &r, &why);
        assert_int_equal(e, i < BATCH_OTHERS_MAX ? ERR_OK : ERR_BAD_FIELD);
        batch_record_deinit(&r);
    }
    assert_string_equal(why.field, "batch_id");
}

static uint64_t line_of(const char *id) {
    return batch_line(BATCH_ID, id, strlen(id));
}

static void line_is_read_from_an_id(void **state) {
    (void)state;
    assert_int_equal(line_of(BATCH_ID "/0"), 0);
    assert_int_equal(line_of(BATCH_ID "/17"), 17);
    assert_int_equal(line_of(BATCH_ID "/999999999999999999"), 999999999999999999);
    assert_true(line_of(BATCH_ID "/1000000000000000000") == BATCH_NO_LINE);
    assert_true(line_of(BATCH_ID "/01") == BATCH_NO_LINE);
    assert_true(line_of(BATCH_ID "/") == BATCH_NO_LINE);
    assert_true(line_of(BATCH_ID "/1x") == BATCH_NO_LINE);
    assert_true(line_of(BATCH_ID "/-1") == BATCH_NO_LINE);
    assert_true(line_of(BATCH_ID) == BATCH_NO_LINE);
    assert_true(line_of(RUN_A "/1") == BATCH_NO_LINE);
    assert_true(line_of("a") == BATCH_NO_LINE);
    assert_int_equal(batch_line(BATCH_ID, BATCH_ID "/123", strlen(BATCH_ID) + 3), 12);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(job_with_both_ids_goes_as_it_is, open_batch, close_batch),
        cmocka_unit_test_setup_teardown(job_without_ids_gets_them, open_batch, close_batch),
        cmocka_unit_test_setup_teardown(job_with_one_id_keeps_it, open_batch, close_batch),
        cmocka_unit_test_setup_teardown(openai_line_becomes_a_job, open_batch, close_batch),
        cmocka_unit_test_setup_teardown(model_name_is_the_base, open_batch, close_batch),
        cmocka_unit_test_setup_teardown(bad_lines_name_their_field, open_batch, close_batch),
        cmocka_unit_test_setup_teardown(an_id_is_given_once, open_batch, close_batch),
        cmocka_unit_test_setup_teardown(other_batch_ids_are_bounded, open_batch, close_batch),
        cmocka_unit_test(line_is_read_from_an_id),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
