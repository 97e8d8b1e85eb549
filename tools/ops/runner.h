/* runner.h - a device with random weights whose blocks are timed one by one, through the seam
 * alone.
 *
 * A block's time is a difference: a step in which it is called some times more than in another, by
 * the device's own clock (ops->span), over those times. Steps here run blocks out of order: the
 * device's buffers hold what the last whole pass left, and embed() sets x anew in each, so that
 * what attn_out and down add to it again and again stays small.
 *
 * Nothing is warmed but the linears' choice of algorithms, so that a GPU gets launches one by one.
 * They follow each other on one stream, and the host runs ahead: where launching a block takes
 * about as long as running it, the head is called some times first, to give the GPU something to do
 * meanwhile. What is launch-bound even so is marked (host_bound).
 *
 * Caches: the calls go round the layers, so that a matrix comes from memory where those of all
 * layers are larger than the last cache. Where a block reads little, another that reads much is
 * called before each call of it, and its time taken away: qkv before attention, gate_up before
 * embed, and the head before sampling, as in a step. */
#ifndef LORRY_TOOLS_OPS_RUNNER_H
#define LORRY_TOOLS_OPS_RUNNER_H

#include "kernels/kernels.h"
#include "tools/ops/work.h"

enum {
    OPS_CHUNKS_MAX = 1024,
    OPS_TOKENS_MAX = 16384, /* of a step */
    OPS_ADAPTERS_MAX = 512,
    OPS_RANK_MAX = 128,
    OPS_ROUNDS_MAX = 64,
};

struct ops_options {
    const struct kern_ops *ops;
    struct kern_shape shape; /* .layers: of the device; .positions does not matter */
    const char *cache_dir;   /* kern_limits */
    uint32_t threads;        /* likewise */
    uint32_t context;        /* longest sequence of any batch, in tokens */
    uint32_t tokens;         /* of the largest batch */
    uint32_t rank;           /* the greatest of an adapter; 0: no adapters */
    uint32_t rounds;         /* of a measurement, whose median counts */
    uint32_t target_us;      /* device time of a round */
};

enum ops_sampling { OPS_GREEDY, OPS_TOP_P_K, OPS_LOGPROBS };

/* Who the rows of a step belong to; NULL where one is taken: all base rows. */
struct ops_lora {
    uint32_t rank;                    /* of all seven projections in all layers */
    uint32_t segments;                /* 0: a step without adapters */
    uint32_t rows[OPS_CHUNKS_MAX];    /* of each segment; together all of the step */
    uint32_t adapter[OPS_CHUNKS_MAX]; /* of each segment, below OPS_ADAPTERS_MAX */
    uint32_t adapters;                /* distinct ones: 0 .. adapters - 1 */
};

struct ops_time {
    double us; /* of one call; the median of the rounds; may be 0 or less in the noise */
    double low_us, high_us; /* the least and the greatest of the rounds */
    uint32_t calls;         /* in each round */
    bool host_bound;        /* launching took as long as running */
};

struct ops_runner;

/* Opens the device, fills weights and pool with random numbers, measures the peaks.
 * Errors  of the device's open() and pool(); ERR_NO_MEMORY. */
NODISCARD enum err ops_open(struct ops_runner **out, const struct ops_options *options,
                            struct err_text *why);
void ops_close(struct ops_runner *r); /* NULL is fine */

const struct kern_peaks *ops_peaks(const struct ops_runner *r);
uint32_t ops_elem_bytes(const struct ops_runner *r);
uint32_t ops_page_count(const struct ops_runner *r);

/* Opens sequences for `batch`, sets adapters, and runs one whole pass. What is timed afterwards is
 * of this batch. Sequences and adapters share pages where the pool is too small for all of them:
 * it is far larger than a cache. */
NODISCARD enum err ops_prepare(struct ops_runner *r, const struct ops_batch *batch,
                               const struct ops_lora *lora, enum ops_sampling sampling,
                               struct err_text *why);
/* OPS_EXTRA: what the batch's adapters add to the block, by the difference to the same calls
 * without segments; nothing is called before the block then. */
enum ops_of { OPS_WHOLE, OPS_EXTRA };
NODISCARD enum err ops_measure(struct ops_runner *r, enum ops_block block, enum ops_of of,
                               struct ops_time *out, struct err_text *why);
/* Whether logits are finite after as many calls in a step of the blocks that add to x as any
 * measurement of this batch took: that what was timed were numbers. ERR_DEVICE if not. */
NODISCARD enum err ops_check(struct ops_runner *r, struct err_text *why);

#endif
