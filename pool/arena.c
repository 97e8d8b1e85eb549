#include "pool/arena.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "base/check.h"

struct arena_chunk {
    struct arena_chunk *next;
    struct arena_extent *first; /* one that starts at 0; the extents cover the chunk */
    unsigned char *base;
    uint64_t bytes;
};

static void hole_put(struct arena *a, struct arena_extent *x) {
    x->hole_prev = NULL;
    x->hole_next = a->holes;
    if (a->holes != NULL) {
        a->holes->hole_prev = x;
    }
    a->holes = x;
}

static void hole_remove(struct arena *a, const struct arena_extent *x) {
    *(x->hole_prev != NULL ? &x->hole_prev->hole_next : &a->holes) = x->hole_next;
    if (x->hole_next != NULL) {
        x->hole_next->hole_prev = x->hole_prev;
    }
}

static uint64_t granules_up(uint64_t bytes) {
    return (bytes + (ARENA_GRANULE - 1)) / ARENA_GRANULE * ARENA_GRANULE;
}

static bool chunk_empty(const struct arena_chunk *c) {
    return !c->first->taken && c->first->next == NULL;
}

void *arena_map(const struct arena_pins *pins, uint64_t bytes) {
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) {
        return NULL;
    }
    (void)madvise(base, bytes, MADV_HUGEPAGE); /* only speed: failure is fine */
    if (pins->pin != NULL && pins->pin(base, bytes) != ERR_OK) {
        CHECK(munmap(base, bytes) == 0);
        return NULL;
    }
    return base;
}

static void memory_unmap(const struct arena_pins *pins, void *base, uint64_t bytes) {
    if (pins->unpin != NULL) {
        pins->unpin(base, bytes);
    }
    CHECK(munmap(base, bytes) == 0);
}

void arena_init(struct arena *a, uint64_t budget, uint64_t chunk_bytes,
                const struct arena_pins *pins) {
    CHECK((pins->pin == NULL) == (pins->unpin == NULL));
    CHECK(budget >= ARENA_GRANULE);
    CHECK(budget <= UINT64_MAX / 2); /* sums of two sizes cannot overflow */
    CHECK(chunk_bytes >= ARENA_GRANULE);
    budget -= budget % ARENA_GRANULE;
    chunk_bytes = chunk_bytes < budget ? granules_up(chunk_bytes) : budget;
    *a = (struct arena){.pins = *pins, .budget = budget, .chunk_bytes = chunk_bytes};
}

static void chunk_free(struct arena *a, struct arena_chunk *c) {
    for (struct arena_extent *x = c->first; x != NULL;) {
        struct arena_extent *next = x->next;
        if (!x->taken) {
            hole_remove(a, x);
        }
        free(x);
        x = next;
    }
    memory_unmap(&a->pins, c->base, c->bytes);
    a->bytes_taken -= c->bytes;
    free(c);
}

void arena_deinit(struct arena *a) {
    while (a->chunks != NULL) {
        struct arena_chunk *c = a->chunks;
        a->chunks = c->next;
        chunk_free(a, c);
    }
    CHECK(a->bytes_taken == 0);
}

bool arena_grow_end(struct arena *a, void *base, uint64_t bytes) {
    CHECK(a->bytes_taken >= bytes);
    struct arena_chunk *c = calloc(1, sizeof *c);
    struct arena_extent *x = calloc(1, sizeof *x);
    if (c == NULL || x == NULL || base == NULL) {
        free(c);
        free(x);
        if (base != NULL) {
            memory_unmap(&a->pins, base, bytes);
        }
        a->bytes_taken -= bytes;
        return false;
    }
    *x = (struct arena_extent){.chunk = c, .bytes = bytes};
    *c = (struct arena_chunk){.first = x, .base = base, .bytes = bytes};
    hole_put(a, x);
    struct arena_chunk **end = &a->chunks;
    while (*end != NULL) {
        end = &(*end)->next;
    }
    *end = c;
    return true;
}

static uint64_t empty_bytes(const struct arena *a) {
    uint64_t bytes = 0;
    for (const struct arena_chunk *c = a->chunks; c != NULL; c = c->next) {
        bytes += chunk_empty(c) ? c->bytes : 0;
    }
    return bytes;
}

/* Gives empty chunks back to the system until a new one of `bytes` is within the budget. */
static void chunks_trim(struct arena *a, uint64_t bytes) {
    struct arena_chunk **link = &a->chunks;
    while (*link != NULL && a->budget - a->bytes_taken < bytes) {
        struct arena_chunk *c = *link;
        if (chunk_empty(c)) {
            *link = c->next;
            chunk_free(a, c);
        } else {
            link = &c->next;
        }
    }
}

uint64_t arena_grow_begin(struct arena *a, uint64_t bytes) {
    CHECK(bytes >= 1);
    CHECK(bytes <= a->budget);
    bytes = granules_up(bytes);
    if (a->budget - a->bytes_taken + empty_bytes(a) < bytes) {
        return 0;
    }
    chunks_trim(a, bytes);
    uint64_t room = a->budget - a->bytes_taken;
    CHECK(room >= bytes);
    uint64_t size = bytes > a->chunk_bytes ? bytes : a->chunk_bytes;
    size = size < room ? size : room;
    a->bytes_taken += size;
    return size;
}

/* Of equal ones the first in the list: that was given back last, and may still be in a cache. */
static struct arena_extent *hole_find(const struct arena *a, uint64_t bytes) {
    struct arena_extent *best = NULL;
    for (struct arena_extent *x = a->holes; x != NULL; x = x->hole_next) {
        if (x->bytes >= bytes && (best == NULL || x->bytes < best->bytes)) {
            best = x;
            if (x->bytes == bytes) {
                break;
            }
        }
    }
    return best;
}

bool arena_has(const struct arena *a, uint64_t bytes) {
    return hole_find(a, granules_up(bytes)) != NULL;
}

struct arena_extent *arena_take(struct arena *a, uint64_t bytes) {
    CHECK(bytes >= 1);
    CHECK(bytes <= a->budget);
    bytes = granules_up(bytes);
    struct arena_extent *x = hole_find(a, bytes);
    if (x == NULL) {
        return NULL;
    }
    CHECK(!x->taken);
    CHECK(x->bytes >= bytes);
    hole_remove(a, x);
    /* Without memory to describe the rest, the taker gets all of the hole: nothing fails. */
    struct arena_extent *rest = x->bytes > bytes ? calloc(1, sizeof *rest) : NULL;
    if (rest != NULL) {
        *rest = (struct arena_extent){.chunk = x->chunk,
                                      .prev = x,
                                      .next = x->next,
                                      .begin = x->begin + bytes,
                                      .bytes = x->bytes - bytes};
        if (x->next != NULL) {
            x->next->prev = rest;
        }
        x->next = rest;
        x->bytes = bytes;
        hole_put(a, rest);
    }
    x->taken = true;
    a->bytes_used += x->bytes;
    CHECK(a->bytes_used <= a->bytes_taken);
    CHECK(a->bytes_taken <= a->budget);
    return x;
}

/* `x` takes in the extent behind it; both are holes. */
static void hole_merge_next(struct arena *a, struct arena_extent *x) {
    struct arena_extent *next = x->next;
    hole_remove(a, next);
    x->bytes += next->bytes;
    x->next = next->next;
    if (x->next != NULL) {
        x->next->prev = x;
    }
    free(next);
}

void arena_give(struct arena *a, struct arena_extent *extent) {
    CHECK(extent->taken);
    CHECK(!extent->pinned);
    CHECK(a->bytes_used >= extent->bytes);
    a->bytes_used -= extent->bytes;
    extent->taken = false;
    hole_put(a, extent);
    if (extent->next != NULL && !extent->next->taken) {
        hole_merge_next(a, extent);
    }
    if (extent->prev != NULL && !extent->prev->taken) {
        hole_merge_next(a, extent->prev);
    }
}

void *arena_memory(const struct arena_extent *extent) {
    return extent->chunk->base + extent->begin;
}

bool arena_could_take(const struct arena *a, uint64_t bytes) {
    bytes = granules_up(bytes);
    uint64_t room = a->budget - a->bytes_taken; /* and all chunks that would be empty */
    for (const struct arena_chunk *c = a->chunks; c != NULL; c = c->next) {
        uint64_t run = 0; /* of neighbours that are not pinned */
        bool pinned = false;
        for (const struct arena_extent *x = c->first; x != NULL; x = x->next) {
            run = x->pinned ? 0 : run + x->bytes;
            pinned = pinned || x->pinned;
            if (run >= bytes) {
                return true;
            }
        }
        room += pinned ? 0 : c->bytes;
    }
    return room >= bytes;
}
