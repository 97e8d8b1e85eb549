/* linear.c - y [rows, out] = x [rows, in] Wᵀ, in f32 by OpenBLAS.
 *
 * OpenBLAS chooses kernel and blocking by the sizes of a call and so changes a row's bits with the
 * number of rows (measured). Every call here has 16 rows, 64 columns of W's panel (its last may
 * have fewer) and the same piece of `in`, whatever the batch: a row sees the same arithmetic in any
 * batch and at any of the 16 places (tested bit by bit).
 *
 * Order: panels outside, blocks of 16 rows inside, so that a panel (64 × in floats, 147 KB at 576)
 * is read from memory once a step and stays in the second-level cache. Panels are [in][64], and
 * `in` is cut into pieces of at most 960: 16 × 64 × 960 ≤ 10⁶ multiplications is what OpenBLAS
 * takes straight from the operands; above, or with W as stored [out][in], it repacks W for each
 * call. Threads share panels; each call is single-threaded.
 *
 * Measured, OpenBLAS 0.3.21 on an EPYC 9004 core, 16 rows from cache, GFLOP/s: panels of 64 × 576:
 * 117; of 128: 75-85; W [out][in] in one call: 67; in 1536 undivided: 80. A sgemm of 1536³: 103.
 * Two threads inside OpenBLAS gave 82-93 together for 1536 columns, 49-63 below: lost. */
#include <string.h>

#include <cblas.h>

#include "kernels/cpu/cpu.h"

enum { INNER_PIECE = 960 };

static uint32_t panel_count(const struct cpu_matrix *m) {
    return (m->out + CPU_PANEL_COLUMNS - 1) / CPU_PANEL_COLUMNS;
}

/* The piece of `in` for each call: equal ones, so that none is tiny. */
static uint32_t inner_piece(uint32_t in) {
    uint32_t pieces = (in + INNER_PIECE - 1) / INNER_PIECE;
    return (in + pieces - 1) / pieces;
}

static void panel_multiply(const struct cpu_projection *p, uint32_t panel, uint32_t rows) {
    const struct cpu_matrix *m = p->w;
    uint32_t begin = panel * CPU_PANEL_COLUMNS;
    uint32_t columns = m->out - begin < CPU_PANEL_COLUMNS ? m->out - begin : CPU_PANEL_COLUMNS;
    const float *w = m->panels + (uint64_t)begin * m->in;
    uint32_t piece = inner_piece(m->in);
    for (uint32_t row = 0; row < rows; row += CPU_ROW_BLOCK) {
        float *y = p->y + (uint64_t)row * p->y_row + begin;
        for (uint32_t k = 0; k < m->in; k += piece) {
            uint32_t inner = m->in - k < piece ? m->in - k : piece;
            cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, CPU_ROW_BLOCK, (int)columns,
                        (int)inner, 1.0f, p->x + (uint64_t)row * p->x_row + k, (int)p->x_row,
                        w + (uint64_t)k * columns, (int)columns, k == 0 ? 0.0f : 1.0f, y,
                        (int)p->y_row);
        }
    }
}

/* One parallel loop: all panels of up to three projections, and the LoRA pieces' first half, which
 * reads the same x and waits for nothing. */
struct work {
    struct kern_device *d;
    const struct cpu_projection *projections;
    uint32_t rows, pieces;
};

static void multiply_item(void *context, uint32_t item, uint32_t thread) {
    (void)thread;
    const struct work *w = context;
    if (item < w->pieces) {
        const struct cpu_lora_piece *piece = &w->d->pieces[item];
        cpu_lora_shrink(w->d, piece, &w->projections[piece->projection]);
        return;
    }
    item -= w->pieces;
    const struct cpu_projection *p = w->projections;
    while (item >= panel_count(p->w)) {
        item -= panel_count(p->w);
        p++;
    }
    panel_multiply(p, item, w->rows);
}

static void expand_item(void *context, uint32_t item, uint32_t thread) {
    (void)thread;
    const struct work *w = context;
    const struct cpu_lora_piece *piece = &w->d->pieces[item];
    const struct cpu_projection *p = &w->projections[piece->projection];
    cpu_lora_expand(w->d, piece, p->y, p->y_row, p->w->out);
}

/* Rows up to the block's end are zero, not what an earlier step left there. */
static void rows_pad(const struct cpu_projection *p, uint32_t rows) {
    uint32_t padding = cpu_rows(rows) - rows;
    memset(p->x + (uint64_t)rows * p->x_row, 0, (uint64_t)padding * p->x_row * sizeof(float));
}

static void multiply(struct work *w, uint32_t count) {
    uint32_t items = w->pieces;
    for (uint32_t i = 0; i < count; i++) {
        rows_pad(&w->projections[i], w->rows);
        items += panel_count(w->projections[i].w);
    }
    threads_run(w->d->threads, multiply_item, w, items);
}

void cpu_linear(struct kern_device *d, const struct cpu_projection *p, uint32_t rows) {
    struct work w = {.d = d, .projections = p, .rows = rows};
    multiply(&w, 1);
}

void cpu_project(struct kern_device *d, uint32_t layer, const struct cpu_projection *p,
                 uint32_t count) {
    DCHECK(count <= CPU_PROJECTIONS_MAX);
    struct work w = {.d = d, .projections = p, .rows = d->token_count};
    w.pieces = cpu_lora_pieces(d, layer, count, p);
    multiply(&w, count);
    threads_run(d->threads, expand_item, &w, w.pieces);
}

void cpu_project_head(struct kern_device *d, const struct cpu_projection *p) {
    struct work w = {.d = d, .projections = p, .rows = d->sample_count};
    w.pieces = cpu_lora_head_pieces(d);
    multiply(&w, 1);
    threads_run(d->threads, expand_item, &w, w.pieces);
}
