/* health.h - the worker's HTTP server: GET /metrics, /healthz and /readyz.
 *
 * /healthz is progress, not being alive: 503 only when the loop has neither made a turn for a while
 * nor waits for a named cause (design §11). /readyz is 200 once the model is loaded and the broker
 * was reached. One thread of libmicrohttpd's own serves all requests; nothing here blocks others.
 * Thread: health_turned() and health_waiting() by the loop, health_ready() by any (atomics). */
#ifndef LORRY_WORKER_HEALTH_H
#define LORRY_WORKER_HEALTH_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/metrics.h"

enum {
    HEALTH_STUCK_MS = 30000,      /* a step of the largest model is far below this */
    HEALTH_CONNECTIONS_MAX = 64,  /* more are refused */
    HEALTH_CONNECTION_IDLE_S = 10 /* then it is closed */
};

struct health_options {
    const char *host;        /* name or address, of http.host */
    uint16_t port;           /* 0 = any free one: health_port() tells */
    struct metrics *metrics; /* outlives the server */
    uint32_t stuck_ms;       /* 0 = HEALTH_STUCK_MS */
};

struct health;

/* Listens and serves; the loop counts as having turned now, nothing is ready.
 * Errors  ERR_BAD_CONFIG: the port is taken or forbidden, the host unknown; `why` names the option.
 *         ERR_NO_MEMORY. */
NODISCARD enum err health_open(struct health **out, const struct health_options *options,
                               struct err_text *why);
void health_close(struct health *h); /* ends requests in progress; NULL is fine */
uint16_t health_port(const struct health *h);

void health_turned(struct health *h); /* a turn was made; ends a wait */
/* The loop waits for `cause` until its next health_turned(), however long. `cause` is a constant:
 * "jobs", "the broker"; it is kept and shown. */
void health_waiting(struct health *h, const char *cause);
void health_ready(struct health *h, bool model, bool broker);

#endif
