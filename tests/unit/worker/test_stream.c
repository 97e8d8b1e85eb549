
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "worker/stream.h"

#define MODEL LORRY_SOURCE_DIR "/tests/golden/tiny-llama/model"

enum { TOKENS_MAX = 256 };

static struct text *tokenizer;

static int open_text(void **state) {
    (void)state;
    struct err_text why = {0};
    return text_open(&tokenizer, MODEL, &why) == ERR_OK ? 0 : -1;
}

static int close_text(void **state) {
    (void)state;
    text_close(tokenizer);
    return 0;
}

/* A job that has sampled the tokens of `text`, none of them fed yet. */
static uint32_t job_of(struct job *job, const char *text, const struct wire_str *stops,
                       size_t stop_count) {
    memset(job, 0, sizeof *job);
    job_reset(job, 0);
    job->output = calloc(TOKENS_MAX, sizeof *job->output);
    assert_non_null(job->output);
    size_t count = 0;
    struct err_text why = {0};
    assert_int_equal(
        text_encode(tokenizer, text, strlen(text), false, job->output, TOKENS_MAX, &count, &why),
        ERR_OK);
    job->wire.stop = stops;
    job->wire.stop_count = stop_count;
    return (uint32_t)count;
}

static void feed(struct job *job, uint32_t count) {
    atomic_store(&job->output_count, count);
    assert_int_equal(stream_advance(job, tokenizer), ERR_OK);
}

static void check_text(const struct job *job, const char *expected) {
    assert_int_equal(job->text_bytes, strlen(expected));
    assert_memory_equal(job->text, expected, strlen(expected));
}

static void release(struct job *job) {
    job->wire.stop = NULL; /* the test's */
    job->wire.stop_count = 0;
    job_reset(job, 0);
}

static void test_text_grows_token_by_token(void **state) {
    (void)state;
    struct job job;
    static const char text[] = "Hello, w\xc3\xb6rld! \xf0\x9f\x9a\x9a and more";
    uint32_t count = job_of(&job, text, NULL, 0);
    for (uint32_t i = 1; i <= count; i++) {
        size_t before = job.text_bytes;
        feed(&job, i);
        assert_true(job.text_bytes >= before);
        assert_int_equal(stream_safe_bytes(&job), job.text_bytes); /* nothing to hold back */
        assert_memory_equal(job.text, text, job.text_bytes);
    }
    assert_int_equal(stream_finish(&job, tokenizer), ERR_OK);
    check_text(&job, text);
    assert_int_equal(stream_tokens(&job), count);
    release(&job);
}

/* A stop string over token borders cuts exactly, and no part of it was ever safe to show. */
static void test_stop_string_cuts(void **state) {
    (void)state;
    struct job job;
    const struct wire_str stops[] = {{"never there", 11}, {"STOP", 4}};
    uint32_t count = job_of(&job, "one two STOP three", stops, 2);
    uint32_t fed = 0;
    while (fed < count && !job.stop_cut) {
        feed(&job, ++fed);
        assert_true(stream_safe_bytes(&job) <= strlen("one two "));
    }
    assert_true(job.stop_cut);
    assert_true(atomic_load(&job.stop_found));
    assert_true(fed < count);
    check_text(&job, "one two ");
    assert_int_equal(stream_tokens(&job), fed);
    feed(&job, count); /* what was sampled meanwhile does not count */
    assert_int_equal(stream_finish(&job, tokenizer), ERR_OK);
    check_text(&job, "one two ");
    assert_int_equal(stream_tokens(&job), fed);
    release(&job);
}

/* Of several stop strings the one that begins first cuts. */
static void test_first_stop_string_wins(void **state) {
    (void)state;
    struct job job;
    const struct wire_str stops[] = {{"de", 2}, {"cdef", 4}};
    uint32_t count = job_of(&job, "abcdef", stops, 2);
    feed(&job, count);
    assert_true(job.stop_cut);
    assert_true(job.text_bytes == 3 || job.text_bytes == 2); /* by token borders */
    assert_memory_equal(job.text, "abc", job.text_bytes);
    release(&job);
}

/* A beginning of a stop string is held back, and shown once it turns out to be none. */
static void test_beginning_is_held_back(void **state) {
    (void)state;
    struct job job;
    const struct wire_str stops[] = {{"xyz", 3}};
    uint32_t count = job_of(&job, "ab xy", stops, 1);
    feed(&job, count);
    check_text(&job, "ab xy");
    assert_int_equal(stream_safe_bytes(&job), 3);
    release(&job);
    count = job_of(&job, "ab xyw", stops, 1);
    feed(&job, count);
    assert_int_equal(stream_safe_bytes(&job), 6);
    assert_false(job.stop_cut);
    release(&job);
}

/* A stop token ends the text and is not part of it, but counts as a token. */
static void test_stop_token_has_no_text(void **state) {
    (void)state;
    struct job job;
    uint32_t count = job_of(&job, "abq", NULL, 0);
    job.sampling.stop_count = 1;
    job.sampling.stop[0] = job.output[count - 1];
    feed(&job, count);
    assert_int_equal(stream_finish(&job, tokenizer), ERR_OK);
    assert_true(job.text_bytes < 3);
    assert_int_equal(stream_tokens(&job), count);
    release(&job);
}

static void test_no_tokens_no_text(void **state) {
    (void)state;
    struct job job;
    (void)job_of(&job, "abc", NULL, 0);
    assert_int_equal(stream_finish(&job, tokenizer), ERR_OK);
    assert_int_equal(job.text_bytes, 0);
    assert_int_equal(stream_tokens(&job), 0);
    release(&job);
}

/* ---- every family of tokenizers ------------------------------------------------------------ */

#define FAMILIES LORRY_SOURCE_DIR "/tests/golden/text/"

static const char *const family_dirs[] = {
    FAMILIES "bytelevel",       FAMILIES "sentencepiece", FAMILIES "metaspace-first",
    FAMILIES "metaspace-never", FAMILIES "llama3",        FAMILIES "qwen",
    FAMILIES "tekken",          FAMILIES "unigram",       FAMILIES "wordpiece"};

static const char *const family_texts[] = {
    "one two STOP three, STOP four",
    "na\u00efve Gr\u00f6\u00dfe \u6f22\u5b57 \u2014 \u041f\u0440\u0438\u0432\u0435\u0442 "
    "\U0001f600\U0001f44d\U0001f3fd!",
    "\n\n  def f(x):\n\treturn x * 12345  # <0x0A>\r\n"};

/* The whole text that the tokens of `text` give; the caller's. */
static char *full_text(const char *text) {
    struct job job;
    uint32_t count = job_of(&job, text, NULL, 0);
    feed(&job, count);
    assert_int_equal(stream_finish(&job, tokenizer), ERR_OK);
    char *full = calloc(1, job.text_bytes + 1);
    assert_non_null(full);
    memcpy(full, job.text, job.text_bytes);
    release(&job);
    return full;
}

/* Tokens come one by one: what may be shown grows, never goes beyond the cut, and is all of it. */
static void check_stop(const char *text, const char *full, struct wire_str stop) {
    const struct wire_str stops[] = {{"never there", 11}, stop};
    const char *found = memmem(full, strlen(full), stop.data, stop.bytes);
    assert_non_null(found);
    size_t cut = (size_t)(found - full);
    struct job job;
    uint32_t count = job_of(&job, text, stops, 2);
    size_t safe = 0;
    for (uint32_t fed = 1; fed <= count && !job.stop_cut; fed++) {
        feed(&job, fed);
        size_t now = stream_safe_bytes(&job);
        assert_true(now >= safe && now <= cut);
        safe = now;
    }
    assert_int_equal(stream_finish(&job, tokenizer), ERR_OK);
    assert_true(job.stop_cut);
    assert_int_equal(job.text_bytes, cut);
    assert_memory_equal(job.text, full, cut);
    release(&job);
}

/* Every part of the text of up to 24 bytes, from whole character to whole character, as stop. */
static void check_all_stops(const char *text) {
    char *full = full_text(text);
    size_t bytes = strlen(full);
    assert_true(bytes > 20);
    for (size_t from = 0; from < bytes; from++) {
        static const size_t lengths[] = {1, 2, 3, 4, 7, 12, 24};
        for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
            size_t to = from + lengths[i];
            bool whole = to <= bytes && ((unsigned char)full[from] & 0xc0) != 0x80 &&
                         ((unsigned char)full[to] & 0xc0) != 0x80;
            if (whole) {
                check_stop(text, full, (struct wire_str){full + from, to - from});
            }
        }
    }
    free(full);
}

static void test_families_stop_at_every_place(void **state) {
    (void)state;
    struct text *kept = tokenizer;
    for (size_t i = 0; i < sizeof family_dirs / sizeof family_dirs[0]; i++) {
        struct err_text why = {0};
        assert_int_equal(text_open(&tokenizer, family_dirs[i], &why), ERR_OK);
        for (size_t k = 0; k < sizeof family_texts / sizeof family_texts[0]; k++) {
            check_all_stops(family_texts[k]);
        }
        text_close(tokenizer);
    }
    tokenizer = kept;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_grows_token_by_token),
        cmocka_unit_test(test_stop_string_cuts),
        cmocka_unit_test(test_first_stop_string_wins),
        cmocka_unit_test(test_beginning_is_held_back),
        cmocka_unit_test(test_stop_token_has_no_text),
        cmocka_unit_test(test_no_tokens_no_text),
        cmocka_unit_test(test_families_stop_at_every_place),
    };
    return cmocka_run_group_tests(tests, open_text, close_text);
}
