/* files.h - what tests of the model need of the file system: scratch folders and the goldens. */
#ifndef LORRY_TESTS_UNIT_MODEL_FILES_H
#define LORRY_TESTS_UNIT_MODEL_FILES_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

enum { PATH_BYTES = 4096 };

#define GOLDEN LORRY_SOURCE_DIR "/tests/golden/"

/* A fresh folder below $TMPDIR or /tmp. */
void scratch_make(char path[PATH_BYTES]);
/* Removes it with all that is in it. */
void scratch_remove(const char *path);

/* dir/name; name may be "" or hold a slash. */
void path_join(char out[PATH_BYTES], const char *dir, const char *name);
void file_write(const char *dir, const char *name, const void *data, size_t bytes);
void file_copy(const char *from_dir, const char *to_dir, const char *name);
/* malloc'ed, with a NUL behind. */
char *file_read(const char *dir, const char *name, size_t *bytes);

/* A JSON file that is known to be good. */
json_t *json_read(const char *dir, const char *name);

/* A safetensors file of a header and `data_bytes` bytes of zeros; malloc'ed. */
uint8_t *safetensors_make(const char *header, size_t data_bytes, size_t *bytes);

#endif
