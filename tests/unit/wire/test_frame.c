#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/wire/cmocka_all.h"
#include "tests/unit/wire/support.h"

#define RUN "01ARYZ6S410000000000000000"

static void json_bytes(void **state) {
    const uint32_t tokens[] = {1, 70000};
    const struct wire_logprob chosen[] = {{1, -0.1F}, {70000, -INFINITY}};
    const struct wire_logprob top[] = {{1, -0.1F}, {0, 0}};
    const struct wire_frame f = {.id = {"a/1", 3},
                                 .attempt = 2,
                                 .run = RUN,
                                 .seq = 3,
                                 .pos = 4,
                                 .kind = WIRE_TOKENS_FRAME,
                                 .text = {"\xC3\xA4 \"\\\n\x01/", 8},
                                 .tokens = tokens,
                                 .token_count = 2,
                                 .logprobs = {chosen, top, 2, 1}};
    struct wire_buffer out = {0};
    static const char wanted[] = "{\"v\":1,\"id\":\"a/1\",\"attempt\":2,\"run\":\"" RUN
                                 "\",\"seq\":3,\"pos\":4,\"kind\":\"tokens\",\"text\":\"\xC3\xA4 "
                                 "\\\"\\\\\\n\\u0001/\",\"tokens\":[1,70000],"
                                 "\"logprobs\":[{\"token\":1,\"logprob\":-0.1,\"top\":[[1,-0.1]]},"
                                 "{\"token\":70000,\"logprob\":-9999,\"top\":[[0,0]]}]}";
    (void)state;
    assert_int_equal(wire_frame_encode(&f, WIRE_JSON, &out), ERR_OK);
    assert_int_equal(out.bytes, sizeof wanted - 1);
    assert_memory_equal(out.data, wanted, sizeof wanted - 1);
    wire_buffer_deinit(&out);
}

static void round_trips(void **state) {
    uint32_t tokens[300];
    (void)state;
    for (uint32_t i = 0; i < 300; i++) {
        tokens[i] = i * i * i; /* each width of integer */
    }
    for (int kind = WIRE_START; kind <= WIRE_END; kind++) {
        for (int encoding = WIRE_MSGPACK; encoding <= WIRE_JSON; encoding++) {
            struct wire_frame f = {.id = {"@jobs/11/9223372036854775807", 28},
                                   .attempt = UINT32_MAX,
                                   .run = RUN,
                                   .seq = UINT32_MAX,
                                   .pos = 17,
                                   .kind = (enum wire_kind)kind,
                                   .text = {"t\0x", kind == WIRE_START ? 0 : 3},
                                   .tokens = tokens,
                                   .token_count = kind == WIRE_START ? 0 : 300};
            static const struct wire_logprob one = {3, -1.23456789F};
            f.logprobs = (struct wire_logprobs){.chosen = kind == WIRE_END ? NULL : &one,
                                                .count = kind == WIRE_TOKENS_FRAME};
            struct wire_frame back;
            struct wire_buffer out = {0};
            struct err_text why = {0};
            assert_int_equal(wire_frame_encode(&f, (enum wire_encoding)encoding, &out), ERR_OK);
            assert_int_equal(wire_frame_decode(&back, out.data, out.bytes, &why), ERR_OK);
            const char *field = support_frame_differs(&f, &back);
            assert_string_equal(field == NULL ? "" : field, "");
            wire_frame_deinit(&back);
            wire_buffer_deinit(&out);
        }
    }
}

static void refusals(void **state) {
#define REST "\"attempt\":1,\"run\":\"" RUN "\",\"seq\":0,\"pos\":0,\"kind\":\"start\"}"
    static const struct {
        const char *json;
        enum err e;
        const char *field;
    } cases[] = {
        {"[]", ERR_BAD_MESSAGE, ""},
        {"{" REST, ERR_BAD_FIELD, "id"},
        {"{\"id\":\"\"," REST, ERR_BAD_FIELD, "id"},
        {"{\"id\":1," REST, ERR_BAD_FIELD, "id"},
        {"{\"id\":\"a\",\"v\":2," REST, ERR_BAD_VERSION, "v"},
        {"{\"id\":\"a\",\"tokens\":[-1]," REST, ERR_BAD_FIELD, "tokens[0]"},
        {"{\"id\":\"a\",\"text\":1," REST, ERR_BAD_FIELD, "text"},
        {"{\"id\":\"a\",\"logprobs\":1," REST, ERR_BAD_FIELD, "logprobs"},
        {"{\"id\":\"a\",\"logprobs\":[]," REST, ERR_OK, ""},
        {"{\"id\":\"a\",\"logprobs\":[1]," REST, ERR_BAD_FIELD, "logprobs[0]"},
        {"{\"id\":\"a\",\"logprobs\":[{}]," REST, ERR_BAD_FIELD, "logprobs[0]"},
        {"{\"id\":\"a\",\"logprobs\":[{\"token\":1,\"logprob\":0,\"top\":[]}]," REST, ERR_OK, ""},
        {"{\"id\":\"a\",\"logprobs\":[{\"token\":-1,\"logprob\":0,\"top\":[]}]," REST,
         ERR_BAD_FIELD, "logprobs[0]"},
        {"{\"id\":\"a\",\"logprobs\":[{\"token\":1,\"logprob\":\"\",\"top\":[]}]," REST,
         ERR_BAD_FIELD, "logprobs[0]"},
        {"{\"id\":\"a\",\"logprobs\":[{\"token\":1,\"logprob\":0,\"top\":[]},"
         "{\"token\":1,\"logprob\":0,\"top\":[[1,0]]}]," REST,
         ERR_BAD_FIELD, "logprobs[1]"},
        {"{\"id\":\"a\",\"logprobs\":[{\"token\":1,\"logprob\":0,\"top\":[[1,0,1]]}]," REST,
         ERR_BAD_FIELD, "logprobs[0]"},
        {"{\"id\":\"a\",\"logprobs\":[{\"token\":1,\"logprob\":1e300,\"top\":[]}]," REST,
         ERR_BAD_FIELD, "logprobs[0]"},
        {"{\"id\":\"a\"}", ERR_BAD_FIELD, "attempt"},
        {"{\"id\":\"a\",\"attempt\":1}", ERR_BAD_FIELD, "run"},
        {"{\"id\":\"a\",\"attempt\":1,\"run\":\"x\"}", ERR_BAD_FIELD, "run"},
        {"{\"id\":\"a\",\"attempt\":1,\"run\":\"\",\"seq\":-1}", ERR_BAD_FIELD, "seq"},
        {"{\"id\":\"a\",\"attempt\":1,\"run\":\"\",\"seq\":0}", ERR_BAD_FIELD, "pos"},
        {"{\"id\":\"a\",\"attempt\":1,\"run\":\"\",\"seq\":0,\"pos\":0}", ERR_BAD_FIELD, "kind"},
        {"{\"id\":\"a\",\"attempt\":1,\"run\":\"\",\"seq\":0,\"pos\":0,\"kind\":\"x\"}",
         ERR_BAD_FIELD, "kind"},
        {"{\"id\":\"a\",\"new\":[1]," REST, ERR_OK, ""},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t bytes = 0;
        char *packed = support_msgpack(cases[i].json, &bytes);
        for (int encoding = WIRE_MSGPACK; encoding <= WIRE_JSON; encoding++) {
            struct wire_frame f;
            struct err_text why = {0};
            bool json = encoding == WIRE_JSON && cases[i].json[0] == '{';
            enum err e = json ? wire_frame_decode(&f, cases[i].json, strlen(cases[i].json), &why)
                              : wire_frame_decode(&f, packed, bytes, &why);
            assert_int_equal(e, cases[i].e);
            assert_string_equal(why.field, cases[i].field);
            wire_frame_deinit(&f);
        }
        free(packed);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json_bytes),
        cmocka_unit_test(round_trips),
        cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
