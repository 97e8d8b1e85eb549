/* The tables of vector.h: this file is compiled once for each, which CPU_VECTOR_OPS names. */
#include "kernels/cpu/vector.h"

#include <math.h>
#include <string.h>

#include "kernels/cpu/lanes.h"
#include "kernels/kernels.h"

_Static_assert(KERN_TILE_COLUMNS % LANES == 0 && KERN_RANK_MULTIPLE % LANES == 0, "no tails");

/* ---- rows --------------------------------------------------------------------------------- */

static void norm(const float *x, const float *w, float *y, size_t row, size_t columns, float eps) {
    float mean = lanes_dot(x, x, row) / (float)columns;
    lanes factor = lanes_all(1.0f / sqrtf(mean + eps));
    for (size_t i = 0; i < row; i += LANES) {
        lanes_store(y + i, lanes_load(x + i) * factor * lanes_load(w + i));
    }
}

static void add(float *x, const float *delta, size_t row) {
    for (size_t i = 0; i < row; i += LANES) {
        lanes_store(x + i, lanes_load(x + i) + lanes_load(delta + i));
    }
}

static void silu(float *gate, const float *up, size_t row) {
    const lanes one = lanes_all(1);
    for (size_t i = 0; i < row; i += LANES) {
        lanes g = lanes_load(gate + i);
        lanes_store(gate + i, g / (one + lanes_exp(-g)) * lanes_load(up + i));
    }
}

/* ---- attention ---------------------------------------------------------------------------- */

static void scores(const struct cpu_view *w, const float *keys, size_t at, size_t count) {
    for (size_t g = 0; g < w->group; g++) {
        const float *q = w->q + g * w->head_dim;
        float *to = w->scores + g * w->score_row + at;
        size_t t = 0;
        for (; t + LANES <= count; t += LANES) {
            lanes_store(to + t, lanes_dots(keys + t * w->token_row, w->token_row, q, w->head_dim));
        }
        for (; t < count; t++) {
            to[t] = lanes_dot(keys + t * w->token_row, q, w->head_dim);
        }
    }
}

enum { WIDE = 4, WIDE_FLOATS = WIDE * LANES }; /* vectors of `out` that share a weight */

static void values_wide(const float *weight, const float *values, size_t token_row, size_t count,
                        float *out) {
    lanes sum[WIDE];
    for (size_t k = 0; k < WIDE; k++) {
        sum[k] = lanes_load(out + k * LANES);
    }
    for (size_t t = 0; t < count; t++) {
        lanes factor = lanes_all(weight[t]);
        for (size_t k = 0; k < WIDE; k++) {
            sum[k] += factor * lanes_load(values + t * token_row + k * LANES);
        }
    }
    for (size_t k = 0; k < WIDE; k++) {
        lanes_store(out + k * LANES, sum[k]);
    }
}

static void values(const struct cpu_view *w, const float *page, size_t at, size_t count) {
    for (size_t g = 0; g < w->group; g++) {
        const float *weight = w->scores + g * w->score_row + at;
        float *out = w->out + g * w->head_dim;
        size_t i = 0;
        for (; i + WIDE_FLOATS <= w->head_dim; i += WIDE_FLOATS) {
            values_wide(weight, page + i, w->token_row, count, out + i);
        }
        for (; i < w->head_dim; i += LANES) {
            lanes sum = lanes_load(out + i);
            for (size_t t = 0; t < count; t++) {
                sum += lanes_all(weight[t]) * lanes_load(page + t * w->token_row + i);
            }
            lanes_store(out + i, sum);
        }
    }
}

static void softmax(float *s, size_t count, float scale) {
    size_t padded = (count + LANES - 1) / LANES * LANES;
    for (size_t i = count; i < padded; i++) {
        s[i] = -INFINITY; /* weighs nothing */
    }
    lanes most = lanes_load(s);
    for (size_t i = LANES; i < padded; i += LANES) {
        lanes v = lanes_load(s + i);
        most = lanes_select(v > most, v, most);
    }
    lanes max = lanes_all(lanes_max(most)), sum = lanes_all(0), factor = lanes_all(scale);
    for (size_t i = 0; i < padded; i += LANES) {
        lanes weight = lanes_exp((lanes_load(s + i) - max) * factor);
        sum += weight;
        lanes_store(s + i, weight);
    }
    factor = lanes_all(1.0f / lanes_sum(sum));
    for (size_t i = 0; i < padded; i += LANES) {
        lanes_store(s + i, lanes_load(s + i) * factor);
    }
}

/* ---- LoRA --------------------------------------------------------------------------------- */

static void shrink(const float *tile, size_t ranks, const float *x, float *v) {
    for (size_t r = 0; r < ranks; r += LANES) {
        lanes sums =
            lanes_dots(tile + r * KERN_TILE_COLUMNS, KERN_TILE_COLUMNS, x, KERN_TILE_COLUMNS);
        lanes_store(v + r, lanes_load(v + r) + sums);
    }
}

static void expand(const float *tile, size_t ranks, const float *v, float *y) {
    for (size_t c = 0; c < KERN_TILE_COLUMNS; c += LANES) {
        lanes_store(y + c, lanes_load(y + c) + lanes_dots(tile + c * ranks, ranks, v, ranks));
    }
}

/* ---- sampling ----------------------------------------------------------------------------- */

static void weigh(float *logits, size_t count, float max, float temperature) {
    for (size_t i = 0; i < count; i += LANES) {
        float part[LANES] = {0};
        size_t left = count - i < LANES ? count - i : LANES;
        memcpy(part, logits + i, left * sizeof(float));
        lanes x = (lanes_load(part) - lanes_all(max)) / lanes_all(temperature);
        lanes_store(part, lanes_exp(x));
        memcpy(logits + i, part, left * sizeof(float));
    }
}

const struct cpu_vector_ops CPU_VECTOR_OPS = {
    .norm = norm,
    .add = add,
    .silu = silu,
    .scores = scores,
    .values = values,
    .softmax = softmax,
    .shrink = shrink,
    .expand = expand,
    .weigh = weigh,
};
