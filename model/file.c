#include "model/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"

static int64_t nanoseconds(const struct timespec *t) {
    return (int64_t)t->tv_sec * 1000000000 + t->tv_nsec;
}

struct model_stat model_stat_of(const struct stat *s) {
    int64_t modified = nanoseconds(&s->st_mtim);
    int64_t changed = nanoseconds(&s->st_ctim); /* cp -p writes into the same inode, and sets
                                                   the old mtime */
    return (struct model_stat){.device = s->st_dev,
                               .inode = s->st_ino,
                               .bytes = (uint64_t)s->st_size,
                               .changed_ns = modified > changed ? modified : changed};
}

int model_file_open(int dir, const char *name, int *fd, struct model_stat *stat) {
    /* O_NONBLOCK: opening a FIFO that nobody writes would wait for ever. */
    int opened = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (opened < 0) {
        return errno == ENXIO ? EINVAL : errno; /* a socket */
    }
    struct stat s;
    if (fstat(opened, &s) != 0) {
        int error = errno;
        (void)close(opened);
        return error;
    }
    if (!S_ISREG(s.st_mode)) {
        (void)close(opened);
        return EINVAL;
    }
    *stat = model_stat_of(&s);
    *fd = opened;
    return 0;
}

int model_file_read_at(int fd, uint64_t offset, void *data, uint64_t count) {
    uint8_t *at = data;
    while (count > 0) {
        ssize_t got = pread(fd, at, count, (off_t)offset);
        if (got < 0) {
            if (errno == EINTR) {
                continue;
            }
            return errno;
        }
        if (got == 0) {
            return ESTALE;
        }
        at += got;
        offset += (uint64_t)got;
        count -= (uint64_t)got;
    }
    return 0;
}

int model_file_read(int dir, const char *name, uint64_t bytes_max, struct model_bytes *out) {
    int fd = -1;
    struct model_stat stat = {0};
    int error = model_file_open(dir, name, &fd, &stat);
    if (error != 0) {
        return error;
    }
    uint8_t *data = NULL;
    if (stat.bytes > bytes_max) {
        error = EFBIG;
        goto out;
    }
    data = malloc(stat.bytes > 0 ? stat.bytes : 1);
    if (data == NULL) {
        error = ENOMEM;
        goto out;
    }
    error = model_file_read_at(fd, 0, data, stat.bytes);
    uint8_t more = 0;
    if (error == 0 && pread(fd, &more, 1, (off_t)stat.bytes) != 0) {
        error = ESTALE;
    }
    if (error == 0) {
        *out = (struct model_bytes){.data = data, .count = stat.bytes};
        data = NULL;
    }
out:
    free(data);
    (void)close(fd);
    return error;
}

void model_bytes_free(struct model_bytes *b) {
    free(b->data);
    *b = (struct model_bytes){0};
}

const char *model_file_error(int error, char *room, size_t room_bytes) {
    switch (error) {
    case EINVAL:
        return "it is not a regular file";
    case EFBIG:
        return "it is larger than it may be";
    case ESTALE:
        return "it changed while it was read";
    default:
        return strerror_r(error, room, room_bytes); /* GNU's: returns the text */
    }
}

EVP_MD_CTX *model_sha_begin(void) {
    EVP_MD_CTX *sha = EVP_MD_CTX_new();
    if (sha != NULL && EVP_DigestInit_ex(sha, EVP_sha256(), NULL) != 1) {
        EVP_MD_CTX_free(sha);
        sha = NULL;
    }
    return sha;
}

void model_sha_part(EVP_MD_CTX *sha, const char *name, const void *data, uint64_t bytes) {
    uint8_t length[8];
    for (unsigned i = 0; i < sizeof length; i++) {
        length[i] = (uint8_t)(bytes >> (8 * i));
    }
    /* The terminator and the length keep parts from running into each other. */
    CHECK(EVP_DigestUpdate(sha, name, strlen(name) + 1) == 1);
    CHECK(EVP_DigestUpdate(sha, length, sizeof length) == 1);
    CHECK(EVP_DigestUpdate(sha, data, bytes) == 1);
}

void model_sha_hex(EVP_MD_CTX *sha, char hex[65]) {
    uint8_t digest[32];
    unsigned bytes = 0;
    CHECK(EVP_DigestFinal_ex(sha, digest, &bytes) == 1);
    CHECK(bytes == sizeof digest);
    EVP_MD_CTX_free(sha);
    for (unsigned i = 0; i < sizeof digest; i++) {
        (void)snprintf(hex + (size_t)2 * i, 3, "%02x", digest[i]);
    }
}
