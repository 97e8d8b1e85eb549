/* fuzz.h - a fuzz target's one function, as libFuzzer calls it. */
#ifndef LORRY_TESTS_FUZZ_H
#define LORRY_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

/* Aborts on a fault; returns 0. `data` has no room behind `bytes`. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

#endif
