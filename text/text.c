/* text.c - checks what the caller gives and puts the Rust library's codes into our errors. */
#include "text/text.h"

#include <stdlib.h>

#include "base/check.h"
#include "text/rust_abi.h"

/* struct text_message is handed over as it is: abi.rs has the same layout. */
_Static_assert(sizeof(struct text_message) == 4 * sizeof(void *), "layout of CMessage in abi.rs");
_Static_assert(offsetof(struct text_message, content) == 2 * sizeof(void *), "as above");

static enum err error_of(int32_t code) {
    switch ((enum rust_code)code) {
    case RUST_OK:
        return ERR_OK;
    case RUST_NO_SPACE:
        return ERR_NO_SPACE;
    case RUST_BAD_MODEL:
        return ERR_BAD_MODEL;
    case RUST_BAD_INPUT:
        return ERR_BAD_MESSAGE;
    case RUST_NO_TEMPLATE:
        return ERR_UNSUPPORTED_FIELD;
    case RUST_NO_MEMORY:
        return ERR_NO_MEMORY;
    case RUST_INTERNAL:
        break;
    }
    return ERR_INTERNAL;
}

enum err text_open(struct text **out, const char *dir, struct err_text *why) {
    CHECK(out != NULL);
    CHECK(dir != NULL);
    char sentence[ERR_TEXT_BYTES] = "";
    struct rust_why rust_why = {.text = sentence, .room = sizeof(sentence)};
    enum err e = error_of(lorry_text_open(out, dir, &rust_why));
    return e == ERR_OK ? e : err_set(why, e, "%s", sentence);
}

void text_close(struct text *t) {
    if (t != NULL) {
        lorry_text_close(t);
    }
}

const char *text_hash(const struct text *t) {
    CHECK(t != NULL);
    return lorry_text_hash(t);
}

uint32_t text_vocab_count(const struct text *t) {
    CHECK(t != NULL);
    return lorry_text_vocab_count(t);
}

bool text_has_chat_template(const struct text *t) {
    CHECK(t != NULL);
    return lorry_text_has_template(t);
}

uint32_t text_token_id(const struct text *t, const char *token, size_t bytes) {
    CHECK(t != NULL);
    CHECK(token != NULL || bytes == 0);
    return lorry_text_token_id(t, token, bytes);
}

/* Eight arguments: input, output and their sizes; a struct would only rename them. */
enum err text_encode(const struct text *t, const char *utf8, size_t bytes, bool specials, // NOLINT
                     uint32_t *tokens, size_t room, size_t *count, struct err_text *why) {
    CHECK(t != NULL);
    CHECK(utf8 != NULL || bytes == 0);
    CHECK(tokens != NULL || room == 0);
    CHECK(count != NULL);
    char sentence[ERR_TEXT_BYTES] = "";
    struct rust_why rust_why = {.text = sentence, .room = sizeof(sentence)};
    struct rust_tokens out = {.ids = tokens, .room = room};
    enum err e = error_of(lorry_text_encode(t, utf8, bytes, specials, &out, &rust_why));
    if (e == ERR_OK || e == ERR_NO_SPACE) {
        *count = out.count;
    }
    return e == ERR_OK ? e : err_set(why, e, "%s", sentence);
}

enum err text_render_chat(const struct text *t, const struct text_message *messages, size_t count,
                          char **out, size_t *out_bytes, struct err_text *why) {
    CHECK(t != NULL);
    CHECK(messages != NULL || count == 0);
    CHECK(out != NULL);
    CHECK(out_bytes != NULL);
    for (size_t i = 0; i < count; i++) {
        CHECK(messages[i].role != NULL || messages[i].role_bytes == 0);
        CHECK(messages[i].content != NULL || messages[i].content_bytes == 0);
    }
    char sentence[ERR_TEXT_BYTES] = "";
    struct rust_why rust_why = {.text = sentence, .room = sizeof(sentence)};
    enum err e = error_of(lorry_text_render(t, messages, count, out, out_bytes, &rust_why));
    return e == ERR_OK ? e : err_set_field(why, e, "messages", "%s", sentence);
}

void text_release(char *s) {
    free(s);
}

enum err text_stream_open(struct text_stream **out, const struct text *t) {
    CHECK(out != NULL);
    CHECK(t != NULL);
    return error_of(lorry_text_stream_open(out, t));
}

void text_stream_close(struct text_stream *s) {
    if (s != NULL) {
        lorry_text_stream_close(s);
    }
}

enum err text_stream_push(struct text_stream *s, uint32_t token, const char **piece,
                          size_t *piece_bytes) {
    CHECK(s != NULL);
    CHECK(piece != NULL);
    CHECK(piece_bytes != NULL);
    return error_of(lorry_text_stream_push(s, token, piece, piece_bytes));
}

enum err text_stream_finish(struct text_stream *s, const char **piece, size_t *piece_bytes) {
    CHECK(s != NULL);
    CHECK(piece != NULL);
    CHECK(piece_bytes != NULL);
    return error_of(lorry_text_stream_finish(s, piece, piece_bytes));
}
