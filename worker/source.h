/* source.h - the source seam: where jobs come from and where outcomes go; `kafka` or `file`.
 *
 * Both ends are one struct, as one offset's end decides its commit: poll, produce, delivery
 * reports, commit. Coordinates (topic index, partition, offset) name a record.
 *
 * Thread: `poll`, `commit`, `hold`, `release` and `idle` by the source thread alone; `produce` and
 * `reports` by the publish thread alone; open and close before and after both.
 * Back-pressure: records of held partitions are not returned (one that arrives all the same is kept
 * until the release); nothing is paused. */
#ifndef LORRY_WORKER_SOURCE_H
#define LORRY_WORKER_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct source_at {  /* coordinates of a record */
    uint32_t topic; /* index into the source's list of jobs topics; see topic_name() */
    int32_t partition;
    int64_t offset;
};

struct source_record {
    struct source_at at;
    int64_t timestamp_ms; /* of the record, Unix time; < 0 = none */
    const void *value;    /* belongs to the record */
    size_t value_bytes;
    const void *key;
    size_t key_bytes;
    char content_type[64]; /* the header, or empty */
    char trace[2][128];    /* W3C traceparent and tracestate, or empty */
    void *handle;          /* the source's own */
};

/* What `poll` may tell besides records. */
enum source_event_kind {
    SOURCE_NOTHING,
    SOURCE_RECORD,
    SOURCE_ASSIGNED,  /* a partition is ours from offset `at.offset` on */
    SOURCE_REVOKED,   /* it goes: `commit` works until the next poll */
    SOURCE_LOST,      /* it is gone: committing is forbidden */
    SOURCE_COMMITTED, /* a commit that was not waited for has ended: `at.offset` is its `next`,
                         `error` how */
    SOURCE_END,       /* file: all records were returned */
    SOURCE_FATAL,     /* `error` says why: the process ends with its exit code */
};

struct source_event {
    enum source_event_kind kind;
    struct source_at at; /* partition events: topic, partition and, on assignment, the offset */
    struct source_record *record; /* the caller's until free_record() */
    enum err error;
    struct err_text why;
};

enum source_output { SOURCE_FRAME, SOURCE_FINAL, SOURCE_DEAD };

struct source_header {
    const char *name, *value; /* NUL-terminated */
};

struct source_message {
    enum source_output output;
    const void *key, *value; /* copied */
    size_t key_bytes, value_bytes;
    const struct source_header *headers;
    uint32_t header_count;
    void *tag; /* comes back in its report; NULL = no report wanted (frames) */
};

struct source_report {
    void *tag;
    enum err error; /* ERR_OK: delivered; else the record's own error, final */
    struct err_text why;
};

struct source; /* each implementation's own */

struct source_ops {
    const char *name; /* "kafka", "file" */
    void (*close)(struct source *s);

    /* Waits at most `timeout_ms` for one event. Events of a partition come in order. */
    void (*poll)(struct source *s, struct source_event *event, uint32_t timeout_ms);
    void (*free_record)(struct source *s, struct source_record *record); /* thread: any */
    /* Stops and starts reading one partition (back-pressure), or all with partition < 0. */
    void (*hold)(struct source *s, uint32_t topic, int32_t partition);
    void (*release)(struct source *s, uint32_t topic, int32_t partition);
    /* Commits `next` (the first offset not done) with metadata. With `wait` the broker's answer is
     * the result; else an error means that it was not sent, and SOURCE_COMMITTED comes later. */
    enum err (*commit)(struct source *s, uint32_t topic, int32_t partition, int64_t next,
                       const char *metadata, bool wait, struct err_text *why);
    const char *(*topic_name)(const struct source *s, uint32_t topic);

    /* ERR_NO_SPACE: the producer's queue is full: call reports() and try again. An error of this
     * record alone is returned at once (ERR_TOO_LARGE …). */
    enum err (*produce)(struct source *s, const struct source_message *m, struct err_text *why);
    /* Fetches delivery reports, waiting at most `timeout_ms` for the first. Returns how many. */
    uint32_t (*reports)(struct source *s, struct source_report *reports, uint32_t room,
                        uint32_t timeout_ms);
    /* Waits until all that was produced is delivered or failed; the reports are still fetched by
     * reports(). false: not within the time. */
    bool (*flush)(struct source *s, uint32_t timeout_ms);
    bool (*connected)(struct source *s); /* thread: any; the broker was reached lately */
};

/* Names in both: topics of jobs and of outputs, from the configuration. */
struct config;

/* A new librdkafka configuration with kafka.brokers and kafka.properties applied, for whoever talks
 * to the same cluster; the caller's until a client takes it over. NULL: why names the property. */
struct rd_kafka_conf_s;
struct rd_kafka_conf_s *source_kafka_conf(const struct config *config, struct err_text *why);

/* Waits for the broker until kafka.start_timeout_s; checks the topics (missing, compacted jobs
 * topics, differing partition counts), the library's version, and joins the group.
 * Errors  ERR_BROKER, ERR_BAD_CONFIG: why names the topic or option. */
NODISCARD enum err source_open_kafka(struct source **out, const struct source_ops **ops,
                                     const struct config *config, struct err_text *why);

/* One JSON job a line from `input` ("-" = stdin); finals go to `output`, one line each, in
 * completion order; frames to nowhere. Coordinates {0, 0, line from 0}. */
NODISCARD enum err source_open_file(struct source **out, const struct source_ops **ops,
                                    const char *input, const char *output, struct err_text *why);

#endif
