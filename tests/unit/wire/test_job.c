#include <string.h>

#include "tests/unit/wire/cmocka_all.h"
#include "tests/unit/wire/support.h"

static const struct wire_options base = {.model_name = "SmolLM2"};
static const struct wire_options strict = {.strict = true, .model_name = "SmolLM2"};

#define REFUSE(cases, options) support_refused(cases, sizeof(cases) / sizeof((cases)[0]), options)

/* What a test expects of a job that is fine. */
typedef void check_fn(const struct wire_job *job);

static void accept(const char *json, const struct wire_options *options, check_fn *check) {
    for (int encoding = WIRE_MSGPACK; encoding <= WIRE_JSON; encoding++) {
        struct wire_job job;
        struct err_text why = {0};
        enum err e = support_decode(&job, json, (enum wire_encoding)encoding, options, &why);
        if (e != ERR_OK) {
            print_message("%s\nrefused: %s\n", json, why.message);
        }
        assert_int_equal(e, ERR_OK);
        assert_int_equal(job.encoding, encoding);
        assert_string_equal(why.message, "");
        if (check != NULL) {
            check(&job);
        }
        wire_job_deinit(&job);
    }
}

/* ---- whole jobs ----------------------------------------------------------------------------- */

static const char full_job[] =
    "{\"v\":1,\"id\":\"b1/7\",\"custom_id\":\"request 7 \xC3\xA4\",\"batch_id\":\"b1\","
    "\"generation\":4294967295,\"adapter\":\"pirate.v1\",\"prompt\":\"Ahoy \\u0000 "
    "\xF0\x9F\x8C\x8D\","
    "\"max_tokens\":2147483647,\"temperature\":0.7,\"top_p\":1,\"top_k\":-1,\"min_p\":0,"
    "\"repetition_penalty\":1.0,\"presence_penalty\":0,\"frequency_penalty\":0.0,"
    "\"seed\":-9223372036854775808,\"stop\":[\"\\n\\n\",\"END\"],\"stop_token_ids\":[0,2147483647],"
    "\"ignore_eos\":true,\"logprobs\":null,\"stream\":false,\"deadline_ms\":9007199254740991,"
    "\"ttft_slo_ms\":1,\"priority\":-2147483648,\"tenant\":\"team a\",\"reply_topic\":null,"
    "\"metadata\":{\"k\":\"v\",\"empty\":\"\"}}";

static void check_full(const struct wire_job *job) {
    assert_true(support_str_is(job->id, "b1/7"));
    assert_true(support_str_is(job->custom_id, "request 7 \xC3\xA4"));
    assert_true(support_str_is(job->batch_id, "b1"));
    assert_int_equal(job->generation, UINT32_MAX);
    assert_true(support_str_is(job->adapter, "pirate.v1"));
    assert_int_equal(job->input, WIRE_PROMPT);
    assert_int_equal(job->prompt.bytes, 11);
    assert_memory_equal(job->prompt.data, "Ahoy \0 \xF0\x9F\x8C\x8D", 11);
    assert_true(job->max_tokens.given && job->max_tokens.value == INT32_MAX);
    assert_true(job->temperature.given && job->temperature.value == 0.7);
    assert_true(job->top_p.given && job->top_p.value == 1);
    assert_true(job->top_k.given && job->top_k.value == -1);
    assert_true(job->min_p.given && job->min_p.value == 0);
    assert_true(job->repetition_penalty.given && job->repetition_penalty.value == 1);
    assert_true(job->presence_penalty.given && job->presence_penalty.value == 0);
    assert_true(job->frequency_penalty.given && job->frequency_penalty.value == 0);
    assert_true(job->seed.given && job->seed.value == INT64_MIN);
    assert_int_equal(job->stop_count, 2);
    assert_true(support_str_is(job->stop[0], "\n\n") && support_str_is(job->stop[1], "END"));
    assert_int_equal(job->stop_token_count, 2);
    assert_int_equal(job->stop_token_ids[0], 0);
    assert_int_equal(job->stop_token_ids[1], INT32_MAX);
    assert_true(job->ignore_eos);
    assert_false(job->logprobs.given);
    assert_true(job->stream.given && job->stream.value == 0);
    assert_true(job->deadline_ms.given && job->deadline_ms.value == 9007199254740991);
    assert_false(job->ttl_ms.given);
    assert_true(job->ttft_slo_ms.given && job->ttft_slo_ms.value == 1);
    assert_int_equal(job->priority, INT32_MIN);
    assert_true(support_str_is(job->tenant, "team a"));
    assert_true(support_str_is(job->reply_topic, NULL));
    assert_int_equal(job->metadata_count, 2);
    for (size_t i = 0; i < 2; i++) {
        bool empty = support_str_is(job->metadata[i].key, "empty");
        assert_true(empty || support_str_is(job->metadata[i].key, "k"));
        assert_true(support_str_is(job->metadata[i].value, empty ? "" : "v"));
    }
    assert_int_equal(job->unknown_fields, 0);
}

static void every_field(void **state) {
    (void)state;
    accept(full_job, &strict, check_full);
}

static void check_least(const struct wire_job *job) {
    const struct wire_job nothing = {.prompt = {"x", 1}};
    assert_null(support_job_differs(job, &nothing));
    assert_int_equal(job->unknown_fields, 0);
}

static void absent_and_null_are_one(void **state) {
    (void)state;
    accept("{\"prompt\":\"x\"}", NULL, check_least);
    accept("{\"v\":null,\"id\":null,\"custom_id\":null,\"batch_id\":null,\"generation\":null,"
           "\"adapter\":null,\"prompt\":\"x\",\"tokens\":null,\"messages\":null,"
           "\"max_tokens\":null,\"temperature\":null,\"top_p\":null,\"top_k\":null,\"min_p\":null,"
           "\"repetition_penalty\":null,\"presence_penalty\":null,\"frequency_penalty\":null,"
           "\"seed\":null,\"stop\":null,\"stop_token_ids\":null,\"ignore_eos\":null,"
           "\"logprobs\":null,\"stream\":null,\"deadline_ms\":null,\"ttl_ms\":null,"
           "\"ttft_slo_ms\":null,\"priority\":null,\"tenant\":null,\"reply_topic\":null,"
           "\"metadata\":null,\"model\":null,\"body\":null,\"tools\":null,\"n\":null}",
           &strict, check_least);
    accept("{\"prompt\":\"x\",\"id\":\"\",\"custom_id\":\"\",\"batch_id\":\"\",\"adapter\":\"\","
           "\"tenant\":\"\",\"stop\":[],\"stop_token_ids\":[],\"metadata\":{}}",
           &strict, check_least);
    accept("{\"prompt\":\"x\",\"adapter\":\"SmolLM2\",\"model\":\"SmolLM2\"}", &strict,
           check_least);
}

static void check_tokens(const struct wire_job *job) {
    assert_int_equal(job->input, WIRE_TOKENS);
    assert_int_equal(job->token_count, 3);
    assert_int_equal(job->tokens[0], 0);
    assert_int_equal(job->tokens[1], 300);
    assert_int_equal(job->tokens[2], INT32_MAX);
    assert_null(job->prompt.data);
}

static void check_messages(const struct wire_job *job) {
    assert_int_equal(job->input, WIRE_MESSAGES);
    assert_int_equal(job->message_count, 3);
    assert_true(support_str_is(job->messages[0].role, "system"));
    assert_true(support_str_is(job->messages[0].content, ""));
    assert_true(support_str_is(job->messages[1].role, "user"));
    assert_true(support_str_is(job->messages[1].content, "one\ntwo"));
    assert_true(support_str_is(job->messages[2].content, "")); /* no parts */
}

static void inputs(void **state) {
    (void)state;
    accept("{\"tokens\":[0,300,2147483647]}", &strict, check_tokens);
    accept("{\"messages\":[{\"role\":\"system\",\"content\":\"\",\"tool_calls\":null},"
           "{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"one\"},"
           "{\"type\":\"text\",\"text\":\"two\"}]},{\"role\":\"user\",\"content\":[]}]}",
           &strict, check_messages);
}

static void check_stop(const struct wire_job *job) {
    assert_int_equal(job->stop_count, 1);
    assert_true(support_str_is(job->stop[0], "END"));
}

static void check_zero_temperature(const struct wire_job *job) {
    assert_true(job->temperature.given && job->temperature.value == 0);
    assert_true(job->stream.given && job->stream.value == 1);
    assert_true(job->ttl_ms.given && job->ttl_ms.value == 0);
    assert_false(job->ignore_eos);
    assert_int_equal(job->priority, INT32_MAX);
}

static void other_forms(void **state) {
    (void)state;
    accept("{\"prompt\":\"x\",\"stop\":\"END\"}", &strict, check_stop);
    accept("{\"prompt\":\"x\",\"temperature\":0,\"stream\":true,\"ttl_ms\":0,\"ignore_eos\":false,"
           "\"priority\":2147483647}",
           &strict, check_zero_temperature);
    accept("{\"prompt\":\"x\",\"max_tokens\":5,\"max_completion_tokens\":5}", &strict, NULL);
    accept("{\"prompt\":\"x\",\"temperature\":1e300,\"top_p\":5e-324,\"top_k\":0}", &strict, NULL);
}

/* ---- refusals ------------------------------------------------------------------------------- */

#define P "{\"prompt\":\"x\","

static void wrong_types(void **state) {
    static const struct support_refusal cases[] = {
        {P "\"v\":\"1\"}", ERR_BAD_FIELD, "v", "v must be an integer, not a string"},
        {P "\"v\":1.5}", ERR_BAD_FIELD, "v", "not a real number"},
        {P "\"id\":7}", ERR_BAD_FIELD, "id", "id must be a string, not an integer"},
        {P "\"custom_id\":[]}", ERR_BAD_FIELD, "custom_id", "a string, not a list"},
        {P "\"batch_id\":{}}", ERR_BAD_FIELD, "batch_id", "a string, not a map"},
        {P "\"generation\":\"0\"}", ERR_BAD_FIELD, "generation", "an integer, not a string"},
        {P "\"adapter\":1}", ERR_BAD_FIELD, "adapter", "a string, not an integer"},
        {"{\"prompt\":[1]}", ERR_BAD_FIELD, "prompt", "a string, not a list"},
        {"{\"tokens\":\"x\"}", ERR_BAD_FIELD, "tokens", "a list, not a string"},
        {"{\"tokens\":[1,\"2\"]}", ERR_BAD_FIELD, "tokens[1]", "an integer, not a string"},
        {"{\"messages\":{}}", ERR_BAD_FIELD, "messages", "a list, not a map"},
        {P "\"max_tokens\":16.0}", ERR_BAD_FIELD, "max_tokens", "an integer, not a real number"},
        {P "\"max_tokens\":true}", ERR_BAD_FIELD, "max_tokens", "an integer, not a boolean"},
        {P "\"temperature\":\"0\"}", ERR_BAD_FIELD, "temperature", "a number, not a string"},
        {P "\"top_p\":true}", ERR_BAD_FIELD, "top_p", "a number, not a boolean"},
        {P "\"top_k\":1.5}", ERR_BAD_FIELD, "top_k", "an integer, not a real number"},
        {P "\"min_p\":[]}", ERR_BAD_FIELD, "min_p", "a number, not a list"},
        {P "\"repetition_penalty\":\"\"}", ERR_BAD_FIELD, "repetition_penalty", "a number"},
        {P "\"presence_penalty\":{}}", ERR_BAD_FIELD, "presence_penalty", "a number"},
        {P "\"frequency_penalty\":false}", ERR_BAD_FIELD, "frequency_penalty", "a number"},
        {P "\"seed\":\"1\"}", ERR_BAD_FIELD, "seed", "an integer, not a string"},
        {P "\"stop\":1}", ERR_BAD_FIELD, "stop", "a string or a list of strings, not an integer"},
        {P "\"stop\":[\"a\",1]}", ERR_BAD_FIELD, "stop[1]", "a string, not an integer"},
        {P "\"stop\":[null]}", ERR_BAD_FIELD, "stop[0]", "a string, not null"},
        {P "\"stop_token_ids\":1}", ERR_BAD_FIELD, "stop_token_ids", "a list, not an integer"},
        {P "\"stop_token_ids\":[1.0]}", ERR_BAD_FIELD, "stop_token_ids[0]", "an integer"},
        {P "\"ignore_eos\":1}", ERR_BAD_FIELD, "ignore_eos", "a boolean, not an integer"},
        {P "\"logprobs\":\"1\"}", ERR_BAD_FIELD, "logprobs", "an integer or a boolean"},
        {P "\"stream\":0}", ERR_BAD_FIELD, "stream", "a boolean, not an integer"},
        {P "\"deadline_ms\":1.5}", ERR_BAD_FIELD, "deadline_ms", "an integer"},
        {P "\"ttl_ms\":\"1\"}", ERR_BAD_FIELD, "ttl_ms", "an integer, not a string"},
        {P "\"ttft_slo_ms\":[]}", ERR_BAD_FIELD, "ttft_slo_ms", "an integer, not a list"},
        {P "\"priority\":\"high\"}", ERR_BAD_FIELD, "priority", "an integer, not a string"},
        {P "\"tenant\":1}", ERR_BAD_FIELD, "tenant", "a string, not an integer"},
        {P "\"reply_topic\":1}", ERR_BAD_FIELD, "reply_topic", "a string, not an integer"},
        {P "\"metadata\":[]}", ERR_BAD_FIELD, "metadata", "a map of strings, not a list"},
        {P "\"metadata\":{\"k\":1}}", ERR_BAD_FIELD, "metadata.k", "a string, not an integer"},
    };
    (void)state;
    REFUSE(cases, &base);
}

static void wrong_values(void **state) {
    static const struct support_refusal cases[] = {
        {P "\"v\":2}", ERR_BAD_VERSION, "v", "higher than 1"},
        {P "\"v\":0}", ERR_BAD_FIELD, "v", "at least 1"},
        {P "\"id\":\"a b\"}", ERR_BAD_FIELD, "id", "is not an id"},
        {P "\"id\":\"@jobs/0/1\"}", ERR_BAD_FIELD, "id", "is not an id"},
        {P "\"custom_id\":\"a\\nb\"}", ERR_BAD_FIELD, "custom_id", "control character"},
        {P "\"tenant\":\"a\\u007f\"}", ERR_BAD_FIELD, "tenant", "control character"},
        {P "\"generation\":-1}", ERR_BAD_FIELD, "generation", "at least 0"},
        {P "\"generation\":4294967296}", ERR_BAD_FIELD, "generation", "at most 4294967295"},
        {P "\"adapter\":\"../x\"}", ERR_BAD_FIELD, "adapter", "is not an adapter's id"},
        {P "\"adapter\":\"a/b\"}", ERR_BAD_FIELD, "adapter", "is not an adapter's id"},
        {P "\"adapter\":\"..\"}", ERR_BAD_FIELD, "adapter", "is not an adapter's id"},
        {P "\"adapter\":\"a#1\"}", ERR_BAD_FIELD, "adapter", "is not an adapter's id"},
        {"{\"prompt\":\"\"}", ERR_BAD_FIELD, "prompt", "is empty"},
        {"{\"tokens\":[]}", ERR_BAD_FIELD, "tokens", "is empty"},
        {"{\"messages\":[]}", ERR_BAD_FIELD, "messages", "is empty"},
        {"{}", ERR_BAD_FIELD, "prompt", "is missing"},
        {"{\"prompt\":\"x\",\"tokens\":[1]}", ERR_BAD_FIELD, "tokens", "beside another input"},
        {P "\"messages\":[{\"role\":\"u\",\"content\":\"\"}]}", ERR_BAD_FIELD, "messages",
         "beside"},
        {"{\"tokens\":[1,-1]}", ERR_BAD_FIELD, "tokens[1]", "at least 0"},
        {"{\"tokens\":[2147483648]}", ERR_BAD_FIELD, "tokens[0]", "at most 2147483647"},
        {P "\"max_tokens\":0}", ERR_BAD_FIELD, "max_tokens", "at least 1"},
        {P "\"max_tokens\":-5}", ERR_BAD_FIELD, "max_tokens", "at least 1"},
        {P "\"max_tokens\":2147483648}", ERR_BAD_FIELD, "max_tokens", "at most 2147483647"},
        {P "\"max_tokens\":1,\"max_completion_tokens\":2}", ERR_BAD_FIELD, "max_completion_tokens",
         "another name of it says 1"},
        {P "\"temperature\":-0.1}", ERR_BAD_FIELD, "temperature", "at least 0"},
        {P "\"top_p\":0}", ERR_BAD_FIELD, "top_p", "above 0 and at most 1"},
        {P "\"top_p\":1.01}", ERR_BAD_FIELD, "top_p", "at most 1"},
        {P "\"top_k\":-2}", ERR_BAD_FIELD, "top_k", "at least -1"},
        {P "\"min_p\":1.5}", ERR_BAD_FIELD, "min_p", "at most 1"},
        {P "\"min_p\":-0.5}", ERR_BAD_FIELD, "min_p", "at least 0"},
        {P "\"repetition_penalty\":0}", ERR_BAD_FIELD, "repetition_penalty", "above 0"},
        {P "\"presence_penalty\":2.5}", ERR_BAD_FIELD, "presence_penalty", "at most 2"},
        {P "\"frequency_penalty\":-2.5}", ERR_BAD_FIELD, "frequency_penalty", "at least -2"},
        {P "\"stop\":\"\"}", ERR_BAD_FIELD, "stop", "is empty"},
        {P "\"stop\":[\"a\",\"\"]}", ERR_BAD_FIELD, "stop[1]", "is empty"},
        {P "\"stop_token_ids\":[-1]}", ERR_BAD_FIELD, "stop_token_ids[0]", "at least 0"},
        {P "\"logprobs\":21}", ERR_BAD_FIELD, "logprobs", "at most 20"},
        {P "\"logprobs\":-1}", ERR_BAD_FIELD, "logprobs", "at least 0"},
        {P "\"deadline_ms\":-1}", ERR_BAD_FIELD, "deadline_ms", "at least 0"},
        {P "\"deadline_ms\":9007199254740992}", ERR_BAD_FIELD, "deadline_ms", "at most"},
        {P "\"ttl_ms\":-1}", ERR_BAD_FIELD, "ttl_ms", "at least 0"},
        {P "\"deadline_ms\":1,\"ttl_ms\":1}", ERR_BAD_FIELD, "ttl_ms", "beside deadline_ms"},
        {P "\"ttft_slo_ms\":0}", ERR_BAD_FIELD, "ttft_slo_ms", "at least 1"},
        {P "\"priority\":2147483648}", ERR_BAD_FIELD, "priority", "at most 2147483647"},
        {P "\"priority\":-2147483649}", ERR_BAD_FIELD, "priority", "at least -2147483648"},
    };
    (void)state;
    REFUSE(cases, &base);
}

static void bad_messages(void **state) {
    static const struct support_refusal cases[] = {
        {"{\"messages\":[1]}", ERR_BAD_FIELD, "messages[0]", "messages[0] must be a map"},
        {"{\"messages\":[{\"content\":\"x\"}]}", ERR_BAD_FIELD, "messages[0].role", "is missing"},
        {"{\"messages\":[{\"role\":\"\",\"content\":\"x\"}]}", ERR_BAD_FIELD, "messages[0].role",
         "is empty"},
        {"{\"messages\":[{\"role\":1,\"content\":\"x\"}]}", ERR_BAD_FIELD, "messages[0].role",
         "a string, not an integer"},
        {"{\"messages\":[{\"role\":\"u\",\"content\":\"\"},{\"role\":\"u\"}]}", ERR_BAD_FIELD,
         "messages[1].content", "is missing"},
        {"{\"messages\":[{\"role\":\"u\",\"content\":null}]}", ERR_BAD_FIELD, "messages[0].content",
         "is missing"},
        {"{\"messages\":[{\"role\":\"u\",\"content\":1}]}", ERR_BAD_FIELD, "messages[0].content",
         "a string or a list of text parts"},
        {"{\"messages\":[{\"role\":\"u\",\"content\":[\"x\"]}]}", ERR_BAD_FIELD,
         "messages[0].content[0]", "a map, not a string"},
        {"{\"messages\":[{\"role\":\"u\",\"content\":[{\"text\":\"x\"}]}]}", ERR_BAD_FIELD,
         "messages[0].content[0]", "needs a type"},
        {"{\"messages\":[{\"role\":\"u\",\"content\":[{\"type\":\"text\"}]}]}", ERR_BAD_FIELD,
         "messages[0].content[0]", "needs a text"},
        {"{\"messages\":[{\"role\":\"u\",\"content\":[{\"type\":\"image_url\"}]}]}",
         ERR_UNSUPPORTED_FIELD, "messages[0].content[0]", "type text"},
        {"{\"messages\":[{\"role\":\"a\",\"content\":\"\",\"tool_calls\":[{}]}]}",
         ERR_UNSUPPORTED_FIELD, "messages[0].tool_calls", "is not supported"},
    };
    (void)state;
    REFUSE(cases, &base);
}

static void not_supported_yet(void **state) {
    static const struct support_refusal cases[] = {
        {P "\"reply_topic\":\"mine\"}", ERR_UNSUPPORTED_FIELD, "reply_topic", "yet"},
    };
    (void)state;
    REFUSE(cases, &base);
}

/* ---- sampling and log-probabilities --------------------------------------------------------- */

static void check_penalties(const struct wire_job *job) {
    assert_true(job->min_p.given && job->min_p.value == 0.25);
    assert_true(job->repetition_penalty.given && job->repetition_penalty.value == 1.5);
    assert_true(job->presence_penalty.given && job->presence_penalty.value == -2);
    assert_true(job->frequency_penalty.given && job->frequency_penalty.value == 2);
}

static void check_no_logprobs(const struct wire_job *job) {
    assert_false(job->logprobs.given);
}

static void check_own_logprob(const struct wire_job *job) {
    assert_true(job->logprobs.given && job->logprobs.value == 0);
}

static void check_five(const struct wire_job *job) {
    assert_true(job->logprobs.given && job->logprobs.value == 5);
}

static void sampling_fields(void **state) {
    (void)state;
    accept(P "\"min_p\":0.25,\"repetition_penalty\":1.5,\"presence_penalty\":-2,"
             "\"frequency_penalty\":2}",
           &strict, check_penalties);
    accept(P "\"logprobs\":null}", &strict, check_no_logprobs);
    accept(P "\"logprobs\":false}", &strict, check_no_logprobs);
    accept(P "\"logprobs\":false,\"top_logprobs\":0}", &strict, check_no_logprobs);
    accept(P "\"top_logprobs\":0}", &strict, check_no_logprobs);
    accept(P "\"logprobs\":0}", &strict, check_own_logprob);
    accept(P "\"logprobs\":true}", &strict, check_own_logprob);
    accept(P "\"logprobs\":true,\"top_logprobs\":0}", &strict, check_own_logprob);
    accept(P "\"logprobs\":true,\"top_logprobs\":5}", &strict, check_five);
    accept(P "\"top_logprobs\":5,\"logprobs\":true}", &strict, check_five);
    accept(P "\"logprobs\":5}", &strict, check_five);
    accept(P "\"logprobs\":5,\"top_logprobs\":5}", &strict, check_five);
    static const struct support_refusal cases[] = {
        {P "\"top_logprobs\":2}", ERR_BAD_FIELD, "top_logprobs", "needs logprobs to be true"},
        {P "\"logprobs\":false,\"top_logprobs\":2}", ERR_BAD_FIELD, "top_logprobs", "needs"},
        {P "\"logprobs\":3,\"top_logprobs\":2}", ERR_BAD_FIELD, "top_logprobs", "says 3"},
        {P "\"logprobs\":true,\"top_logprobs\":21}", ERR_BAD_FIELD, "top_logprobs", "at most 20"},
        {P "\"logprobs\":true,\"top_logprobs\":-1}", ERR_BAD_FIELD, "top_logprobs", "at least 0"},
        {P "\"logprobs\":true,\"top_logprobs\":true}", ERR_BAD_FIELD, "top_logprobs",
         "an integer, not a boolean"},
    };
    REFUSE(cases, &base);
}

/* ---- fields of OpenAI and vLLM -------------------------------------------------------------- */

static void fields_that_we_lack(void **state) {
    static const struct support_refusal cases[] = {
        {P "\"n\":2}", ERR_UNSUPPORTED_FIELD, "n", "n is not supported"},
        {P "\"best_of\":2}", ERR_UNSUPPORTED_FIELD, "best_of", "is not supported"},
        {P "\"echo\":true}", ERR_UNSUPPORTED_FIELD, "echo", "is not supported"},
        {P "\"suffix\":\"x\"}", ERR_UNSUPPORTED_FIELD, "suffix", "is not supported"},
        {P "\"logit_bias\":{\"1\":2}}", ERR_UNSUPPORTED_FIELD, "logit_bias", "is not supported"},
        {P "\"response_format\":{\"type\":\"json_object\"}}", ERR_UNSUPPORTED_FIELD,
         "response_format", "is not supported"},
        {P "\"response_format\":{\"type\":\"text\",\"x\":1}}", ERR_UNSUPPORTED_FIELD,
         "response_format", "is not supported"},
        {P "\"tools\":[{}]}", ERR_UNSUPPORTED_FIELD, "tools", "is not supported"},
        {P "\"tool_choice\":\"required\"}", ERR_UNSUPPORTED_FIELD, "tool_choice", "not supported"},
        {P "\"functions\":[{}]}", ERR_UNSUPPORTED_FIELD, "functions", "is not supported"},
        {P "\"function_call\":\"f\"}", ERR_UNSUPPORTED_FIELD, "function_call", "not supported"},
        {P "\"modalities\":[\"text\",\"audio\"]}", ERR_UNSUPPORTED_FIELD, "modalities", "not"},
        {P "\"guided_json\":{}}", ERR_UNSUPPORTED_FIELD, "guided_json", "is not supported"},
        {P "\"guided_regex\":\"\"}", ERR_UNSUPPORTED_FIELD, "guided_regex", "is not supported"},
        {P "\"guided_choice\":[]}", ERR_UNSUPPORTED_FIELD, "guided_choice", "is not supported"},
        {P "\"guided_grammar\":\"g\"}", ERR_UNSUPPORTED_FIELD, "guided_grammar", "not supported"},
        {P "\"structured_outputs\":{}}", ERR_UNSUPPORTED_FIELD, "structured_outputs", "not"},
        {P "\"use_beam_search\":true}", ERR_UNSUPPORTED_FIELD, "use_beam_search", "not supported"},
        {P "\"prompt_logprobs\":1}", ERR_UNSUPPORTED_FIELD, "prompt_logprobs", "not supported"},
        {P "\"min_tokens\":1}", ERR_UNSUPPORTED_FIELD, "min_tokens", "is not supported"},
        {P "\"skip_special_tokens\":false}", ERR_UNSUPPORTED_FIELD, "skip_special_tokens", "not"},
        {P "\"bad_words\":[\"a\"]}", ERR_UNSUPPORTED_FIELD, "bad_words", "is not supported"},
        {P "\"chat_template\":\"\"}", ERR_UNSUPPORTED_FIELD, "chat_template", "not supported"},
        {P "\"model\":\"pirate\"}", ERR_UNSUPPORTED_FIELD, "model", "in `adapter`"},
        {P "\"model\":1}", ERR_UNSUPPORTED_FIELD, "model", "in `adapter`"},
    };
    (void)state;
    REFUSE(cases, &base);
    accept(P "\"n\":1,\"best_of\":1,\"echo\":false,\"suffix\":\"\",\"logit_bias\":{},"
             "\"response_format\":{\"type\":\"text\"},\"tools\":[],\"tool_choice\":\"none\","
             "\"functions\":[],\"function_call\":\"none\",\"modalities\":[\"text\"],"
             "\"parallel_tool_calls\":true,\"use_beam_search\":false,\"length_penalty\":1.0,"
             "\"min_tokens\":0,\"skip_special_tokens\":true,\"bad_words\":[],\"store\":false,"
             "\"user\":\"u\",\"stream_options\":{\"include_usage\":true}}",
           &strict, check_least);
}

static void check_two_unknown(const struct wire_job *job) {
    assert_int_equal(job->unknown_fields, 2);
}

static void unknown_fields(void **state) {
    static const struct support_refusal cases[] = {
        {P "\"max_token\":5}", ERR_UNSUPPORTED_FIELD, "max_token", "is not a known field"},
        {P "\"\":5}", ERR_UNSUPPORTED_FIELD, "\"\"", "is not a known field"},
        {"{\"messages\":[{\"role\":\"u\",\"content\":\"\",\"nmae\":\"x\"}]}", ERR_UNSUPPORTED_FIELD,
         "messages[0].nmae", "is not a known field"},
        {"{\"messages\":[{\"role\":\"u\",\"content\":[{\"type\":\"text\",\"text\":\"\",\"z\":1}]}]"
         "}",
         ERR_UNSUPPORTED_FIELD, "messages[0].content[0].z", "is not a known field"},
    };
    (void)state;
    accept(P "\"max_token\":5,\"x\":{\"id\":1,\"prompt\":2}}", &base, check_two_unknown);
    accept("{\"messages\":[{\"role\":\"u\",\"content\":\"\",\"name\":\"n\"}],\"z\":[]}", &base,
           check_two_unknown);
    REFUSE(cases, &strict);
}

/* ---- what is kept of a job that is refused --------------------------------------------------- */

static void ids_survive_errors(void **state) {
    (void)state;
    for (int encoding = WIRE_MSGPACK; encoding <= WIRE_JSON; encoding++) {
        struct wire_job job;
        struct err_text why = {0};
        enum err e = support_decode(
            &job,
            "{\"v\":2,\"max_tokens\":\"x\",\"id\":\"a\",\"custom_id\":\"c\",\"batch_id\":\"b\","
            "\"generation\":3,\"adapter\":\"ad\",\"metadata\":{\"k\":\"v\"},\"prompt\":\"\"}",
            (enum wire_encoding)encoding, &base, &why);
        assert_int_equal(e, ERR_BAD_VERSION); /* the first fault of the schema's order */
        assert_string_equal(why.field, "v");
        assert_true(support_str_is(job.id, "a"));
        assert_true(support_str_is(job.custom_id, "c"));
        assert_true(support_str_is(job.batch_id, "b"));
        assert_int_equal(job.generation, 3);
        assert_true(support_str_is(job.adapter, "ad"));
        assert_int_equal(job.metadata_count, 1);
        wire_job_deinit(&job);
        assert_null(job.memory);

        e = support_decode(
            &job, "{\"id\":\"@bad\",\"custom_id\":\"c\",\"adapter\":\"../x\",\"prompt\":1}",
            (enum wire_encoding)encoding, &base, &why);
        assert_int_equal(e, ERR_BAD_FIELD);
        assert_string_equal(why.field, "id");
        assert_null(job.id.data);
        assert_true(support_str_is(job.custom_id, "c"));
        assert_null(job.adapter.data);
        wire_job_deinit(&job);
    }
}

static void a_zeroed_job_deinits(void **state) {
    struct wire_job job = {0};
    (void)state;
    wire_job_deinit(&job);
    wire_job_deinit(&job);
    assert_null(job.memory);
}

static void the_reason_may_be_null(void **state) {
    struct wire_job job;
    (void)state;
    assert_int_equal(wire_job_decode(&job, "{\"v\":9,\"id\":0}", 14, NULL, NULL, NULL),
                     ERR_BAD_VERSION);
    wire_job_deinit(&job);
    assert_int_equal(wire_job_decode(&job, "{", 1, NULL, NULL, NULL), ERR_BAD_MESSAGE);
    wire_job_deinit(&job);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_field),
        cmocka_unit_test(absent_and_null_are_one),
        cmocka_unit_test(inputs),
        cmocka_unit_test(other_forms),
        cmocka_unit_test(wrong_types),
        cmocka_unit_test(wrong_values),
        cmocka_unit_test(bad_messages),
        cmocka_unit_test(not_supported_yet),
        cmocka_unit_test(sampling_fields),
        cmocka_unit_test(fields_that_we_lack),
        cmocka_unit_test(unknown_fields),
        cmocka_unit_test(ids_survive_errors),
        cmocka_unit_test(a_zeroed_job_deinits),
        cmocka_unit_test(the_reason_may_be_null),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
