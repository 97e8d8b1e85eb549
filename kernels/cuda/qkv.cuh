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

/* A head of a row, as a warp holds it: a lane has two pairs that rope turns, elements 2 lane, +1 of
 * both halves. Lanes that are too many for the head hold zeros and must come along. */
struct qkv_pairs {
    float2 low, high;
};

/* The two words of a lane; zeros where it has none. */
template <int HEAD_DIM> static __device__ __forceinline__ uint2 qkv_load(const void *place) {
    const uint32_t *words = static_cast<const uint32_t *>(place), lane = threadIdx.x % 32;
    return lane < HEAD_DIM / 4 ? make_uint2(words[lane], words[lane + HEAD_DIM / 4])
                               : make_uint2(0, 0);
}

/* Where a head goes: q back to `place`, k and v into the token's page. `head` counts q's, then k's,
 * then v's heads. */
template <typename T, int HEAD_DIM>
static __device__ __forceinline__ T *qkv_target(const struct qkv_view &v, uint32_t row,
                                                uint32_t head, T *place) {
    if (head < v.heads) {
        return place;
    }
    const bool is_v = head >= v.heads + v.kv_heads;
    uint32_t kv_head = is_v ? head - v.heads - v.kv_heads : head - v.heads;
    return keys_at<T>(v, v.meta->tokens[row], v.kv_heads * HEAD_DIM) +
           (uint64_t)kv_head * HEAD_DIM + (is_v ? v.page_elems / 2 : 0);
}

template <typename T, int HEAD_DIM>
static __device__ __forceinline__ void qkv_head(const struct qkv_view &v, uint32_t row,
                                                uint32_t head, struct qkv_pairs pairs, T *to) {
    constexpr int HALF = HEAD_DIM / 2;
    const uint32_t lane = threadIdx.x % 32, low = 2 * lane, high = low + HALF;
    const bool is_q = head < v.heads, is_v = head >= v.heads + v.kv_heads;
    const bool active = low < HALF;
    float2 a = pairs.low, b = pairs.high;
    if (active && v.bias != nullptr) {
        const float *bias = v.bias + (uint64_t)head * HEAD_DIM;
        a = make_float2(a.x + bias[low], a.y + bias[low + 1]);
        b = make_float2(b.x + bias[high], b.y + bias[high + 1]);
    }
    const float *norm = is_v ? nullptr : is_q ? v.q_norm : v.k_norm;
    if (norm != nullptr) {
        float sum = warp_sum(a.x * a.x + a.y * a.y + b.x * b.x + b.y * b.y);
        float scale = rsqrtf(sum / HEAD_DIM + v.eps);
        if (active) {
            a = make_float2(a.x * scale * norm[low], a.y * scale * norm[low + 1]);
            b = make_float2(b.x * scale * norm[high], b.y * scale * norm[high + 1]);
        }
    }
    if (!active) {
        return;
    }
    if (!is_v) {
        const float2 *angles = reinterpret_cast<const float2 *>(v.cos_sin) + (uint64_t)row * HALF;
        float2 first = angles[low], second = angles[low + 1];
        float2 turned = make_float2(a.x * first.x - b.x * first.y, a.y * second.x - b.y * second.y);
        b = make_float2(b.x * first.x + a.x * first.y, b.y * second.x + a.y * second.y);
        a = turned;
    }
    *reinterpret_cast<uint32_t *>(to + low) = pair_bits<T>(a.x, a.y);
    *reinterpret_cast<uint32_t *>(to + high) = pair_bits<T>(b.x, b.y);
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
