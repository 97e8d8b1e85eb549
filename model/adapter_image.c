#include "model/adapter_image.h"

#include <stdatomic.h>
#include <string.h>

#include "base/check.h"

#define NONE UINT32_MAX

enum { PARTS = 3 }; /* of a module: A, B, bias */

struct making {
    const struct model_adapter_image *image;
    uint64_t page_elems;
    uint32_t entries;
    _Atomic uint32_t refused; /* the first entry with a bad tensor; NONE */
    _Atomic enum err hashed;
};

static const struct model_tensor *tensor_of(const struct model_lora_pair *pair, unsigned part) {
    const struct model_tensor *const tensors[PARTS] = {pair->a, pair->b, pair->bias};
    return tensors[part];
}

/* ---- one module --------------------------------------------------------------------------- */

/* Where the list of entry `entry` begins in the image: its layer's plane, or the second list. */
static unsigned char *list_begin(const struct making *m, uint32_t entry) {
    const struct model_adapter_plan *plan = m->image->plan;
    uint32_t layer_pages = plan->page_count - plan->outer_pages;
    return (unsigned char *)m->image->elements + (uint64_t)(entry / KERN_MODULES) * layer_pages *
                                                     m->page_elems *
                                                     kern_dtype_bytes(m->image->options->elem);
}

/* Zeros an entry's part of its list, from the end of the one before it, or the beginning, to its
 * own, or the list's: matrices leave gaps. */
static void entry_clear(const struct making *m, uint32_t entry) {
    const struct model_adapter_plan *plan = m->image->plan;
    uint32_t bytes = kern_dtype_bytes(m->image->options->elem);
    uint32_t layers = m->entries - KERN_OUTERS; /* entries of modules */
    bool outside = entry >= layers;
    bool first = outside ? entry == layers : entry % KERN_MODULES == 0;
    bool last = outside ? entry + 1 == m->entries : entry % KERN_MODULES == KERN_MODULES - 1;
    uint64_t list = m->page_elems * (outside ? (uint64_t)plan->outer_pages * plan->layers
                                             : plan->page_count - plan->outer_pages);
    uint64_t from = first ? 0 : plan->ends[entry - 1];
    uint64_t end = last ? list : plan->ends[entry];
    memset(list_begin(m, entry) + from * bytes, 0, (end - from) * bytes);
}

static void part_store(const struct making *m, uint32_t entry, unsigned part) {
    const struct model_adapter_image *i = m->image;
    const struct model_lora_pair *pair = &i->plan->pairs[entry];
    const struct model_tensor *tensor = tensor_of(pair, part);
    const struct kern_lora *lora = &i->plan->lora[entry];
    CHECK(pair->a != NULL); /* the plan refuses halves */
    enum kern_dtype elem = i->options->elem;
    void *list = list_begin(m, entry);
    const struct kern_source from = {.data = tensor->data,
                                     .dtype = tensor->dtype,
                                     .rank = (uint32_t)pair->a->shape[0],
                                     .columns = part == 0 ? kern_lora_in(i->shape, entry)
                                                          : kern_lora_out(i->shape, entry)};
    if (part == 2) {
        kern_bias_store(list, elem, lora, &from);
    } else if (part == 1) {
        kern_matrix_store_b(list, elem, m->page_elems, lora, &from);
    } else if (entry == i->shape->layers * KERN_MODULES + KERN_OUTER_EMBED) {
        kern_matrix_store_a_gathered(list, elem, m->page_elems, lora, &from);
    } else {
        kern_matrix_store_a(list, elem, m->page_elems, lora, &from);
    }
}

/* Whether all its values stay finite, first as they are. */
static enum err tensor_check(const struct model_tensor *t, enum kern_dtype elem,
                             struct err_text *why) {
    if (kern_finite(t->data, t->dtype, t->elements, elem)) {
        return ERR_OK; /* no type takes what another has as NaN or infinite */
    }
    if (!kern_finite(t->data, t->dtype, t->elements, t->dtype)) {
        return err_set_field(why, ERR_BAD_ADAPTER, t->name,
                             MODEL_ADAPTER_FILE ": tensor %s holds NaN or infinity", t->name);
    }
    return err_set_field(
        why, ERR_UNSUPPORTED_ADAPTER, t->name,
        MODEL_ADAPTER_FILE ": tensor %s holds values too large for the model's type", t->name);
}

static enum err entry_make(const struct making *m, uint32_t entry, struct err_text *why) {
    enum err e = ERR_OK;
    if (m->image->elements != NULL) {
        entry_clear(m, entry);
    }
    for (unsigned part = 0; part < PARTS && e == ERR_OK; part++) {
        const struct model_tensor *t = tensor_of(&m->image->plan->pairs[entry], part);
        if (t == NULL) {
            continue;
        }
        e = tensor_check(t, m->image->options->elem, why);
        if (e == ERR_OK && m->image->elements != NULL) {
            part_store(m, entry, part);
        }
    }
    return e;
}

/* ---- all ---------------------------------------------------------------------------------- */

static void make_part(void *argument, uint32_t index) {
    struct making *m = argument;
    if (index >= m->entries) {
        return;
    }
    uint32_t refused = atomic_load(&m->refused);
    if (index > refused || entry_make(m, index, NULL) == ERR_OK) {
        return; /* behind a refused one nothing matters */
    }
    while (index < refused && !atomic_compare_exchange_weak(&m->refused, &refused, index)) {
    }
}

/* The hash first: it takes longest. */
static void hash_or_make_part(void *argument, uint32_t index) {
    struct making *m = argument;
    if (index > 0) {
        make_part(argument, index - 1);
    } else {
        atomic_store(&m->hashed, model_adapter_files_hash(m->image->files, m->image->revision));
    }
}

enum err model_adapter_image_make(const struct model_adapter_image *image, struct err_text *why) {
    struct making m = {.image = image,
                       .page_elems = kern_page_elems(image->shape, image->options->page_tokens),
                       .entries = kern_lora_count(image->plan->layers)};
    atomic_init(&m.refused, NONE);
    atomic_init(&m.hashed, ERR_OK);
    const struct model_crew *crew = &image->options->crew;
    if (image->revision != NULL) {
        model_crew_run(crew, m.entries + 1, hash_or_make_part, &m);
    } else {
        model_crew_run(crew, m.entries, make_part, &m);
    }
    if (atomic_load(&m.hashed) != ERR_OK) {
        return err_set(why, ERR_NO_MEMORY, "no memory for SHA-256");
    }
    uint32_t refused = atomic_load(&m.refused);
    if (refused != NONE) { /* once more, for the words */
        enum err e = entry_make(&m, refused, why);
        CHECK(e != ERR_OK);
        return e;
    }
    return ERR_OK;
}
