/* Models by name, as their published config.json has them. */
#include <jansson.h>
#include <string.h>

#include "tools/bench/bench.h"

#define LLAMA_FIELDS                                                                             \
    "\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_act\":\"silu\"," \
    "\"rms_norm_eps\":1e-5,\"tie_word_embeddings\":false,\"torch_dtype\":\"bfloat16\","

static const struct {
    const char *name, *config;
} shapes[] = {
    {"llama-3.1-8b",
     "{" LLAMA_FIELDS "\"hidden_size\":4096,\"intermediate_size\":14336,\"num_hidden_layers\":32,"
     "\"num_attention_heads\":32,\"num_key_value_heads\":8,\"vocab_size\":128256,"
     "\"max_position_embeddings\":131072,\"rope_theta\":500000.0,\"rope_scaling\":{"
     "\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
     "\"original_max_position_embeddings\":8192,\"rope_type\":\"llama3\"}}"},
    {"llama-2-7b",
     "{" LLAMA_FIELDS "\"hidden_size\":4096,\"intermediate_size\":11008,\"num_hidden_layers\":32,"
     "\"num_attention_heads\":32,\"num_key_value_heads\":32,\"vocab_size\":32000,"
     "\"max_position_embeddings\":4096}"},
    {"llama-2-13b",
     "{" LLAMA_FIELDS "\"hidden_size\":5120,\"intermediate_size\":13824,\"num_hidden_layers\":40,"
     "\"num_attention_heads\":40,\"num_key_value_heads\":40,\"vocab_size\":32000,"
     "\"max_position_embeddings\":4096}"},
    {"qwen2.5-7b",
     "{\"architectures\":[\"Qwen2ForCausalLM\"],\"model_type\":\"qwen2\",\"hidden_act\":\"silu\","
     "\"rms_norm_eps\":1e-6,\"tie_word_embeddings\":false,\"torch_dtype\":\"bfloat16\","
     "\"hidden_size\":3584,\"intermediate_size\":18944,\"num_hidden_layers\":28,"
     "\"num_attention_heads\":28,\"num_key_value_heads\":4,\"vocab_size\":152064,"
     "\"max_position_embeddings\":32768,\"max_window_layers\":28,\"rope_theta\":1000000.0,"
     "\"sliding_window\":131072,\"use_sliding_window\":false}"},
    {"tiny", /* for a look at the tool itself, and tests */
     "{" LLAMA_FIELDS "\"hidden_size\":128,\"intermediate_size\":320,\"num_hidden_layers\":2,"
     "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"vocab_size\":512,"
     "\"max_position_embeddings\":512}"},
};

const char *bench_shape(const char *name) {
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        if (strcmp(shapes[i].name, name) == 0) {
            return shapes[i].config;
        }
    }
    return NULL;
}

enum err bench_shape_slice(const char *config, size_t bytes, uint32_t layers, char **slice) {
    json_t *root = json_loadb(config, bytes, 0, NULL);
    json_int_t all = json_integer_value(json_object_get(root, "num_hidden_layers"));
    enum err e = ERR_BAD_CONFIG;
    if (layers <= all) {
        (void)json_object_set_new(root, "num_hidden_layers", json_integer(layers));
        *slice = json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(17));
        e = *slice != NULL ? ERR_OK : ERR_NO_MEMORY;
    }
    json_decref(root);
    return e;
}

const char *bench_shape_names(void) {
    return "llama-3.1-8b, llama-2-7b, llama-2-13b, qwen2.5-7b, tiny";
}
