/* cases.h - the batches that bench_ops runs, and how their rows are spread over adapters. Pure. */
#ifndef LORRY_TOOLS_OPS_CASES_H
#define LORRY_TOOLS_OPS_CASES_H

#include <stdbool.h>

#include "tools/ops/runner.h"

enum { OPS_NAME_BYTES = 64, OPS_WORDS_MAX = 8 };

/* Index from 0 on; false: there are no more. `lora`: those that are run with adapters. */
bool ops_batch_at(uint32_t index, bool lora, struct ops_batch *out);
/* "decode-64@1024": rows, tokens of context; "prefill-4x2048@0": chunks, tokens of each, position
 * of the first; "mixed-256@1024+1x2048@0". Returns `room`. */
const char *ops_batch_name(const struct ops_batch *batch, char room[OPS_NAME_BYTES]);

enum ops_mix {
    OPS_ONE,      /* all rows the same adapter */
    OPS_EIGHT,    /* eight, equally often */
    OPS_DISTINCT, /* each chunk its own */
    OPS_ZIPF,     /* drawn with popularity 1 / rank */
    OPS_MIXES
};
const char *ops_mix_name(enum ops_mix mix);

/* Rank of index from 0 on; 0: there are no more. */
uint32_t ops_rank_at(uint32_t index);

/* Gives the chunks of `batch` to adapters, those of an adapter side by side, as the scheduler
 * does. False: another mix gives the same. */
bool ops_lora_mix(const struct ops_batch *batch, enum ops_mix mix, uint32_t rank,
                  struct ops_lora *out);

#endif
