/* weights.c - a checkpoint's tensors → device memory, in the order that the linears read.
 *
 * A tensor is copied piece by piece through two pinned buffers, so that the next piece is being
 * read from its file while one crosses the bus; where its type is not the device's, a kernel reads
 * the pinned buffer and converts. Vectors are kept in f32: there are few and they are exact. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "kernels/checks.h"
#include "kernels/cuda/cuda.h"

enum { PIECES = 2, PIECE_BYTES = 16 << 20 };

struct cuda_staging {
    unsigned char *pieces[PIECES]; /* pinned */
    cudaEvent_t crossed[PIECES];
    uint32_t next;
};

uint64_t cuda_layer_matrix_bytes(const struct kern_device *d, enum cuda_linear which) {
    const uint64_t row = d->shape.hidden * sizeof(uint16_t); /* of W, or of its transpose */
    const uint64_t rows[] = {[CUDA_QKV] = d->qkv_cols,
                             [CUDA_O] = d->q_cols,
                             [CUDA_GATE_UP] = 2 * (uint64_t)d->shape.intermediate,
                             [CUDA_DOWN] = d->shape.intermediate};
    CHECK(which < CUDA_HEAD);
    return rows[which] * row;
}

void *cuda_layer_matrix(const struct cuda_layer *layer, enum cuda_linear which) {
    void *const matrices[] = {[CUDA_QKV] = layer->qkv,
                              [CUDA_O] = layer->o,
                              [CUDA_GATE_UP] = layer->gate_up,
                              [CUDA_DOWN] = layer->down};
    CHECK(which < CUDA_HEAD);
    return matrices[which];
}

static enum err layer_take(struct kern_device *d, struct cuda_layer *layer, struct err_text *why) {
    const struct kern_shape *s = &d->shape;
    const uint64_t hidden = s->hidden, four = sizeof(float);
    const struct {
        void **out;
        uint64_t bytes;
    } parts[] = {
        {&layer->qkv, cuda_layer_matrix_bytes(d, CUDA_QKV)},
        {&layer->o, cuda_layer_matrix_bytes(d, CUDA_O)},
        {&layer->gate_up, cuda_layer_matrix_bytes(d, CUDA_GATE_UP)},
        {&layer->down, cuda_layer_matrix_bytes(d, CUDA_DOWN)},
        {(void **)&layer->input_norm, hidden * four},
        {(void **)&layer->post_norm, hidden * four},
        {(void **)&layer->qkv_bias, s->qkv_bias ? d->qkv_cols * four : 0},
        {(void **)&layer->q_norm, s->qk_norm ? s->head_dim * four : 0},
        {(void **)&layer->k_norm, s->qk_norm ? s->head_dim * four : 0},
    };
    enum err e = ERR_OK;
    for (size_t i = 0; i < sizeof parts / sizeof parts[0] && e == ERR_OK; i++) {
        if (parts[i].bytes > 0) {
            e = cuda_take(d, parts[i].out, parts[i].bytes, "the weights", why);
        }
    }
    return e;
}

static enum err staging_take(struct kern_device *d, struct err_text *why) {
    const unsigned flags = cudaEventDisableTiming | cudaEventBlockingSync;
    enum err e = ERR_OK;
    for (uint32_t i = 0; i < PIECES && e == ERR_OK; i++) {
        e = cuda_take_host(d, (void **)&d->staging->pieces[i], PIECE_BYTES, why);
        CU_TRY(why, cudaEventCreateWithFlags(&d->staging->crossed[i], flags));
    }
    return e;
}

enum err cuda_weights_take(struct kern_device *d, struct err_text *why) {
    const struct kern_shape *s = &d->shape;
    d->layers = calloc(s->layers, sizeof d->layers[0]);
    d->given = calloc(kern_tensor_slots(s), 1);
    d->staging = calloc(1, sizeof *d->staging);
    if (d->layers == NULL || d->given == NULL || d->staging == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for the list of weights");
    }
    enum err e = cuda_take(d, &d->embed, (uint64_t)s->vocab * s->hidden * sizeof(uint16_t),
                           "the weights", why);
    if (e == ERR_OK) {
        e = cuda_take(d, (void **)&d->final_norm, s->hidden * sizeof(float), "the weights", why);
    }
    for (uint32_t i = 0; i < s->layers && e == ERR_OK; i++) {
        e = layer_take(d, &d->layers[i], why);
    }
    d->head = d->embed; /* until it comes by itself */
    return e == ERR_OK ? staging_take(d, why) : e;
}

void cuda_weights_close(struct kern_device *d) {
    for (uint32_t i = 0; d->staging != NULL && i < PIECES; i++) {
        if (d->staging->crossed[i] != NULL) {
            (void)cudaEventDestroy(d->staging->crossed[i]);
        }
    }
    free(d->staging);
    free(d->layers);
    free(d->given);
}

/* ---- where a tensor goes ------------------------------------------------------------------ */

static void *elements_at(void *base, uint64_t element) {
    return (unsigned char *)base + element * sizeof(uint16_t);
}

static void *matrix_at(struct kern_device *d, const struct kern_weight *w) {
    const struct kern_shape *s = &d->shape;
    struct cuda_layer *layer = &d->layers[w->layer];
    switch (w->module) {
    case KERN_Q:
        return layer->qkv;
    case KERN_K:
        return elements_at(layer->qkv, (uint64_t)d->q_cols * s->hidden);
    case KERN_V:
        return elements_at(layer->qkv, (uint64_t)(d->q_cols + d->kv_cols) * s->hidden);
    case KERN_O:
        return layer->o;
    case KERN_GATE:
        return layer->gate_up;
    case KERN_UP:
        return elements_at(layer->gate_up, (uint64_t)s->intermediate * s->hidden);
    case KERN_DOWN:
        return layer->down;
    case KERN_MODULES:
        break;
    }
    CHECK(!"a module");
    return NULL;
}

/* NULL: the tensor is a matrix. */
static float *vector_at(struct kern_device *d, const struct kern_weight *w) {
    switch (w->tensor) {
    case KERN_FINAL_NORM:
        return d->final_norm;
    case KERN_INPUT_NORM:
        return d->layers[w->layer].input_norm;
    case KERN_POST_NORM:
        return d->layers[w->layer].post_norm;
    case KERN_Q_NORM:
        return d->layers[w->layer].q_norm;
    case KERN_K_NORM:
        return d->layers[w->layer].k_norm;
    case KERN_BIAS: {
        const uint32_t begin[] = {
            [KERN_Q] = 0, [KERN_K] = d->q_cols, [KERN_V] = d->q_cols + d->kv_cols};
        CHECK(w->module <= KERN_V);
        return d->layers[w->layer].qkv_bias + begin[w->module];
    }
    case KERN_EMBED:
    case KERN_LM_HEAD:
    case KERN_WEIGHT:
        break;
    }
    return NULL;
}

/* The head takes memory of its own when it comes. */
static enum err head_take(struct kern_device *d, struct err_text *why) {
    if (d->head != d->embed) {
        return ERR_OK;
    }
    uint64_t bytes = (uint64_t)d->shape.vocab * d->shape.hidden * sizeof(uint16_t);
    return cuda_take(d, &d->head, bytes, "the weights", why);
}

/* ---- crossing ----------------------------------------------------------------------------- */

/* `count` elements, at most a piece, through the next pinned buffer. */
static enum err piece_set(struct kern_device *d, void *to, const unsigned char *from,
                          enum kern_dtype dtype, uint64_t count, struct err_text *why) {
    uint32_t at = d->staging->next++ % PIECES;
    unsigned char *piece = d->staging->pieces[at];
    const uint64_t bytes = count * kern_dtype_bytes(dtype);
    CU_TRY(why, cudaEventSynchronize(d->staging->crossed[at]));
    memcpy(piece, from, bytes);
    if (dtype == d->elem) {
        CU_TRY(why, cudaMemcpyAsync(to, piece, bytes, cudaMemcpyHostToDevice, d->stream));
    } else {
        cuda_convert(d, piece, dtype, to, count);
    }
    CU_TRY(why, cudaEventRecord(d->staging->crossed[at], d->stream));
    return ERR_OK;
}

static enum err matrix_set(struct kern_device *d, void *to, const struct kern_weight *w,
                           struct err_text *why) {
    const unsigned char *from = w->data;
    const uint32_t bytes = kern_dtype_bytes(w->dtype), piece = PIECE_BYTES / bytes;
    const uint64_t count = w->rows * w->columns;
    enum err e = ERR_OK;
    for (uint64_t done = 0; done < count && e == ERR_OK; done += piece) {
        uint64_t now = count - done < piece ? count - done : piece;
        e = piece_set(d, elements_at(to, done), from + done * bytes, w->dtype, now, why);
    }
    return d->failed == ERR_OK ? e : err_set(why, d->failed, "%s", d->fault.message);
}

static enum err vector_set(struct kern_device *d, float *to, const struct kern_weight *w,
                           struct err_text *why) {
    float *floats = malloc(w->columns * sizeof *floats);
    if (floats == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for a tensor's conversion");
    }
    for (uint64_t i = 0; i < w->columns; i++) {
        floats[i] = kern_tensor_float(w->data, w->dtype, i);
    }
    cudaError_t result =
        cudaMemcpyAsync(to, floats, w->columns * sizeof *floats, cudaMemcpyHostToDevice, d->stream);
    if (result == cudaSuccess) {
        result = cudaStreamSynchronize(d->stream);
    }
    free(floats);
    CU_TRY(why, result);
    return ERR_OK;
}

enum err cuda_weight(struct kern_device *d, const struct kern_weight *w, struct err_text *why) {
    CHECK(d->phase == CUDA_IDLE);
    enum err e = kern_tensor_check(&d->shape, w, why);
    if (e == ERR_OK && w->tensor == KERN_LM_HEAD) {
        e = head_take(d, why);
    }
    if (e != ERR_OK) {
        return e;
    }
    float *vector = vector_at(d, w);
    if (vector != NULL) {
        e = vector_set(d, vector, w, why);
    } else if (w->tensor == KERN_WEIGHT) {
        e = matrix_set(d, matrix_at(d, w), w, why);
    } else {
        e = matrix_set(d, w->tensor == KERN_EMBED ? d->embed : d->head, w, why);
    }
    if (e == ERR_OK) {
        d->given[kern_tensor_slot(&d->shape, w->tensor, w->layer, w->module)] = 1;
    }
    return e;
}

/* ---- made from a seed --------------------------------------------------------------------- */

static void random_set(struct kern_device *d, const struct kern_weight *w, uint64_t seed) {
    uint64_t rows, columns;
    kern_tensor_size(&d->shape, w, &rows, &columns);
    uint32_t slot = kern_tensor_slot(&d->shape, w->tensor, w->layer, w->module);
    float *vector = vector_at(d, w);
    if (vector != NULL) {
        cuda_fill_floats(d, vector, columns, w->tensor == KERN_BIAS ? 0 : 1);
    } else {
        void *to = w->tensor == KERN_WEIGHT  ? matrix_at(d, w)
                   : w->tensor == KERN_EMBED ? d->embed
                                             : d->head;
        cuda_fill_random(d, to, rows * columns, seed, slot);
    }
    d->given[slot] = 1;
}

enum err cuda_weights_random(struct kern_device *d, uint64_t seed, struct err_text *why) {
    static const enum kern_tensor whole[] = {KERN_EMBED, KERN_LM_HEAD, KERN_FINAL_NORM};
    static const enum kern_tensor norms[] = {KERN_INPUT_NORM, KERN_POST_NORM, KERN_Q_NORM,
                                             KERN_K_NORM};
    CHECK(d->phase == CUDA_IDLE);
    enum err e = head_take(d, why);
    if (e != ERR_OK) {
        return e;
    }
    for (size_t i = 0; i < sizeof whole / sizeof whole[0]; i++) {
        random_set(d, &(struct kern_weight){.tensor = whole[i]}, seed);
    }
    for (uint32_t layer = 0; layer < d->shape.layers; layer++) {
        for (size_t i = 0; i < (d->shape.qk_norm ? 4 : 2); i++) {
            random_set(d, &(struct kern_weight){.tensor = norms[i], .layer = layer}, seed);
        }
        for (enum kern_module m = KERN_Q; m < KERN_MODULES; m++) {
            struct kern_weight w = {.tensor = KERN_WEIGHT, .layer = layer, .module = m};
            random_set(d, &w, seed);
            w.tensor = KERN_BIAS;
            if (m <= KERN_V && d->shape.qkv_bias) {
                random_set(d, &w, seed);
            }
        }
    }
    CU_TRY(why, cudaStreamSynchronize(d->stream));
    return d->failed == ERR_OK ? ERR_OK : err_set(why, d->failed, "%s", d->fault.message);
}
