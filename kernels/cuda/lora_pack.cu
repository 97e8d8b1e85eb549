/* lora_pack.cu - scale · Σ splits of shrink's sums, as operands for linear_wide.cu (lora_pack.cuh).
 *
 * v [splits][rows][projections][512] f32 → packed, for all rows with an adapter and as many slices
 * of 16 ranks as its module has. Work: a block of threads takes a piece of at most 16 rows at a
 * time; four threads make 16 ranks of a row. Splits are added in ascending order. Bytes: of v
 * splits × rows × ranks × 4, written 4 a rank; of both nearly all is in the second-level cache. */
#include "kernels/cuda/lora_pack.cuh"

enum { PACK_THREADS = 128, PAIRS = 4, BLOCKS_A_SM = 4 };

template <typename T>
static __device__ __forceinline__ void pack_sixteen(const struct lora_call &c, uint32_t *packed,
                                                    uint32_t row, uint32_t projection,
                                                    uint32_t slice, uint32_t rank, float scale) {
    const uint32_t t = threadIdx.x % PAIRS;
    const uint64_t split_stride = (uint64_t)c.rows * c.projections * KERN_RANK_MAX;
    const uint32_t left = rank - slice * PACK_RANKS; /* 8: the upper half is zeros */
    const float *v = lora_v(c, 0, row, projection) + slice * PACK_RANKS + 2 * t;
    float sum[2][2] = {};
    for (uint32_t split = 0; split < c.splits; split++, v += split_stride) {
        const float2 low = *reinterpret_cast<const float2 *>(v);
        sum[0][0] += low.x;
        sum[0][1] += low.y;
        if (left > 8) {
            const float2 high = *reinterpret_cast<const float2 *>(v + 8);
            sum[1][0] += high.x;
            sum[1][1] += high.y;
        }
    }
    const uint64_t at = pack_at(c.rows, pack_key(projection, slice), row / PACK_ROWS);
    uint32_t *to = packed + (at + row % 8 * PAIRS + t) * 4 + row % PACK_ROWS / 8;
#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        to[half * 2] = pair_bits<T>(sum[half][0] * scale, sum[half][1] * scale);
    }
}

template <typename T>
static __global__ void __launch_bounds__(PACK_THREADS)
    lora_pack_kernel(const __grid_constant__ struct lora_call c, uint32_t *packed) {
    const uint32_t pieces = c.list->count;
    launch_wait();
    launch_next();
    for (uint32_t i = blockIdx.x; i < pieces * c.projections; i += gridDim.x) {
        const struct cuda_lora_piece piece = c.list->pieces[i / c.projections];
        const uint32_t projection = i % c.projections;
        const struct kern_lora *lora = lora_entry(c, piece.adapter, projection);
        const uint32_t rank = lora->rank, slices = (rank + PACK_RANKS - 1) / PACK_RANKS;
        const float scale = lora->scale;
        for (uint32_t k = threadIdx.x / PAIRS; k < piece.rows * slices; k += PACK_THREADS / PAIRS) {
            pack_sixteen<T>(c, packed, piece.row + k / slices, projection, k % slices, rank, scale);
        }
    }
}

void lora_pack_launch(struct kern_device *d, const struct lora_call *c) {
    const uint32_t most = (uint32_t)d->sm_count * BLOCKS_A_SM;
    const dim3 grid(min(c->rows * c->projections, most));
    CUDA_WITH_ELEM(d, T, {
        cuda_launch_early(d, "lora_pack", lora_pack_kernel<T>, grid, PACK_THREADS, *c,
                          static_cast<uint32_t *>(d->lora_packed));
    });
}
