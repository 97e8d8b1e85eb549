#include "tools/http.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"

enum { READ_BYTES = 64 << 10 };

/* ---- the URL ------------------------------------------------------------------------------ */

static bool copy(char *room, size_t room_bytes, const char *text, size_t bytes) {
    if (bytes >= room_bytes) {
        return false;
    }
    memcpy(room, text, bytes);
    room[bytes] = '\0';
    return true;
}

static bool is_port(const char *text, size_t bytes) {
    return bytes > 0 && bytes < 6 && strspn(text, "0123456789") >= bytes;
}

enum err http_url_parse(struct http_url *url, const char *text, struct err_text *why) {
    static const char scheme[] = "http://";
    const char *at =
        strncmp(text, scheme, sizeof scheme - 1) == 0 ? text + sizeof scheme - 1 : text;
    struct http_url u = {.port = "9470", .path = "/metrics"};
    const char *path = at + strcspn(at, "/");
    bool brackets = at[0] == '[';
    const char *host = at + (brackets ? 1 : 0);
    const char *host_end = host + strcspn(host, brackets ? "]" : ":/");
    const char *colon = host_end + (brackets && *host_end == ']' ? 1 : 0);
    bool good = host_end > host && colon <= path && (!brackets || *host_end == ']') &&
                strpbrk(at, " \r\n\t@?#") == NULL &&
                copy(u.host, sizeof u.host, host, (size_t)(host_end - host));
    if (good && *colon == ':') {
        size_t bytes = (size_t)(path - colon - 1);
        good = is_port(colon + 1, bytes) && copy(u.port, sizeof u.port, colon + 1, bytes);
    } else {
        good = good && colon == path;
    }
    if (good && path[0] == '/' && path[1] != '\0') {
        good = copy(u.path, sizeof u.path, path, strlen(path));
    }
    if (!good) {
        return err_set(why, ERR_BAD_CONFIG,
                       "'%.128s' is no URL; it is like http://host:9470/metrics", text);
    }
    int bytes = snprintf(u.where, sizeof u.where, brackets ? "[%s]:%s" : "%s:%s", u.host, u.port);
    if (bytes < 0 || (size_t)bytes >= sizeof u.where) {
        return err_set(why, ERR_BAD_CONFIG, "'%.128s' is too long", text);
    }
    *url = u;
    return ERR_OK;
}

/* ---- the request -------------------------------------------------------------------------- */

/* Waits until the socket can be read or written. false: the time is up, or an interruption. */
static bool wait_for(int fd, short events, int64_t until_us) {
    int64_t left_us = until_us - clock_mono_us();
    struct pollfd p = {.fd = fd, .events = events};
    return left_us > 0 && poll(&p, 1, (int)(left_us / 1000) + 1) == 1;
}

static int connect_to(const struct addrinfo *a, int64_t until_us) {
    int error = 0;
    socklen_t bytes = sizeof error;
    int fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return -1;
    }
    bool good = connect(fd, a->ai_addr, a->ai_addrlen) == 0 ||
                (errno == EINPROGRESS && wait_for(fd, POLLOUT, until_us) &&
                 getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &bytes) == 0 && error == 0);
    if (!good) {
        errno = error != 0 ? error : errno;
        (void)close(fd);
        return -1;
    }
    return fd;
}

static bool send_all(int fd, const char *data, size_t bytes, int64_t until_us) {
    while (bytes > 0 && wait_for(fd, POLLOUT, until_us)) {
        ssize_t put = send(fd, data, bytes, MSG_NOSIGNAL);
        if (put < 0 && errno != EAGAIN && errno != EINTR) {
            return false;
        }
        data += put > 0 ? put : 0;
        bytes -= put > 0 ? (size_t)put : 0;
    }
    return bytes == 0;
}

/* All until the server closes, NUL-terminated; NULL: not in time, too much, or no memory. */
static char *receive(int fd, int64_t until_us) {
    char *text = NULL;
    size_t bytes = 0;
    size_t room = 0;
    bool good = true;
    while (good) {
        if (room - bytes < READ_BYTES) {
            room += READ_BYTES + room;
            char *grown = room <= HTTP_BYTES_MAX ? realloc(text, room) : NULL;
            good = grown != NULL;
            text = good ? grown : text;
        }
        good = good && wait_for(fd, POLLIN, until_us);
        ssize_t got = good ? recv(fd, text + bytes, room - bytes - 1, 0) : -1;
        if (got == 0) {
            text[bytes] = '\0';
            return text;
        }
        good = good && (got > 0 || errno == EAGAIN || errno == EINTR);
        bytes += got > 0 ? (size_t)got : 0;
    }
    free(text);
    return NULL;
}

static char *ask(int fd, const struct http_url *url, int64_t until_us) {
    char request[2 * HTTP_WHERE_BYTES + 64];
    int bytes = snprintf(request, sizeof request, "GET %s HTTP/1.0\r\nHost: %s\r\n\r\n", url->path,
                         url->where);
    bool sent = bytes > 0 && send_all(fd, request, (size_t)bytes, until_us);
    return sent ? receive(fd, until_us) : NULL;
}

enum err http_get(const struct http_url *url, int timeout_ms, char **body, struct err_text *why) {
    int64_t until_us = clock_mono_us() + (int64_t)timeout_ms * 1000;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    int fd = -1;
    int failed = getaddrinfo(url->host, url->port, &hints, &found);
    if (failed != 0) {
        return err_set(why, ERR_AWAY, "%s: %s", url->where, gai_strerror(failed));
    }
    for (const struct addrinfo *a = found; a != NULL && fd < 0; a = a->ai_next) {
        fd = connect_to(a, until_us);
    }
    freeaddrinfo(found);
    if (fd < 0) {
        return err_set(why, ERR_AWAY, "%s: %s", url->where, strerror(errno));
    }
    char *text = ask(fd, url, until_us);
    (void)close(fd);
    const char *end = text != NULL ? strstr(text, "\r\n\r\n") : NULL;
    bool good =
        end != NULL && strncmp(text, "HTTP/1.", 7) == 0 && strncmp(text + 8, " 200", 4) == 0;
    if (good) {
        memmove(text, end + 4, strlen(end + 4) + 1);
        *body = text;
        return ERR_OK;
    }
    enum err e = err_set(why, ERR_AWAY, "%s%s: %s", url->where, url->path,
                         text == NULL ? "no answer in time" : "not the answer of a worker");
    free(text);
    return e;
}
