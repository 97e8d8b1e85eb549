/* ids.h - a set of job ids: each gets a dense index, in the order they came.
 *
 * Memory: the ids' bytes and some 30 bytes each. Thread: one. */
#ifndef LORRY_TOOLS_IDS_H
#define LORRY_TOOLS_IDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum { IDS_MAX = 1 << 28 };

struct ids_item {
    char *id; /* owned */
    uint64_t tag;
};

struct ids { /* zero it first */
    struct ids_item *items;
    uint32_t count, room;
    uint32_t *cells;     /* index + 1; 0 = free; open addressing */
    uint32_t cell_count; /* a power of two */
};

/* The index of `id` into *index; a new one is added with `tag`.
 * Errors  ERR_NO_MEMORY: also of more than IDS_MAX ids; nothing was added. */
NODISCARD enum err ids_add(struct ids *s, const char *id, size_t bytes, uint64_t tag,
                           uint32_t *index, bool *added);
void ids_deinit(struct ids *s);

#endif
