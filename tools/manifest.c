/* manifest.c - the small JSON file between `submit` and `collect`. */
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "tools/batch.h"
#include "tools/tool.h"

void manifest_deinit(struct manifest *m) {
    for (uint32_t i = 0; i < m->other_count; i++) {
        free(m->other_batch_ids[i]);
    }
    free(m->topic);
    free(m->results_topic);
    free(m->offsets);
    *m = (struct manifest){0};
}

bool manifest_has(const struct manifest *m, struct wire_str batch_id) {
    for (uint32_t i = 0; i <= m->other_count && batch_id.data != NULL; i++) {
        const char *id = i < m->other_count ? m->other_batch_ids[i] : m->batch_id;
        if (strlen(id) == batch_id.bytes && memcmp(id, batch_id.data, batch_id.bytes) == 0) {
            return true;
        }
    }
    return false;
}

/* ---- writing ------------------------------------------------------------------------------ */

static json_t *to_json(const struct manifest *m) {
    json_t *root = json_object();
    json_t *others = json_array();
    json_t *offsets = json_array();
    bool good = true;
    for (uint32_t i = 0; i < m->other_count; i++) {
        good = json_array_append_new(others, json_string(m->other_batch_ids[i])) == 0 && good;
    }
    for (uint32_t i = 0; i < m->partition_count; i++) {
        good = json_array_append_new(offsets, json_integer(m->offsets[i])) == 0 && good;
    }
    const struct {
        const char *name;
        json_t *value;
    } fields[] = {
        {"v", json_integer(1)},
        {"batch_id", json_string(m->batch_id)},
        {"other_batch_ids", others},
        {"count", json_integer(m->count)},
        {"complete", json_boolean(m->complete)},
        {"lines", json_integer((json_int_t)m->lines)},
        {"input_bytes", json_integer((json_int_t)m->input_bytes)},
        {"topic", json_string(m->topic)},
        {"results_topic", json_string(m->results_topic)},
        {"results_offsets", offsets},
        {"submitted_ms", json_integer(m->submitted_ms)},
    };
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        good = json_object_set_new(root, fields[i].name, fields[i].value) == 0 && good;
    }
    if (!good) {
        json_decref(root);
        return NULL;
    }
    return root;
}

enum err manifest_write(const struct manifest *m, const char *path, struct err_text *why) {
    struct output o = {0};
    json_t *root = to_json(m);
    enum err e = root != NULL ? output_open(&o, path, why)
                              : err_set(why, ERR_NO_MEMORY, "no memory for the manifest");
    if (e == ERR_OK) {
        if (json_dumpf(root, o.file, JSON_INDENT(2)) != 0 || fputc('\n', o.file) == EOF) {
            e = err_set(why, ERR_BAD_CONFIG, "write %s: %s", path, strerror(errno));
        } else {
            e = output_commit(&o, why);
        }
    }
    output_abandon(&o);
    json_decref(root);
    return e;
}

/* ---- reading ------------------------------------------------------------------------------ */

struct source_text { /* for errors */
    const char *path;
    struct err_text *why;
};

static enum err bad(const struct source_text *s, const char *field, const char *takes) {
    return err_set(s->why, ERR_BAD_CONFIG, "%s: %s must be %s; is this a manifest of lorry submit?",
                   s->path, field, takes);
}

static enum err get_text(const struct source_text *s, const json_t *root, const char *name,
                         size_t bytes_max, char **out) {
    const json_t *v = json_object_get(root, name);
    size_t bytes = json_string_length(v);
    if (!json_is_string(v) || bytes == 0 || bytes > bytes_max) {
        return bad(s, name, "a text");
    }
    *out = strdup(json_string_value(v));
    return *out != NULL ? ERR_OK : err_set(s->why, ERR_NO_MEMORY, "no memory for the manifest");
}

static enum err get_int(const struct source_text *s, const json_t *v, const char *name, int64_t max,
                        int64_t *out) {
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > max) {
        return bad(s, name, "a number that fits");
    }
    *out = json_integer_value(v);
    return ERR_OK;
}

static enum err get_offsets(const struct source_text *s, const json_t *root, struct manifest *m) {
    static const char name[] = "results_offsets";
    const json_t *list = json_object_get(root, name);
    size_t count = json_array_size(list);
    if (count == 0 || count > MANIFEST_PARTITIONS_MAX) {
        return bad(s, name, "a list of offsets");
    }
    m->offsets = calloc(count, sizeof *m->offsets);
    if (m->offsets == NULL) {
        return err_set(s->why, ERR_NO_MEMORY, "no memory for the manifest");
    }
    m->partition_count = (uint32_t)count;
    enum err e = ERR_OK;
    for (size_t i = 0; i < count && e == ERR_OK; i++) {
        e = get_int(s, json_array_get(list, i), name, INT64_MAX, &m->offsets[i]);
    }
    return e;
}

static enum err get_others(const struct source_text *s, const json_t *root, struct manifest *m) {
    static const char name[] = "other_batch_ids";
    const json_t *list = json_object_get(root, name);
    size_t count = json_array_size(list);
    if (count > BATCH_OTHERS_MAX) {
        return bad(s, name, "a list of at most 64 texts");
    }
    for (size_t i = 0; i < count; i++) {
        const json_t *v = json_array_get(list, i);
        if (!json_is_string(v)) {
            return bad(s, name, "a list of texts");
        }
        char *copy = strdup(json_string_value(v));
        if (copy == NULL) {
            return err_set(s->why, ERR_NO_MEMORY, "no memory for the manifest");
        }
        m->other_batch_ids[m->other_count++] = copy;
    }
    return ERR_OK;
}

/* What manifests have had since submit can be resumed; absent is 0. */
static enum err get_resume(const struct source_text *s, const json_t *root, struct manifest *m) {
    const json_t *lines = json_object_get(root, "lines");
    const json_t *bytes = json_object_get(root, "input_bytes");
    int64_t value = 0;
    enum err e = lines == NULL ? ERR_OK : get_int(s, lines, "lines", INT64_MAX, &value);
    m->lines = (uint64_t)value;
    value = 0;
    if (e == ERR_OK && bytes != NULL) {
        e = get_int(s, bytes, "input_bytes", INT64_MAX, &value);
        m->input_bytes = (uint64_t)value;
    }
    return e;
}

static enum err from_json(const struct source_text *s, const json_t *root, struct manifest *m) {
    int64_t version = 0;
    int64_t count = 0;
    const char *id = json_string_value(json_object_get(root, "batch_id"));
    const json_t *complete = json_object_get(root, "complete");
    enum err e = get_int(s, json_object_get(root, "v"), "v", INT32_MAX, &version);
    if (e == ERR_OK && version != 1) {
        e = bad(s, "v", "1");
    }
    if (e == ERR_OK && (id == NULL || wire_ulid_ms(id) < 0)) {
        e = bad(s, "batch_id", "a ULID");
    }
    if (e == ERR_OK && !json_is_boolean(complete)) {
        e = bad(s, "complete", "true or false");
    }
    if (e == ERR_OK) {
        (void)snprintf(m->batch_id, sizeof m->batch_id, "%s", id);
        m->complete = json_is_true(complete);
        e = get_int(s, json_object_get(root, "count"), "count", IDS_MAX, &count);
        m->count = (uint32_t)count;
    }
    if (e == ERR_OK) {
        e = get_int(s, json_object_get(root, "submitted_ms"), "submitted_ms", INT64_MAX,
                    &m->submitted_ms);
    }
    if (e == ERR_OK) {
        e = get_text(s, root, "topic", WIRE_TOPIC_BYTES_MAX, &m->topic);
    }
    if (e == ERR_OK) {
        e = get_text(s, root, "results_topic", WIRE_TOPIC_BYTES_MAX, &m->results_topic);
    }
    if (e == ERR_OK) {
        e = get_offsets(s, root, m);
    }
    if (e == ERR_OK) {
        e = get_resume(s, root, m);
    }
    return e == ERR_OK ? get_others(s, root, m) : e;
}

/* The whole file, which is small. */
static enum err slurp(const char *path, char **text, size_t *bytes, struct err_text *why) {
    FILE *f = fopen(path, "re");
    if (f == NULL) {
        return err_set(why, ERR_BAD_CONFIG, "open %s: %s", path, strerror(errno));
    }
    enum err e = ERR_OK;
    char *room = malloc(MANIFEST_BYTES_MAX);
    if (room == NULL) {
        e = err_set(why, ERR_NO_MEMORY, "no memory for %s", path);
        goto out;
    }
    size_t got = fread(room, 1, MANIFEST_BYTES_MAX, f);
    if (ferror(f) != 0 || got == MANIFEST_BYTES_MAX) {
        e = err_set(why, ERR_BAD_CONFIG, "read %s: %s", path,
                    ferror(f) != 0 ? strerror(errno) : "too large for a manifest");
        goto out;
    }
    *text = room;
    *bytes = got;
    room = NULL;
out:
    free(room);
    (void)fclose(f);
    return e;
}

enum err manifest_read(struct manifest *m, const char *path, struct err_text *why) {
    char *text = NULL;
    size_t bytes = 0;
    *m = (struct manifest){0};
    enum err e = slurp(path, &text, &bytes, why);
    if (e != ERR_OK) {
        return e;
    }
    json_error_t error = {0};
    json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    free(text);
    const struct source_text s = {.path = path, .why = why};
    if (!json_is_object(root)) {
        e = err_set(why, ERR_BAD_CONFIG, "%s:%d: not a manifest of lorry submit: %s", path,
                    error.line, error.text[0] != '\0' ? error.text : "no JSON object");
    } else {
        e = from_json(&s, root, m);
    }
    json_decref(root);
    if (e != ERR_OK) {
        manifest_deinit(m);
    }
    return e;
}
