/* cmd_check.c - `lorry check`: what would be used, and whether it works. */
#include <inttypes.h>
#include <stdarg.h>
#include <string.h>

#include "model/model.h"
#include "text/text.h"
#include "tools/broker.h"
#include "tools/json.h"
#include "tools/redis.h"
#include "tools/tool.h"
#include "worker/worker.h"

enum { BROKER_MS = 5000, DETAIL_BYTES = 1024 };

static const char *const own_flags[] = {"--json", NULL};

static const char help[] =
    "Prints the configuration in force and where each value comes from (secrets masked), then\n"
    "looks at everything a worker needs: the model's files and sizes, tokenizer, memory, adapter\n"
    "root, brokers and topics, Redis. One line each: ok, warn or fail, what, detail. The exit "
    "code\n"
    "is that of the first failure.\n"
    "\n"
    "  --json    the checks as an object a line: verdict, what, detail; no configuration\n"
    "\n"
    "  lorry check --model DIR --adapters DIR\n"
    "  lorry check --config /etc/lorry/lorry.yaml | grep -v '^[a-z]*\\.'\n";

struct checks {
    const struct config *config;
    bool json;
    int code; /* of the first failure */
};

enum verdict { CHECK_OK, CHECK_WARN, CHECK_FAIL };

static void say(const struct checks *c, enum verdict verdict, const char *what, const char *format,
                ...) __attribute__((format(printf, 4, 5)));
static void say(const struct checks *c, enum verdict verdict, const char *what, const char *format,
                ...) {
    static const char *const words[] = {"ok", "warn", "fail"};
    static const enum tool_colour colours[] = {TOOL_GREEN, TOOL_YELLOW, TOOL_RED};
    char detail[DETAIL_BYTES];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(detail, sizeof detail, format, arguments);
    va_end(arguments);
    if (c->json) {
        json_line(stdout, json_pack("{ss, ss, so}", "verdict", words[verdict], "what", what,
                                    "detail", json_text(detail)));
        return;
    }
    (void)printf("%s%-4s%s %s: %s\n", tool_colour(stdout, colours[verdict]), words[verdict],
                 tool_colour(stdout, TOOL_PLAIN), what, detail);
    (void)fflush(stdout);
}

static void fail(struct checks *c, const char *what, enum err e, const struct err_text *why) {
    const char *message = why->message[0] != '\0' ? why->message : err_text(e);
    bool named = why->field[0] == '\0' || strstr(message, why->field) != NULL;
    say(c, CHECK_FAIL, what, "%s%s%s", named ? "" : why->field, named ? "" : ": ", message);
    if (c->code == EXIT_DONE) {
        c->code = (int)err_exit_code(e);
    }
}

/* ---- model -------------------------------------------------------------------------------- */

static double mib(uint64_t bytes) {
    return (double)bytes / (1 << 20);
}

static void check_text(struct checks *c, const struct model_facts *model) {
    struct text *text = NULL;
    struct err_text why = {0};
    enum err e = text_open(&text, c->config->model_dir, &why);
    if (e != ERR_OK) {
        fail(c, "tokenizer", e, &why);
        return;
    }
    uint32_t count = text_vocab_count(text);
    bool chat = text_has_chat_template(text);
    say(c, count <= model->shape.vocab ? CHECK_OK : CHECK_WARN, "tokenizer",
        "%u tokens%s (the model has %u), %s", count,
        count <= model->shape.vocab ? "" : ", more than the model's", model->shape.vocab,
        chat ? "with a chat template" : "no chat template: jobs with messages will be rejected");
    text_close(text);
}

static void check_memory(struct checks *c, const struct model_facts *f) {
    struct worker_plan plan;
    struct err_text why = {0};
    const struct kern_ops *ops = kern_find(c->config->device_kind, &why);
    if (ops == NULL) {
        fail(c, "device", ERR_BAD_CONFIG, &why);
        return;
    }
    say(c, CHECK_OK, "device", "%s", ops->name);
    enum err e = worker_plan(c->config, ops, f, &plan, &why);
    double store = mib((uint64_t)c->config->store_bytes);
    if (e != ERR_OK) {
        fail(c, "memory", e, &why);
    } else if (plan.page_count == 0) {
        say(c, CHECK_OK, "memory",
            "%.1f MiB of weights, then a pool of what is left: pages of %u tokens and %.1f KiB; a "
            "sequence has up to %u; host store up to %.1f MiB",
            mib(plan.weight_bytes + plan.merge_bytes), plan.page_tokens,
            (double)plan.page_bytes / 1024, plan.slot_pages, store);
    } else {
        say(c, CHECK_OK, "memory",
            "pool %.1f MiB: %u pages of %u tokens, %" PRIu64
            " tokens together; a sequence has up to %u pages; host store up to %.1f MiB",
            mib(plan.pool_bytes), plan.page_count, plan.page_tokens,
            (uint64_t)plan.page_count * plan.page_tokens, plan.slot_pages, store);
    }
}

static void check_model(struct checks *c) {
    struct model *model = NULL;
    struct err_text why = {0};
    if (c->config->model_dir[0] == '\0') {
        enum err none = err_set(&why, ERR_BAD_CONFIG, "none: give --model DIR or set model.dir");
        fail(c, "model", none, &why);
        return;
    }
    enum err e = model_open(&model, c->config->model_dir, &why);
    if (e != ERR_OK) {
        fail(c, "model", e, &why);
        return;
    }
    const struct model_facts *f = model_facts(model);
    say(c, CHECK_OK, "model",
        "%s, %s, %u layers, hidden %u, context %u, %.1f MiB of weights on disk", f->name,
        f->architecture, f->shape.layers, f->shape.hidden, f->shape.positions,
        mib(f->weight_bytes));
    check_text(c, f);
    check_memory(c, f);
    model_close(model);
}

/* ---- adapters ----------------------------------------------------------------------------- */

struct counts {
    uint32_t valid, invalid;
};

static void count_one(void *context, const char *name, bool valid) {
    struct counts *n = context;
    n->valid += valid;
    n->invalid += !valid && name[0] != '.'; /* hidden: still being written */
}

static void check_adapters(struct checks *c) {
    struct counts n = {0};
    struct err_text why = {0};
    const char *root = c->config->adapters_dir;
    if (root[0] == '\0') {
        say(c, CHECK_OK, "adapters", "none: adapters.dir is empty, only the base model runs");
        return;
    }
    enum err e = model_adapter_list(root, count_one, &n, &why);
    if (e != ERR_OK) {
        fail(c, "adapters", e, &why);
        return;
    }
    say(c, n.invalid > 0 ? CHECK_WARN : CHECK_OK, "adapters",
        "%u in %s%s; `lorry adapters check` reads them", n.valid, root,
        n.invalid > 0 ? ", besides folders whose names are no ids" : "");
}

/* ---- Kafka and Redis ---------------------------------------------------------------------- */

static void check_topic(struct checks *c, rd_kafka_t *rk, const struct rd_kafka_metadata *metadata,
                        const char *topic, bool jobs) {
    char policy[64] = "";
    struct err_text why = {0};
    uint32_t partitions = broker_partitions(metadata, topic);
    if (partitions == 0) {
        fail(c, "topic", broker_missing(topic, &why), &why);
        return;
    }
    (void)broker_topic_config(rk, topic, "cleanup.policy", policy, sizeof policy);
    if (jobs && strstr(policy, "compact") != NULL) {
        enum err e = err_set(&why, ERR_BAD_CONFIG,
                             "%s has cleanup.policy=%s, which keeps one job an adapter; jobs "
                             "topics need delete",
                             topic, policy);
        fail(c, "topic", e, &why);
        return;
    }
    say(c, CHECK_OK, "topic", "%s, %u partitions%s%s", topic, partitions,
        policy[0] != '\0' ? ", " : "", policy);
}

static void check_kafka(struct checks *c) {
    static const struct broker_options producer = {.type = RD_KAFKA_PRODUCER};
    const struct config *config = c->config;
    const struct rd_kafka_metadata *metadata = NULL;
    rd_kafka_t *rk = NULL;
    struct err_text why = {0};
    enum err e = broker_open(&rk, config, &producer, &why);
    if (e == ERR_OK) {
        e = broker_wait(rk, config, BROKER_MS, &metadata, &why);
    }
    if (e != ERR_OK) {
        fail(c, "kafka", e, &why);
    } else {
        say(c, CHECK_OK, "kafka", "%d broker%s at %s, librdkafka %s", metadata->broker_cnt,
            metadata->broker_cnt == 1 ? "" : "s", config->kafka_brokers, rd_kafka_version_str());
        for (uint32_t i = 0; i < config->kafka_jobs.count; i++) {
            check_topic(c, rk, metadata, config->kafka_jobs.items[i], true);
        }
        check_topic(c, rk, metadata, config->kafka_frames, false);
        check_topic(c, rk, metadata, config->kafka_results, false);
        check_topic(c, rk, metadata, config->kafka_dead, false);
        rd_kafka_metadata_destroy(metadata);
    }
    if (rk != NULL) {
        rd_kafka_destroy(rk);
    }
}

/* A worker runs without it, so that it is away is a warning. */
static void check_redis(struct checks *c) {
    redisContext *r = NULL;
    struct err_text why = {0};
    if (c->config->redis_url[0] == '\0') {
        say(c, CHECK_OK, "redis", "none: redis.url is empty; no cancel, no deadlines from outside");
        return;
    }
    enum err e = redis_reach(&r, c->config, &why);
    if (e == ERR_OK) {
        e = redis_ping(r, &why);
    }
    if (e == ERR_OK) {
        say(c, CHECK_OK, "redis", "answers");
    } else if (e == ERR_AWAY) {
        say(c, CHECK_WARN, "redis", "%s; workers run without it", why.message);
    } else {
        fail(c, "redis", e, &why);
    }
    redisFree(r);
}

static int run(const struct tool *t) {
    struct checks c = {
        .config = t->config, .json = tool_flag(t, "--json") != NULL, .code = EXIT_DONE};
    if (t->argument_count != 0) {
        return tool_usage(t, "check takes no argument, but found '%s'", t->arguments[0]);
    }
    if (!c.json) {
        config_print(t->config, stdout);
        (void)putchar('\n');
    }
    tool_catch_interrupts();
    say(&c, CHECK_OK, "configuration", "valid");
    check_model(&c);
    check_adapters(&c);
    check_kafka(&c);
    check_redis(&c);
    return c.code;
}

const struct command cmd_check = {
    .name = "check",
    .arguments = "[--model DIR] [--adapters DIR] [--json]",
    .summary = "print the configuration, and look at all that a worker needs",
    .help = help,
    .own_flags = own_flags,
    .run = run,
};
