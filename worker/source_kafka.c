/* source_kafka.c - the `kafka` source: a member of the consumer group, and the producer.
 *
 * Events come from three queues: the consumer's (rebalances, errors, statistics, stray records),
 * the commits', and one for each assigned partition, which is read only while it is not held. That
 * is the back-pressure: librdkafka stops fetching a partition whose queue is full, and nothing that
 * was fetched is thrown away as pausing would. The consumer's queue is polled all the time, so the
 * length of a job never matters to the group. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "worker/kafka_internal.h"

/* ---- the list of events to return --------------------------------------------------------- */

static struct source_event *event_push(struct source *s, enum source_event_kind kind) {
    if (s->event_count == s->event_room) {
        uint32_t room = s->event_room > 0 ? s->event_room * 2 : 64;
        struct source_event *grown = malloc(room * sizeof *grown);
        CHECK(grown != NULL);
        for (uint32_t i = 0; i < s->event_count; i++) {
            grown[i] = s->events[(s->event_head + i) % s->event_room];
        }
        free(s->events);
        s->events = grown;
        s->event_head = 0;
        s->event_room = room;
    }
    struct source_event *e = &s->events[(s->event_head + s->event_count++) % s->event_room];
    *e = (struct source_event){.kind = kind};
    return e;
}

static void event_fatal(struct source *s, rd_kafka_resp_err_t err, const char *text) {
    struct source_event *e = event_push(s, SOURCE_FATAL);
    e->error = err == RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID ? ERR_FENCED : ERR_BROKER;
    (void)err_set(&e->why, e->error, "%s: %s", rd_kafka_err2name(err), text);
}

/* ---- records ------------------------------------------------------------------------------ */

static void take_header(const rd_kafka_headers_t *headers, const char *name, char *room,
                        size_t room_bytes) {
    const void *value = NULL;
    size_t bytes = 0;
    room[0] = '\0';
    if (headers != NULL &&
        rd_kafka_header_get_last(headers, name, &value, &bytes) == RD_KAFKA_RESP_ERR_NO_ERROR &&
        value != NULL && bytes < room_bytes) {
        memcpy(room, value, bytes);
        room[bytes] = '\0';
    }
}

/* Copies the record out, so that neither a fetch buffer nor the client outlives its use. */
static struct source_record *record_of(const rd_kafka_message_t *m, uint32_t topic) {
    struct source_record *r = calloc(1, sizeof *r + m->len + m->key_len);
    CHECK(r != NULL);
    char *bytes = (char *)(r + 1);
    if (m->len > 0) {
        memcpy(bytes, m->payload, m->len);
    }
    if (m->key_len > 0) {
        memcpy(bytes + m->len, m->key, m->key_len);
    }
    r->at = (struct source_at){.topic = topic, .partition = m->partition, .offset = m->offset};
    r->value = bytes;
    r->value_bytes = m->len;
    r->key = m->key != NULL ? bytes + m->len : NULL;
    r->key_bytes = m->key_len;
    rd_kafka_timestamp_type_t type = RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
    r->timestamp_ms = rd_kafka_message_timestamp(m, &type);
    if (type == RD_KAFKA_TIMESTAMP_NOT_AVAILABLE) {
        r->timestamp_ms = -1;
    }
    rd_kafka_headers_t *headers = NULL;
    (void)rd_kafka_message_headers(m, &headers);
    take_header(headers, "content-type", r->content_type, sizeof r->content_type);
    take_header(headers, "traceparent", r->trace[0], sizeof r->trace[0]);
    take_header(headers, "tracestate", r->trace[1], sizeof r->trace[1]);
    return r;
}

static void take_message(struct source *s, const rd_kafka_message_t *m) {
    if (m->err == RD_KAFKA_RESP_ERR_NO_ERROR) {
        uint32_t topic = 0;
        if (kafka_topic_find(s, rd_kafka_topic_name(m->rkt), &topic)) {
            event_push(s, SOURCE_RECORD)->record = record_of(m, topic);
        }
        return;
    }
    const char *text = rd_kafka_message_errstr(m);
    if (m->err == RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET) {
        log_error("kafka", "records were deleted before they were read partition=%d", m->partition);
        event_fatal(s, m->err, text);
    } else {
        log_warn("kafka", "consumer error code=%s", rd_kafka_err2name(m->err));
    }
}

static void drop_records(struct source *s) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < s->event_count; i++) {
        struct source_event e = s->events[(s->event_head + i) % s->event_room];
        if (e.kind == SOURCE_RECORD) {
            free(e.record);
        } else {
            s->events[(s->event_head + kept++) % s->event_room] = e;
        }
    }
    s->event_count = kept;
}

/* ---- rebalance ---------------------------------------------------------------------------- */

/* Sets where each partition starts: as committed; a group without offsets where source.start says.
 */
static bool start_offsets(struct source *s, rd_kafka_topic_partition_list_t *list) {
    rd_kafka_resp_err_t err = rd_kafka_committed(s->consumer, list, KAFKA_COMMITTED_MS);
    if (err != RD_KAFKA_RESP_ERR_NO_ERROR) {
        event_fatal(s, err, "the group's offsets cannot be read");
        return false;
    }
    bool latest = strcmp(s->config->source_start, "latest") == 0;
    for (int i = 0; i < list->cnt; i++) {
        if (list->elems[i].offset < 0) {
            list->elems[i].offset = latest ? RD_KAFKA_OFFSET_END : RD_KAFKA_OFFSET_BEGINNING;
        }
    }
    return true;
}

static void add_partition(struct source *s, const rd_kafka_topic_partition_t *p) {
    uint32_t topic = 0;
    if (!kafka_topic_find(s, p->topic, &topic)) {
        return;
    }
    if (s->partition_count == s->partition_room) {
        uint32_t room = s->partition_room > 0 ? s->partition_room * 2 : 64;
        struct kafka_partition *grown = realloc(s->partitions, room * sizeof *grown);
        CHECK(grown != NULL);
        s->partitions = grown;
        s->partition_room = room;
    }
    rd_kafka_queue_t *queue = rd_kafka_queue_get_partition(s->consumer, p->topic, p->partition);
    CHECK(queue != NULL);
    rd_kafka_queue_forward(queue, NULL);
    s->partitions[s->partition_count++] =
        (struct kafka_partition){.topic = topic, .partition = p->partition, .queue = queue};
    struct source_event *e = event_push(s, SOURCE_ASSIGNED);
    e->at = (struct source_at){
        .topic = topic, .partition = p->partition, .offset = p->offset >= 0 ? p->offset : -1};
}

static void assign(struct source *s, rd_kafka_topic_partition_list_t *list) {
    if (!start_offsets(s, list)) {
        return;
    }
    rd_kafka_resp_err_t err = rd_kafka_assign(s->consumer, list);
    if (err != RD_KAFKA_RESP_ERR_NO_ERROR) {
        event_fatal(s, err, "assign");
        return;
    }
    for (int i = 0; i < list->cnt; i++) {
        add_partition(s, &list->elems[i]);
    }
}

static void drop_partitions(struct source *s) {
    for (uint32_t i = 0; i < s->partition_count; i++) {
        rd_kafka_queue_destroy(s->partitions[i].queue);
    }
    s->partition_count = 0;
    s->partition_next = 0;
}

/* Range and roundrobin revoke all. Reading stops now; the client gives the partitions up once the
 * caller has seen the events and committed. */
static void revoke(struct source *s, const rd_kafka_topic_partition_list_t *list) {
    drop_records(s); /* not returned yet: they come again, to whoever has the partition then */
    bool lost = rd_kafka_assignment_lost(s->consumer) != 0;
    for (uint32_t i = 0; i < s->partition_count; i++) {
        struct source_event *e = event_push(s, lost ? SOURCE_LOST : SOURCE_REVOKED);
        e->at = (struct source_at){.topic = s->partitions[i].topic,
                                   .partition = s->partitions[i].partition};
    }
    drop_partitions(s);
    s->revoking = rd_kafka_topic_partition_list_copy(list);
}

static void finish_revoke(struct source *s) {
    rd_kafka_topic_partition_list_destroy(s->revoking);
    s->revoking = NULL;
    rd_kafka_resp_err_t err = rd_kafka_assign(s->consumer, NULL);
    if (err != RD_KAFKA_RESP_ERR_NO_ERROR) {
        log_warn("kafka", "unassign code=%s", rd_kafka_err2name(err));
    }
}

static void take_rebalance(struct source *s, rd_kafka_event_t *event) {
    rd_kafka_topic_partition_list_t *list = rd_kafka_event_topic_partition_list(event);
    rd_kafka_resp_err_t err = rd_kafka_event_error(event);
    if (err == RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS) {
        assign(s, list);
    } else {
        if (err != RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS) {
            log_warn("kafka", "rebalance failed code=%s", rd_kafka_err2name(err));
        }
        revoke(s, list);
    }
}

/* ---- poll --------------------------------------------------------------------------------- */

static void take_error(struct source *s, rd_kafka_t *client, rd_kafka_event_t *event) {
    rd_kafka_resp_err_t err = rd_kafka_event_error(event);
    if (err == RD_KAFKA_RESP_ERR__FATAL) {
        char text[256] = "";
        err = rd_kafka_fatal_error(client, text, sizeof text);
        event_fatal(s, err, text);
    } else if (err == RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN) {
        atomic_store(&s->up, false);
        log_warn("kafka", "all brokers are down");
    } else if (err == RD_KAFKA_RESP_ERR__MAX_POLL_EXCEEDED ||
               err == RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET) {
        event_fatal(s, err, rd_kafka_event_error_string(event));
    } else {
        log_info("kafka", "client error code=%s", rd_kafka_err2name(err));
    }
}

static void take_stats(struct source *s, rd_kafka_event_t *event) {
    const char *json = rd_kafka_event_stats(event);
    atomic_store(&s->up, kafka_stats_up(json, strlen(json)));
}

static void take_commit(struct source *s, rd_kafka_event_t *event) {
    const rd_kafka_topic_partition_list_t *list = rd_kafka_event_topic_partition_list(event);
    rd_kafka_resp_err_t all = rd_kafka_event_error(event);
    for (int i = 0; list != NULL && i < list->cnt; i++) {
        const rd_kafka_topic_partition_t *p = &list->elems[i];
        rd_kafka_resp_err_t err = all != RD_KAFKA_RESP_ERR_NO_ERROR ? all : p->err;
        struct source_event *e = event_push(s, SOURCE_COMMITTED);
        (void)kafka_topic_find(s, p->topic, &e->at.topic);
        e->at.partition = p->partition;
        e->at.offset = p->offset;
        if (err != RD_KAFKA_RESP_ERR_NO_ERROR) {
            e->error = err_set(&e->why, ERR_BROKER, "%s", rd_kafka_err2str(err));
        }
    }
}

static void take_event(struct source *s, rd_kafka_event_t *event) {
    switch (rd_kafka_event_type(event)) {
    case RD_KAFKA_EVENT_REBALANCE:
        take_rebalance(s, event);
        break;
    case RD_KAFKA_EVENT_OFFSET_COMMIT:
        take_commit(s, event);
        break;
    case RD_KAFKA_EVENT_ERROR:
        take_error(s, s->consumer, event);
        break;
    case RD_KAFKA_EVENT_STATS:
        take_stats(s, event);
        break;
    case RD_KAFKA_EVENT_FETCH: { /* before the forward took effect: keep them in order */
        const rd_kafka_message_t *m = NULL;
        while ((m = rd_kafka_event_message_next(event)) != NULL) {
            take_message(s, m);
        }
        break;
    }
    default:
        break;
    }
    rd_kafka_event_destroy(event);
}

/* One record of the next partition that has any. */
static bool read_partitions(struct source *s) {
    for (uint32_t n = 0; n < s->partition_count; n++) {
        struct kafka_partition *p = &s->partitions[s->partition_next];
        s->partition_next = (s->partition_next + 1) % s->partition_count;
        if (p->held) {
            continue;
        }
        rd_kafka_message_t *m = rd_kafka_consume_queue(p->queue, 0);
        if (m != NULL) {
            take_message(s, m);
            rd_kafka_message_destroy(m);
            return true;
        }
    }
    return false;
}

static void drain_queue(struct source *s, rd_kafka_queue_t *queue, uint32_t timeout_ms) {
    rd_kafka_event_t *event = rd_kafka_queue_poll(queue, (int)timeout_ms);
    while (event != NULL) {
        take_event(s, event);
        event = s->revoking == NULL ? rd_kafka_queue_poll(queue, 0) : NULL;
    }
}

/* The first event that may be returned now: a record has to wait while all is held. */
static bool next_event(struct source *s, struct source_event *event) {
    if (s->event_count == 0 || (s->hold_all && s->events[s->event_head].kind == SOURCE_RECORD)) {
        return false;
    }
    *event = s->events[s->event_head];
    s->event_head = (s->event_head + 1) % s->event_room;
    s->event_count--;
    return true;
}

static void kafka_poll(struct source *s, struct source_event *event, uint32_t timeout_ms) {
    *event = (struct source_event){.kind = SOURCE_NOTHING};
    if (next_event(s, event)) {
        return;
    }
    if (s->revoking != NULL && s->event_count == 0) {
        finish_revoke(s);
    }
    drain_queue(s, s->consumer_queue, 0);
    drain_queue(s, s->commit_queue, 0);
    if (s->event_count == 0 && !s->hold_all) {
        (void)read_partitions(s);
    }
    if (s->event_count == 0) {
        drain_queue(s, s->consumer_queue, timeout_ms);
    }
    (void)next_event(s, event);
}

static void kafka_free_record(struct source *s, struct source_record *record) {
    (void)s;
    free(record);
}

static void set_held(struct source *s, uint32_t topic, int32_t partition, bool held) {
    if (partition < 0) {
        s->hold_all = held;
        return;
    }
    for (uint32_t i = 0; i < s->partition_count; i++) {
        if (s->partitions[i].topic == topic && s->partitions[i].partition == partition) {
            s->partitions[i].held = held;
        }
    }
}

static void kafka_hold(struct source *s, uint32_t topic, int32_t partition) {
    set_held(s, topic, partition, true);
}

static void kafka_release(struct source *s, uint32_t topic, int32_t partition) {
    set_held(s, topic, partition, false);
}

static enum err kafka_commit(struct source *s, uint32_t topic, int32_t partition, int64_t next,
                             const char *metadata, bool wait, struct err_text *why) {
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
    rd_kafka_topic_partition_t *p =
        rd_kafka_topic_partition_list_add(list, s->topics[topic], partition);
    p->offset = next;
    if (metadata[0] != '\0') {
        p->metadata = strdup(metadata); /* the list frees it */
        p->metadata_size = strlen(metadata);
    }
    rd_kafka_resp_err_t err =
        wait ? rd_kafka_commit(s->consumer, list, 0)
             : rd_kafka_commit_queue(s->consumer, list, s->commit_queue, NULL, NULL);
    rd_kafka_topic_partition_list_destroy(list);
    return err == RD_KAFKA_RESP_ERR_NO_ERROR
               ? ERR_OK
               : err_set(why, ERR_BROKER, "%s", rd_kafka_err2str(err));
}

static const char *kafka_topic_name(const struct source *s, uint32_t topic) {
    CHECK(topic < s->topic_count);
    return s->topics[topic];
}

/* ---- producing ---------------------------------------------------------------------------- */

/* Errors of one record, which no retry will mend. */
static enum err record_error(rd_kafka_resp_err_t err) {
    switch ((int)err) {
    case RD_KAFKA_RESP_ERR_NO_ERROR:
        return ERR_OK;
    case RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE:
    case RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE:
        return ERR_TOO_LARGE;
    default:
        return ERR_BROKER;
    }
}

static void take_report(struct source *s, const rd_kafka_message_t *m,
                        struct source_report *report) {
    *report = (struct source_report){.tag = m->_private, .error = record_error(m->err)};
    if (report->error == ERR_OK) {
        atomic_store(&s->up, true);
    } else {
        (void)err_set(&report->why, report->error, "%s: %s", rd_kafka_topic_name(m->rkt),
                      rd_kafka_err2str(m->err));
    }
}

/* The producer's other events; a fatal one shows in the next produce. */
static void producer_event(struct source *s, rd_kafka_event_t *event) {
    if (rd_kafka_event_type(event) == RD_KAFKA_EVENT_ERROR) {
        log_warn("kafka", "producer error code=%s", rd_kafka_err2name(rd_kafka_event_error(event)));
    } else if (rd_kafka_event_type(event) == RD_KAFKA_EVENT_STATS) {
        take_stats(s, event);
    }
}

/* Takes one report that has a tag; false: none within the time. */
static bool next_report(struct source *s, struct source_report *report, uint32_t timeout_ms) {
    for (;;) {
        if (s->reports == NULL) {
            rd_kafka_event_t *event = rd_kafka_queue_poll(s->producer_queue, (int)timeout_ms);
            if (event == NULL) {
                return false;
            }
            if (rd_kafka_event_type(event) != RD_KAFKA_EVENT_DR) {
                producer_event(s, event);
                rd_kafka_event_destroy(event);
                continue;
            }
            s->reports = event;
        }
        const rd_kafka_message_t *m = rd_kafka_event_message_next(s->reports);
        if (m == NULL) {
            rd_kafka_event_destroy(s->reports);
            s->reports = NULL;
        } else if (m->_private != NULL) {
            take_report(s, m, report);
            return true;
        } else if (m->err != RD_KAFKA_RESP_ERR_NO_ERROR) {
            log_warn("kafka", "frame not delivered code=%s", rd_kafka_err2name(m->err));
        }
    }
}

/* The client's queue counts messages whose reports were not taken: makes room by taking them. */
static void stash_reports(struct source *s) {
    struct source_report report;
    while (next_report(s, &report, 0)) {
        if (s->stash_count == s->stash_room) {
            uint32_t room = s->stash_room > 0 ? s->stash_room * 2 : 256;
            struct source_report *grown = realloc(s->stash, room * sizeof *grown);
            CHECK(grown != NULL);
            s->stash = grown;
            s->stash_room = room;
        }
        s->stash[s->stash_count++] = report;
    }
}

static enum err kafka_produce(struct source *s, const struct source_message *m,
                              struct err_text *why) {
    rd_kafka_headers_t *headers = rd_kafka_headers_new(m->header_count);
    for (uint32_t i = 0; i < m->header_count; i++) {
        (void)rd_kafka_header_add(headers, m->headers[i].name, -1, m->headers[i].value, -1);
    }
    rd_kafka_topic_t *topic = s->output_topics[m->output];
    void *value = (void *)(uintptr_t)m->value; /* RD_KAFKA_MSG_F_COPY: read only */
    rd_kafka_resp_err_t err = rd_kafka_producev(
        s->producer, RD_KAFKA_V_RKT(topic), RD_KAFKA_V_VALUE(value, m->value_bytes),
        RD_KAFKA_V_KEY(m->key, m->key_bytes), RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
        RD_KAFKA_V_HEADERS(headers), RD_KAFKA_V_OPAQUE(m->tag), RD_KAFKA_V_END);
    if (err == RD_KAFKA_RESP_ERR_NO_ERROR) {
        return ERR_OK; /* the headers are the message's now */
    }
    rd_kafka_headers_destroy(headers);
    if (err == RD_KAFKA_RESP_ERR__QUEUE_FULL) {
        stash_reports(s);
        return ERR_NO_SPACE;
    }
    char text[256] = "";
    if (err == RD_KAFKA_RESP_ERR__FATAL) {
        err = rd_kafka_fatal_error(s->producer, text, sizeof text);
    }
    return err_set(why, record_error(err), "%s: %s %s", s->outputs[m->output],
                   rd_kafka_err2str(err), text);
}

static uint32_t kafka_reports(struct source *s, struct source_report *reports, uint32_t room,
                              uint32_t timeout_ms) {
    uint32_t count = 0;
    while (count < room && s->stash_count > 0) {
        reports[count++] = s->stash[--s->stash_count];
    }
    while (count < room && next_report(s, &reports[count], count == 0 ? timeout_ms : 0)) {
        count++;
    }
    return count;
}

static bool kafka_flush(struct source *s, uint32_t timeout_ms) {
    return rd_kafka_flush(s->producer, (int)timeout_ms) == RD_KAFKA_RESP_ERR_NO_ERROR;
}

static bool kafka_connected(struct source *s) {
    return atomic_load(&s->up);
}

/* ---- open, close -------------------------------------------------------------------------- */

static void close_consumer(struct source *s) {
    drop_partitions(s);
    if (s->revoking != NULL) {
        rd_kafka_topic_partition_list_destroy(s->revoking);
    }
    if (s->commit_queue != NULL) {
        rd_kafka_queue_destroy(s->commit_queue);
    }
    if (s->consumer_queue != NULL) {
        rd_kafka_queue_destroy(s->consumer_queue);
    }
    if (s->consumer != NULL) {
        (void)rd_kafka_consumer_close(s->consumer); /* leaves the group; all was committed */
        rd_kafka_destroy(s->consumer);
    }
}

static void kafka_close(struct source *s) {
    if (s == NULL) {
        return;
    }
    close_consumer(s);
    for (uint32_t i = 0; i < s->event_count; i++) {
        free(s->events[(s->event_head + i) % s->event_room].record);
    }
    free(s->events);
    free(s->partitions);
    if (s->reports != NULL) {
        rd_kafka_event_destroy(s->reports);
    }
    free(s->stash);
    for (uint32_t i = 0; i < 3; i++) {
        if (s->output_topics[i] != NULL) {
            rd_kafka_topic_destroy(s->output_topics[i]);
        }
    }
    if (s->producer_queue != NULL) {
        rd_kafka_queue_destroy(s->producer_queue);
    }
    if (s->producer != NULL) {
        rd_kafka_destroy(s->producer);
    }
    free(s);
}

static const struct source_ops kafka_ops = {
    .name = "kafka",
    .close = kafka_close,
    .poll = kafka_poll,
    .free_record = kafka_free_record,
    .hold = kafka_hold,
    .release = kafka_release,
    .commit = kafka_commit,
    .topic_name = kafka_topic_name,
    .produce = kafka_produce,
    .reports = kafka_reports,
    .flush = kafka_flush,
    .connected = kafka_connected,
};

enum err source_open_kafka(struct source **out, const struct source_ops **ops,
                           const struct config *config, struct err_text *why) {
    struct source *s = calloc(1, sizeof *s);
    if (s == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for the source");
    }
    enum err e = kafka_open(s, config, why);
    if (e != ERR_OK) {
        kafka_close(s);
        return e;
    }
    *ops = &kafka_ops;
    *out = s;
    return ERR_OK;
}
