/* sim_backlog - what planning over the backlog is worth: the scheduler alone, whole workloads, and
 * a GPU of made-up times; by adapter and in the order of arrival, in one pool and in a split one.
 * It prints what came of it, and fails where the plan reads more, or takes longer, than it should.
 * A seed, no clock.
 *
 * The times are those of Llama-3.1-8B, and of Llama-2-7B, in bf16 on one H200: some 3.5 ms for a
 * step's weights, 20 us a row and the KV that it reads (at 8B 26 us at a context of 200), 22.6 us a
 * prompt token, adapter pages over the memory's bandwidth (8B, rank 16: 84 MB, 22 us). Copies into
 * pages run one after the other, beside the steps. The scheduler's priors are those of
 * worker/plan.c, which are not these. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scheduler/scheduler.h"
#include "tests/unit/seed.h"

#define NOISE 0.02

enum {
    PAGE_TOKENS = 16,
    STEP_TOKENS = 8192,
    WAIT_STEPS = 2000, /* scheduler.wait_steps */
    LENGTH = 128,      /* of prompts and of outputs, where a load does not say */
    JOB_PAGES = 2 * LENGTH / PAGE_TOKENS,
    H200_PAGES = 52000,
    SMALL_PAGES = 24000, /* of a GPU with 80 GB */
    A10G_PAGES = 907,    /* beside Llama-2-7B: 14,500 tokens */
};

struct model { /* on the GPU */
    double fixed_us, row_us, prompt_us;
    double context_us;               /* of each token attended to */
    uint32_t page_bytes, rank_pages; /* of an adapter of rank 16 */
    double prior_us[3];              /* the scheduler's: fixed, a row, a page */
};

static const struct model llama_3_8b = {3600, 20, 22.6, 0.031, 2 << 20, 40, {5350, 32, 0.7}};
static const struct model llama_2_7b = {3300,           18, 20, 0.125, 8 << 20, 4,
                                        {4500, 27, 2.8}}; /* qkvo */

#define BANDWIDTH 3.8e6 /* bytes a us: adapter pages in a step */
#define COPY_BYTES 5e4  /* host store → pages */
#define FETCH_BYTES 5e3 /* root → host store, one thread */

struct load {
    const char *name;
    const struct model *model;
    uint32_t jobs, rows, adapters;
    uint32_t ranks[4], rank_count; /* by turns */
    bool in_turn, skewed;          /* else any adapter, alike */
    bool cold;                     /* adapters lie in the root, else in the host store */
    uint32_t warm;                 /* so many lie in pages */
    uint32_t pages;
    uint32_t sight; /* most jobs in the process, backlog.jobs; 0 = all */
    uint32_t split; /* percentage of the pages, for adapters alone */
    bool uneven;    /* lengths 8 .. 511 */
    double rate;    /* jobs a second, evenly; 0 = all at once */
};

struct job {
    uint32_t adapter, prompt, output, read, held; /* held: pages */
    double came_us, started_us;
    bool running;
};

struct gpu {
    const struct load *load;
    struct sched *sched;
    struct job *jobs;
    struct sched_adapter *adapters;
    double *due_us; /* [adapters] when it is loaded, or fetched */
    uint64_t seed;
    uint32_t pages_free, pages_pending, pages_kv, given, left, preempted;
    double now_us, end_us, copy_us, fetch_us;
    /* the step in flight */
    uint32_t *sampled, sampled_count, step_tokens, step_pages;
    double step_us;
    bool in_flight;
};

struct outcome {
    double seconds, rows, adapters; /* rows, adapters: a step's mean */
    uint64_t steps, bytes_read, loads;
    uint32_t preempted;
    double wait_mean, wait_99, wait_max; /* seconds until a job starts */
};

static void fail(const char *what) {
    (void)fprintf(stderr, "sim_backlog: %s\n", what);
    exit(1);
}

static void *room(size_t count, size_t bytes) {
    void *memory = calloc(count, bytes);
    if (memory == NULL) {
        fail("no memory");
    }
    return memory;
}

/* ---- the workload ------------------------------------------------------------------------- */

/* Zipf's law by its definition: the first adapter up to which the weights exceed what is drawn. */
static uint32_t draw_skewed(uint64_t *seed, uint32_t adapters) {
    double sum = 0;
    for (uint32_t i = 0; i < adapters; i++) {
        sum += 1.0 / (i + 1);
    }
    double left = sum * seed_below(seed, 1000000) / 1e6;
    uint32_t at = 0;
    while (at + 1 < adapters && left >= 1.0 / (at + 1)) {
        left -= 1.0 / (at + 1);
        at++;
    }
    return at;
}

static void make_jobs(struct gpu *g) {
    const struct load *l = g->load;
    for (uint32_t i = 0; i < l->jobs; i++) {
        g->jobs[i].adapter = l->in_turn  ? i % l->adapters
                             : l->skewed ? draw_skewed(&g->seed, l->adapters)
                                         : seed_below(&g->seed, l->adapters);
        g->jobs[i].prompt = l->uneven ? 8 + seed_below(&g->seed, 504) : LENGTH;
        g->jobs[i].output = l->uneven ? 8 + seed_below(&g->seed, 504) : LENGTH;
    }
}

static bool comes(const struct gpu *g) {
    const struct load *l = g->load;
    bool in_sight = l->sight == 0 || g->given + g->left < l->jobs + l->sight;
    bool due = l->rate <= 0 || g->given / l->rate * 1e6 <= g->now_us;
    return g->given < l->jobs && in_sight && due;
}

static void give_jobs(struct gpu *g) {
    while (comes(g)) {
        uint64_t bound = 0;
        struct sched_job job = {.job = g->given,
                                .adapter = g->jobs[g->given].adapter,
                                .prompt_tokens = g->jobs[g->given].prompt,
                                .output_tokens = g->jobs[g->given].output,
                                .deadline_ms = INT64_MAX,
                                .arrival = g->given};
        if (sched_enter(g->sched, &job, &bound) != ERR_OK) {
            fail("a job is refused");
        }
        g->jobs[g->given++].came_us = g->now_us;
    }
}

static uint32_t adapter_pages(const struct load *l, uint32_t adapter) {
    return l->ranks[adapter % l->rank_count] * l->model->rank_pages / 16;
}

static void gpu_open(struct gpu *g, const struct load *l, enum sched_policy policy) {
    *g = (struct gpu){.load = l, .seed = 6, .pages_free = l->pages, .left = l->jobs};
    struct sched_options o = {.policy = policy,
                              .jobs_max = l->jobs,
                              .adapters_max = l->adapters,
                              .rows_max = l->rows,
                              .step_tokens = STEP_TOKENS,
                              .chunk_tokens = STEP_TOKENS,
                              .page_tokens = PAGE_TOKENS,
                              .pages = l->pages,
                              .split_pages = (l->pages * l->split + 99) / 100,
                              .slot_pages = 8192,
                              .wait_steps = WAIT_STEPS,
                              .step_us_fixed = l->model->prior_us[0],
                              .step_us_row = l->model->prior_us[1],
                              .load_us_page = l->model->prior_us[2]};
    if (sched_open(&g->sched, &o) != ERR_OK) {
        fail("no memory");
    }
    g->jobs = room(l->jobs, sizeof *g->jobs);
    g->adapters = room(l->adapters, sizeof *g->adapters);
    g->due_us = room(l->adapters, sizeof *g->due_us);
    g->sampled = room(l->rows, sizeof *g->sampled);
    for (uint32_t i = 0; i < l->adapters; i++) {
        uint32_t pages = adapter_pages(l, i);
        bool resident = i < l->warm && pages + l->rows * JOB_PAGES <= g->pages_free;
        g->adapters[i].state = resident ? SCHED_RESIDENT : l->cold ? SCHED_AWAY : SCHED_STORED;
        g->adapters[i].pages = l->cold ? 0 : pages;
        g->pages_free -= resident ? pages : 0;
    }
    make_jobs(g);
}

static void gpu_close(struct gpu *g) {
    sched_close(g->sched);
    free(g->jobs);
    free(g->adapters);
    free(g->due_us);
    free(g->sampled);
}

/* ---- adapters ----------------------------------------------------------------------------- */

/* Pages come back when the step that is under way has ended. */
static void release(struct gpu *g, uint32_t pages) {
    *(g->in_flight ? &g->pages_pending : &g->pages_free) += pages;
}

static void adapters_turn(struct gpu *g) {
    for (uint32_t i = 0; i < g->load->adapters; i++) {
        struct sched_adapter *a = &g->adapters[i];
        if (a->state == SCHED_LOADING && g->due_us[i] <= g->now_us) {
            a->state = SCHED_RESIDENT;
        } else if (a->state == SCHED_FETCHING && g->due_us[i] <= g->now_us) {
            a->state = SCHED_STORED;
            a->pages = adapter_pages(g->load, i);
        }
    }
}

static double queue_up(double *free_us, double now_us, double us) {
    *free_us = (*free_us > now_us ? *free_us : now_us) + us;
    return *free_us;
}

static void apply_adapters(struct gpu *g, const struct sched_plan *plan) {
    for (uint32_t i = 0; i < plan->evict_count; i++) {
        struct sched_adapter *a = &g->adapters[plan->evicts[i]];
        a->state = SCHED_STORED; /* the host store has room for all */
        release(g, a->pages);
    }
    for (uint32_t i = 0; i < plan->load_count; i++) {
        uint32_t a = plan->loads[i];
        if (g->adapters[a].state != SCHED_STORED || g->adapters[a].pages > g->pages_free) {
            fail("loads what it cannot");
        }
        g->adapters[a].state = SCHED_LOADING;
        g->pages_free -= g->adapters[a].pages;
        double bytes = g->adapters[a].pages * (double)g->load->model->page_bytes;
        g->due_us[a] = queue_up(&g->copy_us, g->now_us, bytes / COPY_BYTES);
    }
    for (uint32_t i = 0; i < plan->fetch_count; i++) {
        uint32_t a = plan->fetches[i];
        double bytes = adapter_pages(g->load, a) * (double)g->load->model->page_bytes;
        g->adapters[a].state = SCHED_FETCHING;
        g->due_us[a] = queue_up(&g->fetch_us, g->now_us, bytes / FETCH_BYTES);
    }
}

/* ---- steps -------------------------------------------------------------------------------- */

static double row_us(const struct model *m, const struct sched_work *w) {
    double context = w->position + (double)w->tokens / 2;
    return w->tokens > 1 ? w->tokens * m->prompt_us : m->row_us + context * m->context_us;
}

/* The step that the plan says, into the gpu's fields; what was in flight is read by the caller. */
static void launch(struct gpu *g, const struct sched_plan *plan, struct outcome *out) {
    const struct model *m = g->load->model;
    uint32_t last = SCHED_BASE;
    uint32_t adapters = 0;
    g->sampled_count = g->step_pages = 0;
    g->step_tokens = plan->tokens;
    g->step_us = m->fixed_us;
    for (uint32_t i = 0; i < plan->work_count; i++) {
        const struct sched_work *w = &plan->work[i];
        struct job *j = &g->jobs[w->job];
        if (w->adapter != last) {
            g->step_pages += g->adapters[w->adapter].pages;
            adapters++;
            last = w->adapter;
        }
        if (w->starts) {
            g->adapters[w->adapter].users++;
            j->running = true;
            j->started_us = j->started_us > 0 ? j->started_us : g->now_us + 1;
        }
        if (w->pages > g->pages_free || g->adapters[w->adapter].state != SCHED_RESIDENT) {
            fail("a row without pages");
        }
        g->pages_free -= w->pages;
        g->pages_kv += w->pages;
        j->held += w->pages;
        g->step_us += row_us(m, w);
        if (w->sample) {
            g->sampled[g->sampled_count++] = w->job;
        }
    }
    double bytes = g->step_pages * (double)m->page_bytes;
    g->step_us += bytes / BANDWIDTH;
    g->step_us *= 1 - NOISE / 2 + NOISE * seed_below(&g->seed, 1000) / 1000;
    out->steps++;
    out->rows += plan->work_count;
    out->adapters += adapters;
    out->bytes_read += (uint64_t)bytes;
}

struct flown { /* a step, while the next one is under way */
    uint32_t *jobs, count, tokens, pages;
    double us;
};

static void leave(struct gpu *g, uint32_t job) {
    struct job *j = &g->jobs[job];
    sched_leave(g->sched, job);
    if (j->running) {
        g->adapters[j->adapter].users--;
        g->pages_kv -= j->held;
        release(g, j->held);
    }
    g->left--;
}

static void read_step(struct gpu *g, const struct flown *f) {
    g->now_us = g->end_us;
    g->pages_free += g->pages_pending;
    g->pages_pending = 0;
    sched_learn(g->sched, f->tokens, f->pages, f->us);
    for (uint32_t i = 0; i < f->count; i++) {
        struct job *j = &g->jobs[f->jobs[i]];
        if (++j->read == j->output) { /* a preempted one's token counts as well */
            leave(g, f->jobs[i]);
        }
    }
}

static void preempt(struct gpu *g, uint32_t job) {
    struct job *j = &g->jobs[job];
    g->pages_kv -= j->held;
    release(g, j->held);
    g->adapters[j->adapter].users--;
    j->held = 0;
    g->preempted++;
    j->running = false;
}

static int by_value(const void *a, const void *b) {
    const double *x = a;
    const double *y = b;
    return *x < *y ? -1 : *x > *y;
}

static void waits(const struct gpu *g, struct outcome *out) {
    uint32_t count = g->load->jobs;
    double *wait = room(count, sizeof *wait);
    for (uint32_t i = 0; i < count; i++) {
        wait[i] = (g->jobs[i].started_us - g->jobs[i].came_us) / 1e6;
        out->wait_mean += wait[i] / count;
    }
    qsort(wait, count, sizeof *wait, by_value);
    out->wait_99 = wait[(uint64_t)count * 99 / 100];
    out->wait_max = wait[count - 1];
    free(wait);
}

static struct outcome run(const struct load *l, enum sched_policy policy) {
    struct gpu g;
    struct outcome out = {0};
    struct flown f = {0};
    gpu_open(&g, l, policy);
    f.jobs = room(l->rows, sizeof *f.jobs);
    for (uint32_t idle = 0; g.left > 0;) {
        give_jobs(&g);
        adapters_turn(&g);
        struct sched_snapshot snapshot = {.now_ms = 1,
                                          .pages_free = g.pages_free,
                                          .pages_pending = g.pages_pending,
                                          .pages_kv = g.pages_kv,
                                          .pages_adapters = l->pages - g.pages_free -
                                                            g.pages_pending - g.pages_kv,
                                          .adapter_slots_free = l->adapters,
                                          .adapters = g.adapters};
        struct sched_plan plan;
        sched_plan(g.sched, &snapshot, &plan);
        for (uint32_t i = 0; i < plan.preempt_count; i++) {
            preempt(&g, plan.preempts[i]);
        }
        apply_adapters(&g, &plan);
        out.loads += plan.load_count;
        bool had = g.in_flight;
        double begin_us = had ? g.end_us : g.now_us;
        if (plan.work_count > 0) {
            memcpy(f.jobs, g.sampled, g.sampled_count * sizeof *f.jobs);
            f.count = g.sampled_count;
            f.tokens = g.step_tokens;
            f.pages = g.step_pages;
            f.us = g.step_us;
            launch(&g, &plan, &out);
            g.in_flight = true;
        } else if (had) {
            f = (struct flown){f.jobs, g.sampled_count, g.step_tokens, g.step_pages, g.step_us};
            memcpy(f.jobs, g.sampled, g.sampled_count * sizeof *f.jobs);
            g.in_flight = false;
        }
        if (had) {
            read_step(&g, &f);
        }
        if (plan.work_count > 0) {
            g.end_us = begin_us + g.step_us;
        }
        if (!had && plan.work_count == 0) {
            g.now_us += 100;
        }
        idle = plan.work_count > 0 ? 0 : idle + 1;
        if (idle > 1000000 || plan.abort_count > 0) {
            fail("stuck, or jobs are aborted");
        }
    }
    out.seconds = g.now_us / 1e6;
    out.preempted = g.preempted;
    waits(&g, &out);
    out.rows /= (double)out.steps;
    out.adapters /= (double)out.steps;
    free(f.jobs);
    gpu_close(&g);
    return out;
}

/* ---- the cases ---------------------------------------------------------------------------- */

static struct outcome show(const struct load *l, enum sched_policy policy) {
    struct outcome o = run(l, policy);
    (void)printf("%-13s %-8s %7.2f s %6" PRIu64 " steps %7.1f rows %6.1f adapters a step, read "
                 "%8.1f GB, %5" PRIu64 " loads, %u preempted\n",
                 l->name, policy == SCHED_ARRIVAL ? "arrival" : "backlog", o.seconds, o.steps,
                 o.rows, o.adapters, (double)o.bytes_read / 1e9, o.loads, o.preempted);
    (void)fflush(stdout);
    return o;
}

static void require(bool holds, const struct load *l, const char *what) {
    if (!holds) {
        (void)fprintf(stderr, "sim_backlog: %s: %s\n", l->name, what);
        exit(1);
    }
}

/* The same jobs under both policies: `reads` times fewer bytes of adapters, `times` faster. */
static struct outcome compare(const struct load *l, double reads, double times) {
    struct outcome a = show(l, SCHED_ARRIVAL);
    struct outcome b = show(l, SCHED_BACKLOG);
    double fewer = (double)a.bytes_read / (double)b.bytes_read;
    double faster = a.seconds / b.seconds;
    (void)printf("%-13s %.2f x fewer bytes of adapters, %.2f x faster\n", l->name, fewer, faster);
    require(fewer >= reads, l, "it reads too much");
    require(faster >= times, l, "it is too slow");
    return b;
}

#define R16 .ranks = {16}, .rank_count = 1
#define R64 .ranks = {64}, .rank_count = 1
#define TURNS .ranks = {8, 16, 32, 64}, .rank_count = 4
#define G .model = &llama_3_8b, .jobs = 10000, .rows = 256
#define A1 .model = &llama_3_8b, .jobs = 1000, .rows = 1024, .pages = H200_PAGES

/* Cases of at most 1,024 rows that all jobs fit into: a step for each prompt's turn and token, and
 * few more. */
static const struct {
    struct load load;
    uint64_t steps_max;
} full[] = {
    {{"A1", A1, .adapters = 1, R16, .warm = 1}, 144},
    {{"B1:8", A1, .adapters = 8, R16, .in_turn = true, .warm = 8}, 144},
    {{"B1:200", A1, .adapters = 200, R16, .warm = 200}, 146},
    {{"B1:200 stored", A1, .adapters = 200, R16}, 150},
    {{"C1:200", A1, .adapters = 200, R64, .warm = 200}, 146},
    {{"D1:32", A1, .adapters = 32, TURNS, .warm = 32}, 146},
    {{"D1:500", A1, .adapters = 500, TURNS, .warm = 500}, 180}, /* more than the pool has */
    {{"skewed:500", A1, .adapters = 500, TURNS, .skewed = true, .warm = 500}, 160},
};

/* A1's jobs on 8 adapters in turn and 256 rows, in a pool with room for few adapters beside these
 * rows: within 5 % of one that has room for all. */
static void churn(void) {
    enum { ROWS = 256, ALL = 8 };
    static const uint32_t rooms[] = {ALL, 2, 1};
    double all_s = 0;
    for (size_t i = 0; i < sizeof rooms / sizeof rooms[0]; i++) {
        char name[16];
        (void)snprintf(name, sizeof name, "churn:%u", rooms[i]);
        struct load l = {name, A1, .adapters = ALL, R16, .in_turn = true};
        l.rows = ROWS;
        l.pages = rooms[i] * llama_3_8b.rank_pages + ROWS * (JOB_PAGES + 2);
        l.warm = rooms[i];
        struct outcome o = show(&l, SCHED_BACKLOG);
        all_s = i == 0 ? o.seconds : all_s;
        require(o.seconds < all_s / 0.95, &l, "it waits for adapters");
    }
}

/* GPUs that the priors are wrong about by far: rows stay full all the same. */
static void odd_gpus(void) {
    static const struct {
        const char *name;
        struct model model;
    } gpus[] = {
        {"slow weights", {20000, 5, 5, 0.031, 2 << 20, 40, {5350, 32, 0.7}}},
        {"slow rows", {600, 60, 60, 0.1, 2 << 20, 40, {5350, 32, 0.7}}},
        {"slow pages", {3600, 20, 22.6, 0.031, 2 << 20, 40, {5350, 32, 0.1}}},
        {"fast pages", {3600, 20, 22.6, 0.031, 2 << 20, 40, {5350, 32, 4}}},
    };
    for (size_t i = 0; i < sizeof gpus / sizeof gpus[0]; i++) {
        struct load l = {gpus[i].name, A1, .adapters = 500, TURNS, .skewed = true, .warm = 500};
        l.model = &gpus[i].model;
        struct outcome o = show(&l, SCHED_BACKLOG);
        require(o.steps <= 160, &l, "rows stay empty");
    }
}

/* S-LoRA's S2 in a pool of an A10G's size: one pool for both against parts of it. */
static void parts(void) {
    double one_s = 0;
    double best_s = 0;
    for (uint32_t split = 0; split <= 60; split += 10) {
        char name[16];
        (void)snprintf(name, sizeof name, split > 0 ? "S2, %u %%" : "S2, unified", split);
        struct load l = {name,
                         .model = &llama_2_7b,
                         .jobs = 1000,
                         .rows = 1024,
                         .adapters = 200,
                         .ranks = {64, 32, 16, 8},
                         .rank_count = 4,
                         .pages = A10G_PAGES,
                         .split = split,
                         .uneven = true};
        for (int arrival = 0; arrival < 2; arrival++) {
            struct outcome o = show(&l, arrival ? SCHED_ARRIVAL : SCHED_BACKLOG);
            if (arrival) {
                continue;
            }
            one_s = split == 0 ? o.seconds : one_s;
            best_s = split > 0 && (best_s <= 0 || o.seconds < best_s) ? o.seconds : best_s;
        }
    }
    (void)printf("S2            one pool is %.2f x as fast as the best parts\n", best_s / one_s);
    if (best_s <= one_s) {
        fail("S2: parts are better than one pool");
    }
}

/* Jobs that come at a rate, on adapters of which few have most. Where rows are free both orders are
 * one; where they are not, backlog does more a second, and the jobs of rare adapters, which pay for
 * it, wait little more than wait_steps. */
static void streams(void) {
    static const double rates[] = {60, 90, 118};
    for (size_t i = 0; i < sizeof rates / sizeof rates[0]; i++) {
        char name[16];
        struct outcome o[2];
        (void)snprintf(name, sizeof name, "%.0f a second", rates[i]);
        struct load l = {name, G, .adapters = 1000, R64, .skewed = true, .pages = H200_PAGES};
        l.rate = rates[i];
        for (enum sched_policy policy = SCHED_BACKLOG; policy <= SCHED_ARRIVAL; policy++) {
            o[policy] = show(&l, policy);
            (void)printf("              waits: %.3f s mean, %.3f p99, %.3f at most\n",
                         o[policy].wait_mean, o[policy].wait_99, o[policy].wait_max);
        }
        const struct outcome *b = &o[SCHED_BACKLOG];
        double step_s = b->seconds / (double)b->steps;
        require(b->wait_mean < 1.05 * o[SCHED_ARRIVAL].wait_mean, &l, "jobs wait longer");
        require(b->wait_max < (WAIT_STEPS + 600) * step_s, &l, "a job waits too long");
    }
}

int main(void) {
    static const struct load g[] = {
        {"G16", G, .adapters = 1000, R16, .warm = 1000, .pages = H200_PAGES},
        {"G16, 80 GB", G, .adapters = 1000, R16, .warm = 1000, .pages = SMALL_PAGES},
        {"G64", G, .adapters = 200, R64, .warm = 200, .pages = H200_PAGES},
        {"G64, 80 GB", G, .adapters = 200, R64, .warm = 200, .pages = SMALL_PAGES},
    };
    static const struct load cold = {"G16, cold",         G, .adapters = 1000, R16, .cold = true,
                                     .pages = SMALL_PAGES};
    streams();
    odd_gpus();
    parts();
    churn();
    struct outcome warm = compare(&g[0], 1.5, 1.10);
    (void)compare(&g[1], 1.5, 1.10);
    (void)compare(&g[2], 1.5, 1.35);
    (void)compare(&g[3], 1.5, 1.35);
    for (uint32_t sight = 1024; sight <= 4096;
         sight *= 2) { /* what a shorter look-ahead is worth */
        struct load near = g[0];
        char name[16];
        (void)snprintf(name, sizeof name, "G16 of %u", sight);
        near.name = name;
        near.sight = sight;
        (void)show(&near, SCHED_BACKLOG);
    }
    struct outcome o = show(&cold, SCHED_BACKLOG);
    require(o.seconds < 1.02 * warm.seconds, &cold, "fetches and loads are not hidden");
    for (size_t i = 0; i < sizeof full / sizeof full[0]; i++) {
        o = show(&full[i].load, SCHED_BACKLOG);
        require(o.steps <= full[i].steps_max, &full[i].load, "rows stay empty");
    }
    return 0;
}
