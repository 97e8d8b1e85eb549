/* shapes.h - the shapes of well-known models by name. */
#ifndef LORRY_TOOLS_OPS_SHAPES_H
#define LORRY_TOOLS_OPS_SHAPES_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"

/* The shape called `name`, in bf16; its rope_freq points to `rope_freq`, which is filled. False:
 * no shape has that name. */
bool ops_shape(const char *name, struct kern_shape *shape, float rope_freq[KERN_HEAD_DIM_MAX / 2]);
/* The names in order; NULL after the last. */
const char *ops_shape_name(uint32_t index);

#endif
