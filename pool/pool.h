/* pool.h - pages of device memory, shared by the KV cache and the adapters; and the host store.
 *
 * The parts, one a file:
 *   pages.c      accounting: free list, reference counts, pages waiting for a step to end
 *   residency.c  which adapters lie in pages, and where
 *   store.c      adapter images in host memory, by (id, revision), least recently used
 *   arena.c      the store's memory: chunks within a byte budget
 *
 * Pages and residency belong to the loop thread: no locks, no clock, no device call but `load` and
 * `event_done`. The store is shared with loader threads behind one mutex.
 * All page accounting is O(1) a page; pages and residency allocate nothing after open. Misuse
 * (double release, an unknown page or adapter) crashes. */
#ifndef LORRY_POOL_POOL_H
#define LORRY_POOL_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/metrics.h"
#include "kernels/kernels.h"

/* ---- pages -------------------------------------------------------------------------------- */

struct pool;

struct pool_options {
    uint32_t page_count;    /* 1 .. POOL_PAGES_MAX; the host keeps 24 bytes a page */
    uint32_t prefix_tokens; /* T: full pages can be found by their tokens; the host keeps some 64
                               bytes and 4 a token for each page; 0 = there are no prefixes */
    uint32_t adapters;      /* most adapters resident at once: the device's adapter table */
    uint32_t adapter_pages; /* most pages of one adapter */
    /* Layers of the model: a resident adapter's image goes back to the store as soon as its copy is
     * done, which must be so where the store is smaller than the pool. 0: it is held until the
     * adapter is evicted, so that coming back never costs a look at files. */
    uint32_t drop_images_of;
    /* For `load` and `event_done`. NULL in accounting tests: every copy is done at once. */
    const struct kern_ops *ops;
    struct kern_device *device;
};

enum { POOL_PAGES_MAX = 1 << 26 };

/* ERR_NO_MEMORY. */
NODISCARD enum err pool_open(struct pool **out, const struct pool_options *options);
/* After the device has come to rest, and before the store goes. Adapters that are still resident
 * need not be evicted, pages in use need not be released; images that are held go back to the
 * store. NULL is fine. */
void pool_close(struct pool *p);

/* Reserves `count` pages for KV, each with one reference: free ones, then cached ones. Adapters get
 * theirs by pool_adapter_load().
 * pages   out: room for `count` indices; written only on ERR_OK; the caller's until released.
 * Errors  ERR_NO_SPACE: nothing was reserved; worth retrying after a release.
 * Cost    O(count). */
NODISCARD enum err pool_reserve(struct pool *p, uint32_t count, uint32_t *pages);

/* Adds a reference to each: shared prefixes. All must be KV pages in use, or found by
 * pool_prefix_find(). */
void pool_share(struct pool *p, const uint32_t *pages, uint32_t count);

/* Drops a reference of each. `ticket` is the last step in flight that may name the pages for this
 * sharer, 0 = none. A page without references returns to the free list once the greatest ticket
 * that any of its sharers gave has ended; when one with a greater ticket waits already, with that
 * one (the queue of waiting pages is in the order of tickets; those of one call queue from the last
 * to the first). One that has a prefix's entry becomes cached instead of free. Double release
 * crashes.
 * Cost    O(count). */
void pool_release(struct pool *p, const uint32_t *pages, uint32_t count, uint64_t ticket);

/* All steps up to `ticket` have ended: frees what waited for them. A ticket that is not new does
 * nothing. Cost: O(pages freed). */
void pool_steps_ended(struct pool *p, uint64_t ticket);

/* free + cached + kv + adapters + pending = all, at every step (invariant 2) */
struct pool_counts {
    uint32_t pages, free, kv, adapters, pending;
    uint32_t cached; /* in nobody's use, kept as prefixes; whoever needs pages gets them */
    uint32_t adapters_resident, adapters_loading;
    uint64_t loads, evictions; /* of adapters, since open */
    uint64_t load_pages;       /* of those loads */
    uint64_t reclaimed;        /* cached pages that were used for something else, since open */
};
struct pool_counts pool_counts(const struct pool *p);

/* Walks everything and CHECKs invariant 2: each page is in exactly one place. O(pages), and takes
 * a byte a page for the time of the call: for tests, and the loop's exit. */
void pool_check(const struct pool *p);

/* ---- prefixes -----------------------------------------------------------------------------
 *
 * Full KV pages that can be found by what was computed into them: the scope, all tokens before the
 * page, and its own. An entry stays for as long as its page is used or, cached, not needed for
 * something else; then the least recently used goes first. */

/* What KV depends on besides the tokens: the SHA-256 that is the adapter's revision, or the base's.
 */
struct pool_scope {
    uint8_t bytes[32];
};

struct pool_prefix {
    const struct pool_scope *scope;
    uint64_t before;        /* the name of the page before it; 0 = it is the first */
    const uint32_t *tokens; /* [prefix_tokens] */
};

/* Finds a page by its tokens; returns its name, which leads to the page behind it, or 0: there is
 * none. The page may be shared until another is reserved or an adapter loaded, by steps that are
 * launched from now on.
 * Cost    O(prefix_tokens). */
uint64_t pool_prefix_find(const struct pool *p, const struct pool_prefix *key, uint32_t *page);
/* Sharing it takes it out of counts.cached. */
bool pool_page_cached(const struct pool *p, uint32_t page);
/* Lets a KV page be found, which is in use, has no entry, and whose tokens are all computed by
 * steps that were launched. Returns its name, or that of the page that has the same tokens already;
 * 0 when there are no prefixes. */
uint64_t pool_prefix_enter(struct pool *p, const struct pool_prefix *key, uint32_t page);

/* ---- the host store ----------------------------------------------------------------------- */

struct pool_store;

enum { POOL_ID_BYTES = 129, POOL_REVISION_BYTES = 65 };

/* An adapter image and what the loop and the scheduler know of it. Read-only once committed. */
struct pool_image {
    char id[POOL_ID_BYTES];             /* NUL-terminated */
    char revision[POOL_REVISION_BYTES]; /* SHA-256 in hex of its files */
    uint32_t rank_max;
    uint32_t page_count;  /* of its pages, both lists together */
    uint32_t outer_pages; /* of them, those of the second list: tensors outside the layers */
    uint32_t layers;
    uint64_t page_elems;
    uint64_t bytes;         /* of `elements`: layers × page_count × page_elems × elem_bytes */
    void *elements;         /* [layers][page_count - outer_pages][page_elems], then
                               [layers][outer_pages][page_elems]; device elements, tile order; at a
                               multiple of 4,096 */
    struct kern_lora *lora; /* [kern_lora_count(layers)]; beside the elements, within the budget */
};

struct pool_store_options {
    uint64_t bytes;       /* budget of chunks taken; at least 4,096 */
    uint64_t chunk_bytes; /* memory is taken in chunks of this (64 MiB is usual), larger for a
                             larger image, smaller at the end of the budget; at least 4,096 */
    /* kern_ops.pin and .unpin, called for each chunk, of whole pages of the system; NULL: none */
    enum err (*pin)(void *base, uint64_t bytes);
    void (*unpin)(void *base, uint64_t bytes);
    struct metrics *metrics; /* of the bytes stored by adapter; outlives the store; NULL: none */
};

/* Takes no chunk yet. Outside the budget are some hundred bytes a record. ERR_NO_MEMORY. */
NODISCARD enum err pool_store_open(struct pool_store **out,
                                   const struct pool_store_options *options);
/* Every reserved image was committed or aborted before. Held ones go too. NULL is fine. */
void pool_store_close(struct pool_store *s);

/* Reserves room for an image, evicting the least recently used that nobody holds until it fits.
 * `image` is the caller's to fill (`elements` and `lora` hold anything) until committed or aborted;
 * ids and sizes are taken from `wanted` (bytes, elements and lora are ignored). The revision may
 * follow before the commit.
 * Errors  ERR_NO_SPACE: what is held leaves no hole of this size; nothing was evicted; worth
 *         retrying after a drop. ERR_UNSUPPORTED_ADAPTER: larger than the whole budget (why names
 *         both). ERR_NO_MEMORY.
 * Thread: any, like all of the store.
 * Cost    O(images) under the mutex. */
NODISCARD enum err pool_store_reserve(struct pool_store *s, const struct pool_image *wanted,
                                      uint32_t elem_bytes, struct pool_image **image,
                                      struct err_text *why);
/* Sees to it that the next image of `bytes` finds room without waiting for memory to be mapped and
 * pinned (100 ms for a chunk of 256 MiB), as far as the budget goes; evicts nothing.
 * Cost    nothing where there is room; else that time, of a thread that has it. */
void pool_store_prepare(struct pool_store *s, uint64_t bytes);
/* Makes it visible to find(), held once by the caller. An older image of the same id and revision
 * stays where it is and is returned instead; the new one goes. */
struct pool_image *pool_store_commit(struct pool_store *s, struct pool_image *image);
/* Gives up an image that was reserved and not committed. */
void pool_store_abort(struct pool_store *s, struct pool_image *image);

/* The image of (id, revision), held once more for the caller; NULL when it is not there. */
struct pool_image *pool_store_find(struct pool_store *s, const char *id, const char *revision);
/* Lets go of one hold. An image that nobody holds stays until its room is needed. */
void pool_store_drop(struct pool_store *s, struct pool_image *image);

struct pool_store_counts {
    uint64_t bytes_budget;
    uint64_t bytes_taken; /* of chunks; never above the budget */
    uint64_t bytes_used;  /* of images, with those being filled, in whole 4,096 bytes */
    uint64_t images;      /* committed */
    uint64_t images_held; /* of them */
    uint64_t evictions;   /* since open */
};
struct pool_store_counts pool_store_counts(struct pool_store *s);

/* ---- residency ---------------------------------------------------------------------------- */

enum pool_state { POOL_ABSENT, POOL_LOADING, POOL_RESIDENT };

/* Starts to bring an image into pages under a free index of the device's adapter table. Takes over
 * the caller's hold on the image until the adapter is evicted, or its copy is done.
 * An index is free again at once after an eviction: steps in flight read the device's own copy of
 * the table, which only a later step's delta changes.
 * Errors  ERR_NO_SPACE (too few free pages, or the table is full), or what the device's load says:
 *         nothing changed, the hold stays the caller's. */
NODISCARD enum err pool_adapter_load(struct pool *p, struct pool_store *s, struct pool_image *image,
                                     uint32_t *adapter);
/* Turns LOADING into RESIDENT when its copy is done; ABSENT for an index without adapter. */
enum pool_state pool_adapter_poll(struct pool *p, uint32_t adapter);
/* Sequences that use it, or wait for its copy; an adapter in use is not evicted. */
void pool_adapter_use(struct pool *p, uint32_t adapter);
void pool_adapter_unuse(struct pool *p, uint32_t adapter);
uint32_t pool_adapter_users(const struct pool *p, uint32_t adapter);
/* Gives its pages back after step `ticket` (0 = at once), and its hold on the image, if it has
 * still one, now; CHECKs that it is resident (a copy in flight cannot be called back) and unused.
 */
void pool_adapter_evict(struct pool *p, struct pool_store *s, uint32_t adapter, uint64_t ticket);
/* What a step's delta needs; its pointers are valid until the adapter is evicted. */
struct kern_adapter_set pool_adapter_set(const struct pool *p, uint32_t adapter);
/* NULL once it was given back. */
const struct pool_image *pool_adapter_image(const struct pool *p, uint32_t adapter);

#endif
