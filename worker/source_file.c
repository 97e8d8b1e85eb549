/* source_file.c - the `file` source: JSON jobs line by line in, finals line by line out.
 *
 * Input and output are streams: a pipe works, and the file is never in memory as a whole. Nothing
 * is committed: what was done is in the output. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/check.h"
#include "worker/source.h"

enum { REPORTS_MAX = 1024 }; /* finals written whose reports were not fetched */

struct source {
    FILE *input, *output;
    const char *output_name;
    int64_t line; /* index of the next */
    bool told_assigned, ended, held;
    void *reports[REPORTS_MAX]; /* tags; ring */
    uint32_t report_head, report_count;
};

static void file_close(struct source *s) {
    if (s == NULL) {
        return;
    }
    if (s->input != NULL && s->input != stdin) {
        (void)fclose(s->input);
    }
    if (s->output != NULL && s->output != stdout) {
        (void)fclose(s->output);
    }
    free(s);
}

static bool blank(const char *line) {
    return line[strspn(line, " \t\r\n")] == '\0';
}

/* Reads the next line that is not blank. The record and the line share one allocation's fate. */
static struct source_record *read_line(struct source *s) {
    char *line = NULL;
    size_t room = 0;
    ssize_t bytes;
    do {
        bytes = getline(&line, &room, s->input);
        s->line += bytes >= 0;
    } while (bytes >= 0 && blank(line));
    struct source_record *r = bytes >= 0 ? calloc(1, sizeof *r) : NULL;
    if (r == NULL) {
        free(line);
        return NULL;
    }
    while (bytes > 0 && (line[bytes - 1] == '\n' || line[bytes - 1] == '\r')) {
        bytes--;
    }
    r->at = (struct source_at){.topic = 0, .partition = 0, .offset = s->line - 1};
    r->timestamp_ms = -1;
    r->value = line;
    r->value_bytes = (size_t)bytes;
    (void)snprintf(r->content_type, sizeof r->content_type, "application/json");
    r->handle = line;
    return r;
}

static void file_poll(struct source *s, struct source_event *event, uint32_t timeout_ms) {
    *event = (struct source_event){.kind = SOURCE_NOTHING};
    if (!s->told_assigned) {
        s->told_assigned = true;
        event->kind = SOURCE_ASSIGNED;
        return;
    }
    if (s->ended || s->held) {
        struct timespec pause = {.tv_nsec = (long)timeout_ms * 1000000};
        (void)nanosleep(&pause, NULL);
        return;
    }
    event->record = read_line(s);
    event->kind = SOURCE_RECORD;
    if (event->record == NULL) {
        s->ended = true;
        event->kind = SOURCE_END;
        if (ferror(s->input)) {
            event->kind = SOURCE_FATAL;
            event->error = ERR_BAD_CONFIG;
            (void)err_set(&event->why, ERR_BAD_CONFIG, "read line %lld: %s", (long long)s->line + 1,
                          strerror(errno));
        }
    }
}

static void file_free_record(struct source *s, struct source_record *record) {
    (void)s;
    free(record->handle);
    free(record);
}

static void file_hold(struct source *s, uint32_t topic, int32_t partition) {
    (void)topic;
    (void)partition;
    s->held = true;
}

static void file_release(struct source *s, uint32_t topic, int32_t partition) {
    (void)topic;
    (void)partition;
    s->held = false;
}

static enum err file_commit(struct source *s, uint32_t topic, int32_t partition, int64_t next,
                            const char *metadata, bool wait, struct err_text *why) {
    (void)s;
    (void)topic;
    (void)partition;
    (void)next;
    (void)metadata;
    (void)wait;
    (void)why;
    return ERR_OK;
}

static const char *file_topic_name(const struct source *s, uint32_t topic) {
    (void)s;
    CHECK(topic == 0);
    return "@file";
}

static enum err file_produce(struct source *s, const struct source_message *m,
                             struct err_text *why) {
    if (s->report_count == REPORTS_MAX) {
        return ERR_NO_SPACE;
    }
    if (m->output == SOURCE_FINAL) {
        bool written = fwrite(m->value, 1, m->value_bytes, s->output) == m->value_bytes &&
                       fputc('\n', s->output) != EOF && fflush(s->output) == 0;
        if (!written) {
            return err_set(why, ERR_BROKER, "write %s: %s", s->output_name, strerror(errno));
        }
    }
    if (m->tag != NULL) {
        s->reports[(s->report_head + s->report_count) % REPORTS_MAX] = m->tag;
        s->report_count++;
    }
    return ERR_OK;
}

static uint32_t file_reports(struct source *s, struct source_report *reports, uint32_t room,
                             uint32_t timeout_ms) {
    (void)timeout_ms; /* all there will be is there */
    uint32_t count = 0;
    while (count < room && s->report_count > 0) {
        reports[count++] =
            (struct source_report){.tag = s->reports[s->report_head], .error = ERR_OK};
        s->report_head = (s->report_head + 1) % REPORTS_MAX;
        s->report_count--;
    }
    return count;
}

static bool file_flush(struct source *s, uint32_t timeout_ms) {
    (void)timeout_ms;
    return fflush(s->output) == 0;
}

static bool file_connected(struct source *s) {
    (void)s;
    return true;
}

static const struct source_ops file_ops = {
    .name = "file",
    .close = file_close,
    .poll = file_poll,
    .free_record = file_free_record,
    .hold = file_hold,
    .release = file_release,
    .commit = file_commit,
    .topic_name = file_topic_name,
    .produce = file_produce,
    .reports = file_reports,
    .flush = file_flush,
    .connected = file_connected,
};

enum err source_open_file(struct source **out, const struct source_ops **ops, const char *input,
                          const char *output, struct err_text *why) {
    enum err e = ERR_OK;
    struct source *s = calloc(1, sizeof *s);
    if (s == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for the source");
    }
    s->output_name = output;
    s->input = strcmp(input, "-") == 0 ? stdin : fopen(input, "re");
    if (s->input == NULL) {
        e = err_set(why, ERR_BAD_CONFIG, "open %s: %s", input, strerror(errno));
        goto out;
    }
    s->output = strcmp(output, "-") == 0 ? stdout : fopen(output, "we");
    if (s->output == NULL) {
        e = err_set(why, ERR_BAD_CONFIG, "open %s: %s", output, strerror(errno));
        goto out;
    }
    *ops = &file_ops;
    *out = s;
    s = NULL;
out:
    file_close(s);
    return e;
}
