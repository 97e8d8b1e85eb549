/* peft_config.h - adapter_config.json: what scales an adapter, and what is refused.
 *
 * PEFT's rule for rank_pattern and alpha_pattern: the first KEY, in the file's order, for which the
 * regular expression (.*\.)?(KEY)$ matches the module's path. Most keys are dotted names; the
 * others are run by regcomp(3); those that it would read differently from Python are refused, and
 * those that could cost it without bound.
 */
#ifndef LORRY_MODEL_PEFT_CONFIG_H
#define LORRY_MODEL_PEFT_CONFIG_H

#include <jansson.h>
#include <regex.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "model/file.h"

enum {
    MODEL_PEFT_BYTES_MAX = 1 << 20, /* of adapter_config.json */
    MODEL_PATTERN_BYTES_MAX = 256,  /* of one key */
    MODEL_EXPRESSIONS_MAX = 64,     /* keys of a pattern that regcomp(3) must read */
};

#define MODEL_PEFT_FILE "adapter_config.json"

struct model_pattern {
    char *key;     /* a dotted name, in which a dot is any character; NULL: use regex */
    regex_t regex; /* if key is NULL */
    double value;
};

struct model_patterns {
    struct model_pattern *list;
    size_t count;
};

struct model_peft {
    uint32_t rank;
    double alpha;
    bool rslora;
    bool lora_bias; /* each lora_B has a bias */
    struct model_patterns ranks, alphas;
    json_t *document; /* the whole file */
};

/* Errors  ERR_BAD_ADAPTER (not JSON, a wrong type), ERR_UNSUPPORTED_ADAPTER (a field that changes
 *         the output in a way that is not built), both naming the field; ERR_NO_MEMORY. */
NODISCARD enum err model_peft_parse(struct model_peft *out, const struct model_bytes *bytes,
                                    struct err_text *why);
void model_peft_deinit(struct model_peft *p);

/* Whether PEFT would put LoRA on the module at `path`: by target_modules, exclude_modules and
 * layers_to_transform, where they are lists or "all-linear". An expression, or nothing, says yes:
 * PEFT saves tensors of no module that it did not find. */
bool model_peft_targets(const struct model_peft *p, const char *path);
/* Of the module at `path`, e.g. "model.layers.0.self_attn.q_proj". Thread: any. */
uint32_t model_peft_rank(const struct model_peft *p, const char *path);
/* alpha / rank, or alpha / √rank under rsLoRA; `rank` is the module's. */
float model_peft_scale(const struct model_peft *p, const char *path, uint32_t rank);

#endif
