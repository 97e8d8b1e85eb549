/* seed.h - random numbers of tests: the same for the same seed everywhere.
 *
 * LORRY_SEED=n replays a run; a test prints the seed that it took. */
#ifndef LORRY_TESTS_UNIT_SEED_H
#define LORRY_TESTS_UNIT_SEED_H

#include <stdint.h>
#include <stdlib.h>

static inline uint64_t seed_take(uint64_t usual) {
    const char *text = getenv("LORRY_SEED");
    return text == NULL ? usual : strtoull(text, NULL, 0);
}

/* splitmix64 */
static inline uint64_t seed_next(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15U);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
}

/* 0 .. below - 1 */
static inline uint32_t seed_below(uint64_t *state, uint32_t below) {
    return (uint32_t)((seed_next(state) >> 32) * below >> 32);
}

#endif
