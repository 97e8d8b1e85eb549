/* golden.h - what the tests of text/ share: golden files (tests/golden/text/generate.py), folders
 * to open. Include after cmocka.h. */
#ifndef LORRY_TESTS_TEXT_GOLDEN_H
#define LORRY_TESTS_TEXT_GOLDEN_H

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "text/text.h"

#define GOLDEN_DIR LORRY_SOURCE_DIR "/tests/golden/text"

/* The tokenizers under GOLDEN_DIR that have an encode.jsonl and a decode.jsonl; smollm2's
 * tokenizer.json is the model's own. */
static const char *const FAMILIES[] = {
    "smollm2",          "bytelevel",       "sentencepiece", "metaspace-first",
    "metaspace-always", "metaspace-never", "llama3",        "qwen",
    "tekken",           "unigram",         "wordpiece"};
enum { FAMILY_COUNT = sizeof(FAMILIES) / sizeof(FAMILIES[0]), CRC_DIGITS = 8 };

/* Of the texts and conversations every one, but under the address sanitizer, which makes the
 * library's many small allocations slow and sees nothing inside it, every eighth. */
#ifdef __SANITIZE_ADDRESS__
enum { GOLDEN_STEP = 8 };
#else
enum { GOLDEN_STEP = 1 };
#endif

struct buffer { /* text that grows; zero it before first use */
    char *bytes;
    size_t used;
    size_t room;
};

static inline void buffer_append(struct buffer *b, const char *bytes, size_t count) {
    if (b->used + count + 1 > b->room) {
        b->room = 2 * (b->used + count + 1);
        b->bytes = realloc(b->bytes, b->room);
        assert_non_null(b->bytes);
    }
    if (count > 0) {
        memcpy(b->bytes + b->used, bytes, count);
    }
    b->used += count;
    b->bytes[b->used] = '\0';
}

/* CRC-32 as zlib's: go on from `crc`, 0 at first. */
static inline uint32_t crc32_of(uint32_t crc, const void *data, size_t bytes) {
    crc = ~crc;
    for (const unsigned char *p = data; bytes > 0; bytes--, p++) {
        crc ^= *p;
        for (int bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ ((crc & 1) != 0 ? 0xedb88320 : 0);
        }
    }
    return ~crc;
}

/* The goldens' ids are little-endian. */
static inline uint32_t crc32_of_ids(uint32_t crc, const uint32_t *ids, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const unsigned char bytes[4] = {(unsigned char)ids[i], (unsigned char)(ids[i] >> 8),
                                        (unsigned char)(ids[i] >> 16),
                                        (unsigned char)(ids[i] >> 24)};
        crc = crc32_of(crc, bytes, sizeof(bytes));
    }
    return crc;
}

/* The CRC at `index` in a string of them. */
static inline uint32_t golden_crc(const json_t *digits, size_t index) {
    assert_true(json_string_length(digits) >= (index + 1) * CRC_DIGITS);
    char one[CRC_DIGITS + 1] = "";
    memcpy(one, json_string_value(digits) + index * CRC_DIGITS, CRC_DIGITS);
    return (uint32_t)strtoul(one, NULL, 16);
}

static inline void assert_same_text(const char *got, size_t got_bytes, const json_t *want) {
    assert_true(json_is_string(want));
    assert_string_equal(got, json_string_value(want)); /* shows both */
    assert_int_equal(got_bytes, json_string_length(want));
    assert_memory_equal(got, json_string_value(want), got_bytes);
}

/* All lines of a golden file as an array; the caller's until json_decref(). */
static inline json_t *golden_lines(const char *name) {
    char path[512];
    (void)snprintf(path, sizeof(path), "%s/%s", GOLDEN_DIR, name);
    FILE *file = fopen(path, "rbe");
    if (file == NULL) {
        fail_msg("open %s: %s", path, strerror(errno));
        abort();
    }
    json_t *lines = json_array();
    char *line = NULL;
    size_t room = 0;
    ssize_t used;
    while ((used = getline(&line, &room, file)) > 0) {
        json_error_t error;
        json_t *row = json_loadb(line, (size_t)used, JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
        if (row == NULL) {
            fail_msg("%s line %zu: %s", path, json_array_size(lines) + 1, error.text);
        }
        assert_int_equal(json_array_append_new(lines, row), 0);
    }
    free(line);
    (void)fclose(file);
    assert_true(json_array_size(lines) > 0);
    return lines;
}

static inline struct text *open_text(const char *dir) {
    struct text *t = NULL;
    struct err_text why = {0};
    enum err e = text_open(&t, dir, &why);
    if (e != ERR_OK) {
        fail_msg("text_open(%s): %s: %s", dir, err_name(e), why.message);
    }
    return t;
}

/* SmolLM2-135M-Instruct, which tools/setup has put there. */
static inline struct text *open_model(void) {
    const char *dir = getenv("LORRY_TEST_MODEL_DIR");
    char path[512];
    if (dir == NULL) {
        const char *home = getenv("HOME");
        assert_non_null(home);
        (void)snprintf(path, sizeof(path), "%s/.cache/lorry/models/SmolLM2-135M-Instruct", home);
        dir = path;
    }
    return open_text(dir);
}

/* One of FAMILIES, or another folder under GOLDEN_DIR. */
static inline struct text *open_golden(const char *name) {
    if (strcmp(name, "smollm2") == 0) {
        return open_model();
    }
    char path[512];
    (void)snprintf(path, sizeof(path), "%s/%s", GOLDEN_DIR, name);
    return open_text(path);
}

/* A new folder under the build's; removed by scratch_remove(). */
static inline void scratch_make(char *path, size_t room) {
    (void)snprintf(path, room, "%s/text-test-XXXXXX", LORRY_BINARY_DIR);
    assert_non_null(mkdtemp(path));
}

static inline void scratch_write(const char *dir, const char *name, const char *bytes,
                                 size_t count) {
    char path[512];
    (void)snprintf(path, sizeof(path), "%s/%s", dir, name);
    FILE *file = fopen(path, "wbe");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, count, file), count);
    assert_int_equal(fclose(file), 0);
}

/* Puts a link to a golden file into the folder, under the same name. */
static inline void scratch_link(const char *dir, const char *from, const char *name) {
    char path[512];
    char target[512];
    (void)snprintf(path, sizeof(path), "%s/%s", dir, name);
    (void)snprintf(target, sizeof(target), "%s/%s/%s", GOLDEN_DIR, from, name);
    assert_int_equal(symlink(target, path), 0);
}

static inline void scratch_remove(const char *dir) {
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json",
                                        "special_tokens_map.json", "chat_template.jinja"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char path[512];
        (void)snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
        assert_true(unlink(path) == 0 || rmdir(path) == 0 || errno == ENOENT);
    }
    assert_int_equal(rmdir(dir), 0);
}

#endif
