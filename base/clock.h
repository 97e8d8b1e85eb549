/* clock.h - the two clocks. Pure code takes time as an argument and never includes this. */
#ifndef LORRY_BASE_CLOCK_H
#define LORRY_BASE_CLOCK_H

#include <stdint.h>

int64_t clock_wall_ms(void); /* Unix time: deadlines and records */
int64_t clock_mono_us(void); /* monotonic: intervals */
void clock_sleep_ms(uint32_t ms);

#endif
