/* fuzz.h - a fuzz target's one function, as libFuzzer calls it. */
#ifndef LORRY_TESTS_FUZZ_H
#define LORRY_TESTS_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* Aborts on a fault; returns 0. `data` has no room behind `bytes`. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* Whether an error tells a person why, and a terminal nothing but text. */
static inline bool fuzz_reason_good(const struct err_text *why) {
    for (const char *c = why->message; *c != '\0'; c++) {
        if ((unsigned char)*c < ' ' || *c == '\x7f') {
            return false;
        }
    }
    return why->message[0] != '\0' && why->field[0] != '\0';
}

#endif
