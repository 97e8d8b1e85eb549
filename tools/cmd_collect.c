/* cmd_collect.c - `lorry collect`: the finals of a batch, from the results topic into files. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "tools/broker.h"
#include "tools/finals.h"
#include "tools/json.h"
#include "tools/part.h"
#include "tools/tool.h"

enum { POLL_MS = 200, SECONDS_MAX = 30 * 24 * 3600, MARK_US = 1000000 };

static const char *const own_flags[] = {
    "-o=", "--errors=", "--format=", "--timeout=", "--quiet", "--json", NULL};

static const char help[] =
    "Reads the results topic from where it stood when the batch was submitted, until each of its\n"
    "jobs has a final, and writes them in the order of the input's lines. Of several finals of a\n"
    "job the one of the greatest attempt counts. Nothing is committed: collecting again gives the\n"
    "same. The finals are in memory until the end; OUT appears when it is whole. Until then they\n"
    "are in OUT.part, too: who collects again, after an interruption or a crash, goes on there.\n"
    "\n"
    "  -o OUT         the output; - or nothing is stdout\n"
    "  --errors ERR   jobs that did not succeed go here instead of OUT\n"
    "  --format HOW   jsonl (default): finals; openai: lines of an OpenAI batch output file, and\n"
    "                 of its error file, OUT.errors unless --errors says where\n"
    "  --timeout S    give up after S seconds: what is there is written, and the exit code is 5\n"
    "  --quiet        no progress line\n"
    "  --json         the summary as an object: on stdout, or on stderr beside answers on stdout\n"
    "\n"
    "  lorry collect jobs.jsonl.lorry.json -o results.jsonl\n"
    "  lorry collect batch.jsonl.lorry.json -o output.jsonl --errors errors.jsonl --format "
    "openai\n";

struct collect {
    const struct tool *tool;
    struct manifest manifest;
    struct reader reader;
    struct finals finals;
    struct progress progress;
    uint64_t foreign, undecodable;
    uint32_t wanted; /* distinct ids */
    int64_t until_us;
    const char *out; /* where OUT.part stands beside; NULL = none is kept */
    struct part part;
    int64_t *offsets; /* owned; the next of each partition */
    uint32_t partition_count;
    int64_t marked_us;
    uint32_t kept; /* finals that OUT.part had */
};

/* ---- reading ------------------------------------------------------------------------------ */

/* From the manifest's offset, or what retention has left. */
static enum err start_partition(struct collect *c, uint32_t partition, struct err_text *why) {
    const struct manifest *m = &c->manifest;
    const char *topic = m->results_topic;
    int64_t begin = c->offsets[partition];
    int64_t low = 0;
    int64_t high = 0;
    enum err e = broker_offsets(c->reader.rk, topic, partition, &low, &high, why);
    if (e != ERR_OK) {
        return e;
    }
    if (begin > high) {
        return err_set(why, ERR_BROKER,
                       "%s, partition %u ends at %" PRId64 ", the batch began at %" PRId64
                       ": the topic was made anew, or this is another cluster",
                       topic, partition, high, begin);
    }
    if (begin < low) {
        if (partition < m->partition_count) {
            tool_note("%s, partition %u: results before offset %" PRId64
                      " are gone (retention); the batch began at %" PRId64,
                      topic, partition, low, begin);
        }
        begin = low;
        c->offsets[partition] = low;
    }
    return reader_start(&c->reader, 0, partition, begin, why);
}

/* Where to begin: as the manifest says, or where an earlier collect stopped. */
static enum err find_begin(struct collect *c, struct err_text *why) {
    const struct manifest *m = &c->manifest;
    c->offsets = calloc(c->partition_count, sizeof *c->offsets);
    if (c->offsets == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for the offsets");
    }
    /* a partition that came later is read whole */
    memcpy(c->offsets, m->offsets, m->partition_count * sizeof *c->offsets);
    if (c->out == NULL) {
        return ERR_OK;
    }
    enum err e = part_open(&c->part, c->out, m, &c->finals, c->offsets, c->partition_count, why);
    c->kept = c->finals.count;
    if (e == ERR_OK && c->kept > 0) {
        tool_note("going on with the %u finals of %s", c->kept, c->part.path);
    }
    return e;
}

static enum err start(struct collect *c, struct err_text *why) {
    const struct config *config = c->tool->config;
    const char *topics[READER_TOPICS_MAX] = {c->manifest.results_topic, NULL};
    const struct rd_kafka_metadata *metadata = NULL;
    enum err e = reader_open(&c->reader, config, topics, why);
    if (e == ERR_OK) {
        e = broker_wait(c->reader.rk, config, config->kafka_start_timeout_s * 1000, &metadata, why);
    }
    if (e != ERR_OK) {
        return e;
    }
    uint32_t partitions = broker_partitions(metadata, topics[0]);
    rd_kafka_metadata_destroy(metadata);
    if (partitions < c->manifest.partition_count) {
        return partitions == 0
                   ? broker_missing(topics[0], why)
                   : err_set(why, ERR_BROKER,
                             "%s has %u partitions, the batch was submitted when it had "
                             "%u: the topic was made anew, or this is another cluster",
                             topics[0], partitions, c->manifest.partition_count);
    }
    c->partition_count = partitions;
    e = find_begin(c, why);
    for (uint32_t i = 0; i < partitions && e == ERR_OK; i++) {
        e = start_partition(c, i, why);
    }
    return e;
}

/* Without it the finals are still in memory. */
static void give_up_part(struct collect *c, enum err e, const struct err_text *why) {
    if (e != ERR_OK) {
        progress_clear(&c->progress);
        tool_note("no partial result is kept: %s", why->message);
        part_close(&c->part, false);
    }
}

static void keep(struct collect *c, const rd_kafka_message_t *m) {
    struct err_text why = {0};
    if (c->part.file != NULL) {
        enum err e = part_add(&c->part, m->payload, m->len, &why);
        give_up_part(c, e, &why);
    }
}

/* All that was read so far is in OUT.part. */
static void mark(struct collect *c) {
    struct err_text why = {0};
    if (c->part.file != NULL) {
        c->marked_us = clock_mono_us();
        enum err e = part_mark(&c->part, c->offsets, c->partition_count, &why);
        give_up_part(c, e, &why);
    }
}

static enum err take(struct collect *c, const rd_kafka_message_t *m, struct err_text *why) {
    struct wire_final final;
    struct err_text bad = {0};
    if (m->payload == NULL) { /* a tombstone */
        return ERR_OK;
    }
    enum err e = wire_final_decode(&final, m->payload, m->len, &bad);
    if (e == ERR_NO_MEMORY) {
        *why = bad;
    } else if (e != ERR_OK) { /* another's: not ours to judge */
        if (c->undecodable++ == 0) {
            progress_clear(&c->progress);
            tool_note("passed over a record that is no final, partition %d offset %" PRId64 ": %s",
                      m->partition, m->offset, bad.message);
        }
        e = ERR_OK;
    } else if (!manifest_has(&c->manifest, final.batch_id)) {
        c->foreign++;
    } else {
        e = finals_upsert(&c->finals, c->manifest.batch_id, &final, m->payload, m->len);
        if (e == ERR_NO_MEMORY) {
            (void)err_set(why, e, "no memory for %u finals", c->finals.count + 1);
        } else if (e == ERR_OK) {
            keep(c, m);
        }
    }
    wire_final_deinit(&final);
    return e;
}

static void show(struct collect *c) {
    if (!progress_due(&c->progress)) {
        return;
    }
    uint32_t done = c->finals.count;
    uint64_t good = c->finals.statuses[WIRE_SUCCEEDED];
    double seconds = progress_seconds(&c->progress);
    char left[48] = "";
    char bad[48] = "";
    char time[32];
    if (done > c->kept && done < c->wanted && c->manifest.complete) {
        (void)snprintf(left, sizeof left, " · about %s left",
                       tool_duration(time, seconds / (done - c->kept) * (c->wanted - done)));
    }
    if (done > good) {
        (void)snprintf(bad, sizeof bad, " (%" PRIu64 " not succeeded)", done - good);
    }
    progress_line(&c->progress, "%u of %u jobs%s · %.0f tokens/s%s", done,
                  c->manifest.complete ? c->wanted : done, bad,
                  seconds > 0 ? (double)c->finals.tokens / seconds : 0.0, left);
}

static enum err gather(struct collect *c, struct err_text *why) {
    enum err e = ERR_OK;
    while (e == ERR_OK && c->finals.count < c->wanted && !tool_interrupted() &&
           clock_mono_us() < c->until_us) {
        rd_kafka_message_t *m = NULL;
        e = reader_next(&c->reader, POLL_MS, &m, why);
        if (m != NULL) {
            e = take(c, m, why);
            if (m->partition >= 0 && (uint32_t)m->partition < c->partition_count) {
                c->offsets[m->partition] = m->offset + 1;
            }
            rd_kafka_message_destroy(m);
        }
        if (clock_mono_us() - c->marked_us >= MARK_US) {
            mark(c);
        }
        show(c);
    }
    progress_clear(&c->progress);
    mark(c);
    return e;
}

/* ---- writing ------------------------------------------------------------------------------ */

static enum err write_entry(const struct finals_entry *entry, enum finals_format format,
                            struct output *to, struct wire_buffer *line, struct err_text *why) {
    line->bytes = 0;
    enum err e = finals_line(entry, format, line, why);
    if (e == ERR_OK && fwrite(line->data, 1, line->bytes, to->file) != line->bytes) {
        e = err_set(why, ERR_BAD_CONFIG, "write %s: %s", to->path, strerror(errno));
    }
    return e;
}

static enum err write_files(struct collect *c, const char *out, const char *errors,
                            enum finals_format format, struct err_text *why) {
    struct output good = {0};
    struct output other = {0};
    struct wire_buffer line = {0};
    finals_sort(&c->finals);
    enum err e = output_open(&good, out, why);
    if (e == ERR_OK && errors != NULL) { /* also an empty one: none of an earlier run stays */
        e = output_open(&other, errors, why);
    }
    for (uint32_t i = 0; i < c->finals.count && e == ERR_OK; i++) {
        const struct finals_entry *entry = &c->finals.entries[i];
        bool aside = other.file != NULL && entry->status != WIRE_SUCCEEDED;
        e = write_entry(entry, format, aside ? &other : &good, &line, why);
    }
    if (e == ERR_OK && other.file != NULL) {
        e = output_commit(&other, why);
    }
    if (e == ERR_OK) {
        e = output_commit(&good, why);
    }
    output_abandon(&good);
    output_abandon(&other);
    wire_buffer_deinit(&line);
    return e;
}

static void report_json(const struct collect *c, FILE *out) {
    const struct manifest *m = &c->manifest;
    bool known = m->complete;
    uint32_t missing = known && c->finals.count < c->wanted ? c->wanted - c->finals.count : 0;
    json_line(out, json_pack("{ss, sI, so, so, so}", "batch_id", m->batch_id, "finals",
                             (json_int_t)c->finals.count, "jobs",
                             known ? json_integer(c->wanted) : json_null(), "missing",
                             known ? json_integer(missing) : json_null(), "statuses",
                             json_statuses(c->finals.statuses, FINALS_STATUSES)));
}

static void report_text(const struct collect *c) {
    char counts[256] = "";
    size_t at = 0;
    for (int i = 0; i < FINALS_STATUSES; i++) {
        if (c->finals.statuses[i] > 0) {
            at += (size_t)snprintf(counts + at, sizeof counts - at, "%s%" PRIu64 " %s",
                                   at > 0 ? ", " : "", c->finals.statuses[i],
                                   wire_status_name((enum wire_status)i));
        }
    }
    tool_note("%u finals of batch %s: %s", c->finals.count, c->manifest.batch_id,
              at > 0 ? counts : "none");
}

/* `json`: where to print the summary as JSON; NULL = as text. */
static int report(const struct collect *c, FILE *json) {
    if (json != NULL) {
        report_json(c, json);
    } else {
        report_text(c);
    }
    if (!c->manifest.complete) {
        tool_note("its submit did not finish, so there may be more");
        return EXIT_BROKER;
    }
    if (c->finals.count < c->wanted) {
        tool_note("timed out: %u of %u jobs have no final yet; collect again to get all",
                  c->wanted - c->finals.count, c->wanted);
        return EXIT_BROKER;
    }
    return c->finals.statuses[WIRE_SUCCEEDED] == c->finals.count ? EXIT_DONE : EXIT_JOBS;
}

/* ---- the command -------------------------------------------------------------------------- */

/* OUT.errors for OpenAI's two files; *owned is to be freed. */
static enum err errors_path(const struct tool *t, const char *out, enum finals_format format,
                            const char **errors, char **owned, struct err_text *why) {
    *errors = tool_flag(t, "--errors");
    *owned = NULL;
    if (*errors == NULL && format == FINALS_OPENAI && strcmp(out, "-") != 0) {
        size_t room = strlen(out) + sizeof ".errors";
        *owned = malloc(room);
        if (*owned == NULL) {
            return err_set(why, ERR_NO_MEMORY, "no memory for a path");
        }
        (void)snprintf(*owned, room, "%s.errors", out);
        *errors = *owned;
    }
    if (*errors != NULL && strcmp(*errors, out) == 0) {
        *errors = NULL; /* one file for both */
    }
    return ERR_OK;
}

/* stdout, pipes and devices have nothing beside them. */
static bool may_keep_part(const char *out) {
    struct stat st;
    return strcmp(out, "-") != 0 && (stat(out, &st) != 0 || S_ISREG(st.st_mode));
}

static enum err collect(struct collect *c, int64_t timeout_s, struct err_text *why) {
    enum err e = manifest_read(&c->manifest, c->tool->arguments[0], why);
    if (e == ERR_OK && !c->manifest.complete && timeout_s == 0) {
        e = err_set(why, ERR_BAD_CONFIG,
                    "%s: its submit did not finish, so how many answers will come is not known; "
                    "`lorry submit FILE --resume` finishes it, --timeout S collects for S seconds",
                    c->tool->arguments[0]);
    }
    if (e != ERR_OK) {
        return e;
    }
    c->wanted = c->manifest.complete ? c->manifest.count : UINT32_MAX;
    e = start(c, why);
    c->until_us = timeout_s > 0 ? clock_mono_us() + timeout_s * 1000000 : INT64_MAX;
    progress_init(&c->progress, tool_flag(c->tool, "--quiet") != NULL);
    return e == ERR_OK ? gather(c, why) : e;
}

static int run(const struct tool *t) {
    const char *format_name = tool_flag(t, "--format");
    const char *timeout = tool_flag(t, "--timeout");
    const char *out = tool_flag(t, "-o");
    const char *errors = NULL;
    char *owned = NULL;
    int64_t timeout_s = 0;
    struct err_text why = {0};
    struct collect c = {.tool = t};
    enum finals_format format = FINALS_JSONL;
    if (t->argument_count != 1) {
        return tool_usage(t, "collect takes one manifest, the .lorry.json that submit wrote");
    }
    if (format_name != NULL && strcmp(format_name, "openai") == 0) {
        format = FINALS_OPENAI;
    } else if (format_name != NULL && strcmp(format_name, "jsonl") != 0) {
        return tool_usage(t, "--format takes jsonl or openai, not '%s'", format_name);
    }
    out = out != NULL ? out : "-";
    c.out = may_keep_part(out) ? out : NULL;
    tool_catch_interrupts();
    enum err e = ERR_OK;
    if (timeout != NULL) {
        e = tool_int("--timeout", timeout, 1, SECONDS_MAX, &timeout_s, &why);
    }
    if (e == ERR_OK) {
        e = errors_path(t, out, format, &errors, &owned, &why);
    }
    if (e == ERR_OK) {
        e = collect(&c, timeout_s, &why);
    }
    if (e == ERR_OK && tool_interrupted()) {
        e = err_set(
            &why, ERR_INTERNAL, "interrupted with %u of %u finals%s", c.finals.count, c.wanted,
            c.part.file != NULL ? "; collect again to go on from here" : "; nothing was written");
    }
    if (e == ERR_OK) {
        e = write_files(&c, out, errors, format, &why);
    }
    FILE *json = tool_flag(t, "--json") == NULL ? NULL : strcmp(out, "-") == 0 ? stderr : stdout;
    int code = e == ERR_OK ? report(&c, json) : tool_fail(e, &why);
    part_close(&c.part, e == ERR_OK && c.manifest.complete && c.finals.count >= c.wanted);
    free(c.offsets);
    reader_close(&c.reader);
    finals_deinit(&c.finals);
    manifest_deinit(&c.manifest);
    free(owned);
    return code;
}

const struct command cmd_collect = {
    .name = "collect",
    .arguments =
        "MANIFEST [-o OUT] [--errors ERR] [--format jsonl|openai] [--timeout S] [--quiet] [--json]",
    .summary = "wait for a batch's answers and write them to a file",
    .help = help,
    .own_flags = own_flags,
    .run = run,
};
