/* fuzz_config.c - any bytes as a config.json, a NUL and a generation_config.json: no crash, and
 * what is accepted is a model that the devices can take. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "model/config.h"
#include "tests/fuzz/fuzz.h"

static void demand(bool good, const char *what) {
    if (!good) {
        (void)fprintf(stderr, "fuzz_config: %s\n", what);
        abort();
    }
}

static void check_facts(const struct model_facts *f, const float *freq) {
    const struct kern_shape *s = &f->shape;
    demand(s->layers > 0 && s->layers <= MODEL_LAYERS_MAX, "layers");
    demand(s->hidden > 0 && s->intermediate > 0 && s->vocab > 0 && s->positions > 0, "sizes");
    demand(s->kv_heads > 0 && s->heads % s->kv_heads == 0, "heads");
    demand(s->head_dim % 8 == 0 && s->head_dim > 0 && s->head_dim <= KERN_HEAD_DIM_MAX, "head_dim");
    demand(s->norm_eps >= 0 && s->norm_eps <= 1, "norm_eps");
    demand(s->rope_freq == freq && s->rope_scale == 1, "rope");
    for (uint32_t i = 0; i < s->head_dim / 2; i++) {
        demand(isfinite(freq[i]) && freq[i] >= 0 && freq[i] <= 1, "a frequency");
    }
    demand(f->eos_count <= MODEL_EOS_MAX, "too many stop tokens");
    for (uint32_t i = 0; i < f->eos_count; i++) {
        demand(f->eos[i] < s->vocab, "a stop token beyond the vocabulary");
    }
    demand(f->temperature >= 0 && f->temperature <= 100, "temperature");
    demand(f->top_p >= 0 && f->top_p <= 1, "top_p");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    log_configure(LOG_ERROR, NULL); /* defaults that are ignored are announced */
    const uint8_t *nul = bytes == 0 ? NULL : memchr(data, 0, bytes);
    size_t first = nul == NULL ? bytes : (size_t)(nul - data);
    size_t second = nul == NULL ? 0 : bytes - first - 1;
    uint8_t *config = malloc(first > 0 ? first : 1); /* of their own: a byte too far is seen */
    uint8_t *generation = malloc(second > 0 ? second : 1);
    demand(config != NULL && generation != NULL, "memory");
    memcpy(config, data, first);
    if (second > 0) {
        memcpy(generation, nul + 1, second);
    }
    const struct model_bytes files[] = {{config, first}, {generation, second}};
    struct model_facts facts;
    struct err_text why = {0};
    float *freq = NULL;
    enum err e = model_config_parse(&facts, &freq, &files[0], &files[1], &why);
    if (e == ERR_OK) {
        check_facts(&facts, freq);
    } else {
        demand(e == ERR_BAD_MODEL, err_name(e));
        demand(fuzz_reason_good(&why), why.message);
    }
    free(freq);
    free(generation);
    free(config);
    return 0;
}
