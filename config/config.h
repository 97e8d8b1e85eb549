/* config.h - the options of both programs, from flags, environment, file and defaults.
 *
 * One table (options.def) makes everything. flag > environment > file > default. The file is the
 * first of --config, $LORRY_CONFIG, ./lorry.yaml, /etc/lorry/lorry.yaml; the first two must exist
 * when given. All is validated before anything starts; afterwards a config is const.
 * Thread: loaded before threads start; read by any. */
#ifndef LORRY_CONFIG_CONFIG_H
#define LORRY_CONFIG_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"

struct config_list {
    const char *const *items;
    uint32_t count;
};

/* Members are named section_name: STRING and ENUM const char *, LIST struct config_list,
 * INT and BYTES int64_t, REAL double, BOOL bool. */
#define CONFIG_MEMBER_STRING(m) const char *m;
#define CONFIG_MEMBER_ENUM(m) const char *m;
#define CONFIG_MEMBER_LIST(m) struct config_list m;
#define CONFIG_MEMBER_INT(m) int64_t m;
#define CONFIG_MEMBER_BYTES(m) int64_t m;
#define CONFIG_MEMBER_REAL(m) double m;
#define CONFIG_MEMBER_BOOL(m) bool m;
struct config {
#define OPTION(section, name, type, initial, min, max, flags, help) \
    CONFIG_MEMBER_##type(section##_##name)
#include "config/options.def"
#undef OPTION
};

struct config_input {
    int argc;    /* what follows the program and sub-command: only options are taken, the rest is */
    char **argv; /* moved to the front in order, and its count put into *rest_count */
    char **environ; /* NULL-terminated, or NULL for none; HOME and STATE_DIRECTORY are read too */
    const char *const *files; /* default places, NULL-terminated; NULL = the two above */
};

/* Reads all places and checks every value, used or not.
 *
 * `--name value`, `--name=value`; `--name` and `--no-name` for BOOL; a LIST flag given again
 * adds to the flag's list. Short forms: --model, --adapters, -X name=value. Unknown flags that
 * `own_flags` lists (NULL-terminated or NULL, the sub-command's own: "--name", or "--name=" when
 * it takes a value) are left in place with their values. `--` ends options; it stays in front of
 * what follows it. A LORRY_ variable that names no option is logged as a warning.
 *
 * Errors  ERR_BAD_CONFIG: `why` names the option, the place (file:line, LORRY_…, flag) and, for
 *         an unknown key or flag, the nearest known one; *out and *rest_count are untouched. */
NODISCARD enum err config_open(struct config **out, const struct config_input *input,
                               const char *const *own_flags, int *rest_count, struct err_text *why);
void config_close(struct config *c);

/* `section.name=value  # place` lines: what is in force, and from where; secrets masked. `c` is one
 * that config_open() made. */
void config_print(const struct config *c, FILE *out);
/* The options as a help text: name, default, meaning, by section. */
void config_help(FILE *out);
/* An option as a flag, for completions and manuals. */
struct config_flag {
    char name[72];  /* "--kafka.brokers" */
    char takes[64]; /* what stands behind it: "PATH", "N", "auto|cpu|cuda"; empty = a switch */
    const char *section, *meaning, *initial; /* "" = none */
    bool path, choice;                       /* what it takes: of a file; words between | */
};
/* The index-th, from 0; false: there are fewer. */
bool config_flag(uint32_t index, struct config_flag *flag);
/* docs/CONFIGURATION.md and docs/lorry.example.yaml, as `make docs` writes them. */
void config_write_markdown(FILE *out);
void config_write_example(FILE *out);

#endif
