#include "tools/redis.h"

#include <stdio.h>

#include "base/check.h"
#include "worker/worker.h"

static const char channel[] = "lorry:events";

enum err redis_reach(redisContext **out, const struct config *c, struct err_text *why) {
    if (c->redis_url[0] == '\0') {
        return err_set_field(why, ERR_BAD_CONFIG, "redis.url",
                             "redis.url is empty: there is no Redis to tell the workers through");
    }
    struct err_text cause = {0};
    *out = registry_connect(c->redis_url, (uint32_t)c->redis_timeout_ms, &cause);
    if (*out == NULL && cause.field[0] != '\0') { /* the URL itself is at fault */
        return err_set_field(why, ERR_BAD_CONFIG, cause.field, "%s", cause.message);
    }
    return *out != NULL ? ERR_OK : err_set(why, ERR_AWAY, "Redis (redis.url): %s", cause.message);
}

/* The answer; NULL: there was none, or an error. */
static redisReply *ask(redisContext *r, int argc, const char **argv, struct err_text *why) {
    redisReply *reply = redisCommandArgv(r, argc, argv, NULL);
    if (reply == NULL || reply->type == REDIS_REPLY_ERROR) {
        (void)err_set(why, ERR_AWAY, "Redis: %s: %s", argv[0],
                      reply != NULL ? reply->str : r->errstr);
        freeReplyObject(reply); /* NULL is fine */
        return NULL;
    }
    return reply;
}

/* A command whose answer only matters when it is an error. */
static enum err tell(redisContext *r, int argc, const char **argv, struct err_text *why) {
    redisReply *reply = ask(r, argc, argv, why);
    if (reply == NULL) {
        return ERR_AWAY;
    }
    freeReplyObject(reply);
    return ERR_OK;
}

enum err redis_ping(redisContext *r, struct err_text *why) {
    const char *argv[] = {"PING"};
    return tell(r, 1, argv, why);
}

enum err redis_set(redisContext *r, const char *key, const char *field, const char *value,
                   struct err_text *why) {
    const char *argv[] = {value != NULL ? "HSET" : "HDEL", key, field, value};
    return tell(r, value != NULL ? 4 : 3, argv, why);
}

enum err redis_forget(redisContext *r, const char *key, const char *const *fields, int count,
                      struct err_text *why) {
    const char *argv[2 + REDIS_FIELDS_MAX] = {"HDEL", key};
    CHECK(count <= REDIS_FIELDS_MAX);
    for (int i = 0; i < count; i++) {
        argv[2 + i] = fields[i];
    }
    return tell(r, 2 + count, argv, why);
}

enum err redis_expire(redisContext *r, const char *key, int64_t seconds, struct err_text *why) {
    char text[24];
    (void)snprintf(text, sizeof text, "%lld", (long long)seconds);
    const char *argv[] = {"EXPIRE", key, text};
    return tell(r, 3, argv, why);
}

enum err redis_tell(redisContext *r, const char *kind, const char *id, int64_t *listeners,
                    struct err_text *why) {
    char event[REDIS_KEY_BYTES];
    (void)snprintf(event, sizeof event, "%s %s", kind, id);
    const char *argv[] = {"PUBLISH", channel, event};
    redisReply *reply = ask(r, 3, argv, why);
    if (reply == NULL) {
        return ERR_AWAY;
    }
    *listeners = reply->type == REDIS_REPLY_INTEGER ? reply->integer : 0;
    freeReplyObject(reply);
    return ERR_OK;
}

enum err redis_get(redisContext *r, const char *key, const char *const *fields, int count,
                   char values[][REDIS_VALUE_BYTES], struct err_text *why) {
    const char *argv[2 + REDIS_FIELDS_MAX] = {"HMGET", key};
    CHECK(count <= REDIS_FIELDS_MAX);
    for (int i = 0; i < count; i++) {
        argv[2 + i] = fields[i];
    }
    redisReply *reply = ask(r, 2 + count, argv, why);
    if (reply == NULL) {
        return ERR_AWAY;
    }
    for (int i = 0; i < count; i++) {
        bool given = reply->type == REDIS_REPLY_ARRAY && (size_t)i < reply->elements &&
                     reply->element[i]->type == REDIS_REPLY_STRING;
        (void)snprintf(values[i], REDIS_VALUE_BYTES, "%s", given ? reply->element[i]->str : "");
    }
    freeReplyObject(reply);
    return ERR_OK;
}

enum err redis_members(redisContext *r, const char *key, int64_t low, uint32_t max,
                       char (*members)[REDIS_MEMBER_BYTES], uint32_t *count, struct err_text *why) {
    char from[24];
    char limit[16];
    (void)snprintf(from, sizeof from, "%lld", (long long)low);
    (void)snprintf(limit, sizeof limit, "%u", max);
    const char *argv[] = {"ZRANGEBYSCORE", key, from, "+inf", "LIMIT", "0", limit};
    redisReply *reply = ask(r, sizeof argv / sizeof argv[0], argv, why);
    if (reply == NULL) {
        return ERR_AWAY;
    }
    *count = 0;
    for (size_t i = 0; reply->type == REDIS_REPLY_ARRAY && i < reply->elements && i < max; i++) {
        if (reply->element[i]->type == REDIS_REPLY_STRING) {
            (void)snprintf(members[(*count)++], REDIS_MEMBER_BYTES, "%s", reply->element[i]->str);
        }
    }
    freeReplyObject(reply);
    return ERR_OK;
}
