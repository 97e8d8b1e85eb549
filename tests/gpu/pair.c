#include "tests/gpu/pair.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/seed.h"

/* ---- bounds ------------------------------------------------------------------------------- */

/* In units; what is rounded on the way stands behind. K is at most some 3,000 here, so that the
 * order of f32 sums moves a result by less than 1e-5: nothing beside these. */
static const struct {
    const char *name;
    double max, rms;
} bounds[PAIR_WHATS] = {
    [PAIR_EMBED] = {"embed", 1.2, 0.8},          /* the sum with LoRA's; base rows are exact */
    [PAIR_NORM] = {"norm", 5, 2},                /* x, twice; the norm */
    [PAIR_Q] = {"q", 6, 2},                      /* product; with v of LoRA; norm, rope */
    [PAIR_K] = {"k", 6, 2},                      /* likewise */
    [PAIR_V] = {"v", 6, 2},                      /* likewise, without norm and rope */
    [PAIR_ATTENTION] = {"attention", 6, 2},      /* scaled q; weights; the sum */
    [PAIR_X] = {"x", 4, 1.5},                    /* the sum; with LoRA's */
    [PAIR_ACT] = {"act", 8, 3},                  /* gate and up as q; the product */
    [PAIR_HEAD_IN] = {"head_in", 5, 2},          /* as norm */
    [PAIR_LOGITS] = {"logits", 0.2, 0.1},        /* none: f32 sums */
    [PAIR_LOGITS_LORA] = {"logits, LoRA", 4, 2}, /* v of LoRA */
    [PAIR_WHOLE] = {"whole step", 32, 10},       /* all of these, through a few layers */
};

/* ---- both --------------------------------------------------------------------------------- */

void pair_open(struct pair *p, const char *name, const struct kern_shape *shape,
               const struct rig_options *options) {
    memset(p, 0, sizeof *p);
    p->name = name;
    p->warm = options->warm;
    p->unit = shape->dtype == KERN_F16 ? 0x1p-11 : 0x1p-8;
    struct rig_options o = *options;
    o.ops = kern_cpu();
    o.warm = false;
    rig_open_with(&p->cpu, shape, &o);
    o.ops = kern_cuda();
    o.warm = options->warm;
    rig_open_with(&p->cuda, shape, &o);
    assert_int_equal(p->cuda.ops->elem(p->cuda.device),
                     shape->dtype == KERN_F32 ? KERN_BF16 : shape->dtype);
    rig_poison(&p->cuda);
}

void pair_close(struct pair *p) {
    print_message("%s, seed %llu; greatest differences in units, max and rms:\n ", p->name,
                  (unsigned long long)seed_take(42));
    double all = 0;
    for (uint32_t i = 0; i < PAIR_WHATS; i++) {
        if (p->worst[i].max > 0) {
            print_message(" %s %.2g %.2g;", bounds[i].name, p->worst[i].max, p->worst[i].rms);
        }
        all += p->worst[i].max;
    }
    print_message("\n");
    assert_true(all > 0); /* something was compared */
    rig_close(&p->cuda);
    rig_close(&p->cpu);
}

void pair_adapter(struct pair *p, uint32_t adapter, const uint32_t ranks[KERN_MODULES],
                  uint32_t layer_mask) {
    rig_adapter(&p->cpu, adapter, ranks, layer_mask);
    rig_adapter(&p->cuda, adapter, ranks, layer_mask);
}

void pair_sequence(struct pair *p, uint32_t number, uint32_t adapter) {
    rig_sequence(&p->cpu, number, adapter);
    rig_sequence(&p->cuda, number, adapter);
}

void pair_rewind(struct pair *p, uint32_t number, uint32_t position) {
    rig_rewind(&p->cpu, number, position);
    rig_rewind(&p->cuda, number, position);
}

/* ---- comparison --------------------------------------------------------------------------- */

/* A step that runs on both. */
struct run {
    struct pair *p;
    struct rig_batch *cpu, *cuda;
    uint32_t layer;
    float *a, *b; /* room for rows of either device */
};

static float *room(uint64_t count) {
    float *f = calloc(count > 0 ? count : 1, sizeof *f);
    assert_non_null(f);
    return f;
}

static void differ(const struct run *r, enum pair_what what, uint32_t token, uint32_t column,
                   const float *cuda, const float *cpu) {
    const struct rig_batch *b = r->cpu;
    uint32_t sequence = b->sequence[token];
    struct peek_bucket bucket = peek_cuda_bucket(r->p->cuda.device);
    fail_msg("%s: %s of layer %u, token %u of %u (sequence %u at %u, adapter %d), columns from %u: "
             "%g %g %g … for %g %g %g …; rows %u, sample rows %u%s%s",
             r->p->name, bounds[what].name, r->layer, token, b->step.token_count, sequence,
             b->position[token], (int)r->p->cpu.sequences[sequence].adapter, column,
             (double)cuda[0], (double)cuda[1], (double)cuda[2], (double)cpu[0], (double)cpu[1],
             (double)cpu[2], bucket.rows, bucket.sample_rows, bucket.mixed ? ", mixed" : "",
             bucket.lora ? ", LoRA" : "");
}

/* One row, or one head of it. */
static void piece_check(const struct run *r, enum pair_what what, uint32_t token, uint32_t column,
                        const float *cuda, const float *cpu, uint32_t count) {
    double size = 1e-30, square = 1e-60, worst = 0, sum = 0;
    for (uint32_t i = 0; i < count; i++) {
        double difference = fabs((double)cuda[i] - (double)cpu[i]), value = fabs((double)cpu[i]);
        size = value > size ? value : size;
        worst = difference <= worst ? worst : difference; /* NaN stays */
        square += value * value;
        sum += difference * difference;
    }
    double max = worst / size / r->p->unit, rms = sqrt(sum / square) / r->p->unit;
    if (!(max <= bounds[what].max && rms <= bounds[what].rms)) {
        print_message("max %.3g, bound %.3g; rms %.3g, bound %.3g units\n", max, bounds[what].max,
                      rms, bounds[what].rms);
        differ(r, what, token, column, cuda, cpu);
    }
    r->p->worst[what].max = fmax(max, r->p->worst[what].max);
    r->p->worst[what].rms = fmax(rms, r->p->worst[what].rms);
}

static void row_check(const struct run *r, enum pair_what what, uint32_t token, const float *cuda,
                      const float *cpu, uint32_t columns, uint32_t piece) {
    for (uint32_t c = 0; c < columns; c += piece) {
        piece_check(r, what, token, c, cuda + c, cpu + c, piece);
    }
}

/* All tokens' rows; then the CPU has CUDA's. */
static void rows_check(const struct run *r, enum pair_what what, enum peek_rows rows) {
    uint32_t count = r->cpu->step.token_count;
    uint32_t columns = peek_columns(&r->p->cpu.shape, rows);
    bool heads = rows == PEEK_Q || rows == PEEK_ATTENDED;
    peek_cuda_rows(r->p->cuda.device, rows, count, r->a);
    peek_cpu_rows(r->p->cpu.device, rows, count, r->b);
    for (uint32_t i = 0; i < count; i++) {
        const uint64_t at = (uint64_t)i * columns;
        row_check(r, what, i, r->a + at, r->b + at, columns,
                  heads ? r->p->cpu.shape.head_dim : columns);
        if (what == PAIR_EMBED && r->p->cpu.sequences[r->cpu->sequence[i]].adapter == KERN_BASE) {
            assert_memory_equal(r->a + at, r->b + at, columns * sizeof *r->a);
        }
    }
    poke_cpu_rows(r->p->cpu.device, rows, count, r->a);
}

static struct peek_place place_of(const struct run *r, uint32_t token, uint32_t layer) {
    uint32_t t = r->p->cpu.limits.page_tokens, position = r->cpu->position[token];
    const struct rig_sequence *s = &r->p->cpu.sequences[r->cpu->sequence[token]];
    return (struct peek_place){
        .layer = layer, .page = s->pages[position / t], .offset = position % t};
}

/* K and V of all tokens in their pages; then the CPU has CUDA's. */
static void kv_check(struct run *r, uint32_t layer, bool whole) {
    const struct kern_shape *s = &r->p->cpu.shape;
    uint32_t columns = s->kv_heads * s->head_dim;
    float *v[2] = {r->a + columns, r->b + columns};
    r->layer = layer;
    for (uint32_t i = 0; i < r->cpu->step.token_count; i++) {
        const struct peek_place at = place_of(r, i, layer);
        peek_cuda_kv(r->p->cuda.device, &at, r->a, v[0]);
        peek_cpu_kv(r->p->cpu.device, &at, r->b, v[1]);
        row_check(r, whole ? PAIR_WHOLE : PAIR_K, i, r->a, r->b, columns, s->head_dim);
        row_check(r, whole ? PAIR_WHOLE : PAIR_V, i, v[0], v[1], columns, s->head_dim);
        poke_cpu_kv(r->p->cpu.device, &at, r->a, v[0]);
    }
}

/* ---- the blocks --------------------------------------------------------------------------- */

/* Padding rows are zero after embed() and finite later. */
static void padding_check(const struct run *r, bool zero) {
    uint32_t hidden = r->p->cpu.shape.hidden, count = r->cpu->step.token_count;
    uint32_t rows = peek_cuda_bucket(r->p->cuda.device).rows;
    assert_true(rows >= count);
    float *x = room((uint64_t)rows * hidden);
    peek_cuda_rows(r->p->cuda.device, PEEK_X, rows, x);
    for (uint64_t i = (uint64_t)count * hidden; i < (uint64_t)rows * hidden; i++) {
        assert_true(zero ? x[i] == 0 : isfinite(x[i]));
    }
    free(x);
}

static void history_check(const struct run *r) {
    for (uint32_t i = 0; i < r->cpu->step.token_count; i++) {
        const struct peek_place at = place_of(r, i, 0);
        assert_int_equal(peek_cuda_history(r->p->cuda.device, at.page, at.offset),
                         r->cpu->tokens[i]);
    }
}

static uint32_t sample_token(const struct rig_batch *b, uint32_t row) {
    uint32_t seen = 0;
    for (uint32_t i = 0; i < b->step.chunk_count; i++) {
        const struct kern_chunk *c = &b->chunks[i];
        if (c->sample && seen++ == row) {
            return c->token_begin + c->token_count - 1;
        }
    }
    fail_msg("no sampling chunk %u", row);
    return 0;
}

static void head_check(const struct run *r) {
    struct rig *cpu = &r->p->cpu, *cuda = &r->p->cuda;
    uint32_t hidden = cpu->shape.hidden;
    float *normed = room((uint64_t)r->cpu->step.token_count * hidden);
    peek_cpu_rows(cpu->device, PEEK_NORMED, r->cpu->step.token_count, normed);
    cuda->ops->head(cuda->device);
    peek_cuda_rows(cuda->device, PEEK_HEAD_IN, r->cpu->sample_count, r->a);
    for (uint32_t i = 0; i < r->cpu->sample_count; i++) {
        uint32_t token = sample_token(r->cpu, i);
        const float *row = r->a + (uint64_t)i * hidden;
        row_check(r, PAIR_HEAD_IN, token, row, normed + (uint64_t)token * hidden, hidden, hidden);
        poke_cpu_normed(cpu->device, token, row);
    }
    cpu->ops->head(cpu->device);
    free(normed);
}

static void layer_check(struct run *r, uint32_t layer) {
    const struct kern_ops *cpu = r->p->cpu.ops, *cuda = r->p->cuda.ops;
    struct kern_device *c = r->p->cpu.device, *g = r->p->cuda.device;
    r->layer = layer;
    cpu->qkv(c, layer);
    cuda->qkv(g, layer);
    rows_check(r, PAIR_Q, PEEK_Q);
    kv_check(r, layer, false);
    cpu->attention(c, layer);
    cuda->attention(g, layer);
    rows_check(r, PAIR_ATTENTION, PEEK_ATTENDED);
    cpu->attn_out(c, layer);
    cuda->attn_out(g, layer);
    rows_check(r, PAIR_X, PEEK_X);
    rows_check(r, PAIR_NORM, PEEK_NORMED);
    cpu->gate_up(c, layer);
    cuda->gate_up(g, layer);
    rows_check(r, PAIR_ACT, PEEK_ACT);
    cpu->down(c, layer);
    cuda->down(g, layer);
    rows_check(r, PAIR_X, PEEK_X);
    if (layer + 1 < r->p->cpu.shape.layers) { /* the last is head()'s, of sampling rows alone */
        rows_check(r, PAIR_NORM, PEEK_NORMED);
    }
}

static void blocks_check(struct run *r) {
    const struct kern_ops *cpu = r->p->cpu.ops, *cuda = r->p->cuda.ops;
    cpu->embed(r->p->cpu.device);
    cuda->embed(r->p->cuda.device);
    rows_check(r, PAIR_EMBED, PEEK_X);
    rows_check(r, PAIR_NORM, PEEK_NORMED);
    padding_check(r, true);
    history_check(r);
    for (uint32_t layer = 0; layer < r->p->cpu.shape.layers; layer++) {
        layer_check(r, layer);
    }
    head_check(r);
    cpu->sample(r->p->cpu.device);
    cuda->sample(r->p->cuda.device);
    padding_check(r, false);
}

/* ---- the end of a step -------------------------------------------------------------------- */

static bool head_changed(const struct run *r, uint32_t token) {
    const struct rig *rig = &r->p->cpu;
    uint32_t adapter = rig->sequences[r->cpu->sequence[token]].adapter;
    return adapter != KERN_BASE &&
           rig->loras[adapter][rig->shape.layers * KERN_MODULES + KERN_OUTER_HEAD].rank != 0;
}

/* The logits, and that a greedy slot got the greatest, the lowest id of equal ones. */
static void logits_check(const struct run *r) {
    uint32_t vocab = r->p->cpu.shape.vocab;
    float *cpu = room(vocab), *cuda = room(vocab);
    for (uint32_t i = 0; i < r->cpu->sample_count; i++) {
        uint32_t token = sample_token(r->cpu, i), best = 0;
        rig_logits(&r->p->cpu, i, cpu);
        rig_logits(&r->p->cuda, i, cuda);
        enum pair_what what = head_changed(r, token) ? PAIR_LOGITS_LORA : PAIR_LOGITS;
        row_check(r, r->p->warm ? PAIR_WHOLE : what, token, cuda, cpu, vocab, vocab);
        for (uint32_t k = 1; k < vocab; k++) {
            best = cuda[k] > cuda[best] ? k : best;
        }
        assert_int_equal(r->p->cuda.results[i].slot, r->cpu->sequence[token]);
        assert_int_equal(r->p->cuda.results[i].token, best);
        assert_int_equal(r->p->cpu.results[i].slot, r->cpu->sequence[token]);
    }
    free(cuda);
    free(cpu);
}

/* All of the pool, [layers][pages][page_elems]. */
static uint16_t *pool_copy(const struct pair *p, uint64_t *plane) {
    const struct rig *g = &p->cuda;
    *plane = g->limits.adapter_pages * kern_page_elems(&g->shape, g->limits.page_tokens);
    uint16_t *all = calloc(*plane * g->shape.layers, sizeof *all);
    assert_non_null(all);
    for (uint32_t layer = 0; layer < g->shape.layers; layer++) {
        peek_cuda_plane(g->device, layer, all + layer * *plane);
    }
    return all;
}

/* `before` with the tokens' K and V as they are now is all that there is. */
static void guard_check(const struct run *r, uint16_t *before) {
    const struct kern_shape *s = &r->p->cpu.shape;
    uint64_t plane = 0, t = r->p->cpu.limits.page_tokens;
    uint64_t columns = (uint64_t)s->kv_heads * s->head_dim;
    uint16_t *after = pool_copy(r->p, &plane);
    for (uint32_t layer = 0; layer < s->layers; layer++) {
        for (uint32_t i = 0; i < r->cpu->step.token_count; i++) {
            const struct peek_place at = place_of(r, i, layer);
            uint64_t k =
                layer * plane + at.page * kern_page_elems(s, (uint32_t)t) + at.offset * columns;
            memcpy(before + k, after + k, columns * sizeof *after);
            memcpy(before + k + t * columns, after + k + t * columns, columns * sizeof *after);
        }
    }
    assert_memory_equal(before, after, plane * s->layers * sizeof *after);
    free(after);
}

static void begin(struct rig *r, const struct rig_batch *b) {
    assert_int_equal(r->ops->step_begin(r->device, &b->step), ERR_OK);
}

static void end(struct rig *r, const struct rig_batch *b) {
    uint64_t ticket = 0;
    assert_int_equal(r->ops->step_end(r->device, &ticket), ERR_OK);
    assert_int_equal(r->ops->step_read(r->device, ticket, r->results, b->sample_count), ERR_OK);
}

void pair_step(struct pair *p, const struct rig_part *parts, uint32_t count) {
    struct run r = {.p = p};
    r.cpu = rig_batch(&p->cpu, parts, count);
    r.cuda = rig_batch(&p->cuda, parts, count);
    assert_memory_equal(r.cpu->tokens, r.cuda->tokens, sizeof r.cpu->tokens);
    uint64_t columns = 2ull * p->cpu.shape.kv_heads * p->cpu.shape.head_dim, plane = 0;
    for (enum peek_rows w = PEEK_X; w <= PEEK_HEAD_IN; w++) {
        uint32_t more = peek_columns(&p->cpu.shape, w);
        columns = more > columns ? more : columns;
    }
    r.a = room((r.cpu->step.token_count + 1) * columns);
    r.b = room((r.cpu->step.token_count + 1) * columns);
    uint16_t *before = p->guard ? pool_copy(p, &plane) : NULL;
    begin(&p->cpu, r.cpu);
    begin(&p->cuda, r.cuda);
    if (p->warm) {
        rig_blocks(&p->cpu, NULL);
        rig_blocks(&p->cuda, NULL);
    } else {
        blocks_check(&r);
    }
    end(&p->cpu, r.cpu);
    end(&p->cuda, r.cuda);
    for (uint32_t layer = 0; p->warm && layer < p->cpu.shape.layers; layer++) {
        kv_check(&r, layer, true);
    }
    logits_check(&r);
    if (p->guard) {
        guard_check(&r, before);
    }
    free(before);
    free(r.a);
    free(r.b);
    free(r.cpu);
    free(r.cuda);
}
