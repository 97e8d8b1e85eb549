/* cmocka_all.h - cmocka, and what it wants included before. */
#ifndef LORRY_TESTS_CMOCKA_ALL_H
#define LORRY_TESTS_CMOCKA_ALL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* keep the order */
#include <cmocka.h>

#endif
