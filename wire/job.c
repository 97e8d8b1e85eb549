#include "wire/job.h"

#include <stddef.h>
#include <string.h>

#include "base/check.h"
#include "wire/emit.h"

#define AT(member) .offset = offsetof(struct wire_job, member)
#define LIST_AT(member, number) \
    .offset = offsetof(struct wire_job, member), .count_offset = offsetof(struct wire_job, number)

/* Milliseconds stay exact as a double (JavaScript) and far from overflow when two are added. */
#define MS_MAX ((INT64_C(1) << 53) - 1)

/* ---- fields with rules of their own --------------------------------------------------------- */

enum err wire_read_prompt(struct wire_reader *r, const struct wire_field *f, struct wire_value v) {
    struct wire_job *job = r->record;
    job->input = WIRE_PROMPT;
    return wire_read_str(r, f, v);
}

enum err wire_read_tokens(struct wire_reader *r, const struct wire_field *f, struct wire_value v) {
    struct wire_job *job = r->record;
    job->input = WIRE_TOKENS;
    return wire_read_u32s(r, f, v);
}

/* How many alternatives; chat requests say true, and how many in `top_logprobs`. 0 asks, too: for
 * the log-probability of the token itself. */
static enum err read_logprobs(struct wire_reader *r, const struct wire_field *f,
                              struct wire_value v) {
    struct wire_job *job = r->record;
    if (wire_value_type(v) == WIRE_TYPE_BOOL) {
        job->logprobs = (struct wire_int){0, wire_value_bool(v)};
        return ERR_OK;
    }
    if (wire_value_type(v) != WIRE_TYPE_INT) {
        return wire_type_error(r, f->name, "an integer or a boolean", v);
    }
    return wire_read_int(r, f, v);
}

/* Read behind `logprobs`. */
static enum err read_top_logprobs(struct wire_reader *r, const struct wire_field *f,
                                  struct wire_value v) {
    struct wire_job *job = r->record;
    struct wire_int asked = job->logprobs;
    uint32_t count = 0;
    const struct wire_field plain = {.name = f->name, .max = f->max};
    r->record = &count;
    enum err e = wire_read_u32(r, &plain, v);
    r->record = job;
    if (e != ERR_OK || count == 0) {
        return e;
    }
    if (!asked.given) {
        return wire_field_error(r, ERR_BAD_FIELD, f->name, "needs logprobs to be true");
    }
    if (asked.value != 0 && asked.value != count) {
        return wire_field_error(r, ERR_BAD_FIELD, f->name, "is %u, but logprobs says %lld", count,
                                (long long)asked.value);
    }
    job->logprobs.value = count;
    return ERR_OK;
}

/* OpenAI's name for what a job of ours calls `adapter`: harmless only where it names the base. */
static enum err read_model(struct wire_reader *r, const struct wire_field *f, struct wire_value v) {
    if (r->model_name != NULL && wire_value_is(v, r->model_name)) {
        return ERR_OK;
    }
    return wire_field_error(r, ERR_UNSUPPORTED_FIELD, f->name,
                            "is a field of OpenAI's bodies: a job names its adapter in `adapter`");
}

/* ---- tables --------------------------------------------------------------------------------- */

static const struct wire_field identity_fields[] = {
    {"v", wire_read_version, .min = 1, .max = INT64_MAX},
    {"id", wire_read_id, AT(id), .max = INT64_MAX, .flags = WIRE_EMPTY_OK},
    {"custom_id", wire_read_label, AT(custom_id), .max = WIRE_ID_BYTES_MAX, .flags = WIRE_EMPTY_OK},
    {"batch_id", wire_read_label, AT(batch_id), .max = WIRE_ID_BYTES_MAX, .flags = WIRE_EMPTY_OK},
    {"generation", wire_read_u32, AT(generation), .max = UINT32_MAX},
    {"metadata", wire_read_pairs, LIST_AT(metadata, metadata_count)},
};
const struct wire_table wire_job_identity = WIRE_TABLE(identity_fields);

static const struct wire_field envelope_fields[] = {
    {"deadline_ms", wire_read_int, AT(deadline_ms), .max = MS_MAX},
    {"ttl_ms", wire_read_int, AT(ttl_ms), .max = MS_MAX},
    {"ttft_slo_ms", wire_read_int, AT(ttft_slo_ms), .min = 1, .max = MS_MAX},
    {"priority", wire_read_i32, AT(priority), .min = INT32_MIN, .max = INT32_MAX},
    {"tenant", wire_read_label, AT(tenant), .max = WIRE_ID_BYTES_MAX, .flags = WIRE_EMPTY_OK},
    {"reply_topic", wire_read_str, AT(reply_topic), .max = WIRE_TOPIC_BYTES_MAX,
     .flags = WIRE_ONLY_ABSENT},
};
const struct wire_table wire_job_envelope = WIRE_TABLE(envelope_fields);

static const struct wire_field request_fields[] = {
    {"messages", wire_read_messages, .flags = 0},
    {"max_tokens", wire_read_int, AT(max_tokens), .min = 1, .max = INT32_MAX},
    {"max_completion_tokens", wire_read_int, AT(max_tokens), .min = 1, .max = INT32_MAX},
    {"temperature", wire_read_real, AT(temperature), .max = INT64_MAX},
    {"top_p", wire_read_real, AT(top_p), .max = 1, .flags = WIRE_ABOVE_MIN},
    {"top_k", wire_read_int, AT(top_k), .min = -1, .max = INT32_MAX},
    {"min_p", wire_read_real, AT(min_p), .max = 1},
    {"repetition_penalty", wire_read_real, AT(repetition_penalty), .max = INT64_MAX,
     .flags = WIRE_ABOVE_MIN},
    {"presence_penalty", wire_read_real, AT(presence_penalty), .min = -2, .max = 2},
    {"frequency_penalty", wire_read_real, AT(frequency_penalty), .min = -2, .max = 2},
    {"seed", wire_read_int, AT(seed), .min = INT64_MIN, .max = INT64_MAX},
    {"stop", wire_read_strs, LIST_AT(stop, stop_count), .max = WIRE_STOPS_MAX,
     .flags = WIRE_EMPTY_OK},
    {"stop_token_ids", wire_read_u32s, LIST_AT(stop_token_ids, stop_token_count),
     .max = WIRE_STOP_TOKENS_MAX, .flags = WIRE_EMPTY_OK},
    {"ignore_eos", wire_read_bool, AT(ignore_eos)},
    {"logprobs", read_logprobs, .offset = offsetof(struct wire_job, logprobs),
     .max = WIRE_LOGPROBS_MAX},
    {"top_logprobs", read_top_logprobs, .max = WIRE_LOGPROBS_MAX},

    /* OpenAI's that we lack, or that say nothing about the answer */
    {"n", wire_read_neutral, .flags = WIRE_NEUTRAL_ONE},
    {"best_of", wire_read_neutral, .flags = WIRE_NEUTRAL_ONE},
    {"echo", wire_read_neutral, .flags = WIRE_NEUTRAL_FALSE},
    {"suffix", wire_read_neutral, .flags = WIRE_NEUTRAL_EMPTY},
    {"logit_bias", wire_read_neutral, .flags = WIRE_NEUTRAL_EMPTY},
    {"response_format", wire_read_neutral, .flags = WIRE_NEUTRAL_TEXT},
    {"tools", wire_read_neutral, .flags = WIRE_NEUTRAL_EMPTY},
    {"tool_choice", wire_read_neutral, .flags = WIRE_NEUTRAL_NONE},
    {"parallel_tool_calls", wire_read_neutral, .flags = WIRE_NEUTRAL_TRUE | WIRE_NEUTRAL_FALSE},
    {"functions", wire_read_neutral, .flags = WIRE_NEUTRAL_EMPTY},
    {"function_call", wire_read_neutral, .flags = WIRE_NEUTRAL_NONE},
    {"modalities", wire_read_neutral, .flags = WIRE_NEUTRAL_TEXT},
    {"audio", wire_read_neutral, .flags = 0},
    {"prediction", wire_read_neutral, .flags = 0},
    {"reasoning_effort", wire_read_neutral, .flags = WIRE_NEUTRAL_NONE},
    {"verbosity", wire_read_neutral, .flags = 0},
    {"web_search_options", wire_read_neutral, .flags = 0},
    {"store", wire_read_neutral, .flags = WIRE_NEUTRAL_FALSE},
    {"stream_options", wire_read_ignored, .flags = 0},
    {"service_tier", wire_read_ignored, .flags = 0},
    {"user", wire_read_ignored, .flags = 0},
    {"safety_identifier", wire_read_ignored, .flags = 0},
    {"prompt_cache_key", wire_read_ignored, .flags = 0},

    /* vLLM's */
    {"use_beam_search", wire_read_neutral, .flags = WIRE_NEUTRAL_FALSE},
    {"length_penalty", wire_read_neutral, .flags = WIRE_NEUTRAL_ONE},
    {"min_tokens", wire_read_neutral, .flags = WIRE_NEUTRAL_ZERO},
    {"include_stop_str_in_output", wire_read_neutral, .flags = WIRE_NEUTRAL_FALSE},
    {"skip_special_tokens", wire_read_neutral, .flags = WIRE_NEUTRAL_TRUE},
    {"spaces_between_special_tokens", wire_read_neutral, .flags = WIRE_NEUTRAL_TRUE},
    {"prompt_logprobs", wire_read_neutral, .flags = 0},
    {"truncate_prompt_tokens", wire_read_neutral, .flags = 0},
    {"allowed_token_ids", wire_read_neutral, .flags = 0},
    {"bad_words", wire_read_neutral, .flags = WIRE_NEUTRAL_EMPTY},
    {"logits_processors", wire_read_neutral, .flags = WIRE_NEUTRAL_EMPTY},
    {"guided_json", wire_read_neutral, .flags = 0},
    {"guided_regex", wire_read_neutral, .flags = 0},
    {"guided_choice", wire_read_neutral, .flags = 0},
    {"guided_grammar", wire_read_neutral, .flags = 0},
    {"guided_decoding_backend", wire_read_neutral, .flags = 0},
    {"guided_whitespace_pattern", wire_read_neutral, .flags = 0},
    {"structured_outputs", wire_read_neutral, .flags = 0},
    {"structural_tag", wire_read_neutral, .flags = 0},
    {"chat_template", wire_read_neutral, .flags = 0},
    {"chat_template_kwargs", wire_read_neutral, .flags = WIRE_NEUTRAL_EMPTY},
    {"add_generation_prompt", wire_read_neutral, .flags = WIRE_NEUTRAL_TRUE},
    {"continue_final_message", wire_read_neutral, .flags = WIRE_NEUTRAL_FALSE},
    {"add_special_tokens", wire_read_neutral, .flags = 0},
    {"documents", wire_read_neutral, .flags = WIRE_NEUTRAL_EMPTY},
    {"mm_processor_kwargs", wire_read_neutral, .flags = WIRE_NEUTRAL_EMPTY},
    {"prompt_embeds", wire_read_neutral, .flags = 0},
    {"return_tokens_as_token_ids", wire_read_neutral, .flags = WIRE_NEUTRAL_FALSE},
    {"return_token_ids", wire_read_neutral, .flags = WIRE_NEUTRAL_FALSE},
    {"kv_transfer_params", wire_read_neutral, .flags = 0},
    {"cache_salt", wire_read_neutral, .flags = 0},
};
const struct wire_table wire_job_request = WIRE_TABLE(request_fields);

static const struct wire_field adapter_fields[] = {
    {"adapter", wire_read_adapter, AT(adapter), .max = INT64_MAX, .flags = WIRE_EMPTY_OK},
};
static const struct wire_table adapter_table = WIRE_TABLE(adapter_fields);

/* What only our own jobs have. */
static const struct wire_field own_fields[] = {
    {"prompt", wire_read_prompt, AT(prompt), .min = 1, .max = WIRE_JOB_BYTES_MAX},
    {"tokens", wire_read_tokens, LIST_AT(tokens, token_count), .max = WIRE_VALUES_MAX},
    {"stream", wire_read_flag, AT(stream)},
    {"model", read_model, .flags = 0},
    {"body", wire_read_ignored, .flags = 0}, /* null, or it would be a batch line */
};
static const struct wire_table own_table = WIRE_TABLE(own_fields);

/* ---- decoding ------------------------------------------------------------------------------- */

static enum err own_read(struct wire_reader *r, struct wire_value root) {
    const struct wire_table tables[] = {wire_job_envelope, wire_job_request, own_table,
                                        wire_job_identity, adapter_table};
    const size_t count = sizeof tables / sizeof tables[0];
    enum err e = wire_read_all(r, ERR_OK, &wire_job_identity, root);
    e = wire_read_all(r, e, &adapter_table, root);
    for (size_t i = 0; i < count - 2 && e == ERR_OK; i++) { /* the last two are done */
        e = wire_read_table(r, &tables[i], root);
    }
    return e != ERR_OK ? e : wire_read_unknown(r, tables, count, root);
}

/* Rules between fields. */
static enum err job_check(struct wire_reader *r, const struct wire_job *job) {
    int inputs = (job->prompt.data != NULL) + (job->tokens != NULL) + (job->messages != NULL);
    if (inputs == 0) {
        return wire_field_error(r, ERR_BAD_FIELD, "prompt",
                                "is missing, and so are tokens and messages");
    }
    if (inputs > 1) {
        return wire_field_error(r, ERR_BAD_FIELD, job->tokens != NULL ? "tokens" : "messages",
                                "stands beside another input: give one of prompt, tokens, "
                                "messages");
    }
    if (job->deadline_ms.given && job->ttl_ms.given) {
        return wire_field_error(r, ERR_BAD_FIELD, "ttl_ms", "stands beside deadline_ms: give one");
    }
    return ERR_OK;
}

static enum err job_read(struct wire_reader *r, struct wire_job *job, struct wire_value root) {
    if (wire_value_type(root) != WIRE_TYPE_MAP) {
        return err_set(r->why, ERR_BAD_MESSAGE, "the message must be a map, not %s",
                       wire_type_name(wire_value_type(root)));
    }
    struct wire_value body = wire_value_get(root, "body");
    bool openai = wire_value_given(body) && wire_value_type(body) != WIRE_TYPE_NULL;
    enum err e = openai ? wire_openai_read(r, job, root, body) : own_read(r, root);
    return e != ERR_OK ? e : job_check(r, job);
}

enum err wire_job_decode(struct wire_job *job, const void *data, size_t bytes,
                         const char *content_type, const struct wire_options *options,
                         struct err_text *why) {
    CHECK(job != NULL && (data != NULL || bytes == 0));
    *job = (struct wire_job){.encoding = wire_encoding_of(data, bytes, content_type)};
    if (bytes > WIRE_JOB_BYTES_MAX) {
        return err_set(why, ERR_TOO_LARGE, "the message has %zu bytes, at most %d are allowed",
                       bytes, WIRE_JOB_BYTES_MAX);
    }
    struct wire_tree tree;
    struct wire_reader r = {.arena = {.hint = bytes},
                            .record = job,
                            .in = "",
                            .strict = options != NULL && options->strict,
                            .model_name = options != NULL ? options->model_name : NULL,
                            .why = why};
    enum err e = wire_tree_parse(&tree, data, bytes, job->encoding, why);
    if (e == ERR_OK) {
        e = job_read(&r, job, tree.root);
    }
    job->unknown_fields = r.unknown;
    job->memory = r.arena.first;
    wire_tree_deinit(&tree);
    return e;
}

void wire_job_deinit(struct wire_job *job) {
    wire_memory_free(job->memory);
    *job = (struct wire_job){0};
}

/* ---- encoding ------------------------------------------------------------------------------- */

static void str_if_given(struct wire_emit *w, const char *name, struct wire_str text) {
    if (text.data != NULL) {
        wire_emit_str_field(w, name, text);
    }
}

static void int_if_given(struct wire_emit *w, const char *name, struct wire_int i) {
    if (i.given) {
        wire_emit_int_field(w, name, i.value);
    }
}

static void real_if_given(struct wire_emit *w, const char *name, struct wire_real x) {
    if (x.given) {
        wire_emit_real_field(w, name, x.value);
    }
}

static void emit_messages(struct wire_emit *w, const struct wire_job *job) {
    wire_emit_key(w, wire_str_of("messages"));
    wire_emit_list(w, job->message_count);
    for (size_t i = 0; i < job->message_count; i++) {
        wire_emit_map(w);
        wire_emit_str_field(w, "role", job->messages[i].role);
        wire_emit_str_field(w, "content", job->messages[i].content);
        wire_emit_end(w);
    }
    wire_emit_end(w);
}

static void emit_input(struct wire_emit *w, const struct wire_job *job) {
    switch (job->input) {
    case WIRE_PROMPT:
        wire_emit_str_field(w, "prompt", job->prompt);
        break;
    case WIRE_TOKENS:
        wire_emit_u32s_field(w, "tokens", job->tokens, job->token_count);
        break;
    case WIRE_MESSAGES:
        emit_messages(w, job);
        break;
    }
}

static void emit_sampling(struct wire_emit *w, const struct wire_job *job) {
    int_if_given(w, "max_tokens", job->max_tokens);
    real_if_given(w, "temperature", job->temperature);
    real_if_given(w, "top_p", job->top_p);
    int_if_given(w, "top_k", job->top_k);
    real_if_given(w, "min_p", job->min_p);
    real_if_given(w, "repetition_penalty", job->repetition_penalty);
    real_if_given(w, "presence_penalty", job->presence_penalty);
    real_if_given(w, "frequency_penalty", job->frequency_penalty);
    int_if_given(w, "seed", job->seed);
    if (job->stop_count > 0) {
        wire_emit_key(w, wire_str_of("stop"));
        wire_emit_list(w, job->stop_count);
        for (size_t i = 0; i < job->stop_count; i++) {
            wire_emit_str(w, job->stop[i]);
        }
        wire_emit_end(w);
    }
    if (job->stop_token_count > 0) {
        wire_emit_u32s_field(w, "stop_token_ids", job->stop_token_ids, job->stop_token_count);
    }
    if (job->ignore_eos) {
        wire_emit_bool_field(w, "ignore_eos", true);
    }
    int_if_given(w, "logprobs", job->logprobs);
}

enum err wire_job_encode(const struct wire_job *job, enum wire_encoding encoding,
                         struct wire_buffer *out) {
    struct wire_emit w;
    wire_emit_begin(&w, out, encoding);
    wire_emit_map(&w);
    wire_emit_int_field(&w, "v", WIRE_VERSION);
    str_if_given(&w, "id", job->id);
    str_if_given(&w, "custom_id", job->custom_id);
    str_if_given(&w, "batch_id", job->batch_id);
    if (job->generation > 0) {
        wire_emit_int_field(&w, "generation", job->generation);
    }
    str_if_given(&w, "adapter", job->adapter);
    emit_input(&w, job);
    emit_sampling(&w, job);
    if (job->stream.given) {
        wire_emit_bool_field(&w, "stream", job->stream.value != 0);
    }
    int_if_given(&w, "deadline_ms", job->deadline_ms);
    int_if_given(&w, "ttl_ms", job->ttl_ms);
    int_if_given(&w, "ttft_slo_ms", job->ttft_slo_ms);
    if (job->priority != 0) {
        wire_emit_int_field(&w, "priority", job->priority);
    }
    str_if_given(&w, "tenant", job->tenant);
    str_if_given(&w, "reply_topic", job->reply_topic);
    if (job->metadata_count > 0) {
        wire_emit_pairs_field(&w, "metadata", job->metadata, job->metadata_count);
    }
    wire_emit_end(&w);
    return wire_emit_finish(&w);
}
