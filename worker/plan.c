/* plan.c - the sizes of a worker: what configuration, model and device leave to be decided. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "base/log.h"
#include "worker/worker.h"

enum {
    ADAPTER_PAGES_MAX = 4096, /* rank 512 on all modules of an 8B model takes 1,280 */
    STORED_BYTES_MIN = 2,     /* of a weight in a checkpoint: f16, bf16 */
    FIXED_BYTES = 256 << 20,  /* tokenizer, activations, threads, libraries */
    JOB_BYTES = 6 << 10,      /* of all tables together, for each of backlog.jobs */
    POOL_TOKENS_MIN = 1024,   /* a GPU with room for fewer is not worth starting on */
};

/* What a device takes where the configuration says 0. */
struct sizes {
    uint32_t rows, step_tokens, chunk_tokens;
};

/* A small model on a CPU; on a GPU as many rows as keep its tensor cores busy, and prompts whole:
 * a step of 8,192 tokens takes some 0.2 s of an H100 at 8B. */
static const struct sizes cpu_sizes = {.rows = 32, .step_tokens = 128, .chunk_tokens = 64};
static const struct sizes gpu_sizes = {.rows = 1024, .step_tokens = 8192, .chunk_tokens = 8192};

/* For the cost model's start: a small model on a CPU, and a GPU of this century's twenties. */
#define CPU_STEP_US_FIXED 5000.0
#define CPU_STEP_US_ROW 1000.0
#define CPU_LOAD_US_PAGE 20.0
#define CPU_MERGE_US_BYTE 1e-3 /* of the projections */
#define CPU_LORA_SHARE 0.1
#define GPU_BYTES_PER_US 3e6 /* of its memory */
#define GPU_FLOP_PER_US 5e8
#define GPU_LORA_SHARE 0.07 /* one adapter of rank 16, one H200 */

static uint32_t given_or(int64_t given, uint32_t otherwise) {
    return given > 0 ? (uint32_t)given : otherwise;
}

static uint32_t least(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

static void plan_step(const struct config *c, const struct sizes *own, struct worker_plan *plan) {
    plan->rows = given_or(c->scheduler_rows, own->rows);
    plan->step_tokens = given_or(c->scheduler_step_tokens, own->step_tokens);
    plan->chunk_tokens =
        least(given_or(c->scheduler_chunk_tokens, own->chunk_tokens), plan->step_tokens);
}

static void plan_costs(bool gpu, struct worker_plan *plan) {
    plan->step_us_fixed = CPU_STEP_US_FIXED;
    plan->step_us_row = CPU_STEP_US_ROW;
    plan->load_us_page = CPU_LOAD_US_PAGE;
    plan->merge_us = CPU_MERGE_US_BYTE * (double)plan->merge_bytes;
    plan->lora_share = CPU_LORA_SHARE;
    if (gpu) { /* the weights are read once a step; a token costs two operations a weight */
        double weights = (double)plan->weight_bytes / kern_dtype_bytes(plan->elem);
        plan->step_us_fixed = (double)plan->weight_bytes / GPU_BYTES_PER_US;
        plan->step_us_row = 2 * weights / GPU_FLOP_PER_US;
        plan->load_us_page = (double)plan->page_bytes / GPU_BYTES_PER_US;
        plan->merge_us = 2 * (double)plan->merge_bytes / GPU_BYTES_PER_US; /* read and written */
        plan->lora_share = GPU_LORA_SHARE;
    }
}

static uint64_t projections(const struct kern_shape *shape) {
    uint64_t elements = 0;
    for (enum kern_module m = KERN_Q; m < KERN_MODULES; m++) {
        elements += (uint64_t)kern_module_in(shape, m) * kern_module_out(shape, m);
    }
    return elements * shape->layers;
}

static enum err pages_check(uint64_t pages, const struct worker_plan *plan, const char *option,
                            struct err_text *why) {
    if (pages >= 2 && pages <= POOL_PAGES_MAX) {
        return ERR_OK;
    }
    return err_set_field(why, ERR_BAD_CONFIG, option,
                         "the pool would have %" PRIu64 " pages of %" PRIu64
                         " bytes over all layers; it needs 2 to %d",
                         pages, plan->page_bytes, POOL_PAGES_MAX);
}

static void plan_pages(uint64_t pages, struct worker_plan *plan) {
    plan->page_count = (uint32_t)pages;
    plan->pool_bytes = pages * plan->page_bytes;
    plan->slot_pages = least(plan->slot_pages, plan->page_count);
    plan->adapter_pages = least(plan->adapter_pages, plan->page_count);
}

/* The pool is memory of this process, of which the configuration says how much. What is resident
 * stays in the store too, which is cheap here. */
static enum err plan_pool_cpu(const struct config *c, struct worker_plan *plan,
                              struct err_text *why) {
    uint64_t pages =
        c->pool_pages > 0 ? (uint64_t)c->pool_pages : (uint64_t)c->pool_bytes / plan->page_bytes;
    enum err e = pages_check(pages, plan, "pool.bytes", why);
    if (e != ERR_OK) {
        return e;
    }
    if (pages * plan->page_bytes > (uint64_t)c->store_bytes) {
        return err_set_field(why, ERR_BAD_CONFIG, "store.bytes",
                             "the host store (%" PRId64 " bytes) must not be smaller than the pool "
                             "(%" PRIu64 " bytes): it holds what is resident too",
                             c->store_bytes, pages * plan->page_bytes);
    }
    plan_pages(pages, plan);
    return ERR_OK;
}

enum err worker_plan(const struct config *c, const struct kern_ops *ops,
                     const struct model_facts *model, struct worker_plan *plan,
                     struct err_text *why) {
    const struct kern_shape *shape = &model->shape;
    bool gpu = ops != kern_cpu();
    struct worker_plan p = {.page_tokens = (uint32_t)c->pool_page_tokens,
                            .elem = KERN_F32,
                            .adapter_pages = ADAPTER_PAGES_MAX};
    if (gpu) {
        p.elem = shape->dtype == KERN_F16 ? KERN_F16 : KERN_BF16;
    }
    while (kern_page_elems(shape, p.page_tokens) < KERN_TILE_ELEMENTS) {
        p.page_tokens *= 2;
    }
    uint32_t elem_bytes = kern_dtype_bytes(p.elem);
    p.page_bytes = kern_page_elems(shape, p.page_tokens) * shape->layers * elem_bytes;
    p.slot_pages = (shape->positions + p.page_tokens - 1) / p.page_tokens;
    p.weight_bytes = model->weight_bytes * elem_bytes / STORED_BYTES_MIN;
    p.merge_bytes = c->scheduler_merged ? projections(shape) * elem_bytes : 0;
    plan_step(c, gpu ? &gpu_sizes : &cpu_sizes, &p);
    plan_costs(gpu, &p);
    enum err e = gpu ? ERR_OK : plan_pool_cpu(c, &p, why);
    if (e != ERR_OK) {
        return e;
    }
    /* records, and as much again for the tokens made of them: 4 bytes for some 4 of text */
    p.memory_bytes = 2 * (uint64_t)c->backlog_bytes + (uint64_t)c->backlog_jobs * JOB_BYTES;
    p.memory_bytes += (uint64_t)c->store_bytes + (uint64_t)c->kafka_queue_bytes + FIXED_BYTES;
    if (!gpu) { /* and what slots with penalties count */
        uint64_t history = (uint64_t)p.rows * shape->vocab * sizeof(uint32_t);
        p.memory_bytes += history + p.pool_bytes + p.weight_bytes + p.merge_bytes;
    }
    *plan = p;
    return ERR_OK;
}

enum err worker_plan_pool(const struct config *c, const struct kern_ops *ops,
                          struct kern_device *device, const struct model_facts *model,
                          struct worker_plan *plan, struct err_text *why) {
    if (plan->page_count > 0) {
        return ERR_OK;
    }
    uint64_t room = ops->pool_room(device);
    uint64_t pages = c->pool_pages > 0
                         ? (uint64_t)c->pool_pages
                         : (uint64_t)((double)room * c->device_memory) / plan->page_bytes;
    uint64_t wanted = pages * plan->page_bytes;
    uint64_t pages_min = (POOL_TOKENS_MIN + plan->page_tokens - 1) / plan->page_tokens;
    pages_min = least((uint32_t)pages_min, plan->slot_pages);
    if (wanted > room || (c->pool_pages == 0 && pages < pages_min)) {
        return err_set(
            why, ERR_NO_MEMORY,
            "the pool does not fit on the device: %" PRIu64 " bytes are free beside %" PRIu64
            " of weights and the activations of %u rows and %u tokens a step; %" PRIu64
            " are needed, %" PRIu64 " a page; take a smaller model, pool.pages, "
            "scheduler.rows or scheduler.step_tokens, or a larger device.memory",
            room, plan->weight_bytes + plan->merge_bytes, plan->rows, plan->step_tokens,
            (c->pool_pages > 0 ? pages : pages_min) * plan->page_bytes, plan->page_bytes);
    }
    pages = pages < POOL_PAGES_MAX ? pages : POOL_PAGES_MAX;
    enum err e = pages_check(pages, plan, "pool.pages", why);
    if (e != ERR_OK) {
        return e;
    }
    if (pages < plan->slot_pages) {
        log_warn("model",
                 "the pool is smaller than the longest context positions=%u pool_tokens=%" PRIu64,
                 model->shape.positions, pages * plan->page_tokens);
    }
    plan_pages(pages, plan);
    return ERR_OK;
}

void worker_state_dir(const struct config *c) {
    char path[4096 + 1];
    size_t bytes = strlen(c->state_dir);
    if (bytes == 0 || bytes >= sizeof path) {
        return;
    }
    memcpy(path, c->state_dir, bytes + 1);
    int result = 0;
    for (char *at = path + 1; result == 0; at++) {
        if (*at != '/' && *at != '\0') {
            continue;
        }
        char end = *at;
        *at = '\0';
        result = mkdir(path, 0700) == 0 || errno == EEXIST ? 0 : errno;
        *at = end;
        if (end == '\0') {
            break;
        }
    }
    if (result != 0) {
        char room[128];
        log_warn("worker", "state.dir cannot be made, nothing is kept in it dir=%s why=%s",
                 c->state_dir, strerror_r(result, room, sizeof room));
    }
}

struct kern_limits worker_limits(const struct config *c, const struct worker_plan *plan) {
    return (struct kern_limits){
        .slots = plan->rows,
        .adapters = (uint32_t)c->pool_adapters,
        .step_tokens = plan->step_tokens,
        .step_samples = least(plan->rows, plan->step_tokens),
        .slot_pages = plan->slot_pages,
        .adapter_pages = plan->adapter_pages,
        .page_tokens = plan->page_tokens,
        .threads = (uint32_t)c->device_threads,
        .merging = c->scheduler_merged,
        .cache_dir = c->state_dir[0] != '\0' ? c->state_dir : NULL,
    };
}
