/* rust_abi.h - what the Rust library exports to text.c; nobody else includes this.
 *
 * The other side is text/rust/src/abi.rs: a change here is a change there. No pointer may be NULL
 * but where said; text.c checks. Codes are small numbers of their own, so that Rust need not know
 * err.h. */
#ifndef LORRY_TEXT_RUST_ABI_H
#define LORRY_TEXT_RUST_ABI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "text/text.h"

enum rust_code {
    RUST_OK = 0,
    RUST_NO_SPACE = 1,
    RUST_BAD_MODEL = 2,   /* a file of the model folder */
    RUST_BAD_INPUT = 3,   /* what the caller gave; or the template raised */
    RUST_NO_TEMPLATE = 4, /* messages, but no chat template */
    RUST_INTERNAL = 5,    /* a panic, or a decoder that failed */
    RUST_NO_MEMORY = 6,
};

struct rust_why { /* where the sentence that explains a failure goes; room counts its NUL */
    char *text;
    size_t room;
};

struct rust_tokens {
    uint32_t *ids; /* [room]; may be NULL when room is 0 */
    size_t room;
    size_t count; /* out: the number needed, written on RUST_OK and RUST_NO_SPACE */
};

int32_t lorry_text_open(struct text **out, const char *dir, struct rust_why *why);
void lorry_text_close(struct text *t);
const char *lorry_text_hash(const struct text *t);
uint32_t lorry_text_vocab_count(const struct text *t);
bool lorry_text_has_template(const struct text *t);
uint32_t lorry_text_token_id(const struct text *t, const char *token, size_t bytes);
int32_t lorry_text_encode(const struct text *t, const char *utf8, size_t bytes, bool specials,
                          struct rust_tokens *tokens, struct rust_why *why);
/* *out is malloc'ed. */
int32_t lorry_text_render(const struct text *t, const struct text_message *messages, size_t count,
                          char **out, size_t *out_bytes, struct rust_why *why);
int32_t lorry_text_stream_open(struct text_stream **out, const struct text *t);
void lorry_text_stream_close(struct text_stream *s);
int32_t lorry_text_stream_push(struct text_stream *s, uint32_t token, const char **piece,
                               size_t *piece_bytes);
int32_t lorry_text_stream_finish(struct text_stream *s, const char **piece, size_t *piece_bytes);

#endif
