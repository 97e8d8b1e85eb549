#include "kernels/checks.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"

/* Bounds that keep every product of sizes within 64 bits; far above any model. */
enum { LAYERS_MAX = 1 << 12, COLUMNS_MAX = 1 << 20, VOCAB_MAX = 1 << 24 };
enum { TABLE_MAX = 1 << 20, PAGE_TOKENS_MAX = 1 << 12 };
enum { HEAD_MULTIPLE = 8 };

/* ---- shape and limits --------------------------------------------------------------------- */

enum err kern_shape_check(const struct kern_shape *s, struct err_text *why) {
    CHECK(s->rope_freq != NULL);
    if (s->layers == 0 || s->layers > LAYERS_MAX || s->hidden == 0 || s->hidden > COLUMNS_MAX ||
        s->intermediate == 0 || s->intermediate > COLUMNS_MAX || s->vocab == 0 ||
        s->vocab > VOCAB_MAX || s->positions == 0) {
        return err_set(why, ERR_BAD_MODEL,
                       "layers %u, hidden %u, intermediate %u, vocab %u, positions %u: zero or "
                       "larger than a device takes",
                       s->layers, s->hidden, s->intermediate, s->vocab, s->positions);
    }
    if (s->head_dim == 0 || s->head_dim % HEAD_MULTIPLE != 0 || s->head_dim > KERN_HEAD_DIM_MAX) {
        return err_set_field(why, ERR_BAD_MODEL, "head_dim",
                             "head_dim %u is not a multiple of %d up to %d", s->head_dim,
                             HEAD_MULTIPLE, KERN_HEAD_DIM_MAX);
    }
    if (s->kv_heads == 0 || s->heads == 0 || s->heads % s->kv_heads != 0 ||
        s->heads > COLUMNS_MAX / s->head_dim) {
        return err_set_field(why, ERR_BAD_MODEL, "num_attention_heads",
                             "%u query heads cannot share %u key-value heads", s->heads,
                             s->kv_heads);
    }
    return ERR_OK;
}

enum err kern_limits_check(const struct kern_shape *s, const struct kern_limits *l,
                           struct err_text *why) {
    CHECK(l->slots > 0 && l->slots <= TABLE_MAX);
    CHECK(l->adapters <= TABLE_MAX);
    CHECK(l->step_tokens > 0 && l->step_tokens <= TABLE_MAX);
    CHECK(l->step_samples > 0 && l->step_samples <= l->step_tokens);
    CHECK(l->slot_pages > 0 && l->adapter_pages <= TABLE_MAX);
    uint32_t t = l->page_tokens;
    if (t == 0 || (t & (t - 1)) != 0 || t > PAGE_TOKENS_MAX) {
        return err_set_field(why, ERR_BAD_CONFIG, "page_tokens",
                             "%u tokens a page is not a power of two up to %d", t, PAGE_TOKENS_MAX);
    }
    uint64_t elems = kern_page_elems(s, t);
    if (elems < KERN_TILE_ELEMENTS || elems % KERN_TILE_COLUMNS != 0) {
        return err_set_field(why, ERR_BAD_CONFIG, "page_tokens",
                             "%u tokens give pages of %llu elements: at least %d and a multiple of "
                             "%d are needed",
                             t, (unsigned long long)elems, KERN_TILE_ELEMENTS, KERN_TILE_COLUMNS);
    }
    return ERR_OK;
}

/* ---- tensors ------------------------------------------------------------------------------ */

const char *kern_tensor_name(char room[KERN_TENSOR_NAME_BYTES], enum kern_tensor tensor,
                             uint32_t layer, enum kern_module module) {
    const char *last = NULL;
    switch (tensor) {
    case KERN_EMBED:
        return "embed_tokens.weight";
    case KERN_LM_HEAD:
        return "lm_head.weight";
    case KERN_FINAL_NORM:
        return "norm.weight";
    case KERN_INPUT_NORM:
        last = "input_layernorm.weight";
        break;
    case KERN_POST_NORM:
        last = "post_attention_layernorm.weight";
        break;
    case KERN_Q_NORM:
        last = "self_attn.q_norm.weight";
        break;
    case KERN_K_NORM:
        last = "self_attn.k_norm.weight";
        break;
    case KERN_WEIGHT:
    case KERN_BIAS:
        last = tensor == KERN_WEIGHT ? "weight" : "bias";
        (void)snprintf(room, KERN_TENSOR_NAME_BYTES, "layers.%u.%s.%s", layer,
                       kern_module_name(module), last);
        return room;
    }
    CHECK(last != NULL);
    (void)snprintf(room, KERN_TENSOR_NAME_BYTES, "layers.%u.%s", layer, last);
    return room;
}

void kern_tensor_size(const struct kern_shape *s, const struct kern_weight *w, uint64_t *rows,
                      uint64_t *columns) {
    *rows = 1;
    *columns = s->hidden;
    switch (w->tensor) {
    case KERN_EMBED:
    case KERN_LM_HEAD:
        *rows = s->vocab;
        return;
    case KERN_FINAL_NORM:
        return;
    case KERN_INPUT_NORM:
    case KERN_POST_NORM:
        CHECK(w->layer < s->layers);
        return;
    case KERN_Q_NORM:
    case KERN_K_NORM:
        CHECK(w->layer < s->layers && s->qk_norm);
        *columns = s->head_dim;
        return;
    case KERN_WEIGHT:
        CHECK(w->layer < s->layers && w->module < KERN_MODULES);
        *rows = kern_module_out(s, w->module);
        *columns = kern_module_in(s, w->module);
        return;
    case KERN_BIAS:
        CHECK(w->layer < s->layers && w->module <= KERN_V && s->qkv_bias);
        *columns = kern_module_out(s, w->module);
        return;
    }
    CHECK(!"a tensor");
}

enum err kern_tensor_check(const struct kern_shape *shape, const struct kern_weight *w,
                           struct err_text *why) {
    CHECK(w->dtype == KERN_F32 || w->dtype == KERN_F16 || w->dtype == KERN_BF16);
    CHECK(w->data != NULL);
    uint64_t rows, columns;
    kern_tensor_size(shape, w, &rows, &columns);
    if (w->rows == rows && w->columns == columns) {
        return ERR_OK;
    }
    char room[KERN_TENSOR_NAME_BYTES];
    const char *name = kern_tensor_name(room, w->tensor, w->layer, w->module);
    return err_set_field(why, ERR_BAD_MODEL, name,
                         "%s is [%llu, %llu], but the model's shape asks for [%llu, %llu]", name,
                         (unsigned long long)w->rows, (unsigned long long)w->columns,
                         (unsigned long long)rows, (unsigned long long)columns);
}

/* ---- which were given --------------------------------------------------------------------- */

/* Three of the model, then of each layer: four norms, a weight for each module, three biases. */
enum { MODEL_SLOTS = 3, LAYER_NORMS = 4, LAYER_SLOTS = LAYER_NORMS + KERN_MODULES + KERN_V + 1 };

uint32_t kern_tensor_slots(const struct kern_shape *shape) {
    return MODEL_SLOTS + shape->layers * LAYER_SLOTS;
}

uint32_t kern_tensor_slot(const struct kern_shape *shape, enum kern_tensor tensor, uint32_t layer,
                          enum kern_module module) {
    uint32_t begin = MODEL_SLOTS + layer * LAYER_SLOTS;
    switch (tensor) {
    case KERN_EMBED:
    case KERN_LM_HEAD:
    case KERN_FINAL_NORM:
        return (uint32_t)tensor - KERN_EMBED;
    case KERN_INPUT_NORM:
        return begin;
    case KERN_POST_NORM:
        return begin + 1;
    case KERN_Q_NORM:
        return begin + 2;
    case KERN_K_NORM:
        return begin + 3;
    case KERN_WEIGHT:
        CHECK(layer < shape->layers);
        return begin + LAYER_NORMS + module;
    case KERN_BIAS:
        CHECK(layer < shape->layers && module <= KERN_V);
        return begin + LAYER_NORMS + KERN_MODULES + module;
    }
    CHECK(!"a tensor");
    return 0;
}

_Static_assert(KERN_EMBED == 0 && KERN_LM_HEAD == 1 && KERN_FINAL_NORM == 2, "the model's slots");

static enum err ready(const struct kern_shape *s, const uint8_t *given, enum kern_tensor tensor,
                      uint32_t layer, enum kern_module module, struct err_text *why) {
    if (given[kern_tensor_slot(s, tensor, layer, module)] != 0) {
        return ERR_OK;
    }
    char room[KERN_TENSOR_NAME_BYTES];
    const char *name = kern_tensor_name(room, tensor, layer, module);
    return err_set_field(why, ERR_BAD_MODEL, name, "%s was not given", name);
}

static enum err layer_ready(const struct kern_shape *s, const uint8_t *given, uint32_t layer,
                            struct err_text *why) {
    static const enum kern_tensor norms[] = {KERN_INPUT_NORM, KERN_POST_NORM, KERN_Q_NORM,
                                             KERN_K_NORM};
    enum err e = ERR_OK;
    for (uint32_t i = 0; i < (s->qk_norm ? 4 : 2) && e == ERR_OK; i++) {
        e = ready(s, given, norms[i], layer, KERN_Q, why);
    }
    for (enum kern_module m = KERN_Q; m < KERN_MODULES && e == ERR_OK; m++) {
        e = ready(s, given, KERN_WEIGHT, layer, m, why);
        if (e == ERR_OK && m <= KERN_V && s->qkv_bias) {
            e = ready(s, given, KERN_BIAS, layer, m, why);
        }
    }
    return e;
}

enum err kern_tensors_ready(const struct kern_shape *shape, const uint8_t *given,
                            struct err_text *why) {
    enum err e = ready(shape, given, KERN_EMBED, 0, KERN_Q, why);
    if (e == ERR_OK) {
        e = ready(shape, given, KERN_FINAL_NORM, 0, KERN_Q, why);
    }
    for (uint32_t i = 0; i < shape->layers && e == ERR_OK; i++) {
        e = layer_ready(shape, given, i, why);
    }
    return e;
}

/* ---- deltas ------------------------------------------------------------------------------- */

static void lora_check(const struct kern_shape *shape, uint64_t page_elems,
                       const struct kern_lora *lora, uint32_t entry, uint64_t elems) {
    if (lora->rank == 0) {
        return;
    }
    uint32_t in = kern_lora_in(shape, entry), out = kern_lora_out(shape, entry);
    CHECK(lora->rank <= KERN_RANK_MAX && lora->rank % KERN_RANK_MULTIPLE == 0);
    CHECK(lora->a % KERN_TILE_COLUMNS == 0 && lora->b % KERN_TILE_COLUMNS == 0);
    CHECK(lora->a <= elems && lora->b <= elems);
    CHECK(kern_matrix_end(page_elems, lora->a, lora->rank, in) <= elems);
    CHECK(kern_matrix_end(page_elems, lora->b, lora->rank, out) <= elems);
    if (lora->bias != 0) {
        CHECK(lora->bias % KERN_TILE_COLUMNS == 0 && lora->bias <= elems);
        CHECK(kern_bias_end(lora->bias, out) <= elems);
    }
}

void kern_adapter_check(const struct kern_shape *shape, const struct kern_limits *limits,
                        uint32_t pool_pages, const struct kern_adapter_set *set) {
    CHECK(set->adapter < limits->adapters);
    CHECK(set->page_count >= 1 && set->page_count <= limits->adapter_pages);
    CHECK(set->outer_pages <= set->page_count);
    uint64_t page_elems = kern_page_elems(shape, limits->page_tokens);
    uint32_t modules = shape->layers * KERN_MODULES, entries = kern_lora_count(shape->layers);
    uint64_t elems = (set->page_count - set->outer_pages) * page_elems;
    uint64_t outer_elems = set->outer_pages * page_elems * shape->layers;
    for (uint32_t i = 0; i < entries; i++) {
        lora_check(shape, page_elems, &set->lora[i], i, i < modules ? elems : outer_elems);
    }
    CHECK(set->lora[modules + KERN_OUTER_EMBED].bias == 0);
    for (uint32_t i = 0; i < set->page_count; i++) {
        CHECK(set->pages[i] < pool_pages);
    }
}

void kern_slot_check(const struct kern_limits *limits, const struct kern_slot_set *set) {
    CHECK(set->slot < limits->slots);
    CHECK(set->stop_count <= KERN_STOP_TOKENS_MAX);
    CHECK(isfinite(set->temperature) && set->temperature >= 0);
    CHECK(isfinite(set->top_p) && isfinite(set->min_p));
    CHECK(isfinite(set->repetition_penalty) && set->repetition_penalty >= 0);
    CHECK(isfinite(set->presence_penalty) && isfinite(set->frequency_penalty));
    CHECK(set->top_logprobs <= KERN_LOGPROBS_MAX);
}
