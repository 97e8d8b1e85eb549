#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "wire/utf8.h"
#include "wire/wire.h"

/* The names of Kafka's own dead letters where they exist, ours in the same space. */
uint32_t wire_dead_headers(struct wire_header headers[WIRE_DEAD_HEADERS], const char *topic,
                           int32_t partition, int64_t offset, const char *group, enum err error,
                           const struct err_text *why) {
    CHECK(topic != NULL);
    const char *message = why != NULL && why->message[0] != '\0' ? why->message : err_text(error);
    char partition_text[16];
    char offset_text[24];
    (void)snprintf(partition_text, sizeof partition_text, "%" PRId32, partition);
    (void)snprintf(offset_text, sizeof offset_text, "%" PRId64, offset);
    const struct {
        const char *name, *value; /* NULL or empty: left out */
    } all[WIRE_DEAD_HEADERS] = {
        {"__dlq.errors.topic", topic},
        {"__dlq.errors.partition", partition_text},
        {"__dlq.errors.offset", offset_text},
        {"__dlq.errors.group", group},
        {"__dlq.errors.code", err_name(error)},
        {"__dlq.errors.message", message},
        {"__dlq.errors.field", why != NULL ? why->field : NULL},
        {"__dlq.errors.version", LORRY_VERSION},
    };
    uint32_t count = 0;
    for (size_t i = 0; i < WIRE_DEAD_HEADERS; i++) {
        if (all[i].value == NULL || all[i].value[0] == '\0') {
            continue;
        }
        struct wire_header *h = &headers[count++];
        h->name = all[i].name;
        (void)snprintf(h->value, sizeof h->value, "%s", all[i].value);
        h->value[wire_utf8_prefix(h->value, strlen(h->value))] = '\0'; /* a cut character */
    }
    return count;
}
