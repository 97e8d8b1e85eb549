/* tail.h - the text of a job as its frames tell it; pure. Thread: one. */
#ifndef LORRY_TOOLS_TAIL_H
#define LORRY_TOOLS_TAIL_H

#include "wire/wire.h"

enum tail_news {
    TAIL_NOTHING, /* a frame of an older attempt, or one that was there */
    TAIL_TEXT,    /* the text may have grown */
    TAIL_RESTART, /* what stood behind text_bytes_kept is void, and the text may have grown */
    TAIL_END,     /* as TAIL_TEXT, and the stream is over */
};

struct tail { /* zero it first */
    struct wire_buffer text;
    size_t text_bytes_kept; /* of the text before the latest restart */
    uint32_t attempt, seq_next;
    char run[WIRE_ULID_BYTES + 1];
    bool started, ended;
    struct tail_border { /* where a frame begins */
        uint32_t pos;
        size_t text_bytes;
    } * borders;
    uint32_t border_count, border_room;
};

/* Takes the next frame of the partition. Errors  ERR_NO_MEMORY. */
NODISCARD enum err tail_frame(struct tail *t, const struct wire_frame *f, enum tail_news *news);
void tail_deinit(struct tail *t);

#endif
