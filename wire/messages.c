/* messages.c - a chat: a list of {role, content}, content a string or a list of text parts. */
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "wire/job.h"

enum { ROLE_BYTES_MAX = 64, PATH_BYTES = ERR_FIELD_BYTES };

/* One part of a content; its text lies in the tree. */
static enum err read_part(struct wire_reader *r, struct wire_value v, struct wire_str *text) {
    static const struct wire_field known[] = {{.name = "type"}, {.name = "text"}};
    static const struct wire_table table = WIRE_TABLE(known);
    if (wire_value_type(v) != WIRE_TYPE_MAP) {
        return wire_type_error(r, "", "a map", v);
    }
    struct wire_value type = wire_value_get(v, "type");
    if (!wire_value_given(type) || wire_value_type(type) != WIRE_TYPE_STR) {
        return wire_field_error(r, ERR_BAD_FIELD, "", "needs a type, a string");
    }
    if (!wire_value_is(type, "text")) {
        return wire_field_error(r, ERR_UNSUPPORTED_FIELD, "",
                                "is not a part of type text, and only "
                                "these are supported");
    }
    struct wire_value value = wire_value_get(v, "text");
    if (!wire_value_given(value) || wire_value_type(value) != WIRE_TYPE_STR) {
        return wire_field_error(r, ERR_BAD_FIELD, "", "needs a text, a string");
    }
    *text = wire_value_str(value);
    return wire_read_unknown(r, &table, 1, v);
}

/* Text parts are joined by a newline, as vLLM does for templates that take strings. */
static enum err join_parts(struct wire_reader *r, struct wire_value parts,
                           struct wire_str *content) {
    size_t count = wire_value_count(parts);
    size_t bytes = 0;
    const char *outer = r->in;
    for (size_t i = 0; i < count; i++) {
        char path[PATH_BYTES];
        struct wire_str text = {0};
        (void)snprintf(path, sizeof path, "%scontent[%zu].", outer, i);
        r->in = path;
        enum err e = read_part(r, wire_value_at(parts, i), &text);
        r->in = outer;
        if (e != ERR_OK) {
            return e;
        }
        bytes += text.bytes + 1;
    }
    char *joined = wire_arena_take(&r->arena, bytes + 1, 1);
    if (joined == NULL) {
        return wire_no_memory(r);
    }
    char *end = joined;
    for (size_t i = 0; i < count; i++) {
        struct wire_str text = wire_value_str(wire_value_get(wire_value_at(parts, i), "text"));
        if (i > 0) {
            *end++ = '\n';
        }
        memcpy(end, text.data, text.bytes);
        end += text.bytes;
    }
    *end = '\0';
    *content = (struct wire_str){joined, (size_t)(end - joined)};
    return ERR_OK;
}

static enum err read_content(struct wire_reader *r, const struct wire_field *f,
                             struct wire_value v) {
    struct wire_message *to = r->record;
    if (wire_value_type(v) == WIRE_TYPE_LIST) {
        return join_parts(r, v, &to->content);
    }
    if (wire_value_type(v) != WIRE_TYPE_STR) {
        return wire_type_error(r, f->name, "a string or a list of text parts", v);
    }
    return wire_read_str(r, f, v);
}

#define AT(member) .offset = offsetof(struct wire_message, member)

static const struct wire_field message_fields[] = {
    {"role", wire_read_label, AT(role), .min = 1, .max = ROLE_BYTES_MAX},
    {"content", read_content, AT(content), .max = WIRE_JOB_BYTES_MAX},
    {"tool_calls", wire_read_neutral, .flags = WIRE_NEUTRAL_EMPTY},
    {"tool_call_id", wire_read_neutral, .flags = 0},
    {"function_call", wire_read_neutral, .flags = 0},
    {"refusal", wire_read_neutral, .flags = 0},
    {"audio", wire_read_neutral, .flags = 0},
    {"annotations", wire_read_neutral, .flags = WIRE_NEUTRAL_EMPTY},
    {"reasoning_content", wire_read_neutral, .flags = WIRE_NEUTRAL_EMPTY},
};
static const struct wire_table message_table = WIRE_TABLE(message_fields);

static enum err read_message(struct wire_reader *r, struct wire_value v, struct wire_message *to) {
    if (wire_value_type(v) != WIRE_TYPE_MAP) {
        return wire_type_error(r, "", "a map", v);
    }
    r->record = to;
    enum err e = wire_read_table(r, &message_table, v);
    if (e == ERR_OK && to->role.data == NULL) {
        e = wire_field_error(r, ERR_BAD_FIELD, "role", "is missing");
    }
    if (e == ERR_OK && to->content.data == NULL) {
        e = wire_field_error(r, ERR_BAD_FIELD, "content", "is missing");
    }
    return e != ERR_OK ? e : wire_read_unknown(r, &message_table, 1, v);
}

enum err wire_read_messages(struct wire_reader *r, const struct wire_field *f,
                            struct wire_value v) {
    struct wire_job *job = r->record;
    job->input = WIRE_MESSAGES;
    if (wire_value_type(v) != WIRE_TYPE_LIST) {
        return wire_type_error(r, f->name, "a list", v);
    }
    size_t count = wire_value_count(v);
    if (count == 0) {
        return wire_field_error(r, ERR_BAD_FIELD, f->name, "is empty");
    }
    if (count > WIRE_MESSAGES_MAX) {
        return wire_field_error(r, ERR_BAD_FIELD, f->name, "has %zu items, at most %d are allowed",
                                count, WIRE_MESSAGES_MAX);
    }
    struct wire_message *to =
        wire_arena_take(&r->arena, count * sizeof *to, _Alignof(struct wire_message));
    if (to == NULL) {
        return wire_no_memory(r);
    }
    memset(to, 0, count * sizeof *to);
    const char *outer = r->in;
    enum err e = ERR_OK;
    for (size_t i = 0; i < count && e == ERR_OK; i++) {
        char path[PATH_BYTES];
        (void)snprintf(path, sizeof path, "%s[%zu].", f->name, i);
        r->in = path;
        e = read_message(r, wire_value_at(v, i), &to[i]);
    }
    r->in = outer;
    r->record = job;
    if (e == ERR_OK) {
        job->messages = to;
        job->message_count = count;
    }
    return e;
}
