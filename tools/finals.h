/* finals.h - the finals of a batch as `collect` gathers them: one an id, by the reader's rule.
 *
 * All are kept in memory: their bytes and some 150 bytes each. Thread: one. */
#ifndef LORRY_TOOLS_FINALS_H
#define LORRY_TOOLS_FINALS_H

#include "tools/batch.h"

enum { FINALS_STATUSES = WIRE_CANCELLED + 1 };

struct finals_entry {
    char *value; /* owned; as it was received */
    size_t bytes;
    uint64_t line; /* BATCH_NO_LINE: its id does not say */
    uint32_t arrival, generation, attempt;
    enum wire_status status;
    char run[WIRE_ULID_BYTES + 1];
};

struct finals { /* zero it first */
    struct finals_entry *entries;
    uint32_t count, room;
    uint64_t statuses[FINALS_STATUSES];
    uint64_t tokens; /* completion tokens of all that came, also of those superseded */
    struct ids ids;
};

/* Takes a final that was decoded from `value`: adds it, or replaces that of the same id when its
 * generation, else its (attempt, run), is greater.
 * Errors  ERR_NO_MEMORY; ERR_BAD_MESSAGE: its id holds a NUL. */
NODISCARD enum err finals_upsert(struct finals *f, const char *batch_id,
                                 const struct wire_final *final, const void *value, size_t bytes);

/* By line; what has none stands behind, in the order it came. Upserts are over then. */
void finals_sort(struct finals *f);
void finals_deinit(struct finals *f);

enum finals_format { FINALS_JSONL, FINALS_OPENAI };

/* Appends one line for the entry, with its newline. Errors  ERR_NO_MEMORY, those of decoding. */
NODISCARD enum err finals_line(const struct finals_entry *entry, enum finals_format format,
                               struct wire_buffer *out, struct err_text *why);

#endif
