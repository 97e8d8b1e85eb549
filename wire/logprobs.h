/* logprobs.h - the `logprobs` field of frames and finals, and OpenAI's form of it. */
#ifndef LORRY_WIRE_LOGPROBS_H
#define LORRY_WIRE_LOGPROBS_H

#include "wire/emit.h"
#include "wire/reader.h"

/* The field; null where nobody asked. */
void wire_emit_logprobs_field(struct wire_emit *w, const struct wire_logprobs *l);

/* OpenAI's `logprobs` of a choice. Whoever writes it has no tokenizer: a token's text is its id, as
 * "token_id:17" (vLLM's return_tokens_as_token_ids), and its bytes are null. */
void wire_emit_openai_logprobs_field(struct wire_emit *w, const struct wire_logprobs *l);

/* struct wire_logprobs */
wire_read_fn wire_read_logprobs;

/* What a reader of the field counts towards WIRE_VALUES_MAX, keys included. */
uint64_t wire_logprobs_values(const struct wire_logprobs *l);

#endif
