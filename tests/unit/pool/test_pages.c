/* Page accounting: single cases, then 10^6 random operations beside a model (invariants 2 and 6).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "pool/pool.h"
#include "tests/unit/crash.h"
#include "tests/unit/seed.h"

static struct pool *pool_of(uint32_t pages) {
    struct pool *p = NULL;
    struct pool_options options = {.page_count = pages};
    assert_int_equal(pool_open(&p, &options), ERR_OK);
    return p;
}

static void assert_counts(const struct pool *p, uint32_t free, uint32_t kv, uint32_t pending) {
    struct pool_counts c = pool_counts(p);
    assert_int_equal(c.free, free);
    assert_int_equal(c.kv, kv);
    assert_int_equal(c.pending, pending);
    pool_check(p);
}

static void test_exhaustion(void **state) {
    (void)state;
    struct pool *p = pool_of(8);
    uint32_t pages[8];
    bool seen[8] = {false};
    assert_int_equal(pool_reserve(p, 8, pages), ERR_OK);
    for (int i = 0; i < 8; i++) {
        assert_true(pages[i] < 8);
        assert_false(seen[pages[i]]);
        seen[pages[i]] = true;
    }
    uint32_t more[1] = {77};
    assert_int_equal(pool_reserve(p, 1, more), ERR_NO_SPACE);
    assert_int_equal(more[0], 77);
    assert_int_equal(pool_reserve(p, 0, more), ERR_OK);
    pool_release(p, pages, 3, 0);
    assert_counts(p, 3, 5, 0);
    uint32_t four[4] = {77, 77, 77, 77};
    assert_int_equal(pool_reserve(p, 4, four), ERR_NO_SPACE); /* all or nothing */
    assert_int_equal(four[0], 77);
    assert_counts(p, 3, 5, 0);
    assert_int_equal(pool_reserve(p, 3, four), ERR_OK);
    assert_counts(p, 0, 8, 0);
    pool_close(p);
    pool_close(NULL);
}

static void test_last_in_first_out(void **state) {
    (void)state;
    struct pool *p = pool_of(4);
    uint32_t a[4];
    uint32_t b;
    assert_int_equal(pool_reserve(p, 4, a), ERR_OK);
    pool_release(p, &a[2], 1, 0);
    pool_release(p, &a[0], 1, 0);
    assert_int_equal(pool_reserve(p, 1, &b), ERR_OK);
    assert_int_equal(b, a[0]);
    pool_close(p);
}

static void test_ticket_holds_pages(void **state) {
    (void)state;
    struct pool *p = pool_of(4);
    uint32_t a[4];
    assert_int_equal(pool_reserve(p, 4, a), ERR_OK);
    pool_release(p, a, 2, 5);
    assert_counts(p, 0, 2, 2);
    pool_steps_ended(p, 4);
    assert_counts(p, 0, 2, 2);
    pool_release(p, &a[2], 1, 6);
    pool_steps_ended(p, 5);
    assert_counts(p, 2, 1, 1);
    pool_steps_ended(p, 3); /* not new */
    assert_counts(p, 2, 1, 1);
    pool_release(p, &a[3], 1, 5); /* has ended already */
    assert_counts(p, 3, 0, 1);
    pool_steps_ended(p, 9);
    assert_counts(p, 4, 0, 0);
    pool_close(p);
}

/* The first sharer's step still runs when the last one lets go without a step. */
static void test_shared_page_waits_for_the_latest_step(void **state) {
    (void)state;
    struct pool *p = pool_of(2);
    uint32_t a;
    assert_int_equal(pool_reserve(p, 1, &a), ERR_OK);
    pool_share(p, &a, 1);
    pool_share(p, &a, 1);
    pool_release(p, &a, 1, 10);
    assert_counts(p, 1, 1, 0);
    pool_release(p, &a, 1, 7);
    assert_counts(p, 1, 1, 0);
    pool_release(p, &a, 1, 0);
    assert_counts(p, 1, 0, 1);
    pool_steps_ended(p, 9);
    assert_counts(p, 1, 0, 1);
    pool_steps_ended(p, 10);
    assert_counts(p, 2, 0, 0);
    /* the ticket does not outlive the release */
    uint32_t both[2];
    assert_int_equal(pool_reserve(p, 2, both), ERR_OK);
    pool_release(p, both, 2, 0);
    assert_counts(p, 2, 0, 0);
    pool_close(p);
}

static void test_lower_ticket_joins_the_queue(void **state) {
    (void)state;
    struct pool *p = pool_of(2);
    uint32_t a[2];
    assert_int_equal(pool_reserve(p, 2, a), ERR_OK);
    pool_release(p, &a[0], 1, 8);
    pool_release(p, &a[1], 1, 7);
    assert_counts(p, 0, 0, 2);
    pool_steps_ended(p, 7); /* behind the page of step 8: documented */
    assert_counts(p, 0, 0, 2);
    pool_steps_ended(p, 8);
    assert_counts(p, 2, 0, 0);
    pool_close(p);
}

struct misuse {
    struct pool *p;
    uint32_t page;
    uint64_t ticket;
};

static void release_it(void *context) {
    struct misuse *m = context;
    pool_release(m->p, &m->page, 1, m->ticket);
}

static void share_it(void *context) {
    struct misuse *m = context;
    pool_share(m->p, &m->page, 1);
}

static void test_misuse_crashes(void **state) {
    (void)state;
    struct pool *p = pool_of(4);
    uint32_t a[2];
    assert_int_equal(pool_reserve(p, 2, a), ERR_OK);
    struct misuse m = {p, a[0], 0};
    assert_false(crashes(release_it, &m)); /* the harness tells them apart */
    pool_release(p, &a[0], 1, 0);
    assert_true(crashes(release_it, &m)); /* free */
    assert_true(crashes(share_it, &m));
    m.page = a[1];
    pool_release(p, &a[1], 1, 3);
    assert_true(crashes(release_it, &m)); /* pending */
    assert_true(crashes(share_it, &m));
    m.page = 4;
    assert_true(crashes(release_it, &m)); /* not a page */
    assert_true(crashes(share_it, &m));
    pool_close(p);
}

/* ---- the model ---------------------------------------------------------------------------- */

enum { MODEL_PAGES = 512, MODEL_ROWS = 96, MODEL_ROW_PAGES = 24, MODEL_OPERATIONS = 1000000 };

/* Written the slow way: a page's state is what its numbers say. */
struct model {
    uint32_t refs[MODEL_PAGES];
    uint64_t ticket[MODEL_PAGES]; /* greatest given since it was reserved */
    bool pending[MODEL_PAGES];
    uint64_t ended, pending_ticket; /* greatest that any pending page waits for */
    uint32_t free, kv, pending_count;
};

struct row { /* a sequence's pages */
    uint32_t count;
    uint32_t pages[MODEL_ROW_PAGES];
};

static void model_release(struct model *m, uint32_t page, uint64_t ticket) {
    m->ticket[page] = ticket > m->ticket[page] ? ticket : m->ticket[page];
    m->refs[page]--;
    if (m->refs[page] > 0) {
        return;
    }
    m->kv--;
    if (m->ticket[page] <= m->ended) {
        m->free++;
        return;
    }
    if (m->pending_count > 0 && m->ticket[page] < m->pending_ticket) {
        m->ticket[page] = m->pending_ticket;
    }
    m->pending_ticket = m->ticket[page];
    m->pending[page] = true;
    m->pending_count++;
}

static void model_steps_ended(struct model *m, uint64_t ticket) {
    m->ended = ticket > m->ended ? ticket : m->ended;
    for (uint32_t i = 0; i < MODEL_PAGES; i++) {
        if (m->pending[i] && m->ticket[i] <= m->ended) {
            m->pending[i] = false;
            m->pending_count--;
            m->free++;
        }
    }
}

static void row_reserve(struct pool *p, struct model *m, struct row *r, uint64_t *seed) {
    uint32_t count = 1 + seed_below(seed, MODEL_ROW_PAGES);
    enum err e = pool_reserve(p, count, r->pages);
    assert_int_equal(e, count <= m->free ? ERR_OK : ERR_NO_SPACE);
    if (e != ERR_OK) {
        return;
    }
    r->count = count;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t page = r->pages[i];
        assert_true(page < MODEL_PAGES);
        assert_int_equal(m->refs[page], 0);
        assert_true(m->ticket[page] <= m->ended); /* invariant 6 */
        assert_false(m->pending[page]);
        m->refs[page] = 1;
        m->ticket[page] = 0;
    }
    m->free -= count;
    m->kv += count;
}

/* `to` begins with a prefix of `from`'s pages. */
static void row_share(struct pool *p, struct model *m, struct row *to, const struct row *from,
                      uint64_t *seed) {
    if (from->count == 0) {
        return;
    }
    to->count = 1 + seed_below(seed, from->count);
    memcpy(to->pages, from->pages, to->count * sizeof *to->pages);
    pool_share(p, to->pages, to->count);
    for (uint32_t i = 0; i < to->count; i++) {
        m->refs[to->pages[i]]++;
    }
}

static void row_release(struct pool *p, struct model *m, struct row *r, uint64_t *seed,
                        uint64_t step) {
    uint32_t from = seed_below(seed, 4) == 0 ? seed_below(seed, r->count) : 0; /* a tail, or all */
    uint64_t tickets[] = {0, step, step, step + 1, step > 2 ? step - 2 : 0, step + 3};
    uint64_t ticket = tickets[seed_below(seed, sizeof tickets / sizeof *tickets)];
    pool_release(p, r->pages + from, r->count - from, ticket);
    for (uint32_t i = r->count; i-- > from;) { /* they queue from the last to the first */
        model_release(m, r->pages[i], ticket);
    }
    r->count = from;
}

static void test_model(void **state) {
    (void)state;
    uint64_t seed = seed_take(20261121);
    print_message("seed %llu\n", (unsigned long long)seed);
    struct pool *p = pool_of(MODEL_PAGES);
    struct model *m = calloc(1, sizeof *m);
    struct row *rows = calloc(MODEL_ROWS, sizeof *rows);
    assert_non_null(m);
    assert_non_null(rows);
    m->free = MODEL_PAGES;
    uint64_t step = 1;
    uint64_t refusals = 0;
    uint64_t waits = 0;
    for (uint32_t i = 0; i < MODEL_OPERATIONS; i++) {
        struct row *r = &rows[seed_below(&seed, MODEL_ROWS)];
        uint32_t kind = seed_below(&seed, 16);
        if (kind == 0) {
            step++;
            uint64_t ended = step - seed_below(&seed, 3);
            pool_steps_ended(p, ended);
            model_steps_ended(m, ended);
        } else if (r->count > 0) {
            row_release(p, m, r, &seed, step);
        } else if (kind < 6) {
            row_share(p, m, r, &rows[seed_below(&seed, MODEL_ROWS)], &seed);
        } else {
            refusals += m->free < MODEL_ROW_PAGES;
            row_reserve(p, m, r, &seed);
        }
        struct pool_counts c = pool_counts(p);
        assert_int_equal(c.free, m->free);
        assert_int_equal(c.kv, m->kv);
        assert_int_equal(c.pending, m->pending_count);
        waits += c.pending > 0;
        if (i % 1024 == 0) {
            pool_check(p);
        }
    }
    assert_true(refusals > 1000); /* the run went to the edges */
    assert_true(waits > 100000);
    for (uint32_t i = 0; i < MODEL_ROWS; i++) {
        pool_release(p, rows[i].pages, rows[i].count, step);
    }
    pool_steps_ended(p, step + 10);
    assert_counts(p, MODEL_PAGES, 0, 0);
    free(rows);
    free(m);
    pool_close(p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exhaustion),
        cmocka_unit_test(test_last_in_first_out),
        cmocka_unit_test(test_ticket_holds_pages),
        cmocka_unit_test(test_shared_page_waits_for_the_latest_step),
        cmocka_unit_test(test_lower_ticket_joins_the_queue),
        cmocka_unit_test(test_misuse_crashes),
        cmocka_unit_test(test_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
