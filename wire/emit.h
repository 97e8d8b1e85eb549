/* emit.h - one writer for msgpack and JSON, so that each record is encoded by one function.
 *
 * Appends to a wire_buffer. Failure (out of memory) is remembered: call everything, then ask
 * wire_emit_finish() once. Bytes that are not UTF-8 become U+FFFD: a reader in another language
 * must never choke on our output. A map is begun and ended; a list is told its length. Thread: any.
 * Cost: linear in what is written. */
#ifndef LORRY_WIRE_EMIT_H
#define LORRY_WIRE_EMIT_H

#include "wire/wire.h"

enum { WIRE_EMIT_DEPTH_MAX = 12 };

struct wire_emit {
    struct wire_buffer *out;
    enum wire_encoding encoding;
    bool failed;
    size_t start; /* out->bytes before us */
    size_t depth;
    struct {
        size_t at;     /* msgpack: where the map's length goes */
        size_t count;  /* pairs or items begun */
        size_t length; /* of a list */
        bool is_map;
    } level[WIRE_EMIT_DEPTH_MAX];
};

void wire_emit_begin(struct wire_emit *w, struct wire_buffer *out, enum wire_encoding encoding);
/* ERR_NO_MEMORY: `out` is as it was. */
NODISCARD enum err wire_emit_finish(struct wire_emit *w);

void wire_emit_map(struct wire_emit *w);
void wire_emit_list(struct wire_emit *w, size_t count);
void wire_emit_end(struct wire_emit *w); /* of a map or list */
void wire_emit_key(struct wire_emit *w, struct wire_str key);
void wire_emit_null(struct wire_emit *w);
void wire_emit_bool(struct wire_emit *w, bool value);
void wire_emit_int(struct wire_emit *w, int64_t value);
void wire_emit_real(struct wire_emit *w, double value); /* finite */
void wire_emit_float(struct wire_emit *w,
                     float value); /* finite; read back as a float it is same */
void wire_emit_str(struct wire_emit *w, struct wire_str text);

struct wire_str wire_str_of(const char *text); /* NULL = absent */

/* A key and its value. Absent strings become null. */
void wire_emit_map_field(struct wire_emit *w, const char *name);
void wire_emit_null_field(struct wire_emit *w, const char *name);
void wire_emit_bool_field(struct wire_emit *w, const char *name, bool value);
void wire_emit_int_field(struct wire_emit *w, const char *name, int64_t value);
void wire_emit_real_field(struct wire_emit *w, const char *name, double value);
void wire_emit_str_field(struct wire_emit *w, const char *name, struct wire_str text);
void wire_emit_u32s_field(struct wire_emit *w, const char *name, const uint32_t *values,
                          size_t count);
void wire_emit_pairs_field(struct wire_emit *w, const char *name, const struct wire_pair *pairs,
                           size_t count);

/* Bytes as they are, at the top level only; wire_final_openai's newline. */
void wire_emit_raw(struct wire_emit *w, const char *data, size_t bytes);

#endif
