/* rig.h - drives a device with a random model, adapters in scattered pages and sequences of random
 * tokens; compares each block with the twin where asked. Failures are cmocka's. */
#ifndef LORRY_TESTS_UNIT_KERNELS_RIG_H
#define LORRY_TESTS_UNIT_KERNELS_RIG_H

#include "kernels/cpu/cpu.h"
#include "kernels/kernels.h"
#include "tests/unit/kernels/twin.h"

enum {
    RIG_SEQUENCES = 48,
    RIG_ADAPTERS = 8,
    RIG_TOKENS = 256, /* of a sequence, and of a step */
    RIG_PAGES = 4096, /* of the pool */
    RIG_LAYERS_MAX = 4,
};

struct rig_sequence {
    uint32_t adapter; /* KERN_BASE: none */
    uint32_t ids[RIG_TOKENS];
    uint32_t position;              /* tokens computed */
    uint32_t pages_set, pages[256]; /* in the slot's list */
    bool open;
    struct kern_slot_set params; /* .slot is the sequence's number; greedy unless changed */
    struct twin_sequence twin;
};

struct rig {
    const struct kern_ops *ops;
    struct kern_device *device;
    struct kern_shape shape;
    struct kern_limits limits;
    float rope_freq[KERN_HEAD_DIM_MAX / 2];
    uint64_t seed;

    struct twin_weights weights;
    struct twin_adapter adapters[RIG_ADAPTERS];
    struct kern_lora *loras[RIG_ADAPTERS]; /* [kern_lora_count(layers)] */
    uint32_t adapter_pages[RIG_ADAPTERS][RIG_PAGES], adapter_page_count[RIG_ADAPTERS];
    uint32_t adapter_outer_pages[RIG_ADAPTERS];
    bool adapter_pending[RIG_ADAPTERS]; /* its delta has yet to go with a step */

    uint32_t free_pages[RIG_PAGES], free_count; /* shuffled */
    struct rig_sequence sequences[RIG_SEQUENCES];
    bool compare;    /* every block of a step with the twin */
    bool token_last; /* decode rows say KERN_TOKEN_LAST */
    double worst;    /* greatest difference seen, of a row's greatest entry */
    struct kern_sample results[RIG_SEQUENCES];
};

/* Opens a device, gives it random weights and a pool. `tied`: no head of its own. */
void rig_open(struct rig *r, const struct kern_shape *shape, uint32_t page_tokens, uint32_t threads,
              bool tied);
void rig_close(struct rig *r);

/* Makes an adapter with these ranks (as trained) in the layers of `layer_mask`, and loads it. The
 * odd ones have lora biases, of each three the second changes the embedding, of each four all but
 * the first the head. */
void rig_adapter(struct rig *r, uint32_t adapter, const uint32_t ranks[KERN_MODULES],
                 uint32_t layer_mask);

/* Opens sequence `number` anew with random tokens; its pages go back first. */
void rig_sequence(struct rig *r, uint32_t number, uint32_t adapter);
/* Back to `position`: the tokens from there on are computed again. */
void rig_rewind(struct rig *r, uint32_t number, uint32_t position);

struct rig_part { /* the next `count` tokens of a sequence */
    uint32_t sequence, count;
    bool sample;
};
/* One step of these parts in this order; results are in r->results, by sampling part. */
void rig_step(struct rig *r, const struct rig_part *parts, uint32_t count);

/* The logits of sampling row `row` of the last step, in room of the caller. */
void rig_logits(struct rig *r, uint32_t row, float *logits);

#endif
