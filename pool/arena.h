/* arena.h - the host store's memory: extents inside chunks, within a byte budget. Inside pool/
 * only.
 *
 * An extent is a run of whole granules of one chunk, taken or a hole; holes that touch are one.
 * The smallest hole that fits is taken; thousands of images leave few holes, since a store that is
 * full gives up one image for the next, and only holes are looked at. A chunk is taken when no hole
 * fits, and goes back to the system only to make room for a larger one: on a GPU host a chunk is
 * pinned memory, which is expensive to take. What describes extents lies outside the chunks.
 *
 * Knows nothing of images: who holds what comes as a mark on the extent. No lock but for
 * arena_map(): the store's. */
#ifndef LORRY_POOL_ARENA_H
#define LORRY_POOL_ARENA_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

enum { ARENA_GRANULE = 4096 };

struct arena_chunk;

struct arena_extent {
    struct arena_chunk *chunk;
    struct arena_extent *prev, *next; /* neighbours in the chunk, in the order of addresses */
    struct arena_extent *hole_prev, *hole_next; /* of a hole: in the list of all */
    uint64_t begin, bytes;                      /* multiples of ARENA_GRANULE */
    bool taken;                                 /* else a hole */
    bool pinned; /* taken, and cannot be given back now; set by the store */
};

struct arena_pins { /* how chunks become memory that the device reads by itself; NULL: not */
    enum err (*pin)(void *base, uint64_t bytes);
    void (*unpin)(void *base, uint64_t bytes);
};

struct arena {
    struct arena_pins pins;       /* constant */
    uint64_t budget, chunk_bytes; /* multiples of ARENA_GRANULE */
    uint64_t bytes_taken;         /* of chunks; <= budget */
    uint64_t bytes_used;          /* of taken extents; <= bytes_taken */
    struct arena_chunk *chunks;   /* the newest last */
    struct arena_extent *holes;   /* in no order */
};

/* Both are cut and rounded to granules. */
void arena_init(struct arena *a, uint64_t budget, uint64_t chunk_bytes,
                const struct arena_pins *pins);
void arena_deinit(struct arena *a); /* with all extents */

/* Takes an extent of at least `bytes` (rounded up) from the chunks that are there, contents
 * undefined; NULL: none fits. */
struct arena_extent *arena_take(struct arena *a, uint64_t bytes);

/* Whether arena_take(bytes) would succeed now. */
bool arena_has(const struct arena *a, uint64_t bytes);

/* A new chunk comes in three parts, since the second, which maps and pins memory, takes long:
 * counts the size of a chunk in which `bytes` fit as taken, after giving back empty ones if that
 * helps (0: not within the budget); takes the memory, without a look at the arena (NULL: none);
 * adds it, or takes the size back where `base` is NULL (then, or without memory to describe it,
 * false). */
uint64_t arena_grow_begin(struct arena *a, uint64_t bytes);
void *arena_map(const struct arena_pins *pins, uint64_t bytes);
bool arena_grow_end(struct arena *a, void *base, uint64_t bytes);

void arena_give(struct arena *a, struct arena_extent *extent);
void *arena_memory(const struct arena_extent *extent);

/* Whether arena_take(bytes) would succeed after giving back all that is not pinned. */
bool arena_could_take(const struct arena *a, uint64_t bytes);

#endif
