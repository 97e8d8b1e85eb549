#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/wire/cmocka_all.h"
#include "tests/unit/wire/support.h"

static const struct wire_options base = {.model_name = "SmolLM2"};
static const struct wire_options strict = {.strict = true, .model_name = "SmolLM2"};

/* Decodes a line that is fine, in one encoding. */
static void decode(struct wire_job *job, const char *json, int encoding,
                   const struct wire_options *options) {
    struct err_text why = {0};
    enum err e = support_decode(job, json, (enum wire_encoding)encoding, options, &why);
    if (e != ERR_OK) {
        print_message("%s\nrefused: %s\n", json, why.message);
    }
    assert_int_equal(e, ERR_OK);
}

/* ---- lines in ------------------------------------------------------------------------------- */

static void a_chat_line(void **state) {
    (void)state;
    for (int encoding = WIRE_MSGPACK; encoding <= WIRE_JSON; encoding++) {
        struct wire_job job;
        decode(
            &job,
            "{\"custom_id\":\"r-1\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\","
            "\"body\":{\"model\":\"pirate\",\"messages\":[{\"role\":\"system\",\"content\":\"S\"},"
            "{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"U\"}]}],"
            "\"max_completion_tokens\":8,\"temperature\":0,\"top_p\":0.5,\"seed\":7,"
            "\"stop\":\"x\",\"stream\":true,\"stream_options\":{\"include_usage\":true},"
            "\"logprobs\":false,\"top_logprobs\":0,\"n\":1,\"user\":\"u\",\"top_k\":3,"
            "\"ignore_eos\":true,\"metadata\":{\"a\":\"b\"}}}",
            encoding, &strict);
        assert_true(support_str_is(job.custom_id, "r-1"));
        assert_null(job.id.data);
        assert_true(support_str_is(job.adapter, "pirate"));
        assert_int_equal(job.input, WIRE_MESSAGES);
        assert_int_equal(job.message_count, 2);
        assert_true(support_str_is(job.messages[1].content, "U"));
        assert_true(job.max_tokens.given && job.max_tokens.value == 8);
        assert_true(job.temperature.given && job.temperature.value == 0);
        assert_true(job.top_p.given && job.top_p.value == 0.5);
        assert_true(job.seed.given && job.seed.value == 7);
        assert_true(job.top_k.given && job.top_k.value == 3);
        assert_true(job.ignore_eos);
        assert_int_equal(job.stop_count, 1);
        assert_false(job.stream.given); /* a batch file's line has none */
        assert_null(job.tenant.data);   /* `user` is no tenant */
        assert_int_equal(job.metadata_count, 1);
        assert_int_equal(job.unknown_fields, 0);
        wire_job_deinit(&job);
    }
}

static void the_envelope_around_a_line(void **state) {
    struct wire_job job;
    (void)state;
    decode(&job,
           "{\"v\":1,\"id\":\"b/1\",\"batch_id\":\"b\",\"generation\":1,\"custom_id\":\"c\","
           "\"priority\":2,\"tenant\":\"t\",\"ttl_ms\":5,\"ttft_slo_ms\":6,"
           "\"metadata\":{\"outer\":\"1\"},"
           "\"body\":{\"model\":null,\"prompt\":\"p\",\"metadata\":{\"inner\":\"2\"}}}",
           WIRE_JSON, &strict);
    assert_true(support_str_is(job.id, "b/1"));
    assert_true(support_str_is(job.batch_id, "b"));
    assert_int_equal(job.generation, 1);
    assert_int_equal(job.priority, 2);
    assert_true(support_str_is(job.tenant, "t"));
    assert_int_equal(job.ttl_ms.value, 5);
    assert_int_equal(job.ttft_slo_ms.value, 6);
    assert_null(job.adapter.data);
    assert_int_equal(job.metadata_count, 1);
    assert_true(support_str_is(job.metadata[0].key, "outer"));
    wire_job_deinit(&job);
}

static void prompts(void **state) {
    static const char *const texts[] = {
        "{\"custom_id\":\"c\",\"url\":\"/v1/completions\",\"body\":{\"prompt\":\"one\"}}",
        "{\"custom_id\":\"c\",\"body\":{\"prompt\":[\"one\"],\"model\":\"SmolLM2\"}}",
        "{\"custom_id\":\"c\",\"method\":null,\"url\":null,\"body\":{\"prompt\":\"one\"}}",
    };
    struct wire_job job;
    (void)state;
    for (int encoding = WIRE_MSGPACK; encoding <= WIRE_JSON; encoding++) {
        for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
            decode(&job, texts[i], encoding, &strict);
            assert_int_equal(job.input, WIRE_PROMPT);
            assert_true(support_str_is(job.prompt, "one"));
            assert_null(job.adapter.data);
            wire_job_deinit(&job);
        }
        decode(&job, "{\"custom_id\":\"c\",\"body\":{\"prompt\":[1,2]}}", encoding, &strict);
        assert_int_equal(job.input, WIRE_TOKENS);
        assert_int_equal(job.token_count, 2);
        assert_int_equal(job.tokens[1], 2);
        wire_job_deinit(&job);
    }
}

#define CHAT "\"messages\":[{\"role\":\"u\",\"content\":\"x\"}]"
#define LINE "{\"custom_id\":\"c\",\"body\":{" CHAT ","

static void refused_lines(void **state) {
    static const struct support_refusal cases[] = {
        {"{\"custom_id\":\"c\",\"body\":1}", ERR_BAD_FIELD, "body", "a map, not an integer"},
        {"{\"custom_id\":\"c\",\"body\":{}}", ERR_BAD_FIELD, "prompt", "is missing"},
        {"{\"custom_id\":1,\"body\":{" CHAT "}}", ERR_BAD_FIELD, "custom_id", "a string"},
        {"{\"method\":\"GET\",\"body\":{" CHAT "}}", ERR_UNSUPPORTED_FIELD, "method",
         "not supported"},
        {"{\"url\":\"/v1/embeddings\",\"body\":{" CHAT "}}", ERR_UNSUPPORTED_FIELD, "url",
         "must be /v1/chat/completions or /v1/completions"},
        {"{\"url\":1,\"body\":{" CHAT "}}", ERR_BAD_FIELD, "url", "a string, not an integer"},
        {"{\"url\":\"/v1/completions\",\"body\":{" CHAT "}}", ERR_BAD_FIELD, "url", "does not fit"},
        {"{\"url\":\"/v1/chat/completions\",\"body\":{\"prompt\":\"x\"}}", ERR_BAD_FIELD, "url",
         "does not fit"},
        {"{\"adapter\":\"a\",\"body\":{" CHAT "}}", ERR_UNSUPPORTED_FIELD, "adapter",
         "not supported"},
        {LINE "\"model\":\"../x\"}}", ERR_BAD_FIELD, "model", "is not an adapter's id"},
        {LINE "\"model\":7}}", ERR_BAD_FIELD, "model", "a string, not an integer"},
        {LINE "\"prompt\":\"x\"}}", ERR_BAD_FIELD, "messages", "beside another input"},
        {"{\"body\":{\"prompt\":[\"a\",\"b\"]}}", ERR_UNSUPPORTED_FIELD, "prompt", "several"},
        {"{\"body\":{\"prompt\":[[1],[2]]}}", ERR_UNSUPPORTED_FIELD, "prompt", "several"},
        {"{\"body\":{\"prompt\":[]}}", ERR_BAD_FIELD, "prompt", "is empty"},
        {"{\"body\":{\"prompt\":\"\"}}", ERR_BAD_FIELD, "prompt", "is empty"},
        {"{\"body\":{\"prompt\":[1,\"a\"]}}", ERR_BAD_FIELD, "prompt[1]", "an integer"},
        {"{\"body\":{\"prompt\":5}}", ERR_BAD_FIELD, "prompt", "a string or a list of token ids"},
        {LINE "\"max_tokens\":-1}}", ERR_BAD_FIELD, "max_tokens", "at least 1"},
        {LINE "\"n\":2}}", ERR_UNSUPPORTED_FIELD, "n", "is not supported"},
        {LINE "\"tools\":[{\"type\":\"function\"}]}}", ERR_UNSUPPORTED_FIELD, "tools", "not"},
        {LINE "\"top_logprobs\":5}}", ERR_BAD_FIELD, "top_logprobs", "needs logprobs"},
        {LINE "\"response_format\":{\"type\":\"json_object\"}}}", ERR_UNSUPPORTED_FIELD,
         "response_format", "is not supported"},
        {LINE "\"metadata\":{\"k\":2}}}", ERR_BAD_FIELD, "metadata.k", "a string"},
        {"{\"v\":2,\"custom_id\":\"c\",\"body\":{" CHAT "}}", ERR_BAD_VERSION, "v", "higher"},
    };
    static const struct support_refusal unknown[] = {
        {LINE "\"frobnicate\":1}}", ERR_UNSUPPORTED_FIELD, "frobnicate", "is not a known field"},
        {"{\"outer\":1,\"body\":{" CHAT "}}", ERR_UNSUPPORTED_FIELD, "outer", "not a known field"},
    };
    struct wire_job job;
    (void)state;
    support_refused(cases, sizeof cases / sizeof cases[0], &base);
    support_refused(unknown, sizeof unknown / sizeof unknown[0], &strict);
    decode(&job, "{\"outer\":1,\"body\":{" CHAT ",\"frobnicate\":1,\"priority\":1}}", WIRE_JSON,
           &base);
    assert_int_equal(job.unknown_fields, 3);
    wire_job_deinit(&job);
}

static void a_refused_line_keeps_its_ids(void **state) {
    struct wire_job job;
    struct err_text why = {0};
    (void)state;
    assert_int_equal(support_decode(&job,
                                    "{\"custom_id\":\"c\",\"id\":\"b/2\",\"body\":{\"model\":"
                                    "\"pirate\",\"n\":2,\"metadata\":{\"k\":\"v\"}}}",
                                    WIRE_MSGPACK, &base, &why),
                     ERR_UNSUPPORTED_FIELD);
    assert_true(support_str_is(job.custom_id, "c"));
    assert_true(support_str_is(job.id, "b/2"));
    assert_true(support_str_is(job.adapter, "pirate"));
    assert_int_equal(job.metadata_count, 1);
    wire_job_deinit(&job);
}

/* ---- finals out ----------------------------------------------------------------------------- */

static const struct wire_final done = {
    .id = {"b/1", 3},
    .custom_id = {"r-1", 3},
    .adapter = {"pirate", 6},
    .attempt = 1,
    .run = "01ARYZ6S410000000000000000",
    .status = WIRE_SUCCEEDED,
    .finish = WIRE_FINISH_LENGTH,
    .text = {"Ahoy \xF0\x9F\x8C\x8D", 9},
    .prompt_tokens = 10,
    .completion_tokens = 4,
    .cached_tokens = 8,
};

/* The line, parsed by jansson itself. */
static json_t *line_of(const struct wire_final *f) {
    struct wire_buffer out = {0};
    assert_int_equal(wire_final_openai(f, &out), ERR_OK);
    assert_true(out.bytes > 1);
    assert_int_equal(out.data[out.bytes - 1], '\n');
    assert_null(memchr(out.data, '\n', out.bytes - 1)); /* one line */
    json_error_t error;
    json_t *line = json_loadb(out.data, out.bytes, JSON_REJECT_DUPLICATES, &error);
    assert_non_null(line);
    wire_buffer_deinit(&out);
    return line;
}

static void a_success_out(void **state) {
    const char *id = NULL, *custom_id = NULL, *request_id = NULL, *completion_id = NULL;
    const char *object = NULL, *model = NULL, *role = NULL, *content = NULL, *finish = NULL;
    int status = 0, created = 0, index = -1, prompt = 0, completion = 0, total = 0, cached = 0;
    json_t *error = NULL;
    json_t *logprobs = NULL;
    (void)state;
    json_t *line = line_of(&done);
    assert_int_equal(
        json_unpack(line,
                    "{s:s, s:s, s:{s:i, s:s, s:{s:s, s:s, s:i, s:s, s:[{s:i, s:{s:s, s:s}, s:o, "
                    "s:s}], s:{s:i, s:i, s:i, s:{s:i}}}}, s:o}",
                    "id", &id, "custom_id", &custom_id, "response", "status_code", &status,
                    "request_id", &request_id, "body", "id", &completion_id, "object", &object,
                    "created", &created, "model", &model, "choices", "index", &index, "message",
                    "role", &role, "content", &content, "logprobs", &logprobs, "finish_reason",
                    &finish, "usage", "prompt_tokens", &prompt, "completion_tokens", &completion,
                    "total_tokens", &total, "prompt_tokens_details", "cached_tokens", &cached,
                    "error", &error),
        0);
    assert_string_equal(id, "batch_req_b/1");
    assert_string_equal(custom_id, "r-1");
    assert_int_equal(status, 200);
    assert_string_equal(request_id, done.run);
    assert_string_equal(completion_id, "chatcmpl-b/1");
    assert_string_equal(object, "chat.completion");
    assert_int_equal(created, 1469918176);
    assert_string_equal(model, "pirate");
    assert_int_equal(index, 0);
    assert_string_equal(role, "assistant");
    assert_string_equal(content, "Ahoy \xF0\x9F\x8C\x8D");
    assert_string_equal(finish, "length");
    assert_true(json_is_null(logprobs) && json_is_null(error));
    assert_int_equal(prompt, 10);
    assert_int_equal(completion, 4);
    assert_int_equal(total, 14);
    assert_int_equal(cached, 8);
    json_decref(line);
}

static void logprobs_out(void **state) {
    static const struct wire_logprob chosen[] = {{7, -0.5F}, {70000, -INFINITY}};
    static const struct wire_logprob top[] = {{8, -0.25F}, {7, -0.5F}, {1, 0}, {2, -1e30F}};
    struct wire_final f = done;
    (void)state;
    f.logprobs = (struct wire_logprobs){.chosen = chosen, .top = top, .count = 2, .top_count = 2};
    json_t *line = line_of(&f);
    json_t *choices =
        json_object_get(json_object_get(json_object_get(line, "response"), "body"), "choices");
    json_t *logprobs = json_object_get(json_array_get(choices, 0), "logprobs");
    json_t *wanted = json_loads(
        "{\"content\":[{\"token\":\"token_id:7\",\"logprob\":-0.5,\"bytes\":null,"
        "\"top_logprobs\":[{\"token\":\"token_id:8\",\"logprob\":-0.25,\"bytes\":null},"
        "{\"token\":\"token_id:7\",\"logprob\":-0.5,\"bytes\":null}]},"
        "{\"token\":\"token_id:70000\",\"logprob\":-9999,\"bytes\":null,"
        "\"top_logprobs\":[{\"token\":\"token_id:1\",\"logprob\":0,\"bytes\":null},"
        "{\"token\":\"token_id:2\",\"logprob\":-9999,\"bytes\":null}]}],\"refusal\":null}",
        0, NULL);
    assert_non_null(wanted);
    assert_true(json_equal(logprobs, wanted));
    json_decref(wanted);
    json_decref(line);
}

static void failures_out(void **state) {
    static const struct {
        enum wire_status status;
        const char *code;
        const char *wanted;
    } cases[] = {
        {WIRE_EXPIRED, "deadline", "batch_expired"}, {WIRE_EXPIRED, NULL, "batch_expired"},
        {WIRE_CANCELLED, NULL, "cancelled"},         {WIRE_REJECTED, "bad_field", "bad_field"},
        {WIRE_FAILED, "internal", "internal"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct wire_final f = done;
        const char *code = NULL;
        const char *message = NULL;
        f.status = cases[i].status;
        f.error_code = cases[i].code;
        f.error_message = i == 0 ? (struct wire_str){"too late", 8} : (struct wire_str){0};
        json_t *line = line_of(&f);
        assert_true(json_is_null(json_object_get(line, "response")));
        assert_int_equal(
            json_unpack(line, "{s:{s:s, s:s}}", "error", "code", &code, "message", &message), 0);
        assert_string_equal(code, cases[i].wanted);
        assert_string_equal(message, i == 0 ? "too late" : wire_status_name(f.status));
        json_decref(line);
    }
}

static void absent_parts_out(void **state) {
    struct wire_final f = {.id = {"@jobs/0/7", 9}, .status = WIRE_SUCCEEDED};
    const char *model = NULL, *custom_id = NULL, *request_id = NULL;
    (void)state;
    json_t *line = line_of(&f);
    assert_int_equal(json_unpack(line, "{s:s, s:{s:s, s:{s:s}}}", "custom_id", &custom_id,
                                 "response", "request_id", &request_id, "body", "model", &model),
                     0);
    assert_string_equal(custom_id, "@jobs/0/7"); /* or its reader could not tell it */
    assert_string_equal(request_id, "@jobs/0/7");
    assert_string_equal(model, "");
    json_decref(line);
}

static void lines_are_appended(void **state) {
    struct wire_buffer out = {0};
    (void)state;
    assert_int_equal(wire_final_openai(&done, &out), ERR_OK);
    size_t one = out.bytes;
    assert_int_equal(wire_final_openai(&done, &out), ERR_OK);
    assert_int_equal(out.bytes, 2 * one);
    assert_memory_equal(out.data, out.data + one, one);
    wire_buffer_deinit(&out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_chat_line),
        cmocka_unit_test(the_envelope_around_a_line),
        cmocka_unit_test(prompts),
        cmocka_unit_test(refused_lines),
        cmocka_unit_test(a_refused_line_keeps_its_ids),
        cmocka_unit_test(a_success_out),
        cmocka_unit_test(logprobs_out),
        cmocka_unit_test(failures_out),
        cmocka_unit_test(absent_parts_out),
        cmocka_unit_test(lines_are_appended),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
