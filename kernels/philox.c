#include "kernels/philox.h"

#include "kernels/kernels.h"

void kern_random(uint64_t seed, uint32_t position, uint32_t round, uint32_t out[4]) {
    const uint32_t counter[4] = {position, round, 0, 0};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    philox_4x32_10(counter, key, out);
}
