/* The host store: budget, holds, least recently used, revisions, fragmentation, threads. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "pool/pool.h"
#include "tests/unit/crash.h"
#include "tests/unit/seed.h"

enum { KIB4 = 4096 };

static struct pool_store *store_of(uint32_t granules, uint32_t chunk_granules) {
    struct pool_store *s = NULL;
    struct pool_store_options options = {.bytes = (uint64_t)granules * KIB4,
                                         .chunk_bytes = (uint64_t)chunk_granules * KIB4};
    assert_int_equal(pool_store_open(&s, &options), ERR_OK);
    return s;
}

/* An image that takes exactly `granules` × 4 KiB: its one layer's lora table lies in the last. */
static struct pool_image wanted_of(const char *id, const char *revision, uint32_t granules) {
    struct pool_image w = {.page_count = 1, .layers = 1};
    (void)snprintf(w.id, sizeof w.id, "%s", id);
    (void)snprintf(w.revision, sizeof w.revision, "%s", revision);
    w.page_elems = (uint64_t)granules * KIB4 - kern_lora_count(1) * sizeof(struct kern_lora);
    w.page_elems -= w.page_elems % 64;
    return w;
}

static enum err try_reserve(struct pool_store *s, const char *id, uint32_t granules,
                            struct pool_image **image) {
    struct pool_image w = wanted_of(id, "r1", granules);
    return pool_store_reserve(s, &w, 1, image, NULL);
}

/* Makes an image and keeps the hold. */
static struct pool_image *make(struct pool_store *s, const char *id, const char *revision,
                               uint32_t granules) {
    struct pool_image w = wanted_of(id, revision, granules);
    struct pool_image *image = NULL;
    assert_int_equal(pool_store_reserve(s, &w, 1, &image, NULL), ERR_OK);
    memset(image->elements, id[0], image->bytes);
    return pool_store_commit(s, image);
}

static bool there(struct pool_store *s, const char *id) {
    struct pool_image *image = pool_store_find(s, id, "r1");
    if (image != NULL) {
        assert_int_equal(((unsigned char *)image->elements)[image->bytes - 1], id[0]);
        pool_store_drop(s, image);
    }
    return image != NULL;
}

static void assert_used(struct pool_store *s, uint32_t used, uint32_t taken) {
    struct pool_store_counts c = pool_store_counts(s);
    assert_int_equal(c.bytes_used, (uint64_t)used * KIB4);
    assert_int_equal(c.bytes_taken, (uint64_t)taken * KIB4);
}

/* Room is taken ahead, a chunk at a time and within the budget, and only where there is none. */
static void test_prepare(void **state) {
    (void)state;
    struct pool_store *s = store_of(40, 16);
    pool_store_prepare(s, 1);
    assert_used(s, 0, 16);
    pool_store_prepare(s, (uint64_t)16 * KIB4);
    assert_used(s, 0, 16);
    struct pool_image *image = NULL;
    assert_int_equal(try_reserve(s, "a", 10, &image), ERR_OK);
    pool_store_prepare(s, (uint64_t)6 * KIB4);
    assert_used(s, 10, 16);
    pool_store_prepare(s, (uint64_t)7 * KIB4);
    assert_used(s, 10, 32);
    pool_store_prepare(s, (uint64_t)17 * KIB4); /* the budget leaves eight more */
    assert_used(s, 10, 32);
    pool_store_abort(s, image);
    pool_store_close(s);
}

static void test_reserve_and_find(void **state) {
    (void)state;
    struct pool_store *s = store_of(64, 16);
    assert_used(s, 0, 0);
    struct pool_image wanted = {.id = "a",
                                .revision = "r1",
                                .rank_max = 8,
                                .page_count = 3,
                                .layers = 2,
                                .page_elems = 500};
    struct pool_image *image = NULL;
    assert_int_equal(pool_store_reserve(s, &wanted, 4, &image, NULL), ERR_OK);
    assert_int_equal(image->bytes, 3 * 2 * 500 * 4);
    assert_int_equal((uintptr_t)image->elements % KIB4, 0);
    assert_int_equal((uintptr_t)image->lora % 64, 0);
    assert_true((char *)image->lora >= (char *)image->elements + image->bytes);
    assert_int_equal(image->rank_max, 8);
    assert_null(pool_store_find(s, "a", "r1")); /* not before it is committed */
    pool_store_abort(s, image);
    assert_used(s, 0, 16);
    assert_int_equal(pool_store_reserve(s, &wanted, 4, &image, NULL), ERR_OK);
    memset(image->revision, 0, sizeof image->revision);
    memcpy(image->revision, "r1", 2); /* it counts at the commit */
    assert_ptr_equal(pool_store_commit(s, image), image);
    assert_ptr_equal(pool_store_find(s, "a", "r1"), image);
    assert_null(pool_store_find(s, "a", "r2"));
    assert_null(pool_store_find(s, "b", "r1"));
    assert_int_equal(pool_store_counts(s).images, 1);
    assert_int_equal(pool_store_counts(s).images_held, 1);
    pool_store_drop(s, image);
    assert_int_equal(pool_store_counts(s).images_held, 1);
    pool_store_drop(s, image);
    assert_int_equal(pool_store_counts(s).images_held, 0);
    pool_store_close(s);
    pool_store_close(NULL);
}

static void test_too_large_is_refused_by_name(void **state) {
    (void)state;
    struct pool_store *s = store_of(8, 4);
    struct pool_image *image = NULL;
    struct err_text why = {0};
    struct pool_image w = wanted_of("huge-one", "r1", 9);
    assert_int_equal(pool_store_reserve(s, &w, 1, &image, &why), ERR_UNSUPPORTED_ADAPTER);
    assert_non_null(strstr(why.message, "huge-one"));
    assert_non_null(strstr(why.message, "32768"));
    w.page_elems = 1ULL << 62;
    w.page_count = 1 << 20;
    assert_int_equal(pool_store_reserve(s, &w, 4, &image, &why), ERR_UNSUPPORTED_ADAPTER);
    w.page_elems = UINT64_MAX - 70; /* wraps with the table only */
    w.page_count = 1;
    assert_int_equal(pool_store_reserve(s, &w, 1, &image, &why), ERR_UNSUPPORTED_ADAPTER);
    assert_null(image);
    image = make(s, "whole", "r1", 8); /* the whole budget is not too large */
    assert_used(s, 8, 8);
    pool_store_drop(s, image);
    pool_store_close(s);
}

static void test_least_recently_used_goes_first(void **state) {
    (void)state;
    struct pool_store *s = store_of(8, 8);
    struct pool_image *a = make(s, "a", "r1", 2);
    struct pool_image *b = make(s, "b", "r1", 2);
    struct pool_image *c = make(s, "c", "r1", 2);
    struct pool_image *d = make(s, "d", "r1", 2);
    pool_store_drop(s, b);
    pool_store_drop(s, a);
    pool_store_drop(s, d);
    pool_store_drop(s, c);
    assert_true(there(s, "b")); /* b is the most recent now: a, d, c, b */
    struct pool_image *e = make(s, "e", "r1", 2);
    assert_false(there(s, "a"));
    struct pool_image *f = make(s, "f", "r1", 2);
    assert_false(there(s, "d"));
    assert_int_equal(pool_store_counts(s).evictions, 2);
    assert_int_equal(pool_store_counts(s).images, 4);
    struct pool_image *c2 = pool_store_find(s, "c", "r1"); /* held: not the next to go */
    struct pool_image *g = make(s, "g", "r1", 2);
    assert_false(there(s, "b"));
    struct pool_image *h = NULL;
    assert_int_equal(try_reserve(s, "h", 1, &h), ERR_NO_SPACE);
    pool_store_drop(s, c2);
    assert_int_equal(try_reserve(s, "h", 3, &h), ERR_NO_SPACE);
    assert_true(there(s, "c")); /* evicting it would not have made room for 3 */
    assert_int_equal(try_reserve(s, "h", 1, &h), ERR_OK);
    pool_store_abort(s, h);
    pool_store_drop(s, e);
    pool_store_drop(s, f);
    pool_store_drop(s, g);
    pool_store_close(s);
}

static void test_two_revisions(void **state) {
    (void)state;
    struct pool_store *s = store_of(4, 4);
    struct pool_image *old = make(s, "a", "r1", 2);
    struct pool_image *new = make(s, "a", "r2", 2);
    assert_ptr_not_equal(old, new);
    assert_ptr_equal(pool_store_find(s, "a", "r1"), old);
    assert_ptr_equal(pool_store_find(s, "a", "r2"), new);
    assert_int_equal(pool_store_counts(s).images, 2);
    pool_store_drop(s, old);
    pool_store_drop(s, old);
    pool_store_drop(s, make(s, "b", "r1", 2)); /* the old revision makes room */
    assert_null(pool_store_find(s, "a", "r1"));
    pool_store_drop(s, new);
    pool_store_drop(s, new);
    pool_store_close(s);
}

/* Two loaders made the same image: the first stays where it is. */
static void test_commit_of_a_twin(void **state) {
    (void)state;
    struct pool_store *s = store_of(8, 8);
    struct pool_image *first = NULL;
    struct pool_image *second = NULL;
    struct pool_image *third = NULL;
    assert_int_equal(try_reserve(s, "a", 2, &first), ERR_OK);
    assert_int_equal(try_reserve(s, "a", 2, &second), ERR_OK);
    assert_int_equal(try_reserve(s, "a", 2, &third), ERR_OK);
    assert_ptr_equal(pool_store_commit(s, first), first);
    assert_ptr_equal(pool_store_commit(s, second), first);
    assert_used(s, 4, 8);
    pool_store_drop(s, first);
    pool_store_drop(s, first);
    assert_int_equal(pool_store_counts(s).images_held, 0);
    assert_ptr_equal(pool_store_commit(s, third), first); /* out of the list of unheld ones */
    assert_int_equal(pool_store_counts(s).images, 1);
    assert_int_equal(pool_store_counts(s).images_held, 1);
    struct pool_image *rest = NULL;
    assert_int_equal(try_reserve(s, "b", 8, &rest), ERR_NO_SPACE);
    pool_store_drop(s, first);
    assert_int_equal(try_reserve(s, "b", 8, &rest), ERR_OK);
    pool_store_abort(s, rest);
    pool_store_close(s);
}

static void test_holes_are_joined(void **state) {
    (void)state;
    struct pool_store *s = store_of(8, 8);
    struct pool_image *i[8];
    struct pool_image *x = NULL;
    for (uint32_t n = 0; n < 8; n++) {
        char id[2] = {(char)('a' + n), '\0'};
        assert_int_equal(try_reserve(s, id, 1, &i[n]), ERR_OK);
    }
    pool_store_abort(s, i[1]);
    pool_store_abort(s, i[3]);
    assert_int_equal(try_reserve(s, "x", 2, &x), ERR_NO_SPACE); /* two holes of one */
    pool_store_abort(s, i[2]);                                  /* joins both */
    assert_int_equal(try_reserve(s, "x", 3, &x), ERR_OK);
    assert_ptr_equal(x->elements, (char *)i[0]->elements + KIB4);
    pool_store_abort(s, x);
    pool_store_abort(s, i[0]); /* at the front */
    pool_store_abort(s, i[7]); /* at the end */
    pool_store_abort(s, i[6]);
    assert_int_equal(try_reserve(s, "x", 4, &x), ERR_OK);
    pool_store_abort(s, x);
    assert_int_equal(try_reserve(s, "x", 5, &x), ERR_NO_SPACE);
    pool_store_abort(s, i[4]);
    pool_store_abort(s, i[5]);
    assert_int_equal(try_reserve(s, "x", 8, &x), ERR_OK);
    pool_store_abort(s, x);
    pool_store_close(s);
}

/* Held images in the way: eviction goes on past those that free no fitting hole, never in vain. */
static void test_fragmentation_by_holds(void **state) {
    (void)state;
    struct pool_store *s = store_of(8, 8);
    struct pool_image *i[8];
    for (uint32_t n = 0; n < 8; n++) {
        char id[2] = {(char)('a' + n), '\0'};
        i[n] = make(s, id, "r1", 1);
    }
    pool_store_drop(s, i[0]); /* a, c, d, e, g may go; b, f, h are held */
    pool_store_drop(s, i[2]);
    pool_store_drop(s, i[6]);
    pool_store_drop(s, i[4]);
    pool_store_drop(s, i[3]);
    struct pool_image *x = NULL;
    assert_int_equal(try_reserve(s, "x", 4, &x), ERR_NO_SPACE);
    assert_int_equal(pool_store_counts(s).evictions, 0);
    assert_ptr_equal(pool_store_find(s, "d", "r1"), i[3]); /* held once more: in the way */
    assert_int_equal(try_reserve(s, "x", 3, &x), ERR_NO_SPACE);
    assert_int_equal(pool_store_counts(s).evictions, 0);
    pool_store_drop(s, i[3]);
    assert_int_equal(try_reserve(s, "x", 3, &x), ERR_OK);
    assert_int_equal(pool_store_counts(s).evictions, 5);
    pool_store_abort(s, x);
    pool_store_drop(s, i[1]);
    pool_store_drop(s, i[5]);
    pool_store_drop(s, i[7]);
    pool_store_close(s);
}

static void test_chunks_grow_and_give_way(void **state) {
    (void)state;
    struct pool_store *s = store_of(10, 4);
    struct pool_image *a = make(s, "a", "r1", 3);
    assert_used(s, 3, 4);
    struct pool_image *b = make(s, "b", "r1", 3);
    assert_used(s, 6, 8);
    struct pool_image *c = make(s, "c", "r1", 2); /* the last chunk is what the budget leaves */
    assert_used(s, 8, 10);
    struct pool_image *x = NULL;
    pool_store_drop(s, a);
    /* 6 needs a chunk of its own: the chunks of a and, once it is let go, of c must go. */
    assert_int_equal(try_reserve(s, "x", 6, &x), ERR_NO_SPACE);
    assert_true(there(s, "a"));
    pool_store_drop(s, c);
    assert_int_equal(try_reserve(s, "x", 6, &x), ERR_OK);
    assert_used(s, 9, 10);
    assert_true(there(s, "b"));
    pool_store_abort(s, x);
    pool_store_drop(s, b);
    assert_int_equal(try_reserve(s, "x", 10, &x), ERR_OK); /* all chunks for one image */
    assert_used(s, 10, 10);
    pool_store_abort(s, x);
    pool_store_close(s);
}

struct misuse {
    struct pool_store *s, *other;
    struct pool_image *image;
};

static void drop_it(void *context) {
    struct misuse *m = context;
    pool_store_drop(m->s, m->image);
}

static void drop_elsewhere(void *context) {
    struct misuse *m = context;
    pool_store_drop(m->other, m->image);
}

static void commit_it(void *context) {
    struct misuse *m = context;
    (void)pool_store_commit(m->s, m->image);
}

static void abort_it(void *context) {
    struct misuse *m = context;
    pool_store_abort(m->s, m->image);
}

static void close_it(void *context) {
    struct misuse *m = context;
    pool_store_close(m->s);
}

static void test_misuse_crashes(void **state) {
    (void)state;
    struct misuse m = {.s = store_of(8, 8), .other = store_of(8, 8)};
    assert_int_equal(try_reserve(m.s, "a", 1, &m.image), ERR_OK);
    assert_true(crashes(drop_it, &m));  /* not committed */
    assert_true(crashes(close_it, &m)); /* a loader is still at it */
    assert_false(crashes(abort_it, &m));
    m.image = pool_store_commit(m.s, m.image);
    assert_true(crashes(commit_it, &m)); /* twice */
    assert_true(crashes(abort_it, &m));  /* too late */
    assert_true(crashes(drop_elsewhere, &m));
    pool_store_drop(m.s, m.image);
    assert_true(crashes(drop_it, &m)); /* twice */
    pool_store_close(m.s);
    pool_store_close(m.other);
}

/* ---- a random run beside a model, and threads -------------------------------------------------
 */

enum { RUN_IDS = 40, RUN_OPERATIONS = 60000, RUN_HOLDS = 24, RUN_GRANULES = 96 };

struct held {
    struct pool_image *image;
    uint32_t number;
};

static uint32_t granules_of(uint32_t number) {
    return 1 + number * 7 % 23;
}

static void id_of(uint32_t number, char id[8]) {
    (void)snprintf(id, 8, "i%u", number);
}

/* Finds or makes the image; NULL: no space. Content tells images apart: one written over by
 * another is noticed at each look. */
static struct pool_image *run_take(struct pool_store *s, uint32_t number, uint64_t *made) {
    char id[8];
    id_of(number, id);
    struct pool_image *image = pool_store_find(s, id, "r1");
    if (image == NULL) {
        if (try_reserve(s, id, granules_of(number), &image) != ERR_OK) {
            return NULL;
        }
        memset(image->elements, (int)number + 1, image->bytes);
        image->lora[0].rank = number;
        image = pool_store_commit(s, image);
        *made += 1;
    }
    return image;
}

/* Not an assert of cmocka, which threads may not use. */
static bool image_sound(const struct pool_image *image, uint32_t number) {
    const unsigned char *e = image->elements;
    char id[8];
    id_of(number, id);
    return strcmp(image->id, id) == 0 && e[0] == number + 1 && e[image->bytes / 2] == number + 1 &&
           e[image->bytes - 1] == number + 1 && image->lora[0].rank == number;
}

/* Returns how many looks found something wrong. */
static uint64_t run(struct pool_store *s, uint64_t seed, uint32_t operations, uint32_t holds,
                    uint64_t *full) {
    struct held held[RUN_HOLDS] = {{NULL, 0}};
    uint64_t wrong = 0;
    uint64_t made = 0;
    for (uint32_t i = 0; i < operations; i++) {
        struct held *h = &held[seed_below(&seed, holds)];
        if (h->image != NULL) {
            wrong += !image_sound(h->image, h->number);
            pool_store_drop(s, h->image);
            h->image = NULL;
            continue;
        }
        h->number = seed_below(&seed, RUN_IDS);
        h->image = run_take(s, h->number, &made);
        *full += h->image == NULL;
        struct pool_store_counts c = pool_store_counts(s);
        wrong += c.bytes_taken > c.bytes_budget || c.bytes_used > c.bytes_taken ||
                 c.images_held > c.images;
    }
    for (uint32_t i = 0; i < holds; i++) {
        if (held[i].image != NULL) {
            wrong += !image_sound(held[i].image, held[i].number);
            pool_store_drop(s, held[i].image);
        }
    }
    return wrong;
}

static void test_random_run(void **state) {
    (void)state;
    uint64_t seed = seed_take(11);
    print_message("seed %llu\n", (unsigned long long)seed);
    struct pool_store *s = store_of(RUN_GRANULES, 24);
    uint64_t full = 0;
    assert_int_equal(run(s, seed, RUN_OPERATIONS, RUN_HOLDS, &full), 0);
    struct pool_store_counts c = pool_store_counts(s);
    assert_true(full > 100);
    assert_true(c.evictions > 1000);
    assert_int_equal(c.images_held, 0);
    struct pool_image *all = NULL; /* nothing was lost: the whole budget can be one image */
    assert_int_equal(try_reserve(s, "all", RUN_GRANULES, &all), ERR_OK);
    pool_store_abort(s, all);
    assert_used(s, 0, RUN_GRANULES);
    pool_store_close(s);
}

enum { THREADS = 4, THREAD_OPERATIONS = 6000, THREAD_HOLDS = 6 };

struct thread {
    pthread_t id;
    struct pool_store *s;
    uint64_t seed, wrong, full;
};

static void *thread_main(void *context) {
    struct thread *t = context;
    t->wrong = run(t->s, t->seed, THREAD_OPERATIONS, THREAD_HOLDS, &t->full);
    return NULL;
}

static void test_threads(void **state) {
    (void)state;
    uint64_t seed = seed_take(12);
    print_message("seed %llu\n", (unsigned long long)seed);
    struct pool_store *s = store_of(RUN_GRANULES, 32);
    struct thread threads[THREADS] = {{0}};
    for (uint32_t i = 0; i < THREADS; i++) {
        threads[i].s = s;
        threads[i].seed = seed + i;
        assert_int_equal(pthread_create(&threads[i].id, NULL, thread_main, &threads[i]), 0);
    }
    for (uint32_t i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(threads[i].id, NULL), 0);
        assert_int_equal(threads[i].wrong, 0);
    }
    assert_int_equal(pool_store_counts(s).images_held, 0);
    pool_store_close(s);
}

/* Chunks are pinned when they are mapped, and unpinned before they go. */
static uint64_t pinned_bytes, pin_calls;
static enum err pin_result;

static enum err pin(void *base, uint64_t bytes) {
    assert_true((uintptr_t)base % KIB4 == 0 && bytes % KIB4 == 0);
    pin_calls++;
    pinned_bytes += pin_result == ERR_OK ? bytes : 0;
    return pin_result;
}

static void unpin(void *base, uint64_t bytes) {
    assert_non_null(base);
    pinned_bytes -= bytes;
}

static void test_pins(void **state) {
    (void)state;
    struct pool_store *s = NULL;
    struct pool_store_options options = {.bytes = UINT64_C(64) * KIB4,
                                         .chunk_bytes = UINT64_C(16) * KIB4,
                                         .pin = pin,
                                         .unpin = unpin};
    struct pool_image wanted = {.id = "a", .layers = 1, .page_count = 1, .page_elems = KIB4};
    struct pool_image *image = NULL;
    struct err_text why = {0};
    assert_int_equal(pool_store_open(&s, &options), ERR_OK);
    pin_result = ERR_NO_SPACE;
    assert_int_equal(pool_store_reserve(s, &wanted, 1, &image, &why), ERR_NO_SPACE);
    assert_int_equal(pool_store_counts(s).bytes_taken, 0);
    pin_result = ERR_OK;
    assert_int_equal(pool_store_reserve(s, &wanted, 1, &image, &why), ERR_OK);
    assert_int_equal(pinned_bytes, 16 * KIB4);
    assert_int_equal(pool_store_counts(s).bytes_taken, pinned_bytes);
    assert_int_equal(pin_calls, 2);
    pool_store_abort(s, image);
    pool_store_close(s);
    assert_int_equal(pinned_bytes, 0);
}

/* The bytes that a metric shows as stored under an adapter's label. */
static uint64_t shown(struct metrics *m, const char *id) {
    char wanted[128];
    char *text = NULL;
    size_t bytes = 0;
    (void)snprintf(wanted, sizeof wanted, "\nlorry_adapter_bytes_stored{adapter=\"%s\"} ", id);
    assert_int_equal(metrics_render(m, &text, &bytes), ERR_OK);
    const char *line = strstr(text, wanted);
    assert_non_null(line);
    uint64_t value = strtoull(line + strlen(wanted), NULL, 10);
    free(text);
    return value;
}

static void test_bytes_are_shown_by_adapter(void **state) {
    (void)state;
    struct metrics *m = NULL;
    struct pool_store *s = NULL;
    assert_int_equal(metrics_open(&m, 2), ERR_OK);
    struct pool_store_options options = {
        .bytes = UINT64_C(16) * KIB4, .chunk_bytes = UINT64_C(16) * KIB4, .metrics = m};
    assert_int_equal(pool_store_open(&s, &options), ERR_OK);
    struct pool_image *a1 = make(s, "a", "r1", 4);
    struct pool_image *a2 = make(s, "a", "r2", 4);
    struct pool_image *twin = make(s, "a", "r2", 4); /* is dropped for the one that is there */
    struct pool_image *b = NULL;
    assert_int_equal(try_reserve(s, "b", 8, &b), ERR_OK);
    assert_true(shown(m, "a") == a1->bytes + a2->bytes);
    assert_true(shown(m, "b") == 0); /* not yet there */
    pool_store_abort(s, b);
    assert_true(shown(m, "b") == 0);
    pool_store_drop(s, a2);
    pool_store_drop(s, twin);
    pool_store_drop(s, a1);
    b = make(s, "b", "r1", 12); /* a2 goes */
    assert_true(shown(m, "a") == a1->bytes);
    assert_true(shown(m, "b") == b->bytes);
    struct pool_image *c = make(s, "c", "r1", 4); /* a1 goes; there are but two labels */
    assert_true(shown(m, "a") == 0);
    assert_true(shown(m, "other") == c->bytes);
    pool_store_close(s);
    metrics_close(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prepare),
        cmocka_unit_test(test_reserve_and_find),
        cmocka_unit_test(test_too_large_is_refused_by_name),
        cmocka_unit_test(test_least_recently_used_goes_first),
        cmocka_unit_test(test_two_revisions),
        cmocka_unit_test(test_commit_of_a_twin),
        cmocka_unit_test(test_holes_are_joined),
        cmocka_unit_test(test_fragmentation_by_holds),
        cmocka_unit_test(test_chunks_grow_and_give_way),
        cmocka_unit_test(test_misuse_crashes),
        cmocka_unit_test(test_random_run),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_pins),
        cmocka_unit_test(test_bytes_are_shown_by_adapter),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
