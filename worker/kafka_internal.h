/* kafka_internal.h - the kafka source's two clients: kafka_open.c makes them, source_kafka.c runs
 * them. */
#ifndef LORRY_WORKER_KAFKA_INTERNAL_H
#define LORRY_WORKER_KAFKA_INTERNAL_H

#include <librdkafka/rdkafka.h>

#include <stdatomic.h>

#include "config/config.h"
#include "worker/source.h"

enum {
    KAFKA_TOPICS_MAX = 64,          /* of jobs */
    KAFKA_COMMITTED_MS = 10000,     /* to learn where the group stands */
    KAFKA_STATS_MS = 2000,          /* how soon a lost broker shows */
    KAFKA_MESSAGE_BYTES = 16 << 20, /* ours; the broker's own limit decides */
    KAFKA_BATCH_BYTES = 1000000,    /* of records sent at once, as librdkafka has it */
};

struct kafka_partition {
    uint32_t topic;
    int32_t partition;
    rd_kafka_queue_t *queue; /* its records, apart from all others' */
    bool held;
};

struct source {
    const struct config *config;
    rd_kafka_t *consumer, *producer;
    rd_kafka_queue_t *consumer_queue, *commit_queue, *producer_queue;
    const char *topics[KAFKA_TOPICS_MAX]; /* of jobs */
    uint32_t topic_count;
    const char *outputs[3]; /* by enum source_output */
    rd_kafka_topic_t *output_topics[3];

    /* Source thread. */
    struct kafka_partition *partitions; /* assigned */
    uint32_t partition_count, partition_room, partition_next;
    bool hold_all;
    struct source_event *events; /* to be returned by poll before anything else */
    uint32_t event_head, event_count, event_room;
    rd_kafka_topic_partition_list_t *revoking; /* unassigned once the caller has seen its events */

    /* Publish thread. */
    rd_kafka_event_t *reports;   /* taken from the queue, not all returned yet */
    struct source_report *stash; /* reports taken while the queue was full */
    uint32_t stash_count, stash_room;

    _Atomic bool up;
};

/* Fills topics, clients and queues; joins the group. */
NODISCARD enum err kafka_open(struct source *s, const struct config *config, struct err_text *why);

/* The index of a jobs topic by its name. */
bool kafka_topic_find(const struct source *s, const char *name, uint32_t *topic);

/* Reads librdkafka's statistics: whether any broker is up. */
bool kafka_stats_up(const char *json, size_t bytes);

#endif
