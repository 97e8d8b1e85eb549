/* safetensors.h - the tensors of one safetensors file.
 *
 * The file is a little-endian u64 header length, a JSON header {name: {dtype, shape,
 * data_offsets}}, and the tensors' bytes, row-major. All of it is untrusted; a file is accepted
 * only if the tensors cover its bytes exactly, without gap or overlap, each as long as its shape
 * and dtype say. */
#ifndef LORRY_MODEL_SAFETENSORS_H
#define LORRY_MODEL_SAFETENSORS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "kernels/kernels.h"
#include "model/json.h"

enum {
    MODEL_ST_HEADER_BYTES_MAX = 8 << 20, /* a tensor takes some 150 bytes of it */
    MODEL_ST_NAME_BYTES_MAX = 255,
    MODEL_ST_DIMS_MAX = 8,
    MODEL_ST_SHAPE_TEXT_BYTES = MODEL_ST_DIMS_MAX * 22 + 3,
};

struct model_tensor {
    const char *name;       /* printable ASCII */
    const char *dtype_name; /* as the format spells it */
    bool is_float;          /* dtype is one of ours */
    enum kern_dtype dtype;  /* if is_float */
    uint32_t dims;
    uint64_t shape[MODEL_ST_DIMS_MAX];
    uint64_t elements;
    const uint8_t *data; /* into the caller's bytes; maybe unaligned */
    uint64_t bytes;
};

struct model_st {
    json_t *header;               /* owns the names */
    struct model_tensor *tensors; /* in the order of their bytes */
    uint32_t count;
    uint64_t header_bytes; /* of the file, before the first tensor */
};

/* `data` is the whole file and must outlive `out`. On an error `out` is empty.
 * Errors  origin.bad, naming file and tensor; ERR_NO_MEMORY. */
NODISCARD enum err model_st_parse(struct model_st *out, const uint8_t *data, uint64_t bytes,
                                  struct model_origin origin, struct err_text *why);
void model_st_deinit(struct model_st *st);

/* "[8, 576]" */
const char *model_tensor_shape(const struct model_tensor *t, char room[MODEL_ST_SHAPE_TEXT_BYTES]);

#endif
