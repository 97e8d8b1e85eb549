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

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes.h"

_Static_assert(CPU_HEAD_MULTIPLE % LANES == 0, "heads have no tails");

/* What one item works on. */
struct view {
    const float *q;      /* [group][head_dim] */
    float *out;          /* [group][head_dim] */
    float *scores;       /* [group][score_row], entry i is of position first + i */
    uint32_t group;      /* query heads */
    uint32_t first, end; /* positions attended to */
    size_t head_dim;
    size_t score_row;
    size_t token_row; /* floats from token to token inside a page */
};

/* Scores of `count` positions of one page, written from scores[·][at] on. */
LANES_CLONES static void page_scores(const struct view *w, const float *keys, uint32_t at,
                                     uint32_t count) {
    for (uint32_t t = 0; t < count; t++) {
        const float *key = keys + t * w->token_row;
        for (uint32_t g = 0; g < w->group; g++) {
            w->scores[g * w->score_row + at + t] =
                lanes_dot(w->q + g * w->head_dim, key, w->head_dim);
        }
    }
}

/* out[g] += scores[g][at ..] · values, of `count` positions of one page */
LANES_CLONES static void page_values(const struct view *w, const float *values, uint32_t at,
                                     uint32_t count) {
    for (uint32_t g = 0; g < w->group; g++) {
        const float *weight = w->scores + g * w->score_row + at;
        for (size_t i = 0; i < w->head_dim; i += LANES) {
            float *to = w->out + g * w->head_dim + i;
            lanes sum = lanes_load(to);
            for (uint32_t t = 0; t < count; t++) {
                sum += lanes_all(weight[t]) * lanes_load(values + t * w->token_row + i);
            }
            lanes_store(to, sum);
        }
    }
}

/* Turns scores into weights that sum to one. `count` scores; the rest of the last vector is set to
 * a score that weighs nothing. */
LANES_CLONES static void softmax(float *scores, uint32_t count, float scale) {
    float max = scores[0];
    for (uint32_t i = 1; i < count; i++) {
        max = scores[i] > max ? scores[i] : max;
    }
    uint32_t padded = (count + LANES - 1) / LANES * LANES;
    lanes sum = lanes_all(0);
    for (uint32_t i = count; i < padded; i++) {
        scores[i] = max;
    }
    for (uint32_t i = 0; i < padded; i += LANES) {
        lanes_store(scores + i,
                    lanes_exp((lanes_load(scores + i) - lanes_all(max)) * lanes_all(scale)));
    }
    for (uint32_t i = count; i < padded; i++) {
        scores[i] = 0;
    }
    for (uint32_t i = 0; i < padded; i += LANES) {
        sum += lanes_load(scores + i);
    }
    float factor = 1.0f / lanes_sum(sum);
    for (uint32_t i = 0; i < count; i++) {
        scores[i] *= factor;
    }
}

typedef void page_fn(const struct view *w, const float *rows, uint32_t at, uint32_t count);

/* Calls `each` for the pages of positions first .. end - 1, in order. `offset`: of the head's first
 * row inside a page. */
static void pages_walk(const struct kern_device *d, uint32_t layer, const struct cpu_slot *slot,
                       const struct view *w, uint64_t offset, page_fn *each) {
    uint32_t page_tokens = d->limits.page_tokens;
    for (uint32_t position = w->first; position < w->end;) {
        uint32_t begin = position % page_tokens, left = w->end - position;
        uint32_t count = page_tokens - begin < left ? page_tokens - begin : left;
        const float *page = cpu_page(d, layer, slot->pages[position / page_tokens]);
        each(w, page + offset + begin * w->token_row, position - w->first, count);
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
    uint32_t token = item / s->kv_heads, kv_head = item % s->kv_heads;
    uint32_t position = d->tokens[token].position;
    uint32_t group = s->heads / s->kv_heads;
    uint64_t head = (uint64_t)token * d->q_row + (uint64_t)kv_head * group * s->head_dim;
    const struct view w = {
        .q = d->q + head,
        .out = d->attended + head,
        .scores = d->scores + (uint64_t)thread * group * d->score_row,
        .group = group,
        .head_dim = s->head_dim,
        .score_row = d->score_row,
        .first = s->window == 0 || position < s->window ? 0 : position + 1 - s->window,
        .end = position + 1,
        .token_row = (size_t)s->kv_heads * s->head_dim,
    };
    DCHECK(w.end - w.first <= d->score_row);
    const struct cpu_slot *slot = &d->slots[d->tokens[token].slot];
    uint64_t keys = (uint64_t)kv_head * s->head_dim;
    uint64_t values = keys + d->limits.page_tokens * w.token_row;

    pages_walk(d, work->layer, slot, &w, keys, page_scores);
    float scale = 1.0f / sqrtf((float)s->head_dim);
    for (uint32_t g = 0; g < group; g++) {
        softmax(w.scores + g * w.score_row, w.end - w.first, scale);
    }
    memset(w.out, 0, group * w.head_dim * sizeof(float));
    pages_walk(d, work->layer, slot, &w, values, page_values);
}

void cpu_attention(struct kern_device *d, uint32_t layer) {
    DCHECK(d->phase == CPU_IN_STEP);
    struct work work = {.d = d, .layer = layer};
    threads_run(d->threads, attention_item, &work, d->token_count * d->shape.kv_heads);
}
