/* test_http.c - URLs of workers, and answers that are none. */
#include "tests/unit/tools/test.h"

#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>

#include "tools/http.h"

static void urls_are_taken_apart(void **state) {
    static const struct {
        const char *text, *host, *port, *path, *where;
    } good[] = {
        {"http://gpu1:9471/metrics", "gpu1", "9471", "/metrics", "gpu1:9471"},
        {"gpu1", "gpu1", "9470", "/metrics", "gpu1:9470"},
        {"127.0.0.1:80/", "127.0.0.1", "80", "/metrics", "127.0.0.1:80"},
        {"http://[::1]:9470/a/b", "::1", "9470", "/a/b", "[::1]:9470"},
        {"[::1]", "::1", "9470", "/metrics", "[::1]:9470"},
    };
    static const char *const bad[] = {
        "",     "http://", "https://x", ":80", "x:",     "x:port", "x:123456",
        "[::1", "[]:80",   "u@x:80",    "x y", "x:80?a", "[::1]x", "x\r\nHost: y",
    };
    (void)state;
    struct http_url url;
    struct err_text why = {0};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        assert_int_equal(http_url_parse(&url, good[i].text, &why), ERR_OK);
        assert_string_equal(url.host, good[i].host);
        assert_string_equal(url.port, good[i].port);
        assert_string_equal(url.path, good[i].path);
        assert_string_equal(url.where, good[i].where);
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (http_url_parse(&url, bad[i], &why) != ERR_BAD_CONFIG) {
            fail_msg("'%s' was taken", bad[i]);
        }
    }
}

/* A server of one answer; none when it is NULL: it only holds the connection. */
struct server {
    int fd;
    const char *answer;
    pthread_t thread;
};

static void *serve(void *argument) {
    struct server *s = argument;
    char request[1024];
    int fd = accept(s->fd, NULL, NULL);
    ssize_t got = recv(fd, request, sizeof request - 1, 0);
    if (s->answer != NULL && got > 0) {
        (void)send(fd, s->answer, strlen(s->answer), MSG_NOSIGNAL);
    } else {
        (void)recv(fd, request, sizeof request, 0); /* until the client goes */
    }
    (void)close(fd);
    return NULL;
}

static enum err get(const char *answer, char **body, struct err_text *why) {
    struct server s = {.answer = answer, .fd = socket(AF_INET, SOCK_STREAM, 0)};
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t bytes = sizeof a;
    char text[64];
    struct http_url url;
    assert_int_equal(bind(s.fd, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(s.fd, 1), 0);
    assert_int_equal(getsockname(s.fd, (struct sockaddr *)&a, &bytes), 0);
    (void)snprintf(text, sizeof text, "127.0.0.1:%d", ntohs(a.sin_port));
    assert_int_equal(http_url_parse(&url, text, why), ERR_OK);
    assert_int_equal(pthread_create(&s.thread, NULL, serve, &s), 0);
    enum err e = http_get(&url, answer != NULL ? 5000 : 100, body, why);
    assert_int_equal(pthread_join(s.thread, NULL), 0);
    (void)close(s.fd);
    return e;
}

static void only_a_whole_200_is_an_answer(void **state) {
    (void)state;
    char *body = NULL;
    struct err_text why = {0};
    assert_int_equal(get("HTTP/1.1 200 OK\r\nA: b\r\n\r\nhello\r\n\r\nyou", &body, &why), ERR_OK);
    assert_string_equal(body, "hello\r\n\r\nyou");
    free(body);
    assert_int_equal(get("HTTP/1.1 404 Not Found\r\n\r\nno", &body, &why), ERR_AWAY);
    assert_int_equal(get("HTTP/1.1 200 OK\r\n", &body, &why), ERR_AWAY);
    assert_int_equal(get("HTTP", &body, &why), ERR_AWAY);
    assert_int_equal(get(NULL, &body, &why), ERR_AWAY); /* in time */
    assert_non_null(strstr(why.message, "in time"));
}

static void nobody_there_is_told(void **state) {
    (void)state;
    char *body = NULL;
    struct err_text why = {0};
    struct http_url url;
    assert_int_equal(http_url_parse(&url, "127.0.0.1:1", &why), ERR_OK);
    assert_int_equal(http_get(&url, 1000, &body, &why), ERR_AWAY);
    assert_non_null(strstr(why.message, "127.0.0.1:1"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(urls_are_taken_apart),
        cmocka_unit_test(only_a_whole_200_is_an_answer),
        cmocka_unit_test(nobody_there_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
