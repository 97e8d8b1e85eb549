/* A case's adapters, made straight into the host store: the layout of an image (kernels.h), filled
 * with random values.
 *
 * An image is filled by copying from a block of near normal values of deviation 0.02 that is made
 * once, each tile from a place that adapter, layer, matrix and tile decide: so images differ, and
 * making one costs little more than writing it. The id names rank, number and modules, which with
 * the seed say all about an image; the revision is made of them. */
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "base/hash.h"
#include "tools/bench/bench.h"

enum {
    MAKERS_MAX = 16,   /* threads */
    ALIGN_ELEMENTS = 8 /* where a cut may begin */
};

void bench_adapter_id(char id[BENCH_NAME_BYTES], const struct bench_case *c, uint32_t number) {
    (void)snprintf(id, BENCH_NAME_BYTES, "r%u-%05u%s", c->ranks[number % c->rank_count], number,
                   c->qkvo ? "-qkvo" : "");
}

/* ---- the layout --------------------------------------------------------------------------- */

/* Places the matrices of one layer; all layers are alike. Returns the list's elements. */
static uint64_t layer_place(const struct bench_adapters *a, uint32_t rank,
                            struct kern_lora lora[KERN_MODULES]) {
    const struct kern_shape *s = &a->model->shape;
    uint64_t page_elems = kern_page_elems(s, a->page_tokens);
    uint32_t padded = kern_rank_padded(rank);
    uint64_t at = 0;
    for (enum kern_module m = 0; m < KERN_MODULES; m++) {
        lora[m] = (struct kern_lora){0};
        if (a->qkvo && m > KERN_O) {
            continue;
        }
        lora[m] = (struct kern_lora){.rank = padded, .scale = 1, .a = at};
        lora[m].b = kern_matrix_end(page_elems, at, padded, kern_module_in(s, m));
        at = kern_matrix_end(page_elems, lora[m].b, padded, kern_module_out(s, m));
    }
    return at;
}

uint32_t bench_adapter_pages(const struct bench_adapters *a, uint32_t rank) {
    struct kern_lora lora[KERN_MODULES];
    uint64_t page_elems = kern_page_elems(&a->model->shape, a->page_tokens);
    return (uint32_t)((layer_place(a, rank, lora) + page_elems - 1) / page_elems);
}

uint64_t bench_adapter_bytes(const struct bench_adapters *a, uint32_t rank) {
    const struct kern_shape *s = &a->model->shape;
    uint64_t elements =
        bench_adapter_pages(a, rank) * kern_page_elems(s, a->page_tokens) * s->layers;
    uint64_t table = kern_lora_count(s->layers) * sizeof(struct kern_lora);
    return elements * kern_dtype_bytes(a->elem) + table + 4096; /* the store's granule */
}

/* ---- filling ------------------------------------------------------------------------------ */

struct fill {
    const struct bench_adapters *a;
    unsigned char *list; /* of one layer */
    uint64_t page_elems, hash;
};

/* Tiles of a matrix, each of 64 columns × the block's ranks. Where the last has fewer columns, its
 * rest stays zero: `wide` are B's, whose columns lie one after the other; A's lie in rows. */
static void fill_matrix(struct fill *f, uint64_t begin, uint32_t rank, uint32_t columns,
                        bool wide) {
    uint32_t elem_bytes = kern_dtype_bytes(f->a->elem);
    for (uint32_t block = 0; block * KERN_BLOCK_RANKS < rank; block++) {
        uint32_t ranks = rank - block * KERN_BLOCK_RANKS;
        ranks = ranks < KERN_BLOCK_RANKS ? ranks : KERN_BLOCK_RANKS;
        for (uint32_t tile = 0; tile * KERN_TILE_COLUMNS < columns; tile++) {
            uint32_t left = columns - tile * KERN_TILE_COLUMNS;
            uint32_t count = left < KERN_TILE_COLUMNS ? left : KERN_TILE_COLUMNS;
            uint64_t at = kern_tile_begin(f->page_elems, begin, rank, columns, block, tile);
            f->hash = hash_add(f->hash, at);
            uint64_t cut = (f->hash >> 20) % (BENCH_VALUES - KERN_TILE_ELEMENTS);
            cut -= cut % ALIGN_ELEMENTS;
            const unsigned char *from = (const unsigned char *)f->a->values + cut * elem_bytes;
            unsigned char *to = f->list + at * elem_bytes;
            size_t run = (size_t)(wide ? count * ranks : count) * elem_bytes;
            for (uint32_t row = 0; row < (wide ? 1 : ranks); row++) {
                size_t skip = (size_t)row * KERN_TILE_COLUMNS * elem_bytes;
                memcpy(to + skip, from + skip, run);
            }
        }
    }
}

static void fill_image(const struct bench_adapters *a, struct pool_image *image, uint64_t hash) {
    const struct kern_shape *s = &a->model->shape;
    struct kern_lora lora[KERN_MODULES];
    (void)layer_place(a, image->rank_max, lora);
    uint64_t layer_bytes = image->page_count * image->page_elems * kern_dtype_bytes(a->elem);
    memset(image->elements, 0, image->bytes);
    memset(image->lora, 0, kern_lora_count(s->layers) * sizeof *image->lora);
    struct fill f = {.a = a, .page_elems = image->page_elems, .hash = hash};
    for (uint32_t layer = 0; layer < s->layers; layer++) {
        f.list = (unsigned char *)image->elements + layer * layer_bytes;
        f.hash = hash_add(f.hash, layer);
        for (enum kern_module m = 0; m < KERN_MODULES; m++) {
            image->lora[layer * KERN_MODULES + m] = lora[m];
            if (lora[m].rank > 0) {
                fill_matrix(&f, lora[m].a, lora[m].rank, kern_module_in(s, m), false);
                fill_matrix(&f, lora[m].b, lora[m].rank, kern_module_out(s, m), true);
            }
        }
    }
}

/* ---- making ------------------------------------------------------------------------------- */

enum err bench_adapters_open(struct bench_adapters *a) {
    float *values = malloc(BENCH_VALUES * sizeof *values);
    a->values = malloc((size_t)BENCH_VALUES * kern_dtype_bytes(a->elem));
    if (values == NULL || a->values == NULL) {
        free(values);
        bench_adapters_close(a);
        return ERR_NO_MEMORY;
    }
    for (uint32_t i = 0; i < BENCH_VALUES; i += 4) {
        uint32_t words[4];
        kern_random(a->seed, i, 0, words);
        for (uint32_t k = 0; k < 4; k++) { /* the sum of four bytes, of deviation 148 */
            uint32_t w = words[k];
            int32_t sum = (int32_t)((w & 255) + (w >> 8 & 255) + (w >> 16 & 255) + (w >> 24));
            values[i + k] = (float)(sum - 510) * (0.02f / 148);
        }
    }
    kern_convert(a->values, a->elem, values, KERN_F32, BENCH_VALUES);
    free(values);
    return ERR_OK;
}

void bench_adapters_close(struct bench_adapters *a) {
    free(a->values);
    a->values = NULL;
}

enum err bench_adapter_make(void *context, const char *id, struct pool_store *store,
                            struct pool_image **image, struct model_adapter_facts *facts,
                            struct err_text *why) {
    const struct bench_adapters *a = context;
    uint32_t rank = 0;
    CHECK(sscanf(id, "r%" SCNu32 "-", &rank) == 1); /* ours */
    uint64_t hash = hash_add(hash_bytes(id, strlen(id)), a->seed);
    struct pool_image wanted = {.rank_max = rank,
                                .page_count = bench_adapter_pages(a, rank),
                                .layers = a->model->shape.layers,
                                .page_elems = kern_page_elems(&a->model->shape, a->page_tokens)};
    (void)snprintf(wanted.id, sizeof wanted.id, "%s", id);
    (void)snprintf(wanted.revision, sizeof wanted.revision, "%016" PRIx64 "%048x", hash, rank);
    struct pool_image *made = pool_store_find(store, id, wanted.revision);
    if (made == NULL) {
        enum err e = pool_store_reserve(store, &wanted, kern_dtype_bytes(a->elem), &made, why);
        if (e != ERR_OK) {
            return e;
        }
        fill_image(a, made, hash);
        made = pool_store_commit(store, made);
    }
    *facts = (struct model_adapter_facts){.rank_max = rank,
                                          .modules = a->model->shape.layers * KERN_MODULES,
                                          .image_bytes = made->bytes,
                                          .page_count = made->page_count};
    memcpy(facts->id, made->id, sizeof facts->id);
    memcpy(facts->revision, made->revision, sizeof facts->revision);
    *image = made;
    return ERR_OK;
}

/* ---- beforehand --------------------------------------------------------------------------- */

struct making {
    struct bench_adapters *a;
    const struct bench_jobs *jobs;
    struct pool_store *store;
    _Atomic uint32_t next;
    _Atomic bool failed;
};

static void *make_some(void *argument) {
    struct making *m = argument;
    for (uint32_t i = m->next++; i < m->jobs->adapter_count && !m->failed; i = m->next++) {
        if (!m->jobs->named[i]) {
            continue;
        }
        struct pool_image *image = NULL;
        struct model_adapter_facts facts;
        enum err e = bench_adapter_make(m->a, m->jobs->ids[i], m->store, &image, &facts, NULL);
        if (e != ERR_OK) {
            m->failed = true;
            break;
        }
        pool_store_drop(m->store, image);
    }
    return NULL;
}

enum err bench_adapters_warm(struct bench_adapters *a, const struct bench_jobs *jobs,
                             struct pool_store *store, struct err_text *why) {
    pthread_t threads[MAKERS_MAX];
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    uint32_t wanted = cores < 1 ? 1 : cores > MAKERS_MAX ? MAKERS_MAX : (uint32_t)cores;
    uint32_t started = 0;
    struct making m = {.a = a, .jobs = jobs, .store = store};
    while (started < wanted && pthread_create(&threads[started], NULL, make_some, &m) == 0) {
        started++;
    }
    if (started == 0) {
        (void)make_some(&m);
    }
    for (uint32_t i = 0; i < started; i++) {
        (void)pthread_join(threads[i], NULL);
    }
    return m.failed ? err_set(why, ERR_NO_MEMORY, "no memory for the adapters in the host store")
                    : ERR_OK;
}
