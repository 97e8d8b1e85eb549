/* Residency over a device that records copies and ends them when told; then a random run of KV and
 * adapters in the same pages. */
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

enum { FAKE_PAGES = 256, FAKE_LAYERS = 2, FAKE_PAGE_ELEMS = 64 };

/* A pool's planes, and copies that are done when `done` says so. */
struct kern_device {
    uint8_t planes[FAKE_LAYERS][FAKE_PAGES][FAKE_PAGE_ELEMS];
    uint64_t events, done;
    enum err refuse;
};

static enum err fake_load(struct kern_device *d, const void *image, const uint32_t *pages,
                          uint32_t page_count, uint64_t *event) {
    if (d->refuse != ERR_OK) {
        return d->refuse;
    }
    const uint8_t *from = image;
    for (uint32_t l = 0; l < FAKE_LAYERS; l++) {
        for (uint32_t i = 0; i < page_count; i++) {
            memcpy(d->planes[l][pages[i]], from + ((size_t)l * page_count + i) * FAKE_PAGE_ELEMS,
                   FAKE_PAGE_ELEMS);
        }
    }
    *event = ++d->events;
    return ERR_OK;
}

static bool fake_event_done(struct kern_device *d, uint64_t event) {
    return event <= d->done;
}

static const struct kern_ops fake_ops = {
    .name = "fake", .load = fake_load, .event_done = fake_event_done};

struct fixture {
    struct kern_device device;
    struct pool *pool;
    struct pool_store *store;
};

static struct fixture *fixture_open(uint32_t pages, uint32_t adapters, bool device) {
    struct fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    struct pool_options options = {.page_count = pages, .adapters = adapters, .adapter_pages = 16};
    if (device) {
        options.ops = &fake_ops;
        options.device = &f->device;
    }
    assert_int_equal(pool_open(&f->pool, &options), ERR_OK);
    struct pool_store_options store = {.bytes = 1 << 20, .chunk_bytes = 1 << 18};
    assert_int_equal(pool_store_open(&f->store, &store), ERR_OK);
    return f;
}

static void fixture_close(struct fixture *f) {
    pool_check(f->pool);
    pool_close(f->pool);
    pool_store_close(f->store);
    free(f);
}

static uint8_t fill_of(uint32_t number, uint32_t layer, uint32_t index) {
    return (uint8_t)(1 + number * 37 + layer * 101 + index * 7);
}

/* Adapter `number`, made and held. */
static struct pool_image *image_of(struct fixture *f, uint32_t number, uint32_t page_count) {
    struct pool_image wanted = {.revision = "r",
                                .page_count = page_count,
                                .layers = FAKE_LAYERS,
                                .page_elems = FAKE_PAGE_ELEMS};
    (void)snprintf(wanted.id, sizeof wanted.id, "adapter-%u", number);
    struct pool_image *image = pool_store_find(f->store, wanted.id, "r");
    if (image != NULL) {
        return image;
    }
    assert_int_equal(pool_store_reserve(f->store, &wanted, 1, &image, NULL), ERR_OK);
    uint8_t *elements = image->elements;
    for (uint32_t l = 0; l < FAKE_LAYERS; l++) {
        for (uint32_t i = 0; i < page_count; i++) {
            memset(elements + ((size_t)l * page_count + i) * FAKE_PAGE_ELEMS, fill_of(number, l, i),
                   FAKE_PAGE_ELEMS);
        }
    }
    memset(image->lora, 0, kern_lora_count(FAKE_LAYERS) * sizeof *image->lora);
    image->lora[KERN_MODULES].rank = number; /* of layer 1 */
    return pool_store_commit(f->store, image);
}

static void test_load_copies_and_waits(void **state) {
    (void)state;
    struct fixture *f = fixture_open(FAKE_PAGES, 4, true);
    uint32_t kv[3];
    assert_int_equal(pool_reserve(f->pool, 3, kv), ERR_OK);
    pool_release(f->pool, &kv[1], 1, 0); /* scattered */
    struct pool_image *image = image_of(f, 5, 4);
    uint32_t adapter = 99;
    assert_int_equal(pool_adapter_poll(f->pool, 0), POOL_ABSENT);
    assert_int_equal(pool_adapter_load(f->pool, f->store, image, &adapter), ERR_OK);
    assert_true(adapter < 4);
    assert_int_equal(pool_adapter_poll(f->pool, adapter), POOL_LOADING);
    struct pool_counts c = pool_counts(f->pool);
    assert_int_equal(c.adapters, 4);
    assert_int_equal(c.kv, 2);
    assert_int_equal(c.free, FAKE_PAGES - 6);
    assert_int_equal(c.adapters_loading, 1);
    assert_int_equal(c.adapters_resident, 0);
    assert_int_equal(c.loads, 1);
    pool_check(f->pool);
    f->device.done = 1;
    assert_int_equal(pool_adapter_poll(f->pool, adapter), POOL_RESIDENT);
    assert_int_equal(pool_adapter_poll(f->pool, adapter), POOL_RESIDENT);
    c = pool_counts(f->pool);
    assert_int_equal(c.adapters_loading, 0);
    assert_int_equal(c.adapters_resident, 1);

    struct kern_adapter_set set = pool_adapter_set(f->pool, adapter);
    assert_int_equal(set.adapter, adapter);
    assert_int_equal(set.page_count, 4);
    assert_int_equal(set.lora[KERN_MODULES].rank, 5);
    assert_ptr_equal(pool_adapter_image(f->pool, adapter), image);
    for (uint32_t l = 0; l < FAKE_LAYERS; l++) {
        for (uint32_t i = 0; i < 4; i++) {
            assert_int_not_equal(set.pages[i], kv[0]);
            assert_int_not_equal(set.pages[i], kv[2]);
            assert_int_equal(f->device.planes[l][set.pages[i]][FAKE_PAGE_ELEMS - 1],
                             fill_of(5, l, i));
        }
    }
    fixture_close(f);
}

static void test_evict_gives_back(void **state) {
    (void)state;
    struct fixture *f = fixture_open(16, 2, true);
    uint32_t adapter;
    assert_int_equal(pool_adapter_load(f->pool, f->store, image_of(f, 1, 6), &adapter), ERR_OK);
    f->device.done = 1;
    assert_int_equal(pool_adapter_poll(f->pool, adapter), POOL_RESIDENT);
    assert_int_equal(pool_store_counts(f->store).images_held, 1);
    pool_adapter_use(f->pool, adapter);
    pool_adapter_use(f->pool, adapter);
    assert_int_equal(pool_adapter_users(f->pool, adapter), 2);
    pool_adapter_unuse(f->pool, adapter);
    pool_adapter_unuse(f->pool, adapter);
    pool_adapter_evict(f->pool, f->store, adapter, 3);
    assert_int_equal(pool_adapter_poll(f->pool, adapter), POOL_ABSENT);
    assert_int_equal(pool_store_counts(f->store).images_held, 0);
    assert_int_equal(pool_store_counts(f->store).images, 1); /* kept until the room is needed */
    struct pool_counts c = pool_counts(f->pool);
    assert_int_equal(c.pending, 6);
    assert_int_equal(c.free, 10);
    assert_int_equal(c.adapters, 0);
    assert_int_equal(c.adapters_resident, 0);
    assert_int_equal(c.evictions, 1);
    pool_check(f->pool);
    pool_steps_ended(f->pool, 3);
    assert_int_equal(pool_counts(f->pool).free, 16);
    fixture_close(f);
}

/* A refused load changes nothing: not the counts, not the hold. */
static void refused(struct fixture *f, struct pool_image *image, enum err expected) {
    struct pool_counts before = pool_counts(f->pool);
    uint32_t adapter = 77;
    assert_int_equal(pool_adapter_load(f->pool, f->store, image, &adapter), expected);
    assert_int_equal(adapter, 77);
    struct pool_counts after = pool_counts(f->pool);
    assert_memory_equal(&before, &after, sizeof before);
    pool_check(f->pool);
    uint64_t held = pool_store_counts(f->store).images_held;
    pool_store_drop(f->store, image);
    assert_int_equal(pool_store_counts(f->store).images_held, held - 1);
}

static void test_refusals(void **state) {
    (void)state;
    struct fixture *f = fixture_open(10, 2, true);
    uint32_t a;
    uint32_t b;
    uint32_t kv[4];
    f->device.refuse = ERR_DEVICE;
    refused(f, image_of(f, 1, 2), ERR_DEVICE);
    f->device.refuse = ERR_OK;
    assert_int_equal(pool_reserve(f->pool, 4, kv), ERR_OK);
    refused(f, image_of(f, 2, 7), ERR_NO_SPACE); /* pages */
    assert_int_equal(pool_adapter_load(f->pool, f->store, image_of(f, 3, 1), &a), ERR_OK);
    assert_int_equal(pool_adapter_load(f->pool, f->store, image_of(f, 4, 1), &b), ERR_OK);
    assert_int_not_equal(a, b);
    refused(f, image_of(f, 5, 1), ERR_NO_SPACE); /* the table */
    f->device.done = f->device.events;
    assert_int_equal(pool_adapter_poll(f->pool, a), POOL_RESIDENT);
    assert_int_equal(pool_adapter_poll(f->pool, b), POOL_RESIDENT);
    pool_adapter_evict(f->pool, f->store, a, 0);
    uint32_t c;
    assert_int_equal(pool_adapter_load(f->pool, f->store, image_of(f, 5, 1), &c), ERR_OK);
    assert_int_equal(c, a);
    assert_int_equal(pool_adapter_poll(f->pool, c), POOL_LOADING); /* not the old copy's end */
    fixture_close(f);
}

struct misuse {
    struct fixture *f;
    uint32_t adapter;
    struct pool_image *image;
};

static void evict_it(void *context) {
    struct misuse *m = context;
    pool_adapter_evict(m->f->pool, m->f->store, m->adapter, 0);
}

static void unuse_it(void *context) {
    struct misuse *m = context;
    pool_adapter_unuse(m->f->pool, m->adapter);
}

static void use_it(void *context) {
    struct misuse *m = context;
    pool_adapter_use(m->f->pool, m->adapter);
}

static void release_its_page(void *context) {
    struct misuse *m = context;
    pool_release(m->f->pool, pool_adapter_set(m->f->pool, m->adapter).pages, 1, 0);
}

static void load_it(void *context) {
    struct misuse *m = context;
    uint32_t adapter;
    (void)!pool_adapter_load(m->f->pool, m->f->store, m->image, &adapter);
}

static void test_misuse_crashes(void **state) {
    (void)state;
    struct fixture *f = fixture_open(64, 2, true);
    struct misuse m = {.f = f};
    assert_true(crashes(use_it, &m)); /* absent */
    assert_int_equal(pool_adapter_load(f->pool, f->store, image_of(f, 1, 2), &m.adapter), ERR_OK);
    assert_true(crashes(evict_it, &m)); /* loading */
    assert_true(crashes(unuse_it, &m)); /* without users */
    assert_false(crashes(use_it, &m));
    f->device.done = 1;
    assert_int_equal(pool_adapter_poll(f->pool, m.adapter), POOL_RESIDENT);
    assert_true(crashes(release_its_page, &m));
    pool_adapter_use(f->pool, m.adapter);
    assert_true(crashes(evict_it, &m)); /* in use */
    pool_adapter_unuse(f->pool, m.adapter);
    pool_adapter_evict(f->pool, f->store, m.adapter, 0);
    assert_true(crashes(evict_it, &m)); /* twice */
    m.adapter = 2;
    assert_true(crashes(use_it, &m)); /* not in the table */
    m.image = image_of(f, 2, 17);
    assert_true(crashes(load_it, &m)); /* more than adapter_pages */
    pool_store_drop(f->store, m.image);
    fixture_close(f);
}

enum { RUN_OPERATIONS = 100000, RUN_ADAPTERS = 8, RUN_IMAGES = 24, RUN_PAGES = 96, RUN_ROWS = 12 };

struct run {
    struct fixture *f;
    uint64_t seed, step;
    struct { /* by index of the table; number < 0: none */
        int number;
        uint32_t users;
    } adapters[RUN_ADAPTERS];
    struct {
        uint32_t count, pages[8];
    } rows[RUN_ROWS];
    uint64_t loads, full;
};

static void run_adapter(struct run *r, uint32_t index) {
    struct fixture *f = r->f;
    enum pool_state is = pool_adapter_poll(f->pool, index);
    if (r->adapters[index].number < 0) {
        assert_int_equal(is, POOL_ABSENT);
        return;
    }
    uint32_t number = (uint32_t)r->adapters[index].number;
    assert_int_not_equal(is, POOL_ABSENT);
    struct kern_adapter_set set = pool_adapter_set(f->pool, index);
    for (uint32_t i = 0; i < set.page_count; i++) { /* nobody else wrote to its pages */
        assert_int_equal(f->device.planes[1][set.pages[i]][3], fill_of(number, 1, i));
    }
    assert_int_equal(pool_adapter_users(f->pool, index), r->adapters[index].users);
    if (seed_below(&r->seed, 3) == 0) {
        pool_adapter_use(f->pool, index);
        r->adapters[index].users++;
    } else if (r->adapters[index].users > 0) {
        pool_adapter_unuse(f->pool, index);
        r->adapters[index].users--;
    }
    if (r->adapters[index].users == 0 && is == POOL_RESIDENT && seed_below(&r->seed, 2) == 0) {
        pool_adapter_evict(f->pool, f->store, index, r->step);
        r->adapters[index].number = -1;
    }
}

static void run_load(struct run *r) {
    struct fixture *f = r->f;
    uint32_t number = seed_below(&r->seed, RUN_IMAGES);
    struct pool_image *image = image_of(f, number, 1 + number % 16);
    struct pool_counts c = pool_counts(f->pool);
    bool fits = c.free >= image->page_count && c.adapters_loading + c.adapters_resident < 8;
    uint32_t index;
    enum err e = pool_adapter_load(f->pool, f->store, image, &index);
    assert_int_equal(e, fits ? ERR_OK : ERR_NO_SPACE);
    if (e != ERR_OK) {
        pool_store_drop(f->store, image);
        r->full++;
        return;
    }
    assert_true(r->adapters[index].number < 0);
    r->adapters[index].number = (int)number;
    r->adapters[index].users = 0;
    r->loads++;
}

static void run_row(struct run *r, uint32_t index) {
    struct fixture *f = r->f;
    if (r->rows[index].count > 0) {
        pool_release(f->pool, r->rows[index].pages, r->rows[index].count, r->step);
        r->rows[index].count = 0;
        return;
    }
    uint32_t count = 1 + seed_below(&r->seed, 8);
    if (pool_reserve(f->pool, count, r->rows[index].pages) == ERR_OK) {
        r->rows[index].count = count;
        for (uint32_t i = 0; i < count; i++) { /* as KV does */
            memset(f->device.planes[1][r->rows[index].pages[i]], 0, FAKE_PAGE_ELEMS);
        }
    }
}

static void test_run(void **state) {
    (void)state;
    struct run *r = calloc(1, sizeof *r);
    assert_non_null(r);
    r->seed = seed_take(7);
    r->step = 1;
    print_message("seed %llu\n", (unsigned long long)r->seed);
    r->f = fixture_open(RUN_PAGES, RUN_ADAPTERS, true);
    for (uint32_t i = 0; i < RUN_ADAPTERS; i++) {
        r->adapters[i].number = -1;
    }
    for (uint32_t i = 0; i < RUN_OPERATIONS; i++) {
        switch (seed_below(&r->seed, 5)) {
        case 0:
            run_load(r);
            break;
        case 1:
            run_row(r, seed_below(&r->seed, RUN_ROWS));
            break;
        case 2:
            r->step++;
            pool_steps_ended(r->f->pool, r->step - 1 - seed_below(&r->seed, 2));
            r->f->device.done = r->f->device.events - seed_below(&r->seed, 2);
            break;
        default:
            run_adapter(r, seed_below(&r->seed, RUN_ADAPTERS));
            break;
        }
        if (i % 64 == 0) {
            pool_check(r->f->pool);
        }
    }
    assert_true(r->loads > 1000);
    assert_true(r->full > 1000);
    assert_int_equal(pool_counts(r->f->pool).loads, r->loads);
    fixture_close(r->f);
    free(r);
}

/* Without a device every copy is done at once. */
static void test_without_device(void **state) {
    (void)state;
    struct fixture *f = fixture_open(8, 1, false);
    uint32_t adapter;
    assert_int_equal(pool_adapter_load(f->pool, f->store, image_of(f, 1, 8), &adapter), ERR_OK);
    assert_int_equal(pool_adapter_poll(f->pool, adapter), POOL_RESIDENT);
    assert_int_equal(pool_counts(f->pool).free, 0);
    pool_adapter_evict(f->pool, f->store, adapter, 0);
    assert_int_equal(pool_counts(f->pool).free, 8);
    fixture_close(f);
}

/* What is resident fills a store that is smaller than the pool no more than what is on its way. */
static void test_images_are_dropped(void **state) {
    (void)state;
    struct fixture *f = fixture_open(1, 1, false);
    pool_close(f->pool);
    pool_store_close(f->store);
    struct pool_options options = {.page_count = 64,
                                   .adapters = 8,
                                   .adapter_pages = 16,
                                   .drop_images_of = FAKE_LAYERS,
                                   .ops = &fake_ops,
                                   .device = &f->device};
    assert_int_equal(pool_open(&f->pool, &options), ERR_OK);
    struct pool_store_options store = {.bytes = 2 << 12, .chunk_bytes = 2 << 12}; /* for one */
    assert_int_equal(pool_store_open(&f->store, &store), ERR_OK);
    uint32_t adapters[8];
    for (uint32_t i = 0; i < 8; i++) {
        struct pool_image *image = image_of(f, i + 1, 1 + i);
        assert_int_equal(pool_adapter_load(f->pool, f->store, image, &adapters[i]), ERR_OK);
        assert_int_equal(pool_store_counts(f->store).images_held, 1);
        assert_ptr_equal(pool_adapter_image(f->pool, adapters[i]), image);
        f->device.done++;
        assert_int_equal(pool_adapter_poll(f->pool, adapters[i]), POOL_RESIDENT);
        assert_int_equal(pool_store_counts(f->store).images_held, 0);
        assert_null(pool_adapter_image(f->pool, adapters[i]));
    }
    for (uint32_t i = 0; i < 8; i++) {
        struct kern_adapter_set set = pool_adapter_set(f->pool, adapters[i]);
        assert_int_equal(set.page_count, 1 + i);
        assert_int_equal(set.lora[KERN_MODULES].rank, i + 1);
        assert_int_equal(f->device.planes[1][set.pages[i]][5], fill_of(i + 1, 1, i));
    }
    pool_adapter_evict(f->pool, f->store, adapters[3], 0);
    assert_int_equal(pool_adapter_poll(f->pool, adapters[3]), POOL_ABSENT);
    assert_int_equal(pool_counts(f->pool).free, 64 - 36 + 4);
    fixture_close(f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_load_copies_and_waits),
        cmocka_unit_test(test_evict_gives_back),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_misuse_crashes),
        cmocka_unit_test(test_run),
        cmocka_unit_test(test_without_device),
        cmocka_unit_test(test_images_are_dropped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
