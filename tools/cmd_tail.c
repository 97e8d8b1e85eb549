/* cmd_tail.c - `lorry tail`: a job's text as it is made.
 *
 * Frames and finals are on two topics, so either may be read first. The final has the whole text:
 * once it is there, what is not yet shown is taken from it. */
#include <inttypes.h>
#include <string.h>

#include "base/clock.h"
#include "tools/broker.h"
#include "tools/tail.h"
#include "tools/tool.h"
#include "wire/wire.h"

enum { POLL_MS = 100, LATE_FRAMES_US = 2000000, SECONDS_MAX = 30 * 24 * 3600, ID_BYTES_MAX = 400 };
enum { FRAMES, RESULTS };

static const char *const own_flags[] = {"--from-now", "--timeout=", NULL};

static const char help[] =
    "Prints the text of one job to stdout while a worker makes it, and ends with the job. A job\n"
    "that has ended is shown at once, as long as the topics keep it. Exit code 0: it succeeded.\n"
    "When a worker was lost and another starts the job again, a note on stderr says so, and the\n"
    "text that still counts is printed once more on a new line.\n"
    "\n"
    "  --from-now     only what comes from now on, without looking for the beginning\n"
    "  --timeout S    give up after S seconds, with exit code 5\n"
    "\n"
    "  lorry tail 01JD6Z8V4T3R5Y7W9X2B4N6M8K/0\n";

struct watch {
    const struct tool *tool;
    const char *id;
    bool from_now;
    struct reader reader;
    struct tail tail;
    size_t shown; /* bytes of the text */
    bool has_final;
    struct wire_final final;
    int64_t final_us;
};

/* ---- showing ------------------------------------------------------------------------------ */

static void put(const char *text, size_t bytes) {
    (void)fwrite(text, 1, bytes, stdout);
    (void)fflush(stdout);
}

static void show(struct watch *w, enum tail_news news) {
    if (news == TAIL_RESTART && w->shown > w->tail.text_bytes_kept) {
        put("\n", 1);
        tool_note("%sattempt %u begins again%s", tool_colour(stderr, TOOL_YELLOW), w->tail.attempt,
                  tool_colour(stderr, TOOL_PLAIN));
        w->shown = 0;
    }
    if (w->tail.text.bytes > w->shown) {
        put(w->tail.text.data + w->shown, w->tail.text.bytes - w->shown);
        w->shown = w->tail.text.bytes;
    }
}

/* The rest of the text. false: what was shown is no beginning of it, so more frames may come. */
static bool complete_by_final(struct watch *w) {
    struct wire_str whole = w->final.text;
    bool fits = w->shown <= whole.bytes &&
                (w->shown == 0 || memcmp(w->tail.text.data, whole.data, w->shown) == 0);
    if (!fits || (w->from_now && w->shown > 0)) {
        return false;
    }
    if (whole.bytes > w->shown) {
        put(whole.data + w->shown, whole.bytes - w->shown);
    }
    return true;
}

/* ---- reading ------------------------------------------------------------------------------ */

static enum err take_frame(struct watch *w, const rd_kafka_message_t *m) {
    struct wire_frame f;
    struct err_text ignored = {0};
    enum tail_news news = TAIL_NOTHING;
    enum err e = wire_frame_decode(&f, m->payload, m->len, &ignored);
    if (e == ERR_OK && f.id.bytes == strlen(w->id) && memcmp(f.id.data, w->id, f.id.bytes) == 0) {
        e = tail_frame(&w->tail, &f, &news);
        show(w, news);
    } else if (e != ERR_NO_MEMORY) { /* no frame of ours */
        e = ERR_OK;
    }
    wire_frame_deinit(&f);
    return e;
}

static enum err take_final(struct watch *w, const rd_kafka_message_t *m) {
    struct wire_final f;
    struct err_text ignored = {0};
    enum err e = wire_final_decode(&f, m->payload, m->len, &ignored);
    if (e == ERR_OK && f.id.bytes == strlen(w->id) && memcmp(f.id.data, w->id, f.id.bytes) == 0) {
        wire_final_deinit(&w->final);
        w->final = f; /* the latest: of a replay the topic has several */
        w->has_final = true;
        w->final_us = clock_mono_us();
        return ERR_OK;
    }
    wire_final_deinit(&f);
    return e == ERR_NO_MEMORY ? e : ERR_OK;
}

static enum err take(struct watch *w, const rd_kafka_message_t *m) {
    bool ours =
        m->payload != NULL && m->key_len == strlen(w->id) && memcmp(m->key, w->id, m->key_len) == 0;
    if (!ours) {
        return ERR_OK;
    }
    return m->rkt == w->reader.topics[FRAMES] ? take_frame(w, m) : take_final(w, m);
}

/* Whether all that will be shown is. */
static bool is_over(struct watch *w) {
    if (!w->has_final) {
        return false;
    }
    if (complete_by_final(w)) {
        return true;
    }
    if (!w->tail.ended && clock_mono_us() - w->final_us < LATE_FRAMES_US) {
        return false;
    }
    if (!w->from_now) { /* frames are gone, or are of an attempt that did not count */
        put("\n", 1);
        tool_note("the stream is not whole; the answer is");
        put(w->final.text.data, w->final.text.bytes);
    }
    return true;
}

static enum err follow(struct watch *w, int64_t timeout_s, struct err_text *why) {
    int64_t until_us = timeout_s > 0 ? clock_mono_us() + timeout_s * 1000000 : INT64_MAX;
    while (!tool_interrupted()) {
        rd_kafka_message_t *m = NULL;
        enum err e = reader_next(&w->reader, POLL_MS, &m, why);
        if (m != NULL) {
            e = take(w, m);
            rd_kafka_message_destroy(m);
        }
        if (e == ERR_OK && is_over(w)) {
            return ERR_OK;
        }
        if (e == ERR_OK && clock_mono_us() > until_us) {
            e = err_set(why, ERR_TIMED_OUT, "no end of job %s within %" PRId64 " s", w->id,
                        timeout_s);
        }
        if (e != ERR_OK) {
            return e;
        }
    }
    return err_set(why, ERR_INTERNAL, "interrupted");
}

/* The one partition that has the job's records: their key is its id. */
static enum err start_topic(struct watch *w, const struct rd_kafka_metadata *metadata,
                            uint32_t topic, struct err_text *why) {
    const char *name = rd_kafka_topic_name(w->reader.topics[topic]);
    uint32_t count = broker_partitions(metadata, name);
    if (count == 0) {
        return broker_missing(name, why);
    }
    int32_t partition = rd_kafka_msg_partitioner_murmur2(w->reader.topics[topic], w->id,
                                                         strlen(w->id), (int32_t)count, NULL, NULL);
    return reader_start(&w->reader, topic, (uint32_t)partition,
                        w->from_now ? RD_KAFKA_OFFSET_END : RD_KAFKA_OFFSET_BEGINNING, why);
}

static enum err start(struct watch *w, struct err_text *why) {
    const struct config *c = w->tool->config;
    const char *topics[READER_TOPICS_MAX] = {
        [FRAMES] = c->kafka_frames, [RESULTS] = c->kafka_results};
    const struct rd_kafka_metadata *metadata = NULL;
    enum err e = reader_open(&w->reader, c, topics, why);
    if (e == ERR_OK) {
        e = broker_wait(w->reader.rk, c, c->kafka_start_timeout_s * 1000, &metadata, why);
    }
    if (e == ERR_OK) {
        e = start_topic(w, metadata, FRAMES, why);
    }
    if (e == ERR_OK) {
        e = start_topic(w, metadata, RESULTS, why);
    }
    if (metadata != NULL) {
        rd_kafka_metadata_destroy(metadata);
    }
    return e;
}

static int report(const struct watch *w) {
    const struct wire_final *f = &w->final;
    if (f->text.bytes > 0 && f->text.data[f->text.bytes - 1] != '\n') {
        put("\n", 1);
    }
    if (f->status == WIRE_SUCCEEDED) {
        return EXIT_DONE;
    }
    const char *status = wire_status_name(f->status);
    bool coded = f->error_code != NULL && strcmp(f->error_code, status) != 0;
    tool_note("%s%s%s%s%s%s%.*s", tool_colour(stderr, TOOL_RED), status,
              tool_colour(stderr, TOOL_PLAIN), coded ? ": " : "", coded ? f->error_code : "",
              f->error_message.bytes > 0 ? ": " : "", (int)f->error_message.bytes,
              f->error_message.data != NULL ? f->error_message.data : "");
    return EXIT_JOBS;
}

static int run(const struct tool *t) {
    const char *timeout = tool_flag(t, "--timeout");
    int64_t timeout_s = 0;
    struct err_text why = {0};
    if (t->argument_count != 1 || t->arguments[0][0] == '\0' ||
        strlen(t->arguments[0]) > ID_BYTES_MAX) {
        return tool_usage(t, "tail takes the id of one job");
    }
    struct watch w = {
        .tool = t, .id = t->arguments[0], .from_now = tool_flag(t, "--from-now") != NULL};
    enum err e = ERR_OK;
    tool_catch_interrupts();
    if (timeout != NULL) {
        e = tool_int("--timeout", timeout, 1, SECONDS_MAX, &timeout_s, &why);
    }
    if (e == ERR_OK) {
        e = start(&w, &why);
    }
    if (e == ERR_OK) {
        e = follow(&w, timeout_s, &why);
    }
    int code = e == ERR_OK ? report(&w) : tool_fail(e, &why);
    reader_close(&w.reader);
    wire_final_deinit(&w.final);
    tail_deinit(&w.tail);
    return code;
}

const struct command cmd_tail = {
    .name = "tail",
    .arguments = "JOB [--from-now] [--timeout S]",
    .summary = "print a job's text while it is made",
    .help = help,
    .own_flags = own_flags,
    .run = run,
};
