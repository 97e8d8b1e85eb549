/* wire.h - the records on Kafka: job, frame, final, dead letter (version 1); no I/O.
 *
 * msgpack by default, JSON where the first byte is '{' or the content type says so; output uses the
 * encoding of its job. A decoded record owns the memory that all its strings and arrays lie in,
 * about the size of its message; the message itself may go. Release it with wire_*_deinit().
 * Strings are UTF-8 (checked; U+0000 is a character), not NUL-terminated. Thread: any; no shared
 * state. Cost: linear in the bytes; a parser's tree lives during a call. */
#ifndef LORRY_WIRE_WIRE_H
#define LORRY_WIRE_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum {
    WIRE_VERSION = 1,
    WIRE_JOB_BYTES_MAX = 8 << 20, /* of a record's value */
    WIRE_ID_BYTES_MAX = 128,      /* id, custom_id, batch_id, tenant, adapter */
    WIRE_DEPTH_MAX = 32,          /* of nested JSON or msgpack */
    WIRE_VALUES_MAX = 1 << 20,    /* in one message: a parser spends about 50 bytes on each */
    WIRE_MESSAGES_MAX = 4096,
    WIRE_STOPS_MAX = 16,
    WIRE_STOP_BYTES_MAX = 256,
    WIRE_STOP_TOKENS_MAX = 16,
    WIRE_METADATA_MAX = 16, /* pairs, as OpenAI's */
    WIRE_METADATA_KEY_BYTES_MAX = 64,
    WIRE_METADATA_VALUE_BYTES_MAX = 512,
    WIRE_LOGPROBS_MAX = 20,
    WIRE_TOPIC_BYTES_MAX = 249, /* Kafka's own limit */
    WIRE_ULID_BYTES = 26,
};

enum wire_encoding { WIRE_MSGPACK, WIRE_JSON };
const char *wire_content_type(enum wire_encoding encoding); /* "application/msgpack" … */

struct wire_str {
    const char *data; /* NULL = absent */
    size_t bytes;
};

struct wire_pair {
    struct wire_str key, value;
};

struct wire_message {
    struct wire_str role, content;
};

/* A number that may be absent. */
struct wire_int {
    int64_t value;
    bool given;
};
struct wire_real {
    double value;
    bool given;
};

/* ---- job ---------------------------------------------------------------------------------- */

enum wire_input { WIRE_PROMPT, WIRE_TOKENS, WIRE_MESSAGES };

struct wire_job {
    enum wire_encoding encoding;
    struct wire_str id, custom_id, batch_id, adapter, tenant, reply_topic;
    uint32_t generation; /* a replay raises it */
    enum wire_input input;
    struct wire_str prompt;
    const uint32_t *tokens; /* each at most INT32_MAX, whether known to the model or not */
    size_t token_count;
    const struct wire_message *messages; /* parts of a content are joined by newlines */
    size_t message_count;
    struct wire_int max_tokens, seed, deadline_ms, ttl_ms, ttft_slo_ms;
    struct wire_int top_k;    /* -1 and 0: all */
    struct wire_int logprobs; /* alternatives; OpenAI's pair is true and top_logprobs */
    struct wire_real temperature, top_p, min_p;
    struct wire_real repetition_penalty, presence_penalty, frequency_penalty;
    const struct wire_str *stop;
    size_t stop_count;
    const uint32_t *stop_token_ids;
    size_t stop_token_count;
    struct wire_int stream; /* 0, 1 */
    bool ignore_eos;
    int32_t priority;
    const struct wire_pair *metadata;
    size_t metadata_count;
    uint32_t unknown_fields; /* ignored */
    void *memory;            /* owned */
};

struct wire_options {
    bool strict;            /* reject unknown fields */
    const char *model_name; /* an adapter of this name is the base */
};

/* Decodes our own jobs and OpenAI batch lines (custom_id + body; body.model names the adapter).
 * `content_type`, `options` and `why` may be NULL. All limits of §10 are checked; which fields go
 * together too: exactly one of prompt, tokens, messages; ranges (temperature 0..2 is not enforced
 * above: ≥ 0 and finite; top_p in (0, 1]; max_tokens ≥ 1; …). `adapter` is absent for the base, and
 * is a valid id else. null is absent; so is an empty id, label or list of stops. With several
 * faults the same one is reported in either encoding; one of the message as a whole leaves only the
 * encoding. On error `job` still holds what was understood of: encoding, id, custom_id, batch_id,
 * generation, adapter (only if valid), metadata; so that the final can name them. Deinit it either
 * way. Errors  ERR_TOO_LARGE, ERR_BAD_MESSAGE, ERR_BAD_VERSION, ERR_BAD_FIELD,
 * ERR_UNSUPPORTED_FIELD; why names the field. ERR_NO_MEMORY. */
NODISCARD enum err wire_job_decode(struct wire_job *job, const void *data, size_t bytes,
                                   const char *content_type, const struct wire_options *options,
                                   struct err_text *why);
void wire_job_deinit(struct wire_job *job); /* a zeroed job is fine */

bool wire_id_valid(struct wire_str id);         /* 1..128 of A-Za-z0-9._:@/- and no leading @ */
bool wire_adapter_id_valid(struct wire_str id); /* 1..128 of A-Za-z0-9._:@-, no leading dot or @ */

/* ---- log-probabilities -------------------------------------------------------------------- */

struct wire_logprob {
    uint32_t token;
    float logprob; /* −9999 (OpenAI's) stands on the wire for less */
};

/* Of the tokens of a frame or final: `logprobs`, null where the job did not ask, else a list of
 * {token, logprob, top: [[token, logprob], …]}, one a token, in both encodings. They are of the raw
 * logits: before penalties, temperature and cuts, as OpenAI and vLLM give them. */
struct wire_logprobs {
    const struct wire_logprob *chosen; /* [count]; NULL = not asked for */
    const struct wire_logprob *top;    /* [count][top_count], the most probable first */
    size_t count, top_count;
};

/* ---- output ------------------------------------------------------------------------------- */

/* A growing buffer of bytes; zero it first. Encoders append, or on error leave it as it was: set
 * `bytes` to 0 to use it again. */
struct wire_buffer {
    char *data;
    size_t bytes, room;
};
void wire_buffer_deinit(struct wire_buffer *b);

enum wire_kind { WIRE_START, WIRE_TOKENS_FRAME, WIRE_RESTART, WIRE_END };

struct wire_frame {
    struct wire_str id;
    uint32_t attempt;
    char run[WIRE_ULID_BYTES + 1];
    uint32_t seq; /* from 0 per attempt */
    uint32_t pos; /* index of its first token */
    enum wire_kind kind;
    struct wire_str text; /* what its tokens released */
    const uint32_t *tokens;
    size_t token_count;
    struct wire_logprobs logprobs;
    void *memory; /* owned by a decoded one */
};

enum wire_status { WIRE_SUCCEEDED, WIRE_FAILED, WIRE_REJECTED, WIRE_EXPIRED, WIRE_CANCELLED };
const char *wire_status_name(enum wire_status status); /* "succeeded" … */
enum wire_finish { WIRE_FINISH_NONE, WIRE_FINISH_STOP, WIRE_FINISH_LENGTH };

struct wire_final {
    struct wire_str id, custom_id, batch_id, adapter, revision; /* revision absent for the base */
    uint32_t generation, attempt;
    char run[WIRE_ULID_BYTES + 1]; /* empty: never started */
    enum wire_status status;
    enum wire_finish finish;
    const char *error_code; /* NULL = none; err_name() */
    struct wire_str error_message, error_field;
    struct wire_str text;
    const uint32_t *tokens;
    size_t token_count;
    struct wire_logprobs logprobs;
    uint32_t prompt_tokens, completion_tokens, cached_tokens;
    struct { /* milliseconds, on the wire to the microsecond; < 0 = did not happen */
        double queued, first_token, total;
    } timing;
    struct wire_str worker;
    struct wire_str topic; /* source; "@file" for files */
    int32_t partition;
    int64_t offset;
    const struct wire_pair *metadata;
    size_t metadata_count;
    void *memory;
};

/* Errors  ERR_NO_MEMORY; a final's ERR_TOO_LARGE: its logprobs are more than a reader takes. */
NODISCARD enum err wire_frame_encode(const struct wire_frame *f, enum wire_encoding encoding,
                                     struct wire_buffer *out);
NODISCARD enum err wire_final_encode(const struct wire_final *f, enum wire_encoding encoding,
                                     struct wire_buffer *out);
/* A job as submit sends it: absent fields are left out. */
NODISCARD enum err wire_job_encode(const struct wire_job *job, enum wire_encoding encoding,
                                   struct wire_buffer *out);
/* For readers (lorry collect, tail). Unknown fields are ignored. */
NODISCARD enum err wire_frame_decode(struct wire_frame *f, const void *data, size_t bytes,
                                     struct err_text *why);
NODISCARD enum err wire_final_decode(struct wire_final *f, const void *data, size_t bytes,
                                     struct err_text *why);
void wire_frame_deinit(struct wire_frame *f);
void wire_final_deinit(struct wire_final *f);

/* The reader's rule: true when (attempt, run) of `b` supersedes that of `a`. */
bool wire_supersedes(uint32_t attempt_a, const char *run_a, uint32_t attempt_b, const char *run_b);

/* One line of an OpenAI batch output file (succeeded) or error file (else), with its newline. Where
 * custom_id is absent the id stands for it. Tokens of logprobs are "token_id:<id>": there is no
 * tokenizer here. */
NODISCARD enum err wire_final_openai(const struct wire_final *f, struct wire_buffer *out);

/* The headers of a dead letter: `__dlq.errors.*` names and values, besides the unchanged bytes. */
enum { WIRE_DEAD_HEADERS = 8 };
struct wire_header {
    const char *name; /* static */
    char value[ERR_TEXT_BYTES];
};
uint32_t wire_dead_headers(struct wire_header headers[WIRE_DEAD_HEADERS], const char *topic,
                           int32_t partition, int64_t offset, const char *group, enum err error,
                           const struct err_text *why);

/* A ULID from Unix milliseconds and 10 random bytes, NUL-terminated; compared as text. */
void wire_ulid(char out[WIRE_ULID_BYTES + 1], int64_t unix_ms, const uint8_t random[10]);
int64_t wire_ulid_ms(const char *ulid); /* its Unix milliseconds; -1: not a ULID */

#endif
