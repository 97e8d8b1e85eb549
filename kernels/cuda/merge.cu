/* merge.cu - an adapter's product in the weights: to = W + scale · B A, for the seven projections
 * of a layer, one launch a layer.
 *
 * W, to [out][in] elements, row-major, W as the checkpoint has it; A, B in the tile order, in the
 * layer's pages. B A is summed by mma m16n8k16 in f32, exact products of elements, over rank blocks
 * in ascending order; then one fma with scale and W, and one rounding to the element: within
 * (rank + 2) · 2⁻²⁴ of Σ |B||A| · scale, and half a unit in the last place, of the exact value. A
 * projection that the adapter leaves alone is copied, to the bit.
 *
 * Work: a block of 4 warps has 128 rows of one projection and goes along up to 16 tiles of 64
 * columns; a warp has 32 of the rows. Items, (tile, rank block), come through a ring of 3 stages in
 * shared memory by asynchronous copies: the block's 32 × 64 of A, and with a tile's first item the
 * 128 × 64 of W. B goes from memory to registers, once where there is one rank block. What order
 * mma sums ranks in does not matter, so that a lane takes 16 adjacent bytes of a row of B, as
 * lane_ranks() has them, and rank_row() puts A's rows accordingly; and columns of A are dealt in
 * pairs so that a lane ends with 8 adjacent ones: n of instruction g, of 4 that make 32 columns, is
 * column 8 (n / 2) + 2 g + n % 2. Both are xor-swizzled by 16 bytes against bank conflicts.
 *
 * A launch starts while the layer's before it ends: layers have nothing in common.
 *
 * Bytes: each projection read and written once, rank / 256 as much of A, from the second-level
 * cache; FLOPs 2 · rank · out · in. Llama-3.1-8B: 28 GB, on one H200 (2026-11-22) 9.8 ms at rank
 * 16, 68% of what a copy has. */
#include "kernels/cuda/lora_expand.cuh"

enum {
    MERGE_ROWS = 32 * LORA_WARPS, /* of a block of threads */
    MERGE_TILES = 16,             /* of 64 columns, that it goes along */
    MERGE_STAGES = 3,
    MERGE_BLOCKS = 3, /* of threads, on a multiprocessor */
};

/* Of a projection. */
struct merge_matrix {
    const void *from; /* W */
    void *to;
    uint32_t out, in;
    uint32_t first; /* block of threads */
    uint32_t parts; /* blocks of threads that share a row */
};

/* A launch. */
struct merge_call {
    struct lora_call lora; /* tables, layer, entry, page_elems */
    const void *plane;     /* of the layer */
    uint32_t adapter;
    bool waits; /* at its end for the launch in front, not at its begin */
    struct merge_matrix matrices[KERN_MODULES];
};

template <typename T> struct merge_stage {
    T w[MERGE_ROWS][KERN_TILE_COLUMNS];
    T a[KERN_BLOCK_RANKS][KERN_TILE_COLUMNS];
};

/* What a block of threads has to do. */
template <typename T> struct merge_work {
    const T *from;
    T *to;
    uint32_t out, in;
    uint32_t row;          /* first */
    uint32_t tile, tiles;  /* first, and how many */
    uint32_t rank, blocks; /* blocks: of ranks, and 1 for rank 0 */
    float scale;
    const struct kern_lora *entry;
    uint32_t projection;
};

/* ---- stages ------------------------------------------------------------------------------- */

/* Where 16 bytes of a row of 128 lie. */
static __device__ __forceinline__ uint32_t w_place(uint32_t row, uint32_t chunk) {
    return row * KERN_TILE_COLUMNS + (chunk ^ (row & 1) << 2) * 8;
}
static __device__ __forceinline__ uint32_t a_place(uint32_t row, uint32_t chunk) {
    return row * KERN_TILE_COLUMNS + (chunk ^ (row & 7)) * 8;
}

/* The row of a stage for rank `rank` of a block of `ranks`: 16 m + k where lane_ranks() has it in
 * instruction m as index k of mma's sum. */
static __host__ __device__ __forceinline__ uint32_t rank_row(uint32_t rank, uint32_t ranks) {
    if (ranks == 32) {
        return rank % 8 / 4 * 16 + rank % 4 / 2 * 8 + rank / 8 * 2 + rank % 2;
    }
    if (ranks >= 16 && rank < 16) {
        return rank % 4 / 2 * 8 + rank / 4 * 2 + rank % 2;
    }
    return rank;
}

static __device__ __forceinline__ void copy_async_4(uint32_t to, const void *from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}

/* 32 rows and a tile of W: a warp's own. Beyond the matrix there are zeros. */
template <typename T>
static __device__ __forceinline__ void w_fetch(const merge_work<T> &w, uint32_t tile, T *stage) {
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t chunk = lane % 8, column = tile * KERN_TILE_COLUMNS + chunk * 8;
#pragma unroll
    for (uint32_t i = 0; i < 8; i++) {
        const uint32_t row = warp * 32 + i * 4 + lane / 8;
        const bool valid = w.row + row < w.out && column < w.in;
        const T *from = valid ? w.from + (uint64_t)(w.row + row) * w.in + column : w.from;
        copy_async_16(shared_address(stage + w_place(row, chunk)), from, valid);
    }
}

template <typename T>
static __device__ __forceinline__ void a_fetch(const merge_call &c, const merge_work<T> &w,
                                               const struct lora_pages<T> &pages, uint32_t tile,
                                               uint32_t block, T *stage) {
    const uint32_t ranks = min(w.rank - block * KERN_BLOCK_RANKS, (uint32_t)KERN_BLOCK_RANKS);
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    /* lane: a pair of columns, 32 s + 8 q + 2 g and the next */
    const uint32_t chunk = lane / 16 * 4 + lane % 4, q = lane % 16 / 4;
    const struct lora_run run =
        lora_run_of(c.lora.page_elems, (uint32_t)w.entry->a, w.rank, lora_tiles(w.in), block);
    const T *from = lora_tile(c.lora, pages, run, tile) + lane * 2;
    for (uint32_t r = warp; r < ranks; r += LORA_WARPS) {
        const uint32_t row = rank_row(r, ranks);
        copy_async_4(shared_address(stage + a_place(row, chunk) + q * 2),
                     from + r * KERN_TILE_COLUMNS);
    }
}

/* ---- a tile ------------------------------------------------------------------------------- */

/* A lane's ranks of rows l / 4 and l / 4 + 8 of both sixteens of a warp's rows. */
struct merge_b {
    uint4 low[2], high[2];
};

template <typename T>
static __device__ __forceinline__ void b_fetch(const merge_call &c, const merge_work<T> &w,
                                               const struct lora_pages<T> &pages, uint32_t block,
                                               merge_b &b) {
    const uint32_t first = w.row + threadIdx.x / 32 * 32;
    const uint32_t tile = first / KERN_TILE_COLUMNS, tiles = lora_tiles(w.out);
    if (tile >= tiles) { /* nothing is stored there */
        b = {};
        return;
    }
    const uint32_t ranks = min(w.rank - block * KERN_BLOCK_RANKS, (uint32_t)KERN_BLOCK_RANKS);
    const struct lora_run run =
        lora_run_of(c.lora.page_elems, (uint32_t)w.entry->b, w.rank, tiles, block);
    const T *at = lora_tile(c.lora, pages, run, tile) +
                  (first % KERN_TILE_COLUMNS + threadIdx.x % 32 / 4) * ranks;
    WITH_RANKS(KERN_BLOCK_RANKS, ranks, {
#pragma unroll
        for (uint32_t m = 0; m < 2; m++) {
            b.low[m] = lane_ranks<load_tile_again, RANKS>(at + m * 16 * RANKS);
            b.high[m] = lane_ranks<load_tile_again, RANKS>(at + (m * 16 + 8) * RANKS);
        }
    });
}

/* sum [sixteen rows][32 columns][instruction] += B A of a block of ranks. */
template <typename T>
static __device__ __forceinline__ void multiply_item(const merge_b &b, const T *stage,
                                                     uint32_t ranks, float (&sum)[2][2][4][4]) {
    const uint32_t lane = threadIdx.x % 32, half = lane / 8 % 2;
#pragma unroll
    for (uint32_t k = 0; k < 2; k++) {
        if (k * 16 < ranks) {
            const bool both = k * 16 + 8 < ranks; /* else rows k + 8 … + 15 hold anything */
#pragma unroll
            for (uint32_t g = 0; g < 8; g += 2) {
                const uint32_t row = k * 16 + half * 8 + lane % 8;
                uint32_t a[4];
                ldmatrix_x4_trans(a, shared_address(stage + a_place(row, g + lane / 16)));
                a[1] = both ? a[1] : 0;
                a[3] = both ? a[3] : 0;
#pragma unroll
                for (uint32_t m = 0; m < 2; m++) {
                    const uint32_t rows[4] = {
                        k == 0 ? b.low[m].x : b.low[m].z, k == 0 ? b.high[m].x : b.high[m].z,
                        k == 0 ? b.low[m].y : b.low[m].w, k == 0 ? b.high[m].y : b.high[m].w};
                    const uint32_t first[2] = {a[0], a[1]}, second[2] = {a[2], a[3]};
                    mma_16816<T>(sum[m][g / 4][g % 4], rows, first);
                    mma_16816<T>(sum[m][g / 4][g % 4 + 1], rows, second);
                }
            }
        }
    }
}

/* The tile's W + scale · sum, and sum is 0 again. */
template <typename T>
static __device__ __forceinline__ void tile_store(const merge_work<T> &w, uint32_t tile,
                                                  const T *stage, float (&sum)[2][2][4][4]) {
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (uint32_t m = 0; m < 2; m++) {
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            const uint32_t row = warp * 32 + m * 16 + h * 8 + lane / 4;
#pragma unroll
            for (uint32_t s = 0; s < 2; s++) {
                const uint32_t chunk = s * 4 + lane % 4;
                const uint32_t column = tile * KERN_TILE_COLUMNS + chunk * 8;
                uint4 bits = *reinterpret_cast<const uint4 *>(stage + w_place(row, chunk));
                if (w.rank != 0) {
                    float value[8];
                    eight_floats<T>(bits, value);
#pragma unroll
                    for (uint32_t g = 0; g < 4; g++) {
#pragma unroll
                        for (uint32_t e = 0; e < 2; e++) {
                            float &part = sum[m][s][g][2 * h + e];
                            value[2 * g + e] = fmaf(w.scale, part, value[2 * g + e]);
                            part = 0;
                        }
                    }
                    bits = eight_bits<T>(value);
                }
                if (w.row + row < w.out && column < w.in) {
                    T *to = w.to + (uint64_t)(w.row + row) * w.in + column;
                    __stcs(reinterpret_cast<uint4 *>(to), bits);
                }
            }
        }
    }
}

/* ---- the kernel --------------------------------------------------------------------------- */

template <typename T>
static __device__ __forceinline__ merge_work<T> merge_work_of(const merge_call &c) {
    uint32_t m = 0;
#pragma unroll
    for (uint32_t i = 1; i < KERN_MODULES; i++) {
        m = blockIdx.x >= c.matrices[i].first ? i : m;
    }
    const struct merge_matrix &matrix = c.matrices[m];
    const uint32_t index = blockIdx.x - matrix.first, tiles = lora_tiles(matrix.in);
    merge_work<T> w;
    w.from = static_cast<const T *>(matrix.from);
    w.to = static_cast<T *>(matrix.to);
    w.out = matrix.out;
    w.in = matrix.in;
    w.row = index / matrix.parts * MERGE_ROWS;
    w.tile = index % matrix.parts * MERGE_TILES;
    w.tiles = min(tiles - w.tile, (uint32_t)MERGE_TILES);
    w.entry = lora_entry(c.lora, c.adapter, m);
    w.projection = m;
    w.rank = w.entry->rank;
    w.scale = w.entry->scale;
    w.blocks = max((w.rank + KERN_BLOCK_RANKS - 1) / KERN_BLOCK_RANKS, 1u);
    return w;
}

template <typename T>
static __global__ void __launch_bounds__(LORA_THREADS, MERGE_BLOCKS)
    merge_kernel(const __grid_constant__ struct merge_call c) {
    extern __shared__ __align__(128) unsigned char shared[];
    merge_stage<T> *stages = reinterpret_cast<merge_stage<T> *>(shared);
    launch_next();
    if (!c.waits) {
        launch_wait();
    }
    const merge_work<T> w = merge_work_of<T>(c);
    const struct lora_pages<T> pages = {
        static_cast<const T *>(c.plane),
            c.lora.tables.adapter_pages + (uint64_t)c.adapter *c.lora.tables.adapter_page_row,
            c.adapter
    };
    const uint32_t items = w.tiles * w.blocks;
    uint32_t next_tile = 0, next_block = 0, next = 0; /* to be fetched */
    auto fetch = [&]() {
        if (next < items) {
            if (next_block == 0) {
                w_fetch(w, w.tile + next_tile, &stages[next_tile % MERGE_STAGES].w[0][0]);
            }
            if (w.rank != 0) {
                a_fetch(c, w, pages, w.tile + next_tile, next_block,
                        &stages[next % MERGE_STAGES].a[0][0]);
            }
            next++;
            next_block++;
            if (next_block == w.blocks) {
                next_block = 0;
                next_tile++;
            }
        }
        copy_async_commit(); /* an empty group, too, is one */
    };
    for (uint32_t i = 0; i < MERGE_STAGES - 1; i++) {
        fetch();
    }
    merge_b b = {};
    float sum[2][2][4][4] = {};
    for (uint32_t item = 0, tile = 0, block = 0; item < items; item++) {
        if (w.rank != 0 && (item == 0 || w.blocks > 1)) {
            b_fetch(c, w, pages, block, b);
        }
        copy_async_wait<MERGE_STAGES - 2>();
        __syncthreads(); /* the item is there, and nobody reads the one before it any more */
        fetch();
        if (w.rank != 0) {
            multiply_item<T>(b, &stages[item % MERGE_STAGES].a[0][0],
                             w.rank - block * KERN_BLOCK_RANKS, sum);
        }
        if (++block == w.blocks) {
            tile_store(w, w.tile + tile, &stages[tile % MERGE_STAGES].w[0][0], sum);
            block = 0;
            tile++;
        }
    }
    if (c.waits) {
        launch_wait();
    }
}

/* ---- launches ----------------------------------------------------------------------------- */

/* Fills c->matrices for a layer; returns the blocks of threads. */
static uint32_t matrices_set(const struct kern_device *d, uint32_t layer, struct merge_call *c) {
    static const enum cuda_linear linears[KERN_MODULES] = {
        CUDA_QKV, CUDA_QKV, CUDA_QKV, CUDA_O, CUDA_GATE_UP, CUDA_GATE_UP, CUDA_DOWN};
    const uint32_t before[KERN_MODULES] = {
        0, d->q_cols, d->q_cols + d->kv_cols, 0, 0, d->shape.intermediate, 0};
    const struct cuda_layer *l = &d->layers[layer];
    uint32_t blocks = 0;
    for (uint32_t m = 0; m < KERN_MODULES; m++) {
        const enum kern_module module = static_cast<enum kern_module>(m);
        const uint32_t in = kern_module_in(&d->shape, module),
                       out = kern_module_out(&d->shape, module);
        const uint64_t at = (uint64_t)before[m] * in * sizeof(uint16_t);
        const uint32_t parts = (lora_tiles(in) + MERGE_TILES - 1) / MERGE_TILES;
        c->matrices[m] = {static_cast<const unsigned char *>(l->given[linears[m]]) + at,
                          static_cast<unsigned char *>(cuda_layer_matrix(l, linears[m])) + at,
                          out,
                          in,
                          blocks,
                          parts};
        blocks += (out + MERGE_ROWS - 1) / MERGE_ROWS * parts;
    }
    return blocks;
}

template <typename T> static void layer_merge(struct kern_device *d, uint32_t layer) {
    struct merge_call c = {};
    c.lora.tables = d->tables;
    c.lora.layer = layer;
    c.lora.entry = layer * KERN_MODULES;
    c.lora.page_elems = (uint32_t)d->page_elems;
    c.plane = static_cast<const T *>(d->planes) + layer * d->page_count * d->page_elems;
    c.adapter = d->merge_next;
    c.waits = layer > 0;
    const unsigned blocks = matrices_set(d, layer, &c);
    const size_t bytes = MERGE_STAGES * sizeof(merge_stage<T>);
    if (layer == 0) { /* behind all that reads the weights, or wrote the tables */
        merge_kernel<T><<<blocks, LORA_THREADS, bytes, d->stream>>>(c);
        CUDA_LAUNCHED(d, "merge");
    } else {
        cuda_launch_early(d, "merge", merge_kernel<T>,
                          cuda_shape{dim3(blocks), LORA_THREADS, bytes, 1}, c);
    }
}

extern "C" void cuda_merge_layer(struct kern_device *d, uint32_t layer) {
    CUDA_WITH_ELEM(d, T, layer_merge<T>(d, layer));
}

extern "C" enum err cuda_merge_kernel_open(struct kern_device *d, struct err_text *why) {
    CUDA_WITH_ELEM(d, T,
                   CU_TRY(why, cudaFuncSetAttribute(merge_kernel<T>,
                                                    cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                    MERGE_STAGES * sizeof(merge_stage<T>))));
    return ERR_OK;
}
