#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "pool/pool_internal.h"

enum err pool_residency_init(struct pool *p, const struct pool_options *options) {
    p->adapter_count = options->adapters;
    p->adapter_pages = options->adapter_pages;
    if (p->adapter_count == 0) {
        return ERR_OK; /* a pool for KV alone */
    }
    CHECK(p->adapter_pages >= 1);
    p->adapters = calloc(p->adapter_count, sizeof *p->adapters);
    p->adapter_free = calloc(p->adapter_count, sizeof *p->adapter_free);
    p->adapter_lists =
        calloc(p->adapter_count, (size_t)p->adapter_pages * sizeof *p->adapter_lists);
    if (p->adapters == NULL || p->adapter_free == NULL || p->adapter_lists == NULL) {
        return ERR_NO_MEMORY; /* pool_open() closes what there is */
    }
    if (options->drop_images_of > 0) {
        p->lora_count = kern_lora_count(options->drop_images_of);
        p->loras = calloc(p->adapter_count, (size_t)p->lora_count * sizeof *p->loras);
        if (p->loras == NULL) {
            return ERR_NO_MEMORY;
        }
    }
    for (uint32_t i = p->adapter_count; i-- > 0;) { /* index 0 is the first to go */
        p->adapter_free[p->adapter_free_count] = i;
        p->adapter_free_count += 1;
    }
    return ERR_OK;
}

void pool_residency_deinit(struct pool *p) {
    for (uint32_t i = 0; p->adapters != NULL && i < p->adapter_count; i++) {
        if (p->adapters[i].image != NULL && p->adapters[i].store != NULL) {
            pool_store_drop(p->adapters[i].store, p->adapters[i].image);
        }
    }
    free(p->loras);
    free(p->adapter_lists);
    free(p->adapter_free);
    free(p->adapters);
}

uint32_t *pool_residency_list(const struct pool *p, uint32_t adapter) {
    return p->adapter_lists + (size_t)adapter * p->adapter_pages;
}

/* The entry of an adapter that is there: loading or resident. */
static struct pool_adapter *adapter_at(const struct pool *p, uint32_t adapter) {
    CHECK(adapter < p->adapter_count);
    struct pool_adapter *a = &p->adapters[adapter];
    CHECK(a->state != POOL_ABSENT);
    return a;
}

/* Both lists, one after the other: when the last copy is done, the first is too. */
static enum err lists_load(struct pool *p, const struct pool_image *image, const uint32_t *list,
                           uint64_t *event) {
    uint32_t layer_pages = image->page_count - image->outer_pages;
    uint64_t layer_bytes = image->bytes / image->page_count * layer_pages;
    enum err e = ERR_OK;
    if (layer_pages != 0) {
        e = p->ops->load(p->device, image->elements, list, layer_pages, event);
    }
    if (e == ERR_OK && image->outer_pages != 0) {
        e = p->ops->load(p->device, (const char *)image->elements + layer_bytes, list + layer_pages,
                         image->outer_pages, event);
    }
    return e;
}

static int page_order(const void *a, const void *b) {
    const uint32_t *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

enum err pool_adapter_load(struct pool *p, struct pool_store *s, struct pool_image *image,
                           uint32_t *adapter) {
    CHECK(image->page_count >= 1);
    CHECK(image->page_count <= p->adapter_pages); /* model/ refused larger ones */
    if (p->adapter_free_count == 0 || image->page_count > p->counts.free + p->counts.cached) {
        return ERR_NO_SPACE;
    }
    uint32_t index = p->adapter_free[p->adapter_free_count - 1];
    uint32_t *list = pool_residency_list(p, index);
    enum err e = pool_pages_take(p, POOL_PAGE_ADAPTER, image->page_count, list);
    if (e != ERR_OK) {
        return e;
    }
    /* Any order will do; in this one, pages that adjoin can be copied together. */
    qsort(list, image->page_count, sizeof *list, page_order);
    /* Free and cached pages are by definition named by no step in flight, as load() wants it. */
    uint64_t event = 0;
    if (p->ops != NULL) {
        e = lists_load(p, image, list, &event);
        if (e != ERR_OK) {
            pool_pages_drop(p, POOL_PAGE_ADAPTER, list, image->page_count, 0);
            return e;
        }
    }
    struct pool_adapter *a = &p->adapters[index];
    CHECK(a->state == POOL_ABSENT);
    *a = (struct pool_adapter){.state = POOL_LOADING,
                               .event = event,
                               .page_count = image->page_count,
                               .outer_pages = image->outer_pages,
                               .image = image,
                               .store = s};
    p->adapter_free_count -= 1;
    p->counts.adapters_loading += 1;
    p->counts.loads += 1;
    p->counts.load_pages += image->page_count;
    *adapter = index;
    return ERR_OK;
}

/* The row of the table that stands in for an image which was given back. */
static struct kern_lora *lora_row(const struct pool *p, uint32_t adapter) {
    return p->loras + (size_t)adapter * p->lora_count;
}

/* The pages have all of it now but its table. */
static void image_give_back(struct pool *p, uint32_t adapter) {
    struct pool_adapter *a = &p->adapters[adapter];
    CHECK(kern_lora_count(a->image->layers) == p->lora_count);
    memcpy(lora_row(p, adapter), a->image->lora, p->lora_count * sizeof *p->loras);
    pool_store_drop(a->store, a->image);
    a->image = NULL;
}

enum pool_state pool_adapter_poll(struct pool *p, uint32_t adapter) {
    CHECK(adapter < p->adapter_count);
    struct pool_adapter *a = &p->adapters[adapter];
    if (a->state == POOL_LOADING && (p->ops == NULL || p->ops->event_done(p->device, a->event))) {
        a->state = POOL_RESIDENT;
        p->counts.adapters_loading -= 1;
        p->counts.adapters_resident += 1;
        if (p->loras != NULL) {
            image_give_back(p, adapter);
        }
    }
    return a->state;
}

void pool_adapter_use(struct pool *p, uint32_t adapter) {
    struct pool_adapter *a = adapter_at(p, adapter);
    CHECK(a->users < UINT32_MAX);
    a->users += 1;
}

void pool_adapter_unuse(struct pool *p, uint32_t adapter) {
    struct pool_adapter *a = adapter_at(p, adapter);
    CHECK(a->users > 0);
    a->users -= 1;
}

uint32_t pool_adapter_users(const struct pool *p, uint32_t adapter) {
    return adapter_at(p, adapter)->users;
}

void pool_adapter_evict(struct pool *p, struct pool_store *s, uint32_t adapter, uint64_t ticket) {
    struct pool_adapter *a = adapter_at(p, adapter);
    CHECK(a->state == POOL_RESIDENT);
    CHECK(a->users == 0);
    CHECK(a->store == s);
    pool_pages_drop(p, POOL_PAGE_ADAPTER, pool_residency_list(p, adapter), a->page_count, ticket);
    if (a->image != NULL) {
        pool_store_drop(s, a->image);
    }
    *a = (struct pool_adapter){.state = POOL_ABSENT};
    CHECK(p->adapter_free_count < p->adapter_count);
    p->adapter_free[p->adapter_free_count] = adapter;
    p->adapter_free_count += 1;
    p->counts.adapters_resident -= 1;
    p->counts.evictions += 1;
}

struct kern_adapter_set pool_adapter_set(const struct pool *p, uint32_t adapter) {
    const struct pool_adapter *a = adapter_at(p, adapter);
    return (struct kern_adapter_set){.adapter = adapter,
                                     .lora =
                                         a->image != NULL ? a->image->lora : lora_row(p, adapter),
                                     .pages = pool_residency_list(p, adapter),
                                     .page_count = a->page_count,
                                     .outer_pages = a->outer_pages};
}

const struct pool_image *pool_adapter_image(const struct pool *p, uint32_t adapter) {
    return adapter_at(p, adapter)->image;
}

void pool_residency_check(const struct pool *p, bool *seen) {
    uint32_t pages = 0;
    uint32_t loading = 0;
    uint32_t resident = 0;
    for (uint32_t i = 0; i < p->adapter_count; i++) {
        const struct pool_adapter *a = &p->adapters[i];
        if (a->state == POOL_ABSENT) {
            CHECK(a->image == NULL);
            CHECK(a->users == 0);
            continue;
        }
        loading += a->state == POOL_LOADING;
        resident += a->state == POOL_RESIDENT;
        const uint32_t *list = pool_residency_list(p, i);
        for (uint32_t j = 0; j < a->page_count; j++) {
            CHECK(list[j] < p->counts.pages);
            CHECK(!seen[list[j]]);
            CHECK(p->pages[list[j]].state == POOL_PAGE_ADAPTER);
            CHECK(p->pages[list[j]].refs == 1);
            seen[list[j]] = true;
        }
        pages += a->page_count;
    }
    CHECK(pages == p->counts.adapters);
    CHECK(loading == p->counts.adapters_loading);
    CHECK(resident == p->counts.adapters_resident);
    CHECK(loading + resident + p->adapter_free_count == p->adapter_count);
}
