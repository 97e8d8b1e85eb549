/* support.h - what the tests of wire/ share: one case in both encodings, and equality of records.
 */
#ifndef LORRY_TESTS_WIRE_SUPPORT_H
#define LORRY_TESTS_WIRE_SUPPORT_H

#include "wire/wire.h"

/* The msgpack message that says what the JSON text says. Aborts when the text is no JSON. The
 * caller's, free(). */
char *support_msgpack(const char *json, size_t *bytes);

/* Decodes the JSON text itself, or its msgpack twin. */
enum err support_decode(struct wire_job *job, const char *json, enum wire_encoding encoding,
                        const struct wire_options *options, struct err_text *why);

/* A job that must be refused: with which error, naming which field, in a message that contains
 * what. */
struct support_refusal {
    const char *json;
    enum err e;
    const char *field;
    const char *message;
};
/* Tries all in both encodings; aborts with a report at the first that is not refused so. */
void support_refused(const struct support_refusal *all, size_t count,
                     const struct wire_options *options);

/* NULL when both say the same, else the name of the first field that differs. Encoding, memory and
 * the count of unknown fields are not compared. */
const char *support_job_differs(const struct wire_job *a, const struct wire_job *b);
const char *support_frame_differs(const struct wire_frame *a, const struct wire_frame *b);
const char *support_final_differs(const struct wire_final *a, const struct wire_final *b);

bool support_str_is(struct wire_str s, const char *text); /* NULL = absent */

#endif
