/* config.h - config.json and generation_config.json → facts. */
#ifndef LORRY_MODEL_CONFIG_H
#define LORRY_MODEL_CONFIG_H

#include "model/file.h"
#include "model/model.h"

enum {
    MODEL_LAYERS_MAX = 1024,
    MODEL_WIDTH_MAX = 1 << 20, /* of hidden and intermediate */
    MODEL_HEADS_MAX = 1 << 12,
    MODEL_VOCAB_MAX = 1 << 24,
    MODEL_POSITIONS_MAX = 1 << 24, /* beyond it f32 cannot count positions */
    MODEL_CONFIG_BYTES_MAX = 4 << 20,
};

/* Fills architecture, shape, eos, tied and the sampling defaults. `generation` may be empty: the
 * file is optional. `*rope_freq` is malloc'ed [head_dim / 2], the caller's; facts->shape.rope_freq
 * points to it.
 * Errors  ERR_BAD_MODEL, naming file and field; ERR_NO_MEMORY. */
NODISCARD enum err model_config_parse(struct model_facts *facts, float **rope_freq,
                                      const struct model_bytes *config,
                                      const struct model_bytes *generation, struct err_text *why);

#endif
