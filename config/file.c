/* file.c - the YAML file: a mapping of sections, each a mapping of options to a scalar or, for
 * lists, a sequence of scalars. A plain empty value, `~` or `null` leaves the default, so that a
 * section whose options are all comments is fine. libyaml's events are read directly: they know the
 * line of each key (docs/adr/0002). */
#include "config/options.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

struct reader {
    yaml_parser_t parser;
    yaml_event_t event; /* the last one; deleted when the next is read */
    bool has_event;
    const char *path;
    struct config_store *store;
    struct err_text *why;
    size_t option_line[OPTION_COUNT];  /* where it was given; 0 = not yet */
    size_t section_line[OPTION_COUNT]; /* the same, by the section's first option */
};

static size_t line_of(const struct reader *r) {
    return r->event.start_mark.line + 1;
}

__attribute__((format(printf, 4, 5))) static enum err
fail(struct reader *r, size_t line, const char *field, const char *format, ...) {
    char text[ERR_TEXT_BYTES];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return err_set_field(r->why, ERR_BAD_CONFIG, field, "%.255s:%zu: %s", r->path, line, text);
}

/* Reads the next event into r->event. */
static enum err next(struct reader *r) {
    if (r->has_event) {
        yaml_event_delete(&r->event);
        r->has_event = false;
    }
    if (yaml_parser_parse(&r->parser, &r->event) == 0) {
        const yaml_parser_t *p = &r->parser;
        if (p->error == YAML_MEMORY_ERROR) {
            return err_set(r->why, ERR_NO_MEMORY, "no memory to read %.255s", r->path);
        }
        const char *problem = p->problem != NULL ? p->problem : "cannot be read as YAML";
        if (p->error == YAML_READER_ERROR) { /* has a byte offset instead of a line */
            return err_set(r->why, ERR_BAD_CONFIG, "%.255s: byte %zu: %s", r->path,
                           p->problem_offset, problem);
        }
        return fail(r, p->problem_mark.line + 1, "", "%s%s%s", problem,
                    p->context != NULL ? " " : "", p->context != NULL ? p->context : "");
    }
    r->has_event = true;
    if (r->event.type == YAML_ALIAS_EVENT) {
        return fail(r, line_of(r), "", "aliases (*%.64s) are not supported",
                    (const char *)r->event.data.alias.anchor);
    }
    return ERR_OK;
}

/* Whether the event is a scalar that stands for "nothing given". */
static bool is_null(const struct reader *r) {
    if (r->event.type != YAML_SCALAR_EVENT ||
        r->event.data.scalar.style != YAML_PLAIN_SCALAR_STYLE) {
        return false;
    }
    const char *text = (const char *)r->event.data.scalar.value;
    return text[0] == '\0' || strcmp(text, "~") == 0 || strcmp(text, "null") == 0;
}

/* The text of the scalar at hand; owned by the event. */
static enum err scalar(struct reader *r, const char *field, const char **text) {
    *text = (const char *)r->event.data.scalar.value;
    if (strlen(*text) != r->event.data.scalar.length) {
        return fail(r, line_of(r), field, "%s holds a NUL character", field);
    }
    return ERR_OK;
}

static enum err unknown_key(struct reader *r, const char *section, const char *key) {
    const struct option *o = option_nearest(section, key);
    if (section[0] == '\0' && strchr(key, '.') != NULL) {
        return fail(r, line_of(r), key,
                    "unknown section \"%.64s\"; options are nested: \"%s:\", below it \"%s:\"", key,
                    o->section, o->name);
    }
    return fail(r, line_of(r), key, "unknown key \"%.64s%s%.64s\"; nearest is \"%s.%s\"", section,
                section[0] != '\0' ? "." : "", key, o->section, o->name);
}

/* The value of option `index`; its first event is at hand. */
static enum err read_value(struct reader *r, uint32_t index) {
    const struct option *o = &option_table[index];
    char full[OPTION_NAME_BYTES];
    char *items[OPTION_LIST_MAX];
    uint32_t count = 0;
    enum err e = ERR_OK;
    size_t line = line_of(r);
    bool sequence = r->event.type == YAML_SEQUENCE_START_EVENT;
    (void)option_full_name(full, o);
    if (is_null(r)) {
        return ERR_OK;
    }
    if (sequence && o->type != OPTION_LIST) {
        return fail(r, line, full, "%s takes one value, not a list", full);
    }
    while (e == ERR_OK) {
        const char *text = NULL;
        if (sequence) {
            e = next(r);
            if (e != ERR_OK || r->event.type == YAML_SEQUENCE_END_EVENT) {
                break;
            }
        }
        if (r->event.type != YAML_SCALAR_EVENT) {
            e = fail(r, line_of(r), full, "%s takes %s", full,
                     o->type == OPTION_LIST ? "a list of plain values" : "a plain value");
            break;
        }
        if (count == OPTION_LIST_MAX) {
            e = fail(r, line_of(r), full, "%s has more than %d items", full, OPTION_LIST_MAX);
            break;
        }
        e = scalar(r, full, &text);
        if (e == ERR_OK) {
            items[count] = strdup(text);
            e = items[count] != NULL ? ERR_OK : err_set(r->why, ERR_NO_MEMORY, "no memory");
            count += e == ERR_OK;
        }
        if (!sequence) {
            break;
        }
    }
    if (e == ERR_OK) {
        char place[300];
        (void)snprintf(place, sizeof place, "%.255s:%zu", r->path, line);
        e = config_set(r->store, index, (const char *const *)items, count, place, r->why);
    }
    for (uint32_t i = 0; i < count; i++) {
        free(items[i]);
    }
    return e;
}

/* Reads a key of the mapping at hand into `key`, and moves to its value. *end: there was none. */
static enum err read_key(struct reader *r, char key[OPTION_NAME_BYTES], const char *section,
                         bool *end) {
    const char *text = "";
    enum err e = next(r);
    if (e != ERR_OK) {
        return e;
    }
    *end = r->event.type == YAML_MAPPING_END_EVENT;
    if (*end) {
        return ERR_OK;
    }
    if (r->event.type != YAML_SCALAR_EVENT) {
        return fail(r, line_of(r), section, "a key must be plain text");
    }
    e = scalar(r, "a key", &text);
    if (e == ERR_OK && strlen(text) >= OPTION_NAME_BYTES) {
        e = unknown_key(r, section, text);
    }
    if (e == ERR_OK) {
        (void)snprintf(key, OPTION_NAME_BYTES, "%s", text);
    }
    return e;
}

static enum err read_section(struct reader *r, const char *section) {
    for (;;) {
        char key[OPTION_NAME_BYTES] = "";
        bool end = false;
        enum err e = read_key(r, key, section, &end);
        if (e != ERR_OK || end) {
            return e;
        }
        uint32_t index = option_find(section, key);
        if (index == OPTION_COUNT) {
            return unknown_key(r, section, key);
        }
        if (r->option_line[index] != 0) {
            return fail(r, line_of(r), key, "%s.%s is given twice, first in line %zu", section, key,
                        r->option_line[index]);
        }
        r->option_line[index] = line_of(r);
        e = next(r);
        if (e == ERR_OK) {
            e = read_value(r, index);
        }
        if (e != ERR_OK) {
            return e;
        }
    }
}

static enum err read_sections(struct reader *r) {
    for (;;) {
        char section[OPTION_NAME_BYTES] = "";
        bool end = false;
        enum err e = read_key(r, section, "", &end);
        if (e != ERR_OK || end) {
            return e;
        }
        uint32_t first = option_find_section(section);
        if (first == OPTION_COUNT) {
            return unknown_key(r, "", section);
        }
        if (r->section_line[first] != 0) {
            return fail(r, line_of(r), section, "section \"%s\" is given twice, first in line %zu",
                        section, r->section_line[first]);
        }
        r->section_line[first] = line_of(r);
        e = next(r);
        if (e != ERR_OK) {
            return e;
        }
        if (is_null(r)) {
            continue;
        }
        if (r->event.type != YAML_MAPPING_START_EVENT) {
            return fail(r, line_of(r), section, "section \"%s\" must hold options, one a line",
                        section);
        }
        e = read_section(r, section);
        if (e != ERR_OK) {
            return e;
        }
    }
}

static enum err read_stream(struct reader *r) {
    enum err e = next(r); /* stream start */
    if (e == ERR_OK) {
        e = next(r); /* document start, or the end of an empty stream */
    }
    if (e != ERR_OK || r->event.type == YAML_STREAM_END_EVENT) {
        return e;
    }
    e = next(r);
    if (e == ERR_OK && !is_null(r)) {
        e = r->event.type == YAML_MAPPING_START_EVENT
                ? read_sections(r)
                : fail(r, line_of(r), "", "the file must hold sections, such as \"kafka:\"");
    }
    if (e == ERR_OK) {
        e = next(r); /* document end */
    }
    if (e == ERR_OK) {
        e = next(r);
    }
    if (e == ERR_OK && r->event.type != YAML_STREAM_END_EVENT) {
        e = fail(r, line_of(r), "", "a second document (---) is not allowed");
    }
    return e;
}

/* The whole file; *data is the caller's. */
static enum err slurp(FILE *file, const char *path, char **data, size_t *bytes,
                      struct err_text *why) {
    char *room = malloc(CONFIG_FILE_BYTES_MAX + 1);
    if (room == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory to read %.255s", path);
    }
    size_t got = fread(room, 1, CONFIG_FILE_BYTES_MAX + 1, file);
    enum err e = ERR_OK;
    if (ferror(file) != 0) {
        e = err_set(why, ERR_BAD_CONFIG, "read %.255s: %s", path, strerror(errno));
    } else if (got > CONFIG_FILE_BYTES_MAX) {
        e = err_set(why, ERR_BAD_CONFIG, "%.255s is larger than %d bytes", path,
                    CONFIG_FILE_BYTES_MAX);
    }
    if (e != ERR_OK) {
        free(room);
        return e;
    }
    *data = room;
    *bytes = got;
    return ERR_OK;
}

enum err config_read_text(struct config_store *s, const char *path, const char *text, size_t bytes,
                          struct err_text *why) {
    struct reader r = {.path = path, .store = s, .why = why};
    if (yaml_parser_initialize(&r.parser) == 0) {
        return err_set(why, ERR_NO_MEMORY, "no memory to read %.255s", path);
    }
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, bytes);
    enum err e = read_stream(&r);
    if (r.has_event) {
        yaml_event_delete(&r.event);
    }
    yaml_parser_delete(&r.parser);
    return e;
}

enum err config_read_file(struct config_store *s, const char *path, bool *missing,
                          struct err_text *why) {
    char *data = NULL;
    size_t bytes = 0;
    FILE *file = fopen(path, "re");
    if (missing != NULL) {
        *missing = file == NULL && errno == ENOENT;
        if (*missing) {
            return ERR_OK;
        }
    }
    if (file == NULL) {
        return err_set(why, ERR_BAD_CONFIG, "open %.255s: %s", path, strerror(errno));
    }
    enum err e = slurp(file, path, &data, &bytes, why);
    if (e == ERR_OK) {
        e = config_read_text(s, path, data, bytes, why);
    }
    free(data);
    (void)fclose(file);
    return e;
}
