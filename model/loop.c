/* The forward pass, written once for all devices. */
#include "base/check.h"
#include "model/model.h"

enum err model_step(const struct model_facts *facts, const struct kern_ops *ops,
                    struct kern_device *device, const struct kern_step *step, uint64_t *ticket) {
    CHECK(step->token_count > 0);
    enum err e = ops->step_begin(device, step);
    if (e != ERR_OK) {
        return e;
    }
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
    return ops->step_end(device, ticket);
}
