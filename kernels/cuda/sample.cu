/* sample.cu - the token that each sampling row draws, and its log-probabilities.
 *
 * Per row, in this order, as kernels/cpu/sample.c: the log-softmax of the raw logits at the drawn
 * token and at the n greatest; penalties; the greatest, or: temperature → top_k → top_p → min_p →
 * the first id up to which the kept weight exceeds u times all kept.
 *
 * Layout: logits [sample_rows][vocab_row] f32; of a slot, its parameters and page list; history
 * [page][page_tokens] ids. Out: slots' last and done, results [sample_count].
 *
 * Work: a team takes a row at a time. Few rows: a team is a cluster of up to 8 blocks (sm_90),
 * which share the first one's shared memory; else a block. Blocks have 256 threads, and a
 * multiprocessor two of them. Walks over the row:
 *
 * - greedy: one, for the greatest.
 *
 * - temperature: two; the second weighs segments of 128 ids, one of which is then looked through.
 *
 * - top_k, top_p, min_p: three. The second makes a histogram of how far below the greatest logits
 *   lie (with top_p also what all weigh), which tells how far down anything may stay; the third
 *   lists what lies above in shared memory, where a radix select finds borders and token. More than
 *   8,192 candidates (flat logits, large top_k) are not listed: the leader's select walks the row
 *   instead, some ten times.
 *
 * - log-probabilities: two more, of the same kind.
 *
 * - penalties: one more, and the history once for each slice of 16,384 ids, which are counted in
 *   shared memory.
 *
 * Bytes: 4 × vocab per walk, the later ones mostly out of the second-level cache. A weight costs
 * some 30 operations, so walks that weigh are bound by these and not by memory.
 *
 * Exactness: weights have the bits of the CPU's AVX2 table; sums are integers in units of 2⁻⁴⁴
 * (sample_row.cuh), where the CPU adds doubles: a draw can differ where u or top_p hits a border
 * within some 1e-9, and weights below 2⁻⁴⁴ are never drawn. On a CPU without AVX2 weights differ by
 * 1e-7. Log-probabilities: within 1e-6. The same bits whatever the team's size, the row's place and
 * its neighbours. */
#include "kernels/cuda/sample_draw.cuh"
#include "kernels/cuda/sample_row.cuh"

struct sample_args {
    const struct cuda_meta *meta;
    struct cuda_slot *slots;
    const uint32_t *slot_pages;
    float *logits;
    float *raw; /* [teams][vocab_row]: of tokens that were penalised, the logit before */
    uint32_t slot_page_row, vocab, vocab_row, page_shift, teams;
};

/* ---- the greatest ------------------------------------------------------------------------- */

/* The logit_rank() of the greatest, for all of the team. Ends with the team's barrier. */
static __device__ uint64_t row_best(const struct sample_team &t) {
    float best = -INFINITY;
    uint32_t best_id = 4 * (t.rank * SAMPLE_THREADS + threadIdx.x); /* this thread's first */
    row_each<SAMPLE_LOADS_MOST>(t, [&](uint32_t id, float logit) {
        if (logit > best) {
            best = logit;
            best_id = id;
        }
    });
    uint64_t rank = block_max(sample_own(), logit_rank(best_id, best));
    if (t.size == 1) {
        return rank;
    }
    if (threadIdx.x == 0) {
        t.lead->best[t.rank] = rank;
    }
    sample_team_sync(t);
    for (uint32_t i = 0; i < t.size; i++) {
        uint64_t other = t.lead->best[i];
        rank = other > rank ? other : rank;
    }
    return rank;
}

/* ---- log-probabilities -------------------------------------------------------------------- */

static __device__ float logprob_of(float logit, double log_all) {
    if (isinf(log_all)) { /* one logit is +∞, or none is a number: no distribution */
        return logit == INFINITY ? 0.0f : -INFINITY;
    }
    return (float)((double)logit - log_all);
}

/* The leader's log_all, and `count` entries of out->top. Ends with the team's barrier. */
static __device__ void log_probabilities(const struct sample_team t, uint64_t best, uint32_t count,
                                         struct kern_sample *out) {
    struct sample_room *room = sample_own();
    const float max = rank_logit(best);
    const struct sample_scale scale = sample_scale_of(max, 1);
    count = count < t.vocab ? count : t.vocab;
    if (!isinf(max)) {
        bins_count(t, scale, true);
        if (t.rank == 0 && count > 0) {
            auto held = [&](uint32_t bin) -> uint64_t { return room->bins[bin]; };
            uint64_t listed = list_plan(room, bins_reaching(room, count, held));
            if (threadIdx.x == 0 && listed < count) {
                room->listed = 0; /* some of the top weigh nothing */
            }
        }
        if (count > 0) {
            list_fill(t, scale);
        }
    } else if (threadIdx.x == 0) {
        room->listed = 0;
    }
    if (t.rank == 0) {
        __syncthreads();
        if (threadIdx.x == 0) {
            double all = (double)(room_total(room));
            room->log_all = isinf(max) ? (double)max : (double)max + log(all * 0x1p-44);
        }
        uint64_t last = UINT64_MAX;
        for (uint32_t i = 0; i < count; i++) {
            uint64_t next = 0;
            candidates_each(t, [&](uint32_t id, float logit) {
                uint64_t rank = logit_rank(id, logit);
                next = rank < last && rank > next ? rank : next;
            });
            last = block_max(room, next);
            if (threadIdx.x == 0) {
                out->top[i].token = rank_id(last);
                out->top[i].logprob = logprob_of(rank_logit(last), room->log_all);
            }
        }
    }
    sample_team_sync(t);
}

/* ---- penalties ---------------------------------------------------------------------------- */

/* take(position, id) for this thread's share of what the sequence holds. */
template <class F>
static __device__ __forceinline__ void history_each(const struct sample_args &a,
                                                    const struct cuda_sample &s, F take) {
    const uint32_t *pages = a.slot_pages + (uint64_t)s.slot * a.slot_page_row;
    const uint32_t *history = a.meta->history;
    const uint32_t mask = (1u << a.page_shift) - 1;
#pragma unroll 4
    for (uint32_t p = threadIdx.x; p < s.position; p += SAMPLE_THREADS) {
        take(p, history[((uint64_t)pages[p >> a.page_shift] << a.page_shift) + (p & mask)]);
    }
}

/* kern_penalties_cpu() of one logit. */
static __device__ __forceinline__ float penalised(float logit, uint32_t seen,
                                                  const struct cuda_slot *slot) {
    float repetition = slot->repetition_penalty != 0 ? slot->repetition_penalty : 1;
    logit = logit > 0 ? __fdiv_rn(logit, repetition) : __fmul_rn(logit, repetition);
    const uint32_t count = seen & ~KERN_SEEN_PROMPT;
    if (count > 0) {
        logit = __fsub_rn(logit, __fmul_rn(slot->frequency_penalty, (float)count));
        logit = __fsub_rn(logit, slot->presence_penalty);
    }
    return logit;
}

/* Changes the row; `raw` [vocab] gets what stood at the ids that the sequence holds. Ends with the
 * team's barrier. */
static __device__ void penalise(const struct sample_args &a, const struct sample_team t,
                                const struct cuda_sample &s, float *raw) {
    const struct cuda_slot *slot = a.slots + s.slot;
    uint32_t *seen = sample_own()->seen;
    for (uint32_t i = threadIdx.x; i < SAMPLE_SEEN; i += SAMPLE_THREADS) {
        seen[i] = 0;
    }
    __syncthreads();
    for (uint32_t begin = t.rank * SAMPLE_SEEN; begin < t.vocab; begin += t.size * SAMPLE_SEEN) {
        const uint32_t count = min(t.vocab - begin, (uint32_t)SAMPLE_SEEN);
        history_each(a, s, [&](uint32_t position, uint32_t id) {
            if (id - begin < count) { /* unsigned: an id below is far above */
                if (position < slot->prompt_tokens) {
                    atomicOr(&seen[id - begin], KERN_SEEN_PROMPT);
                } else {
                    atomicAdd(&seen[id - begin], 1u);
                }
            }
        });
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < count; i += SAMPLE_THREADS) {
            if (seen[i] != 0) {
                const float logit = t.logits[begin + i];
                raw[begin + i] = logit;
                t.logits[begin + i] = penalised(logit, seen[i], slot);
                seen[i] = 0; /* for the next slice */
            }
        }
        __syncthreads();
    }
    sample_team_sync(t);
}

/* ---- the row ------------------------------------------------------------------------------ */

/* Whether the sequence holds the token; for all threads. */
static __device__ bool holds(const struct sample_args &a, const struct cuda_sample &s,
                             uint32_t token) {
    bool found = false;
    history_each(a, s, [&](uint32_t, uint32_t id) { found = found || id == token; });
    return __syncthreads_or(found ? 1 : 0) != 0;
}

/* Leader only. `raw` NULL: the row is as it was. */
static __device__ void row_finish(const struct sample_args &a, const struct sample_team &t,
                                  const struct cuda_sample &s, const float *raw, uint32_t row,
                                  uint32_t token) {
    struct cuda_slot *slot = a.slots + s.slot;
    struct kern_sample *out = a.meta->results + row;
    const bool asked = slot->logprobs != 0;
    const float *from = asked && raw != nullptr && holds(a, s, token) ? raw : t.logits;
    if (threadIdx.x >= 32) {
        return;
    }
    bool stop = slot->done != 0;
    for (uint32_t i = threadIdx.x; i < slot->stop_count; i += 32) {
        stop = stop || slot->stop[i] == token;
    }
    stop = __any_sync(0xffffffffu, stop ? 1 : 0) != 0;
    if (threadIdx.x == 0) {
        slot->last = token;
        slot->done = stop ? 1 : 0;
        out->slot = s.slot;
        out->token = token;
        out->done = stop;
        out->top_count = asked ? min(slot->top_logprobs, t.vocab) : 0;
        out->logprob =
            asked ? logprob_of(fmaxf(from[token], -INFINITY), sample_own()->log_all) : 0.0f;
    }
}

static __device__ void row_sample(const struct sample_args &a, const struct sample_team &t,
                                  uint32_t row, uint32_t team) {
    const struct cuda_sample s = a.meta->samples[row];
    const struct cuda_slot *slot = a.slots + s.slot;
    const bool penalises = slot->penalises != 0;
    float *raw = penalises ? a.raw + (uint64_t)team * a.vocab_row : nullptr;
    uint64_t best = 0;
#pragma unroll 1 /* the code of a walk is there once */
    for (uint32_t walk = 0; walk < (penalises ? 2u : 1u); walk++) {
        if (walk != 0) {
            penalise(a, t, s, raw);
        }
        best = row_best(t);
        if (walk == 0 && slot->logprobs != 0) {
            log_probabilities(t, best, slot->top_logprobs, a.meta->results + row);
        }
    }
    uint32_t token = rank_id(best);
    if (slot->temperature > 0 && !isinf(rank_logit(best))) {
        token = draw(t, slot, s.position, best);
    }
    if (t.rank == 0) {
        row_finish(a, t, s, raw, row, token);
    }
}

static __global__ void __launch_bounds__(SAMPLE_THREADS, 2)
    sample_rows_kernel(const struct sample_args a) {
    struct sample_team t = sample_team_of(a.vocab);
    const uint32_t team = blockIdx.x / t.size, rows = a.meta->sample_count;
    if (team >= a.teams || team >= rows) {
        return; /* all of the team; code for sm_80 may run with clusters that it does not see */
    }
    for (uint32_t row = team; row < rows; row += a.teams) {
        sample_team_sync(t); /* all blocks run; nobody reads what the row before left */
        t.logits = a.logits + (uint64_t)row * a.vocab_row;
        row_sample(a, t, row, team);
    }
    sample_team_sync(t); /* nobody reads a block's memory any more */
}

/* ---- host --------------------------------------------------------------------------------- */

static uint32_t teams_most(const struct kern_device *d) {
    uint32_t blocks = 2 * (uint32_t)d->sm_count;
    return blocks < d->limits.step_samples ? blocks : d->limits.step_samples;
}

uint64_t cuda_sample_scratch_bytes(const struct kern_device *d) {
    return (uint64_t)teams_most(d) * d->vocab_row * sizeof(float);
}

/* Blocks of a team: as many as keep the device at one wave. */
static uint32_t team_size(const struct kern_device *d) {
    uint32_t size = d->capability >= 90 ? SAMPLE_TEAM_MAX : 1;
    while (size > 1 && d->sample_rows * size > 2 * (uint32_t)d->sm_count) {
        size /= 2;
    }
    return size;
}

void cuda_sample_rows(struct kern_device *d) {
    if (d->sample_rows == 0) {
        return;
    }
    if (d->shape.vocab > SAMPLE_VOCAB_MAX) {
        cuda_note(d, cudaErrorInvalidValue, "sample: vocabulary");
        return;
    }
    struct sample_args a = {};
    a.meta = d->meta;
    a.slots = d->tables.slots;
    a.slot_pages = d->tables.slot_pages;
    a.logits = d->logits;
    a.raw = static_cast<float *>(d->sample_scratch);
    a.slot_page_row = d->tables.slot_page_row;
    a.vocab = d->shape.vocab;
    a.vocab_row = d->vocab_row;
    while ((1u << a.page_shift) < d->limits.page_tokens) {
        a.page_shift++;
    }
    const uint32_t size = team_size(d), most = teams_most(d);
    a.teams = d->sample_rows < most ? d->sample_rows : most;
    cuda_note(d,
              cudaFuncSetAttribute(sample_rows_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   sizeof(struct sample_room)),
              "sample: shared memory");
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = size;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(a.teams * size);
    config.blockDim = dim3(SAMPLE_THREADS);
    config.dynamicSmemBytes = sizeof(struct sample_room);
    config.stream = d->stream;
    config.attrs = &cluster;
    config.numAttrs = size > 1 ? 1 : 0;
    cuda_note(d, cudaLaunchKernelEx(&config, sample_rows_kernel, a), "sample_rows_kernel");
}
