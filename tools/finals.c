#include "tools/finals.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"

static bool is_newer(const struct finals_entry *old, const struct wire_final *final) {
    if (final->generation != old->generation) {
        return final->generation > old->generation;
    }
    return wire_supersedes(old->attempt, old->run, final->attempt, final->run);
}

static enum err make_room(struct finals *f) {
    if (f->count < f->room) {
        return ERR_OK;
    }
    uint32_t room = f->room > 0 ? f->room * 2 : 64;
    struct finals_entry *entries = realloc(f->entries, room * sizeof *entries);
    if (entries == NULL) {
        return ERR_NO_MEMORY;
    }
    f->entries = entries;
    f->room = room;
    return ERR_OK;
}

enum err finals_upsert(struct finals *f, const char *batch_id, const struct wire_final *final,
                       const void *value, size_t bytes) {
    CHECK(final->id.data != NULL);
    if (memchr(final->id.data, '\0', final->id.bytes) != NULL) {
        return ERR_BAD_MESSAGE;
    }
    uint32_t index = 0;
    bool added = false;
    char *copy = malloc(bytes > 0 ? bytes : 1);
    enum err e = copy != NULL ? make_room(f) : ERR_NO_MEMORY;
    if (e == ERR_OK) {
        e = ids_add(&f->ids, final->id.data, final->id.bytes, 0, &index, &added);
    }
    if (e != ERR_OK) {
        free(copy);
        return e;
    }
    CHECK(added == (index == f->count));
    struct finals_entry *entry = &f->entries[index];
    if (added) {
        *entry = (struct finals_entry){
            .line = batch_line(batch_id, final->id.data, final->id.bytes), .arrival = f->count++};
    } else if (is_newer(entry, final)) {
        f->statuses[entry->status]--;
        free(entry->value);
    } else {
        free(copy);
        return ERR_OK;
    }
    memcpy(copy, value, bytes);
    entry->value = copy;
    entry->bytes = bytes;
    entry->generation = final->generation;
    entry->attempt = final->attempt;
    entry->status = final->status;
    memcpy(entry->run, final->run, sizeof entry->run);
    f->statuses[entry->status]++;
    f->tokens += final->completion_tokens;
    return ERR_OK;
}

static int compare(const void *a, const void *b) {
    const struct finals_entry *x = a;
    const struct finals_entry *y = b;
    if (x->line != y->line) {
        return x->line < y->line ? -1 : 1;
    }
    return x->arrival < y->arrival ? -1 : 1;
}

void finals_sort(struct finals *f) {
    if (f->count > 0) {
        qsort(f->entries, f->count, sizeof *f->entries, compare);
    }
}

void finals_deinit(struct finals *f) {
    for (uint32_t i = 0; i < f->count; i++) {
        free(f->entries[i].value);
    }
    free(f->entries);
    ids_deinit(&f->ids);
    *f = (struct finals){0};
}

static enum err append(struct wire_buffer *out, const char *data, size_t bytes) {
    if (out->room - out->bytes < bytes) {
        size_t room = out->bytes + bytes;
        char *grown = realloc(out->data, room);
        if (grown == NULL) {
            return ERR_NO_MEMORY;
        }
        out->data = grown;
        out->room = room;
    }
    memcpy(out->data + out->bytes, data, bytes);
    out->bytes += bytes;
    return ERR_OK;
}

enum err finals_line(const struct finals_entry *entry, enum finals_format format,
                     struct wire_buffer *out, struct err_text *why) {
    bool is_line = entry->bytes > 0 && entry->value[0] == '{' &&
                   memchr(entry->value, '\n', entry->bytes) == NULL;
    if (format == FINALS_JSONL && is_line) { /* its bytes, with whatever a newer worker added */
        enum err e = append(out, entry->value, entry->bytes);
        return e == ERR_OK ? append(out, "\n", 1) : e;
    }
    struct wire_final final;
    enum err e = wire_final_decode(&final, entry->value, entry->bytes, why);
    if (e == ERR_OK && format == FINALS_OPENAI) {
        e = wire_final_openai(&final, out);
    } else if (e == ERR_OK) {
        e = wire_final_encode(&final, WIRE_JSON, out);
        e = e == ERR_OK ? append(out, "\n", 1) : e;
    }
    wire_final_deinit(&final);
    return e;
}
