/* The forward pass, written once for all devices. */
#include "base/check.h"
#include "model/model.h"

static void run_blocks(const struct model_facts *facts, const struct kern_ops *ops,
                       struct kern_device *device) {
    ops->embed(device);
    for (uint32_t layer = 0; layer < facts->shape.layers; layer++) {
        ops->qkv(device, layer);
        ops->attention(device, layer);
        ops->attn_out(device, layer);
        ops->gate_up(device, layer);
        ops->down(device, layer);
    }
    ops->head(device);
    ops->sample(device);
}

enum err model_warm(const struct model_facts *facts, const struct kern_ops *ops,
                    struct kern_device *device) {
    enum err e = ERR_OK;
    for (uint32_t bucket = 0; bucket < ops->bucket_count(device) && e == ERR_OK; bucket++) {
        e = ops->bucket_begin(device, bucket);
        if (e == ERR_OK) {
            run_blocks(facts, ops, device);
            e = ops->bucket_end(device);
        }
    }
    return e;
}

enum err model_step(const struct model_facts *facts, const struct kern_ops *ops,
                    struct kern_device *device, const struct kern_step *step, uint64_t *ticket) {
    CHECK(step->token_count > 0);
    enum err e = ops->step_begin(device, step);
    if (e != ERR_OK) {
        return e;
    }
    run_blocks(facts, ops, device);
    return ops->step_end(device, ticket);
}
