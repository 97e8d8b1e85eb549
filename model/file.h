/* file.h - reading untrusted files, and their hash.
 *
 * Nothing here maps a file: one that is cut short while it is mapped kills the process by SIGBUS,
 * and an adapter folder belongs to somebody else. The base model is mapped (weights.c). */
#ifndef LORRY_MODEL_FILE_H
#define LORRY_MODEL_FILE_H

#include <openssl/evp.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "base/err.h"

struct model_bytes {
    uint8_t *data; /* malloc'ed; NULL when empty */
    uint64_t count;
};

/* What of a regular file a caller may want to know before it reads. */
struct model_stat {
    uint64_t device, inode, bytes;
    int64_t changed_ns; /* the later of mtime and ctime */
};

struct model_stat model_stat_of(const struct stat *s);

/* Opens a regular file below `dir` for reading; never blocks on a FIFO or a device.
 * Returns 0 or errno; EINVAL is "not a regular file". */
NODISCARD int model_file_open(int dir, const char *name, int *fd, struct model_stat *stat);

/* Reads a whole file of at most `bytes_max`. Returns 0 or errno; EFBIG is "larger than that",
 * ESTALE "it changed its length meanwhile". `out` is written only on 0. */
NODISCARD int model_file_read(int dir, const char *name, uint64_t bytes_max,
                              struct model_bytes *out);
/* Reads exactly `count` bytes. Returns 0 or errno; ESTALE is "it ends before". Thread: any. */
NODISCARD int model_file_read_at(int fd, uint64_t offset, void *data, uint64_t count);
void model_bytes_free(struct model_bytes *b);

/* errno as a person reads it: the values above mean something else here than in strerror(). */
const char *model_file_error(int error, char *room, size_t room_bytes);

/* SHA-256 over named parts. begin() gives NULL without memory; hex() ends and frees it. */
EVP_MD_CTX *model_sha_begin(void);
void model_sha_part(EVP_MD_CTX *sha, const char *name, const void *data, uint64_t bytes);
void model_sha_hex(EVP_MD_CTX *sha, char hex[65]);

#endif
