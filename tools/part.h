/* part.h - OUT.part: the finals that `collect` has so far, so that it can go on when it was ended.
 *
 * A line is a final, or an object that only says where in the results topic the lines before it
 * end; the first one names the batch. It is only ever appended to: what follows the last offsets is
 * read again from the topic, and a torn end is cut off. Thread: one. */
#ifndef LORRY_TOOLS_PART_H
#define LORRY_TOOLS_PART_H

#include <stdio.h>

#include "tools/finals.h"

struct part {   /* zero it first */
    FILE *file; /* NULL = none is kept */
    char *path; /* owned */
    struct wire_buffer line;
};

/* Opens `<out>.part`, or makes it. What is of this batch goes into `finals` and `offsets` (the next
 * of each partition; the caller's values stay where the file has none); another batch's is
 * overwritten.
 * Errors  ERR_BAD_CONFIG: it cannot be read or written; ERR_NO_MEMORY. */
NODISCARD enum err part_open(struct part *p, const char *out, const struct manifest *m,
                             struct finals *finals, int64_t *offsets, uint32_t partition_count,
                             struct err_text *why);

/* Appends a final as it was received. Errors  ERR_BAD_CONFIG (the disk), those of decoding. */
NODISCARD enum err part_add(struct part *p, const void *value, size_t bytes, struct err_text *why);
/* All before these offsets was added. */
NODISCARD enum err part_mark(struct part *p, const int64_t *offsets, uint32_t partition_count,
                             struct err_text *why);

void part_close(struct part *p, bool remove); /* a zeroed one is fine */

#endif
