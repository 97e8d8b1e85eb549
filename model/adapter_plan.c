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
    uint32_t layer;
    enum kern_module module;
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

/* base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight; savers other than PEFT's leave
 * the adapter's name in: lora_A.default.weight. */
static bool parse_name(const char *name, struct place *place) {
    const char *at = name;
    if (!skip(&at, "base_model.model.model.layers.") || !skip_number(&at, &place->layer) ||
        !skip(&at, ".")) {
        return false;
    }
    bool attention = skip(&at, "self_attn.");
    if (!attention && !skip(&at, "mlp.")) {
        return false;
    }
    bool found = false;
    for (enum kern_module m = 0; m < KERN_MODULES && !found; m++) {
        if ((m <= KERN_O) == attention && skip(&at, kern_module_name(m))) {
            place->module = m;
            found = true;
        }
    }
    if (!found) {
        return false;
    }
    bool is_b = skip(&at, ".lora_B");
    if (!is_b && !skip(&at, ".lora_A")) {
        return false;
    }
    (void)skip(&at, ".default");
    bool is_bias = is_b && strcmp(at, ".bias") == 0;
    place->part = is_bias ? PART_BIAS : is_b ? PART_B : PART_A;
    return is_bias || strcmp(at, ".weight") == 0;
}

static void module_path(char room[96], uint32_t layer, enum kern_module m) {
    (void)snprintf(room, 96, "model.layers.%u.%s.%s", layer, m <= KERN_O ? "self_attn" : "mlp",
                   kern_module_name(m));
}

/* ---- pairs -------------------------------------------------------------------------------- */

static enum err place_tensor(struct model_adapter_plan *p, const struct model_tensor *t,
                             struct err_text *why) {
    struct place place = {0};
    if (!parse_name(t->name, &place)) {
        return bad(why, ERR_UNSUPPORTED_ADAPTER, t->name,
                   "only lora_A and lora_B of the layers' linear modules are supported");
    }
    if (place.layer >= p->layers) {
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
    struct model_lora_pair *pair = &p->pairs[(size_t)place.layer * KERN_MODULES + place.module];
    const struct model_tensor **part = is_bias                ? &pair->bias
                                       : place.part == PART_B ? &pair->b
                                                              : &pair->a;
    if (*part != NULL) {
        return err_set_field(why, ERR_BAD_ADAPTER, t->name,
                             MODEL_ADAPTER_FILE ": tensor %s: it is there twice, also as %s",
                             t->name, (*part)->name);
    }
    *part = t;
    p->elements_max = t->elements > p->elements_max ? t->elements : p->elements_max;
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
                           const struct model_peft *peft, enum kern_module m, const char *path,
                           struct err_text *why) {
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
    if (a->shape[1] != kern_module_in(shape, m)) {
        return wrong_shape(why, a, rank, kern_module_in(shape, m));
    }
    if (pair->b->shape[0] != kern_module_out(shape, m) || pair->b->shape[1] != rank) {
        return wrong_shape(why, pair->b, kern_module_out(shape, m), rank);
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
    return check_bias(pair, kern_module_out(shape, m), peft, why);
}

/* Gives each matrix and bias of a layer its place; returns the layer's length in elements. */
static uint64_t lay_out(struct kern_lora *lora, const struct model_lora_pair *pairs,
                        const struct kern_shape *shape, uint64_t page_elems) {
    uint64_t end = 0;
    for (enum kern_module m = 0; m < KERN_MODULES; m++) {
        if (lora[m].rank == 0) {
            continue;
        }
        lora[m].a = end;
        lora[m].b = kern_matrix_end(page_elems, lora[m].a, lora[m].rank, kern_module_in(shape, m));
        end = kern_matrix_end(page_elems, lora[m].b, lora[m].rank, kern_module_out(shape, m));
        if (pairs[m].bias != NULL) {
            lora[m].bias = end;
            end = kern_bias_end(end, kern_module_out(shape, m));
        }
    }
    return end;
}

static enum err plan_layer(struct model_adapter_plan *p, uint32_t layer,
                           const struct kern_shape *shape, const struct model_peft *peft,
                           uint64_t page_elems, struct err_text *why) {
    struct kern_lora *lora = &p->lora[(size_t)layer * KERN_MODULES];
    const struct model_lora_pair *pairs = &p->pairs[(size_t)layer * KERN_MODULES];
    for (enum kern_module m = 0; m < KERN_MODULES; m++) {
        const struct model_lora_pair *pair = &pairs[m];
        if (pair->a == NULL && pair->b == NULL && pair->bias == NULL) {
            continue;
        }
        char path[96];
        module_path(path, layer, m);
        enum err e = check_pair(pair, shape, peft, m, path, why);
        if (e != ERR_OK) {
            return e;
        }
        uint32_t rank = (uint32_t)pair->a->shape[0];
        lora[m].rank = kern_rank_padded(rank);
        lora[m].scale = model_peft_scale(peft, path, rank);
        p->rank_max = rank > p->rank_max ? rank : p->rank_max;
        p->modules++;
    }
    uint64_t pages = (lay_out(lora, pairs, shape, page_elems) + page_elems - 1) / page_elems;
    CHECK(pages <= UINT32_MAX);
    p->page_count = pages > p->page_count ? (uint32_t)pages : p->page_count;
    return ERR_OK;
}

enum err model_adapter_plan(struct model_adapter_plan *out, const struct kern_shape *shape,
                            const struct model_peft *peft, const struct model_st *st,
                            uint64_t page_elems, struct err_text *why) {
    CHECK(page_elems >= KERN_TILE_ELEMENTS);
    *out = (struct model_adapter_plan){0};
    size_t entries = (size_t)shape->layers * KERN_MODULES;
    struct model_adapter_plan p = {.layers = shape->layers};
    p.pairs = calloc(entries, sizeof *p.pairs);
    p.lora = calloc(entries, sizeof *p.lora);
    enum err e = ERR_OK;
    if (p.pairs == NULL || p.lora == NULL) {
        e = err_set(why, ERR_NO_MEMORY, "no memory for a plan of %zu modules", entries);
        goto out;
    }
    for (uint32_t i = 0; i < st->count && e == ERR_OK; i++) {
        e = place_tensor(&p, &st->tensors[i], why);
    }
    for (uint32_t layer = 0; layer < shape->layers && e == ERR_OK; layer++) {
        e = plan_layer(&p, layer, shape, peft, page_elems, why);
    }
    if (e == ERR_OK && p.modules == 0) {
        e = err_set_field(why, ERR_BAD_ADAPTER, MODEL_ADAPTER_FILE,
                          MODEL_ADAPTER_FILE ": it holds no tensors");
    }
    if (e == ERR_OK) {
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
    *p = (struct model_adapter_plan){0};
}
