/* ring.h - a bounded queue of pointers between threads, and a bell to sleep by.
 *
 * Any number of threads may push and pop. A full ring refuses: that is the back-pressure. No
 * locks: each cell carries a sequence number that says whose turn it is (D. Vyukov's bounded MPMC
 * queue). A pushed object belongs to the ring, a popped one to who popped it. */
#ifndef LORRY_BASE_RING_H
#define LORRY_BASE_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct ring_cell {
    _Atomic uint64_t turn;
    void *item;
};

struct ring {
    struct ring_cell *cells;
    uint64_t mask;
    _Alignas(64) _Atomic uint64_t head; /* next to push */
    _Alignas(64) _Atomic uint64_t tail; /* next to pop */
};

/* `capacity`: 1 .. 2^31, rounded up to a power of two of at least 2. ERR_NO_MEMORY. */
NODISCARD enum err ring_init(struct ring *r, uint32_t capacity);
void ring_deinit(struct ring *r);

/* Thread: any. Never blocks. false: full, the item is still the caller's. `item` is not NULL. */
NODISCARD bool ring_push(struct ring *r, void *item);
/* NULL: empty. */
void *ring_pop(struct ring *r);
/* How many are in it; exact only while nobody pushes or pops. */
uint32_t ring_count(struct ring *r);
uint32_t ring_capacity(const struct ring *r);

/* A bell: who rings it wakes the one thread that waits, or the next wait returns at once. */
struct bell {
    _Atomic uint32_t rung; /* futex word: 0 silent, 1 rung */
};

void bell_init(struct bell *b);
void bell_ring(struct bell *b);
/* Waits until rung or `timeout_ms` passed; then the bell is silent again. true: it was rung. */
bool bell_wait(struct bell *b, uint32_t timeout_ms);

#endif
