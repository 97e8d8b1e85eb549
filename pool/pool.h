/* pool.h - pages of device memory, shared by the KV cache and the adapters; and the host store.
 *
 * Three parts, one a file:
 *   pages.c      accounting: free list, reference counts, pages waiting for a step to end
 *   residency.c  which adapters lie in pages, and where
 *   store.c      adapter images in host memory, within a byte budget
 *
 * Pages and residency belong to the loop thread: no locks, no clock, no device call but `load`.
 * The store is shared with loader threads behind one mutex.
 * All page accounting is O(1) a page; nothing is allocated after open. */
#ifndef LORRY_POOL_POOL_H
#define LORRY_POOL_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "kernels/kernels.h"

/* ---- pages -------------------------------------------------------------------------------- */

struct pool;

struct pool_options {
    uint32_t page_count; /* 1 .. POOL_PAGES_MAX */
    uint32_t adapters;   /* most adapters resident at once: the device's adapter table */
    uint32_t adapter_pages; /* most pages of one adapter */
    const struct kern_ops *ops; /* for `load` and `event_done`; may be NULL in accounting tests */
    struct kern_device *device;
};

enum { POOL_PAGES_MAX = 1 << 26 };

NODISCARD enum err pool_open(struct pool **out, const struct pool_options *options);
void pool_close(struct pool *p);

/* Reserves `count` pages, each with one reference.
 * pages   out: room for `count` indices; written only on ERR_OK; the caller's until released.
 * Errors  ERR_NO_SPACE: nothing was reserved; worth retrying after a release.
 * Cost    O(count). */
NODISCARD enum err pool_reserve(struct pool *p, uint32_t count, uint32_t *pages);

/* Adds a reference to each: shared prefixes. */
void pool_share(struct pool *p, const uint32_t *pages, uint32_t count);

/* Drops a reference of each. A page without references returns to the free list once the step
 * `ticket` has ended (0 = at once): a step in flight may still name it. Double release crashes. */
void pool_release(struct pool *p, const uint32_t *pages, uint32_t count, uint64_t ticket);

/* All steps up to `ticket` have ended: frees what waited for them. Cost: O(pages freed). */
void pool_steps_ended(struct pool *p, uint64_t ticket);

struct pool_counts { /* free + kv + adapters + pending = all, at every step (invariant 2) */
    uint32_t pages, free, kv, adapters, pending;
    uint32_t adapters_resident, adapters_loading;
    uint64_t loads, evictions;
};
struct pool_counts pool_counts(const struct pool *p);

/* Walks everything and CHECKs invariant 2; O(pages): tests, and the loop's exit. */
void pool_check(const struct pool *p);

/* ---- the host store ----------------------------------------------------------------------- */

struct pool_store;

enum { POOL_ID_BYTES = 129, POOL_REVISION_BYTES = 65 };

/* An adapter image and what the loop and the scheduler know of it. Read-only once committed. */
struct pool_image {
    char id[POOL_ID_BYTES];             /* NUL-terminated */
    char revision[POOL_REVISION_BYTES]; /* SHA-256 in hex of its files */
    uint32_t rank_max;
    uint32_t page_count; /* length of its page list */
    uint32_t layers;
    uint64_t page_elems;
    uint64_t bytes;         /* of `elements`: layers × page_count × page_elems × elem_bytes */
    void *elements;         /* [layers][page_count][page_elems], device elements, tile order */
    struct kern_lora *lora; /* [layers][KERN_MODULES] */
};

struct pool_store_options {
    uint64_t bytes;       /* budget */
    uint64_t chunk_bytes; /* memory is taken in chunks of this, or larger for a larger image */
};

NODISCARD enum err pool_store_open(struct pool_store **out, const struct pool_store_options *options);
void pool_store_close(struct pool_store *s);

/* Reserves room for an image, evicting the least recently used that nobody holds. `image` is the
 * caller's to fill (`elements` is zeroed) until committed or aborted; sizes and ids are taken from
 * `wanted` (elements and lora are ignored).
 * Errors  ERR_NO_SPACE: everything else is held; worth retrying. ERR_UNSUPPORTED_ADAPTER: larger than
 *         the whole budget (why names it).
 * Thread: any. */
NODISCARD enum err pool_store_reserve(struct pool_store *s, const struct pool_image *wanted,
                                      uint32_t elem_bytes, struct pool_image **image,
                                      struct err_text *why);
/* Makes it visible to find(), held once by the caller. An older image of the same id and revision
 * stays where it is and is returned instead; the new one goes. */
struct pool_image *pool_store_commit(struct pool_store *s, struct pool_image *image);
void pool_store_abort(struct pool_store *s, struct pool_image *image);

/* The image of (id, revision), held once more for the caller; NULL when it is not there. */
struct pool_image *pool_store_find(struct pool_store *s, const char *id, const char *revision);
void pool_store_drop(struct pool_store *s, struct pool_image *image); /* lets go of one hold */

struct pool_store_counts {
    uint64_t bytes_budget, bytes_taken, bytes_used; /* used: of images; taken: of chunks */
    uint64_t images, evictions;
};
struct pool_store_counts pool_store_counts(struct pool_store *s);

/* ---- residency ---------------------------------------------------------------------------- */

enum pool_state { POOL_ABSENT, POOL_LOADING, POOL_RESIDENT };

/* Starts to bring an image into pages under a free index of the device's adapter table. Takes over
 * the caller's hold on the image until the adapter is evicted.
 * Errors  ERR_NO_SPACE (too few free pages, or the table is full): nothing changed. */
NODISCARD enum err pool_adapter_load(struct pool *p, struct pool_store *s, struct pool_image *image,
                                     uint32_t *adapter);
/* Turns LOADING into RESIDENT when its copy is done. */
enum pool_state pool_adapter_poll(struct pool *p, uint32_t adapter);
/* Sequences that use it; an adapter in use is not evicted. */
void pool_adapter_use(struct pool *p, uint32_t adapter);
void pool_adapter_unuse(struct pool *p, uint32_t adapter);
uint32_t pool_adapter_users(const struct pool *p, uint32_t adapter);
/* Gives its pages back after step `ticket`; CHECKs that it is resident and unused. */
void pool_adapter_evict(struct pool *p, struct pool_store *s, uint32_t adapter, uint64_t ticket);
/* What a step's delta needs; valid while loaded. */
struct kern_adapter_set pool_adapter_set(const struct pool *p, uint32_t adapter);
const struct pool_image *pool_adapter_image(const struct pool *p, uint32_t adapter);

#endif
