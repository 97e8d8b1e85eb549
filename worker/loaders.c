#include "worker/loaders.h"

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/check.h"
#include "base/ring.h"

/* The parts of one request, on the stack of the loader that serves it. */
struct share {
    void (*part)(void *argument, uint32_t index);
    void *argument;
    uint32_t count, taken, finished;
    pthread_cond_t all_finished;
    struct share *next;
};

struct loaders {
    struct loaders_options options;
    /* Guards all below. A leaf: no other lock is taken under it, and nothing under it waits but for
     * the conditions. */
    pthread_mutex_t mutex;
    pthread_cond_t work; /* a request, a share, or the end */
    struct ring requests;
    struct share *shares; /* the oldest first */
    bool closing;
    pthread_t threads[LOADERS_MAX];
    uint32_t thread_count;
};

static void lock(struct loaders *l) {
    CHECK(pthread_mutex_lock(&l->mutex) == 0);
}

static void unlock(struct loaders *l) {
    CHECK(pthread_mutex_unlock(&l->mutex) == 0);
}

uint32_t loaders_count(uint32_t wanted) {
    if (wanted > 0) {
        return wanted;
    }
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return cores < 1 ? 1 : cores < LOADERS_AUTO_MAX ? (uint32_t)cores : LOADERS_AUTO_MAX;
}

/* ---- parts; the mutex is held ------------------------------------------------------------- */

/* Runs the next part of `s`, without the mutex. */
static void part_run(struct loaders *l, struct share *s) {
    uint32_t index = s->taken++;
    unlock(l);
    s->part(s->argument, index);
    lock(l);
    s->finished++;
    if (s->finished == s->count) { /* the share is its owner's alone once the mutex is free */
        CHECK(pthread_cond_signal(&s->all_finished) == 0);
    }
}

static struct share *share_open(const struct loaders *l) {
    struct share *s = l->shares;
    while (s != NULL && s->taken == s->count) {
        s = s->next;
    }
    return s;
}

static void share_put(struct loaders *l, struct share *s) {
    struct share **end = &l->shares;
    while (*end != NULL) {
        end = &(*end)->next;
    }
    *end = s;
    CHECK(pthread_cond_broadcast(&l->work) == 0);
}

static void share_remove(struct loaders *l, const struct share *s) {
    struct share **link = &l->shares;
    while (*link != s) {
        link = &(*link)->next;
    }
    *link = s->next;
}

static void crew_run(void *context, uint32_t count, void (*part)(void *argument, uint32_t index),
                     void *argument) {
    struct loaders *l = context;
    struct share s = {.part = part, .argument = argument, .count = count};
    CHECK(pthread_cond_init(&s.all_finished, NULL) == 0);
    lock(l);
    share_put(l, &s);
    while (s.taken < s.count) {
        part_run(l, &s);
    }
    while (s.finished < s.count) {
        CHECK(pthread_cond_wait(&s.all_finished, &l->mutex) == 0);
    }
    share_remove(l, &s);
    unlock(l);
    CHECK(pthread_cond_destroy(&s.all_finished) == 0);
}

struct model_crew loaders_crew(struct loaders *l) {
    return l->thread_count > 1 ? (struct model_crew){.run = crew_run, .context = l}
                               : (struct model_crew){0};
}

/* ---- threads ------------------------------------------------------------------------------ */

static void *loader_main(void *argument) {
    struct loaders *l = argument;
    lock(l);
    for (;;) {
        struct share *s = share_open(l);
        if (s != NULL) { /* also while closing: its owner waits for it */
            part_run(l, s);
            continue;
        }
        if (l->closing) {
            break;
        }
        void *request = ring_pop(&l->requests);
        if (request == NULL) {
            CHECK(pthread_cond_wait(&l->work, &l->mutex) == 0);
            continue;
        }
        unlock(l);
        l->options.serve(l->options.context, request);
        lock(l);
    }
    unlock(l);
    return NULL;
}

void loaders_give(struct loaders *l, void *request) {
    lock(l);
    CHECK(ring_push(&l->requests, request));
    CHECK(pthread_cond_signal(&l->work) == 0);
    unlock(l);
}

enum err loaders_open(struct loaders **out, const struct loaders_options *options) {
    CHECK(options->threads >= 1);
    CHECK(options->threads <= LOADERS_MAX);
    struct loaders *l = calloc(1, sizeof *l);
    if (l == NULL) {
        return ERR_NO_MEMORY;
    }
    l->options = *options;
    CHECK(pthread_mutex_init(&l->mutex, NULL) == 0);
    CHECK(pthread_cond_init(&l->work, NULL) == 0);
    enum err e = ring_init(&l->requests, options->requests_max);
    lock(l); /* none looks at how many they are before all are there */
    while (e == ERR_OK && l->thread_count < options->threads) {
        if (pthread_create(&l->threads[l->thread_count], NULL, loader_main, l) != 0) {
            e = ERR_NO_MEMORY;
        } else {
            l->thread_count++;
        }
    }
    unlock(l);
    if (e != ERR_OK) {
        loaders_close(l);
        return e;
    }
    *out = l;
    return ERR_OK;
}

void loaders_close(struct loaders *l) {
    if (l == NULL) {
        return;
    }
    lock(l);
    l->closing = true;
    CHECK(pthread_cond_broadcast(&l->work) == 0);
    unlock(l);
    for (uint32_t i = 0; i < l->thread_count; i++) {
        (void)pthread_join(l->threads[i], NULL);
    }
    CHECK(l->shares == NULL);
    ring_deinit(&l->requests);
    CHECK(pthread_cond_destroy(&l->work) == 0);
    CHECK(pthread_mutex_destroy(&l->mutex) == 0);
    free(l);
}
