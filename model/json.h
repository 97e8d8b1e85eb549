/* json.h - strict reading of the JSON files of models and adapters: jansson's parser, with the
 * file's and the field's name in every error.
 *
 * A field that is absent or null leaves `*out` as it was, so the caller sets the default before. */
#ifndef LORRY_MODEL_JSON_H
#define LORRY_MODEL_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

/* Whose fault a bad file is, and what it is called. */
struct model_origin {
    const char *file;
    enum err bad; /* ERR_BAD_MODEL or ERR_BAD_ADAPTER */
};

/* An object being read. */
struct model_json {
    const json_t *object;
    struct model_origin origin;
    struct err_text *why;
};

/* Parses one JSON object; duplicate keys and anything after it are errors. The caller's to
 * json_decref(). */
NODISCARD enum err model_json_parse(json_t **out, const void *data, uint64_t bytes,
                                    struct model_origin origin, struct err_text *why);

enum { MODEL_JSON_TEXT_BYTES = 64 };
/* A text of the file as it may stand in a message: cut off, and without what a terminal could take
 * for a command. Never empty. */
const char *model_json_printable(const char *text, char room[MODEL_JSON_TEXT_BYTES]);

bool model_json_has(const struct model_json *j, const char *key); /* there and not null */
NODISCARD enum err model_json_need(const struct model_json *j, const char *key);

NODISCARD enum err model_json_u32(const struct model_json *j, const char *key, uint32_t min,
                                  uint32_t max, uint32_t *out);
NODISCARD enum err model_json_number(const struct model_json *j, const char *key, double min,
                                     double max, double *out);
NODISCARD enum err model_json_bool(const struct model_json *j, const char *key, bool *out);
/* *out points into the document. */
NODISCARD enum err model_json_string(const struct model_json *j, const char *key, const char **out);

/* null, false, 0, "", [] and {}: what a saver writes for an option that nobody set. */
bool model_json_empty(const json_t *value);

#endif
