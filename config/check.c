/* check.c - what no single option's type and range can tell. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "config/options.h"

/* Names the option, and where it was set. */
static enum err wrong(const struct config_store *s, enum option_id id, const char *problem,
                      struct err_text *why) {
    char full[OPTION_NAME_BYTES];
    (void)option_full_name(full, &option_table[id]);
    return err_set_field(why, ERR_BAD_CONFIG, full, "%s: %s %s", s->values[id].place, full,
                         problem);
}

static bool topic_is_legal(const char *name) {
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    return name[0] != '\0' && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 &&
           strspn(name, allowed) == strlen(name);
}

static enum err check_topics(const struct config_store *s, struct err_text *why) {
    static const enum option_id outputs[] = {OPTION_ID_kafka_frames, OPTION_ID_kafka_results,
                                             OPTION_ID_kafka_dead};
    const struct config_list *jobs = &s->config.kafka_jobs;
    const char *const names[] = {s->config.kafka_frames, s->config.kafka_results,
                                 s->config.kafka_dead};
    for (uint32_t i = 0; i < jobs->count; i++) {
        if (!topic_is_legal(jobs->items[i])) {
            return wrong(s, OPTION_ID_kafka_jobs,
                         "holds an illegal topic name; letters, digits, '.', '_' and '-' are legal",
                         why);
        }
        for (uint32_t j = 0; j < i; j++) {
            if (strcmp(jobs->items[i], jobs->items[j]) == 0) {
                return wrong(s, OPTION_ID_kafka_jobs, "names a topic twice", why);
            }
        }
    }
    for (uint32_t i = 0; i < sizeof outputs / sizeof outputs[0]; i++) {
        if (!topic_is_legal(names[i])) {
            return wrong(s, outputs[i],
                         "is an illegal topic name; letters, digits, '.', '_' and '-' are legal",
                         why);
        }
        for (uint32_t j = 0; j < jobs->count; j++) {
            if (strcmp(names[i], jobs->items[j]) == 0) {
                return wrong(s, outputs[i],
                             "is also a jobs topic: the worker would read its output", why);
            }
        }
        for (uint32_t j = 0; j < i; j++) { /* each has its own retention and compaction */
            if (strcmp(names[i], names[j]) == 0) {
                return wrong(s, outputs[i], "is also another output's topic", why);
            }
        }
    }
    return ERR_OK;
}

/* host, host:port or [v6]:port, `bytes` long. */
static bool broker_is_legal(const char *text, size_t bytes) {
    const char *end = text + bytes;
    const char *host_end = memchr(text, text[0] == '[' ? ']' : ':', bytes);
    if (text[0] == '[') {
        if (host_end == NULL || host_end == text + 1) {
            return false;
        }
        host_end++;
    } else if (host_end == NULL) {
        host_end = end;
    }
    for (const char *c = text; c < host_end; c++) {
        if (!isalnum((unsigned char)*c) && strchr(".-_[]:%", *c) == NULL) {
            return false;
        }
    }
    if (host_end == text || host_end == end) {
        return host_end != text;
    }
    if (*host_end != ':') {
        return false;
    }
    long port = 0;
    for (const char *c = host_end + 1; c < end; c++) {
        if (!isdigit((unsigned char)*c) || port > 65535) {
            return false;
        }
        port = port * 10 + (*c - '0');
    }
    return port >= 1 && port <= 65535;
}

static enum err check_brokers(const struct config_store *s, struct err_text *why) {
    for (const char *at = s->config.kafka_brokers;; at++) {
        size_t bytes = strcspn(at, ",");
        if (bytes == 0 || !broker_is_legal(at, bytes)) {
            return wrong(s, OPTION_ID_kafka_brokers, "must be host:port items, separated by commas",
                         why);
        }
        at += bytes;
        if (*at == '\0') {
            return ERR_OK;
        }
    }
}

/* librdkafka properties that are Lorry's: they carry the delivery contract (design §8), or have an
 * option of their own. */
static const struct {
    const char *name, *instead;
} reserved_properties[] = {
    {"enable.auto.commit", NULL},
    {"auto.commit.enable", NULL},
    {"enable.auto.offset.store", NULL},
    {"auto.offset.reset", "source.start"},
    {"partitioner", NULL},
    {"group.id", "kafka.group"},
    {"group.instance.id", "kafka.group_instance_id"},
    {"session.timeout.ms", "kafka.session_timeout_ms"},
    {"queued.max.messages.kbytes", "kafka.queue_bytes"},
    {"bootstrap.servers", "kafka.brokers"},
    {"metadata.broker.list", "kafka.brokers"},
};

static enum err check_property(const struct config_store *s, const char *text,
                               struct err_text *why) {
    size_t bytes = strcspn(text, "=");
    char problem[160];
    bool legal = bytes > 0 && text[bytes] == '=';
    for (size_t i = 0; i < bytes; i++) {
        legal = legal && (isalnum((unsigned char)text[i]) || strchr("._-", text[i]) != NULL);
    }
    if (!legal) { /* what was written may be a secret: it is not repeated */
        return wrong(s, OPTION_ID_kafka_properties, "takes items of the form name=value", why);
    }
    for (size_t i = 0; i < sizeof reserved_properties / sizeof reserved_properties[0]; i++) {
        const char *name = reserved_properties[i].name;
        const char *instead = reserved_properties[i].instead;
        if (strlen(name) != bytes || memcmp(text, name, bytes) != 0) {
            continue;
        }
        (void)snprintf(problem, sizeof problem, "may not set %s: %s%s", name,
                       instead != NULL ? "it follows from " : "Lorry sets it",
                       instead != NULL ? instead : "");
        return wrong(s, OPTION_ID_kafka_properties, problem, why);
    }
    return ERR_OK;
}

static enum err check_redis(const struct config_store *s, struct err_text *why) {
    static const char *const schemes[] = {"redis://", "rediss://", "unix://"};
    const char *url = s->config.redis_url;
    bool legal = url[0] == '\0';
    for (unsigned i = 0; i < sizeof schemes / sizeof schemes[0]; i++) {
        size_t bytes = strlen(schemes[i]);
        legal = legal || (strncmp(url, schemes[i], bytes) == 0 && url[bytes] != '\0');
    }
    return legal ? ERR_OK
                 : wrong(s, OPTION_ID_redis_url,
                         "must be redis://host, rediss://host or unix://path, or empty", why);
}

enum { STEP_TOKENS_MIN = 16 };

static enum err check_steps(const struct config_store *s, struct err_text *why) {
    const struct config *c = &s->config;
    char problem[160];
    const struct {
        enum option_id id;
        int64_t tokens;
    } sizes[] = {{OPTION_ID_scheduler_step_tokens, c->scheduler_step_tokens},
                 {OPTION_ID_scheduler_chunk_tokens, c->scheduler_chunk_tokens}};
    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        if (sizes[i].tokens > 0 && sizes[i].tokens < STEP_TOKENS_MIN) {
            (void)snprintf(problem, sizeof problem, "must be 0 or at least %d", STEP_TOKENS_MIN);
            return wrong(s, sizes[i].id, problem, why);
        }
    }
    if (c->scheduler_step_tokens > 0 && c->scheduler_chunk_tokens > c->scheduler_step_tokens) {
        (void)snprintf(problem, sizeof problem,
                       "(%lld) must not be more than scheduler.step_tokens (%lld, %s)",
                       (long long)c->scheduler_chunk_tokens, (long long)c->scheduler_step_tokens,
                       s->values[OPTION_ID_scheduler_step_tokens].place);
        return wrong(s, OPTION_ID_scheduler_chunk_tokens, problem, why);
    }
    return ERR_OK;
}

enum err config_check(const struct config_store *s, struct err_text *why) {
    const struct config *c = &s->config;
    char problem[160];
    if ((c->pool_page_tokens & (c->pool_page_tokens - 1)) != 0) {
        (void)snprintf(problem, sizeof problem, "must be a power of two, not %lld",
                       (long long)c->pool_page_tokens);
        return wrong(s, OPTION_ID_pool_page_tokens, problem, why);
    }
    enum err e = check_steps(s, why);
    if (e == ERR_OK) {
        e = check_topics(s, why);
    }
    if (e == ERR_OK) {
        e = check_brokers(s, why);
    }
    for (uint32_t i = 0; i < c->kafka_properties.count && e == ERR_OK; i++) {
        e = check_property(s, c->kafka_properties.items[i], why);
    }
    if (e == ERR_OK) {
        e = check_redis(s, why);
    }
    return e;
}
