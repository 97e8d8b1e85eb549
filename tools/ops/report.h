/* report.h - what bench_ops prints: a table for people, and JSON of the same. */
#ifndef LORRY_TOOLS_OPS_REPORT_H
#define LORRY_TOOLS_OPS_REPORT_H

#include <stdio.h>

#include "tools/ops/runner.h"

struct ops_report {
    FILE *json; /* NULL: none */
    struct kern_peaks peaks;
    bool lora, any; /* any: JSON has a result */
};

struct ops_run { /* what all results have in common */
    const char *device, *shape, *dtype;
    uint32_t layers, model_layers, page_count, rounds;
};

void ops_report_begin(struct ops_report *r, const struct ops_run *run);
/* One call of a block. `name`: of the batch. */
void ops_report_block(struct ops_report *r, const char *name, const char *block,
                      const struct ops_time *time, const struct ops_work *work);
/* What adapters add to one. */
void ops_report_lora(struct ops_report *r, const char *name, const char *block, double base_us,
                     const struct ops_time *extra, const struct ops_work *work);

/* A step of the whole model: the sum over blocks and layers. */
struct ops_step {
    uint32_t layers, tokens, samples;
    double us, floor_us; /* floor: Σ of each block's */
    /* with adapters: what they add, by measurement and at the least, and the bound that
     * the project set itself; 0: none */
    double extra_us, extra_floor_us, extra_limit_us;
    uint32_t adapters;
};
void ops_report_step(struct ops_report *r, const char *name, const struct ops_step *step);
/* Errors  ERR_BAD_CONFIG: the file could not be written. */
NODISCARD enum err ops_report_end(struct ops_report *r, struct err_text *why);

#endif
