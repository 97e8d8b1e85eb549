/* checks.h - what every device asks of shapes, limits, tensors and adapters before it trusts them.
 * Inside kernels/ only. Pure. */
#ifndef LORRY_KERNELS_CHECKS_H
#define LORRY_KERNELS_CHECKS_H

#include "kernels/kernels.h"

enum { KERN_TENSOR_NAME_BYTES = 64 };

/* ERR_BAD_MODEL, naming the field. */
enum err kern_shape_check(const struct kern_shape *shape, struct err_text *why);
/* ERR_BAD_CONFIG for page_tokens; the rest is CHECKed: the caller computed it. */
enum err kern_limits_check(const struct kern_shape *shape, const struct kern_limits *limits,
                           struct err_text *why);

/* "layers.3.q_proj.weight"; may be `room` or a constant. */
const char *kern_tensor_name(char room[KERN_TENSOR_NAME_BYTES], enum kern_tensor tensor,
                             uint32_t layer, enum kern_module module);
/* The rows and columns that the shape asks for; a vector has one row. CHECKs that the shape has
 * such a tensor. */
void kern_tensor_size(const struct kern_shape *shape, const struct kern_weight *w, uint64_t *rows,
                      uint64_t *columns);
/* ERR_BAD_MODEL: the tensor has another size. */
enum err kern_tensor_check(const struct kern_shape *shape, const struct kern_weight *w,
                           struct err_text *why);
/* Element `index` of a tensor that may lie at any address. */
float kern_tensor_float(const void *data, enum kern_dtype dtype, uint64_t index);

/* Which tensors a device has been given: a table of kern_tensor_slots() bytes. */
uint32_t kern_tensor_slots(const struct kern_shape *shape);
uint32_t kern_tensor_slot(const struct kern_shape *shape, enum kern_tensor tensor, uint32_t layer,
                          enum kern_module module);
/* ERR_BAD_MODEL, naming the first tensor of the shape that `given` lacks; lm_head may be absent. */
enum err kern_tensors_ready(const struct kern_shape *shape, const uint8_t *given,
                            struct err_text *why);

/* CHECKs an adapter's delta: kernels read A, B and bias where its table says. */
void kern_adapter_check(const struct kern_shape *shape, const struct kern_limits *limits,
                        uint32_t pool_pages, const struct kern_adapter_set *set);
/* CHECKs a slot's parameters. */
void kern_slot_check(const struct kern_limits *limits, const struct kern_slot_set *set);

#endif
