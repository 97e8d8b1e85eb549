/* test_admit.c - what becomes of a prompt and of messages: tokens, or an error that says why. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker/admit.h"

#define GOLDEN LORRY_SOURCE_DIR "/tests/golden/text/"

struct fixture {
    struct text *text;
    struct metrics *metrics;
    struct config config;
    struct model_facts model;
    struct admit_options options;
    struct source_record record;
    struct job job;
};

static void link_file(const char *dir, const char *name, const char *family, const char *file) {
    char path[512];
    char target[512];
    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    (void)snprintf(target, sizeof target, GOLDEN "%s/%s", family, file);
    (void)unlink(path);
    if (family[0] != '\0') {
        assert_int_equal(symlink(target, path), 0);
    }
}

/* A folder with a family's tokenizer and one of the golden templates. */
static struct text *open_family(const char *family, const char *template) {
    char dir[256];
    char file[64];
    (void)snprintf(dir, sizeof dir, "%s/admit-test-XXXXXX", LORRY_BINARY_DIR);
    assert_non_null(mkdtemp(dir));
    (void)snprintf(file, sizeof file, "%s.jinja", template);
    link_file(dir, "tokenizer.json", family, "tokenizer.json");
    link_file(dir, "tokenizer_config.json", family, "tokenizer_config.json");
    link_file(dir, "chat_template.jinja", "templates", file);
    struct text *text = NULL;
    struct err_text why = {0};
    assert_int_equal(text_open(&text, dir, &why), ERR_OK);
    link_file(dir, "tokenizer.json", "", "");
    link_file(dir, "tokenizer_config.json", "", "");
    link_file(dir, "chat_template.jinja", "", "");
    assert_int_equal(rmdir(dir), 0);
    return text;
}

static void open_fixture(struct fixture *f, const char *family, const char *template) {
    memset(f, 0, sizeof *f);
    f->text = open_family(family, template);
    assert_int_equal(metrics_open(&f->metrics, 4), ERR_OK);
    f->model.shape.positions = 4096;
    f->model.shape.vocab = text_vocab_count(f->text);
    f->options = (struct admit_options){.config = &f->config,
                                        .model = &f->model,
                                        .model_name = "base",
                                        .text = f->text,
                                        .metrics = f->metrics};
    job_reset(&f->job, 0);
}

/* Admits a job given as JSON. */
static void admit(struct fixture *f, const char *json) {
    f->record.value = (const uint8_t *)json;
    f->record.value_bytes = strlen(json);
    f->job.record = &f->record;
    admit_job(&f->options, &f->job);
    f->job.record = NULL; /* the fixture's */
}

static void close_fixture(struct fixture *f) {
    job_reset(&f->job, 0);
    metrics_close(f->metrics);
    text_close(f->text);
}

static size_t count_of(const struct job *job, uint32_t token) {
    size_t count = 0;
    for (uint32_t i = 0; i < job->prompt_count; i++) {
        count += job->prompt[i] == token ? 1 : 0;
    }
    return count;
}

/* The post-processor puts BOS in front of a prompt; of a chat the template has done so. */
static void test_bos_comes_once(void **state) {
    (void)state;
    static const struct {
        const char *family;
        const char *template;
        const char *bos;
    } cases[] = {
        {"llama3", "llama3", "<|begin_of_text|>"}, {"llama3", "llama31", "<|begin_of_text|>"},
        {"metaspace-first", "llama2", "<s>"},      {"metaspace-first", "mistral03", "<s>"},
        {"sentencepiece", "mistral01", "<s>"},     {"tekken", "nemo", "<s>"}};
    static const char *const jobs[] = {
        "{\"id\":\"a\",\"prompt\":\"Hello\"}",
        "{\"id\":\"b\",\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}]}"};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (size_t k = 0; k < 2; k++) {
            struct fixture f;
            open_fixture(&f, cases[i].family, cases[i].template);
            uint32_t bos = text_token_id(f.text, cases[i].bos, strlen(cases[i].bos));
            admit(&f, jobs[k]);
            assert_int_equal(f.job.error, ERR_OK);
            assert_true(f.job.prompt_count > 1);
            assert_int_equal(f.job.prompt[0], bos);
            assert_int_equal(count_of(&f.job, bos), 1);
            close_fixture(&f);
        }
    }
}

static void test_template_says_why(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f, "sentencepiece", "mistral01");
    admit(&f, "{\"id\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":\"a\"},"
              "{\"role\":\"user\",\"content\":\"b\"}]}");
    assert_int_equal(f.job.error, ERR_BAD_MESSAGE);
    assert_true(f.job.dead_letter);
    assert_string_equal(f.job.why.field, "messages");
    assert_non_null(strstr(f.job.why.message, "Roles have to alternate"));
    close_fixture(&f);
}

/* NFC makes two characters, six tokens, of three bytes: more tokens than bytes are no error. */
static void test_text_may_grow(void **state) {
    (void)state;
    struct fixture f;
    char json[1024];
    char prompt[256] = "";
    for (size_t i = 0; i < 60; i++) {
        memcpy(prompt + 3 * i, "\u0958", 3);
    }
    prompt[180] = '\0';
    (void)snprintf(json, sizeof json, "{\"id\":\"a\",\"prompt\":\"%s\"}", prompt);
    open_fixture(&f, "qwen", "qwen25");
    admit(&f, json);
    assert_int_equal(f.job.error, ERR_OK);
    assert_true(f.job.prompt_count > 180 + 16);
    uint32_t count = f.job.prompt_count;
    close_fixture(&f);

    open_fixture(&f, "qwen", "qwen25");
    f.model.shape.positions = count; /* and no room for an answer */
    admit(&f, json);
    assert_int_equal(f.job.error, ERR_PROMPT_TOO_LONG);
    assert_string_equal(f.job.why.field, "prompt");
    close_fixture(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bos_comes_once),
        cmocka_unit_test(test_template_says_why),
        cmocka_unit_test(test_text_may_grow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
