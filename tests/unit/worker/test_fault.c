/* A device that fails under the whole worker: the process ends with the device's exit code, nothing
 * is made up for the jobs that ran, and the queue gives them to the next process.
 *
 * The device is the CPU's, with a step that fails after some; kern_find() is ours, in place of
 * kernels/device.c's. The queue is a source in memory that processes share: each worker lives in a
 * child, since it ends with it. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "worker/worker.h"

#define TINY LORRY_SOURCE_DIR "/tests/golden/tiny-llama"

enum {
    JOBS = 32,
    SHORT_TOKENS = 2,
    LONG_TOKENS = 40,
    LONG_FROM = 8,    /* those before it are short: some end, and are committed, before the fault */
    ROWS = 16,        /* more than the adapter has: the short ones do not wait for the long */
    FAULT_AFTER = 30, /* steps: no long job has ended */
    COMMIT_WAIT_MS = 10000,
    REPORTS_MAX = 64,
    NO_FAULT = 1 << 30,
};

struct queue { /* shared by the processes */
    _Atomic int64_t committed;
    _Atomic uint32_t finals[JOBS];    /* of this process, by offset */
    bool final_before[JOBS];          /* of the processes before */
    _Atomic uint32_t not_succeeded;   /* finals of any other status */
    _Atomic uint32_t commits_too_far; /* beyond a job that has no final */
    _Atomic uint32_t dead;            /* dead letters */
};
static struct queue *queue;
static int queue_fd;

/* ---- the device: to the worker not the CPU's, so planned for as a GPU ----------------------- */

static struct kern_ops device;
static int reads_left, ends_left;
static bool commit_awaited;

/* The other threads catch up first: what has ended is delivered, and some of it committed. */
static enum err fault(void) {
    for (int ms = 0; commit_awaited && ms < COMMIT_WAIT_MS; ms++) {
        if (atomic_load(&queue->committed) > 0) {
            break;
        }
        clock_sleep_ms(1);
    }
    return ERR_DEVICE;
}

static enum err faulty_read(struct kern_device *d, uint64_t ticket, struct kern_sample *samples,
                            uint32_t count) {
    return reads_left-- > 0 ? kern_cpu()->step_read(d, ticket, samples, count) : fault();
}

static enum err faulty_end(struct kern_device *d, uint64_t *ticket) {
    return ends_left-- > 0 ? kern_cpu()->step_end(d, ticket) : fault();
}

const struct kern_ops *kern_find(const char *kind, struct err_text *why) {
    (void)kind;
    (void)why;
    return &device;
}

static void device_of(int reads, int ends) {
    device = *kern_cpu();
    device.step_read = faulty_read;
    device.step_end = faulty_end;
    reads_left = reads;
    commit_awaited = reads > 0;
    ends_left = ends;
}

/* ---- the queue: one topic, one partition ---------------------------------------------------- */

struct source { /* of one process */
    int64_t next;
    bool assigned, held;
    void *tags[REPORTS_MAX];
    uint32_t tag_count;
};

static void queue_close(struct source *s) {
    (void)s;
}

static struct source_record *take(int64_t offset) {
    struct source_record *r = calloc(1, sizeof *r);
    char *line = NULL;
    CHECK(r != NULL);
    int bytes =
        asprintf(&line,
                 "{\"id\":\"%d\",\"adapter\":\"%s\",\"tokens\":[%d,7,11,5],\"max_tokens\":%d,"
                 "\"temperature\":0,\"ignore_eos\":true}",
                 (int)offset, offset % 3 == 1 ? "r1" : "", 3 + (int)offset,
                 offset < LONG_FROM ? SHORT_TOKENS : LONG_TOKENS);
    CHECK(bytes > 0);
    r->at.offset = offset;
    r->timestamp_ms = -1;
    r->value = line;
    r->value_bytes = (size_t)bytes;
    (void)snprintf(r->content_type, sizeof r->content_type, "application/json");
    r->handle = line;
    return r;
}

static void queue_poll(struct source *s, struct source_event *event, uint32_t timeout_ms) {
    *event = (struct source_event){.kind = SOURCE_NOTHING};
    if (!s->assigned) {
        s->assigned = true;
        s->next = atomic_load(&queue->committed);
        event->kind = SOURCE_ASSIGNED;
        event->at.offset = s->next;
    } else if (s->held || s->next > JOBS) {
        clock_sleep_ms(timeout_ms);
    } else if (s->next == JOBS) {
        s->next++;
        event->kind = SOURCE_END;
    } else {
        event->kind = SOURCE_RECORD;
        event->record = take(s->next++);
    }
}

static void queue_free_record(struct source *s, struct source_record *record) {
    (void)s;
    free(record->handle);
    free(record);
}

static void queue_hold(struct source *s, uint32_t topic, int32_t partition) {
    (void)topic;
    (void)partition;
    s->held = true;
}

static void queue_release(struct source *s, uint32_t topic, int32_t partition) {
    (void)topic;
    (void)partition;
    s->held = false;
}

/* Looks at once whether each job below has its final, of this process or one before. */
static enum err queue_commit(struct source *s, uint32_t topic, int32_t partition, int64_t next,
                             const char *metadata, bool wait, struct err_text *why) {
    (void)s;
    (void)topic;
    (void)partition;
    (void)metadata;
    (void)wait;
    (void)why;
    for (int64_t i = 0; i < next; i++) {
        if (!queue->final_before[i] && atomic_load(&queue->finals[i]) == 0) {
            atomic_fetch_add(&queue->commits_too_far, 1);
        }
    }
    atomic_store(&queue->committed, next);
    return ERR_OK;
}

static const char *queue_topic_name(const struct source *s, uint32_t topic) {
    (void)s;
    (void)topic;
    return "jobs";
}

static enum err queue_produce(struct source *s, const struct source_message *m,
                              struct err_text *why) {
    (void)why;
    if (s->tag_count == REPORTS_MAX) {
        return ERR_NO_SPACE;
    }
    if (m->output == SOURCE_FINAL) {
        char id[8] = "";
        CHECK(m->key_bytes < sizeof id);
        memcpy(id, m->key, m->key_bytes);
        static const char succeeded[] = "\"status\":\"succeeded\"";
        if (memmem(m->value, m->value_bytes, succeeded, sizeof succeeded - 1) == NULL) {
            atomic_fetch_add(&queue->not_succeeded, 1);
        }
        atomic_fetch_add(&queue->finals[strtoul(id, NULL, 10) % JOBS], 1);
    } else if (m->output == SOURCE_DEAD) {
        atomic_fetch_add(&queue->dead, 1);
    }
    if (m->tag != NULL) {
        s->tags[s->tag_count++] = m->tag;
    }
    return ERR_OK;
}

static uint32_t queue_reports(struct source *s, struct source_report *reports, uint32_t room,
                              uint32_t timeout_ms) {
    (void)timeout_ms;
    uint32_t count = 0;
    while (count < room && s->tag_count > 0) {
        reports[count++] = (struct source_report){.tag = s->tags[--s->tag_count]};
    }
    return count;
}

static bool queue_flush(struct source *s, uint32_t timeout_ms) {
    (void)s;
    (void)timeout_ms;
    return true;
}

static bool queue_connected(struct source *s) {
    (void)s;
    return true;
}

static const struct source_ops queue_ops = {
    .name = "queue",
    .close = queue_close,
    .poll = queue_poll,
    .free_record = queue_free_record,
    .hold = queue_hold,
    .release = queue_release,
    .commit = queue_commit,
    .topic_name = queue_topic_name,
    .produce = queue_produce,
    .reports = queue_reports,
    .flush = queue_flush,
    .connected = queue_connected,
};

/* ---- a process ------------------------------------------------------------------------------ */

static int work(void) {
    char rows[32];
    (void)snprintf(rows, sizeof rows, "--scheduler.rows=%d", (int)ROWS);
    char *argv[] = {"--model=" TINY "/model",
                    "--adapters=" TINY "/adapters",
                    "--pool.pages=2000",
                    "--scheduler.step_tokens=128",
                    "--scheduler.chunk_tokens=64",
                    "--kafka.commit_ms=10",
                    rows};
    static const char *const no_files[] = {NULL};
    struct config_input in = {
        .argc = (int)(sizeof argv / sizeof *argv), .argv = argv, .files = no_files};
    struct config *c = NULL;
    struct worker *w = NULL;
    struct err_text why = {0};
    int rest = 0;
    enum err e = config_open(&c, &in, NULL, &rest, &why);
    if (e == ERR_OK) {
        e = worker_open(&w, &(struct worker_options){.config = c}, &why);
    }
    if (e == ERR_OK) {
        struct source source = {0};
        e = worker_run(w, &source, &queue_ops, &why);
    }
    worker_close(w);
    config_close(c);
    if (e != ERR_OK) {
        (void)fprintf(stderr, "%s %s: %s\n", err_name(e), why.field, why.message);
    }
    return (int)err_exit_code(e);
}

/* The exit code of a worker on the queue, whose device fails after `reads` or `ends` steps; its log
 * is in `log` afterwards. It is this program again: a child that only forked may not start threads
 * under every sanitizer. */
static int process(int reads, int ends, char *log, size_t log_bytes) {
    char numbers[3][16];
    (void)snprintf(numbers[0], sizeof numbers[0], "%d", queue_fd);
    (void)snprintf(numbers[1], sizeof numbers[1], "%d", reads);
    (void)snprintf(numbers[2], sizeof numbers[2], "%d", ends);
    char *argv[] = {"test_worker_fault", numbers[0], numbers[1], numbers[2], NULL};
    FILE *file = tmpfile();
    assert_non_null(file);
    (void)fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        if (dup2(fileno(file), STDERR_FILENO) >= 0) {
            (void)execv("/proc/self/exe", argv);
        }
        _exit(EXIT_USAGE);
    }
    int status = 0;
    assert_true(child > 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    ssize_t bytes = pread(fileno(file), log, log_bytes - 1, 0);
    assert_true(bytes >= 0);
    log[bytes] = '\0';
    assert_int_equal(fclose(file), 0);
    if (!WIFEXITED(status)) {
        fail_msg("the worker died: %s", log);
    }
    return WEXITSTATUS(status);
}

static uint32_t jobs_with_finals(void) {
    uint32_t count = 0;
    for (int i = 0; i < JOBS; i++) {
        uint32_t finals = atomic_load(&queue->finals[i]);
        assert_true(finals <= 1);
        count += finals;
        queue->final_before[i] |= finals == 1;
    }
    assert_int_equal(queue->not_succeeded, 0);
    assert_int_equal(queue->dead, 0);
    assert_int_equal(queue->commits_too_far, 0);
    return count;
}

static void check_fault(int reads, int ends) {
    char log[8192];
    memset(queue, 0, sizeof *queue);

    assert_int_equal(process(reads, ends, log, sizeof log), EXIT_DEVICE);
    uint32_t done = jobs_with_finals();
    assert_true(done >= 1 && done < JOBS);
    int64_t committed = atomic_load(&queue->committed);
    assert_true(committed >= 1 && committed < JOBS);
    /* One line, which says what happened and how the process ends. */
    assert_non_null(strstr(log, " error worker exit code=device exit=4 why="));
    assert_ptr_equal(strchr(log, '\n'), log + strlen(log) - 1);

    for (int i = 0; i < JOBS; i++) {
        atomic_store(&queue->finals[i], 0);
    }
    assert_int_equal(process(NO_FAULT, NO_FAULT, log, sizeof log), EXIT_DONE);
    assert_string_equal(log, "");
    assert_int_equal(jobs_with_finals(), JOBS - committed); /* what was redelivered, once each */
    assert_int_equal(queue->committed, JOBS);
    for (int i = 0; i < JOBS; i++) {
        assert_true(queue->final_before[i]);
    }
}

static void test_step_read_fails(void **state) {
    (void)state;
    check_fault(FAULT_AFTER, NO_FAULT);
}

static void test_step_end_fails(void **state) {
    (void)state;
    check_fault(NO_FAULT, FAULT_AFTER);
}

/* Before any step has ended nothing is done, and nothing said. */
static void test_first_step_fails(void **state) {
    (void)state;
    char log[8192];
    memset(queue, 0, sizeof *queue);
    assert_int_equal(process(0, NO_FAULT, log, sizeof log), EXIT_DEVICE);
    assert_int_equal(jobs_with_finals(), 0);
    assert_int_equal(queue->committed, 0);
}

static bool queue_map(void) {
    void *room = mmap(NULL, sizeof *queue, PROT_READ | PROT_WRITE, MAP_SHARED, queue_fd, 0);
    queue = room;
    return room != MAP_FAILED;
}

int main(int argc, char **argv) {
    if (argc == 4) { /* process() */
        queue_fd = atoi(argv[1]);
        log_configure(LOG_ERROR, NULL);
        device_of(atoi(argv[2]), atoi(argv[3]));
        return queue_map() ? work() : EXIT_USAGE;
    }
    queue_fd = memfd_create("queue", 0);
    if (queue_fd < 0 || ftruncate(queue_fd, sizeof *queue) != 0 || !queue_map()) {
        return EXIT_FAILURE;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_first_step_fails),
        cmocka_unit_test(test_step_read_fails),
        cmocka_unit_test(test_step_end_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
