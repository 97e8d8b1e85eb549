/* weights.h - the base model's weight files, mapped, and where each weight of the shape lies.
 *
 * Mapped, not read: the pages are shared with other processes and dropped under pressure. Who cuts
 * a model's file short while it is loaded gets a SIGBUS; after model_weights() the maps are gone.
 */
#ifndef LORRY_MODEL_WEIGHTS_H
#define LORRY_MODEL_WEIGHTS_H

#include "model/file.h"
#include "model/model.h"
#include "model/safetensors.h"

enum { MODEL_SHARDS_MAX = 1024, MODEL_SHARD_NAME_BYTES = 256 };

struct model_shard {
    char name[MODEL_SHARD_NAME_BYTES];
    void *map;
    uint64_t bytes;
    struct model_st st;
};

struct model_checkpoint {
    struct model_shard *shards;
    uint32_t shard_count;
    struct kern_weight *weights; /* all that the device needs, checked against the shape */
    uint32_t weight_count;
    uint64_t bytes; /* of those weights */
};

/* `dir` is the open model folder. On an error `out` is empty.
 * Errors  ERR_BAD_MODEL, naming file and tensor; ERR_NO_MEMORY. */
NODISCARD enum err model_checkpoint_open(struct model_checkpoint *out, int dir,
                                         const struct model_facts *facts, struct err_text *why);
/* What the weights are stored in: the embedding's type; where that is f32 and matrices are not, the
 * 16-bit type that most of them have. */
enum kern_dtype model_checkpoint_dtype(const struct model_checkpoint *c);
void model_checkpoint_close(struct model_checkpoint *c);

/* Adds what tells this checkpoint from another of the same shape, without reading all of it: each
 * file's header and the first KiB of each tensor. */
void model_checkpoint_hash(const struct model_checkpoint *c, EVP_MD_CTX *sha);

#endif
