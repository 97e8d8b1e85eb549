#include "tools/json.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "wire/wire.h"

void json_line(FILE *out, json_t *root) {
    if (root == NULL || json_dumpf(root, out, JSON_COMPACT) != 0) {
        (void)fputs("null", out);
    }
    (void)fputc('\n', out);
    (void)fflush(out);
    json_decref(root);
}

json_t *json_text(const char *text) {
    if (text == NULL) {
        return json_null();
    }
    json_t *value = json_string(text);
    char *copy = value == NULL ? strdup(text) : NULL;
    for (char *c = copy; c != NULL && *c != '\0'; c++) {
        *c = (char)((unsigned char)*c < 0x80 ? *c : '?');
    }
    value = copy != NULL ? json_string(copy) : value;
    free(copy);
    return value;
}

json_t *json_number(const char *text) {
    char *end = NULL;
    errno = 0;
    long long n = strtoll(text, &end, 10);
    return errno == 0 && end != text && *end == '\0' ? json_integer(n) : json_null();
}

json_t *json_statuses(const uint64_t *counts, int count) {
    json_t *root = json_object();
    for (int i = 0; i < count; i++) {
        if (counts[i] > 0) {
            (void)json_object_set_new(root, wire_status_name((enum wire_status)i),
                                      json_integer((json_int_t)counts[i]));
        }
    }
    return root;
}
