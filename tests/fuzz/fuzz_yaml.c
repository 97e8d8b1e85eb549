/* fuzz_yaml.c - any bytes as lorry.yaml: no crash, and what is accepted lies within the ranges of
 * the options and can be printed. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"
#include "config/options.h"
#include "tests/fuzz/fuzz.h"

static void demand(bool good, const char *what, const char *detail) {
    if (!good) {
        (void)fprintf(stderr, "fuzz_yaml: %s: %s\n", what, detail);
        abort();
    }
}

static void check_value(const struct config *c, const struct option *o) {
    const char *member = (const char *)c + o->offset;
    int64_t whole = o->min;
    double real = (double)o->min;
    if (o->type == OPTION_INT || o->type == OPTION_BYTES) {
        memcpy(&whole, member, sizeof whole);
    } else if (o->type == OPTION_REAL) {
        memcpy(&real, member, sizeof real);
    } else if (o->type == OPTION_STRING) {
        const char *text = NULL;
        memcpy(&text, member, sizeof text);
        whole = (int64_t)strlen(text);
    } else if (o->type == OPTION_LIST) {
        struct config_list list;
        memcpy(&list, member, sizeof list);
        for (uint32_t i = 0; i < list.count; i++) {
            int64_t length = (int64_t)strlen(list.items[i]);
            demand(length >= o->min && length <= o->max, "an item's length", o->name);
        }
    }
    if (o->type != OPTION_ENUM && o->type != OPTION_BOOL) {
        demand(whole >= o->min && (o->type == OPTION_LIST || whole <= o->max), "a range", o->name);
        demand(real >= (double)o->min && real <= (double)o->max, "a range", o->name);
    }
}

/* The text alone, into options that have no defaults: most inputs end here, soon. */
static enum err read_text(const uint8_t *data, size_t bytes) {
    struct config_store *s = calloc(1, sizeof *s);
    struct err_text why = {0};
    demand(s != NULL, "memory", "");
    s->home = "/home/lorry";
    enum err e = config_read_text(s, "lorry.yaml", (const char *)data, bytes, &why);
    demand(e == ERR_OK || e == ERR_BAD_CONFIG, "another error", err_name(e));
    demand(e == ERR_OK || strstr(why.message, "lorry.yaml") != NULL, "an error without its place",
           why.message);
    config_close(&s->config);
    return e;
}

/* The file that the whole configuration is read from. It lies in memory. */
static const char *put(const uint8_t *data, size_t bytes) {
    static char path[64];
    static int fd = -1;
    if (fd < 0) {
        fd = memfd_create("lorry.yaml", MFD_CLOEXEC);
        demand(fd >= 0, "memfd_create", "");
        (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    demand(ftruncate(fd, 0) == 0, "ftruncate", "");
    demand(pwrite(fd, data, bytes, 0) == (ssize_t)bytes, "pwrite", "");
    return path;
}

static void check_config(const struct config *c) {
    static FILE *sink;
    if (sink == NULL) {
        sink = fopen("/dev/null", "we");
        demand(sink != NULL, "/dev/null", "");
    }
    for (uint32_t i = 0; i < OPTION_COUNT; i++) {
        check_value(c, &option_table[i]);
    }
    config_print(c, sink);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    log_configure(LOG_ERROR, NULL);
    if (read_text(data, bytes) != ERR_OK) {
        return 0;
    }
    char home[] = "HOME=/home/lorry";
    char *variables[] = {home, NULL};
    const char *const files[] = {put(data, bytes), NULL};
    const struct config_input input = {.environ = variables, .files = files};
    struct config *c = NULL;
    struct err_text why = {0};
    int rest = 0;
    enum err e = config_open(&c, &input, NULL, &rest, &why);
    if (e == ERR_OK) {
        check_config(c);
        config_close(c);
        return 0;
    }
    demand(e == ERR_BAD_CONFIG, "another error", err_name(e));
    demand(why.message[0] != '\0' && why.field[0] != '\0', "an error without its option",
           why.message);
    return 0;
}
