/* redis.h - what the tool tells the workers through Redis: a field of a hash, and an event. */
#ifndef LORRY_TOOLS_REDIS_H
#define LORRY_TOOLS_REDIS_H

#include <hiredis/hiredis.h>

#include "config/config.h"

enum {
    REDIS_JOB_EXPIRE_S = 7 * 24 * 3600,
    REDIS_KEY_BYTES = 512,
    REDIS_FIELDS_MAX = 16, /* of one call */
    REDIS_VALUE_BYTES = 128,
};

/* Errors  ERR_BAD_CONFIG (redis.url is empty or wrong), ERR_AWAY. redisFree() releases it. */
NODISCARD enum err redis_reach(redisContext **out, const struct config *c, struct err_text *why);

NODISCARD enum err redis_ping(redisContext *r, struct err_text *why); /* ERR_AWAY */

/* HSET key field value, or HDEL with a NULL value. Errors  ERR_AWAY. */
NODISCARD enum err redis_set(redisContext *r, const char *key, const char *field, const char *value,
                             struct err_text *why);
/* HDEL of all fields. */
NODISCARD enum err redis_forget(redisContext *r, const char *key, const char *const *fields,
                                int count, struct err_text *why);
NODISCARD enum err redis_expire(redisContext *r, const char *key, int64_t seconds,
                                struct err_text *why);
/* PUBLISH lorry:events "<kind> <id>"; *listeners: workers that got it. */
NODISCARD enum err redis_tell(redisContext *r, const char *kind, const char *id, int64_t *listeners,
                              struct err_text *why);
/* The members of a sorted set whose score is at least `low`, at most `max`, cut to their room. */
enum { REDIS_MEMBER_BYTES = 256 };
NODISCARD enum err redis_members(redisContext *r, const char *key, int64_t low, uint32_t max,
                                 char (*members)[REDIS_MEMBER_BYTES], uint32_t *count,
                                 struct err_text *why);
/* HMGET into `values`, cut to their room; empty where there is none. */
NODISCARD enum err redis_get(redisContext *r, const char *key, const char *const *fields, int count,
                             char values[][REDIS_VALUE_BYTES], struct err_text *why);

#endif
