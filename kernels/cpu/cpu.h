/* cpu.h - inside the CPU device: its state, and what its files give each other.
 *
 *   device.c     open, pool, load, the table of operations
 *   weights.c    tensors of a checkpoint → f32 panels
 *   merge.c      panels with an adapter's product added
 *   bench.c      weights from a seed, peaks
 *   step.c       a step's deltas, checks, tickets
 *   blocks.c     the blocks of the layer loop but attention
 *   linear.c     y = x Wᵀ, and the projections of a layer with their LoRA
 *   attention.c, lora.c, sample.c
 *   vector.c     the inner loops of all these, twice: for any machine and for AVX2
 *   threads.c    one parallel loop at a time
 *
 * A row's result depends on nothing but the row: each loop either handles a row by itself in a
 * fixed order, or is a GEMM of always 16 rows (linear.c). Rows of activations are padded with zeros
 * to a multiple of 64 floats, so that vectors and tiles need no tails; every writer keeps the
 * zeros. */
#ifndef LORRY_KERNELS_CPU_CPU_H
#define LORRY_KERNELS_CPU_CPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/check.h"
#include "base/err.h"
#include "kernels/cpu/threads.h"
#include "kernels/cpu/vector.h"
#include "kernels/kernels.h"

enum {
    CPU_ROW_BLOCK = 16,      /* rows of every GEMM call */
    CPU_PANEL_COLUMNS = 64,  /* output columns of every GEMM call but a matrix's last */
    CPU_HEAD_MULTIPLE = 8,   /* of head_dim: whole vectors */
    CPU_ROW_MULTIPLE = 64,   /* rows of activations, in floats */
    CPU_PROJECTIONS_MAX = 3, /* of one input: q, k, v */
    CPU_UNREAD_MAX = 2,      /* steps whose results are kept */
    CPU_LORA_ROWS = 16,      /* most rows of a piece of LoRA work */
};

#define CPU_NO_PAGE UINT32_MAX
#define CPU_OUTER UINT32_MAX /* as the layer of LoRA work: outside the layers */

/* ---- memory ------------------------------------------------------------------------------- */

struct cpu_memory { /* zeroed pages of the system */
    void *base;
    size_t bytes;
};

/* Errors  ERR_NO_SPACE. */
NODISCARD enum err cpu_memory_reserve(struct cpu_memory *m, uint64_t bytes);
void cpu_memory_release(struct cpu_memory *m); /* empty is fine */

/* Hands out pieces of one block; a first pass with base NULL counts. */
struct cpu_carver {
    char *base;
    uint64_t bytes;
};

static inline void *cpu_carve(struct cpu_carver *c, uint64_t bytes) {
    void *piece = c->base == NULL ? NULL : c->base + c->bytes;
    c->bytes += (bytes + 255) / 256 * 256;
    return piece;
}

static inline uint32_t cpu_row(uint32_t columns) {
    return (columns + CPU_ROW_MULTIPLE - 1) / CPU_ROW_MULTIPLE * CPU_ROW_MULTIPLE;
}

static inline uint32_t cpu_rows(uint32_t count) {
    return (count + CPU_ROW_BLOCK - 1) / CPU_ROW_BLOCK * CPU_ROW_BLOCK;
}

/* ---- weights ------------------------------------------------------------------------------ */

/* W [out, in] in panels of 64 rows of W: panel p is [in][64], row-major; the last may be narrower.
 * A panel lies at p × 64 × in. */
struct cpu_matrix {
    float *panels;
    uint32_t out, in;
};

struct cpu_vector { /* padded with zeros to a multiple of 64 */
    float *elements;
    uint32_t count;
};

struct cpu_layer {
    struct cpu_matrix module[KERN_MODULES];
    struct cpu_vector bias[KERN_V + 1];
    struct cpu_vector input_norm, post_norm;
    struct cpu_vector q_norm, k_norm;      /* [head_dim] */
    struct cpu_matrix given[KERN_MODULES]; /* limits.merging: as the checkpoint has them */
};

/* ---- tables ------------------------------------------------------------------------------- */

struct cpu_slot {
    struct kern_slot_set params;
    uint32_t *pages; /* [slot_pages], CPU_NO_PAGE where none was set */
    uint32_t *seen;  /* [vocab], see kern_penalties_cpu(); valid where the slot penalises */
    uint32_t last;   /* what it sampled last */
    uint64_t step;   /* the last step that named it */
    bool open;
    bool sampled; /* `last` is there */
    bool done;    /* it sampled one of its stop tokens */
    bool penalises;
};

struct cpu_adapter {
    struct kern_lora *lora; /* [kern_lora_count(layers)] */
    uint32_t *pages;        /* [adapter_pages] */
    uint32_t page_count;    /* 0 = not set */
    uint32_t outer_pages;   /* of them, the last: the second list */
};

/* ---- a step ------------------------------------------------------------------------------- */

struct cpu_token {
    uint32_t id;
    uint32_t slot;
    uint32_t position;
};

struct cpu_row_sample { /* a row that gets logits */
    uint32_t token;     /* index into the step's tokens */
    uint32_t slot;
    uint32_t position; /* of the token to be drawn */
};

struct cpu_result { /* of an ended step, until it is read */
    uint32_t count;
    struct kern_sample *samples; /* [step_samples] */
    struct kern_span span;
};

/* One projection of a layer: y = x Wᵀ (+ LoRA). */
struct cpu_projection {
    enum kern_module module; /* for LoRA */
    const struct cpu_matrix *w;
    float *x; /* [rows up to a multiple of 16][x_row] */
    float *y;
    uint32_t x_row, y_row; /* floats from row to row */
};

/* A piece of LoRA work: some rows of one segment, in one projection. Rows are the step's tokens,
 * in the head its samples. */
struct cpu_lora_piece {
    const struct kern_lora *lora;
    const struct cpu_adapter *adapter;
    uint32_t layer; /* or CPU_OUTER */
    uint32_t projection;
    uint32_t row_begin, row_count;
};

enum cpu_phase { CPU_IDLE, CPU_IN_STEP };

struct kern_device {
    struct kern_shape shape;
    struct kern_limits limits;
    struct threads *threads;
    const struct cpu_vector_ops *vector;

    /* floats from row to row of activations */
    uint32_t hidden_row, q_row, kv_row, middle_row, vocab_row;
    uint64_t page_elems;
    uint32_t positions; /* longest context that shape and slots allow */
    uint32_t score_row; /* most positions that a token attends to, padded */

    struct cpu_memory weight_memory, head_memory, given_memory, state_memory, pool_memory;

    struct cpu_matrix embed, lm_head; /* lm_head without panels: tied */
    struct cpu_vector final_norm;
    struct cpu_layer *layers;
    uint8_t *given;              /* kern_tensor_slot() */
    uint32_t merged, merge_next; /* adapters, or KERN_BASE: what modules hold; from a step on */

    float *planes; /* [layers][page_count][page_elems] */
    uint32_t page_count;
    uint64_t events;

    float *rope_freq; /* [head_dim / 2]; shape.rope_freq points here */
    struct cpu_slot *slots;
    struct cpu_adapter *adapters;

    /* the step */
    enum cpu_phase phase;
    uint32_t token_count, segment_count, sample_count;
    struct cpu_token *tokens;
    struct kern_segment *segments;
    struct cpu_row_sample *samples;
    float *cos, *sin; /* [step_tokens][head_dim / 2] of the tokens' positions */
    float *x;         /* residual, [rows][hidden_row] */
    float *normed;    /* [rows][hidden_row] */
    float *delta;     /* what o_proj and down_proj add, [rows][hidden_row] */
    float *q;         /* [rows][q_row] */
    float *k, *v;     /* [rows][kv_row] */
    float *attended;  /* [rows][q_row] */
    float *gate, *up; /* [rows][middle_row] */
    float *head_in;   /* [samples up to a multiple of 16][hidden_row] */
    float *logits;    /* [samples up to a multiple of 16][vocab_row] */
    float *scores;    /* scratch of attention: [threads][heads / kv_heads][score_row] */
    float *draws;     /* scratch of sampling: [threads][vocab_row] */
    float *lora_v;    /* x Aᵀ times scale: [step_tokens][CPU_PROJECTIONS_MAX][KERN_RANK_MAX] */
    struct cpu_lora_piece *pieces;

    uint64_t ended, read; /* tickets */
    struct cpu_result results[CPU_UNREAD_MAX];
    int64_t begun_us, ended_us; /* of the steps begun and ended last; 0 = none */
};

/* ---- weights.c ---------------------------------------------------------------------------- */

/* Takes the memory of all weights that the shape names, but a head of its own. */
NODISCARD enum err cpu_weights_reserve(struct kern_device *d, struct err_text *why);
void cpu_weights_release(struct kern_device *d);
enum err cpu_weight(struct kern_device *d, const struct kern_weight *w, struct err_text *why);
/* Takes the memory of a head of its own; once is enough. */
NODISCARD enum err cpu_head_reserve(struct kern_device *d, struct err_text *why);
/* Row `row` of W, written to `to` [in]. */
void cpu_matrix_row(const struct cpu_matrix *m, uint32_t row, float *to);

/* ---- merge.c ------------------------------------------------------------------------------ */

#define CPU_MERGED_GONE (KERN_BASE - 1) /* as `merged`: an adapter that is no more */

/* Takes the memory that merging needs; then, once all weights have come, copies the modules. */
NODISCARD enum err cpu_merge_reserve(struct kern_device *d, struct err_text *why);
void cpu_merge_keep(struct kern_device *d);
void cpu_merge_release(struct kern_device *d);
void cpu_merge(struct kern_device *d, uint32_t adapter);
/* Does what was asked for: behind a step's deltas. */
void cpu_merge_step(struct kern_device *d);

/* ---- bench.c ------------------------------------------------------------------------------ */

enum err cpu_weights_random(struct kern_device *d, uint64_t seed, struct err_text *why);
enum err cpu_peaks(struct kern_device *d, struct kern_peaks *peaks);

/* ---- step.c ------------------------------------------------------------------------------- */

enum err cpu_step_begin(struct kern_device *d, const struct kern_step *step);
enum err cpu_step_end(struct kern_device *d, uint64_t *ticket);
enum err cpu_step_read(struct kern_device *d, uint64_t ticket, struct kern_sample *samples,
                       uint32_t count);
void cpu_span(const struct kern_device *d, struct kern_span *span);

/* ---- linear.c ----------------------------------------------------------------------------- */

/* y = x Wᵀ for `rows` rows; x is padded with zero rows up to a multiple of 16. */
void cpu_linear(struct kern_device *d, const struct cpu_projection *p, uint32_t rows);
/* The same for the step's sampling rows, with the head's LoRA. */
void cpu_project_head(struct kern_device *d, const struct cpu_projection *p);
/* The step's tokens through 1..CPU_PROJECTIONS_MAX projections of a layer, with LoRA. */
void cpu_project(struct kern_device *d, uint32_t layer, const struct cpu_projection *p,
                 uint32_t count);

/* ---- lora.c ------------------------------------------------------------------------------- */

/* Cuts the LoRA work of these projections into d->pieces; returns their number. */
uint32_t cpu_lora_pieces(struct kern_device *d, uint32_t layer, uint32_t projections,
                         const struct cpu_projection *p);
/* The same for the embedding, and for the head's sampling rows. */
uint32_t cpu_lora_embed_pieces(struct kern_device *d);
uint32_t cpu_lora_head_pieces(struct kern_device *d);
uint64_t cpu_lora_pieces_max(const struct kern_limits *limits);
/* v = scale · x Aᵀ, then y [rows][y_row] += v Bᵀ + scale · bias in `out` columns, of one piece. */
void cpu_lora_shrink(struct kern_device *d, const struct cpu_lora_piece *piece,
                     const struct cpu_projection *p);
void cpu_lora_expand(struct kern_device *d, const struct cpu_lora_piece *piece, float *y,
                     uint32_t y_row, uint32_t out);
/* v = scale · A[:, token]: the embedding's shrink. */
void cpu_lora_gather(struct kern_device *d, const struct cpu_lora_piece *piece);

/* ---- blocks.c, attention.c, sample.c ------------------------------------------------------ */

void cpu_embed(struct kern_device *d);
void cpu_qkv(struct kern_device *d, uint32_t layer);
void cpu_attn_out(struct kern_device *d, uint32_t layer);
void cpu_gate_up(struct kern_device *d, uint32_t layer);
void cpu_down(struct kern_device *d, uint32_t layer);
void cpu_head(struct kern_device *d);
void cpu_attention(struct kern_device *d, uint32_t layer);
void cpu_sample(struct kern_device *d);

static inline float *cpu_page(const struct kern_device *d, uint32_t layer, uint32_t page) {
    DCHECK(layer < d->shape.layers);
    DCHECK(page < d->page_count);
    return d->planes + ((uint64_t)layer * d->page_count + page) * d->page_elems;
}

/* The first position that the token at `position` attends to. */
static inline uint32_t cpu_position_first(const struct kern_device *d, uint32_t position) {
    uint32_t window = d->shape.window;
    return window == 0 || position < window ? 0 : position + 1 - window;
}

#endif
