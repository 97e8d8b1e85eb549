/* fuzz_adapter_config.c - any bytes as an adapter_config.json: no crash, and what is accepted gives
 * every module a rank and a finite scale. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"
#include "model/peft_config.h"
#include "tests/fuzz/fuzz.h"

static const char *const paths[] = {
    "model.layers.0.self_attn.q_proj", "model.layers.17.self_attn.o_proj",
    "model.layers.125.mlp.down_proj", "model.embed_tokens", "lm_head"};

static void demand(bool good, const char *what, const char *detail) {
    if (!good) {
        (void)fprintf(stderr, "fuzz_adapter_config: %s: %s\n", what, detail);
        abort();
    }
}

static void check_peft(const struct model_peft *p) {
    demand(p->rank >= 1, "no rank", "");
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        uint32_t rank = model_peft_rank(p, paths[i]);
        demand(rank >= 1, "no rank", paths[i]);
        demand(isfinite(model_peft_scale(p, paths[i], rank)), "an infinite scale", paths[i]);
        (void)model_peft_targets(p, paths[i]);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    log_configure(LOG_ERROR, NULL);
    uint8_t *copy = malloc(bytes > 0 ? bytes : 1); /* model_bytes are not const */
    demand(copy != NULL, "memory", "");
    for (size_t i = 0; i < bytes; i++) {
        copy[i] = data[i];
    }
    const struct model_bytes file = {copy, bytes};
    struct model_peft peft;
    struct err_text why = {0};
    enum err e = model_peft_parse(&peft, &file, &why);
    if (e == ERR_OK) {
        check_peft(&peft);
        model_peft_deinit(&peft);
    } else {
        demand(e == ERR_BAD_ADAPTER || e == ERR_UNSUPPORTED_ADAPTER, "another error", err_name(e));
        demand(fuzz_reason_good(&why), "an error without a good reason", why.message);
    }
    free(copy);
    return 0;
}
