/* err.h - the one table of errors: what happened, and what to do with the message in hand.
 *
 * Operating errors are returned as `enum err`; 0 is success. Functions whose failure a person must
 * diagnose take a `struct err_text *why` last. Programmer errors crash (check.h). */
#ifndef LORRY_BASE_ERR_H
#define LORRY_BASE_ERR_H

#include <stdarg.h>
#include <stdbool.h>

#define NODISCARD __attribute__((warn_unused_result))

/* RETRY   within this process: the cause passes by itself (no pages, broker away)
 * LATER   the job waits in memory, or on a retry topic, and is tried again
 * REJECT  this job can never run as written: it goes to its final
 * FAIL    the job was accepted, then could not be finished: its final says `failed`
 * FATAL   the process exits with the code given; the queue redelivers */
enum err_disposition { ERR_DO_NOTHING, ERR_RETRY, ERR_LATER, ERR_REJECT, ERR_FAIL, ERR_FATAL };

/* Exit codes of both programs. */
enum exit_code {
    EXIT_DONE = 0,
    EXIT_JOBS = 1,   /* some job did not succeed, or a difference was found */
    EXIT_USAGE = 2,  /* usage or configuration */
    EXIT_MODEL = 3,  /* model or adapters */
    EXIT_DEVICE = 4, /* the device failed */
    EXIT_BROKER = 5, /* the broker is away or refuses */
    EXIT_FENCED = 6, /* another member took our place */
};

/* name, code in finals and logs, disposition, exit code, text */
#define ERR_TABLE(XX)                                                                              \
    XX(OK, "ok", ERR_DO_NOTHING, EXIT_DONE, "no error")                                            \
    XX(NO_SPACE, "no_space", ERR_RETRY, EXIT_JOBS, "no room at the moment")                        \
    XX(AWAY, "away", ERR_RETRY, EXIT_BROKER, "a service cannot be reached")                        \
    XX(TIMED_OUT, "timed_out", ERR_RETRY, EXIT_BROKER, "a service did not answer in time")         \
    XX(ADAPTER_UNREADABLE, "adapter_unreadable", ERR_LATER, EXIT_MODEL,                            \
       "the adapter cannot be read at the moment")                                                 \
    XX(BAD_MESSAGE, "bad_message", ERR_REJECT, EXIT_JOBS, "the message does not match its schema") \
    XX(BAD_VERSION, "bad_version", ERR_REJECT, EXIT_JOBS, "the message's version is not known")    \
    XX(BAD_FIELD, "bad_field", ERR_REJECT, EXIT_JOBS, "a field's value is not valid")              \
    XX(UNSUPPORTED_FIELD, "unsupported_field", ERR_REJECT, EXIT_JOBS, "a field is not supported")  \
    XX(TOO_LARGE, "too_large", ERR_REJECT, EXIT_JOBS, "the message is larger than its limit")      \
    XX(PROMPT_TOO_LONG, "prompt_too_long", ERR_REJECT, EXIT_JOBS,                                  \
       "the prompt does not fit into the context")                                                 \
    XX(UNKNOWN_ADAPTER, "unknown_adapter", ERR_REJECT, EXIT_MODEL, "no adapter has this id")       \
    XX(BAD_ADAPTER, "bad_adapter", ERR_REJECT, EXIT_MODEL, "the adapter's files are damaged")      \
    XX(UNSUPPORTED_ADAPTER, "unsupported_adapter", ERR_REJECT, EXIT_MODEL,                         \
       "the adapter uses something that is not supported")                                         \
    XX(ADAPTER_CHANGED, "adapter_changed", ERR_FAIL, EXIT_MODEL,                                   \
       "the adapter was replaced, and the job cannot go on with another")                          \
    XX(RESULT_TOO_LARGE, "result_too_large", ERR_FAIL, EXIT_JOBS,                                  \
       "the result is larger than the broker takes")                                               \
    XX(INTERNAL, "internal", ERR_FAIL, EXIT_JOBS, "an internal error")                             \
    XX(BAD_CONFIG, "bad_config", ERR_FATAL, EXIT_USAGE, "the configuration is not valid")          \
    XX(BAD_MODEL, "bad_model", ERR_FATAL, EXIT_MODEL, "the model cannot be used")                  \
    XX(NO_MEMORY, "no_memory", ERR_FATAL, EXIT_DEVICE, "out of memory")                            \
    XX(DEVICE, "device", ERR_FATAL, EXIT_DEVICE, "the device failed; the process must restart")    \
    XX(BROKER, "broker", ERR_FATAL, EXIT_BROKER, "the broker is away or refuses")                  \
    XX(FENCED, "fenced", ERR_FATAL, EXIT_FENCED, "another member has taken our place")

enum err {
#define XX(name, code, disposition, exit, text) ERR_##name,
    ERR_TABLE(XX)
#undef XX
        ERR_COUNT
};

enum { ERR_TEXT_BYTES = 512, ERR_FIELD_BYTES = 128 };

/* What a person needs to know of one failure. Zero it before first use: `struct err_text why =
 * {0};` */
struct err_text {
    char message[ERR_TEXT_BYTES]; /* one sentence without a full stop, NUL-terminated */
    char field[ERR_FIELD_BYTES];  /* the field, option or tensor at fault; may be empty */
};

/* Fills `why` (NULL is fine) and returns `e`, so that `return err_set(…)` is one line. */
enum err err_set(struct err_text *why, enum err e, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* As err_set, and names the field, option or tensor. */
enum err err_set_field(struct err_text *why, enum err e, const char *field, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

const char *err_name(enum err e); /* "unknown_adapter": stable, used in finals and logs */
const char *err_text(enum err e); /* the table's sentence */
enum err_disposition err_disposition(enum err e);
enum exit_code err_exit_code(enum err e);

#endif
