/* qkv.cuh - what becomes of a head of q, k or v behind its linear: bias, norm, rope, then back into
 * q's place or into the token's page. For blocks.cu and lora_qkv.cu. */
#ifndef LORRY_KERNELS_CUDA_QKV_CUH
#define LORRY_KERNELS_CUDA_QKV_CUH

#include "kernels/cuda/common.cuh"

struct qkv_view {
    struct cuda_meta *meta;
    struct cuda_tables tables;
    const float *cos_sin, *bias, *q_norm, *k_norm; /* NULL: none */
    uint64_t page_elems;
    float eps;
    uint32_t layer, heads, kv_heads, page_tokens, qkv_cols;
};

/* Where token `token` keeps its K in the layer's plane; V lies page_elems / 2 behind. */
template <typename T>
static __device__ T *keys_at(const struct qkv_view &v, struct cuda_token token, uint32_t kv_cols) {
    uint64_t list = (uint64_t)token.slot * v.tables.slot_page_row;
    uint64_t page = v.tables.slot_pages[list + token.position / v.page_tokens];
    return static_cast<T *>(v.meta->planes) + v.layer * v.meta->plane_elems + page * v.page_elems +
           (uint64_t)(token.position % v.page_tokens) * kv_cols;
}

/* What a warp takes at once: 8 rows of as many heads as give every four lanes 8 columns of a half.
 * Lane l has rows 2 (l % 4), +1 and 8 adjacent columns of the first half of a head, and of the
 * second those that rope turns with them: whole lines of 128 bytes a row, norm and rope without
 * shared memory, and just what m16n8k16 leaves in a lane when B's columns are its rows. */
template <int HEAD_DIM> struct qkv_step {
    static constexpr uint32_t HALF = HEAD_DIM / 2;
    static constexpr uint32_t GROUPS = HALF / 8;                   /* of 8 columns, in a half */
    static constexpr uint32_t HEADS = GROUPS > 4 ? 1 : 8 / GROUPS; /* that 8 groups hold */
};
enum { QKV_ROWS = 8, QKV_COLUMNS = 8 };

/* What of a step is a lane's. */
struct qkv_lane {
    uint32_t lane;   /* of the warp */
    uint32_t row;    /* the first of two */
    uint32_t head;   /* q's, then k's, then v's are counted */
    uint32_t column; /* of the head, the first of the first half's */
    bool live;       /* has columns at all */
    bool there[2];   /* and the row is one of the step's */
};

/* Rows from `row` on, below `row_end`; heads from `head` on, below `head_end`. */
template <int HEAD_DIM>
static __device__ __forceinline__ struct qkv_lane
qkv_lane_of(uint32_t lane, uint32_t row, uint32_t row_end, uint32_t head, uint32_t head_end) {
    using step = qkv_step<HEAD_DIM>;
    const uint32_t group = lane / 4, mine = group / step::GROUPS;
    struct qkv_lane l;
    l.lane = lane;
    l.row = row + lane % 4 * 2;
    l.head = head + mine;
    l.column = group % step::GROUPS * QKV_COLUMNS;
    l.live = mine < step::HEADS && l.head < head_end;
    l.there[0] = l.live && l.row < row_end;
    l.there[1] = l.live && l.row + 1 < row_end;
    return l;
}

/* [row + 2 × half]; zeros where nothing is. `from`: the lane's first row's head and column. */
template <typename T, int HEAD_DIM>
static __device__ __forceinline__ void qkv_load(const struct qkv_view &v, const struct qkv_lane &l,
                                                const T *from, uint4 (&words)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const T *at = from + i % 2 * v.qkv_cols + i / 2 * (HEAD_DIM / 2);
        words[i] = l.there[i % 2] ? *reinterpret_cast<const uint4 *>(at) : make_uint4(0, 0, 0, 0);
    }
}

/* y [column][row + 2 × half]. */
template <typename T>
static __device__ __forceinline__ void qkv_floats(const uint4 (&words)[4],
                                                  float (&y)[QKV_COLUMNS][4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float eight[QKV_COLUMNS];
        eight_floats<T>(words[i], eight);
#pragma unroll
        for (int k = 0; k < QKV_COLUMNS; k++) {
            y[k][i] = eight[k];
        }
    }
}

/* Where in a row's angles pair `pair` of `half` stands: so that the two pairs that make 16 bytes
 * lie beside those of the other lanes that read at the same time. */
static __device__ __forceinline__ uint32_t qkv_angle(uint32_t pair, uint32_t half) {
    return (pair % 8 / 2 * (half / 8) + pair / 8) * 2 + pair % 2;
}

/* Of row `row` of the lane's two: cosine and sine of two pairs each. */
template <int HEAD_DIM>
static __device__ __forceinline__ void
qkv_angles(const struct qkv_view &v, const struct qkv_lane &l, int row, float4 (&angles)[4]) {
    using step = qkv_step<HEAD_DIM>;
    const float4 *from = reinterpret_cast<const float4 *>(v.cos_sin) +
                         (uint64_t)(l.row + row) * (step::HALF / 2) + l.column / QKV_COLUMNS;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        angles[i] = make_float4(1, 0, 1, 0);
        if (l.there[row] && l.head < v.heads + v.kv_heads) {
            angles[i] = from[i * step::GROUPS];
        }
    }
}

/* Where the lane's part of a row goes: q back to `from`, k and v into the token's page. */
template <typename T, int HEAD_DIM>
static __device__ __forceinline__ T *qkv_target(const struct qkv_view &v, const struct qkv_lane &l,
                                                int row, T *from) {
    if (!l.there[row] || l.head < v.heads) {
        return from + row * v.qkv_cols;
    }
    const bool is_v = l.head >= v.heads + v.kv_heads;
    const uint32_t head = l.head - v.heads - (is_v ? v.kv_heads : 0);
    return keys_at<T>(v, v.meta->tokens[l.row + row], v.kv_heads * HEAD_DIM) +
           (head * HEAD_DIM + l.column) + (is_v ? v.page_elems / 2 : 0);
}

static __device__ __forceinline__ void qkv_eight(const float *from, float (&out)[QKV_COLUMNS]) {
    const float4 *two = reinterpret_cast<const float4 *>(from);
    const float4 a = two[0], b = two[1];
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
}

template <int HEAD_DIM>
static __device__ __forceinline__ void
qkv_add_bias(const struct qkv_view &v, const struct qkv_lane &l, float (&y)[QKV_COLUMNS][4]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float bias[QKV_COLUMNS];
        qkv_eight(v.bias + (l.head * HEAD_DIM + half * (HEAD_DIM / 2) + l.column), bias);
#pragma unroll
        for (int k = 0; k < QKV_COLUMNS; k++) {
            y[k][2 * half] += bias[k];
            y[k][2 * half + 1] += bias[k];
        }
    }
}

/* A whole warp; lanes that have nothing bring zeros. */
template <int HEAD_DIM>
static __device__ __forceinline__ void qkv_norm(const struct qkv_view &v, const struct qkv_lane &l,
                                                float (&y)[QKV_COLUMNS][4]) {
    const float *norm = l.head < v.heads                ? v.q_norm
                        : l.head < v.heads + v.kv_heads ? v.k_norm
                                                        : nullptr;
    float scale[2];
#pragma unroll
    for (int row = 0; row < 2; row++) {
        float sum = 0;
#pragma unroll
        for (int k = 0; k < QKV_COLUMNS; k++) {
            sum = __fmaf_rn(y[k][row], y[k][row], sum);
            sum = __fmaf_rn(y[k][row + 2], y[k][row + 2], sum);
        }
#pragma unroll
        for (uint32_t apart = 4; apart < 32 / qkv_step<HEAD_DIM>::HEADS; apart *= 2) {
            sum += __shfl_xor_sync(0xffffffffu, sum, apart);
        }
        scale[row] = rsqrtf(__fmaf_rn(sum, 1.0f / HEAD_DIM, v.eps));
    }
    if (norm == nullptr || !l.live) {
        return;
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float factor[QKV_COLUMNS];
        qkv_eight(norm + half * (HEAD_DIM / 2) + l.column, factor);
#pragma unroll
        for (int k = 0; k < QKV_COLUMNS; k++) {
            y[k][2 * half] *= scale[0] * factor[k];
            y[k][2 * half + 1] *= scale[1] * factor[k];
        }
    }
}

/* Rope and store of one of the lane's rows. Angles of v's heads turn nothing. */
template <typename T, int HEAD_DIM>
static __device__ __forceinline__ void qkv_row(const struct qkv_view &v, const struct qkv_lane &l,
                                               int row, const float (&y)[QKV_COLUMNS][4],
                                               const float4 (&angles)[4], T *to) {
    float low[QKV_COLUMNS], high[QKV_COLUMNS];
#pragma unroll
    for (int k = 0; k < QKV_COLUMNS; k++) {
        const float cosine = k % 2 == 0 ? angles[k / 2].x : angles[k / 2].z;
        const float sine = k % 2 == 0 ? angles[k / 2].y : angles[k / 2].w;
        const float a = y[k][row], b = y[k][row + 2];
        low[k] = __fmaf_rn(a, cosine, -__fmul_rn(b, sine));
        high[k] = __fmaf_rn(b, cosine, __fmul_rn(a, sine));
    }
    const bool turns = l.head < v.heads + v.kv_heads;
#pragma unroll
    for (int k = 0; k < QKV_COLUMNS; k++) {
        low[k] = turns ? low[k] : y[k][row];
        high[k] = turns ? high[k] : y[k][row + 2];
    }
    if (l.there[row]) {
        *reinterpret_cast<uint4 *>(to) = eight_bits<T>(low);
        *reinterpret_cast<uint4 *>(to + HEAD_DIM / 2) = eight_bits<T>(high);
    }
}

/* Bias and norm, for what follows. A whole warp. */
template <int HEAD_DIM>
static __device__ __forceinline__ void
qkv_prepare(const struct qkv_view &v, const struct qkv_lane &l, float (&y)[QKV_COLUMNS][4]) {
    if (v.bias != nullptr && l.live) {
        qkv_add_bias<HEAD_DIM>(v, l, y);
    }
    if (v.q_norm != nullptr || v.k_norm != nullptr) {
        qkv_norm<HEAD_DIM>(v, l, y);
    }
}

static inline struct qkv_view qkv_view_of(const struct kern_device *d, uint32_t layer) {
    const struct cuda_layer *l = &d->layers[layer];
    struct qkv_view v = {.meta = d->meta,
                         .tables = d->tables,
                         .cos_sin = d->cos_sin,
                         .bias = l->qkv_bias,
                         .q_norm = l->q_norm,
                         .k_norm = l->k_norm,
                         .page_elems = d->page_elems,
                         .eps = d->shape.norm_eps,
                         .layer = layer,
                         .heads = d->shape.heads,
                         .kv_heads = d->shape.kv_heads,
                         .page_tokens = d->limits.page_tokens,
                         .qkv_cols = d->qkv_cols};
    return v;
}

#endif
