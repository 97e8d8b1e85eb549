/* test_main.c - the program as a person meets it: help, suggestions, usage errors; nothing here
 * needs a broker, a Redis or a model. */
#include "tests/unit/tools/test.h"

#include <sys/wait.h>

static char printed[1 << 16]; /* stdout and stderr of the last run */

/* Runs `lorry ARGUMENTS` and gives its exit code. */
static int lorry(const char *arguments) {
    char command[1024];
    (void)snprintf(command, sizeof command, "env -u LORRY_CONFIG %s/tools/lorry %s 2>&1 </dev/null",
                   LORRY_BINARY_DIR, arguments);
    FILE *p = popen(command, "r");
    assert_non_null(p);
    size_t bytes = fread(printed, 1, sizeof printed - 1, p);
    printed[bytes] = '\0';
    int status = pclose(p);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void assert_printed(const char *text) {
    if (strstr(printed, text) == NULL) {
        fail_msg("'%s' is not in: %s", text, printed);
    }
}

static const char *const commands[] = {
    "run",          "submit",        "collect",        "tail",         "cancel",
    "deadline",     "adapters list", "adapters check", "adapters add", "adapters rm",
    "adapters slo", "topics create", "check",          "top",          "completion",
};
enum { COMMAND_COUNT = sizeof commands / sizeof commands[0] };

static void every_command_has_help(void **state) {
    (void)state;
    char text[128];
    assert_int_equal(lorry("help"), 0);
    for (int i = 0; i < COMMAND_COUNT; i++) {
        assert_printed(commands[i]);
    }
    for (int i = 0; i < COMMAND_COUNT; i++) {
        (void)snprintf(text, sizeof text, "help %s", commands[i]);
        assert_int_equal(lorry(text), 0);
        (void)snprintf(text, sizeof text, "usage: lorry %s", commands[i]);
        assert_printed(text);
        (void)snprintf(text, sizeof text, "%s --help", commands[i]);
        assert_int_equal(lorry(text), 0);
        (void)snprintf(text, sizeof text, "  lorry %s", commands[i]); /* an example */
        assert_printed(text);
    }
    assert_int_equal(lorry("help options"), 0);
    assert_printed("--kafka.brokers");
    assert_int_equal(lorry("help adapters"), 0);
    assert_printed("adapters slo");
}

static void what_is_unknown_is_met_with_the_nearest(void **state) {
    static const struct {
        const char *typed, *nearest;
    } typos[] = {
        {"sumbit", "'submit'"},        {"colect x", "'collect'"},
        {"adapter list", "'adapters"}, {"help tial", "'tail'"},
        {"topic create", "'topics"},   {"submit --manfest x y", "--manifest"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof typos / sizeof typos[0]; i++) {
        assert_int_equal(lorry(typos[i].typed), 2);
        assert_printed(typos[i].nearest);
    }
}

static void wrong_usage_exits_with_2(void **state) {
    static const char *const wrong[] = {
        "",
        "adapters",
        "--model x run y",
        "run",
        "run a b",
        "run none.jsonl",
        "submit",
        "submit none.jsonl",
        "submit none.jsonl --key-by x",
        "submit none.jsonl --topic",
        "submit none.jsonl --quiet=yes",
        "collect",
        "collect none.json",
        "collect none.json --format xml",
        "collect none.json --timeout 0",
        "tail",
        "tail a b",
        "cancel",
        "cancel a --redis.url ''",
        "deadline a",
        "deadline a soon",
        "adapters list",
        "adapters check x",
        "adapters add",
        "adapters add none",
        "adapters add none --adapters . --id ../a",
        "adapters rm",
        "adapters rm a",
        "adapters rm ../a --adapters .",
        "adapters slo a",
        "adapters slo a --ttl-ms 5 --clear",
        "adapters slo a --ttl-ms 0",
        "adapters slo ../a --ttl-ms 5",
        "topics create x",
        "check x",
        "top x",
        "top --url https://x",
        "top --interval 0",
        "check --kafka.partitions none",
    };
    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        int code = lorry(wrong[i]);
        if (code != 2) {
            fail_msg("lorry %s: exit code %d: %s", wrong[i], code, printed);
        }
        assert_true(printed[0] != '\0');
    }
}

static void version_is_said(void **state) {
    (void)state;
    assert_int_equal(lorry("--version"), 0);
    assert_string_equal(printed, "lorry " LORRY_VERSION "\n");
}

static void no_escapes_reach_a_pipe(void **state) {
    (void)state;
    assert_int_equal(lorry("submit none.jsonl"), 2);
    assert_null(strchr(printed, '\033'));
}

/* Checks that stop at the input: no broker is asked. */
static void bad_lines_are_told_before_anything_is_sent(void **state) {
    static const char text[] = "{\"prompt\":\"a\"}\n\n{\"prompt\":\"b\",\"max_tokens\":-1}\nx\n"
                               "{\"id\":\"i\",\"prompt\":\"a\"}\n{\"id\":\"i\",\"prompt\":\"a\"}\n";
    (void)state;
    file_write("bad.jsonl", text, sizeof text - 1);
    file_write("empty.jsonl", "\n\n", 2);
    assert_int_equal(lorry("submit bad.jsonl --kafka.brokers 127.0.0.1:1"), 2);
    assert_printed("bad.jsonl:3: max_tokens");
    assert_printed("bad.jsonl:4: ");
    assert_printed("bad.jsonl:6: id i is line 5's already");
    assert_printed("nothing was submitted");
    assert_int_equal(access("bad.jsonl.lorry.json", F_OK), -1);
    assert_int_equal(lorry("submit empty.jsonl --kafka.brokers 127.0.0.1:1"), 2);
    assert_printed("no jobs");
}

static void no_broker_exits_with_5(void **state) {
    (void)state;
    file_write("good.jsonl", "{\"prompt\":\"a\"}\n", 15);
    assert_int_equal(
        lorry("submit good.jsonl --kafka.brokers 127.0.0.1:1 --kafka.start_timeout_s 0"), 5);
    assert_printed("127.0.0.1:1");
    assert_int_equal(access("good.jsonl.lorry.json", F_OK), -1);
    assert_int_equal(lorry("topics create --kafka.brokers 127.0.0.1:1 --kafka.start_timeout_s 0"),
                     5);
    assert_int_equal(lorry("cancel a --redis.url redis://127.0.0.1:1"), 5);
    assert_int_equal(
        lorry("top --once --kafka.brokers 127.0.0.1:1 --redis.url redis://127.0.0.1:1"), 5);
    assert_printed("workers are not known");
    assert_printed("the queue is not known");
}

/* What bash offers behind `words`, of which the last one is being typed. */
static void complete(const char *words) {
    char command[1024];
    (void)snprintf(command, sizeof command,
                   "bash -c 'source <(%s/tools/lorry completion bash); COMP_WORDS=(%s); "
                   "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _lorry; echo \"${COMPREPLY[*]}\"' 2>&1",
                   LORRY_BINARY_DIR, words);
    FILE *p = popen(command, "r");
    assert_non_null(p);
    size_t bytes = fread(printed, 1, sizeof printed - 1, p);
    printed[bytes] = '\0';
    assert_int_equal(pclose(p), 0);
}

static void bash_completes(void **state) {
    static const struct {
        const char *words, *offered;
    } completions[] = {
        {"lorry sub", "submit\n"},
        {"lorry adapters \"\"", "list check add rm slo\n"},
        {"lorry adapters a", "add\n"},
        {"lorry submit --key", "--key-by\n"},
        {"lorry submit --key-by \"\"", "adapter none\n"},
        {"lorry collect --format = o", "openai\n"}, /* as bash breaks --format=o */
        {"lorry run --kafka.b", "--kafka.brokers\n"},
        {"lorry check --log.level =", "error warn info debug\n"},
        {"lorry check --no-frames", "--no-frames.default\n"},
        {"lorry completion z", "zsh\n"},
        {"lorry help topi", "topics\n"},
        {"lorry submit some-file", "\n"}, /* left to bash */
    };
    (void)state;
    for (size_t i = 0; i < sizeof completions / sizeof completions[0]; i++) {
        complete(completions[i].words);
        assert_string_equal(printed, completions[i].offered);
    }
    assert_int_equal(lorry("completion bash --nonsense"), 2);
    assert_int_equal(lorry("completion fish"), 2);
}

/* A flag's words and meaning come from its command's usage and help. */
static void zsh_and_man_say_what_the_help_says(void **state) {
    (void)state;
    assert_int_equal(lorry("completion zsh"), 0);
    assert_printed("'--key-by=[adapter (default)\\: an adapter'\\''s jobs stay together; none\\: "
                   "spread evenly]:value:(adapter none)'");
    assert_printed("'--log.level=:value:(error warn info debug)'");
    assert_int_equal(lorry("help man"), 0);
    assert_printed("\n.SS adapters check \\- whether the model can run the adapters\n");
    assert_printed("\\-\\-kafka.brokers");
    assert_printed("[ID\\[u2026]]");
    assert_null(strstr(printed, "\n./")); /* which roff would take for a request */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_command_has_help),
        cmocka_unit_test(what_is_unknown_is_met_with_the_nearest),
        cmocka_unit_test(wrong_usage_exits_with_2),
        cmocka_unit_test(version_is_said),
        cmocka_unit_test(no_escapes_reach_a_pipe),
        cmocka_unit_test(bad_lines_are_told_before_anything_is_sent),
        cmocka_unit_test(no_broker_exits_with_5),
        cmocka_unit_test(bash_completes),
        cmocka_unit_test(zsh_and_man_say_what_the_help_says),
    };
    return cmocka_run_group_tests(tests, scratch_enter, scratch_leave);
}
