/* sample_draw.cuh - the draw of one row: its candidates, the cuts that options make among them, and
 * the token that u falls on. The method stands in sample.cu. */
#ifndef LORRY_KERNELS_CUDA_SAMPLE_DRAW_CUH
#define LORRY_KERNELS_CUDA_SAMPLE_DRAW_CUH

#include "kernels/cuda/sample_row.cuh"

/* ---- candidates --------------------------------------------------------------------------- */

static __device__ __forceinline__ uint64_t room_total(const struct sample_room *room) {
    return (uint64_t)room->total_high << 32 | room->total_low;
}

/* At least what a logit in the bin weighs; the margin covers the rounding of both. */
static __device__ __forceinline__ uint64_t bin_units(uint32_t bin) {
    return weight_units(1.001f * exp_as_cpu(-(float)bin / SAMPLE_BINS_UNIT));
}

/* The leader's `bins`; with `weighs` also its total. Ends with the team's barrier. */
static __device__ void bins_count(const struct sample_team &t, const struct sample_scale &scale,
                                  bool weighs) {
    struct sample_room *own = sample_own();
    for (uint32_t i = threadIdx.x; i < SAMPLE_BINS; i += SAMPLE_THREADS) {
        own->bins[i] = 0;
    }
    if (threadIdx.x == 0) {
        own->total_low = own->total_high = own->list_count = 0;
    }
    sample_team_sync(t);
    auto count = [&](uint32_t, float logit) {
        uint32_t bin = bin_of(scale, logit);
        if (bin < SAMPLE_BINS) {
            atomicAdd(&own->bins[bin], 1u);
        }
    };
    if (weighs) {
        uint64_t sum = 0;
        row_each(t, [&](uint32_t id, float logit) {
            count(id, logit);
            sum += weight_units(weigh(scale, logit));
        });
        sum = warp_prefix(sum);
        if (threadIdx.x % 32 == 31) {
            atomic_add_64(&t.lead->total_low, &t.lead->total_high, sum);
        }
    } else {
        row_each(t, count);
    }
    if (t.rank != 0) {
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < SAMPLE_BINS; i += SAMPLE_THREADS) {
            if (own->bins[i] != 0) {
                atomicAdd(&t.lead->bins[i], own->bins[i]);
            }
        }
    }
    sample_team_sync(t);
}

/* Leader: the first bin up to which bins weigh `target`, mass(bin) each; else the last one. */
template <class M>
static __device__ uint32_t bins_reaching(struct sample_room *room, uint64_t target, M mass) {
    uint64_t part[SAMPLE_BINS_THREAD], sum = 0, all;
#pragma unroll
    for (uint32_t i = 0; i < SAMPLE_BINS_THREAD; i++) {
        part[i] = mass(threadIdx.x * SAMPLE_BINS_THREAD + i);
        sum += part[i];
    }
    if (threadIdx.x == 0) {
        room->picked = SAMPLE_BINS - 1;
    }
    uint64_t through = block_prefix(room, sum, &all) - sum;
    for (uint32_t i = 0; i < SAMPLE_BINS_THREAD; i++) {
        if (through < target && through + part[i] >= target) {
            room->picked = threadIdx.x * SAMPLE_BINS_THREAD + i;
        }
        through += part[i];
    }
    __syncthreads();
    uint32_t bin = room->picked;
    __syncthreads();
    return bin;
}

template <class M> static __device__ uint64_t bins_total(struct sample_room *room, M mass) {
    uint64_t sum = 0;
    for (uint32_t i = threadIdx.x; i < SAMPLE_BINS; i += SAMPLE_THREADS) {
        sum += mass(i);
    }
    return block_total(room, sum);
}

/* Leader: bins up to `limit` will be listed, if there is room. Returns how many logits they hold.
 */
static __device__ uint64_t list_plan(struct sample_room *room, uint32_t limit) {
    uint64_t count = bins_total(
        room, [&](uint32_t bin) -> uint64_t { return bin <= limit ? room->bins[bin] : 0; });
    if (threadIdx.x == 0) {
        room->limit = limit;
        room->listed = count <= SAMPLE_LIST ? 1 : 0;
    }
    return count;
}

/* After the leader's plan. Begins and ends with the team's barrier. */
static __device__ void list_fill(const struct sample_team &t, const struct sample_scale &scale) {
    sample_team_sync(t);
    struct sample_room *lead = t.lead;
    if (lead->listed != 0) {
        const uint32_t limit = lead->limit;
        row_each(t, [&](uint32_t id, float logit) {
            uint32_t bin = bin_of(scale, logit);
            if (bin < SAMPLE_BINS && bin <= limit) {
                lead->list[atomicAdd(&lead->list_count, 1u)] = {id, logit};
            }
        });
    }
    sample_team_sync(t);
}

/* ---- cuts --------------------------------------------------------------------------------- */

/* 0: it goes. */
static __device__ __forceinline__ float kept(const struct sample_cuts &c, uint32_t id,
                                             float logit) {
    if (float_order(logit) < c.logit_key) {
        return 0;
    }
    float weight = weigh(c.scale, logit);
    uint32_t key = __float_as_uint(weight);
    bool goes = key < c.weight_key || (key == c.weight_key && id > c.last_id) || weight < c.min_p;
    return goes ? 0 : weight;
}

static __device__ uint64_t kept_total(const struct sample_team &t, const struct sample_cuts &c) {
    uint64_t sum = 0;
    candidates_each(t, [&](uint32_t id, float logit) { sum += weight_units(kept(c, id, logit)); });
    return block_total(sample_own(), sum);
}

/* What top_p of it is: at least one unit, so that one token stays. */
static __device__ __forceinline__ uint64_t share(uint64_t total, float top_p) {
    double target = ceil((double)top_p * (double)total);
    uint64_t units = target > 1 ? (uint64_t)target : 1;
    return units < total ? units : total;
}

/* The last bin that may hold something that stays. Leader only. */
static __device__ uint32_t cuts_limit(struct sample_room *room, const struct cuda_slot *slot,
                                      uint32_t top_k) {
    uint32_t limit;
    if (top_k != 0) {
        limit =
            bins_reaching(room, top_k, [&](uint32_t bin) -> uint64_t { return room->bins[bin]; });
    } else if (slot->top_p < 1) {
        /* What lies beyond weighs less than top_p leaves over. One bin more: exp_as_cpu() is
         * monotone but for its last bits, and equal weights must be together. */
        auto most = [&](uint32_t bin) -> uint64_t { return room->bins[bin] * bin_units(bin); };
        uint64_t total = room_total(room);
        uint64_t over = total - share(total, slot->top_p);
        limit = bins_reaching(room, bins_total(room, most) - over, most) + 1;
    } else {
        float bins = -SAMPLE_BINS_UNIT * logf(fminf(slot->min_p, 1.0f));
        limit = (uint32_t)bins + 2; /* one for rounding, one as above */
    }
    return min(limit, (uint32_t)SAMPLE_BINS - 1);
}

/* ---- the draw ----------------------------------------------------------------------------- */

/* u times all, and one: the first sum that exceeds u times all reaches it. */
static __device__ __forceinline__ uint64_t draw_target(uint32_t random, uint64_t total) {
    return __umul64hi((uint64_t)random << 32, total) + 1;
}

/* Borders among the candidates, in this order. One loop goes through them, so that their code is
 * there once: it would not fit the instruction cache four times. */
enum sample_border_of {
    BORDER_TOP_K, /* the least logit that stays */
    BORDER_TOP_P, /* the least weight that stays */
    BORDER_TIES,  /* of those that have that weight, the last id that stays */
    BORDER_DRAW,  /* of all that stay, the id that u falls on */
    BORDERS,
};

/* What key_reaching() is to sum. */
static __device__ __forceinline__ uint64_t border_mass(uint32_t border, const struct sample_cuts &c,
                                                       uint32_t id, float logit, uint32_t *key) {
    if (border == BORDER_TOP_K) {
        *key = float_order(logit);
        return 1;
    }
    const float weight = kept(c, id, logit);
    const uint32_t bits = __float_as_uint(weight);
    *key = border == BORDER_TOP_P ? bits : id_key(id);
    return border == BORDER_TIES && bits != c.weight_key ? 0 : weight_units(weight);
}

/* Finds the cuts among the candidates; where these are a list, returns the drawn token. Leader
 * only. */
static __device__ uint32_t cuts_find(const struct sample_team &t, const struct cuda_slot *slot,
                                     uint32_t top_k, uint32_t random, struct sample_cuts *c) {
    struct sample_room *room = sample_own();
    const bool listed = room->listed != 0;
    bool ties = false;
    uint64_t target = top_k;
#pragma unroll 1
    for (uint32_t border = BORDER_TOP_K; border < BORDERS; border++) {
        if ((border == BORDER_TOP_K && (top_k == 0 || (listed && room->list_count <= top_k))) ||
            (border == BORDER_TOP_P && slot->top_p >= 1) || (border == BORDER_TIES && !ties)) {
            continue;
        }
        if (border == BORDER_DRAW) {
            c->min_p = fminf(slot->min_p, 1.0f);
            if (!listed) {
                break;
            }
        }
        if (border == BORDER_TOP_P || border == BORDER_DRAW) {
            uint64_t total =
                border == BORDER_TOP_P && top_k == 0 ? room_total(room) : kept_total(t, *c);
            target =
                border == BORDER_TOP_P ? share(total, slot->top_p) : draw_target(random, total);
        }
        const int shift = border <= BORDER_TOP_P ? 32 - RADIX_BITS : ID_SHIFT;
        const struct sample_border found =
            key_reaching(t, shift, target, [&](uint32_t id, float logit, uint32_t *key) {
                return border_mass(border, *c, id, logit, key);
            });
        if (border == BORDER_TOP_K) {
            c->logit_key = found.key;
        } else if (border == BORDER_TOP_P) {
            c->weight_key = found.key;
            target -= found.above; /* of those that have the key */
            ties = found.here - weight_units(__uint_as_float(found.key)) >= target;
        } else if (border == BORDER_TIES) {
            c->last_id = id_key(found.key);
        } else {
            return id_key(found.key);
        }
    }
    return 0;
}

static __device__ __forceinline__ uint64_t quad_units(const struct sample_cuts &c, uint32_t quad,
                                                      float4 v) {
    return weight_units(kept(c, 4 * quad, v.x)) + weight_units(kept(c, 4 * quad + 1, v.y)) +
           weight_units(kept(c, 4 * quad + 2, v.z)) + weight_units(kept(c, 4 * quad + 3, v.w));
}

static __device__ __forceinline__ uint32_t segment_count(const struct sample_team &t) {
    return ((t.vocab + 3) / 4 + SAMPLE_SEGMENT_QUADS - 1) / SAMPLE_SEGMENT_QUADS;
}

/* The leader's segments; a warp takes some at once. */
static __device__ void segments_weigh(const struct sample_team &t, const struct sample_cuts &c) {
    const uint32_t count = segment_count(t), step = t.size * SAMPLE_WARPS;
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll 1
    for (uint32_t first = t.rank * SAMPLE_WARPS + threadIdx.x / 32; first < count;
         first += SAMPLE_LOADS * step) {
        const uint32_t quad = first * SAMPLE_SEGMENT_QUADS + lane;
        float4 v[SAMPLE_LOADS];
        row_load<SAMPLE_LOADS>(t, quad, step * SAMPLE_SEGMENT_QUADS, v);
#pragma unroll
        for (uint32_t i = 0; i < SAMPLE_LOADS; i++) {
            const uint32_t segment = first + i * step;
            const uint32_t at = quad + i * step * SAMPLE_SEGMENT_QUADS;
            uint64_t sum = warp_prefix(quad_units(c, at, row_numbers(t, at, v[i])));
            if (lane == 31 && segment < count) {
                t.lead->segments[segment] = sum;
            }
        }
    }
}

/* In the segments. Leader only. */
static __device__ uint32_t draw_segments(const struct sample_team &t, const struct sample_cuts &c,
                                         uint32_t random) {
    struct sample_room *room = sample_own();
    const uint32_t count = segment_count(t);
    const uint32_t each = (count + SAMPLE_THREADS - 1) / SAMPLE_THREADS;
    const uint32_t begin = min(threadIdx.x * each, count), end = min(begin + each, count);
    uint64_t sum = 0, total;
    for (uint32_t i = begin; i < end; i++) {
        sum += room->segments[i];
    }
    uint64_t through = block_prefix(room, sum, &total) - sum;
    uint64_t target = draw_target(random, total);
    for (uint32_t i = begin; i < end; i++) {
        uint64_t before = through;
        through += room->segments[i];
        if (before < target && target <= through) { /* of one thread, once */
            room->picked = i;
            room->picked_above = before;
        }
    }
    __syncthreads();
    const uint32_t quad = room->picked * SAMPLE_SEGMENT_QUADS + threadIdx.x;
    through = room->picked_above;
    __syncthreads();
    if (threadIdx.x < 32) {
        float4 v[1];
        row_load<1>(t, quad, 0, v);
        const float4 x = row_numbers(t, quad, v[0]);
        sum = quad_units(c, quad, x);
        through += warp_prefix(sum) - sum;
        const float logit[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            uint64_t before = through;
            through += weight_units(kept(c, 4 * quad + i, logit[i]));
            if (before < target && target <= through) {
                room->picked = 4 * quad + i;
            }
        }
    }
    __syncthreads();
    return room->picked;
}

/* For all threads of the leader; others get 0. */
static __device__ uint32_t draw(const struct sample_team &t, const struct cuda_slot *slot,
                                uint32_t position, uint64_t best) {
    struct sample_cuts c = {sample_scale_of(rank_logit(best), slot->temperature), 0, 0, 0,
                            UINT32_MAX};
    const uint32_t top_k = slot->top_k < t.vocab ? slot->top_k : 0;
    const uint32_t random = random_word(slot->seed, position);
    if (top_k != 0 || slot->top_p < 1 || slot->min_p > 0) {
        uint32_t token = 0;
        bins_count(t, c.scale, top_k == 0 && slot->top_p < 1);
        if (t.rank == 0) {
            (void)list_plan(sample_own(), cuts_limit(sample_own(), slot, top_k));
        }
        list_fill(t, c.scale);
        if (t.rank == 0) {
            token = cuts_find(t, slot, top_k, random, &c);
        }
        if (t.lead->listed != 0) {
            return token;
        }
        if (t.rank == 0 && threadIdx.x == 0) {
            sample_own()->cuts = c;
        }
        sample_team_sync(t);
        c = t.lead->cuts;
    }
    segments_weigh(t, c);
    sample_team_sync(t);
    return t.rank == 0 ? draw_segments(t, c, random) : 0;
}

#endif
