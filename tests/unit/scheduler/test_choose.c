/* Whom to let in: adapter by adapter, priorities, head-room, age; loads and fetches. */
#include "tests/unit/scheduler/fixture.h"

static void test_adapter_major(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    struct fixture *f = fix_open(&o);
    fix_adapter(f, 0, SCHED_RESIDENT, 10);
    fix_adapter(f, 1, SCHED_RESIDENT, 10);
    fix_enter(f, 0, 0, 1, 9); /* came first, but 1 has more */
    for (uint32_t i = 1; i < 5; i++) {
        fix_enter(f, i, 1, 1, 9);
    }
    (void)fix_plan(f);
    assert_int_equal(f->plan.work_count, 4);
    for (uint32_t i = 0; i < 4; i++) {
        assert_int_equal(f->plan.work[i].adapter, 1);
    }
    sched_leave(f->sched, 1);
    fix_enter(f, 6, 1, 1, 9);
    (void)fix_plan(f); /* the row that came free goes to the adapter that is read anyway */
    assert_non_null(fix_work(f, 6));
    assert_null(fix_work(f, 0));
    fix_close(f);
}

static void test_priority(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    o.rows_max = 1;
    struct fixture *f = fix_open(&o);
    fix_adapter(f, 0, SCHED_RESIDENT, 10);
    fix_enter(f, 0, SCHED_BASE, 1, 1);
    fix_enter(f, 1, 0, 1, 1);
    struct sched_job job = fix_job(2, 0, 1, 1);
    job.priority = -1;
    (void)fix_put(f, &job);
    const uint32_t order[3] = {2, 0, 1}; /* of equals the base is free to read */
    for (uint32_t i = 0; i < 3; i++) {
        (void)fix_plan(f);
        assert_int_equal(f->plan.work_count, 1);
        assert_int_equal(f->plan.work[0].job, order[i]);
        sched_leave(f->sched, order[i]);
    }
    fix_close(f);
}

static void test_one_more_adapter_must_pay(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    o.load_us_page = 1000; /* 40 pages: 40 ms, beside 100 us for the step: rank 512, one job */
    struct fixture *f = fix_open(&o);
    fix_adapter(f, 0, SCHED_RESIDENT, 40);
    fix_enter(f, 0, SCHED_BASE, 1, 50);
    fix_enter(f, 1, SCHED_BASE, 1, 50);
    fix_enter(f, 2, 0, 1, 9);
    (void)fix_plan(f); /* half of the rows are taken by the base */
    assert_non_null(fix_work(f, 1));
    assert_null(fix_work(f, 2));
    for (uint32_t i = 1; i < o.wait_steps; i++) {
        (void)fix_plan(f);
        assert_null(fix_work(f, 2));
    }
    fix_enter(f, 3, SCHED_BASE, 1, 9);
    fix_enter(f, 4, SCHED_BASE, 1, 9);
    (void)fix_plan(f); /* aged: goes before the cheaper ones */
    assert_non_null(fix_work(f, 2));
    fix_close(f);

    f = fix_open(&o);
    fix_adapter(f, 0, SCHED_RESIDENT, 40);
    fix_enter(f, 0, SCHED_BASE, 1, 9);
    fix_enter(f, 2, 0, 1, 9);
    (void)fix_plan(f); /* less than half: taken, whatever it costs */
    assert_non_null(fix_work(f, 2));
    fix_close(f);
}

/* Starts four of the base's, half of the rows, then `jobs` of adapter 0, which takes `us` a step:
 * how many of them start. */
static uint32_t started_beside_half(uint32_t jobs, uint32_t us) {
    struct sched_options o = fix_options();
    o.rows_max = 8;
    o.load_us_page = us / 40.0;
    struct fixture *f = fix_open(&o);
    for (uint32_t i = 0; i < 4; i++) {
        fix_enter(f, i, SCHED_BASE, 1, 50);
    }
    (void)fix_plan(f);
    fix_adapter(f, 0, SCHED_RESIDENT, 40);
    for (uint32_t i = 0; i < jobs; i++) {
        fix_enter(f, 4 + i, 0, 1, 9);
    }
    (void)fix_plan(f);
    uint32_t started = f->plan.work_count - 4;
    fix_close(f);
    return started;
}

/* A step of four rows takes 104 us, 26 a row. An adapter all of whose jobs fit is read as often
 * whenever it starts: it starts though its rows are dearer than that, up to eight times. One that
 * has more jobs than there are free rows starts where they are not dearer. */
static void test_an_adapter_that_fits_starts(void **state) {
    (void)state;
    assert_int_equal(started_beside_half(2, 40), 2);  /* 21 a row */
    assert_int_equal(started_beside_half(2, 150), 2); /* 76 */
    assert_int_equal(started_beside_half(2, 400), 2); /* 201 */
    assert_int_equal(started_beside_half(2, 430), 0); /* 216 */
    assert_int_equal(started_beside_half(4, 800), 4); /* 201 */
    assert_int_equal(started_beside_half(5, 150), 0); /* 38, and the fifth would wait */
    assert_int_equal(started_beside_half(5, 90), 4);  /* 23 */
}

static void test_in_the_order_of_arrival(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    o.policy = SCHED_ARRIVAL;
    o.rows_max = 3;
    struct fixture *f = fix_open(&o);
    fix_adapter(f, 0, SCHED_RESIDENT, 4);
    fix_adapter(f, 1, SCHED_STORED, 4);
    fix_adapter(f, 2, SCHED_RESIDENT, 4);
    fix_enter(f, 0, 0, 1, 9);
    fix_enter(f, 1, 1, 1, 9);
    fix_enter(f, 2, 2, 1, 9);
    fix_enter(f, 3, 0, 1, 9);
    struct sched_job job = fix_job(4, 0, 1, 9);
    job.priority = -5;
    (void)fix_put(f, &job);
    (void)fix_plan(f); /* 1's adapter is on its way: it is passed over */
    assert_int_equal(f->plan.load_count, 1);
    for (uint32_t i = 0; i < 5; i++) {
        assert_int_equal(fix_work(f, i) != NULL, i == 0 || i == 2 || i == 3);
    }
    f->adapters[1].state = SCHED_RESIDENT;
    sched_leave(f->sched, 3);
    (void)fix_plan(f); /* its turn, though 0 is read anyway and has a job of better priority */
    assert_non_null(fix_work(f, 1));
    assert_null(fix_work(f, 4));
    sched_leave(f->sched, 0);
    fix_enter(f, 5, SCHED_BASE, 40, 9);
    fix_enter(f, 6, SCHED_BASE, 1, 9);
    f->snapshot.pages_free = 10;
    (void)fix_plan(f);
    sched_leave(f->sched, 2);
    f->snapshot.pages_free = 10;
    (void)fix_plan(f); /* 5 does not fit: 6, which would, waits too */
    assert_int_equal(f->plan.work_count, 2);
    assert_non_null(fix_work(f, 4));
    fix_close(f);
}

/* Where rows are free, loads fill them; else a few adapters are ahead. */
static void test_loads_ahead(void **state) {
    (void)state;
    enum { ADAPTERS = 30 };
    struct sched_options o = fix_options();
    o.jobs_max = o.adapters_max = ADAPTERS;
    o.rows_max = 20;
    o.pages = 200;
    struct sched_adapter adapters[ADAPTERS] = {0};
    struct fixture *f = fix_open(&o);
    f->snapshot.adapters = adapters;
    f->snapshot.adapter_slots_free = ADAPTERS;
    for (uint32_t i = 0; i < ADAPTERS; i++) {
        adapters[i] = (struct sched_adapter){.state = SCHED_STORED, .pages = 2};
        fix_enter(f, i, i, 1, 9); /* wants a page, two for its output and one to spare */
    }
    assert_int_equal(fix_plan(f)->load_count, 20);
    f->snapshot.pages_free = 50;
    assert_int_equal(fix_plan(f)->load_count, 8); /* 6 pages each */
    f->snapshot.pages_free = 5;
    assert_int_equal(fix_plan(f)->load_count, 2);
    fix_close(f);
}

static void test_room_is_made_for_several(void **state) {
    (void)state;
    enum { ADAPTERS = 16 };
    struct sched_options o = fix_options();
    o.adapters_max = ADAPTERS;
    o.rows_max = 8;
    struct sched_adapter adapters[ADAPTERS] = {0};
    struct fixture *f = fix_open(&o);
    f->snapshot.adapters = adapters;
    f->snapshot.adapter_slots_free = ADAPTERS;
    for (uint32_t i = 0; i < 8; i++) { /* resident, and nobody's any more */
        adapters[i] = (struct sched_adapter){.state = SCHED_RESIDENT, .pages = 5};
        fix_enter(f, i, i, 1, 1);
    }
    sched_plan(f->sched, &f->snapshot, &f->plan);
    for (uint32_t i = 0; i < 8; i++) {
        sched_leave(f->sched, i);
    }
    for (uint32_t i = 8; i < ADAPTERS; i++) {
        adapters[i] = (struct sched_adapter){.state = SCHED_STORED, .pages = 5};
        fix_enter(f, i, i, 1, 1);
    }
    f->snapshot.pages_free = 3;
    assert_int_equal(fix_plan(f)->load_count, 0);
    assert_int_equal(f->plan.evict_count, 4); /* of 20 pages, with 3 that are there: 17 */
    fix_close(f);
}

/* What adapters and KV have in use, as the pool counts it. */
static void fix_parts(struct fixture *f, uint32_t adapters, uint32_t kv) {
    f->snapshot.pages_adapters = adapters;
    f->snapshot.pages_kv = kv;
    f->snapshot.pages_free = f->options.pages - adapters - kv;
}

static void test_a_split_pool_keeps_adapters_to_their_part(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    o.split_pages = 30;
    struct fixture *f = fix_open(&o);
    fix_adapter(f, 0, SCHED_STORED, 20);
    fix_adapter(f, 1, SCHED_STORED, 20);
    fix_adapter(f, 2, SCHED_STORED, 31);
    fix_enter(f, 0, 0, 1, 9);
    fix_enter(f, 1, 1, 1, 9);
    fix_enter(f, 2, 2, 1, 9);
    (void)fix_plan(f);
    assert_int_equal(f->plan.load_count, 1); /* though 100 pages are free */
    assert_int_equal(f->plan.loads[0], 0);
    assert_int_equal(f->plan.abort_count, 1);
    assert_int_equal(f->plan.aborts[0].job, 2); /* its adapter is larger than the part */
    sched_leave(f->sched, 2);
    f->adapters[0].state = SCHED_RESIDENT;
    fix_parts(f, 20, 0);
    (void)fix_plan(f);
    assert_non_null(fix_work(f, 0));
    assert_int_equal(f->plan.load_count + f->plan.evict_count, 0);
    sched_leave(f->sched, 0);
    f->adapters[0].users = 0;
    fix_parts(f, 20, 0);
    f->snapshot.pages_pending = 50; /* of KV: no help */
    (void)fix_plan(f);
    assert_int_equal(f->plan.evict_count, 1);
    f->adapters[0].state = SCHED_STORED;
    fix_parts(f, 0, 0);
    (void)fix_plan(f);
    assert_int_equal(f->plan.load_count, 1);
    fix_close(f);
}

static void test_a_split_pool_keeps_kv_to_its_part(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    o.split_pages = 96; /* four pages of four tokens */
    struct fixture *f = fix_open(&o);
    uint64_t bound = 0;
    struct sched_job job = fix_job(9, SCHED_BASE, 16, 1);
    assert_int_equal(sched_enter(f->sched, &job, &bound), ERR_PROMPT_TOO_LONG);
    fix_adapter(f, 0, SCHED_RESIDENT, 20);
    fix_enter(f, 1, 0, 1, 1);
    (void)fix_plan(f);
    sched_leave(f->sched, 1);
    f->adapters[0].users = 0;
    fix_enter(f, 0, SCHED_BASE, 8, 9);
    fix_parts(f, 20, 0);
    (void)fix_plan(f);
    assert_work(f, 0, 0, 8, 2, true);
    fix_enter(f, 1, SCHED_BASE, 8, 9);
    fix_parts(f, 20, 2);
    (void)fix_plan(f); /* takes a page; one is left, of 78 free ones */
    assert_work(f, 0, 8, 1, 1, true);
    assert_null(fix_work(f, 1));
    assert_int_equal(f->plan.evict_count, 0); /* it would not help */
    for (uint32_t i = 0; i < 7; i++) {
        fix_parts(f, 20, i < 4 ? 3 : 4);
        (void)fix_plan(f);
        assert_non_null(fix_work(f, 0));
    }
    assert_int_equal(f->plan.preempt_count + f->plan.evict_count, 0);
    fix_close(f);
}

static void test_head_room(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    struct fixture *f = fix_open(&o);
    fix_enter(f, 0, SCHED_BASE, 4, 20); /* 1 page, and 1 promised */
    f->snapshot.pages_free = 1;
    (void)fix_plan(f); /* alone it needs no head-room */
    assert_work(f, 0, 0, 4, 1, true);
    fix_enter(f, 1, SCHED_BASE, 16, 20);
    f->snapshot.pages_free = 8; /* 4 of its prompt, 2 of output, 1 for it and 2 for job 0: 9 */
    (void)fix_plan(f);
    assert_null(fix_work(f, 1));
    f->snapshot.pages_free = 9;
    (void)fix_plan(f); /* job 0 took a page meanwhile and is promised one again */
    assert_non_null(fix_work(f, 1));
    fix_close(f);
}

static void test_alone_with_few_pages(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    struct fixture *f = fix_open(&o);
    fix_enter(f, 0, SCHED_BASE, 12, 2);
    f->snapshot.pages_free = 1;
    (void)fix_plan(f);
    assert_work(f, 0, 0, 4, 1, false);
    f->snapshot.pages_free = 3;
    (void)fix_plan(f);
    assert_work(f, 0, 4, 8, 2, true);
    fix_close(f);
}

static void test_aged_closes_the_door(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    o.wait_steps = 2;
    struct fixture *f = fix_open(&o);
    fix_enter(f, 0, SCHED_BASE, 4, 50);
    (void)fix_plan(f);
    fix_enter(f, 1, SCHED_BASE, 40, 50); /* large */
    for (uint32_t i = 0; i < 3; i++) {
        f->snapshot.pages_free = 6;
        (void)fix_plan(f);
        assert_null(fix_work(f, 1));
    }
    fix_enter(f, 2, SCHED_BASE, 1, 1); /* would fit, but 1 is aged */
    f->snapshot.pages_free = 6;
    (void)fix_plan(f);
    assert_null(fix_work(f, 2));
    f->snapshot.pages_free = 60;
    (void)fix_plan(f);
    assert_non_null(fix_work(f, 1));
    assert_non_null(fix_work(f, 2));
    fix_close(f);
}

static void test_aged_take_turns(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    o.wait_steps = 1;
    o.rows_max = 2;
    struct fixture *f = fix_open(&o);
    fix_adapter(f, 0, SCHED_RESIDENT, 1);
    fix_adapter(f, 1, SCHED_RESIDENT, 1);
    fix_enter(f, 0, SCHED_BASE, 1, 50);
    fix_enter(f, 1, SCHED_BASE, 1, 50);
    (void)fix_plan(f);
    fix_enter(f, 2, 1, 1, 9);
    fix_enter(f, 3, 0, 1, 9);
    fix_enter(f, 4, 0, 1, 9);
    struct sched_job job = fix_job(5, 1, 1, 9);
    job.priority = -5;
    (void)fix_put(f, &job);
    (void)fix_plan(f); /* rows are full; all have waited a step now */
    sched_leave(f->sched, 0);
    (void)fix_plan(f);
    assert_non_null(fix_work(f, 2)); /* the oldest, not the one of priority */
    sched_leave(f->sched, 1);
    (void)fix_plan(f); /* the rest of 1's turn, though 0's oldest is older than this */
    assert_non_null(fix_work(f, 5));
    fix_enter(f, 6, 1, 1, 9); /* came too late for the turn */
    (void)fix_plan(f);
    sched_leave(f->sched, 2);
    (void)fix_plan(f);
    assert_non_null(fix_work(f, 3));
    assert_null(fix_work(f, 6));
    fix_close(f);
}

/* A stream of jobs for one adapter, cheaper and of better priority, does not starve the other. */
static void test_nobody_starves(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    o.rows_max = 2;
    struct fixture *f = fix_open(&o);
    fix_adapter(f, 0, SCHED_RESIDENT, 10);
    fix_adapter(f, 1, SCHED_RESIDENT, 10);
    for (uint32_t i = 1; i < FIX_JOBS; i++) {
        struct sched_job job = fix_job(i, 0, 1, 1);
        job.priority = -1;
        (void)fix_put(f, &job);
    }
    fix_enter(f, 0, 1, 1, 1);
    uint32_t waited = 0;
    while (fix_plan(f) != NULL && fix_work(f, 0) == NULL) {
        waited++;
        assert_int_equal(f->plan.work_count, 2);
        for (uint32_t i = 0; i < 2; i++) { /* each that ends comes again */
            struct sched_job job = fix_job(f->plan.work[i].job, 0, 1, 1);
            job.priority = -1;
            job.arrival = 100 + waited;
            sched_leave(f->sched, job.job);
            (void)fix_put(f, &job);
        }
        f->adapters[0].users = 0;
        assert_true(waited <= o.wait_steps + 8); /* a turn of 8 jobs, and those older */
    }
    assert_in_range(waited, o.wait_steps, o.wait_steps + 8);
    fix_close(f);
}

static void test_loads(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    struct fixture *f = fix_open(&o);
    fix_adapter(f, 0, SCHED_STORED, 30);
    fix_adapter(f, 1, SCHED_STORED, 30);
    fix_adapter(f, 2, SCHED_STORED, 30);
    fix_enter(f, 0, 0, 1, 1);
    fix_enter(f, 1, 1, 1, 1);
    fix_enter(f, 2, 1, 1, 1);
    struct sched_job job = fix_job(3, 2, 1, 1);
    job.priority = -1;
    (void)fix_put(f, &job);
    f->snapshot.pages_free = 70;
    const struct sched_plan *p = fix_plan(f);
    assert_int_equal(p->work_count, 0);
    assert_int_equal(p->load_count, 2); /* by priority, then by how many wait */
    assert_int_equal(p->loads[0], 2);
    assert_int_equal(p->loads[1], 1);
    f->snapshot.pages_free = 100;
    f->snapshot.adapter_slots_free = 1;
    f->adapters[2].state = SCHED_LOADING;
    p = fix_plan(f); /* 1 was refused by the pool: asked for again, as far as the table goes */
    assert_int_equal(p->load_count, 1);
    assert_int_equal(p->loads[0], 1);
    fix_close(f);
}

static void test_a_load_leaves_pages_to_what_runs(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    struct fixture *f = fix_open(&o);
    fix_adapter(f, 0, SCHED_STORED, 10);
    fix_enter(f, 0, SCHED_BASE, 1, 20);
    fix_enter(f, 1, 0, 1, 1);
    f->snapshot.pages_free = 11; /* one for the sequence, one promised to it */
    assert_int_equal(fix_plan(f)->load_count, 0);
    f->snapshot.pages_free = 11;
    assert_int_equal(fix_plan(f)->load_count, 1);
    fix_close(f);
}

static void test_evicts_for_a_load(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    struct fixture *f = fix_open(&o);
    fix_adapter(f, 0, SCHED_RESIDENT, 50);
    fix_enter(f, 0, 0, 1, 1);
    (void)fix_plan(f);
    fix_adapter(f, 1, SCHED_STORED, 60);
    fix_enter(f, 1, 1, 1, 1);
    f->snapshot.pages_free = 49;
    const struct sched_plan *p = fix_plan(f);
    assert_int_equal(p->evict_count, 0); /* in use */
    sched_leave(f->sched, 0);
    f->adapters[0].users = 0;
    p = fix_plan(f);
    assert_int_equal(p->evict_count, 1);
    assert_int_equal(p->load_count, 0);
    f->adapters[0].state = SCHED_AWAY;
    f->snapshot.pages_pending = 50;
    p = fix_plan(f);
    assert_int_equal(p->load_count, 0);
    f->snapshot.pages_pending = 0;
    f->snapshot.pages_free = 100;
    assert_int_equal(fix_plan(f)->load_count, 1);
    fix_close(f);
}

static void test_an_adapter_larger_than_the_pool(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    struct fixture *f = fix_open(&o);
    fix_adapter(f, 0, SCHED_STORED, 100); /* no page would be left */
    fix_adapter(f, 1, SCHED_STORED, 1000);
    fix_enter(f, 0, 0, 1, 1);
    fix_enter(f, 1, 1, 1, 1);
    const struct sched_plan *p = fix_plan(f);
    assert_int_equal(p->abort_count, 2);
    assert_int_equal(p->aborts[0].reason, SCHED_NO_ROOM);
    assert_int_equal(p->load_count, 0);
    fix_close(f);
}

static void test_fetches(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    struct fixture *f = fix_open(&o);
    fix_enter(f, 0, 2, 1, 1);
    fix_enter(f, 1, 3, 1, 1);
    fix_adapter(f, 3, SCHED_FETCHING, 0);
    const struct sched_plan *p = fix_plan(f);
    assert_int_equal(p->fetch_count, 1);
    assert_int_equal(p->fetches[0], 2);
    fix_close(f);
}

/* How often an adapter that stays away is asked for in 1000 plans. */
static uint32_t asked_in_vain(struct fixture *f) {
    uint32_t asked = 0;
    for (uint32_t i = 0; i < 1000; i++) {
        asked += fix_plan(f)->fetch_count;
    }
    return asked;
}

static void test_fetches_in_vain_grow_rare(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    o.pages = o.slot_pages = 1000;
    struct fixture *f = fix_open(&o);
    fix_enter(f, 0, 2, 1, 1);
    uint32_t asked = asked_in_vain(f);
    assert_in_range(asked, 1000 / 9, 1000 / 7); /* nothing else to do: every eighth plan */
    sched_leave(f->sched, 0);
    fix_enter(f, 0, 2, 1, 1); /* another user of the index starts afresh */
    assert_int_equal(fix_plan(f)->fetch_count, 1);
    sched_leave(f->sched, 0);
    fix_enter(f, 1, SCHED_BASE, 1, 3000);
    (void)fix_plan(f);
    fix_enter(f, 0, 2, 1, 1);
    assert_in_range(asked_in_vain(f), 8, 14); /* 0, 1, 3, 7 … 255, then every 256 */
    fix_close(f);
}

static void test_fewer_fetches_while_they_fail(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    o.jobs_max = o.adapters_max = 30;
    struct sched_adapter adapters[30] = {0};
    struct fixture *f = fix_open(&o);
    f->snapshot.adapters = adapters;
    for (uint32_t i = 0; i < 30; i++) {
        fix_enter(f, i, i, 1, 1);
    }
    assert_int_equal(fix_plan(f)->fetch_count, 8);
    for (uint32_t i = 0; i < 8; i++) {
        adapters[f->plan.fetches[i]].state = SCHED_FETCHING;
    }
    assert_int_equal(fix_plan(f)->fetch_count, 0);
    for (uint32_t i = 0; i < 30; i++) { /* all came back empty-handed: one at a time now */
        adapters[i].state = SCHED_AWAY;
    }
    assert_int_equal(fix_plan(f)->fetch_count, 1);
    adapters[f->plan.fetches[0]].state = SCHED_STORED;
    adapters[f->plan.fetches[0]].pages = 1;
    assert_int_equal(fix_plan(f)->fetch_count, 0);
    adapters[f->plan.loads[0]].state = SCHED_LOADING; /* it went well: two at a time */
    assert_int_equal(fix_plan(f)->fetch_count, 2);
    fix_close(f);
}

/* The host store may be full of what is resident: then nothing would ever come again. */
static void test_a_fetch_in_vain_evicts(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    struct fixture *f = fix_open(&o);
    fix_adapter(f, 0, SCHED_RESIDENT, 5);
    fix_enter(f, 0, 0, 1, 1);
    (void)fix_plan(f);
    sched_leave(f->sched, 0);
    f->adapters[0].users = 0;
    fix_enter(f, 1, 1, 1, 1);
    uint32_t evicted = 0;
    for (uint32_t i = 0; i < 8 && evicted == 0; i++) {
        evicted = fix_plan(f)->evict_count;
    }
    assert_int_equal(evicted, 1);
    assert_int_equal(f->plan.evicts[0], 0);
    fix_close(f);
}

static void test_same_calls_same_plans(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    struct fixture *f[2] = {fix_open(&o), fix_open(&o)};
    for (uint32_t k = 0; k < 2; k++) {
        fix_adapter(f[k], 0, SCHED_RESIDENT, 5);
        fix_adapter(f[k], 1, SCHED_RESIDENT, 5);
        for (uint32_t i = 0; i < 20; i++) {
            fix_enter(f[k], i, i % 3 == 2 ? SCHED_BASE : i % 3, 1 + i * 3 % 7, 3);
        }
    }
    for (uint32_t plan = 0; plan < 6; plan++) {
        (void)fix_plan(f[0]);
        (void)fix_plan(f[1]);
        assert_int_equal(f[0]->plan.work_count, f[1]->plan.work_count);
        for (uint32_t i = 0; i < f[0]->plan.work_count; i++) {
            assert_int_equal(f[0]->plan.work[i].job, f[1]->plan.work[i].job);
            assert_int_equal(f[0]->plan.work[i].tokens, f[1]->plan.work[i].tokens);
        }
    }
    fix_close(f[0]);
    fix_close(f[1]);
}

static struct sched_found found_of(void *context, uint32_t job) {
    const struct sched_found *found = context;
    return found[job];
}

static void test_starts_behind_what_is_found(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    struct fixture *f = fix_open(&o);
    struct sched_found found[FIX_JOBS] = {{.tokens = 8, .pages = 0}, {.tokens = 4, .pages = 1}};
    f->snapshot.found = found_of;
    f->snapshot.context = found;
    fix_enter(f, 0, SCHED_BASE, 9, 3);
    fix_enter(f, 1, SCHED_BASE, 30, 3);
    (void)fix_plan(f);
    assert_work(f, 0, 8, 1, 1, true); /* all but the last token */
    assert_work(f, 1, 4, 8, 2, false);
    (void)fix_plan(f);
    assert_work(f, 0, 9, 1, 0, true);
    assert_work(f, 1, 12, 8, 2, false);
    fix_close(f);
}

/* Found pages that nobody uses are among the free ones: they are counted once, as taken. */
static void test_found_pages_count(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    struct sched_found found[FIX_JOBS] = {[1] = {.tokens = 8, .pages = 2}};
    for (uint32_t i = 0; i < 8; i++) {
        uint32_t free = 3 + i / 2;
        found[1].pages = i % 2 * 2;
        struct fixture *f = fix_open(&o);
        f->snapshot.found = found_of;
        f->snapshot.context = found;
        fix_enter(f, 0, SCHED_BASE, 4, 1); /* takes a page, is promised one more */
        (void)fix_plan(f);
        f->snapshot.pages_free = free;
        fix_enter(f, 1, SCHED_BASE, 16, 1); /* four pages, output one, one to spare */
        (void)fix_plan(f);
        assert_int_equal(fix_work(f, 1) != NULL, free >= 4 + found[1].pages);
        fix_close(f);
    }
    found[1].pages = 2;
    for (uint32_t free = 2; free <= 3; free++) { /* alone */
        struct fixture *f = fix_open(&o);
        f->snapshot.found = found_of;
        f->snapshot.context = found;
        f->snapshot.pages_free = free;
        fix_enter(f, 1, SCHED_BASE, 16, 1);
        (void)fix_plan(f);
        if (free == 2) { /* sharing them would leave no page to go on with */
            assert_work(f, 1, 0, 8, 2, false);
        } else {
            assert_work(f, 1, 8, 4, 1, false);
        }
        fix_close(f);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_adapter_major),
        cmocka_unit_test(test_priority),
        cmocka_unit_test(test_one_more_adapter_must_pay),
        cmocka_unit_test(test_an_adapter_that_fits_starts),
        cmocka_unit_test(test_in_the_order_of_arrival),
        cmocka_unit_test(test_loads_ahead),
        cmocka_unit_test(test_room_is_made_for_several),
        cmocka_unit_test(test_a_split_pool_keeps_adapters_to_their_part),
        cmocka_unit_test(test_a_split_pool_keeps_kv_to_its_part),
        cmocka_unit_test(test_head_room),
        cmocka_unit_test(test_alone_with_few_pages),
        cmocka_unit_test(test_aged_closes_the_door),
        cmocka_unit_test(test_aged_take_turns),
        cmocka_unit_test(test_nobody_starves),
        cmocka_unit_test(test_loads),
        cmocka_unit_test(test_a_load_leaves_pages_to_what_runs),
        cmocka_unit_test(test_evicts_for_a_load),
        cmocka_unit_test(test_an_adapter_larger_than_the_pool),
        cmocka_unit_test(test_fetches),
        cmocka_unit_test(test_fetches_in_vain_grow_rare),
        cmocka_unit_test(test_fewer_fetches_while_they_fail),
        cmocka_unit_test(test_a_fetch_in_vain_evicts),
        cmocka_unit_test(test_same_calls_same_plans),
        cmocka_unit_test(test_starts_behind_what_is_found),
        cmocka_unit_test(test_found_pages_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
