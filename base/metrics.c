#include "base/metrics.h"

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/hash.h"

enum metric_type { TYPE_COUNTER, TYPE_GAUGE, TYPE_HISTOGRAM };
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

static const char *const type_names[] = {"counter", "gauge", "histogram"};

const char *const METRICS_STATUS[METRICS_STATUS_COUNT] = {"succeeded", "failed", "rejected",
                                                          "expired", "cancelled"};

/* Upper bounds in seconds: from a step of a small model to a day in the backlog. */
static const double bucket_bounds[] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                       0.25,  0.5,    1,     2.5,  5,     10,   30,
                                       60,    300,    900,   3600, 14400, 86400};
enum { BUCKET_COUNT = sizeof bucket_bounds / sizeof bucket_bounds[0] + 1 }; /* and +Inf */

struct histogram {
    _Atomic uint64_t buckets[BUCKET_COUNT];
    _Atomic double sum;
};

enum { ADAPTER_BASE, ADAPTER_OTHER, ADAPTER_FIRST };

struct metrics {
    /* One of these is used for each metric, as its type and label say. */
    _Atomic uint64_t counters[METRIC_COUNT];
    _Atomic double gauges[METRIC_COUNT];
    _Atomic uint64_t statuses[METRIC_COUNT][METRICS_STATUS_COUNT];
    struct histogram histograms[METRIC_COUNT];
    _Atomic uint64_t *adapters[METRIC_COUNT]; /* [label_count_max], only for LABEL_ADAPTER */

    pthread_mutex_t mutex; /* of giving indices: `slots`, and appending to `names` */
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

void metrics_add(struct metrics *m, enum metric id, uint64_t value) {
    check_metric(id, TYPE_COUNTER, LABEL_NONE);
    (void)atomic_fetch_add_explicit(&m->counters[id], value, memory_order_relaxed);
}

void metrics_set(struct metrics *m, enum metric id, double value) {
    check_metric(id, TYPE_GAUGE, LABEL_NONE);
    atomic_store_explicit(&m->gauges[id], value, memory_order_relaxed);
}

void metrics_observe(struct metrics *m, enum metric id, double value) {
    check_metric(id, TYPE_HISTOGRAM, LABEL_NONE);
    CHECK(isfinite(value));
    struct histogram *h = &m->histograms[id];
    unsigned bucket = 0;
    while (bucket < BUCKET_COUNT - 1 && value > bucket_bounds[bucket]) {
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
    check_metric(id, TYPE_COUNTER, LABEL_ADAPTER);
    CHECK(adapter < m->label_count_max);
    (void)atomic_fetch_add_explicit(&m->adapters[id][adapter], value, memory_order_relaxed);
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
    check_metric(id, TYPE_COUNTER, LABEL_NONE);
    return atomic_load_explicit(&m->counters[id], memory_order_relaxed);
}

double metrics_gauge(const struct metrics *m, enum metric id) {
    check_metric(id, TYPE_GAUGE, LABEL_NONE);
    return atomic_load_explicit(&m->gauges[id], memory_order_relaxed);
}

/* "lorry_jobs_received_total" */
static const char *exposed_name(char room[64], enum metric id) {
    (void)snprintf(room, 64, "lorry_%s%s", metric_table[id].name,
                   metric_table[id].type == TYPE_COUNTER ? "_total" : "");
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
        } else {
            (void)fprintf(out, *text == '\\' || (quotes && *text == '"') ? "\\%c" : "%c", *text);
        }
    }
}

static void write_labelled(FILE *out, const char *name, const char *label, const char *value,
                           uint64_t count) {
    (void)fprintf(out, "%s{%s=\"", name, label);
    write_escaped(out, value, true);
    (void)fprintf(out, "\"} %" PRIu64 "\n", count);
}

static void write_histogram(FILE *out, const char *name, const struct histogram *h) {
    uint64_t count = 0; /* summed from the buckets read, so that +Inf and _count agree */
    for (unsigned i = 0; i < BUCKET_COUNT; i++) {
        char bound[32] = "+Inf";
        if (i < BUCKET_COUNT - 1) {
            (void)snprintf(bound, sizeof bound, "%g", bucket_bounds[i]);
        }
        count += atomic_load_explicit(&h->buckets[i], memory_order_relaxed);
        (void)fprintf(out, "%s_bucket{le=\"%s\"} %" PRIu64 "\n", name, bound, count);
    }
    (void)fprintf(out, "%s_sum %.9g\n%s_count %" PRIu64 "\n", name,
                  atomic_load_explicit(&h->sum, memory_order_relaxed), name, count);
}

static void write_metric(FILE *out, const struct metrics *m, enum metric id) {
    char name[64];
    uint32_t labels = atomic_load_explicit(&m->label_count, memory_order_acquire);
    (void)exposed_name(name, id);
    (void)fprintf(out, "# HELP %s ", name);
    write_escaped(out, metric_table[id].help, false);
    (void)fprintf(out, "\n# TYPE %s %s\n", name, type_names[metric_table[id].type]);
    if (metric_table[id].type == TYPE_HISTOGRAM) {
        write_histogram(out, name, &m->histograms[id]);
        return;
    }
    if (metric_table[id].type == TYPE_GAUGE) {
        (void)fprintf(out, "%s %.17g\n", name,
                      atomic_load_explicit(&m->gauges[id], memory_order_relaxed));
        return;
    }
    switch (metric_table[id].label) {
    case LABEL_NONE:
        (void)fprintf(out, "%s %" PRIu64 "\n", name, metrics_value(m, id));
        break;
    case LABEL_STATUS:
        for (unsigned i = 0; i < METRICS_STATUS_COUNT; i++) {
            write_labelled(out, name, "status", METRICS_STATUS[i],
                           atomic_load_explicit(&m->statuses[id][i], memory_order_relaxed));
        }
        break;
    case LABEL_ADAPTER:
        for (uint32_t i = 0; i < labels; i++) {
            write_labelled(out, name, "adapter", m->names[i],
                           atomic_load_explicit(&m->adapters[id][i], memory_order_relaxed));
        }
        break;
    }
}

enum err metrics_render(struct metrics *m, char **text, size_t *bytes) {
    char *made = NULL;
    size_t made_bytes = 0;
    FILE *out = open_memstream(&made, &made_bytes);
    if (out == NULL) {
        return ERR_NO_MEMORY;
    }
    for (unsigned i = 0; i < METRIC_COUNT; i++) {
        write_metric(out, m, (enum metric)i);
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

void metrics_write_markdown(FILE *out) {
    static const char *const label_names[] = {"", "adapter", "status"};
    (void)fprintf(
        out,
        "<!-- Made from base/metrics.def by `make docs`; edit that instead. -->\n"
        "# Metrics\n\n"
        "`GET /metrics` at `http.host`:`http.port` answers in Prometheus' text format. Counters\n"
        "start at 0 with the process. `/healthz` and `/readyz` stand beside it.\n\n"
        "- `adapter`: the first `metrics.adapters` adapters that ran have a label of their own; "
        "the\n"
        "  rest adds to `other`. Jobs without adapter are `base`. Adapters that are called `base` "
        "or\n"
        "  `other` are labelled `@base` and `@other`.\n"
        "- `status`: `succeeded`, `failed`, `rejected`, `expired`, `cancelled`.\n"
        "- Histograms are in seconds, with upper bounds");
    for (unsigned i = 0; i < BUCKET_COUNT - 1; i++) {
        (void)fprintf(out, "%s%s%g", i > 0 ? "," : "", i % 10 == 0 ? "\n  " : " ",
                      bucket_bounds[i]);
    }
    (void)fprintf(out, ".\n\n| name | type | unit | label | meaning |\n|---|---|---|---|---|\n");
    for (unsigned i = 0; i < METRIC_COUNT; i++) {
        char name[64];
        (void)fprintf(out, "| `%s` | %s | %s | %s | %s |\n", exposed_name(name, (enum metric)i),
                      type_names[metric_table[i].type], metric_table[i].unit,
                      label_names[metric_table[i].label], metric_table[i].help);
    }
}
