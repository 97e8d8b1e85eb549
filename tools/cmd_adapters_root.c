/* cmd_adapters_root.c - `lorry adapters add|rm`: what changes the adapter root. */
#include <inttypes.h>
#include <string.h>

#include "tools/adapters.h"
#include "tools/place.h"
#include "tools/redis.h"

/* What is known of an adapter: of its files, then the limits that `adapters slo` set. */
static const char *const fields[] = {"revision", "rank",   "bytes",      "state",
                                     "message",  "ttl_ms", "ttft_slo_ms"};
enum { FACTS = 5, FIELDS = sizeof fields / sizeof fields[0] };

/* Redis forgets the first `count` fields of each adapter, and the workers hear of them. Workers
 * look at the files before each job anyway, so that Redis is away is no failure. */
static void announce(const struct config *c, char *const *ids, int id_count, int count) {
    struct err_text why = {0};
    redisContext *r = NULL;
    if (c->redis_url[0] == '\0') {
        return;
    }
    enum err e = redis_reach(&r, c, &why);
    for (int i = 0; i < id_count && e == ERR_OK; i++) {
        char key[REDIS_KEY_BYTES];
        int64_t ignored = 0;
        (void)snprintf(key, sizeof key, "lorry:adapter:%s", ids[i]);
        e = redis_forget(r, key, fields, count, &why);
        if (e == ERR_OK) {
            e = redis_tell(r, "adapter", ids[i], &ignored, &why);
        }
    }
    if (e != ERR_OK) {
        tool_note("not announced, workers will see it by themselves: %s", why.message);
    }
    redisFree(r);
}

static enum err check_id(const char *id, struct err_text *why) {
    return model_adapter_id_valid(id, strlen(id))
               ? ERR_OK
               : err_set(why, ERR_BAD_CONFIG,
                         "'%.64s' is not an id of an adapter: 1 to 128 of A-Z a-z 0-9 . _ : @ - "
                         "that begin with no dot",
                         id);
}

static void clean_up(struct place *p) {
    if (!place_close(p)) {
        tool_note("%s could not be deleted; nothing in it is served", p->dir);
    }
}

/* ---- add ---------------------------------------------------------------------------------- */

static const char *const add_flags[] = {"--id=", "--replace", NULL};

static const char add_help[] =
    "Copies a PEFT folder into the adapter root, from where workers serve it at once, without a\n"
    "restart. The copy is checked as a worker would check it before it gets its name, so that no\n"
    "job ever sees a part of an adapter, or one that the model cannot run; the field or tensor at\n"
    "fault is named. Only adapter_config.json and adapter_model.safetensors are copied.\n"
    "\n"
    "  --id ID       the adapter's id; the folder's name if not given\n"
    "  --replace     put it in the place of one that has this id: jobs that run keep the old\n"
    "                revision, jobs that start get the new one\n"
    "\n"
    "  lorry adapters add out/checkpoint-500 --id pirate --model DIR --adapters DIR\n"
    "  lorry adapters add pirate-v2 --id pirate --replace\n";

/* Checks the copy in the hidden folder: the bytes that will be served. */
static enum err check_copy(const struct tool *t, const struct place *p, const char *id,
                           struct model_adapter_facts *facts, struct err_text *why) {
    struct model *model = NULL;
    struct model_adapter_options options;
    enum err e = adapters_open_model(t->config, &model, &options, why);
    if (e == ERR_OK) {
        options.root = p->dir;
        e = model_adapter_check(model_facts(model), &options, id, facts, why);
        model_close(model);
    }
    return e;
}

static enum err add(const struct tool *t, struct place *p, const char *id,
                    struct model_adapter_facts *facts, bool *replaced, struct err_text *why) {
    enum err e = check_id(id, why);
    if (e == ERR_OK) {
        e = adapters_need_root(t->config, why);
    }
    if (e == ERR_OK) {
        e = place_open(p, t->config->adapters_dir, why);
    }
    if (e == ERR_OK) {
        e = place_copy(p, t->arguments[0], id, why);
    }
    if (e == ERR_OK) {
        e = check_copy(t, p, id, facts, why);
    }
    if (e == ERR_OK) {
        e = place_in(p, id, tool_flag(t, "--replace") != NULL, replaced, why);
    }
    return e;
}

static int run_add(const struct tool *t) {
    struct err_text why = {0};
    struct place place = {0};
    struct model_adapter_facts facts = {0};
    char room[TOOL_NAME_BYTES];
    bool replaced = false;
    if (t->argument_count != 1) {
        return tool_usage(t, "adapters add takes one PEFT folder");
    }
    const char *given = tool_flag(t, "--id");
    char *id = room;
    (void)snprintf(room, sizeof room, "%s", given != NULL ? given : "");
    if (given == NULL) {
        (void)tool_folder_name(t->arguments[0], room);
    }
    tool_catch_interrupts();
    enum err e = add(t, &place, id, &facts, &replaced, &why);
    clean_up(&place);
    if (e != ERR_OK) {
        return tool_fail(e, &why);
    }
    announce(t->config, &id, 1, FACTS);
    (void)printf("%s %s rank=%u modules=%u bytes=%" PRIu64 " pages=%u revision=%.*s\n",
                 replaced ? "replaced" : "added", id, facts.rank_max, facts.modules,
                 facts.file_bytes, facts.page_count, ADAPTERS_REVISION_SHOWN, facts.revision);
    return EXIT_DONE;
}

/* ---- rm ----------------------------------------------------------------------------------- */

static const char *const rm_flags[] = {NULL};

static const char rm_help[] =
    "Takes adapters out of the root and deletes their folders. Jobs that run end with the "
    "revision\n"
    "they began with; jobs that come later are rejected as unknown_adapter. What Redis knows of\n"
    "the adapter, its default limits too, is forgotten.\n"
    "\n"
    "  lorry adapters rm pirate --adapters DIR\n";

static int run_rm(const struct tool *t) {
    struct err_text why = {0};
    struct place place = {0};
    int gone = 0;
    if (t->argument_count < 1) {
        return tool_usage(t, "adapters rm takes the ids of adapters");
    }
    enum err e = adapters_need_root(t->config, &why);
    for (int i = 0; i < t->argument_count && e == ERR_OK; i++) {
        e = check_id(t->arguments[i], &why);
    }
    if (e == ERR_OK) {
        e = place_open(&place, t->config->adapters_dir, &why);
    }
    while (e == ERR_OK && gone < t->argument_count) {
        e = place_out(&place, t->arguments[gone], &why);
        if (e == ERR_OK) {
            (void)printf("removed %s\n", t->arguments[gone++]);
        }
    }
    if (gone > 0) {
        announce(t->config, t->arguments, gone, FIELDS);
    }
    clean_up(&place);
    return e == ERR_OK ? EXIT_DONE : tool_fail(e, &why);
}

const struct command cmd_adapters_add = {
    .name = "adapters add",
    .arguments = "DIR [--id ID] [--replace] --model DIR --adapters DIR",
    .summary = "check a PEFT folder and put it into the adapter root",
    .help = add_help,
    .own_flags = add_flags,
    .run = run_add,
};

const struct command cmd_adapters_rm = {
    .name = "adapters rm",
    .arguments = "ID… [--adapters DIR]",
    .summary = "take adapters out of the root",
    .help = rm_help,
    .own_flags = rm_flags,
    .run = run_rm,
};
