/* main.c - lorryd: the worker as a program. */
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "base/log.h"
#include "worker/worker.h"

static const char usage[] =
    "lorryd - batch inference worker: jobs from Kafka, answers of a model with many LoRA adapters\n"
    "\n"
    "  lorryd --model DIR [--adapters DIR] [--kafka.brokers HOST:PORT] [options]\n"
    "\n"
    "Takes jobs from the jobs topics as a member of the consumer group, runs them in continuous\n"
    "batches, and sends token streams and finals back to Kafka. SIGTERM or SIGINT: finish what "
    "runs\n"
    "(at most worker.drain_s), give the rest back, exit 0; a second one: exit at once.\n"
    "Exit codes: 0 done, 2 usage or configuration, 3 model or adapters, 4 device, 5 broker,\n"
    "6 fenced. Options, from flags, environment (LORRY_SECTION_NAME), and lorry.yaml:\n\n";

extern char **environ;

/* Posted by every SIGTERM and SIGINT. A handler, not sigwait(): threads that libraries start before
 * main() or with a mask of their own (OpenBLAS, librdkafka) do not block the signals, and one of
 * them would take the default action. Static, since a handler has no other way to it. */
static sem_t signals;

static void signal_came(int number) {
    (void)number;
    int saved = errno;
    (void)sem_post(&signals);
    errno = saved;
}

/* In every thread of ours the signals are blocked but in the one that waits for them, so that no
 * system call of the others is interrupted. */
static void signals_catch(void) {
    sigset_t set;
    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGTERM);
    (void)sigaddset(&set, SIGINT);
    (void)pthread_sigmask(SIG_BLOCK, &set, NULL);
    CHECK(sem_init(&signals, 0, 0) == 0);
    struct sigaction action = {.sa_handler = signal_came, .sa_flags = SA_RESTART};
    (void)sigemptyset(&action.sa_mask);
    CHECK(sigaction(SIGTERM, &action, NULL) == 0);
    CHECK(sigaction(SIGINT, &action, NULL) == 0);
    (void)signal(SIGPIPE, SIG_IGN);
}

/* The worker once it serves. Before that it holds no job, and a signal ends the process at once,
 * however long the weights or the broker take. */
static _Atomic(struct worker *) serving;

static void *signals_main(void *argument) {
    (void)argument;
    sigset_t set;
    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGTERM);
    (void)sigaddset(&set, SIGINT);
    (void)pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    for (int count = 0;; count++) {
        while (sem_wait(&signals) != 0) {
        } /* interrupted by the handler itself */
        if (count > 0) {
            log_warn("worker", "second signal: exit without waiting");
            _exit(EXIT_JOBS);
        }
        struct worker *w = atomic_load(&serving);
        if (w == NULL) {
            log_info("worker", "stopped before the first job");
            _exit(EXIT_DONE);
        }
        log_info("worker", "draining");
        worker_drain(w);
    }
    return NULL;
}

static int fail(enum err e, const struct err_text *why) {
    (void)fprintf(stderr, "lorryd: %s%s%s\n", why->field, why->field[0] != '\0' ? ": " : "",
                  why->message[0] != '\0' ? why->message : err_text(e));
    return (int)err_exit_code(e);
}

static enum err serve(struct config *config, struct err_text *why) {
    enum log_level level = LOG_INFO;
    (void)log_level_parse(config->log_level, &level);
    log_configure(level, config->log_debug);
    pthread_t thread;
    if (pthread_create(&thread, NULL, signals_main, NULL) != 0) {
        return err_set(why, ERR_NO_MEMORY, "no thread for signals");
    }
    struct worker *w = NULL;
    struct source *source = NULL;
    const struct source_ops *ops = NULL;
    enum err e = worker_open(
        &w, &(struct worker_options){.config = config, .http = true, .registry = true}, why);
    if (e == ERR_OK) {
        e = source_open_kafka(&source, &ops, config, why);
    }
    if (e == ERR_OK) {
        atomic_store(&serving, w);
        e = worker_run(w, source, ops, why);
    }
    if (e == ERR_OK) {
        struct worker_report r = worker_report(w);
        log_info("worker",
                 "drained received=%llu finished_while_draining=%u given_back=%u all_delivered=%s",
                 (unsigned long long)r.received, r.drain_finished, r.drain_dropped,
                 r.all_delivered ? "true" : "false");
    }
    (void)pthread_cancel(thread);
    (void)pthread_join(thread, NULL);
    worker_close(w);
    return e;
}

int main(int argc, char **argv) {
    struct err_text why = {0};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            (void)fputs(usage, stdout);
            config_help(stdout);
            return EXIT_DONE;
        }
        if (strcmp(argv[i], "--version") == 0) {
            (void)puts("lorryd " LORRY_VERSION);
            return EXIT_DONE;
        }
    }
    signals_catch();
    struct config *config = NULL;
    int rest = 0;
    struct config_input input = {.argc = argc - 1, .argv = argv + 1, .environ = environ};
    enum err e = config_open(&config, &input, NULL, &rest, &why);
    if (e == ERR_OK && rest > 0) {
        e = err_set(&why, ERR_BAD_CONFIG, "unexpected argument %s", argv[1]);
    }
    if (e == ERR_OK) {
        e = serve(config, &why);
    }
    config_close(config);
    return e == ERR_OK ? EXIT_DONE : fail(e, &why);
}
