#include "kernels/cpu/threads.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/check.h"

/* A step has some 250 short loops, so a worker looks for the next one for a while before it sleeps:
 * waking it costs more than most loops take. About 20 µs. */
enum { SPINS = 500 };

struct worker {
    struct threads *pool;
    pthread_t handle;
    uint32_t index;
};

struct threads {
    pthread_mutex_t mutex;   /* guards what is not atomic */
    pthread_cond_t work;     /* a loop was opened, or closing */
    pthread_cond_t idle;     /* the last worker has left the loop */
    _Atomic uint64_t loop;   /* number of the last loop opened; read without the lock to spin */
    _Atomic uint32_t next;   /* next item to hand out */
    _Atomic uint32_t active; /* workers inside the loop */
    bool open;               /* workers may still join the loop */
    bool closing;
    uint32_t items;
    threads_item_fn *item;
    void *context;
    uint32_t count;
    uint32_t started; /* workers whose thread runs */
    struct worker workers[];
};

static inline void spin_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void items_take(struct threads *t, uint32_t thread) {
    for (;;) {
        uint32_t item = atomic_fetch_add_explicit(&t->next, 1, memory_order_relaxed);
        if (item >= t->items) {
            return;
        }
        t->item(t->context, item, thread);
    }
}

/* Waits until a loop after `seen` is open and joins it; false: closing. A worker that comes too
 * late for a loop never touches it, so that one which the system has put aside delays nobody. */
static bool loop_join(struct threads *t, uint64_t *seen) {
    for (int i = 0; i < SPINS && atomic_load_explicit(&t->loop, memory_order_relaxed) == *seen;
         i++) {
        spin_pause();
    }
    CHECK(pthread_mutex_lock(&t->mutex) == 0);
    while (!t->closing && !(t->open && t->loop != *seen)) {
        CHECK(pthread_cond_wait(&t->work, &t->mutex) == 0);
    }
    bool join = !t->closing;
    *seen = t->loop;
    if (join) {
        t->active++;
    }
    CHECK(pthread_mutex_unlock(&t->mutex) == 0);
    return join;
}

static void loop_leave(struct threads *t) {
    CHECK(pthread_mutex_lock(&t->mutex) == 0);
    if (atomic_fetch_sub(&t->active, 1) == 1) {
        CHECK(pthread_cond_signal(&t->idle) == 0);
    }
    CHECK(pthread_mutex_unlock(&t->mutex) == 0);
}

static void *worker_main(void *argument) {
    struct worker *w = argument;
    uint64_t seen = 0;
    while (loop_join(w->pool, &seen)) {
        items_take(w->pool, w->index);
        loop_leave(w->pool);
    }
    return NULL;
}

enum err threads_open(struct threads **out, uint32_t count) {
    CHECK(count >= 1 && count <= THREADS_MAX);
    struct threads *t = calloc(1, sizeof *t + count * sizeof t->workers[0]);
    if (t == NULL) {
        return ERR_NO_MEMORY;
    }
    CHECK(pthread_mutex_init(&t->mutex, NULL) == 0);
    CHECK(pthread_cond_init(&t->work, NULL) == 0);
    CHECK(pthread_cond_init(&t->idle, NULL) == 0);
    t->count = count;
    for (uint32_t i = 1; i < count; i++) {
        struct worker *w = &t->workers[t->started];
        *w = (struct worker){.pool = t, .index = i};
        if (pthread_create(&w->handle, NULL, worker_main, w) != 0) {
            threads_close(t);
            return ERR_NO_MEMORY;
        }
        t->started++;
    }
    *out = t;
    return ERR_OK;
}

void threads_close(struct threads *t) {
    if (t == NULL) {
        return;
    }
    CHECK(pthread_mutex_lock(&t->mutex) == 0);
    t->closing = true;
    CHECK(pthread_cond_broadcast(&t->work) == 0);
    CHECK(pthread_mutex_unlock(&t->mutex) == 0);
    atomic_fetch_add(&t->loop, 1); /* ends the spinning */
    for (uint32_t i = 0; i < t->started; i++) {
        CHECK(pthread_join(t->workers[i].handle, NULL) == 0);
    }
    CHECK(pthread_cond_destroy(&t->idle) == 0);
    CHECK(pthread_cond_destroy(&t->work) == 0);
    CHECK(pthread_mutex_destroy(&t->mutex) == 0);
    free(t);
}

uint32_t threads_count(const struct threads *t) {
    return t->count;
}

void threads_run(struct threads *t, threads_item_fn *item, void *context, uint32_t items) {
    CHECK(items < UINT32_MAX - THREADS_MAX); /* `next` runs past `items` by one a thread */
    if (t->count == 1 || items <= 1) {
        for (uint32_t i = 0; i < items; i++) {
            item(context, i, 0);
        }
        return;
    }
    CHECK(pthread_mutex_lock(&t->mutex) == 0);
    t->item = item;
    t->context = context;
    t->items = items;
    t->next = 0;
    t->open = true;
    atomic_fetch_add(&t->loop, 1);
    CHECK(pthread_cond_broadcast(&t->work) == 0);
    CHECK(pthread_mutex_unlock(&t->mutex) == 0);

    items_take(t, 0);

    for (int i = 0; i < SPINS && atomic_load_explicit(&t->active, memory_order_relaxed) != 0; i++) {
        spin_pause();
    }
    CHECK(pthread_mutex_lock(&t->mutex) == 0);
    t->open = false;
    while (t->active != 0) {
        CHECK(pthread_cond_wait(&t->idle, &t->mutex) == 0);
    }
    CHECK(pthread_mutex_unlock(&t->mutex) == 0);
}
