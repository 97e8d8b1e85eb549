/* attention_prefill.cu - causal attention of chunks over the pages of their sequences.
 *
 * For each token at position p and each query head: softmax(q · Kᵀ / √head_dim) · V over positions
 * first .. p, first = 0 or p + 1 − window. q in d->qkv [rows][qkv_cols], roped; out d->attended
 * [rows][q_cols]; K and V in pages (kernels.h), the chunk's own among them. Elements are f16 or
 * bf16; scores, sums and the output's accumulators are f32, probabilities are rounded to the
 * element type before they meet V. head_dim 32, 64, 80, 96 or 128; 16-byte pieces everywhere.
 *
 * Work: a plan's item is a tile of up to 128 consecutive tokens of one chunk. A job is an item and
 * as many query heads of one KV head as fit: 128 rows, row = token × heads + head, so that a long
 * chunk has one head a job and a short one shares the K and V it reads among the heads of the
 * group. The grid is fixed (some blocks for each multiprocessor, a bucket's launch never changes)
 * and takes the jobs, heaviest first, forth and back: block b of n has jobs b, 2n − 1 − b, 2n + b …
 *
 * A block has 4 warps of 32 rows (16 where the job has 64 rows or fewer). It walks over tiles of 64
 * keys that lie at multiples of 64 from position 0. K and V of the next tile travel into shared
 * memory (cp.async, two stages) while this one is computed, and the page numbers of the one after
 * while these travel. A warp has its scores [rows][64] and its output [rows][head_dim] in
 * registers, in the layout of mma.m16n8k16; scores become the A operand of the second product
 * without leaving them. 32 rows a warp halve what is read from shared memory for a product: with 16
 * the reads of K and V, not the tensor cores, would be the bound. Masks are applied in the tiles
 * that a border crosses; a warp skips tiles that none of its rows sees.
 *
 * The running maximum is let fall behind by up to 2⁸ before the output is rescaled: exp2 of what
 * exceeds it stays far inside f16, and most tiles need no rescaling at all.
 *
 * What a row gets depends on its own q and on the keys it sees, tile by tile from position 0: not
 * on its place in the tile, nor on where its prompt was cut, nor on anyone else in the batch.
 *
 * Cost: 4 · heads · head_dim · positions FLOP a token and layer; K and V of a sequence are read
 * once for each job over them, 2 · 64 · head_dim elements for 128 × 64 scores, mostly from the
 * second-level cache, since the heads of a KV head are neighbours in time. Shared memory at
 * head_dim 128: 97 KiB, two blocks on a multiprocessor of sm_90.
 * Tolerance: against exact arithmetic on the same 16-bit inputs, 2⁻⁸ (bf16) or 2⁻¹¹ (f16) of
 * Σ probability · |V| + |out|: a rounding of each probability, one of the result. */
#include <math.h>

#include "kernels/cuda/attention_job.cuh"
#include "kernels/cuda/attention_tile.cuh"

/* nvcc 13.0 does not see the launch bounds of a template's instances. */

namespace {

enum {
    WARPS = 4,
    THREADS = 32 * WARPS,
    STAGES = 2,             /* key tiles in shared memory */
    HALF_ROWS = 16 * WARPS, /* rows of a job whose warps have 16 each */
    WIDE_BLOCKS = 2,        /* blocks on a multiprocessor, head_dim above 64 */
    NARROW_BLOCKS = 3,      /* and up to it */
    NARROW_DIM = 64,
};
static_assert(ROWS == 2 * HALF_ROWS, "a job's rows are shared out among the warps");
static_assert(THREADS == STAGES * KEYS, "a thread looks up the page of one key of one stage");

constexpr int blocks_per_sm(int head_dim) {
    return head_dim <= NARROW_DIM ? NARROW_BLOCKS : WIDE_BLOCKS;
}

/* ---- shared memory ------------------------------------------------------------------------ */

/* What the rows of a warp see. */
struct sight {
    uint32_t any_first, any_last; /* positions that one of them sees */
    uint32_t all_first, all_last; /* that all of them see */
};

/* What a block shares beside its tiles, so that it takes no registers. */
struct desk {
    uint64_t key_rows[STAGES][KEYS]; /* addresses of rows of K */
    struct job job;
    struct cursor cursor; /* of warp 0 */
    struct sight sight[WARPS];
};

/* From the front: q, then the stages of K, then those of V, then the desk. */
template <int D> struct shared {
    static constexpr uint32_t K = ROWS * tile<D>::ROW_BYTES;
    static constexpr uint32_t V = K + STAGES * tile<D>::KEY_BYTES;
    static constexpr uint32_t DESK = V + STAGES * tile<D>::KEY_BYTES;
    static constexpr uint32_t BYTES = DESK + sizeof(struct desk);
};

/* ---- loads -------------------------------------------------------------------------------- */

/* threadIdx.x, of which the compiler derives nothing ahead: places in tiles that were worked out
 * before the loop over the keys would take the registers that the loop needs. */
__device__ __forceinline__ uint32_t thread_here() {
    uint32_t thread = threadIdx.x;
    asm volatile("" : "+r"(thread));
    return thread;
}

/* q of the job's rows; rows past the end are zeros. */
template <typename T, int D, int MT>
__device__ __forceinline__ void load_q(const struct params &p, const struct job job, uint32_t to) {
    constexpr uint32_t PIECES = tile<D>::PIECES;
    const T *q = static_cast<const T *>(p.qkv);
#pragma unroll
    for (uint32_t i = 0; i < MT * HALF_ROWS * PIECES / THREADS; i++) {
        uint32_t index = threadIdx.x + i * THREADS, row = index / PIECES, piece = index % PIECES;
        uint32_t token = row_token(job, row), head = job.head_begin + row - token * job.heads;
        bool valid = row < job.rows;
        const T *from = q + static_cast<uint64_t>(job.token_begin + token) * p.qkv_cols + head * D;
        copy_async_16(to + tile<D>::at(row, piece), (valid ? from : q) + piece * PIECE, valid);
    }
}

/* The tile of keys from `key_begin` on: K and V, into the stage that its number says. Keys that no
 * row sees are zeros: what lies there was maybe never written, and a probability of 0 does not undo
 * a NaN. */
template <int D>
__device__ __forceinline__ void load_keys(const struct params &p, const struct desk &desk,
                                          uint32_t key_begin, uint32_t base) {
    constexpr uint32_t PIECES = tile<D>::PIECES;
    const uint32_t stage = key_begin / KEYS % STAGES, to = base + stage * tile<D>::KEY_BYTES;
    const uint32_t first = desk.job.first, count = desk.job.last - first;
    const uint32_t thread = thread_here();
    const uint32_t v_bytes = (p.kv_heads * D * ELEM_BYTES) << p.page_shift; /* from K to V */
#pragma unroll
    for (uint32_t i = 0; i < KEYS * PIECES / THREADS; i++) {
        uint32_t index = thread + i * THREADS, row = index / PIECES, piece = index % PIECES;
        const char *from = reinterpret_cast<const char *>(desk.key_rows[stage][row]) + piece * 16;
        bool valid = key_begin + row - first <= count;
        copy_async_16(to + shared<D>::K + tile<D>::at(row, piece), from, valid);
        copy_async_16(to + shared<D>::V + tile<D>::at(row, piece), from + v_bytes, valid);
    }
    copy_async_commit();
}

/* ---- rows --------------------------------------------------------------------------------- */

/* −∞ where a row does not see a key. `row`: this lane's first. */
template <int MT>
__device__ __forceinline__ void mask(float score[MT][KEYS / 8][4], const struct params &p,
                                     const struct job job, uint32_t row, uint32_t key_begin) {
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t last = job.position + row_token(job, row + 16 * m + 8 * half);
            uint32_t first = position_first(p, last);
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    uint32_t key = key_begin + 8 * n + 2 * (threadIdx.x % 4) + i;
                    if (key - first > last - first) {
                        score[m][n][2 * half + i] = -INFINITY;
                    }
                }
            }
        }
    }
}

/* Divides by the sums and writes the rows, by way of the warp's own part of q's shared memory so
 * that whole pieces are written. `row`: the warp's first. */
template <typename T, int D, int MT>
__device__ __forceinline__ void store(const struct params &p, const struct job job,
                                      const struct rows<D, MT> &r, char *q, uint32_t row) {
    constexpr uint32_t PIECES = tile<D>::PIECES;
    const uint32_t lane = thread_here() % 32;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = r.sum[m][half];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            float share = 1.0f / sum;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                const float *pair = &r.out[m][n][2 * half];
                uint32_t at = tile<D>::at(row + 16 * m + 8 * half + lane / 4, n) + 4 * (lane % 4);
                *reinterpret_cast<uint32_t *>(q + at) =
                    pair_bits<T>(pair[0] * share, pair[1] * share);
            }
        }
    }
    __syncwarp();
    T *attended = static_cast<T *>(p.attended);
#pragma unroll
    for (uint32_t i = 0; i < MT * 16 * PIECES / 32; i++) {
        uint32_t index = lane + 32 * i, at = row + index / PIECES, piece = index % PIECES;
        if (at < job.rows) {
            uint32_t token = row_token(job, at), head = job.head_begin + at - token * job.heads;
            T *to = attended + static_cast<uint64_t>(job.token_begin + token) * p.q_cols + head * D;
            *reinterpret_cast<uint4 *>(to + piece * PIECE) =
                *reinterpret_cast<const uint4 *>(q + tile<D>::at(at, piece));
        }
    }
}

/* ---- a job -------------------------------------------------------------------------------- */

/* Sends for q, the first tile of keys and the pages of the second. */
template <typename T, int D, int MT>
__device__ __forceinline__ void job_begin(const struct params &p, struct desk *desk,
                                          uint32_t base) {
    const struct job job = desk->job;
    const uint32_t key_begin = job.first / KEYS * KEYS, key = key_begin + threadIdx.x;
    const uint32_t page = key_page(p, job, key); /* as many threads as keys in all stages */
    load_q<T, D, MT>(p, job, base);
    desk->key_rows[key / KEYS % STAGES][key % KEYS] = key_row<D>(p, job, key, page);
    if (threadIdx.x % 32 == 0) {
        uint32_t row = threadIdx.x / 32 * MT * 16;
        uint32_t first = job.position + row_token(job, row);
        uint32_t last = job.position + row_token(job, row + MT * 16 - 1);
        bool idle = row >= job.rows; /* no key is so far that it sees it */
        desk->sight[threadIdx.x / 32] = {idle ? UINT32_MAX : position_first(p, first), last,
                                         position_first(p, last), first};
    }
    __syncthreads();
    load_keys<D>(p, *desk, key_begin, base);
}

template <typename T, int D, int MT>
__device__ __forceinline__ void job_run(const struct params &p, char *room) {
    struct desk *desk = reinterpret_cast<struct desk *>(room + shared<D>::DESK);
    const uint32_t base = shared_address(room), lane = threadIdx.x % 32;
    const uint32_t row = threadIdx.x / 32 * MT * 16; /* the warp's first */
    const corner<D> rows_first(lane, true), pieces_first(lane, false);

    job_begin<T, D, MT>(p, desk, base);
    struct rows<D, MT> r;
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                r.out[m][n][i] = 0;
            }
        }
        r.top[m][0] = r.top[m][1] = -INFINITY;
        r.sum[m][0] = r.sum[m][1] = 0;
    }
    for (uint32_t key = desk->job.first / KEYS * KEYS; key <= desk->job.last; key += KEYS) {
        copy_async_wait<0>();
        __syncthreads(); /* the tile is here for all, and nobody reads the one before any more */
        if (key + KEYS <= desk->job.last) {
            load_keys<D>(p, *desk, key + KEYS, base);
        }
        const uint32_t ahead = key + STAGES * KEYS + threadIdx.x % KEYS;
        const uint32_t page = threadIdx.x < KEYS ? key_page(p, desk->job, ahead) : 0;

        const struct sight sight = desk->sight[threadIdx.x / 32];
        if (key <= sight.any_last && key + KEYS > sight.any_first) {
            const uint32_t stage = base + key / KEYS % STAGES * tile<D>::KEY_BYTES;
            float score[MT][KEYS / 8][4];
            scores<T, D, MT>(score, base + row * tile<D>::ROW_BYTES, stage + shared<D>::K,
                             rows_first, pieces_first);
            if (key + KEYS - 1 > sight.all_last || key < sight.all_first) {
                mask<MT>(score, p, desk->job, row + lane / 4, key);
            }
            probabilities<D, MT>(score, &r, p.scale);
            weigh<T, D, MT>(r.out, score, stage + shared<D>::V, rows_first);
        }
        if (threadIdx.x < KEYS) {
            desk->key_rows[key / KEYS % STAGES][threadIdx.x] =
                key_row<D>(p, desk->job, ahead, page);
        }
    }
    if (row < desk->job.rows) {
        store<T, D, MT>(p, desk->job, r, room, row);
    }
}

template <typename T, int D>
__global__ void __launch_bounds__(THREADS, blocks_per_sm(D))
    prefill_kernel(const __grid_constant__ struct params p) {
    extern __shared__ uint4 prefill_shared[];
    char *room = reinterpret_cast<char *>(prefill_shared);
    struct desk *desk = reinterpret_cast<struct desk *>(room + shared<D>::DESK);
    if (threadIdx.x == 0) {
        desk->cursor = {0, 0, 0};
    }
    for (;;) {
        __syncthreads(); /* nobody is in the job before any more */
        if (threadIdx.x < 32) {
            struct cursor at = desk->cursor;
            uint32_t place = at.turn % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
            uint32_t number = at.turn++ * gridDim.x + place;
            bool found = job_find(p, number, &at);
            __syncwarp();
            if (threadIdx.x == 0) {
                desk->cursor = at;
                desk->job.rows = 0;
                if (found) {
                    desk->job = job_of<D>(p, at.items, number - at.jobs);
                }
            }
        }
        __syncthreads();
        if (desk->job.rows == 0) {
            break;
        }
        if (desk->job.rows <= HALF_ROWS) {
            job_run<T, D, 1>(p, room);
        } else {
            job_run<T, D, 2>(p, room);
        }
    }
}

/* ---- launcher ----------------------------------------------------------------------------- */

template <typename T, int D> void prefill_launch(struct kern_device *d, uint32_t layer) {
    struct params p = params_of(d, layer);
    unsigned grid = static_cast<unsigned>(d->sm_count * blocks_per_sm(D));
    prefill_kernel<T, D><<<grid, THREADS, shared<D>::BYTES, d->stream>>>(p);
    CUDA_LAUNCHED(d, "attention_prefill");
}

template <typename T, int D> enum err prefill_open(struct err_text *why) {
    CU_TRY(why,
           cudaFuncSetAttribute(prefill_kernel<T, D>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                static_cast<int>(shared<D>::BYTES)));
    CU_TRY(why, cudaFuncSetAttribute(prefill_kernel<T, D>,
                                     cudaFuncAttributePreferredSharedMemoryCarveout,
                                     cudaSharedmemCarveoutMaxShared));
    return ERR_OK;
}

} // namespace

extern "C" void cuda_attention_prefill(struct kern_device *d, uint32_t layer) {
    if (d->hopper_attention) {
        cuda_attention_hopper(d, layer);
        return;
    }
    CUDA_WITH_ELEM(d, T, {
        switch (d->shape.head_dim) {
        case 32:
            return prefill_launch<T, 32>(d, layer);
        case 64:
            return prefill_launch<T, 64>(d, layer);
        case 80:
            return prefill_launch<T, 80>(d, layer);
        case 96:
            return prefill_launch<T, 96>(d, layer);
        default: /* cuda_prefill_open() lets no other size pass */
            return prefill_launch<T, 128>(d, layer);
        }
    });
}

extern "C" enum err cuda_prefill_open(struct kern_device *d, struct err_text *why) {
    CUDA_WITH_ELEM(d, T, {
        switch (d->shape.head_dim) {
        case 32:
            return prefill_open<T, 32>(why);
        case 64:
            return prefill_open<T, 64>(why);
        case 80:
            return prefill_open<T, 80>(why);
        case 96:
            return prefill_open<T, 96>(why);
        case 128:
            return prefill_open<T, 128>(why);
        default:
            return err_set(why, ERR_BAD_MODEL, "head_dim %u: CUDA has 32, 64, 80, 96 and 128",
                           d->shape.head_dim);
        }
    });
}
