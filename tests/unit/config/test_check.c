#include "fixture.h"

struct wrong {
    const char *flag, *option, *text;
};

static void wrong_values_name_option_and_reason(void **state) {
    (void)state;
    static const struct wrong cases[] = {
        {"--pool.page_tokens=24", "pool.page_tokens", "power of two, not 24"},
        {"--scheduler.chunk_tokens=15", "scheduler.chunk_tokens", "0 or at least 16"},
        {"--scheduler.step_tokens=1", "scheduler.step_tokens", "0 or at least 16"},
        {"--kafka.jobs=^lorry.*", "kafka.jobs", "illegal topic name"},
        {"--kafka.jobs=..", "kafka.jobs", "illegal topic name"},
        {"--kafka.frames=a b", "kafka.frames", "illegal topic name"},
        {"--kafka.results=lorry.jobs", "kafka.results", "also a jobs topic"},
        {"--kafka.dead=lorry.jobs", "kafka.dead", "also a jobs topic"},
        {"--kafka.dead=lorry.results", "kafka.dead", "another output"},
        {"--kafka.brokers=a,,b", "kafka.brokers", "host:port"},
        {"--kafka.brokers=a,", "kafka.brokers", "host:port"},
        {"--kafka.brokers=:9092", "kafka.brokers", "host:port"},
        {"--kafka.brokers=a:", "kafka.brokers", "host:port"},
        {"--kafka.brokers=a:0", "kafka.brokers", "host:port"},
        {"--kafka.brokers=a:65536", "kafka.brokers", "host:port"},
        {"--kafka.brokers=a:9b", "kafka.brokers", "host:port"},
        {"--kafka.brokers=a b:1", "kafka.brokers", "host:port"},
        {"--kafka.brokers=[::1", "kafka.brokers", "host:port"},
        {"--kafka.brokers=[]:1", "kafka.brokers", "host:port"},
        {"--kafka.brokers=[::1]x", "kafka.brokers", "host:port"},
        {"--redis.url=http://h", "redis.url", "redis://host"},
        {"--redis.url=redis://", "redis.url", "redis://host"},
        {"--redis.url=127.0.0.1:6379", "redis.url", "redis://host"},
        {"-Xnovalue", "kafka.properties", "name=value"},
        {"-X=value", "kafka.properties", "name=value"},
        {"-Xa b=c", "kafka.properties", "name=value"},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct fixture f = {.args = {cases[i].flag}};
        fixture_refused(&f, TEXTS(cases[i].option, cases[i].text));
        assert_string_equal(f.why.field, cases[i].option);
    }
}

static void properties_that_are_lorrys_are_refused(void **state) {
    (void)state;
    static const char *const names[] = {
        "enable.auto.commit", "auto.commit.enable",   "enable.auto.offset.store",
        "auto.offset.reset",  "partitioner",          "group.id",
        "group.instance.id",  "session.timeout.ms",   "queued.max.messages.kbytes",
        "bootstrap.servers",  "metadata.broker.list",
    };
    for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++) {
        char flag[128];
        (void)snprintf(flag, sizeof flag, "-X%s=x", names[i]);
        struct fixture f = {.args = {flag}};
        fixture_refused(&f, TEXTS("kafka.properties may not set", names[i]));
    }
    struct fixture longer = {.args = {"-Xgroup.id.x=1", "-Xgroup=1"}}; /* other names */
    assert_int_equal(fixture_open(&longer), ERR_OK);
    fixture_close(&longer);
}

static void a_chunk_fits_into_a_step(void **state) {
    (void)state;
    struct fixture f = {.args = {"--scheduler.chunk_tokens=129", "--scheduler.step_tokens=128"}};
    fixture_refused(&f,
                    TEXTS("scheduler.chunk_tokens", "step_tokens (128, --scheduler.step_tokens)"));
}

static void topics_may_not_repeat(void **state) {
    (void)state;
    struct fixture f = {.args = {"--kafka.jobs=a", "--kafka.jobs=b", "--kafka.jobs=a"}};
    fixture_refused(&f, TEXTS("kafka.jobs", "twice"));
}

static void right_values_pass(void **state) {
    (void)state;
    static const char *const flags[] = {
        "--kafka.brokers=a",
        "--kafka.brokers=a:1,b.c-d_e:65535,10.0.0.1:9092,[::1]:9092,[fe80::1%eth0]",
        "--redis.url=",
        "--redis.url=redis://u:p@h:1/2",
        "--redis.url=rediss://h",
        "--redis.url=unix:///run/redis.sock",
        "--pool.page_tokens=1024",
        "--scheduler.chunk_tokens=128",
        "--kafka.jobs=A-b_c.9",
        "-Xsecurity.protocol=ssl",
        "-Xempty=",
        "-Xssl.key.pem=-----BEGIN=",
    };
    for (unsigned i = 0; i < sizeof flags / sizeof flags[0]; i++) {
        struct fixture f = {.args = {flags[i]}};
        if (fixture_open(&f) != ERR_OK) {
            fail_msg("%s: %s", flags[i], f.why.message);
        }
        fixture_close(&f);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_values_name_option_and_reason),
        cmocka_unit_test(properties_that_are_lorrys_are_refused),
        cmocka_unit_test(a_chunk_fits_into_a_step),
        cmocka_unit_test(topics_may_not_repeat),
        cmocka_unit_test(right_values_pass),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
