#include "wire/utf8.h"

#include <stdint.h>
#include <string.h>

/* The bytes of the character at `p`, 0 when it is not valid. The second byte has its own range:
 * that is where overlong forms, surrogates and code points above U+10FFFF are told from good ones.
 */
static size_t char_bytes(const uint8_t *p, size_t left) {
    uint8_t lead = p[0];
    size_t bytes = 0;
    uint8_t low = 0x80;
    uint8_t high = 0xBF;
    if (lead < 0x80) {
        return 1;
    }
    if (lead >= 0xC2 && lead <= 0xDF) {
        bytes = 2;
    } else if (lead >= 0xE0 && lead <= 0xEF) {
        bytes = 3;
        low = lead == 0xE0 ? 0xA0 : low;
        high = lead == 0xED ? 0x9F : high;
    } else if (lead >= 0xF0 && lead <= 0xF4) {
        bytes = 4;
        low = lead == 0xF0 ? 0x90 : low;
        high = lead == 0xF4 ? 0x8F : high;
    } else {
        return 0;
    }
    if (left < bytes || p[1] < low || p[1] > high) {
        return 0;
    }
    for (size_t i = 2; i < bytes; i++) {
        if ((p[i] & 0xC0) != 0x80) {
            return 0;
        }
    }
    return bytes;
}

size_t wire_utf8_prefix(const char *text, size_t bytes) {
    const uint8_t *p = (const uint8_t *)text;
    size_t at = 0;
    while (at < bytes) {
        uint64_t eight = 0; /* most text is ASCII: eight bytes at a time */
        if (bytes - at >= sizeof eight) {
            memcpy(&eight, p + at, sizeof eight);
            if ((eight & UINT64_C(0x8080808080808080)) == 0) {
                at += sizeof eight;
                continue;
            }
        }
        size_t step = char_bytes(p + at, bytes - at);
        if (step == 0) {
            break;
        }
        at += step;
    }
    return at;
}
