/* lora.cu - which matrices and rows LoRA's kernels work on: the four groups of a layer, the
 * embedding and the head. The kernels are in lora_shrink.cu, lora_expand.cu, lora_act.cu,
 * lora_qkv.cu and lora_norm.cu.
 *
 * y += scale · ((x Aᵀ) Bᵀ + bias): shrink makes v = x Aᵀ of all projections that share x, expand
 * the rest. In a layer the kernel that reads y next does expand's work, so that no pass over the
 * activations is LoRA's alone. All shapes of a launch depend on the bucket only:
 * which rows belong to which adapter is in the metadata, ranks and places are in the tables. */
#include "kernels/cuda/lora_pack.cuh"

/* Rows of a piece: few enough that a step of some rows has work for all multiprocessors, and many
 * enough that adapters are seldom read again from the second-level cache. */
static uint32_t cut_of(const struct kern_device *d) {
    if (d->mixed || d->rows > 1024) {
        return CUDA_LORA_64;
    }
    if (d->rows > 256) {
        return CUDA_LORA_32;
    }
    return CUDA_LORA_16;
}

/* Rows that scratch is made for, of three projections. */
static uint32_t scratch_rows(uint32_t rows) {
    return max(rows, (uint32_t)LORA_SPLIT_ROWS);
}

/* Parts that a sum over `in` columns is cut into, for as many blocks of threads. On sm_90a no more
 * than blocks that run at once: what expand has to add up is not free, and a second turn of few
 * blocks would cost as much as the first. */
static uint32_t splits_of(const struct kern_device *d, uint32_t rows, uint32_t in,
                          uint32_t projections) {
    uint32_t tiles = lora_tiles(in);
    uint32_t most = tiles > LORA_LONG ? 2 * LORA_SPLITS_MAX : LORA_SPLITS_MAX;
    if (d->hopper_shrink && rows > LORA_FEW_ROWS) {
        uint32_t pieces = rows / cuda_lora_cut_rows(CUDA_LORA_64) + LORA_SEGMENTS;
        most = min(most, (uint32_t)d->sm_count * LORA_SHRINK_BLOCKS / pieces);
    }
    most = min(most, scratch_rows(rows) * LORA_GROUP_MAX / (rows * projections));
    most = max(1u, min(most, tiles / LORA_WARPS)); /* a tile for each warp */
    uint32_t split_tiles = (tiles + most - 1) / most;
    return (tiles + split_tiles - 1) / split_tiles; /* no part is empty */
}

uint64_t cuda_lora_scratch_bytes(const struct kern_device *d) {
    if (d->limits.adapters == 0) {
        return CUDA_ALIGN; /* never used */
    }
    uint64_t rows = scratch_rows(max(d->rows_max, d->sample_rows_max));
    return rows * LORA_GROUP_MAX * KERN_RANK_MAX * sizeof(float);
}

uint64_t cuda_lora_packed_bytes(const struct kern_device *d) {
    if (d->limits.adapters == 0 || !d->launches_early) {
        return CUDA_ALIGN; /* never used */
    }
    return pack_at(d->rows_max, pack_key(LORA_GROUP_MAX, 0), 0) * sizeof(uint4);
}

static struct lora_call call_of(const struct kern_device *d, uint32_t layer, uint32_t entry) {
    struct lora_call c = {};
    c.tables = d->tables;
    c.meta = d->meta;
    c.list = &d->meta->lora.tokens[cut_of(d)];
    c.layer = layer;
    c.entry = entry;
    c.projections = 1;
    c.page_elems = (uint32_t)d->page_elems;
    c.rows = d->rows;
    c.splits = 1;
    c.shares = 1;
    c.v = static_cast<float *>(d->lora_scratch);
    return c;
}

static void add_out(struct lora_call *c, uint32_t projection, uint32_t at, uint32_t columns) {
    c->out[projection] = columns;
    c->at[projection] = at;
    c->projections = projection + 1;
}

struct lora_call lora_group_call(const struct kern_device *d, uint32_t layer,
                                 enum cuda_group group) {
    static const enum kern_module first[CUDA_GROUPS] = {KERN_Q, KERN_O, KERN_GATE, KERN_DOWN};
    struct lora_call c = call_of(d, layer, layer * KERN_MODULES + first[group]);
    switch (group) {
    case CUDA_GROUP_QKV:
        c.y_row = d->qkv_cols;
        add_out(&c, 0, 0, d->q_cols);
        add_out(&c, 1, d->q_cols, d->kv_cols);
        add_out(&c, 2, d->q_cols + d->kv_cols, d->kv_cols);
        break;
    case CUDA_GROUP_GATE_UP:
        c.y_row = 2 * d->shape.intermediate;
        add_out(&c, 0, 0, d->shape.intermediate);
        add_out(&c, 1, d->shape.intermediate, d->shape.intermediate);
        break;
    default:
        c.y_row = d->shape.hidden;
        add_out(&c, 0, 0, d->shape.hidden);
        break;
    }
    c.in = group == CUDA_GROUP_O      ? d->q_cols
           : group == CUDA_GROUP_DOWN ? d->shape.intermediate
                                      : d->shape.hidden;
    c.splits = splits_of(d, d->rows, c.in, c.projections);
    if (cut_of(d) == CUDA_LORA_64) { /* passes are short there */
        c.shares = c.projections;
    }
    return c;
}

void cuda_lora_shrink(struct kern_device *d, uint32_t layer, enum cuda_group group, const void *x) {
    const uint32_t cut = d->hopper_shrink ? (uint32_t)CUDA_LORA_64 : cut_of(d);
    struct lora_call c = lora_group_call(d, layer, group);
    c.list = &d->meta->lora.tokens[cut];
    c.x = x;
    lora_shrink_launch(d, &c, cut);
}

void cuda_lora_pack(struct kern_device *d, uint32_t layer, enum cuda_group group) {
    struct lora_call c = lora_group_call(d, layer, group);
    c.list = &d->meta->lora.tokens[CUDA_LORA_16];
    lora_pack_launch(d, &c);
}

void cuda_lora_expand(struct kern_device *d, uint32_t layer, enum cuda_group group, void *y) {
    struct lora_call c = lora_group_call(d, layer, group);
    c.y = y;
    lora_expand_launch(d, &c, cut_of(d), false);
}

void cuda_lora_qkv_rows(struct kern_device *d, uint32_t layer) {
    struct lora_call c = lora_group_call(d, layer, CUDA_GROUP_QKV);
    c.y = d->qkv;
    lora_qkv_launch(d, &c);
}

void cuda_lora_act_rows(struct kern_device *d, uint32_t layer) {
    struct lora_call c = lora_group_call(d, layer, CUDA_GROUP_GATE_UP);
    c.y = d->gate_up;
    lora_act_launch(d, &c);
}

void cuda_lora_norm_rows(struct kern_device *d, uint32_t layer, enum cuda_group group,
                         const float *w, enum cuda_linear next, uint32_t next_layer) {
    struct lora_call c = lora_group_call(d, layer, group);
    c.y = d->x;
    if (!lora_norm_launch(d, c, w, cuda_linear_ahead(d, next, next_layer, CUDA_AHEAD_BYTES))) {
        lora_expand_launch(d, &c, cut_of(d), false);
        cuda_norm_rows(d, w, next, next_layer);
    }
}

void cuda_lora_embed(struct kern_device *d) {
    struct lora_call c = call_of(d, LORA_OUTER, d->shape.layers * KERN_MODULES + KERN_OUTER_EMBED);
    c.in = d->shape.vocab;
    c.y = d->x;
    c.y_row = d->shape.hidden;
    add_out(&c, 0, 0, d->shape.hidden);
    lora_gather_launch(d, &c);
    lora_expand_launch(d, &c, cut_of(d), false);
}

void cuda_lora_head(struct kern_device *d) {
    if (d->sample_rows == 0) {
        return;
    }
    struct lora_call c = call_of(d, LORA_OUTER, d->shape.layers * KERN_MODULES + KERN_OUTER_HEAD);
    c.list = &d->meta->lora.samples;
    c.rows = d->sample_rows;
    c.splits = splits_of(d, d->sample_rows, d->shape.hidden, 1);
    c.x = d->head_in;
    c.in = d->shape.hidden;
    c.y = d->logits;
    c.y_row = d->vocab_row;
    add_out(&c, 0, 0, d->shape.vocab);
    lora_shrink_launch(d, &c, CUDA_LORA_16);
    lora_expand_launch(d, &c, CUDA_LORA_16, true);
}
