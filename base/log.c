#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static enum log_level log_level_now = LOG_INFO; /* set before threads start */
static const char *log_debug_facilities;

static const char *const log_level_names[] = {"error", "warn", "info", "debug"};

void log_configure(enum log_level level, const char *debug) {
    log_level_now = level;
    log_debug_facilities = debug;
}

bool log_level_parse(const char *name, enum log_level *level) {
    for (unsigned i = 0; i < sizeof log_level_names / sizeof log_level_names[0]; i++) {
        if (strcmp(name, log_level_names[i]) == 0) {
            *level = (enum log_level)i;
            return true;
        }
    }
    return false;
}

static bool facility_listed(const char *list, const char *facility) {
    size_t bytes = strlen(facility);
    for (const char *at = list; at != NULL; at = strchr(at, ',')) {
        at += *at == ',';
        if (strncmp(at, facility, bytes) == 0 && (at[bytes] == ',' || at[bytes] == '\0')) {
            return true;
        }
    }
    return false;
}

bool log_enabled(enum log_level level, const char *facility) {
    return level <= log_level_now ||
           (level == LOG_DEBUG && facility_listed(log_debug_facilities, facility));
}

void log_line(enum log_level level, const char *facility, const char *format, ...) {
    if (!log_enabled(level, facility)) {
        return;
    }
    char line[LOG_LINE_BYTES];
    struct timespec now;
    struct tm utc;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    (void)gmtime_r(&now.tv_sec, &utc);
    size_t at = strftime(line, sizeof line, "%Y-%m-%dT%H:%M:%S", &utc);
    at += (size_t)snprintf(line + at, sizeof line - at, ".%03ldZ %-5s %s ", now.tv_nsec / 1000000,
                           log_level_names[level], facility);
    va_list args;
    va_start(args, format);
    int wrote = vsnprintf(line + at, sizeof line - at, format, args);
    va_end(args);
    if (wrote > 0) {
        at += (size_t)wrote;
    }
    if (at > sizeof line - 1) {
        at = sizeof line - 1;
    }
    line[at++] = '\n';
    ssize_t ignored = write(STDERR_FILENO, line, at);
    (void)ignored; /* a closed stderr must not end the worker */
}

static bool plain_value(const char *text) {
    if (*text == '\0') {
        return false;
    }
    for (const unsigned char *c = (const unsigned char *)text; *c != '\0'; c++) {
        if (*c <= ' ' || *c == '"' || *c == '=' || *c == '\\' || *c == 0x7f) {
            return false;
        }
    }
    return true;
}

const char *log_quote(char *room, size_t room_bytes, const char *text) {
    if (plain_value(text)) {
        (void)snprintf(room, room_bytes, "%s", text);
        return room;
    }
    if (room_bytes < 3) {
        return "";
    }
    size_t at = 0;
    room[at++] = '"';
    for (const unsigned char *c = (const unsigned char *)text; *c != '\0'; c++) {
        if (at + 4 > room_bytes) {
            break;
        }
        if (*c == '"' || *c == '\\') {
            room[at++] = '\\';
            room[at++] = (char)*c;
        } else if (*c == '\n') {
            room[at++] = '\\';
            room[at++] = 'n';
        } else {
            room[at++] = *c < ' ' || *c == 0x7f ? '?' : (char)*c;
        }
    }
    room[at++] = '"';
    room[at] = '\0';
    return room;
}
