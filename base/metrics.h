/* metrics.h - the process's counters, gauges and histograms, from one table (metrics.def).
 *
 * Thread: any thread adds and sets (relaxed atomics); one renders. Nothing is allocated after
 * metrics_open(). Per-adapter families have at most `adapters` labels, the rest adds to "other". */
#ifndef LORRY_BASE_METRICS_H
#define LORRY_BASE_METRICS_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum metric {
#define METRIC(name, type, unit, label, help) METRIC_##name,
#include "base/metrics.def"
#undef METRIC
    METRIC_COUNT
};

struct metrics;

NODISCARD enum err metrics_open(struct metrics **out, uint32_t adapters);
void metrics_close(struct metrics *m);

void metrics_add(struct metrics *m, enum metric id, uint64_t value);      /* COUNTER */
void metrics_set(struct metrics *m, enum metric id, double value);       /* GAUGE */
void metrics_observe(struct metrics *m, enum metric id, double value);   /* HISTOGRAM */
/* A label's index, given once and kept; the "other" index when there are too many. Cost: one hash
 * look-up under a mutex: keep the index. NULL is the base, labelled "base". */
uint32_t metrics_adapter(struct metrics *m, const char *adapter);
void metrics_add_adapter(struct metrics *m, enum metric id, uint32_t adapter, uint64_t value);
/* For families labelled by a fixed set (status of finals): index into METRICS_STATUS. */
void metrics_add_status(struct metrics *m, enum metric id, uint32_t status, uint64_t value);
uint64_t metrics_value(const struct metrics *m, enum metric id); /* of a plain counter */

/* Prometheus text format. *text is malloc'ed; the caller frees it. */
NODISCARD enum err metrics_render(struct metrics *m, char **text, size_t *bytes);
/* docs/METRICS.md */
void metrics_write_markdown(void *file);

#endif
