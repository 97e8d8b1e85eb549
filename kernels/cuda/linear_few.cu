/* linear_few.cu - the linears of few rows, bound by how fast the weights come.
 *
 *   y [rows][out] (+)= x [rows][in] Wᵀ; W [out][in], x and y 16-bit, or y f32; up to 16 rows
 *
 * Work: outputs in tiles of 16, shared out evenly over blocks, one on each multiprocessor. A block
 * takes up to GROUP of its tiles at a time; its warps split `in` into chunks of 128 or 64, warp w
 * taking chunks w, w + 8, …. A warp walks the items [16][chunk] of a chunk, then those of its next
 * one, through a ring of its own in shared memory (cp.async), on from group to group, so that some
 * 130 KB a multiprocessor are always on their way. W's rows are the side of 16 of mma.m16n8k16,
 * rows of x the side of 8. Elements of `in` may be summed in any order if x keeps to the same: a
 * lane takes 16 bytes of a row of W, and of x, for two instructions at once, and ldmatrix is not
 * needed. x comes from the second-level cache into registers, a chunk ahead. At a group's end the
 * warps' sums meet in shared memory, in a fixed order.
 *
 * Every block reads x once a group. That counts with 16 rows, since the second-level cache brings
 * no more than 5.1 TB/s in all on an H200, W included: hence large groups, and where blocks have
 * few tiles two of them (a cluster) share the tiles of both, each taking half of `in`.
 *
 * The weights do not wait for the kernel in front: on sm_90 a block fills its ring before
 * launch_wait(), while norms, activation or attention run, so that the memory's queue seldom drains
 * between linears. The ring is so large that no two blocks fit on a multiprocessor: with smaller
 * ones the next linear's blocks crowded where room came free first.
 *
 * Bytes: 2 · in · out, and blocks × 2 · rows · in a group (half with clusters) of x from the
 * second-level cache; FLOP: 2 · rows · in · out (8 or 16 rows computed always). Sums in f32; y is
 * rounded once, with what it is added to. A row's bits depend on the shape, the GPU and on whether
 * there are more than 8 rows, not on the other rows.
 *
 * Measured on an H200 with Llama-3.1-8B's linears, 1 row, one behind the other, against the
 * library's best: q,k,v 12.0 µs, o 8.8 (13.3), gate and up 52 (58), down 26.6 (32): 3.8 to 4.5
 * TB/s. Tried and lost: rings for two blocks a multiprocessor (a layer took 127 µs, not 106), 4
 * warps (115), fetches into the second-level cache by cp.async.bulk.prefetch (twice the time),
 * cp.async that fetches 256 bytes there (4% more), clusters with 1 to 8 rows (10% more). */
#include "kernels/cuda/cluster.cuh"

enum {
    WARP = 32,
    WARPS = 8,
    THREADS = WARPS * WARP,
    TILE = 16, /* outputs of an instruction */
    EIGHT = 8, /* rows of x of an instruction; elements of 16 bytes */
    GROUP = 8, /* tiles at a time, at most */
    STEP = 32, /* elements that four lanes take with one load each */
    PART_BYTES = WARP * sizeof(float4),
};

/* A kernel's shape: rows of x, by eights; blocks that share tiles. */
template <int EIGHTS_, int BLOCKS_> struct few_shape {
    static constexpr int EIGHTS = EIGHTS_, BLOCKS = BLOCKS_;
    static constexpr int CHUNK = 128 / EIGHTS; /* elements of a row of W in an item */
    static constexpr int SLOTS = 5 * EIGHTS;
    static constexpr int STEPS = CHUNK / STEP;
    static constexpr int ITEM_BYTES = TILE * CHUNK * 2;
    static constexpr int RING_BYTES = WARPS * SLOTS * ITEM_BYTES;
    static constexpr int PIECES = CHUNK / EIGHT; /* of 16 bytes, in an item's row */
    static constexpr int COPY_ROWS = WARP / PIECES;
    static constexpr int COPIES = TILE / COPY_ROWS; /* of a lane, for an item */
    static constexpr int SHARES = WARPS * BLOCKS;   /* of a row of W */
    static constexpr int PAIRS = GROUP * EIGHTS;    /* of a tile and eight rows */
    static constexpr int OWN = PAIRS / BLOCKS;      /* pairs whose sums meet in a block */
    static constexpr int OWN_WARP = (OWN + WARPS - 1) / WARPS;
    static constexpr int SHARED_BYTES = RING_BYTES + OWN * SHARES * PART_BYTES;
    static_assert(PIECES % 8 == 0 && WARP % PIECES == 0,
                  "an odd row's pieces are swapped by halves");
    static_assert(2 * SHARED_BYTES > 228 * 1024, "one block a multiprocessor");
    static_assert(SHARED_BYTES <= 227 * 1024, "room for a block");

    /* Byte of a piece of an item's row. A lane's loads of two neighbouring rows meet in no bank. */
    static __device__ __forceinline__ uint32_t item_at(uint32_t row, uint32_t piece) {
        return row * CHUNK * 2 + ((piece ^ (row & 1) << 2) * 16);
    }
};

/* ---- items -------------------------------------------------------------------------------- */

/* Tiles of the group that begins with `left` to go; the last groups are alike. */
static __device__ __forceinline__ uint32_t group_of(uint32_t left) {
    const uint32_t groups = (left + GROUP - 1) / GROUP;
    return groups == 0 ? 0 : (left + groups - 1) / groups;
}

/* Where a warp's copies are: some items ahead of its sums. */
struct few_cursor {
    uint32_t tile, count; /* the group */
    uint32_t round, item; /* the warp's chunk, the tile of it */
};

static __device__ __forceinline__ void cursor_next(struct few_cursor *c, uint32_t rounds,
                                                   uint32_t end) {
    if (++c->item < c->count) {
        return;
    }
    c->item = 0;
    if (++c->round < rounds) {
        return;
    }
    c->round = 0;
    c->tile += c->count;
    c->count = group_of(end - c->tile);
}

/* Zeros where W ends. */
template <typename T, class S>
static __device__ __forceinline__ void item_copy(const struct cuda_product &p, uint32_t to,
                                                 uint32_t first_row, uint32_t first) {
    const uint32_t lane = threadIdx.x % WARP, piece = lane % S::PIECES;
    const uint32_t k = first + piece * EIGHT;
    const T *w = static_cast<const T *>(p.w);
#pragma unroll
    for (int i = 0; i < S::COPIES; i++) {
        const uint32_t row = lane / S::PIECES + i * S::COPY_ROWS;
        const bool valid = k < p.in && first_row + row < p.out;
        copy_async_16(to + S::item_at(row, piece),
                      valid ? w + (uint64_t)(first_row + row) * p.in + k : w, valid);
    }
}

/* Of all rows, the lane's share of a chunk; zeros where x ends. */
template <typename T, class S>
static __device__ __forceinline__ void rows_load(const struct cuda_product &p, uint32_t first,
                                                 uint4 (&to)[S::EIGHTS][S::STEPS]) {
    const uint32_t lane = threadIdx.x % WARP;
    const T *x = static_cast<const T *>(p.x);
#pragma unroll
    for (int n = 0; n < S::EIGHTS; n++) {
        const uint32_t row = n * EIGHT + lane / 4;
#pragma unroll
        for (int s = 0; s < S::STEPS; s++) {
            const uint32_t k = first + s * STEP + lane % 4 * EIGHT;
            to[n][s] = row < p.rows && k < p.in
                           ? __ldcg(reinterpret_cast<const uint4 *>(x + (uint64_t)row * p.in + k))
                           : make_uint4(0, 0, 0, 0);
        }
    }
}

static __device__ __forceinline__ uint4 shared_16(uint32_t address) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
}

template <typename T, class S>
static __device__ __forceinline__ void item_add(float (&sum)[S::EIGHTS][4], uint32_t item,
                                                const uint4 (&x)[S::EIGHTS][S::STEPS]) {
    const uint32_t row = threadIdx.x % WARP / 4, piece = threadIdx.x % 4;
#pragma unroll
    for (int s = 0; s < S::STEPS; s++) {
        const uint4 low = shared_16(item + S::item_at(row, s * 4 + piece));
        const uint4 high = shared_16(item + S::item_at(row + 8, s * 4 + piece));
        const uint32_t first[4] = {low.x, high.x, low.y, high.y};
        const uint32_t second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
        for (int n = 0; n < S::EIGHTS; n++) {
            const uint32_t x_first[2] = {x[n][s].x, x[n][s].y};
            const uint32_t x_second[2] = {x[n][s].z, x[n][s].w};
            mma_16816<T>(sum[n], first, x_first);
            mma_16816<T>(sum[n], second, x_second);
        }
    }
}

/* ---- a group's results -------------------------------------------------------------------- */

/* Of a pair, a tile and eight rows of x, all warps' sums meet in block pair % BLOCKS of those that
 * share tiles, and there in warp pair / BLOCKS % WARPS. A lane has four elements, as mma leaves
 * them. */
struct few_place {
    uint32_t out, row; /* of element 0 */
    bool taken;
};

template <class S>
static __device__ __forceinline__ struct few_place place_of(uint32_t pair, uint32_t tile,
                                                            uint32_t count) {
    const uint32_t lane = threadIdx.x % WARP;
    return {(tile + pair / S::EIGHTS) * TILE + lane / 4, pair % S::EIGHTS * EIGHT + lane % 4 * 2,
            pair / S::EIGHTS < count};
}

/* All threads of the blocks that share tiles. */
template <int BLOCKS> static __device__ __forceinline__ void blocks_sync() {
    if (BLOCKS == 1) {
        __syncthreads();
        return;
    }
#if __CUDA_ARCH__ >= 900
    cluster_meet();
#endif
}

/* A warp's part of a pair's sums goes to where they meet. */
template <class S>
static __device__ __forceinline__ void part_put(float4 *to, uint32_t pair, const float (&v)[4]) {
    if (S::BLOCKS == 1) {
        *to = make_float4(v[0], v[1], v[2], v[3]);
        return;
    }
#if __CUDA_ARCH__ >= 900
    uint32_t address = shared_address(to);
    asm volatile("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(address) : "r"(pair % S::BLOCKS));
    asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(v[0]),
                 "f"(v[1]), "f"(v[2]), "f"(v[3])
                 : "memory");
#endif
}

/* The element's index in y; false: y has none. */
static __device__ __forceinline__ bool
element_at(const struct cuda_product &p, const struct few_place &at, int element, uint64_t *index) {
    const uint32_t out = at.out + element / 2 * 8, row = at.row + element % 2;
    *index = (uint64_t)row * p.y_row + out;
    return at.taken && out < p.out && row < p.rows;
}

/* What a pair is added to. */
template <typename T>
static __device__ __forceinline__ float4 pair_before(const struct cuda_product &p,
                                                     const struct few_place &at) {
    float v[4] = {};
#pragma unroll
    for (int e = 0; e < 4; e++) {
        uint64_t index;
        if (element_at(p, at, e, &index) && p.add) {
            v[e] = elem_float(static_cast<const T *>(p.y)[index]);
        }
    }
    return make_float4(v[0], v[1], v[2], v[3]);
}

/* `parts`: the pair's, of each share. */
template <typename T, class S>
static __device__ __forceinline__ void pair_store(const struct cuda_product &p,
                                                  const struct few_place &at, float4 before,
                                                  const float4 *parts) {
    float v[4] = {before.x, before.y, before.z, before.w};
#pragma unroll
    for (int share = 0; share < S::SHARES; share++) {
        const float4 part = parts[share * WARP + threadIdx.x % WARP];
        v[0] += part.x;
        v[1] += part.y;
        v[2] += part.z;
        v[3] += part.w;
    }
#pragma unroll
    for (int e = 0; e < 4; e++) {
        uint64_t index;
        if (!element_at(p, at, e, &index)) {
            continue;
        }
        if (p.floats) {
            static_cast<float *>(p.y)[index] = v[e];
        } else {
            static_cast<T *>(p.y)[index] = elem_from<T>(v[e]);
        }
    }
}

/* ---- the kernel --------------------------------------------------------------------------- */

template <typename T, class S>
static __global__ void __launch_bounds__(THREADS, 1) few_kernel(const struct cuda_product p) {
    extern __shared__ __align__(128) unsigned char room[];
    float4 *parts = reinterpret_cast<float4 *>(room + S::RING_BYTES); /* [OWN][SHARES][WARP] */
    const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const uint32_t block = blockIdx.x % S::BLOCKS, share = block * WARPS + warp;
    const uint32_t ring = shared_address(room) + warp * S::SLOTS * S::ITEM_BYTES;
    const uint64_t tiles = (p.out + TILE - 1) / TILE;
    const uint32_t team = blockIdx.x / S::BLOCKS, teams = gridDim.x / S::BLOCKS;
    const uint32_t begin = static_cast<uint32_t>(tiles * team / teams);
    const uint32_t end = static_cast<uint32_t>(tiles * (team + 1) / teams);
    const uint32_t rounds = (p.in + S::CHUNK * S::SHARES - 1) / (S::CHUNK * S::SHARES);

    struct few_cursor c = {begin, group_of(end - begin), 0, 0};
    /* Where nothing is left, an empty group of copies. */
    auto copy_next = [&](uint32_t slot) {
        if (c.tile < end) {
            item_copy<T, S>(p, ring + slot * S::ITEM_BYTES, (c.tile + c.item) * TILE,
                            (c.round * S::SHARES + share) * S::CHUNK);
            cursor_next(&c, rounds, end);
        }
        copy_async_commit();
    };
#pragma unroll 1
    for (uint32_t slot = 0; slot < S::SLOTS - 1; slot++) {
        copy_next(slot);
    }
    launch_next();
    launch_wait();

    uint4 now[S::EIGHTS][S::STEPS], ahead[S::EIGHTS][S::STEPS];
    rows_load<T, S>(p, share * S::CHUNK, now);
    uint32_t slot = 0;
    for (uint32_t tile = begin, count; tile < end; tile += count) {
        count = group_of(end - tile);
        float sums[GROUP][S::EIGHTS][4] = {};
        float4 before[S::OWN_WARP];
#pragma unroll
        for (int i = 0; i < S::OWN_WARP; i++) {
            const uint32_t pair = (warp + i * WARPS) * S::BLOCKS + block;
            before[i] = pair_before<T>(p, place_of<S>(pair, tile, count));
        }
#pragma unroll 1
        for (uint32_t round = 0; round < rounds; round++) {
            const uint32_t next = round + 1 < rounds ? round + 1 : 0; /* of the next group */
            rows_load<T, S>(p, (next * S::SHARES + share) * S::CHUNK, ahead);
#pragma unroll
            for (int g = 0; g < GROUP; g++) {
                if (g < count) {
                    copy_async_wait<S::SLOTS - 2>();
                    __syncwarp(); /* all lanes' copies landed, and all have read the slot before */
                    copy_next(slot == 0 ? S::SLOTS - 1 : slot - 1);
                    item_add<T, S>(sums[g], ring + slot * S::ITEM_BYTES, now);
                    slot = slot + 1 == S::SLOTS ? 0 : slot + 1;
                }
            }
#pragma unroll
            for (int i = 0; i < S::EIGHTS * S::STEPS; i++) {
                now[i / S::STEPS][i % S::STEPS] = ahead[i / S::STEPS][i % S::STEPS];
            }
        }
        blocks_sync<S::BLOCKS>(); /* the last group's parts were read */
#pragma unroll
        for (int pair = 0; pair < S::PAIRS; pair++) {
            if (pair / S::EIGHTS < count) {
                part_put<S>(&parts[(pair / S::BLOCKS * S::SHARES + share) * WARP + lane], pair,
                            sums[pair / S::EIGHTS][pair % S::EIGHTS]);
            }
        }
        blocks_sync<S::BLOCKS>();
#pragma unroll
        for (int i = 0; i < S::OWN_WARP; i++) {
            const uint32_t own = warp + i * WARPS, pair = own * S::BLOCKS + block;
            const struct few_place at = place_of<S>(pair, tile, count);
            if (at.taken) {
                pair_store<T, S>(p, at, before[i], parts + own * S::SHARES * WARP);
            }
        }
    }
}

/* ---- launches ----------------------------------------------------------------------------- */

using few_one = few_shape<1, 1>;
using few_two = few_shape<2, 1>;
using few_two_shared = few_shape<2, 2>;

template <typename T, class S> static cudaError_t few_allow(void) {
    const cudaError_t result = cudaFuncSetAttribute(
        few_kernel<T, S>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::SHARED_BYTES);
    return result != cudaSuccess
               ? result
               : cudaFuncSetAttribute(few_kernel<T, S>,
                                      cudaFuncAttributePreferredSharedMemoryCarveout,
                                      cudaSharedmemCarveoutMaxShared);
}

template <typename T> static enum err few_open(struct err_text *why) {
    CU_TRY(why, (few_allow<T, few_one>()));
    CU_TRY(why, (few_allow<T, few_two>()));
    CU_TRY(why, (few_allow<T, few_two_shared>()));
    return ERR_OK;
}

extern "C" enum err cuda_few_open(struct kern_device *d, struct err_text *why) {
    int room = 0;
    CU_TRY(why, cudaDeviceGetAttribute(&room, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    d->few_linears = d->launches_early && room >= few_two::SHARED_BYTES;
    if (!d->few_linears) {
        return ERR_OK;
    }
    return d->elem == KERN_F16 ? few_open<__half>(why) : few_open<__nv_bfloat16>(why);
}

template <typename T, class S>
static void few_launch(struct kern_device *d, const struct cuda_product *p) {
    const uint32_t tiles = (p->out + TILE - 1) / TILE;
    const uint32_t most = static_cast<uint32_t>(d->sm_count) / S::BLOCKS;
    const dim3 grid((tiles < most ? tiles : most) * S::BLOCKS);
    cuda_launch_early(d, "linear_few", few_kernel<T, S>,
                      cuda_shape{grid, THREADS, S::SHARED_BYTES, S::BLOCKS}, *p);
}

extern "C" void cuda_linear_few(struct kern_device *d, const struct cuda_product *p) {
    const uint32_t tiles = (p->out + TILE - 1) / TILE;
    if (p->rows <= EIGHT) {
        CUDA_WITH_ELEM(d, T, (few_launch<T, few_one>(d, p)));
    } else if (tiles > GROUP / 2 * static_cast<uint32_t>(d->sm_count)) {
        CUDA_WITH_ELEM(d, T, (few_launch<T, few_two>(d, p)));
    } else { /* two blocks need one group for their tiles */
        CUDA_WITH_ELEM(d, T, (few_launch<T, few_two_shared>(d, p)));
    }
}
