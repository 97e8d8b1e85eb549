#include "tools/top.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tools/json.h"
#include "tools/top_internal.h"

enum { LINE_BYTES = 512, NUMBERS_COLUMNS = 54, LAST_WORKERS_MS = 30000 };

const char *const top_fields[TOP_FIELDS] = {"heartbeat_ms", "partitions", "adapters", "running",
                                            "waiting",      "tokens_s",   "http"};

void top_begin(struct top_state *s, int64_t now_ms) {
    memset(s, 0, sizeof *s);
    s->now_ms = now_ms;
}

void top_sample_free(struct top_sample *sample) {
    free(sample->labels);
    *sample = (struct top_sample){0};
}

void top_problem(struct top_state *s, const char *format, ...) {
    if (s->problem_count < TOP_PROBLEMS_MAX) {
        va_list arguments;
        va_start(arguments, format);
        (void)vsnprintf(s->problems[s->problem_count++], TOP_PROBLEM_BYTES, format, arguments);
        va_end(arguments);
    }
}

/* ---- taking ------------------------------------------------------------------------------- */

void top_plain(char room[TOP_NAME_BYTES], const char *text) {
    (void)snprintf(room, TOP_NAME_BYTES, "%s", text);
    for (char *c = room; *c != '\0'; c++) {
        *c = (char)(*c >= ' ' && *c <= '~' ? *c : '?');
    }
}

static struct top_worker *worker_new(struct top_state *s) {
    static struct top_worker none;
    if (s->worker_count == TOP_WORKERS_MAX) {
        s->workers_left_out++;
        none = (struct top_worker){0};
        return &none;
    }
    s->workers[s->worker_count].adapters_step = -1;
    return &s->workers[s->worker_count++];
}

static uint32_t count_of(const char *text) {
    unsigned long n = strtoul(text, NULL, 10);
    return text[0] != '-' && n <= UINT32_MAX ? (uint32_t)n : 0;
}

void top_add_heartbeat(struct top_state *s, const char *id,
                       char values[TOP_FIELDS][TOP_FIELD_BYTES]) {
    struct top_worker *w = worker_new(s);
    double rate = strtod(values[5], NULL);
    int64_t beat_ms = strtoll(values[0], NULL, 10);
    top_plain(w->name, id);
    top_plain(w->http, values[6]);
    w->partitions = count_of(values[1]);
    w->adapters = count_of(values[2]);
    w->running = count_of(values[3]);
    w->waiting = count_of(values[4]);
    w->tokens_s = values[5][0] != '\0' && isfinite(rate) && rate >= 0 ? rate : -1;
    w->age_ms = s->now_ms > beat_ms ? s->now_ms - beat_ms : 0; /* clocks differ */
}

bool top_metric(const char *text, const char *name, double *value) {
    size_t bytes = strlen(name);
    for (const char *line = text; line != NULL && *line != '\0';) {
        if (strncmp(line, name, bytes) == 0 && line[bytes] == ' ') {
            char *end = NULL;
            double v = strtod(line + bytes + 1, &end);
            if (end != line + bytes + 1 && isfinite(v)) {
                *value = v;
                return true;
            }
        }
        line = strchr(line, '\n');
        line = line != NULL ? line + 1 : NULL;
    }
    return false;
}

static uint32_t gauge(const char *text, const char *name) {
    double v = 0;
    return top_metric(text, name, &v) && v > 0 && v < UINT32_MAX ? (uint32_t)v : 0;
}

static struct top_pool pool_of(const char *text) {
    struct top_pool p = {0};
    (void)(top_metric(text, "lorry_pool_pages", &p.pages) &&
           top_metric(text, "lorry_pool_pages_kv", &p.kv) &&
           top_metric(text, "lorry_pool_pages_adapters", &p.adapters) &&
           top_metric(text, "lorry_pool_pages_cached", &p.cached) &&
           top_metric(text, "lorry_pool_pages_pending", &p.pending) &&
           top_metric(text, "lorry_pool_pages_free", &p.free) &&
           top_metric(text, "lorry_pool_page_bytes", &p.page_bytes));
    return p;
}

/* What needs two looks: rates. `seconds` 0: there was none before, or the worker is another. */
static void compare_with(struct top_state *s, struct top_worker *w, const char *text,
                         double seconds, struct top_sample *last) {
    struct top_sample now = *last;
    (void)top_metric(text, "lorry_tokens_sampled_total", &now.tokens);
    (void)top_metric(text, "lorry_step_adapters_count", &now.steps);
    (void)top_metric(text, "lorry_step_adapters_sum", &now.step_adapters);
    if (seconds > 0) {
        w->tokens_s = (now.tokens - last->tokens) / seconds;
        if (now.steps > last->steps) {
            w->adapters_step =
                (now.step_adapters - last->step_adapters) / (now.steps - last->steps);
        }
    }
    *last = now;
    top_add_adapters(s, text, seconds, last);
}

bool top_add_metrics(struct top_state *s, const char *where, const char *text, int64_t now_us,
                     struct top_sample *last) {
    struct top_worker *w = NULL;
    double tokens = 0;
    if (!top_metric(text, "lorry_tokens_sampled_total", &tokens)) {
        return false;
    }
    for (uint32_t i = 0; i < s->worker_count && w == NULL; i++) {
        w = strcmp(s->workers[i].http, where) == 0 ? &s->workers[i] : NULL;
    }
    if (w == NULL) {
        w = worker_new(s);
        top_plain(w->name, where);
        top_plain(w->http, where);
        w->tokens_s = -1;
    }
    w->partitions = gauge(text, "lorry_partitions");
    w->adapters = gauge(text, "lorry_adapters_resident");
    w->running = gauge(text, "lorry_jobs_running");
    w->waiting = gauge(text, "lorry_jobs_waiting");
    w->age_ms = 0;
    w->pool = pool_of(text);
    bool comparable = last->at_us != 0 && now_us > last->at_us && tokens >= last->tokens;
    compare_with(s, w, text, comparable ? (double)(now_us - last->at_us) / 1e6 : 0, last);
    last->at_us = now_us;
    return true;
}

static int compare(const void *a, const void *b) {
    const struct top_worker *x = a;
    const struct top_worker *y = b;
    return strcmp(x->name, y->name);
}

void top_sort(struct top_state *s) {
    qsort(s->workers, s->worker_count, sizeof s->workers[0], compare);
    top_sort_adapters(s);
}

/* ---- showing ------------------------------------------------------------------------------ */

struct totals {
    uint64_t partitions, running, waiting;
    double tokens_s;
    int64_t lag; /* < 0 = not known */
};

static struct totals sum(const struct top_state *s) {
    struct totals t = {.lag = s->topic_count > 0 ? 0 : -1};
    for (uint32_t i = 0; i < s->worker_count; i++) {
        const struct top_worker *w = &s->workers[i];
        t.partitions += w->partitions;
        t.running += w->running;
        t.waiting += w->waiting;
        t.tokens_s += w->tokens_s > 0 ? w->tokens_s : 0;
    }
    for (uint32_t i = 0; i < s->topic_count && t.lag >= 0; i++) {
        t.lag = s->topics[i].lag >= 0 ? t.lag + s->topics[i].lag : -1;
    }
    return t;
}

void top_line(struct top_page *p, enum tool_colour colour, const char *format, ...) {
    char text[LINE_BYTES];
    va_list arguments;
    if (p->rows_left <= 0) {
        return;
    }
    p->rows_left--;
    va_start(arguments, format);
    (void)vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    (void)fprintf(p->out, "%s%.*s%s%s", colour != TOOL_PLAIN ? tool_colour(p->out, colour) : "",
                  p->columns, text, colour != TOOL_PLAIN ? tool_colour(p->out, TOOL_PLAIN) : "",
                  p->line_end);
}

const char *top_fit(const char *name, int width) {
    size_t bytes = strlen(name);
    return bytes > (size_t)width ? name + bytes - (size_t)width : name;
}

static void print_workers(struct top_page *p, const struct top_state *s, int width) {
    char rate[32];
    char age[32];
    top_line(p, TOOL_DIM, "%-*s %6s %8s %8s %8s %9s %7s", width, "worker", "parts", "adapters",
             "running", "waiting", "tokens/s", "seen");
    for (uint32_t i = 0; i < s->worker_count; i++) {
        const struct top_worker *w = &s->workers[i];
        (void)snprintf(rate, sizeof rate, w->tokens_s >= 0 ? "%.0f" : "-", w->tokens_s);
        (void)snprintf(age, sizeof age, "%" PRId64 " s", w->age_ms / 1000);
        top_line(p, w->age_ms > LAST_WORKERS_MS / 2 ? TOOL_YELLOW : TOOL_PLAIN,
                 "%-*s %6u %8u %8u %8u %9s %7s", width, top_fit(w->name, width), w->partitions,
                 w->adapters, w->running, w->waiting, rate, age);
    }
    if (s->workers_left_out > 0) {
        top_line(p, TOOL_DIM, "and %u more", s->workers_left_out);
    }
    if (s->worker_count == 0) {
        top_line(p, TOOL_PLAIN, "none is heard of");
    }
}

static const char *percent(char room[16], double part, double whole) {
    (void)snprintf(room, 16, "%.0f%%", part / whole * 100);
    return room;
}

static void print_pools(struct top_page *p, const struct top_state *s, int width) {
    bool begun = false;
    for (uint32_t i = 0; i < s->worker_count; i++) {
        const struct top_worker *w = &s->workers[i];
        const struct top_pool *u = &w->pool;
        char rooms[6][16];
        if (u->pages < 1) {
            continue;
        }
        if (!begun) {
            top_line(p, TOOL_PLAIN, "%s", "");
            top_line(p, TOOL_DIM, "%-*s %8s %5s %8s %6s %7s %5s %8s", width, "pool", "pages", "kv",
                     "adapters", "cached", "pending", "free", "per step");
            begun = true;
        }
        (void)snprintf(rooms[5], 16, w->adapters_step >= 0 ? "%.1f" : "-", w->adapters_step);
        top_line(p, TOOL_PLAIN, "%-*s %8.0f %5s %8s %6s %7s %5s %8s", width,
                 top_fit(w->name, width), u->pages, percent(rooms[0], u->kv, u->pages),
                 percent(rooms[1], u->adapters, u->pages), percent(rooms[2], u->cached, u->pages),
                 percent(rooms[3], u->pending, u->pages), percent(rooms[4], u->free, u->pages),
                 rooms[5]);
    }
}

void top_print(FILE *out, const struct top_state *s, int columns, int rows, const char *line_end) {
    struct top_page p = {.out = out,
                         .columns = columns > TOP_COLUMNS_MIN ? columns : TOP_COLUMNS_MIN,
                         .rows_left = rows,
                         .line_end = line_end};
    struct totals t = sum(s);
    struct tm tm;
    char clock[16] = "";
    char lag[32] = "-";
    time_t now = (time_t)(s->now_ms / 1000);
    int width = p.columns - NUMBERS_COLUMNS;
    width = width > 40 ? 40 : width;
    if (localtime_r(&now, &tm) != NULL) {
        (void)strftime(clock, sizeof clock, "%H:%M:%S", &tm);
    }
    if (t.lag >= 0) {
        (void)snprintf(lag, sizeof lag, "%" PRId64, t.lag);
    }
    int table_columns = p.columns;
    p.columns = columns;
    top_line(&p, TOOL_PLAIN,
             "%s  %u worker%s  %" PRIu64 " running  %" PRIu64 " waiting  queue %s  "
             "%.0f tokens/s",
             clock, s->worker_count + s->workers_left_out, s->worker_count == 1 ? "" : "s",
             t.running, t.waiting, lag, t.tokens_s);
    for (uint32_t i = 0; i < s->problem_count; i++) {
        top_line(&p, TOOL_YELLOW, "%s", s->problems[i]);
    }
    top_line(&p, TOOL_PLAIN, "%s", "");
    print_workers(&p, s, width);
    print_pools(&p, s, width);
    if (s->topic_count > 0) {
        top_line(&p, TOOL_PLAIN, "%s", "");
        top_line(&p, TOOL_DIM, "%-*s %6s %8s", width, "topic", "parts", "queue");
    }
    for (uint32_t i = 0; i < s->topic_count; i++) {
        const struct top_topic *topic = &s->topics[i];
        (void)snprintf(lag, sizeof lag, topic->lag >= 0 ? "%" PRId64 : "-", topic->lag);
        top_line(&p, TOOL_PLAIN, "%-*s %6u %8s", width, top_fit(topic->name, width),
                 topic->partitions, lag);
    }
    top_print_adapters(&p, s, table_columns);
}

static json_t *pool_json(const struct top_worker *w) {
    const struct top_pool *p = &w->pool;
    if (p->pages < 1) {
        return json_null();
    }
    return json_pack("{sf, sf, sf, sf, sf, sf, sf, so}", "pages", p->pages, "kv", p->kv, "adapters",
                     p->adapters, "cached", p->cached, "pending", p->pending, "free", p->free,
                     "page_bytes", p->page_bytes, "adapters_per_step",
                     w->adapters_step >= 0 ? json_real(w->adapters_step) : json_null());
}

static json_t *worker_json(const struct top_worker *w) {
    return json_pack("{so, so, si, si, si, si, so, sI, so}", "worker", json_text(w->name), "http",
                     json_text(w->http[0] != '\0' ? w->http : NULL), "partitions",
                     (int)w->partitions, "adapters", (int)w->adapters, "running", (int)w->running,
                     "waiting", (int)w->waiting, "tokens_per_second",
                     w->tokens_s >= 0 ? json_real(w->tokens_s) : json_null(), "age_ms",
                     (json_int_t)w->age_ms, "pool", pool_json(w));
}

json_t *top_json(const struct top_state *s) {
    struct totals t = sum(s);
    json_t *workers = json_array();
    json_t *topics = json_array();
    json_t *problems = json_array();
    for (uint32_t i = 0; i < s->worker_count; i++) {
        (void)json_array_append_new(workers, worker_json(&s->workers[i]));
    }
    for (uint32_t i = 0; i < s->topic_count; i++) {
        const struct top_topic *topic = &s->topics[i];
        (void)json_array_append_new(
            topics, json_pack("{so, si, so}", "topic", json_text(topic->name), "partitions",
                              (int)topic->partitions, "queue",
                              topic->lag >= 0 ? json_integer(topic->lag) : json_null()));
    }
    for (uint32_t i = 0; i < s->problem_count; i++) {
        (void)json_array_append_new(problems, json_text(s->problems[i]));
    }
    return json_pack("{sI, so, so, so, so, sI, sI, so, sf}", "time_ms", (json_int_t)s->now_ms,
                     "workers", workers, "adapters", top_json_adapters(s), "topics", topics,
                     "problems", problems, "running", (json_int_t)t.running, "waiting",
                     (json_int_t)t.waiting, "queue", t.lag >= 0 ? json_integer(t.lag) : json_null(),
                     "tokens_per_second", t.tokens_s);
}
