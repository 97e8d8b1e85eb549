/* top_adapters.c - top's table of adapters: what /metrics says by adapter, of all workers asked. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/hash.h"
#include "tools/json.h"
#include "tools/top_internal.h"

enum { SIZE_BYTES = 16, SLOT_MASK = TOP_ADAPTER_SLOTS - 1 };

_Static_assert((TOP_ADAPTER_SLOTS & SLOT_MASK) == 0, "a power of two");
_Static_assert(TOP_ADAPTER_SLOTS >= 2 * TOP_ADAPTERS_MAX, "at most half full: searches end");

/* The families that are taken, as lorry_adapter_<this>{adapter="…"}. */
static const char *const families[TOP_FIGURES] = {
    [TOP_WAITING] = "jobs_waiting",
    [TOP_RUNNING] = "jobs_running",
    [TOP_JOBS] = "jobs_total",
    [TOP_TOKENS] = "tokens_sampled_total",
    [TOP_FETCHES] = "fetches_total",
    [TOP_FETCH_SECONDS] = "fetch_seconds_total",
    [TOP_LOADS] = "loads_total",
    [TOP_LOAD_SECONDS] = "load_seconds_total",
    [TOP_EVICTIONS] = "evictions_total",
    [TOP_REFUSALS] = "refusals_total",
    [TOP_BYTES_STORED] = "bytes_stored",
    [TOP_BYTES_LOADING] = "bytes_loading",
    [TOP_BYTES_RESIDENT] = "bytes_resident",
};
static const char prefix[] = "lorry_adapter_";
static const char label_begin[] = "{adapter=\"";

/* ---- taking ------------------------------------------------------------------------------- */

/* The row of a name, made where there is none. Where there are too many, "other" takes the rest:
 * the last row is kept for it. */
static struct top_adapter *row_of(struct top_state *s, const char *name) {
    bool other = strcmp(name, "other") == 0;
    uint64_t hash = hash_bytes(name, strlen(name));
    uint32_t slot = (uint32_t)(hash ^ hash >> 32) & SLOT_MASK;
    while (s->adapter_slots[slot] != 0) {
        struct top_adapter *a = &s->adapters[s->adapter_slots[slot] - 1];
        if (strcmp(a->name, name) == 0) {
            return a;
        }
        slot = (slot + 1) & SLOT_MASK;
    }
    if (s->adapter_count + (other ? 0 : 1) >= TOP_ADAPTERS_MAX && !other) {
        return row_of(s, "other");
    }
    CHECK(s->adapter_count < TOP_ADAPTERS_MAX);
    struct top_adapter *a = &s->adapters[s->adapter_count++];
    *a = (struct top_adapter){.tokens_s = -1};
    (void)snprintf(a->name, sizeof a->name, "%s", name);
    s->adapter_slots[slot] = s->adapter_count;
    return a;
}

/* Takes "lorry_adapter_jobs_total{adapter="x"} 5" apart. false: it is another line. */
static bool line_parse(const char *line, enum top_figure *figure, char name[TOP_NAME_BYTES],
                       double *value) {
    if (strncmp(line, prefix, sizeof prefix - 1) != 0) {
        return false;
    }
    const char *at = line + sizeof prefix - 1;
    unsigned f = 0;
    size_t bytes = strcspn(at, "{ \n");
    while (f < TOP_FIGURES &&
           (strlen(families[f]) != bytes || memcmp(families[f], at, bytes) != 0)) {
        f++;
    }
    at += bytes;
    if (f == TOP_FIGURES || strncmp(at, label_begin, sizeof label_begin - 1) != 0) {
        return false;
    }
    char label[TOP_NAME_BYTES];
    size_t count = 0;
    for (at += sizeof label_begin - 1; *at != '"'; at++) {
        at += *at == '\\';
        if (*at == '\0' || *at == '\n' || count == sizeof label - 1) {
            return false;
        }
        label[count++] = *at;
    }
    label[count] = '\0';
    if (strncmp(at, "\"} ", 3) != 0) {
        return false;
    }
    char *end = NULL;
    *value = strtod(at + 3, &end);
    *figure = (enum top_figure)f;
    top_plain(name, label);
    return end != at + 3 && isfinite(*value);
}

/* The tokens of the label that is the `index`th of a worker's text, as of the last look, become
 * those of this one; returns how many more there are, < 0 when that is not known. Labels keep their
 * order, and new ones are appended, for as long as the worker lives. */
static double more_tokens(struct top_sample *last, uint32_t index, double tokens, bool comparable) {
    if (index >= last->label_room) {
        uint32_t room = 2 * index + 256;
        double *grown = realloc(last->labels, room * sizeof *grown);
        if (grown == NULL) {
            return -1; /* no rate, then */
        }
        memset(grown + last->label_room, 0, (room - last->label_room) * sizeof *grown);
        last->labels = grown;
        last->label_room = room;
    }
    double more = comparable ? tokens - last->labels[index] : -1;
    last->labels[index] = tokens;
    return more;
}

static void add_rate(struct top_adapter *a, double more, double seconds) {
    if (more >= 0) {
        a->tokens_s = (a->tokens_s > 0 ? a->tokens_s : 0) + more / seconds;
    }
}

void top_add_adapters(struct top_state *s, const char *text, double seconds,
                      struct top_sample *last) {
    uint32_t labels = 0; /* of the family of tokens */
    for (const char *line = text; line != NULL && *line != '\0';) {
        char name[TOP_NAME_BYTES];
        enum top_figure figure = TOP_WAITING;
        double value = 0;
        if (line_parse(line, &figure, name, &value)) {
            struct top_adapter *a = row_of(s, name);
            a->figures[figure] += value;
            if (figure == TOP_TOKENS) {
                add_rate(a, more_tokens(last, labels++, value, seconds > 0), seconds);
            }
        }
        line = strchr(line, '\n');
        line = line != NULL ? line + 1 : NULL;
    }
}

static int descending(double x, double y) {
    return (x < y) - (x > y);
}

/* The busiest first; names decide what is left. */
static int compare(const void *left, const void *right) {
    const struct top_adapter *a = left;
    const struct top_adapter *b = right;
    const double keys[][2] = {{a->tokens_s, b->tokens_s},
                              {a->figures[TOP_RUNNING], b->figures[TOP_RUNNING]},
                              {a->figures[TOP_WAITING], b->figures[TOP_WAITING]},
                              {a->figures[TOP_JOBS], b->figures[TOP_JOBS]}};
    int order = 0;
    for (size_t i = 0; i < sizeof keys / sizeof keys[0] && order == 0; i++) {
        order = descending(keys[i][0], keys[i][1]);
    }
    return order != 0 ? order : strcmp(a->name, b->name);
}

void top_sort_adapters(struct top_state *s) {
    qsort(s->adapters, s->adapter_count, sizeof s->adapters[0], compare);
    memset(s->adapter_slots, 0, sizeof s->adapter_slots); /* rows have moved: none is found again */
}

/* ---- showing ------------------------------------------------------------------------------ */

static const char *state_of(const struct top_adapter *a) {
    if (strcmp(a->name, "base") == 0 || strcmp(a->name, "other") == 0) {
        return "-"; /* always there; many in one */
    }
    return a->figures[TOP_BYTES_RESIDENT] > 0  ? "resident"
           : a->figures[TOP_BYTES_LOADING] > 0 ? "loading"
           : a->figures[TOP_BYTES_STORED] > 0  ? "stored"
                                               : "away";
}

static double bytes_of(const struct top_adapter *a) {
    double in_pages = a->figures[TOP_BYTES_RESIDENT] + a->figures[TOP_BYTES_LOADING];
    return in_pages > 0 ? in_pages : a->figures[TOP_BYTES_STORED];
}

/* Mean of a load; < 0: there was none. */
static double load_ms(const struct top_adapter *a) {
    double loads = a->figures[TOP_LOADS];
    return loads > 0 ? a->figures[TOP_LOAD_SECONDS] / loads * 1e3 : -1;
}

static bool unused(const struct top_adapter *a) {
    for (unsigned i = 0; i < TOP_FIGURES; i++) {
        if (a->figures[i] != 0) {
            return false;
        }
    }
    return true;
}

/* At most five columns: "1234", "123k", "1.5G"; "-" for less than nothing. */
static const char *size(char room[SIZE_BYTES], double value, double thousand) {
    static const char units[] = " kMGTP";
    unsigned unit = 0;
    if (!(value >= 0)) {
        return "-";
    }
    while ((value >= 9999.5 || (thousand > 1000 && value >= 1023.5)) && unit < 5) {
        value /= thousand;
        unit++;
    }
    (void)snprintf(room, SIZE_BYTES, unit > 0 && value < 9.95 ? "%.1f%.1s" : "%.0f%.1s", value,
                   unit > 0 ? &units[unit] : "");
    return room;
}

static void print_one(struct top_page *p, const struct top_adapter *a, int width) {
    char rooms[8][SIZE_BYTES];
    const double *f = a->figures;
    bool idle = f[TOP_RUNNING] == 0 && f[TOP_WAITING] == 0;
    top_line(p, idle ? TOOL_DIM : TOOL_PLAIN, "%-*s %-8s %5s %5s %5s %6s %6s %5s %5s %5s", width,
             top_fit(a->name, width), state_of(a), size(rooms[0], bytes_of(a), 1024),
             size(rooms[1], f[TOP_WAITING], 1000), size(rooms[2], f[TOP_RUNNING], 1000),
             size(rooms[3], f[TOP_JOBS], 1000), size(rooms[4], a->tokens_s, 1000),
             size(rooms[5], f[TOP_LOADS], 1000), size(rooms[6], load_ms(a), 1000),
             size(rooms[7], f[TOP_EVICTIONS], 1000));
}

void top_print_adapters(struct top_page *p, const struct top_state *s, int columns) {
    enum { NUMBERS = 60, WIDTH_MIN = 8, WIDTH_MAX = 48 };
    int width = columns - NUMBERS;
    width = width < WIDTH_MIN ? WIDTH_MIN : width > WIDTH_MAX ? WIDTH_MAX : width;
    uint32_t count = 0;
    for (uint32_t i = 0; i < s->adapter_count; i++) {
        count += !unused(&s->adapters[i]);
    }
    if (count == 0) {
        return;
    }
    top_line(p, TOOL_PLAIN, "%s", "");
    top_line(p, TOOL_DIM, "%-*s %-8s %5s %5s %5s %6s %6s %5s %5s %5s", width, "adapter", "state",
             "bytes", "wait", "run", "jobs", "tok/s", "loads", "ms", "evict");
    for (uint32_t i = 0; i < s->adapter_count && p->rows_left > 0; i++) {
        if (unused(&s->adapters[i])) {
            continue;
        }
        if (p->rows_left == 1 && count > 1) {
            top_line(p, TOOL_DIM, "and %u more", count);
            break;
        }
        print_one(p, &s->adapters[i], width);
        count--;
    }
}

json_t *top_json_adapters(const struct top_state *s) {
    json_t *list = json_array();
    for (uint32_t i = 0; i < s->adapter_count; i++) {
        const struct top_adapter *a = &s->adapters[i];
        const double *f = a->figures;
        json_t *one = json_pack("{so, ss, sf, sf, sf, sf, sf, sf, sf}", "adapter",
                                json_text(a->name), "state", state_of(a), "waiting", f[TOP_WAITING],
                                "running", f[TOP_RUNNING], "jobs", f[TOP_JOBS], "tokens",
                                f[TOP_TOKENS], "bytes_stored", f[TOP_BYTES_STORED], "bytes_loading",
                                f[TOP_BYTES_LOADING], "bytes_resident", f[TOP_BYTES_RESIDENT]);
        json_t *more = json_pack("{so, sf, sf, sf, sf, sf, sf}", "tokens_per_second",
                                 a->tokens_s >= 0 ? json_real(a->tokens_s) : json_null(), "fetches",
                                 f[TOP_FETCHES], "fetch_seconds", f[TOP_FETCH_SECONDS], "loads",
                                 f[TOP_LOADS], "load_seconds", f[TOP_LOAD_SECONDS], "evictions",
                                 f[TOP_EVICTIONS], "refusals", f[TOP_REFUSALS]);
        (void)json_object_update(one, more);
        json_decref(more);
        (void)json_array_append_new(list, one);
    }
    return list;
}
