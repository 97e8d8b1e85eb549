/* device.c - the CUDA device: open, close, the pool, loads, and the table of operations. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "kernels/checks.h"
#include "kernels/cuda/cuda.h"

enum {
    CAPABILITY_MIN = 80,
    VOCAB_MULTIPLE = 8,
};

/* ---- what this device takes --------------------------------------------------------------- */

static bool head_dim_known(uint32_t head_dim) {
    return head_dim == 32 || head_dim == 64 || head_dim == 80 || head_dim == 96 || head_dim == 128;
}

static enum err shape_check(const struct kern_shape *s, struct err_text *why) {
    enum err e = kern_shape_check(s, why);
    if (e != ERR_OK) {
        return e;
    }
    if (!head_dim_known(s->head_dim)) {
        return err_set_field(why, ERR_BAD_MODEL, "head_dim",
                             "head_dim %u: the CUDA device takes 32, 64, 80, 96 and 128",
                             s->head_dim);
    }
    if (s->hidden % 8 != 0 || s->intermediate % 8 != 0) {
        return err_set_field(why, ERR_BAD_MODEL,
                             s->hidden % 8 != 0 ? "hidden_size" : "intermediate_size",
                             "hidden_size %u and intermediate_size %u: the CUDA device takes "
                             "multiples of 8",
                             s->hidden, s->intermediate);
    }
    return ERR_OK;
}

/* Of the first GPU, 10 × major + minor; 0: it does not say. Makes no context on it. */
static int capability_of_gpu(void) {
    int major = 0, minor = 0;
    bool told =
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess &&
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0) == cudaSuccess;
    return told ? major * 10 + minor : 0;
}

bool kern_cuda_present(struct err_text *why) {
    int count = 0;
    cudaError_t result = cudaGetDeviceCount(&count);
    if (result != cudaSuccess || count == 0) {
        (void)cudaGetLastError();
        (void)err_set(why, ERR_BAD_CONFIG, "no GPU answers: %s",
                      result == cudaSuccess ? "none is there" : cudaGetErrorString(result));
        return false;
    }
    int capability = capability_of_gpu();
    if (capability < CAPABILITY_MIN) {
        (void)cudaGetLastError();
        (void)err_set(why, ERR_BAD_CONFIG,
                      "the GPU has compute capability %d.%d; %d.%d is the least", capability / 10,
                      capability % 10, CAPABILITY_MIN / 10, CAPABILITY_MIN % 10);
        return false;
    }
    return true;
}

/* ---- memory ------------------------------------------------------------------------------- */

static uint32_t max_u32(uint32_t a, uint32_t b) {
    return a > b ? a : b;
}

static enum err tables_take(struct kern_device *d, struct err_text *why) {
    const struct kern_limits *l = &d->limits;
    struct cuda_tables *t = &d->tables;
    t->slot_page_row = l->slot_pages;
    t->adapter_page_row = l->adapter_pages;
    t->lora_row = kern_lora_count(d->shape.layers);
    const uint64_t adapters = max_u32(l->adapters, 1);
    const struct {
        void **out;
        uint64_t bytes;
    } parts[] = {
        {(void **)&t->slots, l->slots * sizeof t->slots[0]},
        {(void **)&t->slot_pages, (uint64_t)l->slots * l->slot_pages * sizeof(uint32_t)},
        {(void **)&t->adapters, adapters * sizeof t->adapters[0]},
        {(void **)&t->lora, adapters * t->lora_row * sizeof t->lora[0]},
        {(void **)&t->adapter_pages, adapters * l->adapter_pages * sizeof(uint32_t)},
    };
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        enum err e = cuda_take(d, parts[i].out, parts[i].bytes, "the tables", why);
        if (e != ERR_OK) {
            return e;
        }
    }
    return ERR_OK;
}

static enum err activations_take(struct kern_device *d, struct err_text *why) {
    const struct kern_shape *s = &d->shape;
    const uint64_t rows = d->rows_max, samples = d->sample_rows_max, two = sizeof(uint16_t);
    const struct {
        void **out;
        uint64_t bytes;
    } parts[] = {
        {&d->x, rows * s->hidden * two},
        {&d->normed, rows * s->hidden * two},
        {&d->qkv, rows * d->qkv_cols * two},
        {&d->attended, rows * d->q_cols * two},
        {&d->gate_up, rows * 2 * s->intermediate * two},
        {&d->act, rows * s->intermediate * two},
        {&d->head_in, samples * s->hidden * two},
        {(void **)&d->logits, samples * d->vocab_row * sizeof(float)},
        {(void **)&d->cos_sin, rows * s->head_dim * sizeof(float)},
        {&d->lora_scratch, cuda_lora_scratch_bytes(d)},
        {&d->lora_packed, cuda_lora_packed_bytes(d)},
        {&d->attention_scratch, cuda_attention_scratch_bytes(d)},
        {&d->sample_scratch, cuda_sample_scratch_bytes(d)},
        {(void **)&d->results, samples * sizeof d->results[0]},
        {(void **)&d->rope_freq, s->head_dim / 2 * sizeof(float)},
    };
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        enum err e = cuda_take(d, parts[i].out, parts[i].bytes, "the activations", why);
        if (e != ERR_OK) {
            return e;
        }
    }
    CU_TRY(why, cudaMemcpyAsync(d->rope_freq, s->rope_freq, s->head_dim / 2 * sizeof(float),
                                cudaMemcpyHostToDevice, d->stream));
    CU_TRY(why, cudaStreamSynchronize(d->stream));
    return ERR_OK;
}

/* ---- open and close ----------------------------------------------------------------------- */

static void device_close(struct kern_device *d) {
    if (d == NULL) {
        return;
    }
    (void)cudaDeviceSynchronize(); /* a failed device says so again; there is nobody left to tell */
    cuda_graphs_close(d);
    cuda_steps_close(d);
    cuda_linears_close(d);
    cuda_wide_close(d);
    cuda_loads_close(d);
    cuda_weights_close(d);
    cuda_memory_close(d);
    if (d->stream != NULL) {
        (void)cudaStreamDestroy(d->stream);
    }
    if (d->loads != NULL) {
        (void)cudaStreamDestroy(d->loads);
    }
    free(d);
}

/* The driver's, asked for by name: the driver is no library that we link. */
static void map_encode_find(struct kern_device *d) {
    enum { VERSION = 12000 };
    enum cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &d->map_encode, VERSION,
                                         cudaEnableDefault, &found) != cudaSuccess ||
        found != cudaDriverEntryPointSuccess) {
        (void)cudaGetLastError();
        d->map_encode = NULL;
    }
}

static enum err runtime_open(struct kern_device *d, struct err_text *why) {
    struct err_text absent = {0};
    if (!kern_cuda_present(&absent)) {
        return err_set(why, ERR_DEVICE, "%s", absent.message);
    }
    d->capability = capability_of_gpu();
    /* The loop runs one step ahead: a wait may sleep. */
    CU_TRY(why, cudaSetDeviceFlags(cudaDeviceScheduleBlockingSync));
    CU_TRY(why, cudaSetDevice(0));
    CU_TRY(why, cudaDeviceGetAttribute(&d->sm_count, cudaDevAttrMultiProcessorCount, 0));
    d->launches_early = d->capability / 10 == 9 && cuda_code_waits();
    map_encode_find(d);
    int low = 0, high = 0;
    CU_TRY(why, cudaDeviceGetStreamPriorityRange(&low, &high));
    CU_TRY(why, cudaStreamCreateWithPriority(&d->stream, cudaStreamNonBlocking, high));
    CU_TRY(why, cudaStreamCreateWithPriority(&d->loads, cudaStreamNonBlocking, low));
    return ERR_OK;
}

/* What follows from shape and limits. */
static void sizes_set(struct kern_device *d) {
    const struct kern_shape *s = &d->shape;
    d->elem = s->dtype == KERN_F16 ? KERN_F16 : KERN_BF16;
    d->q_cols = s->heads * s->head_dim;
    d->kv_cols = s->kv_heads * s->head_dim;
    d->qkv_cols = d->q_cols + 2 * d->kv_cols;
    d->vocab_row = cuda_round_up(s->vocab, VOCAB_MULTIPLE);
    d->page_elems = kern_page_elems(s, d->limits.page_tokens);
    uint64_t positions = (uint64_t)d->limits.slot_pages * d->limits.page_tokens;
    d->positions = positions < s->positions ? (uint32_t)positions : s->positions;
    d->rows_max = cuda_rows(d->limits.step_tokens);
    d->sample_rows_max = cuda_rows(d->limits.step_samples);
}

static enum err parts_open(struct kern_device *d, struct err_text *why) {
    enum err e = cuda_weights_take(d, why);
    if (e == ERR_OK) {
        e = cuda_merge_open(d, why);
    }
    if (e == ERR_OK) {
        e = tables_take(d, why);
    }
    if (e == ERR_OK) {
        e = activations_take(d, why);
    }
    if (e == ERR_OK) {
        e = cuda_steps_open(d, why);
    }
    if (e == ERR_OK) {
        e = cuda_loads_open(d, why);
    }
    if (e == ERR_OK) {
        e = cuda_attention_open(d, why);
        cuda_lora_norm_open(d);
    }
    if (e == ERR_OK) {
        e = cuda_lora_open(d, why);
    }
    if (e == ERR_OK) {
        e = cuda_linears_open(d, why);
    }
    if (e == ERR_OK) {
        e = cuda_wide_open(d, why);
    }
    return e == ERR_OK ? cuda_graphs_open(d, why) : e;
}

static enum err device_open(struct kern_device **out, const struct kern_shape *shape,
                            const struct kern_limits *limits, struct err_text *why) {
    enum err e = shape_check(shape, why);
    if (e == ERR_OK) {
        e = kern_limits_check(shape, limits, why);
    }
    if (e != ERR_OK) {
        return e;
    }
    struct kern_device *d = calloc(1, sizeof *d);
    if (d == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for the device");
    }
    d->shape = *shape;
    d->limits = *limits;
    sizes_set(d);
    e = runtime_open(d, why);
    if (e == ERR_OK) {
        e = parts_open(d, why);
    }
    d->shape.rope_freq = NULL; /* the caller's */
    d->limits.cache_dir = NULL;
    if (e != ERR_OK) {
        device_close(d);
        return e;
    }
    *out = d;
    return ERR_OK;
}

static enum kern_dtype device_elem(const struct kern_device *d) {
    return d->elem;
}

/* ---- the pool ----------------------------------------------------------------------------- */

static uint64_t device_pool_room(struct kern_device *d) {
    size_t room = 0, all = 0;
    CHECK(d->phase == CUDA_IDLE);
    if (cudaStreamSynchronize(d->stream) != cudaSuccess ||
        cudaMemGetInfo(&room, &all) != cudaSuccess) {
        return 0; /* pool() will say why */
    }
    return room;
}

static enum err device_pool(struct kern_device *d, uint32_t page_count, struct err_text *why) {
    CHECK(page_count > 0);
    CHECK(d->planes == NULL);
    enum err e = kern_tensors_ready(&d->shape, d->given, why);
    if (e != ERR_OK) {
        return e;
    }
    uint64_t page_bytes = d->page_elems * sizeof(uint16_t) * d->shape.layers;
    if (page_count > UINT64_MAX / 2 / page_bytes) {
        return err_set(why, ERR_NO_SPACE, "%u pages of %llu bytes: no such memory", page_count,
                       (unsigned long long)page_bytes);
    }
    e = cuda_take(d, (void **)&d->history,
                  (uint64_t)page_count * d->limits.page_tokens * sizeof(uint32_t), "the pool", why);
    if (e == ERR_OK) {
        e = cuda_take(d, &d->planes, page_count * page_bytes, "the pool", why);
    }
    if (e != ERR_OK) {
        return e;
    }
    d->page_count = page_count;
    cuda_merge_keep(d);
    CU_TRY(why, cudaStreamSynchronize(d->stream));
    return cuda_lora_pool(d, why);
}

static enum err device_pin(void *base, uint64_t bytes) {
    cudaError_t result = cudaHostRegister(base, bytes, cudaHostRegisterDefault);
    if (result != cudaSuccess) {
        (void)cudaGetLastError();
        log_warn("device", "host memory cannot be pinned bytes=%llu error=%s",
                 (unsigned long long)bytes, cudaGetErrorName(result));
        return ERR_NO_SPACE;
    }
    return ERR_OK;
}

static void device_unpin(void *base, uint64_t bytes) {
    (void)bytes;
    (void)cudaHostUnregister(base); /* after a fault it fails: the process ends anyway */
}

/* ---- for tests ---------------------------------------------------------------------------- */

static enum err device_logits(struct kern_device *d, uint32_t row, float *logits) {
    CHECK(d->phase == CUDA_IDLE);
    CHECK(row < d->sample_rows);
    CU_TRY(&d->fault, cudaStreamSynchronize(d->stream));
    CU_TRY(&d->fault, cudaMemcpy(logits, d->logits + (uint64_t)row * d->vocab_row,
                                 d->shape.vocab * sizeof(float), cudaMemcpyDeviceToHost));
    return ERR_OK;
}

/* ---- the layer loop ----------------------------------------------------------------------- */

/* Whether a block's kernels are to be put on the stream: not where a graph holds them. */
static bool launches(const struct kern_device *d, enum cuda_part part) {
    CHECK(d->phase != CUDA_IDLE);
    return (d->parts & part) != 0;
}

static void device_embed(struct kern_device *d) {
    if (launches(d, CUDA_BODY)) {
        cuda_embed_rows(d);
        if (d->lora_rows) {
            cuda_lora_embed(d);
        }
        cuda_norm_rows(d, d->layers[0].input_norm, CUDA_QKV, 0);
    }
}

/* A layer's product and, in steps with LoRA, what the adapters' A make of the same input: one
 * behind the other, since beside it on a stream of its own it gave nothing (lora_shrink.cu). True:
 * LoRA's part is in y already, and of gate and up it is act that was made. */
static bool linear(struct kern_device *d, uint32_t layer, enum cuda_linear which, const void *x,
                   void *y) {
    static const enum cuda_group groups[] = {[CUDA_QKV] = CUDA_GROUP_QKV,
                                             [CUDA_O] = CUDA_GROUP_O,
                                             [CUDA_GATE_UP] = CUDA_GROUP_GATE_UP,
                                             [CUDA_DOWN] = CUDA_GROUP_DOWN};
    if (cuda_linear_is_wide(d, which)) {
        if (d->lora_rows) {
            cuda_lora_shrink(d, layer, groups[which], x);
            cuda_lora_pack(d, layer, groups[which]);
        }
        cuda_linear_wide(d, which, layer);
        return true;
    }
    cuda_linear(d, which, cuda_layer_matrix(&d->layers[layer], which), x, y);
    if (d->lora_rows) {
        cuda_lora_shrink(d, layer, groups[which], x);
    }
    return !d->lora_rows && which != CUDA_GATE_UP;
}

static void device_qkv(struct kern_device *d, uint32_t layer) {
    CHECK(layer < d->shape.layers);
    if (launches(d, CUDA_BODY)) {
        if (linear(d, layer, CUDA_QKV, d->normed, d->qkv)) {
            cuda_qkv_rows(d, layer);
        } else {
            cuda_lora_qkv_rows(d, layer);
        }
    }
}

static void device_attention(struct kern_device *d, uint32_t layer) {
    if (launches(d, CUDA_BODY)) {
        if (d->mixed) {
            cuda_attention_prefill(d, layer);
        }
        cuda_attention_decode(d, layer);
    }
}

static void device_attn_out(struct kern_device *d, uint32_t layer) {
    if (launches(d, CUDA_BODY)) {
        const float *w = d->layers[layer].post_norm;
        if (linear(d, layer, CUDA_O, d->attended, d->x)) {
            cuda_norm_rows(d, w, CUDA_GATE_UP, layer);
        } else {
            cuda_lora_norm_rows(d, layer, CUDA_GROUP_O, w, CUDA_GATE_UP, layer);
        }
    }
}

static void device_gate_up(struct kern_device *d, uint32_t layer) {
    if (launches(d, CUDA_BODY)) {
        if (linear(d, layer, CUDA_GATE_UP, d->normed, d->gate_up)) {
            return;
        }
        if (d->lora_rows) {
            cuda_lora_act_rows(d, layer);
        } else {
            cuda_act_rows(d, layer);
        }
    }
}

static void device_down(struct kern_device *d, uint32_t layer) {
    if (launches(d, CUDA_BODY)) {
        const bool ready = linear(d, layer, CUDA_DOWN, d->act, d->x);
        const bool last = layer + 1 == d->shape.layers; /* the head norms the rows that it needs */
        const float *w = last ? NULL : d->layers[layer + 1].input_norm;
        if (!last && ready) {
            cuda_norm_rows(d, w, CUDA_QKV, layer + 1);
        } else if (!last) {
            cuda_lora_norm_rows(d, layer, CUDA_GROUP_DOWN, w, CUDA_QKV, layer + 1);
        } else if (!ready) {
            cuda_lora_expand(d, layer, CUDA_GROUP_DOWN, d->x);
        }
    }
}

static void device_head(struct kern_device *d) {
    if (launches(d, CUDA_TAIL)) {
        cuda_head_rows(d);
        cuda_linear(d, CUDA_HEAD, d->head, d->head_in, d->logits);
        if (d->lora_rows) {
            cuda_lora_head(d);
        }
    }
}

static void device_sample(struct kern_device *d) {
    if (launches(d, CUDA_TAIL)) {
        cuda_sample_rows(d);
    }
}

const struct kern_ops *kern_cuda(void) {
    static const struct kern_ops ops = {
        .name = "cuda",
        .open = device_open,
        .close = device_close,
        .elem = device_elem,
        .weight = cuda_weight,
        .weights_random = cuda_weights_random,
        .bucket_count = cuda_bucket_count,
        .bucket_begin = cuda_bucket_begin,
        .bucket_end = cuda_bucket_end,
        .pool_room = device_pool_room,
        .pool = device_pool,
        .pin = device_pin,
        .unpin = device_unpin,
        .load = cuda_load,
        .event_done = cuda_load_done,
        .merge = cuda_merge,
        .step_begin = cuda_step_begin,
        .embed = device_embed,
        .qkv = device_qkv,
        .attention = device_attention,
        .attn_out = device_attn_out,
        .gate_up = device_gate_up,
        .down = device_down,
        .head = device_head,
        .sample = device_sample,
        .step_end = cuda_step_end,
        .step_read = cuda_step_read,
        .span = cuda_span,
        .peaks = cuda_peaks,
        .logits = device_logits,
    };
    return &ops;
}
