/* hash.h - FNV-1a, for tables of this process and seeds; not for input that an enemy chooses.
 *
 * Values are the same on every machine and in every version: seeds of jobs depend on them. */
#ifndef LORRY_BASE_HASH_H
#define LORRY_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

#define HASH_START 14695981039346656037ULL

/* Mixes one more number in. Tables that mask the result should fold its high half down first. */
static inline uint64_t hash_add(uint64_t hash, uint64_t value) {
    return (hash ^ value) * 1099511628211ULL;
}

static inline uint64_t hash_bytes(const char *bytes, size_t count) {
    uint64_t hash = HASH_START;
    for (size_t i = 0; i < count; i++) {
        hash = hash_add(hash, (unsigned char)bytes[i]);
    }
    return hash;
}

#endif
