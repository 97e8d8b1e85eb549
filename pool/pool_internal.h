/* pool_internal.h - what pages.c and residency.c share; nobody else includes it. */
#ifndef LORRY_POOL_POOL_INTERNAL_H
#define LORRY_POOL_POOL_INTERNAL_H

#include "pool/pool.h"

#define POOL_NO_PAGE UINT32_MAX /* ends a list; POOL_PAGES_MAX is far below */

enum pool_page_state { POOL_PAGE_FREE, POOL_PAGE_KV, POOL_PAGE_ADAPTER, POOL_PAGE_PENDING };

struct pool_page {
    uint64_t ticket; /* the greatest that a sharer gave since it was reserved; 0 = none */
    uint32_t next;   /* of a free or pending page: the one behind it in the list */
    uint32_t refs;   /* > 0 while KV or ADAPTER */
    enum pool_page_state state;
};

struct pool_adapter {
    enum pool_state state;
    uint32_t users;           /* sequences */
    uint64_t event;           /* of the copy, while LOADING */
    struct pool_image *image; /* held; NULL while ABSENT. Its page_count is that of the list */
};

struct pool {
    const struct kern_ops *ops;
    struct kern_device *device;

    struct pool_page *pages;             /* [counts.pages] */
    uint32_t free_head;                  /* last in, first out: a warm page is used again */
    uint32_t pending_head, pending_tail; /* first in, first out; tickets never fall along it */
    uint64_t ended;                      /* all steps up to this one have ended */
    struct pool_counts counts;           /* kept current by every change */

    uint32_t adapter_count; /* of the table */
    uint32_t adapter_pages; /* length of the room for one page list */
    struct pool_adapter *adapters;
    uint32_t *adapter_lists; /* [adapter_count][adapter_pages]; untouched rows cost no memory */
    uint32_t *adapter_free;  /* stack of free indices */
    uint32_t adapter_free_count;
};

/* Takes pages off the free list for `state` (KV or ADAPTER). ERR_NO_SPACE: nothing changed. */
NODISCARD enum err pool_pages_take(struct pool *p, enum pool_page_state state, uint32_t count,
                                   uint32_t *pages);
/* Drops a reference of pages in `state`; see pool_release(). */
void pool_pages_drop(struct pool *p, enum pool_page_state state, const uint32_t *pages,
                     uint32_t count, uint64_t ticket);

NODISCARD enum err pool_residency_init(struct pool *p, const struct pool_options *options);
void pool_residency_deinit(struct pool *p);
/* Walks the table: marks each adapter's pages in `seen`, CHECKs that none was marked before. */
void pool_residency_check(const struct pool *p, bool *seen);
uint32_t *pool_residency_list(const struct pool *p, uint32_t adapter);

#endif
