/* graph.c - CUDA graphs of the steps' halves, one for each bucket.
 *
 * A graph holds the launches of a half for one number of rows, with or without prefill chunks, with
 * or without adapters. Kernels read all else from the metadata block, whose address is fixed. The
 * layer loop is recorded while the stream is captured; nothing runs. */
#include <stdlib.h>

#include "base/check.h"
#include "base/log.h"
#include "kernels/checks.h"
#include "kernels/cuda/cuda.h"

enum { SIZES_MAX = 64, BUCKETS_MAX = SIZES_MAX * 6 };

struct bucket {
    enum cuda_part part;
    uint32_t rows;
    bool mixed, lora;
};

struct cuda_graphs {
    cudaGraphExec_t body[SIZES_MAX][2][2]; /* [size][mixed][lora]; NULL: not captured */
    cudaGraphExec_t tail[SIZES_MAX][2];    /* [size][lora] */
    struct bucket buckets[BUCKETS_MAX];
    uint32_t bucket_count;
    struct bucket now;
};

static void bucket_add(struct kern_device *d, enum cuda_part part, uint32_t rows, bool mixed) {
    struct cuda_graphs *g = d->graphs;
    for (int lora = 0; lora <= (d->limits.adapters > 0 ? 1 : 0); lora++) {
        CHECK(g->bucket_count < BUCKETS_MAX);
        g->buckets[g->bucket_count++] =
            (struct bucket){.part = part, .rows = rows, .mixed = mixed, .lora = lora != 0};
    }
}

enum err cuda_graphs_open(struct kern_device *d, struct err_text *why) {
    d->graphs = calloc(1, sizeof *d->graphs);
    if (d->graphs == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for the device's graphs");
    }
    for (uint32_t rows = 1; rows <= CUDA_GRAPH_TOKENS; rows = cuda_rows(rows + 1)) {
        CHECK(cuda_rows_index(rows) < SIZES_MAX);
        if (rows <= d->rows_max) {
            bucket_add(d, CUDA_BODY, rows, false);
        }
        if (rows <= d->rows_max && rows >= 2 && rows <= CUDA_MIXED_TOKENS) {
            bucket_add(d, CUDA_BODY, rows, true);
        }
        if (rows <= d->sample_rows_max) {
            bucket_add(d, CUDA_TAIL, rows, false);
        }
    }
    return ERR_OK;
}

static void graph_destroy(cudaGraphExec_t graph) {
    if (graph != NULL) {
        (void)cudaGraphExecDestroy(graph);
    }
}

void cuda_graphs_close(struct kern_device *d) {
    struct cuda_graphs *g = d->graphs;
    for (uint32_t size = 0; g != NULL && size < SIZES_MAX; size++) {
        for (uint32_t lora = 0; lora < 2; lora++) {
            graph_destroy(g->body[size][0][lora]);
            graph_destroy(g->body[size][1][lora]);
            graph_destroy(g->tail[size][lora]);
        }
    }
    free(g);
}

/* NULL: the bucket has none, whatever the capture brings. */
static cudaGraphExec_t *place(const struct kern_device *d, enum cuda_part part, uint32_t rows) {
    if (rows > CUDA_GRAPH_TOKENS) {
        return NULL;
    }
    uint32_t size = cuda_rows_index(rows);
    return part == CUDA_BODY ? &d->graphs->body[size][d->mixed][d->lora_rows]
                             : &d->graphs->tail[size][d->lora_rows];
}

cudaGraphExec_t cuda_graph(const struct kern_device *d, enum cuda_part part) {
    cudaGraphExec_t *graph = place(d, part, part == CUDA_BODY ? d->rows : d->sample_rows);
    return graph == NULL ? NULL : *graph;
}

/* ---- capture ------------------------------------------------------------------------------ */

uint32_t cuda_bucket_count(const struct kern_device *d) {
    return d->graphs->bucket_count;
}

static enum err capture_failed(struct kern_device *d, enum err e) {
    char room[2 * ERR_TEXT_BYTES + 3];
    log_error("device", "a step's graph cannot be made error=%s",
              log_quote(room, sizeof room, d->fault.message));
    return e;
}

enum err cuda_bucket_begin(struct kern_device *d, uint32_t bucket) {
    CHECK(d->phase == CUDA_IDLE);
    CHECK(bucket < d->graphs->bucket_count);
    enum err e = kern_tensors_ready(&d->shape, d->given, &d->fault);
    if (e == ERR_OK) {
        e = cuda_linears_choose(d, &d->fault);
    }
    if (e != ERR_OK) {
        return capture_failed(d, e);
    }
    const struct bucket *b = &d->graphs->buckets[bucket];
    d->graphs->now = *b;
    d->rows = d->sample_rows = b->rows;
    d->mixed = b->mixed;
    d->lora_rows = b->lora;
    d->parts = b->part;
    cudaError_t began = cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal);
    if (began != cudaSuccess) {
        return capture_failed(d, cuda_fail(&d->fault, began, "cudaStreamBeginCapture"));
    }
    d->phase = CUDA_CAPTURING;
    return ERR_OK;
}

enum err cuda_bucket_end(struct kern_device *d) {
    CHECK(d->phase == CUDA_CAPTURING);
    d->phase = CUDA_IDLE;
    cudaGraph_t graph = NULL;
    cudaGraphExec_t made = NULL;
    cudaError_t result = cudaStreamEndCapture(d->stream, &graph);
    if (result == cudaSuccess) {
        result = cudaGraphInstantiate(&made, graph, 0);
    }
    if (graph != NULL) {
        (void)cudaGraphDestroy(graph);
    }
    if (d->failed == ERR_OK && result == cudaSuccess) {
        result = cudaGraphUpload(made, d->stream);
    }
    if (d->failed != ERR_OK || result != cudaSuccess) {
        enum err e =
            d->failed != ERR_OK ? d->failed : cuda_fail(&d->fault, result, "cudaGraphInstantiate");
        graph_destroy(made);
        return capture_failed(d, e);
    }
    cudaGraphExec_t *to = place(d, d->graphs->now.part, d->graphs->now.rows);
    CHECK(to != NULL && *to == NULL);
    *to = made;
    return ERR_OK;
}
