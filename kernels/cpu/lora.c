/* lora.c - y += scale · ((x Aᵀ) Bᵀ + bias) for segments of rows, each with its own adapter.
 *
 * x [rows][in], v [rows][rank], y [rows][out] in f32; A and B are read tile by tile where they lie,
 * in pages of the pool. The unit of work is a piece: up to 16 rows of a segment in one projection.
 * Each tile is applied to all rows of the piece while it is in the first-level cache, so an adapter
 * is read once a piece, not once a row. A row's sums run over column tiles (shrink) and rank blocks
 * (expand) in ascending order whatever the piece.
 *
 * Tiles are padded with zeros and rows of x and y to multiples of 64, so no tile is cut: what lies
 * beyond a matrix adds zero. */
#include <string.h>

#include "kernels/cpu/cpu.h"

_Static_assert(CPU_ROW_MULTIPLE % KERN_TILE_COLUMNS == 0, "rows hold whole tiles");

uint64_t cpu_lora_pieces_max(const struct kern_limits *limits) {
    /* each segment may end with a short piece; there are at most as many segments as tokens */
    uint64_t tokens = limits->step_tokens;
    return CPU_PROJECTIONS_MAX * (tokens / CPU_LORA_ROWS + tokens);
}

/* Appends the pieces of `rows` rows. */
static uint32_t cut(struct kern_device *d, uint32_t count, const struct cpu_lora_piece *whole) {
    for (uint32_t done = 0; done < whole->row_count; done += CPU_LORA_ROWS) {
        uint32_t left = whole->row_count - done;
        CHECK(count < cpu_lora_pieces_max(&d->limits));
        d->pieces[count] = *whole;
        d->pieces[count].row_begin += done;
        d->pieces[count].row_count = left < CPU_LORA_ROWS ? left : CPU_LORA_ROWS;
        count++;
    }
    return count;
}

uint32_t cpu_lora_pieces(struct kern_device *d, uint32_t layer, uint32_t projections,
                         const struct cpu_projection *p) {
    uint32_t count = 0;
    for (uint32_t s = 0; s < d->segment_count; s++) {
        const struct kern_segment *segment = &d->segments[s];
        const struct cpu_adapter *adapter = &d->adapters[segment->adapter];
        for (uint32_t i = 0; i < projections; i++) {
            const struct kern_lora *lora = &adapter->lora[layer * KERN_MODULES + p[i].module];
            if (lora->rank != 0) {
                const struct cpu_lora_piece whole = {.lora = lora,
                                                     .adapter = adapter,
                                                     .layer = layer,
                                                     .projection = i,
                                                     .row_begin = segment->token_begin,
                                                     .row_count = segment->token_count};
                count = cut(d, count, &whole);
            }
        }
    }
    return count;
}

static struct cpu_lora_piece outer_piece(const struct kern_device *d,
                                         const struct kern_segment *segment,
                                         enum kern_outer outer) {
    const struct cpu_adapter *adapter = &d->adapters[segment->adapter];
    return (struct cpu_lora_piece){.lora = &adapter->lora[d->shape.layers * KERN_MODULES + outer],
                                   .adapter = adapter,
                                   .layer = CPU_OUTER};
}

uint32_t cpu_lora_embed_pieces(struct kern_device *d) {
    uint32_t count = 0;
    for (uint32_t s = 0; s < d->segment_count; s++) {
        const struct kern_segment *segment = &d->segments[s];
        struct cpu_lora_piece whole = outer_piece(d, segment, KERN_OUTER_EMBED);
        whole.row_begin = segment->token_begin;
        whole.row_count = whole.lora->rank == 0 ? 0 : segment->token_count;
        count = cut(d, count, &whole);
    }
    return count;
}

/* Samples are in the order of their tokens, as segments are. */
uint32_t cpu_lora_head_pieces(struct kern_device *d) {
    uint32_t count = 0, sample = 0;
    for (uint32_t s = 0; s < d->segment_count; s++) {
        const struct kern_segment *segment = &d->segments[s];
        uint32_t end = segment->token_begin + segment->token_count;
        struct cpu_lora_piece whole = outer_piece(d, segment, KERN_OUTER_HEAD);
        while (sample < d->sample_count && d->samples[sample].token < segment->token_begin) {
            sample++;
        }
        whole.row_begin = sample;
        while (sample < d->sample_count && d->samples[sample].token < end) {
            sample++;
        }
        whole.row_count = whole.lora->rank == 0 ? 0 : sample - whole.row_begin;
        count = cut(d, count, &whole);
    }
    return count;
}

/* Where a tile of a matrix lies: it never crosses a page. */
static const float *tile_at(const struct kern_device *d, const struct cpu_lora_piece *piece,
                            uint64_t place) {
    const struct cpu_adapter *adapter = piece->adapter;
    uint64_t page = place / d->page_elems;
    uint32_t layer = piece->layer;
    uint32_t layer_pages = adapter->page_count - adapter->outer_pages;
    if (layer == CPU_OUTER) { /* the second list, plane after plane */
        layer = (uint32_t)(page / adapter->outer_pages);
        page = layer_pages + page % adapter->outer_pages;
    } else {
        DCHECK(page < layer_pages);
    }
    return cpu_page(d, layer, adapter->pages[page]) + place % d->page_elems;
}

static float *piece_v(const struct kern_device *d, const struct cpu_lora_piece *piece,
                      uint32_t row) {
    uint64_t at = piece->row_begin + row;
    return d->lora_v + (at * CPU_PROJECTIONS_MAX + piece->projection) * KERN_RANK_MAX;
}

static uint32_t block_ranks(uint32_t rank, uint32_t begin) {
    return rank - begin < KERN_BLOCK_RANKS ? rank - begin : KERN_BLOCK_RANKS;
}

void cpu_lora_shrink(struct kern_device *d, const struct cpu_lora_piece *piece,
                     const struct cpu_projection *p) {
    const struct kern_lora *lora = piece->lora;
    uint32_t in = p->w->in;
    for (uint32_t row = 0; row < piece->row_count; row++) {
        memset(piece_v(d, piece, row), 0, lora->rank * sizeof(float));
    }
    for (uint32_t begin = 0; begin < lora->rank; begin += KERN_BLOCK_RANKS) {
        uint32_t ranks = block_ranks(lora->rank, begin);
        for (uint32_t column = 0; column < in; column += KERN_TILE_COLUMNS) {
            uint64_t place = kern_tile_begin(d->page_elems, lora->a, lora->rank, in,
                                             begin / KERN_BLOCK_RANKS, column / KERN_TILE_COLUMNS);
            const float *tile = tile_at(d, piece, place);
            for (uint32_t row = 0; row < piece->row_count; row++) {
                const float *x = p->x + (uint64_t)(piece->row_begin + row) * p->x_row + column;
                d->vector->shrink(tile, ranks, x, piece_v(d, piece, row) + begin);
            }
        }
    }
    for (uint32_t row = 0; row < piece->row_count; row++) {
        float *v = piece_v(d, piece, row);
        for (uint32_t r = 0; r < lora->rank; r++) {
            v[r] *= lora->scale;
        }
    }
}

/* After all ranks. A run of 64 never crosses a page either. */
static void bias_add(struct kern_device *d, const struct cpu_lora_piece *piece, float *y,
                     uint32_t y_row, uint32_t out) {
    const struct kern_lora *lora = piece->lora;
    for (uint32_t column = 0; column < out; column += KERN_TILE_COLUMNS) {
        const float *bias = tile_at(d, piece, lora->bias + column);
        for (uint32_t row = 0; row < piece->row_count; row++) {
            float *to = y + (uint64_t)(piece->row_begin + row) * y_row + column;
            for (uint32_t i = 0; i < KERN_TILE_COLUMNS; i++) {
                to[i] += lora->scale * bias[i];
            }
        }
    }
}

void cpu_lora_gather(struct kern_device *d, const struct cpu_lora_piece *piece) {
    const struct kern_lora *lora = piece->lora;
    for (uint32_t row = 0; row < piece->row_count; row++) {
        uint32_t id = d->tokens[piece->row_begin + row].id;
        float *v = piece_v(d, piece, row);
        for (uint32_t begin = 0; begin < lora->rank; begin += KERN_BLOCK_RANKS) {
            uint32_t ranks = block_ranks(lora->rank, begin);
            uint64_t place = kern_tile_begin(d->page_elems, lora->a, lora->rank, d->shape.vocab,
                                             begin / KERN_BLOCK_RANKS, id / KERN_TILE_COLUMNS);
            const float *column =
                tile_at(d, piece, place) + (uint64_t)(id % KERN_TILE_COLUMNS) * ranks;
            for (uint32_t r = 0; r < ranks; r++) {
                v[begin + r] = lora->scale * column[r];
            }
        }
    }
}

void cpu_lora_expand(struct kern_device *d, const struct cpu_lora_piece *piece, float *y,
                     uint32_t y_row, uint32_t out) {
    const struct kern_lora *lora = piece->lora;
    for (uint32_t begin = 0; begin < lora->rank; begin += KERN_BLOCK_RANKS) {
        uint32_t ranks = block_ranks(lora->rank, begin);
        for (uint32_t column = 0; column < out; column += KERN_TILE_COLUMNS) {
            uint64_t place = kern_tile_begin(d->page_elems, lora->b, lora->rank, out,
                                             begin / KERN_BLOCK_RANKS, column / KERN_TILE_COLUMNS);
            const float *tile = tile_at(d, piece, place);
            for (uint32_t row = 0; row < piece->row_count; row++) {
                float *to = y + (uint64_t)(piece->row_begin + row) * y_row + column;
                d->vector->expand(tile, ranks, piece_v(d, piece, row) + begin, to);
            }
        }
    }
    if (lora->bias != 0) {
        bias_add(d, piece, y, y_row, out);
    }
}
