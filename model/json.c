#include "model/json.h"

#include <string.h>

#include "base/check.h"

static const char *printable(const char *text, char *room, size_t room_bytes) {
    size_t i = 0;
    for (; text[i] != '\0' && i + 1 < room_bytes; i++) {
        room[i] = (text[i] >= ' ' && text[i] <= '~') ? text[i] : '?';
    }
    room[i] = '\0';
    return room;
}

const char *model_json_printable(const char *text, char room[MODEL_JSON_TEXT_BYTES]) {
    return text[0] != '\0' ? printable(text, room, MODEL_JSON_TEXT_BYTES) : "\"\"";
}

enum err model_json_parse(json_t **out, const void *data, uint64_t bytes,
                          struct model_origin origin, struct err_text *why) {
    json_error_t error;
    json_t *root = json_loadb(data, bytes, JSON_REJECT_DUPLICATES, &error);
    if (root == NULL) {
        char room[JSON_ERROR_TEXT_LENGTH]; /* it quotes what it stopped at */
        return err_set_field(why, origin.bad, origin.file, "%s: line %d, column %d: %s",
                             origin.file, error.line, error.column,
                             printable(error.text, room, sizeof room));
    }
    if (!json_is_object(root)) {
        json_decref(root);
        return err_set_field(why, origin.bad, origin.file, "%s: not a JSON object", origin.file);
    }
    *out = root;
    return ERR_OK;
}

bool model_json_has(const struct model_json *j, const char *key) {
    const json_t *value = json_object_get(j->object, key);
    return value != NULL && !json_is_null(value);
}

enum err model_json_need(const struct model_json *j, const char *key) {
    if (model_json_has(j, key)) {
        return ERR_OK;
    }
    return err_set_field(j->why, j->origin.bad, key, "%s: %s is missing", j->origin.file, key);
}

static enum err wrong(const struct model_json *j, const char *key, const char *wanted) {
    return err_set_field(j->why, j->origin.bad, key, "%s: %s must be %s", j->origin.file, key,
                         wanted);
}

enum err model_json_u32(const struct model_json *j, const char *key, uint32_t min, uint32_t max,
                        uint32_t *out) {
    CHECK(min <= max);
    if (!model_json_has(j, key)) {
        return ERR_OK;
    }
    const json_t *value = json_object_get(j->object, key);
    if (!json_is_integer(value)) {
        return wrong(j, key, "an integer");
    }
    json_int_t number = json_integer_value(value);
    if (number < (json_int_t)min || number > (json_int_t)max) {
        return err_set_field(j->why, j->origin.bad, key,
                             "%s: %s is %" JSON_INTEGER_FORMAT ", not %u .. %u", j->origin.file,
                             key, number, min, max);
    }
    *out = (uint32_t)number;
    return ERR_OK;
}

enum err model_json_number(const struct model_json *j, const char *key, double min, double max,
                           double *out) {
    if (!model_json_has(j, key)) {
        return ERR_OK;
    }
    const json_t *value = json_object_get(j->object, key);
    if (!json_is_number(value)) {
        return wrong(j, key, "a number");
    }
    double number = json_number_value(value);
    if (!(number >= min && number <= max)) {
        return err_set_field(j->why, j->origin.bad, key, "%s: %s is %g, not %g .. %g",
                             j->origin.file, key, number, min, max);
    }
    *out = number;
    return ERR_OK;
}

enum err model_json_bool(const struct model_json *j, const char *key, bool *out) {
    if (!model_json_has(j, key)) {
        return ERR_OK;
    }
    const json_t *value = json_object_get(j->object, key);
    if (!json_is_boolean(value)) {
        return wrong(j, key, "true or false");
    }
    *out = json_boolean_value(value);
    return ERR_OK;
}

enum err model_json_string(const struct model_json *j, const char *key, const char **out) {
    if (!model_json_has(j, key)) {
        return ERR_OK;
    }
    const json_t *value = json_object_get(j->object, key);
    if (!json_is_string(value)) {
        return wrong(j, key, "a string");
    }
    *out = json_string_value(value);
    return ERR_OK;
}

bool model_json_empty(const json_t *value) {
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return json_object_size(value) == 0;
    case JSON_ARRAY:
        return json_array_size(value) == 0;
    case JSON_STRING:
        return json_string_length(value) == 0;
    case JSON_INTEGER:
    case JSON_REAL:
        return json_number_value(value) == 0;
    case JSON_TRUE:
        return false;
    case JSON_FALSE:
    case JSON_NULL:
        return true;
    }
    return false;
}
