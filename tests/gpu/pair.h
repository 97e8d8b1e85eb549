/* pair.h - the CUDA device and its twin, the CPU's, with the same weights, adapters, pages and
 * sequences, taking the same steps.
 *
 * Each block runs on both from the same input: what CUDA's blocks gave is copied into the CPU's
 * activations and pages before the next. Outputs are compared row by row (or head by head) with the
 * CPU's, in units of u, the greatest relative error of rounding to the 16-bit type (2⁻⁸ for bf16,
 * 2⁻¹¹ for f16): the greatest difference of a row with the row's greatest entry, and the root of
 * the mean square difference with the row's root mean square. The bounds, in pair.c, follow from
 * how often a value is rounded on its way through the block, each time by 1 u at most and 0.4 u in
 * the mean.
 *
 * A step that is replayed from a graph cannot be looked into: with `warm`, K and V of all layers
 * and the logits are compared when it has ended. */
#ifndef LORRY_TESTS_GPU_PAIR_H
#define LORRY_TESTS_GPU_PAIR_H

#include "tests/gpu/peek.h"
#include "tests/unit/kernels/rig.h"

enum pair_what {
    PAIR_EMBED,
    PAIR_NORM,
    PAIR_Q,
    PAIR_K,
    PAIR_V,
    PAIR_ATTENTION,
    PAIR_X, /* after attn_out and down */
    PAIR_ACT,
    PAIR_HEAD_IN,
    PAIR_LOGITS,      /* of base rows: f32 */
    PAIR_LOGITS_LORA, /* of rows whose adapter changes the head */
    PAIR_WHOLE,       /* after all layers, with `warm` */
    PAIR_WHATS,
};

struct pair {
    struct rig cpu, cuda;
    const char *name;
    bool warm;
    bool guard; /* nothing in the pool changes but the tokens' K and V */
    double unit;
    struct {
        double max, rms; /* in units */
    } worst[PAIR_WHATS];
};

void pair_open(struct pair *p, const char *name, const struct kern_shape *shape,
               const struct rig_options *options);
/* Prints what was greatest of each comparison. */
void pair_close(struct pair *p);

/* As the rig's, on both. */
void pair_adapter(struct pair *p, uint32_t adapter, const uint32_t ranks[KERN_MODULES],
                  uint32_t layer_mask);
void pair_sequence(struct pair *p, uint32_t number, uint32_t adapter);
void pair_rewind(struct pair *p, uint32_t number, uint32_t position);
void pair_step(struct pair *p, const struct rig_part *parts, uint32_t count);

#endif
