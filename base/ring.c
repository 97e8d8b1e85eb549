#include "base/ring.h"

#include <errno.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"

enum err ring_init(struct ring *r, uint32_t capacity) {
    CHECK(capacity >= 1);
    CHECK(capacity <= 1U << 31);
    uint64_t count = 2;
    while (count < capacity) {
        count *= 2;
    }
    r->cells = calloc(count, sizeof *r->cells);
    if (r->cells == NULL) {
        return ERR_NO_MEMORY;
    }
    r->mask = count - 1;
    atomic_init(&r->head, 0);
    atomic_init(&r->tail, 0);
    for (uint64_t i = 0; i < count; i++) {
        atomic_init(&r->cells[i].turn, i);
    }
    return ERR_OK;
}

void ring_deinit(struct ring *r) {
    free(r->cells);
    r->cells = NULL;
}

bool ring_push(struct ring *r, void *item) {
    CHECK(item != NULL);
    uint64_t head = atomic_load_explicit(&r->head, memory_order_relaxed);
    for (;;) {
        struct ring_cell *cell = &r->cells[head & r->mask];
        uint64_t turn = atomic_load_explicit(&cell->turn, memory_order_acquire);
        if (turn == head) {
            if (atomic_compare_exchange_weak_explicit(&r->head, &head, head + 1,
                                                      memory_order_relaxed, memory_order_relaxed)) {
                cell->item = item;
                atomic_store_explicit(&cell->turn, head + 1, memory_order_release);
                return true;
            }
        } else if (turn < head) {
            return false; /* a lap behind: not yet popped */
        } else {
            head = atomic_load_explicit(&r->head, memory_order_relaxed);
        }
    }
}

void *ring_pop(struct ring *r) {
    uint64_t tail = atomic_load_explicit(&r->tail, memory_order_relaxed);
    for (;;) {
        struct ring_cell *cell = &r->cells[tail & r->mask];
        uint64_t turn = atomic_load_explicit(&cell->turn, memory_order_acquire);
        if (turn == tail + 1) {
            if (atomic_compare_exchange_weak_explicit(&r->tail, &tail, tail + 1,
                                                      memory_order_relaxed, memory_order_relaxed)) {
                void *item = cell->item;
                atomic_store_explicit(&cell->turn, tail + r->mask + 1, memory_order_release);
                return item;
            }
        } else if (turn < tail + 1) {
            return NULL;
        } else {
            tail = atomic_load_explicit(&r->tail, memory_order_relaxed);
        }
    }
}

uint32_t ring_count(struct ring *r) {
    uint64_t tail = atomic_load(&r->tail);
    uint64_t head = atomic_load(&r->head);
    return head > tail ? (uint32_t)(head - tail) : 0;
}

uint32_t ring_capacity(const struct ring *r) {
    return (uint32_t)(r->mask + 1);
}

void bell_init(struct bell *b) {
    atomic_init(&b->rung, 0);
}

void bell_ring(struct bell *b) {
    if (atomic_exchange(&b->rung, 1) == 0) {
        (void)syscall(SYS_futex, &b->rung, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
}

/* A sleeper can wake with the bell silent: of a signal, or of a ringer that was late to wake and
 * whose ring the wait before took. It sleeps on, by an absolute time so that no wake-up adds to the
 * wait. */
bool bell_wait(struct bell *b, uint32_t timeout_ms) {
    const int64_t until_us = clock_mono_us() + (int64_t)timeout_ms * 1000;
    const struct timespec until = {.tv_sec = until_us / 1000000,
                                   .tv_nsec = (long)(until_us % 1000000) * 1000};
    long slept = 0;
    do {
        if (atomic_exchange(&b->rung, 0) == 1) {
            return true;
        }
        slept = syscall(SYS_futex, &b->rung, FUTEX_WAIT_BITSET_PRIVATE, 0, &until, NULL,
                        FUTEX_BITSET_MATCH_ANY);
    } while (slept == 0 || errno != ETIMEDOUT);
    return atomic_exchange(&b->rung, 0) == 1;
}
