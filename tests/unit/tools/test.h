/* test.h - what the tests of tools/ share. */
#ifndef LORRY_TESTS_TOOLS_TEST_H
#define LORRY_TESTS_TOOLS_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BATCH_ID "01ARZ3NDEKTSV4RRFFQ69G5FAV"
#define RUN_A "01ARZ3NDEKTSV4RRFFQ69G5FAA"
#define RUN_B "01ARZ3NDEKTSV4RRFFQ69G5FAB"

/* A scratch folder that is the working folder from then on. */
static inline int scratch_enter(void **state) {
    char path[] = "/tmp/lorry-test-XXXXXX";
    assert_non_null(mkdtemp(path));
    assert_int_equal(chdir(path), 0);
    *state = strdup(path);
    return 0;
}

static inline int scratch_leave(void **state) {
    char command[256];
    assert_int_equal(chdir("/"), 0);
    (void)snprintf(command, sizeof command, "rm -rf '%s'", (char *)*state);
    assert_int_equal(system(command), 0);
    free(*state);
    return 0;
}

static inline void file_write(const char *path, const void *data, size_t bytes) {
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, bytes, f), bytes);
    assert_int_equal(fclose(f), 0);
}

static inline size_t file_read(const char *path, char *room, size_t room_bytes) {
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    size_t bytes = fread(room, 1, room_bytes - 1, f);
    room[bytes] = '\0';
    (void)fclose(f);
    return bytes;
}

#endif
