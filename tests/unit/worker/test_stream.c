
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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_grows_token_by_token),
        cmocka_unit_test(test_stop_string_cuts),
        cmocka_unit_test(test_first_stop_string_wins),
        cmocka_unit_test(test_beginning_is_held_back),
        cmocka_unit_test(test_stop_token_has_no_text),
        cmocka_unit_test(test_no_tokens_no_text),
    };
    return cmocka_run_group_tests(tests, open_text, close_text);
}
