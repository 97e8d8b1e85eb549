#include "tools/ops/shapes.h"

#include <math.h>
#include <string.h>

struct named_shape {
    const char *name;
    float rope_theta;
    struct kern_shape shape;
};

/* Plain rope: a scaling of the frequencies changes no time. */
static const struct named_shape shapes[] = {
    {"llama-3.1-8b",
     500000,
     {.layers = 32,
      .hidden = 4096,
      .heads = 32,
      .kv_heads = 8,
      .head_dim = 128,
      .intermediate = 14336,
      .vocab = 128256,
      .positions = 131072,
      .norm_eps = 1e-5f}},
    {"llama-2-7b",
     10000,
     {.layers = 32,
      .hidden = 4096,
      .heads = 32,
      .kv_heads = 32,
      .head_dim = 128,
      .intermediate = 11008,
      .vocab = 32000,
      .positions = 4096,
      .norm_eps = 1e-5f}},
    {"llama-2-13b",
     10000,
     {.layers = 40,
      .hidden = 5120,
      .heads = 40,
      .kv_heads = 40,
      .head_dim = 128,
      .intermediate = 13824,
      .vocab = 32000,
      .positions = 4096,
      .norm_eps = 1e-5f}},
    {"qwen2.5-7b",
     1000000,
     {.layers = 28,
      .hidden = 3584,
      .heads = 28,
      .kv_heads = 4,
      .head_dim = 128,
      .intermediate = 18944,
      .vocab = 152064,
      .positions = 32768,
      .norm_eps = 1e-6f,
      .qkv_bias = true}},
    {"smollm2",
     100000,
     {.layers = 30,
      .hidden = 576,
      .heads = 9,
      .kv_heads = 3,
      .head_dim = 64,
      .intermediate = 1536,
      .vocab = 49152,
      .positions = 8192,
      .norm_eps = 1e-5f}},
    {"tiny", /* of no model: for tests of the benchmarks */
     10000,
     {.layers = 2,
      .hidden = 128,
      .heads = 4,
      .kv_heads = 2,
      .head_dim = 32,
      .intermediate = 256,
      .vocab = 512,
      .positions = 4096,
      .norm_eps = 1e-5f}},
};

enum { SHAPES = sizeof shapes / sizeof shapes[0] };

bool ops_shape(const char *name, struct kern_shape *shape, float rope_freq[KERN_HEAD_DIM_MAX / 2]) {
    for (size_t i = 0; i < SHAPES; i++) {
        if (strcmp(shapes[i].name, name) != 0) {
            continue;
        }
        *shape = shapes[i].shape;
        shape->dtype = KERN_BF16;
        shape->rope_scale = 1;
        for (uint32_t k = 0; k < shape->head_dim / 2; k++) {
            rope_freq[k] = powf(shapes[i].rope_theta, -2 * (float)k / (float)shape->head_dim);
        }
        shape->rope_freq = rope_freq;
        return true;
    }
    return false;
}

const char *ops_shape_name(uint32_t index) {
    return index < SHAPES ? shapes[index].name : NULL;
}
