#include "model/adapter_plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

static enum err bad(struct err_text *why, enum err e, const char *tensor, const char *problem) {
    return err_set_field(why, e, tensor, MODEL_ADAPTER_FILE ": tensor %s: %s", tensor, problem);
}

/* ---- names -------------------------------------------------------------------------------- */

enum part { PART_A, PART_B, PART_BIAS };

struct place {
    bool outside; /* of the layers */
    uint32_t layer;
    uint32_t which; /* enum kern_module, or enum kern_outer outside */
    enum part part;
};

/* Steps over `prefix`; false when the name goes on otherwise. */
static bool skip(const char **at, const char *prefix) {
    size_t length = strlen(prefix);
    if (strncmp(*at, prefix, length) != 0) {
        return false;
    }
    *at += length;
    return true;
}

/* A layer's number without leading zeros; UINT32_MAX for one too long for any model. */
static bool skip_number(const char **at, uint32_t *number) {
    const char *s = *at;
    uint64_t value = 0;
    if (*s < '0' || *s > '9' || (s[0] == '0' && s[1] >= '0' && s[1] <= '9')) {
        return false;
    }
    for (; *s >= '0' && *s <= '9'; s++) {
        value = value * 10 + (uint64_t)(*s - '0');
        value = value < UINT32_MAX ? value : UINT32_MAX;
    }
    *at = s;
    *number = (uint32_t)value;
    return true;
}

/* The module's name, up to the part: model.layers.7.self_attn.q_proj */
static bool skip_module(const char **at, struct place *place) {
    if (!skip(at, "model.layers.") || !skip_number(at, &place->layer) || !skip(at, ".")) {
        return false;
    }
    bool attention = skip(at, "self_attn.");
    if (!attention && !skip(at, "mlp.")) {
        return false;
    }
    for (enum kern_module m = 0; m < KERN_MODULES; m++) {
        if ((m <= KERN_O) == attention && skip(at, kern_module_name(m))) {
            place->which = m;
            return true;
        }
    }
    return false;
}

static const char *const outer_paths[KERN_OUTERS] = {
    [KERN_OUTER_EMBED] = "model.embed_tokens", [KERN_OUTER_HEAD] = "lm_head"};

static bool skip_outer(const char **at, struct place *place) {
    for (enum kern_outer o = 0; o < KERN_OUTERS; o++) {
        if (skip(at, outer_paths[o])) {
            place->outside = true;
            place->which = o;
            return true;
        }
    }
    return false;
}

/* base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight; savers other than PEFT's leave
 * the adapter's name in: lora_A.default.weight. The embedding's are parameters themselves:
 * base_model.model.model.embed_tokens.lora_embedding_A. */
static bool parse_name(const char *name, struct place *place) {
    const char *at = name;
    if (!skip(&at, "base_model.model.") || (!skip_outer(&at, place) && !skip_module(&at, place))) {
        return false;
    }
    bool embed = place->outside && place->which == KERN_OUTER_EMBED;
    bool is_b = skip(&at, embed ? ".lora_embedding_B" : ".lora_B");
    if (!is_b && !skip(&at, embed ? ".lora_embedding_A" : ".lora_A")) {
        return false;
    }
    (void)skip(&at, ".default");
    bool is_bias = is_b && !embed && strcmp(at, ".bias") == 0;
    place->part = is_bias ? PART_BIAS : is_b ? PART_B : PART_A;
    return is_bias || strcmp(at, embed ? "" : ".weight") == 0;
}

static void entry_path(char room[96], uint32_t layers, uint32_t entry) {
    uint32_t layer = entry / KERN_MODULES;
    enum kern_module m = entry % KERN_MODULES;
    if (layer == layers) {
        (void)snprintf(room, 96, "%s", outer_paths[entry - layers * KERN_MODULES]);
        return;
    }
    (void)snprintf(room, 96, "model.layers.%u.%s.%s", layer, m <= KERN_O ? "self_attn" : "mlp",
                   kern_module_name(m));
}

/* ---- pairs -------------------------------------------------------------------------------- */

/* Why a tensor has no place, and what to do about it. */
static const char *not_supported(const char *name) {
    static const struct {
        const char *part, *text;
    } reasons[] = {
        {"lora_magnitude_vector", "DoRA is not supported; merge the adapter into its base"},
        {"trainable_tokens_delta",
         "trained tokens (trainable_token_indices) are not supported; merge the adapter into its "
         "base"},
        {"modules_to_save",
         "trained copies of modules (modules_to_save) are not supported; train LoRA on them, or "
         "merge the adapter into its base"},
        {"lora_", "only lora_A, lora_B and its bias of q, k, v, o, gate, up and down_proj, "
                  "embed_tokens and lm_head are supported, under PEFT's names"},
    };
    for (size_t i = 0; i < sizeof reasons / sizeof reasons[0]; i++) {
        if (strstr(name, reasons[i].part) != NULL) {
            return reasons[i].text;
        }
    }
    return "it is not LoRA: trained base weights, biases and copies of modules are not supported; "
           "merge the adapter into its base";
}

/* Whether the tensor is the base's embedding or head, as PEFT saves them: with LoRA on them under
 * base_layer, else (save_embedding_layers, or a vocabulary that was resized) under their own name.
 */
static bool parse_copy(const char *name, struct place *place) {
    const char *at = name;
    return skip(&at, "base_model.model.") && skip_outer(&at, place) &&
           (strcmp(at, ".base_layer.weight") == 0 || strcmp(at, ".weight") == 0);
}

static enum err place_copy(struct model_adapter_plan *p, const struct kern_shape *shape,
                           uint32_t which, const struct model_tensor *t, struct err_text *why) {
    if (!t->is_float || t->dims != 2 || t->shape[0] != shape->vocab ||
        t->shape[1] != shape->hidden) {
        char room[MODEL_ST_SHAPE_TEXT_BYTES];
        return err_set_field(why, ERR_UNSUPPORTED_ADAPTER, t->name,
                             MODEL_ADAPTER_FILE ": tensor %s is %s %s, the base's is [%u, %u]; "
                                                "neither a resized vocabulary nor another type "
                                                "is supported",
                             t->name, t->dtype_name, model_tensor_shape(t, room), shape->vocab,
                             shape->hidden);
    }
    if (p->copies[which] != NULL) {
        return bad(why, ERR_BAD_ADAPTER, t->name, "it is there twice");
    }
    p->copies[which] = t;
    return ERR_OK;
}

static enum err place_tensor(struct model_adapter_plan *p, const struct kern_shape *shape,
                             const struct model_tensor *t, struct err_text *why) {
    struct place place = {0};
    if (parse_copy(t->name, &place)) {
        return place_copy(p, shape, place.which, t, why);
    }
    place = (struct place){0};
    if (!parse_name(t->name, &place)) {
        return bad(why, ERR_UNSUPPORTED_ADAPTER, t->name, not_supported(t->name));
    }
    if (!place.outside && place.layer >= p->layers) {
        return err_set_field(why, ERR_BAD_ADAPTER, t->name,
                             MODEL_ADAPTER_FILE ": tensor %s: the model has only %u layers; the "
                                                "adapter is of another model",
                             t->name, p->layers);
    }
    if (!t->is_float) {
        return err_set_field(why, ERR_UNSUPPORTED_ADAPTER, t->name,
                             MODEL_ADAPTER_FILE ": tensor %s: type %s is not supported; F32, F16 "
                                                "and BF16 are",
                             t->name, t->dtype_name);
    }
    bool is_bias = place.part == PART_BIAS;
    if (t->dims != (is_bias ? 1 : 2) || t->elements == 0) {
        return bad(why, ERR_BAD_ADAPTER, t->name,
                   is_bias ? "it is not a vector" : "it is not a matrix");
    }
    uint32_t layer = place.outside ? p->layers : place.layer;
    struct model_lora_pair *pair = &p->pairs[(size_t)layer * KERN_MODULES + place.which];
    const struct model_tensor **part = is_bias                ? &pair->bias
                                       : place.part == PART_B ? &pair->b
                                                              : &pair->a;
    if (*part != NULL) {
        return err_set_field(why, ERR_BAD_ADAPTER, t->name,
                             MODEL_ADAPTER_FILE ": tensor %s: it is there twice, also as %s",
                             t->name, (*part)->name);
    }
    *part = t;
    return ERR_OK;
}

static enum err wrong_shape(struct err_text *why, const struct model_tensor *t, uint64_t rows,
                            uint64_t columns) {
    char room[MODEL_ST_SHAPE_TEXT_BYTES];
    return err_set_field(why, ERR_BAD_ADAPTER, t->name,
                         MODEL_ADAPTER_FILE ": tensor %s is %s, the model needs [%llu, %llu]; the "
                                            "adapter is of another model, or damaged",
                         t->name, model_tensor_shape(t, room), (unsigned long long)rows,
                         (unsigned long long)columns);
}

/* lora_bias and the tensors must agree: PEFT reads a missing one as zeros and drops one too many.
 */
static enum err check_bias(const struct model_lora_pair *pair, uint32_t out,
                           const struct model_peft *peft, struct err_text *why) {
    if (pair->bias == NULL && peft->lora_bias) {
        return err_set_field(why, ERR_BAD_ADAPTER, pair->b->name,
                             MODEL_ADAPTER_FILE ": tensor %s: its lora_B.bias is missing, which "
                                                "lora_bias in " MODEL_PEFT_FILE " promises",
                             pair->b->name);
    }
    if (pair->bias != NULL && !peft->lora_bias) {
        return bad(why, ERR_BAD_ADAPTER, pair->bias->name,
                   "lora_bias is not set in " MODEL_PEFT_FILE ", so PEFT would not use it");
    }
    if (pair->bias != NULL && pair->bias->shape[0] != out) {
        char room[MODEL_ST_SHAPE_TEXT_BYTES];
        return err_set_field(why, ERR_BAD_ADAPTER, pair->bias->name,
                             MODEL_ADAPTER_FILE ": tensor %s is %s, the model needs [%u]; the "
                                                "adapter is of another model, or damaged",
                             pair->bias->name, model_tensor_shape(pair->bias, room), out);
    }
    return ERR_OK;
}

static enum err check_pair(const struct model_lora_pair *pair, const struct kern_shape *shape,
                           const struct model_peft *peft, uint32_t entry, const char *path,
                           struct err_text *why) {
    uint32_t in = kern_lora_in(shape, entry);
    uint32_t out = kern_lora_out(shape, entry);
    if (pair->a == NULL || pair->b == NULL) {
        bool has_a = pair->a != NULL;
        const char *name = has_a             ? pair->a->name
                           : pair->b != NULL ? pair->b->name
                                             : pair->bias->name;
        if (!has_a && pair->b == NULL) {
            return bad(why, ERR_BAD_ADAPTER, name,
                       "lora_A and lora_B, which it adds to, are missing");
        }
        return err_set_field(why, ERR_BAD_ADAPTER, name,
                             MODEL_ADAPTER_FILE ": tensor %s: its other half, lora_%c, is missing",
                             name, has_a ? 'B' : 'A');
    }
    const struct model_tensor *a = pair->a;
    uint64_t rank = a->shape[0];
    if (a->shape[1] != in) {
        return wrong_shape(why, a, rank, in);
    }
    if (pair->b->shape[0] != out || pair->b->shape[1] != rank) {
        return wrong_shape(why, pair->b, out, rank);
    }
    if (rank > KERN_RANK_MAX) {
        return err_set_field(why, ERR_UNSUPPORTED_ADAPTER, a->name,
                             MODEL_ADAPTER_FILE ": tensor %s: rank %llu is above the limit of %d",
                             a->name, (unsigned long long)rank, KERN_RANK_MAX);
    }
    uint32_t wanted = model_peft_rank(peft, path);
    if (rank != wanted) {
        return err_set_field(why, ERR_BAD_ADAPTER, a->name,
                             MODEL_ADAPTER_FILE ": tensor %s has rank %llu, " MODEL_PEFT_FILE
                                                " says %u",
                             a->name, (unsigned long long)rank, wanted);
    }
    bool embed = entry == shape->layers * KERN_MODULES + KERN_OUTER_EMBED;
    if (embed && peft->lora_bias) {
        return bad(why, ERR_UNSUPPORTED_ADAPTER, a->name,
                   "PEFT knows no lora_bias on an embedding");
    }
    enum err e = embed ? ERR_OK : check_bias(pair, out, peft, why);
    if (e == ERR_OK && !model_peft_targets(peft, path)) {
        e = bad(why, ERR_BAD_ADAPTER, a->name,
                MODEL_PEFT_FILE " leaves its module out (target_modules, exclude_modules, "
                                "layers_to_transform), so PEFT would not use it");
    }
    return e;
}

/* Gives each matrix and bias of `count` entries from `first` on its place; returns the end. */
static uint64_t lay_out(struct model_adapter_plan *p, const struct kern_shape *shape,
                        uint64_t page_elems, uint32_t first, uint32_t count) {
    uint64_t end = 0;
    for (uint32_t i = first; i < first + count; i++) {
        struct kern_lora *lora = &p->lora[i];
        p->ends[i] = end;
        if (lora->rank == 0) {
            continue;
        }
        uint32_t out = kern_lora_out(shape, i);
        lora->a = end;
        lora->b = kern_matrix_end(page_elems, lora->a, lora->rank, kern_lora_in(shape, i));
        end = kern_matrix_end(page_elems, lora->b, lora->rank, out);
        if (p->pairs[i].bias != NULL) {
            lora->bias = end;
            end = kern_bias_end(end, out);
        }
        p->ends[i] = end;
    }
    return end;
}

static enum err plan_entry(struct model_adapter_plan *p, uint32_t entry,
                           const struct kern_shape *shape, const struct model_peft *peft,
                           struct err_text *why) {
    const struct model_lora_pair *pair = &p->pairs[entry];
    if (pair->a == NULL && pair->b == NULL && pair->bias == NULL) {
        return ERR_OK;
    }
    char path[96];
    entry_path(path, shape->layers, entry);
    enum err e = check_pair(pair, shape, peft, entry, path, why);
    if (e != ERR_OK) {
        return e;
    }
    uint32_t rank = (uint32_t)pair->a->shape[0];
    p->lora[entry].rank = kern_rank_padded(rank);
    p->lora[entry].scale = model_peft_scale(peft, path, rank);
    p->rank_max = rank > p->rank_max ? rank : p->rank_max;
    p->modules++;
    return ERR_OK;
}

/* The lengths of both lists: as the largest layer needs, and all planes of the second together. */
static void plan_pages(struct model_adapter_plan *p, const struct kern_shape *shape,
                       uint64_t page_elems) {
    uint64_t pages = 0;
    for (uint32_t layer = 0; layer < p->layers; layer++) {
        uint64_t end = lay_out(p, shape, page_elems, layer * KERN_MODULES, KERN_MODULES);
        uint64_t needed = (end + page_elems - 1) / page_elems;
        pages = needed > pages ? needed : pages;
    }
    uint64_t end = lay_out(p, shape, page_elems, p->layers * KERN_MODULES, KERN_OUTERS);
    uint64_t list_elems = page_elems * p->layers;
    uint64_t outer = (end + list_elems - 1) / list_elems;
    CHECK(pages + outer <= UINT32_MAX);
    p->page_count = (uint32_t)(pages + outer);
    p->outer_pages = (uint32_t)outer;
}

enum err model_adapter_plan(struct model_adapter_plan *out, const struct kern_shape *shape,
                            const struct model_peft *peft, const struct model_st *st,
                            uint64_t page_elems, struct err_text *why) {
    CHECK(page_elems >= KERN_TILE_ELEMENTS);
    *out = (struct model_adapter_plan){0};
    uint32_t entries = kern_lora_count(shape->layers);
    struct model_adapter_plan p = {.layers = shape->layers};
    p.pairs = calloc(entries, sizeof *p.pairs);
    p.lora = calloc(entries, sizeof *p.lora);
    p.ends = calloc(entries, sizeof *p.ends);
    enum err e = ERR_OK;
    if (p.pairs == NULL || p.lora == NULL || p.ends == NULL) {
        e = err_set(why, ERR_NO_MEMORY, "no memory for a plan of %u modules", entries);
        goto out;
    }
    for (uint32_t i = 0; i < st->count && e == ERR_OK; i++) {
        e = place_tensor(&p, shape, &st->tensors[i], why);
    }
    for (uint32_t i = 0; i < entries && e == ERR_OK; i++) {
        e = plan_entry(&p, i, shape, peft, why);
    }
    if (e == ERR_OK && p.modules == 0) {
        e = err_set_field(why, ERR_BAD_ADAPTER, MODEL_ADAPTER_FILE,
                          MODEL_ADAPTER_FILE ": it holds no tensors of LoRA");
    }
    if (e == ERR_OK) {
        plan_pages(&p, shape, page_elems);
        *out = p;
        p = (struct model_adapter_plan){0};
    }
out:
    model_adapter_plan_deinit(&p);
    return e;
}

void model_adapter_plan_deinit(struct model_adapter_plan *p) {
    free(p->pairs);
    free(p->lora);
    free(p->ends);
    *p = (struct model_adapter_plan){0};
}
