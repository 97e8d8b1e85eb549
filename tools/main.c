/* main.c - lorry: the tool. Finds the sub-command, reads the configuration, helps. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "tools/describe.h"
#include "tools/tool.h"

extern char **environ;

const struct command *const tool_commands[] = {
    &cmd_run,
    &cmd_submit,
    &cmd_collect,
    &cmd_tail,
    &cmd_cancel,
    &cmd_deadline,
    &cmd_adapters_list,
    &cmd_adapters_check,
    &cmd_adapters_add,
    &cmd_adapters_rm,
    &cmd_adapters_slo,
    &cmd_topics_create,
    &cmd_check,
    &cmd_top,
    &cmd_bench,
    &cmd_completion,
    NULL,
};

static const char intro[] = "lorry - batch inference for a language model with many LoRA adapters\n"
                            "\n"
                            "usage: lorry COMMAND [arguments] [options]\n"
                            "\n";
static const char topics[] =
    "\n"
    "  help [COMMAND]    this page, or all about a command\n"
    "  help options      the options that every command takes, with defaults\n"
    "  help man          all of this as a manual page: lorry help man | man -l -\n"
    "\n";
static const char outro[] =
    "Without Kafka:      lorry run jobs.jsonl -o results.jsonl --model DIR --adapters DIR\n"
    "With Kafka:         lorry topics create\n"
    "                    lorryd --model DIR --adapters DIR &\n"
    "                    lorry submit jobs.jsonl\n"
    "                    lorry collect jobs.jsonl.lorry.json -o results.jsonl\n"
    "A job is a line:    {\"adapter\": \"pirate\", \"prompt\": \"Hello\", \"max_tokens\": 20}\n"
    "\n"
    "Exit codes: 0 done, 1 some job did not succeed or a difference was found, 2 usage or\n"
    "configuration, 3 model or adapters, 4 device, 5 broker or Redis, 6 fenced.\n";

/* ---- help --------------------------------------------------------------------------------- */

static void print_commands(FILE *out, const char *group) {
    size_t bytes = strlen(group);
    for (int i = 0; tool_commands[i] != NULL; i++) {
        if (strncmp(tool_commands[i]->name, group, bytes) == 0) {
            (void)fprintf(out, "  %-16s  %s\n", tool_commands[i]->name, tool_commands[i]->summary);
        }
    }
}

static void print_help(const struct command *c) {
    (void)printf("lorry %s - %s\n\nusage: lorry %s %s\n\n%s", c->name, c->summary, c->name,
                 c->arguments, c->help);
    if (!c->unconfigured) {
        (void)printf("\nEvery command takes the configuration's options too: `lorry help "
                     "options`.\n");
    }
}

static size_t min3(size_t a, size_t b, size_t c) {
    size_t least = a < b ? a : b;
    return least < c ? least : c;
}

/* Levenshtein's distance of short words. */
static size_t distance(const char *a, const char *b) {
    size_t row[32];
    size_t bytes = strlen(b);
    if (bytes >= sizeof row / sizeof row[0]) {
        return SIZE_MAX;
    }
    for (size_t j = 0; j <= bytes; j++) {
        row[j] = j;
    }
    for (size_t i = 1; a[i - 1] != '\0'; i++) {
        size_t corner = row[0];
        row[0] = i;
        for (size_t j = 1; j <= bytes; j++) {
            size_t up = row[j];
            row[j] = min3(up + 1, row[j - 1] + 1, corner + (a[i - 1] != b[j - 1]));
            corner = up;
        }
    }
    return row[bytes];
}

static int unknown(const char *word) {
    const char *nearest = tool_commands[0]->name;
    size_t least = SIZE_MAX;
    for (int i = 0; tool_commands[i] != NULL; i++) {
        char first[32];
        (void)snprintf(first, sizeof first, "%.*s", (int)strcspn(tool_commands[i]->name, " "),
                       tool_commands[i]->name);
        size_t d = distance(word, first);
        size_t whole = distance(word, tool_commands[i]->name);
        d = whole < d ? whole : d;
        if (d < least) {
            least = d;
            nearest = tool_commands[i]->name;
        }
    }
    tool_note("unknown command '%.64s'; nearest is '%s'. `lorry help` lists all.", word, nearest);
    return EXIT_USAGE;
}

/* The command that the first one or two words name; *used: how many. NULL: none. */
static const struct command *find(int argc, char **argv, int *used) {
    for (int i = 0; argc > 0 && tool_commands[i] != NULL; i++) {
        const char *name = tool_commands[i]->name;
        size_t first = strcspn(name, " ");
        if (strncmp(name, argv[0], first) != 0 || argv[0][first] != '\0') {
            continue;
        }
        *used = name[first] == '\0' ? 1 : 2;
        if (*used == 1 || (argc > 1 && strcmp(name + first + 1, argv[1]) == 0)) {
            return tool_commands[i];
        }
    }
    return NULL;
}

/* "adapters": the first word of several commands. */
static bool is_group(const char *word, char group[32]) {
    (void)snprintf(group, 32, "%.30s ", word);
    for (int i = 0; tool_commands[i] != NULL; i++) {
        if (strncmp(tool_commands[i]->name, group, strlen(group)) == 0) {
            return true;
        }
    }
    return false;
}

static int help(int argc, char **argv) {
    int used = 0;
    char group[32];
    const struct command *c = find(argc, argv, &used);
    if (c != NULL) {
        print_help(c);
    } else if (argc > 0 && strcmp(argv[0], "options") == 0) {
        config_help(stdout);
    } else if (argc > 0 && strcmp(argv[0], "man") == 0) {
        describe_man(stdout, tool_commands, outro);
    } else if (argc > 0 && is_group(argv[0], group)) {
        (void)printf("lorry %.30s COMMAND\n\n", argv[0]);
        print_commands(stdout, group);
    } else if (argc > 0) {
        return unknown(argv[0]);
    } else {
        (void)fputs(intro, stdout);
        print_commands(stdout, "");
        (void)fputs(topics, stdout);
        (void)fputs(outro, stdout);
    }
    return EXIT_DONE;
}

/* ---- running a command -------------------------------------------------------------------- */

/* The index of the own flag that `word` is; -1: none. *value: behind its '=', or NULL. */
static int own_flag(const struct command *c, const char *word, const char **value) {
    size_t bytes = strcspn(word, "=");
    *value = word[bytes] == '=' ? word + bytes + 1 : NULL;
    for (int i = 0; c->own_flags[i] != NULL; i++) {
        const char *flag = c->own_flags[i];
        if (strncmp(flag, word, bytes) == 0 && (flag[bytes] == '=' || flag[bytes] == '\0')) {
            return i;
        }
    }
    return -1;
}

/* Sorts what config_open() left into own flags and arguments. */
static enum err take(struct tool *t, int argc, char **argv, struct err_text *why) {
    const struct command *c = t->command;
    t->arguments = argv;
    for (int at = 0; at < argc; at++) {
        const char *value = NULL;
        const char *word = argv[at];
        int i = word[0] == '-' && word[1] != '\0' ? own_flag(c, word, &value) : -1;
        if (strcmp(word, "--") == 0) {
            while (++at < argc) {
                t->arguments[t->argument_count++] = argv[at];
            }
            break;
        }
        if (i < 0) {
            t->arguments[t->argument_count++] = argv[at];
            continue;
        }
        CHECK(i < TOOL_FLAGS_MAX);
        bool takes_value = strchr(c->own_flags[i], '=') != NULL;
        if (takes_value && value == NULL && at + 1 < argc) {
            value = argv[++at];
        }
        if (takes_value != (value != NULL)) {
            return err_set(why, ERR_BAD_CONFIG, "%s %s", word,
                           takes_value ? "needs a value" : "takes no value");
        }
        t->values[i] = takes_value ? value : "";
    }
    return ERR_OK;
}

/* A tool is quiet unless it is asked on its command line or in its environment; lorry.yaml's
 * log.level is the worker's. */
static bool level_is_asked_for(int argc, char **argv) {
    bool asked = getenv("LORRY_LOG_LEVEL") != NULL;
    for (int i = 0; i < argc; i++) {
        asked = asked || strncmp(argv[i], "--log.level", 11) == 0;
    }
    return asked;
}

static int run(const struct command *c, int argc, char **argv) {
    struct tool t = {.command = c};
    struct err_text why = {0};
    struct config *config = NULL;
    int rest = 0;
    bool asked = level_is_asked_for(argc, argv);
    struct config_input input = {.argc = argc, .argv = argv, .environ = environ};
    log_configure(LOG_WARN, NULL);
    enum err e = c->unconfigured ? ERR_OK : config_open(&config, &input, c->own_flags, &rest, &why);
    if (c->unconfigured) {
        e = take(&t, argc, argv, &why);
    } else if (e == ERR_OK) {
        enum log_level level = LOG_WARN;
        if (asked) {
            (void)log_level_parse(config->log_level, &level);
        }
        log_configure(level, config->log_debug);
        t.config = config;
        e = take(&t, rest, argv, &why);
    }
    int code = e == ERR_OK ? c->run(&t) : tool_fail(e, &why);
    if (fflush(stdout) != 0 && code == EXIT_DONE) {
        tool_note("writing to stdout failed");
        code = EXIT_USAGE;
    }
    log_configure(LOG_WARN, NULL); /* log.debug's text goes with the configuration */
    config_close(config);
    return code;
}

static bool asks_for_help(int argc, char **argv) {
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            return true;
        }
    }
    return false;
}

int main(int argc, char **argv) {
    argc -= 1;
    argv += 1;
    (void)signal(SIGPIPE, SIG_IGN);
    if (argc == 0) {
        (void)help(0, argv);
        return EXIT_USAGE;
    }
    if (strcmp(argv[0], "--version") == 0) {
        (void)puts("lorry " LORRY_VERSION);
        return EXIT_DONE;
    }
    if (strcmp(argv[0], "help") == 0) {
        return help(argc - 1, argv + 1);
    }
    if (argv[0][0] == '-') {
        if (asks_for_help(1, argv)) {
            return help(0, argv);
        }
        tool_note("a command comes first, options follow it: lorry COMMAND %s …", argv[0]);
        return EXIT_USAGE;
    }
    int used = 0;
    char group[32];
    const struct command *c = find(argc, argv, &used);
    if (c != NULL) {
        if (asks_for_help(argc, argv)) {
            print_help(c);
            return EXIT_DONE;
        }
        return run(c, argc - used, argv + used);
    }
    if (is_group(argv[0], group)) {
        bool asked = asks_for_help(argc, argv);
        (void)fprintf(asked ? stdout : stderr, "lorry %.30s COMMAND\n\n", argv[0]);
        print_commands(asked ? stdout : stderr, group);
        return asked ? EXIT_DONE : EXIT_USAGE;
    }
    return unknown(argv[0]);
}
