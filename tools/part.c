#include "tools/part.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/tool.h"

static const char offsets_name[] = "results_offsets";

static enum err disk(const struct part *p, struct err_text *why) {
    return err_set(why, ERR_BAD_CONFIG, "write %s: %s", p->path, strerror(errno));
}

/* ---- reading ------------------------------------------------------------------------------ */

/* The first line. */
static bool is_of_batch(const char *text, size_t bytes, const struct manifest *m) {
    json_t *root = json_loadb(text, bytes, 0, NULL);
    const char *batch = json_string_value(json_object_get(root, "collect"));
    const char *topic = json_string_value(json_object_get(root, "topic"));
    bool same = batch != NULL && strcmp(batch, m->batch_id) == 0 && topic != NULL &&
                strcmp(topic, m->results_topic) == 0;
    json_decref(root);
    return same;
}

/* A line of offsets. false: it is none. */
static bool take_offsets(const char *text, size_t bytes, int64_t *offsets, uint32_t count) {
    json_t *root = json_loadb(text, bytes, 0, NULL);
    const json_t *list = json_object_get(root, offsets_name);
    bool good = json_is_array(list) && json_object_size(root) == 1;
    for (size_t i = 0; good && i < json_array_size(list); i++) {
        good = json_is_integer(json_array_get(list, i)) &&
               json_integer_value(json_array_get(list, i)) >= 0;
    }
    for (size_t i = 0; good && i < json_array_size(list) && i < count; i++) {
        offsets[i] = json_integer_value(json_array_get(list, i));
    }
    json_decref(root);
    return good;
}

/* false: the line is nothing of ours, so the file ends before it; or an error in *e. */
static bool take_line(const struct manifest *m, struct finals *finals, const char *text,
                      size_t bytes, enum err *e) {
    struct wire_final final;
    struct err_text ignored = {0};
    *e = wire_final_decode(&final, text, bytes, &ignored);
    bool good = *e == ERR_OK && manifest_has(m, final.batch_id);
    if (good) {
        *e = finals_upsert(finals, m->batch_id, &final, text, bytes);
    }
    wire_final_deinit(&final);
    good = good && *e == ERR_OK;
    *e = *e == ERR_NO_MEMORY ? ERR_NO_MEMORY : ERR_OK;
    return good;
}

/* Reads as far as the lines are whole and ours; *end: there. 0: not this batch's. */
static enum err read_lines(FILE *f, const struct manifest *m, struct finals *finals,
                           int64_t *offsets, uint32_t count, off_t *end) {
    char *text = NULL;
    size_t room = 0;
    enum err e = ERR_OK;
    bool good = true;
    *end = 0;
    while (good) {
        ssize_t got = getline(&text, &room, f);
        good = got > 0 && text[got - 1] == '\n'; /* else its end, or torn */
        size_t bytes = good ? (size_t)got - 1 : 0;
        if (good && *end == 0) {
            good = is_of_batch(text, bytes, m);
        } else if (good && strncmp(text, "{\"results_offsets\":", 19) == 0) {
            good = take_offsets(text, bytes, offsets, count);
        } else if (good) {
            good = take_line(m, finals, text, bytes, &e);
        }
        *end += good ? (off_t)got : 0;
    }
    free(text);
    return e;
}

/* ---- opening ------------------------------------------------------------------------------ */

static enum err begin(struct part *p, const struct manifest *m, struct err_text *why) {
    json_t *root = json_pack("{ss, ss}", "collect", m->batch_id, "topic", m->results_topic);
    bool good = root != NULL && json_dumpf(root, p->file, JSON_COMPACT) == 0 &&
                fputc('\n', p->file) != EOF && fflush(p->file) == 0;
    json_decref(root);
    return good ? ERR_OK : disk(p, why);
}

enum err part_open(struct part *p, const char *out, const struct manifest *m, struct finals *finals,
                   int64_t *offsets, uint32_t partition_count, struct err_text *why) {
    size_t room = strlen(out) + sizeof ".part";
    off_t end = 0;
    *p = (struct part){.path = malloc(room)};
    if (p->path == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for a path");
    }
    (void)snprintf(p->path, room, "%s.part", out);
    p->file = fopen(p->path, "a+e");
    if (p->file == NULL) {
        enum err e = err_set(why, ERR_BAD_CONFIG, "open %s: %s", p->path, strerror(errno));
        part_close(p, false);
        return e;
    }
    rewind(p->file);
    enum err e = read_lines(p->file, m, finals, offsets, partition_count, &end);
    if (e == ERR_OK && (ftruncate(fileno(p->file), end) != 0 || fseek(p->file, 0, SEEK_END) != 0)) {
        e = disk(p, why);
    }
    if (e == ERR_OK && end == 0) {
        e = begin(p, m, why);
    }
    if (e == ERR_NO_MEMORY) {
        (void)err_set(why, e, "no memory for the finals of %s", p->path);
    }
    if (e != ERR_OK) {
        part_close(p, false);
    }
    return e;
}

void part_close(struct part *p, bool remove) {
    if (p->file != NULL) {
        (void)fclose(p->file);
        if (remove) {
            (void)unlink(p->path);
        }
    }
    free(p->path);
    wire_buffer_deinit(&p->line);
    *p = (struct part){0};
}

/* ---- writing ------------------------------------------------------------------------------ */

enum err part_add(struct part *p, const void *value, size_t bytes, struct err_text *why) {
    const struct finals_entry entry = {.value = (char *)(uintptr_t)value, .bytes = bytes};
    p->line.bytes = 0;
    enum err e = finals_line(&entry, FINALS_JSONL, &p->line, why);
    if (e == ERR_OK && fwrite(p->line.data, 1, p->line.bytes, p->file) != p->line.bytes) {
        e = disk(p, why);
    }
    return e;
}

enum err part_mark(struct part *p, const int64_t *offsets, uint32_t partition_count,
                   struct err_text *why) {
    bool good = fprintf(p->file, "{\"%s\":[", offsets_name) > 0;
    for (uint32_t i = 0; i < partition_count && good; i++) {
        good = fprintf(p->file, "%s%lld", i > 0 ? "," : "", (long long)offsets[i]) > 0;
    }
    good = good && fputs("]}\n", p->file) >= 0 && fflush(p->file) == 0;
    return good ? ERR_OK : disk(p, why);
}
