/* attention_plan.c - cuts a step's attention into the work lists that the kernels walk.
 *
 * Decode: a row's context is cut into splits that different warps take. How, depends on the row's
 * own context and on the bucket, never on the rows beside it: equal buckets give equal bits. A
 * bucket of few rows is cut finely, so that 1,024 tokens a row fill the machine; one of many rows
 * only where a long row would be waited for. The number of splits of a row, and of all, is bounded:
 * beyond it splits get longer.
 *
 * Prefill: tiles of CUDA_PREFILL_ROWS tokens, heaviest first, by counting.
 *
 * Cost: one pass over the chunks for decode and two for prefill, some 20 ns a row. */
#include <string.h>

#include "base/check.h"
#include "kernels/cuda/cuda.h"

enum {
    CONTEXT_TILES = 64,  /* 1,024 tokens: the context at which a bucket should fill the machine */
    SPLIT_TILES_MIN = 4, /* shorter splits cost more to put together than they save */
    SPLIT_TILES_MAX = CONTEXT_TILES,
    SPLITS_MAX = 64,      /* of a row */
    SPLITS_FEW = 2,       /* of a row, in any bucket */
    SPLITS_TOTAL = 2048,  /* of a bucket's rows together, above SPLITS_FEW each */
    LENGTH_CLASSES = 128, /* quarter octaves of 32 bits */
};

/* ---- decode ------------------------------------------------------------------------------- */

/* How a bucket's rows are cut: into splits of `tiles`, but into `splits` at most. */
struct cut {
    uint32_t tiles, splits;
};

static uint32_t clamp(uint64_t value, uint32_t low, uint32_t high) {
    return value < low ? low : value > high ? high : (uint32_t)value;
}

static uint32_t ceil_div(uint32_t value, uint32_t by) {
    return (value + by - 1) / by;
}

static uint32_t units(const struct kern_device *d) {
    return cuda_decode_units(d->shape.heads, d->shape.kv_heads);
}

static struct cut cut_of(const struct kern_device *d, uint32_t rows) {
    uint64_t warps = (uint64_t)d->sm_count * CUDA_DECODE_BLOCKS * CUDA_DECODE_WARPS;
    uint64_t tiles = ((uint64_t)CONTEXT_TILES * rows * units(d) + warps - 1) / warps;
    return (struct cut){
        .tiles = clamp(tiles, SPLIT_TILES_MIN, SPLIT_TILES_MAX),
        .splits = clamp(SPLITS_TOTAL / rows, SPLITS_FEW, SPLITS_MAX),
    };
}

/* Splits of a context of `tiles`, and tiles of all but the last. */
static uint32_t split_count(const struct cut *cut, uint32_t tiles, uint32_t *split_tiles) {
    if (tiles <= cut->tiles) {
        *split_tiles = tiles;
        return 1;
    }
    uint32_t count = ceil_div(tiles, cut->tiles);
    *split_tiles = ceil_div(tiles, count < cut->splits ? count : cut->splits);
    return ceil_div(tiles, *split_tiles);
}

struct context {
    uint32_t first, end;     /* positions that the row sees */
    uint32_t tiles;          /* that these touch */
    uint32_t splits, length; /* of a split, in tiles */
};

static struct context context_of(const struct kern_device *d, const struct cut *cut,
                                 uint32_t position) {
    struct context c = {.end = position + 1};
    uint32_t window = d->shape.window;
    c.first = window != 0 && c.end > window ? c.end - window : 0;
    c.tiles = ceil_div(c.end, CUDA_DECODE_TILE) - c.first / CUDA_DECODE_TILE;
    c.splits = split_count(cut, c.tiles, &c.length);
    return c;
}

static void items_fill(struct cuda_decode_item *items, const struct context *c,
                       const struct cuda_decode_item *row) {
    uint32_t step = c->length * CUDA_DECODE_TILE;
    uint32_t edge = c->first / CUDA_DECODE_TILE * CUDA_DECODE_TILE;
    for (uint32_t i = 0; i < c->splits; i++, edge += step) {
        items[i] = *row;
        items[i].begin = i == 0 ? c->first : edge;
        items[i].end = i + 1 == c->splits ? c->end : edge + step;
        items[i].split = i;
    }
}

/* Each row takes its items from the block; as their size is a multiple of the block's alignment,
 * all together are one array. */
static void decode_plan(const struct kern_device *d, const struct kern_step *step,
                        struct cuda_block *b, struct cuda_attention_meta *meta) {
    _Static_assert(sizeof(struct cuda_decode_item) % 16 == 0, "items of all rows are neighbours");
    const struct cut cut = cut_of(d, d->rows);
    const struct cuda_decode_item *items = cuda_block_take(b, 0);
    struct cuda_decode_item row = {0};
    uint32_t count = 0;
    for (uint32_t i = 0; i < step->chunk_count; i++) {
        const struct kern_chunk *chunk = &step->chunks[i];
        if (chunk->token_count != 1) {
            continue;
        }
        const struct context c = context_of(d, &cut, chunk->position);
        row.row = chunk->token_begin;
        row.slot = chunk->slot;
        row.split_count = c.splits;
        items_fill(cuda_block_take(b, (uint64_t)c.splits * sizeof row), &c, &row);
        row.partial += c.splits > 1 ? c.splits : 0;
        row.arrival += c.splits > 1;
        count += c.splits;
    }
    uint64_t arrival_bytes = (uint64_t)row.arrival * units(d) * sizeof(uint32_t);
    uint32_t *arrivals = cuda_block_take(b, arrival_bytes);
    memset(arrivals, 0, arrival_bytes);
    meta->decode = cuda_block_device(b, items);
    meta->arrivals = cuda_block_device(b, arrivals);
    meta->decode_count = count;
}

static uint32_t decode_rows_max(const struct kern_device *d) {
    return d->limits.slots < d->limits.step_tokens ? d->limits.slots : d->limits.step_tokens;
}

/* Splits of all rows together, at most. A bucket of more rows than a step has tokens has no more
 * of them than one of that many. */
static uint64_t splits_max(const struct kern_device *d) {
    uint32_t seen = d->positions, window = d->shape.window, most_rows = decode_rows_max(d);
    if (window != 0 && window < seen) {
        seen = window;
    }
    uint32_t tiles = ceil_div(seen, CUDA_DECODE_TILE) + 1; /* a window may begin inside one */
    uint64_t most = 0;
    for (uint32_t rows = 1; rows <= d->limits.step_tokens; rows++) {
        struct cut cut = cut_of(d, rows);
        uint32_t count = ceil_div(tiles, cut.tiles);
        count = count < cut.splits ? count : cut.splits;
        uint64_t total = (uint64_t)count * (rows < most_rows ? rows : most_rows);
        most = total > most ? total : most;
    }
    return most;
}

/* ---- prefill ------------------------------------------------------------------------------ */

/* Greater for longer contexts, by quarters of an octave; 0 .. LENGTH_CLASSES - 1. */
static uint32_t length_class(uint32_t tokens) {
    uint32_t octave = 31 - (uint32_t)__builtin_clz(tokens);
    uint32_t quarter = octave < 2 ? 0 : tokens >> (octave - 2) & 3;
    return octave * 4 + quarter;
}

static struct cuda_prefill_item tile_of(const struct kern_chunk *chunk, uint32_t done) {
    uint32_t left = chunk->token_count - done;
    return (struct cuda_prefill_item){
        .token_begin = chunk->token_begin + done,
        .token_count = left < CUDA_PREFILL_ROWS ? left : CUDA_PREFILL_ROWS,
        .position = chunk->position + done,
        .slot = chunk->slot,
    };
}

static uint32_t tile_class(const struct cuda_prefill_item *tile) {
    return length_class(tile->position + tile->token_count);
}

static void prefill_plan(const struct kern_step *step, struct cuda_block *b,
                         struct cuda_attention_meta *meta) {
    uint32_t begin[LENGTH_CLASSES] = {0}; /* first the counts */
    for (uint32_t i = 0; i < step->chunk_count; i++) {
        const struct kern_chunk *chunk = &step->chunks[i];
        for (uint32_t done = 0; chunk->token_count > 1 && done < chunk->token_count;
             done += CUDA_PREFILL_ROWS) {
            struct cuda_prefill_item tile = tile_of(chunk, done);
            begin[tile_class(&tile)]++;
        }
    }
    uint32_t count = 0;
    for (uint32_t class = LENGTH_CLASSES; class -- > 0;) {
        uint32_t members = begin[class];
        begin[class] = count;
        count += members;
    }
    struct cuda_prefill_item *items = cuda_block_take(b, (uint64_t)count * sizeof *items);
    meta->prefill = cuda_block_device(b, items);
    meta->prefill_count = count;
    for (uint32_t i = 0; i < step->chunk_count; i++) {
        const struct kern_chunk *chunk = &step->chunks[i];
        for (uint32_t done = 0; chunk->token_count > 1 && done < chunk->token_count;
             done += CUDA_PREFILL_ROWS) {
            struct cuda_prefill_item tile = tile_of(chunk, done);
            items[begin[tile_class(&tile)]++] = tile;
        }
    }
}

/* ---- the device's view -------------------------------------------------------------------- */

enum err cuda_attention_open(struct kern_device *d, struct err_text *why) {
    enum err e = cuda_decode_open(d, why);
    if (e == ERR_OK) {
        e = cuda_prefill_open(d, why);
    }
    return e != ERR_OK ? e : cuda_hopper_open(d, why);
}

uint64_t cuda_attention_scratch_bytes(const struct kern_device *d) {
    const struct kern_shape *s = &d->shape;
    uint64_t partial = cuda_decode_partial(s->heads, s->kv_heads, s->head_dim);
    return splits_max(d) * units(d) * partial * sizeof(float);
}

uint64_t cuda_attention_meta_bytes(const struct kern_device *d) {
    uint64_t rows = decode_rows_max(d), tokens = d->limits.step_tokens;
    uint64_t chunks = tokens / 2 < d->limits.slots ? tokens / 2 : d->limits.slots;
    uint64_t arrivals = rows * units(d) * sizeof(uint32_t);
    uint64_t prefill = (tokens / CUDA_PREFILL_ROWS + chunks) * sizeof(struct cuda_prefill_item);
    uint64_t gaps = CUDA_ALIGN; /* between three arrays */
    return splits_max(d) * sizeof(struct cuda_decode_item) + arrivals + prefill + gaps;
}

void cuda_attention_plan(const struct kern_device *d, const struct kern_step *step,
                         struct cuda_block *b, struct cuda_meta *meta) {
    DCHECK(step->token_count <= d->rows);
    decode_plan(d, step, b, &meta->attention);
    prefill_plan(step, b, &meta->attention);
}
