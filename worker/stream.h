/* stream.h - from tokens to text: decoding, stop strings, and what may be shown already.
 *
 * Thread: publish. */
#ifndef LORRY_WORKER_STREAM_H
#define LORRY_WORKER_STREAM_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"
#include "worker/job.h"

/* Feeds the tokens that are new in job->output to its decoder, appends to job->text and looks for
 * stop strings; the first one found cuts the text and sets job->kept, stop_cut and stop_found. */
NODISCARD enum err stream_advance(struct job *job, const struct text *text);

/* The end: appends what the decoder held back. After it, job->text is the final's text. */
NODISCARD enum err stream_finish(struct job *job, const struct text *text);

/* How many bytes of job->text can not be cut by a stop string any more. */
size_t stream_safe_bytes(const struct job *job);

/* Tokens of the final: all, or up to the one that completed the stop string. */
uint32_t stream_tokens(const struct job *job);

#endif
