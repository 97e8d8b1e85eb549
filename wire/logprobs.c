#include "wire/logprobs.h"

#include <math.h>
#include <stdio.h>

#include "base/check.h"

/* OpenAI's number for what is next to impossible: neither JSON nor its readers know −∞. */
static const float LEAST = -9999.0F;

static float shown(float logprob) {
    return logprob > LEAST ? logprob : LEAST; /* NaN, too */
}

uint64_t wire_logprobs_values(const struct wire_logprobs *l) {
    return (uint64_t)l->count * (7 + 3 * (uint64_t)l->top_count);
}

/* ---- encoding ------------------------------------------------------------------------------- */

void wire_emit_logprobs_field(struct wire_emit *w, const struct wire_logprobs *l) {
    if (l->chosen == NULL) {
        wire_emit_null_field(w, "logprobs");
        return;
    }
    wire_emit_key(w, wire_str_of("logprobs"));
    wire_emit_list(w, l->count);
    for (size_t i = 0; i < l->count; i++) {
        wire_emit_map(w);
        wire_emit_int_field(w, "token", l->chosen[i].token);
        wire_emit_key(w, wire_str_of("logprob"));
        wire_emit_float(w, shown(l->chosen[i].logprob));
        wire_emit_key(w, wire_str_of("top"));
        wire_emit_list(w, l->top_count);
        for (size_t k = 0; k < l->top_count; k++) {
            const struct wire_logprob *top = &l->top[i * l->top_count + k];
            wire_emit_list(w, 2);
            wire_emit_int(w, top->token);
            wire_emit_float(w, shown(top->logprob));
            wire_emit_end(w);
        }
        wire_emit_end(w);
        wire_emit_end(w);
    }
    wire_emit_end(w);
}

/* The pairs that an entry of `content` and one of `top_logprobs` have in common. */
static void emit_openai_token(struct wire_emit *w, const struct wire_logprob *l) {
    char text[32];
    (void)snprintf(text, sizeof text, "token_id:%u", l->token);
    wire_emit_str_field(w, "token", wire_str_of(text));
    wire_emit_key(w, wire_str_of("logprob"));
    wire_emit_float(w, shown(l->logprob));
    wire_emit_null_field(w, "bytes");
}

void wire_emit_openai_logprobs_field(struct wire_emit *w, const struct wire_logprobs *l) {
    if (l->chosen == NULL) {
        wire_emit_null_field(w, "logprobs");
        return;
    }
    wire_emit_map_field(w, "logprobs");
    wire_emit_key(w, wire_str_of("content"));
    wire_emit_list(w, l->count);
    for (size_t i = 0; i < l->count; i++) {
        wire_emit_map(w);
        emit_openai_token(w, &l->chosen[i]);
        wire_emit_key(w, wire_str_of("top_logprobs"));
        wire_emit_list(w, l->top_count);
        for (size_t k = 0; k < l->top_count; k++) {
            wire_emit_map(w);
            emit_openai_token(w, &l->top[i * l->top_count + k]);
            wire_emit_end(w);
        }
        wire_emit_end(w);
        wire_emit_end(w);
    }
    wire_emit_end(w);
    wire_emit_null_field(w, "refusal");
    wire_emit_end(w);
}

/* ---- decoding ------------------------------------------------------------------------------- */

static bool read_one(struct wire_value token, struct wire_value logprob, struct wire_logprob *to) {
    int64_t id = 0;
    if (!wire_value_given(token) || wire_value_type(token) != WIRE_TYPE_INT ||
        !wire_value_int(token, &id) || id < 0 || id > INT32_MAX || !wire_value_given(logprob)) {
        return false;
    }
    enum wire_type type = wire_value_type(logprob);
    if (type != WIRE_TYPE_REAL && type != WIRE_TYPE_INT) {
        return false;
    }
    float read = (float)wire_value_real(logprob);
    *to = (struct wire_logprob){.token = (uint32_t)id, .logprob = shown(read)};
    return isfinite(read);
}

/* The list of alternatives of one entry; the first entry's says how many all have. */
static bool read_top(struct wire_value list, struct wire_logprob *to, size_t count) {
    if (!wire_value_given(list) || wire_value_type(list) != WIRE_TYPE_LIST ||
        wire_value_count(list) != count) {
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        struct wire_value pair = wire_value_at(list, i);
        if (wire_value_type(pair) != WIRE_TYPE_LIST || wire_value_count(pair) != 2 ||
            !read_one(wire_value_at(pair, 0), wire_value_at(pair, 1), &to[i])) {
            return false;
        }
    }
    return true;
}

static size_t top_count_of(struct wire_value list, size_t count) {
    struct wire_value first = count > 0 ? wire_value_at(list, 0) : (struct wire_value){0};
    if (count == 0 || wire_value_type(first) != WIRE_TYPE_MAP) {
        return 0;
    }
    struct wire_value top = wire_value_get(first, "top");
    return wire_value_given(top) && wire_value_type(top) == WIRE_TYPE_LIST ? wire_value_count(top)
                                                                           : 0;
}

enum err wire_read_logprobs(struct wire_reader *r, const struct wire_field *f,
                            struct wire_value v) {
    struct wire_logprobs *to = (void *)((char *)r->record + f->offset);
    if (wire_value_type(v) != WIRE_TYPE_LIST) {
        return wire_type_error(r, f->name, "a list", v);
    }
    size_t count = wire_value_count(v), top_count = top_count_of(v, count);
    if (top_count > WIRE_LOGPROBS_MAX) {
        return wire_field_error(r, ERR_BAD_FIELD, f->name,
                                "has %zu alternatives of a token, at most %d are allowed",
                                top_count, WIRE_LOGPROBS_MAX);
    }
    /* One of each more than needed, so that none is empty. */
    struct wire_logprob *chosen =
        wire_arena_take(&r->arena, (count + 1) * sizeof *chosen, _Alignof(struct wire_logprob));
    struct wire_logprob *top = wire_arena_take(&r->arena, (count * top_count + 1) * sizeof *top,
                                               _Alignof(struct wire_logprob));
    if (chosen == NULL || top == NULL) {
        return wire_no_memory(r);
    }
    for (size_t i = 0; i < count; i++) {
        struct wire_value entry = wire_value_at(v, i);
        if (wire_value_type(entry) != WIRE_TYPE_MAP ||
            !read_one(wire_value_get(entry, "token"), wire_value_get(entry, "logprob"),
                      &chosen[i]) ||
            !read_top(wire_value_get(entry, "top"), top + i * top_count, top_count)) {
            char name[ERR_FIELD_BYTES];
            (void)snprintf(name, sizeof name, "%s[%zu]", f->name, i);
            return wire_field_error(r, ERR_BAD_FIELD, name,
                                    "is not {token, logprob, top: [[token, logprob], …]} with as "
                                    "many in top as the first has");
        }
    }
    *to = (struct wire_logprobs){
        .chosen = chosen, .top = top, .count = count, .top_count = top_count};
    return ERR_OK;
}
