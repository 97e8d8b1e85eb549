/* cmd_bench.c - `lorry bench`: offline throughput of the engine on made-up jobs. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/bench/bench.h"
#include "tools/tool.h"

static const char *const own_flags[] = {
    "--case=",          "--shape=",  "--jobs=",        "--input=",   "--output=",
    "--adapter-count=", "--rank=",   "--order=",       "--targets=", "--popularity=",
    "--seed=",          "--rows=",   "--step-tokens=", "--rate=",    "--room=",
    "--pool-tokens=",   "--split=",  "--arrival",      "--repeat=",  "--shared=",
    "--resident=",      "--layers=", "--merged",       "--json",     NULL};

static const char help[] =
    "Runs jobs of random tokens through the engine (scheduler, pool and device, one step ahead;\n"
    "no queue, no text) and reports tokens a second, times of steps and of the loop, what the\n"
    "device did and how much of its measured peaks that was. Lengths are forced, sampling is\n"
    "greedy, prefixes are shared where --shared says so. Some jobs and all adapters are run\n"
    "once before.\n"
    "\n"
    "The model is --model DIR, or random weights of a shape, made on the device.\n"
    "\n"
    "  --shape NAME|FILE   llama-3.1-8b, llama-2-7b, llama-2-13b, qwen2.5-7b, tiny, or a\n"
    "                      config.json; without it the case's, else llama-3.1-8b on a GPU and\n"
    "                      tiny on a CPU\n"
    "  --layers N          a slice of the shape, its first N layers: adapters and steps shrink\n"
    "                      alike, all but the head\n"
    "  --case NAMES        workloads by name, separated by commas: `--case help` lists them.\n"
    "                      What follows changes them\n"
    "  --jobs N            how many jobs [1000]\n"
    "  --input LENGTH      tokens of a prompt: N, or uniform:LOW:HIGH (HIGH not included) [128]\n"
    "  --output LENGTH     tokens of an answer, likewise [128]\n"
    "  --shared N          the first N tokens of all prompts for an adapter are the same, and\n"
    "                      computed once: pool.prefixes\n"
    "  --adapter-count K   adapters, made in the host store; 0 = none [0]\n"
    "  --rank R[,R2…]      their ranks, in turn [16]\n"
    "  --targets all|qkvo  the projections that they change [all]\n"
    "  --order ORDER       which one a job names: round-robin, random, sorted, skewed:ALPHA\n"
    "                      (weight 1/rank^ALPHA), geometric:ALPHA, power:ALPHA (S-LoRA's)\n"
    "  --popularity P      Punica's distinct, uniform, skewed or identical, for adapters and "
    "order\n"
    "  --arrival           jobs in the order in which they came: scheduler.policy arrival\n"
    "  --merged            one adapter's rows run with its product in the weights:\n"
    "                      scheduler.merged\n"
    "  --room K            a pool with pages for K adapters, and for the rows\n"
    "  --resident K        at most K adapters in pages at once, however many fit\n"
    "  --pool-tokens N     a pool as large as the KV of N tokens\n"
    "  --split P           P % of the pool for adapters alone, the rest for KV alone: pool.split\n"
    "  --rate R            R jobs a second, Poisson; without it all come at once\n"
    "  --rows N            most sequences at once;  --step-tokens N  most tokens of a step\n"
    "  --repeat N          each case so often; the first runs warm up what the others find [1]\n"
    "  --seed N            of weights, jobs and adapters [1]\n"
    "  --json              one object a case, on stdout\n"
    "\n"
    "  lorry bench --case A1,A2,E1\n"
    "  lorry bench --shape llama-2-7b --jobs 500 --input uniform:8:512 --output uniform:8:512 \\\n"
    "      --adapter-count 200 --rank 8,16,32,64 --order power:0.6\n"
    "  lorry bench --model DIR --jobs 32 --input 64 --output 64\n";

enum {
    CASES_MAX = 64,
    JOBS_MAX = 1000000,
    REPEAT_MAX = 1000,
    ADAPTERS_MAX = 4096, /* resident at once */
    TOKENS_MAX = 1 << 20,
    CONFIG_BYTES_MAX = 4 << 20,
    STORE_PERCENT = 70,            /* of the machine's memory, at most, for adapters */
    FIRST_STORE_BYTES = 512 << 20, /* holds fewer adapters than firstload has */
    RESIDENT_PERCENT = 80,         /* of the pool, for what the warm-up leaves there */
};

/* ---- the command line --------------------------------------------------------------------- */

static enum err take_u32(const struct tool *t, const char *flag, uint32_t min, uint32_t max,
                         uint32_t *value, struct err_text *why) {
    int64_t number = 0;
    if (tool_flag(t, flag) == NULL) {
        return ERR_OK;
    }
    enum err e = tool_int(flag, tool_flag(t, flag), min, max, &number, why);
    *value = e == ERR_OK ? (uint32_t)number : *value;
    return e;
}

static enum err take_length(const struct tool *t, const char *flag, struct bench_length *length,
                            struct err_text *why) {
    const char *text = tool_flag(t, flag);
    struct bench_length l = {0};
    char rest = '\0';
    if (text == NULL) {
        return ERR_OK;
    }
    bool range = sscanf(text, "uniform:%u:%u%c", &l.low, &l.high, &rest) == 2;
    if (!range) {
        l.high = 0;
        if (sscanf(text, "%u%c", &l.low, &rest) != 1) {
            l.low = 0;
        }
    }
    if (l.low < 1 || l.low > TOKENS_MAX || l.high > TOKENS_MAX || (range && l.high <= l.low)) {
        return err_set(why, ERR_BAD_CONFIG, "%s takes N or uniform:LOW:HIGH, not '%.64s'", flag,
                       text);
    }
    *length = l;
    return ERR_OK;
}

static enum err take_ranks(const struct tool *t, struct bench_case *c, struct err_text *why) {
    const char *at = tool_flag(t, "--rank");
    if (at == NULL) {
        return ERR_OK;
    }
    c->rank_count = 0;
    for (;;) {
        char *end = NULL;
        unsigned long rank = strtoul(at, &end, 10);
        if (end == at || (*end != ',' && *end != '\0') || rank < 1 || rank > KERN_RANK_MAX ||
            c->rank_count == BENCH_RANKS_MAX) {
            return err_set(why, ERR_BAD_CONFIG, "--rank takes up to %d ranks of 1 .. %d",
                           BENCH_RANKS_MAX, KERN_RANK_MAX);
        }
        c->ranks[c->rank_count++] = (uint32_t)rank;
        if (*end == '\0') {
            return ERR_OK;
        }
        at = end + 1;
    }
}

static enum err take_choices(const struct tool *t, struct bench_case *c, struct err_text *why) {
    const char *order = tool_flag(t, "--order");
    const char *targets = tool_flag(t, "--targets");
    const char *popularity = tool_flag(t, "--popularity");
    const char *rate = tool_flag(t, "--rate");
    if (order != NULL && !bench_order_parse(order, c)) {
        return err_set(why, ERR_BAD_CONFIG, "--order: '%.64s' is no order", order);
    }
    if (popularity != NULL && !bench_popularity_parse(popularity, c)) {
        return err_set(why, ERR_BAD_CONFIG,
                       "--popularity takes distinct, uniform, skewed or identical");
    }
    if (targets != NULL) {
        c->qkvo = strcmp(targets, "qkvo") == 0;
        if (!c->qkvo && strcmp(targets, "all") != 0) {
            return err_set(why, ERR_BAD_CONFIG, "--targets takes all or qkvo");
        }
    }
    if (rate != NULL) {
        char *end = NULL;
        c->rate = strtod(rate, &end);
        c->cv = 1;
        if (end == rate || *end != '\0' || !(c->rate > 0 && c->rate < 1e6)) {
            return err_set(why, ERR_BAD_CONFIG, "--rate takes jobs a second, not '%.64s'", rate);
        }
    }
    return ERR_OK;
}

/* What the flags say of a case. */
static enum err take_case(const struct tool *t, struct bench_case *c, struct err_text *why) {
    uint32_t seed = 1;
    enum err e = take_u32(t, "--jobs", 1, JOBS_MAX, &c->jobs, why);
    e = e == ERR_OK ? take_length(t, "--input", &c->input, why) : e;
    e = e == ERR_OK ? take_length(t, "--output", &c->output, why) : e;
    e = e == ERR_OK ? take_u32(t, "--adapter-count", 0, JOBS_MAX, &c->adapters, why) : e;
    e = e == ERR_OK ? take_ranks(t, c, why) : e;
    e = e == ERR_OK ? take_choices(t, c, why) : e;
    e = e == ERR_OK ? take_u32(t, "--shared", 1, INT32_MAX, &c->shared, why) : e;
    e = e == ERR_OK ? take_u32(t, "--room", 1, JOBS_MAX, &c->room, why) : e;
    e = e == ERR_OK ? take_u32(t, "--resident", 1, JOBS_MAX, &c->resident, why) : e;
    e = e == ERR_OK ? take_u32(t, "--layers", 1, 1024, &c->layers, why) : e;
    e = e == ERR_OK ? take_u32(t, "--pool-tokens", 1, INT32_MAX, &c->pool_tokens, why) : e;
    e = e == ERR_OK ? take_u32(t, "--split", 0, 99, &c->split, why) : e;
    e = e == ERR_OK ? take_u32(t, "--rows", 1, 65536, &c->rows, why) : e;
    e = e == ERR_OK ? take_u32(t, "--step-tokens", 16, 65536, &c->step_tokens, why) : e;
    e = e == ERR_OK ? take_u32(t, "--seed", 0, UINT32_MAX, &seed, why) : e;
    c->seed = seed;
    c->arrival = c->arrival || tool_flag(t, "--arrival") != NULL;
    if (e == ERR_OK && c->adapters > 0 && c->rank_count == 0) {
        c->ranks[c->rank_count++] = 16;
    }
    if (e == ERR_OK && c->room > 0 && c->pool_tokens > 0) {
        e = err_set(why, ERR_BAD_CONFIG, "--room and --pool-tokens both size the pool: give one");
    }
    if (e == ERR_OK && c->room > 0 && c->adapters == 0) {
        e = err_set(why, ERR_BAD_CONFIG, "--room is of adapters: give --adapter-count too");
    }
    return e;
}

/* The cases that --case names, or the one that the flags describe. */
static enum err take_cases(const struct tool *t, struct bench_case cases[CASES_MAX],
                           uint32_t *count, struct err_text *why) {
    const char *names = tool_flag(t, "--case");
    *count = 0;
    if (names == NULL) {
        cases[(*count)++] = (struct bench_case){
            .name = "custom", .jobs = 1000, .input = {128, 0}, .output = {128, 0}};
    }
    for (const char *at = names; at != NULL && *at != '\0';) {
        char name[BENCH_NAME_BYTES];
        size_t bytes = strcspn(at, ",");
        (void)snprintf(name, sizeof name, "%.*s", (int)bytes, at);
        if (*count == CASES_MAX || !bench_case_find(name, &cases[*count])) {
            return err_set(why, ERR_BAD_CONFIG, "--case: there is no '%.64s'; `--case help`", name);
        }
        (*count)++;
        at += bytes + (at[bytes] == ',');
    }
    enum err e = *count > 0 ? ERR_OK : err_set(why, ERR_BAD_CONFIG, "--case names none");
    for (uint32_t i = 0; i < *count && e == ERR_OK; i++) {
        e = take_case(t, &cases[i], why);
    }
    return e;
}

/* ---- the model ---------------------------------------------------------------------------- */

/* The text of a config.json; malloc'ed. */
static enum err read_config(const char *path, char **text, size_t *bytes, struct err_text *why) {
    FILE *file = fopen(path, "re");
    char *room = malloc(CONFIG_BYTES_MAX);
    enum err e = ERR_OK;
    if (file == NULL) {
        e = err_set(why, ERR_BAD_CONFIG, "--shape: %.256s is neither a file (%s) nor one of %s",
                    path, strerror(errno), bench_shape_names());
    } else if (room == NULL) {
        e = err_set(why, ERR_NO_MEMORY, "no memory for %.256s", path);
    } else {
        *bytes = fread(room, 1, CONFIG_BYTES_MAX, file);
        *text = room;
        room = NULL;
    }
    free(room);
    if (file != NULL) {
        (void)fclose(file);
    }
    return e;
}

/* The model of a config.json, or a slice of it. */
static enum err open_text(const char *name, const char *text, size_t bytes, uint32_t layers,
                          struct model **model, struct err_text *why) {
    char *slice = NULL;
    if (layers == 0) {
        return model_open_config(model, name, text, bytes, why);
    }
    enum err e = bench_shape_slice(text, bytes, layers, &slice);
    if (e != ERR_OK) {
        return err_set(why, e, "--layers: %.128s has no %u of them", name, layers);
    }
    e = model_open_config(model, name, slice, strlen(slice), why);
    free(slice);
    return e;
}

static enum err open_model(const struct tool *t, const char *shape, uint32_t layers,
                           struct model **model, struct err_text *why) {
    if (shape == NULL) {
        return layers == 0 ? model_open(model, t->config->model_dir, why)
                           : err_set(why, ERR_BAD_CONFIG, "--layers is of a shape, not of a model");
    }
    const char *known = bench_shape(shape);
    if (known != NULL) {
        return open_text(shape, known, strlen(known), layers, model, why);
    }
    char *text = NULL;
    size_t bytes = 0;
    enum err e = read_config(shape, &text, &bytes, why);
    if (e == ERR_OK) {
        const char *slash = strrchr(shape, '/');
        e = open_text(slash != NULL ? slash + 1 : shape, text, bytes, layers, model, why);
    }
    free(text);
    return e;
}

/* The shape of a case; NULL: the model folder that is given. */
static const char *shape_of(const struct tool *t, const struct bench_case *c) {
    if (tool_flag(t, "--shape") != NULL) {
        return tool_flag(t, "--shape");
    }
    if (t->config->model_dir[0] != '\0') {
        return NULL;
    }
    if (c->shape != NULL) {
        return c->shape;
    }
    return kern_find(t->config->device_kind, NULL) == kern_cpu() ? "tiny" : "llama-3.1-8b";
}

/* ---- a case ------------------------------------------------------------------------------- */

struct bench { /* what cases of one shape share */
    const struct tool *t;
    struct config config; /* with a table for as many adapters as a case has */
    const char *shape;
    struct model *model;
    struct worker_bench *bench;
};

static uint32_t pages_of(uint32_t tokens, const struct worker_plan *plan) {
    return (tokens + plan->page_tokens - 1) / plan->page_tokens;
}

static uint32_t longest(struct bench_length l) {
    return l.high > l.low ? l.high - 1 : l.low;
}

/* Pages of the largest adapter. */
static uint32_t largest_adapter(const struct bench_case *c, const struct bench_adapters *a) {
    uint32_t most = 0;
    for (uint32_t i = 0; i < c->rank_count && c->adapters > 0; i++) {
        uint32_t pages = bench_adapter_pages(a, c->ranks[i]);
        most = pages > most ? pages : most;
    }
    return most;
}

/* Pages of the case's pool, 0 = all; and how many adapters the warm-up may leave in it. */
static void size_pool(const struct bench_case *c, uint32_t adapter_pages,
                      const struct worker_plan *plan, struct worker_bench_run *run,
                      uint32_t *resident_max) {
    *resident_max = 0;
    if (c->beside && plan->page_count > WORKER_BENCH_LOADS * adapter_pages) {
        run->pages = plan->page_count - WORKER_BENCH_LOADS * adapter_pages;
    }
    if (c->pool_tokens > 0) {
        run->pages = pages_of(c->pool_tokens, plan);
    }
    if (c->room > 0) {
        uint32_t rows = c->rows > 0 ? c->rows : plan->rows;
        uint32_t row = pages_of(longest(c->input) + longest(c->output), plan);
        run->pages = c->room * adapter_pages + (rows < c->jobs ? rows : c->jobs) * row;
        *resident_max = c->room;
    } else if (adapter_pages > 0) {
        uint64_t pages = run->pages > 0 ? run->pages : plan->page_count;
        pages = pages * (c->split > 0 ? c->split : RESIDENT_PERCENT) / 100;
        *resident_max = (uint32_t)(pages / adapter_pages);
        *resident_max = *resident_max < ADAPTERS_MAX ? *resident_max : ADAPTERS_MAX;
    }
    if (c->resident > 0 && c->resident < *resident_max) {
        *resident_max = c->resident;
    }
}

/* Every job must end by its length, so it must fit. */
static enum err check_lengths(const struct bench_case *c, const struct model_facts *model,
                              const struct worker_bench_run *run, const struct worker_plan *plan,
                              uint32_t adapter_pages, struct err_text *why) {
    uint32_t tokens = longest(c->input) + longest(c->output);
    uint32_t pages = run->pages > 0 ? run->pages : plan->page_count;
    uint64_t row_pages = pages_of(tokens, plan) + 1;
    uint32_t part = (uint32_t)(((uint64_t)pages * c->split + 99) / 100); /* as the engine has it */
    bool fits = pages <= plan->page_count && row_pages + adapter_pages <= pages;
    if (c->split > 0) {
        fits = fits && row_pages <= pages - part && adapter_pages <= part;
    }
    if (tokens > model->shape.positions) {
        return err_set(why, ERR_BAD_CONFIG,
                       "%s: %u tokens of input and output do not fit into "
                       "%s's context of %u",
                       c->name, tokens, model->name, model->shape.positions);
    }
    if (!fits) {
        return err_set(why, ERR_BAD_CONFIG,
                       "%s: the device's pool has %u pages and the case's %u, %u of them for "
                       "adapters alone; a job takes %u and an adapter %u",
                       c->name, plan->page_count, pages, part, (uint32_t)row_pages, adapter_pages);
    }
    return ERR_OK;
}

/* Decode steps alone against those beside loads. */
static void report_beside(const struct bench_figures *alone, const struct bench_figures *loaded,
                          const struct worker_bench_report *r) {
    (void)printf("  beside loads   %.1f GB/s of adapters; decode steps p50 %.3f ms, alone %.3f "
                 "(%.3f times); mean %.3f, alone %.3f (%.3f times)\n\n",
                 r->beside_s > 0 ? (double)r->beside_bytes / r->beside_s / 1e9 : 0.0,
                 loaded->decode.p50, alone->decode.p50, loaded->decode.p50 / alone->decode.p50,
                 loaded->decode.mean, alone->decode.mean, loaded->decode.mean / alone->decode.mean);
    (void)fflush(stdout);
}

/* The same jobs again, while an adapter is loaded again and again. */
static enum err run_beside(const struct bench *b, struct bench_adapters *adapters,
                           const struct bench_case *c, const struct bench_jobs *jobs,
                           struct worker_bench_run *run, const struct bench_figures *alone,
                           struct err_text *why) {
    struct pool_store *store = worker_bench_store(b->bench);
    struct worker_bench_report report = {0};
    struct model_adapter_facts facts;
    struct pool_image *image = NULL;
    char id[BENCH_NAME_BYTES];
    bench_adapter_id(id, c, 0);
    enum err e = bench_adapter_make(adapters, id, store, &image, &facts, why);
    if (e != ERR_OK) {
        return e;
    }
    run->load = image;
    e = worker_bench_run(b->bench, run, &report, why);
    if (e == ERR_OK) {
        struct bench_figures f;
        bench_figures_make(&f, &report, jobs, worker_bench_device(b->bench), model_facts(b->model));
        report_beside(alone, &f, &report);
    }
    worker_bench_report_deinit(&report);
    pool_store_drop(store, image);
    return e;
}

static enum err run_case(const struct bench *b, const struct bench_case *c, struct err_text *why) {
    const struct worker_bench_device *device = worker_bench_device(b->bench);
    const struct model_facts *model = model_facts(b->model);
    struct bench_jobs jobs = {0};
    struct worker_bench_report report = {0};
    struct bench_adapters adapters = {.model = model,
                                      .page_tokens = device->plan.page_tokens,
                                      .elem = device->plan.elem,
                                      .qkvo = c->qkvo,
                                      .seed = c->seed};
    struct worker_bench_run run = {.rows = c->rows,
                                   .step_tokens = c->step_tokens,
                                   .split = c->split,
                                   .adapters = c->resident,
                                   .arrival = c->arrival,
                                   .prefixes = c->shared > 0};
    uint32_t resident_max = 0;
    if (c->first) {
        return bench_first(b->bench, &adapters, c, stdout, tool_flag(b->t, "--json") != NULL, why);
    }
    uint32_t adapter_pages = largest_adapter(c, &adapters);
    size_pool(c, adapter_pages, &device->plan, &run, &resident_max);
    enum err e = check_lengths(c, model, &run, &device->plan, adapter_pages, why);
    if (e == ERR_OK) {
        e = bench_jobs_make(&jobs, c, model->shape.vocab, resident_max);
        e = e == ERR_OK ? bench_adapters_open(&adapters) : e;
        (void)(e == ERR_OK ? e : err_set(why, e, "no memory for the jobs"));
    }
    if (e == ERR_OK && c->adapters > 0) {
        e = bench_adapters_warm(&adapters, &jobs, worker_bench_store(b->bench), why);
    }
    if (e == ERR_OK) {
        run.jobs = jobs.jobs;
        run.job_count = jobs.job_count;
        run.warm = jobs.warm;
        run.warm_count = jobs.warm_count;
        run.maker = (struct adapters_maker){.make = bench_adapter_make, .context = &adapters};
        e = worker_bench_run(b->bench, &run, &report, why);
    }
    if (e == ERR_OK) {
        struct bench_figures f;
        bench_figures_make(&f, &report, &jobs, device, model);
        if (report.failed > 0) {
            tool_note("%s: %u jobs did not end as they should: %s", c->name, report.failed,
                      report.failure.message);
        }
        if (tool_flag(b->t, "--json") != NULL) {
            bench_report_json(stdout, c, &jobs, &f, device, model);
        } else {
            bench_report_text(stdout, c, &jobs, &f);
        }
        (void)fflush(stdout);
        e = report.failed == 0 ? ERR_OK : err_set(why, ERR_INTERNAL, "%s", report.failure.message);
        if (e == ERR_OK && c->beside) {
            e = run_beside(b, &adapters, c, &jobs, &run, &f, why);
        }
    }
    worker_bench_report_deinit(&report);
    bench_adapters_close(&adapters);
    bench_jobs_free(&jobs);
    return e;
}

/* ---- all cases ---------------------------------------------------------------------------- */

/* Some of the machine's memory, of which only what adapters take is used. */
static uint64_t store_bytes(const struct bench_case *cases, uint32_t count) {
    uint64_t memory = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    uint32_t adapters = 0;
    for (uint32_t i = 0; i < count; i++) {
        adapters += cases[i].first ? 0 : cases[i].adapters;
    }
    return adapters > 0 ? memory / 100 * STORE_PERCENT : 0;
}

static void bench_close(struct bench *b) {
    worker_bench_close(b->bench);
    model_close(b->model);
    b->bench = NULL;
    b->model = NULL;
}

static enum err bench_open(struct bench *b, const struct bench_case *cases, uint32_t count,
                           struct err_text *why) {
    struct worker_bench_options o = {.config = &b->config,
                                     .random = b->shape != NULL,
                                     .seed = cases[0].seed,
                                     .store_bytes = store_bytes(cases, count)};
    b->config = *b->t->config;
    b->config.scheduler_merged = b->config.scheduler_merged || tool_flag(b->t, "--merged") != NULL;
    for (uint32_t i = 0; i < count; i++) {
        int64_t adapters = cases[i].adapters < ADAPTERS_MAX ? cases[i].adapters : ADAPTERS_MAX;
        /* which must not find there what it had before */
        if (cases[i].first && b->config.store_bytes > FIRST_STORE_BYTES) {
            b->config.store_bytes = FIRST_STORE_BYTES;
        }
        if (adapters > b->config.pool_adapters) {
            b->config.pool_adapters = adapters;
        }
        o.rows_max = cases[i].rows > o.rows_max ? cases[i].rows : o.rows_max;
        o.step_tokens_max =
            cases[i].step_tokens > o.step_tokens_max ? cases[i].step_tokens : o.step_tokens_max;
    }
    enum err e = open_model(b->t, b->shape, cases[0].layers, &b->model, why);
    if (e == ERR_OK) {
        o.model = b->model;
        e = worker_bench_open(&b->bench, &o, why);
    }
    if (e == ERR_OK && tool_flag(b->t, "--json") == NULL) {
        bench_report_device(stdout, worker_bench_device(b->bench), model_facts(b->model));
        (void)fflush(stdout);
    }
    return e;
}

static bool same_shape(const char *a, const char *b) {
    return a == b || (a != NULL && b != NULL && strcmp(a, b) == 0);
}

static int run(const struct tool *t) {
    static struct bench_case cases[CASES_MAX];
    uint32_t count = 0;
    struct err_text why = {0};
    struct bench b = {.t = t};
    const char *names = tool_flag(t, "--case");
    if (t->argument_count != 0) {
        return tool_usage(t, "bench takes no argument, but found '%s'", t->arguments[0]);
    }
    if (names != NULL && strcmp(names, "help") == 0) {
        bench_case_help(stdout);
        return EXIT_DONE;
    }
    uint32_t repeat = 1;
    enum err e = take_cases(t, cases, &count, &why);
    e = e == ERR_OK ? take_u32(t, "--repeat", 1, REPEAT_MAX, &repeat, &why) : e;
    for (uint32_t i = 0; i < count && e == ERR_OK; i++) {
        const char *shape = shape_of(t, &cases[i]);
        if (b.bench == NULL || !same_shape(shape, b.shape)) {
            bench_close(&b);
            b.shape = shape;
            e = bench_open(&b, &cases[i], count - i, &why);
        }
        for (uint32_t k = 0; k < repeat && e == ERR_OK; k++) {
            e = run_case(&b, &cases[i], &why);
        }
    }
    bench_close(&b);
    return e == ERR_OK ? EXIT_DONE : tool_fail(e, &why);
}

const struct command cmd_bench = {
    .name = "bench",
    .arguments = "[--case NAMES] [--shape NAME|FILE | --model DIR] [workload] [--json]",
    .summary = "measure the engine's throughput on made-up jobs",
    .help = help,
    .own_flags = own_flags,
    .run = run,
};
