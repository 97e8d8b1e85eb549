#include "model/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

/* All of the format's types whose elements fill whole bytes. */
static const struct dtype {
    const char *name;
    uint32_t bytes;
    bool is_float;
    enum kern_dtype dtype;
} dtypes[] = {
    {"F32", 4, true, KERN_F32},      {"F16", 2, true, KERN_F16},
    {"BF16", 2, true, KERN_BF16},    {"F64", 8, false, KERN_F32},
    {"C64", 8, false, KERN_F32},     {"I64", 8, false, KERN_F32},
    {"U64", 8, false, KERN_F32},     {"I32", 4, false, KERN_F32},
    {"U32", 4, false, KERN_F32},     {"I16", 2, false, KERN_F32},
    {"U16", 2, false, KERN_F32},     {"I8", 1, false, KERN_F32},
    {"U8", 1, false, KERN_F32},      {"BOOL", 1, false, KERN_F32},
    {"F8_E4M3", 1, false, KERN_F32}, {"F8_E5M2", 1, false, KERN_F32},
    {"F8_E8M0", 1, false, KERN_F32},
};

static const struct dtype *dtype_find(const char *name) {
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        if (strcmp(dtypes[i].name, name) == 0) {
            return &dtypes[i];
        }
    }
    return NULL;
}

/* Names go into error messages, logs and finals as they are. */
static bool name_printable(const char *name) {
    size_t length = strlen(name);
    if (length == 0 || length > MODEL_ST_NAME_BYTES_MAX) {
        return false;
    }
    for (size_t i = 0; i < length; i++) {
        if (name[i] <= ' ' || name[i] > '~') {
            return false;
        }
    }
    return true;
}

struct st_reader {
    struct model_origin origin;
    struct err_text *why;
    const uint8_t *data; /* after the header */
    uint64_t bytes;
};

static enum err bad(const struct st_reader *r, const char *tensor, const char *problem) {
    return err_set_field(r->why, r->origin.bad, tensor, "%s: tensor %s: %s", r->origin.file, tensor,
                         problem);
}

static enum err read_shape(const struct st_reader *r, struct model_tensor *t, const json_t *shape) {
    if (!json_is_array(shape) || json_array_size(shape) > MODEL_ST_DIMS_MAX) {
        return bad(r, t->name, "shape is not a list of at most 8 sizes");
    }
    t->dims = (uint32_t)json_array_size(shape);
    t->elements = 1;
    for (uint32_t i = 0; i < t->dims; i++) {
        const json_t *size = json_array_get(shape, i);
        if (!json_is_integer(size) || json_integer_value(size) < 0) {
            return bad(r, t->name, "shape holds something that is no size");
        }
        t->shape[i] = (uint64_t)json_integer_value(size);
        if (__builtin_mul_overflow(t->elements, t->shape[i], &t->elements)) {
            return bad(r, t->name, "shape is too large");
        }
    }
    return ERR_OK;
}

static enum err read_offsets(const struct st_reader *r, struct model_tensor *t,
                             const json_t *offsets) {
    if (!json_is_array(offsets) || json_array_size(offsets) != 2 ||
        !json_is_integer(json_array_get(offsets, 0)) ||
        !json_is_integer(json_array_get(offsets, 1))) {
        return bad(r, t->name, "data_offsets is not a pair of integers");
    }
    json_int_t begin = json_integer_value(json_array_get(offsets, 0));
    json_int_t end = json_integer_value(json_array_get(offsets, 1));
    if (begin < 0 || end < begin || (uint64_t)end > r->bytes) {
        return bad(r, t->name, "data_offsets lie outside of the file");
    }
    t->data = r->data + begin;
    t->bytes = (uint64_t)(end - begin);
    return ERR_OK;
}

static enum err read_tensor(const struct st_reader *r, struct model_tensor *t, const char *name,
                            const json_t *value) {
    if (!name_printable(name)) {
        return err_set_field(r->why, r->origin.bad, r->origin.file,
                             "%s: a tensor's name is empty, too long or not printable",
                             r->origin.file);
    }
    *t = (struct model_tensor){.name = name};
    if (!json_is_object(value) || json_object_size(value) != 3) {
        return bad(r, name, "its entry is not {dtype, shape, data_offsets}");
    }
    const json_t *type = json_object_get(value, "dtype");
    if (!json_is_string(type)) {
        return bad(r, name, "dtype is not a string");
    }
    const struct dtype *dtype = dtype_find(json_string_value(type));
    if (dtype == NULL) {
        return bad(r, name, "its dtype is not known");
    }
    t->dtype_name = dtype->name;
    t->is_float = dtype->is_float;
    t->dtype = dtype->dtype;
    enum err e = read_shape(r, t, json_object_get(value, "shape"));
    if (e == ERR_OK) {
        e = read_offsets(r, t, json_object_get(value, "data_offsets"));
    }
    if (e != ERR_OK) {
        return e;
    }
    uint64_t bytes = 0;
    if (__builtin_mul_overflow(t->elements, (uint64_t)dtype->bytes, &bytes) || bytes != t->bytes) {
        return bad(r, name, "data_offsets do not agree with dtype and shape");
    }
    return ERR_OK;
}

static int by_place(const void *left, const void *right) {
    const struct model_tensor *a = left;
    const struct model_tensor *b = right;
    if (a->data != b->data) {
        return a->data < b->data ? -1 : 1;
    }
    return a->bytes < b->bytes ? -1 : a->bytes > b->bytes;
}

/* Exact cover: with it there is neither overlap nor a hidden part. */
static enum err check_cover(const struct st_reader *r, const struct model_st *st) {
    const uint8_t *next = r->data;
    for (uint32_t i = 0; i < st->count; i++) {
        const struct model_tensor *t = &st->tensors[i];
        if (t->data != next) {
            return bad(r, t->name,
                       t->data < next ? "it overlaps another tensor" : "a gap lies before it");
        }
        next += t->bytes;
    }
    if (next != r->data + r->bytes) {
        return err_set_field(r->why, r->origin.bad, r->origin.file,
                             "%s: %llu bytes after the last tensor", r->origin.file,
                             (unsigned long long)(r->data + r->bytes - next));
    }
    return ERR_OK;
}

static enum err read_header(const struct st_reader *r, struct model_st *st) {
    size_t entries = json_object_size(st->header);
    st->tensors = calloc(entries + 1, sizeof *st->tensors);
    if (st->tensors == NULL) {
        return err_set(r->why, ERR_NO_MEMORY, "%s: no memory for its header", r->origin.file);
    }
    const char *name = NULL;
    json_t *value = NULL;
    json_object_foreach(st->header, name, value) {
        if (strcmp(name, "__metadata__") == 0) {
            if (!json_is_object(value)) {
                return bad(r, name, "it is not an object");
            }
            continue;
        }
        enum err e = read_tensor(r, &st->tensors[st->count], name, value);
        if (e != ERR_OK) {
            return e;
        }
        st->count++;
    }
    DCHECK(st->count <= entries);
    qsort(st->tensors, st->count, sizeof *st->tensors, by_place);
    return check_cover(r, st);
}

enum err model_st_parse(struct model_st *out, const uint8_t *data, uint64_t bytes,
                        struct model_origin origin, struct err_text *why) {
    *out = (struct model_st){0};
    const char *file = origin.file;
    if (bytes < 8) {
        return err_set_field(why, origin.bad, file, "%s: shorter than a safetensors file", file);
    }
    uint64_t header_bytes = 0;
    for (unsigned i = 0; i < 8; i++) {
        header_bytes |= (uint64_t)data[i] << (8 * i);
    }
    if (header_bytes > bytes - 8) {
        return err_set_field(why, origin.bad, file,
                             "%s: the header says %llu bytes, %llu are there: not a safetensors "
                             "file, or cut short",
                             file, (unsigned long long)header_bytes,
                             (unsigned long long)(bytes - 8));
    }
    if (header_bytes > MODEL_ST_HEADER_BYTES_MAX) {
        return err_set_field(why, origin.bad, file, "%s: the header has %llu bytes, more than %d",
                             file, (unsigned long long)header_bytes, MODEL_ST_HEADER_BYTES_MAX);
    }
    struct model_st st = {.header_bytes = 8 + header_bytes};
    enum err e = model_json_parse(&st.header, data + 8, header_bytes, origin, why);
    if (e != ERR_OK) {
        goto out;
    }
    struct st_reader r = {.origin = origin,
                          .why = why,
                          .data = data + 8 + header_bytes,
                          .bytes = bytes - 8 - header_bytes};
    e = read_header(&r, &st);
    if (e == ERR_OK) {
        *out = st;
        st = (struct model_st){0};
    }
out:
    model_st_deinit(&st);
    return e;
}

void model_st_deinit(struct model_st *st) {
    free(st->tensors);
    json_decref(st->header);
    *st = (struct model_st){0};
}

const char *model_tensor_shape(const struct model_tensor *t, char room[MODEL_ST_SHAPE_TEXT_BYTES]) {
    size_t at = 0;
    room[at++] = '[';
    for (uint32_t i = 0; i < t->dims; i++) {
        int wrote = snprintf(room + at, MODEL_ST_SHAPE_TEXT_BYTES - at, "%s%llu", i > 0 ? ", " : "",
                             (unsigned long long)t->shape[i]);
        CHECK(wrote > 0 && (size_t)wrote < MODEL_ST_SHAPE_TEXT_BYTES - at);
        at += (size_t)wrote;
    }
    room[at++] = ']';
    room[at] = '\0';
    return room;
}
