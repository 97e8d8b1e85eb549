/* Real HTTP requests over a loopback socket. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/clock.h"
#include "worker/health.h"

struct fixture {
    struct metrics *metrics;
    struct health *health;
    char reply[65536]; /* of the last request: head and body */
    int status;
};

static void set_up(struct fixture *f, uint32_t stuck_ms) {
    struct err_text why = {0};
    assert_int_equal(metrics_open(&f->metrics, 4), ERR_OK);
    struct health_options options = {
        .host = "127.0.0.1", .metrics = f->metrics, .stuck_ms = stuck_ms};
    assert_int_equal(health_open(&f->health, &options, &why), ERR_OK);
    assert_int_not_equal(health_port(f->health), 0);
}

static void tear_down(struct fixture *f) {
    health_close(f->health);
    metrics_close(f->metrics);
}

/* Sends `head` (without its last empty line) and reads until the server closes. */
static void request(struct fixture *f, const char *head) {
    char out[512];
    size_t got = 0;
    struct timeval limit = {.tv_sec = 20};
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(health_port(f->health))};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit), 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    int bytes = snprintf(out, sizeof out, "%s\r\nHost: x\r\nConnection: close\r\n\r\n", head);
    assert_int_equal(send(fd, out, (size_t)bytes, MSG_NOSIGNAL), bytes);
    for (;;) {
        ssize_t part = recv(fd, f->reply + got, sizeof f->reply - 1 - got, 0);
        assert_true(part >= 0);
        if (part == 0) {
            break;
        }
        got += (size_t)part;
    }
    f->reply[got] = '\0';
    (void)close(fd);
    f->status = 0;
    assert_int_equal(sscanf(f->reply, "HTTP/1.1 %d", &f->status), 1);
}

static void get(struct fixture *f, const char *path) {
    char head[256];
    (void)snprintf(head, sizeof head, "GET %s HTTP/1.1", path);
    request(f, head);
}

static const char *body(const struct fixture *f) {
    const char *end = strstr(f->reply, "\r\n\r\n");
    assert_non_null(end);
    return end + 4;
}

static void metrics_are_served(void **state) {
    (void)state;
    struct fixture f = {0};
    set_up(&f, 0);
    metrics_add(f.metrics, METRIC_STEPS, 41);
    get(&f, "/metrics");
    assert_int_equal(f.status, 200);
    assert_non_null(strstr(f.reply, "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
    assert_non_null(strstr(body(&f), "\nlorry_steps_total 41\n"));
    metrics_add(f.metrics, METRIC_STEPS, 1);
    get(&f, "/metrics?x=1");
    assert_non_null(strstr(body(&f), "\nlorry_steps_total 42\n"));
    tear_down(&f);
}

static void ready_needs_model_and_broker(void **state) {
    (void)state;
    struct fixture f = {0};
    set_up(&f, 0);
    get(&f, "/readyz");
    assert_int_equal(f.status, 503);
    assert_string_equal(body(&f),
                        "not ready: the model is not loaded, the broker is not reached\n");
    health_ready(f.health, true, false);
    get(&f, "/readyz");
    assert_int_equal(f.status, 503);
    assert_string_equal(body(&f), "not ready: the broker is not reached\n");
    health_ready(f.health, false, true);
    get(&f, "/readyz");
    assert_int_equal(f.status, 503);
    assert_string_equal(body(&f), "not ready: the model is not loaded\n");
    health_ready(f.health, true, true);
    get(&f, "/readyz");
    assert_int_equal(f.status, 200);
    assert_string_equal(body(&f), "ready\n");
    tear_down(&f);
}

static void a_loop_that_neither_turns_nor_waits_is_stuck(void **state) {
    (void)state;
    struct fixture f = {0};
    set_up(&f, 30);
    clock_sleep_ms(60);
    get(&f, "/healthz");
    assert_int_equal(f.status, 503);
    assert_string_equal(body(&f), "stuck: no turn for 0 s\n");
    health_waiting(f.health, "jobs");
    get(&f, "/healthz");
    assert_int_equal(f.status, 200);
    assert_string_equal(body(&f), "ok\nwaiting for jobs\n");
    health_turned(f.health); /* ends the wait */
    clock_sleep_ms(60);
    get(&f, "/healthz");
    assert_int_equal(f.status, 503);
    tear_down(&f);
}

static void a_loop_that_turns_is_well(void **state) {
    (void)state;
    struct fixture f = {0};
    set_up(&f, 0);
    get(&f, "/healthz"); /* has just begun */
    assert_int_equal(f.status, 200);
    health_turned(f.health);
    get(&f, "/healthz");
    assert_int_equal(f.status, 200);
    assert_string_equal(body(&f), "ok\nworking\n");
    tear_down(&f);
}

static void other_paths_and_methods_are_refused(void **state) {
    (void)state;
    static const char *const missing[] = {"/", "/metrics/", "/healthz/x", "//metrics", "/METRICS"};
    struct fixture f = {0};
    set_up(&f, 0);
    for (unsigned i = 0; i < sizeof missing / sizeof missing[0]; i++) {
        get(&f, missing[i]);
        assert_int_equal(f.status, 404);
    }
    request(&f, "DELETE /metrics HTTP/1.1");
    assert_int_equal(f.status, 405);
    assert_non_null(strstr(f.reply, "Allow: GET, HEAD\r\n"));
    request(&f, "POST /healthz HTTP/1.1\r\nContent-Length: 0");
    assert_int_equal(f.status, 405);
    request(&f, "HEAD /healthz HTTP/1.1");
    assert_int_equal(f.status, 200);
    assert_string_equal(body(&f), "");
    request(&f, "no request at all");
    assert_int_equal(f.status / 100, 4);
    get(&f, "/healthz"); /* still serves */
    assert_int_equal(f.status, 200);
    tear_down(&f);
}

static void a_taken_port_is_named(void **state) {
    (void)state;
    struct fixture f = {0};
    struct health *second = NULL;
    struct err_text why = {0};
    set_up(&f, 0);
    struct health_options options = {
        .host = "127.0.0.1", .port = health_port(f.health), .metrics = f.metrics};
    assert_int_equal(health_open(&second, &options, &why), ERR_BAD_CONFIG);
    assert_null(second);
    assert_string_equal(why.field, "http.port");
    assert_non_null(strstr(why.message, "Address already in use"));
    tear_down(&f);
}

static void a_bad_host_is_named(void **state) {
    (void)state;
    static const char *const hosts[] = {"a..b", "192.0.2.1"}; /* no name; not of this host */
    struct metrics *metrics = NULL;
    assert_int_equal(metrics_open(&metrics, 0), ERR_OK);
    for (unsigned i = 0; i < sizeof hosts / sizeof hosts[0]; i++) {
        struct health *h = NULL;
        struct err_text why = {0};
        struct health_options options = {.host = hosts[i], .metrics = metrics};
        assert_int_equal(health_open(&h, &options, &why), ERR_BAD_CONFIG);
        assert_null(h);
        assert_string_equal(why.field, "http.host");
    }
    metrics_close(metrics);
}

static void a_port_is_free_again_after_close(void **state) {
    (void)state;
    struct fixture f = {0};
    struct err_text why = {0};
    set_up(&f, 0);
    get(&f, "/healthz"); /* leaves a connection in TIME_WAIT */
    struct health_options options = {
        .host = "127.0.0.1", .port = health_port(f.health), .metrics = f.metrics};
    health_close(f.health);
    assert_int_equal(health_open(&f.health, &options, &why), ERR_OK);
    assert_int_equal(health_port(f.health), options.port);
    get(&f, "/healthz");
    assert_int_equal(f.status, 200);
    tear_down(&f);
    health_close(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(metrics_are_served),
        cmocka_unit_test(ready_needs_model_and_broker),
        cmocka_unit_test(a_loop_that_neither_turns_nor_waits_is_stuck),
        cmocka_unit_test(a_loop_that_turns_is_well),
        cmocka_unit_test(other_paths_and_methods_are_refused),
        cmocka_unit_test(a_taken_port_is_named),
        cmocka_unit_test(a_bad_host_is_named),
        cmocka_unit_test(a_port_is_free_again_after_close),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
