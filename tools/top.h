/* top.h - what `lorry top` shows: the state of a group as it was last seen, and how it looks on a
 * screen or as JSON. No I/O but printing; nothing that comes from outside reaches the terminal
 * unchecked. Thread: one. */
#ifndef LORRY_TOOLS_TOP_H
#define LORRY_TOOLS_TOP_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum {
    TOP_WORKERS_MAX = 256, /* the rest is counted */
    TOP_TOPICS_MAX = 16,
    TOP_NAME_BYTES = 256,
    TOP_PROBLEM_BYTES = 256,
    TOP_PROBLEMS_MAX = 8,
    TOP_COLUMNS_MIN = 60,    /* narrower screens cut lines */
    TOP_ADAPTERS_MAX = 4096, /* the rest adds to "other" */
    TOP_ADAPTER_SLOTS = 2 * TOP_ADAPTERS_MAX,
};

struct top_pool { /* of a worker that was asked; in pages */
    double pages, kv, adapters, cached, pending, free;
    double page_bytes; /* 0 = not known */
};

struct top_worker {
    char name[TOP_NAME_BYTES]; /* worker.id, or the URL when only that is known */
    char http[TOP_NAME_BYTES]; /* "host:port" of /metrics; may be empty */
    uint32_t partitions, adapters, running, waiting;
    double tokens_s; /* sampled; < 0 = not known yet */
    int64_t age_ms;  /* since it was heard of */
    struct top_pool pool;
    double
        adapters_step; /* distinct ones, mean over the steps since the last look; < 0 = unknown */
};

enum top_figure { /* what is shown of an adapter; bytes, seconds, the rest are counts */
                  TOP_WAITING,
                  TOP_RUNNING,
                  TOP_JOBS,
                  TOP_TOKENS,
                  TOP_FETCHES,
                  TOP_FETCH_SECONDS,
                  TOP_LOADS,
                  TOP_LOAD_SECONDS,
                  TOP_EVICTIONS,
                  TOP_REFUSALS,
                  TOP_BYTES_STORED,
                  TOP_BYTES_LOADING,
                  TOP_BYTES_RESIDENT,
                  TOP_FIGURES,
};

struct top_adapter { /* a label of /metrics, summed over the workers that were asked */
    char name[TOP_NAME_BYTES];
    double figures[TOP_FIGURES];
    double tokens_s; /* sampled; < 0 = not known yet */
};

struct top_topic {
    char name[TOP_NAME_BYTES];
    uint32_t partitions;
    int64_t lag; /* records that the group has not committed; < 0 = not known */
};

struct top_state {
    struct top_worker workers[TOP_WORKERS_MAX];
    uint32_t worker_count, workers_left_out;
    struct top_adapter adapters[TOP_ADAPTERS_MAX];
    uint32_t adapter_count;
    uint32_t adapter_slots[TOP_ADAPTER_SLOTS]; /* by name: index + 1; 0 = empty */
    struct top_topic topics[TOP_TOPICS_MAX];
    uint32_t topic_count;
    char problems[TOP_PROBLEMS_MAX][TOP_PROBLEM_BYTES]; /* what is away, and why */
    uint32_t problem_count;
    int64_t now_ms; /* Unix time */
};

/* The state begins empty, as of now_ms. */
void top_begin(struct top_state *s, int64_t now_ms);
void top_problem(struct top_state *s, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Fields of lorry:worker:<id> in the order of TOP_FIELDS; what is missing or no number is 0. */
enum { TOP_FIELDS = 7, TOP_FIELD_BYTES = 128 };
extern const char *const top_fields[TOP_FIELDS];
void top_add_heartbeat(struct top_state *s, const char *id,
                       char values[TOP_FIELDS][TOP_FIELD_BYTES]);

/* What was counted at the last look at a URL. Zero it first, and free it. */
struct top_sample {
    double tokens;
    double steps, step_adapters;
    int64_t at_us;  /* monotonic; 0 = none */
    double *labels; /* [label_room] tokens by adapter, in the order of the text */
    uint32_t label_room;
};
void top_sample_free(struct top_sample *sample);

/* Takes a worker's /metrics. It becomes, or replaces the numbers of, the worker whose `http` is
 * `where`. false: the text is no metrics of a worker. */
bool top_add_metrics(struct top_state *s, const char *where, const char *text, int64_t now_us,
                     struct top_sample *last);

/* The value of a metric without labels in Prometheus' text. false: there is none. */
bool top_metric(const char *text, const char *name, double *value);

/* Workers by name, adapters by what is busiest; after this none is added. */
void top_sort(struct top_state *s);

/* Lines no longer than `columns`, at most `rows` of them, each ended by `line_end`. */
void top_print(FILE *out, const struct top_state *s, int columns, int rows, const char *line_end);
json_t *top_json(const struct top_state *s);

#endif
