#include "model/peft_config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "model/json.h"

#define ALPHA_MAX 1e9 /* either way: a scale is finite */

/* ---- what may stand in the file ----------------------------------------------------------- */

/* Read below, or without effect on a trained adapter. Everything else, known to us or of a later
 * release of PEFT, must be unset (null, false, 0, empty): it is refused by name otherwise. That
 * covers use_dora, modules_to_save, trainable_token_indices, target_parameters,
 * layer_replication, alora_invocation_tokens, use_qalora, use_bdlora, kasa_config,
 * monteclora_config, arrow_config, ensure_weight_tying and fan_in_fan_out. */
static const char *const known[] = {
    /* read */
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "bias",
    "init_lora_weights",
    "base_model_name_or_path",
    /* which modules were trained: the tensors say it themselves */
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    /* of training only */
    "lora_dropout",
    "inference_mode",
    "task_type",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "velora_config",
    "megatron_config",
    "megatron_core",
    "runtime_config",
    "qalora_group_size", /* with use_qalora only */
    /* where it comes from */
    "revision",
    "auto_mapping",
    "peft_version",
};

/* What to do instead. */
static const char *remedy(const char *field) {
    static const char *const remedies[][2] = {
        {"modules_to_save", "train LoRA on those modules instead, or merge the adapter"},
        {"ensure_weight_tying", "train embedding and head apart, or merge the adapter"},
        {"fan_in_fan_out", "the model's modules are linear: set it to false"},
        {"peft_type", "only LORA is"},
        {"bias", "train with bias none, or merge the adapter"},
        {"init_lora_weights",
         "save the adapter converted (path_initial_model_for_weight_conversion)"},
    };
    for (size_t i = 0; i < sizeof remedies / sizeof remedies[0]; i++) {
        if (strcmp(remedies[i][0], field) == 0) {
            return remedies[i][1];
        }
    }
    return "train without it, or merge the adapter into its base model";
}

static enum err unsupported(const struct model_json *j, const char *field, const char *what) {
    return err_set_field(j->why, ERR_UNSUPPORTED_ADAPTER, field,
                         MODEL_PEFT_FILE ": %.128s %s, which is not supported; %s", field, what,
                         remedy(field));
}

static bool is_known(const char *field) {
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strcmp(known[i], field) == 0) {
            return true;
        }
    }
    return false;
}

static enum err check_fields(const struct model_json *j, json_t *root) {
    const char *field = NULL;
    const json_t *value = NULL;
    json_object_foreach(root, field, value) {
        if (!is_known(field) && !model_json_empty(value)) {
            char room[MODEL_JSON_TEXT_BYTES];
            return unsupported(j, model_json_printable(field, room), "is set");
        }
    }
    return ERR_OK;
}

static enum err check_type(const struct model_json *j) {
    const char *type = NULL;
    const char *bias = "none";
    enum err e = model_json_need(j, "peft_type");
    if (e == ERR_OK) {
        e = model_json_string(j, "peft_type", &type);
    }
    if (e == ERR_OK && strcmp(type, "LORA") != 0) {
        return unsupported(j, "peft_type", "is not LORA");
    }
    if (e == ERR_OK) {
        e = model_json_string(j, "bias", &bias);
    }
    if (e == ERR_OK && strcmp(bias, "none") != 0) {
        return unsupported(j, "bias", "asks for trained biases");
    }
    return e;
}

/* Some initialisations take the adapter's start out of the base weights. Their adapters are right
 * only when saved converted, and then this field is true. */
static enum err check_init(const struct model_json *j) {
    static const char *const keeps_base[] = {"gaussian", "eva", "orthogonal", "mica"};
    const json_t *value = json_object_get(j->object, "init_lora_weights");
    if (value == NULL || json_is_null(value) || json_is_boolean(value)) {
        return ERR_OK;
    }
    for (size_t i = 0; i < sizeof keeps_base / sizeof keeps_base[0]; i++) {
        if (json_is_string(value) && strcmp(json_string_value(value), keeps_base[i]) == 0) {
            return ERR_OK;
        }
    }
    return unsupported(j, "init_lora_weights", "names a start that changes the base weights");
}

/* ---- patterns ----------------------------------------------------------------------------- */

static bool is_name(char c) { /* whatever the locale */
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-';
}

/* Whether `key` is a dotted name. Its dots match any character, as in Python. */
static bool is_dotted(const char *key) {
    for (; *key != '\0'; key++) {
        if (!is_name(*key) && *key != '.') {
            return false;
        }
    }
    return true;
}

/* Copies a bracket expression; NULL when it is more than characters and ranges of names. */
static const char *copy_set(const char *in, char **out) {
    *(*out)++ = *in++; /* [ */
    if (*in == '^') {
        *(*out)++ = *in++;
    }
    const char *begin = in;
    while (is_name(*in) || *in == '.') {
        *(*out)++ = *in++;
    }
    if (*in != ']' || in == begin) {
        return NULL;
    }
    *(*out)++ = *in++;
    return in;
}

/* Rewrites the part of Python's syntax that means the same in POSIX; false for all else: other
 * escapes, lazy and possessive quantifiers, counts, look-around, empty branches. `out` has room for
 * five times the key. */
static bool translate(const char *in, char *out) {
    int depth = 0;
    bool atom = false; /* something stands before that a quantifier or a branch may follow */
    while (*in != '\0') {
        if (is_name(*in) || *in == '.') {
            *out++ = *in++;
            atom = true;
        } else if (in[0] == '\\' && in[1] == '.') {
            *out++ = *in++;
            *out++ = *in++;
            atom = true;
        } else if (in[0] == '\\' && in[1] == 'd') { /* paths are ASCII */
            memcpy(out, "[0-9]", 5);
            out += 5;
            in += 2;
            atom = true;
        } else if (*in == '[') {
            in = copy_set(in, &out);
            if (in == NULL) {
                return false;
            }
            atom = true;
        } else if (*in == '(') {
            *out++ = '(';
            in += in[1] == '?' && in[2] == ':' ? 3 : 1;
            depth++;
            atom = false;
        } else if (*in == ')' && depth > 0 && atom) {
            *out++ = *in++;
            depth--;
        } else if (*in == '|' && atom) {
            *out++ = *in++;
            atom = false;
        } else if ((*in == '*' || *in == '+' || *in == '?') && atom) {
            *out++ = *in++;
            if (*in == '*' || *in == '+' || *in == '?') {
                return false;
            }
        } else if (*in == '^' || *in == '$') { /* anchors in both, wherever they stand */
            *out++ = *in++;
            if (*in == '*' || *in == '+' || *in == '?') {
                return false;
            }
        } else {
            return false;
        }
    }
    *out = '\0';
    return depth == 0 && atom;
}

/* Whether what is repeated repeats something itself: regcomp() doubles what a + stands behind, so
 * that one key ((a+)+)+… could take all memory. */
static bool nests_repeats(const char *key) {
    bool repeats[MODEL_PATTERN_BYTES_MAX + 1] = {false}; /* the group open at each depth does */
    size_t depth = 0;
    for (const char *c = key; *c != '\0'; c++) {
        if (*c == '(') {
            repeats[++depth] = false;
        } else if (*c == ')' && depth > 0) {
            bool inner = repeats[depth--];
            if (inner && (c[1] == '*' || c[1] == '+')) {
                return true;
            }
            repeats[depth] = repeats[depth] || inner;
        } else if (*c == '*' || *c == '+') {
            repeats[depth] = true;
        }
    }
    return false;
}

static enum err pattern_init(struct model_pattern *p, const struct model_json *j, const char *field,
                             const char *key) {
    size_t length = strlen(key);
    if (length > 0 && length <= MODEL_PATTERN_BYTES_MAX && is_dotted(key)) {
        p->key = strdup(key);
        return p->key != NULL ? ERR_OK
                              : err_set(j->why, ERR_NO_MEMORY, "no memory for a pattern's key");
    }
    char expression[5 * MODEL_PATTERN_BYTES_MAX + 16];
    size_t prefix = strlen("^(.*\\.)?(");
    memcpy(expression, "^(.*\\.)?(", prefix);
    if (length == 0 || length > MODEL_PATTERN_BYTES_MAX || nests_repeats(key) ||
        !translate(key, expression + prefix)) {
        char room[MODEL_JSON_TEXT_BYTES];
        return err_set_field(j->why, ERR_UNSUPPORTED_ADAPTER, field,
                             MODEL_PEFT_FILE ": %s: the expression %s is not supported", field,
                             model_json_printable(key, room));
    }
    memcpy(expression + strlen(expression), ")$", sizeof ")$");
    if (regcomp(&p->regex, expression, REG_EXTENDED | REG_NOSUB) != 0) {
        char room[MODEL_JSON_TEXT_BYTES];
        return err_set_field(j->why, ERR_BAD_ADAPTER, field,
                             MODEL_PEFT_FILE ": %s: the expression %s does not compile", field,
                             model_json_printable(key, room));
    }
    return ERR_OK;
}

static void patterns_deinit(struct model_patterns *patterns) {
    for (size_t i = 0; i < patterns->count; i++) {
        if (patterns->list[i].key != NULL) {
            free(patterns->list[i].key);
        } else {
            regfree(&patterns->list[i].regex);
        }
    }
    free(patterns->list);
    *patterns = (struct model_patterns){0};
}

static enum err read_patterns(const struct model_json *j, const char *field, bool whole,
                              struct model_patterns *out) {
    json_t *object = json_object_get(j->object, field);
    if (object == NULL || model_json_empty(object)) {
        return ERR_OK;
    }
    if (!json_is_object(object)) {
        return err_set_field(j->why, ERR_BAD_ADAPTER, field,
                             MODEL_PEFT_FILE ": %s must be an object", field);
    }
    out->list = calloc(json_object_size(object), sizeof *out->list);
    if (out->list == NULL) {
        return err_set(j->why, ERR_NO_MEMORY, "no memory for %s", field);
    }
    unsigned expressions = 0;
    const char *key = NULL;
    const json_t *value = NULL;
    json_object_foreach(object, key, value) {
        double number = json_number_value(value);
        if (whole ? !json_is_integer(value) || number < 1 || number > INT32_MAX
                  : !json_is_number(value) || fabs(number) > ALPHA_MAX) {
            char room[MODEL_JSON_TEXT_BYTES];
            return err_set_field(
                j->why, ERR_BAD_ADAPTER, field, MODEL_PEFT_FILE ": %s: the value of %s is not a %s",
                field, model_json_printable(key, room), whole ? "rank" : "number up to 1e9");
        }
        struct model_pattern *p = &out->list[out->count];
        enum err e = pattern_init(p, j, field, key);
        if (e != ERR_OK) {
            return e;
        }
        p->value = number;
        out->count++;
        expressions += p->key == NULL;
        if (expressions > MODEL_EXPRESSIONS_MAX) {
            return err_set_field(j->why, ERR_UNSUPPORTED_ADAPTER, field,
                                 MODEL_PEFT_FILE ": %s has more than %d expressions", field,
                                 MODEL_EXPRESSIONS_MAX);
        }
    }
    return ERR_OK;
}

/* (.*\.)?(KEY)$ for a dotted KEY: it matches the path's tail, from its begin or after a dot. */
static bool tail_matches(const char *key, const char *path) {
    size_t key_length = strlen(key);
    size_t length = strlen(path);
    if (key_length > length) {
        return false;
    }
    const char *tail = path + length - key_length;
    if (tail != path && tail[-1] != '.') {
        return false;
    }
    for (size_t i = 0; i < key_length; i++) {
        if (key[i] != tail[i] && key[i] != '.') {
            return false;
        }
    }
    return true;
}

static double patterns_find(const struct model_patterns *patterns, const char *path,
                            double otherwise) {
    for (size_t i = 0; i < patterns->count; i++) {
        const struct model_pattern *p = &patterns->list[i];
        if (p->key != NULL ? tail_matches(p->key, path)
                           : regexec(&p->regex, path, 0, NULL, 0) == 0) {
            return p->value;
        }
    }
    return otherwise;
}

/* ---- targets ------------------------------------------------------------------------------ */

/* Whether a list names the module: its whole path, or its end after a dot. */
static bool list_names(const json_t *list, const char *path) {
    size_t i = 0;
    const json_t *value = NULL;
    json_array_foreach(list, i, value) {
        const char *name = json_string_value(value);
        size_t length = name == NULL ? 0 : strlen(name);
        size_t path_length = strlen(path);
        if (length == 0 || length > path_length || strcmp(path + path_length - length, name) != 0) {
            continue;
        }
        if (length == path_length || path[path_length - length - 1] == '.') {
            return true;
        }
    }
    return false;
}

/* layers_to_transform does not touch a module that target_modules names by its whole path. */
static bool layer_named(const json_t *layers, const json_t *targets, const char *path) {
    unsigned layer = 0;
    size_t i = 0;
    const json_t *value = NULL;
    json_array_foreach(targets, i, value) {
        if (json_is_string(value) && strcmp(json_string_value(value), path) == 0) {
            return true;
        }
    }
    if (sscanf(path, "model.layers.%u.", &layer) != 1) {
        return false;
    }
    if (json_is_integer(layers)) {
        return json_integer_value(layers) == layer;
    }
    json_array_foreach(layers, i, value) {
        if (json_integer_value(value) == layer) {
            return true;
        }
    }
    return false;
}

bool model_peft_targets(const struct model_peft *p, const char *path) {
    const json_t *targets = json_object_get(p->document, "target_modules");
    const json_t *layers = json_object_get(p->document, "layers_to_transform");
    if (list_names(json_object_get(p->document, "exclude_modules"), path)) {
        return false;
    }
    if (json_is_string(targets) && strcmp(json_string_value(targets), "all-linear") == 0) {
        return strncmp(path, "model.layers.", strlen("model.layers.")) == 0;
    }
    if (!json_is_array(targets) || json_array_size(targets) == 0) {
        return true;
    }
    bool by_layer = json_is_integer(layers) || json_array_size(layers) != 0;
    return list_names(targets, path) && (!by_layer || layer_named(layers, targets, path));
}

/* ---- the whole ---------------------------------------------------------------------------- */

static enum err read_fields(const struct model_json *j, json_t *root, struct model_peft *p) {
    const char *base = NULL;
    enum err e = check_type(j);
    if (e != ERR_OK || (e = check_fields(j, root)) != ERR_OK || (e = check_init(j)) != ERR_OK ||
        (e = model_json_u32(j, "r", 1, INT32_MAX, &p->rank)) != ERR_OK ||
        (e = model_json_number(j, "lora_alpha", -ALPHA_MAX, ALPHA_MAX, &p->alpha)) != ERR_OK ||
        (e = model_json_bool(j, "use_rslora", &p->rslora)) != ERR_OK ||
        (e = model_json_bool(j, "lora_bias", &p->lora_bias)) != ERR_OK ||
        (e = model_json_string(j, "base_model_name_or_path", &base)) != ERR_OK) {
        return e;
    }
    if (base != NULL) {
        char room[MODEL_JSON_TEXT_BYTES];
        char quoted[2 * MODEL_JSON_TEXT_BYTES + 3];
        log_debug("model", "an adapter names its base, which is not compared base=%s",
                  log_quote(quoted, sizeof quoted, model_json_printable(base, room)));
    }
    e = read_patterns(j, "rank_pattern", true, &p->ranks);
    return e == ERR_OK ? read_patterns(j, "alpha_pattern", false, &p->alphas) : e;
}

enum err model_peft_parse(struct model_peft *out, const struct model_bytes *bytes,
                          struct err_text *why) {
    struct model_json j = {.origin = {MODEL_PEFT_FILE, ERR_BAD_ADAPTER}, .why = why};
    struct model_peft p = {.rank = 8, .alpha = 8}; /* PEFT's defaults */
    json_t *root = NULL;
    enum err e = model_json_parse(&root, bytes->data, bytes->count, j.origin, why);
    if (e == ERR_OK) {
        j.object = root;
        p.document = root;
        e = read_fields(&j, root, &p);
    }
    if (e != ERR_OK) {
        model_peft_deinit(&p);
        return e;
    }
    *out = p;
    return ERR_OK;
}

void model_peft_deinit(struct model_peft *p) {
    patterns_deinit(&p->ranks);
    patterns_deinit(&p->alphas);
    json_decref(p->document);
    p->document = NULL;
}

uint32_t model_peft_rank(const struct model_peft *p, const char *path) {
    return (uint32_t)patterns_find(&p->ranks, path, p->rank);
}

float model_peft_scale(const struct model_peft *p, const char *path, uint32_t rank) {
    CHECK(rank > 0);
    double alpha = patterns_find(&p->alphas, path, p->alpha);
    return (float)(alpha / (p->rslora ? sqrt(rank) : rank));
}
