#include "tools/tail.h"

#include <stdlib.h>
#include <string.h>

/* Drops all frames with pos ≥ `pos`. */
static void cut(struct tail *t, uint32_t pos) {
    while (t->border_count > 0 && t->borders[t->border_count - 1].pos >= pos) {
        t->border_count--;
        t->text.bytes = t->borders[t->border_count].text_bytes;
    }
}

static enum err append(struct tail *t, const struct wire_frame *f) {
    if (t->border_count == t->border_room) {
        uint32_t room = t->border_room > 0 ? t->border_room * 2 : 64;
        struct tail_border *borders = realloc(t->borders, room * sizeof *borders);
        if (borders == NULL) {
            return ERR_NO_MEMORY;
        }
        t->borders = borders;
        t->border_room = room;
    }
    if (t->text.room - t->text.bytes < f->text.bytes) {
        size_t room = (t->text.bytes + f->text.bytes) * 2;
        char *data = realloc(t->text.data, room);
        if (data == NULL) {
            return ERR_NO_MEMORY;
        }
        t->text.data = data;
        t->text.room = room;
    }
    t->borders[t->border_count++] = (struct tail_border){f->pos, t->text.bytes};
    if (f->text.bytes > 0) {
        memcpy(t->text.data + t->text.bytes, f->text.data, f->text.bytes);
        t->text.bytes += f->text.bytes;
    }
    return ERR_OK;
}

enum err tail_frame(struct tail *t, const struct wire_frame *f, enum tail_news *news) {
    bool same = t->started && f->attempt == t->attempt && strcmp(f->run, t->run) == 0;
    *news = TAIL_NOTHING;
    if (same && f->seq < t->seq_next) { /* sent twice */
        return ERR_OK;
    }
    if (t->started && !same && !wire_supersedes(t->attempt, t->run, f->attempt, f->run)) {
        return ERR_OK;
    }
    *news = TAIL_TEXT;
    if (!same) {
        size_t before = t->text.bytes;
        cut(t, f->pos);
        if (t->text.bytes < before) {
            *news = TAIL_RESTART;
            t->text_bytes_kept = t->text.bytes;
        }
        t->started = true;
        t->ended = false;
        t->attempt = f->attempt;
        memcpy(t->run, f->run, sizeof t->run);
    }
    t->seq_next = f->seq + 1;
    enum err e = append(t, f);
    if (e == ERR_OK && f->kind == WIRE_END) {
        t->ended = true;
        *news = *news == TAIL_RESTART ? TAIL_RESTART : TAIL_END;
    }
    return e;
}

void tail_deinit(struct tail *t) {
    wire_buffer_deinit(&t->text);
    free(t->borders);
    *t = (struct tail){0};
}
