#include <stdlib.h>
#include <string.h>

#include "tests/unit/wire/cmocka_all.h"
#include "tests/unit/wire/support.h"

#define RUN "01ARYZ6S410000000000000000"
#define STR(text) \
    { text, sizeof(text) - 1 }

static const uint32_t tokens[] = {5, 6, 2147483647};
static const struct wire_logprob chosen[] = {{5, 0}, {6, -3.25F}, {2147483647, -1e-7F}};
static const struct wire_logprob top[] = {{5, 0},      {1, -17.5F}, {2, -0.125F},
                                          {6, -3.25F}, {3, -2},     {4, -3}};
static const struct wire_pair metadata[] = {{STR("k"), STR("v")}, {STR("e"), {"", 0}}};
static const struct wire_final full = {
    .id = STR("b/1"),
    .custom_id = STR("r-1"),
    .batch_id = STR("b"),
    .adapter = STR("pirate"),
    .revision = STR("0123abcd"),
    .generation = 1,
    .attempt = 2,
    .run = RUN,
    .status = WIRE_SUCCEEDED,
    .finish = WIRE_FINISH_STOP,
    .text = STR("caf\xC3\xA9"),
    .tokens = tokens,
    .token_count = 3,
    .logprobs = {chosen, top, 3, 2},
    .prompt_tokens = 10,
    .completion_tokens = 3,
    .cached_tokens = 4,
    .timing = {1.5, 20.25, 1e6},
    .worker = STR("host-1"),
    .topic = STR("lorry.jobs"),
    .partition = 11,
    .offset = INT64_MAX,
    .metadata = metadata,
    .metadata_count = 2,
};
static const struct wire_final least = {
    .id = STR("@lorry.jobs/0/7"), .status = WIRE_REJECTED, .timing = {-1, -1, -1}};

static void encode_is(const struct wire_final *f, const char *wanted) {
    struct wire_buffer out = {0};
    assert_int_equal(wire_final_encode(f, WIRE_JSON, &out), ERR_OK);
    assert_int_equal(out.bytes, strlen(wanted));
    assert_memory_equal(out.data, wanted, out.bytes);
    wire_buffer_deinit(&out);
}

static void json_bytes(void **state) {
    (void)state;
    encode_is(&full,
              "{\"v\":1,\"id\":\"b/1\",\"custom_id\":\"r-1\",\"batch_id\":\"b\",\"generation\":1,"
              "\"adapter\":\"pirate\",\"revision\":\"0123abcd\",\"attempt\":2,\"run\":\"" RUN "\","
              "\"status\":\"succeeded\",\"finish_reason\":\"stop\",\"error\":null,"
              "\"text\":\"caf\xC3\xA9\",\"tokens\":[5,6,2147483647],\"logprobs\":["
              "{\"token\":5,\"logprob\":0,\"top\":[[5,0],[1,-17.5]]},"
              "{\"token\":6,\"logprob\":-3.25,\"top\":[[2,-0.125],[6,-3.25]]},"
              "{\"token\":2147483647,\"logprob\":-1e-07,\"top\":[[3,-2],[4,-3]]}],"
              "\"usage\":{\"prompt_tokens\":10,"
              "\"completion_tokens\":3,\"total_tokens\":13,\"prompt_tokens_details\":"
              "{\"cached_tokens\":4}},\"timing_ms\":{\"queued\":1.5,\"first_token\":20.25,"
              "\"total\":1000000},\"worker\":\"host-1\",\"source\":{\"topic\":\"lorry.jobs\","
              "\"partition\":11,\"offset\":9223372036854775807},\"metadata\":{\"k\":\"v\","
              "\"e\":\"\"}}");
    struct wire_final f = least;
    f.finish = WIRE_FINISH_STOP; /* null unless succeeded */
    f.error_code = "bad_field";
    f.error_message = (struct wire_str)STR("max_tokens must be at least 1");
    f.timing.queued = 0.00049;
    encode_is(
        &f,
        "{\"v\":1,\"id\":\"@lorry.jobs/0/7\",\"custom_id\":null,\"batch_id\":null,"
        "\"generation\":0,\"adapter\":null,\"revision\":null,\"attempt\":0,\"run\":null,"
        "\"status\":\"rejected\",\"finish_reason\":null,\"error\":{\"code\":\"bad_field\","
        "\"message\":\"max_tokens must be at least 1\",\"field\":null},\"text\":null,"
        "\"tokens\":[],\"logprobs\":null,\"usage\":{\"prompt_tokens\":0,\"completion_tokens\":0,"
        "\"total_tokens\":0,\"prompt_tokens_details\":{\"cached_tokens\":0}},"
        "\"timing_ms\":{\"queued\":0,\"first_token\":null,\"total\":null},"
        "\"worker\":null,\"source\":{\"topic\":null,\"partition\":0,\"offset\":0},"
        "\"metadata\":{}}");
}

static void round_trip(const struct wire_final *f) {
    for (int encoding = WIRE_MSGPACK; encoding <= WIRE_JSON; encoding++) {
        struct wire_final back;
        struct wire_buffer out = {0};
        struct err_text why = {0};
        assert_int_equal(wire_final_encode(f, (enum wire_encoding)encoding, &out), ERR_OK);
        assert_int_equal(wire_final_decode(&back, out.data, out.bytes, &why), ERR_OK);
        const char *field = support_final_differs(f, &back);
        assert_string_equal(field == NULL ? "" : field, "");
        wire_final_deinit(&back);
        wire_buffer_deinit(&out);
    }
}

static void round_trips(void **state) {
    (void)state;
    round_trip(&full);
    round_trip(&least);
    struct wire_final unlikely = full; /* less than is shown reads back as what is shown */
    const struct wire_logprob low[] = {{1, -9999}, {2, -9999}};
    unlikely.logprobs = (struct wire_logprobs){low, low, 2, 1};
    round_trip(&unlikely);
    for (int status = WIRE_SUCCEEDED; status <= WIRE_CANCELLED; status++) {
        struct wire_final f = full;
        f.status = (enum wire_status)status;
        f.finish = status == WIRE_SUCCEEDED ? WIRE_FINISH_LENGTH : WIRE_FINISH_NONE;
        f.error_code = "internal";
        f.error_message = (struct wire_str)STR("why \"this\"");
        f.error_field = (struct wire_str)STR("max_tokens");
        round_trip(&f);
    }
}

/* What no reader would take is not written: publish leaves the logprobs out then. */
static void too_many_logprobs(void **state) {
    enum { COUNT = 20000 };
    (void)state;
    struct wire_logprob *many = calloc((size_t)COUNT * 20, sizeof *many);
    assert_non_null(many);
    struct wire_final f = full;
    struct wire_buffer out = {0};
    f.logprobs = (struct wire_logprobs){many, many, COUNT, 20};
    assert_int_equal(wire_final_encode(&f, WIRE_MSGPACK, &out), ERR_TOO_LARGE);
    f.logprobs.count = 15000;
    assert_int_equal(wire_final_encode(&f, WIRE_MSGPACK, &out), ERR_OK);
    struct wire_final back;
    assert_int_equal(wire_final_decode(&back, out.data, out.bytes, NULL), ERR_OK);
    assert_int_equal(back.logprobs.count, 15000);
    wire_final_deinit(&back);
    wire_buffer_deinit(&out);
    free(many);
}

/* Our output must be UTF-8 whatever a message held. */
static void bad_utf8_is_replaced(void **state) {
    struct wire_final f = least;
    (void)state;
    f.error_code = "internal";
    f.error_message = (struct wire_str)STR("a\xFF\xC3(b\xE4\xB8");
    for (int encoding = WIRE_MSGPACK; encoding <= WIRE_JSON; encoding++) {
        struct wire_final back;
        struct wire_buffer out = {0};
        struct err_text why = {0};
        assert_int_equal(wire_final_encode(&f, (enum wire_encoding)encoding, &out), ERR_OK);
        assert_int_equal(wire_final_decode(&back, out.data, out.bytes, &why), ERR_OK);
        assert_true(support_str_is(back.error_message, "a\xEF\xBF\xBD\xEF\xBF\xBD(b"
                                                       "\xEF\xBF\xBD\xEF\xBF\xBD"));
        wire_final_deinit(&back);
        wire_buffer_deinit(&out);
    }
}

static void status_names(void **state) {
    (void)state;
    assert_string_equal(wire_status_name(WIRE_SUCCEEDED), "succeeded");
    assert_string_equal(wire_status_name(WIRE_FAILED), "failed");
    assert_string_equal(wire_status_name(WIRE_REJECTED), "rejected");
    assert_string_equal(wire_status_name(WIRE_EXPIRED), "expired");
    assert_string_equal(wire_status_name(WIRE_CANCELLED), "cancelled");
}

static void refusals(void **state) {
#define ID "{\"id\":\"a\",\"status\":\"failed\","
    static const struct {
        const char *json;
        enum err e;
        const char *field;
    } cases[] = {
        {"{\"status\":\"failed\"}", ERR_BAD_FIELD, "id"},
        {"{\"id\":\"a\"}", ERR_BAD_FIELD, "status"},
        {"{\"id\":\"a\",\"status\":\"done\"}", ERR_BAD_FIELD, "status"},
        {"{\"id\":\"a\",\"status\":1}", ERR_BAD_FIELD, "status"},
        {ID "\"v\":2}", ERR_BAD_VERSION, "v"},
        {ID "\"finish_reason\":\"why\"}", ERR_BAD_FIELD, "finish_reason"},
        {ID "\"run\":\"x\"}", ERR_BAD_FIELD, "run"},
        {ID "\"error\":\"x\"}", ERR_BAD_FIELD, "error"},
        {ID "\"error\":{}}", ERR_BAD_FIELD, "error.code"},
        {ID "\"error\":{\"code\":1}}", ERR_BAD_FIELD, "error.code"},
        {ID "\"usage\":{\"prompt_tokens\":-1}}", ERR_BAD_FIELD, "usage.prompt_tokens"},
        {ID "\"usage\":{\"prompt_tokens_details\":{\"cached_tokens\":\"1\"}}}", ERR_BAD_FIELD,
         "usage.prompt_tokens_details.cached_tokens"},
        {ID "\"timing_ms\":{\"total\":-1}}", ERR_BAD_FIELD, "timing_ms.total"},
        {ID "\"source\":{\"offset\":1.5}}", ERR_BAD_FIELD, "source.offset"},
        {ID "\"metadata\":{\"a\":1}}", ERR_BAD_FIELD, "metadata.a"},
        {ID "\"tokens\":{}}", ERR_BAD_FIELD, "tokens"},
        {ID "\"from_a_later_version\":{}}", ERR_OK, ""},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t bytes = 0;
        char *packed = support_msgpack(cases[i].json, &bytes);
        for (int encoding = WIRE_MSGPACK; encoding <= WIRE_JSON; encoding++) {
            struct wire_final f;
            struct err_text why = {0};
            enum err e = encoding == WIRE_JSON
                             ? wire_final_decode(&f, cases[i].json, strlen(cases[i].json), &why)
                             : wire_final_decode(&f, packed, bytes, &why);
            assert_int_equal(e, cases[i].e);
            assert_string_equal(why.field, cases[i].field);
            wire_final_deinit(&f);
        }
        free(packed);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json_bytes),        cmocka_unit_test(round_trips),
        cmocka_unit_test(too_many_logprobs), cmocka_unit_test(bad_utf8_is_replaced),
        cmocka_unit_test(status_names),      cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
