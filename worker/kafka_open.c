/* kafka_open.c - configuration of librdkafka, and what must be true of the cluster before we join.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "worker/kafka_internal.h"

enum {
    METADATA_MS = 2000,
    DESCRIBE_MS = 10000,
    HEARTBEAT_MS = 3000, /* at most; and three of them in a session */
};

/* ---- configuration ------------------------------------------------------------------------ */

static enum err set(rd_kafka_conf_t *conf, const char *name, const char *value,
                    struct err_text *why) {
    char text[256] = "";
    if (rd_kafka_conf_set(conf, name, value, text, sizeof text) != RD_KAFKA_CONF_OK) {
        return err_set_field(why, ERR_BAD_CONFIG, "kafka.properties", "%s: %s", name, text);
    }
    return ERR_OK;
}

struct property {
    const char *name, *value;
};

static enum err set_all(rd_kafka_conf_t *conf, const struct property *properties, size_t count,
                        struct err_text *why) {
    enum err e = ERR_OK;
    for (size_t i = 0; e == ERR_OK && i < count; i++) {
        e = set(conf, properties[i].name, properties[i].value, why);
    }
    return e;
}

/* The user's properties; they win over what we would choose, but not over what the contract needs.
 */
static enum err set_users(rd_kafka_conf_t *conf, const struct config *config,
                          struct err_text *why) {
    enum err e = ERR_OK;
    for (uint32_t i = 0; e == ERR_OK && i < config->kafka_properties.count; i++) {
        const char *item = config->kafka_properties.items[i];
        const char *equals = strchr(item, '=');
        CHECK(equals != NULL); /* config/ has checked */
        char name[256];
        (void)snprintf(name, sizeof name, "%.*s", (int)(equals - item), item);
        e = set(conf, name, equals + 1, why);
    }
    return e;
}

static void log_client(const rd_kafka_t *rk, int level, const char *facility, const char *text) {
    char quoted[LOG_LINE_BYTES / 2];
    (void)rk;
    if (strcmp(facility, "CONFWARN") == 0 && strstr(text, "will be ignored by this") != NULL) {
        return; /* a property of the other client: both are given all */
    }
    log_line(level <= 3   ? LOG_ERROR
             : level == 4 ? LOG_WARN
             : level <= 6 ? LOG_INFO
                          : LOG_DEBUG,
             "kafka", "client facility=%s text=%s", facility,
             log_quote(quoted, sizeof quoted, text));
}

struct rd_kafka_conf_s *source_kafka_conf(const struct config *config, struct err_text *why) {
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    const struct property ours[] = {
        {"bootstrap.servers", config->kafka_brokers},
        {"client.id", "lorry"},
        {"partitioner", "murmur2_random"},
        {"allow.auto.create.topics", "false"},
    };
    rd_kafka_conf_set_log_cb(conf, log_client);
    if (set_all(conf, ours, sizeof ours / sizeof ours[0], why) != ERR_OK ||
        set_users(conf, config, why) != ERR_OK) {
        rd_kafka_conf_destroy(conf);
        return NULL;
    }
    return conf;
}

/* `wishes` are what we would choose, and give way to the user's; `needs` are the contract's. */
static rd_kafka_conf_t *client_conf(const struct config *config, const struct property *wishes,
                                    size_t wish_count, const struct property *needs,
                                    size_t need_count, struct err_text *why) {
    rd_kafka_conf_t *conf = source_kafka_conf(config, why);
    if (conf != NULL && (set_all(conf, wishes, wish_count, why) != ERR_OK ||
                         set_users(conf, config, why) != ERR_OK ||
                         set_all(conf, needs, need_count, why) != ERR_OK)) {
        rd_kafka_conf_destroy(conf);
        return NULL;
    }
    return conf;
}

static rd_kafka_t *client_new(rd_kafka_type_t type, rd_kafka_conf_t *conf, struct err_text *why) {
    char text[256] = "";
    rd_kafka_t *rk = rd_kafka_new(type, conf, text, sizeof text);
    if (rk == NULL) {
        rd_kafka_conf_destroy(conf); /* still ours */
        (void)err_set_field(why, ERR_BAD_CONFIG, "kafka.properties", "%s", text);
    }
    return rk;
}

/* `batch_bytes`: the largest batch that all our topics take. */
static enum err open_producer(struct source *s, int64_t batch_bytes, struct err_text *why) {
    char bytes[32];
    char stats[32];
    char batch[32];
    (void)snprintf(bytes, sizeof bytes, "%d", KAFKA_MESSAGE_BYTES);
    (void)snprintf(stats, sizeof stats, "%d", KAFKA_STATS_MS);
    (void)snprintf(batch, sizeof batch, "%lld", (long long)batch_bytes);
    const struct property wishes[] = {{"linger.ms", "5"}, {"batch.size", batch}};
    const struct property needs[] = {
        {"enable.idempotence", "true"}, /* order and no duplicates by retries inside a session */
        {"message.max.bytes", bytes},
        {"statistics.interval.ms", stats},
    };
    rd_kafka_conf_t *conf = client_conf(s->config, wishes, sizeof wishes / sizeof wishes[0], needs,
                                        sizeof needs / sizeof needs[0], why);
    if (conf == NULL) {
        return ERR_BAD_CONFIG;
    }
    rd_kafka_conf_set_events(conf, RD_KAFKA_EVENT_DR | RD_KAFKA_EVENT_ERROR | RD_KAFKA_EVENT_STATS);
    s->producer = client_new(RD_KAFKA_PRODUCER, conf, why);
    if (s->producer == NULL) {
        return ERR_BAD_CONFIG;
    }
    s->producer_queue = rd_kafka_queue_get_main(s->producer);
    return ERR_OK;
}

static enum err open_consumer(struct source *s, uint32_t partitions, struct err_text *why) {
    char kbytes[32];
    char session[32];
    char stats[32];
    char heartbeat[32];
    int64_t each = s->config->kafka_queue_bytes / 1024 / (partitions > 0 ? partitions : 1);
    (void)snprintf(kbytes, sizeof kbytes, "%lld", (long long)(each > 16 ? each : 16));
    (void)snprintf(session, sizeof session, "%lld", (long long)s->config->kafka_session_timeout_ms);
    (void)snprintf(stats, sizeof stats, "%d", KAFKA_STATS_MS);
    int64_t beat = s->config->kafka_session_timeout_ms / 3;
    (void)snprintf(heartbeat, sizeof heartbeat, "%lld",
                   (long long)(beat < HEARTBEAT_MS ? beat : HEARTBEAT_MS));
    const struct property wishes[] = {
        {"queued.max.messages.kbytes", kbytes}, /* counts per partition, as each has its queue */
        {"queued.min.messages", "1000"},
        {"fetch.wait.max.ms", "100"},
        {"heartbeat.interval.ms", heartbeat},
    };
    const struct property needs[] = {
        {"group.id", s->config->kafka_group},
        {"session.timeout.ms", session},
        {"enable.auto.commit", "false"}, /* acks.h decides */
        {"enable.auto.offset.store", "false"},
        {"auto.offset.reset", "error"}, /* never skip silently */
        {"statistics.interval.ms", stats},
    };
    rd_kafka_conf_t *conf = client_conf(s->config, wishes, sizeof wishes / sizeof wishes[0], needs,
                                        sizeof needs / sizeof needs[0], why);
    if (conf == NULL) {
        return ERR_BAD_CONFIG;
    }
    char strategy[128] = "";
    size_t room = sizeof strategy;
    enum err e = ERR_OK;
    if (s->config->kafka_group_instance_id[0] != '\0') {
        e = set(conf, "group.instance.id", s->config->kafka_group_instance_id, why);
    }
    (void)rd_kafka_conf_get(conf, "partition.assignment.strategy", strategy, &room);
    if (e == ERR_OK && strstr(strategy, "cooperative") != NULL) {
        e = err_set_field(why, ERR_BAD_CONFIG, "kafka.properties",
                          "partition.assignment.strategy=%s is not supported (librdkafka %s): use "
                          "range or roundrobin",
                          strategy, rd_kafka_version_str());
    }
    if (e != ERR_OK) {
        rd_kafka_conf_destroy(conf);
        return e;
    }
    rd_kafka_conf_set_events(conf, RD_KAFKA_EVENT_REBALANCE | RD_KAFKA_EVENT_ERROR |
                                       RD_KAFKA_EVENT_OFFSET_COMMIT | RD_KAFKA_EVENT_STATS |
                                       RD_KAFKA_EVENT_FETCH);
    s->consumer = client_new(RD_KAFKA_CONSUMER, conf, why);
    if (s->consumer == NULL) {
        return ERR_BAD_CONFIG;
    }
    (void)rd_kafka_poll_set_consumer(s->consumer);
    s->consumer_queue = rd_kafka_queue_get_consumer(s->consumer);
    s->commit_queue = rd_kafka_queue_new(s->consumer);
    return ERR_OK;
}

/* ---- the cluster -------------------------------------------------------------------------- */

static const rd_kafka_metadata_topic_t *metadata_find(const struct rd_kafka_metadata *m,
                                                      const char *name) {
    for (int i = 0; i < m->topic_cnt; i++) {
        if (strcmp(m->topics[i].topic, name) == 0 &&
            m->topics[i].err == RD_KAFKA_RESP_ERR_NO_ERROR && m->topics[i].partition_cnt > 0) {
            return &m->topics[i];
        }
    }
    return NULL;
}

static enum err missing(const char *option, const char *topic, struct err_text *why) {
    return err_set_field(why, ERR_BAD_CONFIG, option,
                         "topic %s does not exist; `lorry topics create` makes it", topic);
}

/* All topics are there, and jobs topics have equally many partitions, so that `range` gives the
 * partitions of one number, which hold the same adapters, to one worker. */
static enum err check_topics(const struct source *s, const struct rd_kafka_metadata *m,
                             uint32_t *partitions, struct err_text *why) {
    static const char *const options[] = {"kafka.frames", "kafka.results", "kafka.dead"};
    int each = 0;
    for (uint32_t i = 0; i < s->topic_count; i++) {
        const rd_kafka_metadata_topic_t *t = metadata_find(m, s->topics[i]);
        if (t == NULL) {
            return missing("kafka.jobs", s->topics[i], why);
        }
        if (each != 0 && each != t->partition_cnt) {
            return err_set_field(
                why, ERR_BAD_CONFIG, "kafka.jobs",
                "topic %s has %d partitions, topic %s has %d; jobs topics must have "
                "equally many",
                s->topics[0], each, s->topics[i], t->partition_cnt);
        }
        each = t->partition_cnt;
    }
    for (uint32_t i = 0; i < 3; i++) {
        if (metadata_find(m, s->outputs[i]) == NULL) {
            return missing(options[i], s->outputs[i], why);
        }
    }
    *partitions = (uint32_t)each * s->topic_count;
    return ERR_OK;
}

static enum err wait_for_broker(struct source *s, uint32_t *partitions, struct err_text *why) {
    int64_t until_us = clock_mono_us() + s->config->kafka_start_timeout_s * 1000000;
    bool said = false;
    for (;;) {
        const struct rd_kafka_metadata *m = NULL;
        rd_kafka_resp_err_t err = rd_kafka_metadata(s->producer, 1, NULL, &m, METADATA_MS);
        if (err == RD_KAFKA_RESP_ERR_NO_ERROR) {
            enum err e = check_topics(s, m, partitions, why);
            rd_kafka_metadata_destroy(m);
            return e;
        }
        if (clock_mono_us() >= until_us) {
            return err_set_field(
                why, ERR_BROKER, "kafka.brokers", "no broker answers at %s after %lld s: %s",
                s->config->kafka_brokers, (long long)s->config->kafka_start_timeout_s,
                rd_kafka_err2str(err));
        }
        if (!said) {
            said = true;
            log_warn("kafka", "waiting for the broker brokers=%s", s->config->kafka_brokers);
        }
        clock_sleep_ms(200);
    }
}

/* The value of an entry in the broker's answer. */
static bool entry_value(rd_kafka_event_t *result, const char *name, char *value, size_t room) {
    size_t count = 0;
    const rd_kafka_ConfigResource_t **resources = rd_kafka_DescribeConfigs_result_resources(
        rd_kafka_event_DescribeConfigs_result(result), &count);
    for (size_t i = 0; i < count; i++) {
        size_t entries = 0;
        const rd_kafka_ConfigEntry_t **entry =
            rd_kafka_ConfigResource_configs(resources[i], &entries);
        for (size_t k = 0; k < entries; k++) {
            const char *found = rd_kafka_ConfigEntry_value(entry[k]);
            if (strcmp(rd_kafka_ConfigEntry_name(entry[k]), name) == 0 && found != NULL) {
                (void)snprintf(value, room, "%s", found);
                return true;
            }
        }
    }
    return false;
}

/* A topic's setting into `value`; false: the broker would not say. */
static bool topic_setting(struct source *s, const char *topic, const char *name, char *value,
                          size_t room) {
    rd_kafka_queue_t *queue = rd_kafka_queue_new(s->producer);
    rd_kafka_ConfigResource_t *resource =
        rd_kafka_ConfigResource_new(RD_KAFKA_RESOURCE_TOPIC, topic);
    rd_kafka_DescribeConfigs(s->producer, &resource, 1, NULL, queue);
    rd_kafka_event_t *result = rd_kafka_queue_poll(queue, DESCRIBE_MS);
    bool known = result != NULL && rd_kafka_event_error(result) == RD_KAFKA_RESP_ERR_NO_ERROR &&
                 entry_value(result, name, value, room);
    if (!known) {
        log_warn("kafka", "setting of a topic not known topic=%s setting=%s", topic, name);
    }
    if (result != NULL) {
        rd_kafka_event_destroy(result);
    }
    rd_kafka_ConfigResource_destroy(resource);
    rd_kafka_queue_destroy(queue);
    return known;
}

/* A compacted jobs topic keyed by adapter would keep one job an adapter. */
static enum err refuse_compacted(struct source *s, struct err_text *why) {
    for (uint32_t i = 0; i < s->topic_count; i++) {
        char policy[64] = "";
        if (topic_setting(s, s->topics[i], "cleanup.policy", policy, sizeof policy) &&
            strstr(policy, "compact") != NULL) {
            return err_set_field(why, ERR_BAD_CONFIG, "kafka.jobs",
                                 "topic %s has cleanup.policy=%s, which would keep one job an "
                                 "adapter; jobs topics need delete",
                                 s->topics[i], policy);
        }
    }
    return ERR_OK;
}

static void close_producer(struct source *s) {
    rd_kafka_queue_destroy(s->producer_queue);
    rd_kafka_destroy(s->producer);
    s->producer_queue = NULL;
    s->producer = NULL;
}

/* The broker refuses a batch that is larger than its topic takes, whole: a small final would be
 * blamed for those it was sent with. So batches are made no larger than every topic takes; a record
 * that is larger by itself goes alone, and its refusal is its own. */
static enum err fit_batches(struct source *s, struct err_text *why) {
    int64_t least = KAFKA_BATCH_BYTES;
    for (uint32_t i = 0; i < 3; i++) {
        char value[32] = "";
        if (topic_setting(s, s->outputs[i], "max.message.bytes", value, sizeof value)) {
            int64_t bytes = strtoll(value, NULL, 10);
            least = bytes > 0 && bytes < least ? bytes : least;
        }
    }
    if (least == KAFKA_BATCH_BYTES) {
        return ERR_OK;
    }
    close_producer(s);
    return open_producer(s, least, why);
}

static enum err join(struct source *s, struct err_text *why) {
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new((int)s->topic_count);
    for (uint32_t i = 0; i < s->topic_count; i++) {
        (void)rd_kafka_topic_partition_list_add(list, s->topics[i], RD_KAFKA_PARTITION_UA);
    }
    rd_kafka_resp_err_t err = rd_kafka_subscribe(s->consumer, list);
    rd_kafka_topic_partition_list_destroy(list);
    if (err != RD_KAFKA_RESP_ERR_NO_ERROR) {
        return err_set_field(why, ERR_BROKER, "kafka.jobs", "subscribe: %s", rd_kafka_err2str(err));
    }
    return ERR_OK;
}

enum err kafka_open(struct source *s, const struct config *config, struct err_text *why) {
    s->config = config;
    s->topic_count = config->kafka_jobs.count;
    if (s->topic_count == 0 || s->topic_count > KAFKA_TOPICS_MAX) {
        return err_set_field(why, ERR_BAD_CONFIG, "kafka.jobs", "1 to %d topics are needed",
                             KAFKA_TOPICS_MAX);
    }
    for (uint32_t i = 0; i < s->topic_count; i++) {
        s->topics[i] = config->kafka_jobs.items[i];
    }
    s->outputs[SOURCE_FRAME] = config->kafka_frames;
    s->outputs[SOURCE_FINAL] = config->kafka_results;
    s->outputs[SOURCE_DEAD] = config->kafka_dead;
    uint32_t partitions = 0;
    enum err e = open_producer(s, KAFKA_BATCH_BYTES, why);
    if (e == ERR_OK) {
        e = wait_for_broker(s, &partitions, why);
    }
    if (e == ERR_OK) {
        e = refuse_compacted(s, why);
    }
    if (e == ERR_OK) {
        e = fit_batches(s, why);
    }
    for (uint32_t i = 0; e == ERR_OK && i < 3; i++) {
        s->output_topics[i] = rd_kafka_topic_new(s->producer, s->outputs[i], NULL);
    }
    if (e == ERR_OK) {
        e = open_consumer(s, partitions, why);
    }
    if (e == ERR_OK) {
        atomic_store(&s->up, true);
        log_info("kafka", "joining group=%s librdkafka=%s partitions=%u", config->kafka_group,
                 rd_kafka_version_str(), partitions);
        e = join(s, why);
    }
    return e;
}

/* ---- small helpers ------------------------------------------------------------------------ */

bool kafka_topic_find(const struct source *s, const char *name, uint32_t *topic) {
    for (uint32_t i = 0; i < s->topic_count; i++) {
        if (strcmp(s->topics[i], name) == 0) {
            *topic = i;
            return true;
        }
    }
    return false;
}

bool kafka_stats_up(const char *json, size_t bytes) {
    bool up = false;
    json_t *root = json_loadb(json, bytes, 0, NULL);
    const char *name = NULL;
    json_t *broker = NULL;
    json_object_foreach(json_object_get(root, "brokers"), name, broker) {
        const char *state = json_string_value(json_object_get(broker, "state"));
        up = up || (state != NULL && strcmp(state, "UP") == 0);
    }
    json_decref(root);
    return up;
}
