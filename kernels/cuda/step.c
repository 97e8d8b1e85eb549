/* step.c - a step's way through the device: deltas, metadata, launch, results.
 *
 * Two steps may be begun and not read, so that what the host fills is there twice. On the stream a
 * step is: deltas (upload, kernel), metadata (upload), the body, the tail, results (download).
 * Slots' pages are mirrored on the host only as far as to CHECK that a step names pages it has. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "kernels/checks.h"
#include "kernels/cuda/cuda.h"

enum {
    DELTA_BYTES = 4 << 20, /* of a delta block; more deltas go in several */
    META_ARRAYS = 8,
};

#define ARRAY_SLACK UINT64_C(64) /* of the alignment of one array */

struct host_slot {
    uint32_t pages_end; /* entries of its list that were set, from 0 on */
    uint64_t step;      /* the last step that named it */
    bool open, sampled;
};

struct cuda_steps {
    struct cuda_block meta[CUDA_UNREAD_MAX];
    struct cuda_block deltas[CUDA_UNREAD_MAX];
    struct kern_sample *results[CUDA_UNREAD_MAX]; /* pinned, [step_samples] */
    uint32_t result_count[CUDA_UNREAD_MAX];
    cudaEvent_t began[CUDA_TIMED_STEPS], ended[CUDA_TIMED_STEPS];
    struct host_slot *slots;        /* [slots] */
    bool *adapters, *mergeable;     /* [adapters]: were set; may be merged */
    uint64_t end_count, read_count; /* tickets */
};

/* ---- sizes of steps ----------------------------------------------------------------------- */

/* Up to `end`, multiples of `multiple`; the last line goes on for ever. */
static const struct {
    uint32_t end, multiple;
} row_sizes[] = {{64, 8}, {256, 16}, {512, 32}, {CUDA_GRAPH_TOKENS, 64}, {UINT32_MAX, 128}};

enum { SMALL_SIZES = 3 }; /* 1, 2, 4, before the multiples of 8 */

uint32_t cuda_rows(uint32_t tokens) {
    if (tokens <= 4) {
        return tokens <= 2 ? (tokens == 0 ? 1 : tokens) : 4;
    }
    size_t i = 0;
    while (tokens > row_sizes[i].end) {
        i++;
    }
    return cuda_round_up(tokens, row_sizes[i].multiple);
}

uint32_t cuda_rows_index(uint32_t rows) {
    CHECK(rows == cuda_rows(rows));
    if (rows <= 4) {
        return rows / 2; /* 1, 2, 4 → 0, 1, 2 */
    }
    uint32_t index = SMALL_SIZES - 1, begin = 0;
    size_t i = 0;
    for (; rows > row_sizes[i].end; i++) {
        index += (row_sizes[i].end - begin) / row_sizes[i].multiple;
        begin = row_sizes[i].end;
    }
    return index + (rows - begin) / row_sizes[i].multiple;
}

/* ---- open and close ----------------------------------------------------------------------- */

static uint64_t meta_bytes(const struct kern_device *d) {
    const struct kern_limits *l = &d->limits;
    return sizeof(struct cuda_meta) + l->step_tokens * sizeof(struct cuda_token) +
           l->step_samples * sizeof(struct cuda_sample) + cuda_attention_meta_bytes(d) +
           cuda_lora_meta_bytes(d) + META_ARRAYS * ARRAY_SLACK;
}

static enum err block_take(struct kern_device *d, struct cuda_block *blocks, uint64_t bytes,
                           bool shared, struct err_text *why) {
    bytes = (bytes + ARRAY_SLACK - 1) / ARRAY_SLACK * ARRAY_SLACK; /* uploads go by whole words */
    for (uint32_t i = 0; i < CUDA_UNREAD_MAX; i++) {
        blocks[i].bytes = bytes;
        enum err e = cuda_take_host(d, (void **)&blocks[i].host, bytes, why);
        if (e == ERR_OK && i > 0 && shared) {
            blocks[i].device = blocks[0].device;
        } else if (e == ERR_OK) {
            e = cuda_take(d, (void **)&blocks[i].device, bytes, "the steps' metadata", why);
        }
        if (e != ERR_OK) {
            return e;
        }
    }
    return ERR_OK;
}

/* An adapter's delta must fit into a block. */
static uint64_t delta_bytes(const struct kern_device *d) {
    uint64_t one = d->tables.lora_row * sizeof(struct kern_lora) +
                   d->limits.adapter_pages * sizeof(uint32_t) + 4 * ARRAY_SLACK;
    return DELTA_BYTES + one;
}

enum err cuda_steps_open(struct kern_device *d, struct err_text *why) {
    struct cuda_steps *s = calloc(1, sizeof *s);
    d->steps = s;
    if (s != NULL) {
        s->slots = calloc(d->limits.slots, sizeof s->slots[0]);
        s->adapters = calloc(d->limits.adapters + 1, sizeof s->adapters[0]);
        s->mergeable = calloc(d->limits.adapters + 1, sizeof s->mergeable[0]);
    }
    if (s == NULL || s->slots == NULL || s->adapters == NULL || s->mergeable == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for the device's steps");
    }
    enum err e = block_take(d, s->meta, meta_bytes(d), true, why);
    if (e == ERR_OK) {
        e = block_take(d, s->deltas, delta_bytes(d), false, why);
    }
    for (uint32_t i = 0; i < CUDA_UNREAD_MAX && e == ERR_OK; i++) {
        e = cuda_take_host(d, (void **)&s->results[i],
                           d->limits.step_samples * sizeof(struct kern_sample), why);
    }
    if (e != ERR_OK) {
        return e;
    }
    d->meta = (struct cuda_meta *)(void *)s->meta[0].device;
    for (uint32_t i = 0; i < CUDA_TIMED_STEPS; i++) {
        CU_TRY(why, cudaEventCreateWithFlags(&s->began[i], cudaEventDefault));
        CU_TRY(why, cudaEventCreateWithFlags(&s->ended[i], cudaEventBlockingSync));
    }
    return ERR_OK;
}

void cuda_steps_close(struct kern_device *d) {
    struct cuda_steps *s = d->steps;
    if (s == NULL) {
        return;
    }
    for (uint32_t i = 0; i < CUDA_TIMED_STEPS; i++) {
        if (s->began[i] != NULL) {
            (void)cudaEventDestroy(s->began[i]);
        }
        if (s->ended[i] != NULL) {
            (void)cudaEventDestroy(s->ended[i]);
        }
    }
    free(s->slots);
    free(s->adapters);
    free(s->mergeable);
    free(s);
}

/* ---- deltas ------------------------------------------------------------------------------- */

/* Where in a step's lists the next block of deltas begins. */
struct delta_cursor {
    uint32_t slot, page, adapter;
};

static struct cuda_slot slot_of(const struct kern_slot_set *set) {
    struct cuda_slot slot = {
        .seed = set->seed,
        .temperature = set->temperature,
        .top_p = set->top_p,
        .min_p = set->min_p,
        .repetition_penalty = set->repetition_penalty != 0 ? set->repetition_penalty : 1,
        .presence_penalty = set->presence_penalty,
        .frequency_penalty = set->frequency_penalty,
        .top_k = set->top_k,
        .prompt_tokens = set->prompt_tokens,
        .penalises = kern_penalises(set),
        .logprobs = set->logprobs,
        .top_logprobs = set->top_logprobs,
        .stop_count = set->stop_count,
    };
    memcpy(slot.stop, set->stop, set->stop_count * sizeof slot.stop[0]);
    return slot;
}

static void take_slots(struct kern_device *d, const struct kern_step *step, struct cuda_block *b,
                       struct delta_cursor *at, struct cuda_deltas *head) {
    uint32_t left = step->slot_set_count - at->slot;
    uint64_t room = (b->bytes - b->used) / 2 / sizeof(struct cuda_slot_delta);
    uint32_t count = left < room ? left : (uint32_t)room;
    struct cuda_slot_delta *to = cuda_block_take(b, count * sizeof *to);
    for (uint32_t i = 0; i < count; i++) {
        const struct kern_slot_set *set = &step->slot_sets[at->slot + i];
        kern_slot_check(&d->limits, set);
        to[i] = (struct cuda_slot_delta){.slot = set->slot, .value = slot_of(set)};
        d->steps->slots[set->slot] = (struct host_slot){.open = true};
    }
    at->slot += count;
    head->slots = cuda_block_device(b, to);
    head->slot_count = count;
}

static void take_pages(struct kern_device *d, const struct kern_step *step, struct cuda_block *b,
                       struct delta_cursor *at, struct cuda_deltas *head) {
    uint32_t left = step->slot_page_count - at->page;
    uint64_t room = (b->bytes - b->used) / 2 / sizeof(struct kern_slot_page);
    uint32_t count = left < room ? left : (uint32_t)room;
    struct kern_slot_page *to = cuda_block_take(b, count * sizeof *to);
    for (uint32_t i = 0; i < count; i++) {
        const struct kern_slot_page *set = &step->slot_pages[at->page + i];
        CHECK(set->slot < d->limits.slots && set->index < d->limits.slot_pages);
        CHECK(set->page < d->page_count);
        struct host_slot *slot = &d->steps->slots[set->slot];
        CHECK(slot->open && set->index <= slot->pages_end);
        slot->pages_end = set->index == slot->pages_end ? set->index + 1 : slot->pages_end;
        to[i] = *set;
    }
    at->page += count;
    head->pages = cuda_block_device(b, to);
    head->page_count = count;
}

static void take_adapter(struct kern_device *d, const struct kern_adapter_set *set,
                         struct cuda_block *b, struct cuda_adapter_delta *to) {
    struct cuda_steps *s = d->steps;
    kern_adapter_check(&d->shape, &d->limits, d->page_count, set);
    s->mergeable[set->adapter] = kern_lora_mergeable(set->lora, d->shape.layers);
    if (d->merged == set->adapter) {
        d->merged = CUDA_MERGED_GONE;
    }
    struct kern_lora *lora = cuda_block_take(b, d->tables.lora_row * sizeof *lora);
    uint32_t *pages = cuda_block_take(b, set->page_count * sizeof *pages);
    memcpy(lora, set->lora, d->tables.lora_row * sizeof *lora);
    memcpy(pages, set->pages, set->page_count * sizeof *pages);
    *to = (struct cuda_adapter_delta){.adapter = set->adapter,
                                      .value = {.layer_pages = set->page_count - set->outer_pages,
                                                .outer_pages = set->outer_pages},
                                      .lora = cuda_block_device(b, lora),
                                      .pages = cuda_block_device(b, pages)};
    s->adapters[set->adapter] = true;
}

static void take_adapters(struct kern_device *d, const struct kern_step *step, struct cuda_block *b,
                          struct delta_cursor *at, struct cuda_deltas *head) {
    uint32_t left = step->adapter_set_count - at->adapter, count = 0;
    if (left == 0 || !cuda_block_has_room(b, left * sizeof(struct cuda_adapter_delta))) {
        return;
    }
    struct cuda_adapter_delta *to = cuda_block_take(b, left * sizeof *to);
    while (count < left) {
        const struct kern_adapter_set *set = &step->adapter_sets[at->adapter + count];
        uint64_t bytes = d->tables.lora_row * sizeof(struct kern_lora) +
                         set->page_count * sizeof(uint32_t) + 2 * ARRAY_SLACK;
        if (!cuda_block_has_room(b, bytes)) {
            break;
        }
        take_adapter(d, set, b, &to[count++]);
    }
    at->adapter += count;
    head->adapters = cuda_block_device(b, to);
    head->adapter_count = count;
}

static bool deltas_left(const struct kern_step *step, const struct delta_cursor *at) {
    return at->slot < step->slot_set_count || at->page < step->slot_page_count ||
           at->adapter < step->adapter_set_count;
}

/* Fills one block and applies it. */
static enum err deltas_block(struct kern_device *d, const struct kern_step *step,
                             struct cuda_block *b, struct delta_cursor *at) {
    b->used = 0;
    struct cuda_deltas *head = cuda_block_take(b, sizeof *head);
    *head = (struct cuda_deltas){0};
    take_slots(d, step, b, at, head);
    if (at->slot == step->slot_set_count) { /* a page's slot is set first */
        take_pages(d, step, b, at, head);
        take_adapters(d, step, b, at, head);
    }
    cuda_block_upload(d, b);
    cuda_apply_deltas(d, (const struct cuda_deltas *)(const void *)b->device);
    return d->failed;
}

/* Fills blocks until all deltas are taken; nearly always that is one block. */
static enum err deltas_apply(struct kern_device *d, const struct kern_step *step) {
    struct cuda_block *b = &d->steps->deltas[d->steps->end_count % CUDA_UNREAD_MAX];
    struct delta_cursor at = {0};
    enum err e = deltas_left(step, &at) ? deltas_block(d, step, b, &at) : ERR_OK;
    while (e == ERR_OK && deltas_left(step, &at)) {
        CU_TRY(&d->fault, cudaStreamSynchronize(d->stream)); /* the block is still being read */
        e = deltas_block(d, step, b, &at);
    }
    return e;
}

/* ---- metadata ----------------------------------------------------------------------------- */

static void chunk_check(struct kern_device *d, const struct kern_step *step,
                        const struct kern_chunk *chunk) {
    CHECK(chunk->slot < d->limits.slots);
    CHECK(chunk->token_count >= 1);
    CHECK(chunk->position < d->positions && chunk->token_count <= d->positions - chunk->position);
    struct host_slot *slot = &d->steps->slots[chunk->slot];
    CHECK(slot->open);
    CHECK(slot->step != d->steps->end_count + 1); /* one chunk a slot and step */
    slot->step = d->steps->end_count + 1;
    CHECK((chunk->position + chunk->token_count - 1) / d->limits.page_tokens < slot->pages_end);
    bool last = step->tokens[chunk->token_begin] == KERN_TOKEN_LAST;
    CHECK(!last || (slot->sampled && chunk->token_count == 1));
    slot->sampled = slot->sampled || chunk->sample;
}

static void fill_tokens(struct kern_device *d, const struct kern_step *step, struct cuda_token *to,
                        struct cuda_sample *samples, struct cuda_meta *meta) {
    uint32_t tokens = 0, count = 0;
    for (uint32_t i = 0; i < step->chunk_count; i++) {
        const struct kern_chunk *chunk = &step->chunks[i];
        CHECK(chunk->token_begin == tokens);
        CHECK(chunk->token_count <= step->token_count - tokens);
        chunk_check(d, step, chunk);
        for (uint32_t t = 0; t < chunk->token_count; t++) {
            uint32_t id = step->tokens[tokens + t];
            CHECK(id < d->shape.vocab || (id == KERN_TOKEN_LAST && chunk->token_count == 1));
            to[tokens + t] =
                (struct cuda_token){.id = id, .slot = chunk->slot, .position = chunk->position + t};
        }
        tokens += chunk->token_count;
        if (chunk->sample) {
            CHECK(count < d->limits.step_samples);
            samples[count++] =
                (struct cuda_sample){.token = tokens - 1,
                                     .slot = chunk->slot,
                                     .position = chunk->position + chunk->token_count};
        }
    }
    CHECK(tokens == step->token_count);
    meta->sample_count = count;
}

static void segments_check(const struct kern_device *d, const struct kern_step *step) {
    uint32_t end = 0;
    for (uint32_t i = 0; i < step->segment_count; i++) {
        const struct kern_segment *s = &step->segments[i];
        CHECK(s->adapter < d->limits.adapters && d->steps->adapters[s->adapter]);
        CHECK(s->token_count >= 1 && s->token_begin >= end);
        CHECK(s->token_count <= step->token_count &&
              s->token_begin <= step->token_count - s->token_count);
        end = s->token_begin + s->token_count;
    }
}

/* All that varies in the step, in one block. */
static struct cuda_block *meta_fill(struct kern_device *d, const struct kern_step *step,
                                    struct cuda_meta **out) {
    struct cuda_block *b = &d->steps->meta[d->steps->end_count % CUDA_UNREAD_MAX];
    b->used = 0;
    struct cuda_meta *meta = cuda_block_take(b, sizeof *meta);
    struct cuda_token *tokens = cuda_block_take(b, step->token_count * sizeof *tokens);
    struct cuda_sample *samples = cuda_block_take(b, d->limits.step_samples * sizeof *samples);
    *meta = (struct cuda_meta){.planes = d->planes,
                               .history = d->history,
                               .plane_elems = d->page_count * d->page_elems,
                               .tokens = cuda_block_device(b, tokens),
                               .samples = cuda_block_device(b, samples),
                               .results = d->results,
                               .token_count = step->token_count};
    fill_tokens(d, step, tokens, samples, meta);
    segments_check(d, step);
    cuda_attention_plan(d, step, b, meta);
    cuda_lora_plan(d, step, b, meta);
    *out = meta;
    return b;
}

/* The bucket: what launches may depend on. */
static void bucket_set(struct kern_device *d, const struct kern_step *step, uint32_t samples) {
    d->rows = cuda_rows(step->token_count);
    d->sample_rows = cuda_rows(samples);
    d->mixed = step->chunk_count < step->token_count;
    d->lora_rows = step->segment_count > 0;
    d->parts = 0;
    d->parts |= cuda_graph(d, CUDA_BODY) == NULL ? CUDA_BODY : 0;
    d->parts |= samples > 0 && cuda_graph(d, CUDA_TAIL) == NULL ? CUDA_TAIL : 0;
}

/* ---- begin, end, read --------------------------------------------------------------------- */

/* Logged here, once: whoever gets ERR_DEVICE only ends the process. */
static enum err step_failed(struct kern_device *d, enum err e) {
    if (d->failed == ERR_OK) {
        d->failed = e == ERR_NO_SPACE ? ERR_DEVICE : e;
    }
    char room[2 * ERR_TEXT_BYTES + 3];
    log_error("device", "the GPU failed error=%s", log_quote(room, sizeof room, d->fault.message));
    return d->failed;
}

static void graph_launch(struct kern_device *d, enum cuda_part part) {
    cudaGraphExec_t graph = (d->parts & part) != 0 ? NULL : cuda_graph(d, part);
    if (graph != NULL) {
        cuda_note(d, cudaGraphLaunch(graph, d->stream), "cudaGraphLaunch");
    }
}

enum err cuda_step_begin(struct kern_device *d, const struct kern_step *step) {
    struct cuda_steps *s = d->steps;
    CHECK(d->phase == CUDA_IDLE);
    CHECK(d->planes != NULL); /* so the weights are complete too */
    CHECK(s->end_count - s->read_count < CUDA_UNREAD_MAX);
    CHECK(step->token_count > 0 && step->token_count <= d->limits.step_tokens);
    if (d->failed != ERR_OK) {
        return d->failed;
    }
    uint32_t samples = 0; /* of the bucket, on which the plan in meta_fill() depends */
    for (uint32_t i = 0; i < step->chunk_count; i++) {
        samples += step->chunks[i].sample;
    }
    bucket_set(d, step, samples);
    struct cuda_meta *meta = NULL;
    cudaEvent_t began = s->began[s->end_count % CUDA_TIMED_STEPS];
    enum err e = deltas_apply(d, step);
    if (e != ERR_OK) {
        return step_failed(d, e);
    }
    struct cuda_block *block = meta_fill(d, step, &meta);
    CHECK(meta->sample_count == samples);
    s->result_count[s->end_count % CUDA_UNREAD_MAX] = samples;
    CHECK(d->merge_next == KERN_BASE || (step->segment_count == 0 && s->mergeable[d->merge_next]));
    cuda_note(d, cudaEventRecord(began, d->stream), "cudaEventRecord");
    cuda_merge_step(d);
    cuda_block_upload(d, block);
    d->phase = CUDA_IN_STEP;
    graph_launch(d, CUDA_BODY); /* a tail's kernels, if launched one by one, come behind it */
    return ERR_OK;
}

enum err cuda_step_end(struct kern_device *d, uint64_t *ticket) {
    struct cuda_steps *s = d->steps;
    CHECK(d->phase == CUDA_IN_STEP);
    d->phase = CUDA_IDLE;
    uint32_t at = (uint32_t)(s->end_count % CUDA_UNREAD_MAX), samples = s->result_count[at];
    if (samples > 0) {
        graph_launch(d, CUDA_TAIL);
        cuda_note(d,
                  cudaMemcpyAsync(s->results[at], d->results, samples * sizeof(struct kern_sample),
                                  cudaMemcpyDeviceToHost, d->stream),
                  "cudaMemcpyAsync");
    }
    cuda_note(d, cudaEventRecord(s->ended[s->end_count % CUDA_TIMED_STEPS], d->stream),
              "cudaEventRecord");
    if (d->failed != ERR_OK) {
        return step_failed(d, d->failed);
    }
    *ticket = ++s->end_count;
    return ERR_OK;
}

enum err cuda_step_read(struct kern_device *d, uint64_t ticket, struct kern_sample *samples,
                        uint32_t count) {
    struct cuda_steps *s = d->steps;
    CHECK(ticket == s->read_count + 1 && ticket <= s->end_count);
    uint32_t at = (uint32_t)((ticket - 1) % CUDA_UNREAD_MAX);
    CHECK(count == s->result_count[at]);
    cuda_note(d, cudaEventSynchronize(s->ended[(ticket - 1) % CUDA_TIMED_STEPS]), "a step");
    if (d->failed != ERR_OK) {
        return step_failed(d, d->failed);
    }
    if (count != 0) { /* `samples` may be NULL when nothing was sampled */
        memcpy(samples, s->results[at], count * sizeof samples[0]);
    }
    s->read_count = ticket;
    return ERR_OK;
}

void cuda_span(const struct kern_device *d, struct kern_span *span) {
    const struct cuda_steps *s = d->steps;
    *span = (struct kern_span){0};
    if (s->read_count == 0) {
        return;
    }
    uint32_t now = (uint32_t)((s->read_count - 1) % CUDA_TIMED_STEPS);
    uint32_t before = (now + CUDA_TIMED_STEPS - 1) % CUDA_TIMED_STEPS;
    float busy_ms = 0, idle_ms = 0;
    if (cudaEventElapsedTime(&busy_ms, s->began[now], s->ended[now]) == cudaSuccess) {
        span->busy_us = busy_ms * 1000;
    }
    if (s->read_count > 1 &&
        cudaEventElapsedTime(&idle_ms, s->ended[before], s->began[now]) == cudaSuccess) {
        span->idle_us = idle_ms > 0 ? idle_ms * 1000 : 0;
    }
}
