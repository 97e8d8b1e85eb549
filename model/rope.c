/* Rotary frequencies: of pair i of a head, θ^(−2i / head_dim), then scaled for longer contexts:
 *
 *   linear  f / factor
 *   llama3  by wavelength λ = 2π / f: above original / low_freq_factor f / factor, below original /
 *           high_freq_factor f, and between them a blend of the two, linear in original / λ
 *
 * All is computed in f32 in the order of transformers' steps, and a quotient of a constant as the
 * product with a reciprocal, as torch does: at positions of 100,000 a last bit is visible. */
#include "model/rope.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "model/config.h"

enum rope_type { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3 };

static const char *const type_names[] = {"default", "linear", "llama3"};

struct rope {
    enum rope_type type;
    double theta;  /* 0 = not given */
    double factor; /* of linear and llama3, as what follows is of llama3 */
    double low_freq_factor, high_freq_factor;
    double original; /* original_max_position_embeddings */
};

static const double FACTOR_MAX = 1e6;

static enum err read_type(const struct model_json *j, const char *field, const json_t *object,
                          enum rope_type *type) {
    const json_t *value = json_object_get(object, "rope_type");
    const json_t *older = json_object_get(object, "type");
    if (value != NULL && older != NULL && !json_equal(value, older)) {
        return err_set_field(j->why, j->origin.bad, field, "%s: %s: rope_type and type differ",
                             j->origin.file, field);
    }
    value = value == NULL ? older : value;
    if (value == NULL) {
        *type = ROPE_DEFAULT;
        return ERR_OK;
    }
    const char *name = json_string_value(value); /* NULL for what is no string */
    for (size_t i = 0; i < sizeof type_names / sizeof type_names[0] && name != NULL; i++) {
        if (strcmp(name, type_names[i]) == 0) {
            *type = (enum rope_type)i;
            return ERR_OK;
        }
    }
    char room[MODEL_JSON_TEXT_BYTES];
    return err_set_field(j->why, j->origin.bad, field,
                         "%s: %s: rotary embeddings of rope_type %s are not supported; default, "
                         "linear and llama3 are",
                         j->origin.file, field,
                         name == NULL ? "(no string)" : model_json_printable(name, room));
}

/* A number that the type needs. */
static enum err read_needed(const struct model_json *inner, const char *key, double min, double max,
                            double *out) {
    enum err e = model_json_need(inner, key);
    return e == ERR_OK ? model_json_number(inner, key, min, max, out) : e;
}

static enum err read_llama3(const struct model_json *j, const struct model_json *inner,
                            struct rope *rope) {
    enum err e =
        read_needed(inner, "low_freq_factor", 1 / FACTOR_MAX, FACTOR_MAX, &rope->low_freq_factor);
    if (e == ERR_OK) {
        e = read_needed(inner, "high_freq_factor", 1 / FACTOR_MAX, FACTOR_MAX,
                        &rope->high_freq_factor);
    }
    if (e == ERR_OK) {
        e = read_needed(inner, "original_max_position_embeddings", 1, MODEL_POSITIONS_MAX,
                        &rope->original);
    }
    if (e == ERR_OK && rope->high_freq_factor <= rope->low_freq_factor) {
        e = err_set_field(j->why, j->origin.bad, "high_freq_factor",
                          "%s: high_freq_factor is %g; it must exceed low_freq_factor, %g",
                          inner->origin.file, rope->high_freq_factor, rope->low_freq_factor);
    }
    double outer = rope->original; /* there it has precedence in transformers */
    if (e == ERR_OK) {
        e = model_json_number(j, "original_max_position_embeddings", 1, DBL_MAX, &outer);
    }
    if (e == ERR_OK && outer != rope->original) {
        e = err_set_field(j->why, j->origin.bad, "original_max_position_embeddings",
                          "%s: original_max_position_embeddings is given twice, with different "
                          "values",
                          j->origin.file);
    }
    return e;
}

static bool is_field_of(const char *key, enum rope_type type) {
    if (strcmp(key, "rope_type") == 0 || strcmp(key, "type") == 0 ||
        strcmp(key, "rope_theta") == 0) {
        return true;
    }
    if (strcmp(key, "factor") == 0) {
        return type != ROPE_DEFAULT;
    }
    return type == ROPE_LLAMA3 &&
           (strcmp(key, "low_freq_factor") == 0 || strcmp(key, "high_freq_factor") == 0 ||
            strcmp(key, "original_max_position_embeddings") == 0);
}

/* One of rope_scaling and rope_parameters. `*given` tells whether it says anything. */
static enum err read_object(const struct model_json *j, const char *field, struct rope *rope,
                            bool *given) {
    json_t *object = json_object_get(j->object, field);
    *given = object != NULL && !model_json_empty(object);
    if (!*given) {
        return ERR_OK;
    }
    if (!json_is_object(object)) {
        return err_set_field(j->why, j->origin.bad, field, "%s: %s must be an object",
                             j->origin.file, field);
    }
    char place[64];
    (void)snprintf(place, sizeof place, "%s: %s", j->origin.file, field);
    struct model_json inner = {object, {place, j->origin.bad}, j->why};
    enum err e = read_type(j, field, object, &rope->type);
    if (e == ERR_OK) {
        e = model_json_number(&inner, "rope_theta", 1, DBL_MAX, &rope->theta);
    }
    if (e == ERR_OK && rope->type != ROPE_DEFAULT) {
        e = read_needed(&inner, "factor", 1, FACTOR_MAX, &rope->factor);
    }
    if (e == ERR_OK && rope->type == ROPE_LLAMA3) {
        e = read_llama3(j, &inner, rope);
    }
    const char *key = NULL;
    const json_t *value = NULL;
    json_object_foreach(object, key, value) {
        bool whole = strcmp(key, "partial_rotary_factor") == 0 && json_number_value(value) == 1;
        if (e == ERR_OK && !whole && !json_is_null(value) && !is_field_of(key, rope->type)) {
            char room[MODEL_JSON_TEXT_BYTES];
            e = err_set_field(j->why, j->origin.bad, field,
                              "%s: %s is not supported with rope_type %s", place,
                              model_json_printable(key, room), type_names[rope->type]);
        }
    }
    return e;
}

/* All that is given must agree. */
static enum err read_all(const struct model_json *j, struct rope *rope) {
    struct rope scaling = {0};
    struct rope parameters = {0};
    bool scaling_given = false;
    bool parameters_given = false;
    double plain = 0;
    enum err e = model_json_number(j, "rope_theta", 1, DBL_MAX, &plain);
    if (e == ERR_OK) {
        e = read_object(j, "rope_scaling", &scaling, &scaling_given);
    }
    if (e == ERR_OK) {
        e = read_object(j, "rope_parameters", &parameters, &parameters_given);
    }
    if (e != ERR_OK) {
        return e;
    }
    double theta = fmax(plain, fmax(scaling.theta, parameters.theta));
    if ((plain != 0 && plain != theta) || (scaling.theta != 0 && scaling.theta != theta) ||
        (parameters.theta != 0 && parameters.theta != theta)) {
        return err_set_field(j->why, j->origin.bad, "rope_theta",
                             "%s: rope_theta is given twice, with different values",
                             j->origin.file);
    }
    if (scaling_given && parameters_given &&
        (scaling.type != parameters.type || scaling.factor != parameters.factor ||
         scaling.low_freq_factor != parameters.low_freq_factor ||
         scaling.high_freq_factor != parameters.high_freq_factor ||
         scaling.original != parameters.original)) {
        return err_set_field(j->why, j->origin.bad, "rope_scaling",
                             "%s: rope_scaling and rope_parameters differ", j->origin.file);
    }
    *rope = scaling_given ? scaling : parameters;
    rope->theta = theta == 0 ? 10000 : theta; /* transformers' default for all architectures */
    return ERR_OK;
}

/* ---- frequencies -------------------------------------------------------------------------- */

static float scale_llama3(const struct rope *r, float f) {
    float factor = (float)r->factor;
    float wavelength = 1.0F / f * (float)(2 * M_PI);
    if (wavelength > (float)(r->original / r->low_freq_factor)) {
        return f / factor;
    }
    if (wavelength < (float)(r->original / r->high_freq_factor)) {
        return f;
    }
    float smooth = (1.0F / wavelength * (float)r->original - (float)r->low_freq_factor) /
                   (float)(r->high_freq_factor - r->low_freq_factor);
    return (1 - smooth) * f / factor + smooth * f;
}

enum err model_rope_read(const struct model_json *j, const struct kern_shape *shape, float **freq) {
    CHECK(shape->head_dim > 0);
    struct rope rope = {0};
    enum err e = read_all(j, &rope);
    if (e != ERR_OK) {
        return e;
    }
    uint32_t count = shape->head_dim / 2;
    float *f = malloc(count * sizeof *f);
    if (f == NULL) {
        return err_set(j->why, ERR_NO_MEMORY, "no memory for %u rotary frequencies", count);
    }
    for (uint32_t i = 0; i < count; i++) {
        float exponent = (float)(2 * i) / (float)shape->head_dim;
        f[i] = 1.0F / (float)pow(rope.theta, exponent);
        switch (rope.type) {
        case ROPE_DEFAULT:
            break;
        case ROPE_LINEAR:
            f[i] /= (float)rope.factor;
            break;
        case ROPE_LLAMA3:
            f[i] = scale_llama3(&rope, f[i]);
            break;
        }
    }
    *freq = f;
    return ERR_OK;
}
