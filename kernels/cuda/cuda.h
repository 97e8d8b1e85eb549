/* cuda.h - the CUDA device: its memory, its tables, and what its files say to each other. Inside
 * kernels/cuda/ only.
 *
 * Elements are the model's 16-bit type (f16 or bf16, `d->elem`), sums are f32. Host code is C,
 * kernels are .cu files; a launcher takes the device and the layer, reads shapes and addresses from
 * `d`, and puts its kernels on d->stream. What varies from step to step lies in the metadata block
 * at a fixed device address (struct cuda_meta), so that launches can be captured in a graph: a
 * launcher may look at d->rows, d->sample_rows, d->mixed and d->lora_rows (the bucket), never at
 * the step itself.
 *
 * Rows: activations have d->rows rows, the step's tokens first, then padding. Padding rows are zero
 * after embed() and may hold anything finite later; they write no KV and no results.
 *
 * Thread: the loop thread, but for pin() and unpin(). */
#ifndef LORRY_KERNELS_CUDA_CUDA_H
#define LORRY_KERNELS_CUDA_CUDA_H

#include <stdbool.h>
#include <stdint.h>

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "kernels/cuda/attention.h"
#include "kernels/cuda/lora.h"
#include "kernels/kernels.h"

enum {
    CUDA_UNREAD_MAX = 2, /* steps begun and not read */
    CUDA_TIMED_STEPS = CUDA_UNREAD_MAX + 1,
    CUDA_ALIGN = 256,           /* of everything that is carved from one allocation */
    CUDA_GRAPH_TOKENS = 1024,   /* a step of more tokens is launched eagerly */
    CUDA_MIXED_TOKENS = 512,    /* likewise one with prefill chunks */
    CUDA_NORM_VARIANTS = 3,     /* of a kernel in lora_norm.cu */
    CUDA_FEW_ROWS = 16,         /* up to here linear_few.cu has a kernel */
    CUDA_AHEAD_ROWS = 64,       /* up to here linears wait for memory alone */
    CUDA_AHEAD_BYTES = 8 << 20, /* what memory brings in the time of a small kernel */
};

#define CU_TRY(why, call)                            \
    do {                                             \
        cudaError_t cu_result = (call);              \
        if (cu_result != cudaSuccess) {              \
            return cuda_fail(why, cu_result, #call); \
        }                                            \
    } while (0)

/* ERR_NO_SPACE for device memory, else ERR_DEVICE; `why` names the call. */
enum err cuda_fail(struct err_text *why, cudaError_t result, const char *call);

/* ---- tables that live on the device ------------------------------------------------------- */

struct cuda_slot {
    uint64_t seed;
    float temperature, top_p, min_p;
    float repetition_penalty, presence_penalty, frequency_penalty;
    uint32_t top_k;
    uint32_t prompt_tokens; /* positions from here on are output */
    uint32_t penalises, logprobs, top_logprobs;
    uint32_t last; /* sampled last; written by the sampler */
    uint32_t done; /* a stop token was sampled; written by the sampler */
    uint32_t stop_count;
    uint32_t stop[KERN_STOP_TOKENS_MAX];
};

struct cuda_adapter {
    uint32_t layer_pages, outer_pages; /* of its two lists */
};

struct cuda_tables {
    struct cuda_slot *slots; /* [slots] */
    uint32_t *slot_pages;    /* [slots][slot_pages], set as far as the slot has tokens */
    struct cuda_adapter *adapters;
    struct kern_lora *lora;                             /* [adapters][kern_lora_count(layers)] */
    uint32_t *adapter_pages;                            /* [adapters][adapter_pages] */
    uint32_t slot_page_row, adapter_page_row, lora_row; /* entries from row to row of the above */
};

/* ---- a step's metadata -------------------------------------------------------------------- */

struct cuda_token {
    uint32_t id; /* KERN_TOKEN_LAST: what the slot sampled last; embed() writes the id itself */
    uint32_t slot, position;
};

struct cuda_sample {
    uint32_t token; /* the row */
    uint32_t slot;
    uint32_t position; /* of the token that will be drawn */
};

/* One upload a step, at a fixed address; its arrays lie behind it, where the pointers say. */
struct cuda_meta {
    void *planes;         /* [layers][page_count][page_elems] elements */
    uint32_t *history;    /* [page_count][page_tokens] ids of the tokens whose KV a page holds */
    uint64_t plane_elems; /* page_count × page_elems: from layer to layer */
    struct cuda_token *tokens;         /* [token_count] */
    const struct cuda_sample *samples; /* [sample_count] */
    struct kern_sample *results;       /* [sample_count], device memory */
    uint32_t token_count, sample_count;
    struct cuda_attention_meta attention;
    struct cuda_lora_meta lora;
};

/* Pinned host memory that is filled from front to back, then copied to the device in one go. */
struct cuda_block {
    unsigned char *host, *device;
    uint64_t used, bytes;
};
/* Room for `bytes`, aligned to 16, contents undefined. CHECKs that there is room: the caller's sums
 * at open are bounds. */
void *cuda_block_take(struct cuda_block *b, uint64_t bytes);
bool cuda_block_has_room(const struct cuda_block *b, uint64_t bytes);
/* Where it will be on the device. */
void *cuda_block_device(const struct cuda_block *b, const void *host);
void cuda_block_upload(struct kern_device *d, const struct cuda_block *b); /* on d->stream */

/* ---- linears ------------------------------------------------------------------------------ */

enum cuda_linear { CUDA_QKV, CUDA_O, CUDA_GATE_UP, CUDA_DOWN, CUDA_HEAD, CUDA_LINEARS };

struct cuda_linears; /* linear.c */
struct cuda_wide;    /* linear_wide.cu */

/* ---- weights ------------------------------------------------------------------------------ */

struct cuda_layer {
    void *qkv;                     /* [q + 2 kv][hidden] elements: q, k, v one after the other */
    void *o;                       /* [hidden][q] */
    void *gate_up;                 /* [2 × intermediate][hidden]: gate, then up */
    void *down;                    /* [hidden][intermediate] */
    void *given[CUDA_HEAD];        /* limits.merging: the same four as the checkpoint has them */
    float *input_norm, *post_norm; /* [hidden] */
    float *qkv_bias;               /* [q + 2 kv]; NULL: none */
    float *q_norm, *k_norm;        /* [head_dim]; NULL: none */
};

/* ---- the device --------------------------------------------------------------------------- */

enum cuda_phase { CUDA_IDLE, CUDA_IN_STEP, CUDA_CAPTURING };

/* The two halves of a step, each with graphs of its own: the layers, by rows; head and sampling, by
 * sampling rows. */
enum cuda_part { CUDA_BODY = 1, CUDA_TAIL = 2 };

struct kern_device {
    struct kern_shape shape;
    struct kern_limits limits;
    enum kern_dtype elem; /* KERN_F16 or KERN_BF16 */
    int sm_count;         /* multiprocessors */
    int capability;       /* 80, 90, … */
    bool launches_early;  /* kernels may start before the one in front ends; common.cuh */
    cudaStream_t stream;  /* the steps */
    cudaStream_t loads;   /* adapter images → pages */

    uint32_t q_cols, kv_cols, qkv_cols; /* heads × head_dim, kv_heads × head_dim, q + 2 kv */
    uint32_t vocab_row; /* floats from row to row of logits: vocab up to a multiple of 8 */
    uint64_t page_elems;
    uint32_t positions;                 /* longest context that shape and slots allow */
    uint32_t rows_max, sample_rows_max; /* of activations and logits */

    uint64_t bytes;             /* of device memory taken */
    struct cuda_memory *memory; /* every allocation; memory.c */
    struct cuda_layer *layers;  /* host array */
    void *embed, *head;         /* [vocab][hidden]; the same where tied */
    float *final_norm;
    uint8_t *given;              /* which tensors came; weights.c */
    uint32_t merged, merge_next; /* adapters, or KERN_BASE: what layers hold; from a step on */
    float *rope_freq;            /* device, [head_dim / 2] */

    struct cuda_tables tables;
    void *planes;
    uint32_t *history;
    uint32_t page_count;

    /* activations, device */
    void *x;                     /* residual, [rows][hidden] */
    void *normed;                /* [rows][hidden] */
    void *qkv;                   /* [rows][qkv_cols]; q roped in place */
    void *attended;              /* [rows][q_cols] */
    void *gate_up;               /* [rows][2 × intermediate] */
    void *act;                   /* [rows][intermediate] */
    void *head_in;               /* [sample_rows][hidden] */
    float *logits;               /* [sample_rows][vocab_row] */
    float *cos_sin;              /* [rows][head_dim / 2][2], dealt as qkv_angle() says */
    void *lora_scratch;          /* cuda_lora_scratch_bytes(): x Aᵀ between shrink and expand */
    void *lora_packed;           /* cuda_lora_packed_bytes(): the same as operands */
    void *attention_scratch;     /* cuda_attention_scratch_bytes() */
    void *sample_scratch;        /* cuda_sample_scratch_bytes() */
    struct kern_sample *results; /* [step_samples] */

    /* the bucket of the step: all that a launch may depend on */
    uint32_t rows;        /* of activations, padding included */
    uint32_t sample_rows; /* of logits, padding included */
    bool mixed;           /* has chunks of more than one token */
    bool lora_rows;       /* has segments */

    uint32_t norm_clusters[CUDA_NORM_VARIANTS]; /* lora_norm.cu's; fixed at open; 0: no such */
    bool hopper_attention; /* attention_hopper.cu does prefill; fixed at open */
    bool hopper_shrink;    /* likewise lora_shrink_hopper.cu does all of LoRA's shrink */
    bool few_linears;      /* linear_few.cu can run; fixed at open */
    void *map_encode;      /* the driver's cuTensorMapEncodeTiled, for boxes.cuh; NULL: none */

    struct cuda_meta *meta; /* on the device, fixed; only kernels read it */
    struct cuda_linears *linears;
    struct cuda_wide *wide;       /* NULL: linear_wide.cu cannot run; fixed at open */
    bool wide_always;             /* set by tests: it does all that it can, whatever is faster */
    struct cuda_graphs *graphs;   /* graph.c */
    struct cuda_steps *steps;     /* step.c */
    struct cuda_loads *load_ring; /* load.c */
    struct cuda_staging *staging; /* weights.c */
    enum cuda_phase phase;
    unsigned parts; /* of enum cuda_part: what the blocks launch now; the rest is in graphs */
    struct err_text fault; /* of the call that failed first */
    enum err failed;       /* sticky */
};

static inline uint32_t cuda_round_up(uint32_t value, uint32_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

/* Rows of activations for a step of `tokens`: few sizes, so that each has its graph and its choice
 * of algorithms. */
uint32_t cuda_rows(uint32_t tokens);
/* The size's number, from 0 on; ascending. */
uint32_t cuda_rows_index(uint32_t rows);

/* ---- memory.c ----------------------------------------------------------------------------- */

/* Zeroed memory that lives as long as the device. ERR_NO_SPACE says what does not fit, with
 * figures. */
enum err cuda_take(struct kern_device *d, void **out, uint64_t bytes, const char *what,
                   struct err_text *why);
enum err cuda_take_host(struct kern_device *d, void **out, uint64_t bytes, struct err_text *why);
void cuda_memory_close(struct kern_device *d);
/* Keeps the first failure of a launch; step_end() returns it. */
void cuda_note(struct kern_device *d, cudaError_t result, const char *call);

/* ---- weights.c, convert.cu ---------------------------------------------------------------- */

enum err cuda_weights_take(struct kern_device *d, struct err_text *why);
void cuda_weights_close(struct kern_device *d);
enum err cuda_weight(struct kern_device *d, const struct kern_weight *w, struct err_text *why);
enum err cuda_weights_random(struct kern_device *d, uint64_t seed, struct err_text *why);
/* `count` elements of `dtype`, in device or pinned memory → the device's elements. */
void cuda_convert(struct kern_device *d, const void *from, enum kern_dtype dtype, void *to,
                  uint64_t count);
/* Normal deviates × 0.02 of tensor `tensor` (a number of its own), as kernels/random_weights.h
 * says. */
void cuda_fill_random(struct kern_device *d, void *to, uint64_t count, uint64_t seed,
                      uint32_t tensor);
void cuda_fill_floats(struct kern_device *d, float *to, uint64_t count, float value);

/* One of a layer's four, and its bytes. */
void *cuda_layer_matrix(const struct cuda_layer *layer, enum cuda_linear which);
uint64_t cuda_layer_matrix_bytes(const struct kern_device *d, enum cuda_linear which);

/* ---- merge.c ------------------------------------------------------------------------------ */

#define CUDA_MERGED_GONE (KERN_BASE - 1) /* as d->merged: an adapter that is no more */

/* Takes the memory that merging needs; then, once all weights have come, copies the matrices. */
enum err cuda_merge_open(struct kern_device *d, struct err_text *why);
void cuda_merge_keep(struct kern_device *d);
void cuda_merge(struct kern_device *d, uint32_t adapter);
/* Does what was asked for: behind a step's deltas, in front of its metadata's upload, which starts
 * when all in front of it has ended. */
void cuda_merge_step(struct kern_device *d);

/* ---- merge.cu ----------------------------------------------------------------------------- */

/* What the runtime must be told once of the kernel. */
enum err cuda_merge_kernel_open(struct kern_device *d, struct err_text *why);
/* A layer's matrices = given + scale · B A of adapter d->merge_next. After layer 0's, the others'
 * directly behind. */
void cuda_merge_layer(struct kern_device *d, uint32_t layer);

/* ---- step.c, deltas.cu -------------------------------------------------------------------- */

enum err cuda_steps_open(struct kern_device *d, struct err_text *why);
void cuda_steps_close(struct kern_device *d);
enum err cuda_step_begin(struct kern_device *d, const struct kern_step *step);
enum err cuda_step_end(struct kern_device *d, uint64_t *ticket);
enum err cuda_step_read(struct kern_device *d, uint64_t ticket, struct kern_sample *samples,
                        uint32_t count);
void cuda_span(const struct kern_device *d, struct kern_span *span);

struct cuda_slot_delta {
    uint32_t slot;
    struct cuda_slot value;
};
struct cuda_adapter_delta {
    uint32_t adapter;
    struct cuda_adapter value;
    const struct kern_lora *lora; /* [lora_row], device */
    const uint32_t *pages;        /* [layer_pages + outer_pages], device */
};
struct cuda_deltas { /* a delta block's head; pointers are device addresses into the block */
    const struct cuda_slot_delta *slots;
    const struct kern_slot_page *pages;
    const struct cuda_adapter_delta *adapters;
    uint32_t slot_count, page_count, adapter_count;
};
/* Puts what `deltas` (device) lists into the tables. */
void cuda_apply_deltas(struct kern_device *d, const struct cuda_deltas *deltas);

/* ---- graph.c ------------------------------------------------------------------------------ */

enum err cuda_graphs_open(struct kern_device *d, struct err_text *why);
void cuda_graphs_close(struct kern_device *d);
uint32_t cuda_bucket_count(const struct kern_device *d);
enum err cuda_bucket_begin(struct kern_device *d, uint32_t bucket);
enum err cuda_bucket_end(struct kern_device *d);
/* The graph of a half of the step whose bucket stands in `d`; NULL: it is launched eagerly. */
cudaGraphExec_t cuda_graph(const struct kern_device *d, enum cuda_part part);

/* ---- load.c ------------------------------------------------------------------------------- */

enum err cuda_loads_open(struct kern_device *d, struct err_text *why);
void cuda_loads_close(struct kern_device *d);
enum err cuda_load(struct kern_device *d, const void *image, const uint32_t *pages,
                   uint32_t page_count, uint64_t *event);
bool cuda_load_done(struct kern_device *d, uint64_t event);

/* ---- upload.cu ---------------------------------------------------------------------------- */

/* Copies `words` of 16 bytes of pinned memory to the device, on d->stream; both aligned to 16. */
void cuda_upload(struct kern_device *d, void *to, const void *from, uint32_t words);

/* ---- peaks.c ------------------------------------------------------------------------------ */

enum err cuda_peaks(struct kern_device *d, struct kern_peaks *peaks);

/* ---- linear.c ----------------------------------------------------------------------------- */

enum err cuda_linears_open(struct kern_device *d, struct err_text *why);
void cuda_linears_close(struct kern_device *d);
/* Chooses the algorithms by measuring them with the weights; once, before the first graph. */
enum err cuda_linears_choose(struct kern_device *d, struct err_text *why);
/* y [rows][out] = x [rows][in] Wᵀ; CUDA_O and CUDA_DOWN add to y; CUDA_HEAD's y is f32 logits. */
void cuda_linear(struct kern_device *d, enum cuda_linear which, const void *w, const void *x,
                 void *y);

/* Whether the step's linears of this kind are for cuda_linear_wide(); of a bucket always the same.
 */
bool cuda_linear_is_wide(const struct kern_device *d, enum cuda_linear which);

/* A share of a linear's weights that kernels in front of it fetch into the second-level cache,
 * where these leave the memory idle: of each row of W, at `pieces` places evenly apart, so that a
 * product that is split along its rows finds some at each start. */
struct cuda_ahead {
    const void *at;
    uint32_t rows, row_bytes;           /* rows 0: nothing */
    uint32_t pieces_log2, sectors_log2; /* of a row; of a piece, in 32 bytes */
};
/* What kernels in front of linear `which` of `layer` fetch: `bytes` at most; nothing where kernels
 * do not start early, whose caches may be small, nor for more than CUDA_AHEAD_ROWS rows, nor where
 * linear_few.cu does it for itself. */
struct cuda_ahead cuda_linear_ahead(const struct kern_device *d, enum cuda_linear which,
                                    uint32_t layer, uint64_t bytes);

/* ---- linear_few.cu ------------------------------------------------------------------------ */

struct cuda_product {
    const void *w, *x;      /* [out][in]; [rows][in] */
    void *y;                /* [rows], y_row elements apart */
    uint32_t in, out, rows; /* `in` a multiple of 8; 1 .. CUDA_FEW_ROWS rows */
    uint32_t y_row;
    bool add;    /* to what y holds */
    bool floats; /* y is f32; never with `add` */
};
/* Sets d->few_linears: kernels start early, and the GPU has the shared memory. */
enum err cuda_few_open(struct kern_device *d, struct err_text *why);
void cuda_linear_few(struct kern_device *d, const struct cuda_product *p);

/* ---- linear_wide.cu ----------------------------------------------------------------------- */

/* Sets d->wide where the kernel is built and right for the GPU. After weights and activations. */
enum err cuda_wide_open(struct kern_device *d, struct err_text *why);
void cuda_wide_close(struct kern_device *d);
/* A layer's linear with what follows from it alone: qkv = normed Wᵀ; x += attended Wᵀ or act Wᵀ;
 * act = silu(gate) · up of normed Wᵀ. Any number of rows. Where d->lora_rows, with LoRA's part,
 * after cuda_lora_shrink() and cuda_lora_pack() of the linear's group. */
void cuda_linear_wide(struct kern_device *d, enum cuda_linear which, uint32_t layer);

/* ---- blocks.cu: embedding, norms, rope, activation ---------------------------------------- */

/* Whether the kernels' code is that of sm_90, which knows how to wait for the kernel in front. */
bool cuda_code_waits(void);
void cuda_embed_rows(struct kern_device *d); /* tokens → x; ids, history, cos_sin */
/* x → normed, in front of linear `next` of `layer` */
void cuda_norm_rows(struct kern_device *d, const float *w, enum cuda_linear next, uint32_t layer);
void cuda_qkv_rows(struct kern_device *d, uint32_t layer); /* bias, norms, rope; K, V into pages */
void cuda_act_rows(struct kern_device *d, uint32_t layer); /* silu(gate) · up → act */
void cuda_head_rows(struct kern_device *d); /* x of the sampling rows, normed → head_in */

/* ---- attention_*.cu: qkv and pages → attended --------------------------------------------- */

/* Bytes of scratch that any step within the limits needs. */
uint64_t cuda_attention_scratch_bytes(const struct kern_device *d);
/* Bytes of metadata, likewise. */
uint64_t cuda_attention_meta_bytes(const struct kern_device *d);
/* Fills meta->attention; arrays go into `b`. Host. */
void cuda_attention_plan(const struct kern_device *d, const struct kern_step *step,
                         struct cuda_block *b, struct cuda_meta *meta);
/* What the runtime must be told once of the kernels that the shape needs: their shared memory.
 * ERR_BAD_MODEL: no kernel has the shape's head_dim. */
enum err cuda_attention_open(struct kern_device *d, struct err_text *why);
enum err cuda_decode_open(struct kern_device *d, struct err_text *why);
enum err cuda_prefill_open(struct kern_device *d, struct err_text *why);
/* Chunks of one token, of any context. */
void cuda_attention_decode(struct kern_device *d, uint32_t layer);
/* Chunks of more. Launched in mixed buckets only. */
void cuda_attention_prefill(struct kern_device *d, uint32_t layer);
/* The same on sm_90a. Open sets d->hopper_attention where the kernel is built and
 * right for GPU and shape; it is for cuda_attention_prefill() alone to call the other. */
enum err cuda_hopper_open(struct kern_device *d, struct err_text *why);
void cuda_attention_hopper(struct kern_device *d, uint32_t layer);

/* ---- lora.cu ------------------------------------------------------------------------------ */

/* The projections that share an input. */
enum cuda_group { CUDA_GROUP_QKV, CUDA_GROUP_O, CUDA_GROUP_GATE_UP, CUDA_GROUP_DOWN, CUDA_GROUPS };

/* What the runtime must be told once of the kernels: their shared memory. */
enum err cuda_lora_open(struct kern_device *d, struct err_text *why);
/* Once there is a pool: says where it lies. The kernels of a process know of one pool, the last. */
enum err cuda_lora_pool(struct kern_device *d, struct err_text *why);
/* Bytes of scratch that any step within the limits needs. */
uint64_t cuda_lora_scratch_bytes(const struct kern_device *d);
/* Likewise of what linear_wide.cu reads. */
uint64_t cuda_lora_packed_bytes(const struct kern_device *d);
/* Bytes of metadata, likewise. */
uint64_t cuda_lora_meta_bytes(const struct kern_device *d);
/* Fills meta->lora from the segments and samples. Host. */
void cuda_lora_plan(const struct kern_device *d, const struct kern_step *step, struct cuda_block *b,
                    struct cuda_meta *meta);
/* v = x Aᵀ of the group's projections, in scratch, one for all groups; x [rows][in of the group].
 */
void cuda_lora_shrink(struct kern_device *d, uint32_t layer, enum cuda_group group, const void *x);
/* After that: v for cuda_linear_wide(). */
void cuda_lora_pack(struct kern_device *d, uint32_t layer, enum cuda_group group);
/* y [rows][y_row] += scale · (v Bᵀ + bias), after that group's shrink; projection p's columns begin
 * where the group's buffer has them: qkv, x, gate_up, x. */
void cuda_lora_expand(struct kern_device *d, uint32_t layer, enum cuda_group group, void *y);
/* In steps with LoRA these stand for expand() and cuda_qkv_rows(), cuda_act_rows(): they read qkv
 * or gate_up, add LoRA's part in f32 and go on without rounding in between. gate_up stays as it is.
 */
void cuda_lora_qkv_rows(struct kern_device *d, uint32_t layer);
void cuda_lora_act_rows(struct kern_device *d, uint32_t layer);
/* Likewise for expand() of o or down onto d->x and cuda_norm_rows(d, w, next, next_layer). */
void cuda_lora_norm_rows(struct kern_device *d, uint32_t layer, enum cuda_group group,
                         const float *w, enum cuda_linear next, uint32_t next_layer);
/* Asks the device how much of that kernel it runs at once. At open. */
void cuda_lora_norm_open(struct kern_device *d);
void cuda_lora_embed(struct kern_device *d); /* x += scale · B A[:, token] */
void cuda_lora_head(struct kern_device *d);  /* logits += …, of head_in */

/* ---- sample.cu ---------------------------------------------------------------------------- */

uint64_t cuda_sample_scratch_bytes(const struct kern_device *d);
/* logits → slots' last and done, results. The logits of penalised rows are changed after their
 * log-probabilities were taken. */
void cuda_sample_rows(struct kern_device *d);

#ifdef __cplusplus
}
#endif

#endif
