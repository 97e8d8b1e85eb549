/* tree.h - one read-only view over a parsed msgpack or JSON message.
 *
 * Schemas are written once against this view. Parsing refuses, in both encodings alike: what is not
 * one whole value, nesting beyond WIRE_DEPTH_MAX, more than WIRE_VALUES_MAX values, text that is
 * not UTF-8, keys that are not strings, hold a NUL or come twice. A cheap scan checks depth and
 * declared lengths before the library sees the bytes, so that neither its stack nor its allocator
 * works for a message that lies. Thread: any. Cost: linear, but n log n in a map's keys. */
#ifndef LORRY_WIRE_TREE_H
#define LORRY_WIRE_TREE_H

#include <jansson.h>
#include <msgpack.h>

#include "wire/wire.h"

/* A value inside a tree; both pointers NULL = absent. */
struct wire_value {
    const msgpack_object *msgpack;
    json_t *json; /* borrowed; never changed */
};

/* A parsed message; the input must outlive it. Its root points into it: do not copy it. */
struct wire_tree {
    struct wire_value root;
    msgpack_unpacked unpacked;
};

enum wire_type {
    WIRE_TYPE_NULL,
    WIRE_TYPE_BOOL,
    WIRE_TYPE_INT,
    WIRE_TYPE_REAL,
    WIRE_TYPE_STR,
    WIRE_TYPE_LIST,
    WIRE_TYPE_MAP,
    WIRE_TYPE_BINARY, /* msgpack's bin and ext */
};

/* Errors  ERR_BAD_MESSAGE, ERR_TOO_LARGE, ERR_NO_MEMORY. Deinit it either way. */
NODISCARD enum err wire_tree_parse(struct wire_tree *tree, const void *data, size_t bytes,
                                   enum wire_encoding encoding, struct err_text *why);
void wire_tree_deinit(struct wire_tree *tree);

/* JSON when the first byte that is no space is '{': msgpack's maps never begin so. Else what the
 * content type says (parameters are ignored), else msgpack. `content_type` may be NULL. */
enum wire_encoding wire_encoding_of(const void *data, size_t bytes, const char *content_type);

bool wire_value_given(struct wire_value v);           /* present; null counts */
enum wire_type wire_value_type(struct wire_value v);  /* of a given value */
const char *wire_type_name(enum wire_type type);      /* "an integer" … */
bool wire_value_bool(struct wire_value v);            /* of a BOOL */
bool wire_value_int(struct wire_value v, int64_t *i); /* of an INT; false: beyond int64 */
double wire_value_real(struct wire_value v);          /* of an INT or a REAL; may be non-finite */
struct wire_str wire_value_str(struct wire_value v);  /* of a STR; data is never NULL */
size_t wire_value_count(struct wire_value v);         /* of a LIST or MAP */
struct wire_value wire_value_at(struct wire_value list, size_t index);
struct wire_value wire_value_get(struct wire_value map, const char *key);

bool wire_str_is(struct wire_str s, const char *text);     /* equal; an absent one is nothing */
bool wire_value_is(struct wire_value v, const char *text); /* a STR that is equal */

/* Walks a map's pairs: zero the iterator, call until false. */
struct wire_iterator {
    size_t index;
    void *json;
    struct wire_str key;
    struct wire_value value;
};
bool wire_map_next(struct wire_value map, struct wire_iterator *it);

#endif
