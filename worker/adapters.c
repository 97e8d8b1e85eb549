#include "worker/adapters.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"
#include "worker/loaders.h"
#include "worker/revisions.h"

enum {
    KNOWN_WAYS = 4, /* what was read before: 32,768 adapters */
    KNOWN_SETS = 1 << 13,
    NEXT_MARGIN = 64, /* an image's table is a small part of it */
};

#define NO_ENTRY UINT32_MAX

struct entry {
    char id[POOL_ID_BYTES];
    struct model_adapter_stamp stamp;
    uint32_t jobs;      /* that name it; with none and not resident, the entry is free again */
    uint32_t begun;     /* of them, those that have tokens made with `revision` */
    uint32_t hash_next; /* chain of the hash table, or of the free list */
    bool used;          /* in the hash table */
    bool delta;         /* resident, and the device has not heard of it: it is in `deltas` */
    uint32_t device;    /* index in the pool's table while LOADING or RESIDENT */
    uint32_t label;     /* of its figures */
    uint64_t bytes;     /* in pages; known once STORED */
    int64_t load_us;    /* when its load began */
    int64_t retry_us;   /* do not fetch before */
    enum err verdict;   /* refused */
    /* A loader's while FETCHING: */
    struct pool_image *image;           /* held while STORED; then its hold is the pool's */
    char revision[POOL_REVISION_BYTES]; /* of it; once jobs have begun, for ever */
    struct model_adapter_facts facts;
    struct model_adapter_known hint; /* from the loop to the loader */
    int64_t fetch_us;                /* that it took */
    enum err result;
    struct err_text why;
};

/* What an (id, stamp) was read as. Its image may still be in the store; a refusal stands for as
 * long as the files stay as they are. */
struct known {
    char id[POOL_ID_BYTES];
    struct model_adapter_stamp stamp; /* that was asked for */
    struct model_adapter_known read;  /* zeros, and of a refusal */
    enum err verdict;
    struct err_text why;
};

struct adapters {
    struct adapters_options options;
    uint32_t count; /* entries */
    struct entry *entries;
    struct sched_adapter *view;
    uint32_t *hash; /* heads of chains */
    uint32_t hash_mask;
    uint32_t free;
    uint32_t fetching, resident;
    uint32_t *loads, *deltas; /* entries that are LOADING; and of those RESIDENT, those to tell */
    uint32_t loading, delta_count;
    struct known *known; /* [KNOWN_SETS by the id's hash][KNOWN_WAYS], the latest of a set first */

    struct loaders *loaders;
    struct revisions *revisions;
    struct ring results; /* of struct entry */
};

static uint64_t entry_hash(const char *id, const struct model_adapter_stamp *stamp) {
    uint64_t h = hash_add(hash_bytes(id, strlen(id)), stamp->inode);
    h = hash_add(h, (uint64_t)stamp->mtime_ns);
    return h ^ h >> 32;
}

static const struct model_adapter_stamp no_stamp;

/* ---- loaders ------------------------------------------------------------------------------ */

static enum err entry_make(const struct adapters *a, struct entry *e) {
    const struct adapters_options *o = &a->options;
    if (o->maker.make != NULL) {
        return o->maker.make(o->maker.context, e->id, o->store, &e->image, &e->facts, &e->why);
    }
    struct model_adapter_options files = o->files;
    files.known = &e->hint;
    files.crew = loaders_crew(a->loaders);
    return model_adapter_load(o->model, &files, e->id, o->store, &e->image, &e->facts, &e->why);
}

/* A hash that was made is kept for the next worker, if the files can be told by their stamp. */
static void revision_keep(const struct adapters *a, const struct entry *e) {
    const struct model_adapter_facts *f = &e->facts;
    if (a->revisions == NULL || e->result != ERR_OK ||
        model_adapter_stamp_equal(&f->stamp, &no_stamp) ||
        model_adapter_stamp_equal(&f->stamp, &e->hint.stamp)) {
        return;
    }
    struct model_adapter_known known = {.stamp = f->stamp};
    memcpy(known.revision, f->revision, sizeof known.revision);
    revisions_add(a->revisions, e->id, &known);
}

static void entry_serve(void *context, void *request) {
    struct adapters *a = context;
    struct entry *e = request;
    int64_t begin_us = clock_mono_us();
    e->image = NULL;
    e->result = entry_make(a, e);
    e->fetch_us = clock_mono_us() - begin_us;
    revision_keep(a, e);
    uint64_t bytes = e->image != NULL ? e->image->bytes : 0;
    CHECK(ring_push(&a->results, e)); /* as many cells as entries */
    bell_ring(a->options.loop);
    if (bytes > 0) { /* the entry is the loop's now; for the next one like it: */
        pool_store_prepare(a->options.store, bytes + bytes / NEXT_MARGIN);
    }
}

static struct known *known_set(struct adapters *a, const char *id) {
    uint64_t h = hash_bytes(id, strlen(id));
    return a->known + ((h ^ h >> 32) & (KNOWN_SETS - 1)) * KNOWN_WAYS;
}

/* A line of the file. */
static void known_read(void *context, const char *id, const struct model_adapter_known *known) {
    struct known *set = known_set(context, id);
    memmove(set + 1, set, (KNOWN_WAYS - 1) * sizeof *set);
    set[0] = (struct known){.stamp = known->stamp, .read = *known};
    (void)snprintf(set[0].id, sizeof set[0].id, "%s", id);
}

/* ---- open, close -------------------------------------------------------------------------- */

enum err adapters_open(struct adapters **out, const struct adapters_options *options) {
    struct adapters *a = calloc(1, sizeof *a);
    if (a == NULL) {
        return ERR_NO_MEMORY;
    }
    enum err e = ERR_NO_MEMORY;
    a->options = *options;
    a->count = options->jobs_max + options->resident_max + ADAPTERS_FETCHES_MAX;
    uint32_t heads = 16;
    while (heads < a->count) {
        heads *= 2;
    }
    a->hash_mask = heads - 1;
    a->entries = calloc(a->count, sizeof *a->entries);
    a->view = calloc(a->count, sizeof *a->view);
    a->hash = malloc(heads * sizeof *a->hash);
    a->known = calloc((size_t)KNOWN_SETS * KNOWN_WAYS, sizeof *a->known);
    a->loads = calloc(options->resident_max, sizeof *a->loads);
    a->deltas = calloc(options->resident_max, sizeof *a->deltas);
    if (a->loads == NULL || a->deltas == NULL || a->entries == NULL || a->view == NULL ||
        a->hash == NULL || a->known == NULL || ring_init(&a->results, a->count) != ERR_OK) {
        goto out;
    }
    memset(a->hash, 0xff, heads * sizeof *a->hash);
    for (uint32_t i = 0; i < a->count; i++) {
        a->entries[i].hash_next = i + 1 < a->count ? i + 1 : NO_ENTRY;
    }
    e = ERR_OK;
    if (options->state_dir != NULL && options->maker.make == NULL) {
        e = revisions_open(&a->revisions, options->state_dir, options->files.root, known_read, a);
    }
    if (e != ERR_OK) {
        goto out;
    }
    e = loaders_open(&a->loaders,
                     &(struct loaders_options){.threads = loaders_count(options->loaders),
                                               .requests_max = ADAPTERS_FETCHES_MAX,
                                               .serve = entry_serve,
                                               .context = a});
out:
    if (e != ERR_OK) {
        adapters_close(a);
        a = NULL;
    }
    *out = a;
    return e;
}

void adapters_close(struct adapters *a) {
    if (a == NULL) {
        return;
    }
    loaders_close(a->loaders);
    for (uint32_t i = 0; a->entries != NULL && i < a->count; i++) { /* fetched, or stored */
        if (a->entries[i].image != NULL) {
            pool_store_drop(a->options.store, a->entries[i].image);
        }
    }
    revisions_close(a->revisions);
    ring_deinit(&a->results);
    free(a->known);
    free(a->loads);
    free(a->deltas);
    free(a->hash);
    free(a->view);
    free(a->entries);
    free(a);
}

uint32_t adapters_max(const struct adapters *a) {
    return a->count;
}

/* ---- entries ------------------------------------------------------------------------------ */

static struct entry *entry_at(const struct adapters *a, uint32_t entry) {
    CHECK(entry < a->count);
    CHECK(a->entries[entry].used);
    return &a->entries[entry];
}

static uint32_t *chain_of(struct adapters *a, const struct entry *e) {
    return &a->hash[entry_hash(e->id, &e->stamp) & a->hash_mask];
}

/* Frees an entry that nobody names and that holds nothing; else leaves it. */
static void entry_settle(struct adapters *a, uint32_t index) {
    struct entry *e = entry_at(a, index);
    struct sched_adapter *v = &a->view[index];
    if (e->jobs > 0 || v->state == SCHED_FETCHING || v->state == SCHED_LOADING ||
        v->state == SCHED_RESIDENT) {
        return;
    }
    if (v->state == SCHED_STORED) { /* the store keeps it as long as it has room */
        pool_store_drop(a->options.store, e->image);
    }
    uint32_t *link = chain_of(a, e);
    while (*link != index) {
        link = &a->entries[*link].hash_next;
    }
    *link = e->hash_next;
    *e = (struct entry){.hash_next = a->free};
    *v = (struct sched_adapter){.state = SCHED_AWAY};
    a->free = index;
}

static bool known_is(const struct known *k, const struct entry *e) {
    return model_adapter_stamp_equal(&k->stamp, &e->stamp) && strcmp(k->id, e->id) == 0;
}

/* What is known of these very files, or NULL. */
static const struct known *known_find(struct adapters *a, const struct entry *e) {
    const struct known *set = known_set(a, e->id);
    for (uint32_t i = 0; i < KNOWN_WAYS; i++) {
        if (known_is(&set[i], e)) {
            return &set[i];
        }
    }
    return NULL;
}

static void known_keep(struct adapters *a, const struct entry *e) {
    if (model_adapter_stamp_equal(&e->stamp, &no_stamp)) { /* nobody looked at it */
        return;
    }
    struct known *set = known_set(a, e->id);
    uint32_t at = 0;
    while (at < KNOWN_WAYS - 1 && !known_is(&set[at], e)) {
        at++;
    }
    memmove(set + 1, set, at * sizeof *set);
    set[0] = (struct known){.stamp = e->stamp, .verdict = e->verdict, .why = e->why};
    memcpy(set[0].id, e->id, sizeof set[0].id);
    if (e->verdict == ERR_OK) {
        set[0].read.stamp = e->facts.stamp;
        memcpy(set[0].read.revision, e->image->revision, sizeof set[0].read.revision);
    }
}

uint32_t adapters_enter(struct adapters *a, const char *id,
                        const struct model_adapter_stamp *stamp) {
    uint32_t *head = &a->hash[entry_hash(id, stamp) & a->hash_mask];
    for (uint32_t i = *head; i != NO_ENTRY; i = a->entries[i].hash_next) {
        struct entry *e = &a->entries[i];
        if (strcmp(e->id, id) == 0 && model_adapter_stamp_equal(&e->stamp, stamp)) {
            e->jobs++;
            return i;
        }
    }
    CHECK(a->free != NO_ENTRY); /* jobs + residents + fetches is the sum of all holders */
    uint32_t index = a->free;
    struct entry *e = &a->entries[index];
    a->free = e->hash_next;
    *e = (struct entry){.used = true,
                        .jobs = 1,
                        .label = metrics_adapter(a->options.metrics, id),
                        .stamp = *stamp,
                        .hash_next = *head};
    (void)strncpy(e->id, id, sizeof e->id - 1);
    *head = index;
    a->view[index] = (struct sched_adapter){.state = SCHED_AWAY};
    const struct known *known = known_find(a, e);
    if (known != NULL && known->verdict != ERR_OK) {
        e->verdict = known->verdict;
        e->why = known->why;
    }
    return index;
}

void adapters_begin(struct adapters *a, uint32_t entry) {
    struct entry *e = entry_at(a, entry);
    CHECK(a->view[entry].state == SCHED_RESIDENT);
    CHECK(e->begun < e->jobs);
    e->begun++;
}

void adapters_leave(struct adapters *a, uint32_t entry, bool begun) {
    struct entry *e = entry_at(a, entry);
    CHECK(e->jobs > 0);
    e->jobs--;
    if (begun) {
        CHECK(e->begun > 0);
        e->begun--;
    }
    entry_settle(a, entry);
}

const struct sched_adapter *adapters_view(const struct adapters *a) {
    return a->view;
}

/* ---- figures ------------------------------------------------------------------------------ */

static void count_one(const struct adapters *a, const struct entry *e, enum metric id) {
    metrics_add_adapter(a->options.metrics, id, e->label, 1);
}

static void count_bytes(const struct adapters *a, const struct entry *e, enum metric id, int sign) {
    metrics_shift_adapter(a->options.metrics, id, e->label, sign * (int64_t)e->bytes);
}

/* Of a fetch or a load: all together, and the adapter's own. */
static void count_time(const struct adapters *a, const struct entry *e, enum metric all,
                       enum metric own, int64_t us) {
    metrics_observe(a->options.metrics, all, (double)us / 1e6);
    metrics_add_adapter(a->options.metrics, own, e->label, (uint64_t)us);
}

/* ---- root → store ------------------------------------------------------------------------- */

static void entry_stored(struct adapters *a, uint32_t index, struct pool_image *image) {
    struct entry *e = &a->entries[index];
    e->image = image;
    e->bytes = image->bytes;
    memcpy(e->revision, image->revision, sizeof e->revision);
    a->view[index].state = SCHED_STORED;
    a->view[index].pages = image->page_count;
    a->view[index].mergeable = kern_lora_mergeable(image->lora, a->options.model->shape.layers);
}

void adapters_fetch(struct adapters *a, uint32_t entry, int64_t now_us) {
    struct entry *e = entry_at(a, entry);
    CHECK(a->view[entry].state == SCHED_AWAY);
    CHECK(e->verdict == ERR_OK);
    const struct known *known = known_find(a, e);
    const char *revision = e->begun > 0 ? e->revision : known != NULL ? known->read.revision : "";
    struct pool_image *image =
        revision[0] != '\0' ? pool_store_find(a->options.store, e->id, revision) : NULL;
    if (image != NULL) {
        entry_stored(a, entry, image);
        return;
    }
    if (now_us < e->retry_us || a->fetching == ADAPTERS_FETCHES_MAX) {
        return; /* the plan asks again */
    }
    a->view[entry].state = SCHED_FETCHING;
    a->fetching++;
    count_one(a, e, METRIC_ADAPTER_FETCHES);
    e->hint = known != NULL ? known->read : (struct model_adapter_known){0};
    loaders_give(a->loaders, e);
}

/* Lets go of images that wait for pages, so that the store has room for the one wanted now; but
 * not of those that begun jobs need, whose files may be gone. */
static void stored_release(struct adapters *a) {
    for (uint32_t i = 0; i < a->count; i++) {
        if (a->entries[i].used && a->view[i].state == SCHED_STORED && a->entries[i].begun == 0) {
            pool_store_drop(a->options.store, a->entries[i].image);
            a->entries[i].image = NULL;
            a->view[i].state = SCHED_AWAY;
        }
    }
}

static void entry_fetched(struct adapters *a, struct entry *e, int64_t now_us) {
    uint32_t index = (uint32_t)(e - a->entries);
    count_time(a, e, METRIC_FETCH_SECONDS, METRIC_ADAPTER_FETCH_SECONDS, e->fetch_us);
    switch (err_disposition(e->result)) {
    case ERR_DO_NOTHING:
        known_keep(a, e);
        entry_stored(a, index, e->image);
        return;
    case ERR_RETRY:
        stored_release(a);
        a->view[index].state = SCHED_AWAY;
        e->retry_us = now_us + 1000; /* residents must end before there is room */
        return;
    case ERR_LATER: {
        char quoted[ERR_TEXT_BYTES];
        log_warn("adapters", "adapter cannot be read now adapter=%s why=%s", e->id,
                 log_quote(quoted, sizeof quoted, e->why.message));
        a->view[index].state = SCHED_AWAY;
        e->retry_us = now_us + (int64_t)a->options.retry_ms * 1000;
        return;
    }
    case ERR_REJECT:
    case ERR_FAIL:
    case ERR_FATAL:
        break;
    }
    a->view[index].state = SCHED_AWAY;
    e->verdict = e->result;
    known_keep(a, e);
    count_one(a, e, METRIC_ADAPTER_REFUSALS);
}

bool adapters_take(struct adapters *a, struct adapters_news *news, int64_t now_us) {
    struct entry *e = ring_pop(&a->results);
    if (e == NULL) {
        return false;
    }
    CHECK(a->fetching > 0);
    a->fetching--;
    e->jobs++; /* the caller's, so that the entry stays while the news is dealt with */
    bool changed =
        e->result == ERR_OK && e->begun > 0 && strcmp(e->revision, e->image->revision) != 0;
    entry_fetched(a, e, now_us);
    news->entry = (uint32_t)(e - a->entries);
    news->changed = changed;
    news->error = e->verdict != ERR_OK ? e->verdict : e->result;
    news->facts = e->facts;
    news->why = e->why;
    return true;
}

enum err adapters_verdict(const struct adapters *a, uint32_t entry, struct err_text *why) {
    const struct entry *e = entry_at(a, entry);
    if (e->verdict != ERR_OK) {
        *why = e->why;
    }
    return e->verdict;
}

void adapters_forget(struct adapters *a, const char *id) {
    for (uint32_t i = 0; i < a->count; i++) {
        struct entry *e = &a->entries[i];
        if (e->used && strcmp(e->id, id) == 0) {
            e->verdict = ERR_OK;
            e->retry_us = 0;
        }
    }
    struct known *set = known_set(a, id);
    for (uint32_t i = 0; i < KNOWN_WAYS; i++) {
        if (set[i].verdict != ERR_OK && strcmp(set[i].id, id) == 0) {
            set[i] = (struct known){0};
        }
    }
}

/* ---- store → pages ------------------------------------------------------------------------ */

enum err adapters_load(struct adapters *a, uint32_t entry) {
    struct entry *e = entry_at(a, entry);
    CHECK(a->view[entry].state == SCHED_STORED);
    enum err err = pool_adapter_load(a->options.pool, a->options.store, e->image, &e->device);
    if (err == ERR_OK) {
        CHECK(a->loading < a->options.resident_max);
        e->image = NULL;
        a->view[entry].state = SCHED_LOADING;
        a->loads[a->loading++] = entry;
        e->load_us = clock_mono_us();
        count_bytes(a, e, METRIC_ADAPTER_BYTES_LOADING, 1);
    }
    return err;
}

void adapters_poll(struct adapters *a) {
    for (uint32_t i = 0; i < a->loading;) {
        uint32_t entry = a->loads[i];
        struct entry *e = &a->entries[entry];
        if (pool_adapter_poll(a->options.pool, e->device) != POOL_RESIDENT) {
            i++;
            continue;
        }
        a->view[entry].state = SCHED_RESIDENT;
        count_one(a, e, METRIC_ADAPTER_LOADS);
        count_time(a, e, METRIC_LOAD_SECONDS, METRIC_ADAPTER_LOAD_SECONDS,
                   clock_mono_us() - e->load_us);
        count_bytes(a, e, METRIC_ADAPTER_BYTES_LOADING, -1);
        count_bytes(a, e, METRIC_ADAPTER_BYTES_RESIDENT, 1);
        e->delta = true;
        a->deltas[a->delta_count++] = entry;
        a->loads[i] = a->loads[--a->loading];
        a->resident++;
    }
}

void adapters_rest(struct adapters *a) {
    adapters_poll(a);
    while (a->loading > 0) {
        clock_sleep_ms(1);
        adapters_poll(a);
    }
}

void adapters_evict(struct adapters *a, uint32_t entry, uint64_t ticket) {
    struct entry *e = entry_at(a, entry);
    CHECK(a->view[entry].state == SCHED_RESIDENT);
    CHECK(a->view[entry].users == 0);
    /* Jobs that have begun need these very bytes, and the files may not be these any more. */
    struct pool_image *kept =
        e->begun > 0 ? pool_store_find(a->options.store, e->id, e->revision) : NULL;
    pool_adapter_evict(a->options.pool, a->options.store, e->device, ticket);
    if (e->delta) {
        uint32_t at = 0;
        while (a->deltas[at] != entry) {
            at++;
        }
        a->deltas[at] = a->deltas[--a->delta_count];
        e->delta = false;
    }
    a->view[entry].state = SCHED_AWAY;
    a->resident--;
    count_one(a, e, METRIC_ADAPTER_EVICTIONS);
    count_bytes(a, e, METRIC_ADAPTER_BYTES_RESIDENT, -1);
    if (kept != NULL) {
        entry_stored(a, entry, kept);
    }
    entry_settle(a, entry);
}

void adapters_use(struct adapters *a, uint32_t entry) {
    struct entry *e = entry_at(a, entry);
    CHECK(a->view[entry].state == SCHED_RESIDENT);
    a->view[entry].users++;
    pool_adapter_use(a->options.pool, e->device);
}

void adapters_unuse(struct adapters *a, uint32_t entry) {
    struct entry *e = entry_at(a, entry);
    CHECK(a->view[entry].users > 0);
    a->view[entry].users--;
    pool_adapter_unuse(a->options.pool, e->device);
}

uint32_t adapters_device_index(const struct adapters *a, uint32_t entry) {
    const struct entry *e = entry_at(a, entry);
    CHECK(a->view[entry].state == SCHED_RESIDENT);
    return e->device;
}

bool adapters_delta(struct adapters *a, struct kern_adapter_set *set) {
    if (a->delta_count == 0) {
        return false;
    }
    struct entry *e = entry_at(a, a->deltas[--a->delta_count]);
    CHECK(e->delta);
    e->delta = false;
    *set = pool_adapter_set(a->options.pool, e->device);
    return true;
}

const char *adapters_id(const struct adapters *a, uint32_t entry) {
    return entry_at(a, entry)->id;
}

const char *adapters_revision(const struct adapters *a, uint32_t entry) {
    const struct entry *e = entry_at(a, entry);
    CHECK(e->revision[0] != '\0');
    return e->revision;
}

uint32_t adapters_slots_free(const struct adapters *a) {
    return a->options.resident_max - a->resident - a->loading;
}
