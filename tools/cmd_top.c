/* cmd_top.c - `lorry top`: what a group's workers do now, from Redis, Kafka and /metrics. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/clock.h"
#include "tools/broker.h"
#include "tools/http.h"
#include "tools/json.h"
#include "tools/redis.h"
#include "tools/tool.h"
#include "tools/top.h"

enum {
    URLS_MAX = 64,
    INTERVAL_S = 2,
    INTERVAL_S_MAX = 3600,
    HEARD_OF_MS = 30000, /* of an older heartbeat the hash is gone, too */
    HTTP_MS = 2000,
    KAFKA_MS = 2000,
    FIRST_LOOK_MS = 1000, /* between the two looks that a rate needs */
    TICK_MS = 50,
    COLUMNS = 80,
    ROWS = 24,
};
_Static_assert((int)TOP_FIELD_BYTES == (int)REDIS_VALUE_BYTES, "redis_get() fills the fields");
_Static_assert((int)TOP_NAME_BYTES >= (int)REDIS_MEMBER_BYTES, "a worker's id fits");

static const char *const own_flags[] = {"--url=", "--interval=", "--once", "--json", NULL};

static const char help[] =
    "Shows the workers of kafka.group, and the jobs topics' queue: the records that the group has\n"
    "not committed, thus those that wait on Kafka, in workers or run. The workers tell Redis "
    "every\n"
    "two seconds what they do; those that --url names are asked themselves, and then tell more:\n"
    "how their pools are used (in percent of the pages; adapters that a step reads, in the mean)\n"
    "and their adapters, the busiest first. An adapter is resident, loading, stored (in the host\n"
    "store) or away; ms is the mean time of a load; `other` is the sum of those that have no "
    "figures\n"
    "of their own (metrics.adapters).\n"
    "\n"
    "  --url URLS       workers to ask, separated by commas: http://host:9470 or host:9470\n"
    "  --interval S     seconds between two looks; 2 if not given\n"
    "  --once           look once and print; so it is too where stdout is no terminal\n"
    "  --json           an object for each look; until interrupted, or with --once a single one\n"
    "\n"
    "Ctrl-C ends it. Exit code 5: neither a worker nor the broker was found.\n"
    "\n"
    "  lorry top\n"
    "  lorry top --url gpu1:9470,gpu2:9470\n"
    "  lorry top --once --json | jq .queue\n";

struct top {
    const struct tool *tool;
    struct http_url *urls; /* [url_count], owned */
    struct top_sample samples[URLS_MAX];
    uint32_t url_count;
    redisContext *redis; /* NULL while it is away */
    rd_kafka_t *rk;
    struct top_state state;
};

/* ---- looking ------------------------------------------------------------------------------ */

static enum err ask_workers(struct top *t, struct err_text *why) {
    static char ids[TOP_WORKERS_MAX][REDIS_MEMBER_BYTES];
    const struct config *c = t->tool->config;
    char key[REDIS_KEY_BYTES];
    uint32_t count = 0;
    enum err e = t->redis != NULL ? ERR_OK : redis_reach(&t->redis, c, why);
    if (e == ERR_OK) {
        (void)snprintf(key, sizeof key, "lorry:workers:%s", c->kafka_group);
        e = redis_members(t->redis, key, t->state.now_ms - HEARD_OF_MS, TOP_WORKERS_MAX, ids,
                          &count, why);
    }
    for (uint32_t i = 0; i < count && e == ERR_OK; i++) {
        char values[TOP_FIELDS][TOP_FIELD_BYTES];
        (void)snprintf(key, sizeof key, "lorry:worker:%.*s", REDIS_MEMBER_BYTES - 1, ids[i]);
        e = redis_get(t->redis, key, top_fields, TOP_FIELDS, values, why);
        if (e == ERR_OK && values[0][0] != '\0') {
            top_add_heartbeat(&t->state, ids[i], values);
        }
    }
    return e;
}

static void look_at_redis(struct top *t) {
    struct err_text why = {0};
    if (t->tool->config->redis_url[0] != '\0' && ask_workers(t, &why) != ERR_OK) {
        top_problem(&t->state, "workers are not known: %s", why.message);
        redisFree(t->redis);
        t->redis = NULL;
    }
}

static void look_at_urls(struct top *t) {
    for (uint32_t i = 0; i < t->url_count; i++) {
        struct err_text why = {0};
        char *text = NULL;
        if (http_get(&t->urls[i], HTTP_MS, &text, &why) != ERR_OK) {
            top_problem(&t->state, "%s", why.message);
        } else if (!top_add_metrics(&t->state, t->urls[i].where, text, clock_mono_us(),
                                    &t->samples[i])) {
            top_problem(&t->state, "%s: not the metrics of a worker", t->urls[i].where);
        }
        free(text);
    }
}

static enum err look_at_topics(struct top *t, struct err_text *why) {
    const struct config *c = t->tool->config;
    const struct rd_kafka_metadata *metadata = NULL;
    enum err e = broker_wait(t->rk, c, KAFKA_MS, &metadata, why);
    for (uint32_t i = 0; e == ERR_OK && i < c->kafka_jobs.count && i < TOP_TOPICS_MAX; i++) {
        struct top_topic *topic = &t->state.topics[t->state.topic_count++];
        *topic = (struct top_topic){.lag = -1};
        (void)snprintf(topic->name, sizeof topic->name, "%s", c->kafka_jobs.items[i]);
        topic->partitions = broker_partitions(metadata, topic->name);
        if (topic->partitions == 0) {
            struct err_text missing = {0};
            (void)broker_missing(topic->name, &missing);
            top_problem(&t->state, "%s", missing.message);
        } else {
            e = broker_lag(t->rk, c, topic->name, topic->partitions, &topic->lag, why);
        }
    }
    if (metadata != NULL) {
        rd_kafka_metadata_destroy(metadata);
    }
    return e;
}

/* One look at everything. */
static void look(struct top *t) {
    struct err_text why = {0};
    top_begin(&t->state, clock_wall_ms());
    look_at_redis(t);
    look_at_urls(t);
    if (look_at_topics(t, &why) != ERR_OK) {
        top_problem(&t->state, "the queue is not known: %s", why.message);
    }
    top_sort(&t->state);
}

/* ---- showing ------------------------------------------------------------------------------ */

/* Whole lines over the old ones, so that nothing flickers. */
static void show_screen(const struct top *t) {
    struct winsize size = {0};
    bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 && size.ws_row > 0;
    (void)fputs("\033[H", stdout);
    /* the last line stays free: a newline there would scroll */
    top_print(stdout, &t->state, known ? size.ws_col : COLUMNS, known ? size.ws_row - 1 : ROWS,
              "\033[K\n");
    (void)fputs("\033[J", stdout);
    (void)fflush(stdout);
}

static void pause_ms(int64_t ms) {
    int64_t until_us = clock_mono_us() + ms * 1000;
    while (!tool_interrupted() && clock_mono_us() < until_us) {
        clock_sleep_ms(TICK_MS);
    }
}

static int run_once(struct top *t, bool json) {
    look(t);
    if (t->url_count > 0) { /* their rates need two looks */
        pause_ms(FIRST_LOOK_MS);
        look(t);
    }
    if (json) {
        json_line(stdout, top_json(&t->state));
    } else {
        top_print(stdout, &t->state, COLUMNS, INT32_MAX, "\n");
    }
    return t->state.worker_count == 0 && t->state.topic_count == 0 ? EXIT_BROKER : EXIT_DONE;
}

static int run_live(struct top *t, bool json, int64_t interval_ms) {
    if (!json) { /* the other screen, without a cursor */
        (void)fputs("\033[?1049h\033[?25l", stdout);
    }
    while (!tool_interrupted() && ferror(stdout) == 0) {
        look(t);
        if (json) {
            json_line(stdout, top_json(&t->state));
        } else {
            show_screen(t);
        }
        pause_ms(interval_ms);
    }
    if (!json) {
        (void)fputs("\033[?25h\033[?1049l", stdout);
        (void)fflush(stdout);
    }
    return EXIT_DONE;
}

/* ---- the command -------------------------------------------------------------------------- */

static enum err read_urls(struct top *t, struct err_text *why) {
    const char *list = tool_flag(t->tool, "--url");
    enum err e = ERR_OK;
    t->urls = calloc(URLS_MAX, sizeof *t->urls);
    if (t->urls == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for the URLs");
    }
    while (list != NULL && *list != '\0' && e == ERR_OK) {
        char one[2 * HTTP_WHERE_BYTES];
        size_t bytes = strcspn(list, ",");
        if (t->url_count == URLS_MAX || bytes >= sizeof one) {
            return err_set(why, ERR_BAD_CONFIG, "--url takes at most %d URLs of 500 bytes",
                           URLS_MAX);
        }
        memcpy(one, list, bytes);
        one[bytes] = '\0';
        e = http_url_parse(&t->urls[t->url_count++], one, why);
        list += bytes + (list[bytes] == ',' ? 1 : 0);
    }
    return e;
}

static enum err open_all(struct top *t, int64_t *interval_s, struct err_text *why) {
    const char *interval = tool_flag(t->tool, "--interval");
    const struct broker_property extra[] = {{"group.id", t->tool->config->kafka_group},
                                            {NULL, NULL}}; /* it never joins: nothing moves */
    const struct broker_options options = {.type = RD_KAFKA_CONSUMER, .extra = extra};
    enum err e = interval == NULL
                     ? ERR_OK
                     : tool_int("--interval", interval, 1, INTERVAL_S_MAX, interval_s, why);
    if (e == ERR_OK) {
        e = read_urls(t, why);
    }
    return e == ERR_OK ? broker_open(&t->rk, t->tool->config, &options, why) : e;
}

static int run(const struct tool *tool) {
    struct err_text why = {0};
    int64_t interval_s = INTERVAL_S;
    bool json = tool_flag(tool, "--json") != NULL;
    bool once = tool_flag(tool, "--once") != NULL || (!json && isatty(STDOUT_FILENO) == 0);
    if (tool->argument_count != 0) {
        return tool_usage(tool, "top takes no argument, but found '%s'", tool->arguments[0]);
    }
    struct top *t = calloc(1, sizeof *t);
    if (t == NULL) {
        enum err none = err_set(&why, ERR_NO_MEMORY, "no memory for the workers");
        return tool_fail(none, &why);
    }
    t->tool = tool;
    tool_catch_interrupts();
    enum err e = open_all(t, &interval_s, &why);
    int code = e != ERR_OK ? tool_fail(e, &why)
               : once      ? run_once(t, json)
                           : run_live(t, json, interval_s * 1000);
    redisFree(t->redis);
    if (t->rk != NULL) {
        rd_kafka_destroy(t->rk);
    }
    for (uint32_t i = 0; i < t->url_count; i++) {
        top_sample_free(&t->samples[i]);
    }
    free(t->urls);
    free(t);
    return code;
}

const struct command cmd_top = {
    .name = "top",
    .arguments = "[--url URLS] [--interval S] [--once] [--json]",
    .summary = "what the workers do now, and the queue",
    .help = help,
    .own_flags = own_flags,
    .run = run,
};
