/* flags.c - the command line: which words are options, which are the sub-command's. */
#include "config/flags.h"

#include <stdlib.h>
#include <string.h>

/* `word` split at its '='; *value is NULL without one. false: the name is too long to be known. */
static bool split(const char *word, char name[OPTION_NAME_BYTES], const char **value) {
    size_t bytes = strcspn(word, "=");
    *value = word[bytes] == '=' ? word + bytes + 1 : NULL;
    if (bytes >= OPTION_NAME_BYTES) {
        return false;
    }
    memcpy(name, word, bytes);
    name[bytes] = '\0';
    return true;
}

/* Whether the sub-command knows the flag; *takes_value: the next word belongs to it. */
static bool is_own(const char *const *own_flags, const char *name, const char *value,
                   bool *takes_value) {
    size_t bytes = strlen(name);
    for (; own_flags != NULL && *own_flags != NULL; own_flags++) {
        if (strncmp(*own_flags, name, bytes) != 0) {
            continue;
        }
        const char *rest = *own_flags + bytes;
        if (strcmp(rest, "=") == 0) {
            *takes_value = value == NULL;
            return true;
        }
        if (*rest ==
            '\0') { /* --flag=value of a flag without value is the sub-command's to refuse */
            *takes_value = false;
            return true;
        }
    }
    return false;
}

/* The option that `name` ("--kafka.brokers", "--no-frames.default", "--model", "-X") stands for, or
 * OPTION_COUNT. *negated: --no-. */
static uint32_t find(const char *name, bool *negated) {
    char section[OPTION_NAME_BYTES];
    *negated = false;
    if (strcmp(name, "-X") == 0) {
        return OPTION_ID_kafka_properties;
    }
    if (strcmp(name, "--model") == 0) {
        return OPTION_ID_model_dir;
    }
    if (strcmp(name, "--adapters") == 0) {
        return OPTION_ID_adapters_dir;
    }
    if (strncmp(name, "--", 2) != 0) {
        return OPTION_COUNT;
    }
    name += 2;
    if (strncmp(name, "no-", 3) == 0) {
        *negated = true;
        name += 3;
    }
    size_t dot = strcspn(name, ".");
    if (name[dot] == '\0') {
        return OPTION_COUNT;
    }
    memcpy(section, name, dot);
    section[dot] = '\0';
    uint32_t index = option_find(section, name + dot + 1);
    if (index < OPTION_COUNT && *negated && option_table[index].type != OPTION_BOOL) {
        return OPTION_COUNT;
    }
    return index;
}

static enum err unknown(const char *word, const char *const *own_flags, struct err_text *why) {
    static const char *const shorts[] = {"--config", "--model", "--adapters", NULL};
    const char *const *lists[] = {shorts, own_flags};
    char name[OPTION_NAME_BYTES];
    char full[OPTION_NAME_BYTES + 2] = "--";
    char section[OPTION_NAME_BYTES] = "";
    const char *value;
    if (!split(word, name, &value)) {
        return err_set(why, ERR_BAD_CONFIG, "unknown option %.64s…", word);
    }
    const char *bare = name + strspn(name, "-");
    size_t dot = strcspn(bare, ".");
    if (bare[dot] == '.') {
        (void)snprintf(section, sizeof section, "%.*s", (int)dot, bare);
        bare += dot + 1;
    }
    (void)option_full_name(full + 2, option_nearest(section, bare));
    const char *nearest = full;
    uint32_t least = section[0] != '\0' ? option_distance(name, full) : UINT32_MAX;
    for (unsigned i = 0; i < 2; i++) {
        for (const char *const *own = lists[i]; own != NULL && *own != NULL; own++) {
            uint32_t distance = option_distance(name, *own);
            /* a name without a section is most likely one of these; one with is not */
            if (distance < least && (section[0] != '\0' || distance <= 3)) {
                least = distance;
                nearest = *own;
            }
        }
    }
    return err_set_field(why, ERR_BAD_CONFIG, name, "unknown option %s; nearest is %.*s", name,
                         (int)strcspn(nearest, "="), nearest);
}

/* Takes the option at argv[*at], and its value; *at moves to its last word. */
static enum err take_one(struct flags *f, const struct config_input *input,
                         const char *const *own_flags, int *at, struct err_text *why) {
    const char *word = input->argv[*at];
    const char *value;
    char name[OPTION_NAME_BYTES] = "-X";
    bool negated = false;
    if (strncmp(word, "-X", 2) == 0 && word[2] != '\0' && word[2] != '=') { /* -Xname=value */
        value = word + 2;
    } else if (!split(word, name, &value)) {
        return unknown(word, own_flags, why);
    }
    bool is_path = strcmp(name, "--config") == 0;
    uint32_t index = is_path ? OPTION_COUNT : find(name, &negated);
    if (!is_path && index == OPTION_COUNT) {
        return unknown(word, own_flags, why);
    }
    if (negated && value != NULL) {
        return err_set_field(why, ERR_BAD_CONFIG, name, "%s takes no value", name);
    }
    if (!is_path && value == NULL && option_table[index].type == OPTION_BOOL) {
        value = negated ? "false" : "true";
    }
    if (value == NULL) {
        if (*at + 1 >= input->argc) {
            return err_set_field(why, ERR_BAD_CONFIG, name, "%s needs a value", name);
        }
        *at += 1;
        value = input->argv[*at];
    }
    if (is_path) {
        f->config_path = value;
        return ERR_OK;
    }
    struct flag *flag = &f->items[f->count++];
    *flag = (struct flag){.text = value, .option = index};
    memcpy(flag->name, name, sizeof flag->name);
    return ERR_OK;
}

enum err flags_take(struct flags *f, const struct config_input *input, const char *const *own_flags,
                    int *rest_count, struct err_text *why) {
    int rest = 0;
    *f = (struct flags){0};
    f->items = calloc((size_t)input->argc + 1, sizeof *f->items);
    if (f->items == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for the command line");
    }
    for (int at = 0; at < input->argc; at++) {
        char *word = input->argv[at];
        char name[OPTION_NAME_BYTES];
        const char *value;
        bool takes_value = false;
        if (strcmp(word, "--") == 0) { /* stays, so that the sub-command stops there too */
            while (at < input->argc) {
                input->argv[rest++] = input->argv[at++];
            }
            break;
        }
        if (word[0] != '-' || word[1] == '\0') {
            input->argv[rest++] = word;
            continue;
        }
        if (split(word, name, &value) && is_own(own_flags, name, value, &takes_value)) {
            input->argv[rest++] = word;
            if (takes_value && at + 1 < input->argc) {
                at++;
                input->argv[rest++] = input->argv[at];
            }
            continue;
        }
        enum err e = take_one(f, input, own_flags, &at, why);
        if (e != ERR_OK) {
            flags_deinit(f);
            return e;
        }
    }
    *rest_count = rest;
    return ERR_OK;
}

void flags_deinit(struct flags *f) {
    free(f->items);
    *f = (struct flags){0};
}
