/* attention_decode.cu - attention of chunks of one token over the pages of their slots.
 *
 * out[row][h] = Σ_p softmax_p(q[row][h] · K[p][h / group] / √head_dim) · V[p][h / group], p over
 * the positions that the row sees (cuda_decode_item). q [rows][qkv_cols] at h × head_dim, roped;
 * out [rows][q_cols]; K and V in pages (kernels.h), all f16 or bf16.
 *
 * Work: the metadata's items, each times its units (attention.h: a key-value head and up to 8 of
 * its query heads). A warp takes a unit of an item alone; no barrier joins warps. The grid is as
 * large as the machine and warps stride over the units, neighbours going to different
 * multiprocessors. Each warp walks tiles of 16 tokens through a ring of stages in shared memory:
 * lanes copy the K and V rows of the tiles ahead (cp.async), also across the end of an item into
 * the next, so that its 16 KB in flight (128 KB a multiprocessor) never drain. Of a tile, on tensor
 * cores: S [16 tokens][8 heads] = K [16][head_dim] · qᵀ [head_dim][8], K by ldmatrix, q in
 * registers for the whole item; online softmax down the columns; Pᵀ by movmatrix; Oᵀ [head_dim][8
 * heads] += Vᵀ [head_dim][16] · Pᵀ [16][8], V by transposing ldmatrix. With fewer than 8 heads the
 * other columns are zero queries and never stored. 16-byte chunks of the tile's rows are permuted
 * so that neither kind of access meets bank conflicts.
 *
 * Where few warps have a unit, the others fetch some of the next product's weights into the
 * second-level cache (struct cuda_ahead).
 *
 * A row in one split goes straight to `out`. Else each warp leaves its sums in the scratch, and the
 * one that arrives last at the unit's counter adds all splits in a fixed order: who is last changes
 * no bit. The counter wraps to zero for the next layer.
 *
 * Bytes: 2 × head_dim × 2 a position, key-value head and 8 query heads, each read once; FLOP: 4 ×
 * heads × head_dim a position (8 heads computed always). Sums, scores and softmax in f32; P is
 * rounded to the 16-bit type for P · V, so that out differs from exact arithmetic by about 2⁻⁹
 * (bf16) or 2⁻¹² (f16) of the mean |V|, and by its own rounding. */
#include <math.h>

#include "kernels/cuda/common.cuh"

/* nvcc 13.0 does not see the launch bounds of a template and misses them at its launch. */

enum { WARP = 32, THREADS = CUDA_DECODE_WARPS * WARP, TILE = CUDA_DECODE_TILE };

static constexpr uint32_t ALL = 0xffffffffu;
static constexpr int STAGE_ROOM = 24576; /* bytes of a warp; all of a block's are 48 KB */
static constexpr int STAGES_MOST = 8;
static constexpr uint32_t BUSY_SHARE = 4; /* a quarter of the warps at most, for others to fetch */
static constexpr uint64_t AHEAD_BYTES = 2 * CUDA_AHEAD_BYTES;
static constexpr int DEEP = 4; /* partials whose loads are on their way together */

struct decode_args {
    const struct cuda_meta *meta;
    const uint32_t *slot_pages; /* [slots][slot_page_row] */
    const void *q;              /* [rows][qkv_cols] */
    void *out;                  /* [rows][q_cols] */
    float *scratch;
    uint64_t page_elems;
    uint32_t layer;
    uint32_t slot_page_row, qkv_cols, q_cols;
    uint32_t kv_heads, group;
    uint32_t units, partial; /* cuda_decode_units(), cuda_decode_partial() */
    uint32_t page_shift;     /* page_tokens = 1 << page_shift */
    float scale;             /* log2(e) / √head_dim */
    struct cuda_ahead ahead; /* of the product that comes next */
};

/* ---- shapes of a tile --------------------------------------------------------------------- */

template <int HEAD_DIM> struct tile {
    static constexpr int CHUNKS = HEAD_DIM / 8; /* of 16 bytes, in a row */
    static constexpr int STEPS = HEAD_DIM / 16; /* of the tensor cores' 16 */
    static constexpr int BYTES = TILE * HEAD_DIM * 2;
    static constexpr int STAGES =
        STAGE_ROOM / (2 * BYTES) < STAGES_MOST ? STAGE_ROOM / (2 * BYTES) : STAGES_MOST;
    static constexpr int ROOM = 2 * BYTES * STAGES;
    /* Rows repeat in the banks after 8 / EVEN of them; these get different permutations. */
    static constexpr int EVEN = CHUNKS % 8 == 0 ? 8 : CHUNKS % 4 == 0 ? 4 : 2;
    static_assert(HEAD_DIM % 16 == 0 && STAGES >= 2, "shapes of a tile");

    static __device__ __forceinline__ uint32_t permuted(uint32_t token, uint32_t chunk) {
        return (token * CHUNKS + (chunk ^ (token / (8 / EVEN) % EVEN))) * 16;
    }
};

/* ---- units -------------------------------------------------------------------------------- */

struct decode_unit {
    struct cuda_decode_item item;
    uint32_t unit; /* of the row */
    uint32_t kv_head;
    uint32_t head, heads; /* the first query head, and how many */
};

static __device__ __forceinline__ struct decode_unit
unit_at(const struct decode_args &a, const struct cuda_decode_item *items, uint32_t index) {
    struct decode_unit u;
    const uint4 *words = reinterpret_cast<const uint4 *>(items + index / a.units);
    uint4 low = words[0], high = words[1];
    u.item = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    u.unit = index % a.units;
    uint32_t slices = a.units / a.kv_heads; /* of a group */
    uint32_t begin = u.unit % slices * CUDA_DECODE_HEADS;
    u.kv_head = u.unit / slices;
    u.head = u.kv_head * a.group + begin;
    u.heads = min(a.group - begin, static_cast<uint32_t>(CUDA_DECODE_HEADS));
    return u;
}

/* ---- the tiles ahead ---------------------------------------------------------------------- */

/* Where a warp's copies are: some tiles ahead of its sums, maybe in a later unit. */
template <typename T> struct cursor {
    uint32_t index; /* of the unit */
    uint32_t begin, end, tile;
    const uint32_t *pages; /* of the slot */
    const T *keys;         /* of the head in page 0 of the layer */
};

template <typename T>
static __device__ __forceinline__ void cursor_open(struct cursor<T> *c, const struct decode_args &a,
                                                   const struct cuda_decode_item *items,
                                                   const T *plane, uint32_t head_dim) {
    const struct decode_unit u = unit_at(a, items, c->index);
    c->begin = u.item.begin;
    c->end = u.item.end;
    c->tile = u.item.begin / TILE * TILE;
    c->pages = a.slot_pages + static_cast<uint64_t>(u.item.slot) * a.slot_page_row;
    c->keys = plane + u.kv_head * head_dim;
}

/* Copies K and V of the cursor's tile to `stage`; zeros for tokens outside begin .. end - 1, whose
 * pages are not looked up. AHEAD: only into the second-level cache. */
template <typename T, int HEAD_DIM, bool AHEAD = false>
static __device__ __forceinline__ void tile_copy(const struct cursor<T> &c,
                                                 const struct decode_args &a, uint32_t stage) {
    using shape = tile<HEAD_DIM>;
    uint32_t lane = threadIdx.x % WARP, own = c.tile + lane % TILE;
    uint32_t page = own >= c.begin && own < c.end ? c.pages[own >> a.page_shift] : 0;
    uint32_t token_elems = a.kv_heads * HEAD_DIM;
    uint32_t values = token_elems << a.page_shift; /* from K to V */
#pragma unroll
    for (int i = 0; i < shape::STEPS; i++) { /* TILE × CHUNKS = STEPS × WARP */
        uint32_t at = i * WARP + lane, token = at / shape::CHUNKS, chunk = at % shape::CHUNKS;
        uint32_t position = c.tile + token;
        bool valid = position >= c.begin && position < c.end;
        uint32_t in_page = position & ((1u << a.page_shift) - 1);
        const T *from = c.keys + __shfl_sync(ALL, page, token) * a.page_elems +
                        in_page * token_elems + chunk * 8;
        uint32_t to = stage + shape::permuted(token, chunk);
        if (!AHEAD) {
            copy_async_16(to, from, valid);
            copy_async_16(to + shape::BYTES, from + values, valid);
        } else if (valid) {
            prefetch_l2(from);
            prefetch_l2(from + values);
        }
    }
}

/* The first tiles' K and V on their way into the second-level cache, before the kernel in front has
 * ended: nothing is read, so it does not matter that it may be writing the newest token's. */
template <typename T, int HEAD_DIM>
static __device__ __forceinline__ void tiles_announce(struct cursor<T> c,
                                                      const struct decode_args &a) {
    using shape = tile<HEAD_DIM>;
    for (int i = 0; i < shape::STAGES - 1 && c.end > c.tile; i++, c.tile += TILE) {
        tile_copy<T, HEAD_DIM, true>(c, a, 0);
    }
}

/* ---- sums --------------------------------------------------------------------------------- */

/* What a lane holds of a unit, in the layout of mma_16816's results: columns are heads 2 (lane % 4)
 * and + 1, rows of `out` are dims 16 i + lane / 4 and + 8. */
template <int HEAD_DIM> struct sums {
    float out[HEAD_DIM / 16][4]; /* Σ exp2(s - most) V */
    float most[2];               /* of the scores × scale; equal in the lanes of a column */
    float sum[2];                /* Σ exp2(s - most); of the lane's own rows until sums_join() */
};

/* 8 × 8 elements, transposed between the lanes: of (row lane / 4, columns 2 (lane % 4), + 1). */
static __device__ __forceinline__ uint32_t transposed(uint32_t pair) {
    uint32_t out;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pair));
    return out;
}

static __device__ __forceinline__ float column_max(float v) {
#pragma unroll
    for (int offset = 4; offset < WARP; offset *= 2) {
        v = fmaxf(v, __shfl_xor_sync(ALL, v, offset));
    }
    return v;
}

static __device__ __forceinline__ float column_sum(float v) {
#pragma unroll
    for (int offset = 4; offset < WARP; offset *= 2) {
        v += __shfl_xor_sync(ALL, v, offset);
    }
    return v;
}

/* q's columns of a unit, as mma_16816's b: rows are dims. Heads beyond the unit's are zero. */
template <typename T, int HEAD_DIM>
static __device__ __forceinline__ void query_load(uint32_t q[HEAD_DIM / 16][2], const T *row,
                                                  uint32_t heads) {
    uint32_t lane = threadIdx.x % WARP, head = lane / 4;
    const uint32_t *pairs = reinterpret_cast<const uint32_t *>(row + head * HEAD_DIM);
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 16; i++) {
        q[i][0] = head < heads ? pairs[8 * i + lane % 4] : 0;
        q[i][1] = head < heads ? pairs[8 * i + 4 + lane % 4] : 0;
    }
}

/* Raises `most` to the maximum of two more rows of scores, and scales the sums to it. */
template <int HEAD_DIM>
static __device__ __forceinline__ void sums_raise(struct sums<HEAD_DIM> *o, const float s[4]) {
    float most[2] = {fmaxf(o->most[0], column_max(fmaxf(s[0], s[2]))),
                     fmaxf(o->most[1], column_max(fmaxf(s[1], s[3])))};
    if (!__any_sync(ALL, most[0] > o->most[0] || most[1] > o->most[1])) {
        return;
    }
    float by[2] = {exp2f(o->most[0] - most[0]), exp2f(o->most[1] - most[1])};
#pragma unroll
    for (int j = 0; j < 2; j++) {
        o->most[j] = most[j];
        o->sum[j] *= by[j];
    }
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 16; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            o->out[i][j] *= by[j % 2];
        }
    }
}

/* Adds the tile at `stage`, positions from `first` on; those outside begin .. end - 1 count for
 * nothing. At least one is inside. */
template <typename T, int HEAD_DIM>
static __device__ __forceinline__ void
tile_add(struct sums<HEAD_DIM> *o, const uint32_t q[HEAD_DIM / 16][2], uint32_t stage,
         const struct cuda_decode_item &item, uint32_t first, float scale) {
    using shape = tile<HEAD_DIM>;
    uint32_t lane = threadIdx.x % WARP;
    float even[4] = {0, 0, 0, 0}, odd[4] = {0, 0, 0, 0}; /* two chains, half the latency */
#pragma unroll
    for (int i = 0; i < shape::STEPS; i++) {
        uint32_t k[4];
        ldmatrix_x4(k, stage + shape::permuted(lane % 16, 2 * i + lane / 16));
        mma_16816<T>(i % 2 == 0 ? even : odd, k, q[i]);
    }
    float s[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        uint32_t position = first + lane / 4 + j / 2 * 8;
        bool inside = position >= item.begin && position < item.end;
        s[j] = inside ? (even[j] + odd[j]) * scale : -INFINITY;
    }
    sums_raise<HEAD_DIM>(o, s);
    uint32_t p[2];
#pragma unroll
    for (int j = 0; j < 2; j++) { /* rows lane / 4, then + 8 */
        float low = exp2f(s[2 * j] - o->most[0]), high = exp2f(s[2 * j + 1] - o->most[1]);
        o->sum[0] += low;
        o->sum[1] += high;
        p[j] = transposed(pair_bits<T>(low, high));
    }
#pragma unroll
    for (int i = 0; i < shape::STEPS; i++) {
        uint32_t v[4];
        ldmatrix_x4_trans(v, stage + shape::BYTES +
                                 shape::permuted(lane % 8 + lane / 16 * 8, 2 * i + lane / 8 % 2));
        mma_16816<T>(o->out[i], v, p);
    }
}

template <int HEAD_DIM>
static __device__ __forceinline__ void sums_clear(struct sums<HEAD_DIM> *o) {
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 16; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            o->out[i][j] = 0;
        }
    }
#pragma unroll
    for (int j = 0; j < 2; j++) {
        o->most[j] = -INFINITY;
        o->sum[j] = 0;
    }
}

/* Divides by the sums and stores the unit's heads, `to` being the first. */
template <typename T, int HEAD_DIM>
static __device__ __forceinline__ void sums_store(const struct sums<HEAD_DIM> &o, T *to,
                                                  uint32_t heads) {
    uint32_t lane = threadIdx.x % WARP, head = lane / 4;
    float by[2] = {1 / o.sum[0], 1 / o.sum[1]};
    uint32_t *pairs = reinterpret_cast<uint32_t *>(to + head * HEAD_DIM);
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 16; i++) {
        uint32_t low = transposed(pair_bits<T>(o.out[i][0] * by[0], o.out[i][1] * by[1]));
        uint32_t high = transposed(pair_bits<T>(o.out[i][2] * by[0], o.out[i][3] * by[1]));
        if (head < heads) {
            pairs[8 * i + lane % 4] = low;
            pairs[8 * i + 4 + lane % 4] = high;
        }
    }
}

/* ---- rows of several splits --------------------------------------------------------------- */

/* A partial is [STEPS][8 rows][pairs] of float4, the lanes' `out`, then [pairs] of (most, sum,
 * most, sum). Lanes whose heads do not exist keep out. */
template <int HEAD_DIM>
static __device__ __forceinline__ void partial_store(const struct sums<HEAD_DIM> &o, float4 *to,
                                                     uint32_t pairs) {
    uint32_t lane = threadIdx.x % WARP, row = lane / 4, pair = lane % 4;
    if (pair >= pairs) {
        return;
    }
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 16; i++) {
        __stcg(to + (8 * i + row) * pairs + pair,
               make_float4(o.out[i][0], o.out[i][1], o.out[i][2], o.out[i][3]));
    }
    if (row == 0) {
        __stcg(to + HEAD_DIM / 2 * pairs + pair,
               make_float4(o.most[0], o.sum[0], o.most[1], o.sum[1]));
    }
}

/* The sum of `count` partials, `stride` float4 apart. With one or two pairs of heads, the lanes
 * whose pairs do not exist take splits too: of four lanes side by side, `ways` groups of `width` go
 * through every `ways`-th split each, then their sums are added. The order depends on count and
 * shape alone. One round of loads for the maxima, one for each DEEP splits of a lane. */
template <int HEAD_DIM>
static __device__ __forceinline__ void partials_add(struct sums<HEAD_DIM> *o, const float4 *from,
                                                    uint64_t stride, uint32_t count,
                                                    uint32_t pairs) {
    const uint32_t lane = threadIdx.x % WARP, row = lane / 4;
    const uint32_t width = pairs <= 2 ? pairs : 4, ways = 4 / width;
    const uint32_t pair = min(lane % width, pairs - 1), way = lane % 4 / width;
    const float4 *ends = from + HEAD_DIM / 2 * pairs + pair;
    sums_clear<HEAD_DIM>(o);
#pragma unroll 4
    for (uint32_t s = row * ways + way; s < count; s += 8 * ways) {
        float4 end = __ldcg(ends + s * stride);
        o->most[0] = fmaxf(o->most[0], end.x);
        o->most[1] = fmaxf(o->most[1], end.z);
    }
    for (uint32_t offset = width; offset < WARP; offset *= 2) {
        o->most[0] = fmaxf(o->most[0], __shfl_xor_sync(ALL, o->most[0], offset));
        o->most[1] = fmaxf(o->most[1], __shfl_xor_sync(ALL, o->most[1], offset));
    }
    for (uint32_t first = way; first < count; first += DEEP * ways) {
        float4 end[DEEP], v[DEEP][HEAD_DIM / 16];
#pragma unroll
        for (int k = 0; k < DEEP; k++) { /* behind the last: that one again, for nothing */
            const uint64_t at = min(first + k * ways, count - 1) * stride;
            end[k] = __ldcg(ends + at);
#pragma unroll
            for (int i = 0; i < HEAD_DIM / 16; i++) {
                v[k][i] = __ldcg(from + at + (8 * i + row) * pairs + pair);
            }
        }
#pragma unroll
        for (int k = 0; k < DEEP; k++) {
            const bool is = first + k * ways < count;
            const float by[2] = {is ? exp2f(end[k].x - o->most[0]) : 0,
                                 is ? exp2f(end[k].z - o->most[1]) : 0};
            o->sum[0] += end[k].y * by[0];
            o->sum[1] += end[k].w * by[1];
#pragma unroll
            for (int i = 0; i < HEAD_DIM / 16; i++) {
                o->out[i][0] += v[k][i].x * by[0];
                o->out[i][1] += v[k][i].y * by[1];
                o->out[i][2] += v[k][i].z * by[0];
                o->out[i][3] += v[k][i].w * by[1];
            }
        }
    }
    for (uint32_t offset = width; offset < 4; offset *= 2) {
        o->sum[0] += __shfl_xor_sync(ALL, o->sum[0], offset);
        o->sum[1] += __shfl_xor_sync(ALL, o->sum[1], offset);
#pragma unroll
        for (int i = 0; i < HEAD_DIM / 16; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                o->out[i][j] += __shfl_xor_sync(ALL, o->out[i][j], offset);
            }
        }
    }
}

/* Leaves the unit's sums in the scratch. True in the last of the row's splits to do so, which then
 * holds the sums of all. */
template <int HEAD_DIM>
static __device__ __forceinline__ bool
splits_join(struct sums<HEAD_DIM> *o, const struct decode_args &a, const struct decode_unit &u,
            uint32_t *arrivals) {
    uint32_t pairs = (min(a.group, static_cast<uint32_t>(CUDA_DECODE_HEADS)) + 1) / 2;
    uint64_t stride = static_cast<uint64_t>(a.units) * a.partial / 4;
    float4 *row = reinterpret_cast<float4 *>(a.scratch) + u.item.partial * stride +
                  static_cast<uint64_t>(u.unit) * a.partial / 4;
    partial_store<HEAD_DIM>(*o, row + u.item.split * stride, pairs);
    __threadfence();
    __syncwarp();
    uint32_t before = 0;
    if (threadIdx.x % WARP == 0) {
        before = atomicInc(arrivals + u.item.arrival * a.units + u.unit, u.item.split_count - 1);
    }
    if (__shfl_sync(ALL, before, 0) != u.item.split_count - 1) {
        return false;
    }
    __threadfence();
    partials_add<HEAD_DIM>(o, row, stride, u.item.split_count, pairs);
    return true;
}

/* ---- the kernel --------------------------------------------------------------------------- */

template <typename T, int HEAD_DIM>
static __global__ void __launch_bounds__(THREADS, CUDA_DECODE_BLOCKS)
    decode_kernel(const struct decode_args a) {
    using shape = tile<HEAD_DIM>;
    __shared__ __align__(128) unsigned char rooms[CUDA_DECODE_WARPS][shape::ROOM];
    const uint32_t warp = threadIdx.x / WARP, room = shared_address(rooms[warp]);
    const struct cuda_decode_item *items = a.meta->attention.decode;
    const uint32_t total = a.meta->attention.decode_count * a.units;
    const uint32_t stride = gridDim.x * CUDA_DECODE_WARPS;
    const T *plane = static_cast<const T *>(a.meta->planes) + a.layer * a.meta->plane_elems;

    launch_next(); /* the product, for its weights */
    struct cursor<T> c = {};
    c.index = warp * gridDim.x + blockIdx.x;
    if (c.index < total) {
        cursor_open<T>(&c, a, items, plane, HEAD_DIM);
        tiles_announce<T, HEAD_DIM>(c, a);
    } else if (total <= stride / BUSY_SHARE) { /* K and V leave most of the memory's rate */
        ahead_fetch(a.ahead, (c.index - total) * WARP + threadIdx.x % WARP,
                    (stride - total) * WARP);
    }
    launch_wait(); /* q, and the newest token's K and V; `out`, scratch and counters are free */
    if (c.index >= total) {
        return;
    }
    auto copy_next =
        [&](uint32_t stage) { /* an empty group where nothing is left */
                              if (c.index < total) {
                                  tile_copy<T, HEAD_DIM>(c, a, room + stage * 2 * shape::BYTES);
                                  c.tile += TILE;
                                  if (c.tile >= c.end) {
                                      c.index += stride;
                                      if (c.index < total) {
                                          cursor_open<T>(&c, a, items, plane, HEAD_DIM);
                                      }
                                  }
                              }
                              copy_async_commit();
        };
    for (int i = 0; i < shape::STAGES - 1; i++) {
        copy_next(i);
    }
    uint32_t stage = 0;
    for (uint32_t index = warp * gridDim.x + blockIdx.x; index < total; index += stride) {
        const struct decode_unit u = unit_at(a, items, index);
        const uint64_t row = u.item.row, at = u.head * HEAD_DIM;
        uint32_t q[shape::STEPS][2];
        query_load<T, HEAD_DIM>(q, static_cast<const T *>(a.q) + row * a.qkv_cols + at, u.heads);
        struct sums<HEAD_DIM> o;
        sums_clear<HEAD_DIM>(&o);
        for (uint32_t first = u.item.begin / TILE * TILE; first < u.item.end; first += TILE) {
            copy_async_wait<shape::STAGES - 2>();
            __syncwarp(); /* all lanes' copies have landed, and all have read the stage before */
            copy_next(stage == 0 ? shape::STAGES - 1 : stage - 1);
            tile_add<T, HEAD_DIM>(&o, q, room + stage * 2 * shape::BYTES, u.item, first, a.scale);
            stage = stage + 1 == shape::STAGES ? 0 : stage + 1;
        }
        o.sum[0] = column_sum(o.sum[0]);
        o.sum[1] = column_sum(o.sum[1]);
        if (u.item.split_count == 1 ||
            splits_join<HEAD_DIM>(&o, a, u, a.meta->attention.arrivals)) {
            sums_store<T, HEAD_DIM>(o, static_cast<T *>(a.out) + row * a.q_cols + at, u.heads);
        }
    }
}

using decode_fn = void(const struct decode_args);

/* NULL: none was compiled for the head size. */
template <typename T> static decode_fn *decode_find(uint32_t head_dim) {
    switch (head_dim) {
    case 32:
        return decode_kernel<T, 32>;
    case 64:
        return decode_kernel<T, 64>;
    case 80:
        return decode_kernel<T, 80>;
    case 96:
        return decode_kernel<T, 96>;
    case 128:
        return decode_kernel<T, 128>;
    default:
        return nullptr;
    }
}

static decode_fn *decode_kernel_of(const struct kern_device *d) {
    uint32_t head_dim = d->shape.head_dim;
    return d->elem == KERN_F16 ? decode_find<__half>(head_dim)
                               : decode_find<__nv_bfloat16>(head_dim);
}

extern "C" enum err cuda_decode_open(struct kern_device *d, struct err_text *why) {
    decode_fn *kernel = decode_kernel_of(d);
    if (kernel == nullptr) {
        return err_set(why, ERR_BAD_MODEL, "head_dim %u has no attention kernel",
                       d->shape.head_dim);
    }
    /* Room for CUDA_DECODE_BLOCKS blocks at a time, at the cost of the first-level cache. */
    CU_TRY(why, cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                     cudaSharedmemCarveoutMaxShared));
    return ERR_OK;
}

extern "C" void cuda_attention_decode(struct kern_device *d, uint32_t layer) {
    const struct kern_shape *s = &d->shape;
    struct decode_args a = {};
    a.meta = d->meta;
    a.slot_pages = d->tables.slot_pages;
    a.q = d->qkv;
    a.out = d->attended;
    a.scratch = static_cast<float *>(d->attention_scratch);
    a.page_elems = d->page_elems;
    a.layer = layer;
    a.slot_page_row = d->tables.slot_page_row;
    a.qkv_cols = d->qkv_cols;
    a.q_cols = d->q_cols;
    a.kv_heads = s->kv_heads;
    a.group = s->heads / s->kv_heads;
    a.units = cuda_decode_units(s->heads, s->kv_heads);
    a.partial = cuda_decode_partial(s->heads, s->kv_heads, s->head_dim);
    a.page_shift = static_cast<uint32_t>(__builtin_ctz(d->limits.page_tokens));
    a.scale = static_cast<float>(M_LOG2E / sqrt(static_cast<double>(s->head_dim)));
    a.ahead = cuda_linear_ahead(d, CUDA_O, layer, AHEAD_BYTES);
    unsigned blocks = static_cast<unsigned>(d->sm_count) * CUDA_DECODE_BLOCKS;
    cuda_launch_early(d, "attention_decode", decode_kernel_of(d), dim3(blocks), THREADS, a);
}
