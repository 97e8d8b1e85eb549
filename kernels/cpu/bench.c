/* What benchmarks ask of a device: weights made from a seed, and the peaks that figures are
 * compared with. */
#include <stdlib.h>
#include <string.h>

#include <cblas.h>

#include "base/clock.h"
#include "kernels/checks.h"
#include "kernels/cpu/cpu.h"
#include "kernels/random_weights.h"

/* ---- weights ------------------------------------------------------------------------------ */

struct random_fill {
    const struct cpu_matrix *to;
    uint64_t seed;
    uint32_t tensor; /* kern_tensor_slot() */
};

/* One panel of W [out, in], its rows as columns. */
static void panel_fill(void *context, uint32_t panel, uint32_t thread) {
    (void)thread;
    const struct random_fill *f = context;
    const struct cpu_matrix *m = f->to;
    uint32_t begin = panel * CPU_PANEL_COLUMNS;
    uint32_t columns = m->out - begin < CPU_PANEL_COLUMNS ? m->out - begin : CPU_PANEL_COLUMNS;
    float *to = m->panels + (uint64_t)begin * m->in;
    float values[RANDOM_WEIGHTS_LANES];
    for (uint32_t column = 0; column < columns; column++) {
        uint64_t first = (uint64_t)(begin + column) * m->in;
        for (uint32_t k = 0; k < m->in; k++) {
            uint32_t lane = (uint32_t)((first + k) % RANDOM_WEIGHTS_LANES);
            if (k == 0 || lane == 0) {
                random_weights(f->seed, f->tensor, (first + k) / RANDOM_WEIGHTS_LANES, values);
            }
            to[(uint64_t)k * columns + column] = values[lane];
        }
    }
}

static void matrix_fill(struct kern_device *d, uint64_t seed, enum kern_tensor tensor,
                        uint32_t layer, enum kern_module module, const struct cpu_matrix *m) {
    uint32_t slot = kern_tensor_slot(&d->shape, tensor, layer, module);
    struct random_fill f = {.to = m, .seed = seed, .tensor = slot};
    threads_run(d->threads, panel_fill, &f, (m->out + CPU_PANEL_COLUMNS - 1) / CPU_PANEL_COLUMNS);
}

static void vector_fill(struct cpu_vector *v, float value) {
    for (uint32_t i = 0; i < v->count; i++) {
        v->elements[i] = value;
    }
}

static void layer_fill(struct kern_device *d, uint64_t seed, uint32_t index) {
    struct cpu_layer *layer = &d->layers[index];
    vector_fill(&layer->input_norm, 1);
    vector_fill(&layer->post_norm, 1);
    vector_fill(&layer->q_norm, 1);
    vector_fill(&layer->k_norm, 1);
    for (enum kern_module m = KERN_Q; m < KERN_MODULES; m++) {
        matrix_fill(d, seed, KERN_WEIGHT, index, m, &layer->module[m]);
        if (m <= KERN_V) {
            vector_fill(&layer->bias[m], 0);
        }
    }
}

enum err cpu_weights_random(struct kern_device *d, uint64_t seed, struct err_text *why) {
    CHECK(d->phase == CPU_IDLE);
    enum err e = cpu_head_reserve(d, why);
    if (e != ERR_OK) {
        return e;
    }
    matrix_fill(d, seed, KERN_EMBED, 0, KERN_Q, &d->embed);
    matrix_fill(d, seed, KERN_LM_HEAD, 0, KERN_Q, &d->lm_head);
    vector_fill(&d->final_norm, 1);
    for (uint32_t i = 0; i < d->shape.layers; i++) {
        layer_fill(d, seed, i);
    }
    memset(d->given, 1, kern_tensor_slots(&d->shape));
    return ERR_OK;
}

/* ---- peaks -------------------------------------------------------------------------------- */

enum {
    PEAK_COPY_FLOATS = 4 << 20, /* of each thread: beyond the caches */
    PEAK_GEMM_SIZE = 512,
    PEAK_US = 100000, /* of each measurement, at least */
};

struct peak_work {
    float *memory; /* of each thread: two halves of PEAK_COPY_FLOATS */
    bool gemm;
};

static void peak_run(void *context, uint32_t item, uint32_t thread) {
    (void)thread;
    const struct peak_work *w = context;
    float *a = w->memory + (size_t)item * 2 * PEAK_COPY_FLOATS;
    float *b = a + PEAK_COPY_FLOATS;
    const int n = PEAK_GEMM_SIZE;
    const float *right = a + (size_t)PEAK_GEMM_SIZE * PEAK_GEMM_SIZE;
    if (w->gemm) {
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, n, n, n, 1.0f, a, n, right, n, 0.0f,
                    b, n);
    } else {
        memcpy(b, a, PEAK_COPY_FLOATS * sizeof *a);
    }
}

/* Rounds a second, in which every thread runs once. */
static double peak_rounds(struct kern_device *d, struct peak_work *w) {
    uint32_t threads = threads_count(d->threads);
    threads_run(d->threads, peak_run, w, threads); /* touches the memory */
    int64_t begin_us = clock_mono_us(), us = 0;
    uint32_t rounds = 0;
    do {
        threads_run(d->threads, peak_run, w, threads);
        rounds++;
        us = clock_mono_us() - begin_us;
    } while (us < PEAK_US);
    return rounds * 1e6 / (double)us;
}

enum err cpu_peaks(struct kern_device *d, struct kern_peaks *peaks) {
    CHECK(d->phase == CPU_IDLE);
    uint32_t threads = threads_count(d->threads);
    struct peak_work w = {.memory = calloc((size_t)threads * 2 * PEAK_COPY_FLOATS, sizeof(float))};
    if (w.memory == NULL) {
        return ERR_NO_SPACE;
    }
    double copies = peak_rounds(d, &w) * threads;
    w.gemm = true;
    double products = peak_rounds(d, &w) * threads;
    free(w.memory);
    double size = PEAK_GEMM_SIZE;
    *peaks = (struct kern_peaks){.copy_bytes_s = copies * 2 * PEAK_COPY_FLOATS * sizeof(float),
                                 .gemm_flop_s = products * 2 * size * size * size};
    return ERR_OK;
}
