/* A checkpoint's config.json carries some forty fields, and each release of transformers adds
 * more. Those that give the shape are read; those that are known to change the forward pass in a
 * way that is not built are refused unless they have the value that changes nothing; the rest
 * (initializer_range, use_cache, dtype, dropouts, …) is left alone. */
#include "model/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "model/json.h"
#include "model/rope.h"

/* Refused unless absent, null, or … */
enum harmless {
    IF_EMPTY, /* false, 0, "", [] or {} */
    IF_ONE,   /* 1 */
    IF_AT_MOST_ONE,
    IF_TRUE,
    IF_SILU,
};

static const struct refused {
    const char *field;
    enum harmless harmless;
    const char *what;
} refused[] = {
    {"quantization_config", IF_EMPTY, "quantised weights"},
    {"compression_config", IF_EMPTY, "compressed weights"},
    {"auto_map", IF_EMPTY, "a model with code of its own"},
    {"hidden_act", IF_SILU, "activations other than silu"},
    {"hidden_activation", IF_SILU, "activations other than silu"},
    {"attention_bias", IF_EMPTY, "a bias on the attention's projections"},
    {"mlp_bias", IF_EMPTY, "a bias on the MLP's projections"},
    {"attention_chunk_size", IF_EMPTY, "chunked attention"},
    {"pretraining_tp", IF_AT_MOST_ONE, "slices of tensor-parallel pretraining"},
    {"partial_rotary_factor", IF_ONE, "partial rotary embeddings"},
    {"rope_interleaved", IF_EMPTY, "interleaved rotary embeddings"},
    {"no_rope_layers", IF_EMPTY, "layers without rotary embeddings"},
    {"no_rope_layer_interval", IF_EMPTY, "layers without rotary embeddings"},
    {"final_logit_softcapping", IF_EMPTY, "soft-capped logits"},
    {"attn_logit_softcapping", IF_EMPTY, "soft-capped attention"},
    {"query_pre_attn_scalar", IF_EMPTY, "a scale of its own in the attention"},
    {"attention_multiplier", IF_EMPTY, "a scale of its own in the attention"},
    {"residual_multiplier", IF_ONE, "scaled residuals"},
    {"embedding_multiplier", IF_ONE, "scaled embeddings"},
    {"logits_scaling", IF_ONE, "scaled logits"},
    {"logit_scale", IF_ONE, "scaled logits"},
    {"lm_head_multiplier", IF_ONE, "scaled logits"},
    {"scale_emb", IF_ONE, "scaled embeddings"},
    {"scale_depth", IF_EMPTY, "scaled residuals"},
    {"dim_model_base", IF_EMPTY, "scaled logits"},
    {"use_qk_norm", IF_EMPTY, "norms on q and k"},
    {"qk_norm", IF_EMPTY, "norms on q and k"},
    {"qk_layernorm", IF_EMPTY, "norms on q and k"},
    {"clip_qkv", IF_EMPTY, "clipped q, k and v"},
    {"parallel_attn", IF_EMPTY, "attention beside the MLP"},
    {"num_experts", IF_AT_MOST_ONE, "experts"},
    {"num_local_experts", IF_AT_MOST_ONE, "experts"},
    {"is_causal", IF_TRUE, "attention to later tokens"},
    {"alibi", IF_EMPTY, "ALiBi"},
};

static bool value_harmless(const json_t *value, enum harmless harmless) {
    double number = json_number_value(value); /* 0 for what is no number */
    switch (harmless) {
    case IF_EMPTY:
        return model_json_empty(value);
    case IF_ONE:
        return number == 1;
    case IF_AT_MOST_ONE:
        return model_json_empty(value) || number == 1;
    case IF_TRUE:
        return json_is_true(value);
    case IF_SILU:
        return json_is_string(value) && strcmp(json_string_value(value), "silu") == 0;
    }
    return false;
}

static const char *harmless_words(enum harmless harmless) {
    switch (harmless) {
    case IF_EMPTY:
        return "null or false";
    case IF_ONE:
        return "1";
    case IF_AT_MOST_ONE:
        return "0 or 1";
    case IF_TRUE:
        return "true";
    case IF_SILU:
        return "silu";
    }
    return "null";
}

static enum err refuse(const struct model_json *j, const char *field, const char *what,
                       const char *instead) {
    return err_set_field(j->why, j->origin.bad, field,
                         "%s: %s asks for %s, which is not supported; %s is", j->origin.file, field,
                         what, instead);
}

static enum err check_refused(const struct model_json *j) {
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        const struct refused *f = &refused[i];
        if (model_json_has(j, f->field) &&
            !value_harmless(json_object_get(j->object, f->field), f->harmless)) {
            return refuse(j, f->field, f->what, harmless_words(f->harmless));
        }
    }
    return ERR_OK;
}

/* What the architectures differ in. Where a field is absent transformers has a default of its own
 * for some of them, made for one size of model: there the field must be given. */
static const struct family {
    const char *architecture;
    bool qkv_bias, qk_norm;
    bool needs_kv_heads, needs_head_dim;
    enum { WINDOW_NONE, WINDOW_GIVEN, WINDOW_SWITCHED } window;
} families[] = {
    {"LlamaForCausalLM", .window = WINDOW_NONE},
    {"MistralForCausalLM", .needs_kv_heads = true, .window = WINDOW_GIVEN},
    {"Qwen2ForCausalLM", .qkv_bias = true, .needs_kv_heads = true, .window = WINDOW_SWITCHED},
    {"Qwen3ForCausalLM", .qk_norm = true, .needs_kv_heads = true, .needs_head_dim = true,
     .window = WINDOW_SWITCHED},
};

static enum err read_architecture(const struct model_json *j, struct model_facts *facts,
                                  const struct family **family) {
    const json_t *list = json_object_get(j->object, "architectures");
    const char *name = NULL;
    if (json_is_array(list) && json_array_size(list) == 1) {
        name = json_string_value(json_array_get(list, 0)); /* NULL for what is no string */
    }
    if (name == NULL) {
        return err_set_field(j->why, j->origin.bad, "architectures",
                             "%s: architectures must be a list of one name", j->origin.file);
    }
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++) {
        if (strcmp(name, families[i].architecture) == 0) {
            *family = &families[i];
            (void)snprintf(facts->architecture, sizeof facts->architecture, "%s", name);
            return ERR_OK;
        }
    }
    char room[MODEL_JSON_TEXT_BYTES];
    return err_set_field(j->why, j->origin.bad, "architectures",
                         "%s: architectures is %s; LlamaForCausalLM, MistralForCausalLM, "
                         "Qwen2ForCausalLM and Qwen3ForCausalLM are supported",
                         j->origin.file, model_json_printable(name, room));
}

/* Counts the layers whose type in layer_types slides; leaves `*sliding` alone where it is absent.
 */
static enum err count_sliding(const struct model_json *j, uint32_t layers, uint32_t *sliding) {
    const json_t *types = json_object_get(j->object, "layer_types");
    if (!model_json_has(j, "layer_types")) {
        return ERR_OK;
    }
    if (json_array_size(types) != layers) { /* 0 of what is no array */
        return err_set_field(j->why, j->origin.bad, "layer_types",
                             "%s: layer_types must be a list of %u names, one a layer",
                             j->origin.file, layers);
    }
    *sliding = 0;
    size_t i = 0;
    const json_t *type = NULL;
    json_array_foreach(types, i, type) {
        const char *name = json_string_value(type); /* NULL for what is no string */
        bool slides = name != NULL && strcmp(name, "sliding_attention") == 0;
        if (!slides && (name == NULL || strcmp(name, "full_attention") != 0)) {
            return refuse(j, "layer_types", "attention of another kind",
                          "full_attention or sliding_attention");
        }
        *sliding += slides;
    }
    return ERR_OK;
}

/* Qwen's: use_sliding_window switches it on for the layers from max_window_layers on. */
static enum err read_switched_window(const struct model_json *j, uint32_t layers, uint32_t *window,
                                     uint32_t *sliding) {
    bool on = false;
    uint32_t full = 28; /* transformers' default */
    enum err e = model_json_bool(j, "use_sliding_window", &on);
    if (e == ERR_OK) {
        e = model_json_u32(j, "max_window_layers", 0, UINT32_MAX, &full);
    }
    if (e == ERR_OK && !on) {
        *window = 0;
    }
    *sliding = *window == 0 || full >= layers ? 0 : layers - full;
    return e;
}

/* The window is of the shape, so all layers have the same one or none. */
static enum err read_window(const struct model_json *j, const struct family *family,
                            struct kern_shape *shape) {
    uint32_t window = 0;
    if (family->window != WINDOW_NONE && json_object_get(j->object, "sliding_window") == NULL) {
        window = 4096; /* transformers' default where the field is absent; null switches it off */
    }
    if (family->window == WINDOW_NONE && model_json_has(j, "sliding_window")) {
        return refuse(j, "sliding_window", "a sliding window", "null");
    }
    if (family->window != WINDOW_SWITCHED && model_json_has(j, "use_sliding_window") &&
        !model_json_empty(json_object_get(j->object, "use_sliding_window"))) {
        return refuse(j, "use_sliding_window", "a sliding window", "false");
    }
    enum err e = model_json_u32(j, "sliding_window", 1, INT32_MAX, &window);
    uint32_t sliding = window == 0 ? 0 : shape->layers;
    if (e == ERR_OK && family->window == WINDOW_SWITCHED) {
        e = read_switched_window(j, shape->layers, &window, &sliding);
    }
    uint32_t expected = sliding;
    if (e == ERR_OK) {
        e = count_sliding(j, shape->layers, &sliding);
    }
    if (e != ERR_OK) {
        return e;
    }
    const char *field = model_json_has(j, "layer_types") ? "layer_types" : "max_window_layers";
    if (sliding != 0 && sliding != shape->layers) {
        return refuse(j, field, "sliding attention in some layers",
                      "the same attention in all layers");
    }
    /* Mistral slides whatever layer_types says; a Qwen does as they say, given a window. */
    bool contradicts =
        family->window == WINDOW_SWITCHED ? sliding > 0 && window == 0 : sliding != expected;
    if (contradicts) {
        return err_set_field(j->why, j->origin.bad, "layer_types",
                             "%s: layer_types contradicts sliding_window", j->origin.file);
    }
    shape->window = sliding == 0 ? 0 : window;
    return ERR_OK;
}

static enum err read_sizes(const struct model_json *j, const struct family *family,
                           struct kern_shape *shape) {
    const struct {
        const char *field;
        uint32_t max;
        uint32_t *out;
    } sizes[] = {
        {"hidden_size", MODEL_WIDTH_MAX, &shape->hidden},
        {"intermediate_size", MODEL_WIDTH_MAX, &shape->intermediate},
        {"num_hidden_layers", MODEL_LAYERS_MAX, &shape->layers},
        {"num_attention_heads", MODEL_HEADS_MAX, &shape->heads},
        {"vocab_size", MODEL_VOCAB_MAX, &shape->vocab},
        {"max_position_embeddings", MODEL_POSITIONS_MAX, &shape->positions},
    };
    enum err e = ERR_OK;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0] && e == ERR_OK; i++) {
        e = model_json_need(j, sizes[i].field);
        if (e == ERR_OK) {
            e = model_json_u32(j, sizes[i].field, 1, sizes[i].max, sizes[i].out);
        }
    }
    if (e == ERR_OK && family->needs_kv_heads) {
        e = model_json_need(j, "num_key_value_heads");
    }
    if (e == ERR_OK) {
        shape->kv_heads = shape->heads;
        e = model_json_u32(j, "num_key_value_heads", 1, shape->heads, &shape->kv_heads);
    }
    if (e == ERR_OK && shape->heads % shape->kv_heads != 0) {
        e = err_set_field(j->why, j->origin.bad, "num_key_value_heads",
                          "%s: num_key_value_heads, %u, does not divide num_attention_heads, %u",
                          j->origin.file, shape->kv_heads, shape->heads);
    }
    return e;
}

static enum err read_head_dim(const struct model_json *j, const struct family *family,
                              struct kern_shape *shape) {
    if (family->needs_head_dim) {
        enum err missing = model_json_need(j, "head_dim");
        if (missing != ERR_OK) {
            return missing;
        }
    }
    if (!model_json_has(j, "head_dim")) {
        if (shape->hidden % shape->heads != 0) {
            return err_set_field(j->why, j->origin.bad, "num_attention_heads",
                                 "%s: num_attention_heads, %u, does not divide hidden_size, %u",
                                 j->origin.file, shape->heads, shape->hidden);
        }
        shape->head_dim = shape->hidden / shape->heads;
    }
    enum err e = model_json_u32(j, "head_dim", 1, MODEL_WIDTH_MAX, &shape->head_dim);
    if (e != ERR_OK) {
        return e;
    }
    if (shape->head_dim % 8 != 0 || shape->head_dim > KERN_HEAD_DIM_MAX) {
        return err_set_field(j->why, j->origin.bad, "head_dim",
                             "%s: head_dim is %u; multiples of 8 up to %d are supported",
                             j->origin.file, shape->head_dim, KERN_HEAD_DIM_MAX);
    }
    return ERR_OK;
}

static enum err add_eos(const struct model_json *j, const json_t *value,
                        struct model_facts *facts) {
    json_int_t token = json_integer_value(value);
    if (!json_is_integer(value) || token < 0) {
        return err_set_field(j->why, j->origin.bad, "eos_token_id",
                             "%s: eos_token_id must be a token or a list of tokens",
                             j->origin.file);
    }
    if (token >= (json_int_t)facts->shape.vocab) {
        log_debug("model",
                  "%s: eos_token_id is beyond the vocabulary and never generated token=%lld",
                  j->origin.file, (long long)token);
        return ERR_OK;
    }
    for (uint32_t i = 0; i < facts->eos_count; i++) {
        if (facts->eos[i] == (uint32_t)token) {
            return ERR_OK;
        }
    }
    if (facts->eos_count == MODEL_EOS_MAX) {
        return err_set_field(j->why, j->origin.bad, "eos_token_id",
                             "%s: eos_token_id: more than %d different tokens", j->origin.file,
                             MODEL_EOS_MAX);
    }
    facts->eos[facts->eos_count++] = (uint32_t)token;
    return ERR_OK;
}

static enum err read_eos(const struct model_json *j, struct model_facts *facts) {
    const json_t *value = json_object_get(j->object, "eos_token_id");
    if (value == NULL || json_is_null(value)) {
        return ERR_OK;
    }
    if (!json_is_array(value)) {
        return add_eos(j, value, facts);
    }
    size_t i = 0;
    const json_t *one = NULL;
    json_array_foreach(value, i, one) {
        enum err e = add_eos(j, one, facts);
        if (e != ERR_OK) {
            return e;
        }
    }
    return ERR_OK;
}

/* Penalties and the like are defaults of a job, not of the model; they are announced rather than
 * refused, because a job can be run without them. */
static void warn_of_ignored_defaults(const struct model_json *j) {
    static const struct {
        const char *field;
        double neutral;
    } ignored[] = {
        {"typical_p", 1},
        {"epsilon_cutoff", 0},
        {"eta_cutoff", 0},
        {"no_repeat_ngram_size", 0},
        {"num_beams", 1},
        {"penalty_alpha", 0},
        {"encoder_repetition_penalty", 1},
    };
    for (size_t i = 0; i < sizeof ignored / sizeof ignored[0]; i++) {
        const json_t *value = json_object_get(j->object, ignored[i].field);
        if (json_is_number(value) && json_number_value(value) != ignored[i].neutral) {
            log_warn("model",
                     "a sampling default is not supported and ignored file=%s field=%s "
                     "value=%g",
                     j->origin.file, ignored[i].field, json_number_value(value));
        }
    }
}

static enum err read_generation(const struct model_json *j, struct model_facts *facts) {
    double temperature = -1;
    double top_p = 1;
    double min_p = 0;
    double repetition_penalty = 1;
    bool sample = true;
    uint32_t top_k = 0;
    enum err e = read_eos(j, facts);
    if (e == ERR_OK) {
        e = model_json_number(j, "temperature", 0, 100, &temperature);
    }
    if (e == ERR_OK) {
        e = model_json_number(j, "top_p", 0, 1, &top_p);
    }
    if (e == ERR_OK) {
        e = model_json_u32(j, "top_k", 0, INT32_MAX, &top_k);
    }
    if (e == ERR_OK) {
        e = model_json_number(j, "min_p", 0, 1, &min_p);
    }
    if (e == ERR_OK) {
        e = model_json_number(j, "repetition_penalty", 0.001, 1000, &repetition_penalty);
    }
    if (e == ERR_OK) {
        e = model_json_bool(j, "do_sample", &sample);
    }
    if (e != ERR_OK) {
        return e;
    }
    if (temperature < 0) {
        temperature = sample ? 1 : 0;
    }
    facts->temperature = (float)temperature;
    facts->top_p = (float)top_p;
    facts->top_k = top_k;
    facts->min_p = (float)min_p;
    facts->repetition_penalty = (float)repetition_penalty;
    warn_of_ignored_defaults(j);
    return ERR_OK;
}

static enum err read_config(const struct model_json *j, struct model_facts *facts, float **freq) {
    const struct family *family = NULL;
    enum err e = read_architecture(j, facts, &family);
    if (e != ERR_OK) {
        return e;
    }
    CHECK(family != NULL);
    facts->shape.qkv_bias = family->qkv_bias;
    facts->shape.qk_norm = family->qk_norm;
    double epsilon = 0;
    if ((e = check_refused(j)) != ERR_OK || (e = read_sizes(j, family, &facts->shape)) != ERR_OK ||
        (e = read_head_dim(j, family, &facts->shape)) != ERR_OK ||
        (e = read_window(j, family, &facts->shape)) != ERR_OK ||
        (e = model_json_need(j, "rms_norm_eps")) != ERR_OK ||
        (e = model_json_number(j, "rms_norm_eps", 0, 1, &epsilon)) != ERR_OK ||
        (e = model_json_bool(j, "tie_word_embeddings", &facts->tied)) != ERR_OK ||
        (e = read_eos(j, facts)) != ERR_OK) {
        return e;
    }
    facts->shape.norm_eps = (float)epsilon;
    e = model_rope_read(j, &facts->shape, freq);
    facts->shape.rope_scale = 1; /* of the types that are built */
    facts->shape.rope_freq = *freq;
    return e;
}

enum err model_config_parse(struct model_facts *facts, float **rope_freq,
                            const struct model_bytes *config, const struct model_bytes *generation,
                            struct err_text *why) {
    struct model_facts f = {.temperature = 1, .top_p = 1, .repetition_penalty = 1};
    float *freq = NULL;
    json_t *root = NULL;
    struct model_json j = {.origin = {"config.json", ERR_BAD_MODEL}, .why = why};
    enum err e = model_json_parse(&root, config->data, config->count, j.origin, why);
    if (e == ERR_OK) {
        j.object = root;
        e = read_config(&j, &f, &freq);
    }
    json_decref(root);
    root = NULL;
    if (e == ERR_OK && generation->count > 0) {
        j.origin.file = "generation_config.json";
        e = model_json_parse(&root, generation->data, generation->count, j.origin, why);
        if (e == ERR_OK) {
            j.object = root;
            e = read_generation(&j, &f);
        }
    }
    json_decref(root);
    if (e != ERR_OK) {
        free(freq);
        return e;
    }
    CHECK(freq != NULL);
    *facts = f;
    *rope_freq = freq;
    return ERR_OK;
}
