/* kernels.h - the device seam: a model's forward pass as blocks, on the CPU or on CUDA.
 *
 * A device holds the weights, the unified pool of pages, the activations of a step and two tables
 * that live between steps: sequence slots (sampling parameters, length, last token, page list) and
 * adapters (per layer and module: rank, scale, place; page list). Both are updated by deltas that
 * travel in the step's metadata block. A step is
 *
 *     step_begin → embed → layers × (qkv → attention → attn_out → gate_up → down) → head → sample
 *                → step_end → … step_read
 *
 * No host round trip happens between step_begin and step_end, and the blocks take nothing but the
 * device and the layer: all that varies lies in the metadata block, so that a block's launch
 * depends on the step's bucket alone and can be captured in a CUDA graph. Sampled tokens stay in
 * the slots and feed the next step (KERN_TOKEN_LAST) before anyone has read them.
 *
 * Numbers: the CPU device computes in f32 and rounds nowhere else; it is the reference. CUDA
 * computes in the model's 16-bit type with f32 accumulation.
 *
 * Thread: one thread drives a device; kern_* layout functions are pure.
 * Errors: out of device memory is ERR_NO_SPACE, every other device failure ERR_DEVICE (fatal). */
#ifndef LORRY_KERNELS_KERNELS_H
#define LORRY_KERNELS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum kern_dtype { KERN_F32, KERN_F16, KERN_BF16 };

static inline uint32_t kern_dtype_bytes(enum kern_dtype dtype) {
    return dtype == KERN_F32 ? 4 : 2;
}

/* The seven projections of a layer that an adapter may change. */
enum kern_module { KERN_Q, KERN_K, KERN_V, KERN_O, KERN_GATE, KERN_UP, KERN_DOWN, KERN_MODULES };

enum {
    KERN_RANK_MAX = 512,       /* of one module; above is refused by name */
    KERN_RANK_MULTIPLE = 8,    /* ranks are padded with zeros to a multiple of this */
    KERN_BLOCK_RANKS = 32,     /* a padded rank is cut into blocks of at most this */
    KERN_TILE_COLUMNS = 64,    /* a tile is 64 columns × one block of ranks */
    KERN_TILE_ELEMENTS = 2048, /* of the largest tile; a page is never smaller */
    KERN_HEAD_DIM_MAX = 256,
    KERN_STOP_TOKENS_MAX = 32, /* per slot; the sampler marks a slot done at these */
    KERN_LOGPROBS_MAX = 20,    /* alternatives beside a sampled token */
};

/* What it may change outside the layers. */
enum kern_outer { KERN_OUTER_EMBED, KERN_OUTER_HEAD, KERN_OUTERS };

#define KERN_BASE UINT32_MAX       /* as an adapter: none */
#define KERN_TOKEN_LAST UINT32_MAX /* as a token: what the slot sampled last */

/* ---- the model's shape -------------------------------------------------------------------- */

struct kern_shape {
    uint32_t layers;
    uint32_t hidden;
    uint32_t heads;        /* query heads */
    uint32_t kv_heads;     /* divides heads */
    uint32_t head_dim;     /* a multiple of 8, at most KERN_HEAD_DIM_MAX */
    uint32_t intermediate; /* columns of gate and of up */
    uint32_t vocab;        /* rows of embedding and head, padding rows included */
    uint32_t positions;    /* longest context, in tokens */
    uint32_t window;       /* attention sees this many last tokens; 0 = all */
    float norm_eps;
    float rope_scale;       /* multiplies cos and sin; 1 unless the scaling says otherwise */
    const float *rope_freq; /* [head_dim / 2] inverse frequencies; copied by open() */
    bool qkv_bias;
    bool qk_norm;          /* heads of q and k are normed after the bias, before rope; Qwen3 */
    enum kern_dtype dtype; /* the checkpoint's; CUDA computes in it, in bf16 where it is f32 */
};

/* in = columns of the projection's input, out = rows of its output */
uint32_t kern_module_in(const struct kern_shape *shape, enum kern_module module);
uint32_t kern_module_out(const struct kern_shape *shape, enum kern_module module);
/* The same of entry `entry` of an adapter's table (below): of the embedding, vocab and hidden. */
uint32_t kern_lora_in(const struct kern_shape *shape, uint32_t entry);
uint32_t kern_lora_out(const struct kern_shape *shape, uint32_t entry);
const char *kern_module_name(enum kern_module module); /* "q_proj" … "down_proj" */

/* ---- the pool ----------------------------------------------------------------------------- */

/* One allocation `planes[layers][page_count][page_elems]` of the device's element type. A page
 * holds `page_tokens` tokens of one layer's KV: first all K [page_tokens][kv_heads][head_dim], then
 * all V of the same shape. A page index is valid in every plane. */
static inline uint64_t kern_page_elems(const struct kern_shape *shape, uint32_t page_tokens) {
    return (uint64_t)page_tokens * 2 * shape->kv_heads * shape->head_dim;
}

/* ---- the adapter image --------------------------------------------------------------------
 *
 * An adapter is a list of pages. The list's elements are numbered through: element e lies in page
 * e / page_elems at e % page_elems. In plane l they hold layer l's matrices in the tile order, that
 * the host store keeps as well:
 *   A [rank, in] of a module, then its B [out, rank], then its bias [out] if it has one, module
 * after module;
 *   the rank, padded to a multiple of 8, is cut into blocks of 32 (the last may be 8, 16 or 24);
 *   of each block in turn, the tiles of 64 columns in turn (columns of x for A, of y for B; the
 * last tile is padded with zeros); a tile never crosses a page: where the rest of a page is too
 * small for the next tile it is skipped; inside a tile, A is [ranks of the block][64 columns] and B
 * is [64 columns][ranks of the block], so that in both the dimension that a product sums over is
 * contiguous. A bias is its elements in order, padded with zeros to a multiple of 64: it may go on
 * in the list's next page, but none of its runs of 64 does.
 *
 * What lies outside the layers fills a second list of pages, plane after plane: of its n pages,
 * plane 0 of all of them in order, then plane 1 of all, and so on. Element e lies in plane
 * e / page_elems / n, in page e / page_elems % n of the list, at e % page_elems. It holds A, B and
 * bias as above, first of the embedding, then of the head. The embedding's A [rank, vocab] is in
 * B's tile order, tokens as columns, since it is gathered: x += scale · B A[:, token] reads a run
 * of ranks of each block. It has no bias. */

struct kern_lora {
    uint32_t rank; /* padded; 0 = the adapter leaves this module of this layer alone */
    float scale;   /* y += scale · ((x Aᵀ) Bᵀ + bias) */
    uint64_t a, b; /* first element of each in the list; a multiple of 64 */
    uint64_t bias; /* likewise; 0 = none: what lies there is always an A */
};

/* An adapter's table: an entry for each module of each layer, [layers][KERN_MODULES], then
 * [KERN_OUTERS]. */
static inline uint32_t kern_lora_count(uint32_t layers) {
    return layers * KERN_MODULES + KERN_OUTERS;
}

uint32_t kern_rank_padded(uint32_t rank);

/* Whether all that an adapter does can be put into the projections of the layers: it has neither
 * biases nor anything outside. `lora` [kern_lora_count(layers)]. Pure. */
bool kern_lora_mergeable(const struct kern_lora *lora, uint32_t layers);

/* The end of a matrix of `rank` (padded) × `columns` that starts at list element `begin`, which is
 * where the next one starts. Pure. */
uint64_t kern_matrix_end(uint64_t page_elems, uint64_t begin, uint32_t rank, uint32_t columns);

/* The first list element of one tile of it: rank block `block`, column tile `tile`. */
uint64_t kern_tile_begin(uint64_t page_elems, uint64_t begin, uint32_t rank, uint32_t columns,
                         uint32_t block, uint32_t tile);

/* The end of a bias of `columns` that starts at list element `begin`. Pure. */
uint64_t kern_bias_end(uint64_t begin, uint32_t columns);

/* A matrix or bias as an adapter's file has it: row-major, contiguous, maybe unaligned. */
struct kern_source {
    const void *data;
    enum kern_dtype dtype;
    uint32_t rank; /* true; of a bias it does not matter */
    uint32_t columns;
};

/* Copies one to its place in `image`, list elements of type `elem`, zeroed before; converts,
 * rounding to nearest. A is [rank][columns]; B is given as [columns][rank]; the bias is [columns].
 * _a_gathered is for the embedding's A, [rank][columns] too. */
void kern_matrix_store_a(void *image, enum kern_dtype elem, uint64_t page_elems,
                         const struct kern_lora *lora, const struct kern_source *a);
void kern_matrix_store_b(void *image, enum kern_dtype elem, uint64_t page_elems,
                         const struct kern_lora *lora, const struct kern_source *b);
void kern_matrix_store_a_gathered(void *image, enum kern_dtype elem, uint64_t page_elems,
                                  const struct kern_lora *lora, const struct kern_source *a);
void kern_bias_store(void *image, enum kern_dtype elem, const struct kern_lora *lora,
                     const struct kern_source *bias);

/* ---- element types ------------------------------------------------------------------------ */

/* Converts `count` elements, rounding to nearest, ties to even; either side maybe unaligned. What
 * is too large for f16 becomes infinite. */
void kern_convert(void *to, enum kern_dtype to_dtype, const void *from, enum kern_dtype from_dtype,
                  uint64_t count);
/* Whether all of them stay finite as `as`: none is NaN or infinite, or too large for it. */
bool kern_finite(const void *data, enum kern_dtype dtype, uint64_t count, enum kern_dtype as);

/* ---- a step ------------------------------------------------------------------------------- */

/* A sequence's part of a step: `token_count` tokens from position `position`. Attention sees its
 * own pages up to each token. Chunks are in token order, cover all tokens and name a slot once. */
struct kern_chunk {
    uint32_t slot;
    uint32_t token_begin; /* index into the step's tokens */
    uint32_t token_count; /* 1 = decode, more = prefill */
    uint32_t position;    /* of the first token */
    bool sample;          /* its last token gets logits and a sampled token */
};

/* Consecutive tokens that share an adapter. Segments are in token order and do not overlap; tokens
 * in none are base rows. */
struct kern_segment {
    uint32_t adapter; /* index into the adapter table */
    uint32_t token_begin;
    uint32_t token_count;
};

/* Delta: opens a slot for a new sequence, its page list empty. */
struct kern_slot_set {
    uint32_t slot;
    uint32_t top_k;    /* 0 = off */
    float temperature; /* 0 = greedy */
    float top_p;       /* 1 = off */
    uint64_t seed;
    uint32_t stop_count; /* tokens at which the sampler marks the slot done */
    uint32_t stop[KERN_STOP_TOKENS_MAX];
    float min_p;                               /* 0 = off */
    float repetition_penalty;                  /* 1 = off, and so is 0 */
    float presence_penalty, frequency_penalty; /* 0 = off */
    bool logprobs;         /* results tell the log-probability of the sampled token */
    uint32_t top_logprobs; /* and of this many of the greatest; at most KERN_LOGPROBS_MAX */
    /* Penalties need what the sequence holds. A slot counts the tokens that chunks bring; what its
     * pages hold already (a shared prefix) comes here: `known_count` tokens from position 0 on,
     * of `prompt` [prompt_tokens] first, then of `output`. Tokens at positions from prompt_tokens
     * on are output, computed again or not. */
    uint32_t prompt_tokens;
    uint32_t known_count;
    const uint32_t *prompt, *output;
};

/* Delta: page `page` becomes entry `index` of the slot's list. A step brings each entry once at
 * most; a sequence that starts with shared pages brings all of these. */
struct kern_slot_page {
    uint32_t slot, index, page;
};

/* Delta: an adapter becomes usable under `adapter`, or its pages moved. */
struct kern_adapter_set {
    uint32_t adapter;
    const struct kern_lora *lora; /* [kern_lora_count(layers)] */
    const uint32_t *pages;        /* [page_count]: the layers' list, then the second */
    uint32_t page_count;
    uint32_t outer_pages; /* of them, those of the second list; either may be empty */
};

/* All pointers are host memory, read before step_begin returns. */
struct kern_step {
    uint32_t token_count, chunk_count, segment_count;
    uint32_t slot_set_count, slot_page_count, adapter_set_count;
    const uint32_t *tokens; /* [token_count] ids, or KERN_TOKEN_LAST */
    const struct kern_chunk *chunks;
    const struct kern_segment *segments;
    const struct kern_slot_set *slot_sets;
    const struct kern_slot_page *slot_pages;
    const struct kern_adapter_set *adapter_sets;
};

struct kern_logprob {
    uint32_t token;
    float logprob; /* natural logarithm; −∞ where the logit is */
};

/* What a sampling chunk gave, in the order of the chunks with `sample`. */
struct kern_sample {
    uint32_t slot;
    uint32_t token;
    bool done; /* one of the slot's stop tokens was sampled: true from that one on */
    /* Where the slot asks for logprobs: see kern_logprobs_cpu(). */
    uint32_t top_count;
    float logprob; /* of `token` */
    struct kern_logprob top[KERN_LOGPROBS_MAX];
};

/* ---- the device --------------------------------------------------------------------------- */

struct kern_limits { /* fixed at open; all memory but the pool and the weights follows from them */
    uint32_t slots;
    uint32_t adapters;
    uint32_t step_tokens;   /* most tokens of a step */
    uint32_t step_samples;  /* most sampling chunks of a step */
    uint32_t slot_pages;    /* most pages of a sequence */
    uint32_t adapter_pages; /* most pages of an adapter, both lists together */
    uint32_t page_tokens;   /* T, a power of two; page_elems is at least 2,048, a multiple of 64 */
    uint32_t threads;       /* CPU: 0 = as many as there are cores */
    bool merging;           /* takes memory for the layers' projections once more: see merge() */
    const char *cache_dir;  /* CUDA: keeps what it measured about linears here; NULL = nowhere */
};

enum kern_tensor {
    KERN_EMBED,      /* [vocab, hidden] */
    KERN_LM_HEAD,    /* [vocab, hidden]; not given = tied to the embedding */
    KERN_FINAL_NORM, /* [hidden] */
    KERN_INPUT_NORM, /* [hidden], per layer, as all that follow */
    KERN_POST_NORM,  /* [hidden], before the MLP */
    KERN_WEIGHT,     /* [out, in] of `module` */
    KERN_BIAS,       /* [out] of `module`: q, k, v; where the shape has qkv_bias */
    KERN_Q_NORM,     /* [head_dim], shared by all heads; where the shape has qk_norm */
    KERN_K_NORM,
};

/* A tensor as a checkpoint has it: row-major, contiguous, maybe unaligned. */
struct kern_weight {
    enum kern_tensor tensor;
    uint32_t layer;          /* where it is per layer */
    enum kern_module module; /* of KERN_WEIGHT and KERN_BIAS */
    enum kern_dtype dtype;
    const void *data;
    uint64_t rows, columns; /* a vector has rows = 1 */
};

/* How long the device was busy with a step, and idle before it since the step before. */
struct kern_span {
    float busy_us, idle_us;
};

struct kern_peaks {
    double copy_bytes_s;   /* device memory, bytes read + written, by a large copy */
    double gemm_flop_s;    /* a large product in the device's type */
    double pinned_bytes_s; /* pinned host memory → device; 0 where there is no bus */
};

/* Steps and copies are numbered from 1 by the device; a ticket names a step. */
struct kern_device;

struct kern_ops {
    const char *name; /* "cpu", "cuda" */

    /* Takes all memory but the pool. `shape` and `limits` are copied. */
    enum err (*open)(struct kern_device **out, const struct kern_shape *shape,
                     const struct kern_limits *limits, struct err_text *why);
    void (*close)(struct kern_device *d); /* NULL is fine */
    /* The type of the pool's elements, and so of adapter images. */
    enum kern_dtype (*elem)(const struct kern_device *d);
    /* Copies and converts; the host memory may go afterwards. Wrong shape: ERR_BAD_MODEL. */
    enum err (*weight)(struct kern_device *d, const struct kern_weight *w, struct err_text *why);
    /* Fills all weights, a head of its own among them, the same on every device for a seed: norms
     * 1, biases 0, matrices near normal with deviation 0.02 (kernels/random_weights.h). For
     * benchmarks. */
    enum err (*weights_random)(struct kern_device *d, uint64_t seed, struct err_text *why);

    /* Step shapes that the device wants to see once, after the weights and before the pool, to make
     * CUDA graphs of them: the caller runs all blocks between bucket_begin and bucket_end, as for a
     * step; nothing is computed. model_warm() does it for all. */
    uint32_t (*bucket_count)(const struct kern_device *d);
    enum err (*bucket_begin)(struct kern_device *d, uint32_t bucket);
    enum err (*bucket_end)(struct kern_device *d);

    /* Bytes that a pool may take on this device now; UINT64_MAX = not limited by the device. */
    uint64_t (*pool_room)(struct kern_device *d);
    /* Once, after the weights, which stay as they are from here on. ERR_NO_SPACE; ERR_BAD_MODEL,
     * naming a tensor that was not given. */
    enum err (*pool)(struct kern_device *d, uint32_t page_count, struct err_text *why);

    /* Makes whole pages of host memory readable by load() at the bus's rate, and not any more
     * before they are given back. ERR_NO_SPACE. Thread: any. Cost: a walk over the memory. */
    enum err (*pin)(void *base, uint64_t bytes);
    void (*unpin)(void *base, uint64_t bytes);
    /* Copies an adapter image [layers][page_count][page_elems] of device elements, in pinned
     * memory, into the pages of all planes; `*event` is done when they may be used by a step that
     * begins later, and so are those of all loads before. The image must stay until then. Pages
     * must not be named by a step in flight. An adapter's two lists are loaded one after the other.
     */
    enum err (*load)(struct kern_device *d, const void *image, const uint32_t *pages,
                     uint32_t page_count, uint64_t *event);
    bool (*event_done)(struct kern_device *d, uint64_t event);

    /* Where limits.merging. From the next step on, the layers' projections are W + scale · B A of
     * the adapter, W as the checkpoint has it; for KERN_BASE they are W again, to the bit. Sums are
     * f32, rounded once to the device's type; always made of W, so that one adapter may follow
     * another. A module that the adapter leaves alone is W. The adapter is one that
     * kern_lora_mergeable() takes, set at the latest by that step, in its pages until that step has
     * ended. Steps of a merged adapter are all its own rows, and have no segments: they run as the
     * base's do. Cost: none where the device holds it already; else that step begins with it, which
     * reads and writes every projection once: 28 GB of Llama-3.1-8B, 7 to 10 ms of an H200. */
    void (*merge)(struct kern_device *d, uint32_t adapter);

    /* Checks the step against the limits (CHECK: the caller is our own loop), takes the deltas. */
    enum err (*step_begin)(struct kern_device *d, const struct kern_step *step);
    void (*embed)(struct kern_device *d); /* tokens → x, and norm(x) for layer 0 */
    void (*qkv)(struct kern_device *d,
                uint32_t layer); /* → q; K, V into pages; bias, LoRA, norms, rope */
    void (*attention)(struct kern_device *d, uint32_t layer);
    void (*attn_out)(struct kern_device *d, uint32_t layer); /* x += …; norm for the MLP */
    void (*gate_up)(struct kern_device *d, uint32_t layer);  /* silu(gate) · up */
    void (*down)(struct kern_device *d,
                 uint32_t layer);          /* x += …; norm for the next layer or head */
    void (*head)(struct kern_device *d);   /* logits of the sampling rows */
    void (*sample)(struct kern_device *d); /* → the slots' last tokens, and results */
    enum err (*step_end)(struct kern_device *d, uint64_t *ticket);

    /* Waits for a step and copies its results, [count] as the step had sampling chunks. Each step
     * is read once, in order; at most two may be unread, the one that step_begin opens included. */
    enum err (*step_read)(struct kern_device *d, uint64_t ticket, struct kern_sample *samples,
                          uint32_t count);
    /* Of the step that was read last. */
    void (*span)(const struct kern_device *d, struct kern_span *span);
    /* Measures them, in some 0.2 s; between steps only. */
    enum err (*peaks)(struct kern_device *d, struct kern_peaks *peaks);
    /* For tests: the f32 logits [vocab] of sampling row `row` of the last ended step. */
    enum err (*logits)(struct kern_device *d, uint32_t row, float *logits);
};

const struct kern_ops *kern_cpu(void);
/* Where the build has LORRY_CUDA. _present: a GPU answers whose compute capability the kernels
 * know; whether this build has code for it is known at open. false: why names what is missing. */
const struct kern_ops *kern_cuda(void);
bool kern_cuda_present(struct err_text *why);
/* "cpu", "cuda", or "auto": CUDA where this build has it and a GPU answers, else the CPU. NULL with
 * `why`: this build or this machine has no such device. */
const struct kern_ops *kern_find(const char *kind, struct err_text *why);

/* The reference of a sampler, for every device; in this order: log-probabilities of the raw logits
 * (as OpenAI and vLLM give them: before penalties and temperature), penalties, the draw. */

/* The log-softmax of `logits` [vocab] at `out->token`, and of the `top_count` (at most the
 * vocabulary) greatest, descending, lowest id first on ties. A NaN counts as −∞. Thread: any. */
void kern_logprobs_cpu(const float *logits, uint32_t vocab, uint32_t top_count,
                       struct kern_sample *out);

/* seen [vocab]: how often the sequence's output holds a token; this bit: its prompt does. */
#define KERN_SEEN_PROMPT (UINT32_C(1) << 31)
bool kern_penalises(const struct kern_slot_set *params);
/* vLLM's penalties: of a token in prompt or output, a positive logit is divided by
 * repetition_penalty and another multiplied; then, of a token in the output, frequency_penalty ×
 * its count and presence_penalty are taken away. Thread: any. */
void kern_penalties_cpu(float *logits, uint32_t vocab, const struct kern_slot_set *params,
                        const uint32_t *seen);

/* The token that is drawn. `logits` [vocab] is overwritten.
 * temperature 0: the greatest, lowest id on ties. Else logits / temperature → the top_k greatest
 * (all that tie with the k-th stay) → the least set, from the most probable on, whose probability
 * reaches top_p (of equal ones the lowest ids) → those of at least min_p times the greatest
 * probability (transformers' order; vLLM's first engine had it, its second cuts min_p before top_k)
 * → the first id, ascending, up to which the kept probability exceeds u · all kept. u is word 0 of
 * kern_random(seed, position, 0) times 2⁻³², where position is that of the token being drawn. A NaN
 * counts as −∞; top_p below 0 keeps one token.
 * Thread: any. Cost: some passes over the row; no sort, no allocation. */
uint32_t kern_sample_cpu(float *logits, uint32_t vocab, const struct kern_slot_set *params,
                         uint32_t position);

/* Philox 4x32-10 with key (seed low, seed high) and counter (position, round, 0, 0). */
void kern_random(uint64_t seed, uint32_t position, uint32_t round, uint32_t out[4]);

#endif
