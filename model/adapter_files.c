#include "model/adapter_files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "model/adapter_plan.h"
#include "model/peft_config.h"

enum {
    PART_BYTES = 2 << 20, /* of a file that one thread reads at a time; a huge page */
    SETTLED_MS = 2000,    /* a file system's clock may stand still as long between two changes */
};

/* ---- ids and folders ---------------------------------------------------------------------- */

bool model_adapter_id_valid(const char *id, size_t bytes) {
    if (bytes == 0 || bytes >= POOL_ID_BYTES || id[0] == '.') {
        return false;
    }
    for (size_t i = 0; i < bytes; i++) {
        char c = id[i];
        bool alphanumeric =
            (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        /* Without the length check strchr() would find a NUL. */
        if (!alphanumeric && (c == '\0' || strchr("._:@-", c) == NULL)) {
            return false;
        }
    }
    return true;
}

enum err model_adapter_root(const char *root, int *fd, struct err_text *why) {
    *fd = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*fd >= 0) {
        return ERR_OK;
    }
    char room[128];
    return err_set(why, ERR_ADAPTER_UNREADABLE, "the adapters' folder %.256s cannot be opened: %s",
                   root, strerror_r(errno, room, sizeof room));
}

/* A symbolic link is fine: the root belongs to the operator, and an id holds no slash. */
enum err model_adapter_folder(const char *root, const char *id, int *fd, struct err_text *why) {
    if (!model_adapter_id_valid(id, strlen(id))) {
        return err_set(why, ERR_UNKNOWN_ADAPTER, "this is not a valid adapter id");
    }
    int root_fd = -1;
    enum err e = model_adapter_root(root, &root_fd, why);
    if (e != ERR_OK) {
        return e;
    }
    *fd = openat(root_fd, id, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int error = errno;
    (void)close(root_fd);
    if (*fd >= 0) {
        return ERR_OK;
    }
    if (error == ENOENT || error == ENOTDIR) {
        return err_set(why, ERR_UNKNOWN_ADAPTER, "no adapter has the id %s", id);
    }
    char room[128];
    return err_set(why, ERR_ADAPTER_UNREADABLE, "adapter %s cannot be opened: %s", id,
                   strerror_r(error, room, sizeof room));
}

bool model_adapter_folder_changed(const char *root, const char *id, int dir) {
    struct stat read;
    struct stat named;
    int root_fd = -1;
    if (model_adapter_root(root, &root_fd, NULL) != ERR_OK) {
        return false;
    }
    bool there = fstatat(root_fd, id, &named, 0) == 0;
    bool absent = !there && errno == ENOENT;
    (void)close(root_fd);
    bool other = there && fstat(dir, &read) == 0 &&
                 (read.st_ino != named.st_ino || read.st_dev != named.st_dev);
    return absent || other;
}

/* ---- stamps ------------------------------------------------------------------------------- */

/* Takes in one file; that of the weights comes last. */
static void stamp_add(struct model_adapter_stamp *s, const struct model_stat *file) {
    s->device = file->device;
    s->inode = file->inode;
    s->bytes += file->bytes;
    s->mtime_ns = file->changed_ns > s->mtime_ns ? file->changed_ns : s->mtime_ns;
}

enum err model_adapter_stat(const char *root, const char *id, struct model_adapter_stamp *stamp,
                            struct err_text *why) {
    static const char *const files[] = {MODEL_PEFT_FILE, MODEL_ADAPTER_FILE};
    int dir = -1;
    enum err e = model_adapter_folder(root, id, &dir, why);
    if (e != ERR_OK) {
        return e;
    }
    struct model_adapter_stamp s = {0};
    for (size_t i = 0; i < sizeof files / sizeof files[0] && e == ERR_OK; i++) {
        struct stat file;
        if (fstatat(dir, files[i], &file, 0) == 0) {
            struct model_stat facts = model_stat_of(&file);
            stamp_add(&s, &facts);
        } else if (errno != ENOENT) { /* missing: the load will say so */
            char room[128];
            e = err_set_field(why, ERR_ADAPTER_UNREADABLE, files[i], "adapter %s: %s: %s", id,
                              files[i], strerror_r(errno, room, sizeof room));
        }
    }
    (void)close(dir);
    if (e == ERR_OK) {
        *stamp = s;
    }
    return e;
}

/* Whether a change that came after the read must show in the files' times. */
static bool stamp_settled(const struct model_adapter_stamp *s) {
    return s->mtime_ns / 1000000 + SETTLED_MS <= clock_wall_ms();
}

/* ---- reading ------------------------------------------------------------------------------ */

void model_adapter_files_deinit(struct model_adapter_files *f) {
    model_bytes_free(&f->weights);
    model_bytes_free(&f->config);
}

static enum err file_error(const char *file, int error, struct err_text *why) {
    char room[128];
    const char *text = model_file_error(error, room, sizeof room);
    switch (error) {
    case ENOENT:
        return err_set_field(why, ERR_BAD_ADAPTER, file, "%s is missing", file);
    case EINVAL:
        return err_set_field(why, ERR_BAD_ADAPTER, file, "%s: %s", file, text);
    case EFBIG:
        return err_set_field(why, ERR_UNSUPPORTED_ADAPTER, file, "%s: %s", file, text);
    case ENOMEM: /* passes when another load ends */
        return err_set_field(why, ERR_NO_SPACE, file, "%s: no memory to read it", file);
    default: /* EACCES, EIO, ESTALE, EMFILE, …: may be otherwise later */
        return err_set_field(why, ERR_ADAPTER_UNREADABLE, file, "%s: %s", file, text);
    }
}

/* Says why there are no weights to read. */
static enum err weights_missing(int dir, struct err_text *why) {
    static const char *const pickles[] = {"adapter_model.bin", "adapter_model.pt"};
    for (size_t i = 0; i < sizeof pickles / sizeof pickles[0]; i++) {
        if (faccessat(dir, pickles[i], F_OK, 0) == 0) {
            return err_set_field(why, ERR_UNSUPPORTED_ADAPTER, pickles[i],
                                 "%s is a pickle, which can run code and is not read; save it as "
                                 "safetensors",
                                 pickles[i]);
        }
    }
    return file_error(MODEL_ADAPTER_FILE, ENOENT, why);
}

struct reading {
    int fd;
    uint8_t *data;
    uint64_t count;
    _Atomic int error;
};

static void part_read(void *argument, uint32_t index) {
    struct reading *r = argument;
    uint64_t from = (uint64_t)index * PART_BYTES;
    uint64_t count = r->count - from < PART_BYTES ? r->count - from : PART_BYTES;
    int error = model_file_read_at(r->fd, from, r->data + from, count);
    if (error != 0) {
        atomic_store(&r->error, error);
    }
}

/* All of an open file; 0 or errno, as model_file_read(). */
static int all_read(int fd, uint64_t count, const struct model_crew *crew,
                    struct model_bytes *out) {
    uint64_t room = (count + PART_BYTES - 1) / PART_BYTES * PART_BYTES;
    bool large = count > PART_BYTES;
    struct reading r = {.fd = fd, .count = count};
    r.data = large ? aligned_alloc(PART_BYTES, room) : malloc(count > 0 ? count : 1);
    if (r.data == NULL) {
        return ENOMEM;
    }
    if (large) {
        (void)madvise(r.data, room, MADV_HUGEPAGE); /* only speed: failure is fine */
    }
    model_crew_run(crew, (uint32_t)(room / PART_BYTES), part_read, &r);
    int error = atomic_load(&r.error);
    uint8_t more = 0;
    if (error == 0 && pread(fd, &more, 1, (off_t)count) != 0) {
        error = ESTALE;
    }
    if (error != 0) {
        free(r.data);
        return error;
    }
    *out = (struct model_bytes){.data = r.data, .count = count};
    return 0;
}

static int file_read(struct model_bytes *out, int dir, const char *name, uint64_t bytes_max,
                     const struct model_crew *crew, struct model_adapter_stamp stamps[2]) {
    int fd = -1;
    struct model_stat before = {0};
    struct stat after = {0};
    int error = model_file_open(dir, name, &fd, &before);
    if (error != 0) {
        return error;
    }
    error = before.bytes > bytes_max ? EFBIG : all_read(fd, before.bytes, crew, out);
    if (error == 0 && fstat(fd, &after) != 0) {
        error = errno;
    }
    (void)close(fd);
    if (error == 0) {
        struct model_stat then = model_stat_of(&after);
        stamp_add(&stamps[0], &before);
        stamp_add(&stamps[1], &then);
    }
    return error;
}

enum err model_adapter_files_read(struct model_adapter_files *out, int dir, uint64_t bytes_max,
                                  const struct model_crew *crew, struct err_text *why) {
    struct model_adapter_files f = {0};
    struct model_adapter_stamp stamps[2] = {0}; /* before and after */
    const char *name = MODEL_PEFT_FILE;
    int error = file_read(&f.config, dir, name, MODEL_PEFT_BYTES_MAX, crew, stamps);
    if (error == 0) {
        name = MODEL_ADAPTER_FILE;
        error = file_read(&f.weights, dir, name, bytes_max, crew, stamps);
    }
    if (error != 0) {
        model_adapter_files_deinit(&f);
        return error == ENOENT && strcmp(name, MODEL_ADAPTER_FILE) == 0
                   ? weights_missing(dir, why)
                   : file_error(name, error, why);
    }
    if (model_adapter_stamp_equal(&stamps[0], &stamps[1]) && stamp_settled(&stamps[0])) {
        f.stamp = stamps[0];
    }
    *out = f;
    return ERR_OK;
}

enum err model_adapter_files_hash(const struct model_adapter_files *f,
                                  char hex[POOL_REVISION_BYTES]) {
    EVP_MD_CTX *sha = model_sha_begin();
    if (sha == NULL) {
        return ERR_NO_MEMORY;
    }
    model_sha_part(sha, MODEL_PEFT_FILE, f->config.data, f->config.count);
    model_sha_part(sha, MODEL_ADAPTER_FILE, f->weights.data, f->weights.count);
    model_sha_hex(sha, hex);
    return ERR_OK;
}
