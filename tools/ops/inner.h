/* inner.h - what open.c and runner.c share. */
#ifndef LORRY_TOOLS_OPS_INNER_H
#define LORRY_TOOLS_OPS_INNER_H

#include "tools/ops/runner.h"

struct ops_runner {
    const struct kern_ops *ops;
    struct kern_device *device;
    struct kern_shape shape;
    struct kern_limits limits;
    struct kern_peaks peaks;
    uint32_t rounds, target_us, elem_bytes;
    uint32_t page_count, page_next;
    uint32_t *pages; /* [page_count], shuffled; handed out round and round */
    uint64_t random;

    struct kern_step step; /* its arrays are the following */
    uint32_t *tokens;      /* [tokens of the largest batch] */
    struct kern_chunk *chunks;
    struct kern_segment *segments;
    struct kern_slot_set *slot_sets;
    struct kern_slot_page *slot_pages; /* [page_room] */
    struct kern_adapter_set *adapter_sets;
    struct kern_lora *lora;  /* [kern_lora_count(layers)], of the rank that is set */
    uint32_t *adapter_pages; /* [OPS_ADAPTERS_MAX][limits.adapter_pages] */
    uint64_t page_room;
    struct kern_sample *results;
    float *logits;       /* [vocab] */
    bool fresh;          /* the step's deltas have yet to go */
    uint32_t calls_most; /* of a block in a step of this batch */
    double head_us;      /* one call, of this batch */
};

/* ---- open.c ------------------------------------------------------------------------------- */

uint64_t ops_random(uint64_t *state);
uint64_t ops_page_elems(const struct ops_runner *r);
/* Says that the device failed in `call`; returns `e`. */
enum err ops_failed(enum err e, const char *call, struct err_text *why);
/* Fills r->lora for a rank; returns the elements of a layer's list. */
uint64_t ops_lora_place(struct ops_runner *r, uint32_t rank);

/* ---- runner.c ----------------------------------------------------------------------------- */

/* Calls every block once, in the order of a step. */
void ops_pass(struct ops_runner *r);

static inline uint32_t ops_ceil_div(uint64_t value, uint64_t by) {
    return (uint32_t)((value + by - 1) / by);
}

#endif
