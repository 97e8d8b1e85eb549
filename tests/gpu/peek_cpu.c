#include <string.h>

#include "kernels/cpu/cpu.h"
#include "tests/gpu/peek.h"

uint32_t peek_columns(const struct kern_shape *shape, enum peek_rows which) {
    switch (which) {
    case PEEK_X:
    case PEEK_NORMED:
    case PEEK_HEAD_IN:
        return shape->hidden;
    case PEEK_Q:
    case PEEK_ATTENDED:
        return shape->heads * shape->head_dim;
    case PEEK_ACT:
        return shape->intermediate;
    }
    CHECK(!"rows of this kind");
    return 0;
}

struct rows {
    float *at;
    uint32_t row; /* floats from row to row */
};

static struct rows rows_of(const struct kern_device *d, enum peek_rows which) {
    switch (which) {
    case PEEK_X:
        return (struct rows){d->x, d->hidden_row};
    case PEEK_NORMED:
        return (struct rows){d->normed, d->hidden_row};
    case PEEK_HEAD_IN:
        return (struct rows){d->head_in, d->hidden_row};
    case PEEK_Q:
        return (struct rows){d->q, d->q_row};
    case PEEK_ATTENDED:
        return (struct rows){d->attended, d->q_row};
    case PEEK_ACT:
        return (struct rows){d->gate, d->middle_row};
    }
    CHECK(!"rows of this kind");
    return (struct rows){0};
}

void peek_cpu_rows(const struct kern_device *d, enum peek_rows which, uint32_t rows, float *out) {
    struct rows from = rows_of(d, which);
    uint32_t columns = peek_columns(&d->shape, which);
    for (uint32_t i = 0; i < rows; i++) {
        memcpy(out + (uint64_t)i * columns, from.at + (uint64_t)i * from.row,
               columns * sizeof *out);
    }
}

/* The padding of a row stays zero. */
void poke_cpu_rows(struct kern_device *d, enum peek_rows which, uint32_t rows, const float *in) {
    struct rows to = rows_of(d, which);
    uint32_t columns = peek_columns(&d->shape, which);
    for (uint32_t i = 0; i < rows; i++) {
        memcpy(to.at + (uint64_t)i * to.row, in + (uint64_t)i * columns, columns * sizeof *in);
    }
}

void poke_cpu_normed(struct kern_device *d, uint32_t row, const float *in) {
    memcpy(d->normed + (uint64_t)row * d->hidden_row, in, d->shape.hidden * sizeof *in);
}

static float *keys_at(const struct kern_device *d, const struct peek_place *at) {
    return cpu_page(d, at->layer, at->page) +
           (uint64_t)at->offset * d->shape.kv_heads * d->shape.head_dim;
}

void peek_cpu_kv(const struct kern_device *d, const struct peek_place *at, float *k, float *v) {
    uint64_t columns = (uint64_t)d->shape.kv_heads * d->shape.head_dim;
    const float *keys = keys_at(d, at);
    memcpy(k, keys, columns * sizeof *k);
    memcpy(v, keys + d->limits.page_tokens * columns, columns * sizeof *v);
}

void poke_cpu_kv(struct kern_device *d, const struct peek_place *at, const float *k,
                 const float *v) {
    uint64_t columns = (uint64_t)d->shape.kv_heads * d->shape.head_dim;
    float *keys = keys_at(d, at);
    memcpy(keys, k, columns * sizeof *k);
    memcpy(keys + d->limits.page_tokens * columns, v, columns * sizeof *v);
}
