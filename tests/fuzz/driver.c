/* driver.c - runs a fuzz target without a fuzzer: every file of a corpus, then mutations of each.
 *
 * driver CORPUS [MUTATIONS [SEED]]. The seed is printed; the same seed makes the same inputs. Each
 * file runs in a child process: however that dies, the input at fault is saved and named. */
#include <dirent.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/fuzz/fuzz.h"

enum { INPUT_BYTES_MAX = 1 << 20, MUTATIONS_DEFAULT = 500, GROWTH_BYTES = 64 };

static uint64_t random_next(uint64_t *state) { /* splitmix64 */
    uint64_t z = *state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return z ^ z >> 31;
}

static size_t random_below(uint64_t *state, size_t bound) {
    return bound == 0 ? 0 : (size_t)(random_next(state) % bound);
}

/* Shared with the child: what it runs at the moment. */
struct current {
    size_t bytes;
    uint8_t data[INPUT_BYTES_MAX + GROWTH_BYTES];
};

/* An exact copy on the heap, so that the address sanitizer sees a read behind the end. */
static void run_one(struct current *now) {
    uint8_t *copy = malloc(now->bytes > 0 ? now->bytes : 1);
    if (copy == NULL) {
        perror("driver");
        exit(1);
    }
    memcpy(copy, now->data, now->bytes);
    (void)LLVMFuzzerTestOneInput(copy, now->bytes);
    free(copy);
}

/* One small change in place; returns the new length. */
static size_t mutate(uint8_t *data, size_t bytes, uint64_t *state) {
    static const uint8_t telling[] = {0x00, 0x01, 0x7f, 0x80, 0xc0, 0xc1, 0xc4, 0xd9, 0xdb, 0xdc,
                                      0xdd, 0xde, 0xdf, 0xff, '"',  '\\', '{',  '}',  '[',  ']'};
    size_t at = random_below(state, bytes);
    size_t count = 1 + random_below(state, 8);
    switch (random_below(state, 6)) {
    case 0: /* flip a bit */
        data[at] = (uint8_t)(data[at] ^ 1u << random_below(state, 8));
        return bytes;
    case 1: /* a byte that means something */
        data[at] = telling[random_below(state, sizeof telling)];
        return bytes;
    case 2: /* any byte */
        data[at] = (uint8_t)random_next(state);
        return bytes;
    case 3: /* cut off */
        return at > 0 ? at : bytes;
    case 4: /* take some out */
        count = count < bytes - at ? count : bytes - at - 1;
        memmove(data + at, data + at + count, bytes - at - count);
        return bytes - count;
    default: /* say some twice */
        count = count < bytes - at ? count : bytes - at;
        memmove(data + at + count, data + at, bytes - at);
        return bytes + count;
    }
}

static size_t read_file(const char *path, uint8_t *data, size_t room) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        exit(1);
    }
    size_t bytes = fread(data, 1, room, file);
    (void)fclose(file);
    return bytes;
}

static void run_file(const char *path, struct current *now, long mutations, uint64_t state) {
    static uint8_t seed[INPUT_BYTES_MAX];
    size_t bytes = read_file(path, seed, sizeof seed);
    memcpy(now->data, seed, bytes);
    now->bytes = bytes;
    run_one(now);
    for (long i = 0; i < mutations && bytes > 0; i++) {
        memcpy(now->data, seed, bytes);
        now->bytes = bytes;
        for (size_t n = 1 + random_below(&state, 4); n > 0; n--) { /* each adds 8 bytes at most */
            now->bytes = mutate(now->data, now->bytes, &state);
        }
        run_one(now);
    }
}

/* False when the child died; its last input is then saved. */
static bool run_child(const char *path, struct current *now, long mutations, uint64_t state) {
    int status = 0;
    (void)fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        run_file(path, now, mutations, state);
        exit(0); /* with the leak check */
    }
    if (child < 0 || waitpid(child, &status, 0) != child) {
        perror("driver");
        exit(1);
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        return true;
    }
    char name[64];
    (void)snprintf(name, sizeof name, "fuzz-fault-%ld", (long)child);
    FILE *file = fopen(name, "wb");
    if (file != NULL) {
        (void)fwrite(now->data, 1, now->bytes, file);
        (void)fclose(file);
    }
    fprintf(stderr, "%s or a mutation of it failed: the last input is in ./%s\n", path, name);
    return false;
}

static int by_name(const struct dirent **a, const struct dirent **b) {
    return strcmp((*a)->d_name, (*b)->d_name);
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: %s CORPUS [MUTATIONS [SEED]]\n", argv[0]);
        return 2;
    }
    long mutations = argc > 2 ? strtol(argv[2], NULL, 10) : MUTATIONS_DEFAULT;
    uint64_t seed = argc > 3 ? strtoull(argv[3], NULL, 10) : 1;
    struct current *now =
        mmap(NULL, sizeof *now, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (now == MAP_FAILED) {
        perror("driver");
        return 1;
    }
    printf("seed %" PRIu64 ", %ld mutations a file\n", seed, mutations);
    struct dirent **names = NULL;
    int count = scandir(argv[1], &names, NULL, by_name);
    int files = 0;
    int faults = 0;
    for (int i = 0; i < count; i++) {
        char path[4096];
        struct stat info;
        (void)snprintf(path, sizeof path, "%s/%s", argv[1], names[i]->d_name);
        if (stat(path, &info) == 0 && S_ISREG(info.st_mode)) {
            faults += run_child(path, now, mutations, seed + (uint64_t)files) ? 0 : 1;
            files++;
        }
        free(names[i]);
    }
    free(names);
    (void)munmap(now, sizeof *now);
    printf("%d files, %d at fault\n", files, faults);
    return files > 0 && faults == 0 ? 0 : 1; /* an empty corpus tests nothing */
}
