/* cmd_submit.c - `lorry submit`: a file's lines become jobs on Kafka.
 *
 * A regular file is read twice: nothing is sent before all lines are known to be good. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "tools/batch.h"
#include "tools/broker.h"
#include "tools/settled.h"
#include "tools/tool.h"

enum {
    POLL_MS = 100,
    FLUSH_MS_AFTER_INTERRUPT = 10000,
    NOTE_US = 1000000, /* how often the manifest tells how far it came */
};

static const char *const own_flags[] = {"--topic=", "--manifest=", "--key-by=", "--skip-bad",
                                        "--resume", "--quiet",     NULL};

static const char help[] =
    "Sends every line of FILE (- is stdin) as a job to the jobs topic and waits until the broker\n"
    "has taken all of them. A line is a job of ours\n"
    "\n"
    "  {\"adapter\": \"pirate\", \"prompt\": \"Hello\", \"max_tokens\": 20}\n"
    "\n"
    "or a line of an OpenAI batch file, whose body.model names the adapter\n"
    "\n"
    "  {\"custom_id\": \"a\", \"url\": \"/v1/chat/completions\", \"body\": {\"model\": \"pirate\", "
    "\"messages\": …}}\n"
    "\n"
    "Jobs without an id get <batch id>/<line, from 0>. An adapter that is the model's name is the\n"
    "base; where --model is not given here, --model.name NAME says it.\n"
    "FILE.lorry.json, the manifest, is what `lorry collect` needs to find the answers.\n"
    "A file with a bad line is not sent at all; stdin stops at the first bad line.\n"
    "\n"
    "  --topic T        the jobs topic; the first of kafka.jobs if not given\n"
    "  --manifest PATH  instead of FILE.lorry.json; stdin has none unless this says where\n"
    "  --key-by HOW     adapter (default): an adapter's jobs stay together; none: spread evenly\n"
    "  --skip-bad       leave bad lines out, and exit with 1 if there were any\n"
    "  --resume         go on with FILE where an interrupted submit of it stopped, as the "
    "manifest\n"
    "                   tells: the same batch, the same ids. Jobs that had been sent in the last\n"
    "                   second before a crash may be sent again; collect takes one final of an id\n"
    "  --quiet          no progress line\n"
    "\n"
    "  lorry submit jobs.jsonl\n"
    "  generate-jobs | lorry submit - --manifest today.json --kafka.brokers kafka1:9092\n";

struct submit {
    const struct tool *tool;
    struct lines lines;
    struct batch batch;
    struct wire_options options;
    char name[TOOL_NAME_BYTES];
    const char *topic;
    bool by_adapter, skip_bad;
    uint64_t bad, unknown_fields;
    bool told; /* the bad lines, by the first pass */
    rd_kafka_t *rk;
    struct manifest manifest;
    const char *manifest_path; /* NULL = none */
    char *manifest_owned;
    struct progress progress;
    uint64_t sent, delivered, refused;
    bool resume;
    uint64_t first_count; /* resumed: jobs of those lines */
    uint64_t from_line;   /* resumed: earlier lines were submitted */
    uint64_t total;       /* jobs of a regular file that are to be sent; 0 = not known */
    struct settled settled;
    int64_t noted_us;
    bool later; /* a job was not taken for a reason that passes */
};

/* ---- lines -------------------------------------------------------------------------------- */

static void say_bad(struct submit *s, const struct err_text *why) {
    if (s->bad++ < TOOL_SHOWN_MAX && !s->told) {
        bool named = why->field[0] == '\0' || strstr(why->message, why->field) != NULL;
        progress_clear(&s->progress);
        (void)fprintf(stderr, "%s:%" PRIu64 ": %s%s%s\n", s->lines.name, s->lines.index + 1,
                      named ? "" : why->field, named ? "" : ": ", why->message);
    }
}

/* The next good line as a record. Bad ones are told and passed over, or with `stop` end it.
 * false: the end, or an error in *e. */
static bool next_record(struct submit *s, bool stop, struct batch_record *r, enum err *e,
                        struct err_text *why) {
    *e = ERR_OK;
    while (!tool_interrupted()) {
        struct err_text bad = {0};
        enum lines_next next = lines_next(&s->lines);
        if (next == LINES_END || (next == LINES_FAILED && tool_interrupted())) {
            return false;
        }
        if (next == LINES_FAILED) {
            *e = err_set(why, ERR_BAD_CONFIG, "read %s: %s", s->lines.name, strerror(errno));
            return false;
        }
        if (next == LINES_TOO_LONG) {
            *e = err_set(&bad, ERR_TOO_LARGE, "longer than %d bytes", BATCH_LINE_BYTES_MAX);
        } else {
            *e = batch_convert(&s->batch, s->lines.index, s->lines.text, s->lines.bytes,
                               &s->options, r, &bad);
        }
        if (*e == ERR_OK) {
            return true;
        }
        batch_record_deinit(r);
        if (err_disposition(*e) == ERR_FATAL) {
            *why = bad;
            return false;
        }
        say_bad(s, &bad);
        if (stop) {
            *e = err_set(why, ERR_BAD_CONFIG, "stopped at a bad line");
            return false;
        }
        *e = ERR_OK;
    }
    return false;
}

/* The first pass over a regular file. */
static enum err validate(struct submit *s, struct err_text *why) {
    struct batch_record r = {0};
    enum err e = ERR_OK;
    uint64_t good = 0;
    while (next_record(s, false, &r, &e, why)) {
        batch_record_deinit(&r);
        good++;
        if (progress_due(&s->progress)) {
            progress_line(&s->progress, "checking %" PRIu64, good);
        }
    }
    progress_clear(&s->progress);
    if (e != ERR_OK) {
        return e;
    }
    if (s->bad > TOOL_SHOWN_MAX) {
        (void)fprintf(stderr, "… and %" PRIu64 " more\n", s->bad - TOOL_SHOWN_MAX);
    }
    if (s->bad > 0 && !s->skip_bad) {
        return err_set(why, ERR_BAD_CONFIG,
                       "%" PRIu64 " bad line%s of %" PRIu64 "; nothing was submitted (--skip-bad "
                       "leaves such lines out)",
                       s->bad, s->bad == 1 ? "" : "s", s->bad + good);
    }
    if (tool_interrupted()) {
        return err_set(why, ERR_INTERNAL, "interrupted; nothing was submitted");
    }
    if (good == 0) {
        return err_set(why, ERR_BAD_CONFIG, "%s has no jobs", s->lines.name);
    }
    s->told = true;
    s->bad = 0;
    s->total = good > s->first_count ? good - s->first_count : 0;
    ids_deinit(&s->batch.ids);
    ids_deinit(&s->batch.others);
    return lines_rewind(&s->lines, why);
}

/* ---- the broker --------------------------------------------------------------------------- */

static void on_delivery(rd_kafka_t *rk, const rd_kafka_message_t *m, void *opaque) {
    (void)rk;
    struct submit *s = opaque;
    uint64_t number = (uintptr_t)m->_private;
    if (m->err == RD_KAFKA_RESP_ERR_NO_ERROR) {
        s->delivered++;
        settled_done(&s->settled, number);
        return;
    }
    if (s->refused++ < TOOL_SHOWN_MAX) {
        progress_clear(&s->progress);
        (void)fprintf(stderr, "%s:%" PRIu64 ": not taken by the broker: %s\n", s->lines.name,
                      settled_line(&s->settled, number) + 1, rd_kafka_err2str(m->err));
    }
    s->later = s->later || m->err != RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
}

static enum err open_producer(struct submit *s, struct err_text *why) {
    char bytes[32];
    (void)snprintf(bytes, sizeof bytes, "%d", BROKER_JOB_BYTES_MAX);
    const struct broker_property extra[] = {
        {"enable.idempotence", "true"}, /* a retry makes no second job */
        {"linger.ms", "20"},
        {"sticky.partitioning.linger.ms", "0"}, /* jobs without a key go everywhere, not in turns */
        {"message.max.bytes", bytes},
        {"queue.buffering.max.kbytes", "65536"},
        {NULL, NULL},
    };
    const struct broker_options options = {
        .type = RD_KAFKA_PRODUCER, .extra = extra, .delivered = on_delivery, .opaque = s};
    return broker_open(&s->rk, s->tool->config, &options, why);
}

/* Where the results topic stands before the first job: no answer is earlier. */
static enum err note_offsets(struct submit *s, const struct rd_kafka_metadata *metadata,
                             struct err_text *why) {
    struct manifest *m = &s->manifest;
    uint32_t count = broker_partitions(metadata, m->results_topic);
    if (count == 0) {
        return broker_missing(m->results_topic, why);
    }
    m->offsets = calloc(count, sizeof *m->offsets);
    if (m->offsets == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for the offsets");
    }
    m->partition_count = count;
    enum err e = ERR_OK;
    for (uint32_t i = 0; i < count && e == ERR_OK; i++) {
        int64_t low = 0;
        e = broker_offsets(s->rk, m->results_topic, i, &low, &m->offsets[i], why);
    }
    return e;
}

static enum err reach_broker(struct submit *s, struct err_text *why) {
    const struct config *c = s->tool->config;
    const struct rd_kafka_metadata *metadata = NULL;
    enum err e = open_producer(s, why);
    if (e == ERR_OK) {
        e = broker_wait(s->rk, c, c->kafka_start_timeout_s * 1000, &metadata, why);
    }
    if (e == ERR_OK && broker_partitions(metadata, s->topic) == 0) {
        e = broker_missing(s->topic, why);
    }
    if (e == ERR_OK && s->manifest_path != NULL && !s->resume) {
        e = note_offsets(s, metadata, why);
    }
    if (metadata != NULL) {
        rd_kafka_metadata_destroy(metadata);
    }
    return e;
}

/* Hands one record to the client. ERR_BROKER: nothing more can be sent. */
static enum err produce(struct submit *s, const struct batch_record *r, struct err_text *why) {
    struct wire_str key = s->by_adapter ? r->job.adapter : (struct wire_str){0};
    const char *type = wire_content_type(WIRE_JSON);
    uint64_t number = 0;
    if (settled_send(&s->settled, s->lines.index, &number) != ERR_OK) {
        return err_set(why, ERR_NO_MEMORY, "no memory for a job that was sent");
    }
    void *opaque = (void *)(uintptr_t)number;
    for (;;) {
        rd_kafka_resp_err_t err = rd_kafka_producev(
            s->rk, RD_KAFKA_V_TOPIC(s->topic), RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
            RD_KAFKA_V_KEY(key.data, key.bytes), /* none: any partition */
            RD_KAFKA_V_VALUE((void *)(uintptr_t)r->value, r->bytes),
            RD_KAFKA_V_HEADER("content-type", type, -1), RD_KAFKA_V_OPAQUE(opaque), RD_KAFKA_V_END);
        if (err == RD_KAFKA_RESP_ERR_NO_ERROR) {
            s->sent++;
            return ERR_OK;
        }
        if (err == RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE) {
            rd_kafka_message_t m = {.err = err, ._private = opaque};
            on_delivery(s->rk, &m, s);
            return ERR_OK;
        }
        if (err != RD_KAFKA_RESP_ERR__QUEUE_FULL) {
            return err_set(why, ERR_BROKER, "sending to %s: %s", s->topic, rd_kafka_err2str(err));
        }
        (void)rd_kafka_poll(s->rk, POLL_MS);
    }
}

static void show(struct submit *s) {
    if (progress_due(&s->progress)) {
        double seconds = progress_seconds(&s->progress);
        double rate = seconds > 0 ? (double)s->delivered / seconds : 0.0;
        char left[64] = "";
        char time[32];
        if (s->total > s->delivered && rate > 0) {
            (void)snprintf(left, sizeof left, " · about %s left",
                           tool_duration(time, (double)(s->total - s->delivered) / rate));
        }
        progress_line(&s->progress, "submitted %" PRIu64 " of %" PRIu64 "%s · %.0f jobs/s%s",
                      s->delivered, s->total > 0 ? s->total : s->sent,
                      s->total > 0 ? "" : " so far", rate, left);
    }
}

/* Tells the manifest how far it came, now and then. */
static void note_progress(struct submit *s) {
    int64_t now_us = clock_mono_us();
    if (s->manifest_path != NULL && now_us - s->noted_us >= NOTE_US) {
        struct err_text ignored = {0}; /* the last write tells */
        s->noted_us = now_us;
        s->manifest.lines = s->settled.lines;
        s->manifest.count = (uint32_t)s->settled.count;
        (void)!manifest_write(&s->manifest, s->manifest_path, &ignored);
    }
}

/* Waits for all delivery reports; after an interruption only for a while. */
static void flush(struct submit *s) {
    int64_t until_us = INT64_MAX;
    while (rd_kafka_outq_len(s->rk) > 0 && clock_mono_us() < until_us) {
        if (tool_interrupted() && until_us == INT64_MAX) {
            until_us = clock_mono_us() + (int64_t)FLUSH_MS_AFTER_INTERRUPT * 1000;
        }
        (void)rd_kafka_poll(s->rk, POLL_MS);
        note_progress(s);
        show(s);
    }
}

static enum err send_all(struct submit *s, struct err_text *why) {
    struct batch_record r = {0};
    enum err e = ERR_OK;
    bool stop = !s->skip_bad;
    while (next_record(s, stop, &r, &e, why)) {
        if (s->lines.index < s->from_line) {
            batch_record_deinit(&r); /* seen again for its ids only */
            continue;
        }
        s->unknown_fields += r.job.unknown_fields;
        e = s->sent < IDS_MAX ? produce(s, &r, why)
                              : err_set(why, ERR_BAD_CONFIG, "more than %d jobs", IDS_MAX);
        batch_record_deinit(&r);
        if (e != ERR_OK) {
            break;
        }
        (void)rd_kafka_poll(s->rk, 0);
        note_progress(s);
        show(s);
    }
    flush(s);
    progress_clear(&s->progress);
    return e;
}

/* ---- the manifest ------------------------------------------------------------------------- */

static uint64_t input_bytes(const struct submit *s) {
    struct stat st;
    return s->lines.regular && fstat(fileno(s->lines.file), &st) == 0 ? (uint64_t)st.st_size : 0;
}

/* Takes up the batch of a submit that was cut off. *nothing: it was not. */
static enum err resume(struct submit *s, bool *nothing, struct err_text *why) {
    struct manifest *m = &s->manifest;
    const char *topic = tool_flag(s->tool, "--topic");
    if (!s->lines.regular || s->manifest_path == NULL) {
        return err_set(why, ERR_BAD_CONFIG, "--resume needs a file: stdin cannot be read again");
    }
    enum err e = manifest_read(m, s->manifest_path, why);
    if (e != ERR_OK) {
        return e;
    }
    if (m->input_bytes != 0 && m->input_bytes != input_bytes(s)) {
        return err_set(why, ERR_BAD_CONFIG,
                       "%s had %" PRIu64 " bytes when it was submitted and has %" PRIu64
                       " now: not the same file",
                       s->lines.name, m->input_bytes, input_bytes(s));
    }
    if (topic != NULL && strcmp(topic, m->topic) != 0) {
        return err_set(why, ERR_BAD_CONFIG, "the batch was begun on topic %s, not %s", m->topic,
                       topic);
    }
    *nothing = m->complete;
    s->topic = m->topic;
    memcpy(s->batch.id, m->batch_id, sizeof s->batch.id);
    s->from_line = m->lines;
    s->first_count = m->count;
    s->settled = (struct settled){.lines = m->lines, .count = m->count};
    return ERR_OK;
}

/* A batch that was cut off is not begun anew by accident. */
static enum err keep_unfinished(const struct submit *s, struct err_text *why) {
    struct manifest old = {0};
    struct err_text ignored = {0};
    if (!s->lines.regular || s->manifest_path == NULL ||
        manifest_read(&old, s->manifest_path, &ignored) != ERR_OK) {
        return ERR_OK;
    }
    bool unfinished = !old.complete && old.input_bytes == input_bytes(s);
    manifest_deinit(&old);
    return unfinished ? err_set(why, ERR_BAD_CONFIG,
                                "an earlier submit of %s did not finish; --resume goes on with it, "
                                "or delete %s to begin anew; nothing was submitted",
                                s->lines.name, s->manifest_path)
                      : ERR_OK;
}

static enum err begin_manifest(struct submit *s, struct err_text *why) {
    struct manifest *m = &s->manifest;
    if (s->resume) {
        return ERR_OK;
    }
    m->input_bytes = input_bytes(s);
    memcpy(m->batch_id, s->batch.id, sizeof m->batch_id);
    m->topic = strdup(s->topic);
    m->results_topic = strdup(s->tool->config->kafka_results);
    m->submitted_ms = clock_wall_ms();
    return m->topic != NULL && m->results_topic != NULL
               ? ERR_OK
               : err_set(why, ERR_NO_MEMORY, "no memory for the manifest");
}

/* e: how sending ended. */
static enum err end_manifest(struct submit *s, enum err e, struct err_text *why) {
    struct manifest *m = &s->manifest;
    /* what cannot be resumed is as complete as it will ever be */
    uint64_t refused_for_good = s->refused;
    m->complete = !s->lines.regular || (e == ERR_OK && !tool_interrupted() && !s->later &&
                                        s->sent == s->delivered + refused_for_good);
    m->lines = s->settled.lines;
    m->count = (uint32_t)(m->complete ? s->first_count + s->delivered : s->settled.count);
    for (uint32_t i = 0; i < m->other_count; i++) { /* of the manifest that was resumed */
        free(m->other_batch_ids[i]);
    }
    m->other_count = 0;
    for (uint32_t i = 0; i < s->batch.others.count && i < BATCH_OTHERS_MAX; i++) {
        struct ids_item *item = &s->batch.others.items[i]; /* the text moves */
        m->other_batch_ids[m->other_count++] = item->id;
        item->id = NULL;
    }
    return manifest_write(m, s->manifest_path, why);
}

/* ---- the command -------------------------------------------------------------------------- */

static enum err set_up(struct submit *s, const char *path, struct err_text *why) {
    const struct tool *t = s->tool;
    const struct config *c = t->config;
    uint8_t random[10];
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random) {
        return err_set(why, ERR_BAD_CONFIG, "no random numbers: %s", strerror(errno));
    }
    wire_ulid(s->batch.id, clock_wall_ms(), random);
    s->options =
        (struct wire_options){.strict = c->wire_strict, .model_name = tool_model_name(c, s->name)};
    s->topic = tool_flag(t, "--topic");
    if (s->topic == NULL && c->kafka_jobs.count > 0) {
        s->topic = c->kafka_jobs.items[0];
    }
    if (s->topic == NULL) {
        return err_set(why, ERR_BAD_CONFIG, "no topic: give --topic or set kafka.jobs");
    }
    s->manifest_path = tool_flag(t, "--manifest");
    if (s->manifest_path == NULL && strcmp(path, "-") != 0) {
        size_t room = strlen(path) + sizeof ".lorry.json";
        s->manifest_owned = malloc(room);
        if (s->manifest_owned == NULL) {
            return err_set(why, ERR_NO_MEMORY, "no memory for a path");
        }
        (void)snprintf(s->manifest_owned, room, "%s.lorry.json", path);
        s->manifest_path = s->manifest_owned;
    }
    return lines_open(&s->lines, path, BATCH_LINE_BYTES_MAX, why);
}

static int report(struct submit *s, enum err e, const struct err_text *why) {
    uint64_t lost = s->sent > s->delivered + s->refused ? s->sent - s->delivered - s->refused : 0;
    if (s->sent > 0 || e == ERR_OK) {
        (void)printf("submitted %" PRIu64 "%s job%s to %s as batch %s\n", s->delivered,
                     s->resume ? " more" : "", s->delivered == 1 ? "" : "s", s->topic, s->batch.id);
        if (s->manifest_path != NULL) {
            (void)printf("collect the answers: lorry collect %s -o results.jsonl\n",
                         s->manifest_path);
        }
    }
    if (s->unknown_fields > 0) {
        tool_note("%" PRIu64 " unknown field%s ignored", s->unknown_fields,
                  s->unknown_fields == 1 ? " is" : "s are");
    }
    if (s->bad > 0 && (s->sent > 0 || e == ERR_OK)) {
        tool_note("%" PRIu64 " bad line%s not submitted", s->bad, s->bad == 1 ? " was" : "s were");
    }
    if (s->refused + lost > 0) {
        tool_note("%" PRIu64 " job%s not taken by the broker%s", s->refused + lost,
                  s->refused + lost == 1 ? " was" : "s were",
                  lost > 0 ? " in time (some may be there all the same)" : "");
    }
    if (s->sent > 0 && s->manifest_path != NULL && !s->manifest.complete) {
        tool_note("`lorry submit %s --resume` sends the rest", s->lines.name);
    }
    if (e != ERR_OK) {
        return tool_fail(e, why);
    }
    if (tool_interrupted()) {
        tool_note("interrupted: %s was not read to its end", s->lines.name);
        return EXIT_JOBS;
    }
    return s->refused + lost > 0 ? EXIT_BROKER : s->bad > 0 ? EXIT_JOBS : EXIT_DONE;
}

static enum err submit(struct submit *s, const char *path, struct err_text *why) {
    bool nothing = false;
    enum err e = set_up(s, path, why);
    progress_init(&s->progress, tool_flag(s->tool, "--quiet") != NULL);
    if (e == ERR_OK) {
        e = s->resume ? resume(s, &nothing, why) : keep_unfinished(s, why);
    }
    if (nothing) {
        tool_note("%s was submitted to its end; there is nothing to resume", path);
        return ERR_OK;
    }
    if (e == ERR_OK && s->lines.regular) {
        e = validate(s, why);
    }
    if (e == ERR_OK) {
        e = begin_manifest(s, why);
    }
    if (e == ERR_OK) {
        e = reach_broker(s, why);
    }
    if (e == ERR_OK && s->manifest_path != NULL) { /* if it cannot be written, nothing is sent */
        e = manifest_write(&s->manifest, s->manifest_path, why);
    }
    if (e != ERR_OK) {
        return e;
    }
    progress_init(&s->progress, tool_flag(s->tool, "--quiet") != NULL);
    e = send_all(s, why);
    if (s->manifest_path != NULL) {
        struct err_text other = {0};
        enum err written = end_manifest(s, e, &other);
        if (written != ERR_OK && e == ERR_OK) {
            *why = other;
            e = written;
        }
    }
    return e;
}

static int run(const struct tool *t) {
    const char *key_by = tool_flag(t, "--key-by");
    if (t->argument_count != 1) {
        return tool_usage(t, "submit takes one file, or - for stdin");
    }
    if (key_by != NULL && strcmp(key_by, "adapter") != 0 && strcmp(key_by, "none") != 0) {
        return tool_usage(t, "--key-by takes adapter or none, not '%s'", key_by);
    }
    struct submit s = {.tool = t,
                       .by_adapter = key_by == NULL || strcmp(key_by, "adapter") == 0,
                       .skip_bad = tool_flag(t, "--skip-bad") != NULL,
                       .resume = tool_flag(t, "--resume") != NULL};
    struct err_text why = {0};
    tool_catch_interrupts();
    enum err e = submit(&s, t->arguments[0], &why);
    int code = report(&s, e, &why);
    if (s.rk != NULL) {
        (void)rd_kafka_purge(s.rk, RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT);
        rd_kafka_destroy(s.rk);
    }
    settled_deinit(&s.settled);
    manifest_deinit(&s.manifest);
    batch_deinit(&s.batch);
    lines_close(&s.lines);
    free(s.manifest_owned);
    return code;
}

const struct command cmd_submit = {
    .name = "submit",
    .arguments = "FILE|- [--topic T] [--manifest PATH] [--key-by adapter|none] [--skip-bad] "
                 "[--resume] [--quiet]",
    .summary = "send a file of jobs, or of OpenAI batch lines, to Kafka",
    .help = help,
    .own_flags = own_flags,
    .run = run,
};
