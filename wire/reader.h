/* reader.h - tables of fields, and the functions that read a value into a record.
 *
 * A record's schema is a table: name, how to read it, where to, limits. The table is walked in its
 * own order, so that a message with several faults gets the same error in either encoding. null is
 * absent everywhere. A record's strings and arrays lie in an arena that the record then owns.
 * Thread: any; a reader is one call's. */
#ifndef LORRY_WIRE_READER_H
#define LORRY_WIRE_READER_H

#include "wire/tree.h"

struct wire_chunk;
struct wire_reader;
struct wire_field;

/* One function's type, not a struct's: the table and twenty declarations share it. */
typedef enum err wire_read_fn(struct wire_reader *r, const struct wire_field *f,
                              struct wire_value v);

/* Memory that is released at once; grows by chunks, the first of which fits nearly every message.
 */
struct wire_arena {
    struct wire_chunk *first;
    size_t hint; /* bytes of the first chunk */
};
void *wire_arena_take(struct wire_arena *arena, size_t bytes, size_t align); /* NULL: no memory */
void wire_memory_free(void *memory); /* a record's `memory` = arena.first */

struct wire_reader {
    struct wire_arena arena;
    void *record;   /* what the tables' offsets refer to */
    const char *in; /* path of the map being read, as "messages[3]."; "" at the top */
    bool strict;    /* an unknown field is an error */
    uint32_t unknown;
    const char *model_name; /* may be NULL */
    struct err_text *why;   /* may be NULL */
};

struct wire_field {
    const char *name;
    wire_read_fn *read;
    size_t offset;       /* of the destination in the record */
    size_t count_offset; /* of a list's count */
    int64_t min, max;    /* of a number, of a string's bytes or of a list's length */
    unsigned flags;
    const struct wire_table *nested; /* of wire_read_map */
};

enum {
    WIRE_ABOVE_MIN = 1 << 0, /* min itself is not allowed */
    WIRE_EMPTY_OK = 1 << 1,  /* an empty string or list is absent, not an error */
    WIRE_REQUIRED = 1 << 13, /* its absence is an error */
    /* The field's work comes later; until then only the value that changes nothing is accepted. */
    WIRE_ONLY_ABSENT = 1 << 4,
    /* wire_read_neutral: the defaults of fields that we lack; null always is one. */
    WIRE_NEUTRAL_FALSE = 1 << 5,
    WIRE_NEUTRAL_TRUE = 1 << 6,
    WIRE_NEUTRAL_ZERO = 1 << 7,
    WIRE_NEUTRAL_ONE = 1 << 8,
    WIRE_NEUTRAL_EMPTY = 1 << 9, /* "", [], {} */
    WIRE_NEUTRAL_NONE = 1 << 10, /* "none" */
    WIRE_NEUTRAL_TEXT = 1 << 11, /* {"type": "text"}, ["text"] */
    WIRE_NEUTRAL_POST = 1 << 12, /* "POST" */
};

struct wire_table {
    const struct wire_field *fields;
    size_t count;
};
#define WIRE_TABLE(fields) \
    { (fields), sizeof(fields) / sizeof((fields)[0]) } /* an initialiser */

/* Reads each field of `table` that `map` has; stops at the first error. */
NODISCARD enum err wire_read_table(struct wire_reader *r, const struct wire_table *table,
                                   struct wire_value map);
/* As wire_read_table, but goes on behind an error and reads what can be read. Returns `first`, the
 * error of a call before, or else its own first; `why` tells of the one returned. */
NODISCARD enum err wire_read_all(struct wire_reader *r, enum err first,
                                 const struct wire_table *table, struct wire_value map);
/* Counts, or when strict refuses, the fields of `map` that are in none of the tables. */
NODISCARD enum err wire_read_unknown(struct wire_reader *r, const struct wire_table *tables,
                                     size_t table_count, struct wire_value map);

/* Parses and reads a record of ours as readers do: unknown fields are ignored. `record` is ready
 * for the table; *memory gets what it owns, on error too. */
NODISCARD enum err wire_read_record(const struct wire_table *table, void *record, void **memory,
                                    const void *data, size_t bytes, struct err_text *why);

/* An error of a field, with its path. `what` is a clause: "must be at least 1". */
enum err wire_field_error(struct wire_reader *r, enum err e, const char *name, const char *format,
                          ...) __attribute__((format(printf, 4, 5)));
/* "… must be <wanted>, not <found>" */
enum err wire_type_error(struct wire_reader *r, const char *name, const char *wanted,
                         struct wire_value found);

/* ---- how to read: destination in comments; all but wire_read_neutral and _ignored write it ----
 */

wire_read_fn wire_read_version;  /* none; the integer WIRE_VERSION or below */
wire_read_fn wire_read_int;      /* wire_int */
wire_read_fn wire_read_real;     /* wire_real; finite */
wire_read_fn wire_read_duration; /* double; finite, ≥ 0 */
wire_read_fn wire_read_flag;     /* wire_int, from a boolean */
wire_read_fn wire_read_bool;     /* bool */
wire_read_fn wire_read_u32;      /* uint32_t */
wire_read_fn wire_read_i32;      /* int32_t */
wire_read_fn wire_read_i64;      /* int64_t */
wire_read_fn wire_read_str;      /* wire_str */
wire_read_fn wire_read_label;    /* wire_str without control characters */
wire_read_fn wire_read_id;       /* wire_str; "" is absent */
wire_read_fn wire_read_adapter;  /* wire_str; "" and the model's name are absent */
wire_read_fn wire_read_run;      /* char[WIRE_ULID_BYTES + 1] */
wire_read_fn wire_read_u32s;     /* const uint32_t * and count; each 0 .. INT32_MAX */
wire_read_fn wire_read_strs; /* const wire_str * and count; a string or a list; bytes ≤ STOP_… */
wire_read_fn wire_read_pairs;   /* const wire_pair * and count; metadata's limits */
wire_read_fn wire_read_map;     /* the nested table, into the same record */
wire_read_fn wire_read_neutral; /* nothing: only a default is accepted */
wire_read_fn wire_read_ignored; /* nothing */

/* Which of `names` (NULL ones are skipped) a string is. */
NODISCARD enum err wire_read_name(struct wire_reader *r, const struct wire_field *f,
                                  struct wire_value v, const char *const *names, size_t count,
                                  size_t *index);

/* Copies text into the arena, with a NUL behind it for debuggers. ERR_NO_MEMORY. */
NODISCARD enum err wire_copy(struct wire_reader *r, struct wire_str from, struct wire_str *to);
NODISCARD enum err wire_no_memory(struct wire_reader *r);

#endif
