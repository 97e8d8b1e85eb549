/* work.h - what a block of a step has to move and to compute, counted from shapes. Pure.
 *
 * Bytes are the least that the block as the seam defines it can move: its weights once, its
 * activations in and out once, the KV of each sequence once; what one kernel leaves for the next
 * one of the same block is not counted, nor are tables and metadata. FLOPs are those of products
 * and attention; a multiply-add is two. */
#ifndef LORRY_TOOLS_OPS_WORK_H
#define LORRY_TOOLS_OPS_WORK_H

#include <stdint.h>

#include "kernels/kernels.h"

enum ops_block {
    OPS_EMBED,
    OPS_QKV,
    OPS_ATTENTION,
    OPS_ATTN_OUT,
    OPS_GATE_UP,
    OPS_DOWN,
    OPS_HEAD,
    OPS_SAMPLE,
    OPS_BLOCKS,
    OPS_PASS = OPS_BLOCKS, /* all of them, with the layers that the device holds */
};

const char *ops_block_name(enum ops_block block);
/* Whether it is run once a layer. */
static inline bool ops_in_layer(enum ops_block block) {
    return block >= OPS_QKV && block <= OPS_DOWN;
}

enum { OPS_GROUPS = 2 };

/* `chunks` sequences alike, each with `tokens` tokens from `position` on; each samples one. */
struct ops_group {
    uint32_t chunks, tokens, position;
};

struct ops_batch {
    struct ops_group groups[OPS_GROUPS]; /* chunks 0: none */
};

uint32_t ops_tokens(const struct ops_batch *batch);
uint32_t ops_samples(const struct ops_batch *batch); /* and chunks */

struct ops_work {
    double bytes, flops;
};

/* Of one call of `block`; of a pass with shape->layers layers. */
struct ops_work ops_work(const struct kern_shape *shape, uint32_t elem_bytes,
                         const struct ops_batch *batch, enum ops_block block);

/* What `adapters` distinct adapters of a padded rank on all seven projections add to one call of
 * `block` over `tokens` rows: their matrices once, and the products. */
struct ops_work ops_lora_work(const struct kern_shape *shape, uint32_t elem_bytes,
                              enum ops_block block, uint32_t rank, uint32_t adapters,
                              uint32_t tokens);

/* The least time at the rates that the device reaches: the longer of moving and computing. */
double ops_floor_us(const struct ops_work *work, const struct kern_peaks *peaks);

#endif
