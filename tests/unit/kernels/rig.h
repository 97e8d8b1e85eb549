/* rig.h - drives a device with a random model, adapters in scattered pages and sequences of random
 * tokens; compares each block of the CPU's with the twin where asked. Failures are cmocka's.
 *
 * All follows from the seed (LORRY_SEED) and the order of calls, but for nothing that the device
 * answers: rigs of two devices that get the same calls hold the same values in the same pages. */
#ifndef LORRY_TESTS_UNIT_KERNELS_RIG_H
#define LORRY_TESTS_UNIT_KERNELS_RIG_H

#include "kernels/cpu/cpu.h"
#include "kernels/kernels.h"
#include "tests/unit/kernels/twin.h"

enum {
    RIG_SEQUENCES = 48, /* unless the options say otherwise, as are tokens and pages */
    RIG_SEQUENCES_MAX = 320,
    RIG_ADAPTERS = 8,
    RIG_TOKENS = 256, /* of a sequence, and of a step */
    RIG_TOKENS_MAX = 4096,
    RIG_PAGES = 4096, /* of the pool */
};

struct rig_sequence {
    uint32_t adapter; /* KERN_BASE: none */
    uint32_t ids[RIG_TOKENS_MAX];
    uint32_t position;                             /* tokens computed */
    uint32_t pages_set, pages[RIG_TOKENS_MAX / 8]; /* in the slot's list */
    bool open;
    struct kern_slot_set params; /* .slot is the sequence's number; greedy unless changed */
    struct twin_sequence twin;
};

struct rig_options {
    const struct kern_ops *ops; /* NULL: the CPU */
    uint32_t page_tokens, threads;
    bool tied;            /* no head of its own */
    bool warm;            /* the device is shown its buckets */
    bool merging;         /* limits.merging, and all adapters can be merged */
    uint32_t head_period; /* rows of the head repeat after so many; 0 = they do not */
    uint32_t sequences, sequence_tokens, step_tokens, pages; /* 0 = RIG_… */
};

struct rig {
    const struct kern_ops *ops;
    struct kern_device *device;
    struct kern_shape shape;
    struct kern_limits limits;
    uint32_t sequence_tokens;
    float rope_freq[KERN_HEAD_DIM_MAX / 2];
    uint64_t seed;

    struct twin_weights weights;
    struct twin_adapter adapters[RIG_ADAPTERS];
    struct kern_lora *loras[RIG_ADAPTERS]; /* [kern_lora_count(layers)] */
    uint32_t adapter_pages[RIG_ADAPTERS][RIG_PAGES], adapter_page_count[RIG_ADAPTERS];
    uint32_t adapter_outer_pages[RIG_ADAPTERS];
    bool adapter_pending[RIG_ADAPTERS]; /* its delta has yet to go with a step */
    void *images[RIG_ADAPTERS];         /* as loaded: pinned, in the device's elements */
    uint64_t image_bytes[RIG_ADAPTERS];
    uint32_t merged; /* KERN_BASE: none */

    uint32_t free_pages[RIG_PAGES], free_count; /* shuffled */
    struct rig_sequence sequences[RIG_SEQUENCES_MAX];
    bool compare;    /* every block of a step with the twin */
    bool token_last; /* decode rows say KERN_TOKEN_LAST */
    double worst;    /* greatest difference seen, of a row's greatest entry */
    struct kern_sample results[RIG_SEQUENCES_MAX];
};

/* Opens a device, gives it random weights and a pool. All values are of the shape's type. */
void rig_open_with(struct rig *r, const struct kern_shape *shape, const struct rig_options *o);
/* The CPU, with the usual limits. */
void rig_open(struct rig *r, const struct kern_shape *shape, uint32_t page_tokens, uint32_t threads,
              bool tied);
void rig_close(struct rig *r);

/* Makes an adapter with these ranks (as trained) in the layers of `layer_mask`, and loads it. The
 * odd ones have lora biases, of each three the second changes the embedding, of each four all but
 * the first the head. */
void rig_adapter(struct rig *r, uint32_t adapter, const uint32_t ranks[KERN_MODULES],
                 uint32_t layer_mask);

/* From the next step on, whose parts must all be of this adapter unless it is KERN_BASE. */
void rig_merge(struct rig *r, uint32_t adapter);

/* Puts an image of the adapter's size, in pinned memory, into pages; returns the event. */
uint64_t rig_adapter_load(struct rig *r, uint32_t adapter, const void *image,
                          const uint32_t *pages);
void rig_event_wait(struct rig *r, uint64_t event);
/* Fills the free pages with NaN: whatever reads what was not written shows. 16-bit types. */
void rig_poison(struct rig *r);
uint32_t rig_page_take(struct rig *r); /* of the free ones */

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

/* The same in pieces: step_begin with what rig_batch() made, the blocks (NULL: nothing is
 * compared), step_end, step_read. */
struct rig_batch {
    struct kern_step step; /* of what follows */
    uint32_t sample_count;
    uint32_t tokens[RIG_TOKENS_MAX];
    uint32_t sequence[RIG_TOKENS_MAX], position[RIG_TOKENS_MAX]; /* of each token */
    struct kern_chunk chunks[RIG_SEQUENCES_MAX];
    struct kern_segment segments[RIG_SEQUENCES_MAX];
    struct kern_slot_set slot_sets[RIG_SEQUENCES_MAX];
    struct kern_slot_page slot_pages[RIG_TOKENS_MAX * 2];
    struct kern_adapter_set adapter_sets[RIG_ADAPTERS];
};
struct rig_batch *rig_batch(struct rig *r, const struct rig_part *parts, uint32_t count);
void rig_blocks(struct rig *r, const struct rig_batch *b);

/* The logits of sampling row `row` of the last step, in room of the caller. */
void rig_logits(struct rig *r, uint32_t row, float *logits);

#endif
