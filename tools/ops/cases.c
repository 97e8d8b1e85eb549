#include "tools/ops/cases.h"

#include <stdio.h>

#include "base/check.h"

static const struct ops_batch plain_batches[] = {
    {{{1, 1, 1023}}},   {{{16, 1, 1023}}},   {{{64, 1, 1023}}},
    {{{256, 1, 1023}}}, {{{1024, 1, 1023}}}, {{{1, 1, 199}}},
    {{{16, 1, 199}}},   {{{64, 1, 199}}},    {{{256, 1, 199}}},
    {{{1024, 1, 199}}}, {{{1, 8192, 0}}},    {{{4, 2048, 0}}},
    {{{64, 128, 0}}},   {{{1, 2048, 6144}}}, {{{256, 1, 1023}, {1, 2048, 0}}},
};

static const struct ops_batch lora_batches[] = {
    {{{1, 1, 1023}}}, {{{16, 1, 1023}}}, {{{64, 1, 1023}}}, {{{256, 1, 1023}}}, {{{512, 1, 1023}}},
    {{{1, 2048, 0}}}, {{{2, 2048, 0}}},  {{{4, 2048, 0}}},  {{{8, 2048, 0}}},
};

static const uint32_t ranks[] = {8, 16, 32, 64, OPS_RANK_MAX};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

bool ops_batch_at(uint32_t index, bool lora, struct ops_batch *out) {
    if (index >= (lora ? COUNT(lora_batches) : COUNT(plain_batches))) {
        return false;
    }
    *out = lora ? lora_batches[index] : plain_batches[index];
    return true;
}

uint32_t ops_rank_at(uint32_t index) {
    return index < COUNT(ranks) ? ranks[index] : 0;
}

/* ---- names -------------------------------------------------------------------------------- */

static size_t group_name(const struct ops_group *g, char *room, size_t bytes) {
    int length = g->tokens == 1
                     ? snprintf(room, bytes, "%u@%u", g->chunks, g->position + 1)
                     : snprintf(room, bytes, "%ux%u@%u", g->chunks, g->tokens, g->position);
    CHECK(length > 0 && (size_t)length < bytes);
    return (size_t)length;
}

const char *ops_batch_name(const struct ops_batch *batch, char room[OPS_NAME_BYTES]) {
    const struct ops_group *g = batch->groups;
    const char *kind = g[1].chunks != 0 ? "mixed-" : g[0].tokens == 1 ? "decode-" : "prefill-";
    size_t length = (size_t)snprintf(room, OPS_NAME_BYTES, "%s", kind);
    for (uint32_t i = 0; i < OPS_GROUPS && g[i].chunks != 0; i++) {
        if (i > 0) {
            room[length++] = '+';
        }
        length += group_name(&g[i], room + length, OPS_NAME_BYTES - length - 1);
    }
    return room;
}

const char *ops_mix_name(enum ops_mix mix) {
    static const char *const names[] = {"one", "eight", "distinct", "zipf"};
    CHECK(mix < OPS_MIXES);
    return names[mix];
}

/* ---- mixes -------------------------------------------------------------------------------- */

enum { EIGHT = 8 };

/* How many of `count` chunks each of `count` adapters gets when they are drawn with popularity
 * 1 / rank: the k-th gets what its share rounds to, carried from one to the next. */
static uint32_t zipf_spread(uint32_t count, uint32_t chunks[OPS_CHUNKS_MAX]) {
    double all = 0, due = 0;
    uint32_t given = 0, adapters = 0;
    for (uint32_t k = 1; k <= count; k++) {
        all += 1.0 / k;
    }
    for (uint32_t k = 1; k <= count; k++) {
        due += count / (all * k);
        uint32_t total = k == count ? count : (uint32_t)(due + 0.5);
        if (total > given) {
            chunks[adapters++] = total - given;
            given = total;
        }
    }
    return adapters;
}

bool ops_lora_mix(const struct ops_batch *batch, enum ops_mix mix, uint32_t rank,
                  struct ops_lora *out) {
    const struct ops_group *g = &batch->groups[0];
    uint32_t chunks[OPS_CHUNKS_MAX], count = 0;
    CHECK(batch->groups[1].chunks == 0 && g->chunks <= OPS_ADAPTERS_MAX);
    switch (mix) {
    case OPS_ONE:
        chunks[count++] = g->chunks;
        break;
    case OPS_EIGHT:
        for (; count < EIGHT; count++) {
            chunks[count] = g->chunks * (count + 1) / EIGHT - g->chunks * count / EIGHT;
        }
        break;
    case OPS_DISTINCT:
        for (; count < g->chunks; count++) {
            chunks[count] = 1;
        }
        break;
    case OPS_ZIPF:
        count = zipf_spread(g->chunks, chunks);
        break;
    case OPS_MIXES:
        CHECK(!"a mix");
    }
    *out = (struct ops_lora){.rank = rank, .segments = count, .adapters = count};
    for (uint32_t i = 0; i < count; i++) {
        out->rows[i] = chunks[i] * g->tokens;
        out->adapter[i] = i;
    }
    bool alike = (mix == OPS_EIGHT && g->chunks <= EIGHT) || (mix != OPS_ONE && g->chunks == 1) ||
                 (mix == OPS_ZIPF && g->tokens > 1);
    return !alike;
}
