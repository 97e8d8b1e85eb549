/* philox.h - Philox 4x32-10, a counter-based random generator (Salmon et al., SC 2011).
 *
 * A pure function of counter and key: a draw needs no state and does not depend on the batch. */
#ifndef LORRY_KERNELS_PHILOX_H
#define LORRY_KERNELS_PHILOX_H

#include <stdint.h>

void philox_4x32_10(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

#endif
