#include "tools/ops/work.h"

#include "base/check.h"

const char *ops_block_name(enum ops_block block) {
    static const char *const names[] = {"embed",   "qkv",  "attention", "attn_out",
                                        "gate_up", "down", "head",      "sample"};
    return block < OPS_BLOCKS ? names[block] : "pass";
}

uint32_t ops_tokens(const struct ops_batch *batch) {
    uint32_t tokens = 0;
    for (uint32_t i = 0; i < OPS_GROUPS; i++) {
        tokens += batch->groups[i].chunks * batch->groups[i].tokens;
    }
    return tokens;
}

uint32_t ops_samples(const struct ops_batch *batch) {
    uint32_t samples = 0;
    for (uint32_t i = 0; i < OPS_GROUPS; i++) {
        samples += batch->groups[i].chunks;
    }
    return samples;
}

/* ---- attention ---------------------------------------------------------------------------- */

static double least(double a, double b) {
    return a < b ? a : b;
}

/* Positions whose KV is read, and pairs of a query and a position that it sees. */
static void attention_counts(const struct kern_shape *s, const struct ops_batch *batch,
                             double *positions, double *pairs) {
    *positions = *pairs = 0;
    for (uint32_t i = 0; i < OPS_GROUPS; i++) {
        const struct ops_group *g = &batch->groups[i];
        double end = (double)g->position + g->tokens, seen = end, sum = 0;
        for (uint32_t t = 0; t < g->tokens; t++) {
            double context = (double)g->position + t + 1;
            sum += s->window != 0 ? least(context, s->window) : context;
        }
        if (s->window != 0) {
            seen = least(end, (double)s->window + g->tokens - 1);
        }
        *positions += g->chunks * seen;
        *pairs += g->chunks * sum;
    }
}

/* ---- blocks ------------------------------------------------------------------------------- */

/* A product of `rows` rows: weights and both sides' activations once. */
static struct ops_work linear(double rows, double in, double out, double elem) {
    return (struct ops_work){.bytes = (in * out + rows * (in + out)) * elem,
                             .flops = 2 * rows * in * out};
}

static struct ops_work pass_work(const struct kern_shape *s, uint32_t elem_bytes,
                                 const struct ops_batch *batch) {
    struct ops_work sum = {0};
    for (int b = 0; b < OPS_BLOCKS; b++) {
        struct ops_work one = ops_work(s, elem_bytes, batch, (enum ops_block)b);
        double times = ops_in_layer((enum ops_block)b) ? s->layers : 1;
        sum.bytes += times * one.bytes;
        sum.flops += times * one.flops;
    }
    return sum;
}

struct ops_work ops_work(const struct kern_shape *s, uint32_t elem_bytes,
                         const struct ops_batch *batch, enum ops_block block) {
    const double rows = ops_tokens(batch), samples = ops_samples(batch), elem = elem_bytes;
    const double hidden = s->hidden, intermediate = s->intermediate, vocab = s->vocab;
    const double q = (double)s->heads * s->head_dim, kv = 2.0 * s->kv_heads * s->head_dim;
    const double row_bytes = rows * hidden * elem;
    struct ops_work w = {0};
    double positions, pairs;
    switch (block) {
    case OPS_EMBED: /* the table's rows → x, and its norm */
        w.bytes = 3 * row_bytes;
        break;
    case OPS_QKV:
        w = linear(rows, hidden, q + kv, elem);
        break;
    case OPS_ATTENTION:
        attention_counts(s, batch, &positions, &pairs);
        w.bytes = (positions * kv + 2 * rows * q) * elem;
        w.flops = 4 * pairs * q;
        break;
    case OPS_ATTN_OUT: /* x is read too, and its norm written */
        w = linear(rows, q, hidden, elem);
        w.bytes += 2 * row_bytes;
        break;
    case OPS_GATE_UP: /* only their product leaves the block */
        w = linear(rows, hidden, 2 * intermediate, elem);
        w.bytes -= rows * intermediate * elem;
        break;
    case OPS_DOWN:
        w = linear(rows, intermediate, hidden, elem);
        w.bytes += 2 * row_bytes;
        break;
    case OPS_HEAD:
        w = linear(samples, hidden, vocab, elem);
        w.bytes += samples * vocab * (sizeof(float) - elem); /* logits */
        break;
    case OPS_SAMPLE:
        w.bytes = samples * vocab * sizeof(float);
        break;
    case OPS_PASS:
        w = pass_work(s, elem_bytes, batch);
        break;
    }
    return w;
}

struct ops_work ops_lora_work(const struct kern_shape *s, uint32_t elem_bytes, enum ops_block block,
                              uint32_t rank, uint32_t adapters, uint32_t tokens) {
    static const struct {
        enum kern_module first, end;
    } modules[OPS_BLOCKS] = {
        [OPS_QKV] = {KERN_Q, KERN_O},
        [OPS_ATTN_OUT] = {KERN_O, KERN_GATE},
        [OPS_GATE_UP] = {KERN_GATE, KERN_DOWN},
        [OPS_DOWN] = {KERN_DOWN, KERN_MODULES},
    };
    CHECK(block < OPS_BLOCKS);
    double columns = 0;
    for (enum kern_module m = modules[block].first; m < modules[block].end; m++) {
        columns += (double)kern_module_in(s, m) + kern_module_out(s, m);
    }
    return (struct ops_work){.bytes = columns * rank * adapters * elem_bytes,
                             .flops = 2 * columns * rank * tokens};
}

double ops_floor_us(const struct ops_work *work, const struct kern_peaks *peaks) {
    double moving = work->bytes / peaks->copy_bytes_s, computing = work->flops / peaks->gemm_flop_s;
    return (moving > computing ? moving : computing) * 1e6;
}
