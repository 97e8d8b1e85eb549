#include "wire/emit.h"

#include <inttypes.h>
#include <math.h>
#include <msgpack.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "wire/utf8.h"

static const char replacement[] = "\xEF\xBF\xBD"; /* U+FFFD */

void wire_buffer_deinit(struct wire_buffer *b) {
    free(b->data);
    *b = (struct wire_buffer){0};
}

static bool buffer_reserve(struct wire_buffer *b, size_t bytes) {
    if (bytes <= b->room - b->bytes) {
        return true;
    }
    if (bytes > SIZE_MAX / 4 || b->bytes > SIZE_MAX / 4) {
        return false;
    }
    size_t room = b->room < 256 ? 256 : b->room * 2;
    room = room < b->bytes + bytes ? b->bytes + bytes : room;
    char *data = realloc(b->data, room);
    if (data == NULL) {
        return false;
    }
    b->data = data;
    b->room = room;
    return true;
}

void wire_emit_raw(struct wire_emit *w, const char *data, size_t bytes) {
    if (bytes == 0 || w->failed) {
        return;
    }
    if (!buffer_reserve(w->out, bytes)) {
        w->failed = true;
        return;
    }
    memcpy(w->out->data + w->out->bytes, data, bytes);
    w->out->bytes += bytes;
}

static void raw_text(struct wire_emit *w, const char *text) {
    wire_emit_raw(w, text, strlen(text));
}

/* msgpack-c's packer calls this; failure is kept in `w`. */
static int packer_write(void *data, const char *bytes, size_t count) {
    wire_emit_raw(data, bytes, count);
    return 0;
}

static msgpack_packer packer_of(struct wire_emit *w) {
    return (msgpack_packer){.data = w, .callback = packer_write};
}

void wire_emit_begin(struct wire_emit *w, struct wire_buffer *out, enum wire_encoding encoding) {
    *w = (struct wire_emit){.out = out, .encoding = encoding, .start = out->bytes};
}

enum err wire_emit_finish(struct wire_emit *w) {
    CHECK(w->depth == 0);
    if (w->failed) {
        w->out->bytes = w->start;
        return ERR_NO_MEMORY;
    }
    return ERR_OK;
}

/* Before each value: counts a list's items and puts JSON's commas between them. */
static void item_begin(struct wire_emit *w) {
    if (w->depth == 0 || w->level[w->depth - 1].is_map) {
        return; /* in a map the key did it */
    }
    if (w->encoding == WIRE_JSON && w->level[w->depth - 1].count > 0) {
        raw_text(w, ",");
    }
    w->level[w->depth - 1].count++;
}

static void level_push(struct wire_emit *w, bool is_map, size_t length) {
    CHECK(w->depth < WIRE_EMIT_DEPTH_MAX);
    w->level[w->depth].at = w->out->bytes;
    w->level[w->depth].count = 0;
    w->level[w->depth].length = length;
    w->level[w->depth].is_map = is_map;
    w->depth++;
}

/* msgpack wants a map's length first: a 16-bit one is left open, and filled in at the end. */
void wire_emit_map(struct wire_emit *w) {
    item_begin(w);
    level_push(w, true, 0);
    if (w->encoding == WIRE_JSON) {
        raw_text(w, "{");
    } else {
        wire_emit_raw(w, "\xde\0\0", 3);
    }
}

void wire_emit_list(struct wire_emit *w, size_t count) {
    item_begin(w);
    level_push(w, false, count);
    if (w->encoding == WIRE_JSON) {
        raw_text(w, "[");
    } else {
        msgpack_packer p = packer_of(w);
        (void)msgpack_pack_array(&p, count);
    }
}

void wire_emit_end(struct wire_emit *w) {
    CHECK(w->depth > 0);
    w->depth--;
    bool is_map = w->level[w->depth].is_map;
    size_t count = w->level[w->depth].count;
    CHECK(is_map ? count <= UINT16_MAX : count == w->level[w->depth].length);
    if (w->encoding == WIRE_JSON) {
        raw_text(w, is_map ? "}" : "]");
    } else if (is_map && !w->failed) {
        char *length = w->out->data + w->level[w->depth].at + 1;
        length[0] = (char)(count >> 8);
        length[1] = (char)(count & 0xff);
    }
}

void wire_emit_key(struct wire_emit *w, struct wire_str key) {
    CHECK(w->depth > 0 && w->level[w->depth - 1].is_map);
    size_t *count = &w->level[w->depth - 1].count;
    if (w->encoding == WIRE_JSON && *count > 0) {
        raw_text(w, ",");
    }
    (*count)++;
    wire_emit_str(w, key); /* inside a map it adds no comma */
    if (w->encoding == WIRE_JSON) {
        raw_text(w, ":");
    }
}

void wire_emit_null(struct wire_emit *w) {
    item_begin(w);
    if (w->encoding == WIRE_JSON) {
        raw_text(w, "null");
    } else {
        msgpack_packer p = packer_of(w);
        (void)msgpack_pack_nil(&p);
    }
}

void wire_emit_bool(struct wire_emit *w, bool value) {
    item_begin(w);
    if (w->encoding == WIRE_JSON) {
        raw_text(w, value ? "true" : "false");
        return;
    }
    msgpack_packer p = packer_of(w);
    if (value) {
        (void)msgpack_pack_true(&p);
    } else {
        (void)msgpack_pack_false(&p);
    }
}

void wire_emit_int(struct wire_emit *w, int64_t value) {
    item_begin(w);
    if (w->encoding == WIRE_JSON) {
        char text[24];
        (void)snprintf(text, sizeof text, "%" PRId64, value);
        raw_text(w, text);
    } else {
        msgpack_packer p = packer_of(w);
        (void)msgpack_pack_int64(&p, value);
    }
}

static void decimal_point(char *text) {
    for (char *c = text; *c != '\0'; c++) { /* some locales write a comma */
        *c = *c == ',' ? '.' : *c;
    }
}

/* The shortest decimal of 15 to 17 digits that reads back as the same double. */
static void real_text(char text[40], double value) {
    for (int digits = 15; digits <= 17; digits++) {
        (void)snprintf(text, 40, "%.*g", digits, value);
        if (strtod(text, NULL) == value) {
            break;
        }
    }
    decimal_point(text);
}

void wire_emit_real(struct wire_emit *w, double value) {
    CHECK(isfinite(value));
    item_begin(w);
    if (w->encoding == WIRE_JSON) {
        char text[40];
        real_text(text, value);
        raw_text(w, text);
    } else {
        msgpack_packer p = packer_of(w);
        (void)msgpack_pack_double(&p, value);
    }
}

void wire_emit_float(struct wire_emit *w, float value) {
    CHECK(isfinite(value));
    item_begin(w);
    if (w->encoding == WIRE_JSON) {
        char text[40];
        for (int digits = 6; digits <= 9; digits++) { /* 9 always do */
            (void)snprintf(text, sizeof text, "%.*g", digits, (double)value);
            if (strtof(text, NULL) == value) {
                break;
            }
        }
        decimal_point(text);
        raw_text(w, text);
    } else {
        msgpack_packer p = packer_of(w);
        (void)msgpack_pack_float(&p, value);
    }
}

/* Valid UTF-8, escaped for JSON where it must be. */
static void json_run(struct wire_emit *w, const char *text, size_t bytes) {
    size_t done = 0;
    for (size_t i = 0; i < bytes; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c >= 0x20 && c != '"' && c != '\\') {
            continue;
        }
        static const char shorts[0x20] = {
            ['\b'] = 'b', ['\t'] = 't', ['\n'] = 'n', ['\f'] = 'f', ['\r'] = 'r'};
        char escape[8];
        if (c >= 0x20) {
            (void)snprintf(escape, sizeof escape, "\\%c", c);
        } else if (shorts[c] != 0) {
            (void)snprintf(escape, sizeof escape, "\\%c", shorts[c]);
        } else {
            (void)snprintf(escape, sizeof escape, "\\u%04x", c);
        }
        wire_emit_raw(w, text + done, i - done);
        raw_text(w, escape);
        done = i + 1;
    }
    wire_emit_raw(w, text + done, bytes - done);
}

/* The size of `text` after each byte that is not UTF-8 has become U+FFFD. */
static size_t repaired_bytes(struct wire_str text) {
    size_t total = 0;
    while (text.bytes > 0) {
        size_t good = wire_utf8_prefix(text.data, text.bytes);
        size_t bad = good < text.bytes ? 1 : 0;
        total += good + bad * (sizeof replacement - 1);
        text.data += good + bad;
        text.bytes -= good + bad;
    }
    return total;
}

void wire_emit_str(struct wire_emit *w, struct wire_str text) {
    item_begin(w);
    if (w->encoding == WIRE_JSON) {
        raw_text(w, "\"");
    } else {
        msgpack_packer p = packer_of(w);
        (void)msgpack_pack_str(&p, repaired_bytes(text));
    }
    while (text.bytes > 0) {
        size_t good = wire_utf8_prefix(text.data, text.bytes);
        size_t bad = good < text.bytes ? 1 : 0;
        if (w->encoding == WIRE_JSON) {
            json_run(w, text.data, good);
        } else {
            wire_emit_raw(w, text.data, good);
        }
        wire_emit_raw(w, replacement, bad * (sizeof replacement - 1));
        text.data += good + bad;
        text.bytes -= good + bad;
    }
    if (w->encoding == WIRE_JSON) {
        raw_text(w, "\"");
    }
}

/* ---- fields --------------------------------------------------------------------------------- */

struct wire_str wire_str_of(const char *text) {
    return (struct wire_str){text, text == NULL ? 0 : strlen(text)};
}

static void field_key(struct wire_emit *w, const char *name) {
    wire_emit_key(w, wire_str_of(name));
}

void wire_emit_map_field(struct wire_emit *w, const char *name) {
    field_key(w, name);
    wire_emit_map(w);
}

void wire_emit_null_field(struct wire_emit *w, const char *name) {
    field_key(w, name);
    wire_emit_null(w);
}

void wire_emit_bool_field(struct wire_emit *w, const char *name, bool value) {
    field_key(w, name);
    wire_emit_bool(w, value);
}

void wire_emit_int_field(struct wire_emit *w, const char *name, int64_t value) {
    field_key(w, name);
    wire_emit_int(w, value);
}

void wire_emit_real_field(struct wire_emit *w, const char *name, double value) {
    field_key(w, name);
    wire_emit_real(w, value);
}

void wire_emit_str_field(struct wire_emit *w, const char *name, struct wire_str text) {
    field_key(w, name);
    if (text.data == NULL) {
        wire_emit_null(w);
    } else {
        wire_emit_str(w, text);
    }
}

void wire_emit_u32s_field(struct wire_emit *w, const char *name, const uint32_t *values,
                          size_t count) {
    field_key(w, name);
    wire_emit_list(w, count);
    for (size_t i = 0; i < count; i++) {
        wire_emit_int(w, values[i]);
    }
    wire_emit_end(w);
}

void wire_emit_pairs_field(struct wire_emit *w, const char *name, const struct wire_pair *pairs,
                           size_t count) {
    wire_emit_map_field(w, name);
    for (size_t i = 0; i < count; i++) {
        wire_emit_key(w, pairs[i].key);
        wire_emit_str(w, pairs[i].value);
    }
    wire_emit_end(w);
}
