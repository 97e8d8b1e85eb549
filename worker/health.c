#include "worker/health.h"

#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"

struct health {
    struct MHD_Daemon *daemon;
    struct metrics *metrics;
    uint32_t stuck_ms;
    uint16_t port;
    /* Written by the loop, read by the server's thread. */
    _Atomic int64_t turned_us;   /* monotonic */
    const char *_Atomic waiting; /* NULL = it does not wait */
    /* Written by any. */
    _Atomic bool model_ready, broker_ready;
};

/* The socket is ours, not libmicrohttpd's, because only so the reason of a failure is known. */
static enum err listen_on(const struct addrinfo *a, int *out, const char *host, uint16_t port,
                          struct err_text *why) {
    int yes = 1;
    int fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, a->ai_protocol);
    if (fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) == 0 &&
        bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, SOMAXCONN) == 0) {
        *out = fd;
        return ERR_OK;
    }
    int cause = errno;
    bool address = cause == EADDRNOTAVAIL || cause == EAFNOSUPPORT;
    if (fd >= 0) {
        (void)close(fd);
    }
    return err_set_field(why, ERR_BAD_CONFIG, address ? "http.host" : "http.port",
                         "%s: cannot listen on %.128s port %u: %s",
                         address ? "http.host" : "http.port", host, port, strerror(cause));
}

static enum err open_socket(int *out, const char *host, uint16_t port, struct err_text *why) {
    struct addrinfo hints = {.ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *found = NULL;
    char service[8];
    (void)snprintf(service, sizeof service, "%u", port);
    int failed = getaddrinfo(host, service, &hints, &found);
    if (failed != 0) {
        return err_set_field(why, ERR_BAD_CONFIG, "http.host", "http.host: %.128s: %s", host,
                             gai_strerror(failed));
    }
    enum err e = ERR_BAD_CONFIG;
    for (const struct addrinfo *a = found; a != NULL && e != ERR_OK; a = a->ai_next) {
        e = listen_on(a, out, host, port, why);
    }
    freeaddrinfo(found);
    return e;
}

/* The port that the kernel gave; 0 when it cannot be told. */
static uint16_t port_of(int fd) {
    struct sockaddr_storage address = {0};
    socklen_t bytes = sizeof address;
    char service[8] = "0";
    if (getsockname(fd, (struct sockaddr *)&address, &bytes) != 0 ||
        getnameinfo((struct sockaddr *)&address, bytes, NULL, 0, service, sizeof service,
                    NI_NUMERICSERV) != 0) {
        return 0;
    }
    return (uint16_t)strtoul(service, NULL, 10);
}

/* Queues `text`, which is malloc'ed (NULL: there was no memory) and taken over. Without an answer
 * libmicrohttpd closes the connection. */
static enum MHD_Result answer(struct MHD_Connection *c, unsigned status, const char *type,
                              char *text) {
    if (text == NULL) {
        return MHD_NO;
    }
    struct MHD_Response *r =
        MHD_create_response_from_buffer_with_free_callback(strlen(text), text, free);
    if (r == NULL) {
        free(text);
        return MHD_NO;
    }
    enum MHD_Result queued = MHD_NO;
    if (MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, type) == MHD_YES &&
        (status != MHD_HTTP_METHOD_NOT_ALLOWED ||
         MHD_add_response_header(r, MHD_HTTP_HEADER_ALLOW, "GET, HEAD") == MHD_YES)) {
        queued = MHD_queue_response(c, status, r);
    }
    MHD_destroy_response(r);
    return queued;
}

static enum MHD_Result answer_text(struct MHD_Connection *c, unsigned status, const char *text) {
    return answer(c, status, "text/plain; charset=utf-8", strdup(text));
}

static enum MHD_Result answer_metrics(struct health *h, struct MHD_Connection *c) {
    char *text = NULL;
    size_t bytes = 0;
    if (metrics_render(h->metrics, &text, &bytes) != ERR_OK) {
        return answer_text(c, MHD_HTTP_INTERNAL_SERVER_ERROR, "out of memory\n");
    }
    return answer(c, MHD_HTTP_OK, "text/plain; version=0.0.4; charset=utf-8", text);
}

static enum MHD_Result answer_health(struct health *h, struct MHD_Connection *c) {
    char text[160];
    const char *cause = atomic_load(&h->waiting);
    int64_t silent_ms = (clock_mono_us() - atomic_load(&h->turned_us)) / 1000;
    if (cause != NULL) {
        (void)snprintf(text, sizeof text, "ok\nwaiting for %s\n", cause);
        return answer_text(c, MHD_HTTP_OK, text);
    }
    if (silent_ms <= (int64_t)h->stuck_ms) {
        return answer_text(c, MHD_HTTP_OK, "ok\nworking\n");
    }
    (void)snprintf(text, sizeof text, "stuck: no turn for %lld s\n", (long long)(silent_ms / 1000));
    return answer_text(c, MHD_HTTP_SERVICE_UNAVAILABLE, text);
}

static enum MHD_Result answer_ready(struct health *h, struct MHD_Connection *c) {
    bool model = atomic_load(&h->model_ready);
    bool broker = atomic_load(&h->broker_ready);
    if (model && broker) {
        return answer_text(c, MHD_HTTP_OK, "ready\n");
    }
    return answer_text(c, MHD_HTTP_SERVICE_UNAVAILABLE,
                       model ? "not ready: the broker is not reached\n"
                       : broker
                           ? "not ready: the model is not loaded\n"
                           : "not ready: the model is not loaded, the broker is not reached\n");
}

/* libmicrohttpd calls this once a request's headers are there, and again for a body: the answer is
 * given at the first call, and a body is never read. */
/* NOLINTNEXTLINE(readability-function-size): the eight parameters are libmicrohttpd's */
static enum MHD_Result handle(void *context, struct MHD_Connection *c, const char *url,
                              const char *method, const char *version, const char *upload,
                              size_t *upload_bytes, void **request) {
    struct health *h = context;
    (void)version, (void)upload, (void)upload_bytes, (void)request;
    static const struct {
        const char *path;
        enum MHD_Result (*answer)(struct health *h, struct MHD_Connection *c);
    } pages[] = {
        {"/metrics", answer_metrics}, {"/healthz", answer_health}, {"/readyz", answer_ready}};
    for (unsigned i = 0; i < sizeof pages / sizeof pages[0]; i++) {
        if (strcmp(url, pages[i].path) != 0) {
            continue;
        }
        if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0) {
            return answer_text(c, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        }
        return pages[i].answer(h, c);
    }
    return answer_text(c, MHD_HTTP_NOT_FOUND, "not here; there are /metrics, /healthz, /readyz\n");
}

enum err health_open(struct health **out, const struct health_options *options,
                     struct err_text *why) {
    CHECK(options->metrics != NULL);
    int fd = -1;
    enum err e = ERR_OK;
    struct health *h = calloc(1, sizeof *h);
    if (h == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for the HTTP server");
    }
    h->metrics = options->metrics;
    h->stuck_ms = options->stuck_ms != 0 ? options->stuck_ms : HEALTH_STUCK_MS;
    atomic_init(&h->turned_us, clock_mono_us());
    atomic_init(&h->waiting, NULL);
    e = open_socket(&fd, options->host, options->port, why);
    if (e != ERR_OK) {
        goto out;
    }
    h->port = port_of(fd);
    h->daemon = MHD_start_daemon(
        MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_AUTO, 0, NULL, NULL, handle, h,
        MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT, (unsigned)HEALTH_CONNECTIONS_MAX,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)HEALTH_CONNECTION_IDLE_S, MHD_OPTION_END);
    if (h->daemon == NULL) { /* the socket is libmicrohttpd's from the call on */
        e = err_set(why, ERR_NO_MEMORY, "the HTTP server cannot be started");
        goto out;
    }
    *out = h;
    h = NULL;
out:
    health_close(h);
    return e;
}

void health_close(struct health *h) {
    if (h == NULL) {
        return;
    }
    if (h->daemon != NULL) {
        MHD_stop_daemon(h->daemon); /* closes the socket too */
    }
    free(h);
}

uint16_t health_port(const struct health *h) {
    return h->port;
}

void health_turned(struct health *h) {
    atomic_store(&h->turned_us, clock_mono_us()); /* before the cause goes: never both stale */
    atomic_store(&h->waiting, NULL);
}

void health_waiting(struct health *h, const char *cause) {
    CHECK(cause != NULL);
    atomic_store(&h->waiting, cause);
}

void health_ready(struct health *h, bool model, bool broker) {
    atomic_store(&h->model_ready, model);
    atomic_store(&h->broker_ready, broker);
}
