/* bench.h - the engine without queue, text and registry: jobs of token ids in, counts and times
 * out. `lorry bench` is its user; public beside worker.h.
 *
 * The engine, the scheduler, the pool and the device are those of the worker, one step ahead and
 * all. A bench keeps the device, its weights and its host store from run to run.
 *
 * Thread: one. */
#ifndef LORRY_WORKER_BENCH_H
#define LORRY_WORKER_BENCH_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "config/config.h"
#include "kernels/kernels.h"
#include "model/model.h"
#include "pool/pool.h"
#include "worker/engine.h"
#include "worker/worker.h"

struct worker_bench;

struct worker_bench_options {
    const struct config *config;
    struct model *model; /* the caller's; outlives the bench */
    bool random;         /* its weights are made from `seed`, not read */
    uint64_t seed;
    uint64_t store_bytes; /* of the host store; at least config's store.bytes is taken */
    uint32_t rows_max, step_tokens_max; /* at least, beside the configuration's or the device's */
};

struct worker_bench_device {
    const char *name;
    struct worker_plan plan;
    struct kern_peaks peaks;
    double weights_s, warm_s; /* how long it took to load or make these */
};

/* Opens the device, loads or makes the weights, makes the step shapes, measures the peaks, makes
 * the pool. Errors  as worker_open(). */
NODISCARD enum err worker_bench_open(struct worker_bench **out,
                                     const struct worker_bench_options *options,
                                     struct err_text *why);
void worker_bench_close(struct worker_bench *b); /* NULL is fine */
const struct worker_bench_device *worker_bench_device(const struct worker_bench *b);
struct pool_store *worker_bench_store(struct worker_bench *b);

struct worker_bench_job {
    const char *adapter;    /* an id; NULL = the base */
    const uint32_t *prompt; /* [prompt_count]; the caller's, throughout the run */
    uint32_t prompt_count;
    uint32_t output_count; /* so many tokens are sampled, greedily, whatever they are */
    int64_t at_us;         /* it comes so long after the start */
    /* What became of it, counted from the start: */
    int64_t first_us, end_us;
    uint32_t sampled;
};

enum { WORKER_BENCH_LOADS = 16 }; /* on their way at once; a step takes as long as some of them */

struct worker_bench_run {
    struct worker_bench_job *jobs;
    uint32_t job_count;
    /* Run before the clock starts, by the same engine: what they leave resident stays. */
    struct worker_bench_job *warm;
    uint32_t warm_count;
    uint32_t rows, step_tokens, chunk_tokens; /* 0 = the device's own */
    uint32_t pages;                           /* of the pool; 0 = all */
    uint32_t split;                           /* pool.split; 0 = the configuration's */
    uint32_t adapters;                        /* pool.adapters, if it is less than the
                                                 configuration's; 0 = that */
    bool arrival;                             /* scheduler.policy: arrival */
    bool prefixes;
    struct adapters_maker maker; /* of the adapters that jobs name; empty: their files, */
    const char *root;            /* in adapters.dir; NULL = the configuration's, */
    const char *state_dir;       /* with their hashes kept in state.dir; NULL = likewise */
    /* An image that the caller holds, or NULL: beside decode steps it is loaded again and again
     * without a pause, into pages no two of which adjoin. `pages` leaves so many of the
     * device's for it: WORKER_BENCH_LOADS × its own. */
    const struct pool_image *load;
};

struct worker_bench_report {
    double seconds; /* from the first job given to the last one ended */
    uint64_t input_tokens, output_tokens;
    uint32_t failed;              /* jobs that ended otherwise than by their length */
    struct err_text failure;      /* of the first of these */
    struct engine_stepped *steps; /* [step_count], of the measured part; malloc'ed */
    uint32_t step_count;
    uint32_t rows, pages; /* as they were in the end: of the run, of its pool */
    uint64_t preemptions, loads, load_pages, evictions, fetches;
    uint64_t fetch_us, load_us; /* sums over fetches and loads, as the worker's metrics have them */
    uint64_t beside_bytes;      /* that run.load's loads brought, */
    double beside_s;            /* in this time */
    uint64_t found_tokens;      /* of prompts, in pages that hold them already */
};

/* Errors  ERR_DEVICE, ERR_NO_MEMORY, ERR_BAD_CONFIG (a size that the device was not opened for). */
NODISCARD enum err worker_bench_run(struct worker_bench *b, const struct worker_bench_run *run,
                                    struct worker_bench_report *report, struct err_text *why);
void worker_bench_report_deinit(struct worker_bench_report *report); /* a zeroed one is fine */

#endif
