/* utf8.h - strict UTF-8: no overlong forms, no surrogates, nothing above U+10FFFF.
 *
 * Thread: any. Cost: linear in the bytes. */
#ifndef LORRY_WIRE_UTF8_H
#define LORRY_WIRE_UTF8_H

#include <stddef.h>

/* The bytes of the longest valid prefix of `text`; equal to `bytes` when all of it is valid. */
size_t wire_utf8_prefix(const char *text, size_t bytes);

#endif
