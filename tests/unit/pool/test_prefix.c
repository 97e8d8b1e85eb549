/* Prefixes: single cases, then random sequences beside a model that is written the slow way. */
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

enum { T = 4 };

static const struct pool_scope scopes[2] = {{.bytes = {1}}, {.bytes = {[31] = 1}}};

static struct pool *pool_of(uint32_t pages, uint32_t prefix_tokens) {
    struct pool *p = NULL;
    struct pool_options options = {
        .page_count = pages, .prefix_tokens = prefix_tokens, .adapters = 1, .adapter_pages = pages};
    assert_int_equal(pool_open(&p, &options), ERR_OK);
    return p;
}

/* A page's tokens: only the last one tells letters apart. */
static struct pool_prefix key_of(uint32_t scope, uint64_t before, uint32_t letter,
                                 uint32_t tokens[T]) {
    for (uint32_t i = 0; i < T; i++) {
        tokens[i] = i + 1 < T ? 7 : letter;
    }
    return (struct pool_prefix){&scopes[scope], before, tokens};
}

static uint64_t enter(struct pool *p, uint32_t scope, uint64_t before, uint32_t letter,
                      uint32_t page) {
    uint32_t tokens[T];
    struct pool_prefix key = key_of(scope, before, letter, tokens);
    return pool_prefix_enter(p, &key, page);
}

static uint64_t find(const struct pool *p, uint32_t scope, uint64_t before, uint32_t letter,
                     uint32_t *page) {
    uint32_t tokens[T];
    struct pool_prefix key = key_of(scope, before, letter, tokens);
    return pool_prefix_find(p, &key, page);
}

static void assert_counts(const struct pool *p, uint32_t free, uint32_t kv, uint32_t pending,
                          uint32_t cached) {
    struct pool_counts c = pool_counts(p);
    assert_int_equal(c.free, free);
    assert_int_equal(c.kv, kv);
    assert_int_equal(c.pending, pending);
    assert_int_equal(c.cached, cached);
    pool_check(p);
}

static void test_found_by_all_that_is_before(void **state) {
    (void)state;
    struct pool *p = pool_of(8, T);
    uint32_t a[3];
    uint32_t page = 77;
    assert_int_equal(pool_reserve(p, 3, a), ERR_OK);
    uint64_t first = enter(p, 0, 0, 1, a[0]);
    uint64_t second = enter(p, 0, first, 2, a[1]);
    assert_true(first != 0 && second != 0 && first != second);
    assert_int_equal(find(p, 0, 0, 2, &page), 0); /* another first page */
    assert_int_equal(find(p, 1, 0, 1, &page), 0); /* another adapter */
    assert_int_equal(find(p, 1, first, 2, &page), 0);
    assert_int_equal(find(p, 0, second, 2, &page), 0);
    assert_int_equal(page, 77);
    assert_true(find(p, 0, 0, 1, &page) == first);
    assert_int_equal(page, a[0]);
    assert_true(find(p, 0, first, 2, &page) == second);
    assert_int_equal(page, a[1]);
    uint64_t other = enter(p, 1, 0, 1, a[2]); /* the same tokens, another adapter */
    assert_true(other != first);
    assert_true(find(p, 1, 0, 1, &page) == other);
    assert_int_equal(page, a[2]);
    pool_close(p);
}

/* Two sequences computed the same: the first page stays the one that is found. */
static void test_twins(void **state) {
    (void)state;
    struct pool *p = pool_of(8, T);
    uint32_t a[2];
    uint32_t page = 0;
    assert_int_equal(pool_reserve(p, 2, a), ERR_OK);
    uint64_t name = enter(p, 0, 0, 1, a[0]);
    assert_true(enter(p, 0, 0, 1, a[1]) == name);
    pool_release(p, &a[1], 1, 0);
    assert_counts(p, 7, 1, 0, 0); /* the twin is just a page */
    assert_true(find(p, 0, 0, 1, &page) == name);
    assert_int_equal(page, a[0]);
    pool_close(p);
}

static void test_cached_until_needed(void **state) {
    (void)state;
    struct pool *p = pool_of(4, T);
    uint32_t a[3];
    uint32_t page = 0;
    assert_int_equal(pool_reserve(p, 3, a), ERR_OK);
    uint64_t first = enter(p, 0, 0, 1, a[0]);
    uint64_t second = enter(p, 0, first, 2, a[1]);
    pool_release(p, a, 3, 5);
    assert_counts(p, 1, 0, 3, 0); /* the step in flight comes first */
    assert_false(pool_page_cached(p, a[0]));
    pool_steps_ended(p, 5);
    assert_counts(p, 2, 0, 0, 2);
    assert_true(find(p, 0, 0, 1, &page) == first);
    assert_true(pool_page_cached(p, page));
    uint32_t b[4];
    assert_int_equal(pool_reserve(p, 3, b), ERR_OK); /* the end of the prefix goes first */
    assert_counts(p, 0, 3, 0, 1);
    assert_int_equal(pool_counts(p).reclaimed, 1);
    assert_int_equal(find(p, 0, first, 2, &page), 0);
    assert_true(find(p, 0, 0, 1, &page) == first);
    pool_share(p, &page, 1);
    assert_counts(p, 0, 4, 0, 0);
    assert_int_equal(pool_reserve(p, 1, &b[3]), ERR_NO_SPACE);
    pool_release(p, &page, 1, 0);
    assert_int_equal(pool_reserve(p, 1, &b[3]), ERR_OK);
    assert_int_equal(find(p, 0, 0, 1, &page), 0);
    assert_true(enter(p, 0, 0, 1, b[0]) > second); /* a name is never used again */
    pool_close(p);
}

/* A page that waits for a step's end can be shared by later steps: it waits no more. */
static void test_shared_while_pending(void **state) {
    (void)state;
    struct pool *p = pool_of(4, T);
    uint32_t a[3];
    uint32_t page = 0;
    assert_int_equal(pool_reserve(p, 3, a), ERR_OK);
    uint64_t first = enter(p, 0, 0, 1, a[0]);
    (void)enter(p, 0, first, 2, a[1]);
    pool_release(p, a, 3, 5); /* they wait in the order 2, 1, 0: take the middle, then the last */
    assert_true(find(p, 0, first, 2, &page) != 0);
    pool_share(p, &page, 1);
    assert_counts(p, 1, 1, 2, 0);
    pool_share(p, &a[0], 1);
    assert_counts(p, 1, 2, 1, 0);
    pool_release(p, &a[0], 1, 3); /* still waits for 5 */
    assert_counts(p, 1, 1, 2, 0);
    pool_steps_ended(p, 5);
    assert_counts(p, 2, 1, 0, 1);
    pool_release(p, &a[1], 1, 0);
    assert_counts(p, 2, 0, 0, 2);
    pool_close(p);
}

static void test_least_recently_used_goes_first(void **state) {
    (void)state;
    struct pool *p = pool_of(3, T);
    uint32_t a[3];
    uint32_t page = 0;
    assert_int_equal(pool_reserve(p, 3, a), ERR_OK);
    for (uint32_t i = 0; i < 3; i++) {
        (void)enter(p, 0, 0, i, a[i]);
        pool_release(p, &a[i], 1, 0);
    }
    pool_share(p, &a[0], 1);
    pool_release(p, &a[0], 1, 0);
    uint32_t b[2];
    assert_int_equal(pool_reserve(p, 2, b), ERR_OK);
    assert_true(find(p, 0, 0, 0, &page) != 0);
    assert_int_equal(find(p, 0, 0, 1, &page), 0);
    assert_int_equal(find(p, 0, 0, 2, &page), 0);
    pool_close(p);
}

/* Adapters get cached pages like everybody. */
static void test_adapters_reclaim(void **state) {
    (void)state;
    struct pool *p = pool_of(3, T);
    uint32_t a[3];
    uint32_t page = 0;
    uint32_t adapter = 0;
    assert_int_equal(pool_reserve(p, 3, a), ERR_OK);
    (void)enter(p, 0, 0, 1, a[1]);
    pool_release(p, &a[1], 2, 0);
    struct pool_image image = {.page_count = 2};
    assert_int_equal(pool_adapter_load(p, NULL, &image, &adapter), ERR_OK);
    assert_int_equal(find(p, 0, 0, 1, &page), 0);
    assert_int_equal(pool_counts(p).adapters, 2);
    assert_counts(p, 0, 1, 0, 0);
    pool_close(p);
}

static void test_switched_off(void **state) {
    (void)state;
    struct pool *p = pool_of(2, 0);
    uint32_t a;
    uint32_t page = 77;
    assert_int_equal(pool_reserve(p, 1, &a), ERR_OK);
    assert_int_equal(enter(p, 0, 0, 1, a), 0);
    assert_int_equal(find(p, 0, 0, 1, &page), 0);
    assert_int_equal(page, 77);
    pool_release(p, &a, 1, 0);
    assert_counts(p, 2, 0, 0, 0);
    pool_close(p);
}

struct misuse {
    struct pool *p;
    uint32_t page, letter;
};

static void enter_it(void *context) {
    const struct misuse *m = context;
    (void)enter(m->p, 0, 0, m->letter, m->page);
}

static void test_misuse_crashes(void **state) {
    (void)state;
    struct pool *p = pool_of(2, T);
    uint32_t a;
    assert_int_equal(pool_reserve(p, 1, &a), ERR_OK);
    struct misuse m = {p, a, 1};
    assert_false(crashes(enter_it, &m)); /* the harness tells them apart */
    enter_it(&m);
    m.letter = 2;
    assert_true(crashes(enter_it, &m)); /* has an entry */
    pool_release(p, &a, 1, 0);
    assert_true(crashes(enter_it, &m)); /* nobody's */
    m.page = 2;
    assert_true(crashes(enter_it, &m)); /* not a page */
    pool_close(p);
}

/* ---- the model ---------------------------------------------------------------------------- */

enum { PAGES = 64, ROWS = 12, PATH = 10, LETTERS = 3, OPERATIONS = 200000 };

struct path { /* what is computed into a page: all before it, and its own letter */
    uint32_t scope, count;
    uint8_t letters[PATH];
};

struct model {
    struct path content[PAGES]; /* as the device would have it: written by who reserved the page */
    uint64_t name[PAGES];       /* of its entry; 0 = none */
    uint64_t before[PAGES];
    uint64_t ticket[PAGES], rested[PAGES]; /* rested: when it became cached */
    uint32_t refs[PAGES];
    bool pending[PAGES];
    uint64_t ended, pending_ticket, clock, reclaimed;
};

struct row {
    struct path path;
    uint32_t pages[PATH];
    uint32_t shared;
};

static uint32_t model_count(const struct model *m, bool cached) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < PAGES; i++) {
        count += m->refs[i] == 0 && !m->pending[i] && (m->name[i] != 0) == cached;
    }
    return count;
}

static void model_reserve(struct model *m, uint32_t count) {
    while (model_count(m, false) < count) {
        uint32_t oldest = PAGES;
        for (uint32_t i = 0; i < PAGES; i++) {
            bool cached = m->refs[i] == 0 && !m->pending[i] && m->name[i] != 0;
            if (cached && (oldest == PAGES || m->rested[i] < m->rested[oldest])) {
                oldest = i;
            }
        }
        assert_true(oldest < PAGES);
        m->name[oldest] = 0;
        m->reclaimed++;
    }
}

static void model_release(struct model *m, uint32_t page, uint64_t ticket) {
    m->ticket[page] = ticket > m->ticket[page] ? ticket : m->ticket[page];
    if (--m->refs[page] > 0) {
        return;
    }
    m->rested[page] = ++m->clock;
    if (m->ticket[page] <= m->ended) {
        return;
    }
    bool any = false;
    for (uint32_t i = 0; i < PAGES; i++) {
        any = any || m->pending[i];
    }
    if (any && m->ticket[page] < m->pending_ticket) {
        m->ticket[page] = m->pending_ticket;
    }
    m->pending_ticket = m->ticket[page];
    m->pending[page] = true;
}

/* The greatest ticket that waits: sharing may have taken the last of the queue. */
static void model_queue(struct model *m) {
    m->pending_ticket = 0;
    for (uint32_t i = 0; i < PAGES; i++) {
        if (m->pending[i] && m->ticket[i] > m->pending_ticket) {
            m->pending_ticket = m->ticket[i];
        }
    }
}

static void model_steps_ended(struct model *m, uint64_t ticket) {
    m->ended = ticket > m->ended ? ticket : m->ended;
    for (;;) { /* in the order of the queue, which is that of their rest */
        uint32_t first = PAGES;
        for (uint32_t i = 0; i < PAGES; i++) {
            if (m->pending[i] && m->ticket[i] <= m->ended &&
                (first == PAGES || m->rested[i] < m->rested[first])) {
                first = i;
            }
        }
        if (first == PAGES) {
            return;
        }
        m->pending[first] = false;
        m->rested[first] = ++m->clock;
    }
}

static bool model_find(const struct model *m, const struct path *path, uint64_t before) {
    for (uint32_t i = 0; i < PAGES; i++) {
        if (m->name[i] != 0 && m->before[i] == before && m->content[i].scope == path->scope &&
            m->content[i].letters[m->content[i].count - 1] == path->letters[path->count - 1]) {
            return true;
        }
    }
    return false;
}

/* Begins a sequence: shares what is found, reserves the rest, computes it, and lets it be found. */
static void row_start(struct pool *p, struct model *m, struct row *r, uint64_t *seed) {
    uint32_t count = 1 + seed_below(seed, PATH);
    r->path = (struct path){.scope = seed_below(seed, 2)};
    for (uint32_t i = 0; i < count; i++) {
        r->path.letters[i] = (uint8_t)(seed_below(seed, 4) == 0 ? seed_below(seed, LETTERS) : 0);
    }
    uint64_t name = 0;
    r->shared = 0;
    while (r->shared < count) {
        r->path.count = r->shared + 1;
        uint32_t page = PAGES;
        uint64_t found = find(p, r->path.scope, name, r->path.letters[r->shared], &page);
        assert_int_equal(found != 0, model_find(m, &r->path, name));
        if (found == 0) {
            break;
        }
        assert_true(m->name[page] == found);
        assert_memory_equal(&m->content[page], &r->path, sizeof r->path.scope);
        assert_int_equal(m->content[page].count, r->path.count); /* the very same tokens */
        assert_memory_equal(m->content[page].letters, r->path.letters, r->path.count);
        assert_int_equal(pool_page_cached(p, page), m->refs[page] == 0 && !m->pending[page]);
        r->pages[r->shared++] = page;
        name = found;
    }
    pool_share(p, r->pages, r->shared);
    for (uint32_t i = 0; i < r->shared; i++) {
        m->refs[r->pages[i]]++;
        m->pending[r->pages[i]] = false;
    }
    model_queue(m);
    r->path.count = r->shared;
    uint32_t *fresh = r->pages + r->shared;
    bool fits = count - r->shared <= model_count(m, false) + model_count(m, true);
    enum err e = pool_reserve(p, count - r->shared, fresh);
    assert_int_equal(e, fits ? ERR_OK : ERR_NO_SPACE);
    if (!fits) {
        return;
    }
    model_reserve(m, count - r->shared);
    for (uint32_t i = r->shared; i < count; i++) {
        uint32_t page = r->pages[i];
        assert_int_equal(m->refs[page], 0);
        assert_false(m->pending[page]);
        assert_true(m->name[page] == 0); /* what was reclaimed is what the model says */
        m->refs[page] = 1;
        m->ticket[page] = 0;
        r->path.count = i + 1;
        m->content[page] = r->path;
        bool twin = model_find(m, &r->path, name);
        uint64_t entered = enter(p, r->path.scope, name, r->path.letters[i], page);
        assert_true(entered != 0);
        if (!twin) {
            m->name[page] = entered;
            m->before[page] = name;
        }
        name = entered;
    }
}

static void row_end(struct pool *p, struct model *m, struct row *r, uint64_t ticket) {
    pool_release(p, r->pages, r->path.count, ticket);
    for (uint32_t i = r->path.count; i-- > 0;) {
        model_release(m, r->pages[i], ticket);
    }
    r->path.count = 0;
}

static void test_model(void **state) {
    (void)state;
    uint64_t seed = seed_take(20261121);
    print_message("seed %llu\n", (unsigned long long)seed);
    struct pool *p = pool_of(PAGES, T);
    struct model *m = calloc(1, sizeof *m);
    struct row *rows = calloc(ROWS, sizeof *rows);
    assert_non_null(m);
    assert_non_null(rows);
    uint64_t step = 1;
    uint64_t shared = 0;
    uint64_t refusals = 0;
    for (uint32_t i = 0; i < OPERATIONS; i++) {
        struct row *r = &rows[seed_below(&seed, ROWS)];
        if (seed_below(&seed, 4) == 0) {
            step++;
            uint64_t ended = step - seed_below(&seed, 3);
            pool_steps_ended(p, ended);
            model_steps_ended(m, ended);
        } else if (r->path.count > 0) {
            row_end(p, m, r, seed_below(&seed, 3) == 0 ? 0 : step);
        } else {
            row_start(p, m, r, &seed);
            shared += r->shared;
            refusals += r->path.count == r->shared;
        }
        struct pool_counts c = pool_counts(p);
        assert_int_equal(c.free, model_count(m, false));
        assert_int_equal(c.cached, model_count(m, true));
        assert_true(c.reclaimed == m->reclaimed);
        if (i % 64 == 0) {
            pool_check(p);
        }
    }
    assert_true(shared > OPERATIONS / 4); /* the run went where it should */
    assert_true(refusals > 100);
    assert_true(m->reclaimed > OPERATIONS / 100);
    for (uint32_t i = 0; i < ROWS; i++) {
        row_end(p, m, &rows[i], step);
    }
    pool_steps_ended(p, step);
    assert_int_equal(pool_counts(p).free + pool_counts(p).cached, PAGES);
    pool_check(p);
    free(rows);
    free(m);
    pool_close(p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_found_by_all_that_is_before),
        cmocka_unit_test(test_twins),
        cmocka_unit_test(test_cached_until_needed),
        cmocka_unit_test(test_shared_while_pending),
        cmocka_unit_test(test_least_recently_used_goes_first),
        cmocka_unit_test(test_adapters_reclaim),
        cmocka_unit_test(test_switched_off),
        cmocka_unit_test(test_misuse_crashes),
        cmocka_unit_test(test_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
