/* fuzz_safetensors.c - any bytes as a safetensors file, then as an adapter's weights: no crash, and
 * what is accepted lies inside the file. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/adapter_plan.h"
#include "model/safetensors.h"
#include "tests/fuzz/fuzz.h"

static void demand(bool good, const char *what, const char *detail) {
    if (!good) {
        (void)fprintf(stderr, "fuzz_safetensors: %s: %s\n", what, detail);
        abort();
    }
}

/* A model so small that a mutation of the corpus can fit it. */
static const struct kern_shape SHAPE = {.layers = 2,
                                        .hidden = 2,
                                        .heads = 2,
                                        .kv_heads = 1,
                                        .head_dim = 8,
                                        .intermediate = 3,
                                        .vocab = 4,
                                        .positions = 16};

static uint64_t check_tensor(const struct model_tensor *t, const uint8_t *data, size_t bytes) {
    demand(t->data >= data && t->bytes <= (size_t)(data + bytes - t->data), "outside", t->name);
    char room[MODEL_ST_SHAPE_TEXT_BYTES];
    demand(strlen(model_tensor_shape(t, room)) >= 2, "a shape without text", t->name);
    if (t->is_float) {
        float *values = malloc((t->elements + 1) * sizeof *values);
        demand(values != NULL, "memory", t->name);
        kern_convert(values, KERN_F32, t->data, t->dtype, t->elements);
        bool finite = kern_finite(t->data, t->dtype, t->elements, t->dtype);
        for (uint64_t i = 0; i < t->elements && finite; i++) {
            demand(isfinite(values[i]), "NaN called finite", t->name);
        }
        free(values);
    }
    return t->bytes;
}

static void plan(const struct model_st *st) {
    struct model_peft peft = {.rank = 1, .alpha = 1};
    struct model_adapter_plan p;
    struct err_text why = {0};
    enum err e = model_adapter_plan(&p, &SHAPE, &peft, st, KERN_TILE_ELEMENTS, &why);
    if (e == ERR_OK) {
        demand(p.modules > 0 && p.page_count > 0 && p.rank_max == 1, "an empty plan", "");
        for (uint32_t i = 0; i < KERN_OUTERS; i++) {
            const struct model_tensor *copy = p.copies[i];
            demand(copy == NULL ||
                       (copy->is_float && copy->elements == (uint64_t)SHAPE.vocab * SHAPE.hidden),
                   "a copy of another shape", copy == NULL ? "" : copy->name);
        }
    } else {
        demand(e == ERR_BAD_ADAPTER || e == ERR_UNSUPPORTED_ADAPTER, "another error", err_name(e));
        demand(fuzz_reason_good(&why), "an error without a good reason", why.message);
    }
    model_adapter_plan_deinit(&p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    struct model_st st;
    struct err_text why = {0};
    const struct model_origin origin = {"fuzz.safetensors", ERR_BAD_ADAPTER};
    enum err e = model_st_parse(&st, data, bytes, origin, &why);
    if (e != ERR_OK) {
        demand(e == ERR_BAD_ADAPTER, "another error", err_name(e));
        demand(fuzz_reason_good(&why), "an error without a good reason", why.message);
        return 0;
    }
    uint64_t covered = st.header_bytes;
    for (uint32_t i = 0; i < st.count; i++) {
        covered += check_tensor(&st.tensors[i], data, bytes);
    }
    demand(covered == bytes, "bytes that no tensor owns", "");
    plan(&st);
    model_st_deinit(&st);
    return 0;
}
