/* settled.h - how far a file was submitted: the line up to which the broker has taken every job,
 * though reports come in any order. Thread: one. */
#ifndef LORRY_TOOLS_SETTLED_H
#define LORRY_TOOLS_SETTLED_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct settled_job {
    uint64_t line;
    bool done;
};

struct settled {              /* zero it, then set `lines` and `count` of an earlier part */
    struct settled_job *jobs; /* ring of those sent, from the oldest that is not done */
    uint64_t first, next;     /* numbers of jobs, in the order they were sent */
    uint64_t room;            /* a power of two */
    uint64_t lines;           /* all before this line of the input, from 0, is settled */
    uint64_t count;           /* jobs among these */
};

/* The job of `line` is sent now, lines in between were none; *number names it from now on.
 * ERR_NO_MEMORY. */
NODISCARD enum err settled_send(struct settled *s, uint64_t line, uint64_t *number);
uint64_t settled_line(const struct settled *s, uint64_t number); /* of a job that is not done */
void settled_done(struct settled *s, uint64_t number);           /* the broker has it */
void settled_deinit(struct settled *s);

#endif
