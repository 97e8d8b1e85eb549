/* test_stream.c - the pieces of a stream, joined, equal the decode of all tokens at once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "golden.h"

/* The length of the character that starts with this byte; 0 if none does. */
static size_t character_bytes(unsigned char first) {
    if (first < 0x80) {
        return 1;
    }
    if (first < 0xc2 || first > 0xf4) {
        return 0;
    }
    return first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
}

static void check_whole_characters(const char *piece, size_t bytes) {
    for (size_t i = 0; i < bytes;) {
        size_t length = character_bytes((unsigned char)piece[i]);
        assert_true(length > 0 && i + length <= bytes);
        for (size_t k = 1; k < length; k++) {
            assert_int_equal((unsigned char)piece[i + k] & 0xc0, 0x80);
        }
        i += length;
    }
}

/* Feeds ids, finishes, compares. The stream can be used again afterwards. */
static void check_stream(struct text_stream *s, const json_t *ids, const json_t *want) {
    struct buffer all = {0};
    buffer_append(&all, "", 0);
    const char *piece = NULL;
    size_t bytes = 0;
    size_t i;
    const json_t *id;
    json_array_foreach(ids, i, id) {
        uint32_t token = (uint32_t)json_integer_value(id);
        assert_int_equal(text_stream_push(s, token, &piece, &bytes), ERR_OK);
        check_whole_characters(piece, bytes);
        buffer_append(&all, piece, bytes);
    }
    assert_int_equal(text_stream_finish(s, &piece, &bytes), ERR_OK);
    check_whole_characters(piece, bytes);
    buffer_append(&all, piece, bytes);
    assert_same_text(all.bytes, all.used, want);
    free(all.bytes);
}

/* rows: [[ids, text], …]; all through one stream. */
static void check_rows(const struct text *t, const json_t *rows) {
    struct text_stream *s = NULL;
    assert_int_equal(text_stream_open(&s, t), ERR_OK);
    size_t i;
    const json_t *row;
    json_array_foreach(rows, i, row) {
        check_stream(s, json_array_get(row, 0), json_array_get(row, 1));
    }
    text_stream_close(s);
}

static void families_stream_as_decoded(void **state) {
    (void)state;
    for (size_t i = 0; i < FAMILY_COUNT; i++) {
        char name[128];
        (void)snprintf(name, sizeof(name), "%s/decode.jsonl", FAMILIES[i]);
        json_t *rows = golden_lines(name);
        assert_true(json_array_size(rows) >= 100);
        struct text *t = open_golden(FAMILIES[i]);
        check_rows(t, rows);
        text_close(t);
        json_decref(rows);
    }
}

/* One text with its special tokens, encoded and streamed back. */
static uint32_t crc_of_streamed(const struct text *t, struct text_stream *s, const json_t *string) {
    static uint32_t tokens[65536];
    size_t count = 0;
    assert_int_equal(text_encode(t, json_string_value(string), json_string_length(string), true,
                                 tokens, sizeof(tokens) / sizeof(tokens[0]), &count, NULL),
                     ERR_OK);
    uint32_t crc = 0;
    for (size_t i = 0; i <= count; i++) {
        const char *piece = NULL;
        size_t bytes = 0;
        assert_int_equal(i < count ? text_stream_push(s, tokens[i], &piece, &bytes)
                                   : text_stream_finish(s, &piece, &bytes),
                         ERR_OK);
        check_whole_characters(piece, bytes);
        crc = crc32_of(crc, piece, bytes);
    }
    return crc;
}

static void check_texts(const char *family, const json_t *strings) {
    char name[128];
    (void)snprintf(name, sizeof(name), "%s/encode.jsonl", family);
    json_t *lines = golden_lines(name);
    struct text *t = open_golden(family);
    struct text_stream *s = NULL;
    assert_int_equal(text_stream_open(&s, t), ERR_OK);
    size_t i;
    const json_t *string;
    json_array_foreach(strings, i, string) {
        if (i % GOLDEN_STEP == 0 &&
            crc_of_streamed(t, s, string) != golden_crc(json_array_get(lines, 1), i)) {
            fail_msg("%s: string %zu streams otherwise: %s", family, i, json_string_value(string));
        }
    }
    text_stream_close(s);
    text_close(t);
    json_decref(lines);
}

static void families_stream_texts_back(void **state) {
    (void)state;
    json_t *strings = golden_lines("strings.jsonl");
    for (size_t i = 0; i < FAMILY_COUNT; i++) {
        check_texts(FAMILIES[i], strings);
    }
    json_decref(strings);
}

/* decoders/tokenizer.json with another decoder. */
static struct text *open_decoder(json_t *decoder) {
    json_error_t error;
    json_t *tokenizer = json_load_file(GOLDEN_DIR "/decoders/tokenizer.json", 0, &error);
    assert_non_null(tokenizer);
    assert_int_equal(json_object_set(tokenizer, "decoder", decoder), 0);
    char *bytes = json_dumps(tokenizer, 0);
    assert_non_null(bytes);
    char dir[256];
    scratch_make(dir, sizeof(dir));
    scratch_write(dir, "tokenizer.json", bytes, strlen(bytes));
    struct text *t = open_text(dir);
    scratch_remove(dir);
    free(bytes);
    json_decref(tokenizer);
    return t;
}

static void every_decoder_streams_as_decoded(void **state) {
    (void)state;
    json_t *lines = golden_lines("decoders/decode.jsonl");
    assert_true(json_array_size(lines) >= 20);
    size_t i;
    json_t *line;
    json_array_foreach(lines, i, line) {
        struct text *t = open_decoder(json_array_get(line, 0));
        check_rows(t, json_array_get(line, 1));
        text_close(t);
    }
    json_decref(lines);
}

static uint32_t id_of(const struct text *t, const char *token) {
    uint32_t id = text_token_id(t, token, strlen(token));
    assert_true(id != UINT32_MAX);
    return id;
}

static void pieces_come_as_early_as_they_can(void **state) {
    (void)state;
    struct text *t = open_golden("bytelevel");
    struct text_stream *s = NULL;
    assert_int_equal(text_stream_open(&s, t), ERR_OK);
    const char *piece = NULL;
    size_t bytes = 0;
    /* The three bytes of the euro sign, then a letter. */
    static const char *const held[] = {"\u00e2", "\u0124"};
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(text_stream_push(s, id_of(t, held[i]), &piece, &bytes), ERR_OK);
        assert_int_equal(bytes, 0);
    }
    assert_int_equal(text_stream_push(s, id_of(t, "\u00ac"), &piece, &bytes), ERR_OK);
    assert_int_equal(bytes, 3);
    assert_memory_equal(piece, "\u20ac", 3);
    assert_int_equal(text_stream_push(s, id_of(t, "a"), &piece, &bytes), ERR_OK);
    assert_int_equal(bytes, 1);
    /* A character that stays incomplete; a special token between its bytes is nothing. */
    assert_int_equal(text_stream_push(s, id_of(t, "\u00e2"), &piece, &bytes), ERR_OK);
    assert_int_equal(text_stream_push(s, id_of(t, "<|im_end|>"), &piece, &bytes), ERR_OK);
    assert_int_equal(bytes, 0);
    assert_int_equal(text_stream_finish(s, &piece, &bytes), ERR_OK);
    assert_int_equal(bytes, 3);
    assert_memory_equal(piece, "\ufffd", 3);
    assert_int_equal(text_stream_finish(s, &piece, &bytes), ERR_OK);
    assert_int_equal(bytes, 0);
    text_stream_close(s);
    text_close(t);
}

static void padded_rows_decode_to_nothing(void **state) {
    (void)state;
    struct text *t = open_golden("sentencepiece");
    struct text_stream *s = NULL;
    assert_int_equal(text_stream_open(&s, t), ERR_OK);
    const uint32_t ids[] = {text_vocab_count(t), text_vocab_count(t) + 1, UINT32_MAX};
    for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
        const char *piece = NULL;
        size_t bytes = 1;
        assert_int_equal(text_stream_push(s, ids[i], &piece, &bytes), ERR_OK);
        assert_int_equal(bytes, 0);
    }
    text_stream_close(s);
    text_stream_close(NULL);
    text_close(t);
}

/* As transformers: what tokenizer_config.json names is special even if tokenizer.json does not say
 * so; but a token that the vocabulary lacks does not come to be. */
static void configured_specials_are_skipped(void **state) {
    (void)state;
    static const char config[] =
        "{\"eos_token\": \"bc\","
        " \"additional_special_tokens\": [\"nowhere\", {\"content\": \"日\"}],"
        " \"added_tokens_decoder\": {\"1\": {\"content\": \"a\", \"special\": true},"
        " \"9\": {\"content\": \"HH\", \"special\": false}}}";
    struct text *plain = open_golden("decoders");
    char dir[256];
    scratch_make(dir, sizeof(dir));
    scratch_link(dir, "decoders", "tokenizer.json");
    scratch_write(dir, "tokenizer_config.json", config, strlen(config));
    struct text *t = open_text(dir);
    scratch_remove(dir);
    assert_int_equal(text_vocab_count(t), text_vocab_count(plain));
    struct text_stream *s = NULL;
    assert_int_equal(text_stream_open(&s, t), ERR_OK);
    static const struct {
        const char *token;
        const char *piece;
    } steps[] = {{"a", ""}, {"bc", ""}, {"日", ""}, {"HH", "HH"}, {".", " ."}};
    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
        const char *piece = NULL;
        size_t bytes = 0;
        assert_int_equal(text_stream_push(s, id_of(t, steps[i].token), &piece, &bytes), ERR_OK);
        assert_int_equal(bytes, strlen(steps[i].piece));
        assert_memory_equal(piece, steps[i].piece, bytes);
    }
    text_stream_close(s);
    text_close(t);
    text_close(plain);
}

static void stream_outlives_its_text(void **state) {
    (void)state;
    struct text *t = open_golden("bytelevel");
    struct text_stream *s = NULL;
    uint32_t id = id_of(t, "a");
    assert_int_equal(text_stream_open(&s, t), ERR_OK);
    text_close(t);
    const char *piece = NULL;
    size_t bytes = 0;
    assert_int_equal(text_stream_push(s, id, &piece, &bytes), ERR_OK);
    assert_int_equal(bytes, 1);
    text_stream_close(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(families_stream_as_decoded),
        cmocka_unit_test(families_stream_texts_back),
        cmocka_unit_test(every_decoder_streams_as_decoded),
        cmocka_unit_test(pieces_come_as_early_as_they_can),
        cmocka_unit_test(padded_rows_decode_to_nothing),
        cmocka_unit_test(configured_specials_are_skipped),
        cmocka_unit_test(stream_outlives_its_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
