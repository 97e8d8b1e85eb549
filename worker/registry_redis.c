#include "worker/registry_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/worker.h"

enum { REDIS_PORT = 6379 };

static bool copy_part(char *room, const char *from, const char *to) {
    size_t bytes = (size_t)(to - from);
    if (bytes >= REDIS_URL_PART_BYTES) {
        return false;
    }
    memcpy(room, from, bytes);
    room[bytes] = '\0';
    return true;
}

static bool parse_number(const char *text, int max, int *value) {
    char *end = NULL;
    errno = 0;
    long n = strtol(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || n < 0 || n > max) {
        return false;
    }
    *value = (int)n;
    return true;
}

/* host[:port][/database] */
static bool parse_host(struct redis_address *a, const char *text) {
    const char *end = text + strlen(text);
    const char *slash = strchr(text, '/');
    const char *host_end = slash != NULL ? slash : end;
    if (slash != NULL && slash[1] != '\0' && !parse_number(slash + 1, 1 << 20, &a->database)) {
        return false;
    }
    const char *colon = memchr(text, ':', (size_t)(host_end - text));
    if (colon != NULL) {
        char port[REDIS_URL_PART_BYTES];
        if (!copy_part(port, colon + 1, host_end) || !parse_number(port, 65535, &a->port)) {
            return false;
        }
        host_end = colon;
    }
    return copy_part(a->host, text, host_end) && a->host[0] != '\0';
}

/* [user][:password] */
static bool parse_login(struct redis_address *a, const char *from, const char *to) {
    const char *colon = memchr(from, ':', (size_t)(to - from));
    return colon == NULL ? copy_part(a->password, from, to)
                         : copy_part(a->user, from, colon) && copy_part(a->password, colon + 1, to);
}

enum err redis_address_parse(struct redis_address *a, const char *url, struct err_text *why) {
    static const char tcp[] = "redis://";
    static const char local[] = "unix://";
    *a = (struct redis_address){.port = REDIS_PORT};
    bool good = false;
    if (strncmp(url, local, sizeof local - 1) == 0) {
        const char *path = url + sizeof local - 1;
        good = copy_part(a->path, path, path + strlen(path)) && a->path[0] == '/';
    } else if (strncmp(url, tcp, sizeof tcp - 1) == 0) {
        const char *rest = url + sizeof tcp - 1;
        const char *at = strrchr(rest, '@');
        good = at == NULL || parse_login(a, rest, at);
        good = good && parse_host(a, at != NULL ? at + 1 : rest);
    } else if (strncmp(url, "rediss://", 9) == 0) {
        return err_set_field(why, ERR_BAD_CONFIG, "redis.url",
                             "TLS needs hiredis 1.0 or later; this build has %d.%d", HIREDIS_MAJOR,
                             HIREDIS_MINOR);
    }
    if (!good) { /* the URL may hold a password: it is not repeated */
        return err_set_field(why, ERR_BAD_CONFIG, "redis.url",
                             "expected redis://[user:password@]host[:port][/database] or "
                             "unix:///path");
    }
    return ERR_OK;
}

/* Sends a command whose answer must not be an error. */
static bool command_ok(redisContext *c, int argc, const char **argv, struct err_text *why) {
    redisReply *r = redisCommandArgv(c, argc, argv, NULL);
    bool ok = r != NULL && r->type != REDIS_REPLY_ERROR;
    if (!ok) {
        (void)err_set(why, ERR_AWAY, "%s: %s", argv[0], r != NULL ? r->str : c->errstr);
    }
    freeReplyObject(r);
    return ok;
}

static bool log_in(redisContext *c, const struct redis_address *a, struct err_text *why) {
    char database[16];
    (void)snprintf(database, sizeof database, "%d", a->database);
    const char *with_user[] = {"AUTH", a->user, a->password};
    const char *without_user[] = {"AUTH", a->password};
    const char *choose[] = {"SELECT", database};
    bool ok = true;
    if (a->password[0] != '\0') {
        ok = a->user[0] != '\0' ? command_ok(c, 3, with_user, why)
                                : command_ok(c, 2, without_user, why);
    }
    return ok && (a->database == 0 || command_ok(c, 2, choose, why));
}

redisContext *redis_open(const struct redis_address *a, uint32_t timeout_ms, struct err_text *why) {
    struct timeval timeout = {.tv_sec = timeout_ms / 1000,
                              .tv_usec = (suseconds_t)(timeout_ms % 1000) * 1000};
    redisContext *c = a->path[0] != '\0' ? redisConnectUnixWithTimeout(a->path, timeout)
                                         : redisConnectWithTimeout(a->host, a->port, timeout);
    if (c == NULL) {
        (void)err_set(why, ERR_NO_MEMORY, "no memory for a connection");
        return NULL;
    }
    if (c->err != 0) {
        (void)err_set(why, ERR_AWAY, "connect: %s", c->errstr);
    } else if (redisSetTimeout(c, timeout) == REDIS_OK && log_in(c, a, why)) {
        return c;
    }
    redisFree(c);
    return NULL;
}

redisContext *redis_subscribe(const struct redis_address *a, uint32_t timeout_ms,
                              struct err_text *why) {
    redisContext *c = redis_open(a, timeout_ms, why);
    const char *subscribe[] = {"SUBSCRIBE", REDIS_CHANNEL};
    if (c != NULL && !command_ok(c, 2, subscribe, why)) {
        redisFree(c);
        c = NULL;
    }
    if (c != NULL) {
        c->flags &= ~REDIS_BLOCK; /* from now on it is only read when poll(2) says so */
    }
    return c;
}

bool redis_message(redisContext *c, char *text, size_t room, bool *failed) {
    *failed = false;
    for (;;) {
        void *reply = NULL;
        if (redisGetReplyFromReader(c, &reply) != REDIS_OK) {
            *failed = true;
            return false;
        }
        if (reply == NULL) {
            return false;
        }
        redisReply *r = reply;
        bool message = r->type == REDIS_REPLY_ARRAY && r->elements == 3 &&
                       r->element[0]->type == REDIS_REPLY_STRING &&
                       strcmp(r->element[0]->str, "message") == 0 &&
                       r->element[2]->type == REDIS_REPLY_STRING;
        if (message) {
            (void)snprintf(text, room, "%s", r->element[2]->str);
        }
        freeReplyObject(r);
        if (message) {
            return true;
        }
    }
}

bool redis_int(const redisReply *r, int64_t *value) {
    if (r->type == REDIS_REPLY_INTEGER) {
        *value = r->integer;
        return true;
    }
    if (r->type != REDIS_REPLY_STRING) {
        return false;
    }
    char *end = NULL;
    errno = 0;
    long long n = strtoll(r->str, &end, 10);
    if (errno != 0 || end == r->str || *end != '\0') {
        return false;
    }
    *value = n;
    return true;
}

struct redisContext *registry_connect(const char *url, uint32_t timeout_ms, struct err_text *why) {
    struct redis_address address;
    return redis_address_parse(&address, url, why) == ERR_OK ? redis_open(&address, timeout_ms, why)
                                                             : NULL;
}
