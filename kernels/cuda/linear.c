/* linear.c - the linears, by cuBLASLt or, of few rows, by linear_few.cu, of many, by
 * linear_wide.cu, whichever is faster: y [rows][out] (+)= x [rows][in] Wᵀ, 16-bit in, f32 sums.
 *
 * cuBLASLt counts by columns: W [out][in] by rows is [in × out] by columns, so D = Wᵀ' x' with the
 * first operand transposed, and D [out × rows] by columns is y. Residuals are added in the epilogue
 * (β = 1 onto d->x), before the one rounding.
 *
 * For each linear and number of rows one algorithm is chosen and kept: first what the cache file
 * says, else the fastest of the library's suggestions and linear_few.cu, measured with the weights
 * of all layers in turn (one layer's could stay in the L2 cache). With few rows a run lasts some
 * ten microseconds and suggestions lie close together: the best are measured again, by turns. Above
 * CUDA_GRAPH_TOKENS rows only each ROWS_MEASURED-th is measured; sizes between take the next one's.
 * linear_wide.cu makes act of gate and up too: the others are measured with the activation. A row's
 * bits then depend on the step's rows alone, never on what the other rows hold. Split-K sums in
 * f32.
 *
 * Cost of choosing: some two seconds for an 8B model, nothing with the file. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cublasLt.h>

#include "base/check.h"
#include "base/log.h"
#include "kernels/cuda/cuda.h"

enum {
    WORKSPACE_BYTES = 64 << 20,
    CANDIDATES = 12,     /* suggestions that are measured */
    CANDIDATES_FEW = 32, /* likewise of few rows, where the library's own order says less */
    FEW_ROWS = 64,
    RUNS = 3,         /* of each, after one to warm up */
    FINALISTS = 4,    /* the fastest, measured again */
    FINAL_ROUNDS = 4, /* so often, and the least time counts */
    FINAL_ROWS = 256, /* up to here: longer runs are measured well enough once */
    ROWS_MEASURED = 1024,
    ALGO_WORDS = sizeof(cublasLtMatmulAlgo_t) / sizeof(uint64_t),
    PATH_BYTES = 4096,
    CACHE_FORMAT = 3,      /* of the file, and of what is measured for it */
    WIDE_ROWS = 256,       /* fewer leave linear_wide.cu without work for most multiprocessors */
    WIDE_LORA_ROWS = 2048, /* with LoRA: steps of fewer, or without prefill, gain nothing */
};

/* linear_wide.cu may take so many times as long as the fastest, and still save time where it adds
 * LoRA's part as well. */
static const float wide_lora_times[] = {
    [CUDA_QKV] = 1.04f, [CUDA_O] = 1.05f, [CUDA_GATE_UP] = 1.0f, [CUDA_DOWN] = 1.015f};

enum { KIND_FEW = 1, KIND_WIDE = 2, KIND_WIDE_LORA = 4 }; /* in the cache file */

struct choice {
    cublasLtMatmulAlgo_t algo;
    bool few;             /* linear_few.cu; `algo` is zeros */
    bool wide, wide_lora; /* linear_wide.cu, in steps without LoRA, in large ones with it */
    bool made;
};

struct cuda_linears {
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t desc;
    cublasLtMatmulPreference_t preference;
    void *workspace;
    struct choice *choices; /* [CUDA_LINEARS][sizes] */
    uint32_t sizes;
    bool chosen;
    char path[PATH_BYTES]; /* of the cache file; empty: none */
    cudaEvent_t begin, end;
};

/* ---- a product's description -------------------------------------------------------------- */

struct product {
    uint32_t in, out, rows, y_row;
    bool add, floats;
    cublasLtMatrixLayoutOpaque_t w, x, y;
};

static enum err lt_fail(struct err_text *why, cublasStatus_t status, const char *call) {
    return err_set(why, ERR_DEVICE, "%s: cuBLASLt status %d", call, (int)status);
}

#define LT_TRY(why, call)                          \
    do {                                           \
        cublasStatus_t lt_status = (call);         \
        if (lt_status != CUBLAS_STATUS_SUCCESS) {  \
            return lt_fail(why, lt_status, #call); \
        }                                          \
    } while (0)

static struct product product_of(const struct kern_device *d, enum cuda_linear which,
                                 uint32_t rows) {
    const struct kern_shape *s = &d->shape;
    switch (which) {
    case CUDA_QKV:
        return (struct product){
            .in = s->hidden, .out = d->qkv_cols, .rows = rows, .y_row = d->qkv_cols};
    case CUDA_O:
        return (struct product){
            .in = d->q_cols, .out = s->hidden, .rows = rows, .y_row = s->hidden, .add = true};
    case CUDA_GATE_UP:
        return (struct product){.in = s->hidden,
                                .out = 2 * s->intermediate,
                                .rows = rows,
                                .y_row = 2 * s->intermediate};
    case CUDA_DOWN:
        return (struct product){
            .in = s->intermediate, .out = s->hidden, .rows = rows, .y_row = s->hidden, .add = true};
    case CUDA_HEAD:
        return (struct product){
            .in = s->hidden, .out = s->vocab, .rows = rows, .y_row = d->vocab_row, .floats = true};
    case CUDA_LINEARS:
        break;
    }
    CHECK(!"a linear");
    return (struct product){0};
}

static cublasStatus_t product_layouts(const struct kern_device *d, struct product *p) {
    cudaDataType_t elem = d->elem == KERN_F16 ? CUDA_R_16F : CUDA_R_16BF;
    cublasStatus_t status = cublasLtMatrixLayoutInit(&p->w, elem, p->in, p->out, p->in);
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = cublasLtMatrixLayoutInit(&p->x, elem, p->in, p->rows, p->in);
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = cublasLtMatrixLayoutInit(&p->y, p->floats ? CUDA_R_32F : elem, p->out, p->rows,
                                          p->y_row);
    }
    return status;
}

/* Whether linear_few.cu can do it. */
static bool few_can(const struct kern_device *d, uint32_t rows) {
    return d->few_linears && rows <= CUDA_FEW_ROWS;
}

/* Whether linear_wide.cu can and may be worth it. */
static bool wide_can(const struct kern_device *d, enum cuda_linear which, uint32_t rows) {
    return d->wide != NULL && which != CUDA_HEAD && rows >= WIDE_ROWS;
}

/* `c` NULL: as the library likes. */
static cublasStatus_t product_run(struct kern_device *d, struct product *p, const struct choice *c,
                                  const void *w, const void *x, void *y) {
    struct cuda_linears *l = d->linears;
    if (c != NULL && c->few) {
        cuda_linear_few(d, &(struct cuda_product){.w = w,
                                                  .x = x,
                                                  .y = y,
                                                  .in = p->in,
                                                  .out = p->out,
                                                  .rows = p->rows,
                                                  .y_row = p->y_row,
                                                  .add = p->add,
                                                  .floats = p->floats});
        return CUBLAS_STATUS_SUCCESS;
    }
    const float one = 1, beta = p->add ? 1 : 0;
    return cublasLtMatmul(l->handle, l->desc, &one, w, &p->w, x, &p->x, &beta, y, &p->y, y, &p->y,
                          c != NULL ? &c->algo : NULL, l->workspace, WORKSPACE_BYTES, d->stream);
}

/* ---- open and close ----------------------------------------------------------------------- */

static void cache_path(struct kern_device *d) {
    struct cuda_linears *l = d->linears;
    struct cudaDeviceProp properties;
    if (d->limits.cache_dir == NULL || d->limits.cache_dir[0] == '\0' ||
        cudaGetDeviceProperties(&properties, 0) != cudaSuccess) {
        return;
    }
    for (char *c = properties.name; *c != '\0'; c++) {
        *c = *c == ' ' || *c == '/' ? '-' : *c;
    }
    int length = snprintf(l->path, sizeof l->path, "%s/linears-%d-%s-%zu", d->limits.cache_dir,
                          CACHE_FORMAT, properties.name, cublasLtGetVersion());
    if (length < 0 || (size_t)length >= sizeof l->path) {
        l->path[0] = '\0';
    }
}

enum err cuda_linears_open(struct kern_device *d, struct err_text *why) {
    struct cuda_linears *l = calloc(1, sizeof *l);
    d->linears = l;
    if (l != NULL) {
        l->sizes = cuda_rows_index(d->rows_max) + 1;
        l->choices = calloc((size_t)CUDA_LINEARS * l->sizes, sizeof l->choices[0]);
    }
    if (l == NULL || l->choices == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for the linears' algorithms");
    }
    cache_path(d);
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const uint64_t bytes = WORKSPACE_BYTES;
    const uint32_t reductions =
        CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    LT_TRY(why, cublasLtCreate(&l->handle));
    LT_TRY(why, cublasLtMatmulDescCreate(&l->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    LT_TRY(why, cublasLtMatmulDescSetAttribute(l->desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                               sizeof transposed));
    LT_TRY(why, cublasLtMatmulPreferenceCreate(&l->preference));
    LT_TRY(why, cublasLtMatmulPreferenceSetAttribute(
                    l->preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes));
    LT_TRY(why, cublasLtMatmulPreferenceSetAttribute(l->preference,
                                                     CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                                     &reductions, sizeof reductions));
    CU_TRY(why, cudaEventCreate(&l->begin));
    CU_TRY(why, cudaEventCreate(&l->end));
    enum err e = cuda_few_open(d, why);
    return e == ERR_OK ? cuda_take(d, &l->workspace, WORKSPACE_BYTES, "the linears' workspace", why)
                       : e;
}

void cuda_linears_close(struct kern_device *d) {
    struct cuda_linears *l = d->linears;
    if (l == NULL) {
        return;
    }
    if (l->begin != NULL) {
        (void)cudaEventDestroy(l->begin);
    }
    if (l->end != NULL) {
        (void)cudaEventDestroy(l->end);
    }
    if (l->preference != NULL) {
        (void)cublasLtMatmulPreferenceDestroy(l->preference);
    }
    if (l->desc != NULL) {
        (void)cublasLtMatmulDescDestroy(l->desc);
    }
    if (l->handle != NULL) {
        (void)cublasLtDestroy(l->handle);
    }
    free(l->choices);
    free(l);
}

static struct choice *choice_at(const struct kern_device *d, enum cuda_linear which,
                                uint32_t rows) {
    return &d->linears->choices[(size_t)which * d->linears->sizes + cuda_rows_index(rows)];
}

/* The size whose measurement a size uses. */
static uint32_t rows_measured(const struct kern_device *d, uint32_t rows) {
    if (rows <= CUDA_GRAPH_TOKENS) {
        return rows;
    }
    uint32_t next = cuda_round_up(rows, ROWS_MEASURED);
    return next < d->rows_max ? next : d->rows_max;
}

/* ---- the cache file ----------------------------------------------------------------------- */

/* Whether the algorithm of a choice can run; product_layouts() was called. */
static bool choice_runs(struct kern_device *d, struct product *p, const struct choice *c) {
    cublasLtMatmulHeuristicResult_t checked;
    if (c->few || ((c->wide || c->wide_lora) && d->wide == NULL)) {
        return c->few && few_can(d, p->rows);
    }
    return cublasLtMatmulAlgoCheck(d->linears->handle, d->linears->desc, &p->w, &p->x, &p->y, &p->y,
                                   &c->algo, &checked) == CUBLAS_STATUS_SUCCESS &&
           checked.workspaceSize <= WORKSPACE_BYTES;
}

/* A line: linear, in, out, rows, element type, kinds, and the algorithm's words in hex. */
static void cache_read(struct kern_device *d) {
    FILE *file = d->linears->path[0] != '\0' ? fopen(d->linears->path, "re") : NULL;
    if (file == NULL) {
        return;
    }
    unsigned which, in, out, rows, elem, kinds;
    while (fscanf(file, "%u %u %u %u %u %u", &which, &in, &out, &rows, &elem, &kinds) == 6) {
        uint64_t words[ALGO_WORDS];
        size_t got = 0;
        while (got < ALGO_WORDS && fscanf(file, "%" SCNx64, &words[got]) == 1) {
            got++;
        }
        if (got < ALGO_WORDS) {
            break;
        }
        if (which >= CUDA_LINEARS || rows == 0 || rows > d->rows_max || rows != cuda_rows(rows) ||
            elem != (unsigned)d->elem) {
            continue;
        }
        struct product p = product_of(d, (enum cuda_linear)which, rows);
        struct choice *c = choice_at(d, (enum cuda_linear)which, rows);
        if (p.in != in || p.out != out || product_layouts(d, &p) != CUBLAS_STATUS_SUCCESS) {
            continue;
        }
        memcpy(&c->algo, words, sizeof c->algo);
        c->few = (kinds & KIND_FEW) != 0;
        c->wide = (kinds & KIND_WIDE) != 0;
        c->wide_lora = (kinds & KIND_WIDE_LORA) != 0;
        c->made = choice_runs(d, &p, c);
    }
    (void)fclose(file);
}

/* Appends; a line is written in one go, so that workers may share the file. */
static void cache_write(struct kern_device *d, enum cuda_linear which, const struct product *p,
                        const struct choice *c) {
    FILE *file = d->linears->path[0] != '\0' ? fopen(d->linears->path, "ae") : NULL;
    if (file == NULL) {
        return; /* only speed at the next start */
    }
    uint64_t words[ALGO_WORDS];
    memcpy(words, &c->algo, sizeof words);
    const unsigned kinds = (c->few ? KIND_FEW : 0u) | (c->wide ? KIND_WIDE : 0u) |
                           (c->wide_lora ? KIND_WIDE_LORA : 0u);
    (void)fprintf(file, "%u %u %u %u %u %u", (unsigned)which, p->in, p->out, p->rows,
                  (unsigned)d->elem, kinds);
    for (size_t i = 0; i < ALGO_WORDS; i++) {
        (void)fprintf(file, " %016" PRIx64, words[i]);
    }
    (void)fprintf(file, "\n");
    (void)fclose(file);
}

/* ---- choosing ----------------------------------------------------------------------------- */

static const void *weight_of(const struct kern_device *d, enum cuda_linear which, uint32_t layer) {
    const struct cuda_layer *l = &d->layers[layer % d->shape.layers];
    switch (which) {
    case CUDA_QKV:
        return l->qkv;
    case CUDA_O:
        return l->o;
    case CUDA_GATE_UP:
        return l->gate_up;
    case CUDA_DOWN:
        return l->down;
    case CUDA_HEAD:
    case CUDA_LINEARS:
        break;
    }
    return d->head;
}

/* Where a linear reads and writes in a step. */
static void buffers_of(const struct kern_device *d, enum cuda_linear which, void **x, void **y) {
    void *const from[] = {d->normed, d->attended, d->normed, d->act, d->head_in};
    void *const to[] = {d->qkv, d->x, d->gate_up, d->x, d->logits};
    *x = from[which];
    *y = to[which];
}

/* A run as in a step: what linear_wide.cu does with gate and up counts for the others too. */
static bool run_once(struct kern_device *d, enum cuda_linear which, struct product *p,
                     const struct choice *c, uint32_t layer) {
    void *x, *y;
    if (c->wide) {
        cuda_linear_wide(d, which, layer % d->shape.layers);
        return true;
    }
    buffers_of(d, which, &x, &y);
    if (product_run(d, p, c, weight_of(d, which, layer), x, y) != CUBLAS_STATUS_SUCCESS) {
        return false;
    }
    if (which == CUDA_GATE_UP && wide_can(d, which, p->rows)) {
        cuda_act_rows(d, layer % d->shape.layers);
    }
    return true;
}

/* Milliseconds of RUNS runs; negative: it does not run. */
static float measure(struct kern_device *d, enum cuda_linear which, struct product *p,
                     const struct choice *c) {
    struct cuda_linears *l = d->linears;
    float ms = -1;
    for (uint32_t run = 0; run <= RUNS; run++) {
        if (run == 1 && cudaEventRecord(l->begin, d->stream) != cudaSuccess) {
            return -1;
        }
        if (!run_once(d, which, p, c, run)) {
            return -1;
        }
    }
    if (cudaEventRecord(l->end, d->stream) != cudaSuccess ||
        cudaEventSynchronize(l->end) != cudaSuccess ||
        cudaEventElapsedTime(&ms, l->begin, l->end) != cudaSuccess) {
        return -1;
    }
    return ms;
}

/* A suggestion, and the least time that it took; negative: it does not run. */
struct candidate {
    struct choice choice;
    float ms;
};

/* The fastest first, those that do not run last. */
static void candidates_sort(struct candidate *all, uint32_t count) {
    for (uint32_t i = 1; i < count; i++) {
        struct candidate one = all[i];
        uint32_t at = i;
        for (; at > 0 && one.ms >= 0 && (all[at - 1].ms < 0 || one.ms < all[at - 1].ms); at--) {
            all[at] = all[at - 1];
        }
        all[at] = one;
    }
}

/* Measures the fastest again, by turns, so that what disturbs one round disturbs all. */
static void finals(struct kern_device *d, enum cuda_linear which, struct product *p,
                   struct candidate *all, uint32_t count) {
    for (uint32_t round = 0; round < FINAL_ROUNDS; round++) {
        for (uint32_t i = 0; i < count && i < FINALISTS && all[i].ms >= 0; i++) {
            float ms = measure(d, which, p, &all[i].choice);
            all[i].ms = ms >= 0 && ms < all[i].ms ? ms : all[i].ms;
        }
    }
    candidates_sort(all, count < FINALISTS ? count : FINALISTS);
}

/* The chosen algorithm and linear_wide.cu, if it can, by turns. */
static void wide_measure(struct kern_device *d, enum cuda_linear which, struct product *p,
                         struct choice *c) {
    const struct choice wide = {.wide = true};
    float ms = INFINITY, wide_ms = INFINITY;
    for (uint32_t round = 0; wide_can(d, which, p->rows) && round < FINAL_ROUNDS; round++) {
        const float one = measure(d, which, p, c), other = measure(d, which, p, &wide);
        ms = one >= 0 && one < ms ? one : ms;
        wide_ms = other >= 0 && other < wide_ms ? other : wide_ms;
    }
    c->wide = wide_ms < ms;
    c->wide_lora = wide_ms < ms * wide_lora_times[which];
}

static enum err choose(struct kern_device *d, enum cuda_linear which, uint32_t rows,
                       struct err_text *why) {
    struct cuda_linears *l = d->linears;
    struct choice *c = choice_at(d, which, rows);
    if (c->made) {
        return ERR_OK;
    }
    struct product p = product_of(d, which, rows);
    LT_TRY(why, product_layouts(d, &p));
    cublasLtMatmulHeuristicResult_t found[CANDIDATES_FEW];
    struct candidate all[CANDIDATES_FEW + 1] = {{.ms = 0}};
    int count = 0;
    LT_TRY(why, cublasLtMatmulAlgoGetHeuristic(
                    l->handle, l->desc, &p.w, &p.x, &p.y, &p.y, l->preference,
                    rows <= FEW_ROWS ? CANDIDATES_FEW : CANDIDATES, found, &count));
    for (int i = 0; i < count; i++) {
        all[i].choice.algo = found[i].algo;
        all[i].ms =
            found[i].state == CUBLAS_STATUS_SUCCESS ? measure(d, which, &p, &all[i].choice) : -1;
    }
    if (few_can(d, rows)) {
        all[count].choice.few = true;
        all[count].ms = measure(d, which, &p, &all[count].choice);
        count++;
    }
    candidates_sort(all, (uint32_t)count);
    if (count == 0 || all[0].ms < 0) {
        return err_set(why, ERR_DEVICE, "cuBLASLt has no algorithm for [%u × %u] × %u rows", p.out,
                       p.in, rows);
    }
    if (rows <= FINAL_ROWS) {
        finals(d, which, &p, all, (uint32_t)count);
    }
    *c = all[0].choice;
    wide_measure(d, which, &p, c);
    c->made = true;
    cache_write(d, which, &p, c);
    return ERR_OK;
}

/* Sizes that are not measured take what was chosen for the next one that was, if it runs. */
static enum err choose_alike(struct kern_device *d, enum cuda_linear which, uint32_t rows,
                             struct err_text *why) {
    struct cuda_linears *l = d->linears;
    struct choice *c = choice_at(d, which, rows);
    struct product p = product_of(d, which, rows);
    LT_TRY(why, product_layouts(d, &p));
    *c = *choice_at(d, which, rows_measured(d, rows));
    if (choice_runs(d, &p, c)) {
        return ERR_OK;
    }
    cublasLtMatmulHeuristicResult_t found;
    int count = 0;
    LT_TRY(why, cublasLtMatmulAlgoGetHeuristic(l->handle, l->desc, &p.w, &p.x, &p.y, &p.y,
                                               l->preference, 1, &found, &count));
    c->algo = found.algo;
    return ERR_OK;
}

/* Products of zeros are faster than others: what a linear reads gets random elements. */
static void buffers_fill(struct kern_device *d, bool zero) {
    const struct kern_shape *s = &d->shape;
    const struct {
        void *at;
        uint64_t count;
    } buffers[] = {{d->normed, (uint64_t)d->rows_max * s->hidden},
                   {d->attended, (uint64_t)d->rows_max * d->q_cols},
                   {d->act, (uint64_t)d->rows_max * s->intermediate},
                   {d->head_in, (uint64_t)d->sample_rows_max * s->hidden},
                   {d->x, (uint64_t)d->rows_max * s->hidden}};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++) {
        if (zero) {
            cuda_note(d, cudaMemsetAsync(buffers[i].at, 0, buffers[i].count * 2, d->stream),
                      "cudaMemsetAsync");
        } else {
            cuda_fill_random(d, buffers[i].at, buffers[i].count, 1, (uint32_t)i);
        }
    }
}

enum err cuda_linears_choose(struct kern_device *d, struct err_text *why) {
    if (d->linears->chosen) {
        return ERR_OK;
    }
    cache_read(d);
    d->lora_rows = false;
    buffers_fill(d, false);
    enum err e = ERR_OK;
    for (int w = 0; w < CUDA_LINEARS; w++) {
        enum cuda_linear which = (enum cuda_linear)w;
        uint32_t most = which == CUDA_HEAD ? d->sample_rows_max : d->rows_max;
        for (uint32_t rows = most; rows > 0 && e == ERR_OK;) {
            d->rows = rows; /* of what is measured */
            e = rows_measured(d, rows) == rows ? choose(d, which, rows, why)
                                               : choose_alike(d, which, rows, why);
            uint32_t less = rows - 1; /* the next smaller size */
            while (less > 0 && cuda_rows(less) != less) {
                less--;
            }
            rows = less;
        }
    }
    buffers_fill(d, true);
    CU_TRY(why, cudaStreamSynchronize(d->stream));
    d->linears->chosen = e == ERR_OK;
    return d->failed != ERR_OK ? err_set(why, d->failed, "%s", d->fault.message) : e;
}

void cuda_linear(struct kern_device *d, enum cuda_linear which, const void *w, const void *x,
                 void *y) {
    uint32_t rows = which == CUDA_HEAD ? d->sample_rows : d->rows;
    struct product p = product_of(d, which, rows);
    const struct choice *c = choice_at(d, which, rows);
    cublasStatus_t status = product_layouts(d, &p);
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = product_run(d, &p, d->linears->chosen ? c : NULL, w, x, y);
    }
    if (status != CUBLAS_STATUS_SUCCESS && d->failed == ERR_OK) {
        d->failed = lt_fail(&d->fault, status, "cublasLtMatmul");
    }
}

bool cuda_linear_is_wide(const struct kern_device *d, enum cuda_linear which) {
    if (d->wide == NULL || which == CUDA_HEAD) {
        return false;
    }
    if (d->wide_always || !d->linears->chosen) {
        return d->wide_always;
    }
    const struct choice *c = choice_at(d, which, d->rows);
    return d->lora_rows ? c->wide_lora && d->mixed && d->rows >= WIDE_LORA_ROWS : c->wide;
}

/* ---- what is fetched ahead ---------------------------------------------------------------- */

enum {
    SECTOR_BYTES = 32,
    PIECES_LOG2_MAX = 3,
    PIECE_SECTORS_LOG2_MIN = 3, /* a shorter piece is no stage of a product */
    PIECE_SECTORS_LOG2_MAX = 6,
};

struct cuda_ahead cuda_linear_ahead(const struct kern_device *d, enum cuda_linear which,
                                    uint32_t layer, uint64_t bytes) {
    struct product p = product_of(d, which, d->rows);
    struct cuda_ahead a = {.at = weight_of(d, which, layer), .row_bytes = p.in * 2};
    uint64_t share = bytes / p.out; /* of a row */
    share = share < a.row_bytes ? share : a.row_bytes;
    a.sectors_log2 = PIECE_SECTORS_LOG2_MIN;
    while (a.pieces_log2 < PIECES_LOG2_MAX &&
           (uint64_t)(SECTOR_BYTES << a.sectors_log2) << (a.pieces_log2 + 1) <= share) {
        a.pieces_log2++;
    }
    while (a.sectors_log2 < PIECE_SECTORS_LOG2_MAX &&
           (uint64_t)(SECTOR_BYTES << (a.sectors_log2 + 1)) << a.pieces_log2 <= share) {
        a.sectors_log2++;
    }
    const uint64_t taken = (uint64_t)(SECTOR_BYTES << a.sectors_log2) << a.pieces_log2;
    const bool few = d->linears->chosen && choice_at(d, which, d->rows)->few;
    if (!d->launches_early || d->rows > CUDA_AHEAD_ROWS || taken > a.row_bytes ||
        (few && which != CUDA_O)) {
        return (struct cuda_ahead){0};
    }
    /* A share of less than a piece: of as many rows as there is room for. */
    a.rows = bytes / taken < p.out ? (uint32_t)(bytes / taken) : p.out;
    return a;
}
