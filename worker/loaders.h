/* loaders.h - the threads that read and convert adapters, each one adapter or a part of one.
 *
 * A loader that has nothing of its own to do helps another: the parts of an adapter are shared
 * among all who are idle, so that the one that everybody waits for comes as fast as the machine
 * allows, and many come as fast together as each alone. Parts that are there go before adapters
 * that wait. Requests are served in their order. */
#ifndef LORRY_WORKER_LOADERS_H
#define LORRY_WORKER_LOADERS_H

#include <stdint.h>

#include "base/err.h"
#include "model/model.h"

struct loaders;

enum { LOADERS_MAX = 64, LOADERS_AUTO_MAX = 16 };

/* How many there are to be: `wanted`, or for 0 one a core, LOADERS_AUTO_MAX at most. */
uint32_t loaders_count(uint32_t wanted);

struct loaders_options {
    uint32_t threads;      /* 1 .. LOADERS_MAX */
    uint32_t requests_max; /* given and not yet begun */
    /* Serves one request, on a loader's thread; several at once. */
    void (*serve)(void *context, void *request);
    void *context;
};

NODISCARD enum err loaders_open(struct loaders **out, const struct loaders_options *options);
/* Waits for requests that were begun; drops the others. NULL is fine. */
void loaders_close(struct loaders *l);
/* Thread: any. Never waits for a loader. */
void loaders_give(struct loaders *l, void *request);
/* For serve(): parts of its request for all to share. */
struct model_crew loaders_crew(struct loaders *l);

#endif
