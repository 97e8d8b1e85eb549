/* top_internal.h - what top.c and top_adapters.c share. */
#ifndef LORRY_TOOLS_TOP_INTERNAL_H
#define LORRY_TOOLS_TOP_INTERNAL_H

#include "tools/tool.h"
#include "tools/top.h"

struct top_page {
    FILE *out;
    int columns, rows_left;
    const char *line_end;
};

/* A line, cut at the page's width; none when the page is full. */
void top_line(struct top_page *p, enum tool_colour colour, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* A name in its column; a longer one shows its end, where names of hosts and processes differ. */
const char *top_fit(const char *name, int width);
/* Printable ASCII only: the name may be anybody's, and goes to a terminal. */
void top_plain(char room[TOP_NAME_BYTES], const char *text);

/* Adds what a worker's /metrics says by adapter. `seconds` since `last` was filled; 0: there is
 * nothing to compare with. */
void top_add_adapters(struct top_state *s, const char *text, double seconds,
                      struct top_sample *last);
/* Busiest first; after this none is added. */
void top_sort_adapters(struct top_state *s);
void top_print_adapters(struct top_page *p, const struct top_state *s, int columns);
json_t *top_json_adapters(const struct top_state *s);

#endif
