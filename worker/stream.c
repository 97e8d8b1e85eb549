#include "worker/stream.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"

enum { TEXT_ROOM_FIRST = 256 };

static enum err text_append(struct job *job, const char *piece, size_t bytes) {
    if (job->text_bytes + bytes > job->text_room) {
        size_t room = job->text_room > 0 ? job->text_room : TEXT_ROOM_FIRST;
        while (room < job->text_bytes + bytes) {
            room *= 2;
        }
        char *grown = realloc(job->text, room);
        if (grown == NULL) {
            return ERR_NO_MEMORY;
        }
        job->text = grown;
        job->text_room = room;
    }
    if (bytes > 0) {
        memcpy(job->text + job->text_bytes, piece, bytes);
        job->text_bytes += bytes;
    }
    return ERR_OK;
}

/* Looks for the stop string that begins first, among those that end in the text after `old_bytes`.
 */
static void cut_at_stop(struct job *job, size_t old_bytes) {
    size_t cut = SIZE_MAX;
    for (size_t i = 0; i < job->wire.stop_count; i++) {
        const struct wire_str *stop = &job->wire.stop[i];
        if (stop->bytes == 0 || job->text_bytes < stop->bytes) {
            continue;
        }
        size_t from = old_bytes >= stop->bytes ? old_bytes - stop->bytes + 1 : 0;
        const char *found =
            memmem(job->text + from, job->text_bytes - from, stop->data, stop->bytes);
        if (found != NULL && (size_t)(found - job->text) < cut) {
            cut = (size_t)(found - job->text);
        }
    }
    if (cut != SIZE_MAX) {
        CHECK(cut >= job->text_sent); /* stream_safe_bytes() held it back */
        job->text_bytes = cut;
        job->kept = job->decoded;
        job->stop_cut = true;
        atomic_store_explicit(&job->stop_found, true, memory_order_release);
    }
}

static bool is_stop_token(const struct job *job, uint32_t token) {
    for (uint32_t i = 0; i < job->sampling.stop_count; i++) {
        if (job->sampling.stop[i] == token) {
            return true;
        }
    }
    return false;
}

enum err stream_advance(struct job *job, const struct text *text) {
    uint32_t count = atomic_load_explicit(&job->output_count, memory_order_acquire);
    if (job->decoder == NULL && count > 0) {
        enum err opened = text_stream_open(&job->decoder, text);
        if (opened != ERR_OK) {
            return opened;
        }
    }
    while (job->decoded < count && !job->stop_cut) {
        uint32_t token = job->output[job->decoded++];
        if (is_stop_token(job, token)) {
            continue; /* it ends the text and is not part of it */
        }
        const char *piece = NULL;
        size_t bytes = 0;
        enum err pushed = text_stream_push(job->decoder, token, &piece, &bytes);
        if (pushed != ERR_OK) {
            return pushed;
        }
        size_t old_bytes = job->text_bytes;
        enum err appended = text_append(job, piece, bytes);
        if (appended != ERR_OK) {
            return appended;
        }
        cut_at_stop(job, old_bytes);
    }
    return ERR_OK;
}

enum err stream_finish(struct job *job, const struct text *text) {
    enum err e = stream_advance(job, text);
    if (e != ERR_OK || job->decoder == NULL || job->stop_cut) {
        return e;
    }
    const char *piece = NULL;
    size_t bytes = 0;
    e = text_stream_finish(job->decoder, &piece, &bytes);
    if (e != ERR_OK) {
        return e;
    }
    size_t old_bytes = job->text_bytes;
    e = text_append(job, piece, bytes);
    if (e == ERR_OK) {
        cut_at_stop(job, old_bytes);
    }
    return e;
}

size_t stream_safe_bytes(const struct job *job) {
    if (job->stop_cut) {
        return job->text_bytes;
    }
    size_t held = 0; /* the longest end of the text that begins a stop string */
    for (size_t i = 0; i < job->wire.stop_count; i++) {
        const struct wire_str *stop = &job->wire.stop[i];
        size_t most = stop->bytes > 0 ? stop->bytes - 1 : 0;
        most = most < job->text_bytes ? most : job->text_bytes;
        for (size_t bytes = most; bytes > held; bytes--) {
            if (memcmp(job->text + job->text_bytes - bytes, stop->data, bytes) == 0) {
                held = bytes;
            }
        }
    }
    return job->text_bytes - held;
}

uint32_t stream_tokens(const struct job *job) {
    uint32_t count = atomic_load_explicit(&job->output_count, memory_order_acquire);
    return job->kept < count ? job->kept : count;
}
