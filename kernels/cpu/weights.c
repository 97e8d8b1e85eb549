/* Weights: a checkpoint's tensors, checked against the shape and converted to f32.
 *
 * A matrix is kept once, in the panels that the GEMM reads (linear.c); the embedding too, since a
 * tied head is the same matrix: a token's row is then gathered with a stride, which costs little.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "kernels/checks.h"
#include "kernels/cpu/cpu.h"

/* ---- memory ------------------------------------------------------------------------------- */

static struct cpu_matrix matrix_carve(struct cpu_carver *c, uint32_t out, uint32_t in) {
    return (struct cpu_matrix){
        .panels = cpu_carve(c, (uint64_t)out * in * sizeof(float)), .out = out, .in = in};
}

static struct cpu_vector vector_carve(struct cpu_carver *c, uint32_t count) {
    return (struct cpu_vector){.elements = cpu_carve(c, cpu_row(count) * sizeof(float)),
                               .count = count};
}

static void layer_carve(struct cpu_layer *layer, const struct kern_shape *s, struct cpu_carver *c) {
    for (enum kern_module m = KERN_Q; m < KERN_MODULES; m++) {
        layer->module[m] = matrix_carve(c, kern_module_out(s, m), kern_module_in(s, m));
    }
    for (enum kern_module m = KERN_Q; m <= KERN_V; m++) {
        layer->bias[m] = vector_carve(c, kern_module_out(s, m));
    }
    layer->input_norm = vector_carve(c, s->hidden);
    layer->post_norm = vector_carve(c, s->hidden);
    layer->q_norm = vector_carve(c, s->head_dim);
    layer->k_norm = vector_carve(c, s->head_dim);
}

static void weights_carve(struct kern_device *d, struct cpu_carver *c) {
    const struct kern_shape *s = &d->shape;
    d->layers = cpu_carve(c, s->layers * sizeof d->layers[0]);
    d->given = cpu_carve(c, kern_tensor_slots(s));
    d->embed = matrix_carve(c, s->vocab, s->hidden);
    d->final_norm = vector_carve(c, s->hidden);
    for (uint32_t i = 0; i < s->layers; i++) {
        struct cpu_layer counted; /* while counting there is no layer yet */
        layer_carve(c->base == NULL ? &counted : &d->layers[i], s, c);
    }
}

static enum err no_memory(uint64_t bytes, struct err_text *why) {
    return err_set(why, ERR_NO_SPACE, "no memory for %llu bytes of weights: %s",
                   (unsigned long long)bytes, strerror(errno));
}

enum err cpu_weights_reserve(struct kern_device *d, struct err_text *why) {
    struct cpu_carver counter = {0};
    weights_carve(d, &counter);
    if (cpu_memory_reserve(&d->weight_memory, counter.bytes) != ERR_OK) {
        return no_memory(counter.bytes, why);
    }
    struct cpu_carver carver = {.base = d->weight_memory.base};
    weights_carve(d, &carver);
    CHECK(carver.bytes == d->weight_memory.bytes);
    return ERR_OK;
}

void cpu_weights_release(struct kern_device *d) {
    cpu_memory_release(&d->head_memory);
    cpu_memory_release(&d->weight_memory);
}

/* ---- conversion --------------------------------------------------------------------------- */

struct conversion {
    const struct cpu_matrix *to;
    const struct kern_weight *from;
};

/* One panel: rows become columns. */
static void panel_convert(void *context, uint32_t panel, uint32_t thread) {
    (void)thread;
    const struct conversion *c = context;
    const struct cpu_matrix *m = c->to;
    uint32_t begin = panel * CPU_PANEL_COLUMNS;
    uint32_t columns = m->out - begin < CPU_PANEL_COLUMNS ? m->out - begin : CPU_PANEL_COLUMNS;
    float *to = m->panels + (uint64_t)begin * m->in;
    const unsigned char *data = c->from->data;
    data += (uint64_t)begin * m->in * kern_dtype_bytes(c->from->dtype);
    for (uint32_t column = 0; column < columns; column++) {
        for (uint32_t k = 0; k < m->in; k++) {
            to[(uint64_t)k * columns + column] =
                kern_tensor_float(data, c->from->dtype, (uint64_t)column * m->in + k);
        }
    }
}

void cpu_matrix_row(const struct cpu_matrix *m, uint32_t row, float *to) {
    DCHECK(row < m->out);
    uint32_t begin = row / CPU_PANEL_COLUMNS * CPU_PANEL_COLUMNS;
    uint32_t columns = m->out - begin < CPU_PANEL_COLUMNS ? m->out - begin : CPU_PANEL_COLUMNS;
    const float *panel = m->panels + (uint64_t)begin * m->in;
    for (uint32_t k = 0; k < m->in; k++) {
        to[k] = panel[(uint64_t)k * columns + (row - begin)];
    }
}

/* ---- a tensor ----------------------------------------------------------------------------- */

static void matrix_set(struct kern_device *d, struct cpu_matrix *m, const struct kern_weight *w) {
    struct conversion c = {.to = m, .from = w};
    threads_run(d->threads, panel_convert, &c,
                (m->out + CPU_PANEL_COLUMNS - 1) / CPU_PANEL_COLUMNS);
}

static void vector_set(struct cpu_vector *v, const struct kern_weight *w) {
    for (uint32_t i = 0; i < v->count; i++) {
        v->elements[i] = kern_tensor_float(w->data, w->dtype, i);
    }
}

enum err cpu_head_reserve(struct kern_device *d, struct err_text *why) {
    const struct kern_shape *s = &d->shape;
    if (d->head_memory.base != NULL) {
        return ERR_OK;
    }
    uint64_t bytes = (uint64_t)s->vocab * s->hidden * sizeof(float);
    if (cpu_memory_reserve(&d->head_memory, bytes) != ERR_OK) {
        return no_memory(bytes, why);
    }
    d->lm_head =
        (struct cpu_matrix){.panels = d->head_memory.base, .out = s->vocab, .in = s->hidden};
    return ERR_OK;
}

/* The vector that a tensor is; NULL: it is a matrix. */
static struct cpu_vector *vector_of(struct kern_device *d, const struct kern_weight *w) {
    switch (w->tensor) {
    case KERN_FINAL_NORM:
        return &d->final_norm;
    case KERN_INPUT_NORM:
        return &d->layers[w->layer].input_norm;
    case KERN_POST_NORM:
        return &d->layers[w->layer].post_norm;
    case KERN_Q_NORM:
        return &d->layers[w->layer].q_norm;
    case KERN_K_NORM:
        return &d->layers[w->layer].k_norm;
    case KERN_BIAS:
        return &d->layers[w->layer].bias[w->module];
    case KERN_EMBED:
    case KERN_LM_HEAD:
    case KERN_WEIGHT:
        break;
    }
    return NULL;
}

enum err cpu_weight(struct kern_device *d, const struct kern_weight *w, struct err_text *why) {
    CHECK(d->phase == CPU_IDLE);
    enum err e = kern_tensor_check(&d->shape, w, why);
    if (e == ERR_OK && w->tensor == KERN_LM_HEAD) {
        e = cpu_head_reserve(d, why);
    }
    if (e != ERR_OK) {
        return e;
    }
    struct cpu_vector *vector = vector_of(d, w);
    if (vector != NULL) {
        vector_set(vector, w);
    } else if (w->tensor == KERN_WEIGHT) {
        matrix_set(d, &d->layers[w->layer].module[w->module], w);
    } else {
        matrix_set(d, w->tensor == KERN_EMBED ? &d->embed : &d->lm_head, w);
    }
    d->given[kern_tensor_slot(&d->shape, w->tensor, w->layer, w->module)] = 1;
    return ERR_OK;
}
