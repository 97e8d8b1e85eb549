/* lora_plan.c - a step's segments, cut into the pieces that LoRA's kernels work on.
 *
 * The lists say which rows go with which adapter and nothing about layers: a block of threads looks
 * up the rank of its layer's module on the device. So one upload serves all layers. */
#include "base/check.h"
#include "kernels/cuda/cuda.h"

enum { BLOCK_ALIGN = 16 }; /* of cuda_block_take() */

/* Most pieces of `rows` rows: each segment, and each gap between two, may end with a short one. */
static uint64_t pieces_max(uint64_t rows, uint32_t cut) {
    return rows + rows / cuda_lora_cut_rows(cut);
}

/* Elements of the longest list that an adapter may have: the kernels count them in 32 bits. */
static uint64_t list_elems_max(const struct kern_device *d) {
    uint64_t columns = 0, outer = 3 * (uint64_t)(d->shape.vocab + d->shape.hidden);
    for (uint32_t module = 0; module < KERN_MODULES; module++) {
        columns += kern_module_in(&d->shape, (enum kern_module)module);
        columns += 2 * (uint64_t)kern_module_out(&d->shape, (enum kern_module)module);
    }
    /* a page may end with a gap of a tile; the last tile of each matrix is padded */
    columns = columns > outer ? columns : outer;
    return 2 * (columns + UINT64_C(32) * KERN_TILE_COLUMNS) * KERN_RANK_MAX;
}

/* Tiles of linear_wide.cu, whose clusters have two. */
static uint32_t tiles_of(uint32_t rows) {
    return cuda_round_up(rows, 2 * CUDA_LORA_TILE_ROWS) / CUDA_LORA_TILE_ROWS;
}

uint64_t cuda_lora_meta_bytes(const struct kern_device *d) {
    /* rows are read in runs of 16 bytes */
    CHECK(d->shape.hidden % 8 == 0);
    CHECK(d->shape.intermediate % 8 == 0);
    CHECK(d->shape.head_dim % 8 == 0);
    CHECK(list_elems_max(d) <= UINT32_MAX);
    uint64_t pieces = pieces_max(d->limits.step_samples, CUDA_LORA_16);
    for (uint32_t cut = 0; cut < CUDA_LORA_CUTS; cut++) {
        pieces += pieces_max(cuda_rows(d->limits.step_tokens), cut);
    }
    pieces += d->limits.step_tokens; /* whole segments */
    return pieces * sizeof(struct cuda_lora_piece) +
           (tiles_of(cuda_rows(d->limits.step_tokens)) + UINT64_C(1)) * sizeof(uint32_t) +
           (CUDA_LORA_CUTS + UINT64_C(3)) * BLOCK_ALIGN;
}

/* Writes the pieces of `rows` rows from `row` on; gives how many. `out` NULL: only counts them. */
static uint32_t cut_rows(struct cuda_lora_piece *out, uint32_t cut, uint32_t adapter, uint32_t row,
                         uint32_t rows) {
    uint32_t most = cuda_lora_cut_rows(cut);
    uint32_t count = (rows + most - 1) / most;
    for (uint32_t i = 0; i < count && out != NULL; i++) {
        uint32_t left = rows - i * most;
        out[i] = (struct cuda_lora_piece){
            .adapter = adapter, .row = row + i * most, .rows = left < most ? left : most};
    }
    return count;
}

static uint32_t cut_tokens(const struct kern_step *step, uint32_t cut,
                           struct cuda_lora_piece *out) {
    uint32_t count = 0;
    for (uint32_t s = 0; s < step->segment_count; s++) {
        const struct kern_segment *segment = &step->segments[s];
        count += cut_rows(out == NULL ? NULL : out + count, cut, segment->adapter,
                          segment->token_begin, segment->token_count);
    }
    return count;
}

/* The rows between segments, and behind them up to the last of the bucket. */
static uint32_t cut_base(const struct kern_step *step, uint32_t cut, struct cuda_lora_piece *out) {
    uint32_t count = 0, row = 0;
    for (uint32_t s = 0; s <= step->segment_count; s++) {
        bool last = s == step->segment_count;
        uint32_t end = last ? cuda_rows(step->token_count) : step->segments[s].token_begin;
        count += cut_rows(out == NULL ? NULL : out + count, cut, KERN_BASE, row, end - row);
        row = last ? end : end + step->segments[s].token_count;
    }
    return count;
}

/* Samples are in the order of their tokens, as segments are. */
static uint32_t cut_samples(const struct kern_step *step, struct cuda_lora_piece *out) {
    uint32_t count = 0, chunk = 0, sample = 0;
    for (uint32_t s = 0; s < step->segment_count; s++) {
        const struct kern_segment *segment = &step->segments[s];
        uint32_t begin = UINT32_MAX, end = sample;
        for (; chunk < step->chunk_count; chunk++) {
            const struct kern_chunk *c = &step->chunks[chunk];
            uint32_t token = c->token_begin + c->token_count - 1;
            if (token >= segment->token_begin + segment->token_count) {
                break;
            }
            if (c->sample && token >= segment->token_begin && begin == UINT32_MAX) {
                begin = sample;
            }
            sample += c->sample ? 1 : 0;
            end = sample;
        }
        if (begin != UINT32_MAX) {
            count += cut_rows(out == NULL ? NULL : out + count, CUDA_LORA_16, segment->adapter,
                              begin, end - begin);
        }
    }
    return count;
}

static void list_fill(struct cuda_block *b, struct cuda_lora_list *list,
                      const struct kern_step *step, uint32_t cut) {
    bool samples = cut == CUDA_LORA_CUTS;
    list->count = samples ? cut_samples(step, NULL) : cut_tokens(step, cut, NULL);
    list->all = list->count;
    list->pieces = NULL;
    if (list->count != 0) {
        list->all += samples ? 0 : cut_base(step, cut, NULL);
        struct cuda_lora_piece *pieces = cuda_block_take(b, list->all * sizeof *pieces);
        list->pieces = cuda_block_device(b, pieces);
        if (samples) {
            cut_samples(step, pieces);
        } else {
            cut_tokens(step, cut, pieces);
            cut_base(step, cut, pieces + list->count);
        }
    }
}

/* The segments as they are, and where each tile's begin. */
static void whole_fill(struct cuda_block *b, struct cuda_lora_meta *lora,
                       const struct kern_step *step) {
    const uint32_t count = step->segment_count, tiles = tiles_of(cuda_rows(step->token_count));
    lora->whole = (struct cuda_lora_list){.count = count, .all = count};
    lora->tile_first = NULL;
    if (count == 0) {
        return;
    }
    struct cuda_lora_piece *pieces = cuda_block_take(b, count * sizeof *pieces);
    uint32_t *first = cuda_block_take(b, (tiles + UINT64_C(1)) * sizeof *first);
    lora->whole.pieces = cuda_block_device(b, pieces);
    lora->tile_first = cuda_block_device(b, first);
    uint32_t tile = 0;
    for (uint32_t s = 0; s < count; s++) {
        const struct kern_segment *segment = &step->segments[s];
        pieces[s] = (struct cuda_lora_piece){
            .adapter = segment->adapter, .row = segment->token_begin, .rows = segment->token_count};
        const uint32_t end = segment->token_begin + segment->token_count;
        for (; tile <= tiles && tile * CUDA_LORA_TILE_ROWS < end; tile++) {
            first[tile] = s;
        }
    }
    for (; tile <= tiles; tile++) {
        first[tile] = count;
    }
}

void cuda_lora_plan(const struct kern_device *d, const struct kern_step *step, struct cuda_block *b,
                    struct cuda_meta *meta) {
    CHECK(step->token_count <= d->limits.step_tokens);
    for (uint32_t cut = 0; cut < CUDA_LORA_CUTS; cut++) {
        list_fill(b, &meta->lora.tokens[cut], step, cut);
    }
    list_fill(b, &meta->lora.samples, step, CUDA_LORA_CUTS);
    whole_fill(b, &meta->lora, step);
}
