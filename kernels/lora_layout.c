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

bool kern_lora_mergeable(const struct kern_lora *lora, uint32_t layers) {
    uint32_t modules = layers * KERN_MODULES;
    for (uint32_t i = 0; i < kern_lora_count(layers); i++) {
        if (lora[i].bias != 0 || (i >= modules && lora[i].rank != 0)) {
            return false;
        }
    }
    return true;
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

/* ---- the image ---------------------------------------------------------------------------- */

/* Where the tiles of a matrix go. */
struct target {
    unsigned char *image;
    enum kern_dtype elem;
};

/* `count` elements from element `from` of the source to list element `place`. */
static void run_store(const struct target *t, uint64_t place, const struct kern_source *m,
                      uint64_t from, uint32_t count) {
    const unsigned char *data = m->data;
    kern_convert(t->image + place * kern_dtype_bytes(t->elem), t->elem,
                 data + from * kern_dtype_bytes(m->dtype), m->dtype, count);
}

/* One tile: `ranks` ranks from `rank` on, 64 columns from `column` on, as far as the matrix
 * reaches; the rest stays zero. */
typedef void tile_fn(const struct target *t, uint64_t place, const struct kern_source *m,
                     uint32_t rank, uint32_t ranks, uint32_t column);

static uint32_t min_u32(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

/* [rank][column] → [rank][64 columns] */
static void tile_store_a(const struct target *t, uint64_t place, const struct kern_source *m,
                         uint32_t rank, uint32_t ranks, uint32_t column) {
    uint32_t count = min_u32(KERN_TILE_COLUMNS, m->columns - column);
    for (uint32_t r = 0; r < ranks && rank + r < m->rank; r++) {
        run_store(t, place + (uint64_t)r * KERN_TILE_COLUMNS, m,
                  (uint64_t)(rank + r) * m->columns + column, count);
    }
}

/* [column][rank] → [64 columns][ranks]: one run where a tile has all ranks of its columns */
static void tile_store_b(const struct target *t, uint64_t place, const struct kern_source *m,
                         uint32_t rank, uint32_t ranks, uint32_t column) {
    uint32_t columns = min_u32(KERN_TILE_COLUMNS, m->columns - column);
    if (ranks == m->rank) {
        run_store(t, place, m, (uint64_t)column * ranks, columns * ranks);
        return;
    }
    uint32_t count = rank < m->rank ? min_u32(ranks, m->rank - rank) : 0;
    for (uint32_t c = 0; c < columns; c++) {
        run_store(t, place + (uint64_t)c * ranks, m, (uint64_t)(column + c) * m->rank + rank,
                  count);
    }
}

/* [rank][column] → [64 columns][ranks] */
static void tile_store_gathered(const struct target *t, uint64_t place, const struct kern_source *m,
                                uint32_t rank, uint32_t ranks, uint32_t column) {
    uint32_t columns = min_u32(KERN_TILE_COLUMNS, m->columns - column);
    size_t bytes = kern_dtype_bytes(t->elem);
    unsigned char run[KERN_TILE_COLUMNS * sizeof(float)];
    const struct target converted = {.image = run, .elem = t->elem};
    for (uint32_t r = 0; r < ranks && rank + r < m->rank; r++) {
        run_store(&converted, 0, m, (uint64_t)(rank + r) * m->columns + column, columns);
        for (uint32_t c = 0; c < columns; c++) {
            memcpy(t->image + (place + (uint64_t)c * ranks + r) * bytes, run + c * bytes, bytes);
        }
    }
}

static void matrix_store(const struct target *t, uint64_t page_elems, uint64_t begin, uint32_t rank,
                         const struct kern_source *m, tile_fn *store) {
    CHECK(m->rank <= rank);
    uint32_t tiles = column_tiles(m->columns);
    for (uint32_t at = 0; at < rank; at += KERN_BLOCK_RANKS) {
        uint32_t ranks = min_u32(rank - at, KERN_BLOCK_RANKS);
        for (uint32_t tile = 0; tile < tiles; tile++) {
            uint64_t place =
                kern_tile_begin(page_elems, begin, rank, m->columns, at / KERN_BLOCK_RANKS, tile);
            store(t, place, m, at, ranks, tile * KERN_TILE_COLUMNS);
        }
    }
}

void kern_matrix_store_a(void *image, enum kern_dtype elem, uint64_t page_elems,
                         const struct kern_lora *lora, const struct kern_source *a) {
    const struct target t = {.image = image, .elem = elem};
    matrix_store(&t, page_elems, lora->a, lora->rank, a, tile_store_a);
}

void kern_matrix_store_a_gathered(void *image, enum kern_dtype elem, uint64_t page_elems,
                                  const struct kern_lora *lora, const struct kern_source *a) {
    const struct target t = {.image = image, .elem = elem};
    matrix_store(&t, page_elems, lora->a, lora->rank, a, tile_store_gathered);
}

void kern_matrix_store_b(void *image, enum kern_dtype elem, uint64_t page_elems,
                         const struct kern_lora *lora, const struct kern_source *b) {
    const struct target t = {.image = image, .elem = elem};
    matrix_store(&t, page_elems, lora->b, lora->rank, b, tile_store_b);
}

void kern_bias_store(void *image, enum kern_dtype elem, const struct kern_lora *lora,
                     const struct kern_source *bias) {
    CHECK(lora->bias != 0);
    const struct target t = {.image = image, .elem = elem};
    run_store(&t, lora->bias, bias, 0, bias->columns);
}
