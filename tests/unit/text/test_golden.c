/* test_golden.c - token ids and rendered conversations equal transformers'. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <time.h>

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

static void check_decoded(const struct text *t, const json_t *ids, const json_t *want) {
    struct text_stream *s = NULL;
    struct buffer all = {0};
    buffer_append(&all, "", 0);
    assert_int_equal(text_stream_open(&s, t), ERR_OK);
    size_t count = json_array_size(ids);
    for (size_t i = 0; i <= count; i++) {
        const char *piece = NULL;
        size_t bytes = 0;
        uint32_t token = (uint32_t)json_integer_value(json_array_get(ids, i));
        assert_int_equal(i < count ? text_stream_push(s, token, &piece, &bytes)
                                   : text_stream_finish(s, &piece, &bytes),
                         ERR_OK);
        buffer_append(&all, piece, bytes);
    }
    text_stream_close(s);
    assert_same_text(all.bytes, all.used, want);
    free(all.bytes);
}

/* All of strings.jsonl against NAME/encode.jsonl: CRCs of all, ids of some. */
static void check_encode(const char *name, const json_t *strings) {
    char which[128];
    struct text *t = open_golden(name);
    (void)snprintf(which, sizeof(which), "%s/encode.jsonl", name);
    json_t *lines = golden_lines(which);
    size_t i;
    const json_t *string;
    json_array_foreach(strings, i, string) {
        if (i % GOLDEN_STEP != 0) {
            continue;
        }
        static const uint32_t border = UINT32_MAX;
        uint32_t crc = 0;
        for (int specials = 0; specials < 2; specials++) {
            size_t count = 0;
            assert_int_equal(text_encode(t, json_string_value(string), json_string_length(string),
                                         specials, tokens, TOKENS_MAX, &count, NULL),
                             ERR_OK);
            crc = specials ? crc32_of_ids(crc, &border, 1) : crc;
            crc = crc32_of_ids(crc, tokens, count);
        }
        if (crc != golden_crc(json_array_get(lines, 0), i)) {
            fail_msg("%s: other tokens of string %zu: %s", name, i, json_string_value(string));
        }
    }
    size_t samples = json_array_size(lines) - 2;
    assert_true(samples >= 30);
    for (i = 0; i < samples; i++) {
        const json_t *line = json_array_get(lines, i + 2);
        size_t index = (size_t)json_integer_value(json_array_get(line, 0));
        (void)snprintf(which, sizeof(which), "%s, string %zu", name, index);
        check_ids(t, json_array_get(strings, index), false, json_array_get(line, 1), which);
        check_ids(t, json_array_get(strings, index), true, json_array_get(line, 2), which);
    }
    json_decref(lines);
    text_close(t);
}

static void families_encode_as_transformers(void **state) {
    (void)state;
    json_t *strings = golden_lines("strings.jsonl");
    assert_true(json_array_size(strings) >= 2000);
    for (size_t i = 0; i < FAMILY_COUNT; i++) {
        check_encode(FAMILIES[i], strings);
    }
    json_decref(strings);
}

/* What tokenizer_config.json and special_tokens_map.json change in a tokenizer. */
static void configurations_count_as_in_transformers(void **state) {
    (void)state;
    json_t *lines = golden_lines("configs.jsonl");
    assert_true(json_array_size(lines) >= 10);
    size_t i;
    json_t *line;
    json_array_foreach(lines, i, line) {
        char dir[256];
        char which[128];
        scratch_make(dir, sizeof(dir));
        scratch_link(dir, json_string_value(json_array_get(line, 0)), "tokenizer.json");
        static const char *const names[] = {"tokenizer_config.json", "special_tokens_map.json"};
        for (size_t k = 0; k < 2; k++) {
            char *bytes = json_dumps(json_array_get(line, k + 1), JSON_ENCODE_ANY);
            assert_non_null(bytes);
            if (strcmp(bytes, "null") != 0) {
                scratch_write(dir, names[k], bytes, strlen(bytes));
            }
            free(bytes);
        }
        struct text *t = open_text(dir);
        scratch_remove(dir);
        size_t k;
        const json_t *answer;
        json_array_foreach(json_array_get(line, 3), k, answer) {
            (void)snprintf(which, sizeof(which), "configuration %zu", i);
            const json_t *string = json_array_get(answer, 0);
            check_ids(t, string, false, json_array_get(answer, 1), which);
            check_ids(t, string, true, json_array_get(answer, 2), which);
            check_decoded(t, json_array_get(answer, 2), json_array_get(answer, 3));
        }
        text_close(t);
    }
    json_decref(lines);
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

/* A tokenizer's folder with one of the golden templates; SmolLM2's template is its own. */
static struct text *open_template(const char *name, const char *tokenizer) {
    if (strcmp(name, "smollm2") == 0) {
        return open_model();
    }
    char dir[256];
    char path[512];
    scratch_make(dir, sizeof(dir));
    scratch_link(dir, tokenizer, "tokenizer.json");
    scratch_link(dir, tokenizer, "tokenizer_config.json");
    (void)snprintf(path, sizeof(path), "%s/chat_template.jinja", dir);
    char target[512];
    (void)snprintf(target, sizeof(target), "%s/templates/%s.jinja", GOLDEN_DIR, name);
    assert_int_equal(symlink(target, path), 0);
    struct text *t = open_text(dir);
    scratch_remove(dir);
    return t;
}

/* Puts @TODAY@ where the template put the date; `out` is malloc'ed and so is the result. */
static char *without_date(char *out, size_t *bytes) {
    enum { MARK_BYTES = 7 };
    char today[32];
    time_t now = time(NULL);
    struct tm local;
    assert_non_null(localtime_r(&now, &local));
    assert_true(strftime(today, sizeof(today), "%d %b %Y", &local) > 0);
    char *at = strstr(out, today);
    if (at == NULL) {
        return out;
    }
    size_t before = (size_t)(at - out);
    size_t after = before + strlen(today);
    char *text = malloc(*bytes + MARK_BYTES + 1);
    assert_non_null(text);
    memcpy(text, out, before);
    memcpy(text + before, "@TODAY@", MARK_BYTES);
    memcpy(text + before + MARK_BYTES, out + after, *bytes - after + 1);
    *bytes = before + MARK_BYTES + *bytes - after;
    text_release(out);
    return text;
}

struct rendered { /* one conversation by one template */
    char *text;   /* NULL: the template raised */
    size_t bytes;
    struct err_text why;
};

static struct rendered render_one(const struct text *t, const json_t *conversation, bool dated) {
    struct rendered r = {0};
    char *out = NULL;
    enum err e = render(t, conversation, &out, &r.bytes, &r.why);
    assert_true(e == ERR_OK || e == ERR_BAD_MESSAGE);
    if (e == ERR_OK) {
        r.text = dated ? without_date(out, &r.bytes) : out;
    }
    return r;
}

/* line: [template, tokenizer, CRCs of texts, CRCs of ids]. Returns how many were rendered. */
static size_t check_all(const struct text *t, const json_t *line, const json_t *conversations) {
    const char *name = json_string_value(json_array_get(line, 0));
    bool dated = strcmp(name, "llama32") == 0;
    size_t rendered = 0;
    size_t i;
    const json_t *conversation;
    json_array_foreach(conversations, i, conversation) {
        if (i % GOLDEN_STEP != 0) {
            continue;
        }
        struct rendered r = render_one(t, conversation, dated);
        size_t count = 0;
        uint32_t crc = crc32_of(0, "\xff", 1);
        if (r.text == NULL) {
            crc = crc32_of(crc, r.why.message, strlen(r.why.message));
        } else {
            rendered++;
            crc = crc32_of(0, r.text, r.bytes);
            assert_int_equal(
                text_encode(t, r.text, r.bytes, false, tokens, TOKENS_MAX, &count, NULL), ERR_OK);
        }
        if (crc != golden_crc(json_array_get(line, 2), i)) {
            fail_msg("%s, conversation %zu: %s", name, i, r.text != NULL ? r.text : r.why.message);
        }
        uint32_t ids_crc = golden_crc(json_array_get(line, 3), i); /* 0: not compared */
        if (ids_crc != 0 && crc32_of_ids(0, tokens, count) != ids_crc) {
            fail_msg("%s, conversation %zu: other tokens of %s", name, i, r.text);
        }
        text_release(r.text);
    }
    return rendered;
}

/* line: [template, i, text or null, what it raised or null] */
static void check_sample(const struct text *t, const json_t *line, const json_t *conversations) {
    size_t index = (size_t)json_integer_value(json_array_get(line, 1));
    const json_t *want = json_array_get(line, 2);
    bool dated = strcmp(json_string_value(json_array_get(line, 0)), "llama32") == 0;
    struct rendered r = render_one(t, json_array_get(conversations, index), dated);
    if (json_is_null(want)) {
        assert_null(r.text);
        assert_string_equal(r.why.message, json_string_value(json_array_get(line, 3)));
    } else {
        if (r.text == NULL) {
            fail_msg("%s", r.why.message);
        }
        assert_same_text(r.text, r.bytes, want);
    }
    text_release(r.text);
}

static void templates_render_as_transformers(void **state) {
    (void)state;
    json_t *conversations = golden_lines("conversations.jsonl");
    json_t *lines = golden_lines("templates/chat.jsonl");
    struct text *t = NULL;
    const json_t *all = NULL; /* of the template in hand; its samples follow and come first */
    size_t templates = 0;
    size_t i;
    const json_t *line;
    json_array_foreach(lines, i, line) {
        if (json_is_integer(json_array_get(line, 1))) {
            check_sample(t, line, conversations);
        } else {
            text_close(t);
            t = open_template(json_string_value(json_array_get(line, 0)),
                              json_string_value(json_array_get(line, 1)));
            all = line;
            templates++;
        }
        const json_t *next = json_array_get(lines, i + 1);
        if (next == NULL || json_is_string(json_array_get(next, 1))) {
            assert_true(check_all(t, all, conversations) >= 50 / GOLDEN_STEP);
        }
    }
    assert_true(templates >= 16);
    text_close(t);
    json_decref(lines);
    json_decref(conversations);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(families_encode_as_transformers),
        cmocka_unit_test(configurations_count_as_in_transformers),
        cmocka_unit_test(templates_render_as_transformers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
