#include "wire/reader.h"

#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "wire/utf8.h"

enum err wire_no_memory(struct wire_reader *r) {
    return err_set(r->why, ERR_NO_MEMORY, "no memory for a decoded message");
}

enum err wire_copy(struct wire_reader *r, struct wire_str from, struct wire_str *to) {
    CHECK(from.data != NULL);
    char *data = wire_arena_take(&r->arena, from.bytes + 1, 1);
    if (data == NULL) {
        return wire_no_memory(r);
    }
    memcpy(data, from.data, from.bytes);
    data[from.bytes] = '\0';
    *to = (struct wire_str){data, from.bytes};
    return ERR_OK;
}

/* ---- errors --------------------------------------------------------------------------------- */

enum err wire_field_error(struct wire_reader *r, enum err e, const char *name, const char *format,
                          ...) {
    char clause[256];
    char path[ERR_FIELD_BYTES];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(clause, sizeof clause, format, args);
    va_end(args);
    (void)snprintf(path, sizeof path, "%s%s", r->in, name);
    if (name[0] == '\0' && r->in[0] != '\0') { /* the map itself, not a field of it */
        path[strlen(path) - 1] = '\0';
    }
    path[wire_utf8_prefix(path, strlen(path))] = '\0'; /* a long name may be cut in a character */
    return err_set_field(r->why, e, path, "%s %s", path, clause);
}

enum err wire_type_error(struct wire_reader *r, const char *name, const char *wanted,
                         struct wire_value found) {
    return wire_field_error(r, ERR_BAD_FIELD, name, "must be %s, not %s", wanted,
                            wire_type_name(wire_value_type(found)));
}

/* ---- tables --------------------------------------------------------------------------------- */

static enum err read_field(struct wire_reader *r, const struct wire_field *f,
                           struct wire_value map) {
    struct wire_value v = wire_value_get(map, f->name);
    if (wire_value_given(v) && wire_value_type(v) != WIRE_TYPE_NULL) {
        return f->read(r, f, v);
    }
    if ((f->flags & WIRE_REQUIRED) != 0) {
        return wire_field_error(r, ERR_BAD_FIELD, f->name, "is missing");
    }
    return ERR_OK;
}

enum err wire_read_table(struct wire_reader *r, const struct wire_table *table,
                         struct wire_value map) {
    enum err e = ERR_OK;
    for (size_t i = 0; i < table->count && e == ERR_OK; i++) {
        e = read_field(r, &table->fields[i], map);
    }
    return e;
}

enum err wire_read_all(struct wire_reader *r, enum err first, const struct wire_table *table,
                       struct wire_value map) {
    struct err_text *why = r->why;
    for (size_t i = 0; i < table->count; i++) {
        r->why = first == ERR_OK ? why : NULL;
        enum err e = read_field(r, &table->fields[i], map);
        first = first == ERR_OK ? e : first;
    }
    r->why = why;
    return first;
}

/* A key's bytes for %.*s; longer ones are cut by the buffer. */
static int printable_bytes(struct wire_str key) {
    return key.bytes < ERR_FIELD_BYTES ? (int)key.bytes : ERR_FIELD_BYTES;
}

static bool table_has(const struct wire_table *table, struct wire_str key) {
    for (size_t i = 0; i < table->count; i++) {
        if (wire_str_is(key, table->fields[i].name)) {
            return true;
        }
    }
    return false;
}

enum err wire_read_unknown(struct wire_reader *r, const struct wire_table *tables,
                           size_t table_count, struct wire_value map) {
    struct wire_iterator it = {0};
    while (wire_map_next(map, &it)) {
        bool known = false;
        for (size_t t = 0; t < table_count && !known; t++) {
            known = table_has(&tables[t], it.key);
        }
        if (!known && r->strict) {
            char name[ERR_FIELD_BYTES];
            (void)snprintf(name, sizeof name, "%.*s", printable_bytes(it.key), it.key.data);
            if (name[0] == '\0') {
                memcpy(name, "\"\"", sizeof "\"\""); /* a field must have a name in errors */
            }
            return wire_field_error(r, ERR_UNSUPPORTED_FIELD, name, "is not a known field");
        }
        r->unknown += known ? 0 : 1;
    }
    return ERR_OK;
}

enum err wire_read_record(const struct wire_table *table, void *record, void **memory,
                          const void *data, size_t bytes, struct err_text *why) {
    CHECK(data != NULL || bytes == 0);
    struct wire_tree tree;
    struct wire_reader r = {.arena = {.hint = bytes}, .record = record, .in = "", .why = why};
    enum err e = wire_tree_parse(&tree, data, bytes, wire_encoding_of(data, bytes, NULL), why);
    if (e == ERR_OK && wire_value_type(tree.root) != WIRE_TYPE_MAP) {
        e = err_set(why, ERR_BAD_MESSAGE, "the message must be a map, not %s",
                    wire_type_name(wire_value_type(tree.root)));
    }
    if (e == ERR_OK) {
        e = wire_read_table(&r, table, tree.root);
    }
    *memory = r.arena.first;
    wire_tree_deinit(&tree);
    return e;
}
