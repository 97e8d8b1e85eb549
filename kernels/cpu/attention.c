/* attention.c - causal attention of a step's tokens over the pages of their sequences.
 *
 * For each token at position p and each query head: softmax(q · Kᵀ / √head_dim) · V over positions
 * first .. p, first = 0 or p + 1 − window. q [rows][heads][head_dim]; K and V in pages (kernels.h).
 * The unit of work is one token and one key-value head with the query heads that share it, in two
 * passes: all scores, their maximum and exponentials; then the weighted sum of V. Both walk the
 * positions in order, so a token's result does not depend on how its prompt was cut into chunks,
 * nor on who else is in the batch. Scores are 4 bytes a position and query head, in scratch. Cost:
 * 4 · heads · head_dim · positions FLOP a token and layer. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

typedef void page_fn(const struct cpu_view *w, const float *rows, size_t at, size_t count);

/* Calls `each` for the pages of positions first .. end - 1, in order; `at` counts from `first`.
 * `offset`: of the head's first row inside a page. */
static void pages_walk(const struct kern_device *d, const float *plane,
                       const struct cpu_token *token, const struct cpu_view *w, size_t offset,
                       page_fn *each) {
    const uint32_t *pages = d->slots[token->slot].pages;
    uint32_t page_tokens = d->limits.page_tokens, end = token->position + 1;
    uint32_t first = cpu_position_first(d, token->position);
    for (uint32_t position = first; position < end;) {
        uint32_t begin = position % page_tokens, left = end - position;
        uint32_t count = page_tokens - begin < left ? page_tokens - begin : left;
        const float *page = plane + pages[position / page_tokens] * d->page_elems;
        each(w, page + offset + begin * w->token_row, position - first, count);
        position += count;
    }
}

struct work {
    struct kern_device *d;
    uint32_t layer;
};

static void attention_item(void *context, uint32_t item, uint32_t thread) {
    const struct work *work = context;
    struct kern_device *d = work->d;
    const struct kern_shape *s = &d->shape;
    const struct cpu_token *token = &d->tokens[item / s->kv_heads];
    size_t group = s->heads / s->kv_heads, head_dim = s->head_dim, kv_head = item % s->kv_heads;
    size_t head = (size_t)(item / s->kv_heads) * d->q_row + kv_head * group * head_dim;
    const struct cpu_view w = {
        .q = d->q + head,
        .out = d->attended + head,
        .scores = d->scores + thread * group * d->score_row,
        .group = group,
        .head_dim = head_dim,
        .score_row = d->score_row,
        .token_row = s->kv_heads * head_dim,
    };
    uint32_t count = token->position + 1 - cpu_position_first(d, token->position);
    DCHECK(count <= d->score_row);
    const float *plane = cpu_page(d, work->layer, 0);
    size_t keys = kv_head * head_dim, values = keys + d->limits.page_tokens * w.token_row;

    pages_walk(d, plane, token, &w, keys, d->vector->scores);
    float scale = 1.0f / sqrtf((float)head_dim);
    for (size_t g = 0; g < group; g++) {
        d->vector->softmax(w.scores + g * w.score_row, count, scale);
    }
    memset(w.out, 0, group * head_dim * sizeof(float));
    pages_walk(d, plane, token, &w, values, d->vector->values);
}

void cpu_attention(struct kern_device *d, uint32_t layer) {
    DCHECK(d->phase == CPU_IN_STEP);
    struct work work = {.d = d, .layer = layer};
    threads_run(d->threads, attention_item, &work, d->token_count * d->shape.kv_heads);
}
