#include <stddef.h>
#include <stdlib.h>

#include "wire/reader.h"

enum { CHUNK_BYTES_MIN = 512 };

struct wire_chunk {
    struct wire_chunk *next; /* older */
    size_t room, used;
    _Alignas(max_align_t) char data[];
};

void *wire_arena_take(struct wire_arena *arena, size_t bytes, size_t align) {
    struct wire_chunk *c = arena->first;
    size_t at = c == NULL ? 0 : (c->used + align - 1) / align * align;
    if (c == NULL || at > c->room || bytes > c->room - at) {
        size_t room = c == NULL ? arena->hint : c->room / 2;
        room = room < CHUNK_BYTES_MIN ? CHUNK_BYTES_MIN : room;
        room = room < bytes ? bytes : room;
        c = malloc(sizeof *c + room);
        if (c == NULL) {
            return NULL;
        }
        *c = (struct wire_chunk){.next = arena->first, .room = room};
        arena->first = c;
        at = 0;
    }
    c->used = at + bytes;
    return c->data + at;
}

void wire_memory_free(void *memory) {
    struct wire_chunk *c = memory;
    while (c != NULL) {
        struct wire_chunk *next = c->next;
        free(c);
        c = next;
    }
}
