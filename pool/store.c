#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "pool/arena.h"
#include "pool/pool.h"

enum {
    STORE_BUCKETS = 8192, /* of the hash table; about as many images as a large store has */
    STORE_LORA_ALIGN = 64,
};

/* An image with its place. Reserved: held once, in no table. Committed: in the hash table; without
 * holds also in the list of those that may be evicted. */
struct store_entry {
    struct pool_image image; /* first: callers hold a pointer to it */
    struct pool_store *store;
    struct arena_extent *extent;
    uint32_t holds;
    uint32_t label; /* of its figures */
    bool committed;
    struct store_entry *bucket_next;
    struct store_entry *older, *newer; /* neighbours in the list of unheld images */
};

struct pool_store {
    /* Guards all below, and every entry but the contents of an image. A leaf: no other lock is
     * taken under it, and nothing under it waits. */
    pthread_mutex_t mutex;
    struct metrics *metrics; /* constant; NULL = none */
    struct arena arena;
    struct store_entry *buckets[STORE_BUCKETS];
    struct store_entry *oldest, *newest; /* unheld images by the time of their last drop */
    uint64_t images, images_held, reserved, evictions;
    bool preparing;
};

_Static_assert(offsetof(struct store_entry, image) == 0, "entry_of() casts");

static void store_lock(struct pool_store *s) {
    CHECK(pthread_mutex_lock(&s->mutex) == 0);
}

static void store_unlock(struct pool_store *s) {
    CHECK(pthread_mutex_unlock(&s->mutex) == 0);
}

static struct store_entry *entry_of(const struct pool_store *s, struct pool_image *image) {
    struct store_entry *e = (struct store_entry *)(void *)image;
    CHECK(e->store == s);
    return e;
}

/* ---- the table and the list; the mutex is held ------------------------------------------------
 */

static struct store_entry **bucket_of(struct pool_store *s, const char *id, const char *revision) {
    uint64_t h = 0xcbf29ce484222325U; /* FNV-1a over both, with the NUL between */
    for (const char *c = id;; c++) {
        h = (h ^ (unsigned char)*c) * 0x100000001b3U;
        if (*c == '\0') {
            break;
        }
    }
    for (const char *c = revision; *c != '\0'; c++) {
        h = (h ^ (unsigned char)*c) * 0x100000001b3U;
    }
    return &s->buckets[(h ^ (h >> 32)) % STORE_BUCKETS];
}

static struct store_entry *entry_find(struct pool_store *s, const char *id, const char *revision) {
    struct store_entry *e = *bucket_of(s, id, revision);
    while (e != NULL &&
           (strcmp(e->image.id, id) != 0 || strcmp(e->image.revision, revision) != 0)) {
        e = e->bucket_next;
    }
    return e;
}

static void entry_count(const struct pool_store *s, const struct store_entry *e, int sign) {
    if (s->metrics != NULL) {
        metrics_shift_adapter(s->metrics, METRIC_ADAPTER_BYTES_STORED, e->label,
                              sign * (int64_t)e->image.bytes);
    }
}

static void unheld_add(struct pool_store *s, struct store_entry *e) {
    e->newer = NULL;
    e->older = s->newest;
    if (s->newest != NULL) {
        s->newest->newer = e;
    } else {
        s->oldest = e;
    }
    s->newest = e;
}

static void unheld_remove(struct pool_store *s, struct store_entry *e) {
    *(e->older != NULL ? &e->older->newer : &s->oldest) = e->newer;
    *(e->newer != NULL ? &e->newer->older : &s->newest) = e->older;
    e->older = e->newer = NULL;
}

static void entry_hold(struct pool_store *s, struct store_entry *e) {
    CHECK(e->committed);
    CHECK(e->holds < UINT32_MAX);
    if (e->holds == 0) {
        unheld_remove(s, e);
        e->extent->pinned = true;
        s->images_held += 1;
    }
    e->holds += 1;
}

static void entry_free(struct pool_store *s, struct store_entry *e) {
    e->extent->pinned = false;
    arena_give(&s->arena, e->extent);
    e->store = NULL; /* a late drop of it crashes rather than harms */
    free(e);
}

static void oldest_evict(struct pool_store *s) {
    struct store_entry *e = s->oldest;
    CHECK(e->holds == 0);
    unheld_remove(s, e);
    struct store_entry **link = bucket_of(s, e->image.id, e->image.revision);
    while (*link != e) {
        CHECK(*link != NULL);
        link = &(*link)->bucket_next;
    }
    *link = e->bucket_next;
    s->images -= 1;
    s->evictions += 1;
    entry_count(s, e, -1);
    entry_free(s, e);
}

/* Takes a chunk with room for `bytes`; false: the budget, or the system, has none. Gives the mutex
 * away while memory is mapped and pinned, so that the loop never waits for that; whoever comes
 * meanwhile finds the new chunk's size taken. */
static bool room_grow(struct pool_store *s, uint64_t bytes) {
    uint64_t size = arena_grow_begin(&s->arena, bytes);
    if (size == 0) {
        return false;
    }
    store_unlock(s);
    void *base = arena_map(&s->arena.pins, size);
    store_lock(s);
    return arena_grow_end(&s->arena, base, size);
}

/* Room for `bytes` without eviction. */
static struct arena_extent *room_find(struct pool_store *s, uint64_t bytes) {
    for (;;) {
        struct arena_extent *x = arena_take(&s->arena, bytes);
        if (x != NULL || !room_grow(s, bytes)) {
            return x;
        }
    }
}

/* Room for `bytes`, by eviction where that can help at all; NULL: what is held is in the way. */
static struct arena_extent *room_make(struct pool_store *s, uint64_t bytes) {
    struct arena_extent *x = room_find(s, bytes);
    if (x == NULL && arena_could_take(&s->arena, bytes)) {
        while (x == NULL && s->oldest != NULL) {
            oldest_evict(s);
            x = room_find(s, bytes);
        }
    }
    return x;
}

/* ---- the public functions ---------------------------------------------------------------------
 */

enum err pool_store_open(struct pool_store **out, const struct pool_store_options *options) {
    struct pool_store *s = calloc(1, sizeof *s);
    if (s == NULL) {
        return ERR_NO_MEMORY;
    }
    arena_init(&s->arena, options->bytes, options->chunk_bytes,
               &(struct arena_pins){.pin = options->pin, .unpin = options->unpin});
    CHECK(pthread_mutex_init(&s->mutex, NULL) == 0);
    s->metrics = options->metrics;
    *out = s;
    return ERR_OK;
}

void pool_store_close(struct pool_store *s) {
    if (s == NULL) {
        return;
    }
    CHECK(s->reserved == 0);
    for (uint32_t i = 0; i < STORE_BUCKETS; i++) {
        for (struct store_entry *e = s->buckets[i]; e != NULL;) {
            struct store_entry *next = e->bucket_next;
            entry_free(s, e);
            e = next;
        }
    }
    CHECK(s->arena.bytes_used == 0);
    arena_deinit(&s->arena);
    CHECK(pthread_mutex_destroy(&s->mutex) == 0);
    free(s);
}

/* Bytes of the elements, where the lora table begins behind them, and of both; false: more than 64
 * bits count. Shapes come from files, however well checked. */
static bool sizes_of(const struct pool_image *wanted, uint32_t elem_bytes, uint64_t *elements,
                     uint64_t *lora_begin, uint64_t *all) {
    uint64_t lora_bytes = (uint64_t)kern_lora_count(wanted->layers) * sizeof(struct kern_lora);
    if (__builtin_mul_overflow((uint64_t)wanted->layers * wanted->page_count, wanted->page_elems,
                               elements) ||
        __builtin_mul_overflow(*elements, elem_bytes, elements) ||
        __builtin_add_overflow(*elements, STORE_LORA_ALIGN - 1, lora_begin)) {
        return false;
    }
    *lora_begin -= *lora_begin % STORE_LORA_ALIGN;
    return !__builtin_add_overflow(*lora_begin, lora_bytes, all);
}

enum err pool_store_reserve(struct pool_store *s, const struct pool_image *wanted,
                            uint32_t elem_bytes, struct pool_image **image, struct err_text *why) {
    CHECK(memchr(wanted->id, '\0', sizeof wanted->id) != NULL);
    CHECK(memchr(wanted->revision, '\0', sizeof wanted->revision) != NULL);
    CHECK(wanted->layers >= 1);
    CHECK(wanted->page_count >= 1);
    CHECK(wanted->outer_pages <= wanted->page_count);
    CHECK(wanted->page_elems >= 1);
    CHECK(elem_bytes >= 1);
    uint64_t elements;
    uint64_t lora_begin;
    uint64_t all;
    if (!sizes_of(wanted, elem_bytes, &elements, &lora_begin, &all)) {
        return err_set(why, ERR_UNSUPPORTED_ADAPTER, "adapter %s has an absurd size", wanted->id);
    }
    if (all > s->arena.budget) { /* constant since open */
        return err_set(why, ERR_UNSUPPORTED_ADAPTER,
                       "adapter %s needs %llu bytes of host memory, store.bytes is %llu",
                       wanted->id, (unsigned long long)all, (unsigned long long)s->arena.budget);
    }
    struct store_entry *e = calloc(1, sizeof *e);
    if (e == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory to describe adapter %s", wanted->id);
    }
    store_lock(s);
    struct arena_extent *x = room_make(s, all);
    if (x != NULL) {
        x->pinned = true;
        s->reserved += 1;
    }
    store_unlock(s);
    if (x == NULL) {
        free(e);
        return err_set(why, ERR_NO_SPACE,
                       "the host store has no room for the %llu bytes of adapter %s: the rest is "
                       "in use",
                       (unsigned long long)all, wanted->id);
    }
    unsigned char *memory = arena_memory(x);
    e->image = *wanted;
    e->image.bytes = elements;
    e->image.elements = memory;
    e->image.lora = (struct kern_lora *)(void *)(memory + lora_begin);
    e->store = s;
    e->extent = x;
    e->holds = 1;
    e->label = s->metrics != NULL ? metrics_adapter(s->metrics, e->image.id) : 0;
    *image = &e->image;
    return ERR_OK;
}

void pool_store_prepare(struct pool_store *s, uint64_t bytes) {
    CHECK(bytes >= 1);
    store_lock(s);
    /* One at a time: several loaders end together, and one chunk serves them all. */
    if (!s->preparing && bytes <= s->arena.budget - s->arena.bytes_taken &&
        !arena_has(&s->arena, bytes)) {
        s->preparing = true;
        (void)room_grow(s, bytes); /* who needs the room will see */
        s->preparing = false;
    }
    store_unlock(s);
}

struct pool_image *pool_store_commit(struct pool_store *s, struct pool_image *image) {
    struct store_entry *e = entry_of(s, image);
    store_lock(s);
    CHECK(!e->committed);
    CHECK(s->reserved > 0);
    s->reserved -= 1;
    struct store_entry *kept = entry_find(s, image->id, image->revision);
    if (kept != NULL) { /* two loaders met: the first image is in use already */
        entry_hold(s, kept);
        entry_free(s, e);
    } else {
        struct store_entry **bucket = bucket_of(s, image->id, image->revision);
        e->bucket_next = *bucket;
        *bucket = e;
        e->committed = true; /* and keeps the hold of its maker */
        s->images += 1;
        s->images_held += 1;
        entry_count(s, e, 1);
        kept = e;
    }
    store_unlock(s);
    return &kept->image;
}

void pool_store_abort(struct pool_store *s, struct pool_image *image) {
    struct store_entry *e = entry_of(s, image);
    store_lock(s);
    CHECK(!e->committed);
    CHECK(s->reserved > 0);
    s->reserved -= 1;
    entry_free(s, e);
    store_unlock(s);
}

struct pool_image *pool_store_find(struct pool_store *s, const char *id, const char *revision) {
    store_lock(s);
    struct store_entry *e = entry_find(s, id, revision);
    if (e != NULL) {
        entry_hold(s, e);
    }
    store_unlock(s);
    return e == NULL ? NULL : &e->image;
}

void pool_store_drop(struct pool_store *s, struct pool_image *image) {
    struct store_entry *e = entry_of(s, image);
    store_lock(s);
    CHECK(e->committed);
    CHECK(e->holds > 0);
    e->holds -= 1;
    if (e->holds == 0) {
        e->extent->pinned = false;
        s->images_held -= 1;
        unheld_add(s, e);
    }
    store_unlock(s);
}

struct pool_store_counts pool_store_counts(struct pool_store *s) {
    store_lock(s);
    struct pool_store_counts c = {.bytes_budget = s->arena.budget,
                                  .bytes_taken = s->arena.bytes_taken,
                                  .bytes_used = s->arena.bytes_used,
                                  .images = s->images,
                                  .images_held = s->images_held,
                                  .evictions = s->evictions};
    store_unlock(s);
    return c;
}
