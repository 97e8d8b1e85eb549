/* The tile order of an adapter image, as kernels.h describes it, and the modules' shapes.
 *
 * All tiles of one matrix but those of its last, narrower rank block have the same size, so a
 * tile's place is found by two divisions: how many tiles are left in the first page, then how many
 * whole pages of tiles lie before it. */
#include <string.h>

#include "base/check.h"
#include "kernels/kernels.h"

uint32_t kern_module_in(const struct kern_shape *shape, enum kern_module module) {
    switch (module) {
    case KERN_Q:
    case KERN_K:
    case KERN_V:
    case KERN_GATE:
    case KERN_UP:
        return shape->hidden;
    case KERN_O:
        return shape->heads * shape->head_dim;
    case KERN_DOWN:
        return shape->intermediate;
    case KERN_MODULES:
        break;
    }
    CHECK(!"a module");
    return 0;
}

uint32_t kern_module_out(const struct kern_shape *shape, enum kern_module module) {
    switch (module) {
    case KERN_Q:
        return shape->heads * shape->head_dim;
    case KERN_K:
    case KERN_V:
        return shape->kv_heads * shape->head_dim;
    case KERN_GATE:
    case KERN_UP:
        return shape->intermediate;
    case KERN_O:
    case KERN_DOWN:
        return shape->hidden;
    case KERN_MODULES:
        break;
    }
    CHECK(!"a module");
    return 0;
}

static bool is_outer(const struct kern_shape *shape, uint32_t entry, enum kern_outer outer) {
    CHECK(entry < kern_lora_count(shape->layers));
    return entry == shape->layers * KERN_MODULES + outer;
}

uint32_t kern_lora_in(const struct kern_shape *shape, uint32_t entry) {
    if (is_outer(shape, entry, KERN_OUTER_EMBED)) {
        return shape->vocab;
    }
    return is_outer(shape, entry, KERN_OUTER_HEAD) ? shape->hidden
                                                   : kern_module_in(shape, entry % KERN_MODULES);
}

uint32_t kern_lora_out(const struct kern_shape *shape, uint32_t entry) {
    if (is_outer(shape, entry, KERN_OUTER_EMBED)) {
        return shape->hidden;
    }
    return is_outer(shape, entry, KERN_OUTER_HEAD) ? shape->vocab
                                                   : kern_module_out(shape, entry % KERN_MODULES);
}

const char *kern_module_name(enum kern_module module) {
    static const char *const names[KERN_MODULES] = {
        [KERN_Q] = "q_proj",       [KERN_K] = "k_proj",       [KERN_V] = "v_proj",
        [KERN_O] = "o_proj",       [KERN_GATE] = "gate_proj", [KERN_UP] = "up_proj",
        [KERN_DOWN] = "down_proj",
    };
    CHECK(module < KERN_MODULES);
    return names[module];
}

uint32_t kern_rank_padded(uint32_t rank) {
    return (rank + KERN_RANK_MULTIPLE - 1) / KERN_RANK_MULTIPLE * KERN_RANK_MULTIPLE;
}

/* The place of tile `index` of a run of equal tiles that starts at or after `begin`. `index` may be
 * one past the last: then it is where the next tile of that size would lie. */
static uint64_t run_place(uint64_t page_elems, uint64_t begin, uint32_t tile_elems,
                          uint64_t index) {
    uint64_t offset = begin % page_elems;
    uint64_t page_tiles = page_elems / tile_elems;
    uint64_t first_tiles = (page_elems - offset) / tile_elems; /* in the rest of the first page */
    if (index < first_tiles) {
        return begin + index * tile_elems;
    }
    uint64_t after = index - first_tiles;
    return begin - offset + (1 + after / page_tiles) * page_elems + after % page_tiles * tile_elems;
}

/* The end of `count` tiles: right behind the last, so that a following smaller tile may still use
 * the rest of that page. */
static uint64_t run_end(uint64_t page_elems, uint64_t begin, uint32_t tile_elems, uint64_t count) {
    if (count == 0) {
        return begin;
    }
    return run_place(page_elems, begin, tile_elems, count - 1) + tile_elems;
}

static uint32_t column_tiles(uint32_t columns) {
    return (columns + KERN_TILE_COLUMNS - 1) / KERN_TILE_COLUMNS;
}

static void matrix_check(uint64_t page_elems, uint32_t rank, uint32_t columns) {
    CHECK(page_elems >= KERN_TILE_ELEMENTS);
    CHECK(page_elems % KERN_TILE_COLUMNS == 0);
    CHECK(rank > 0 && rank <= KERN_RANK_MAX);
    CHECK(rank % KERN_RANK_MULTIPLE == 0);
    CHECK(columns > 0);
}

uint64_t kern_matrix_end(uint64_t page_elems, uint64_t begin, uint32_t rank, uint32_t columns) {
    matrix_check(page_elems, rank, columns);
    uint64_t tiles = column_tiles(columns);
    uint64_t full_tiles = rank / KERN_BLOCK_RANKS * tiles;
    uint64_t end = run_end(page_elems, begin, KERN_TILE_ELEMENTS, full_tiles);
    uint32_t last_ranks = rank % KERN_BLOCK_RANKS;
    if (last_ranks != 0) {
        end = run_end(page_elems, end, last_ranks * KERN_TILE_COLUMNS, tiles);
    }
    return end;
}

uint64_t kern_tile_begin(uint64_t page_elems, uint64_t begin, uint32_t rank, uint32_t columns,
                         uint32_t block, uint32_t tile) {
    matrix_check(page_elems, rank, columns);
    uint64_t tiles = column_tiles(columns);
    uint32_t full_blocks = rank / KERN_BLOCK_RANKS;
    CHECK(tile < tiles);
    if (block < full_blocks) {
        return run_place(page_elems, begin, KERN_TILE_ELEMENTS, block * tiles + tile);
    }
    uint32_t last_ranks = rank % KERN_BLOCK_RANKS;
    CHECK(block == full_blocks && last_ranks != 0);
    uint64_t last = run_end(page_elems, begin, KERN_TILE_ELEMENTS, full_blocks * tiles);
    return run_place(page_elems, last, last_ranks * KERN_TILE_COLUMNS, tile);
}

uint64_t kern_bias_end(uint64_t begin, uint32_t columns) {
    return begin + (uint64_t)column_tiles(columns) * KERN_TILE_COLUMNS;
}

/* A row-major matrix on its way into tile order: A and B differ in nothing but these strides. */
struct source {
    const float *elements;
    uint64_t rank_stride, column_stride;
    uint32_t rank_true, columns;
};

/* One tile: `ranks` ranks from `rank_begin` on, 64 columns from `column_begin` on, as far as the
 * matrix reaches; the rest stays zero. */
static void tile_store(float *tile, const struct source *m, uint32_t rank_begin, uint32_t ranks,
                       uint32_t column_begin, bool rank_inner) {
    for (uint32_t r = 0; r < ranks && rank_begin + r < m->rank_true; r++) {
        for (uint32_t c = 0; c < KERN_TILE_COLUMNS && column_begin + c < m->columns; c++) {
            uint32_t place = rank_inner ? c * ranks + r : r * KERN_TILE_COLUMNS + c;
            tile[place] = m->elements[(rank_begin + r) * m->rank_stride +
                                      (column_begin + c) * m->column_stride];
        }
    }
}

static void matrix_store(float *image, uint64_t page_elems, uint64_t begin, uint32_t rank,
                         const struct source *m, bool rank_inner) {
    CHECK(m->rank_true <= rank);
    uint32_t tiles = column_tiles(m->columns);
    for (uint32_t rank_begin = 0; rank_begin < rank; rank_begin += KERN_BLOCK_RANKS) {
        uint32_t left = rank - rank_begin;
        uint32_t ranks = left < KERN_BLOCK_RANKS ? left : KERN_BLOCK_RANKS;
        for (uint32_t tile = 0; tile < tiles; tile++) {
            uint64_t place = kern_tile_begin(page_elems, begin, rank, m->columns,
                                             rank_begin / KERN_BLOCK_RANKS, tile);
            tile_store(image + place, m, rank_begin, ranks, tile * KERN_TILE_COLUMNS, rank_inner);
        }
    }
}

void kern_matrix_store_a(float *image, uint64_t page_elems, const struct kern_lora *lora,
                         const float *a, uint32_t rank_true, uint32_t columns) {
    const struct source m = {.elements = a,
                             .rank_stride = columns,
                             .column_stride = 1,
                             .rank_true = rank_true,
                             .columns = columns};
    matrix_store(image, page_elems, lora->a, lora->rank, &m, false);
}

void kern_matrix_store_a_gathered(float *image, uint64_t page_elems, const struct kern_lora *lora,
                                  const float *a, uint32_t rank_true, uint32_t columns) {
    const struct source m = {.elements = a,
                             .rank_stride = columns,
                             .column_stride = 1,
                             .rank_true = rank_true,
                             .columns = columns};
    matrix_store(image, page_elems, lora->a, lora->rank, &m, true);
}

void kern_matrix_store_b(float *image, uint64_t page_elems, const struct kern_lora *lora,
                         const float *b, uint32_t rank_true, uint32_t columns) {
    const struct source m = {.elements = b,
                             .rank_stride = 1,
                             .column_stride = rank_true,
                             .rank_true = rank_true,
                             .columns = columns};
    matrix_store(image, page_elems, lora->b, lora->rank, &m, true);
}

void kern_bias_store(float *image, const struct kern_lora *lora, const float *bias,
                     uint32_t columns) {
    CHECK(lora->bias != 0);
    memcpy(image + lora->bias, bias, columns * sizeof *bias);
}
