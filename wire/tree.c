#include "wire/tree.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/check.h"
#include "wire/utf8.h"

/* ---- before parsing: shape and declared lengths -------------------------------------------- */

static enum err too_deep(struct err_text *why) {
    return err_set(why, ERR_BAD_MESSAGE, "the message is nested deeper than %d levels",
                   WIRE_DEPTH_MAX);
}

static enum err too_many(struct err_text *why) {
    return err_set(why, ERR_TOO_LARGE, "the message holds more than %d values", WIRE_VALUES_MAX);
}

/* What follows the first byte of a msgpack value. */
struct head {
    size_t length_bytes; /* of the big-endian length, right behind the first byte */
    size_t fixed_bytes;  /* of payload, besides what the length says */
    uint64_t length;     /* known already when length_bytes is 0 */
    uint32_t items_each; /* 0 = the length counts bytes; 1 list, 2 map: it counts values */
};

static bool head_of(uint8_t first, struct head *h) {
    static const struct head table[0x20] = {
        [0x04] = {1, 0, 0, 0}, [0x05] = {2, 0, 0, 0},  [0x06] = {4, 0, 0, 0}, /* bin 8, 16, 32 */
        [0x07] = {1, 1, 0, 0}, [0x08] = {2, 1, 0, 0},  [0x09] = {4, 1, 0, 0}, /* ext 8, 16, 32 */
        [0x0a] = {0, 4, 0, 0}, [0x0b] = {0, 8, 0, 0},                         /* float 32, 64 */
        [0x0c] = {0, 1, 0, 0}, [0x0d] = {0, 2, 0, 0},                         /* uint 8, 16 */
        [0x0e] = {0, 4, 0, 0}, [0x0f] = {0, 8, 0, 0},                         /* uint 32, 64 */
        [0x10] = {0, 1, 0, 0}, [0x11] = {0, 2, 0, 0},                         /* int 8, 16 */
        [0x12] = {0, 4, 0, 0}, [0x13] = {0, 8, 0, 0},                         /* int 32, 64 */
        [0x14] = {0, 2, 0, 0}, [0x15] = {0, 3, 0, 0},  [0x16] = {0, 5, 0, 0}, /* fixext 1, 2, 4 */
        [0x17] = {0, 9, 0, 0}, [0x18] = {0, 17, 0, 0},                        /* fixext 8, 16 */
        [0x19] = {1, 0, 0, 0}, [0x1a] = {2, 0, 0, 0},  [0x1b] = {4, 0, 0, 0}, /* str 8, 16, 32 */
        [0x1c] = {2, 0, 0, 1}, [0x1d] = {4, 0, 0, 1},                         /* array 16, 32 */
        [0x1e] = {2, 0, 0, 2}, [0x1f] = {4, 0, 0, 2},                         /* map 16, 32 */
    };
    if (first < 0x80 || first >= 0xe0) { /* small integers */
        *h = (struct head){0};
    } else if (first < 0x90) {
        *h = (struct head){.length = first & 0x0f, .items_each = 2};
    } else if (first < 0xa0) {
        *h = (struct head){.length = first & 0x0f, .items_each = 1};
    } else if (first < 0xc0) {
        *h = (struct head){.length = first & 0x1f};
    } else {
        *h = table[first - 0xc0];
    }
    return first != 0xc1; /* the one byte msgpack never uses */
}

static enum err truncated(struct err_text *why, size_t at) {
    return err_set(why, ERR_BAD_MESSAGE, "the msgpack value that begins at byte %zu is cut off",
                   at);
}

/* Passes over one value's own bytes. items = how many values follow as its content. */
static enum err scan_msgpack_value(const uint8_t *p, size_t bytes, size_t *at, uint64_t *items,
                                   bool *container, struct err_text *why) {
    size_t start = *at;
    struct head h;
    if (start >= bytes) {
        return err_set(why, ERR_BAD_MESSAGE, "the msgpack message ends too early, at byte %zu",
                       bytes);
    }
    if (!head_of(p[start], &h)) {
        return err_set(why, ERR_BAD_MESSAGE, "byte %zu is not valid msgpack", start);
    }
    size_t left = bytes - start - 1;
    if (left < h.length_bytes) {
        return truncated(why, start);
    }
    for (size_t i = 0; i < h.length_bytes; i++) {
        h.length = h.length << 8 | p[start + 1 + i];
    }
    left -= h.length_bytes;
    *container = h.items_each > 0;
    *items = *container ? h.length * h.items_each : 0;
    uint64_t payload = *container ? 0 : h.length + h.fixed_bytes;
    /* Each value takes a byte at least: a list cannot be longer than what is left. */
    if (payload > left || *items > left) {
        return truncated(why, start);
    }
    *at = start + 1 + h.length_bytes + (size_t)payload;
    return ERR_OK;
}

static enum err scan_msgpack(const uint8_t *p, size_t bytes, struct err_text *why) {
    uint64_t open[WIRE_DEPTH_MAX]; /* values still to come, by level */
    size_t depth = 0;
    size_t values = 0;
    size_t at = 0;
    do {
        uint64_t items = 0;
        bool container = false;
        enum err e = scan_msgpack_value(p, bytes, &at, &items, &container, why);
        if (e != ERR_OK) {
            return e;
        }
        if (++values > WIRE_VALUES_MAX) {
            return too_many(why);
        }
        if (depth > 0) {
            open[depth - 1]--;
        }
        if (container) {
            if (depth == WIRE_DEPTH_MAX) {
                return too_deep(why);
            }
            open[depth++] = items;
        }
        while (depth > 0 && open[depth - 1] == 0) {
            depth--;
        }
    } while (depth > 0);
    if (at < bytes) {
        return err_set(why, ERR_BAD_MESSAGE, "%zu bytes follow the msgpack message", bytes - at);
    }
    return ERR_OK;
}

/* Counts brackets and separators outside strings. Where the text is not JSON the count means
 * nothing, but up to the first error it is what the parser sees, and there the parser stops. */
static enum err scan_json(const char *p, size_t bytes, struct err_text *why) {
    size_t depth = 0;
    size_t values = 1;
    bool quoted = false;
    for (size_t i = 0; i < bytes; i++) {
        char c = p[i];
        if (quoted) {
            i += c == '\\' ? 1 : 0;
            quoted = c != '"';
            continue;
        }
        quoted = c == '"';
        if (c == '{' || c == '[') {
            values++;
            if (++depth > WIRE_DEPTH_MAX) {
                return too_deep(why);
            }
        } else if ((c == '}' || c == ']') && depth > 0) {
            depth--;
        } else if (c == ',' || c == ':') {
            values++;
        }
        if (values > WIRE_VALUES_MAX) {
            return too_many(why);
        }
    }
    return ERR_OK;
}

/* ---- after parsing: what msgpack-c does not check ------------------------------------------- */

static int compare_bytes(const char *a, size_t a_bytes, const char *b, size_t b_bytes) {
    size_t shorter = a_bytes < b_bytes ? a_bytes : b_bytes;
    int order = shorter > 0 ? memcmp(a, b, shorter) : 0;
    if (order == 0) {
        order = (a_bytes > b_bytes) - (a_bytes < b_bytes);
    }
    return order;
}

static int compare_pairs(const void *left, const void *right) {
    const msgpack_object_str *a = &((const msgpack_object_kv *)left)->key.via.str;
    const msgpack_object_str *b = &((const msgpack_object_kv *)right)->key.via.str;
    return compare_bytes(a->ptr, a->size, b->ptr, b->size);
}

static enum err check_str(const msgpack_object_str *s, const char *what, struct err_text *why) {
    if (wire_utf8_prefix(s->ptr, s->size) != s->size) {
        return err_set(why, ERR_BAD_MESSAGE, "the message holds a %s that is not UTF-8", what);
    }
    return ERR_OK;
}

static enum err check_object(const msgpack_object *o, struct err_text *why);

/* Sorts the pairs, so that look-ups can bisect and doubles lie side by side. */
static enum err check_map(const msgpack_object_map *map, struct err_text *why) {
    enum err e = ERR_OK;
    for (uint32_t i = 0; i < map->size; i++) {
        const msgpack_object *key = &map->ptr[i].key;
        if (key->type != MSGPACK_OBJECT_STR) {
            return err_set(why, ERR_BAD_MESSAGE, "the message holds a key that is not a string");
        }
        e = check_str(&key->via.str, "key", why);
        if (e != ERR_OK) {
            return e;
        }
        if (key->via.str.size > 0 && /* an empty one has no pointer */
            memchr(key->via.str.ptr, 0, key->via.str.size) != NULL) { /* as jansson */
            return err_set(why, ERR_BAD_MESSAGE, "the message holds a key with a NUL");
        }
        e = check_object(&map->ptr[i].val, why);
        if (e != ERR_OK) {
            return e;
        }
    }
    if (map->size > 1) {
        qsort(map->ptr, map->size, sizeof *map->ptr, compare_pairs);
    }
    for (uint32_t i = 1; i < map->size; i++) {
        const msgpack_object_str *key = &map->ptr[i].key.via.str;
        if (compare_pairs(&map->ptr[i - 1], &map->ptr[i]) == 0) {
            return err_set(why, ERR_BAD_MESSAGE, "the message holds the key \"%.*s\" twice",
                           (int)(key->size < 100 ? key->size : 100), key->ptr);
        }
    }
    return ERR_OK;
}

static enum err check_object(const msgpack_object *o, struct err_text *why) {
    enum err e = ERR_OK;
    if (o->type == MSGPACK_OBJECT_STR) {
        e = check_str(&o->via.str, "string", why);
    } else if (o->type == MSGPACK_OBJECT_ARRAY) {
        for (uint32_t i = 0; i < o->via.array.size && e == ERR_OK; i++) {
            e = check_object(&o->via.array.ptr[i], why);
        }
    } else if (o->type == MSGPACK_OBJECT_MAP) {
        e = check_map(&o->via.map, why);
    }
    return e;
}

/* ---- parsing -------------------------------------------------------------------------------- */

static enum err parse_msgpack(struct wire_tree *tree, const char *data, size_t bytes,
                              struct err_text *why) {
    enum err e = scan_msgpack((const uint8_t *)data, bytes, why);
    if (e != ERR_OK) {
        return e;
    }
    size_t at = 0;
    msgpack_unpack_return status = msgpack_unpack_next(&tree->unpacked, data, bytes, &at);
    if (status == MSGPACK_UNPACK_NOMEM_ERROR) {
        return err_set(why, ERR_NO_MEMORY, "no memory to parse a message of %zu bytes", bytes);
    }
    if (status != MSGPACK_UNPACK_SUCCESS || at != bytes) {
        return err_set(why, ERR_BAD_MESSAGE, "the message is not valid msgpack");
    }
    e = check_object(&tree->unpacked.data, why);
    if (e == ERR_OK) {
        tree->root.msgpack = &tree->unpacked.data;
    }
    return e;
}

static enum err parse_json(struct wire_tree *tree, const char *data, size_t bytes,
                           struct err_text *why) {
    enum err e = scan_json(data, bytes, why);
    if (e != ERR_OK) {
        return e;
    }
    json_error_t error;
    errno = 0;
    /* NUL is a character like others: strings here have lengths, and msgpack has it too. */
    tree->root.json = json_loadb(data, bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    if (tree->root.json != NULL) {
        return ERR_OK;
    }
    if (errno == ENOMEM) { /* jansson often calls it a syntax error */
        return err_set(why, ERR_NO_MEMORY, "no memory to parse a message of %zu bytes", bytes);
    }
    return err_set(why, ERR_BAD_MESSAGE, "the message is not valid JSON: line %d, column %d: %s",
                   error.line, error.column, error.text);
}

enum err wire_tree_parse(struct wire_tree *tree, const void *data, size_t bytes,
                         enum wire_encoding encoding, struct err_text *why) {
    *tree = (struct wire_tree){0};
    msgpack_unpacked_init(&tree->unpacked);
    if (data == NULL || bytes == 0) {
        return err_set(why, ERR_BAD_MESSAGE, "the message is empty");
    }
    if (encoding == WIRE_JSON) {
        return parse_json(tree, data, bytes, why);
    }
    return parse_msgpack(tree, data, bytes, why);
}

void wire_tree_deinit(struct wire_tree *tree) {
    json_decref(tree->root.json);
    msgpack_unpacked_destroy(&tree->unpacked);
    *tree = (struct wire_tree){0};
}

enum wire_encoding wire_encoding_of(const void *data, size_t bytes, const char *content_type) {
    static const char json[] = "application/json";
    const char *p = data;
    size_t at = 0;
    while (at < bytes && (p[at] == ' ' || p[at] == '\t' || p[at] == '\n' || p[at] == '\r')) {
        at++;
    }
    if (at < bytes && p[at] == '{') {
        return WIRE_JSON;
    }
    if (content_type == NULL) {
        return WIRE_MSGPACK;
    }
    while (isspace((unsigned char)*content_type)) {
        content_type++;
    }
    if (strncasecmp(content_type, json, sizeof json - 1) != 0) {
        return WIRE_MSGPACK;
    }
    char end = content_type[sizeof json - 1];
    return end == '\0' || end == ';' || isspace((unsigned char)end) ? WIRE_JSON : WIRE_MSGPACK;
}

/* ---- the view ------------------------------------------------------------------------------- */

bool wire_value_given(struct wire_value v) {
    return v.msgpack != NULL || v.json != NULL;
}

static enum wire_type type_of_json(const json_t *json) {
    switch (json_typeof(json)) {
    case JSON_OBJECT:
        return WIRE_TYPE_MAP;
    case JSON_ARRAY:
        return WIRE_TYPE_LIST;
    case JSON_STRING:
        return WIRE_TYPE_STR;
    case JSON_INTEGER:
        return WIRE_TYPE_INT;
    case JSON_REAL:
        return WIRE_TYPE_REAL;
    case JSON_TRUE:
    case JSON_FALSE:
        return WIRE_TYPE_BOOL;
    case JSON_NULL:
        break;
    }
    return WIRE_TYPE_NULL;
}

enum wire_type wire_value_type(struct wire_value v) {
    CHECK(wire_value_given(v));
    if (v.json != NULL) {
        return type_of_json(v.json);
    }
    switch (v.msgpack->type) {
    case MSGPACK_OBJECT_BOOLEAN:
        return WIRE_TYPE_BOOL;
    case MSGPACK_OBJECT_POSITIVE_INTEGER:
    case MSGPACK_OBJECT_NEGATIVE_INTEGER:
        return WIRE_TYPE_INT;
    case MSGPACK_OBJECT_FLOAT32:
    case MSGPACK_OBJECT_FLOAT64:
        return WIRE_TYPE_REAL;
    case MSGPACK_OBJECT_STR:
        return WIRE_TYPE_STR;
    case MSGPACK_OBJECT_ARRAY:
        return WIRE_TYPE_LIST;
    case MSGPACK_OBJECT_MAP:
        return WIRE_TYPE_MAP;
    case MSGPACK_OBJECT_BIN:
    case MSGPACK_OBJECT_EXT:
        return WIRE_TYPE_BINARY;
    case MSGPACK_OBJECT_NIL:
        break;
    }
    return WIRE_TYPE_NULL;
}

const char *wire_type_name(enum wire_type type) {
    static const char *const names[] = {
        [WIRE_TYPE_NULL] = "null",      [WIRE_TYPE_BOOL] = "a boolean",
        [WIRE_TYPE_INT] = "an integer", [WIRE_TYPE_REAL] = "a real number",
        [WIRE_TYPE_STR] = "a string",   [WIRE_TYPE_LIST] = "a list",
        [WIRE_TYPE_MAP] = "a map",      [WIRE_TYPE_BINARY] = "binary data",
    };
    return names[type];
}

bool wire_value_bool(struct wire_value v) {
    CHECK(wire_value_type(v) == WIRE_TYPE_BOOL);
    return v.json != NULL ? json_is_true(v.json) : v.msgpack->via.boolean;
}

bool wire_value_int(struct wire_value v, int64_t *i) {
    CHECK(wire_value_type(v) == WIRE_TYPE_INT);
    if (v.json != NULL) {
        *i = json_integer_value(v.json);
        return true;
    }
    if (v.msgpack->type == MSGPACK_OBJECT_POSITIVE_INTEGER && v.msgpack->via.u64 > INT64_MAX) {
        return false;
    }
    *i = v.msgpack->via.i64; /* one union: below 2^63 both readings agree */
    return true;
}

double wire_value_real(struct wire_value v) {
    if (v.json != NULL) {
        return json_number_value(v.json);
    }
    if (v.msgpack->type == MSGPACK_OBJECT_POSITIVE_INTEGER) {
        return (double)v.msgpack->via.u64;
    }
    if (v.msgpack->type == MSGPACK_OBJECT_NEGATIVE_INTEGER) {
        return (double)v.msgpack->via.i64;
    }
    CHECK(wire_value_type(v) == WIRE_TYPE_REAL);
    return v.msgpack->via.f64;
}

struct wire_str wire_value_str(struct wire_value v) {
    CHECK(wire_value_type(v) == WIRE_TYPE_STR);
    if (v.json != NULL) {
        return (struct wire_str){json_string_value(v.json), json_string_length(v.json)};
    }
    const msgpack_object_str *s = &v.msgpack->via.str;
    return (struct wire_str){s->size > 0 ? s->ptr : "", s->size};
}

bool wire_str_is(struct wire_str s, const char *text) {
    return s.data != NULL && s.bytes == strlen(text) && memcmp(s.data, text, s.bytes) == 0;
}

bool wire_value_is(struct wire_value v, const char *text) {
    return wire_value_given(v) && wire_value_type(v) == WIRE_TYPE_STR &&
           wire_str_is(wire_value_str(v), text);
}

size_t wire_value_count(struct wire_value v) {
    enum wire_type type = wire_value_type(v);
    CHECK(type == WIRE_TYPE_LIST || type == WIRE_TYPE_MAP);
    if (v.json != NULL) {
        return type == WIRE_TYPE_LIST ? json_array_size(v.json) : json_object_size(v.json);
    }
    return type == WIRE_TYPE_LIST ? v.msgpack->via.array.size : v.msgpack->via.map.size;
}

struct wire_value wire_value_at(struct wire_value list, size_t index) {
    DCHECK(index < wire_value_count(list));
    if (list.json != NULL) {
        return (struct wire_value){.json = json_array_get(list.json, index)};
    }
    return (struct wire_value){.msgpack = &list.msgpack->via.array.ptr[index]};
}

struct wire_value wire_value_get(struct wire_value map, const char *key) {
    CHECK(wire_value_type(map) == WIRE_TYPE_MAP);
    if (map.json != NULL) {
        return (struct wire_value){.json = json_object_get(map.json, key)};
    }
    const msgpack_object_map *m = &map.msgpack->via.map;
    size_t key_bytes = strlen(key);
    uint32_t low = 0;
    uint32_t high = m->size;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const msgpack_object_str *s = &m->ptr[middle].key.via.str;
        int order = compare_bytes(s->ptr, s->size, key, key_bytes);
        if (order == 0) {
            return (struct wire_value){.msgpack = &m->ptr[middle].val};
        }
        if (order < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return (struct wire_value){0};
}

bool wire_map_next(struct wire_value map, struct wire_iterator *it) {
    if (map.json != NULL) {
        it->json =
            it->index == 0 ? json_object_iter(map.json) : json_object_iter_next(map.json, it->json);
        it->index++;
        if (it->json == NULL) {
            return false;
        }
        const char *key = json_object_iter_key(it->json);
        it->key = (struct wire_str){key, strlen(key)};
        it->value = (struct wire_value){.json = json_object_iter_value(it->json)};
        return true;
    }
    if (it->index == map.msgpack->via.map.size) {
        return false;
    }
    const msgpack_object_kv *pair = &map.msgpack->via.map.ptr[it->index++];
    it->key = wire_value_str((struct wire_value){.msgpack = &pair->key});
    it->value = (struct wire_value){.msgpack = &pair->val};
    return true;
}
