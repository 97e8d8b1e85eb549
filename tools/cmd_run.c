/* cmd_run.c - `lorry run`: the worker over a file, without Kafka or Redis. */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "tools/json.h"
#include "tools/tool.h"
#include "wire/wire.h"
#include "worker/worker.h"

enum { TICK_MS = 100 };

static const char *const own_flags[] = {"-o=", "--quiet", "--json", NULL};

static const char help[] =
    "Runs a file of jobs (- is stdin) in this process and writes one final a line, in the order "
    "in\n"
    "which the jobs end; their ids, or source.offset (the line, from 0), say which is which.\n"
    "\n"
    "  {\"id\": \"1\", \"adapter\": \"pirate\", \"prompt\": \"Hello\", \"max_tokens\": 20}\n"
    "  {\"id\": \"2\", \"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}\n"
    "\n"
    "Lines of OpenAI batch files work too. An adapter's id is the name of its folder in the "
    "adapter\n"
    "root. Ctrl-C lets the running jobs finish, for at most worker.drain_s; once more ends at "
    "once.\n"
    "\n"
    "  -o RESULTS      the output; - or nothing is stdout\n"
    "  --quiet         no progress line\n"
    "  --json          the summary as an object: on stdout, or on stderr beside answers on stdout\n"
    "\n"
    "  lorry run jobs.jsonl -o results.jsonl --model DIR --adapters DIR\n"
    "  echo '{\"prompt\": \"Once upon a time\"}' | lorry run - --model DIR\n";

struct watcher { /* a thread: interruption and the progress line */
    pthread_t thread;
    bool started;
    _Atomic(struct worker *) worker; /* NULL until it is open */
    struct progress progress;
    uint64_t total; /* jobs of the input; 0 = not known */
    _Atomic bool done;
};

static uint64_t ended(const struct worker_report *r) {
    uint64_t sum = 0;
    for (int i = 0; i < WORKER_STATUSES; i++) {
        sum += r->finals[i];
    }
    return sum;
}

static uint64_t output_tokens(struct worker *w) {
    return metrics_value(worker_metrics(w), METRIC_TOKENS_OUTPUT);
}

static void show(struct watcher *w, struct worker *worker) {
    if (!progress_due(&w->progress)) {
        return;
    }
    struct worker_report r = worker_report(worker);
    double seconds = progress_seconds(&w->progress);
    uint64_t jobs = ended(&r);
    uint64_t sampled = metrics_value(worker_metrics(worker), METRIC_TOKENS_SAMPLED);
    char total[32];
    char time[32];
    char left[64] = "";
    (void)snprintf(total, sizeof total, "%" PRIu64, w->total > 0 ? w->total : r.received);
    if (w->total > 0 && jobs > 0 && jobs < w->total) {
        double each = seconds / (double)jobs;
        (void)snprintf(left, sizeof left, " · about %s left",
                       tool_duration(time, each * (double)(w->total - jobs)));
    }
    progress_line(&w->progress, "%" PRIu64 " of %s%s jobs · %.0f tokens/s%s", jobs, total,
                  w->total > 0 ? "" : " received", seconds > 0 ? (double)sampled / seconds : 0.0,
                  left);
}

static void interrupts(int how) {
    sigset_t set;
    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGTERM);
    (void)sigaddset(&set, SIGINT);
    (void)pthread_sigmask(how, &set, NULL);
}

static void *watch(void *argument) {
    struct watcher *w = argument;
    bool draining = false;
    interrupts(SIG_UNBLOCK);
    while (!atomic_load(&w->done)) {
        struct worker *worker = atomic_load(&w->worker);
        clock_sleep_ms(TICK_MS);
        if (worker == NULL) {
            continue;
        }
        if (tool_interrupted() && !draining) {
            draining = true;
            progress_clear(&w->progress);
            tool_note("finishing what runs; once more to end at once");
            worker_drain(worker);
        }
        show(w, worker);
    }
    progress_clear(&w->progress);
    return NULL;
}

/* From now on interruptions only come to the watcher, so that no system call of another thread of
 * ours ends early. */
static enum err watcher_start(struct watcher *w, struct err_text *why) {
    tool_catch_interrupts();
    interrupts(SIG_BLOCK);
    w->started = pthread_create(&w->thread, NULL, watch, w) == 0;
    return w->started ? ERR_OK : err_set(why, ERR_NO_MEMORY, "no thread for the progress");
}

static void watcher_stop(struct watcher *w) {
    if (w->started) {
        atomic_store(&w->done, true);
        (void)pthread_join(w->thread, NULL);
        w->started = false;
    }
}

/* Jobs in the input, where it can be read twice. Also refuses to write over it. */
static enum err look_at_input(const char *input, const char *output, uint64_t *total,
                              struct err_text *why) {
    struct lines lines;
    struct stat in;
    struct stat out;
    *total = 0;
    enum err e = lines_open(&lines, input, WIRE_JOB_BYTES_MAX, why);
    if (e == ERR_OK && stat(output, &out) == 0 && fstat(fileno(lines.file), &in) == 0 &&
        S_ISREG(out.st_mode) && in.st_dev == out.st_dev && in.st_ino == out.st_ino) {
        e = err_set(why, ERR_BAD_CONFIG, "%s is both input and output", output);
    }
    if (e == ERR_OK && lines.regular) {
        enum lines_next next = LINES_LINE;
        while (next == LINES_LINE || next == LINES_TOO_LONG) {
            next = lines_next(&lines);
            *total += next == LINES_LINE || next == LINES_TOO_LONG;
        }
        if (next == LINES_FAILED) {
            e = err_set(why, ERR_BAD_CONFIG, "read %s: %s", input, strerror(errno));
        }
    }
    lines_close(&lines);
    return e;
}

static void report_json(FILE *out, const struct worker_report *r, uint64_t tokens, double seconds) {
    json_line(out, json_pack("{sI, sI, so, sI, sf, sf}", "jobs", (json_int_t)ended(r), "received",
                             (json_int_t)r->received, "statuses",
                             json_statuses(r->finals, WORKER_STATUSES), "tokens",
                             (json_int_t)tokens, "seconds", seconds, "tokens_per_second",
                             seconds > 0 ? (double)tokens / seconds : 0.0));
}

/* `json`: where to print the summary as JSON; NULL = as text. */
static int report(struct worker *worker, double seconds, FILE *json) {
    struct worker_report r = worker_report(worker);
    uint64_t jobs = ended(&r);
    uint64_t tokens = output_tokens(worker);
    char counts[256] = "";
    size_t at = 0;
    for (int i = 0; i < WORKER_STATUSES; i++) {
        if (r.finals[i] > 0) {
            at += (size_t)snprintf(counts + at, sizeof counts - at, "%s%" PRIu64 " %s",
                                   at > 0 ? ", " : " (", r.finals[i],
                                   wire_status_name((enum wire_status)i));
        }
    }
    bool good = r.finals[WIRE_SUCCEEDED] == r.received && r.all_delivered;
    if (json != NULL) {
        report_json(json, &r, tokens, seconds);
        return good ? EXIT_DONE : EXIT_JOBS;
    }
    tool_note("%" PRIu64 " job%s%s%s in %.1f s; %" PRIu64 " tokens, %.1f tokens/s", jobs,
              jobs == 1 ? "" : "s", counts, at > 0 ? ")" : "", seconds, tokens,
              seconds > 0 ? (double)tokens / seconds : 0.0);
    if (r.received > jobs) {
        tool_note("%" PRIu64 " more had been read and did not run", r.received - jobs);
    }
    return good ? EXIT_DONE : EXIT_JOBS;
}

static enum err serve(const struct tool *t, const char *output, struct watcher *w,
                      struct worker **worker, struct err_text *why) {
    struct source *source = NULL;
    const struct source_ops *ops = NULL;
    struct worker_options options = {.config = t->config};
    enum err e = worker_open(worker, &options, why);
    if (e == ERR_OK && tool_interrupted()) {
        e = err_set(why, ERR_INTERNAL, "interrupted before the first job");
    }
    if (e == ERR_OK) {
        e = source_open_file(&source, &ops, t->arguments[0], output, why);
    }
    if (e != ERR_OK) {
        return e;
    }
    bool mixed = strcmp(output, "-") == 0 && isatty(STDOUT_FILENO) != 0;
    progress_init(&w->progress, tool_flag(t, "--quiet") != NULL || mixed);
    atomic_store(&w->worker, *worker);
    return worker_run(*worker, source, ops, why);
}

static int run(const struct tool *t) {
    struct err_text why = {0};
    struct worker *worker = NULL;
    struct watcher watcher = {.progress = {.off = true}};
    const char *output = tool_flag(t, "-o");
    if (t->argument_count != 1) {
        return tool_usage(t, "run takes one file of jobs, or - for stdin");
    }
    output = output != NULL ? output : "-";
    enum err e = look_at_input(t->arguments[0], output, &watcher.total, &why);
    if (e == ERR_OK) {
        e = watcher_start(&watcher, &why);
    }
    if (e == ERR_OK) {
        e = serve(t, output, &watcher, &worker, &why);
    }
    watcher_stop(&watcher);
    FILE *json = tool_flag(t, "--json") == NULL ? NULL : strcmp(output, "-") == 0 ? stderr : stdout;
    int code = e == ERR_OK ? report(worker, progress_seconds(&watcher.progress), json)
                           : tool_fail(e, &why);
    worker_close(worker);
    return code;
}

const struct command cmd_run = {
    .name = "run",
    .arguments = "JOBS|- [-o RESULTS] --model DIR [--adapters DIR] [--quiet] [--json]",
    .summary = "run a file of jobs here, without Kafka or Redis",
    .help = help,
    .own_flags = own_flags,
    .run = run,
};
