#include <stddef.h>
#include <string.h>

#include "base/check.h"
#include "wire/emit.h"
#include "wire/final.h"
#include "wire/logprobs.h"
#include "wire/reader.h"

static const char *const kind_names[] = {[WIRE_START] = "start",
                                         [WIRE_TOKENS_FRAME] = "tokens",
                                         [WIRE_RESTART] = "restart",
                                         [WIRE_END] = "end"};

enum err wire_frame_encode(const struct wire_frame *f, enum wire_encoding encoding,
                           struct wire_buffer *out) {
    CHECK(f->kind <= WIRE_END);
    struct wire_emit w;
    wire_emit_begin(&w, out, encoding);
    wire_emit_map(&w);
    wire_emit_int_field(&w, "v", WIRE_VERSION);
    wire_emit_str_field(&w, "id", f->id);
    wire_emit_int_field(&w, "attempt", f->attempt);
    wire_emit_str_field(&w, "run", wire_str_of(f->run));
    wire_emit_int_field(&w, "seq", f->seq);
    wire_emit_int_field(&w, "pos", f->pos);
    wire_emit_str_field(&w, "kind", wire_str_of(kind_names[f->kind]));
    wire_emit_str_field(&w, "text", f->text.data != NULL ? f->text : wire_str_of(""));
    wire_emit_u32s_field(&w, "tokens", f->tokens, f->token_count);
    wire_emit_logprobs_field(&w, &f->logprobs);
    wire_emit_end(&w);
    return wire_emit_finish(&w);
}

#define AT(member) .offset = offsetof(struct wire_frame, member)

static enum err read_kind(struct wire_reader *r, const struct wire_field *f, struct wire_value v) {
    struct wire_frame *frame = r->record;
    size_t index = 0;
    enum err e =
        wire_read_name(r, f, v, kind_names, sizeof kind_names / sizeof kind_names[0], &index);
    if (e == ERR_OK) {
        frame->kind = (enum wire_kind)index;
    }
    return e;
}

static const struct wire_field frame_fields[] = {
    {"v", wire_read_version, .min = 1, .max = INT64_MAX},
    {"id", wire_read_label, AT(id), .min = 1, .max = WIRE_FINAL_ID_BYTES_MAX,
     .flags = WIRE_REQUIRED},
    {"attempt", wire_read_u32, AT(attempt), .max = UINT32_MAX, .flags = WIRE_REQUIRED},
    {"run", wire_read_run, AT(run), .max = INT64_MAX, .flags = WIRE_EMPTY_OK | WIRE_REQUIRED},
    {"seq", wire_read_u32, AT(seq), .max = UINT32_MAX, .flags = WIRE_REQUIRED},
    {"pos", wire_read_u32, AT(pos), .max = UINT32_MAX, .flags = WIRE_REQUIRED},
    {"kind", read_kind, .flags = WIRE_REQUIRED},
    {"text", wire_read_str, AT(text), .max = INT64_MAX},
    {"tokens", wire_read_u32s, AT(tokens), .count_offset = offsetof(struct wire_frame, token_count),
     .max = WIRE_VALUES_MAX, .flags = WIRE_EMPTY_OK},
    {"logprobs", wire_read_logprobs, AT(logprobs)},
};
static const struct wire_table frame_table = WIRE_TABLE(frame_fields);

enum err wire_frame_decode(struct wire_frame *f, const void *data, size_t bytes,
                           struct err_text *why) {
    *f = (struct wire_frame){0};
    return wire_read_record(&frame_table, f, &f->memory, data, bytes, why);
}

void wire_frame_deinit(struct wire_frame *f) {
    wire_memory_free(f->memory);
    *f = (struct wire_frame){0};
}
