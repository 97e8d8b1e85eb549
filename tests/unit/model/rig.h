/* rig.h - a device, a pool, a store and a model, and sequences run through model_step(): the
 * smallest loop that can be. */
#ifndef LORRY_TESTS_UNIT_MODEL_RIG_H
#define LORRY_TESTS_UNIT_MODEL_RIG_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "model/model.h"

enum { RIG_TOKENS_MAX = 64 };

struct rig_limits {
    const struct kern_ops *ops; /* NULL: the CPU */
    uint32_t pages;
    uint32_t rows;       /* most sequences at once */
    uint32_t row_tokens; /* longest sequence, prompt and answer */
    uint32_t step_tokens;
    uint32_t adapters;
    uint32_t adapter_pages;
    uint64_t store_bytes;
    bool merging; /* rig_merge() works */
};

struct rig {
    struct model *model;
    const struct kern_ops *ops;
    struct kern_device *device;
    struct pool *pool;
    struct pool_store *store;
    struct rig_limits limits;
    struct model_adapter_options options;
    uint64_t ticket;
    uint32_t merged; /* KERN_BASE: none */
};

/* Fails the test on any error. */
void rig_open(struct rig *r, const char *model_dir, const char *adapters_root,
              const struct rig_limits *limits);
void rig_close(struct rig *r);

/* Shuffles the free pages, so that what is reserved next lies scattered. */
void rig_scatter(struct rig *r, uint64_t seed);

/* Loads an adapter into the store and into pages; its index, KERN_BASE for NULL. */
uint32_t rig_adapter(struct rig *r, const char *id);
void rig_evict(struct rig *r, uint32_t adapter);
/* Whether all of it can be put into the weights. */
bool rig_mergeable(const struct rig *r, uint32_t adapter);
/* From the next step on, whose rows must all be of this adapter unless it is KERN_BASE. */
void rig_merge(struct rig *r, uint32_t adapter);

/* A sequence. Rows that share an adapter stand side by side. */
struct rig_row {
    uint32_t adapter;
    const uint32_t *prompt;
    uint32_t prompt_count;
    uint32_t chunk;                  /* prompt tokens a step; 0 = all at once */
    uint32_t start;                  /* the step at which it joins */
    uint32_t token_count;            /* to sample, greedily; at most RIG_TOKENS_MAX */
    bool forced;                     /* each chunk of the prompt samples instead, and is not heard:
                                        token_count is the number of chunks, of any size */
    float *logits;                   /* out: [token_count][vocab], or NULL */
    uint32_t tokens[RIG_TOKENS_MAX]; /* out */
};

/* Runs the rows together, each from its start to its end. */
void rig_run(struct rig *r, struct rig_row *rows, uint32_t count);

/* A prompt of a golden file. */
uint32_t *rig_tokens(const json_t *prompt, const char *key, uint32_t *count); /* malloc'ed */

#endif
