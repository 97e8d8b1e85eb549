#include "tests/unit/model/files.h"

#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"

void scratch_make(char path[PATH_BYTES]) {
    const char *root = getenv("TMPDIR");
    (void)snprintf(path, PATH_BYTES, "%s/lorry-model-XXXXXX", root == NULL ? "/tmp" : root);
    CHECK(mkdtemp(path) != NULL);
}

static int remove_one(const char *path, const struct stat *s, int type, struct FTW *walk) {
    (void)s;
    (void)type;
    (void)walk;
    return remove(path);
}

void scratch_remove(const char *path) {
    CHECK(nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS) == 0);
}

void path_join(char out[PATH_BYTES], const char *dir, const char *name) {
    int wrote = snprintf(out, PATH_BYTES, "%s/%s", dir, name);
    CHECK(wrote > 0 && wrote < PATH_BYTES);
}

void file_write(const char *dir, const char *name, const void *data, size_t bytes) {
    char path[PATH_BYTES];
    path_join(path, dir, name);
    FILE *f = fopen(path, "wb");
    CHECK(f != NULL);
    CHECK(fwrite(data, 1, bytes, f) == bytes);
    CHECK(fclose(f) == 0);
}

char *file_read(const char *dir, const char *name, size_t *bytes) {
    char path[PATH_BYTES];
    path_join(path, dir, name);
    FILE *f = fopen(path, "rb");
    CHECK(f != NULL);
    CHECK(fseek(f, 0, SEEK_END) == 0);
    long length = ftell(f);
    CHECK(length >= 0);
    rewind(f);
    char *data = malloc((size_t)length + 1);
    CHECK(data != NULL);
    CHECK(fread(data, 1, (size_t)length, f) == (size_t)length);
    CHECK(fclose(f) == 0);
    data[length] = '\0';
    *bytes = (size_t)length;
    return data;
}

void file_copy(const char *from_dir, const char *to_dir, const char *name) {
    size_t bytes = 0;
    char *data = file_read(from_dir, name, &bytes);
    file_write(to_dir, name, data, bytes);
    free(data);
}

json_t *json_read(const char *dir, const char *name) {
    char path[PATH_BYTES];
    path_join(path, dir, name);
    json_error_t error;
    json_t *root = json_load_file(path, 0, &error);
    if (root == NULL) {
        (void)fprintf(stderr, "%s: line %d: %s\n", path, error.line, error.text);
    }
    CHECK(root != NULL);
    return root;
}

uint8_t *safetensors_make(const char *header, size_t data_bytes, size_t *bytes) {
    size_t length = strlen(header);
    uint8_t *file = calloc(1, 8 + length + 1 + data_bytes); /* and the header's NUL, written over */
    CHECK(file != NULL);
    for (unsigned i = 0; i < 8; i++) {
        file[i] = (uint8_t)(length >> (8 * i));
    }
    memcpy(file + 8, header, length + 1);
    *bytes = 8 + length + data_bytes;
    return file;
}
