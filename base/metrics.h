/* metrics.h - the process's counters, gauges and histograms, from one table (metrics.def).
 *
 * Thread: any thread adds and sets (relaxed atomics); one renders at a time. But for a render's
 * text nothing is allocated after metrics_open(). Per-adapter families have at most `adapters`
 * labels besides "base" and "other"; what comes later adds to "other", so the sum over labels
 * leaves nobody out. A render is of some (adapters + 2) × METRIC_COUNT / 3 lines. */
#ifndef LORRY_BASE_METRICS_H
#define LORRY_BASE_METRICS_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"

enum metric {
#define METRIC(name, type, unit, label, help) METRIC_##name,
#include "base/metrics.def"
#undef METRIC
    METRIC_COUNT
};

enum {
    METRICS_ADAPTERS_MAX = 1000000,
    METRICS_ADAPTER_BYTES_MAX = 128, /* of an adapter's id */
    METRICS_STATUS_COUNT = 5,
};

/* "succeeded", "failed", "rejected", "expired", "cancelled": in the order of wire/'s statuses,
 * which this folder may not include; a test in the worker compares the two. */
extern const char *const METRICS_STATUS[METRICS_STATUS_COUNT];

struct metrics;

/* Takes some 270 bytes for each of `adapters` (0 .. METRICS_ADAPTERS_MAX). ERR_NO_MEMORY. */
NODISCARD enum err metrics_open(struct metrics **out, uint32_t adapters);
void metrics_close(struct metrics *m);

/* `id` is of the type and label that the function names; else it crashes. */
void metrics_add(struct metrics *m, enum metric id, uint64_t value);   /* COUNTER */
void metrics_set(struct metrics *m, enum metric id, double value);     /* GAUGE */
void metrics_observe(struct metrics *m, enum metric id, double value); /* HISTOGRAM SIZES */

/* Sets gauges that belong together: a render shows all of one call's or none. */
struct metrics_level {
    enum metric id;
    double value;
};
void metrics_set_all(struct metrics *m, const struct metrics_level *levels, uint32_t count);

/* A label's index, given once and kept; the "other" index when there are too many. Cost: one hash
 * look-up under a mutex: keep the index. NULL is the base, labelled "base"; adapters whose ids are
 * "base" or "other" are labelled "@base" and "@other", which no id can be. */
uint32_t metrics_adapter(struct metrics *m, const char *adapter);
void metrics_add_adapter(struct metrics *m, enum metric id, uint32_t adapter,
                         uint64_t value); /* COUNTER; TIME, microseconds */
/* Moves a GAUGE by adapter up or down: "other" holds the sum of many. */
void metrics_shift_adapter(struct metrics *m, enum metric id, uint32_t adapter, int64_t by);
/* For families labelled by a fixed set (status of finals): index into METRICS_STATUS. */
void metrics_add_status(struct metrics *m, enum metric id, uint32_t status, uint64_t value);

/* What was counted so far, of a COUNTER or, in microseconds, a TIME (by adapter: of all together)
 * and of one status; what a gauge was set to. */
uint64_t metrics_value(const struct metrics *m, enum metric id);
double metrics_gauge(const struct metrics *m, enum metric id);
uint64_t metrics_status_value(const struct metrics *m, enum metric id, uint32_t status);

/* Prometheus text format 0.0.4. *text is malloc'ed and NUL-terminated; the caller frees it. */
NODISCARD enum err metrics_render(struct metrics *m, char **text, size_t *bytes);
/* docs/METRICS.md */
void metrics_write_markdown(FILE *out);

#endif
