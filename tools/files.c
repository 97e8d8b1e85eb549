/* files.c - input by lines with a bound, output that is there whole or not at all. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "tools/tool.h"

/* ---- input -------------------------------------------------------------------------------- */

enum err lines_open(struct lines *l, const char *path, size_t bytes_max, struct err_text *why) {
    bool standard = strcmp(path, "-") == 0;
    struct stat st;
    *l = (struct lines){.name = standard ? "stdin" : path, .bytes_max = bytes_max};
    l->file = standard ? stdin : fopen(path, "re");
    if (l->file == NULL || fstat(fileno(l->file), &st) != 0) {
        return err_set(why, ERR_BAD_CONFIG, "open %s: %s", l->name, strerror(errno));
    }
    if (S_ISDIR(st.st_mode)) {
        return err_set(why, ERR_BAD_CONFIG, "%s is a folder", l->name);
    }
    l->regular = S_ISREG(st.st_mode) && !standard;
    return ERR_OK;
}

static bool push(struct lines *l, int c) {
    if (l->bytes + 1 >= l->room) {
        size_t room = l->room > 0 ? l->room * 2 : 4096;
        char *text = realloc(l->text, room);
        if (text == NULL) {
            return false;
        }
        l->text = text;
        l->room = room;
    }
    l->text[l->bytes++] = (char)c;
    l->text[l->bytes] = '\0';
    return true;
}

/* Reads one line, blank or not. */
static enum lines_next read_line(struct lines *l) {
    bool too_long = false;
    int c = getc_unlocked(l->file);
    if (c == EOF) {
        return ferror(l->file) ? LINES_FAILED : LINES_END;
    }
    l->bytes = 0;
    for (; c != EOF && c != '\n'; c = getc_unlocked(l->file)) {
        too_long = too_long || l->bytes == l->bytes_max;
        if (!too_long && !push(l, c)) {
            errno = ENOMEM;
            return LINES_FAILED;
        }
    }
    if (c == EOF && ferror(l->file)) {
        return LINES_FAILED;
    }
    while (l->bytes > 0 && l->text[l->bytes - 1] == '\r') {
        l->text[--l->bytes] = '\0';
    }
    return too_long ? LINES_TOO_LONG : LINES_LINE;
}

static bool is_blank(const struct lines *l) {
    for (size_t i = 0; i < l->bytes; i++) {
        if (l->text[i] != ' ' && l->text[i] != '\t') {
            return false;
        }
    }
    return true;
}

enum lines_next lines_next(struct lines *l) {
    for (;;) {
        enum lines_next next = read_line(l);
        if (next == LINES_LINE || next == LINES_TOO_LONG) {
            l->index += l->started;
            l->started = true;
        }
        if (next != LINES_LINE || !is_blank(l)) {
            return next;
        }
    }
}

enum err lines_rewind(struct lines *l, struct err_text *why) {
    CHECK(l->regular);
    if (fseek(l->file, 0, SEEK_SET) != 0) {
        return err_set(why, ERR_BAD_CONFIG, "rewind %s: %s", l->name, strerror(errno));
    }
    l->index = 0;
    l->started = false;
    return ERR_OK;
}

void lines_close(struct lines *l) {
    if (l->file != NULL && l->file != stdin) {
        (void)fclose(l->file);
    }
    free(l->text);
    *l = (struct lines){0};
}

/* ---- output ------------------------------------------------------------------------------- */

static enum err open_beside(struct output *o, struct err_text *why) {
    size_t room = strlen(o->path) + sizeof ".XXXXXX";
    o->beside = malloc(room);
    if (o->beside == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for %s", o->path);
    }
    (void)snprintf(o->beside, room, "%s.XXXXXX", o->path);
    int fd = mkstemp(o->beside);
    if (fd < 0) {
        enum err e = err_set(why, ERR_BAD_CONFIG, "create %s: %s", o->path, strerror(errno));
        free(o->beside);
        o->beside = NULL;
        return e;
    }
    mode_t mask = umask(0);
    (void)umask(mask);
    (void)fchmod(fd, 0666 & ~mask); /* mkstemp's 0600 is for secrets */
    o->file = fdopen(fd, "w");
    if (o->file == NULL) {
        (void)close(fd);
        output_abandon(o);
        return err_set(why, ERR_NO_MEMORY, "no memory for a stream");
    }
    return ERR_OK;
}

enum err output_open(struct output *o, const char *path, struct err_text *why) {
    struct stat st;
    *o = (struct output){.path = path};
    if (strcmp(path, "-") == 0) {
        o->file = stdout;
        return ERR_OK;
    }
    if (stat(path, &st) != 0 || S_ISREG(st.st_mode)) {
        return open_beside(o, why);
    }
    o->file = fopen(path, "we");
    return o->file != NULL ? ERR_OK
                           : err_set(why, ERR_BAD_CONFIG, "open %s: %s", path, strerror(errno));
}

enum err output_commit(struct output *o, struct err_text *why) {
    bool good = fflush(o->file) == 0 && ferror(o->file) == 0;
    if (good && o->beside != NULL) {
        good = fsync(fileno(o->file)) == 0;
    }
    if (o->file != stdout) {
        good = fclose(o->file) == 0 && good;
    }
    o->file = NULL;
    good = good && (o->beside == NULL || rename(o->beside, o->path) == 0);
    enum err e =
        good ? ERR_OK : err_set(why, ERR_BAD_CONFIG, "write %s: %s", o->path, strerror(errno));
    if (good) {
        free(o->beside);
        o->beside = NULL;
    }
    output_abandon(o);
    return e;
}

void output_abandon(struct output *o) {
    if (o->file != NULL && o->file != stdout) {
        (void)fclose(o->file);
    }
    if (o->beside != NULL) {
        (void)unlink(o->beside);
        free(o->beside);
    }
    *o = (struct output){0};
}
