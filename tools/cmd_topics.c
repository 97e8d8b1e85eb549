/* cmd_topics.c - `lorry topics create`. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tools/broker.h"
#include "tools/tool.h"

enum {
    CREATE_MS = 30000,
    SETTLE_MS = 10000,              /* until all brokers know of a new topic */
    DEAD_HEADERS_BYTES = 2 << 20,   /* a dead letter is its job and headers: always more */
    RECORD_BYTES_DEFAULT = 1048588, /* Kafka's max.message.bytes */
    HOUR_MS = 3600 * 1000,
};

static const char *const own_flags[] = {NULL};

static const char help[] =
    "Makes the topics that the configuration names, with kafka.partitions and kafka.replication:\n"
    "\n"
    "  kafka.jobs      jobs, keyed by adapter; kept 7 days\n"
    "  kafka.frames    token streams, keyed by job; kept 1 day\n"
    "  kafka.results   finals, keyed by job; compacted, kept 7 days\n"
    "  kafka.dead      dead letters; kept 30 days; records may be larger than the jobs topics'\n"
    "\n"
    "A topic that exists stays as it is; that it has another number of partitions is a difference\n"
    "(exit code 1). Workers and tools make no topics by themselves.\n"
    "\n"
    "  lorry topics create\n"
    "  lorry topics create --kafka.brokers kafka1:9092 --kafka.partitions 48 --kafka.replication "
    "3\n";

struct plan {
    const char *name, *policy;
    int64_t retention_ms;
    int64_t record_bytes_max; /* 0 = the broker's default */
};

static bool set_config(rd_kafka_NewTopic_t *topic, const char *name, int64_t value) {
    char text[24];
    (void)snprintf(text, sizeof text, "%" PRId64, value);
    return rd_kafka_NewTopic_set_config(topic, name, text) == RD_KAFKA_RESP_ERR_NO_ERROR;
}

/* Sends the request; the answer's verdict on the topic. */
static enum err request(rd_kafka_t *rk, rd_kafka_NewTopic_t *topic, bool *existed,
                        struct err_text *why) {
    enum err e = ERR_OK;
    char text[256] = "";
    rd_kafka_AdminOptions_t *options =
        rd_kafka_AdminOptions_new(rk, RD_KAFKA_ADMIN_OP_CREATETOPICS);
    rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
    (void)rd_kafka_AdminOptions_set_operation_timeout(options, CREATE_MS, text, sizeof text);
    rd_kafka_CreateTopics(rk, &topic, 1, options, queue);
    rd_kafka_event_t *event = rd_kafka_queue_poll(queue, CREATE_MS + BROKER_ANSWER_MS);
    if (event == NULL) {
        e = err_set(why, ERR_BROKER, "the broker does not answer");
    } else if (rd_kafka_event_error(event) != RD_KAFKA_RESP_ERR_NO_ERROR) {
        e = err_set(why, ERR_BROKER, "%s", rd_kafka_event_error_string(event));
    } else {
        size_t count = 0;
        const rd_kafka_topic_result_t **results =
            rd_kafka_CreateTopics_result_topics(rd_kafka_event_CreateTopics_result(event), &count);
        rd_kafka_resp_err_t err =
            count == 1 ? rd_kafka_topic_result_error(results[0]) : RD_KAFKA_RESP_ERR__FAIL;
        *existed = err == RD_KAFKA_RESP_ERR_TOPIC_ALREADY_EXISTS;
        if (err != RD_KAFKA_RESP_ERR_NO_ERROR && !*existed) {
            const char *said = count == 1 ? rd_kafka_topic_result_error_string(results[0]) : NULL;
            e = err_set(why, ERR_BROKER, "%s", said != NULL ? said : rd_kafka_err2str(err));
        }
    }
    if (event != NULL) {
        rd_kafka_event_destroy(event);
    }
    rd_kafka_queue_destroy(queue);
    rd_kafka_AdminOptions_destroy(options);
    return e;
}

static enum err create(rd_kafka_t *rk, const struct config *c, const struct plan *p, bool *existed,
                       struct err_text *why) {
    char text[256] = "";
    struct err_text cause = {0};
    rd_kafka_NewTopic_t *topic = rd_kafka_NewTopic_new(
        p->name, (int)c->kafka_partitions, (int)c->kafka_replication, text, sizeof text);
    if (topic == NULL) {
        return err_set(why, ERR_BAD_CONFIG, "topic %s: %s", p->name, text);
    }
    bool set =
        rd_kafka_NewTopic_set_config(topic, "cleanup.policy", p->policy) ==
            RD_KAFKA_RESP_ERR_NO_ERROR &&
        set_config(topic, "retention.ms", p->retention_ms) &&
        (p->record_bytes_max == 0 || set_config(topic, "max.message.bytes", p->record_bytes_max));
    enum err e = set ? request(rk, topic, existed, &cause)
                     : err_set(&cause, ERR_BAD_CONFIG, "its configuration is not accepted");
    rd_kafka_NewTopic_destroy(topic);
    return e == ERR_OK ? e : err_set(why, e, "topic %s: %s", p->name, cause.message);
}

/* The partitions that the topic has, once its being made has got round. */
static enum err settle(rd_kafka_t *rk, const struct config *c, const char *name,
                       uint32_t *partitions, struct err_text *why) {
    int64_t until_us = clock_mono_us() + (int64_t)SETTLE_MS * 1000;
    for (;;) {
        const struct rd_kafka_metadata *metadata = NULL;
        enum err e = broker_wait(rk, c, BROKER_ANSWER_MS, &metadata, why);
        if (e != ERR_OK) {
            return e;
        }
        *partitions = broker_partitions(metadata, name);
        rd_kafka_metadata_destroy(metadata);
        if (*partitions > 0) {
            return ERR_OK;
        }
        if (clock_mono_us() > until_us) {
            return err_set(why, ERR_BROKER, "topic %s was made, but no broker shows it", name);
        }
        clock_sleep_ms(50);
    }
}

static enum err make(rd_kafka_t *rk, const struct config *c, const struct plan *p,
                     uint32_t *differences, struct err_text *why) {
    bool existed = false;
    uint32_t partitions = 0;
    enum err e = create(rk, c, p, &existed, why);
    if (e == ERR_OK) {
        e = settle(rk, c, p->name, &partitions, why);
    }
    if (e != ERR_OK) {
        return e;
    }
    bool differs = (int64_t)partitions != c->kafka_partitions;
    *differences += differs;
    (void)printf(
        "%s%s%s %s: %u partitions", tool_colour(stdout, differs ? TOOL_YELLOW : TOOL_GREEN),
        existed ? "exists" : "created", tool_colour(stdout, TOOL_PLAIN), p->name, partitions);
    if (differs) {
        (void)printf(", kafka.partitions is %" PRId64, c->kafka_partitions);
    }
    (void)putchar('\n');
    return ERR_OK;
}

/* What a dead letter may need: the largest record that a jobs topic takes, and headers. */
static int64_t dead_record_bytes(rd_kafka_t *rk, const struct config *c) {
    int64_t most = RECORD_BYTES_DEFAULT;
    for (uint32_t i = 0; i < c->kafka_jobs.count; i++) {
        char text[32] = "";
        if (broker_topic_config(rk, c->kafka_jobs.items[i], "max.message.bytes", text,
                                sizeof text)) {
            int64_t bytes = strtoll(text, NULL, 10);
            most = bytes > most ? bytes : most;
        }
    }
    most += DEAD_HEADERS_BYTES;
    return most < INT32_MAX ? most : INT32_MAX; /* Kafka's type */
}

static enum err make_all(rd_kafka_t *rk, const struct config *c, uint32_t *differences,
                         struct err_text *why) {
    const int64_t day_ms = INT64_C(24) * HOUR_MS;
    const struct rd_kafka_metadata *metadata = NULL;
    enum err e = broker_wait(rk, c, c->kafka_start_timeout_s * 1000, &metadata, why);
    if (metadata != NULL) {
        rd_kafka_metadata_destroy(metadata);
    }
    for (uint32_t i = 0; i < c->kafka_jobs.count && e == ERR_OK; i++) {
        const struct plan jobs = {c->kafka_jobs.items[i], "delete", 7 * day_ms, 0};
        e = make(rk, c, &jobs, differences, why);
    }
    const struct plan others[] = {
        {c->kafka_frames, "delete", day_ms, 0},
        {c->kafka_results, "compact,delete", 7 * day_ms, 0},
        {c->kafka_dead, "delete", 30 * day_ms, e == ERR_OK ? dead_record_bytes(rk, c) : 0},
    };
    for (size_t i = 0; i < sizeof others / sizeof others[0] && e == ERR_OK; i++) {
        e = make(rk, c, &others[i], differences, why);
    }
    return e;
}

static int run(const struct tool *t) {
    static const struct broker_options producer = {.type = RD_KAFKA_PRODUCER};
    struct err_text why = {0};
    uint32_t differences = 0;
    rd_kafka_t *rk = NULL;
    if (t->argument_count != 0) {
        return tool_usage(t, "topics create takes no argument, but found '%s'", t->arguments[0]);
    }
    tool_catch_interrupts();
    enum err e = broker_open(&rk, t->config, &producer, &why);
    if (e == ERR_OK) {
        e = make_all(rk, t->config, &differences, &why);
    }
    if (rk != NULL) {
        rd_kafka_destroy(rk);
    }
    if (e != ERR_OK) {
        return tool_fail(e, &why);
    }
    return differences > 0 ? EXIT_JOBS : EXIT_DONE;
}

const struct command cmd_topics_create = {
    .name = "topics create",
    .arguments = "",
    .summary = "make the topics that the configuration names",
    .help = help,
    .own_flags = own_flags,
    .run = run,
};
