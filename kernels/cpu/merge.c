/* merge.c - an adapter's product in the weights: W + scale · B A, for the seven modules of a layer.
 *
 * Panels are [in][64 rows of W], and a tile of B is [64 rows of W][ranks], so that a panel's row k
 * takes scale · A[:, k] times one tile: what expand does to a row of y. Always from the copy that
 * was made of the checkpoint's panels; f32 throughout. */
#include <errno.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

/* ---- memory ------------------------------------------------------------------------------- */

static void given_carve(struct kern_device *d, struct cpu_carver *c) {
    for (uint32_t i = 0; i < d->shape.layers; i++) {
        struct cpu_layer *layer = &d->layers[i];
        for (enum kern_module m = KERN_Q; m < KERN_MODULES; m++) {
            const struct cpu_matrix *w = &layer->module[m];
            layer->given[m] = *w;
            layer->given[m].panels = cpu_carve(c, (uint64_t)w->out * w->in * sizeof(float));
        }
    }
}

enum err cpu_merge_reserve(struct kern_device *d, struct err_text *why) {
    d->merged = d->merge_next = KERN_BASE;
    if (!d->limits.merging) {
        return ERR_OK;
    }
    struct cpu_carver counter = {0};
    given_carve(d, &counter);
    enum err e = cpu_memory_reserve(&d->given_memory, counter.bytes);
    if (e != ERR_OK) {
        return err_set(
            why, e, "no memory for %llu bytes, a copy of the projections for scheduler.merged: %s",
            (unsigned long long)counter.bytes, strerror(errno));
    }
    struct cpu_carver carver = {.base = d->given_memory.base};
    given_carve(d, &carver);
    CHECK(carver.bytes == d->given_memory.bytes);
    return ERR_OK;
}

void cpu_merge_release(struct kern_device *d) {
    cpu_memory_release(&d->given_memory);
}

static void matrix_copy(const struct cpu_matrix *to, const struct cpu_matrix *from) {
    memcpy(to->panels, from->panels, (uint64_t)from->out * from->in * sizeof(float));
}

void cpu_merge_keep(struct kern_device *d) {
    for (uint32_t i = 0; d->limits.merging && i < d->shape.layers; i++) {
        for (enum kern_module m = KERN_Q; m < KERN_MODULES; m++) {
            matrix_copy(&d->layers[i].given[m], &d->layers[i].module[m]);
        }
    }
}

/* ---- W + scale · B A ---------------------------------------------------------------------- */

struct merge {
    struct kern_device *d;
    const struct cpu_adapter *adapter;
    const struct kern_lora *lora;
    uint32_t layer;
    const struct cpu_matrix *to;
};

static const float *tile_at(const struct merge *g, uint64_t begin, uint32_t columns, uint32_t rank,
                            uint32_t column) {
    const struct kern_device *d = g->d;
    uint64_t place = kern_tile_begin(d->page_elems, begin, g->lora->rank, columns,
                                     rank / KERN_BLOCK_RANKS, column / KERN_TILE_COLUMNS);
    uint32_t page = g->adapter->pages[place / d->page_elems];
    return cpu_page(d, g->layer, page) + place % d->page_elems;
}

/* A block of ranks onto rows k … k + 63 of a panel of `columns` rows of W. */
static void block_add(const struct merge *g, const float *b, uint32_t rank, uint32_t k,
                      float *panel, uint32_t columns) {
    uint32_t left = g->lora->rank - rank;
    uint32_t ranks = left < KERN_BLOCK_RANKS ? left : KERN_BLOCK_RANKS;
    const float *a = tile_at(g, g->lora->a, g->to->in, rank, k);
    for (uint32_t i = 0; i < KERN_TILE_COLUMNS && k + i < g->to->in; i++) {
        float v[KERN_BLOCK_RANKS], row[KERN_TILE_COLUMNS] = {0};
        float *to = panel + (uint64_t)(k + i) * columns;
        for (uint32_t r = 0; r < ranks; r++) {
            v[r] = g->lora->scale * a[r * KERN_TILE_COLUMNS + i];
        }
        memcpy(row, to, columns * sizeof row[0]);
        g->d->vector->expand(b, ranks, v, row);
        memcpy(to, row, columns * sizeof row[0]);
    }
}

static void panel_merge(void *context, uint32_t panel, uint32_t thread) {
    (void)thread;
    const struct merge *g = context;
    const struct cpu_matrix *m = g->to;
    uint32_t begin = panel * CPU_PANEL_COLUMNS;
    uint32_t columns = m->out - begin < CPU_PANEL_COLUMNS ? m->out - begin : CPU_PANEL_COLUMNS;
    float *to = m->panels + (uint64_t)begin * m->in;
    for (uint32_t rank = 0; rank < g->lora->rank; rank += KERN_BLOCK_RANKS) {
        const float *b = tile_at(g, g->lora->b, m->out, rank, begin);
        for (uint32_t k = 0; k < m->in; k += KERN_TILE_COLUMNS) {
            block_add(g, b, rank, k, to, columns);
        }
    }
}

_Static_assert((int)CPU_PANEL_COLUMNS == (int)KERN_TILE_COLUMNS, "a panel takes a tile of B");

static void adapter_add(struct kern_device *d, uint32_t adapter) {
    const struct cpu_adapter *a = &d->adapters[adapter];
    CHECK(a->page_count != 0);
    CHECK(kern_lora_mergeable(a->lora, d->shape.layers));
    for (uint32_t layer = 0; layer < d->shape.layers; layer++) {
        for (enum kern_module m = KERN_Q; m < KERN_MODULES; m++) {
            const struct cpu_matrix *to = &d->layers[layer].module[m];
            struct merge g = {d, a, &a->lora[layer * KERN_MODULES + m], layer, to};
            uint32_t panels = (to->out + CPU_PANEL_COLUMNS - 1) / CPU_PANEL_COLUMNS;
            threads_run(d->threads, panel_merge, &g, g.lora->rank == 0 ? 0 : panels);
        }
    }
}

void cpu_merge(struct kern_device *d, uint32_t adapter) {
    CHECK(d->phase == CPU_IDLE);
    CHECK(d->limits.merging);
    CHECK(adapter == KERN_BASE || adapter < d->limits.adapters);
    d->merge_next = adapter;
}

void cpu_merge_step(struct kern_device *d) {
    if (d->merge_next == d->merged) {
        return;
    }
    for (uint32_t i = 0; i < d->shape.layers; i++) {
        for (enum kern_module m = KERN_Q; m < KERN_MODULES; m++) {
            matrix_copy(&d->layers[i].module[m], &d->layers[i].given[m]);
        }
    }
    if (d->merge_next != KERN_BASE) {
        adapter_add(d, d->merge_next);
    }
    d->merged = d->merge_next;
}
