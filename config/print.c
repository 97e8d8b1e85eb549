/* print.c - the options for people: what is in force, --help, the page and the example file. */
#include <string.h>

#include "config/options.h"

/* Whether the first `bytes` of `name` speak of something that must not be shown. */
static bool is_secret_name(const char *name, size_t bytes) {
    static const char *const words[] = {"password", "secret",      "key",
                                        "token",    "jaas",        "passphrase",
                                        "userinfo", "credentials", "oauthbearer.config"};
    char lower[OPTION_NAME_BYTES] = "";
    for (size_t i = 0; i < bytes && i + 1 < sizeof lower; i++) {
        lower[i] = (char)(name[i] >= 'A' && name[i] <= 'Z' ? name[i] - 'A' + 'a' : name[i]);
        lower[i + 1] = '\0';
    }
    bool secret = bytes >= sizeof lower; /* not a name we know: rather hide it */
    for (unsigned i = 0; i < sizeof words / sizeof words[0]; i++) {
        secret = secret || strstr(lower, words[i]) != NULL;
    }
    return secret;
}

const char *config_mask(char *room, size_t room_bytes, const char *text) {
    const char *scheme = strstr(text, "://");
    size_t equals = strcspn(text, "=");
    if (scheme == NULL || text + equals < scheme) { /* name=value */
        bool hide = text[equals] == '=' && is_secret_name(text, equals);
        (void)snprintf(room, room_bytes, "%.*s%s", hide ? (int)equals + 1 : (int)strlen(text), text,
                       hide ? "***" : "");
        return room;
    }
    /* user:password@, up to the last @ (a password may hold one), then no query */
    const char *user = scheme + 3;
    const char *at = strrchr(user, '@');
    size_t user_bytes = at != NULL ? strcspn(user, ":@") : 0;
    const char *rest = at != NULL ? at : user;
    size_t rest_bytes = strcspn(rest, "?");
    (void)snprintf(room, room_bytes, "%.*s%s%.*s%s", (int)((size_t)(user - text) + user_bytes),
                   text, at != NULL && user + user_bytes != at ? ":***" : "", (int)rest_bytes, rest,
                   rest[rest_bytes] == '?' ? "?***" : "");
    return room;
}

void config_print(const struct config *c, FILE *out) {
    const struct config_store *s = (const struct config_store *)c;
    for (uint32_t i = 0; i < OPTION_COUNT; i++) {
        const struct option *o = &option_table[i];
        const struct config_value *v = &s->values[i];
        bool secret = (o->flags & OPTION_SECRET) != 0;
        for (uint32_t j = 0; j == 0 || j < v->count; j++) { /* of a list: a line for each item */
            char masked[CONFIG_PRINTED_BYTES_MAX];
            const char *text = j < v->count ? v->items[j] : "";
            (void)fprintf(out, "%s.%s=%s  # %s\n", o->section, o->name,
                          secret ? config_mask(masked, sizeof masked, text) : text, v->place);
        }
    }
}

static bool starts_section(uint32_t i) {
    return i == 0 || strcmp(option_table[i].section, option_table[i - 1].section) != 0;
}

/* The help without the words of an ENUM, which are printed as what it takes. */
static const char *meaning(const struct option *o) {
    const char *colon = o->type == OPTION_ENUM ? strchr(o->help, ':') : NULL;
    if (colon != NULL) {
        return colon + 1 + strspn(colon + 1, " ");
    }
    return o->type == OPTION_ENUM ? "" : o->help;
}

/* --help: the shape of the value behind the flag. */
static const char *placeholder(char *room, size_t room_bytes, const struct option *o) {
    static const char *const shapes[] = {
        [OPTION_STRING] = "TEXT", [OPTION_LIST] = "ITEM", [OPTION_INT] = "N",
        [OPTION_REAL] = "X",      [OPTION_BOOL] = "",     [OPTION_BYTES] = "BYTES",
    };
    if (o->type == OPTION_ENUM) {
        (void)snprintf(room, room_bytes, "%.*s", (int)strcspn(o->help, ":"), o->help);
    } else {
        bool path = (o->flags & OPTION_PATH) != 0;
        (void)snprintf(room, room_bytes, "%s", path ? "PATH" : shapes[o->type]);
    }
    return room;
}

void config_help(FILE *out) {
    (void)fprintf(
        out, "Options stand in lorry.yaml (section: option: value), in the environment\n"
             "(LORRY_SECTION_OPTION) or on the command line; the command line wins, then the\n"
             "environment, then the file. The file is the first of --config FILE, $LORRY_CONFIG,\n"
             "./lorry.yaml and /etc/lorry/lorry.yaml. Short forms: --model PATH, --adapters PATH,\n"
             "-X name=value (a librdkafka property). A list's flag may be given again.\n");
    for (uint32_t i = 0; i < OPTION_COUNT; i++) {
        const struct option *o = &option_table[i];
        char shape[64];
        char flag[3 * OPTION_NAME_BYTES];
        if (starts_section(i)) {
            (void)fprintf(out, "\n%s\n", o->section);
        }
        (void)placeholder(shape, sizeof shape, o);
        (void)snprintf(flag, sizeof flag, "--%s%s.%s%s%s", o->type == OPTION_BOOL ? "[no-]" : "",
                       o->section, o->name, shape[0] != '\0' ? " " : "", shape);
        (void)fprintf(out, "  %-36s", flag);
        if (strlen(flag) >= 36) {
            (void)fprintf(out, "\n  %-36s", "");
        }
        (void)fprintf(out, "%s%s[%s]\n", meaning(o), meaning(o)[0] != '\0' ? " " : "",
                      o->initial[0] != '\0' ? o->initial : "none");
    }
}

bool config_flag(uint32_t index, struct config_flag *flag) {
    if (index >= OPTION_COUNT) {
        return false;
    }
    const struct option *o = &option_table[index];
    *flag = (struct config_flag){.section = o->section,
                                 .meaning = meaning(o),
                                 .initial = o->initial,
                                 .path = (o->flags & OPTION_PATH) != 0,
                                 .choice = o->type == OPTION_ENUM};
    (void)snprintf(flag->name, sizeof flag->name, "--%s.%s", o->section, o->name);
    (void)placeholder(flag->takes, sizeof flag->takes, o);
    return true;
}

static void write_cell(FILE *out, const char *text) {
    for (; *text != '\0'; text++) {
        (void)fprintf(out, *text == '|' ? "\\|" : "%c", *text);
    }
}

void config_write_markdown(FILE *out) {
    (void)fprintf(
        out,
        "<!-- Made from config/options.def by `make docs`; edit that instead. -->\n"
        "# Configuration\n\n"
        "One `lorry.yaml` serves `lorryd` and `lorry`. It is the first of `--config FILE`,\n"
        "`$LORRY_CONFIG`, `./lorry.yaml` and `/etc/lorry/lorry.yaml`; the first two must exist "
        "when\n"
        "given. A value is taken from the first place that has it: command line, environment, "
        "file,\n"
        "default. [lorry.example.yaml](lorry.example.yaml) holds every option with its default.\n\n"
        "- `kafka.brokers` is `brokers:` below `kafka:` in the file, `LORRY_KAFKA_BROKERS` in the\n"
        "  environment and `--kafka.brokers` on the command line. `--model` and `--adapters` "
        "stand\n"
        "  for `--model.dir` and `--adapters.dir`, `-X name=value` for `--kafka.properties`.\n"
        "- Switches: `--frames.default`, `--no-frames.default`, or `=true`, `=false`.\n"
        "- Lists: a YAML list (or one plain value); items separated by commas in the environment;\n"
        "  the flag given again. An item with a comma goes into the file or a flag.\n"
        "- Sizes take the suffixes K, M, G and T, powers of 1024. Paths may begin with `~/`.\n"
        "- An empty value, `~` or `null` in the file leaves the default; `\"\"` is the empty "
        "text.\n"
        "- A key that is unknown or given twice is an error that names file, line and the nearest\n"
        "  known key. An unknown `LORRY_` variable is named in a warning.\n"
        "- Librdkafka's properties pass through `kafka.properties`, but for those that carry the\n"
        "  delivery contract or have an option of their own; these are refused by name.\n"
        "- `lorry check` prints what is in force and from where; passwords, keys and tokens are\n"
        "  masked.\n");
    for (uint32_t i = 0; i < OPTION_COUNT; i++) {
        const struct option *o = &option_table[i];
        char takes[160];
        if (starts_section(i)) {
            (void)fprintf(out,
                          "\n## %s\n\n| option | default | takes | meaning |\n|---|---|---|---|\n",
                          o->section);
        }
        (void)fprintf(out, "| `%s.%s` | ", o->section, o->name);
        (void)fprintf(out, o->initial[0] != '\0' ? "`%s`" : "%s", o->initial);
        (void)fprintf(out, " | %s%s | ", option_takes(takes, sizeof takes, o),
                      (o->flags & OPTION_PATH) != 0 ? "; a path" : "");
        write_cell(out, meaning(o));
        (void)fprintf(out, " |\n");
    }
}

/* "  # meaning; takes", broken between words where a line would be longer than 96. */
static void write_comment(FILE *out, const char *what, const char *takes) {
    char text[1024];
    size_t column = 0;
    (void)snprintf(text, sizeof text, "%s%s%s", what,
                   what[0] != '\0' && takes[0] != '\0' ? "; " : "", takes);
    for (const char *word = text; *word != '\0';) {
        size_t bytes = strcspn(word, " ");
        if (column == 0 || column + 1 + bytes > 96) {
            (void)fprintf(out, "%s  #", column > 0 ? "\n" : "");
            column = 3;
        }
        (void)fprintf(out, " %.*s", (int)bytes, word);
        column += 1 + bytes;
        word += bytes + strspn(word + bytes, " ");
    }
    (void)fputc('\n', out);
}

void config_write_example(FILE *out) {
    (void)fprintf(
        out, "# lorry.yaml - every option with its default (made from config/options.def by\n"
             "# `make docs`). Take the # away from what you set. CONFIGURATION.md explains.\n");
    for (uint32_t i = 0; i < OPTION_COUNT; i++) {
        const struct option *o = &option_table[i];
        char takes[160];
        bool list = o->type == OPTION_LIST;
        bool text = o->type == OPTION_STRING || list;
        const char *quote = text ? "\"" : "";
        if (starts_section(i)) {
            (void)fprintf(out, "\n%s:\n", o->section);
        }
        write_comment(out, meaning(o), text ? "" : option_takes(takes, sizeof takes, o));
        if (list && o->initial[0] == '\0') {
            quote = "";
        }
        (void)fprintf(out, "  #%s: %s%s%s%s%s\n", o->name, list ? "[" : "", quote, o->initial,
                      quote, list ? "]" : "");
    }
}
