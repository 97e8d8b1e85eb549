/* cmd_cancel.c - `lorry cancel` and `lorry deadline`: a word to whichever worker has the job. */
#include <inttypes.h>
#include <string.h>

#include "base/clock.h"
#include "tools/redis.h"
#include "tools/tool.h"

enum { ID_BYTES_MAX = 400 };

static const char *const own_flags[] = {NULL};

static const char cancel_help[] =
    "Tells the workers, through Redis, to stop jobs. A job that runs ends within two steps with a\n"
    "final `cancelled` that keeps the text so far; one that waits never runs. One that is still "
    "on\n"
    "Kafka is cancelled when a worker takes it, within 7 days. A job that has ended stays as it "
    "is.\n"
    "\n"
    "  lorry cancel 01JD6Z8V4T3R5Y7W9X2B4N6M8K/0 01JD6Z8V4T3R5Y7W9X2B4N6M8K/1\n";

static const char deadline_help[] =
    "Sets the deadline of a job through Redis; it wins over the job's own. A job that misses its\n"
    "deadline ends with a final `expired`. WHEN is a Unix time in milliseconds, or +SECONDS from\n"
    "now.\n"
    "\n"
    "  lorry deadline 01JD6Z8V4T3R5Y7W9X2B4N6M8K/0 +60\n"
    "  lorry deadline 01JD6Z8V4T3R5Y7W9X2B4N6M8K/0 1767225600000\n";

/* HSET, EXPIRE, PUBLISH: in this order, so that who hears of it finds it. */
static enum err tell_job(redisContext *r, const char *id, const char *field, const char *value,
                         int64_t *listeners, struct err_text *why) {
    char key[REDIS_KEY_BYTES];
    if (id[0] == '\0' || strlen(id) > ID_BYTES_MAX) {
        return err_set(why, ERR_BAD_CONFIG, "'%.64s' is no id of a job", id);
    }
    (void)snprintf(key, sizeof key, "lorry:job:%s", id);
    enum err e = redis_set(r, key, field, value, why);
    if (e == ERR_OK) {
        e = redis_expire(r, key, REDIS_JOB_EXPIRE_S, why);
    }
    return e == ERR_OK ? redis_tell(r, "job", id, listeners, why) : e;
}

static void say_listeners(int64_t listeners) {
    if (listeners == 0) {
        tool_note("no worker listens now; the one that takes the job will know");
    }
}

static int run_cancel(const struct tool *t) {
    struct err_text why = {0};
    redisContext *r = NULL;
    int64_t listeners = 0;
    if (t->argument_count < 1) {
        return tool_usage(t, "cancel takes the ids of jobs");
    }
    enum err e = redis_reach(&r, t->config, &why);
    for (int i = 0; i < t->argument_count && e == ERR_OK; i++) {
        e = tell_job(r, t->arguments[i], "cancel", "1", &listeners, &why);
        if (e == ERR_OK) {
            (void)printf("cancel %s\n", t->arguments[i]);
        }
    }
    if (e == ERR_OK) {
        say_listeners(listeners);
    }
    redisFree(r);
    return e == ERR_OK ? EXIT_DONE : tool_fail(e, &why);
}

static enum err read_when(const char *text, int64_t now_ms, int64_t *deadline_ms,
                          struct err_text *why) {
    if (text[0] != '+') {
        return tool_int("WHEN", text, 0, INT64_C(1) << 52, deadline_ms, why);
    }
    int64_t seconds = 0;
    enum err e = tool_int("+SECONDS", text + 1, 0, INT64_C(1) << 40, &seconds, why);
    if (e == ERR_OK) {
        *deadline_ms = now_ms + seconds * 1000;
    }
    return e;
}

static int run_deadline(const struct tool *t) {
    struct err_text why = {0};
    redisContext *r = NULL;
    int64_t listeners = 0;
    int64_t deadline_ms = 0;
    int64_t now_ms = clock_wall_ms();
    char value[24];
    if (t->argument_count != 2) {
        return tool_usage(t, "deadline takes the id of a job, and when");
    }
    enum err e = read_when(t->arguments[1], now_ms, &deadline_ms, &why);
    if (e == ERR_OK) {
        e = redis_reach(&r, t->config, &why);
    }
    if (e == ERR_OK) {
        (void)snprintf(value, sizeof value, "%" PRId64, deadline_ms);
        e = tell_job(r, t->arguments[0], "deadline_ms", value, &listeners, &why);
    }
    if (e == ERR_OK) {
        (void)printf("deadline %s %" PRId64 "\n", t->arguments[0], deadline_ms);
        if (deadline_ms <= now_ms) {
            tool_note("that is in the past: the job expires at once");
        }
        say_listeners(listeners);
    }
    redisFree(r);
    return e == ERR_OK ? EXIT_DONE : tool_fail(e, &why);
}

const struct command cmd_cancel = {
    .name = "cancel",
    .arguments = "JOB…",
    .summary = "stop jobs, running or not",
    .help = cancel_help,
    .own_flags = own_flags,
    .run = run_cancel,
};

const struct command cmd_deadline = {
    .name = "deadline",
    .arguments = "JOB MS|+SECONDS",
    .summary = "set a job's deadline from outside",
    .help = deadline_help,
    .own_flags = own_flags,
    .run = run_deadline,
};
