/* json.h - what `--json` prints: an object a line, for scripts. */
#ifndef LORRY_TOOLS_JSON_H
#define LORRY_TOOLS_JSON_H

#include <jansson.h>
#include <stdint.h>
#include <stdio.h>

/* Prints `root` as one line and releases it. NULL, an object that could not be made, ends as
 * "null", so that a reader sees that something is missing. */
void json_line(FILE *out, json_t *root);

/* A text, with ? in the place of bytes outside ASCII when it is no UTF-8; null of NULL. */
json_t *json_text(const char *text);

/* "12" as 12; null of what is no whole number. */
json_t *json_number(const char *text);

/* {"succeeded": 3, …} of the counts by wire's status, without zeroes. */
json_t *json_statuses(const uint64_t *counts, int count);

#endif
