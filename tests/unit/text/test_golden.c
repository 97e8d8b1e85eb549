/* test_golden.c - token ids and rendered conversations equal transformers'. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "golden.h"

enum { TOKENS_MAX = 65536, MESSAGES_MAX = 16 };

static uint32_t tokens[TOKENS_MAX];

/* `which` says what is compared, should it differ. */
static void check_ids(const struct text *t, const json_t *string, bool specials, const json_t *want,
                      const char *which) {
    size_t count = 0;
    struct err_text why = {0};
    enum err e = text_encode(t, json_string_value(string), json_string_length(string), specials,
                             tokens, TOKENS_MAX, &count, &why);
    if (e != ERR_OK) {
        fail_msg("%s: %s: %s", which, err_name(e), why.message);
    }
    bool same = count == json_array_size(want);
    for (size_t i = 0; same && i < count; i++) {
        same = tokens[i] == (uint32_t)json_integer_value(json_array_get(want, i));
    }
    if (!same) {
        fail_msg("%s: other tokens (%zu, not %zu) of: %s", which, count, json_array_size(want),
                 json_string_value(string));
    }
}

/* Compares all lines of NAME/encode.jsonl; at least `lines_min` of them. */
static void check_encode(const struct text *t, const char *name, size_t lines_min) {
    char path[128];
    (void)snprintf(path, sizeof(path), "%s/encode.jsonl", name);
    json_t *strings = golden_lines("strings.jsonl");
    json_t *lines = golden_lines(path);
    assert_true(json_array_size(lines) >= lines_min);
    size_t i;
    json_t *line;
    json_array_foreach(lines, i, line) {
        size_t index = (size_t)json_integer_value(json_array_get(line, 0));
        const json_t *string = json_array_get(strings, index);
        const json_t *bare = json_array_get(line, 1);
        const json_t *full = json_array_get(line, 2);
        assert_non_null(string);
        (void)snprintf(path, sizeof(path), "%s, string %zu", name, index);
        check_ids(t, string, false, bare, path);
        check_ids(t, string, true, json_is_null(full) ? bare : full, path);
    }
    json_decref(lines);
    json_decref(strings);
}

static enum err render(const struct text *t, const json_t *conversation, char **out, size_t *bytes,
                       struct err_text *why) {
    struct text_message messages[MESSAGES_MAX];
    size_t count = json_array_size(conversation);
    assert_true(count <= MESSAGES_MAX);
    for (size_t i = 0; i < count; i++) {
        const json_t *turn = json_array_get(conversation, i);
        const json_t *role = json_array_get(turn, 0);
        const json_t *content = json_array_get(turn, 1);
        messages[i] = (struct text_message){
            .role = json_string_value(role),
            .role_bytes = json_string_length(role),
            .content = json_string_value(content),
            .content_bytes = json_string_length(content),
        };
    }
    return text_render_chat(t, messages, count, out, bytes, why);
}

static void model_encodes_as_transformers(void **state) {
    (void)state;
    struct text *t = open_model();
    check_encode(t, "smollm2", 1000);
    text_close(t);
}

static void bytelevel_encodes_as_transformers(void **state) {
    (void)state;
    struct text *t = open_golden("bytelevel");
    check_encode(t, "bytelevel", 300);
    text_close(t);
}

static void sentencepiece_encodes_as_transformers(void **state) {
    (void)state;
    struct text *t = open_golden("sentencepiece");
    check_encode(t, "sentencepiece", 300);
    text_close(t);
}

static void model_renders_as_transformers(void **state) {
    (void)state;
    struct text *t = open_model();
    assert_true(text_has_chat_template(t));
    json_t *conversations = golden_lines("conversations.jsonl");
    json_t *lines = golden_lines("smollm2/chat.jsonl");
    assert_true(json_array_size(lines) >= 100);
    size_t i;
    json_t *line;
    json_array_foreach(lines, i, line) {
        size_t index = (size_t)json_integer_value(json_array_get(line, 0));
        const json_t *want = json_array_get(line, 1);
        char *out = NULL;
        size_t bytes = 0;
        assert_int_equal(render(t, json_array_get(conversations, index), &out, &bytes, NULL),
                         ERR_OK);
        assert_same_text(out, bytes, want);
        text_release(out);
        check_ids(t, want, false, json_array_get(line, 2), "rendered conversation");
    }
    json_decref(lines);
    json_decref(conversations);
    text_close(t);
}

/* A folder with the small byte-level tokenizer and one of the golden templates. */
static struct text *open_template(const char *name) {
    char dir[256];
    char path[512];
    char template[8192];
    scratch_make(dir, sizeof(dir));
    scratch_link(dir, "bytelevel", "tokenizer.json");
    scratch_link(dir, "bytelevel", "tokenizer_config.json");
    (void)snprintf(path, sizeof(path), "%s/templates/%s.jinja", GOLDEN_DIR, name);
    FILE *file = fopen(path, "rbe");
    assert_non_null(file);
    size_t bytes = fread(template, 1, sizeof(template), file);
    assert_true(bytes > 0 && bytes < sizeof(template));
    (void)fclose(file);
    scratch_write(dir, "chat_template.jinja", template, bytes);
    struct text *t = open_text(dir);
    scratch_remove(dir);
    return t;
}

static void templates_render_as_transformers(void **state) {
    (void)state;
    json_t *conversations = golden_lines("conversations.jsonl");
    json_t *lines = golden_lines("templates/chat.jsonl");
    char open_name[64] = "";
    struct text *t = NULL;
    size_t rendered = 0;
    size_t raised = 0;
    size_t i;
    json_t *line;
    json_array_foreach(lines, i, line) {
        const char *name = json_string_value(json_array_get(line, 0));
        if (strcmp(name, open_name) != 0) {
            text_close(t);
            t = open_template(name);
            (void)snprintf(open_name, sizeof(open_name), "%s", name);
        }
        size_t index = (size_t)json_integer_value(json_array_get(line, 1));
        const json_t *want = json_array_get(line, 2);
        const char *words = json_string_value(json_array_get(line, 3));
        char *out = NULL;
        size_t bytes = 0;
        struct err_text why = {0};
        enum err e = render(t, json_array_get(conversations, index), &out, &bytes, &why);
        if (words != NULL) {
            assert_int_equal(e, ERR_BAD_MESSAGE);
            assert_string_equal(why.message, words);
            raised++;
            continue;
        }
        if (e != ERR_OK) {
            fail_msg("%s, conversation %zu: %s: %s", name, index, err_name(e), why.message);
        }
        assert_same_text(out, bytes, want);
        text_release(out);
        rendered++;
    }
    assert_true(rendered > 100);
    assert_true(raised > 5);
    text_close(t);
    json_decref(lines);
    json_decref(conversations);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(model_encodes_as_transformers),
        cmocka_unit_test(bytelevel_encodes_as_transformers),
        cmocka_unit_test(sentencepiece_encodes_as_transformers),
        cmocka_unit_test(model_renders_as_transformers),
        cmocka_unit_test(templates_render_as_transformers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
