/* pool_internal.h - what pages.c, prefix.c and residency.c share; nobody else includes it. */
#ifndef LORRY_POOL_POOL_INTERNAL_H
#define LORRY_POOL_POOL_INTERNAL_H

#include "pool/pool.h"

#define POOL_NO_PAGE UINT32_MAX /* ends a list; POOL_PAGES_MAX is far below */

enum pool_page_state {
    POOL_PAGE_FREE,
    POOL_PAGE_KV,
    POOL_PAGE_ADAPTER,
    POOL_PAGE_PENDING, /* nobody's, but named by a step in flight; may have a prefix's entry */
    POOL_PAGE_CACHED,  /* nobody's, and has a prefix's entry */
};

struct pool_page {
    uint64_t ticket; /* the greatest that a sharer gave since it was reserved; 0 = none */
    uint32_t next;   /* of a free, pending or cached page: the one behind it in the list */
    uint32_t before; /* of a pending or cached page: the one in front of it */
    uint32_t refs;   /* > 0 while KV or ADAPTER */
    enum pool_page_state state;
};

struct pool_list { /* linked both ways */
    uint32_t first, last;
};

struct pool_prefix_entry { /* of the page with the same index */
    uint64_t chain;        /* its name, never used twice; 0 = the page has no entry */
    uint64_t before;       /* name of the entry of the page before; 0 = it is the first */
    struct pool_scope scope;
    uint32_t bucket, bucket_next;
};

struct pool_adapter {
    enum pool_state state;
    uint32_t users; /* sequences */
    uint64_t event; /* of the copy, while LOADING */
    uint32_t page_count, outer_pages;
    struct pool_image *image; /* held; NULL while ABSENT, and once it was given back */
    struct pool_store *store; /* of the image */
};

struct pool {
    const struct kern_ops *ops;
    struct kern_device *device;

    struct pool_page *pages;   /* [counts.pages] */
    uint32_t free_head;        /* last in, first out: a warm page is used again */
    struct pool_list pending;  /* first in, first out; tickets never fall along it */
    struct pool_list cached;   /* least recently used first */
    uint64_t ended;            /* all steps up to this one have ended */
    struct pool_counts counts; /* kept current by every change */

    uint32_t page_tokens;              /* T; 0 = no prefixes, and the next four are empty */
    struct pool_prefix_entry *entries; /* [counts.pages] */
    uint32_t *tokens;                  /* [counts.pages][page_tokens] of those that have one */
    uint32_t *buckets;                 /* [bucket_mask + 1] first pages */
    uint32_t bucket_mask;
    uint64_t chains; /* names given */

    uint32_t adapter_count; /* of the table */
    uint32_t adapter_pages; /* length of the room for one page list */
    struct pool_adapter *adapters;
    uint32_t *adapter_lists; /* [adapter_count][adapter_pages]; untouched rows cost no memory */
    struct kern_lora *loras; /* [adapter_count][lora_count], likewise: tables of those whose images
                                were given back; NULL: images are kept */
    uint32_t lora_count;
    uint32_t *adapter_free; /* stack of free indices */
    uint32_t adapter_free_count;
};

/* Takes free pages, then cached ones, for `state` (KV or ADAPTER). ERR_NO_SPACE: nothing changed.
 */
NODISCARD enum err pool_pages_take(struct pool *p, enum pool_page_state state, uint32_t count,
                                   uint32_t *pages);
/* Drops a reference of pages in `state`; see pool_release(). */
void pool_pages_drop(struct pool *p, enum pool_page_state state, const uint32_t *pages,
                     uint32_t count, uint64_t ticket);

NODISCARD enum err pool_prefix_init(struct pool *p, const struct pool_options *options);
void pool_prefix_deinit(struct pool *p);
/* Walks the table: each entry is of a page that may have one, and is found. */
void pool_prefix_check(const struct pool *p);
bool pool_prefix_has(const struct pool *p, uint32_t page);
void pool_prefix_forget(struct pool *p, uint32_t page);

NODISCARD enum err pool_residency_init(struct pool *p, const struct pool_options *options);
void pool_residency_deinit(struct pool *p);
/* Walks the table: marks each adapter's pages in `seen`, CHECKs that none was marked before. */
void pool_residency_check(const struct pool *p, bool *seen);
uint32_t *pool_residency_list(const struct pool *p, uint32_t adapter);

#endif
