/* openai.c - OpenAI's batch files: a line in as a job, a final as a line out. */
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "wire/emit.h"
#include "wire/final.h"
#include "wire/job.h"
#include "wire/logprobs.h"

#define AT(member) .offset = offsetof(struct wire_job, member)
#define LIST_AT(member, number) \
    .offset = offsetof(struct wire_job, member), .count_offset = offsetof(struct wire_job, number)

/* ---- a line in ------------------------------------------------------------------------------ */

static const char chat_url[] = "/v1/chat/completions";
static const char text_url[] = "/v1/completions";

static enum err read_url(struct wire_reader *r, const struct wire_field *f, struct wire_value v) {
    if (wire_value_type(v) != WIRE_TYPE_STR) {
        return wire_type_error(r, f->name, "a string", v);
    }
    if (!wire_value_is(v, chat_url) && !wire_value_is(v, text_url)) {
        return wire_field_error(r, ERR_UNSUPPORTED_FIELD, f->name, "must be %s or %s", chat_url,
                                text_url);
    }
    return ERR_OK;
}

static enum err read_body_map(struct wire_reader *r, const struct wire_field *f,
                              struct wire_value v) {
    return wire_value_type(v) == WIRE_TYPE_MAP ? ERR_OK : wire_type_error(r, f->name, "a map", v);
}

/* A string, a list of token ids, or a list of one string. */
static enum err read_body_prompt(struct wire_reader *r, const struct wire_field *f,
                                 struct wire_value v) {
    enum wire_type type = wire_value_type(v);
    if (type == WIRE_TYPE_STR) {
        return wire_read_prompt(r, f, v);
    }
    if (type != WIRE_TYPE_LIST) {
        return wire_type_error(r, f->name, "a string or a list of token ids", v);
    }
    size_t count = wire_value_count(v);
    enum wire_type first = count > 0 ? wire_value_type(wire_value_at(v, 0)) : WIRE_TYPE_INT;
    if (first == WIRE_TYPE_STR && count == 1) {
        return wire_read_prompt(r, f, wire_value_at(v, 0));
    }
    if (first == WIRE_TYPE_STR || first == WIRE_TYPE_LIST) {
        return wire_field_error(r, ERR_UNSUPPORTED_FIELD, f->name,
                                "holds several prompts, which is not supported: a job has one");
    }
    const struct wire_field tokens = {
        .name = f->name, LIST_AT(tokens, token_count), .max = WIRE_VALUES_MAX};
    return wire_read_tokens(r, &tokens, v);
}

/* The line's own metadata win. */
static enum err read_body_metadata(struct wire_reader *r, const struct wire_field *f,
                                   struct wire_value v) {
    const struct wire_job *job = r->record;
    return job->metadata == NULL ? wire_read_pairs(r, f, v) : ERR_OK;
}

static const struct wire_field line_fields[] = {
    {"method", wire_read_neutral, .flags = WIRE_NEUTRAL_POST},
    {"url", read_url, .flags = 0},
    {"body", read_body_map, .flags = 0},
    {"adapter", wire_read_neutral, .flags = 0}, /* body.model names it */
};
static const struct wire_table line_table = WIRE_TABLE(line_fields);

static const struct wire_field model_fields[] = {
    {"model", wire_read_adapter, AT(adapter), .max = INT64_MAX, .flags = WIRE_EMPTY_OK},
    {"metadata", read_body_metadata, LIST_AT(metadata, metadata_count)},
};
static const struct wire_table model_table = WIRE_TABLE(model_fields);

static const struct wire_field body_fields[] = {
    {"prompt", read_body_prompt, AT(prompt), .min = 1, .max = WIRE_JOB_BYTES_MAX},
    {"stream", wire_read_ignored,
     .flags = 0}, /* a batch file has no streams; frames.default decides */
};
static const struct wire_table body_table = WIRE_TABLE(body_fields);

enum err wire_openai_read(struct wire_reader *r, struct wire_job *job, struct wire_value root,
                          struct wire_value body) {
    const struct wire_table line_tables[] = {wire_job_identity, line_table, wire_job_envelope};
    const struct wire_table body_tables[] = {model_table, wire_job_request, body_table};
    enum err e = wire_read_all(r, ERR_OK, &wire_job_identity, root);
    if (wire_value_type(body) == WIRE_TYPE_MAP) {
        e = wire_read_all(r, e, &model_table, body);
    }
    for (size_t i = 1; i < 3 && e == ERR_OK; i++) {
        e = wire_read_table(r, &line_tables[i], root);
    }
    for (size_t i = 1; i < 3 && e == ERR_OK; i++) {
        e = wire_read_table(r, &body_tables[i], body);
    }
    if (e == ERR_OK) {
        e = wire_read_unknown(r, line_tables, 3, root);
    }
    if (e == ERR_OK) {
        e = wire_read_unknown(r, body_tables, 3, body);
    }
    struct wire_value url = wire_value_get(root, "url");
    if (e == ERR_OK && wire_value_given(url) && wire_value_type(url) == WIRE_TYPE_STR &&
        wire_value_is(url, chat_url) != (job->messages != NULL)) {
        e = wire_field_error(r, ERR_BAD_FIELD, "url",
                             "does not fit its body: messages go to %s, "
                             "a prompt to %s",
                             chat_url, text_url);
    }
    return e;
}

/* ---- a final out ---------------------------------------------------------------------------- */

/* The id of a line, request or completion: a fixed head and the job's or run's id. */
static void id_field(struct wire_emit *w, const char *name, const char *head, struct wire_str id) {
    char text[1024]; /* ids of finals have WIRE_FINAL_ID_BYTES_MAX; a longer one is cut */
    int shown = id.bytes < sizeof text ? (int)id.bytes : (int)sizeof text;
    (void)snprintf(text, sizeof text, "%s%.*s", head, shown, id.data == NULL ? "" : id.data);
    wire_emit_str_field(w, name, wire_str_of(text));
}

static void emit_completion(struct wire_emit *w, const struct wire_final *f) {
    int64_t started_ms = wire_ulid_ms(f->run);
    id_field(w, "id", "chatcmpl-", f->id);
    wire_emit_str_field(w, "object", wire_str_of("chat.completion"));
    wire_emit_int_field(w, "created", started_ms < 0 ? 0 : started_ms / 1000);
    wire_emit_str_field(w, "model", f->adapter.data != NULL ? f->adapter : wire_str_of(""));
    wire_emit_key(w, wire_str_of("choices"));
    wire_emit_list(w, 1);
    wire_emit_map(w);
    wire_emit_int_field(w, "index", 0);
    wire_emit_map_field(w, "message");
    wire_emit_str_field(w, "role", wire_str_of("assistant"));
    wire_emit_str_field(w, "content", f->text.data != NULL ? f->text : wire_str_of(""));
    wire_emit_end(w);
    wire_emit_openai_logprobs_field(w, &f->logprobs);
    wire_emit_str_field(w, "finish_reason", wire_str_of(wire_finish_name(f->finish)));
    wire_emit_end(w);
    wire_emit_end(w);
    wire_emit_usage_field(w, f);
}

static void emit_error(struct wire_emit *w, const struct wire_final *f) {
    const char *code = f->error_code != NULL ? f->error_code : wire_status_name(f->status);
    struct wire_str message = f->error_message;
    if (f->status == WIRE_EXPIRED) {
        code = "batch_expired"; /* OpenAI's word */
    }
    if (message.data == NULL) {
        message = wire_str_of(wire_status_name(f->status));
    }
    wire_emit_map_field(w, "error");
    wire_emit_str_field(w, "code", wire_str_of(code));
    wire_emit_str_field(w, "message", message);
    wire_emit_end(w);
}

enum err wire_final_openai(const struct wire_final *f, struct wire_buffer *out) {
    struct wire_emit w;
    wire_emit_begin(&w, out, WIRE_JSON);
    wire_emit_map(&w);
    id_field(&w, "id", "batch_req_", f->id);
    wire_emit_str_field(&w, "custom_id", f->custom_id.data != NULL ? f->custom_id : f->id);
    if (f->status == WIRE_SUCCEEDED) {
        wire_emit_map_field(&w, "response");
        wire_emit_int_field(&w, "status_code", 200);
        id_field(&w, "request_id", "", f->run[0] != '\0' ? wire_str_of(f->run) : f->id);
        wire_emit_map_field(&w, "body");
        emit_completion(&w, f);
        wire_emit_end(&w);
        wire_emit_end(&w);
        wire_emit_null_field(&w, "error");
    } else {
        wire_emit_null_field(&w, "response");
        emit_error(&w, f);
    }
    wire_emit_end(&w);
    wire_emit_raw(&w, "\n", 1);
    return wire_emit_finish(&w);
}
