/* test_text.c - opening, errors as values, room, threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <sys/mman.h>

#include "golden.h"

#define HELLO "Hello, world! 123"

static void folder_tells_what_it_is(void **state) {
    (void)state;
    struct text *t = open_golden("bytelevel");
    const char *hash = text_hash(t);
    assert_int_equal(strlen(hash), 64);
    assert_int_equal(strspn(hash, "0123456789abcdef"), 64);
    struct text *again = open_golden("bytelevel");
    assert_string_equal(text_hash(again), hash);
    text_close(again);
    struct text *other = open_golden("sentencepiece");
    assert_string_not_equal(text_hash(other), hash);
    assert_true(text_has_chat_template(t));
    assert_false(text_has_chat_template(other));
    /* 600 trained tokens and two added ones */
    assert_int_equal(text_vocab_count(t), 602);
    assert_int_equal(text_token_id(t, "<|endoftext|>", 13), 0);
    assert_int_equal(text_token_id(t, "<repo_name>", 11), 600);
    assert_int_equal(text_token_id(t, "no such token", 13), UINT32_MAX);
    assert_int_equal(text_token_id(t, "\xff", 1), UINT32_MAX);
    assert_int_equal(text_token_id(t, NULL, 0), UINT32_MAX);
    text_close(other);
    text_close(t);
    text_close(NULL);
    text_release(NULL);
}

/* Opens `dir`, which must fail with `e` and a message that contains `words`. */
static void check_open_fails(const char *dir, enum err e, const char *words) {
    struct text *t = NULL;
    struct err_text why = {0};
    assert_int_equal(text_open(&t, dir, &why), e);
    assert_null(t);
    if (strstr(why.message, words) == NULL) {
        fail_msg("\"%s\" does not say \"%s\"", why.message, words);
    }
    assert_int_equal(text_open(&t, dir, NULL), e);
}

static void missing_files_are_named(void **state) {
    (void)state;
    char dir[256];
    scratch_make(dir, sizeof(dir));
    check_open_fails(dir, ERR_BAD_MODEL, "tokenizer.json");
    check_open_fails("/nonexistent/folder", ERR_BAD_MODEL, "/nonexistent/folder");
    check_open_fails("", ERR_BAD_MODEL, "tokenizer.json");
    char path[512];
    (void)snprintf(path, sizeof(path), "%s/tokenizer.json", dir);
    assert_int_equal(mkdir(path, 0700), 0);
    check_open_fails(dir, ERR_BAD_MODEL, "not a file");
    scratch_remove(dir);
}

static void damaged_tokenizers_are_refused(void **state) {
    (void)state;
    static const char *const damaged[] = {
        "",
        "{",
        "null",
        "[]",
        "{}",
        "\xff\xfe",
        "{\"model\": 1}",
        "{\"version\":\"1.0\",\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}}",
        "{\"version\":\"1.0\",\"added_tokens\":[],\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},"
        "\"merges\":[\"a b\"]}}",
        "{\"version\":\"1.0\",\"added_tokens\":[],\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},"
        "\"merges\":[]}}",
        "{\"version\":\"1.0\",\"added_tokens\":[],\"model\":{\"type\":\"WordLevel\",\"vocab\":"
        "{\"a\":4294967295},\"unk_token\":\"a\"}}",
        "{\"version\":\"1.0\",\"added_tokens\":[],\"pre_tokenizer\":{\"type\":\"Split\","
        "\"pattern\":"
        "{\"Regex\":\"(\"},\"behavior\":\"Isolated\",\"invert\":false},\"model\":{\"type\":\"BPE\","
        "\"vocab\":{\"a\":0},\"merges\":[]}}",
    };
    char dir[256];
    scratch_make(dir, sizeof(dir));
    for (size_t i = 0; i < sizeof(damaged) / sizeof(damaged[0]); i++) {
        scratch_write(dir, "tokenizer.json", damaged[i], strlen(damaged[i]));
        check_open_fails(dir, ERR_BAD_MODEL, "tokenizer.json");
    }
    scratch_remove(dir);
}

/* The good file cut short anywhere, or with one byte changed: an error or a tokenizer, never a
 * crash. */
static void no_damage_crashes(void **state) {
    (void)state;
    FILE *file = fopen(GOLDEN_DIR "/decoders/tokenizer.json", "rbe");
    assert_non_null(file);
    char bytes[4096];
    size_t count = fread(bytes, 1, sizeof(bytes), file);
    (void)fclose(file);
    assert_true(count > 100 && count < sizeof(bytes));
    /* In memory: a folder on disk made of this the slowest test of all. */
    char dir[256];
    char path[512];
    char target[64];
    scratch_make(dir, sizeof(dir));
    int fd = memfd_create("tokenizer.json", MFD_CLOEXEC);
    assert_true(fd >= 0);
    (void)snprintf(path, sizeof(path), "%s/tokenizer.json", dir);
    (void)snprintf(target, sizeof(target), "/proc/self/fd/%d", fd);
    assert_int_equal(symlink(target, path), 0);
    for (size_t i = 0; i < count; i++) {
        struct text *t = NULL;
        assert_int_equal(pwrite(fd, bytes, count, 0), count);
        assert_int_equal(ftruncate(fd, (off_t)i), 0);
        assert_int_equal(text_open(&t, dir, NULL), ERR_BAD_MODEL);
        char kept = bytes[i];
        bytes[i] = "0\"{}9"[i % 5];
        assert_int_equal(pwrite(fd, bytes, count, 0), count);
        bytes[i] = kept;
        enum err e = text_open(&t, dir, NULL);
        assert_true(e == ERR_OK || e == ERR_BAD_MODEL);
        if (e == ERR_OK) {
            text_close(t);
        }
    }
    (void)close(fd);
    scratch_remove(dir);
}

static void damaged_configurations_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *file;
        const char *bytes;
        const char *words;
    } cases[] = {
        {"tokenizer_config.json", "{", "tokenizer_config.json"},
        {"tokenizer_config.json", "[]", "not a JSON object"},
        {"tokenizer_config.json", "{\"chat_template\": 1}", "chat_template"},
        {"tokenizer_config.json", "{\"chat_template\": [{\"name\": \"default\"}]}", "default"},
        {"tokenizer_config.json", "{\"added_tokens_decoder\": {\"7\": {}}}", "7 has no content"},
        {"tokenizer_config.json", "{\"added_tokens_decoder\": {\"x\": {}}}", "x is not a token"},
        {"tokenizer_config.json", "{\"added_tokens_decoder\": {\"7\": 1}}", "7 is not an object"},
        {"tokenizer_config.json", "{\"added_tokens_decoder\": []}", "not an object"},
        {"special_tokens_map.json", "{", "special_tokens_map.json"},
        {"tokenizer_config.json", "{\"chat_template\": \"{% for %}\"}", "chat template"},
        {"chat_template.jinja", "{{ messages", "chat template"},
        {"chat_template.jinja", "{% endgeneration %}", "chat template"},
        {"chat_template.jinja", "\xff", "UTF-8"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char dir[256];
        scratch_make(dir, sizeof(dir));
        scratch_link(dir, "bytelevel", "tokenizer.json");
        scratch_write(dir, cases[i].file, cases[i].bytes, strlen(cases[i].bytes));
        check_open_fails(dir, ERR_BAD_MODEL, cases[i].words);
        scratch_remove(dir);
    }
}

static void room_is_respected(void **state) {
    (void)state;
    struct text *t = open_golden("bytelevel");
    uint32_t tokens[64];
    size_t count = 0;
    struct err_text why = {0};
    assert_int_equal(text_encode(t, HELLO, strlen(HELLO), false, NULL, 0, &count, &why),
                     ERR_NO_SPACE);
    assert_true(count > 2 && count < 64);
    size_t need = count;
    memset(tokens, 0xab, sizeof(tokens));
    assert_int_equal(text_encode(t, HELLO, strlen(HELLO), false, tokens, need - 1, &count, NULL),
                     ERR_NO_SPACE);
    assert_int_equal(count, need);
    assert_int_equal(tokens[0], 0xabababab);
    assert_int_equal(text_encode(t, HELLO, strlen(HELLO), false, tokens, need, &count, &why),
                     ERR_OK);
    assert_int_equal(count, need);
    assert_int_equal(tokens[need], 0xabababab);
    assert_true(tokens[need - 1] < text_vocab_count(t));
    text_close(t);
}

static void empty_text_has_only_specials(void **state) {
    (void)state;
    struct text *t = open_golden("bytelevel");
    uint32_t token = 0;
    size_t count = 7;
    assert_int_equal(text_encode(t, NULL, 0, false, NULL, 0, &count, NULL), ERR_OK);
    assert_int_equal(count, 0);
    assert_int_equal(text_encode(t, "", 0, true, &token, 1, &count, NULL), ERR_OK);
    assert_int_equal(count, 1);
    assert_int_equal(token, text_token_id(t, "<|im_start|>", 12));
    text_close(t);
}

/* bytelevel/tokenizer.json truncates to 16 and pads to 32. */
static void length_is_never_changed(void **state) {
    (void)state;
    struct text *t = open_golden("bytelevel");
    char spaced[200];
    for (size_t i = 0; i < sizeof(spaced); i++) {
        spaced[i] = i % 2 == 0 ? 'q' : '\n';
    }
    uint32_t tokens[256];
    size_t count = 0;
    assert_int_equal(text_encode(t, spaced, 200, false, tokens, 256, &count, NULL), ERR_OK);
    assert_int_equal(count, 200);
    assert_int_equal(text_encode(t, "q", 1, true, tokens, 256, &count, NULL), ERR_OK);
    assert_int_equal(count, 2);
    text_close(t);
}

static void bad_utf8_is_rejected(void **state) {
    (void)state;
    static const char *const bad[] = {"abc\xff", "\xc3", "\xed\xa0\x80", "\xf4\x90\x80\x80",
                                      "\xc0\x80"};
    struct text *t = open_golden("bytelevel");
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        uint32_t tokens[8];
        size_t count = 77;
        struct err_text why = {0};
        assert_int_equal(text_encode(t, bad[i], strlen(bad[i]), false, tokens, 8, &count, &why),
                         ERR_BAD_MESSAGE);
        assert_int_equal(count, 77);
        assert_non_null(strstr(why.message, "not UTF-8"));
        const struct text_message message = {
            .role = "user", .role_bytes = 4, .content = bad[i], .content_bytes = strlen(bad[i])};
        char *out = NULL;
        size_t bytes = 0;
        assert_int_equal(text_render_chat(t, &message, 1, &out, &bytes, &why), ERR_BAD_MESSAGE);
        assert_null(out);
        assert_string_equal(why.field, "messages");
        assert_non_null(strstr(why.message, "messages[0].content is not UTF-8"));
    }
    text_close(t);
}

/* Renders "Hi" with the template given; the folder has the small byte-level tokenizer. */
static enum err render_hi(const char *template, char **out, size_t *bytes, struct err_text *why) {
    const struct text_message hi = {
        .role = "user", .role_bytes = 4, .content = "Hi", .content_bytes = 2};
    char dir[256];
    scratch_make(dir, sizeof(dir));
    scratch_link(dir, "bytelevel", "tokenizer.json");
    scratch_link(dir, "bytelevel", "tokenizer_config.json");
    if (template != NULL) {
        scratch_write(dir, "chat_template.jinja", template, strlen(template));
    }
    struct text *t = open_text(dir);
    enum err e = text_render_chat(t, &hi, 1, out, bytes, why);
    text_close(t);
    scratch_remove(dir);
    return e;
}

static void failing_templates_reject_the_job(void **state) {
    (void)state;
    static const struct {
        const char *template;
        const char *words;
    } cases[] = {
        {"{{ raise_exception('no\\nsuch role') }}", "no such role"},
        {"{% macro m() %}{{ raise_exception('deep') }}{% endmacro %}{{ m() }}", "deep"},
        {"{{ undefined_function() }}", "undefined_function"},
        {"{{ messages.missing.attribute }}", "undefined"},
        {"{{ undefined_name | tojson }}", "undefined"},
        {"{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "fuel"},
        {"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"},
        {"{% include 'other' %}", "other"},
        {"{{ '%s' % 'x' }}", "% operator"},
        {"{{ ''[::-1] }}", "slice with a negative step"},
        {"{{ 'a'.encode() }}", "encode"},
        {"{{ 'a'.index('b') }}", "substring not found"},
        {"{{ [1].index(2) }}", "no such item"},
        {"{{ 'a'.partition('') }}", "separator is empty"},
        {"{{ 'a'.zfill(100000000) }}", "width is too large"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char *out = NULL;
        size_t bytes = 0;
        struct err_text why = {0};
        assert_int_equal(render_hi(cases[i].template, &out, &bytes, &why), ERR_BAD_MESSAGE);
        assert_null(out);
        assert_string_equal(why.field, "messages");
        if (strstr(why.message, cases[i].words) == NULL) {
            fail_msg("\"%s\" does not say \"%s\"", why.message, cases[i].words);
        }
    }
}

/* What Jinja2 renders. */
static void joins_as_python_writes_it(void **state) {
    (void)state;
    static const struct {
        const char *template, *text;
    } cases[] = {
        {"{{ [none,true,1,1.0,'a',[1,none],{'a':false}]|join(', ') }}",
         "None, True, 1, 1.0, a, [1, None], {'a': False}"},
        {"{{ [{'a':none},{'a':'x'}]|join('-', attribute='a') }}", "None-x"},
        {"{{ [{'a':{'b':true}}]|join('-', 'a.b') }}", "True"},
        {"{{ [[5,6],[7,8]]|join(d=';', attribute=1) }}", "6;8"},
        {"{{ 'abc'|join('-') }}", "a-b-c"},
        {"{{ nope|join('-') }}|{{ [nope, 1]|join }}", "|1"},
        {"{{ {'k': 1, 'j': 2}|join(',') }}", "k,j"},
        {"{{ [1,2]|join(3) }}", "132"},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *out = NULL;
        size_t bytes = 0;
        struct err_text why = {0};
        assert_int_equal(render_hi(cases[i].template, &out, &bytes, &why), ERR_OK);
        assert_string_equal(out, cases[i].text);
        text_release(out);
    }
}

static void template_file_goes_before_the_configuration(void **state) {
    (void)state;
    char *out = NULL;
    size_t bytes = 0;
    assert_int_equal(render_hi("from the file", &out, &bytes, NULL), ERR_OK);
    assert_string_equal(out, "from the file");
    assert_int_equal(bytes, strlen(out));
    text_release(out);
    /* the list's entry "default" */
    assert_int_equal(render_hi(NULL, &out, &bytes, NULL), ERR_OK);
    assert_string_equal(out, "Hi<|im_end|>");
    text_release(out);
}

static void without_template_messages_are_unsupported(void **state) {
    (void)state;
    struct text *t = open_golden("sentencepiece");
    char *out = NULL;
    size_t bytes = 0;
    struct err_text why = {0};
    assert_int_equal(text_render_chat(t, NULL, 0, &out, &bytes, &why), ERR_UNSUPPORTED_FIELD);
    assert_string_equal(why.field, "messages");
    text_close(t);
}

enum { THREADS = 4, ROUNDS = 300 };

struct worker {
    const struct text *text;
    pthread_t thread;
    unsigned index;
    bool same;
};

/* Encodes a text of its own, renders and streams it back, over and over. */
static void *work(void *argument) {
    struct worker *w = argument;
    w->same = true;
    for (unsigned round = 0; round < ROUNDS && w->same; round++) {
        char sent[64];
        uint32_t tokens[128];
        size_t count = 0;
        int length = snprintf(sent, sizeof(sent), "thr\u00e9ad %u r\u00f6und %u", w->index, round);
        const struct text_message message = {
            .role = "user", .role_bytes = 4, .content = sent, .content_bytes = (size_t)length};
        char *out = NULL;
        size_t bytes = 0;
        struct text_stream *s = NULL;
        if (text_render_chat(w->text, &message, 1, &out, &bytes, NULL) != ERR_OK ||
            text_encode(w->text, out, bytes, false, tokens, 128, &count, NULL) != ERR_OK ||
            text_stream_open(&s, w->text) != ERR_OK) {
            w->same = false;
            break;
        }
        char got[128] = "";
        size_t used = 0;
        for (size_t i = 0; i <= count && w->same; i++) {
            const char *piece = NULL;
            size_t piece_bytes = 0;
            enum err e = i < count ? text_stream_push(s, tokens[i], &piece, &piece_bytes)
                                   : text_stream_finish(s, &piece, &piece_bytes);
            w->same = e == ERR_OK && used + piece_bytes < sizeof(got);
            if (w->same) {
                memcpy(got + used, piece, piece_bytes);
                used += piece_bytes;
            }
        }
        /* The end token, which the template appends, is special and is not decoded. */
        w->same = w->same && used == (size_t)length && memcmp(got, sent, used) == 0;
        text_stream_close(s);
        text_release(out);
    }
    return NULL;
}

static void threads_share_one_text(void **state) {
    (void)state;
    struct text *t = open_golden("bytelevel");
    struct worker workers[THREADS];
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){.text = t, .index = i};
        assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(workers[i].thread, NULL), 0);
        assert_true(workers[i].same);
    }
    text_close(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(folder_tells_what_it_is),
        cmocka_unit_test(missing_files_are_named),
        cmocka_unit_test(damaged_tokenizers_are_refused),
        cmocka_unit_test(no_damage_crashes),
        cmocka_unit_test(damaged_configurations_are_refused),
        cmocka_unit_test(room_is_respected),
        cmocka_unit_test(empty_text_has_only_specials),
        cmocka_unit_test(length_is_never_changed),
        cmocka_unit_test(bad_utf8_is_rejected),
        cmocka_unit_test(failing_templates_reject_the_job),
        cmocka_unit_test(joins_as_python_writes_it),
        cmocka_unit_test(template_file_goes_before_the_configuration),
        cmocka_unit_test(without_template_messages_are_unsupported),
        cmocka_unit_test(threads_share_one_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
