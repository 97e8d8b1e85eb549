/* attention_job.cuh - what the prefill kernels share: their parameters, how an item becomes jobs
 * and where a key lies. Inside kernels/cuda/ only; attention_prefill.cu says what a job is. */
#ifndef LORRY_KERNELS_CUDA_ATTENTION_JOB_CUH
#define LORRY_KERNELS_CUDA_ATTENTION_JOB_CUH

#include <math.h>
#include <stdint.h>

#include "kernels/cuda/common.cuh"

namespace {

enum {
    ELEM_BYTES = 2,           /* f16 and bf16 */
    PIECE = 16 / ELEM_BYTES,  /* elements of a 16-byte piece */
    ROWS = CUDA_PREFILL_ROWS, /* most rows of a job; an item has no more tokens */
    INVERSE_ONE = 65536,      /* 16-bit fixed point of job.inverse */
};

constexpr float LAG = 8.0f; /* log2 of how far the maximum may fall behind */

__device__ __forceinline__ float exp2_fast(float v) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}

/* Fixed for a device and a layer. */
struct params {
    const struct cuda_meta *meta;
    const void *qkv;
    void *attended;
    const uint32_t *slot_pages;
    uint64_t page_elems;
    uint32_t slot_page_row, layer;
    uint32_t page_shift; /* log2 of the tokens of a page */
    uint32_t kv_heads, group;
    uint32_t qkv_cols, q_cols;
    uint32_t window; /* 0: all */
    float scale;     /* log2 e / √head_dim */
};

/* ---- jobs --------------------------------------------------------------------------------- */

struct job {
    uint32_t token_begin, tokens; /* rows of qkv and attended */
    uint32_t position;            /* of the first token */
    uint32_t kv_head;
    uint32_t head_begin, heads; /* query heads */
    uint32_t rows;              /* tokens × heads; 0: there is no such job */
    uint32_t inverse;           /* row / heads = row × inverse / INVERSE_ONE, for any row < ROWS */
    uint32_t first, last;       /* positions that any row sees */
    const uint32_t *pages;      /* of the slot */
    const char *planes;         /* K of the KV head in page 0 of the layer */
};

/* Items passed, the jobs that they are, and how many jobs the block has had. */
struct cursor {
    uint32_t items, jobs, turn;
};

/* Jobs of one KV head of an item: the heads of its group are spread over as few as hold them. */
__device__ __forceinline__ uint32_t parts_of(uint32_t tokens, uint32_t group) {
    uint32_t most = ROWS / tokens;
    return (group + most - 1) / most;
}

/* The token of a row, counted from the job's first; rows past the end are of the last token. */
__device__ __forceinline__ uint32_t row_token(const struct job &job, uint32_t row) {
    return min(row * job.inverse / INVERSE_ONE, job.tokens - 1);
}

/* The first position that a token at `position` sees. */
__device__ __forceinline__ uint32_t position_first(const struct params &p, uint32_t position) {
    return p.window && position >= p.window ? position + 1 - p.window : 0;
}

/* Moves `at`, which never goes back, to the item of job `number`; false: there are not so many. A
 * warp looks at 32 items at a time. */
__device__ __forceinline__ bool job_find(const struct params &p, uint32_t number,
                                         struct cursor *at) {
    constexpr uint32_t ALL = 0xffffffffu;
    const struct cuda_attention_meta &work = p.meta->attention;
    const uint32_t count = work.prefill_count, lane = threadIdx.x % 32;
    for (;;) {
        uint32_t index = at->items + lane;
        uint32_t tokens = index < count ? work.prefill[index].token_count : 0;
        uint32_t jobs = tokens ? p.kv_heads * parts_of(tokens, p.group) : 0, end = jobs;
#pragma unroll
        for (uint32_t offset = 1; offset < 32; offset *= 2) {
            uint32_t below = __shfl_up_sync(ALL, end, offset);
            end += lane >= offset ? below : 0;
        }
        uint32_t beyond = __ballot_sync(ALL, at->jobs + end > number);
        if (beyond) {
            int found = __ffs(static_cast<int>(beyond)) - 1;
            at->items += static_cast<uint32_t>(found);
            at->jobs += __shfl_sync(ALL, end - jobs, found);
            return true;
        }
        if (count - at->items <= 32) {
            return false;
        }
        at->items += 32;
        at->jobs += __shfl_sync(ALL, end, 31);
    }
}

/* Job `index` of an item. */
template <int D>
__device__ __forceinline__ struct job job_of(const struct params &p, uint32_t item_index,
                                             uint32_t index) {
    const struct cuda_prefill_item item = p.meta->attention.prefill[item_index];
    uint32_t parts = parts_of(item.token_count, p.group);
    uint32_t share = (p.group + parts - 1) / parts, part = index % parts;
    struct job job;
    job.token_begin = item.token_begin;
    job.tokens = item.token_count;
    job.position = item.position;
    job.kv_head = index / parts;
    job.head_begin = job.kv_head * p.group + part * share;
    job.heads = min(share, p.group - part * share);
    job.rows = job.tokens * job.heads;
    job.inverse = INVERSE_ONE / job.heads + 1;
    job.first = position_first(p, item.position);
    job.last = item.position + item.token_count - 1;
    job.pages = p.slot_pages + static_cast<uint64_t>(item.slot) * p.slot_page_row;
    job.planes = static_cast<const char *>(p.meta->planes) +
                 (p.layer * p.meta->plane_elems + job.kv_head * D) * ELEM_BYTES;
    return job;
}

/* ---- keys --------------------------------------------------------------------------------- */

/* Unsigned: one comparison for both ends. */
__device__ __forceinline__ bool key_seen(const struct job &job, uint32_t key) {
    return key - job.first <= job.last - job.first;
}

/* The page of a key that is seen, else 0: no page may be set there. Volatile, so that the load
 * stays where it is written, far ahead of its use. */
__device__ __forceinline__ uint32_t key_page(const struct params &p, const struct job &job,
                                             uint32_t key) {
    const volatile uint32_t *pages = job.pages;
    return key_seen(job, key) ? pages[key >> p.page_shift] : 0;
}

template <int D>
__device__ __forceinline__ uint64_t key_row(const struct params &p, const struct job &job,
                                            uint32_t key, uint32_t page) {
    uint32_t in = key & ((1u << p.page_shift) - 1);
    return reinterpret_cast<uint64_t>(job.planes) +
           (page * p.page_elems + in * p.kv_heads * D) * ELEM_BYTES;
}

/* ---- host --------------------------------------------------------------------------------- */

inline uint32_t log2_of(uint32_t power) {
    uint32_t shift = 0;
    while (power >> shift > 1) {
        shift++;
    }
    return shift;
}

inline struct params params_of(const struct kern_device *d, uint32_t layer) {
    struct params p = {};
    p.meta = d->meta;
    p.qkv = d->qkv;
    p.attended = d->attended;
    p.slot_pages = d->tables.slot_pages;
    p.page_elems = d->page_elems;
    p.slot_page_row = d->tables.slot_page_row;
    p.layer = layer;
    p.page_shift = log2_of(d->limits.page_tokens);
    p.kv_heads = d->shape.kv_heads;
    p.group = d->shape.heads / d->shape.kv_heads;
    p.qkv_cols = d->qkv_cols;
    p.q_cols = d->q_cols;
    p.window = d->shape.window;
    p.scale = static_cast<float>(M_LOG2E / sqrt(static_cast<double>(d->shape.head_dim)));
    return p;
}

} // namespace

#endif
