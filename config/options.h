/* options.h - config/'s own: the options table at run time, and a config with where its values
 * come from. Not for other folders. */
#ifndef LORRY_CONFIG_OPTIONS_H
#define LORRY_CONFIG_OPTIONS_H

#include "config/config.h"

enum option_type {
    OPTION_STRING,
    OPTION_LIST,
    OPTION_INT,
    OPTION_REAL,
    OPTION_BOOL,
    OPTION_BYTES,
    OPTION_ENUM,
};

enum { OPTION_SECRET = 1, OPTION_PATH = 2 };

enum option_id {
#define OPTION(section, name, type, initial, min, max, flags, help) OPTION_ID_##section##_##name,
#include "config/options.def"
#undef OPTION
    OPTION_COUNT
};

enum {
    OPTION_NAME_BYTES = 64,          /* "section.name", "LORRY_SECTION_NAME", "--section.name" */
    OPTION_LIST_MAX = 256,           /* items of a list */
    CONFIG_FILE_BYTES_MAX = 1 << 20, /* of the YAML file */
    CONFIG_PRINTED_BYTES_MAX = 8192, /* of an option's value, masked */
};

struct option {
    const char *section, *name;
    const char *initial; /* as text; of a list: one item, or empty for none */
    const char *help;
    int64_t min, max; /* of numbers and bytes; of strings and list items the length */
    size_t offset;    /* of the member in struct config */
    enum option_type type;
    unsigned flags; /* OPTION_SECRET, OPTION_PATH */
};

extern const struct option option_table[OPTION_COUNT];

/* Written into `room`, which is returned. */
const char *option_full_name(char room[OPTION_NAME_BYTES], const struct option *o);
const char *option_env_name(char room[OPTION_NAME_BYTES], const struct option *o);

/* Index of the option, or OPTION_COUNT. */
uint32_t option_find(const char *section, const char *name);
/* Index of the section's first option, or OPTION_COUNT. */
uint32_t option_find_section(const char *section);
/* The option that a person who wrote section.name most likely meant; `section` may be empty. */
const struct option *option_nearest(const char *section, const char *name);
/* Levenshtein's distance of the first 63 bytes of each. */
uint32_t option_distance(const char *a, const char *b);

/* "auto", "cpu", … of an ENUM: the i-th word of its help up to ':'. false: there are fewer.
 * The word is *bytes long at *word. */
bool option_enum_word(const struct option *o, uint32_t i, const char **word, size_t *bytes);
/* What is printed after "takes": "a number 1 .. 5", "auto, cpu or cuda". Returns `room`. */
const char *option_takes(char *room, size_t room_bytes, const struct option *o);

/* 123, 64K, 1G … (powers of 1024). */
bool option_parse_bytes(const char *text, int64_t *value);

/* A config as config_open() makes it. `config` is first: print and close cast back. */
struct config_store {
    struct config config;
    struct config_value {
        char **items; /* owned; what the members of `config` point to */
        uint32_t count;
        char *
            place; /* owned: "default", "lorry.yaml:12", "LORRY_KAFKA_BROKERS", "--kafka.brokers" */
    } values[OPTION_COUNT];
    const char *home; /* of the environment given; NULL = none */
};

/* Checks the texts, converts them into the member and keeps the place; what the option had before
 * is released. `count` is 1 unless the option is a list. Errors as config_open(): the place is
 * named. */
NODISCARD enum err config_set(struct config_store *s, uint32_t index, const char *const *items,
                              uint32_t count, const char *place, struct err_text *why);

/* Reads the YAML file at `path` into `s`. `missing` != NULL: a file that does not exist is not an
 * error but sets *missing. */
NODISCARD enum err config_read_file(struct config_store *s, const char *path, bool *missing,
                                    struct err_text *why);

/* The same of a text; errors name `path`. */
NODISCARD enum err config_read_text(struct config_store *s, const char *path, const char *text,
                                    size_t bytes, struct err_text *why);

/* What no single option can tell. */
NODISCARD enum err config_check(const struct config_store *s, struct err_text *why);

/* A value of a SECRET option as it may be shown. Returns `room`. */
const char *config_mask(char *room, size_t room_bytes, const char *text);

#endif
