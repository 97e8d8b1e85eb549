/* text.h - tokenizer and chat template of one model folder.
 *
 * A Rust static library (Hugging Face tokenizers, minijinja) behind this C header; exact for every
 * tokenizer.json. Errors are values: no panic crosses the border, every entry catches it.
 * Text is UTF-8 with a length; a NUL byte is a character like any other.
 * Thread: a `struct text` is immutable after text_open() and may be used by any number of threads
 * at once; a `struct text_stream` belongs to one thread at a time. No thread is ever started. */
#ifndef LORRY_TEXT_TEXT_H
#define LORRY_TEXT_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct text;
struct text_stream;

struct text_message { /* one chat message; borrowed, not NUL-terminated */
    const char *role;
    size_t role_bytes;
    const char *content;
    size_t content_bytes;
};

/* Opens the model folder `dir`: tokenizer.json (required); tokenizer_config.json (optional: special
 * tokens, added_tokens_decoder, chat_template as a string or as the list's entry "default");
 * special_tokens_map.json (optional, older folders: counts where there is no added_tokens_decoder);
 * chat_template.jinja (optional, goes first). As in transformers 5, tokenizer.json's post-processor
 * alone says what is put around a text: add_bos_token and add_eos_token change nothing beside it.
 * Unlike there, a token that the vocabulary lacks is not added: the model has no row for it.
 * Truncation and padding that tokenizer.json declares are turned off. The template is parsed here,
 * so a broken one is found before any job needs it.
 * *out    the caller's until text_close(); written only on ERR_OK.
 * Errors  ERR_BAD_MODEL: a file is missing, unreadable, larger than 256 MiB or damaged; the file is
 *         named.
 * Cost    parses the file; 200 ms and 50 MB for SmolLM2's 49,152 tokens. */
NODISCARD enum err text_open(struct text **out, const char *dir, struct err_text *why);

/* Releases it; NULL is fine. Open streams keep what they need. */
void text_close(struct text *t);

/* SHA-256 of tokenizer.json, 64 lower-case hex digits: part of a checkpoint's identity. Lives as
 * long as `t`. */
const char *text_hash(const struct text *t);

/* Ids are 0 .. count-1, added tokens included. The model's vocabulary may be larger (padded rows).
 */
uint32_t text_vocab_count(const struct text *t);

bool text_has_chat_template(const struct text *t);

/* The id of the token with exactly this text, as tokenizer.json writes it; UINT32_MAX if none. */
uint32_t text_token_id(const struct text *t, const char *token, size_t bytes);

/* Encodes text. The texts of special tokens in it become those tokens, as in transformers.
 * specials  run the post-processor (BOS …): true for a prompt, false for a rendered template.
 * tokens    [room] the caller's; may be NULL when room is 0.
 * *count    the number of tokens needed; written on ERR_OK and on ERR_NO_SPACE.
 * Errors    ERR_NO_SPACE: room was too small and nothing was written to `tokens`; ERR_BAD_MESSAGE:
 *           not UTF-8 (the byte is named); ERR_INTERNAL: the tokenizer failed.
 * Cost      about 1 µs a token; all memory is given back. A second call encodes again. */
NODISCARD enum err text_encode(const struct text *t, const char *utf8, size_t bytes, bool specials,
                               uint32_t *tokens, size_t room, size_t *count, struct err_text *why);

/* Renders messages with the chat template as transformers does, add_generation_prompt = true, tools
 * and documents = none, and whichever of bos_token, eos_token, unk_token, sep_token, pad_token,
 * cls_token and mask_token tokenizer_config.json names.
 * *out    NUL-terminated, *out_bytes without the NUL; released with text_release(). Written only on
 *         ERR_OK.
 * Errors  ERR_UNSUPPORTED_FIELD (field "messages"): the model has no chat template;
 *         ERR_BAD_MESSAGE (field "messages"): not UTF-8; or the template raised: its own words;
 *         or it failed: the engine's words, which name the construct, and the line. Known to fail:
 *         `'%s' % x` (the filter `format` does the same), `''[::-1]`;
 *         ERR_NO_MEMORY, ERR_INTERNAL.
 * Cost    about 1 µs a message and a copy of its text; a template that does not end is stopped
 * after 2 * 10^7 instructions (about a second). */
NODISCARD enum err text_render_chat(const struct text *t, const struct text_message *messages,
                                    size_t count, char **out, size_t *out_bytes,
                                    struct err_text *why);
void text_release(char *s); /* NULL is fine */

/* Streaming decode, special tokens skipped. All pieces up to text_stream_finish(), joined, are what
 * the tokenizer's decode(all tokens, skip_special_tokens=True) gives, for every decoder
 * (transformers' clean_up_tokenization_spaces is not applied). A piece is whole characters: bytes
 * of an unfinished one are held back. With byte_fallback a run of byte tokens is held until it
 * ends, because one bad byte turns all of it into U+FFFD. Errors  ERR_INTERNAL. Cost    O(1)
 * amortised a token, below 1 µs. */
NODISCARD enum err text_stream_open(struct text_stream **out, const struct text *t);
void text_stream_close(struct text_stream *s); /* NULL is fine */

/* Feeds one token. An id that names no token (a padded row) decodes to nothing.
 * *piece  points into the stream, valid until the next call on it; may be empty; not
 *         NUL-terminated. Written only on ERR_OK.
 * Errors  ERR_INTERNAL: the decoder failed; the stream can only be closed. */
NODISCARD enum err text_stream_push(struct text_stream *s, uint32_t token, const char **piece,
                                    size_t *piece_bytes);

/* What was held back, with U+FFFD for incomplete bytes. The stream then stands at its beginning and
 * may be used for another text. */
NODISCARD enum err text_stream_finish(struct text_stream *s, const char **piece,
                                      size_t *piece_bytes);

#endif
