/* final.h - what the OpenAI line of a final shares with its own encoding. */
#ifndef LORRY_WIRE_FINAL_H
#define LORRY_WIRE_FINAL_H

#include "wire/emit.h"

/* An id of ours, or "@topic/partition/offset". */
enum { WIRE_FINAL_ID_BYTES_MAX = 1 + WIRE_TOPIC_BYTES_MAX + 1 + 10 + 1 + 20 };

const char *wire_finish_name(enum wire_finish finish); /* NULL for none */
void wire_emit_usage_field(struct wire_emit *w, const struct wire_final *f);

#endif
