/* rope.h - config.json's rotary embeddings → inverse frequencies. */
#ifndef LORRY_MODEL_ROPE_H
#define LORRY_MODEL_ROPE_H

#include "kernels/kernels.h"
#include "model/json.h"

/* Reads rope_theta with rope_scaling (as transformers 4 writes it) or rope_parameters (as 5 does)
 * of a config.json whose head_dim is in `shape` already. Types default, linear and llama3; what is
 * given twice must agree. `*freq` is malloc'ed [head_dim / 2], the caller's.
 * Errors  ERR_BAD_MODEL, naming the field and what is supported; ERR_NO_MEMORY. */
NODISCARD enum err model_rope_read(const struct model_json *j, const struct kern_shape *shape,
                                   float **freq);

#endif
