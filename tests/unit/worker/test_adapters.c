/* The table of adapters: what is replaced makes another entry, and a job that has begun goes on
 * with the bytes it began with. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "worker/adapters.h"

enum { LAYERS = 1, PAGE_ELEMS = 4096, JOBS = 12000, RESIDENT = 4, PAGES = 8, WAIT_MS = 10000 };

struct fixture {
    struct adapters *adapters;
    struct pool *pool;
    struct pool_store *store;
    struct metrics *metrics;
    struct bell bell;
    _Atomic uint32_t version; /* of all files */
    _Atomic uint32_t made;
};

static struct fixture f;

static void revision_of(char revision[POOL_REVISION_BYTES], const char *id, uint32_t version) {
    (void)snprintf(revision, POOL_REVISION_BYTES, "%.32s-%u", id, version);
}

static enum err make(void *context, const char *id, struct pool_store *store,
                     struct pool_image **image, struct model_adapter_facts *facts,
                     struct err_text *why) {
    (void)context;
    struct pool_image wanted = {.layers = LAYERS, .page_count = 1, .page_elems = PAGE_ELEMS};
    (void)snprintf(wanted.id, sizeof wanted.id, "%s", id);
    revision_of(wanted.revision, id, atomic_load(&f.version));
    struct pool_image *made = NULL;
    enum err e = pool_store_reserve(store, &wanted, 1, &made, why);
    if (e == ERR_OK) {
        memset(made->lora, 0, kern_lora_count(LAYERS) * sizeof *made->lora);
        *image = pool_store_commit(store, made);
        *facts = (struct model_adapter_facts){.page_count = 1};
        atomic_fetch_add(&f.made, 1);
    }
    return e;
}

static const struct model_facts model = {.shape = {.layers = LAYERS}};

/* `images`: room in the store. `drop`: residents leave it. */
static void start(uint32_t images, bool drop) {
    atomic_store(&f.version, 1);
    atomic_store(&f.made, 0);
    uint64_t image_bytes = UINT64_C(2) * 4096; /* elements, and the table behind them */
    bell_init(&f.bell);
    assert_int_equal(
        pool_store_open(&f.store,
                        &(struct pool_store_options){.bytes = images * image_bytes,
                                                     .chunk_bytes = images * image_bytes}),
        ERR_OK);
    assert_int_equal(
        pool_open(&f.pool, &(struct pool_options){.page_count = PAGES,
                                                  .adapters = RESIDENT,
                                                  .adapter_pages = 1,
                                                  .drop_images_of = drop ? LAYERS : 0}),
        ERR_OK);
    assert_int_equal(metrics_open(&f.metrics, 4), ERR_OK);
    assert_int_equal(adapters_open(&f.adapters, &(struct adapters_options){.model = &model,
                                                                           .maker = {.make = make},
                                                                           .pool = f.pool,
                                                                           .store = f.store,
                                                                           .jobs_max = JOBS,
                                                                           .resident_max = RESIDENT,
                                                                           .loaders = 2,
                                                                           .retry_ms = 1,
                                                                           .metrics = f.metrics,
                                                                           .loop = &f.bell}),
                     ERR_OK);
}

static void stop(void) {
    adapters_close(f.adapters);
    pool_close(f.pool);
    pool_store_close(f.store);
    metrics_close(f.metrics);
}

static enum sched_adapter_state state_of(uint32_t entry) {
    return adapters_view(f.adapters)[entry].state;
}

/* A job of the adapter as its files are now. */
static uint32_t enter(const char *id) {
    struct model_adapter_stamp stamp = {.inode = 7, .mtime_ns = atomic_load(&f.version)};
    return adapters_enter(f.adapters, id, &stamp);
}

/* Root → store; returns the news, or what it would be where the store had the image. */
static struct adapters_news fetch(uint32_t entry) {
    struct adapters_news news = {0};
    adapters_fetch(f.adapters, entry, clock_mono_us());
    if (state_of(entry) == SCHED_STORED) {
        return news;
    }
    for (uint32_t ms = 0; !adapters_take(f.adapters, &news, clock_mono_us()); ms++) {
        assert_true(ms < WAIT_MS);
        (void)bell_wait(&f.bell, 1);
    }
    assert_int_equal(news.entry, entry);
    adapters_leave(f.adapters, entry, false);
    return news;
}

static void load(uint32_t entry) {
    assert_int_equal(adapters_load(f.adapters, entry), ERR_OK);
    adapters_poll(f.adapters);
    assert_int_equal(state_of(entry), SCHED_RESIDENT);
}

static void assert_revision(uint32_t entry, const char *id, uint32_t version) {
    char revision[POOL_REVISION_BYTES];
    revision_of(revision, id, version);
    assert_string_equal(adapters_revision(f.adapters, entry), revision);
}

/* Both revisions are resident side by side, each for its own jobs. */
static void test_a_replaced_adapter_is_another_entry(void **state) {
    (void)state;
    start(8, false);
    uint32_t old = enter("a");
    (void)fetch(old);
    load(old);
    adapters_use(f.adapters, old);
    adapters_begin(f.adapters, old);
    atomic_store(&f.version, 2);
    uint32_t new = enter("a");
    assert_int_not_equal(old, new);
    (void)fetch(new);
    load(new);
    assert_revision(old, "a", 1);
    assert_revision(new, "a", 2);
    assert_int_not_equal(adapters_device_index(f.adapters, old),
                         adapters_device_index(f.adapters, new));
    adapters_unuse(f.adapters, old);
    adapters_leave(f.adapters, old, true);
    adapters_leave(f.adapters, new, false);
    stop();
}

/* The job is preempted and its adapter evicted; meanwhile others want all of the store. */
static void test_a_begun_job_finds_its_revision_again(void **state) {
    (void)state;
    start(2, false);
    uint32_t job = enter("a");
    (void)fetch(job);
    load(job);
    adapters_use(f.adapters, job);
    adapters_begin(f.adapters, job);
    adapters_unuse(f.adapters, job);
    atomic_store(&f.version, 2);
    adapters_evict(f.adapters, job, 0);
    assert_int_equal(state_of(job), SCHED_STORED); /* held */
    uint32_t others[3];
    for (uint32_t i = 0; i < 3; i++) {
        char id[8];
        (void)snprintf(id, sizeof id, "b%u", i);
        others[i] = enter(id);
        struct adapters_news news = fetch(others[i]);
        assert_int_equal(news.error, i == 0 ? ERR_OK : ERR_NO_SPACE);
        if (i > 0) {
            clock_sleep_ms(2); /* its pause */
            assert_int_equal(fetch(others[i]).error, ERR_OK);
        }
    }
    assert_int_equal(state_of(job), SCHED_STORED);
    load(job);
    assert_revision(job, "a", 1);
    adapters_leave(f.adapters, job, true);
    for (uint32_t i = 0; i < 3; i++) {
        adapters_leave(f.adapters, others[i], false);
    }
    stop();
}

/* Residents that have left the store: when such an image is lost, the job is told. */
static void test_a_begun_job_never_gets_another_revision(void **state) {
    (void)state;
    start(1, true);
    uint32_t job = enter("a"), fresh = enter("a");
    assert_int_equal(job, fresh);
    (void)fetch(job);
    load(job);
    adapters_use(f.adapters, job);
    adapters_begin(f.adapters, job);
    adapters_unuse(f.adapters, job);
    uint32_t other = enter("b"); /* takes the only place in the store */
    (void)fetch(other);
    load(other);
    adapters_evict(f.adapters, job, 0);
    assert_int_equal(state_of(job), SCHED_AWAY);
    struct adapters_news news = fetch(job); /* the files are as they were */
    assert_int_equal(news.error, ERR_OK);
    assert_false(news.changed);
    assert_revision(job, "a", 1);
    load(job);
    uint32_t third = enter("c");
    (void)fetch(third);
    adapters_evict(f.adapters, job, 0);
    atomic_store(&f.version, 2);
    news = fetch(job);
    if (news.error == ERR_NO_SPACE) { /* what waited in the store went for it */
        clock_sleep_ms(2);
        news = fetch(job);
    }
    assert_int_equal(news.error, ERR_OK);
    assert_true(news.changed);
    adapters_leave(f.adapters, job, true); /* as the loop does, and who has not begun */
    assert_revision(fresh, "a", 2);        /* runs on what is there */
    adapters_leave(f.adapters, fresh, false);
    adapters_leave(f.adapters, other, false);
    adapters_leave(f.adapters, third, false);
    stop();
}

/* Ten thousand adapters read before, their images in the store: none is read again. */
static void test_thousands_are_known(void **state) {
    (void)state;
    enum { MANY = 10000, KEPT = MANY / 100 * 95 };
    start(MANY, false);
    for (uint32_t round = 0; round < 2; round++) {
        for (uint32_t i = 0; i < MANY; i++) {
            char id[16];
            (void)snprintf(id, sizeof id, "adapter-%u", i);
            uint32_t entry = enter(id);
            (void)fetch(entry);
            assert_int_equal(state_of(entry), SCHED_STORED);
            adapters_leave(f.adapters, entry, false);
        }
    }
    assert_in_range(atomic_load(&f.made), MANY, 2 * MANY - KEPT);
    stop();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_replaced_adapter_is_another_entry),
        cmocka_unit_test(test_a_begun_job_finds_its_revision_again),
        cmocka_unit_test(test_a_begun_job_never_gets_another_revision),
        cmocka_unit_test(test_thousands_are_known),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
