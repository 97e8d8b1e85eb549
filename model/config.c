/* A checkpoint's config.json carries some forty fields, and each release of transformers adds
 * more. Those that give the shape are read; those that are known to change the forward pass in a
 * way that is not built are refused unless they have the value that changes nothing; the rest
 * (initializer_range, use_cache, dtype, dropouts, …) is left alone. */
#include "model/config.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "model/json.h"

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
    {"use_sliding_window", IF_EMPTY, "a sliding window"},
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

static enum err refuse(const struct model_json *j, const char *field, const char *what) {
    return err_set_field(j->why, j->origin.bad, field, "%s: %s asks for %s, which is not supported",
                         j->origin.file, field, what);
}

static enum err check_refused(const struct model_json *j) {
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        const struct refused *f = &refused[i];
        if (model_json_has(j, f->field) &&
            !value_harmless(json_object_get(j->object, f->field), f->harmless)) {
            return refuse(j, f->field, f->what);
        }
    }
    return ERR_OK;
}

static enum err read_architecture(const struct model_json *j, struct model_facts *facts) {
    const json_t *list = json_object_get(j->object, "architectures");
    const char *name = NULL;
    if (json_is_array(list) && json_array_size(list) == 1) {
        name = json_string_value(json_array_get(list, 0)); /* NULL for what is no string */
    }
    if (name == NULL) {
        return err_set_field(j->why, j->origin.bad, "architectures",
                             "%s: architectures must be a list of one name", j->origin.file);
    }
    if (strcmp(name, "LlamaForCausalLM") != 0 && strcmp(name, "Qwen2ForCausalLM") != 0) {
        return err_set_field(j->why, j->origin.bad, "architectures",
                             "%s: architectures is %.64s; LlamaForCausalLM and Qwen2ForCausalLM "
                             "are supported",
                             j->origin.file, name);
    }
    (void)snprintf(facts->architecture, sizeof facts->architecture, "%s", name);
    return ERR_OK;
}

/* Attention that is full in all layers, and nothing else. */
static enum err check_attention(const struct model_json *j, bool qwen2) {
    if (!qwen2 && model_json_has(j, "sliding_window")) {
        return refuse(j, "sliding_window", "a sliding window");
    } /* Qwen2's takes effect through use_sliding_window only */
    const json_t *types = json_object_get(j->object, "layer_types");
    if (types != NULL && !json_is_array(types) && !json_is_null(types)) {
        return refuse(j, "layer_types", "attention other than full_attention");
    }
    size_t i = 0;
    const json_t *type = NULL;
    json_array_foreach(types, i, type) {
        if (!json_is_string(type) || strcmp(json_string_value(type), "full_attention") != 0) {
            return refuse(j, "layer_types", "attention other than full_attention");
        }
    }
    return ERR_OK;
}

static enum err read_sizes(const struct model_json *j, struct kern_shape *shape, bool qwen2) {
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
    if (e == ERR_OK && qwen2) { /* where it is absent transformers assumes 32, not MHA */
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

static enum err read_head_dim(const struct model_json *j, struct kern_shape *shape) {
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

/* One of rope_scaling (old) and rope_parameters (transformers 5): the type, and the theta. */
static enum err read_rope_object(const struct model_json *j, const char *field, double *theta) {
    json_t *object = json_object_get(j->object, field);
    if (object == NULL || model_json_empty(object)) {
        return ERR_OK;
    }
    if (!json_is_object(object)) {
        return err_set_field(j->why, j->origin.bad, field, "%s: %s must be an object",
                             j->origin.file, field);
    }
    const char *key = NULL;
    const json_t *value = NULL;
    json_object_foreach(object, key, value) {
        if (strcmp(key, "rope_theta") == 0) {
            struct model_json inner = {object, j->origin, j->why};
            enum err e = model_json_number(&inner, key, 1, DBL_MAX, theta);
            if (e != ERR_OK) {
                return e;
            }
        } else if (strcmp(key, "rope_type") == 0 || strcmp(key, "type") == 0) {
            const char *type = json_string_value(value);
            if (type == NULL || strcmp(type, "default") != 0) {
                return err_set_field(j->why, j->origin.bad, field,
                                     "%s: %s: rotary embeddings of type %.32s are not supported",
                                     j->origin.file, field, type == NULL ? "(none)" : type);
            }
        } else if (strcmp(key, "partial_rotary_factor") == 0 && json_number_value(value) == 1) {
            continue;
        } else if (!json_is_null(value)) {
            return err_set_field(j->why, j->origin.bad, field, "%s: %s: %.64s is not supported",
                                 j->origin.file, field, key);
        }
    }
    return ERR_OK;
}

static enum err read_rope(const struct model_json *j, struct kern_shape *shape, float **freq) {
    double plain = 0; /* 0 = not given */
    double scaling = 0;
    double parameters = 0;
    enum err e = model_json_number(j, "rope_theta", 1, DBL_MAX, &plain);
    if (e == ERR_OK) {
        e = read_rope_object(j, "rope_scaling", &scaling);
    }
    if (e == ERR_OK) {
        e = read_rope_object(j, "rope_parameters", &parameters);
    }
    if (e != ERR_OK) {
        return e;
    }
    double theta = fmax(plain, fmax(scaling, parameters));
    if ((plain != 0 && plain != theta) || (scaling != 0 && scaling != theta) ||
        (parameters != 0 && parameters != theta)) {
        return err_set_field(j->why, j->origin.bad, "rope_theta",
                             "%s: rope_theta is given twice, with different values",
                             j->origin.file);
    }
    if (theta == 0) {
        theta = 10000; /* transformers' default for both architectures */
    }
    uint32_t count = shape->head_dim / 2;
    float *f = malloc(count * sizeof *f);
    if (f == NULL) {
        return err_set(j->why, ERR_NO_MEMORY, "no memory for %u rotary frequencies", count);
    }
    for (uint32_t i = 0; i < count; i++) { /* in f32 steps, as torch does */
        float exponent = (float)(2 * i) / (float)shape->head_dim;
        f[i] = 1.0F / (float)pow(theta, exponent);
    }
    shape->rope_scale = 1;
    shape->rope_freq = f;
    *freq = f;
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
        {"repetition_penalty", 1}, {"min_p", 0},         {"typical_p", 1},
        {"epsilon_cutoff", 0},     {"eta_cutoff", 0},    {"no_repeat_ngram_size", 0},
        {"num_beams", 1},          {"penalty_alpha", 0}, {"encoder_repetition_penalty", 1},
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
    warn_of_ignored_defaults(j);
    return ERR_OK;
}

static enum err read_config(const struct model_json *j, struct model_facts *facts, float **freq) {
    enum err e = read_architecture(j, facts);
    if (e != ERR_OK) {
        return e;
    }
    bool qwen2 = strcmp(facts->architecture, "Qwen2ForCausalLM") == 0;
    facts->shape.qkv_bias = qwen2;
    double epsilon = 0;
    if ((e = check_refused(j)) != ERR_OK || (e = check_attention(j, qwen2)) != ERR_OK ||
        (e = read_sizes(j, &facts->shape, qwen2)) != ERR_OK ||
        (e = read_head_dim(j, &facts->shape)) != ERR_OK ||
        (e = model_json_need(j, "rms_norm_eps")) != ERR_OK ||
        (e = model_json_number(j, "rms_norm_eps", 0, 1, &epsilon)) != ERR_OK ||
        (e = model_json_bool(j, "tie_word_embeddings", &facts->tied)) != ERR_OK ||
        (e = read_eos(j, facts)) != ERR_OK) {
        return e;
    }
    facts->shape.norm_eps = (float)epsilon;
    return read_rope(j, &facts->shape, freq);
}

enum err model_config_parse(struct model_facts *facts, float **rope_freq,
                            const struct model_bytes *config, const struct model_bytes *generation,
                            struct err_text *why) {
    struct model_facts f = {.temperature = 1, .top_p = 1};
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
