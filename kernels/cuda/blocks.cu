/* blocks.cu - what stands between the linears: embedding, norms, rope, activation, the head's rows.
 *
 *   norm   x · w / √(mean(x²) + ε)
 *   rope   halves (a, b) of a head → (a cos − b sin, b cos + a sin)
 *   act    silu(gate) · up, silu(g) = g / (1 + e⁻ᵍ)
 *
 * All are memory-bound: 16-byte accesses, f32 inside, one rounding at the store. Bytes a call, with
 * 2-byte elements: norm 4 · rows · hidden; qkv 4 · rows · (q + 2 kv); act 6 · rows · intermediate.
 * A row is one block's (norm), one of 8 of a warp's (qkv) or spread over threads (act); sums are
 * added in an order that depends on the shape alone. Tolerance against the CPU's: one rounding of
 * the element type, and f32's of the sums. */
#include "kernels/cuda/norm.cuh"
#include "kernels/cuda/qkv.cuh"

enum {
    THREADS = 256,
    WARP = 32,
    WARPS = THREADS / WARP,
    EIGHT = 8,
    ACT_BLOCKS_A_SM = 16,
    QKV_WARPS = 2,
    QKV_BLOCKS = 10, /* that are to fit a multiprocessor, which is what limits registers */
};

/* ---- embed -------------------------------------------------------------------------------- */

struct embed_view {
    struct cuda_meta *meta;
    struct cuda_tables tables;
    const float *rope_freq;
    float *cos_sin;
    float rope_scale;
    uint32_t hidden, half, page_tokens;
};

/* A block is a row: finds its id, writes it where LoRA and the penalties look for it, copies the
 * embedding, and makes the angles. Angles in f32, as transformers computes them. */
template <typename T>
static __global__ void __launch_bounds__(THREADS)
    embed_kernel(struct embed_view v, const T *__restrict__ embed, T *__restrict__ x) {
    uint32_t row = blockIdx.x;
    uint4 *to = reinterpret_cast<uint4 *>(x + (uint64_t)row * v.hidden);
    launch_next(); /* itself it is launched behind the upload, when all before has ended */
    if (row >= v.meta->token_count) {
        for (uint32_t i = threadIdx.x; i < v.hidden / EIGHT; i += THREADS) {
            to[i] = make_uint4(0, 0, 0, 0);
        }
        return;
    }
    struct cuda_token token = v.meta->tokens[row];
    __syncthreads(); /* all have read it */
    if (token.id == KERN_TOKEN_LAST) {
        token.id = v.tables.slots[token.slot].last;
    }
    if (threadIdx.x == 0) {
        uint64_t list = (uint64_t)token.slot * v.tables.slot_page_row;
        uint32_t page = v.tables.slot_pages[list + token.position / v.page_tokens];
        v.meta->history[(uint64_t)page * v.page_tokens + token.position % v.page_tokens] = token.id;
        v.meta->tokens[row].id = token.id;
    }
    const uint4 *from = reinterpret_cast<const uint4 *>(embed + (uint64_t)token.id * v.hidden);
    for (uint32_t i = threadIdx.x; i < v.hidden / EIGHT; i += THREADS) {
        to[i] = from[i];
    }
    float2 *angles = reinterpret_cast<float2 *>(v.cos_sin) + (uint64_t)row * v.half;
    for (uint32_t i = threadIdx.x; i < v.half; i += THREADS) {
        float sine, cosine;
        sincosf((float)token.position * v.rope_freq[i], &sine, &cosine);
        angles[qkv_angle(i, v.half)] = make_float2(cosine * v.rope_scale, sine * v.rope_scale);
    }
}

extern "C" void cuda_embed_rows(struct kern_device *d) {
    const struct embed_view v = {.meta = d->meta,
                                 .tables = d->tables,
                                 .rope_freq = d->rope_freq,
                                 .cos_sin = d->cos_sin,
                                 .rope_scale = d->shape.rope_scale,
                                 .hidden = d->shape.hidden,
                                 .half = d->shape.head_dim / 2,
                                 .page_tokens = d->limits.page_tokens};
    CUDA_WITH_ELEM(d, T,
                   embed_kernel<T><<<d->rows, THREADS, 0, d->stream>>>(
                       v, static_cast<const T *>(d->embed), static_cast<T *>(d->x)));
    CUDA_LAUNCHED(d, "embed");
}

/* ---- norms -------------------------------------------------------------------------------- */

/* A warp takes a group of 512 columns, as norm.cuh calls them, a lane two eights of a tile. Rows of
 * up to PAIRS · PAIR_COLUMNS columns stay in registers between the sum and the product, all of a
 * thread's loads on their way together; others are read twice. */
enum { PAIR_COLUMNS = 2 * EIGHT * THREADS, PAIRS_MAX = 2 };

/* Eight `half` of 2 of this thread's pair `pair`. */
static __device__ __forceinline__ uint32_t norm_place(uint32_t pair, uint32_t half) {
    return pair * 2 * THREADS + threadIdx.x / 4 * 8 + half * 4 + threadIdx.x % 4;
}

template <int PAIRS>
static __device__ __forceinline__ void norm_load(const uint4 *from, uint32_t eights, uint32_t first,
                                                 uint4 (&to)[PAIRS][2]) {
#pragma unroll
    for (int k = 0; k < PAIRS * 2; k++) {
        const uint32_t i = norm_place(first + k / 2, k % 2);
        to[k / 2][k % 2] = i < eights ? __ldcg(from + i) : make_uint4(0, 0, 0, 0);
    }
}

/* Adds the squares of all threads' pairs to `sum`, in the order that norm.cuh says. `room` is
 * shared, and may be written again behind a barrier. */
template <typename T, int PAIRS>
static __device__ __forceinline__ float norm_add(const uint4 (&kept)[PAIRS][2],
                                                 float (&room)[PAIRS][WARPS], float sum) {
    float square[PAIRS];
#pragma unroll
    for (int k = 0; k < PAIRS; k++) {
        square[k] = norm_square<T>(kept[k][0]) + norm_square<T>(kept[k][1]);
    }
#pragma unroll
    for (int apart = 1; apart < WARP; apart *= 2) {
#pragma unroll
        for (int k = 0; k < PAIRS; k++) {
            square[k] += __shfl_xor_sync(0xffffffffu, square[k], apart);
        }
    }
    if (threadIdx.x % WARP == 0) {
#pragma unroll
        for (int k = 0; k < PAIRS; k++) {
            room[k][threadIdx.x / WARP] = square[k];
        }
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < PAIRS * WARPS; k++) {
        sum += room[k / WARPS][k % WARPS];
    }
    return sum;
}

/* Only the weights are read before the kernel in front has ended. */
template <typename T, int PAIRS>
static __device__ void norm_row(const T *x, const float *w, T *out, uint32_t hidden, float eps) {
    __shared__ float room[PAIRS][WARPS];
    const uint4 *from = reinterpret_cast<const uint4 *>(x);
    uint4 *to = reinterpret_cast<uint4 *>(out);
    const uint32_t eights = hidden / EIGHT;
    struct norm_factors factors[PAIRS][2];
    uint4 kept[PAIRS][2];
#pragma unroll
    for (int k = 0; k < PAIRS * 2; k++) {
        const uint32_t i = norm_place(k / 2, k % 2);
        factors[k / 2][k % 2] = norm_factors_of(w, i < eights ? i : 0);
    }
    launch_wait();
    norm_load(from, eights, 0, kept);
    float sum = norm_add<T>(kept, room, 0);
    for (uint32_t pair = PAIRS; pair * PAIR_COLUMNS < hidden; pair += PAIRS) {
        uint4 more[PAIRS][2];
        norm_load(from, eights, pair, more);
        __syncthreads();
        sum = norm_add<T>(more, room, sum);
    }
    const float scale = norm_scale(sum, hidden, eps);
#pragma unroll
    for (int k = 0; k < PAIRS * 2; k++) {
        const uint32_t i = norm_place(k / 2, k % 2);
        if (i < eights) {
            to[i] = norm_eight<T>(kept[k / 2][k % 2], scale, factors[k / 2][k % 2]);
        }
    }
    for (uint32_t pair = PAIRS; pair * PAIR_COLUMNS < hidden; pair++) {
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            const uint32_t i = norm_place(pair, half);
            if (i < eights) {
                to[i] = norm_eight<T>(__ldcg(from + i), scale, norm_factors_of(w, i));
            }
        }
    }
}

/* Calls the rest with PAIRS as a row of `hidden` columns needs. */
#define NORM_WITH_PAIRS(hidden, ...)         \
    do {                                     \
        if ((hidden) <= PAIR_COLUMNS) {      \
            constexpr int PAIRS = 1;         \
            __VA_ARGS__;                     \
        } else {                             \
            constexpr int PAIRS = PAIRS_MAX; \
            __VA_ARGS__;                     \
        }                                    \
    } while (0)

template <typename T, int PAIRS>
static __global__ void __launch_bounds__(THREADS)
    norm_kernel(const T *x, const float *w, T *out, uint32_t hidden, float eps, uint32_t rows,
                struct cuda_ahead ahead) {
    launch_next();            /* the product, for its weights */
    if (blockIdx.x >= rows) { /* before the others' wait, which is enough for those behind */
        ahead_fetch(ahead, (blockIdx.x - rows) * THREADS + threadIdx.x,
                    (gridDim.x - rows) * THREADS);
        return;
    }
    uint64_t at = (uint64_t)blockIdx.x * hidden;
    norm_row<T, PAIRS>(x + at, w, out + at, hidden, eps);
}

/* Blocks that only fetch, behind those that work: one a multiprocessor. */
static unsigned ahead_blocks(const struct kern_device *d, const struct cuda_ahead &ahead) {
    return ahead.rows > 0 ? static_cast<unsigned>(d->sm_count) : 0;
}

extern "C" void cuda_norm_rows(struct kern_device *d, const float *w, enum cuda_linear next,
                               uint32_t layer) {
    const struct cuda_ahead ahead = cuda_linear_ahead(d, next, layer, CUDA_AHEAD_BYTES);
    const dim3 grid(d->rows + ahead_blocks(d, ahead));
    CUDA_WITH_ELEM(d, T,
                   NORM_WITH_PAIRS(d->shape.hidden,
                                   cuda_launch_early(d, "norm", norm_kernel<T, PAIRS>, grid,
                                                     THREADS, static_cast<const T *>(d->x), w,
                                                     static_cast<T *>(d->normed), d->shape.hidden,
                                                     d->shape.norm_eps, d->rows, ahead)));
}

/* The final norm of the rows that are sampled; zeros behind them. */
template <typename T, int PAIRS>
static __global__ void __launch_bounds__(THREADS)
    head_kernel(const struct cuda_meta *meta, const T *x, const float *w, T *out, uint32_t hidden,
                float eps) {
    launch_next(); /* the head's product, for its weights */
    uint32_t row = blockIdx.x;
    T *to = out + (uint64_t)row * hidden;
    if (row < meta->sample_count) {
        norm_row<T, PAIRS>(x + (uint64_t)meta->samples[row].token * hidden, w, to, hidden, eps);
        return;
    }
    for (uint32_t i = threadIdx.x; i < hidden / EIGHT; i += THREADS) {
        reinterpret_cast<uint4 *>(to)[i] = make_uint4(0, 0, 0, 0);
    }
}

extern "C" void cuda_head_rows(struct kern_device *d) {
    CUDA_WITH_ELEM(
        d, T,
        NORM_WITH_PAIRS(d->shape.hidden,
                        head_kernel<T, PAIRS><<<d->sample_rows, THREADS, 0, d->stream>>>(
                            d->meta, static_cast<const T *>(d->x), d->final_norm,
                            static_cast<T *>(d->head_in), d->shape.hidden, d->shape.norm_eps)));
    CUDA_LAUNCHED(d, "head");
}

/* ---- q, k, v ------------------------------------------------------------------------------ */

/* A warp is a step: 8 rows of a head or some. */
template <typename T, int HEAD_DIM>
static __global__ void __launch_bounds__(QKV_WARPS *WARP, QKV_BLOCKS)
    qkv_kernel(const __grid_constant__ struct qkv_view v, T *qkv) {
    launch_next(); /* attention, for its lists */
    const uint32_t step = blockIdx.y * QKV_WARPS + threadIdx.x / WARP;
    const struct qkv_lane l =
        qkv_lane_of<HEAD_DIM>(threadIdx.x % WARP, blockIdx.x * QKV_ROWS, v.meta->token_count,
                              step * qkv_step<HEAD_DIM>::HEADS, v.heads + 2 * v.kv_heads);
    T *from = qkv + (uint64_t)l.row * v.qkv_cols + (l.head * HEAD_DIM + l.column);
    T *to[2];
#pragma unroll
    for (int row = 0; row < 2; row++) {
        to[row] = qkv_target<T, HEAD_DIM>(v, l, row, from); /* as the product ends */
    }
    launch_wait();
    uint4 words[4];
    float4 angles[2][4];
    qkv_load<T, HEAD_DIM>(v, l, from, words);
    qkv_angles<HEAD_DIM>(v, l, 0, angles[0]);
    qkv_angles<HEAD_DIM>(v, l, 1, angles[1]);
    float y[QKV_COLUMNS][4];
    qkv_floats<T>(words, y);
    qkv_prepare<HEAD_DIM>(v, l, y);
    qkv_row<T, HEAD_DIM>(v, l, 0, y, angles[0], to[0]);
    qkv_row<T, HEAD_DIM>(v, l, 1, y, angles[1], to[1]);
}

template <typename T, int HEAD_DIM>
static void qkv_heads(struct kern_device *d, const struct qkv_view &v) {
    const uint32_t heads = qkv_step<HEAD_DIM>::HEADS;
    const uint32_t steps = (v.heads + 2 * v.kv_heads + heads - 1) / heads;
    const dim3 grid((d->rows + QKV_ROWS - 1) / QKV_ROWS, (steps + QKV_WARPS - 1) / QKV_WARPS);
    cuda_launch_early(d, "qkv", qkv_kernel<T, HEAD_DIM>, grid, QKV_WARPS * WARP, v,
                      static_cast<T *>(d->qkv));
}

template <typename T> static void qkv_launch(struct kern_device *d, const struct qkv_view &v) {
    switch (d->shape.head_dim) {
    case 32:
        qkv_heads<T, 32>(d, v);
        break;
    case 64:
        qkv_heads<T, 64>(d, v);
        break;
    case 80:
        qkv_heads<T, 80>(d, v);
        break;
    case 96:
        qkv_heads<T, 96>(d, v);
        break;
    default: /* device.c takes no other */
        qkv_heads<T, 128>(d, v);
        break;
    }
}

extern "C" void cuda_qkv_rows(struct kern_device *d, uint32_t layer) {
    const struct qkv_view v = qkv_view_of(d, layer);
    CUDA_WITH_ELEM(d, T, qkv_launch<T>(d, v));
}

/* ---- activation --------------------------------------------------------------------------- */

template <typename T>
static __global__ void __launch_bounds__(THREADS)
    act_kernel(const T *gate_up, T *act, uint32_t rows, uint32_t intermediate, uint32_t blocks,
               struct cuda_ahead ahead) {
    launch_next();              /* as in norm_kernel() */
    if (blockIdx.x >= blocks) { /* as in norm_kernel() */
        ahead_fetch(ahead, (blockIdx.x - blocks) * THREADS + threadIdx.x,
                    (gridDim.x - blocks) * THREADS);
        return;
    }
    const uint32_t eights = intermediate / EIGHT;
    const uint64_t all = (uint64_t)rows * eights, stride = (uint64_t)blocks * THREADS;
    const uint4 *from = reinterpret_cast<const uint4 *>(gate_up);
    launch_wait();
    for (uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x; i < all; i += stride) {
        uint64_t row = i / eights, column = i - row * eights;
        float gate[EIGHT], up[EIGHT];
        eight_floats<T>(from[row * 2 * eights + column], gate);
        eight_floats<T>(from[row * 2 * eights + eights + column], up);
#pragma unroll
        for (int e = 0; e < EIGHT; e++) {
            up[e] *= silu(gate[e]);
        }
        reinterpret_cast<uint4 *>(act)[i] = eight_bits<T>(up);
    }
}

extern "C" void cuda_act_rows(struct kern_device *d, uint32_t layer) {
    const struct cuda_ahead ahead = cuda_linear_ahead(d, CUDA_DOWN, layer, CUDA_AHEAD_BYTES);
    uint64_t items = (uint64_t)d->rows * (d->shape.intermediate / EIGHT);
    uint64_t needed = (items + THREADS - 1) / THREADS;
    uint64_t most = (uint64_t)d->sm_count * ACT_BLOCKS_A_SM;
    const unsigned blocks = (unsigned)(needed < most ? needed : most);
    CUDA_WITH_ELEM(d, T,
                   cuda_launch_early(d, "act", act_kernel<T>, dim3(blocks + ahead_blocks(d, ahead)),
                                     THREADS, static_cast<const T *>(d->gate_up),
                                     static_cast<T *>(d->act), d->rows, d->shape.intermediate,
                                     blocks, ahead));
}

/* ---- launches ----------------------------------------------------------------------------- */

extern "C" bool cuda_code_waits(void) {
    struct cudaFuncAttributes attributes;
    if (cudaFuncGetAttributes(&attributes, act_kernel<__half>) != cudaSuccess) {
        (void)cudaGetLastError(); /* the first launch will say why */
        return false;
    }
    return attributes.ptxVersion >= 90; /* made from older PTX, launch_wait() would be empty */
}
