#include "tools/broker.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "tools/tool.h"
#include "worker/source.h"

enum { METADATA_MS = 1000, LAG_MS = 3000, SAY_AFTER_US = 2000000 };

/* ---- clients ------------------------------------------------------------------------------ */

static void log_client(const rd_kafka_t *rk, int level, const char *facility, const char *text) {
    char quoted[LOG_LINE_BYTES / 2];
    (void)rk;
    if (strcmp(facility, "CONFWARN") == 0 && strstr(text, "partitioner") != NULL) {
        return; /* every client of ours has it, and consumers say that they need none */
    }
    log_line(level <= 4   ? LOG_WARN
             : level <= 6 ? LOG_INFO
                          : LOG_DEBUG,
             "kafka", "client facility=%s text=%s", facility,
             log_quote(quoted, sizeof quoted, text));
}

enum err broker_open(rd_kafka_t **out, const struct config *c, const struct broker_options *options,
                     struct err_text *why) {
    char text[256] = "";
    const struct broker_property *extra = options->extra;
    rd_kafka_conf_t *conf = source_kafka_conf(c, why);
    if (conf == NULL) {
        return ERR_BAD_CONFIG;
    }
    rd_kafka_conf_set_log_cb(conf, log_client);
    for (; extra != NULL && extra->name != NULL; extra++) {
        if (rd_kafka_conf_set(conf, extra->name, extra->value, text, sizeof text) !=
            RD_KAFKA_CONF_OK) {
            rd_kafka_conf_destroy(conf);
            return err_set_field(why, ERR_BAD_CONFIG, "kafka.properties", "%s: %s", extra->name,
                                 text);
        }
    }
    if (options->delivered != NULL) {
        rd_kafka_conf_set_dr_msg_cb(conf, options->delivered);
        rd_kafka_conf_set_opaque(conf, options->opaque);
    }
    rd_kafka_t *rk = rd_kafka_new(options->type, conf, text, sizeof text);
    if (rk == NULL) {
        rd_kafka_conf_destroy(conf); /* still ours */
        return err_set_field(why, ERR_BAD_CONFIG, "kafka.properties", "%s", text);
    }
    *out = rk;
    return ERR_OK;
}

enum err broker_wait(rd_kafka_t *rk, const struct config *c, int64_t timeout_ms,
                     const struct rd_kafka_metadata **metadata, struct err_text *why) {
    int64_t begin_us = clock_mono_us();
    bool said = false;
    for (;;) {
        int64_t left_ms = timeout_ms - (clock_mono_us() - begin_us) / 1000;
        int wait_ms = left_ms > METADATA_MS ? METADATA_MS : left_ms > 100 ? (int)left_ms : 100;
        rd_kafka_resp_err_t err = rd_kafka_metadata(rk, 1, NULL, metadata, wait_ms);
        if (err == RD_KAFKA_RESP_ERR_NO_ERROR) {
            return ERR_OK;
        }
        int64_t now_us = clock_mono_us();
        if (tool_interrupted() || now_us - begin_us >= timeout_ms * 1000) {
            return err_set_field(why, ERR_BROKER, "kafka.brokers",
                                 "no broker answers at %s (kafka.brokers): %s", c->kafka_brokers,
                                 rd_kafka_err2str(err));
        }
        if (!said && now_us - begin_us >= SAY_AFTER_US) {
            said = true;
            tool_note("waiting for a broker at %s", c->kafka_brokers);
        }
        clock_sleep_ms(50);
    }
}

uint32_t broker_partitions(const struct rd_kafka_metadata *metadata, const char *topic) {
    for (int i = 0; i < metadata->topic_cnt; i++) {
        const rd_kafka_metadata_topic_t *t = &metadata->topics[i];
        if (strcmp(t->topic, topic) == 0 && t->err == RD_KAFKA_RESP_ERR_NO_ERROR) {
            return t->partition_cnt > 0 ? (uint32_t)t->partition_cnt : 0;
        }
    }
    return 0;
}

enum err broker_missing(const char *topic, struct err_text *why) {
    return err_set(why, ERR_BAD_CONFIG, "topic %s does not exist; `lorry topics create` makes it",
                   topic);
}

/* A partition of a topic that was just made, or that moves, has no leader for a moment. */
static bool passes_by_itself(rd_kafka_resp_err_t err) {
    return err == RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION ||
           err == RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE ||
           err == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
}

enum err broker_offsets(rd_kafka_t *rk, const char *topic, uint32_t partition, int64_t *low,
                        int64_t *high, struct err_text *why) {
    int64_t until_us = clock_mono_us() + (int64_t)BROKER_ANSWER_MS * 1000;
    for (;;) {
        rd_kafka_resp_err_t err = rd_kafka_query_watermark_offsets(rk, topic, (int32_t)partition,
                                                                   low, high, BROKER_ANSWER_MS);
        if (err == RD_KAFKA_RESP_ERR_NO_ERROR) {
            return ERR_OK;
        }
        if (!passes_by_itself(err) || clock_mono_us() >= until_us) {
            return err_set(why, ERR_BROKER, "offsets of %s, partition %u: %s", topic, partition,
                           rd_kafka_err2str(err));
        }
        clock_sleep_ms(50);
    }
}

enum err broker_lag(rd_kafka_t *rk, const struct config *c, const char *topic, uint32_t partitions,
                    int64_t *lag, struct err_text *why) {
    bool earliest = strcmp(c->source_start, "earliest") == 0;
    enum err e = ERR_OK;
    int64_t sum = 0;
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new((int)partitions);
    for (uint32_t i = 0; i < partitions; i++) {
        (void)rd_kafka_topic_partition_list_add(list, topic, (int32_t)i);
    }
    rd_kafka_resp_err_t err = rd_kafka_committed(rk, list, LAG_MS);
    if (err != RD_KAFKA_RESP_ERR_NO_ERROR) {
        e = err_set(why, ERR_BROKER, "offsets of group %s: %s", c->kafka_group,
                    rd_kafka_err2str(err));
    }
    for (int i = 0; i < list->cnt && e == ERR_OK; i++) {
        int64_t committed = list->elems[i].offset;
        int64_t low = 0;
        int64_t high = 0;
        e = broker_offsets(rk, topic, (uint32_t)i, &low, &high, why);
        int64_t from = committed >= 0 ? committed : earliest ? low : high;
        sum += e == ERR_OK && high > from ? high - from : 0;
    }
    rd_kafka_topic_partition_list_destroy(list);
    if (e == ERR_OK) {
        *lag = sum;
    }
    return e;
}

static bool find_entry(const rd_kafka_ConfigResource_t *resource, const char *name, char *value,
                       size_t room) {
    size_t count = 0;
    const rd_kafka_ConfigEntry_t **entries = rd_kafka_ConfigResource_configs(resource, &count);
    for (size_t i = 0; i < count; i++) {
        const char *text = rd_kafka_ConfigEntry_value(entries[i]);
        if (text != NULL && strcmp(rd_kafka_ConfigEntry_name(entries[i]), name) == 0) {
            (void)snprintf(value, room, "%s", text);
            return true;
        }
    }
    return false;
}

bool broker_topic_config(rd_kafka_t *rk, const char *topic, const char *name, char *value,
                         size_t room) {
    bool found = false;
    rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
    rd_kafka_ConfigResource_t *ask = rd_kafka_ConfigResource_new(RD_KAFKA_RESOURCE_TOPIC, topic);
    rd_kafka_DescribeConfigs(rk, &ask, 1, NULL, queue);
    rd_kafka_event_t *event = rd_kafka_queue_poll(queue, BROKER_ANSWER_MS);
    const rd_kafka_DescribeConfigs_result_t *result =
        event != NULL ? rd_kafka_event_DescribeConfigs_result(event) : NULL;
    if (result != NULL && rd_kafka_event_error(event) == RD_KAFKA_RESP_ERR_NO_ERROR) {
        size_t count = 0;
        const rd_kafka_ConfigResource_t **resources =
            rd_kafka_DescribeConfigs_result_resources(result, &count);
        found = count == 1 && find_entry(resources[0], name, value, room);
    }
    if (event != NULL) {
        rd_kafka_event_destroy(event);
    }
    rd_kafka_ConfigResource_destroy(ask);
    rd_kafka_queue_destroy(queue);
    return found;
}

/* ---- reading ------------------------------------------------------------------------------ */

enum err reader_open(struct reader *r, const struct config *c,
                     const char *const topics[READER_TOPICS_MAX], struct err_text *why) {
    static const struct broker_property extra[] = {
        {"enable.auto.commit", "false"},
        {"auto.offset.reset", "error"},          /* what is gone is an error, never skipped */
        {"queued.max.messages.kbytes", "16384"}, /* a partition; when full it rests for a second */
        {"fetch.wait.max.ms", "100"},
        {NULL, NULL},
    };
    *r = (struct reader){0};
    const struct broker_options options = {.type = RD_KAFKA_CONSUMER, .extra = extra};
    enum err e = broker_open(&r->rk, c, &options, why);
    if (e != ERR_OK) {
        return e;
    }
    r->queue = rd_kafka_queue_new(r->rk);
    for (uint32_t i = 0; i < READER_TOPICS_MAX && topics[i] != NULL; i++) {
        r->topics[i] = rd_kafka_topic_new(r->rk, topics[i], NULL);
        if (r->topics[i] == NULL) {
            e = err_set(why, ERR_BAD_CONFIG, "topic %s: %s", topics[i],
                        rd_kafka_err2str(rd_kafka_last_error()));
            reader_close(r);
            return e;
        }
    }
    return ERR_OK;
}

enum err reader_start(struct reader *r, uint32_t topic, uint32_t partition, int64_t offset,
                      struct err_text *why) {
    CHECK(topic < READER_TOPICS_MAX && r->topics[topic] != NULL);
    struct reader_part *parts = realloc(r->parts, (r->part_count + 1) * sizeof *parts);
    if (parts == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for the partitions");
    }
    r->parts = parts;
    if (rd_kafka_consume_start_queue(r->topics[topic], (int32_t)partition, offset, r->queue) != 0) {
        return err_set(why, ERR_BROKER, "read %s, partition %u: %s",
                       rd_kafka_topic_name(r->topics[topic]), partition,
                       rd_kafka_err2str(rd_kafka_last_error()));
    }
    parts[r->part_count++] = (struct reader_part){topic, (int32_t)partition};
    return ERR_OK;
}

enum err reader_next(struct reader *r, int timeout_ms, rd_kafka_message_t **message,
                     struct err_text *why) {
    *message = NULL;
    rd_kafka_message_t *m = rd_kafka_consume_queue(r->queue, timeout_ms);
    if (m == NULL) {
        return ERR_OK;
    }
    if (m->err == RD_KAFKA_RESP_ERR_NO_ERROR) {
        *message = m;
        return ERR_OK;
    }
    /* a broker that is away comes back; a topic or an offset that is gone does not */
    bool passes =
        m->err == RD_KAFKA_RESP_ERR__PARTITION_EOF || m->err == RD_KAFKA_RESP_ERR__TRANSPORT ||
        m->err == RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN || m->err == RD_KAFKA_RESP_ERR__TIMED_OUT ||
        m->err == RD_KAFKA_RESP_ERR__RESOLVE || m->err == RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE ||
        m->err == RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION;
    if (!passes) {
        (void)err_set(why, ERR_BROKER, "reading %s: %s",
                      m->rkt != NULL ? rd_kafka_topic_name(m->rkt) : "records",
                      rd_kafka_message_errstr(m));
    }
    rd_kafka_message_destroy(m);
    return passes ? ERR_OK : ERR_BROKER;
}

void reader_close(struct reader *r) {
    for (uint32_t i = 0; i < r->part_count; i++) {
        (void)rd_kafka_consume_stop(r->topics[r->parts[i].topic], r->parts[i].partition);
    }
    for (uint32_t i = 0; i < READER_TOPICS_MAX; i++) {
        if (r->topics[i] != NULL) {
            rd_kafka_topic_destroy(r->topics[i]);
        }
    }
    if (r->queue != NULL) {
        rd_kafka_queue_destroy(r->queue);
    }
    if (r->rk != NULL) {
        rd_kafka_destroy(r->rk);
    }
    free(r->parts);
    *r = (struct reader){0};
}
