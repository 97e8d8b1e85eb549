/* broker.h - Kafka for the tool: clients from the configuration, topics, reading without a group.
 */
#ifndef LORRY_TOOLS_BROKER_H
#define LORRY_TOOLS_BROKER_H

#include <librdkafka/rdkafka.h>

#include "config/config.h"

enum {
    BROKER_ANSWER_MS = 10000,       /* time limit of one request */
    BROKER_JOB_BYTES_MAX = 9 << 20, /* the client's limit; the topic's decides */
};

struct broker_property {
    const char *name, *value;
};

struct broker_options {
    rd_kafka_type_t type;
    const struct broker_property *extra; /* ends with a NULL name; NULL = none */
    void (*delivered)(rd_kafka_t *rk, const rd_kafka_message_t *m, void *opaque); /* NULL = none */
    void *opaque;
};

/* A client with kafka.brokers, kafka.properties and the options. Nothing is sent yet.
 * rd_kafka_destroy() releases it. Errors  ERR_BAD_CONFIG. */
NODISCARD enum err broker_open(rd_kafka_t **out, const struct config *c,
                               const struct broker_options *options, struct err_text *why);

/* Waits at most `timeout_ms` for any broker, and says so on stderr when it takes a while.
 * *metadata  of all topics; rd_kafka_metadata_destroy() releases it.
 * Errors     ERR_BROKER. An interruption ends the wait with it too. */
NODISCARD enum err broker_wait(rd_kafka_t *rk, const struct config *c, int64_t timeout_ms,
                               const struct rd_kafka_metadata **metadata, struct err_text *why);

/* Partitions of a topic; 0: it does not exist. */
uint32_t broker_partitions(const struct rd_kafka_metadata *metadata, const char *topic);
/* The error for a topic that does not exist: ERR_BAD_CONFIG, as a worker has it. */
enum err broker_missing(const char *topic, struct err_text *why);

/* The first offset that is there and the next that will be. Errors  ERR_BROKER. */
NODISCARD enum err broker_offsets(rd_kafka_t *rk, const char *topic, uint32_t partition,
                                  int64_t *low, int64_t *high, struct err_text *why);

/* Records of a topic that the group of `rk`, a consumer with group.id, has not committed: the sum
 * over its partitions. Where nothing is committed yet all count, or none with source.start latest.
 * Errors  ERR_BROKER.  Cost  a request for each partition, and one. */
NODISCARD enum err broker_lag(rd_kafka_t *rk, const struct config *c, const char *topic,
                              uint32_t partitions, int64_t *lag, struct err_text *why);

/* A topic's configuration value, as text. false: not known. */
bool broker_topic_config(rd_kafka_t *rk, const char *topic, const char *name, char *value,
                         size_t room);

/* ---- reading ------------------------------------------------------------------------------ */

enum { READER_TOPICS_MAX = 2 };

/* Reads partitions of at most two topics, in one queue, as no group: nothing is committed and no
 * worker's partitions move. */
struct reader {
    rd_kafka_t *rk;
    rd_kafka_queue_t *queue;
    rd_kafka_topic_t *topics[READER_TOPICS_MAX];
    struct reader_part {
        uint32_t topic;
        int32_t partition;
    } * parts; /* that were started */
    uint32_t part_count;
};

/* Errors  ERR_BAD_CONFIG, ERR_BROKER, ERR_NO_MEMORY: the reader is closed again. */
NODISCARD enum err reader_open(struct reader *r, const struct config *c,
                               const char *const topics[READER_TOPICS_MAX], struct err_text *why);
/* `offset` may be RD_KAFKA_OFFSET_BEGINNING or RD_KAFKA_OFFSET_END. */
NODISCARD enum err reader_start(struct reader *r, uint32_t topic, uint32_t partition,
                                int64_t offset, struct err_text *why);
/* The next record, within `timeout_ms`; *message is NULL when there was none.
 * rd_kafka_message_destroy() releases it. Errors  ERR_BROKER: reading cannot go on. */
NODISCARD enum err reader_next(struct reader *r, int timeout_ms, rd_kafka_message_t **message,
                               struct err_text *why);
void reader_close(struct reader *r); /* a zeroed one is fine */

#endif
