/* adapter_image.h - the values of an adapter's tensors: checked, and put in their places. */
#ifndef LORRY_MODEL_ADAPTER_IMAGE_H
#define LORRY_MODEL_ADAPTER_IMAGE_H

#include "model/adapter_files.h"
#include "model/adapter_plan.h"

struct model_adapter_image {
    const struct model_adapter_files *files; /* whose tensors `plan` names */
    const struct model_adapter_plan *plan;
    const struct kern_shape *shape;
    const struct model_adapter_options *options;
    void *elements; /* out: as pool_image has them, whatever they were before; NULL: only checks */
    char *revision; /* out: [POOL_REVISION_BYTES] of the files; NULL: known already */
};

/* Thread: any; the modules are shared among the crew, and the hash runs beside them.
 * Errors  ERR_BAD_ADAPTER, ERR_UNSUPPORTED_ADAPTER (values that are not finite, in the file or in
 *         the model's type), naming the first such tensor; ERR_NO_MEMORY. */
NODISCARD enum err model_adapter_image_make(const struct model_adapter_image *image,
                                            struct err_text *why);

#endif
