/* Workloads by name: those that this project's figures and targets are stated in. */
#include <stdlib.h>
#include <string.h>

#include "tools/bench/bench.h"

#define LLAMA_3_8B "llama-3.1-8b"
#define LLAMA_2_7B "llama-2-7b"
#define LLAMA_2_13B "llama-2-13b"

#define SHORT .jobs = 1000, .input = {128, 0}, .output = {128, 0}
#define LONG .jobs = 200, .input = {2048, 0}, .output = {128, 0}
#define MANY .jobs = 10000, .input = {128, 0}, .output = {128, 0}
#define RANK(r) .ranks = {r}, .rank_count = 1
#define RANKS(...) .ranks = {__VA_ARGS__}, .rank_count = COUNT(__VA_ARGS__)
#define COUNT(...) (sizeof((uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))
#define ZIPF .order = BENCH_SKEWED, .alpha = 1
#define LENGTHS .input = {8, 512}, .output = {8, 512}, .qkvo = true
#define SLORA LENGTHS, .order = BENCH_POWER, .alpha = 1

/* What 24 GB leave for KV and adapters beside Llama-2-7B: 7.1 GiB of 0.5 MiB a token. */
enum { A10G_TOKENS = 14500 };

/* `number`: the name goes on with ":N", which is the number of … */
enum number { NOTHING, ADAPTERS, ROOM, SLOTS, ROWS };

struct entry {
    struct bench_case base;
    enum number number;
    uint32_t initial; /* where no number is given */
    const char *help;
};

static const struct entry entries[] = {
    {{.name = "A1", .shape = LLAMA_3_8B, SHORT}, NOTHING, 0, "1,000 × 128 in / 128 out, base"},
    {{.name = "A2", .shape = LLAMA_3_8B, LONG}, NOTHING, 0, "200 × 2,048 / 128, base"},
    {{.name = "A10k", .shape = LLAMA_3_8B, MANY}, NOTHING, 0, "10,000 × 128 / 128, base"},
    {{.name = "A1000", .shape = LLAMA_3_8B, .jobs = 1000, .input = {1000, 0}, .output = {1000, 0}},
     NOTHING,
     0,
     "1,000 × 1,000 / 1,000, base"},
    {{.name = "B1", .shape = LLAMA_3_8B, SHORT, RANK(16)},
     ADAPTERS,
     8,
     "A1 on N adapters, rank 16"},
    {{.name = "B2", .shape = LLAMA_3_8B, LONG, RANK(16)}, ADAPTERS, 8, "A2 on N adapters, rank 16"},
    {{.name = "C1", .shape = LLAMA_3_8B, SHORT, RANK(64)},
     ADAPTERS,
     8,
     "A1 on N adapters, rank 64"},
    {{.name = "C2", .shape = LLAMA_3_8B, LONG, RANK(64)}, ADAPTERS, 8, "A2 on N adapters, rank 64"},
    {{.name = "D1", .shape = LLAMA_3_8B, SHORT, RANKS(8, 16, 32, 64), .order = BENCH_RANDOM},
     ADAPTERS,
     32,
     "A1 on N adapters of ranks 8, 16, 32, 64"},
    {{.name = "X1", .shape = LLAMA_3_8B, SHORT, RANK(16), ZIPF},
     ADAPTERS,
     500,
     "A1 on N adapters, rank 16, the i-th with weight 1/i"},
    {{.name = "X2", .shape = LLAMA_3_8B, LONG, RANK(16), ZIPF}, ADAPTERS, 500, "A2, likewise"},
    {{.name = "XD1", .shape = LLAMA_3_8B, SHORT, RANKS(8, 16, 32, 64), ZIPF},
     ADAPTERS,
     500,
     "A1 on N adapters of ranks 8, 16, 32, 64, likewise"},
    {{.name = "P2", .shape = LLAMA_3_8B, LONG, RANK(16), .shared = 1792},
     ADAPTERS,
     8,
     "B2 where the jobs of an adapter share their first 1,792 tokens"},
    {{.name = "E1", .shape = LLAMA_3_8B, SHORT, RANK(16), .idle = true},
     ADAPTERS,
     8,
     "A1 beside N resident adapters that no job uses"},
    {{.name = "F", .shape = LLAMA_2_7B, .jobs = 2000, LENGTHS, RANK(8), ZIPF, .rows = 256},
     ADAPTERS,
     2000,
     "2,000 × 8..511 / 8..511, rank 8 on q, k, v, o, N adapters by 1/rank"},
    {{.name = "F0", .shape = LLAMA_2_7B, .jobs = 2000, LENGTHS, .rows = 256},
     NOTHING,
     0,
     "F's jobs on the base"},
    {{.name = "G16", .shape = LLAMA_3_8B, MANY, RANK(16), .rows = 256},
     ADAPTERS,
     1000,
     "10,000 × 128 / 128 on N adapters, rank 16, 256 rows, by adapter"},
    {{.name = "G16a", .shape = LLAMA_3_8B, MANY, RANK(16), .rows = 256, .arrival = true},
     ADAPTERS,
     1000,
     "the same in the order of arrival"},
    {{.name = "G64", .shape = LLAMA_3_8B, MANY, RANK(64), .rows = 256},
     ADAPTERS,
     200,
     "10,000 × 128 / 128 on N adapters, rank 64, 256 rows, by adapter"},
    {{.name = "G64a", .shape = LLAMA_3_8B, MANY, RANK(64), .rows = 256, .arrival = true},
     ADAPTERS,
     200,
     "the same in the order of arrival"},
    {{.name = "churn", .shape = LLAMA_3_8B, SHORT, RANK(16), .adapters = 8, .rows = 256},
     ROOM,
     2,
     "A1 on 8 adapters in turn, pages for N of them and for the KV of 256 rows"},
    {{.name = "slots", .shape = LLAMA_3_8B, SHORT, RANK(16), .adapters = 8, .rows = 256},
     SLOTS,
     2,
     "the same, and no more than N resident where rows leave room for others"},
    {{.name = "serial",
      .shape = LLAMA_3_8B,
      .jobs = 125,
      .input = {128, 0},
      .output = {128, 0},
      RANK(16),
      .adapters = 1,
      .rows = 256},
     NOTHING,
     0,
     "the jobs of one of these adapters by themselves"},
    {{.name = "S1", .shape = LLAMA_2_7B, .jobs = 1000, SLORA, RANK(8)},
     ADAPTERS,
     200,
     "S-LoRA's S1, all at once, N adapters"},
    {{.name = "S2", .shape = LLAMA_2_7B, .jobs = 1000, SLORA, RANKS(64, 32, 16, 8)},
     ADAPTERS,
     200,
     "S-LoRA's S2, likewise"},
    {{.name = "S4", .shape = LLAMA_2_13B, .jobs = 1000, SLORA, RANKS(64, 32, 16)},
     ADAPTERS,
     200,
     "S-LoRA's S4, likewise"},
    {{.name = "S2small",
      .shape = LLAMA_2_7B,
      .jobs = 1000,
      SLORA,
      RANKS(64, 32, 16, 8),
      .pool_tokens = A10G_TOKENS},
     ADAPTERS,
     200,
     "S2 in a pool of 14,500 tokens, which an A10G has; --split P for parts"},
    {{.name = "S1rate", .shape = LLAMA_2_7B, .jobs = 600, SLORA, RANK(8), .rate = 10, .cv = 1},
     ADAPTERS,
     200,
     "S1 at 10 jobs a second for 60 s"},
    {{.name = "step", .shape = LLAMA_3_8B, .input = {1024, 0}, .output = {64, 0}},
     ROWS,
     256,
     "decode steps of N rows at a context of 1,024"},
    {{.name = "load",
      .shape = LLAMA_3_8B,
      .input = {1024, 0},
      .output = {128, 0},
      RANK(16),
      .adapters = 1,
      .beside = true},
     ROWS,
     256,
     "steps of N rows of one adapter, alone and while others are loaded without a pause"},
    {{.name = "firstload",
      .shape = LLAMA_3_8B,
      .jobs = 248,
      .input = {128, 0},
      .output = {256, 0},
      RANK(16),
      .first = true,
      .rows = 256},
     ADAPTERS,
     16,
     "first loads of N adapters from files, alone and beside 248 rows of the base"},
};

enum { SKEW_FROM = 32 }; /* of B1 and B2: adapters in turn below, in random order from here on */

bool bench_case_find(const char *name, struct bench_case *c) {
    size_t bytes = strcspn(name, ":");
    for (size_t i = 0; i < sizeof entries / sizeof entries[0]; i++) {
        const struct entry *e = &entries[i];
        if (strlen(e->base.name) != bytes || strncmp(e->base.name, name, bytes) != 0) {
            continue;
        }
        char *end = NULL;
        unsigned long number = e->initial;
        if (name[bytes] == ':') {
            number = strtoul(name + bytes + 1, &end, 10);
            if (e->number == NOTHING || *end != '\0' || number == 0 || number > 100000) {
                return false;
            }
        }
        *c = e->base;
        (void)snprintf(c->name, sizeof c->name, "%s", name);
        switch (e->number) {
        case NOTHING:
            break;
        case ADAPTERS:
            c->adapters = (uint32_t)number;
            if (c->order == BENCH_ROUND_ROBIN && number >= SKEW_FROM) {
                c->order = BENCH_RANDOM;
            }
            break;
        case ROOM:
            c->room = (uint32_t)number;
            break;
        case SLOTS:
            c->room = c->resident = (uint32_t)number;
            break;
        case ROWS:
            c->jobs = c->rows = (uint32_t)number;
            break;
        }
        return true;
    }
    return false;
}

void bench_case_help(FILE *out) {
    for (size_t i = 0; i < sizeof entries / sizeof entries[0]; i++) {
        char name[BENCH_NAME_BYTES];
        bool takes = entries[i].number != NOTHING;
        (void)snprintf(name, sizeof name, "%.32s%s", entries[i].base.name, takes ? "[:N]" : "");
        (void)fprintf(out, "  %-12s  %s", name, entries[i].help);
        (void)(takes ? fprintf(out, " [%u]\n", entries[i].initial) : fprintf(out, "\n"));
    }
}

static const char *const orders[] = {
    [BENCH_ROUND_ROBIN] = "round-robin", [BENCH_RANDOM] = "random",       [BENCH_SORTED] = "sorted",
    [BENCH_SKEWED] = "skewed",           [BENCH_GEOMETRIC] = "geometric", [BENCH_POWER] = "power",
};

bool bench_order_parse(const char *text, struct bench_case *c) {
    size_t bytes = strcspn(text, ":");
    c->alpha = text[bytes] == ':' ? strtod(text + bytes + 1, NULL) : 1;
    for (enum bench_order o = BENCH_ROUND_ROBIN; o <= BENCH_POWER; o++) {
        if (strlen(orders[o]) == bytes && strncmp(orders[o], text, bytes) == 0) {
            c->order = o;
            return c->alpha > 0;
        }
    }
    return false;
}

bool bench_popularity_parse(const char *text, struct bench_case *c) {
    uint32_t root = 1; /* the least whose square is not below the number of jobs */
    while ((uint64_t)root * root < c->jobs) {
        root++;
    }
    c->order = BENCH_ROUND_ROBIN;
    if (strcmp(text, "distinct") == 0) {
        c->adapters = c->jobs;
    } else if (strcmp(text, "uniform") == 0) {
        c->adapters = root;
    } else if (strcmp(text, "skewed") == 0) {
        c->adapters = root;
        c->order = BENCH_GEOMETRIC;
        c->alpha = 1.5;
    } else if (strcmp(text, "identical") == 0) {
        c->adapters = 1;
    } else {
        return false;
    }
    return true;
}

const char *bench_order_name(enum bench_order order) {
    return orders[order];
}
