#include "model/outer.h"

#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "model/adapter_plan.h"
#include "model/file.h"

enum { PART_ELEMENTS = 4096 };

static const struct kern_weight *weight_find(const struct model_checkpoint *c,
                                             enum kern_tensor tensor) {
    for (uint32_t i = 0; i < c->weight_count; i++) {
        if (c->weights[i].tensor == tensor) {
            return &c->weights[i];
        }
    }
    return NULL;
}

static const struct model_shard *shard_of(const struct model_checkpoint *c, const uint8_t *data) {
    for (uint32_t i = 0; i < c->shard_count; i++) {
        const uint8_t *map = c->shards[i].map;
        if (data >= map && data < map + c->shards[i].bytes) {
            return &c->shards[i];
        }
    }
    return NULL;
}

enum err model_outer_open(struct model_outer *out, int dir, const struct model_checkpoint *c,
                          enum kern_tensor tensor, struct err_text *why) {
    const struct kern_weight *w = weight_find(c, tensor);
    CHECK(w != NULL);
    const uint8_t *data = w->data;
    const struct model_shard *shard = shard_of(c, data);
    CHECK(shard != NULL);
    struct model_stat stat = {0};
    int fd = -1;
    int error = model_file_open(dir, shard->name, &fd, &stat);
    if (error != 0) {
        char room[128];
        return err_set_field(why, ERR_BAD_MODEL, shard->name, "%s: %s", shard->name,
                             model_file_error(error, room, sizeof room));
    }
    *out = (struct model_outer){.fd = fd,
                                .offset = (uint64_t)(data - (const uint8_t *)shard->map),
                                .dtype = w->dtype,
                                .elements = w->rows * w->columns};
    return ERR_OK;
}

void model_outer_close(struct model_outer *o) {
    if (o->fd >= 0) {
        (void)close(o->fd);
    }
    o->fd = -1;
}

enum err model_outer_compare(const struct model_outer *o, const struct model_tensor *copy,
                             struct err_text *why) {
    uint8_t raw[4 * PART_ELEMENTS];
    float ours[PART_ELEMENTS];
    float theirs[PART_ELEMENTS];
    CHECK(copy->is_float);
    CHECK(copy->elements == o->elements);
    for (uint64_t first = 0; first < copy->elements; first += PART_ELEMENTS) {
        uint64_t left = copy->elements - first;
        uint64_t count = left < PART_ELEMENTS ? left : PART_ELEMENTS;
        uint64_t elem_bytes = kern_dtype_bytes(o->dtype);
        int error =
            model_file_read_at(o->fd, o->offset + first * elem_bytes, raw, count * elem_bytes);
        if (error != 0) {
            char room[128];
            return err_set_field(why, ERR_ADAPTER_UNREADABLE, copy->name,
                                 MODEL_ADAPTER_FILE
                                 ": tensor %s cannot be compared with the model's: %s",
                                 copy->name, model_file_error(error, room, sizeof room));
        }
        const uint8_t *part = copy->data + first * kern_dtype_bytes(copy->dtype);
        kern_convert(ours, KERN_F32, raw, o->dtype, count);
        kern_convert(theirs, KERN_F32, part, copy->dtype, count);
        if (memcmp(ours, theirs, count * sizeof ours[0]) != 0) {
            return err_set_field(
                why, ERR_UNSUPPORTED_ADAPTER, copy->name,
                MODEL_ADAPTER_FILE
                ": tensor %s, a copy of the base's, differs from it: it was "
                "trained, or is another model's; save LoRA alone "
                "(save_embedding_layers=False), or merge the adapter into its base",
                copy->name);
        }
    }
    return ERR_OK;
}
