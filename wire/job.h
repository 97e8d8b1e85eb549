/* job.h - the tables of a job's fields that our own jobs and OpenAI's batch lines share. */
#ifndef LORRY_WIRE_JOB_H
#define LORRY_WIRE_JOB_H

#include "wire/reader.h"

extern const struct wire_table wire_job_identity; /* kept even when the job is rejected */
extern const struct wire_table wire_job_envelope; /* about the job, not about its answer */
extern const struct wire_table wire_job_request;  /* names as in OpenAI's and vLLM's requests */

/* Reads an OpenAI batch line; `body` is the value of its `body`. */
NODISCARD enum err wire_openai_read(struct wire_reader *r, struct wire_job *job,
                                    struct wire_value root, struct wire_value body);

wire_read_fn wire_read_prompt;   /* a string that is not empty */
wire_read_fn wire_read_tokens;   /* a prompt of token ids */
wire_read_fn wire_read_messages; /* a chat */

#endif
