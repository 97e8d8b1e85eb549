/* cmd_adapters.c - `lorry adapters list|check|slo`. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "tools/adapters.h"
#include "tools/json.h"
#include "tools/redis.h"
#include "worker/worker.h"

enum { MS_MAX_BITS = 53 };

/* ---- names of the root -------------------------------------------------------------------- */

struct names {
    char **items; /* owned */
    int count;
    bool failed; /* no memory */
};

static void names_add(void *context, const char *name, bool valid) {
    struct names *n = context;
    if (name[0] == '.') { /* how one hides a folder that is still being written */
        return;
    }
    if (!valid) {
        tool_note("%s: not an id of an adapter, so no job can name it", name);
        return;
    }
    char **items = realloc(n->items, ((size_t)n->count + 1) * sizeof *items);
    char *copy = strdup(name);
    if (items != NULL) {
        n->items = items;
    }
    if (items == NULL || copy == NULL) {
        free(copy);
        n->failed = true;
        return;
    }
    n->items[n->count++] = copy;
}

static void names_deinit(struct names *n) {
    for (int i = 0; i < n->count; i++) {
        free(n->items[i]);
    }
    free(n->items);
}

enum err adapters_need_root(const struct config *c, struct err_text *why) {
    return c->adapters_dir[0] != '\0'
               ? ERR_OK
               : err_set_field(why, ERR_BAD_CONFIG, "adapters.dir",
                               "no adapter root: give --adapters DIR or set adapters.dir");
}

static enum err names_read(struct names *n, const struct config *c, struct err_text *why) {
    enum err e = adapters_need_root(c, why);
    if (e == ERR_OK) {
        e = model_adapter_list(c->adapters_dir, names_add, n, why);
    }
    return e == ERR_OK && n->failed ? err_set(why, ERR_NO_MEMORY, "no memory for the names") : e;
}

/* ---- list --------------------------------------------------------------------------------- */

static const char *const json_flags[] = {"--json", NULL};

static const char list_help[] =
    "Lists the folders of the adapter root, and what Redis knows of each: revision (the start of\n"
    "the files' hash), rank, bytes, state (usable or refused, as the last worker that read it\n"
    "says), and the default limits that `lorry adapters slo` set. - is what is not known. The "
    "root\n"
    "is the only registration: a folder of PEFT files that is moved into it is there.\n"
    "\n"
    "  --json    an object a line, with the whole revision; null is what is not known\n"
    "\n"
    "  lorry adapters list --adapters /srv/adapters\n"
    "  lorry adapters list --json | jq -r 'select(.state == \"refused\").id'\n";

static const char *const columns[] = {"revision", "rank",   "bytes",
                                      "state",    "ttl_ms", "ttft_slo_ms"};
enum { COLUMNS = sizeof columns / sizeof columns[0] };

static void print_json(const char *id, char values[COLUMNS][REDIS_VALUE_BYTES]) {
    json_t *root = json_object();
    (void)json_object_set_new(root, "id", json_text(id));
    for (int i = 0; i < COLUMNS; i++) {
        bool text = strcmp(columns[i], "revision") == 0 || strcmp(columns[i], "state") == 0;
        const char *value = values[i][0] != '\0' ? values[i] : NULL;
        (void)json_object_set_new(root, columns[i],
                                  text || value == NULL ? json_text(value) : json_number(value));
    }
    json_line(stdout, root);
}

/* Prints one row; width 0: as JSON. With *redis gone, or NULL, facts are not known. */
static void list_row(redisContext **redis, const char *id, int width) {
    char key[REDIS_KEY_BYTES];
    char values[COLUMNS][REDIS_VALUE_BYTES] = {{0}};
    struct err_text why = {0};
    (void)snprintf(key, sizeof key, "lorry:adapter:%s", id);
    if (*redis != NULL && redis_get(*redis, key, columns, COLUMNS, values, &why) != ERR_OK) {
        tool_note("%s", why.message);
        redisFree(*redis);
        *redis = NULL;
    }
    if (width == 0) {
        print_json(id, values);
        return;
    }
    values[0][ADAPTERS_REVISION_SHOWN] = '\0';
    (void)printf("%-*s", width, id);
    for (int i = 0; i < COLUMNS; i++) {
        (void)printf("  %*s", i + 1 < COLUMNS ? -12 : 0, values[i][0] != '\0' ? values[i] : "-");
    }
    (void)putchar('\n');
}

/* Prints the header, unless as JSON; gives the width of the ids' column, or 0. */
static int list_header(const struct names *names, bool json) {
    int width = 2;
    if (json) {
        return 0;
    }
    for (int i = 0; i < names->count; i++) {
        int bytes = (int)strlen(names->items[i]);
        width = bytes > width ? bytes : width;
    }
    (void)printf("%-*s", width, "id");
    for (int i = 0; i < COLUMNS; i++) {
        (void)printf("  %*s", i + 1 < COLUMNS ? -12 : 0, columns[i]);
    }
    (void)putchar('\n');
    return width;
}

static int run_list(const struct tool *t) {
    struct err_text why = {0};
    struct names names = {0};
    redisContext *redis = NULL;
    if (t->argument_count != 0) {
        return tool_usage(t, "adapters list takes no argument, but found '%s'", t->arguments[0]);
    }
    enum err e = names_read(&names, t->config, &why);
    if (e == ERR_OK && t->config->redis_url[0] != '\0') {
        struct err_text away = {0};
        if (redis_reach(&redis, t->config, &away) != ERR_OK) {
            tool_note("Redis is not there, so only names are known: %s", away.message);
        }
    }
    int width = e == ERR_OK ? list_header(&names, tool_flag(t, "--json") != NULL) : 0;
    for (int i = 0; i < names.count && e == ERR_OK; i++) {
        list_row(&redis, names.items[i], width);
    }
    redisFree(redis);
    names_deinit(&names);
    return e == ERR_OK ? EXIT_DONE : tool_fail(e, &why);
}

/* ---- check -------------------------------------------------------------------------------- */

static const char check_help[] =
    "Reads adapters as a worker would, all of the root or those named, and says of each whether\n"
    "this model can run it; the field or tensor at fault is named. Exit code 1: one was refused.\n"
    "\n"
    "  --json    an object a line\n"
    "\n"
    "  lorry adapters check --model DIR --adapters DIR\n"
    "  lorry adapters check pirate shout --model DIR --adapters DIR\n";

static void verdict_json(const char *id, enum err e, const struct model_adapter_facts *facts,
                         const struct err_text *why) {
    json_line(stdout,
              e == ERR_OK
                  ? json_pack("{so, sb, si, si, sI, si, ss}", "id", json_text(id), "ok", 1, "rank",
                              (int)facts->rank_max, "modules", (int)facts->modules, "bytes",
                              (json_int_t)facts->file_bytes, "pages", (int)facts->page_count,
                              "revision", facts->revision)
                  : json_pack("{so, sb, ss, so, so}", "id", json_text(id), "ok", 0, "code",
                              err_name(e), "field",
                              json_text(why->field[0] != '\0' ? why->field : NULL), "message",
                              json_text(why->message[0] != '\0' ? why->message : err_text(e))));
}

/* Prints the verdict. true: the adapter can be used. */
static bool verdict(const struct model_facts *model, const struct model_adapter_options *options,
                    const char *id, bool json) {
    struct model_adapter_facts facts = {0};
    struct err_text why = {0};
    enum err e = model_adapter_id_valid(id, strlen(id))
                     ? model_adapter_check(model, options, id, &facts, &why)
                     : err_set(&why, ERR_UNKNOWN_ADAPTER, "not an id of an adapter");
    bool ok = e == ERR_OK;
    if (json) {
        verdict_json(id, e, &facts, &why);
        return ok;
    }
    (void)printf("%s%s%s %s ", tool_colour(stdout, ok ? TOOL_GREEN : TOOL_RED),
                 ok ? "ok" : "refused", tool_colour(stdout, TOOL_PLAIN), id);
    if (ok) {
        (void)printf("rank=%u modules=%u bytes=%" PRIu64 " pages=%u revision=%.*s\n",
                     facts.rank_max, facts.modules, facts.file_bytes, facts.page_count,
                     ADAPTERS_REVISION_SHOWN, facts.revision);
    } else {
        (void)printf("%s %s %s\n", err_name(e), why.field[0] != '\0' ? why.field : "-",
                     why.message[0] != '\0' ? why.message : err_text(e));
    }
    (void)fflush(stdout);
    return ok;
}

enum err adapters_open_model(const struct config *c, struct model **out,
                             struct model_adapter_options *options, struct err_text *why) {
    struct worker_plan plan;
    struct model *model = NULL;
    enum err e = c->model_dir[0] != '\0'
                     ? model_open(&model, c->model_dir, why)
                     : err_set_field(why, ERR_BAD_CONFIG, "model.dir",
                                     "no model: give --model DIR or set model.dir");
    if (e == ERR_OK) {
        const struct kern_ops *ops = kern_find(c->device_kind, NULL);
        e = worker_plan(c, ops != NULL ? ops : kern_cpu(), model_facts(model), &plan, why);
    }
    if (e != ERR_OK) {
        model_close(model);
        return e;
    }
    *options = (struct model_adapter_options){.root = c->adapters_dir,
                                              .page_tokens = plan.page_tokens,
                                              .elem = plan.elem,
                                              .page_count_max = plan.adapter_pages};
    *out = model;
    return ERR_OK;
}

static int run_check(const struct tool *t) {
    struct err_text why = {0};
    struct names names = {0};
    struct model *model = NULL;
    struct model_adapter_options options;
    int refused = 0;
    bool named = t->argument_count > 0;
    bool json = tool_flag(t, "--json") != NULL;
    enum err e = named ? adapters_need_root(t->config, &why) : names_read(&names, t->config, &why);
    if (e == ERR_OK) {
        e = adapters_open_model(t->config, &model, &options, &why);
    }
    for (int i = 0; e == ERR_OK && i < (named ? t->argument_count : names.count); i++) {
        const char *id = named ? t->arguments[i] : names.items[i];
        refused += verdict(model_facts(model), &options, id, json) ? 0 : 1;
    }
    model_close(model);
    names_deinit(&names);
    if (e != ERR_OK) {
        return tool_fail(e, &why);
    }
    return refused > 0 ? EXIT_JOBS : EXIT_DONE;
}

/* ---- slo ---------------------------------------------------------------------------------- */

static const char *const slo_flags[] = {"--ttl-ms=", "--ttft-slo-ms=", "--clear", NULL};

static const char slo_help[] =
    "Sets, in Redis, the limits of an adapter's jobs that bring none of their own.\n"
    "\n"
    "  --ttl-ms N        a job expires this long after it was submitted\n"
    "  --ttft-slo-ms N   the first token is wanted within this time\n"
    "  --clear           take both away\n"
    "\n"
    "  lorry adapters slo pirate --ttl-ms 60000\n"
    "  lorry adapters slo pirate --clear\n";

static enum err set_slo(redisContext *r, const char *id, const char *const values[2], bool clear,
                        struct err_text *why) {
    static const char *const fields[2] = {"ttl_ms", "ttft_slo_ms"};
    char key[REDIS_KEY_BYTES];
    int64_t listeners = 0;
    enum err e = ERR_OK;
    (void)snprintf(key, sizeof key, "lorry:adapter:%s", id);
    for (int i = 0; i < 2 && e == ERR_OK; i++) {
        if (clear || values[i] != NULL) {
            e = redis_set(r, key, fields[i], clear ? NULL : values[i], why);
        }
    }
    return e == ERR_OK ? redis_tell(r, "adapter", id, &listeners, why) : e;
}

static int run_slo(const struct tool *t) {
    struct err_text why = {0};
    redisContext *r = NULL;
    const char *const values[2] = {tool_flag(t, "--ttl-ms"), tool_flag(t, "--ttft-slo-ms")};
    bool clear = tool_flag(t, "--clear") != NULL;
    if (t->argument_count != 1) {
        return tool_usage(t, "adapters slo takes the id of one adapter");
    }
    const char *id = t->arguments[0];
    if (clear == (values[0] != NULL || values[1] != NULL)) {
        return tool_usage(t, "adapters slo takes --ttl-ms, --ttft-slo-ms or both, or --clear");
    }
    enum err e = ERR_OK;
    if (!model_adapter_id_valid(id, strlen(id))) {
        e = err_set(&why, ERR_BAD_CONFIG, "'%.64s' is not an id of an adapter", id);
    }
    for (int i = 0; i < 2 && e == ERR_OK; i++) {
        int64_t ignored = 0;
        if (values[i] != NULL) {
            e = tool_int(i == 0 ? "--ttl-ms" : "--ttft-slo-ms", values[i], 1,
                         INT64_C(1) << MS_MAX_BITS, &ignored, &why);
        }
    }
    if (e == ERR_OK) {
        e = redis_reach(&r, t->config, &why);
    }
    if (e == ERR_OK) {
        e = set_slo(r, id, values, clear, &why);
    }
    if (e == ERR_OK) {
        (void)printf("%s%s%s%s%s%s\n", id, clear ? " has no default limits" : "",
                     values[0] != NULL ? " ttl_ms=" : "", values[0] != NULL ? values[0] : "",
                     values[1] != NULL ? " ttft_slo_ms=" : "", values[1] != NULL ? values[1] : "");
    }
    redisFree(r);
    return e == ERR_OK ? EXIT_DONE : tool_fail(e, &why);
}

const struct command cmd_adapters_list = {
    .name = "adapters list",
    .arguments = "[--adapters DIR] [--json]",
    .summary = "what is in the adapter root",
    .help = list_help,
    .own_flags = json_flags,
    .run = run_list,
};

const struct command cmd_adapters_check = {
    .name = "adapters check",
    .arguments = "[ID…] --model DIR --adapters DIR [--json]",
    .summary = "whether the model can run the adapters",
    .help = check_help,
    .own_flags = json_flags,
    .run = run_check,
};

const struct command cmd_adapters_slo = {
    .name = "adapters slo",
    .arguments = "ID --ttl-ms N | --ttft-slo-ms N | --clear",
    .summary = "default limits of an adapter's jobs",
    .help = slo_help,
    .own_flags = slo_flags,
    .run = run_slo,
};
