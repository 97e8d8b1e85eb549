/* registry_internal.h - the connection to Redis (registry_redis.c), used by registry.c's thread. */
#ifndef LORRY_WORKER_REGISTRY_INTERNAL_H
#define LORRY_WORKER_REGISTRY_INTERNAL_H

#include <hiredis/hiredis.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

enum {
    REDIS_URL_PART_BYTES = 256,
    REDIS_JOB_EXPIRE_S = 7 * 24 * 3600,
    REDIS_WORKER_EXPIRE_S = 30,
};

#define REDIS_CHANNEL "lorry:events"

struct redis_address { /* of redis://[user[:password]@]host[:port][/database] or unix://path */
    char host[REDIS_URL_PART_BYTES], path[REDIS_URL_PART_BYTES];
    char user[REDIS_URL_PART_BYTES], password[REDIS_URL_PART_BYTES];
    int port, database;
};

/* Errors  ERR_BAD_CONFIG: why names redis.url. */
NODISCARD enum err redis_address_parse(struct redis_address *a, const char *url,
                                       struct err_text *why);

/* Connects, authenticates, selects; NULL: away, `why` says what. Blocks at most a few timeouts. */
redisContext *redis_open(const struct redis_address *a, uint32_t timeout_ms, struct err_text *why);

/* The subscription: a connection on which only messages come. */
redisContext *redis_subscribe(const struct redis_address *a, uint32_t timeout_ms,
                              struct err_text *why);
/* Takes one message that has arrived, without waiting; false: none. `*failed`: the connection is
 * broken. `text` is cut to `room` bytes. */
bool redis_message(redisContext *c, char *text, size_t room, bool *failed);

/* An integer in a reply: a number, or a string of digits. */
bool redis_int(const redisReply *r, int64_t *value);

#endif
