/* twin.h - the model once more: naive, in double precision, one token of one sequence at a time.
 *
 * It shares nothing with kernels/ but the shape: the formulas stand here a second time. */
#ifndef LORRY_TESTS_UNIT_KERNELS_TWIN_H
#define LORRY_TESTS_UNIT_KERNELS_TWIN_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"

struct twin_layer {
    float *module[KERN_MODULES]; /* [out][in] */
    float *bias[3];
    float *input_norm, *post_norm;
    float *q_norm, *k_norm; /* [head_dim] */
};

struct twin_weights {
    float *embed, *final_norm;
    float *lm_head; /* == embed where tied */
    struct twin_layer *layers;
};

struct twin_lora {
    uint32_t rank; /* as trained, not padded; 0 = none */
    float scale;
    float *a, *b; /* [rank][in], [out][rank] */
    float *bias;  /* [out], or NULL */
};

struct twin_adapter {
    struct twin_lora *lora; /* [kern_lora_count(layers)] */
};

/* What the blocks give for one token and layer. */
struct twin_layer_rows {
    double *q, *k, *v; /* after bias, norms and rope */
    double *attended;
    double *x_middle, *normed_middle; /* after attn_out */
    double *activation;
    double *x, *normed; /* after down; normed for the next layer or the head */
};

struct twin_rows {
    double *x, *normed; /* after embed */
    struct twin_layer_rows *layers;
    double *logits;
};

/* A sequence: rows[position] for each token it was given. */
struct twin_sequence {
    struct twin_rows *rows;
    uint32_t count;
};

/* Appends a token; `adapter` may be NULL. */
void twin_token(struct twin_sequence *s, const struct kern_shape *shape,
                const struct twin_weights *weights, const struct twin_adapter *adapter,
                uint32_t token);
void twin_sequence_free(struct twin_sequence *s, const struct kern_shape *shape);

#endif
