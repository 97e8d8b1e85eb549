#include "tests/unit/kernels/twin.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

static double *row(uint32_t count) {
    double *r = calloc(count, sizeof *r);
    CHECK(r != NULL);
    return r;
}

static void multiply(const float *m, uint32_t out, uint32_t in, const double *x, double *y) {
    for (uint32_t o = 0; o < out; o++) {
        double sum = 0;
        for (uint32_t i = 0; i < in; i++) {
            sum += (double)m[(size_t)o * in + i] * x[i];
        }
        y[o] = sum;
    }
}

struct place {
    const struct kern_shape *shape;
    const struct twin_layer *weights;
    const struct twin_lora *lora; /* [KERN_MODULES] of this layer; NULL: base */
};

/* y += scale · (B v + bias) */
static void lora_add(const struct twin_lora *lora, uint32_t out, const double *v, double *y) {
    double *delta = row(out);
    multiply(lora->b, out, lora->rank, v, delta);
    for (uint32_t o = 0; o < out; o++) {
        delta[o] += lora->bias == NULL ? 0 : (double)lora->bias[o];
        y[o] += (double)lora->scale * delta[o];
    }
    free(delta);
}

/* W x + scale · (B (A x) + bias) */
static double *project(const struct place *p, enum kern_module module, const double *x) {
    uint32_t in = kern_module_in(p->shape, module), out = kern_module_out(p->shape, module);
    double *y = row(out);
    multiply(p->weights->module[module], out, in, x, y);
    if (p->lora != NULL && p->lora[module].rank != 0) {
        const struct twin_lora *lora = &p->lora[module];
        double *v = row(lora->rank);
        multiply(lora->a, lora->rank, in, x, v);
        lora_add(lora, out, v, y);
        free(v);
    }
    return y;
}

static double *norm(const struct kern_shape *s, const double *x, const float *w) {
    double *y = row(s->hidden), sum = 0;
    for (uint32_t i = 0; i < s->hidden; i++) {
        sum += x[i] * x[i];
    }
    for (uint32_t i = 0; i < s->hidden; i++) {
        y[i] = x[i] / sqrt(sum / s->hidden + (double)s->norm_eps) * (double)w[i];
    }
    return y;
}

static void add(double *y, const double *x, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        y[i] += x[i];
    }
}

static void rope(const struct kern_shape *s, double *x, uint32_t heads, uint32_t position) {
    uint32_t half = s->head_dim / 2;
    for (uint32_t h = 0; h < heads; h++) {
        double *head = x + (size_t)h * s->head_dim;
        for (uint32_t i = 0; i < half; i++) {
            double angle = (double)((float)position * s->rope_freq[i]);
            double c = cos(angle) * (double)s->rope_scale, n = sin(angle) * (double)s->rope_scale;
            double a = head[i], b = head[i + half];
            head[i] = a * c - b * n;
            head[i + half] = b * c + a * n;
        }
    }
}

/* Each head by itself, over its own head_dim. */
static void norm_heads(const struct kern_shape *s, double *x, uint32_t heads, const float *w) {
    for (uint32_t h = 0; h < heads; h++) {
        double *head = x + (size_t)h * s->head_dim, sum = 0;
        for (uint32_t i = 0; i < s->head_dim; i++) {
            sum += head[i] * head[i];
        }
        for (uint32_t i = 0; i < s->head_dim; i++) {
            head[i] *= (double)w[i] / sqrt(sum / s->head_dim + (double)s->norm_eps);
        }
    }
}

static double dot(const double *a, const double *b, uint32_t count) {
    double sum = 0;
    for (uint32_t i = 0; i < count; i++) {
        sum += a[i] * b[i];
    }
    return sum;
}

static double *attend(const struct twin_sequence *seq, const struct kern_shape *s, uint32_t layer,
                      uint32_t position) {
    double *out = row(s->heads * s->head_dim), *weight = row(position + 1);
    const double *q = seq->rows[position].layers[layer].q;
    for (uint32_t h = 0; h < s->heads; h++) {
        size_t kv = (size_t)(h / (s->heads / s->kv_heads)) * s->head_dim;
        double max = -INFINITY, sum = 0;
        uint32_t first = s->window != 0 && position + 1 > s->window ? position + 1 - s->window : 0;
        for (uint32_t p = first; p <= position; p++) {
            const double *k = seq->rows[p].layers[layer].k + kv;
            weight[p] = dot(q + (size_t)h * s->head_dim, k, s->head_dim) / sqrt(s->head_dim);
            max = weight[p] > max ? weight[p] : max;
        }
        for (uint32_t p = first; p <= position; p++) {
            weight[p] = exp(weight[p] - max);
            sum += weight[p];
        }
        for (uint32_t p = first; p <= position; p++) {
            for (uint32_t i = 0; i < s->head_dim; i++) {
                out[(size_t)h * s->head_dim + i] +=
                    weight[p] / sum * seq->rows[p].layers[layer].v[kv + i];
            }
        }
    }
    free(weight);
    return out;
}

static void layer_run(struct twin_sequence *seq, const struct place *p, uint32_t layer,
                      const struct twin_rows *before, const float *next_norm) {
    const struct kern_shape *s = p->shape;
    uint32_t position = seq->count - 1;
    struct twin_rows *rows = &seq->rows[position];
    struct twin_layer_rows *r = &rows->layers[layer];
    const double *x = layer == 0 ? before->x : rows->layers[layer - 1].x;
    const double *normed = layer == 0 ? before->normed : rows->layers[layer - 1].normed;
    double **qkv[] = {&r->q, &r->k, &r->v};
    for (uint32_t m = KERN_Q; m <= KERN_V; m++) {
        *qkv[m] = project(p, m, normed);
        for (uint32_t i = 0; s->qkv_bias && i < kern_module_out(s, m); i++) {
            (*qkv[m])[i] += (double)p->weights->bias[m][i];
        }
    }
    if (s->qk_norm) {
        norm_heads(s, r->q, s->heads, p->weights->q_norm);
        norm_heads(s, r->k, s->kv_heads, p->weights->k_norm);
    }
    rope(s, r->q, s->heads, position);
    rope(s, r->k, s->kv_heads, position);
    r->attended = attend(seq, s, layer, position);

    r->x_middle = project(p, KERN_O, r->attended);
    add(r->x_middle, x, s->hidden);
    r->normed_middle = norm(s, r->x_middle, p->weights->post_norm);
    r->activation = project(p, KERN_GATE, r->normed_middle);
    double *up = project(p, KERN_UP, r->normed_middle);
    for (uint32_t i = 0; i < s->intermediate; i++) {
        r->activation[i] *= up[i] / (1 + exp(-r->activation[i]));
    }
    free(up);
    r->x = project(p, KERN_DOWN, r->activation);
    add(r->x, r->x_middle, s->hidden);
    r->normed = norm(s, r->x, next_norm);
}

void twin_token(struct twin_sequence *seq, const struct kern_shape *s,
                const struct twin_weights *weights, const struct twin_adapter *adapter,
                uint32_t token) {
    seq->rows = realloc(seq->rows, (seq->count + 1) * sizeof seq->rows[0]);
    CHECK(seq->rows != NULL);
    struct twin_rows *rows = &seq->rows[seq->count++];
    *rows = (struct twin_rows){.layers = calloc(s->layers, sizeof rows->layers[0])};
    CHECK(rows->layers != NULL);
    rows->x = row(s->hidden);
    for (uint32_t i = 0; i < s->hidden; i++) {
        rows->x[i] = (double)weights->embed[(size_t)token * s->hidden + i];
    }
    const struct twin_lora *outer =
        adapter == NULL ? NULL : &adapter->lora[(size_t)s->layers * KERN_MODULES];
    if (outer != NULL && outer[KERN_OUTER_EMBED].rank != 0) {
        const struct twin_lora *lora = &outer[KERN_OUTER_EMBED];
        double *v = row(lora->rank);
        for (uint32_t i = 0; i < lora->rank; i++) {
            v[i] = (double)lora->a[(size_t)i * s->vocab + token];
        }
        lora_add(lora, s->hidden, v, rows->x);
        free(v);
    }
    rows->normed = norm(s, rows->x, weights->layers[0].input_norm);
    for (uint32_t layer = 0; layer < s->layers; layer++) {
        const struct place place = {
            .shape = s,
            .weights = &weights->layers[layer],
            .lora = adapter == NULL ? NULL : &adapter->lora[(size_t)layer * KERN_MODULES],
        };
        bool last = layer + 1 == s->layers;
        layer_run(seq, &place, layer, rows,
                  last ? weights->final_norm : weights->layers[layer + 1].input_norm);
    }
    rows->logits = row(s->vocab);
    const double *last_normed = rows->layers[s->layers - 1].normed;
    multiply(weights->lm_head, s->vocab, s->hidden, last_normed, rows->logits);
    if (outer != NULL && outer[KERN_OUTER_HEAD].rank != 0) {
        const struct twin_lora *lora = &outer[KERN_OUTER_HEAD];
        double *v = row(lora->rank);
        multiply(lora->a, lora->rank, s->hidden, last_normed, v);
        lora_add(lora, s->vocab, v, rows->logits);
        free(v);
    }
}

void twin_sequence_free(struct twin_sequence *seq, const struct kern_shape *s) {
    for (uint32_t i = 0; i < seq->count; i++) {
        struct twin_rows *rows = &seq->rows[i];
        for (uint32_t l = 0; l < s->layers; l++) {
            struct twin_layer_rows *r = &rows->layers[l];
            double *all[] = {r->q,          r->k,        r->v,
                             r->attended,   r->x_middle, r->normed_middle,
                             r->activation, r->x,        r->normed};
            for (size_t k = 0; k < sizeof all / sizeof all[0]; k++) {
                free(all[k]);
            }
        }
        free(rows->layers);
        free(rows->x);
        free(rows->normed);
        free(rows->logits);
    }
    free(seq->rows);
    *seq = (struct twin_sequence){0};
}
