/* fuzz_text.c - any bytes as tokenizer.json, tokenizer_config.json, chat_template.jinja, a text and
 * a script, with a NUL after each but the last: an error that says why, or a tokenizer that works.
 *
 * Changed bytes seldom leave JSON whole. So where the script is not plain, its hash is the seed of
 * a few changes to the values of tokenizer.json. The files lie in memory; the folder has links to
 * them. */
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/fuzz/fuzz.h"
#include "text/text.h"

enum { FILES = 3, TOKENS_MAX = 4096, TEXT_BYTES_MAX = 512, NODES_MAX = 512, EDITS_MAX = 3 };

static const char *const names[FILES] = {"tokenizer.json", "tokenizer_config.json",
                                         "chat_template.jinja"};
static int files[FILES];
static char folder[] = "/tmp/lorry-fuzz-XXXXXX";

static void demand(bool good, const char *what, const char *detail) {
    if (!good) {
        (void)fprintf(stderr, "fuzz_text: %s: %s\n", what, detail);
        abort();
    }
}

static void remove_folder(void) {
    for (size_t i = 0; i < FILES; i++) {
        char path[128];
        (void)snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        (void)unlink(path);
    }
    (void)rmdir(folder);
}

static void make_folder(void) {
    demand(mkdtemp(folder) != NULL, "mkdtemp", folder);
    demand(atexit(remove_folder) == 0, "atexit", folder);
    for (size_t i = 0; i < FILES; i++) {
        char path[128];
        char target[64];
        files[i] = memfd_create(names[i], MFD_CLOEXEC);
        demand(files[i] >= 0, "memfd_create", names[i]);
        (void)snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        (void)snprintf(target, sizeof target, "/proc/self/fd/%d", files[i]);
        demand(symlink(target, path) == 0, "symlink", path);
    }
}

static void check_why(const struct err_text *why) {
    demand(why->message[0] != '\0', "an error without a reason", "");
}

static void stream_back(const struct text *t, const uint32_t *tokens, size_t count) {
    struct text_stream *s = NULL;
    demand(text_stream_open(&s, t) == ERR_OK, "text_stream_open", "");
    for (size_t i = 0; i <= count; i++) {
        const char *piece = "";
        size_t bytes = 0;
        enum err e = i < count ? text_stream_push(s, tokens[i], &piece, &bytes)
                               : text_stream_finish(s, &piece, &bytes);
        demand(e == ERR_OK || e == ERR_INTERNAL, "another error of a stream", err_name(e));
        if (e != ERR_OK) {
            break;
        }
        size_t room = 0; /* a piece is UTF-8: encode looks at that first */
        e = text_encode(t, piece, bytes, false, NULL, 0, &room, NULL);
        demand(e != ERR_BAD_MESSAGE, "a piece that is not UTF-8", "");
    }
    text_stream_close(s);
}

static void encode(const struct text *t, const char *text, size_t bytes, bool specials) {
    static uint32_t tokens[TOKENS_MAX];
    struct err_text why = {0};
    size_t count = 0;
    enum err e = text_encode(t, text, bytes, specials, tokens, TOKENS_MAX, &count, &why);
    if (e == ERR_OK) {
        demand(count <= TOKENS_MAX, "more tokens than room", "");
        stream_back(t, tokens, count);
        return;
    }
    demand(e == ERR_BAD_MESSAGE || e == ERR_INTERNAL || e == ERR_NO_SPACE, "another error",
           err_name(e));
    check_why(&why);
}

static void render(const struct text *t, const char *text, size_t bytes) {
    const struct text_message messages[] = {
        {.role = "system", .role_bytes = 6, .content = "s", .content_bytes = 1},
        {.role = "user", .role_bytes = 4, .content = text, .content_bytes = bytes},
    };
    struct err_text why = {0};
    char *out = NULL;
    size_t out_bytes = 0;
    enum err e = text_render_chat(t, messages, 2, &out, &out_bytes, &why);
    if (e == ERR_OK) {
        demand(out[out_bytes] == '\0', "no NUL behind", out);
        text_release(out);
        return;
    }
    demand(e == (text_has_chat_template(t) ? ERR_BAD_MESSAGE : ERR_UNSUPPORTED_FIELD),
           "another error", err_name(e));
    check_why(&why);
}

/* ---- changes to values --------------------------------------------------------------------- */

struct node { /* a value in its object or array */
    json_t *parent;
    const char *key; /* NULL: the array's `index` */
    size_t index;
};

struct nodes {
    struct node list[NODES_MAX];
    size_t count;
};

static void collect(struct nodes *n, json_t *parent) {
    const char *key;
    json_t *value;
    size_t i;
    json_object_foreach(parent, key, value) {
        if (n->count < NODES_MAX) {
            n->list[n->count++] = (struct node){parent, key, 0};
            collect(n, value);
        }
    }
    json_array_foreach(parent, i, value) {
        if (n->count < NODES_MAX) {
            n->list[n->count++] = (struct node){parent, NULL, i};
            collect(n, value);
        }
    }
}

static json_t *value_of(const struct node *n) {
    return n->key != NULL ? json_object_get(n->parent, n->key)
                          : json_array_get(n->parent, n->index);
}

static size_t random_below(uint64_t *state, size_t bound) { /* an LCG's upper bits */
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (size_t)(*state >> 33) % bound;
}

/* A value that something may stumble over, or a copy of another one of the file. */
static json_t *other_value(const struct nodes *n, uint64_t *state) {
    static const char *const values[] = {
        "null",        "true", "false", "0",     "-1",        "1",           "4294967295",
        "4294967296",  "1e99", "\"\"",  "\"a\"", "\"<s>\"",   "\"\\u2581\"", "\"(?=\"",
        "\"(a|a)*b\"", "[]",   "{}",    "[[]]",  "\"First\"", "17"};
    size_t which = random_below(state, 2 * sizeof values / sizeof values[0]);
    if (which < sizeof values / sizeof values[0]) {
        return json_loads(values[which], JSON_DECODE_ANY, NULL);
    }
    return json_deep_copy(value_of(&n->list[random_below(state, n->count)]));
}

static void change(json_t *form, uint64_t *state) {
    static struct nodes nodes;
    nodes.count = 0;
    collect(&nodes, form);
    if (nodes.count == 0) {
        return;
    }
    const struct node *at = &nodes.list[random_below(state, nodes.count)];
    bool removed = random_below(state, 8) == 0;
    json_t *value = removed ? NULL : other_value(&nodes, state);
    if (at->key != NULL && removed) {
        (void)json_object_del(at->parent, at->key);
    } else if (at->key != NULL) {
        (void)json_object_set_new(at->parent, at->key, value);
    } else if (removed) {
        (void)json_array_remove(at->parent, at->index);
    } else {
        (void)json_array_set_new(at->parent, at->index, value);
    }
}

/* tokenizer.json with the script's changes, the caller's; NULL: as it is. */
static char *changed(const char *bytes, size_t count, const uint8_t *script, size_t script_bytes) {
    uint64_t state = UINT64_C(14695981039346656037); /* FNV-1a */
    bool plain = true;
    for (size_t i = 0; i < script_bytes; i++) {
        plain = plain && script[i] == 'x';
        state = (state ^ script[i]) * UINT64_C(1099511628211);
    }
    json_t *form = plain ? NULL : json_loadb(bytes, count, JSON_ALLOW_NUL, NULL);
    if (form == NULL) {
        return NULL;
    }
    for (size_t left = 1 + random_below(&state, EDITS_MAX); left > 0; left--) {
        change(form, &state);
    }
    char *text = json_dumps(form, JSON_COMPACT);
    json_decref(form);
    return text;
}

/* ---- one input ----------------------------------------------------------------------------- */

struct part {
    const uint8_t *data;
    size_t bytes;
};

/* Takes what is in front of the next NUL, or all. */
static struct part next_part(struct part *rest) {
    const uint8_t *end = rest->bytes > 0 ? memchr(rest->data, '\0', rest->bytes) : NULL;
    struct part p = {rest->data, end != NULL ? (size_t)(end - rest->data) : rest->bytes};
    size_t used = end != NULL ? p.bytes + 1 : p.bytes;
    *rest = (struct part){rest->data + used, rest->bytes - used};
    return p;
}

static void put_file(size_t i, const void *data, size_t bytes) {
    demand(ftruncate(files[i], 0) == 0, "ftruncate", names[i]);
    demand(pwrite(files[i], data, bytes, 0) == (ssize_t)bytes, "pwrite", names[i]);
}

static void run(const char *text, size_t bytes) {
    struct text *t = NULL;
    struct err_text why = {0};
    enum err e = text_open(&t, folder, &why);
    if (e != ERR_OK) {
        demand(e == ERR_BAD_MODEL, "another error", err_name(e));
        check_why(&why);
        return;
    }
    encode(t, text, bytes, false);
    encode(t, text, bytes, true);
    render(t, text, bytes);
    text_close(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static bool ready;
    if (!ready) {
        make_folder();
        ready = true;
    }
    struct part rest = {data, bytes};
    struct part first = {data, 0};
    for (size_t i = 0; i < FILES; i++) {
        struct part p = next_part(&rest);
        first = i == 0 ? p : first;
        put_file(i, p.data, p.bytes);
    }
    struct part text = next_part(&rest);
    text.bytes = text.bytes < TEXT_BYTES_MAX ? text.bytes : TEXT_BYTES_MAX;
    char *other = changed((const char *)first.data, first.bytes, rest.data, rest.bytes);
    if (other != NULL) {
        put_file(0, other, strlen(other));
        free(other);
    }
    run((const char *)text.data, text.bytes);
    return 0;
}
