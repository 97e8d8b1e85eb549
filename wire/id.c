#include <string.h>

#include "base/check.h"
#include "wire/wire.h"

const char *wire_content_type(enum wire_encoding encoding) {
    return encoding == WIRE_JSON ? "application/json" : "application/msgpack";
}

/* The characters that ids of jobs and of adapters share. */
static bool id_char(char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == ':' || c == '@' || c == '-';
}

static bool id_valid(struct wire_str id, bool slash) {
    if (id.data == NULL || id.bytes < 1 || id.bytes > WIRE_ID_BYTES_MAX || id.data[0] == '@') {
        return false;
    }
    for (size_t i = 0; i < id.bytes; i++) {
        if (!id_char(id.data[i]) && !(slash && id.data[i] == '/')) {
            return false;
        }
    }
    return true;
}

bool wire_id_valid(struct wire_str id) {
    return id_valid(id, true);
}

/* An adapter's id is a folder's name: no slash, nothing hidden, and so neither "." nor "..". */
bool wire_adapter_id_valid(struct wire_str id) {
    return id_valid(id, false) && id.data[0] != '.';
}

bool wire_supersedes(uint32_t attempt_a, const char *run_a, uint32_t attempt_b, const char *run_b) {
    CHECK(run_a != NULL && run_b != NULL);
    return attempt_b != attempt_a ? attempt_b > attempt_a : strcmp(run_b, run_a) > 0;
}

static const char ulid_digits[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"; /* Crockford's base 32 */
enum { TIME_DIGITS = 10, TIME_BITS = 48 };

void wire_ulid(char out[WIRE_ULID_BYTES + 1], int64_t unix_ms, const uint8_t random[10]) {
    CHECK(unix_ms >= 0 && unix_ms < INT64_C(1) << TIME_BITS);
    uint64_t time = (uint64_t)unix_ms;
    for (int i = TIME_DIGITS - 1; i >= 0; i--) {
        out[i] = ulid_digits[time & 31];
        time >>= 5;
    }
    for (int half = 0; half < 2; half++) { /* 5 bytes are 8 digits */
        uint64_t bits = 0;
        for (int i = 0; i < 5; i++) {
            bits = bits << 8 | random[half * 5 + i];
        }
        for (int i = 7; i >= 0; i--) {
            out[TIME_DIGITS + half * 8 + i] = ulid_digits[bits & 31];
            bits >>= 5;
        }
    }
    out[WIRE_ULID_BYTES] = '\0';
}

int64_t wire_ulid_ms(const char *ulid) {
    uint64_t ms = 0;
    if (strlen(ulid) != WIRE_ULID_BYTES ||
        ulid[0] > '7') { /* 26 digits are 130 bits, two too many */
        return -1;
    }
    for (int i = 0; i < WIRE_ULID_BYTES; i++) {
        const char *digit = strchr(ulid_digits, ulid[i]);
        if (digit == NULL) {
            return -1;
        }
        ms = i < TIME_DIGITS ? ms << 5 | (uint64_t)(digit - ulid_digits) : ms;
    }
    return (int64_t)ms;
}
