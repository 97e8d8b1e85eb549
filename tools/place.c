#include "tools/place.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tools/tool.h"

enum { COPY_BYTES = 1 << 20, OPEN_FOLDERS_MAX = 16 };

static const char config_file[] = "adapter_config.json";
static const char weights_file[] = "adapter_model.safetensors";

/* `<a>/<b>` into room; false: too long. */
static bool join(char room[PATH_MAX], const char *a, const char *b) {
    int bytes = snprintf(room, PATH_MAX, "%s/%s", a, b);
    return bytes > 0 && bytes < PATH_MAX;
}

static enum err too_long(const char *path, struct err_text *why) {
    return err_set(why, ERR_BAD_CONFIG, "%.200s: %s", path, strerror(ENAMETOOLONG));
}

enum err place_open(struct place *p, const char *root, struct err_text *why) {
    *p = (struct place){0};
    char dir[PATH_MAX];
    int bytes = snprintf(p->root, sizeof p->root, "%s", root);
    if (bytes >= PATH_MAX || !join(dir, root, ".lorry-XXXXXX")) {
        return too_long(root, why);
    }
    if (mkdtemp(dir) == NULL) {
        return err_set_field(why, ERR_BAD_CONFIG, "adapters.dir",
                             "the adapter root %.300s (adapters.dir) cannot be written: %s", root,
                             strerror(errno));
    }
    memcpy(p->dir, dir, sizeof p->dir);
    return ERR_OK;
}

/* ---- copying ------------------------------------------------------------------------------ */

static enum err write_all(int fd, const char *data, size_t bytes) {
    while (bytes > 0) {
        ssize_t put = write(fd, data, bytes);
        if (put < 0 && errno != EINTR) {
            return ERR_BAD_CONFIG;
        }
        data += put > 0 ? put : 0;
        bytes -= put > 0 ? (size_t)put : 0;
    }
    return ERR_OK;
}

static enum err pump(int in, int out, const char *name, struct err_text *why) {
    char *room = malloc(COPY_BYTES);
    enum err e =
        room != NULL ? ERR_OK : err_set(why, ERR_NO_MEMORY, "no memory to copy %.200s", name);
    while (e == ERR_OK) {
        ssize_t got = read(in, room, COPY_BYTES);
        if (tool_interrupted()) {
            e = err_set(why, ERR_INTERNAL, "interrupted; nothing was changed");
        } else if (got == 0) {
            break;
        } else if (got < 0 ? errno != EINTR : write_all(out, room, (size_t)got) != ERR_OK) {
            e = err_set(why, ERR_BAD_CONFIG, "copy %.200s: %s", name, strerror(errno));
        }
    }
    if (e == ERR_OK && fsync(out) != 0) {
        e = err_set(why, ERR_BAD_CONFIG, "copy %.200s: %s", name, strerror(errno));
    }
    free(room);
    return e;
}

/* O_NONBLOCK so that a pipe by that name does not hang us. */
static enum err copy_file(int from, int to, const char *name, struct err_text *why) {
    struct stat st;
    int out = -1;
    enum err e = ERR_OK;
    int in = openat(from, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (in < 0 || fstat(in, &st) != 0) {
        e = errno == ENOENT
                ? err_set_field(why, ERR_BAD_CONFIG, name, "%s is missing", name)
                : err_set_field(why, ERR_BAD_CONFIG, name, "%s: %s", name, strerror(errno));
        goto out;
    }
    if (!S_ISREG(st.st_mode)) {
        e = err_set_field(why, ERR_BAD_CONFIG, name, "%s is no regular file", name);
        goto out;
    }
    out = openat(to, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (out < 0) {
        e = err_set_field(why, ERR_BAD_CONFIG, name, "create %s: %s", name, strerror(errno));
        goto out;
    }
    e = pump(in, out, name, why);
out:
    if (in >= 0) {
        (void)close(in);
    }
    if (out >= 0) {
        (void)close(out);
    }
    return e;
}

static enum err refuse_pickles(int from, struct err_text *why) {
    static const char *const pickles[] = {"adapter_model.bin", "adapter_model.pt"};
    if (faccessat(from, weights_file, F_OK, 0) == 0) {
        return ERR_OK;
    }
    for (size_t i = 0; i < sizeof pickles / sizeof pickles[0]; i++) {
        if (faccessat(from, pickles[i], F_OK, 0) == 0) {
            return err_set_field(why, ERR_UNSUPPORTED_ADAPTER, pickles[i],
                                 "%s is a pickle, which can run code and is not read; save it as "
                                 "safetensors",
                                 pickles[i]);
        }
    }
    return ERR_OK;
}

enum err place_copy(struct place *p, const char *from, const char *id, struct err_text *why) {
    char path[PATH_MAX];
    int to = -1;
    enum err e = ERR_OK;
    int source = open(from, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (source < 0) {
        return err_set(why, ERR_BAD_CONFIG, "open %.300s: %s", from, strerror(errno));
    }
    if (!join(path, p->dir, id)) {
        e = too_long(p->dir, why);
        goto out;
    }
    to = mkdir(path, 0777) == 0 ? open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (to < 0) {
        e = err_set(why, ERR_BAD_CONFIG, "create %.300s: %s", path, strerror(errno));
        goto out;
    }
    e = refuse_pickles(source, why);
    if (e == ERR_OK) {
        e = copy_file(source, to, config_file, why);
    }
    if (e == ERR_OK) {
        e = copy_file(source, to, weights_file, why);
    }
    if (e == ERR_OK && fsync(to) != 0) {
        e = err_set(why, ERR_BAD_CONFIG, "sync %.300s: %s", path, strerror(errno));
    }
out:
    (void)close(source);
    if (to >= 0) {
        (void)close(to);
    }
    return e;
}

/* ---- renaming ----------------------------------------------------------------------------- */

static void sync_root(const struct place *p) {
    int fd = open(p->root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)fsync(fd); /* the name; an old one after a power cut is still a whole adapter */
        (void)close(fd);
    }
}

/* `in` takes the place of `at`, which goes to `aside`. errno on failure. */
static bool exchange(const char *in, const char *at, const char *aside) {
    if (renameat2(AT_FDCWD, in, AT_FDCWD, at, RENAME_EXCHANGE) == 0) {
        return true;
    }
    if ((errno != EINVAL && errno != ENOSYS) || rename(at, aside) != 0) {
        return false;
    }
    if (rename(in, at) == 0) {
        return true;
    }
    int cause = errno;
    (void)rename(aside, at);
    errno = cause;
    return false;
}

enum err place_in(struct place *p, const char *id, bool replace, bool *replaced,
                  struct err_text *why) {
    char in[PATH_MAX];
    char at[PATH_MAX];
    char aside[PATH_MAX];
    struct stat st;
    if (!join(in, p->dir, id) || !join(at, p->root, id) || !join(aside, p->dir, ".aside")) {
        return too_long(p->root, why);
    }
    bool taken = lstat(at, &st) == 0;
    if (taken && !replace) {
        return err_set(why, ERR_BAD_CONFIG,
                       "%s is in the adapter root already; --replace puts this one in its place",
                       id);
    }
    /* a plain rename onto a folder that appeared meanwhile fails: no folder with files is lost */
    if (taken ? !exchange(in, at, aside) : rename(in, at) != 0) {
        return err_set(why, ERR_BAD_CONFIG, "rename to %.300s: %s", at, strerror(errno));
    }
    *replaced = taken;
    sync_root(p);
    return ERR_OK;
}

enum err place_out(struct place *p, const char *id, struct err_text *why) {
    char at[PATH_MAX];
    char aside[PATH_MAX];
    if (!join(at, p->root, id) || !join(aside, p->dir, id)) {
        return too_long(p->root, why);
    }
    if (rename(at, aside) == 0) {
        sync_root(p);
        return ERR_OK;
    }
    return errno == ENOENT ? err_set(why, ERR_UNKNOWN_ADAPTER, "%s is not in the adapter root", id)
                           : err_set(why, ERR_BAD_CONFIG, "rename %.300s: %s", at, strerror(errno));
}

/* ---- deleting ----------------------------------------------------------------------------- */

static int delete_one(const char *path, const struct stat *st, int kind, struct FTW *at) {
    (void)st;
    (void)at;
    return kind == FTW_DP ? rmdir(path) : unlink(path);
}

bool place_close(struct place *p) {
    bool gone =
        p->dir[0] == '\0' || nftw(p->dir, delete_one, OPEN_FOLDERS_MAX, FTW_DEPTH | FTW_PHYS) == 0;
    if (gone) {
        *p = (struct place){0};
    }
    return gone;
}
