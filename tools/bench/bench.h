/* bench.h - inside `lorry bench`: shapes, cases, jobs, adapters, and what is said of a run.
 *
 *   shapes.c    models by name
 *   cases.c     workloads by name
 *   jobs.c      a workload's jobs, from a seed
 *   adapters.c  its adapters, made straight into the host store
 *   first.c     first loads: adapters that come from files
 *   figures.c   a run's figures: rates, times, shares of the device's peaks
 *   report.c    as text and as JSON */
#ifndef LORRY_TOOLS_BENCH_BENCH_H
#define LORRY_TOOLS_BENCH_BENCH_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "worker/bench.h"

enum {
    BENCH_RANKS_MAX = 16,
    BENCH_NAME_BYTES = 64,
    BENCH_VALUES = 1 << 20, /* random elements that adapters are cut from */
};

/* ---- shapes ------------------------------------------------------------------------------- */

/* A config.json; NULL: no such name. */
const char *bench_shape(const char *name);
/* A config.json with the first `layers` of the model's; malloc'ed. ERR_BAD_CONFIG: it is no JSON
 * object that says of more. */
NODISCARD enum err bench_shape_slice(const char *config, size_t bytes, uint32_t layers,
                                     char **slice);
/* The names, separated by commas. */
const char *bench_shape_names(void);

/* ---- workloads ---------------------------------------------------------------------------- */

/* Which adapter a job names; `adapters` there are. */
enum bench_order {
    BENCH_ROUND_ROBIN, /* 0, 1, … in turn */
    BENCH_RANDOM,      /* any, alike */
    BENCH_SORTED,      /* random, then in order */
    BENCH_SKEWED,      /* adapter i with weight 1 / (i + 1) ^ alpha */
    BENCH_GEOMETRIC,   /* adapter i with weight alpha ^ -i: Punica's skewed popularity */
    BENCH_POWER,       /* S-LoRA's: P(index < k) = (k / adapters) ^ alpha */
};

struct bench_length { /* low .. high - 1, alike; high 0: always low */
    uint32_t low, high;
};

struct bench_case {
    char name[BENCH_NAME_BYTES];
    const char *shape; /* the model that it is about; NULL: the one asked for */
    uint32_t layers;   /* a slice of the model: its first so many; 0 = all */
    uint32_t jobs;
    struct bench_length input, output;
    uint32_t shared; /* tokens that prompts for one adapter begin with alike, found in its pages */
    uint32_t adapters;                           /* 0 = all jobs on the base */
    uint32_t ranks[BENCH_RANKS_MAX], rank_count; /* adapter i has rank i % rank_count */
    bool qkvo; /* adapters change q, k, v and o alone, not all seven */
    enum bench_order order;
    double alpha;
    bool first;           /* first loads, from files: see first.c */
    bool beside;          /* the jobs run twice: then while adapters are loaded all the time */
    bool idle;            /* the adapters are resident, but no job uses one */
    bool arrival;         /* jobs start in the order in which they came */
    uint32_t room;        /* pages for so many adapters, besides the rows' KV; 0 = the whole pool */
    uint32_t resident;    /* so many adapters may be in pages at once; 0 = as many as fit */
    uint32_t pool_tokens; /* a pool as large as the KV of so many tokens; 0 = the whole */
    uint32_t split;       /* percentage of it that is for adapters alone; 0 = one for both */
    double rate;          /* jobs a second; 0 = all at once */
    double cv;            /* coefficient of variation of the gaps between them */
    uint32_t rows, step_tokens; /* 0 = the device's own */
    uint64_t seed;
};

/* The case of that name: "A1", "B1:32", "churn:2", … false: there is none. */
bool bench_case_find(const char *name, struct bench_case *c);
void bench_case_help(FILE *out);
/* "random", "skewed:1.5": order and alpha. false: none of these. */
bool bench_order_parse(const char *text, struct bench_case *c);
/* Punica's distinct, uniform, skewed, identical: order and number of adapters for c->jobs. */
bool bench_popularity_parse(const char *text, struct bench_case *c);
const char *bench_order_name(enum bench_order order);

/* ---- jobs --------------------------------------------------------------------------------- */

struct bench_jobs {
    struct worker_bench_job *jobs, *warm;
    uint32_t *tokens;              /* all prompts */
    char (*ids)[BENCH_NAME_BYTES]; /* of the adapters, */
    bool *named;                   /* and which of them any job names; all of idle ones */
    uint32_t job_count, warm_count, adapter_count, used; /* used: how many are named */
};

/* `vocab`: of the model. The warm-up is some jobs of the same lengths, and one for each adapter as
 * far as `resident_max` of them go. ERR_NO_MEMORY. */
NODISCARD enum err bench_jobs_make(struct bench_jobs *out, const struct bench_case *c,
                                   uint32_t vocab, uint32_t resident_max);
void bench_jobs_free(struct bench_jobs *j);

/* ---- adapters ----------------------------------------------------------------------------- */

struct bench_adapters { /* what makes a case's adapters; the context of an adapters_maker */
    const struct model_facts *model;
    uint32_t page_tokens;
    enum kern_dtype elem;
    bool qkvo;
    uint64_t seed;
    void *values; /* [BENCH_VALUES] of the device's type, which all are cut from; malloc'ed */
};

/* "r16-007s1": rank, number, and "a" for attention only. */
void bench_adapter_id(char id[BENCH_NAME_BYTES], const struct bench_case *c, uint32_t number);
/* Pages, and bytes in the host store, of one of this rank. */
uint32_t bench_adapter_pages(const struct bench_adapters *a, uint32_t rank);
uint64_t bench_adapter_bytes(const struct bench_adapters *a, uint32_t rank);
NODISCARD enum err bench_adapters_open(struct bench_adapters *a);
void bench_adapters_close(struct bench_adapters *a);
/* As adapters_maker.make. */
enum err bench_adapter_make(void *context, const char *id, struct pool_store *store,
                            struct pool_image **image, struct model_adapter_facts *facts,
                            struct err_text *why);
/* Makes those that `jobs` name beforehand, on all cores. */
NODISCARD enum err bench_adapters_warm(struct bench_adapters *a, const struct bench_jobs *jobs,
                                       struct pool_store *store, struct err_text *why);

/* ---- first loads -------------------------------------------------------------------------- */

/* Runs the case, whose `jobs` are the base's rows, and reports it. Makes some GB of files below
 * $TMPDIR or /tmp and removes them. */
NODISCARD enum err bench_first(struct worker_bench *bench, struct bench_adapters *a,
                               const struct bench_case *c, FILE *out, bool json,
                               struct err_text *why);

/* ---- figures ------------------------------------------------------------------------------ */

struct bench_times { /* of steps, ms */
    uint32_t count;
    double p50, p90, p99, mean;
};

struct bench_figures {
    double seconds, output_s, total_s; /* tokens a second */
    uint64_t input_tokens, output_tokens;
    uint32_t jobs, failed, steps, rows, pages, pages_peak, running_peak;
    struct bench_times decode, mixed; /* busy time of the device */
    double busy, idle;                /* shares of the time from the first step's end on */
    struct bench_times plan, build, launch, wait, take; /* of the loop */
    double host_ms;                                     /* mean of plan + build + launch + take */
    uint64_t preemptions, loads, load_bytes, evictions, fetches;
    uint32_t merged_steps;          /* that ran with an adapter's product in the weights */
    uint64_t found_tokens;          /* of prompts, computed for others */
    uint64_t adapter_bytes_read;    /* by steps: of each its distinct adapters */
    double bytes_s, flop_s;         /* needed at least, per second of busy time */
    double bytes_share, flop_share; /* of the peaks */
    double limit_share; /* sum over steps of max(bytes / peak, FLOPs / peak), over busy time */
    struct bench_times first_token, job; /* of jobs, since they came */
};

/* Of `count` values in µs, which it sorts. */
struct bench_times bench_times_of(double *values, uint32_t count);
void bench_figures_make(struct bench_figures *f, const struct worker_bench_report *r,
                        const struct bench_jobs *jobs, const struct worker_bench_device *device,
                        const struct model_facts *model);

/* ---- report ------------------------------------------------------------------------------- */

void bench_report_device(FILE *out, const struct worker_bench_device *device,
                         const struct model_facts *model);
void bench_report_text(FILE *out, const struct bench_case *c, const struct bench_jobs *jobs,
                       const struct bench_figures *f);
void bench_report_json(FILE *out, const struct bench_case *c, const struct bench_jobs *jobs,
                       const struct bench_figures *f, const struct worker_bench_device *device,
                       const struct model_facts *model);

#endif
