#include "worker/publish.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/ring.h"
#include "worker/stream.h"

enum {
    REPORTS_ROOM = 256,
    WAIT_IDLE_MS = 50,
    WAIT_REPORTS_MS = 5, /* while deliveries are outstanding */
    SHRINK_NOTHING = 0,
    SHRINK_LOGPROBS = 1, /* the final goes without its log-probabilities */
    SHRINK_TOKENS = 2,   /* and without its tokens */
    SHRINK_ALL = 3,      /* the job failed: result_too_large */
};

struct publish {
    struct publish_options options;
    struct ring inbox; /* of struct job; each at most once */
    struct bell bell;
    pthread_t thread;
    bool started;
    _Atomic bool finishing;
    _Atomic int64_t finish_until_us;
    bool all_delivered;

    struct job **active; /* streaming jobs with a frame to come */
    uint32_t active_count;
    uint32_t outstanding; /* reports to come */
    uint32_t open_count;  /* jobs that had news and are not done */
    struct wire_buffer buffer;
    struct source_report reports[REPORTS_ROOM];
};

void publish_job(struct publish *p, struct job *job, uint32_t what) {
    uint32_t before = atomic_fetch_or(&job->news, what | JOB_QUEUED);
    if ((before & JOB_QUEUED) == 0) {     /* else publish will see it when it takes the job out */
        CHECK(ring_push(&p->inbox, job)); /* a cell for every job there is */
        bell_ring(&p->bell);
    }
}

static bool job_lost(const struct publish *p, const struct job *job) {
    return atomic_load_explicit(&p->options.epochs[job->slot], memory_order_acquire) != job->epoch;
}

/* ---- producing ---------------------------------------------------------------------------- */

static void final_send(struct publish *p, struct job *job);

/* The job leaves: nobody here names it any more. */
static void job_done(struct publish *p, struct job *job, bool delivered) {
    if (job->active > 0) {
        struct job *last = p->active[--p->active_count];
        p->active[job->active - 1] = last;
        last->active = job->active;
        job->active = 0;
    }
    p->open_count--;
    registry_leave(p->options.registry, job);
    p->options.done(p->options.context, job, delivered);
}

static void delivered(struct publish *p, struct job *job) {
    CHECK(job->deliveries > 0);
    if (--job->deliveries == 0) {
        job_done(p, job, true);
    }
}

/* The next thing to leave out of a final that is too large. */
static void shrink_more(struct job *job) {
    job->shrink++;
    if (job->shrink == SHRINK_LOGPROBS && job->logprobs == NULL) {
        job->shrink++;
    }
}

static void report_taken(struct publish *p, const struct source_report *r) {
    const struct job_tag *tag = r->tag;
    struct job *job = tag->job;
    p->outstanding--;
    if (r->error == ERR_OK) {
        if (tag->dead) {
            metrics_add(p->options.metrics, METRIC_DEAD_LETTERS, 1);
        } else {
            metrics_add_status(p->options.metrics, METRIC_FINALS, (uint32_t)job->status, 1);
        }
        delivered(p, job);
        return;
    }
    char quoted[ERR_TEXT_BYTES];
    const char *why = log_quote(quoted, sizeof quoted, r->why.message);
    if (tag->dead) {
        log_error("publish", "dead letter refused by the broker code=%s why=%s id=%s",
                  err_name(r->error), why, job->id);
        delivered(p, job); /* its final says what happened */
    } else if (r->error == ERR_TOO_LARGE && job->shrink < SHRINK_ALL) {
        log_warn("publish", "final too large for the broker shrink=%u id=%s", job->shrink + 1,
                 job->id);
        shrink_more(job);
        job->deliveries--;
        final_send(p, job);
    } else {
        log_error("publish", "final cannot be delivered code=%s why=%s id=%s", err_name(r->error),
                  why, job->id);
        p->options.fatal(p->options.context, ERR_BROKER, &r->why);
    }
}

static uint32_t take_reports(struct publish *p, uint32_t timeout_ms) {
    uint32_t count =
        p->options.ops->reports(p->options.source, p->reports, REPORTS_ROOM, timeout_ms);
    /* A report may send again, which does not touch p->reports. */
    for (uint32_t i = 0; i < count; i++) {
        report_taken(p, &p->reports[i]);
    }
    return count;
}

/* Hands a message to the source; a full queue is waited for: that is the back-pressure. Reports are
 * not taken meanwhile (the source serves its own queue), so that a caller's job stays as it is. */
static enum err send(struct publish *p, const struct source_message *m, struct err_text *why) {
    for (;;) {
        enum err e = p->options.ops->produce(p->options.source, m, why);
        if (e != ERR_NO_SPACE) {
            p->outstanding += e == ERR_OK && m->tag != NULL;
            return e;
        }
        clock_sleep_ms(1);
    }
}

/* Of the tokens from `begin` to `end`. */
static struct wire_logprobs logprobs_of(const struct job *job, uint32_t begin, uint32_t end) {
    if (job->logprobs == NULL) {
        return (struct wire_logprobs){0};
    }
    size_t top_count = job->sampling.top_logprobs;
    return (struct wire_logprobs){.chosen = job->logprobs + begin,
                                  .top = job->top != NULL ? job->top + begin * top_count : NULL,
                                  .count = end - begin,
                                  .top_count = top_count};
}

/* ---- frames ------------------------------------------------------------------------------- */

static void frame_send(struct publish *p, struct job *job, enum wire_kind kind, uint32_t tokens,
                       size_t text_end) {
    struct wire_frame f = {.id = {job->id, strlen(job->id)},
                           .attempt = job->attempt,
                           .seq = job->frame_seq++,
                           .pos = job->framed,
                           .kind = kind};
    memcpy(f.run, job->run, sizeof f.run);
    if (kind == WIRE_TOKENS_FRAME) {
        f.tokens = job->output + job->framed;
        f.token_count = tokens - job->framed;
        f.logprobs = logprobs_of(job, job->framed, tokens);
        f.text = (struct wire_str){job->text + job->text_sent, text_end - job->text_sent};
    }
    p->buffer.bytes = 0;
    enum err e = wire_frame_encode(&f, job->wire.encoding, &p->buffer);
    struct err_text why = {0};
    if (e == ERR_OK) {
        struct source_header headers[2] = {{"content-type", wire_content_type(job->wire.encoding)},
                                           {"job-id", job->id}};
        struct source_message m = {.output = SOURCE_FRAME,
                                   .key = job->id,
                                   .key_bytes = strlen(job->id),
                                   .value = p->buffer.data,
                                   .value_bytes = p->buffer.bytes,
                                   .headers = headers,
                                   .header_count = 2};
        e = send(p, &m, &why);
    }
    if (e != ERR_OK) {
        log_warn("publish", "frame not sent code=%s id=%s", err_name(e), job->id);
    }
    metrics_add(p->options.metrics, METRIC_FRAMES, 1);
    if (kind == WIRE_TOKENS_FRAME) {
        job->framed = tokens;
        job->text_sent = text_end;
    }
}

static void frames_flush(struct publish *p, struct job *job, bool ended) {
    if (!job->start_sent) {
        job->start_sent = true;
        frame_send(p, job, WIRE_START, 0, 0);
    }
    uint32_t tokens = job->stop_cut ? job->kept : job->decoded;
    size_t safe = ended ? job->text_bytes : stream_safe_bytes(job);
    safe = safe > job->text_sent ? safe : job->text_sent;
    if (tokens > job->framed || safe > job->text_sent) {
        frame_send(p, job, WIRE_TOKENS_FRAME, tokens, safe);
    }
    if (ended) {
        frame_send(p, job, WIRE_END, 0, 0);
    }
    job->frame_due_us = 0;
}

static void frame_gather(struct publish *p, struct job *job) {
    if (job->frame_due_us != 0) {
        return;
    }
    job->frame_due_us = clock_mono_us() + (int64_t)p->options.frame_interval_ms * 1000;
    if (job->active == 0) {
        p->active[p->active_count++] = job;
        job->active = p->active_count;
    }
}

/* Sends frames whose time has come; returns when the next one's comes. */
static int64_t frames_due(struct publish *p, int64_t now_us) {
    int64_t next_us = INT64_MAX;
    for (uint32_t i = 0; i < p->active_count; i++) {
        struct job *job = p->active[i];
        if (job->frame_due_us != 0 && job->frame_due_us <= now_us) {
            frames_flush(p, job, false);
        }
        if (job->frame_due_us != 0 && job->frame_due_us < next_us) {
            next_us = job->frame_due_us;
        }
    }
    return next_us;
}

/* ---- finals ------------------------------------------------------------------------------- */

static const struct {
    enum wire_status status;
    enum wire_finish finish;
} outcomes[] = {
    [JOB_RUNNING] = {WIRE_FAILED, WIRE_FINISH_NONE}, /* never sent */
    [JOB_STOPPED] = {WIRE_SUCCEEDED, WIRE_FINISH_STOP},
    [JOB_LENGTH] = {WIRE_SUCCEEDED, WIRE_FINISH_LENGTH},
    [JOB_FAILED] = {WIRE_FAILED, WIRE_FINISH_NONE},
    [JOB_REJECTED] = {WIRE_REJECTED, WIRE_FINISH_NONE},
    [JOB_EXPIRED] = {WIRE_EXPIRED, WIRE_FINISH_NONE},
    [JOB_CANCELLED] = {WIRE_CANCELLED, WIRE_FINISH_NONE},
    [JOB_DROPPED] = {WIRE_FAILED, WIRE_FINISH_NONE}, /* never sent */
};

static double milliseconds(int64_t from_us, int64_t to_us) {
    return to_us == 0 ? -1.0 : (double)(to_us - from_us) / 1000.0;
}

static void final_error(struct wire_final *f, const struct job *job) {
    if (job->error == ERR_OK) {
        return;
    }
    f->error_code = err_name(job->error);
    const char *message = job->why.message[0] != '\0' ? job->why.message : err_text(job->error);
    f->error_message = (struct wire_str){message, strlen(message)};
    if (job->why.field[0] != '\0') {
        f->error_field = (struct wire_str){job->why.field, strlen(job->why.field)};
    }
}

static struct wire_final final_of(struct publish *p, const struct job *job) {
    const char *topic = p->options.ops->topic_name(p->options.source, job->at.topic);
    struct wire_final f = {
        .id = {job->id, strlen(job->id)},
        .custom_id = job->wire.custom_id,
        .batch_id = job->wire.batch_id,
        .adapter = job->wire.adapter,
        .generation = job->wire.generation,
        .attempt = job->attempt,
        .status = outcomes[job->outcome].status,
        .finish = outcomes[job->outcome].finish,
        .prompt_tokens = job->prompt_count,
        .cached_tokens = job->cached,
        .completion_tokens = stream_tokens(job),
        .timing = {.queued = milliseconds(job->received_us, job->started_us),
                   .first_token = milliseconds(job->received_us, job->first_token_us),
                   .total = milliseconds(job->received_us, job->ended_us)},
        .worker = {p->options.worker_id, strlen(p->options.worker_id)},
        .topic = {topic, strlen(topic)},
        .partition = job->at.partition,
        .offset = job->at.offset,
        .metadata = job->wire.metadata,
        .metadata_count = job->wire.metadata_count,
    };
    memcpy(f.run, job->run, sizeof f.run);
    if (job->stop_cut) { /* complete before whatever else ended it */
        f.status = WIRE_SUCCEEDED;
        f.finish = WIRE_FINISH_STOP;
    }
    if (job->revision[0] != '\0') {
        f.revision = (struct wire_str){job->revision, strlen(job->revision)};
    }
    final_error(&f, job);
    if (f.status != WIRE_REJECTED) {
        f.text = (struct wire_str){job->text != NULL ? job->text : "", job->text_bytes};
        f.tokens = job->output;
        f.token_count = f.completion_tokens;
        f.logprobs = logprobs_of(job, 0, f.completion_tokens);
    }
    return f;
}

static void final_shrink(struct wire_final *f, const struct job *job) {
    static const char message[] = "the result is larger than the broker takes";
    if (job->shrink >= SHRINK_LOGPROBS) {
        f->logprobs = (struct wire_logprobs){0};
    }
    if (job->shrink >= SHRINK_TOKENS) {
        f->tokens = NULL;
        f->token_count = 0;
    }
    if (job->shrink >= SHRINK_ALL) {
        f->text = (struct wire_str){"", 0};
        f->status = WIRE_FAILED;
        f->finish = WIRE_FINISH_NONE;
        f->error_code = err_name(ERR_RESULT_TOO_LARGE);
        f->error_message = (struct wire_str){message, sizeof message - 1};
        f->error_field = (struct wire_str){NULL, 0};
    }
}

static void trace_headers(const struct job *job, struct source_header *headers, uint32_t *count) {
    static const char *const names[] = {"traceparent", "tracestate"};
    for (uint32_t i = 0; i < 2; i++) {
        if (job->record->trace[i][0] != '\0') {
            headers[(*count)++] = (struct source_header){names[i], job->record->trace[i]};
        }
    }
}

static void final_send(struct publish *p, struct job *job) {
    for (;;) {
        struct wire_final f = final_of(p, job);
        final_shrink(&f, job);
        p->buffer.bytes = 0;
        struct err_text why = {0};
        enum err e = wire_final_encode(&f, job->wire.encoding, &p->buffer);
        if (e == ERR_OK) {
            struct source_header headers[4] = {
                {"content-type", wire_content_type(job->wire.encoding)}, {"job-id", job->id}};
            uint32_t count = 2;
            trace_headers(job, headers, &count);
            struct source_message m = {.output = SOURCE_FINAL,
                                       .key = job->id,
                                       .key_bytes = strlen(job->id),
                                       .value = p->buffer.data,
                                       .value_bytes = p->buffer.bytes,
                                       .headers = headers,
                                       .header_count = count,
                                       .tag = &job->tag_final};
            e = send(p, &m, &why);
        }
        if (e == ERR_OK) {
            job->deliveries++;
            job->status = f.status;
            return;
        }
        if (e != ERR_TOO_LARGE || job->shrink == SHRINK_ALL) {
            p->options.fatal(p->options.context, e, &why);
            return;
        }
        shrink_more(job);
    }
}

static void dead_send(struct publish *p, struct job *job) {
    struct wire_header dead[WIRE_DEAD_HEADERS];
    uint32_t count = wire_dead_headers(
        dead, p->options.ops->topic_name(p->options.source, job->at.topic), job->at.partition,
        job->at.offset, p->options.group, job->error, &job->why);
    struct source_header headers[WIRE_DEAD_HEADERS + 3];
    for (uint32_t i = 0; i < count; i++) {
        headers[i] = (struct source_header){dead[i].name, dead[i].value};
    }
    if (job->record->content_type[0] != '\0') {
        headers[count++] = (struct source_header){"content-type", job->record->content_type};
    }
    trace_headers(job, headers, &count);
    struct source_message m = {.output = SOURCE_DEAD,
                               .key = job->record->key,
                               .key_bytes = job->record->key_bytes,
                               .value = job->record->value,
                               .value_bytes = job->record->value_bytes,
                               .headers = headers,
                               .header_count = count,
                               .tag = &job->tag_dead};
    struct err_text why = {0};
    enum err e = send(p, &m, &why);
    if (e == ERR_OK) {
        job->deliveries++;
    } else {
        char quoted[ERR_TEXT_BYTES];
        log_error("publish", "dead letter refused code=%s why=%s id=%s", err_name(e),
                  log_quote(quoted, sizeof quoted, why.message), job->id);
    }
}

/* ---- a job with news ---------------------------------------------------------------------- */

static void job_ended(struct publish *p, struct job *job) {
    enum err e = stream_finish(job, p->options.text);
    if (e != ERR_OK) {
        (void)err_set(&job->why, ERR_INTERNAL, "the tokens could not be decoded");
        job->error = ERR_INTERNAL;
        job->outcome = JOB_FAILED;
    }
    if (job->stream && job->started_us != 0) {
        frames_flush(p, job, true);
    }
    log_info("publish",
             "final status=%s adapter=%s prompt_tokens=%u completion_tokens=%u "
             "total_ms=%.1f id=%s",
             wire_status_name(outcomes[job->outcome].status),
             job->adapter[0] != '\0' ? job->adapter : "base", job->prompt_count, stream_tokens(job),
             milliseconds(job->received_us, job->ended_us), job->id);
    metrics_add(p->options.metrics, METRIC_TOKENS_OUTPUT, stream_tokens(job));
    metrics_add_adapter(p->options.metrics, METRIC_ADAPTER_JOBS, job->metrics_adapter, 1);
    metrics_add_adapter(p->options.metrics, METRIC_ADAPTER_TOKENS, job->metrics_adapter,
                        stream_tokens(job));
    metrics_observe(p->options.metrics, METRIC_JOB_SECONDS,
                    (double)(job->ended_us - job->received_us) / 1e6);
    if (job->dead_letter) {
        dead_send(p, job);
    }
    final_send(p, job);
}

static void job_news(struct publish *p, struct job *job) {
    /* First out of the ring, then a look: what comes later rings again. */
    uint32_t news = atomic_fetch_and(&job->news, ~(uint32_t)JOB_QUEUED);
    bool ended = (news & JOB_ENDED) != 0;
    CHECK(job->deliveries == 0);
    if (!job->opened) {
        job->opened = true;
        p->open_count++;
    }
    if (job->start_asked && (news & JOB_ATTEMPT) == 0) {
        return; /* the registry still has it, and rings when it knows the attempt */
    }
    if (ended && (job->outcome == JOB_DROPPED || job_lost(p, job))) {
        job_done(p, job, false);
        return;
    }
    if (job->started_us != 0 && !job->start_asked) {
        uint8_t random[10] = {0};
        (void)getrandom(random, sizeof random, 0);
        wire_ulid(job->run, clock_wall_ms(), random);
        job->start_asked = true;
        registry_start(p->options.registry, job);
        return;
    }
    if (ended) {
        job_ended(p, job);
        return;
    }
    if (job_lost(p, job)) {
        return; /* the loop will say that it was dropped */
    }
    if (stream_advance(job, p->options.text) != ERR_OK) {
        log_error("publish", "tokens could not be decoded id=%s", job->id);
    }
    if (job->stream) {
        frame_gather(p, job);
    }
}

static void *publish_main(void *argument) {
    struct publish *p = argument;
    for (;;) {
        struct job *job = NULL;
        uint32_t took = 0;
        while (took < REPORTS_ROOM && (job = ring_pop(&p->inbox)) != NULL) {
            job_news(p, job);
            took++;
        }
        took += take_reports(p, 0);
        int64_t now_us = clock_mono_us();
        int64_t due_us = frames_due(p, now_us);
        if (atomic_load(&p->finishing)) {
            p->all_delivered = p->open_count == 0 && ring_count(&p->inbox) == 0;
            if (p->all_delivered || now_us >= atomic_load(&p->finish_until_us)) {
                return NULL;
            }
        }
        if (took == 0) {
            int64_t wait_ms = p->outstanding > 0 ? WAIT_REPORTS_MS : WAIT_IDLE_MS;
            int64_t until_due = due_us == INT64_MAX ? wait_ms : (due_us - now_us) / 1000 + 1;
            (void)bell_wait(&p->bell, (uint32_t)(until_due < wait_ms ? until_due : wait_ms));
        }
    }
}

enum err publish_open(struct publish **out, const struct publish_options *options) {
    struct publish *p = calloc(1, sizeof *p);
    if (p == NULL) {
        return ERR_NO_MEMORY;
    }
    p->options = *options;
    bell_init(&p->bell);
    p->active = calloc(options->jobs_max, sizeof(struct job *));
    if (p->active == NULL || ring_init(&p->inbox, options->jobs_max) != ERR_OK ||
        pthread_create(&p->thread, NULL, publish_main, p) != 0) {
        publish_close(p);
        return ERR_NO_MEMORY;
    }
    p->started = true;
    *out = p;
    return ERR_OK;
}

bool publish_finish(struct publish *p, uint32_t timeout_ms) {
    CHECK(p->started);
    atomic_store(&p->finish_until_us, clock_mono_us() + (int64_t)timeout_ms * 1000);
    atomic_store(&p->finishing, true);
    bell_ring(&p->bell);
    (void)pthread_join(p->thread, NULL);
    p->started = false;
    return p->all_delivered;
}

void publish_close(struct publish *p) {
    if (p == NULL) {
        return;
    }
    if (p->started) {
        (void)publish_finish(p, 0);
    }
    ring_deinit(&p->inbox);
    free(p->active);
    wire_buffer_deinit(&p->buffer);
    free(p);
}
