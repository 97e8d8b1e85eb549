#include "worker/registry.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"
#include "worker/registry_internal.h"

enum {
    PIPELINE = 64,   /* jobs asked about in one round trip */
    FACTS_MAX = 256, /* verdicts waiting to be written; more are not: best effort */
    UPDATES_MAX = 1024,
    ADAPTERS_CACHED = 1 << 10,
    ADAPTER_AGE_US = 5000000, /* how old a cached default may be; events end it earlier */
    WAIT_MS = 100,
    BEAT_US = 2000000,
    FORGET_MS = 24 * 3600 * 1000, /* workers that ended without a word leave the group's list */
    PAUSE_MS_MIN = 100,           /* between attempts to connect; doubles up to the most */
    PAUSE_MS_MAX = 5000,
};

struct held {      /* a job that events may be about */
    uint64_t hash; /* 0 = free */
    char id[JOB_ID_BYTES];
};

struct adapter_slo { /* cached */
    char id[POOL_ID_BYTES];
    int64_t ttl_ms; /* < 0 = none */
    int64_t read_us;
};

struct facts {
    struct model_adapter_facts adapter;
    bool refused;
    char message[ERR_TEXT_BYTES];
};

struct registry {
    struct registry_options options;
    bool disabled;
    struct redis_address address;
    redisContext *commands, *events;
    int64_t retry_us, pause_ms, beat_us;
    int64_t rate_us; /* when `rate_tokens` were counted; 0 = never */
    uint64_t rate_tokens;
    bool said_away;

    struct ring looks, starts; /* of struct job */
    struct ring facts;         /* of struct facts, malloc'ed */
    int wake_fd;
    pthread_t thread;
    bool started;
    _Atomic bool closing;

    pthread_mutex_t lock;                        /* the only one here; nothing is called under it */
    struct held *held;                           /* [jobs_max] by job index; guarded by lock */
    struct registry_update updates[UPDATES_MAX]; /* ring; guarded by lock */
    uint32_t update_head, update_count;
    struct registry_heartbeat beat; /* guarded by lock */

    struct adapter_slo *slo; /* direct-mapped */
    struct job *batch[PIPELINE];
};

static uint64_t hash_of(const char *text) {
    return hash_bytes(text, strlen(text)) | 1; /* 0 means free */
}

static void wake(struct registry *r) {
    uint64_t one = 1;
    ssize_t ignored = write(r->wake_fd, &one, sizeof one);
    (void)ignored; /* a full counter is awake already */
}

/* ---- the connection ----------------------------------------------------------------------- */

static void disconnect(struct registry *r, const char *why) {
    char quoted[ERR_TEXT_BYTES];
    if (!r->said_away) {
        log_warn("redis", "away why=%s", log_quote(quoted, sizeof quoted, why));
        r->said_away = true;
    }
    redisFree(r->commands);
    redisFree(r->events);
    r->commands = NULL;
    r->events = NULL;
    r->retry_us = clock_mono_us() + r->pause_ms * 1000;
    r->pause_ms = r->pause_ms * 2 < PAUSE_MS_MAX ? r->pause_ms * 2 : PAUSE_MS_MAX;
    metrics_set(r->options.metrics, METRIC_REDIS_UP, 0);
}

static void update_push(struct registry *r, const struct registry_update *u) {
    for (;;) {
        (void)pthread_mutex_lock(&r->lock);
        bool room = r->update_count < UPDATES_MAX;
        if (room) {
            r->updates[(r->update_head + r->update_count++) % UPDATES_MAX] = *u;
        }
        (void)pthread_mutex_unlock(&r->lock);
        r->options.changed(r->options.context);
        if (room || atomic_load(&r->closing)) {
            return;
        }
        clock_sleep_ms(1); /* a cancel is not to be lost: the loop will take some */
    }
}

/* The next reply of a pipeline; NULL: the connection is gone. */
static redisReply *reply_next(struct registry *r) {
    void *reply = NULL;
    if (r->commands == NULL) {
        return NULL;
    }
    if (redisGetReply(r->commands, &reply) != REDIS_OK) {
        disconnect(r, r->commands->errstr);
        return NULL;
    }
    return reply;
}

static void append(struct registry *r, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static void append(struct registry *r, const char *format, ...) {
    va_list args;
    va_start(args, format);
    if (r->commands != NULL) {
        (void)redisvAppendCommand(r->commands, format, args);
    }
    va_end(args);
}

/* ---- jobs --------------------------------------------------------------------------------- */

static void job_ask(struct registry *r, const char *id) {
    append(r, "HMGET lorry:job:%s deadline_ms cancel", id);
}

/* false: no answer. */
static bool job_answer(struct registry *r, struct registry_update *u) {
    redisReply *reply = reply_next(r);
    if (reply == NULL) {
        return false;
    }
    int64_t cancel = 0;
    if (reply->type == REDIS_REPLY_ARRAY && reply->elements == 2) {
        u->deadline_given = redis_int(reply->element[0], &u->deadline_ms);
        u->cancelled = redis_int(reply->element[1], &cancel) && cancel != 0;
    }
    freeReplyObject(reply);
    return true;
}

static void read_again(struct registry *r, const char *id) {
    struct registry_update u = {.kind = REGISTRY_JOB};
    (void)snprintf(u.id, sizeof u.id, "%s", id);
    job_ask(r, id);
    if (job_answer(r, &u) && (u.cancelled || u.deadline_given)) {
        update_push(r, &u);
    }
}

static void read_all_again(struct registry *r) {
    char id[JOB_ID_BYTES];
    for (uint32_t i = 0; i < r->options.jobs_max && r->commands != NULL; i++) {
        (void)pthread_mutex_lock(&r->lock);
        bool used = r->held[i].hash != 0;
        if (used) {
            memcpy(id, r->held[i].id, sizeof id);
        }
        (void)pthread_mutex_unlock(&r->lock);
        if (used) {
            read_again(r, id);
        }
    }
}

static void connect_when_due(struct registry *r) {
    if (r->commands != NULL || clock_mono_us() < r->retry_us) {
        return;
    }
    struct err_text why = {0};
    r->commands = redis_open(&r->address, r->options.timeout_ms, &why);
    if (r->commands != NULL) {
        r->events = redis_subscribe(&r->address, r->options.timeout_ms, &why);
    }
    if (r->events == NULL) {
        disconnect(r, why.message);
        return;
    }
    r->pause_ms = PAUSE_MS_MIN;
    r->said_away = false;
    r->beat_us = 0;
    metrics_set(r->options.metrics, METRIC_REDIS_UP, 1);
    log_info("redis", "connected");
    for (uint32_t i = 0; i < ADAPTERS_CACHED; i++) { /* what was missed meanwhile is not known */
        r->slo[i].read_us = 0;
    }
    read_all_again(r);
}

/* ---- looking up --------------------------------------------------------------------------- */

static struct adapter_slo *slo_place(struct registry *r, const char *adapter) {
    return &r->slo[hash_of(adapter) & (ADAPTERS_CACHED - 1)];
}

/* The adapter's default time to live; < 0 = none. */
static int64_t adapter_ttl(struct registry *r, const char *adapter) {
    struct adapter_slo *slo = slo_place(r, adapter);
    int64_t now_us = clock_mono_us();
    bool fresh = strcmp(slo->id, adapter) == 0 && slo->read_us != 0 &&
                 now_us - slo->read_us < ADAPTER_AGE_US;
    if (fresh) {
        return slo->ttl_ms;
    }
    append(r, "HGET lorry:adapter:%s ttl_ms", adapter);
    redisReply *reply = reply_next(r);
    if (reply == NULL) {
        return -1;
    }
    *slo = (struct adapter_slo){.ttl_ms = -1, .read_us = now_us};
    (void)snprintf(slo->id, sizeof slo->id, "%s", adapter);
    if (!redis_int(reply, &slo->ttl_ms) || slo->ttl_ms <= 0) {
        slo->ttl_ms = -1;
    }
    freeReplyObject(reply);
    return slo->ttl_ms;
}

static void hold(struct registry *r, const struct job *job) {
    (void)pthread_mutex_lock(&r->lock);
    struct held *h = &r->held[job->index];
    h->hash = hash_of(job->id);
    memcpy(h->id, job->id, sizeof h->id);
    (void)pthread_mutex_unlock(&r->lock);
}

static void apply(struct registry *r, struct job *job, const struct registry_update *u) {
    job->cancelled = u->cancelled;
    if (u->deadline_given) {
        job->deadline_ms = u->deadline_ms;
        return;
    }
    if (job->deadline_ms == INT64_MAX && job->adapter[0] != '\0' && r->commands != NULL) {
        int64_t ttl_ms = adapter_ttl(r, job->adapter);
        int64_t stamp_ms = job->record->timestamp_ms;
        if (ttl_ms > 0) {
            job->deadline_ms = (stamp_ms >= 0 ? stamp_ms : job->received_ms) + ttl_ms;
        }
    }
}

/* Asks about as many jobs as wait, in one round trip. true: there were some. */
static bool take_looks(struct registry *r) {
    uint32_t count = 0;
    struct job *job = NULL;
    while (count < PIPELINE && (job = ring_pop(&r->looks)) != NULL) {
        hold(r, job); /* before asking: an event in between is not missed */
        job_ask(r, job->id);
        r->batch[count++] = job;
    }
    struct registry_update found[PIPELINE];
    for (uint32_t i = 0; i < count; i++) {
        found[i] = (struct registry_update){0};
        (void)job_answer(r, &found[i]);
    }
    for (uint32_t i = 0; i < count; i++) {
        apply(r, r->batch[i], &found[i]);
        r->options.looked(r->options.context, r->batch[i]);
    }
    return count > 0;
}

static bool take_starts(struct registry *r) {
    uint32_t count = 0;
    struct job *job = NULL;
    while (count < PIPELINE && (job = ring_pop(&r->starts)) != NULL) {
        append(r, "HINCRBY lorry:job:%s attempt 1", job->id);
        append(r, "HSET lorry:job:%s owner %s run %s", job->id, r->options.worker_id, job->run);
        append(r, "EXPIRE lorry:job:%s %d", job->id, REDIS_JOB_EXPIRE_S);
        r->batch[count++] = job;
    }
    for (uint32_t i = 0; i < count; i++) {
        int64_t attempt = 1;
        for (uint32_t k = 0; k < 3; k++) {
            redisReply *reply = reply_next(r);
            if (k == 0 && reply != NULL) {
                (void)redis_int(reply, &attempt);
            }
            freeReplyObject(reply);
        }
        r->batch[i]->attempt = attempt >= 1 && attempt < UINT32_MAX ? (uint32_t)attempt : 1;
    }
    for (uint32_t i = 0; i < count; i++) {
        r->options.started(r->options.context, r->batch[i]);
    }
    return count > 0;
}

/* ---- facts, events, heartbeat ------------------------------------------------------------- */

static void take_facts(struct registry *r) {
    struct facts *f = NULL;
    while ((f = ring_pop(&r->facts)) != NULL) {
        append(r, "HSET lorry:adapter:%s revision %s rank %u bytes %llu state %s message %s",
               f->adapter.id, f->adapter.revision, f->adapter.rank_max,
               (unsigned long long)f->adapter.file_bytes, f->refused ? "refused" : "usable",
               f->message);
        freeReplyObject(reply_next(r));
        free(f);
    }
}

static bool is_held(struct registry *r, const char *id) {
    uint64_t hash = hash_of(id);
    bool found = false;
    (void)pthread_mutex_lock(&r->lock);
    for (uint32_t i = 0; i < r->options.jobs_max && !found; i++) {
        found = r->held[i].hash == hash && strcmp(r->held[i].id, id) == 0;
    }
    (void)pthread_mutex_unlock(&r->lock);
    return found;
}

static void take_message(struct registry *r, const char *text) {
    static const char job[] = "job ";
    static const char adapter[] = "adapter ";
    if (strncmp(text, job, sizeof job - 1) == 0) {
        const char *id = text + sizeof job - 1;
        if (is_held(r, id)) {
            read_again(r, id);
        }
    } else if (strncmp(text, adapter, sizeof adapter - 1) == 0) {
        const char *id = text + sizeof adapter - 1;
        slo_place(r, id)->read_us = 0;
        struct registry_update u = {.kind = REGISTRY_ADAPTER};
        (void)snprintf(u.id, sizeof u.id, "%s", id);
        update_push(r, &u);
    }
}

static void take_events(struct registry *r, bool readable) {
    char text[JOB_ID_BYTES]; /* ids are shorter by far: a longer message is not ours */
    bool failed = readable && redisBufferRead(r->events) != REDIS_OK;
    while (!failed && r->events != NULL && redis_message(r->events, text, sizeof text, &failed)) {
        take_message(r, text);
    }
    if (failed && r->events != NULL) {
        disconnect(r, "the subscription broke");
    }
}

/* Tokens a second since the last call. */
static double token_rate(struct registry *r, int64_t now_us, uint64_t tokens) {
    double seconds = (double)(now_us - r->rate_us) / 1e6;
    bool known = r->rate_us != 0 && seconds > 0;
    double rate = known ? (double)(tokens - r->rate_tokens) / seconds : 0;
    r->rate_us = now_us;
    r->rate_tokens = tokens;
    return rate;
}

static void drop_replies(struct registry *r, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        freeReplyObject(reply_next(r));
    }
}

static void beat_when_due(struct registry *r) {
    int64_t now_us = clock_mono_us();
    if (r->commands == NULL || now_us < r->beat_us) {
        return;
    }
    r->beat_us = now_us + BEAT_US;
    (void)pthread_mutex_lock(&r->lock);
    struct registry_heartbeat b = r->beat;
    (void)pthread_mutex_unlock(&r->lock);
    uint64_t tokens = metrics_value(r->options.metrics, METRIC_TOKENS_SAMPLED);
    long long now_ms = clock_wall_ms();
    char rate[32]; /* hiredis' %f has no precision */
    (void)snprintf(rate, sizeof rate, "%.1f", token_rate(r, now_us, tokens));
    append(r,
           "HSET lorry:worker:%s heartbeat_ms %lld partitions %u adapters %u running %u waiting %u "
           "tokens %llu tokens_s %s http %s",
           r->options.worker_id, now_ms,
           (unsigned)metrics_gauge(r->options.metrics, METRIC_PARTITIONS), b.adapters_resident,
           b.running, b.waiting, (unsigned long long)tokens, rate, r->options.http);
    append(r, "EXPIRE lorry:worker:%s %d", r->options.worker_id, REDIS_WORKER_EXPIRE_S);
    append(r, "ZADD lorry:workers:%s %lld %s", r->options.group, now_ms, r->options.worker_id);
    append(r, "ZREMRANGEBYSCORE lorry:workers:%s -inf %lld", r->options.group, now_ms - FORGET_MS);
    drop_replies(r, 4);
}

/* At the end: who looks sees at once that this worker is gone. */
static void farewell(struct registry *r) {
    append(r, "DEL lorry:worker:%s", r->options.worker_id);
    append(r, "ZREM lorry:workers:%s %s", r->options.group, r->options.worker_id);
    drop_replies(r, 2);
}

static void wait_for_work(struct registry *r) {
    struct pollfd fds[2] = {{.fd = r->wake_fd, .events = POLLIN},
                            {.fd = r->events != NULL ? r->events->fd : -1, .events = POLLIN}};
    (void)poll(fds, 2, WAIT_MS);
    if ((fds[0].revents & POLLIN) != 0) {
        uint64_t ignored = 0;
        ssize_t got = read(r->wake_fd, &ignored, sizeof ignored);
        (void)got;
    }
    if (r->events != NULL && fds[1].revents != 0) {
        take_events(r, true);
    }
}

static void *registry_main(void *argument) {
    struct registry *r = argument;
    for (;;) {
        connect_when_due(r);
        bool busy = take_looks(r);
        busy = take_starts(r) || busy;
        take_facts(r);
        beat_when_due(r);
        if (busy) {
            continue;
        }
        if (atomic_load(&r->closing)) {
            farewell(r);
            return NULL;
        }
        wait_for_work(r);
    }
}

/* ---- the interface ------------------------------------------------------------------------ */

enum err registry_open(struct registry **out, const struct registry_options *options,
                       struct err_text *why) {
    struct registry *r = calloc(1, sizeof *r);
    if (r == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for the registry");
    }
    r->options = *options;
    r->wake_fd = -1;
    r->pause_ms = PAUSE_MS_MIN;
    (void)pthread_mutex_init(&r->lock, NULL);
    r->disabled = options->url[0] == '\0';
    if (r->disabled) {
        *out = r;
        return ERR_OK;
    }
    enum err e = redis_address_parse(&r->address, options->url, why);
    if (e == ERR_OK) {
        r->held = calloc(options->jobs_max, sizeof *r->held);
        r->slo = calloc(ADAPTERS_CACHED, sizeof *r->slo);
        r->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (r->held == NULL || r->slo == NULL || r->wake_fd < 0 ||
            ring_init(&r->looks, options->jobs_max) != ERR_OK ||
            ring_init(&r->starts, options->jobs_max) != ERR_OK ||
            ring_init(&r->facts, FACTS_MAX) != ERR_OK ||
            pthread_create(&r->thread, NULL, registry_main, r) != 0) {
            e = err_set(why, ERR_NO_MEMORY, "no memory for the registry");
        } else {
            r->started = true;
        }
    }
    if (e != ERR_OK) {
        registry_close(r);
        return e;
    }
    *out = r;
    return ERR_OK;
}

void registry_close(struct registry *r) {
    if (r == NULL) {
        return;
    }
    if (r->started) {
        atomic_store(&r->closing, true);
        wake(r);
        (void)pthread_join(r->thread, NULL);
    }
    redisFree(r->commands);
    redisFree(r->events);
    struct facts *f = NULL;
    while (r->facts.cells != NULL && (f = ring_pop(&r->facts)) != NULL) {
        free(f);
    }
    ring_deinit(&r->looks);
    ring_deinit(&r->starts);
    ring_deinit(&r->facts);
    if (r->wake_fd >= 0) {
        (void)close(r->wake_fd);
    }
    (void)pthread_mutex_destroy(&r->lock);
    free(r->held);
    free(r->slo);
    free(r);
}

void registry_look(struct registry *r, struct job *job) {
    if (r->disabled) {
        r->options.looked(r->options.context, job);
        return;
    }
    CHECK(ring_push(&r->looks, job)); /* a cell for every job there is */
    wake(r);
}

void registry_start(struct registry *r, struct job *job) {
    if (r->disabled) {
        job->attempt = 1;
        r->options.started(r->options.context, job);
        return;
    }
    CHECK(ring_push(&r->starts, job));
    wake(r);
}

void registry_leave(struct registry *r, struct job *job) {
    if (r->disabled) {
        return;
    }
    (void)pthread_mutex_lock(&r->lock);
    r->held[job->index].hash = 0;
    (void)pthread_mutex_unlock(&r->lock);
}

void registry_adapter(struct registry *r, const struct model_adapter_facts *facts,
                      const struct err_text *why) {
    struct facts *f = r->disabled ? NULL : malloc(sizeof *f);
    if (f == NULL) {
        return;
    }
    *f = (struct facts){.adapter = *facts, .refused = why != NULL};
    if (why != NULL) {
        (void)snprintf(f->message, sizeof f->message, "%s", why->message);
    }
    if (!ring_push(&r->facts, f)) {
        free(f);
        return;
    }
    wake(r);
}

bool registry_update(struct registry *r, struct registry_update *update) {
    if (r->disabled) {
        return false;
    }
    (void)pthread_mutex_lock(&r->lock);
    bool some = r->update_count > 0;
    if (some) {
        *update = r->updates[r->update_head];
        r->update_head = (r->update_head + 1) % UPDATES_MAX;
        r->update_count--;
    }
    (void)pthread_mutex_unlock(&r->lock);
    return some;
}

void registry_heartbeat(struct registry *r, const struct registry_heartbeat *beat) {
    if (r->disabled) {
        return;
    }
    (void)pthread_mutex_lock(&r->lock);
    r->beat = *beat;
    (void)pthread_mutex_unlock(&r->lock);
}
