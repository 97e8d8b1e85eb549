/* tool.h - what the sub-commands of `lorry` share: the command table's row, flags, messages,
 * progress, input by lines, output by rename, interruption.
 *
 * Results go to stdout, everything else to stderr. Thread: the main thread, unless it says else. */
#ifndef LORRY_TOOLS_TOOL_H
#define LORRY_TOOLS_TOOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"
#include "config/config.h"

enum {
    TOOL_FLAGS_MAX = 32,   /* own flags of a command */
    TOOL_SHOWN_MAX = 20,   /* bad lines or records that are named; the rest is counted */
    TOOL_NAME_BYTES = 256, /* of a model's folder */
};

/* ---- commands ----------------------------------------------------------------------------- */

struct tool;

struct command {
    const char *name;                 /* "submit", or "adapters list" */
    const char *arguments;            /* "FILE|- [options]": behind the name in the usage line */
    const char *summary;              /* one line */
    const char *help;                 /* teaches, with examples; ends with a newline */
    const char *const *own_flags;     /* as config_open() takes them; NULL-terminated */
    int (*run)(const struct tool *t); /* an enum exit_code */
    bool unconfigured; /* it reads no configuration: `config` is NULL, only own flags are known */
};

extern const struct command *const tool_commands[]; /* all, NULL-terminated; main.c */
extern const struct command cmd_run, cmd_submit, cmd_collect, cmd_tail, cmd_cancel, cmd_deadline,
    cmd_adapters_list, cmd_adapters_check, cmd_adapters_add, cmd_adapters_rm, cmd_adapters_slo,
    cmd_topics_create, cmd_check, cmd_top, cmd_bench, cmd_completion;

/* A command line taken apart. */
struct tool {
    const struct command *command;
    const struct config *config;
    const char *values[TOOL_FLAGS_MAX]; /* by own flag; NULL = not given */
    char **arguments;                   /* what is no option */
    int argument_count;
};

/* The value of an own flag ("--topic", "-o"); "" for a switch; NULL: not given. Crashes on a flag
 * that the command does not have. */
const char *tool_flag(const struct tool *t, const char *name);

/* An integer flag or argument, min .. max. `name` is named in the error, ERR_BAD_CONFIG. */
NODISCARD enum err tool_int(const char *name, const char *text, int64_t min, int64_t max,
                            int64_t *value, struct err_text *why);

/* Prints the error and gives its exit code. */
int tool_fail(enum err e, const struct err_text *why);
/* Prints a mistake on the command line, with the command's usage; gives EXIT_USAGE. */
int tool_usage(const struct tool *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* One line on stderr, "lorry: …". */
void tool_note(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The last part of a path that need not be absolute, into `room`, which is returned. */
const char *tool_folder_name(const char *folder, char room[TOOL_NAME_BYTES]);
/* The name that means the base model: model.name, else the folder's name; NULL: neither is known
 * here. Points into `room` or the configuration. */
const char *tool_model_name(const struct config *c, char room[TOOL_NAME_BYTES]);

/* ---- what a person sees ------------------------------------------------------------------- */

enum tool_colour { TOOL_PLAIN, TOOL_GREEN, TOOL_YELLOW, TOOL_RED, TOOL_DIM };

/* The escape for `colour`, or "" where `out` is no terminal, NO_COLOR is set or TERM is dumb. */
const char *tool_colour(FILE *out, enum tool_colour colour);

/* One line on stderr that is written over, on terminals only. */
struct progress {
    bool shown; /* there is a line to wipe */
    bool off;
    int64_t begin_us, next_us;
};
void progress_init(struct progress *p, bool quiet);
bool progress_due(const struct progress *p); /* cheap: true some ten times a second */
void progress_line(struct progress *p, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void progress_clear(struct progress *p);
double progress_seconds(const struct progress *p); /* since the init */

/* "1 h 02 min", "3 min 05 s", "12 s" into `room`, which is returned. */
const char *tool_duration(char room[32], double seconds);

/* ---- interruption ------------------------------------------------------------------------- */

/* From now on the first SIGINT or SIGTERM only makes tool_interrupted() true and ends a blocking
 * read; the second kills. */
void tool_catch_interrupts(void);
bool tool_interrupted(void);

/* ---- input and output --------------------------------------------------------------------- */

/* Lines of a file, none longer than a limit in memory. */
struct lines {
    FILE *file;
    const char *name; /* as given; "stdin" for - */
    char *text;       /* the current line without its end, NUL-terminated */
    size_t bytes, room, bytes_max;
    uint64_t index; /* of the current line, from 0; blank lines count */
    bool regular;   /* may be read twice */
    bool started;
};
enum lines_next { LINES_LINE, LINES_TOO_LONG, LINES_END, LINES_FAILED };

/* `path` may be "-". Errors  ERR_BAD_CONFIG. */
NODISCARD enum err lines_open(struct lines *l, const char *path, size_t bytes_max,
                              struct err_text *why);
/* The next line that is not blank; LINES_TOO_LONG skips it. LINES_FAILED: errno says why; after an
 * interruption EINTR. */
enum lines_next lines_next(struct lines *l);
NODISCARD enum err lines_rewind(struct lines *l, struct err_text *why);
void lines_close(struct lines *l); /* a zeroed one is fine */

/* A file that is there whole or not at all: written beside its place, then renamed. What is no
 * regular file (a pipe, /dev/null) and "-", stdout, are written directly. */
struct output {
    FILE *file;
    const char *path;
    char *beside; /* owned; NULL = written directly */
};
NODISCARD enum err output_open(struct output *o, const char *path, struct err_text *why);
/* Errors  ERR_BAD_CONFIG: the file is as it was before. Closes either way. */
NODISCARD enum err output_commit(struct output *o, struct err_text *why);
void output_abandon(struct output *o); /* a committed or zeroed one is fine */

#endif
