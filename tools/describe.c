#include "tools/describe.h"

#include <string.h>

enum { WORD_BYTES = 72, CHOICES_BYTES = 96, MEANING_BYTES = 160 };

/* ---- what the table says ------------------------------------------------------------------ */

struct flag {
    char name[WORD_BYTES];       /* "--topic" */
    char choices[CHOICES_BYTES]; /* "adapter none"; empty = anything */
    char meaning[MEANING_BYTES]; /* may be empty */
    bool takes_value;
};

/* The first `bytes` of `text`, with spaces for bars. */
static void words_of(char room[CHOICES_BYTES], const char *text, size_t bytes) {
    (void)snprintf(room, CHOICES_BYTES, "%.*s", (int)bytes, text);
    for (char *c = room; *c != '\0'; c++) {
        *c = *c == '|' ? ' ' : *c;
    }
}

/* What stands behind the flag in the usage line, when it is words between bars. */
static void find_choices(struct flag *f, const char *arguments) {
    size_t bytes = strlen(f->name);
    for (const char *at = strstr(arguments, f->name); at != NULL; at = strstr(at + 1, f->name)) {
        const char *value = at + bytes + 1;
        size_t value_bytes = at[bytes] == ' ' ? strcspn(value, " ]") : 0;
        if (value_bytes > 1 && memchr(value, '|', value_bytes) != NULL) {
            words_of(f->choices, value, value_bytes);
            return;
        }
    }
}

/* The help's line about the flag: two spaces, the flag, what it takes, two spaces, the meaning. */
static void find_meaning(struct flag *f, const char *help) {
    char begin[WORD_BYTES + 4];
    (void)snprintf(begin, sizeof begin, "\n  %s", f->name);
    const char *at = strstr(help, begin);
    const char *line = at != NULL ? at + strlen(begin) : "";
    const char *text = strstr(line, "  ");
    if (line[0] == ' ' && text != NULL && text < line + strcspn(line, "\n")) {
        text += strspn(text, " ");
        (void)snprintf(f->meaning, sizeof f->meaning, "%.*s", (int)strcspn(text, "\n"), text);
    }
}

static struct flag flag_of(const struct command *c, int i) {
    struct flag f = {.takes_value = strchr(c->own_flags[i], '=') != NULL};
    (void)snprintf(f.name, sizeof f.name, "%.*s", (int)strcspn(c->own_flags[i], "="),
                   c->own_flags[i]);
    find_choices(&f, c->arguments);
    find_meaning(&f, c->help);
    return f;
}

/* The words that the first argument is one of: "bash|zsh"; false: it is anything. */
static bool argument_choices(const struct command *c, char room[CHOICES_BYTES]) {
    size_t bytes = strspn(c->arguments, "abcdefghijklmnopqrstuvwxyz|");
    bool ends = c->arguments[bytes] == ' ' || c->arguments[bytes] == '\0';
    words_of(room, c->arguments, bytes);
    return ends && bytes > 0;
}

/* The first word of a command's name; *second: the rest, or NULL. */
static void split(const struct command *c, char first[WORD_BYTES], const char **second) {
    size_t bytes = strcspn(c->name, " ");
    (void)snprintf(first, WORD_BYTES, "%.*s", (int)bytes, c->name);
    *second = c->name[bytes] == ' ' ? c->name + bytes + 1 : NULL;
}

/* Whether no earlier command begins with the same word. */
static bool is_first_of_group(const struct command *const *commands, int i) {
    char word[WORD_BYTES];
    char earlier[WORD_BYTES];
    const char *rest = NULL;
    split(commands[i], word, &rest);
    for (int j = 0; j < i; j++) {
        split(commands[j], earlier, &rest);
        if (strcmp(word, earlier) == 0) {
            return false;
        }
    }
    return true;
}

/* ---- bash --------------------------------------------------------------------------------- */

static void first_words(FILE *out, const struct command *const *commands) {
    char word[WORD_BYTES];
    const char *rest = NULL;
    for (int i = 0; commands[i] != NULL; i++) {
        split(commands[i], word, &rest);
        if (is_first_of_group(commands, i)) {
            (void)fprintf(out, "%s ", word);
        }
    }
}

static void second_words(FILE *out, const struct command *const *commands, const char *group) {
    char word[WORD_BYTES];
    const char *rest = NULL;
    for (int i = 0; commands[i] != NULL; i++) {
        split(commands[i], word, &rest);
        if (rest != NULL && strcmp(word, group) == 0) {
            (void)fprintf(out, "%s ", rest);
        }
    }
}

static void bash_groups(FILE *out, const struct command *const *commands) {
    char word[WORD_BYTES];
    const char *rest = NULL;
    for (int i = 0; commands[i] != NULL; i++) {
        split(commands[i], word, &rest);
        if (rest != NULL && is_first_of_group(commands, i)) {
            (void)fprintf(out, "    %s)\n        command=\"%s ${COMP_WORDS[2]}\"\n", word, word);
            (void)fprintf(out, "        [ \"$COMP_CWORD\" -eq 2 ] && words=\"");
            second_words(out, commands, word);
            (void)fprintf(out, "\" ;;\n");
        }
    }
}

static void bash_flags(FILE *out, const struct command *c) {
    (void)fprintf(out, "    \"%s\") flags=\"", c->name);
    for (int i = 0; c->own_flags[i] != NULL; i++) {
        (void)fprintf(out, "%s ", flag_of(c, i).name);
    }
    (void)fprintf(out, "%s\"", c->unconfigured ? "" : "$options");
    (void)fprintf(out, " ;;\n");
}

static void bash_choices(FILE *out, const struct command *c) {
    char choices[CHOICES_BYTES];
    for (int i = 0; c->own_flags[i] != NULL; i++) {
        struct flag f = flag_of(c, i);
        if (f.choices[0] != '\0') {
            (void)fprintf(out, "    \"%s:%s\") words=\"%s\" ;;\n", c->name, f.name, f.choices);
        }
    }
    if (argument_choices(c, choices)) {
        (void)fprintf(out, "    \"%s:%s\") words=\"%s\" ;;\n", c->name, c->name, choices);
    }
}

static void bash_options(FILE *out) {
    struct config_flag f;
    (void)fprintf(out, "    local options=\"--config --model --adapters -X");
    for (uint32_t i = 0; config_flag(i, &f); i++) {
        (void)fprintf(out, " %s", f.name);
        if (f.takes[0] == '\0') {
            (void)fprintf(out, " --no-%s", f.name + 2);
        }
    }
    (void)fprintf(out, "\"\n");
}

void describe_bash(FILE *out, const struct command *const *commands) {
    struct config_flag f;
    char choices[CHOICES_BYTES];
    (void)fprintf(out, "# bash completion for lorry, made by `lorry completion bash`.\n"
                       "_lorry() {\n"
                       "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}\n"
                       "    local command=${COMP_WORDS[1]} words= flags=\n");
    bash_options(out);
    (void)fprintf(out, "    COMPREPLY=()\n"
                       "    if [ \"$cur\" = = ]; then\n"
                       "        cur=\n"
                       "    elif [ \"$prev\" = = ]; then\n"
                       "        prev=${COMP_WORDS[COMP_CWORD-2]}\n"
                       "    fi\n"
                       "    case $command in\n");
    bash_groups(out, commands);
    (void)fprintf(out, "    help) words=\"options man ");
    first_words(out, commands);
    (void)fprintf(out, "\" ;;\n    esac\n"
                       "    [ \"$COMP_CWORD\" -eq 1 ] && words=\"help --help --version ");
    first_words(out, commands);
    (void)fprintf(out, "\"\n    case $command in\n");
    for (int i = 0; commands[i] != NULL; i++) {
        bash_flags(out, commands[i]);
    }
    (void)fprintf(out, "    esac\n    case $command:$prev in\n");
    for (int i = 0; commands[i] != NULL; i++) {
        bash_choices(out, commands[i]);
    }
    for (uint32_t i = 0; config_flag(i, &f); i++) {
        if (f.choice) {
            words_of(choices, f.takes, strlen(f.takes));
            (void)fprintf(out, "    *:%s) words=\"%s\" ;;\n", f.name, choices);
        }
    }
    (void)fprintf(out, "    esac\n"
                       "    if [ -z \"$words\" ] && [ \"${cur:0:1}\" = - ]; then\n"
                       "        words=$flags\n"
                       "    fi\n"
                       "    if [ -n \"$words\" ]; then\n"
                       "        mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$cur\")\n"
                       "    fi\n" /* none: file names, by -o default */
                       "}\n"
                       "complete -o bashdefault -o default -F _lorry lorry\n");
}

/* ---- zsh ---------------------------------------------------------------------------------- */

/* Inside '…'; `special` gets a backslash. */
static void zsh_text(FILE *out, const char *text, const char *special) {
    for (; *text != '\0'; text++) {
        if (*text == '\'') {
            (void)fputs("'\\''", out);
            continue;
        }
        if (strchr(special, *text) != NULL) {
            (void)fputc('\\', out);
        }
        (void)fputc(*text, out);
    }
}

/* One specification of _arguments. `value` NULL: a switch. */
static void zsh_flag(FILE *out, const char *name, const char *meaning, const char *value) {
    bool is_long = name[0] == '-' && name[1] == '-';
    (void)fprintf(out, "        '%s%s", name, value != NULL && is_long ? "=" : "");
    if (meaning[0] != '\0') {
        (void)fputc('[', out);
        zsh_text(out, meaning, "[]:\\");
        (void)fputc(']', out);
    }
    if (value != NULL) {
        (void)fprintf(out, ":value:%s", value);
    }
    (void)fprintf(out, "'\n");
}

static void zsh_options(FILE *out) {
    struct config_flag f;
    char value[CHOICES_BYTES + 4];
    char choices[CHOICES_BYTES];
    char no[WORD_BYTES + 8];
    (void)fprintf(out, "    local -a names options\n    options=(\n");
    zsh_flag(out, "--config", "the configuration", "_files");
    zsh_flag(out, "--model", "folder of the base model", "_files -/");
    zsh_flag(out, "--adapters", "the adapter root", "_files -/");
    zsh_flag(out, "-X", "a librdkafka property, name=value", "");
    for (uint32_t i = 0; config_flag(i, &f); i++) {
        words_of(choices, f.takes, strlen(f.takes));
        (void)snprintf(value, sizeof value, f.choice ? "(%s)" : "%s",
                       f.choice ? choices
                       : f.path ? "_files"
                                : "");
        zsh_flag(out, f.name, f.meaning, f.takes[0] != '\0' ? value : NULL);
        if (f.takes[0] == '\0') {
            (void)snprintf(no, sizeof no, "--no-%.68s", f.name + 2);
            zsh_flag(out, no, f.meaning, NULL);
        }
    }
    (void)fprintf(out, "    )\n");
}

/* The names of `group`'s commands, or with NULL the first words, as _describe wants them. */
static void zsh_names(FILE *out, const struct command *const *commands, const char *group) {
    char word[WORD_BYTES];
    const char *rest = NULL;
    (void)fprintf(out, "names=(\n");
    for (int i = 0; commands[i] != NULL; i++) {
        split(commands[i], word, &rest);
        bool shown = group == NULL ? is_first_of_group(commands, i)
                                   : rest != NULL && strcmp(word, group) == 0;
        if (shown) {
            (void)fprintf(out, "            '%s:", group == NULL ? word : rest);
            zsh_text(out, group == NULL && rest != NULL ? "several commands" : commands[i]->summary,
                     ":\\");
            (void)fprintf(out, "'\n");
        }
    }
    (void)fprintf(out, "        )\n");
}

static void zsh_command(FILE *out, const struct command *c) {
    char choices[CHOICES_BYTES];
    char value[CHOICES_BYTES + 4];
    (void)fprintf(out, "    ('%s')%s\n        own=(\n", c->name,
                  c->unconfigured ? "\n        options=()" : "");
    for (int i = 0; c->own_flags[i] != NULL; i++) {
        struct flag f = flag_of(c, i);
        bool chosen = f.choices[0] != '\0';
        (void)snprintf(value, sizeof value, chosen ? "(%s)" : "%s", chosen ? f.choices : "_files");
        zsh_flag(out, f.name, f.meaning, f.takes_value ? value : NULL);
    }
    bool chosen = argument_choices(c, choices);
    (void)fprintf(out, "        '*:argument:%s%s%s'\n        ) ;;\n", chosen ? "(" : "",
                  chosen ? choices : "_files", chosen ? ")" : "");
}

static void zsh_groups(FILE *out, const struct command *const *commands) {
    char word[WORD_BYTES];
    const char *rest = NULL;
    for (int i = 0; commands[i] != NULL; i++) {
        split(commands[i], word, &rest);
        if (rest != NULL && is_first_of_group(commands, i)) {
            (void)fprintf(out, "    (%s)\n        ", word);
            zsh_names(out, commands, word);
            (void)fprintf(out,
                          "        if (( CURRENT == 3 )); then\n"
                          "            _describe command names\n            return\n        fi\n"
                          "        command=\"%s $words[3]\"\n        shift words\n"
                          "        (( CURRENT-- )) ;;\n",
                          word);
        }
    }
}

void describe_zsh(FILE *out, const struct command *const *commands) {
    (void)fprintf(out, "#compdef lorry\n"
                       "# zsh completion for lorry, made by `lorry completion zsh`.\n"
                       "_lorry() {\n    local -a own\n");
    zsh_options(out);
    (void)fprintf(out, "    if (( CURRENT == 2 )) || [[ $words[2] == help ]]; then\n        ");
    zsh_names(out, commands, NULL);
    (void)fprintf(out, "        names+=('help:all about a command')\n"
                       "        (( CURRENT < 4 )) && _describe command names\n"
                       "        return\n"
                       "    fi\n"
                       "    local command=$words[2]\n"
                       "    case $command in\n");
    zsh_groups(out, commands);
    (void)fprintf(out, "    esac\n    shift words\n    (( CURRENT-- ))\n    case $command in\n");
    for (int i = 0; commands[i] != NULL; i++) {
        zsh_command(out, commands[i]);
    }
    (void)fprintf(out, "    esac\n"
                       "    _arguments $own $options\n"
                       "}\n"
                       "if [[ $funcstack[1] == _lorry ]]; then\n"
                       "    _lorry \"$@\"\n"
                       "else\n"
                       "    compdef _lorry lorry\n"
                       "fi\n");
}

/* ---- man ---------------------------------------------------------------------------------- */

/* A well-formed UTF-8 character at `text` into *code; its bytes. */
static size_t character(const char *text, unsigned *code) {
    unsigned char c = (unsigned char)text[0];
    size_t bytes = c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
    *code = bytes == 1 ? c : c & (0x7fU >> bytes);
    for (size_t i = 1; i < bytes; i++) {
        if (((unsigned char)text[i] & 0xc0) != 0x80) {
            *code = '?';
            return i;
        }
        *code = *code << 6 | ((unsigned char)text[i] & 0x3f);
    }
    return bytes;
}

/* Text as roff shows it unchanged. */
static void man_text(FILE *out, const char *text) {
    bool begins = true; /* of a line, where . and ' are requests */
    while (*text != '\0') {
        unsigned code = 0;
        text += character(text, &code);
        if (begins && (code == '.' || code == '\'')) {
            (void)fputs("\\&", out);
        }
        begins = code == '\n';
        if (code >= 0x80) {
            (void)fprintf(out, "\\[u%04X]", code);
        } else if (code == '\\') {
            (void)fputs("\\e", out);
        } else if (code == '-') {
            (void)fputs("\\-", out);
        } else if (code == '\'' || code == '`' || code == '^' || code == '~') {
            (void)fputs(code == '\''  ? "\\(aq"
                        : code == '`' ? "\\(ga"
                        : code == '^' ? "\\(ha"
                                      : "\\(ti",
                        out);
        } else {
            (void)fputc((int)code, out);
        }
    }
}

static void man_block(FILE *out, const char *text) {
    (void)fprintf(out, ".PP\n.nf\n");
    man_text(out, text);
    (void)fprintf(out, ".fi\n");
}

static void man_options(FILE *out) {
    struct config_flag f;
    const char *section = "";
    (void)fprintf(
        out,
        ".SH OPTIONS OF EVERY COMMAND\n"
        "Each stands in lorry.yaml (section: option: value), in the environment\n"
        "(LORRY_SECTION_OPTION) or on the command line, which wins; then the environment,\n"
        "then the file. The file is the first of \\-\\-config FILE, $LORRY_CONFIG, ./lorry.yaml\n"
        "and /etc/lorry/lorry.yaml. Short forms: \\-\\-model PATH,\n"
        "\\-\\-adapters PATH, \\-X name=value (a librdkafka property).\n");
    for (uint32_t i = 0; config_flag(i, &f); i++) {
        if (strcmp(section, f.section) != 0) {
            (void)fprintf(out, ".SS %s\n", f.section);
            section = f.section;
        }
        (void)fprintf(out, ".TP\n.B ");
        man_text(out, f.name);
        if (f.takes[0] != '\0') {
            (void)fputc(' ', out);
            man_text(out, f.takes);
        }
        (void)fputc('\n', out);
        man_text(out, f.meaning);
        (void)fprintf(out, "%s[", f.meaning[0] != '\0' ? " " : "");
        man_text(out, f.initial[0] != '\0' ? f.initial : "none");
        (void)fprintf(out, "]\n");
    }
}

void describe_man(FILE *out, const struct command *const *commands, const char *ending) {
    (void)fprintf(out, ".\\\" Made from the help by `make docs`.\n"
                       ".TH LORRY 1 \"\" \"lorry " LORRY_VERSION "\" \"User Commands\"\n"
                       ".SH NAME\n"
                       "lorry \\- batch inference for a language model with many LoRA adapters\n"
                       ".SH SYNOPSIS\n"
                       ".B lorry\n"
                       "COMMAND [arguments] [options]\n"
                       ".SH COMMANDS\n");
    for (int i = 0; commands[i] != NULL; i++) {
        (void)fprintf(out, ".SS %s \\- ", commands[i]->name);
        man_text(out, commands[i]->summary);
        (void)fprintf(out, "\n.B lorry %s\n", commands[i]->name);
        man_text(out, commands[i]->arguments);
        (void)fputc('\n', out);
        man_block(out, commands[i]->help);
    }
    man_options(out);
    (void)fprintf(out, ".SH IN SHORT\n");
    man_block(out, ending);
}
