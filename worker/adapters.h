/* adapters.h - the adapters that jobs ask for: from the root to the host store to pages.
 *
 * An entry is an (id, stamp) pair: what the files looked like when the job came. Files that are
 * replaced make a new entry, so no job ever mixes revisions; the old one serves its jobs to the
 * end, also those that were preempted. The entries are what the scheduler knows as adapters.
 *
 * Thread: the loop, but for the loaders inside, which own an entry while it is FETCHING. */
#ifndef LORRY_WORKER_ADAPTERS_H
#define LORRY_WORKER_ADAPTERS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/metrics.h"
#include "base/ring.h"
#include "model/model.h"
#include "pool/pool.h"
#include "scheduler/scheduler.h"

#define ADAPTERS_BASE SCHED_BASE

enum { ADAPTERS_FETCHES_MAX = 64 }; /* asked of the loaders at once */

struct adapters;

/* Makes adapters where they do not come from files: as model_adapter_load(). Thread: the loaders',
 * several at once. */
struct adapters_maker {
    enum err (*make)(void *context, const char *id, struct pool_store *store,
                     struct pool_image **image, struct model_adapter_facts *facts,
                     struct err_text *why);
    void *context;
};

struct adapters_options {
    const struct model_facts *model;
    struct model_adapter_options files;
    struct adapters_maker maker; /* instead of files; empty: none */
    const char *state_dir;       /* keeps revisions over restarts; NULL: nowhere */
    struct pool *pool;
    struct pool_store *store;
    uint32_t jobs_max;     /* each job names at most one entry */
    uint32_t resident_max; /* the device's adapter table */
    uint32_t loaders;      /* threads; 0 = as many as suit the machine */
    uint32_t retry_ms;     /* pause after an adapter could not be read */
    struct metrics *metrics;
    struct bell *loop; /* rung when a loader is done */
};

NODISCARD enum err adapters_open(struct adapters **out, const struct adapters_options *options);
/* Joins the loaders and lets go of images that are in no pages; NULL is fine. */
void adapters_close(struct adapters *a);
uint32_t adapters_max(const struct adapters *a); /* entries are below this */

/* The entry of (id, stamp), counted for one job more. Every job that entered leaves once, and says
 * whether it had begun.
 * A stamp of zeros stands for files that could not be looked at. */
uint32_t adapters_enter(struct adapters *a, const char *id,
                        const struct model_adapter_stamp *stamp);
void adapters_leave(struct adapters *a, uint32_t entry, bool begun);
/* A job of it starts for the first time: from now on until the job leaves, the entry is of the
 * revision that is resident. Its image is kept in the store when it leaves the pages. */
void adapters_begin(struct adapters *a, uint32_t entry);

/* What the scheduler sees, [adapters_max]. */
const struct sched_adapter *adapters_view(const struct adapters *a);

/* What the scheduler's plan asks for. */
void adapters_fetch(struct adapters *a, uint32_t entry, int64_t now_us);
/* ERR_NO_SPACE: nothing changed. */
NODISCARD enum err adapters_load(struct adapters *a, uint32_t entry);
void adapters_evict(struct adapters *a, uint32_t entry, uint64_t ticket);

/* Copies that are done make their adapters resident. */
void adapters_poll(struct adapters *a);
/* Waits for all that are on their way. */
void adapters_rest(struct adapters *a);

/* What a loader found. The entry is counted for the caller, who lets it go by adapters_leave(). */
struct adapters_news {
    uint32_t entry;
    enum err error; /* ERR_OK; a refusal, which ends its jobs; or what will be tried again */
    bool changed;   /* the bytes that its begun jobs ran with are gone: these jobs must end */
    struct model_adapter_facts facts;
    struct err_text why;
};
/* false: none. */
bool adapters_take(struct adapters *a, struct adapters_news *news, int64_t now_us);
/* The refusal of an entry, which stands while the files stay as they are. ERR_OK: not refused. */
enum err adapters_verdict(const struct adapters *a, uint32_t entry, struct err_text *why);
/* Somebody says that this adapter has changed: a refusal is forgotten. */
void adapters_forget(struct adapters *a, const char *id);

/* A running sequence begins and ends to use it. */
void adapters_use(struct adapters *a, uint32_t entry);
void adapters_unuse(struct adapters *a, uint32_t entry);
/* Its index in the device's table, which a step's segments name; CHECKs that it is resident. */
uint32_t adapters_device_index(const struct adapters *a, uint32_t entry);
/* Fills the delta of an entry that became resident since the device last heard; false: none. */
bool adapters_delta(struct adapters *a, struct kern_adapter_set *set);
const char *adapters_id(const struct adapters *a, uint32_t entry);
const char *adapters_revision(const struct adapters *a, uint32_t entry);
uint32_t adapters_slots_free(const struct adapters *a);

#endif
