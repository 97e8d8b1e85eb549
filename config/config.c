/* config.c - the four places of a value, in rising order: default, file, environment, flag. */
#include "config/config.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "config/flags.h"
#include "config/options.h"

_Static_assert(offsetof(struct config_store, config) == 0, "struct config * is cast back");

/* The value of `name` in the environment given, or NULL. */
static const char *env_get(const struct config_input *input, const char *name) {
    size_t bytes = strlen(name);
    for (char **e = input->environ; e != NULL && *e != NULL; e++) {
        if (strncmp(*e, name, bytes) == 0 && (*e)[bytes] == '=') {
            return *e + bytes + 1;
        }
    }
    return NULL;
}

static enum err set_defaults(struct config_store *s, struct err_text *why) {
    enum err e = ERR_OK;
    for (uint32_t i = 0; i < OPTION_COUNT && e == ERR_OK; i++) {
        const struct option *o = &option_table[i];
        bool empty_list = o->type == OPTION_LIST && o->initial[0] == '\0';
        e = config_set(s, i, &o->initial, empty_list ? 0 : 1, "default", why);
    }
    return e;
}

static enum err set_from_file(struct config_store *s, const struct config_input *input,
                              const char *flag_path, struct err_text *why) {
    static const char *const places[] = {"lorry.yaml", "/etc/lorry/lorry.yaml", NULL};
    const char *path = flag_path != NULL ? flag_path : env_get(input, "LORRY_CONFIG");
    if (path != NULL && path[0] != '\0') {
        return config_read_file(s, path, NULL, why);
    }
    bool missing = true;
    enum err e = ERR_OK;
    for (const char *const *p = input->files != NULL ? input->files : places;
         missing && e == ERR_OK && *p != NULL; p++) {
        e = config_read_file(s, *p, &missing, why);
    }
    return e;
}

/* A list in the environment is separated by commas; empty = no items. `text` is cut up. */
static enum err set_list(struct config_store *s, uint32_t index, char *text, const char *place,
                         struct err_text *why) {
    const char *items[OPTION_LIST_MAX];
    uint32_t count = 0;
    char *rest = text[0] != '\0' ? text : NULL;
    for (char *item = strsep(&rest, ","); item != NULL; item = strsep(&rest, ",")) {
        if (count == OPTION_LIST_MAX) {
            return err_set(why, ERR_BAD_CONFIG, "%s: more than %d items", place, OPTION_LIST_MAX);
        }
        items[count++] = item;
    }
    return config_set(s, index, items, count, place, why);
}

static enum err set_from_environment(struct config_store *s, const struct config_input *input,
                                     struct err_text *why) {
    enum err e = ERR_OK;
    for (uint32_t i = 0; i < OPTION_COUNT && e == ERR_OK; i++) {
        char name[OPTION_NAME_BYTES];
        const char *text = env_get(input, option_env_name(name, &option_table[i]));
        if (text == NULL) {
            continue;
        }
        if (option_table[i].type == OPTION_LIST) {
            char *copy = strdup(text);
            e = copy != NULL ? set_list(s, i, copy, name, why)
                             : err_set(why, ERR_NO_MEMORY, "no memory for the configuration");
            free(copy);
        } else {
            e = config_set(s, i, &text, 1, name, why);
        }
    }
    return e;
}

/* A LORRY_ variable that names no option may be another program's, so it is only a warning. */
static void warn_of_unknown(const struct config_input *input) {
    static const char *const known[] = {"LORRY_CONFIG=", "LORRY_CACHE=", "LORRY_TEST_"};
    for (char **e = input->environ; e != NULL && *e != NULL; e++) {
        bool is_known = strncmp(*e, "LORRY_", 6) != 0;
        char name[OPTION_NAME_BYTES];
        char nearest[OPTION_NAME_BYTES] = "";
        char quoted[2 * OPTION_NAME_BYTES + 3];
        uint32_t least = UINT32_MAX;
        for (unsigned i = 0; i < sizeof known / sizeof known[0]; i++) {
            is_known = is_known || strncmp(*e, known[i], strlen(known[i])) == 0;
        }
        (void)snprintf(name, sizeof name, "%.*s", (int)strcspn(*e, "="), *e);
        for (uint32_t i = 0; i < OPTION_COUNT && !is_known; i++) {
            char option[OPTION_NAME_BYTES];
            uint32_t distance = option_distance(name, option_env_name(option, &option_table[i]));
            if (distance < least) {
                least = distance;
                memcpy(nearest, option, sizeof nearest);
            }
        }
        if (!is_known && least > 0) {
            log_warn("config", "environment variable is no option, ignored name=%s nearest=%s",
                     log_quote(quoted, sizeof quoted, name), nearest);
        }
    }
}

/* The texts of all flags up to the `last` that set the same option. 0: too many. */
static uint32_t gather(const struct flags *f, uint32_t last, const char *items[OPTION_LIST_MAX]) {
    uint32_t count = 0;
    for (uint32_t i = 0; i <= last; i++) {
        if (f->items[i].option == f->items[last].option) {
            if (count == OPTION_LIST_MAX) {
                return 0;
            }
            items[count++] = f->items[i].text;
        }
    }
    return count;
}

static enum err set_from_flags(struct config_store *s, const struct flags *f,
                               struct err_text *why) {
    const char *items[OPTION_LIST_MAX];
    for (uint32_t i = 0; i < f->count; i++) {
        const struct flag *flag = &f->items[i];
        bool list = option_table[flag->option].type == OPTION_LIST;
        uint32_t count = list ? gather(f, i, items) : 1;
        if (count == 0) {
            return err_set_field(why, ERR_BAD_CONFIG, flag->name, "%s: given more than %d times",
                                 flag->name, OPTION_LIST_MAX);
        }
        enum err e =
            config_set(s, flag->option, list ? items : &flag->text, count, flag->name, why);
        if (e != ERR_OK) {
            return e;
        }
    }
    return ERR_OK;
}

/* state.dir is never left empty where the environment says what it is. */
static enum err set_state_dir(struct config_store *s, const struct config_input *input,
                              struct err_text *why) {
    const char *directory = env_get(input, "STATE_DIRECTORY"); /* systemd: may be a list with ':' */
    char path[4096];
    const char *text = path;
    if (s->config.state_dir[0] != '\0') {
        return ERR_OK;
    }
    if (directory != NULL && directory[0] != '\0') {
        (void)snprintf(path, sizeof path, "%.*s", (int)strcspn(directory, ":"), directory);
        return config_set(s, OPTION_ID_state_dir, &text, 1, "STATE_DIRECTORY", why);
    }
    if (s->home != NULL && s->home[0] != '\0') {
        text = "~/.local/state/lorry";
        return config_set(s, OPTION_ID_state_dir, &text, 1, "default", why);
    }
    return ERR_OK;
}

enum err config_open(struct config **out, const struct config_input *input,
                     const char *const *own_flags, int *rest_count, struct err_text *why) {
    CHECK(input->argc >= 0);
    struct flags flags = {0};
    struct config_store *s = calloc(1, sizeof *s);
    int rest = 0;
    enum err e = ERR_NO_MEMORY;
    if (s == NULL) {
        return err_set(why, e, "no memory for the configuration");
    }
    s->home = env_get(input, "HOME");
    e = flags_take(&flags, input, own_flags, &rest, why);
    if (e == ERR_OK) {
        e = set_defaults(s, why);
    }
    if (e == ERR_OK) {
        e = set_from_file(s, input, flags.config_path, why);
    }
    if (e == ERR_OK) {
        e = set_from_environment(s, input, why);
    }
    if (e == ERR_OK) {
        e = set_from_flags(s, &flags, why);
    }
    if (e == ERR_OK) {
        e = set_state_dir(s, input, why);
    }
    if (e == ERR_OK) {
        e = config_check(s, why);
    }
    if (e == ERR_OK) {
        warn_of_unknown(input);
        s->home = NULL; /* the environment is the caller's */
        *out = &s->config;
        s = NULL; /* ownership moves here */
        *rest_count = rest;
    }
    flags_deinit(&flags);
    if (s != NULL) {
        config_close(&s->config);
    }
    return e;
}

void config_close(struct config *c) {
    if (c == NULL) {
        return;
    }
    struct config_store *s = (struct config_store *)c;
    for (uint32_t i = 0; i < OPTION_COUNT; i++) {
        for (uint32_t j = 0; j < s->values[i].count; j++) {
            free(s->values[i].items[j]);
        }
        free((void *)s->values[i].items);
        free(s->values[i].place);
    }
    free(s);
}
