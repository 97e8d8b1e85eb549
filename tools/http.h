/* http.h - one GET over plain HTTP, of a worker's /metrics. Thread: any. */
#ifndef LORRY_TOOLS_HTTP_H
#define LORRY_TOOLS_HTTP_H

#include "base/err.h"

enum { HTTP_BYTES_MAX = 16 << 20, HTTP_WHERE_BYTES = 256 };

/* "http://host:port/path" taken apart, "host:port" alone too; the path is /metrics where there is
 * none, the port 9470. */
struct http_url {
    char where[HTTP_WHERE_BYTES]; /* "host:port", for people */
    char host[HTTP_WHERE_BYTES];  /* without the brackets of an IPv6 address */
    char port[8];
    char path[HTTP_WHERE_BYTES];
};
/* Errors  ERR_BAD_CONFIG. */
NODISCARD enum err http_url_parse(struct http_url *url, const char *text, struct err_text *why);

/* The body of a 200 answer, NUL-terminated; the caller frees it. At most HTTP_BYTES_MAX.
 * Errors  ERR_AWAY: no connection or no whole answer within `timeout_ms`, another status. */
NODISCARD enum err http_get(const struct http_url *url, int timeout_ms, char **body,
                            struct err_text *why);

#endif
