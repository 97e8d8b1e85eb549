/* fields.c - how each kind of field is read. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "wire/reader.h"

static enum err range_error(struct wire_reader *r, const struct wire_field *f) {
    const char *than = (f->flags & WIRE_ABOVE_MIN) != 0 ? "above" : "at least";
    if (f->max == INT64_MAX) {
        return wire_field_error(r, ERR_BAD_FIELD, f->name, "must be %s %lld", than,
                                (long long)f->min);
    }
    return wire_field_error(r, ERR_BAD_FIELD, f->name, "must be %s %lld and at most %lld", than,
                            (long long)f->min, (long long)f->max);
}

static enum err length_error(struct wire_reader *r, const struct wire_field *f, size_t bytes) {
    return wire_field_error(r, ERR_BAD_FIELD, f->name, "has %zu bytes, at most %lld are allowed",
                            bytes, (long long)f->max);
}

static enum err later_error(struct wire_reader *r, const struct wire_field *f) {
    return wire_field_error(r, ERR_UNSUPPORTED_FIELD, f->name, "is not supported yet");
}

/* ---- numbers and booleans ------------------------------------------------------------------- */

static void *destination(const struct wire_reader *r, const struct wire_field *f) {
    return (char *)r->record + f->offset;
}

static void store_count(const struct wire_reader *r, const struct wire_field *f, size_t count) {
    *(size_t *)(void *)((char *)r->record + f->count_offset) = count;
}

/* An integer within the field's limits. */
static enum err ranged_int(struct wire_reader *r, const struct wire_field *f, struct wire_value v,
                           int64_t *value) {
    if (wire_value_type(v) != WIRE_TYPE_INT) {
        return wire_type_error(r, f->name, "an integer", v);
    }
    if (!wire_value_int(v, value)) {
        return wire_field_error(r, ERR_BAD_FIELD, f->name, "does not fit into 64 bits with a sign");
    }
    return *value < f->min || *value > f->max ? range_error(r, f) : ERR_OK;
}

enum err wire_read_version(struct wire_reader *r, const struct wire_field *f, struct wire_value v) {
    int64_t version = 0;
    if (wire_value_type(v) != WIRE_TYPE_INT) {
        return wire_type_error(r, f->name, "an integer", v);
    }
    if (!wire_value_int(v, &version) || version > WIRE_VERSION) {
        return wire_field_error(r, ERR_BAD_VERSION, f->name, "is higher than %d", WIRE_VERSION);
    }
    return version < 1 ? range_error(r, f) : ERR_OK;
}

enum err wire_read_int(struct wire_reader *r, const struct wire_field *f, struct wire_value v) {
    struct wire_int *to = destination(r, f);
    int64_t value = 0;
    enum err e = ranged_int(r, f, v, &value);
    if (e != ERR_OK) {
        return e;
    }
    if (to->given && to->value != value) { /* max_tokens and max_completion_tokens */
        return wire_field_error(r, ERR_BAD_FIELD, f->name,
                                "is %lld, but another name of it says %lld", (long long)value,
                                (long long)to->value);
    }
    *to = (struct wire_int){value, true};
    return ERR_OK;
}

static enum err finite_real(struct wire_reader *r, const struct wire_field *f, struct wire_value v,
                            double *value) {
    enum wire_type type = wire_value_type(v);
    if (type != WIRE_TYPE_REAL && type != WIRE_TYPE_INT) {
        return wire_type_error(r, f->name, "a number", v);
    }
    *value = wire_value_real(v);
    if (!isfinite(*value)) {
        return wire_field_error(r, ERR_BAD_FIELD, f->name, "must be finite");
    }
    bool low =
        (f->flags & WIRE_ABOVE_MIN) != 0 ? !(*value > (double)f->min) : *value < (double)f->min;
    bool high = f->max != INT64_MAX && *value > (double)f->max;
    return low || high ? range_error(r, f) : ERR_OK;
}

enum err wire_read_real(struct wire_reader *r, const struct wire_field *f, struct wire_value v) {
    struct wire_real *to = destination(r, f);
    double value = 0;
    enum err e = finite_real(r, f, v, &value);
    if (e != ERR_OK) {
        return e;
    }
    *to = (struct wire_real){value, true};
    return ERR_OK;
}

enum err wire_read_duration(struct wire_reader *r, const struct wire_field *f,
                            struct wire_value v) {
    double value = 0;
    enum err e = finite_real(r, f, v, &value);
    if (e == ERR_OK) {
        *(double *)destination(r, f) = value;
    }
    return e;
}

enum err wire_read_bool(struct wire_reader *r, const struct wire_field *f, struct wire_value v) {
    if (wire_value_type(v) != WIRE_TYPE_BOOL) {
        return wire_type_error(r, f->name, "a boolean", v);
    }
    *(bool *)destination(r, f) = wire_value_bool(v);
    return ERR_OK;
}

enum err wire_read_flag(struct wire_reader *r, const struct wire_field *f, struct wire_value v) {
    if (wire_value_type(v) != WIRE_TYPE_BOOL) {
        return wire_type_error(r, f->name, "a boolean", v);
    }
    *(struct wire_int *)destination(r, f) = (struct wire_int){wire_value_bool(v), true};
    return ERR_OK;
}

enum err wire_read_u32(struct wire_reader *r, const struct wire_field *f, struct wire_value v) {
    int64_t value = 0;
    DCHECK(f->min >= 0 && f->max <= UINT32_MAX);
    enum err e = ranged_int(r, f, v, &value);
    if (e == ERR_OK) {
        *(uint32_t *)destination(r, f) = (uint32_t)value;
    }
    return e;
}

enum err wire_read_i32(struct wire_reader *r, const struct wire_field *f, struct wire_value v) {
    int64_t value = 0;
    DCHECK(f->min >= INT32_MIN && f->max <= INT32_MAX);
    enum err e = ranged_int(r, f, v, &value);
    if (e == ERR_OK) {
        *(int32_t *)destination(r, f) = (int32_t)value;
    }
    return e;
}

enum err wire_read_i64(struct wire_reader *r, const struct wire_field *f, struct wire_value v) {
    int64_t value = 0;
    enum err e = ranged_int(r, f, v, &value);
    if (e == ERR_OK) {
        *(int64_t *)destination(r, f) = value;
    }
    return e;
}

/* ---- strings -------------------------------------------------------------------------------- */

/* A string within the field's limits; absent when it is empty and may be. */
static enum err limited_str(struct wire_reader *r, const struct wire_field *f, struct wire_value v,
                            struct wire_str *text) {
    *text = (struct wire_str){0};
    if (wire_value_type(v) != WIRE_TYPE_STR) {
        return wire_type_error(r, f->name, "a string", v);
    }
    if ((f->flags & WIRE_ONLY_ABSENT) != 0) {
        return later_error(r, f);
    }
    struct wire_str s = wire_value_str(v);
    if (s.bytes == 0 && (f->flags & WIRE_EMPTY_OK) != 0) {
        return ERR_OK;
    }
    if (s.bytes == 0 && f->min > 0) {
        return wire_field_error(r, ERR_BAD_FIELD, f->name, "is empty");
    }
    if (s.bytes > (uint64_t)f->max) {
        return length_error(r, f, s.bytes);
    }
    *text = s;
    return ERR_OK;
}

enum err wire_read_str(struct wire_reader *r, const struct wire_field *f, struct wire_value v) {
    struct wire_str text;
    enum err e = limited_str(r, f, v, &text);
    if (e != ERR_OK || text.data == NULL) {
        return e;
    }
    return wire_copy(r, text, destination(r, f));
}

enum err wire_read_label(struct wire_reader *r, const struct wire_field *f, struct wire_value v) {
    struct wire_str text;
    enum err e = limited_str(r, f, v, &text);
    if (e != ERR_OK || text.data == NULL) {
        return e;
    }
    for (size_t i = 0; i < text.bytes; i++) {
        unsigned char c = (unsigned char)text.data[i];
        if (c < 0x20 || c == 0x7f) {
            return wire_field_error(r, ERR_BAD_FIELD, f->name, "holds a control character");
        }
    }
    return wire_copy(r, text, destination(r, f));
}

enum err wire_read_id(struct wire_reader *r, const struct wire_field *f, struct wire_value v) {
    struct wire_str text;
    enum err e = limited_str(r, f, v, &text);
    if (e != ERR_OK || text.data == NULL) {
        return e;
    }
    if (!wire_id_valid(text)) {
        return wire_field_error(r, ERR_BAD_FIELD, f->name,
                                "is not an id: 1 to %d of A-Z a-z 0-9 . _ : @ / -, no @ in front",
                                WIRE_ID_BYTES_MAX);
    }
    return wire_copy(r, text, destination(r, f));
}

enum err wire_read_adapter(struct wire_reader *r, const struct wire_field *f, struct wire_value v) {
    struct wire_str text;
    enum err e = limited_str(r, f, v, &text);
    if (e != ERR_OK || text.data == NULL) {
        return e;
    }
    const char *base = r->model_name;
    if (base != NULL && wire_str_is(text, base)) {
        return ERR_OK;
    }
    if (!wire_adapter_id_valid(text)) {
        return wire_field_error(
            r, ERR_BAD_FIELD, f->name,
            "is not an adapter's id: 1 to %d of A-Z a-z 0-9 . _ : @ -, no . or @ in front",
            WIRE_ID_BYTES_MAX);
    }
    return wire_copy(r, text, destination(r, f));
}

enum err wire_read_run(struct wire_reader *r, const struct wire_field *f, struct wire_value v) {
    struct wire_str text;
    enum err e = limited_str(r, f, v, &text);
    if (e != ERR_OK || text.data == NULL) {
        return e;
    }
    char *to = destination(r, f);
    char ulid[WIRE_ULID_BYTES + 1] = {0};
    memcpy(ulid, text.data, text.bytes < WIRE_ULID_BYTES ? text.bytes : WIRE_ULID_BYTES);
    if (text.bytes != WIRE_ULID_BYTES || wire_ulid_ms(ulid) < 0) {
        return wire_field_error(r, ERR_BAD_FIELD, f->name, "is not a ULID");
    }
    memcpy(to, ulid, sizeof ulid);
    return ERR_OK;
}

enum err wire_read_name(struct wire_reader *r, const struct wire_field *f, struct wire_value v,
                        const char *const *names, size_t count, size_t *index) {
    struct wire_str text;
    const struct wire_field any = {.name = f->name, .max = INT64_MAX};
    enum err e = limited_str(r, &any, v, &text);
    if (e != ERR_OK) {
        return e;
    }
    for (size_t i = 0; i < count; i++) {
        if (names[i] != NULL && wire_str_is(text, names[i])) {
            *index = i;
            return ERR_OK;
        }
    }
    return wire_field_error(r, ERR_BAD_FIELD, f->name, "is not one of the words it may be");
}

/* ---- lists and maps ------------------------------------------------------------------------- */

/* A list within the field's limits; *count is 0 when it is empty and may be. */
static enum err limited_list(struct wire_reader *r, const struct wire_field *f, struct wire_value v,
                             size_t *count) {
    *count = 0;
    if (wire_value_type(v) != WIRE_TYPE_LIST) {
        return wire_type_error(r, f->name, "a list", v);
    }
    *count = wire_value_count(v);
    if (*count == 0 && (f->flags & WIRE_EMPTY_OK) == 0) {
        return wire_field_error(r, ERR_BAD_FIELD, f->name, "is empty");
    }
    if (*count > (uint64_t)f->max) {
        return wire_field_error(r, ERR_BAD_FIELD, f->name,
                                "has %zu items, at most %lld are allowed", *count,
                                (long long)f->max);
    }
    return ERR_OK;
}

enum err wire_read_u32s(struct wire_reader *r, const struct wire_field *f, struct wire_value v) {
    size_t count = 0;
    enum err e = limited_list(r, f, v, &count);
    if (e != ERR_OK || count == 0) {
        return e;
    }
    uint32_t *to = wire_arena_take(&r->arena, count * sizeof *to, _Alignof(uint32_t));
    if (to == NULL) {
        return wire_no_memory(r);
    }
    for (size_t i = 0; i < count; i++) {
        struct wire_value item = wire_value_at(v, i);
        int64_t value = 0;
        char name[ERR_FIELD_BYTES];
        if (wire_value_type(item) == WIRE_TYPE_INT && wire_value_int(item, &value) && value >= 0 &&
            value <= INT32_MAX) {
            to[i] = (uint32_t)value;
            continue;
        }
        (void)snprintf(name, sizeof name, "%s[%zu]", f->name, i);
        if (wire_value_type(item) != WIRE_TYPE_INT) {
            return wire_type_error(r, name, "an integer", item);
        }
        return wire_field_error(r, ERR_BAD_FIELD, name, "must be at least 0 and at most %d",
                                INT32_MAX);
    }
    *(const uint32_t **)destination(r, f) = to;
    store_count(r, f, count);
    return ERR_OK;
}

enum err wire_read_strs(struct wire_reader *r, const struct wire_field *f, struct wire_value v) {
    size_t count = 1;
    bool single = wire_value_type(v) == WIRE_TYPE_STR;
    if (!single) {
        if (wire_value_type(v) != WIRE_TYPE_LIST) {
            return wire_type_error(r, f->name, "a string or a list of strings", v);
        }
        enum err e = limited_list(r, f, v, &count);
        if (e != ERR_OK || count == 0) {
            return e;
        }
    }
    struct wire_str *to = wire_arena_take(&r->arena, count * sizeof *to, _Alignof(struct wire_str));
    if (to == NULL) {
        return wire_no_memory(r);
    }
    for (size_t i = 0; i < count; i++) {
        char name[ERR_FIELD_BYTES];
        (void)snprintf(name, sizeof name, single ? "%s" : "%s[%zu]", f->name, i);
        const struct wire_field each = {.name = name, .min = 1, .max = WIRE_STOP_BYTES_MAX};
        struct wire_str text;
        enum err e = limited_str(r, &each, single ? v : wire_value_at(v, i), &text);
        if (e == ERR_OK) {
            e = wire_copy(r, text, &to[i]);
        }
        if (e != ERR_OK) {
            return e;
        }
    }
    *(const struct wire_str **)destination(r, f) = to;
    store_count(r, f, count);
    return ERR_OK;
}

static enum err read_pair(struct wire_reader *r, const struct wire_field *f,
                          const struct wire_iterator *it, struct wire_pair *to) {
    char name[ERR_FIELD_BYTES];
    (void)snprintf(name, sizeof name, "%s.%.*s", f->name,
                   it->key.bytes < sizeof name ? (int)it->key.bytes : (int)sizeof name,
                   it->key.data);
    if (it->key.bytes > WIRE_METADATA_KEY_BYTES_MAX) {
        return wire_field_error(r, ERR_BAD_FIELD, f->name,
                                "has a key of %zu bytes, at most %d are allowed", it->key.bytes,
                                WIRE_METADATA_KEY_BYTES_MAX);
    }
    const struct wire_field value = {.name = name, .max = WIRE_METADATA_VALUE_BYTES_MAX};
    struct wire_str text;
    enum err e = limited_str(r, &value, it->value, &text);
    if (e == ERR_OK) {
        e = wire_copy(r, it->key, &to->key);
    }
    if (e == ERR_OK) {
        e = wire_copy(r, text, &to->value);
    }
    return e;
}

enum err wire_read_pairs(struct wire_reader *r, const struct wire_field *f, struct wire_value v) {
    if (wire_value_type(v) != WIRE_TYPE_MAP) {
        return wire_type_error(r, f->name, "a map of strings", v);
    }
    size_t count = wire_value_count(v);
    if (count > WIRE_METADATA_MAX) {
        return wire_field_error(r, ERR_BAD_FIELD, f->name, "has %zu pairs, at most %d are allowed",
                                count, WIRE_METADATA_MAX);
    }
    if (count == 0) {
        return ERR_OK;
    }
    struct wire_pair *to =
        wire_arena_take(&r->arena, count * sizeof *to, _Alignof(struct wire_pair));
    if (to == NULL) {
        return wire_no_memory(r);
    }
    struct wire_iterator it = {0};
    for (size_t i = 0; wire_map_next(v, &it); i++) {
        enum err e = read_pair(r, f, &it, &to[i]);
        if (e != ERR_OK) {
            return e;
        }
    }
    *(const struct wire_pair **)destination(r, f) = to;
    store_count(r, f, count);
    return ERR_OK;
}

enum err wire_read_map(struct wire_reader *r, const struct wire_field *f, struct wire_value v) {
    if (wire_value_type(v) != WIRE_TYPE_MAP) {
        return wire_type_error(r, f->name, "a map", v);
    }
    char path[ERR_FIELD_BYTES];
    const char *outer = r->in;
    (void)snprintf(path, sizeof path, "%s%s.", outer, f->name);
    r->in = path;
    enum err e = wire_read_table(r, f->nested, v);
    r->in = outer;
    return e;
}

/* ---- fields that we lack -------------------------------------------------------------------- */

static bool is_neutral(unsigned flags, struct wire_value v) {
    enum wire_type type = wire_value_type(v);
    if (type == WIRE_TYPE_BOOL) {
        return (flags & (wire_value_bool(v) ? WIRE_NEUTRAL_TRUE : WIRE_NEUTRAL_FALSE)) != 0;
    }
    if (type == WIRE_TYPE_INT || type == WIRE_TYPE_REAL) {
        double value = wire_value_real(v);
        return ((flags & WIRE_NEUTRAL_ZERO) != 0 && value == 0) ||
               ((flags & WIRE_NEUTRAL_ONE) != 0 && value == 1);
    }
    if (type == WIRE_TYPE_STR) {
        return ((flags & WIRE_NEUTRAL_EMPTY) != 0 && wire_value_is(v, "")) ||
               ((flags & WIRE_NEUTRAL_NONE) != 0 && wire_value_is(v, "none")) ||
               ((flags & WIRE_NEUTRAL_POST) != 0 && wire_value_is(v, "POST"));
    }
    if (type == WIRE_TYPE_BINARY) {
        return false;
    }
    size_t count = wire_value_count(v);
    if (count == 0) {
        return (flags & WIRE_NEUTRAL_EMPTY) != 0;
    }
    struct wire_value only =
        type == WIRE_TYPE_LIST ? wire_value_at(v, 0) : wire_value_get(v, "type");
    return (flags & WIRE_NEUTRAL_TEXT) != 0 && count == 1 && wire_value_is(only, "text");
}

enum err wire_read_neutral(struct wire_reader *r, const struct wire_field *f, struct wire_value v) {
    if (is_neutral(f->flags, v)) {
        return ERR_OK;
    }
    return wire_field_error(r, ERR_UNSUPPORTED_FIELD, f->name, "is not supported");
}

enum err wire_read_ignored(struct wire_reader *r, const struct wire_field *f, struct wire_value v) {
    (void)r;
    (void)f;
    (void)v;
    return ERR_OK;
}
