#include "base/metrics.h"

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/hash.h"

enum metric_type { TYPE_COUNTER, TYPE_TIME, TYPE_GAUGE, TYPE_HISTOGRAM, TYPE_SIZES };
enum metric_label { LABEL_NONE, LABEL_ADAPTER, LABEL_STATUS };

static const struct {
    const char *name, *unit, *help;
    enum metric_type type;
    enum metric_label label;
} metric_table[METRIC_COUNT] = {
#define METRIC(name_, type_, unit_, label_, help_) \
    [METRIC_##name_] = {#name_, #unit_, help_, TYPE_##type_, LABEL_##label_},
#include "base/metrics.def"
#undef METRIC
};

static const char *const type_names[] = {"counter", "counter", "gauge", "histogram", "histogram"};

const char *const METRICS_STATUS[METRICS_STATUS_COUNT] = {"succeeded", "failed", "rejected",
                                                          "expired", "cancelled"};

/* Upper bounds in seconds: from a step of a small model to a day in the backlog. */
static const double second_bounds[] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                       0.25,  0.5,    1,     2.5,  5,     10,   30,
                                       60,    300,    900,   3600, 14400, 86400};
/* And of whole numbers. */
static const double size_bounds[] = {0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096};
enum {
    SECOND_BOUNDS = sizeof second_bounds / sizeof second_bounds[0],
    SIZE_BOUNDS = sizeof size_bounds / sizeof size_bounds[0],
};
_Static_assert((int)SIZE_BOUNDS <= (int)SECOND_BOUNDS, "struct histogram has room for both");

struct histogram {
    _Atomic uint64_t buckets[SECOND_BOUNDS + 1]; /* the last in use is +Inf */
    _Atomic double sum;
};

enum { ADAPTER_BASE, ADAPTER_OTHER, ADAPTER_FIRST };

struct metrics {
    /* One of these is used for each metric, as its type and label say. */
    _Atomic uint64_t counters[METRIC_COUNT];
    _Atomic double gauges[METRIC_COUNT];
    _Atomic uint64_t statuses[METRIC_COUNT][METRICS_STATUS_COUNT];
    struct histogram histograms[METRIC_COUNT];
    /* [label_count_max], only for LABEL_ADAPTER; gauges as two's complement */
    _Atomic uint64_t *adapters[METRIC_COUNT];

    /* Of giving indices (`slots`, and appending to `names`) and of gauges that are set together. A
     * leaf: no other lock is taken under it. */
    pthread_mutex_t mutex;
    uint32_t label_count_max;
    _Atomic uint32_t label_count; /* names below it never change: read without the mutex */
    char (*names)[METRICS_ADAPTER_BYTES_MAX + 1]; /* [label_count_max] */
    uint32_t *slots; /* [slot_mask + 1] open addressing: index of a name; 0 = empty */
    uint32_t slot_mask;
};

enum err metrics_open(struct metrics **out, uint32_t adapters) {
    CHECK(adapters <= METRICS_ADAPTERS_MAX);
    uint32_t slot_count = 16;
    while (slot_count < 2 * adapters) {
        slot_count *= 2;
    }
    struct metrics *m = calloc(1, sizeof *m);
    if (m == NULL) {
        return ERR_NO_MEMORY;
    }
    CHECK(pthread_mutex_init(&m->mutex, NULL) == 0);
    m->label_count_max = ADAPTER_FIRST + adapters;
    m->slot_mask = slot_count - 1;
    m->names = calloc(m->label_count_max, sizeof *m->names);
    m->slots = calloc(slot_count, sizeof *m->slots);
    bool complete = m->names != NULL && m->slots != NULL;
    for (unsigned i = 0; i < METRIC_COUNT; i++) {
        if (metric_table[i].label == LABEL_ADAPTER) {
            m->adapters[i] = calloc(m->label_count_max, sizeof *m->adapters[i]);
            complete = complete && m->adapters[i] != NULL;
        }
    }
    if (!complete) {
        metrics_close(m);
        return ERR_NO_MEMORY;
    }
    memcpy(m->names[ADAPTER_BASE], "base", sizeof "base");
    memcpy(m->names[ADAPTER_OTHER], "other", sizeof "other");
    atomic_init(&m->label_count, ADAPTER_FIRST);
    *out = m;
    return ERR_OK;
}

void metrics_close(struct metrics *m) {
    if (m == NULL) {
        return;
    }
    for (unsigned i = 0; i < METRIC_COUNT; i++) {
        free(m->adapters[i]);
    }
    free(m->slots);
    free(m->names);
    (void)pthread_mutex_destroy(&m->mutex);
    free(m);
}

static void check_metric(enum metric id, enum metric_type type, enum metric_label label) {
    CHECK(id < METRIC_COUNT);
    CHECK(metric_table[id].type == type);
    CHECK(metric_table[id].label == label);
}

struct bounds {
    const double *values;
    unsigned count;
};

static struct bounds bounds_of(enum metric_type type) {
    return type == TYPE_SIZES ? (struct bounds){size_bounds, SIZE_BOUNDS}
                              : (struct bounds){second_bounds, SECOND_BOUNDS};
}

void metrics_add(struct metrics *m, enum metric id, uint64_t value) {
    check_metric(id, TYPE_COUNTER, LABEL_NONE);
    (void)atomic_fetch_add_explicit(&m->counters[id], value, memory_order_relaxed);
}

void metrics_set(struct metrics *m, enum metric id, double value) {
    check_metric(id, TYPE_GAUGE, LABEL_NONE);
    atomic_store_explicit(&m->gauges[id], value, memory_order_relaxed);
}

void metrics_set_all(struct metrics *m, const struct metrics_level *levels, uint32_t count) {
    CHECK(pthread_mutex_lock(&m->mutex) == 0);
    for (uint32_t i = 0; i < count; i++) {
        metrics_set(m, levels[i].id, levels[i].value);
    }
    CHECK(pthread_mutex_unlock(&m->mutex) == 0);
}

void metrics_observe(struct metrics *m, enum metric id, double value) {
    CHECK(id < METRIC_COUNT);
    check_metric(id, metric_table[id].type == TYPE_SIZES ? TYPE_SIZES : TYPE_HISTOGRAM, LABEL_NONE);
    CHECK(isfinite(value));
    struct histogram *h = &m->histograms[id];
    struct bounds bounds = bounds_of(metric_table[id].type);
    unsigned bucket = 0;
    while (bucket < bounds.count && value > bounds.values[bucket]) {
        bucket++;
    }
    (void)atomic_fetch_add_explicit(&h->buckets[bucket], 1, memory_order_relaxed);
    double sum = atomic_load_explicit(&h->sum, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&h->sum, &sum, sum + value, memory_order_relaxed,
                                                  memory_order_relaxed)) {
    }
}

static uint64_t hash_text(const char *text) {
    uint64_t hash = hash_bytes(text, strlen(text));
    return hash ^ hash >> 32;
}

uint32_t metrics_adapter(struct metrics *m, const char *adapter) {
    char label[METRICS_ADAPTER_BYTES_MAX + 1];
    if (adapter == NULL) {
        return ADAPTER_BASE;
    }
    bool reserved = strcmp(adapter, "base") == 0 || strcmp(adapter, "other") == 0;
    int bytes = snprintf(label, sizeof label, "%s%s", reserved ? "@" : "", adapter);
    if (bytes < 0 || (size_t)bytes >= sizeof label) {
        return ADAPTER_OTHER; /* no valid id; counted all the same */
    }
    uint32_t index = ADAPTER_OTHER;
    CHECK(pthread_mutex_lock(&m->mutex) == 0);
    uint32_t slot = (uint32_t)hash_text(label) & m->slot_mask;
    while (m->slots[slot] != 0 && strcmp(m->names[m->slots[slot]], label) != 0) {
        slot = (slot + 1) & m->slot_mask; /* at most half full: ends */
    }
    uint32_t count = atomic_load_explicit(&m->label_count, memory_order_relaxed);
    if (m->slots[slot] != 0) {
        index = m->slots[slot];
    } else if (count < m->label_count_max) {
        index = count;
        memcpy(m->names[index], label, (size_t)bytes + 1);
        m->slots[slot] = index;
        atomic_store_explicit(&m->label_count, count + 1, memory_order_release);
    }
    CHECK(pthread_mutex_unlock(&m->mutex) == 0);
    return index;
}

void metrics_add_adapter(struct metrics *m, enum metric id, uint32_t adapter, uint64_t value) {
    CHECK(id < METRIC_COUNT);
    check_metric(id, metric_table[id].type == TYPE_TIME ? TYPE_TIME : TYPE_COUNTER, LABEL_ADAPTER);
    CHECK(adapter < m->label_count_max);
    (void)atomic_fetch_add_explicit(&m->adapters[id][adapter], value, memory_order_relaxed);
}

void metrics_shift_adapter(struct metrics *m, enum metric id, uint32_t adapter, int64_t by) {
    check_metric(id, TYPE_GAUGE, LABEL_ADAPTER);
    CHECK(adapter < m->label_count_max);
    (void)atomic_fetch_add_explicit(&m->adapters[id][adapter], (uint64_t)by, memory_order_relaxed);
}

void metrics_add_status(struct metrics *m, enum metric id, uint32_t status, uint64_t value) {
    check_metric(id, TYPE_COUNTER, LABEL_STATUS);
    CHECK(status < METRICS_STATUS_COUNT);
    (void)atomic_fetch_add_explicit(&m->statuses[id][status], value, memory_order_relaxed);
}

uint64_t metrics_status_value(const struct metrics *m, enum metric id, uint32_t status) {
    check_metric(id, TYPE_COUNTER, LABEL_STATUS);
    CHECK(status < METRICS_STATUS_COUNT);
    return atomic_load_explicit(&m->statuses[id][status], memory_order_relaxed);
}

uint64_t metrics_value(const struct metrics *m, enum metric id) {
    CHECK(id < METRIC_COUNT);
    if (metric_table[id].label == LABEL_ADAPTER) {
        CHECK(metric_table[id].type == TYPE_COUNTER || metric_table[id].type == TYPE_TIME);
        uint32_t labels = atomic_load_explicit(&m->label_count, memory_order_acquire);
        uint64_t sum = 0;
        for (uint32_t i = 0; i < labels; i++) {
            sum += atomic_load_explicit(&m->adapters[id][i], memory_order_relaxed);
        }
        return sum;
    }
    check_metric(id, TYPE_COUNTER, LABEL_NONE);
    return atomic_load_explicit(&m->counters[id], memory_order_relaxed);
}

double metrics_gauge(const struct metrics *m, enum metric id) {
    check_metric(id, TYPE_GAUGE, LABEL_NONE);
    return atomic_load_explicit(&m->gauges[id], memory_order_relaxed);
}

_Static_assert(TYPE_COUNTER < TYPE_TIME && TYPE_TIME < TYPE_GAUGE, "counters come first");

/* "lorry_jobs_received_total" */
static const char *exposed_name(char room[64], enum metric id) {
    (void)snprintf(room, 64, "lorry_%s%s", metric_table[id].name,
                   metric_table[id].type <= TYPE_TIME ? "_total" : "");
    for (char *c = room; *c != '\0'; c++) {
        *c = (char)(*c >= 'A' && *c <= 'Z' ? *c - 'A' + 'a' : *c);
    }
    return room;
}

/* HELP escapes \ and newline, a label's value the double quote too. */
static void write_escaped(FILE *out, const char *text, bool quotes) {
    for (; *text != '\0'; text++) {
        if (*text == '\n') {
            (void)fputs("\\n", out);
            continue;
        }
        if (*text == '\\' || (quotes && *text == '"')) {
            (void)fputc('\\', out);
        }
        (void)fputc(*text, out);
    }
}

/* `name{label="value"} `, before the number. */
static void write_label(FILE *out, const char *name, const char *label, const char *value) {
    (void)fprintf(out, "%s{%s=\"", name, label);
    write_escaped(out, value, true);
    (void)fputs("\"} ", out);
}

static void write_adapters(FILE *out, const char *name, const struct metrics *m, enum metric id) {
    uint32_t labels = atomic_load_explicit(&m->label_count, memory_order_acquire);
    for (uint32_t i = 0; i < labels; i++) {
        uint64_t value = atomic_load_explicit(&m->adapters[id][i], memory_order_relaxed);
        write_label(out, name, "adapter", m->names[i]);
        if (metric_table[id].type == TYPE_TIME) {
            (void)fprintf(out, "%" PRIu64 ".%06" PRIu64 "\n", value / 1000000, value % 1000000);
        } else if (metric_table[id].type == TYPE_GAUGE) {
            (void)fprintf(out, "%" PRId64 "\n", (int64_t)value);
        } else {
            (void)fprintf(out, "%" PRIu64 "\n", value);
        }
    }
}

static void write_histogram(FILE *out, const char *name, const struct histogram *h,
                            struct bounds bounds) {
    uint64_t count = 0; /* summed from the buckets read, so that +Inf and _count agree */
    for (unsigned i = 0; i <= bounds.count; i++) {
        char bound[32] = "+Inf";
        if (i < bounds.count) {
            (void)snprintf(bound, sizeof bound, "%g", bounds.values[i]);
        }
        count += atomic_load_explicit(&h->buckets[i], memory_order_relaxed);
        (void)fprintf(out, "%s_bucket{le=\"%s\"} %" PRIu64 "\n", name, bound, count);
    }
    (void)fprintf(out, "%s_sum %.9g\n%s_count %" PRIu64 "\n", name,
                  atomic_load_explicit(&h->sum, memory_order_relaxed), name, count);
}

static void write_metric(FILE *out, const struct metrics *m, enum metric id, double gauge) {
    char name[64];
    enum metric_type type = metric_table[id].type;
    (void)exposed_name(name, id);
    (void)fprintf(out, "# HELP %s ", name);
    write_escaped(out, metric_table[id].help, false);
    (void)fprintf(out, "\n# TYPE %s %s\n", name, type_names[type]);
    if (type == TYPE_HISTOGRAM || type == TYPE_SIZES) {
        write_histogram(out, name, &m->histograms[id], bounds_of(type));
        return;
    }
    switch (metric_table[id].label) {
    case LABEL_NONE:
        if (type == TYPE_GAUGE) {
            (void)fprintf(out, "%s %.17g\n", name, gauge);
        } else {
            (void)fprintf(out, "%s %" PRIu64 "\n", name, metrics_value(m, id));
        }
        break;
    case LABEL_STATUS:
        for (unsigned i = 0; i < METRICS_STATUS_COUNT; i++) {
            write_label(out, name, "status", METRICS_STATUS[i]);
            (void)fprintf(out, "%" PRIu64 "\n",
                          atomic_load_explicit(&m->statuses[id][i], memory_order_relaxed));
        }
        break;
    case LABEL_ADAPTER:
        write_adapters(out, name, m, id);
        break;
    }
}

enum err metrics_render(struct metrics *m, char **text, size_t *bytes) {
    char *made = NULL;
    size_t made_bytes = 0;
    double gauges[METRIC_COUNT];
    FILE *out = open_memstream(&made, &made_bytes);
    if (out == NULL) {
        return ERR_NO_MEMORY;
    }
    CHECK(pthread_mutex_lock(&m->mutex) == 0);
    for (unsigned i = 0; i < METRIC_COUNT; i++) {
        gauges[i] = atomic_load_explicit(&m->gauges[i], memory_order_relaxed);
    }
    CHECK(pthread_mutex_unlock(&m->mutex) == 0);
    for (unsigned i = 0; i < METRIC_COUNT; i++) {
        write_metric(out, m, (enum metric)i, gauges[i]);
    }
    bool failed = ferror(out) != 0;
    if (fclose(out) != 0 || failed) {
        free(made);
        return ERR_NO_MEMORY;
    }
    *text = made;
    *bytes = made_bytes;
    return ERR_OK;
}

static void write_bounds(FILE *out, struct bounds bounds) {
    for (unsigned i = 0; i < bounds.count; i++) {
        (void)fprintf(out, "%s%s%g", i > 0 ? "," : "", i % 10 == 0 ? "\n  " : " ",
                      bounds.values[i]);
    }
}

void metrics_write_markdown(FILE *out) {
    static const char *const label_names[] = {"", "adapter", "status"};
    (void)fprintf(
        out,
        "<!-- Made from base/metrics.def by `make docs`; edit that instead. -->\n"
        "# Metrics\n\n"
        "`GET /metrics` at `http.host`:`http.port` answers in Prometheus' text format. Counters\n"
        "start at 0 with the process. `/healthz` and `/readyz` stand beside it.\n\n"
        "- `adapter`: the first `metrics.adapters` adapters that jobs named have a label of "
        "their\n"
        "  own; the rest adds to `other`, gauges too, so a scrape is bounded and the sum over a\n"
        "  family's labels leaves nobody out. Jobs without adapter are `base`. Adapters that are\n"
        "  called `base` or `other` are labelled `@base` and `@other`. Labels stay for the life "
        "of\n"
        "  the process. With the default of 256 a scrape is some 250 KB.\n"
        "- `status`: `succeeded`, `failed`, `rejected`, `expired`, `cancelled`.\n"
        "- Gauges of the pool, of waiting and of running jobs are as of one moment, some steps "
        "ago at\n"
        "  most; those by adapter are moved one by one as things happen.\n"
        "- Histograms of seconds have the upper bounds");
    write_bounds(out, bounds_of(TYPE_HISTOGRAM));
    (void)fprintf(out, ";\n  those of whole numbers");
    write_bounds(out, bounds_of(TYPE_SIZES));
    (void)fprintf(out, ".\n\n| name | type | unit | label | meaning |\n|---|---|---|---|---|\n");
    for (unsigned i = 0; i < METRIC_COUNT; i++) {
        char name[64];
        (void)fprintf(out, "| `%s` | %s | %s | %s | %s |\n", exposed_name(name, (enum metric)i),
                      type_names[metric_table[i].type], metric_table[i].unit,
                      label_names[metric_table[i].label], metric_table[i].help);
    }
}
