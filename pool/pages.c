#include <stdlib.h>

#include "base/check.h"
#include "pool/pool_internal.h"

_Static_assert(POOL_PAGES_MAX < POOL_NO_PAGE, "the end of a list is no page");
_Static_assert(sizeof(struct pool_page) == 24, "pool.h states the host's bytes a page");

/* The cheap half of invariant 2, at the end of every change; pool_check() is the other half. */
static void sum_check(const struct pool *p) {
    const struct pool_counts *c = &p->counts;
    CHECK((uint64_t)c->free + c->kv + c->adapters + c->pending + c->cached == c->pages);
}

static struct pool_page *page_at(struct pool *p, uint32_t page) {
    CHECK(page < p->counts.pages);
    return &p->pages[page];
}

/* The counter of pages in a state. */
static uint32_t *state_count(struct pool *p, enum pool_page_state state) {
    switch (state) {
    case POOL_PAGE_FREE:
        return &p->counts.free;
    case POOL_PAGE_KV:
        return &p->counts.kv;
    case POOL_PAGE_ADAPTER:
        return &p->counts.adapters;
    case POOL_PAGE_PENDING:
        return &p->counts.pending;
    case POOL_PAGE_CACHED:
        return &p->counts.cached;
    }
    CHECK(!"a page is in one of the five states");
    return NULL;
}

static void state_set(struct pool *p, struct pool_page *page, enum pool_page_state state) {
    uint32_t *from = state_count(p, page->state);
    DCHECK(*from > 0);
    *from -= 1;
    *state_count(p, state) += 1;
    page->state = state;
}

enum err pool_open(struct pool **out, const struct pool_options *options) {
    CHECK(options->page_count >= 1);
    CHECK(options->page_count <= POOL_PAGES_MAX);
    CHECK(options->ops == NULL || options->device != NULL);
    enum err e = ERR_OK;
    struct pool *p = calloc(1, sizeof *p);
    if (p == NULL) {
        return ERR_NO_MEMORY;
    }
    p->ops = options->ops;
    p->device = options->device;
    p->pages = calloc(options->page_count, sizeof *p->pages);
    if (p->pages == NULL) {
        e = ERR_NO_MEMORY;
        goto out;
    }
    e = pool_residency_init(p, options);
    if (e == ERR_OK) {
        e = pool_prefix_init(p, options);
    }
    if (e != ERR_OK) {
        goto out;
    }
    p->pending = p->cached = (struct pool_list){.first = POOL_NO_PAGE, .last = POOL_NO_PAGE};
    p->free_head = POOL_NO_PAGE;
    for (uint32_t i = options->page_count; i-- > 0;) { /* page 0 is the first to go */
        p->pages[i].next = p->free_head;
        p->free_head = i;
    }
    p->counts.pages = p->counts.free = options->page_count;
    *out = p;
    p = NULL;
out:
    pool_close(p);
    return e;
}

void pool_close(struct pool *p) {
    if (p == NULL) {
        return;
    }
    pool_prefix_deinit(p);
    pool_residency_deinit(p);
    free(p->pages);
    free(p);
}

/* ---- lists -------------------------------------------------------------------------------- */

static void list_append(struct pool *p, struct pool_list *list, uint32_t index) {
    struct pool_page *page = &p->pages[index];
    page->next = POOL_NO_PAGE;
    page->before = list->last;
    *(list->last == POOL_NO_PAGE ? &list->first : &p->pages[list->last].next) = index;
    list->last = index;
}

static void list_remove(struct pool *p, struct pool_list *list, uint32_t index) {
    const struct pool_page *page = &p->pages[index];
    *(page->before == POOL_NO_PAGE ? &list->first : &p->pages[page->before].next) = page->next;
    *(page->next == POOL_NO_PAGE ? &list->last : &p->pages[page->next].before) = page->before;
}

static void page_free(struct pool *p, uint32_t index) {
    struct pool_page *page = &p->pages[index];
    state_set(p, page, POOL_PAGE_FREE);
    page->next = p->free_head;
    p->free_head = index;
}

/* No step names it any more: free, unless its tokens may be asked for again. */
static void page_rest(struct pool *p, uint32_t index) {
    if (pool_prefix_has(p, index)) {
        state_set(p, &p->pages[index], POOL_PAGE_CACHED);
        list_append(p, &p->cached, index);
    } else {
        page_free(p, index);
    }
}

/* A later page never waits for less than an earlier one, so that the queue is in the order of
 * tickets; steps end in order too, hence this costs a page a step or two of waiting at most. */
static void page_wait(struct pool *p, uint32_t index) {
    struct pool_page *page = &p->pages[index];
    state_set(p, page, POOL_PAGE_PENDING);
    if (p->pending.last != POOL_NO_PAGE && page->ticket < p->pages[p->pending.last].ticket) {
        page->ticket = p->pages[p->pending.last].ticket;
    }
    list_append(p, &p->pending, index);
}

/* Gives up cached pages until `count` are free. */
static void reclaim(struct pool *p, uint32_t count) {
    while (p->counts.free < count) {
        uint32_t index = p->cached.first;
        CHECK(index != POOL_NO_PAGE);
        list_remove(p, &p->cached, index);
        pool_prefix_forget(p, index);
        page_free(p, index);
        p->counts.reclaimed += 1;
    }
}

/* ---- take, share, drop -------------------------------------------------------------------- */

enum err pool_pages_take(struct pool *p, enum pool_page_state state, uint32_t count,
                         uint32_t *pages) {
    CHECK(state == POOL_PAGE_KV || state == POOL_PAGE_ADAPTER);
    if (count > p->counts.free + p->counts.cached) {
        return ERR_NO_SPACE;
    }
    reclaim(p, count);
    for (uint32_t i = 0; i < count; i++) {
        struct pool_page *page = page_at(p, p->free_head);
        DCHECK(page->state == POOL_PAGE_FREE);
        DCHECK(page->refs == 0);
        pages[i] = p->free_head;
        p->free_head = page->next;
        page->next = POOL_NO_PAGE;
        page->refs = 1;
        page->ticket = 0;
        state_set(p, page, state);
    }
    sum_check(p);
    return ERR_OK;
}

void pool_pages_drop(struct pool *p, enum pool_page_state state, const uint32_t *pages,
                     uint32_t count, uint64_t ticket) {
    for (uint32_t i = count; i-- > 0;) { /* of a prefix the end is to be reclaimed first */
        struct pool_page *page = page_at(p, pages[i]);
        CHECK(page->state == state); /* else released twice, or by who does not own it */
        CHECK(page->refs > 0);
        if (page->ticket < ticket) {
            page->ticket =
                ticket; /* a sharer that goes first may still be named by the later step */
        }
        page->refs -= 1;
        if (page->refs > 0) {
            continue;
        }
        if (page->ticket <= p->ended) {
            page_rest(p, pages[i]);
        } else {
            page_wait(p, pages[i]);
        }
    }
    sum_check(p);
}

enum err pool_reserve(struct pool *p, uint32_t count, uint32_t *pages) {
    return pool_pages_take(p, POOL_PAGE_KV, count, pages);
}

void pool_share(struct pool *p, const uint32_t *pages, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        struct pool_page *page = page_at(p, pages[i]);
        if (page->state != POOL_PAGE_KV) { /* of a prefix, and nobody uses it just now */
            CHECK(page->state == POOL_PAGE_CACHED || page->state == POOL_PAGE_PENDING);
            CHECK(pool_prefix_has(p, pages[i]));
            list_remove(p, page->state == POOL_PAGE_CACHED ? &p->cached : &p->pending, pages[i]);
            state_set(p, page, POOL_PAGE_KV);
        } else {
            CHECK(page->refs > 0);
        }
        CHECK(page->refs < UINT32_MAX);
        page->refs += 1;
    }
    sum_check(p);
}

bool pool_page_cached(const struct pool *p, uint32_t page) {
    CHECK(page < p->counts.pages);
    return p->pages[page].state == POOL_PAGE_CACHED;
}

void pool_release(struct pool *p, const uint32_t *pages, uint32_t count, uint64_t ticket) {
    pool_pages_drop(p, POOL_PAGE_KV, pages, count, ticket);
}

void pool_steps_ended(struct pool *p, uint64_t ticket) {
    if (ticket <= p->ended) {
        return;
    }
    p->ended = ticket;
    while (p->pending.first != POOL_NO_PAGE && p->pages[p->pending.first].ticket <= ticket) {
        uint32_t index = p->pending.first;
        list_remove(p, &p->pending, index);
        page_rest(p, index);
    }
    CHECK((p->pending.first == POOL_NO_PAGE) == (p->counts.pending == 0));
    sum_check(p);
}

struct pool_counts pool_counts(const struct pool *p) {
    return p->counts;
}

/* Walks a list, marks its pages; returns how many. A loop in it meets a marked page. */
static uint32_t list_check(const struct pool *p, struct pool_list list, enum pool_page_state state,
                           bool *seen) {
    uint32_t count = 0;
    uint64_t ticket = 0;
    uint32_t before = POOL_NO_PAGE;
    for (uint32_t i = list.first; i != POOL_NO_PAGE; i = p->pages[i].next) {
        CHECK(i < p->counts.pages);
        const struct pool_page *page = &p->pages[i];
        CHECK(!seen[i]);
        CHECK(page->state == state);
        CHECK(page->refs == 0);
        if (state != POOL_PAGE_FREE) {
            CHECK(page->before == before);
            CHECK(page->next != POOL_NO_PAGE || i == list.last);
            before = i;
        }
        if (state == POOL_PAGE_PENDING) {
            CHECK(page->ticket > p->ended);
            CHECK(page->ticket >= ticket);
            ticket = page->ticket;
        }
        if (state == POOL_PAGE_CACHED) {
            CHECK(page->ticket <= p->ended);
            CHECK(pool_prefix_has(p, i));
        }
        seen[i] = true;
        count++;
    }
    return count;
}

void pool_check(const struct pool *p) {
    bool *seen = calloc(p->counts.pages, sizeof *seen);
    CHECK(seen != NULL);
    const struct pool_list free_pages = {.first = p->free_head};
    CHECK(list_check(p, free_pages, POOL_PAGE_FREE, seen) == p->counts.free);
    CHECK(list_check(p, p->pending, POOL_PAGE_PENDING, seen) == p->counts.pending);
    CHECK(list_check(p, p->cached, POOL_PAGE_CACHED, seen) == p->counts.cached);
    pool_prefix_check(p);
    pool_residency_check(p, seen);
    uint32_t kv = 0;
    for (uint32_t i = 0; i < p->counts.pages; i++) {
        if (!seen[i]) {
            CHECK(p->pages[i].state == POOL_PAGE_KV);
            CHECK(p->pages[i].refs > 0);
            kv++;
        }
    }
    CHECK(kv == p->counts.kv);
    sum_check(p);
    free(seen);
}
