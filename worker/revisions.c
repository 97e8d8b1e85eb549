#include "worker/revisions.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/log.h"

#define REVISIONS_FILE "revisions"

enum {
    LINE_BYTES = 512,          /* an id has at most 128, a revision 64 */
    CHECK_DIGITS = 16,         /* and a space behind */
    FILE_BYTES_MAX = 16 << 20, /* some 70,000 lines */
    PATH_BYTES_MAX = 4096 + 64,
};

struct revisions {
    int fd;
    uint64_t root;
};

/* ---- lines -------------------------------------------------------------------------------- */

/* What was said of an adapter below `root`; false: it is not such a line. */
static bool line_parse(const char *line, uint64_t root, char id[POOL_ID_BYTES],
                       struct model_adapter_known *known) {
    uint64_t check = 0, of = 0;
    char revision[POOL_REVISION_BYTES + 1];
    struct model_adapter_known k = {0};
    int end = 0;
    if (strlen(line) <= CHECK_DIGITS + 1 ||
        sscanf(line,
               "%16" SCNx64 " %16" SCNx64 " %128s %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNd64
               " %65s%n",
               &check, &of, id, &k.stamp.device, &k.stamp.inode, &k.stamp.bytes, &k.stamp.mtime_ns,
               revision, &end) != 8 ||
        line[end] != '\0' || strlen(revision) != POOL_REVISION_BYTES - 1 || of != root) {
        return false;
    }
    const char *rest = line + CHECK_DIGITS + 1;
    if (check != hash_bytes(rest, strlen(rest))) {
        return false;
    }
    memcpy(k.revision, revision, sizeof k.revision);
    *known = k;
    return true;
}

void revisions_add(const struct revisions *r, const char *id,
                   const struct model_adapter_known *known) {
    char rest[LINE_BYTES], line[LINE_BYTES + CHECK_DIGITS + 4];
    if (r == NULL || r->fd < 0) {
        return;
    }
    (void)snprintf(rest, sizeof rest,
                   "%016" PRIx64 " %s %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRId64 " %s", r->root,
                   id, known->stamp.device, known->stamp.inode, known->stamp.bytes,
                   known->stamp.mtime_ns, known->revision);
    /* Its own newline in front: a line that was cut off spoils none but itself. */
    int bytes =
        snprintf(line, sizeof line, "\n%016" PRIx64 " %s\n", hash_bytes(rest, strlen(rest)), rest);
    if (write(r->fd, line, (size_t)bytes) != bytes) {
        log_debug("adapters", "a revision cannot be kept adapter=%s", id);
    }
}

/* ---- the file ----------------------------------------------------------------------------- */

static void lines_tell(const struct revisions *r, char *text,
                       void (*each)(void *context, const char *id,
                                    const struct model_adapter_known *known),
                       void *context) {
    char id[POOL_ID_BYTES];
    struct model_adapter_known known;
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line != NULL;
         line = strtok_r(NULL, "\n", &rest)) {
        if (line_parse(line, r->root, id, &known)) {
            each(context, id, &known);
        }
    }
}

/* All of the file, or less where it is written to; NULL: it is empty, or cannot be read. */
static char *text_read(int fd, uint64_t bytes) {
    char *text = bytes > 0 ? malloc(bytes + 1) : NULL;
    uint64_t count = 0;
    while (text != NULL && count < bytes) {
        ssize_t got = pread(fd, text + count, bytes - count, (off_t)count);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            break;
        }
        count += (uint64_t)got;
    }
    if (text != NULL) {
        text[count] = '\0';
    }
    return text;
}

enum err revisions_open(struct revisions **out, const char *dir, const char *root,
                        void (*each)(void *context, const char *id,
                                     const struct model_adapter_known *known),
                        void *context) {
    char path[PATH_BYTES_MAX];
    struct stat file;
    struct revisions *r = calloc(1, sizeof *r);
    if (r == NULL) {
        return ERR_NO_MEMORY;
    }
    *out = r;
    r->root = hash_bytes(root, strlen(root));
    (void)snprintf(path, sizeof path, "%.4096s/" REVISIONS_FILE, dir);
    r->fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (r->fd < 0 || fstat(r->fd, &file) != 0) {
        char room[128];
        log_warn("adapters", "revisions cannot be kept path=%s why=%s", path,
                 strerror_r(errno, room, sizeof room));
        return ERR_OK;
    }
    if (file.st_size > FILE_BYTES_MAX) {
        (void)(ftruncate(r->fd, 0) == 0); /* else it is read again and grows on */
        return ERR_OK;
    }
    char *text = text_read(r->fd, (uint64_t)file.st_size);
    if (text != NULL) {
        lines_tell(r, text, each, context);
    }
    free(text);
    return ERR_OK;
}

void revisions_close(struct revisions *r) {
    if (r == NULL) {
        return;
    }
    if (r->fd >= 0) {
        (void)close(r->fd);
    }
    free(r);
}
