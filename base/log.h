/* log.h - logfmt lines on stderr: `ts level facility msg key=value…`.
 *
 * An error is logged once, where it is handled, with the job's id. Thread: any; a line is written
 * by one write(2), so lines of threads and processes do not mix. */
#ifndef LORRY_BASE_LOG_H
#define LORRY_BASE_LOG_H

#include <stdbool.h>
#include <stddef.h>

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

enum { LOG_LINE_BYTES = 2048 };

/* Sets the least important level that is printed. `debug`: comma-separated facilities whose debug
 * lines are printed whatever the level, or NULL; the string must outlive the process's logging. */
void log_configure(enum log_level level, const char *debug);
bool log_level_parse(const char *name, enum log_level *level);
bool log_enabled(enum log_level level, const char *facility);

/* One line. `format` gives the message, then ` key=value` pairs; a value that may hold spaces,
 * quotes or control characters goes through log_quote(). Longer lines are cut at LOG_LINE_BYTES. */
void log_line(enum log_level level, const char *facility, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Writes `text` into room as a logfmt value: as it is where that is safe, else quoted and escaped.
 * Returns `room`. `room_bytes` of 2 × the text + 3 is always enough; less cuts. */
const char *log_quote(char *room, size_t room_bytes, const char *text);

#define log_error(facility, ...) log_line(LOG_ERROR, facility, __VA_ARGS__)
#define log_warn(facility, ...) log_line(LOG_WARN, facility, __VA_ARGS__)
#define log_info(facility, ...) log_line(LOG_INFO, facility, __VA_ARGS__)
#define log_debug(facility, ...) \
    (log_enabled(LOG_DEBUG, facility) ? log_line(LOG_DEBUG, facility, __VA_ARGS__) : (void)0)

#endif
