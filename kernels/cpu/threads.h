/* threads.h - the CPU device's fixed pool of workers: one parallel loop at a time.
 *
 * Items are handed out one by one, so which thread runs an item is not fixed; an item's result must
 * not depend on it. Thread: the device's thread opens, runs and closes. */
#ifndef LORRY_KERNELS_CPU_THREADS_H
#define LORRY_KERNELS_CPU_THREADS_H

#include <stdint.h>

#include "base/err.h"

struct threads;

/* `thread`: 0 .. count - 1, for scratch memory; 0 is the caller of threads_run(). */
typedef void threads_item_fn(void *context, uint32_t item, uint32_t thread);

/* count  1 .. THREADS_MAX, the caller included. Errors  ERR_NO_MEMORY. */
enum { THREADS_MAX = 256 };
NODISCARD enum err threads_open(struct threads **out, uint32_t count);
void threads_close(struct threads *t); /* NULL is fine */
uint32_t threads_count(const struct threads *t);

/* Calls `item` once for each of 0 .. items - 1; returns when all have returned. */
void threads_run(struct threads *t, threads_item_fn *item, void *context, uint32_t items);

#endif
