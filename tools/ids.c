#include "tools/ids.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/hash.h"

static uint64_t hash_of(const char *id, size_t bytes) {
    uint64_t h = hash_bytes(id, bytes);
    return h ^ h >> 32;
}

/* The cell that holds `id`, or the free one where it belongs. */
static uint32_t *place(const struct ids *s, const char *id, size_t bytes) {
    uint32_t mask = s->cell_count - 1;
    for (uint32_t at = (uint32_t)hash_of(id, bytes) & mask;; at = (at + 1) & mask) {
        uint32_t cell = s->cells[at];
        if (cell == 0) {
            return &s->cells[at];
        }
        const char *other = s->items[cell - 1].id;
        if (strlen(other) == bytes && memcmp(other, id, bytes) == 0) {
            return &s->cells[at];
        }
    }
}

/* At most half of the cells are used, so that place() ends soon. */
static bool grow(struct ids *s) {
    uint32_t room = s->room > 0 ? s->room * 2 : 64;
    struct ids_item *items = realloc(s->items, room * sizeof *items);
    if (items == NULL) {
        return false;
    }
    s->items = items;
    uint32_t *cells = calloc((size_t)room * 2, sizeof *cells);
    if (cells == NULL) {
        return false;
    }
    free(s->cells);
    s->cells = cells;
    s->cell_count = room * 2;
    s->room = room;
    for (uint32_t i = 0; i < s->count; i++) {
        *place(s, s->items[i].id, strlen(s->items[i].id)) = i + 1;
    }
    return true;
}

enum err ids_add(struct ids *s, const char *id, size_t bytes, uint64_t tag, uint32_t *index,
                 bool *added) {
    CHECK(memchr(id, '\0', bytes) == NULL);
    if (s->count == s->room && (s->count >= IDS_MAX || !grow(s))) {
        return ERR_NO_MEMORY;
    }
    uint32_t *cell = place(s, id, bytes);
    *added = *cell == 0;
    if (*added) {
        char *copy = strndup(id, bytes);
        if (copy == NULL) {
            return ERR_NO_MEMORY;
        }
        s->items[s->count] = (struct ids_item){.id = copy, .tag = tag};
        *cell = ++s->count;
    }
    *index = *cell - 1;
    return ERR_OK;
}

void ids_deinit(struct ids *s) {
    for (uint32_t i = 0; i < s->count; i++) {
        free(s->items[i].id);
    }
    free(s->items);
    free(s->cells);
    *s = (struct ids){0};
}
