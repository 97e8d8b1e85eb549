/* The CPU device: memory, the pool of pages, and the table of operations. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cblas.h>

#include "kernels/checks.h"
#include "kernels/cpu/cpu.h"

/* ---- memory ------------------------------------------------------------------------------- */

enum err cpu_memory_reserve(struct cpu_memory *m, uint64_t bytes) {
    CHECK(m->base == NULL);
    if (bytes == 0 || bytes > SIZE_MAX / 2) {
        return ERR_NO_SPACE;
    }
    void *base =
        mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) {
        return ERR_NO_SPACE;
    }
    (void)madvise(base, (size_t)bytes, MADV_HUGEPAGE); /* only speed: failure is fine */
    m->base = base;
    m->bytes = (size_t)bytes;
    return ERR_OK;
}

void cpu_memory_release(struct cpu_memory *m) {
    if (m->base != NULL) {
        CHECK(munmap(m->base, m->bytes) == 0);
    }
    *m = (struct cpu_memory){0};
}

/* ---- open and close ----------------------------------------------------------------------- */

/* Lays out the tables; with a base of NULL it only counts. */
static void state_carve(struct kern_device *d, struct cpu_carver *c) {
    const struct kern_shape *s = &d->shape;
    const struct kern_limits *l = &d->limits;
    d->rope_freq = cpu_carve(c, s->head_dim / 2 * sizeof(float));
    d->slots = cpu_carve(c, l->slots * sizeof d->slots[0]);
    uint32_t *slot_pages = cpu_carve(c, (uint64_t)l->slots * l->slot_pages * sizeof(uint32_t));
    d->adapters = cpu_carve(c, l->adapters * sizeof d->adapters[0]);
    uint64_t entries = kern_lora_count(s->layers);
    struct kern_lora *lora = cpu_carve(c, l->adapters * entries * sizeof lora[0]);
    uint32_t *adapter_pages =
        cpu_carve(c, (uint64_t)l->adapters * l->adapter_pages * sizeof(uint32_t));
    /* Pages of the system that only slots with penalties ever touch. */
    uint32_t *seen = cpu_carve(c, (uint64_t)l->slots * d->shape.vocab * sizeof(uint32_t));
    if (c->base == NULL) {
        return;
    }
    for (uint32_t i = 0; i < l->slots; i++) {
        d->slots[i].pages = slot_pages + (uint64_t)i * l->slot_pages;
        d->slots[i].seen = seen + (uint64_t)i * d->shape.vocab;
    }
    for (uint32_t i = 0; i < l->adapters; i++) {
        d->adapters[i].lora = lora + i * entries;
        d->adapters[i].pages = adapter_pages + (uint64_t)i * l->adapter_pages;
    }
}

/* The same for a step's arrays and activations. */
static void step_carve(struct kern_device *d, struct cpu_carver *c) {
    const struct kern_shape *s = &d->shape;
    const struct kern_limits *l = &d->limits;
    uint64_t tokens = l->step_tokens;
    uint64_t rows = cpu_rows(l->step_tokens), sample_rows = cpu_rows(l->step_samples);
    d->tokens = cpu_carve(c, tokens * sizeof d->tokens[0]);
    d->segments = cpu_carve(c, tokens * sizeof d->segments[0]);
    d->samples = cpu_carve(c, l->step_samples * sizeof d->samples[0]);
    for (uint32_t i = 0; i < CPU_UNREAD_MAX; i++) {
        d->results[i].samples = cpu_carve(c, l->step_samples * sizeof(struct kern_sample));
    }
    d->cos = cpu_carve(c, tokens * (s->head_dim / 2) * sizeof(float));
    d->sin = cpu_carve(c, tokens * (s->head_dim / 2) * sizeof(float));
    d->x = cpu_carve(c, rows * d->hidden_row * sizeof(float));
    d->normed = cpu_carve(c, rows * d->hidden_row * sizeof(float));
    d->delta = cpu_carve(c, rows * d->hidden_row * sizeof(float));
    d->q = cpu_carve(c, rows * d->q_row * sizeof(float));
    d->k = cpu_carve(c, rows * d->kv_row * sizeof(float));
    d->v = cpu_carve(c, rows * d->kv_row * sizeof(float));
    d->attended = cpu_carve(c, rows * d->q_row * sizeof(float));
    d->gate = cpu_carve(c, rows * d->middle_row * sizeof(float));
    d->up = cpu_carve(c, rows * d->middle_row * sizeof(float));
    d->head_in = cpu_carve(c, sample_rows * d->hidden_row * sizeof(float));
    d->logits = cpu_carve(c, sample_rows * d->vocab_row * sizeof(float));
    uint64_t group = s->heads / s->kv_heads;
    d->scores = cpu_carve(c, l->threads * group * d->score_row * sizeof(float));
    d->draws = cpu_carve(c, l->threads * (uint64_t)d->vocab_row * sizeof(float));
    d->lora_v = cpu_carve(c, tokens * CPU_PROJECTIONS_MAX * KERN_RANK_MAX * sizeof(float));
    d->pieces = cpu_carve(c, cpu_lora_pieces_max(l) * sizeof d->pieces[0]);
}

static enum err state_reserve(struct kern_device *d, struct err_text *why) {
    struct cpu_carver counter = {0};
    state_carve(d, &counter);
    step_carve(d, &counter);
    enum err e = cpu_memory_reserve(&d->state_memory, counter.bytes);
    if (e != ERR_OK) {
        return err_set(why, e, "no memory for %llu bytes of activations and tables: %s",
                       (unsigned long long)counter.bytes, strerror(errno));
    }
    struct cpu_carver carver = {.base = d->state_memory.base};
    state_carve(d, &carver);
    step_carve(d, &carver);
    CHECK(carver.bytes == d->state_memory.bytes);
    return ERR_OK;
}

static void device_close(struct kern_device *d) {
    if (d == NULL) {
        return;
    }
    threads_close(d->threads);
    cpu_weights_release(d);
    cpu_merge_release(d);
    cpu_memory_release(&d->pool_memory);
    cpu_memory_release(&d->state_memory);
    free(d);
}

static uint32_t cores(void) {
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    if (count < 1) {
        return 1;
    }
    return count > THREADS_MAX ? THREADS_MAX : (uint32_t)count;
}

/* What follows from shape and limits. */
static void sizes_set(struct kern_device *d) {
    const struct kern_shape *s = &d->shape;
    if (d->limits.threads == 0) {
        d->limits.threads = cores();
    }
    d->hidden_row = cpu_row(s->hidden);
    d->q_row = cpu_row(s->heads * s->head_dim);
    d->kv_row = cpu_row(s->kv_heads * s->head_dim);
    d->middle_row = cpu_row(s->intermediate);
    d->vocab_row = cpu_row(s->vocab);
    d->page_elems = kern_page_elems(s, d->limits.page_tokens);
    uint64_t positions = (uint64_t)d->limits.slot_pages * d->limits.page_tokens;
    d->positions = positions < s->positions ? (uint32_t)positions : s->positions;
    d->score_row = cpu_row(s->window != 0 && s->window < d->positions ? s->window : d->positions);
}

static enum err device_open(struct kern_device **out, const struct kern_shape *shape,
                            const struct kern_limits *limits, struct err_text *why) {
    CHECK(limits->threads <= THREADS_MAX);
    enum err e = kern_shape_check(shape, why);
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
    d->vector = cpu_vector_best();
    sizes_set(d);
    e = state_reserve(d, why);
    if (e != ERR_OK) {
        goto out;
    }
    memcpy(d->rope_freq, shape->rope_freq, shape->head_dim / 2 * sizeof(float));
    d->shape.rope_freq = d->rope_freq;
    e = cpu_weights_reserve(d, why);
    if (e != ERR_OK) {
        goto out;
    }
    e = cpu_merge_reserve(d, why);
    if (e != ERR_OK) {
        goto out;
    }
    e = threads_open(&d->threads, d->limits.threads);
    if (e != ERR_OK) {
        (void)err_set(why, e, "cannot start %u threads", d->limits.threads);
        goto out;
    }
    /* Panels are spread over our own threads, so that one loop holds GEMM and LoRA work alike. */
    openblas_set_num_threads(1);
    *out = d;
    d = NULL;
out:
    device_close(d);
    return e;
}

static enum kern_dtype device_elem(const struct kern_device *d) {
    (void)d;
    return KERN_F32;
}

/* Nothing depends on a step's shape here. */
static uint32_t device_bucket_count(const struct kern_device *d) {
    (void)d;
    return 0;
}

static enum err device_bucket(struct kern_device *d, uint32_t bucket) {
    (void)d, (void)bucket;
    CHECK(!"there is such a bucket");
    return ERR_INTERNAL;
}

static enum err device_bucket_end(struct kern_device *d) {
    return device_bucket(d, 0);
}

/* ---- the pool ----------------------------------------------------------------------------- */

static uint64_t device_pool_room(struct kern_device *d) {
    (void)d;
    return UINT64_MAX; /* a process's memory is not the device's to give */
}

static enum err device_pool(struct kern_device *d, uint32_t page_count, struct err_text *why) {
    CHECK(page_count > 0);
    CHECK(d->planes == NULL);
    enum err e = kern_tensors_ready(&d->shape, d->given, why);
    if (e != ERR_OK) {
        return e;
    }
    uint64_t page_bytes = d->page_elems * sizeof(float) * d->shape.layers;
    if (page_count > UINT64_MAX / page_bytes) {
        return err_set(why, ERR_NO_SPACE, "%u pages of %llu bytes: no such memory", page_count,
                       (unsigned long long)page_bytes);
    }
    uint64_t bytes = page_count * page_bytes;
    e = cpu_memory_reserve(&d->pool_memory, bytes);
    if (e != ERR_OK) {
        return err_set(why, e, "no memory for a pool of %u pages, %llu bytes: %s", page_count,
                       (unsigned long long)bytes, strerror(errno));
    }
    d->planes = d->pool_memory.base;
    d->page_count = page_count;
    cpu_merge_keep(d);
    return ERR_OK;
}

/* All memory is the device's own. */
static enum err device_pin(void *base, uint64_t bytes) {
    CHECK(base != NULL && bytes > 0);
    return ERR_OK;
}

static void device_unpin(void *base, uint64_t bytes) {
    CHECK(base != NULL && bytes > 0);
}

static enum err device_load(struct kern_device *d, const void *image, const uint32_t *pages,
                            uint32_t page_count, uint64_t *event) {
    CHECK(d->planes != NULL);
    CHECK(page_count <= d->limits.adapter_pages);
    const float *from = image;
    for (uint32_t layer = 0; layer < d->shape.layers; layer++) {
        for (uint32_t i = 0; i < page_count; i++) {
            CHECK(pages[i] < d->page_count);
            memcpy(cpu_page(d, layer, pages[i]), from, d->page_elems * sizeof(float));
            from += d->page_elems;
        }
    }
    *event = ++d->events;
    return ERR_OK;
}

static bool device_event_done(struct kern_device *d, uint64_t event) {
    CHECK(event >= 1 && event <= d->events);
    return true; /* device_load() has copied before it returned */
}

static enum err device_logits(struct kern_device *d, uint32_t row, float *logits) {
    CHECK(d->phase == CPU_IDLE);
    CHECK(d->ended > 0 && row < d->sample_count);
    memcpy(logits, d->logits + (uint64_t)row * d->vocab_row, d->shape.vocab * sizeof(float));
    return ERR_OK;
}

const struct kern_ops *kern_cpu(void) {
    static const struct kern_ops ops = {
        .name = "cpu",
        .open = device_open,
        .close = device_close,
        .elem = device_elem,
        .bucket_count = device_bucket_count,
        .bucket_begin = device_bucket,
        .bucket_end = device_bucket_end,
        .weight = cpu_weight,
        .weights_random = cpu_weights_random,
        .pool_room = device_pool_room,
        .pool = device_pool,
        .pin = device_pin,
        .unpin = device_unpin,
        .load = device_load,
        .event_done = device_event_done,
        .merge = cpu_merge,
        .step_begin = cpu_step_begin,
        .embed = cpu_embed,
        .qkv = cpu_qkv,
        .attention = cpu_attention,
        .attn_out = cpu_attn_out,
        .gate_up = cpu_gate_up,
        .down = cpu_down,
        .head = cpu_head,
        .sample = cpu_sample,
        .step_end = cpu_step_end,
        .step_read = cpu_step_read,
        .span = cpu_span,
        .peaks = cpu_peaks,
        .logits = device_logits,
    };
    return &ops;
}
