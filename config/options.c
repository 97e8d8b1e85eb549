/* options.c - the table, names, and what a text means for an option. */
#include "config/options.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

#define SECRET OPTION_SECRET
#define PATH OPTION_PATH
#define INITIAL_STRING(x) x
#define INITIAL_ENUM(x) x
#define INITIAL_LIST(x) x
#define INITIAL_BOOL(x) x
#define INITIAL_BYTES(x) x
#define INITIAL_INT(x) #x
#define INITIAL_REAL(x) #x
const struct option option_table[OPTION_COUNT] = {
#define OPTION(s, n, type_, initial_, min_, max_, flags_, help_) \
    {.section = #s,                                              \
     .name = #n,                                                 \
     .initial = INITIAL_##type_(initial_),                       \
     .help = help_,                                              \
     .min = min_,                                                \
     .max = max_,                                                \
     .offset = offsetof(struct config, s##_##n),                 \
     .type = OPTION_##type_,                                     \
     .flags = flags_},
#include "config/options.def"
#undef OPTION
};
#undef SECRET
#undef PATH

#define OPTION(s, n, type, initial, min, max, flags, help) \
    _Static_assert(sizeof("LORRY_" #s "_" #n) <= OPTION_NAME_BYTES, "name of " #s "." #n);
#include "config/options.def"
#undef OPTION

const char *option_full_name(char room[OPTION_NAME_BYTES], const struct option *o) {
    (void)snprintf(room, OPTION_NAME_BYTES, "%s.%s", o->section, o->name);
    return room;
}

static char upper(char c) {
    return (char)(c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c);
}

const char *option_env_name(char room[OPTION_NAME_BYTES], const struct option *o) {
    (void)snprintf(room, OPTION_NAME_BYTES, "LORRY_%s_%s", o->section, o->name);
    for (char *c = room; *c != '\0'; c++) {
        *c = upper(*c);
    }
    return room;
}

uint32_t option_find(const char *section, const char *name) {
    uint32_t i = 0;
    while (i < OPTION_COUNT && (strcmp(option_table[i].section, section) != 0 ||
                                strcmp(option_table[i].name, name) != 0)) {
        i++;
    }
    return i;
}

uint32_t option_find_section(const char *section) {
    uint32_t i = 0;
    while (i < OPTION_COUNT && strcmp(option_table[i].section, section) != 0) {
        i++;
    }
    return i;
}

uint32_t option_distance(const char *a, const char *b) {
    uint32_t row[OPTION_NAME_BYTES];
    size_t a_bytes = strnlen(a, OPTION_NAME_BYTES - 1);
    size_t b_bytes = strnlen(b, OPTION_NAME_BYTES - 1);
    for (uint32_t j = 0; j <= b_bytes; j++) {
        row[j] = j;
    }
    for (uint32_t i = 1; i <= a_bytes; i++) {
        uint32_t diagonal = row[0]; /* of the row above */
        row[0] = i;
        for (uint32_t j = 1; j <= b_bytes; j++) {
            uint32_t best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            best = row[j] + 1 < best ? row[j] + 1 : best;
            row[j] = row[j - 1] + 1 < best ? row[j - 1] + 1 : best;
        }
    }
    return row[b_bytes];
}

const struct option *option_nearest(const char *section, const char *name) {
    const struct option *nearest = &option_table[0];
    uint32_t least = UINT32_MAX;
    char wrote[2 * OPTION_NAME_BYTES];
    char full[OPTION_NAME_BYTES];
    (void)snprintf(wrote, sizeof wrote, "%.60s.%.60s", section, name);
    for (uint32_t i = 0; i < OPTION_COUNT; i++) {
        const struct option *o = &option_table[i];
        uint32_t distance = option_distance(wrote, option_full_name(full, o));
        if (strcmp(o->name, name) == 0 && distance > 1) {
            distance = 1; /* the right name in the wrong section is as near as a typing error */
        }
        if (distance < least) {
            least = distance;
            nearest = o;
        }
    }
    return nearest;
}

bool option_enum_word(const struct option *o, uint32_t i, const char **word, size_t *bytes) {
    CHECK(o->type == OPTION_ENUM);
    const char *at = o->help;
    const char *end = at + strcspn(at, ":");
    for (; i > 0; i--) {
        at += strcspn(at, "|:");
        if (at >= end) {
            return false;
        }
        at++;
    }
    *word = at;
    *bytes = strcspn(at, "|:");
    return true;
}

/* 64M for 67108864; only whole powers of 1024 are shortened. */
static const char *bytes_text(char *room, size_t room_bytes, int64_t bytes) {
    const char *suffix = " KMGT";
    while (bytes != 0 && bytes % 1024 == 0 && suffix[1] != '\0') {
        bytes /= 1024;
        suffix++;
    }
    (void)snprintf(room, room_bytes, "%lld%.*s", (long long)bytes, *suffix != ' ', suffix);
    return room;
}

const char *option_takes(char *room, size_t room_bytes, const struct option *o) {
    const char *word;
    char least[32];
    char most[32];
    size_t bytes;
    size_t at = 0;
    switch (o->type) {
    case OPTION_ENUM:
        room[0] = '\0';
        for (uint32_t i = 0; option_enum_word(o, i, &word, &bytes) && at < room_bytes; i++) {
            at += (size_t)snprintf(room + at, room_bytes - at, "%s%.*s", i > 0 ? ", " : "one of ",
                                   (int)bytes, word);
        }
        break;
    case OPTION_INT:
        (void)snprintf(room, room_bytes, "a whole number %lld .. %lld", (long long)o->min,
                       (long long)o->max);
        break;
    case OPTION_REAL:
        (void)snprintf(room, room_bytes, "a number %lld .. %lld", (long long)o->min,
                       (long long)o->max);
        break;
    case OPTION_BYTES:
        (void)snprintf(room, room_bytes, "a size %s .. %s", bytes_text(least, sizeof least, o->min),
                       bytes_text(most, sizeof most, o->max));
        break;
    case OPTION_BOOL:
        (void)snprintf(room, room_bytes, "true or false");
        break;
    case OPTION_STRING:
    case OPTION_LIST:
        (void)snprintf(room, room_bytes, "%s of %lld .. %lld bytes",
                       o->type == OPTION_LIST ? "items" : "text", (long long)o->min,
                       (long long)o->max);
        break;
    }
    return room;
}

static bool parse_int(const char *text, int64_t *value, const char **end) {
    if (!isdigit((unsigned char)text[text[0] == '-'])) {
        return false; /* strtoll would skip spaces and take a '+' */
    }
    char *stop;
    errno = 0;
    *value = strtoll(text, &stop, 10);
    *end = stop;
    return errno == 0;
}

bool option_parse_bytes(const char *text, int64_t *value) {
    static const char suffixes[] = "KMGT";
    const char *end;
    if (!parse_int(text, value, &end)) {
        return false;
    }
    if (*end == '\0') {
        return true;
    }
    const char *suffix = strchr(suffixes, upper(*end));
    if (suffix == NULL || end[1] != '\0') {
        return false;
    }
    for (const char *s = suffixes; s <= suffix; s++) {
        if (*value > INT64_MAX / 1024 || *value < INT64_MIN / 1024) {
            return false;
        }
        *value *= 1024;
    }
    return true;
}

static bool parse_real(const char *text, double *value) {
    if (text[0] == '\0' || strspn(text, "0123456789+-.eE") != strlen(text)) {
        return false; /* no hexadecimal, infinities or spaces */
    }
    char *end;
    *value = strtod(text, &end);
    return *end == '\0' && isfinite(*value);
}

static bool parse_bool(const char *text, bool *value) {
    static const char *const words[] = {"false", "true", "no", "yes", "off", "on", "0", "1"};
    for (unsigned i = 0; i < sizeof words / sizeof words[0]; i++) {
        if (strcmp(text, words[i]) == 0) {
            *value = i % 2 == 1;
            return true;
        }
    }
    return false;
}

static bool enum_has(const struct option *o, const char *text) {
    const char *word;
    size_t bytes;
    for (uint32_t i = 0; option_enum_word(o, i, &word, &bytes); i++) {
        if (strlen(text) == bytes && memcmp(text, word, bytes) == 0) {
            return true;
        }
    }
    return false;
}

static bool length_fits(const struct option *o, const char *text) {
    size_t bytes = strlen(text);
    return bytes >= (size_t)o->min && bytes <= (size_t)o->max;
}

/* Checks the texts, then writes the member; strings and lists point to `items`. */
static bool convert(struct config *c, const struct option *o, char *const *items, uint32_t count) {
    void *member = (char *)c + o->offset;
    int64_t number = 0;
    double real = 0;
    const char *end = "";
    if (o->type != OPTION_LIST && count != 1) {
        return false;
    }
    switch (o->type) {
    case OPTION_STRING:
    case OPTION_ENUM:
        if (o->type == OPTION_ENUM ? !enum_has(o, items[0]) : !length_fits(o, items[0])) {
            return false;
        }
        *(const char **)member = items[0];
        return true;
    case OPTION_LIST:
        for (uint32_t i = 0; i < count; i++) {
            if (!length_fits(o, items[i])) {
                return false;
            }
        }
        if (count == 0 && o->min > 0) {
            return false;
        }
        *(struct config_list *)member = (struct config_list){(const char *const *)items, count};
        return true;
    case OPTION_INT:
    case OPTION_BYTES:
        if (o->type == OPTION_BYTES ? !option_parse_bytes(items[0], &number)
                                    : !(parse_int(items[0], &number, &end) && *end == '\0')) {
            return false;
        }
        if (number < o->min || number > o->max) {
            return false;
        }
        *(int64_t *)member = number;
        return true;
    case OPTION_REAL:
        if (!parse_real(items[0], &real) || real < (double)o->min || real > (double)o->max) {
            return false;
        }
        *(double *)member = real;
        return true;
    case OPTION_BOOL:
        return parse_bool(items[0], (bool *)member);
    }
    return false;
}

static void items_free(char **items, uint32_t count) {
    for (uint32_t i = 0; items != NULL && i < count; i++) {
        free(items[i]);
    }
    free((void *)items);
}

/* Whether a leading ~ of a path can be expanded. */
static enum err check_home(const struct config_store *s, const struct option *o, const char *path,
                           const char *place, struct err_text *why) {
    char full[OPTION_NAME_BYTES];
    if (path[1] != '/' && path[1] != '\0') {
        return err_set_field(why, ERR_BAD_CONFIG, option_full_name(full, o),
                             "%s: %s: only ~ and ~/… are expanded, not ~user", place, full);
    }
    if (s->home == NULL || s->home[0] == '\0') {
        return err_set_field(why, ERR_BAD_CONFIG, option_full_name(full, o),
                             "%s: %s: ~ cannot be expanded, HOME is not set", place, full);
    }
    return ERR_OK;
}

static char *concatenate(const char *a, const char *b) {
    size_t bytes = strlen(a) + strlen(b) + 1;
    char *text = malloc(bytes);
    if (text != NULL) {
        (void)snprintf(text, bytes, "%s%s", a, b);
    }
    return text;
}

static enum err refuse(const struct option *o, char *const *items, uint32_t count,
                       const char *place, struct err_text *why) {
    char full[OPTION_NAME_BYTES];
    char takes[160];
    (void)option_full_name(full, o);
    (void)option_takes(takes, sizeof takes, o);
    if (count != 1 || o->type == OPTION_LIST || (o->flags & OPTION_SECRET) != 0) {
        return err_set_field(why, ERR_BAD_CONFIG, full, "%s: %s takes %s%s", place, full, takes,
                             count == 0 ? ", at least one" : "");
    }
    return err_set_field(why, ERR_BAD_CONFIG, full, "%s: %s takes %s, not \"%.64s\"", place, full,
                         takes, items[0]);
}

enum err config_set(struct config_store *s, uint32_t index, const char *const *items,
                    uint32_t count, const char *place, struct err_text *why) {
    CHECK(index < OPTION_COUNT);
    CHECK(count <= OPTION_LIST_MAX);
    const struct option *o = &option_table[index];
    struct config_value *value = &s->values[index];
    struct config_value fresh = {.count = count, .place = strdup(place)};
    enum err e = ERR_OK;
    fresh.items = calloc((size_t)count + 1, sizeof *fresh.items);
    if (fresh.items == NULL || fresh.place == NULL) {
        e = err_set(why, ERR_NO_MEMORY, "no memory for the configuration");
        goto out;
    }
    for (uint32_t i = 0; i < count; i++) {
        bool home = (o->flags & OPTION_PATH) != 0 && items[i][0] == '~';
        e = home ? check_home(s, o, items[i], place, why) : ERR_OK;
        if (e != ERR_OK) {
            goto out;
        }
        fresh.items[i] = concatenate(home ? s->home : "", items[i] + home);
        if (fresh.items[i] == NULL) {
            e = err_set(why, ERR_NO_MEMORY, "no memory for the configuration");
            goto out;
        }
    }
    if (!convert(&s->config, o, fresh.items, count)) {
        e = refuse(o, fresh.items, count, place, why);
        goto out;
    }
    items_free(value->items, value->count);
    free(value->place);
    *value = fresh; /* ownership moves here; the member already points to it */
    return ERR_OK;
out:
    items_free(fresh.items, count);
    free(fresh.place);
    return e;
}
