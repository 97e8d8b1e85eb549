/* adapter_plan.h - which module of which layer an adapter's tensors change, and where each matrix
 * lies in its image. Pure. */
#ifndef LORRY_MODEL_ADAPTER_PLAN_H
#define LORRY_MODEL_ADAPTER_PLAN_H

#include "kernels/kernels.h"
#include "model/peft_config.h"
#include "model/safetensors.h"

#define MODEL_ADAPTER_FILE "adapter_model.safetensors"

struct model_lora_pair {
    const struct model_tensor *a;    /* [rank, in], or NULL: the module is left alone */
    const struct model_tensor *b;    /* [out, rank] */
    const struct model_tensor *bias; /* [out], or NULL */
};

struct model_adapter_plan {
    uint32_t layers;
    struct model_lora_pair *pairs; /* [kern_lora_count(layers)] */
    struct kern_lora *lora;        /* [kern_lora_count(layers)] */
    uint64_t *ends; /* [kern_lora_count(layers)] where each one's part of its list ends,
                       and the next one's begins */
    /* Of the base's embedding and head, [vocab, hidden], or NULL: right only if they equal these.
     */
    const struct model_tensor *copies[KERN_OUTERS];
    uint32_t modules; /* pairs that are there */
    uint32_t rank_max;
    uint32_t page_count;  /* of both lists */
    uint32_t outer_pages; /* of the second */
};

/* `st` must outlive `out`. On an error `out` is empty.
 * Errors  ERR_BAD_ADAPTER (a half is missing, a shape or rank is wrong), ERR_UNSUPPORTED_ADAPTER
 *         (a tensor that has no place in LoRA on the seven modules, the embedding and the head, a
 * rank above KERN_RANK_MAX, a dtype), naming the tensor; ERR_NO_MEMORY. */
NODISCARD enum err model_adapter_plan(struct model_adapter_plan *out,
                                      const struct kern_shape *shape, const struct model_peft *peft,
                                      const struct model_st *st, uint64_t page_elems,
                                      struct err_text *why);
void model_adapter_plan_deinit(struct model_adapter_plan *p);

#endif
