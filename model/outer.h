/* outer.h - the base's embedding and head in its weight files, to compare copies with.
 *
 * PEFT saves a copy of either beside LoRA on it, and loads it again in the base's place. One that
 * equals the base's changes nothing. The files stay open, so that copies can be compared after the
 * maps are gone; nobody may write to a model's files while it is in use. */
#ifndef LORRY_MODEL_OUTER_H
#define LORRY_MODEL_OUTER_H

#include "model/safetensors.h"
#include "model/weights.h"

struct model_outer {
    int fd;          /* -1: not open */
    uint64_t offset; /* of the matrix in the file */
    enum kern_dtype dtype;
    uint64_t elements;
};

/* `tensor` is KERN_EMBED or KERN_LM_HEAD, and `c` has it; `dir` is the folder that `c` is of.
 * Errors  ERR_BAD_MODEL, naming the file. */
NODISCARD enum err model_outer_open(struct model_outer *out, int dir,
                                    const struct model_checkpoint *c, enum kern_tensor tensor,
                                    struct err_text *why);
void model_outer_close(struct model_outer *o); /* not open: fine */

/* Whether `copy`, of an adapter and of the same shape, has the same values, bit for bit in f32.
 * Errors  ERR_UNSUPPORTED_ADAPTER: another value, naming the tensor;
 *         ERR_ADAPTER_UNREADABLE: the model's file cannot be read now.
 * Cost    reads the matrix once, in small parts. Thread: any. */
NODISCARD enum err model_outer_compare(const struct model_outer *o, const struct model_tensor *copy,
                                       struct err_text *why);

#endif
