#include "wire/final.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "base/check.h"
#include "wire/logprobs.h"
#include "wire/reader.h"

enum { VALUES_BESIDES = 1024 }; /* of a final beside tokens and logprobs; generous */

static const char *const status_names[] = {
    [WIRE_SUCCEEDED] = "succeeded", [WIRE_FAILED] = "failed",       [WIRE_REJECTED] = "rejected",
    [WIRE_EXPIRED] = "expired",     [WIRE_CANCELLED] = "cancelled",
};
static const char *const finish_names[] = {
    [WIRE_FINISH_NONE] = NULL, [WIRE_FINISH_STOP] = "stop", [WIRE_FINISH_LENGTH] = "length"};

const char *wire_status_name(enum wire_status status) {
    CHECK(status <= WIRE_CANCELLED);
    return status_names[status];
}

const char *wire_finish_name(enum wire_finish finish) {
    CHECK(finish <= WIRE_FINISH_LENGTH);
    return finish_names[finish];
}

/* ---- encoding ------------------------------------------------------------------------------- */

void wire_emit_usage_field(struct wire_emit *w, const struct wire_final *f) {
    wire_emit_map_field(w, "usage");
    wire_emit_int_field(w, "prompt_tokens", f->prompt_tokens);
    wire_emit_int_field(w, "completion_tokens", f->completion_tokens);
    wire_emit_int_field(w, "total_tokens", (int64_t)f->prompt_tokens + f->completion_tokens);
    wire_emit_map_field(w, "prompt_tokens_details");
    wire_emit_int_field(w, "cached_tokens", f->cached_tokens);
    wire_emit_end(w);
    wire_emit_end(w);
}

/* Milliseconds to the microsecond; null for what did not happen. */
static void emit_duration(struct wire_emit *w, const char *name, double ms) {
    if (ms >= 0 && isfinite(ms)) {
        wire_emit_real_field(w, name, round(ms * 1e3) / 1e3);
    } else {
        wire_emit_null_field(w, name);
    }
}

static void emit_error(struct wire_emit *w, const struct wire_final *f) {
    if (f->error_code == NULL) {
        wire_emit_null_field(w, "error");
        return;
    }
    wire_emit_map_field(w, "error");
    wire_emit_str_field(w, "code", wire_str_of(f->error_code));
    wire_emit_str_field(w, "message", f->error_message);
    wire_emit_str_field(w, "field", f->error_field);
    wire_emit_end(w);
}

static void emit_outcome(struct wire_emit *w, const struct wire_final *f) {
    bool succeeded = f->status == WIRE_SUCCEEDED;
    wire_emit_str_field(w, "status", wire_str_of(wire_status_name(f->status)));
    wire_emit_str_field(w, "finish_reason",
                        wire_str_of(succeeded ? wire_finish_name(f->finish) : NULL));
    emit_error(w, f);
    wire_emit_str_field(w, "text", f->text);
    wire_emit_u32s_field(w, "tokens", f->tokens, f->token_count);
    wire_emit_logprobs_field(w, &f->logprobs);
    wire_emit_usage_field(w, f);
    wire_emit_map_field(w, "timing_ms");
    emit_duration(w, "queued", f->timing.queued);
    emit_duration(w, "first_token", f->timing.first_token);
    emit_duration(w, "total", f->timing.total);
    wire_emit_end(w);
}

enum err wire_final_encode(const struct wire_final *f, enum wire_encoding encoding,
                           struct wire_buffer *out) {
    if (f->logprobs.count > 0 &&
        wire_logprobs_values(&f->logprobs) + f->token_count > WIRE_VALUES_MAX - VALUES_BESIDES) {
        return ERR_TOO_LARGE;
    }
    struct wire_emit w;
    wire_emit_begin(&w, out, encoding);
    wire_emit_map(&w);
    wire_emit_int_field(&w, "v", WIRE_VERSION);
    wire_emit_str_field(&w, "id", f->id);
    wire_emit_str_field(&w, "custom_id", f->custom_id);
    wire_emit_str_field(&w, "batch_id", f->batch_id);
    wire_emit_int_field(&w, "generation", f->generation);
    wire_emit_str_field(&w, "adapter", f->adapter);
    wire_emit_str_field(&w, "revision", f->revision);
    wire_emit_int_field(&w, "attempt", f->attempt);
    wire_emit_str_field(&w, "run", wire_str_of(f->run[0] != '\0' ? f->run : NULL));
    emit_outcome(&w, f);
    wire_emit_str_field(&w, "worker", f->worker);
    wire_emit_map_field(&w, "source");
    wire_emit_str_field(&w, "topic", f->topic);
    wire_emit_int_field(&w, "partition", f->partition);
    wire_emit_int_field(&w, "offset", f->offset);
    wire_emit_end(&w);
    wire_emit_pairs_field(&w, "metadata", f->metadata, f->metadata_count);
    wire_emit_end(&w);
    return wire_emit_finish(&w);
}

/* ---- decoding ------------------------------------------------------------------------------- */

#define AT(member) .offset = offsetof(struct wire_final, member)
#define LIST_AT(member, number)                    \
    .offset = offsetof(struct wire_final, member), \
    .count_offset = offsetof(struct wire_final, number)

static enum err read_status(struct wire_reader *r, const struct wire_field *f,
                            struct wire_value v) {
    struct wire_final *final = r->record;
    size_t index = 0;
    enum err e =
        wire_read_name(r, f, v, status_names, sizeof status_names / sizeof status_names[0], &index);
    if (e == ERR_OK) {
        final->status = (enum wire_status)index;
    }
    return e;
}

static enum err read_finish(struct wire_reader *r, const struct wire_field *f,
                            struct wire_value v) {
    struct wire_final *final = r->record;
    size_t index = 0;
    enum err e =
        wire_read_name(r, f, v, finish_names, sizeof finish_names / sizeof finish_names[0], &index);
    if (e == ERR_OK) {
        final->finish = (enum wire_finish)index;
    }
    return e;
}

static enum err read_error_code(struct wire_reader *r, const struct wire_field *f,
                                struct wire_value v) {
    struct wire_final *final = r->record;
    struct wire_str code = {0};
    if (wire_value_type(v) != WIRE_TYPE_STR) {
        return wire_type_error(r, f->name, "a string", v);
    }
    enum err e = wire_copy(r, wire_value_str(v), &code);
    if (e == ERR_OK) {
        final->error_code = code.data; /* the copy ends with a NUL */
    }
    return e;
}

static const struct wire_field error_fields[] = {
    {"code", read_error_code, .flags = WIRE_REQUIRED},
    {"message", wire_read_str, AT(error_message), .max = INT64_MAX},
    {"field", wire_read_str, AT(error_field), .max = INT64_MAX},
};
static const struct wire_table error_table = WIRE_TABLE(error_fields);

static const struct wire_field cached_fields[] = {
    {"cached_tokens", wire_read_u32, AT(cached_tokens), .max = UINT32_MAX},
};
static const struct wire_table cached_table = WIRE_TABLE(cached_fields);

static const struct wire_field usage_fields[] = {
    {"prompt_tokens", wire_read_u32, AT(prompt_tokens), .max = UINT32_MAX},
    {"completion_tokens", wire_read_u32, AT(completion_tokens), .max = UINT32_MAX},
    {"prompt_tokens_details", wire_read_map, .nested = &cached_table},
};
static const struct wire_table usage_table = WIRE_TABLE(usage_fields);

static const struct wire_field timing_fields[] = {
    {"queued", wire_read_duration, AT(timing.queued), .max = INT64_MAX},
    {"first_token", wire_read_duration, AT(timing.first_token), .max = INT64_MAX},
    {"total", wire_read_duration, AT(timing.total), .max = INT64_MAX},
};
static const struct wire_table timing_table = WIRE_TABLE(timing_fields);

static const struct wire_field source_fields[] = {
    {"topic", wire_read_label, AT(topic), .max = WIRE_TOPIC_BYTES_MAX},
    {"partition", wire_read_i32, AT(partition), .max = INT32_MAX},
    {"offset", wire_read_i64, AT(offset), .max = INT64_MAX},
};
static const struct wire_table source_table = WIRE_TABLE(source_fields);

static const struct wire_field final_fields[] = {
    {"v", wire_read_version, .min = 1, .max = INT64_MAX},
    {"id", wire_read_label, AT(id), .min = 1, .max = WIRE_FINAL_ID_BYTES_MAX,
     .flags = WIRE_REQUIRED},
    {"custom_id", wire_read_label, AT(custom_id), .max = WIRE_ID_BYTES_MAX},
    {"batch_id", wire_read_label, AT(batch_id), .max = WIRE_ID_BYTES_MAX},
    {"generation", wire_read_u32, AT(generation), .max = UINT32_MAX},
    {"adapter", wire_read_label, AT(adapter), .max = WIRE_ID_BYTES_MAX, .flags = WIRE_EMPTY_OK},
    {"revision", wire_read_label, AT(revision), .max = WIRE_ID_BYTES_MAX, .flags = WIRE_EMPTY_OK},
    {"attempt", wire_read_u32, AT(attempt), .max = UINT32_MAX},
    {"run", wire_read_run, AT(run), .max = INT64_MAX, .flags = WIRE_EMPTY_OK},
    {"status", read_status, .flags = WIRE_REQUIRED},
    {"finish_reason", read_finish, .flags = 0},
    {"error", wire_read_map, .nested = &error_table},
    {"text", wire_read_str, AT(text), .max = INT64_MAX},
    {"tokens", wire_read_u32s, LIST_AT(tokens, token_count), .max = WIRE_VALUES_MAX,
     .flags = WIRE_EMPTY_OK},
    {"logprobs", wire_read_logprobs, AT(logprobs)},
    {"usage", wire_read_map, .nested = &usage_table},
    {"timing_ms", wire_read_map, .nested = &timing_table},
    {"worker", wire_read_str, AT(worker), .max = INT64_MAX},
    {"source", wire_read_map, .nested = &source_table},
    {"metadata", wire_read_pairs, LIST_AT(metadata, metadata_count)},
};
static const struct wire_table final_table = WIRE_TABLE(final_fields);

enum err wire_final_decode(struct wire_final *f, const void *data, size_t bytes,
                           struct err_text *why) {
    *f = (struct wire_final){.timing = {-1, -1, -1}};
    enum err e = wire_read_record(&final_table, f, &f->memory, data, bytes, why);
    if (f->status != WIRE_SUCCEEDED) { /* as our own encoder has it */
        f->finish = WIRE_FINISH_NONE;
    }
    return e;
}

void wire_final_deinit(struct wire_final *f) {
    wire_memory_free(f->memory);
    *f = (struct wire_final){0};
}
