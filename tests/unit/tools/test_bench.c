/* test_bench.c - `lorry bench` on the CPU: token counts are exact, figures are there and sane,
 * adapters come and go in a pool with room for few, and what cannot run is refused. */
#include "tests/unit/tools/test.h"

#include <sys/wait.h>

#include <jansson.h>
#include <stdbool.h>

#define LORRY LORRY_BINARY_DIR "/tools/lorry"
/* A pool of 16 MiB is plenty; more would only be slow to look at. */
#define BENCH LORRY " bench --device.kind cpu --pool.bytes 16M "

static const char tiny[] =
    "{\"architectures\":[\"Qwen2ForCausalLM\"],\"model_type\":\"qwen2\",\"hidden_act\":\"silu\","
    "\"rms_norm_eps\":1e-6,\"tie_word_embeddings\":true,\"hidden_size\":48,"
    "\"intermediate_size\":88,\"num_hidden_layers\":2,\"num_attention_heads\":3,"
    "\"num_key_value_heads\":1,\"vocab_size\":300,\"max_position_embeddings\":128}";

static int enter(void **state) {
    int rc = scratch_enter(state);
    FILE *file = fopen("tiny.json", "w");
    assert_non_null(file);
    assert_true(fputs(tiny, file) >= 0);
    assert_int_equal(fclose(file), 0);
    return rc;
}

/* Runs a command whose stdout is JSON, an object a line; the i-th of them. */
static json_t *object_of(const char *command, int i) {
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    char *line = NULL;
    size_t room = 0;
    for (int at = 0; at <= i; at++) {
        assert_true(getline(&line, &room, pipe) > 0);
    }
    json_t *object = json_loads(line, 0, NULL);
    assert_non_null(object);
    free(line);
    assert_int_equal(pclose(pipe), 0);
    return object;
}

static json_int_t number(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    assert_true(json_is_integer(value));
    return json_integer_value(value);
}

static double real(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    assert_true(json_is_number(value));
    return json_number_value(value);
}

/* What holds for every run. */
static void check_sane(const json_t *o) {
    assert_int_equal(number(o, "failed"), 0);
    assert_true(real(o, "seconds") > 0);
    double tokens = (double)number(o, "output_tokens");
    assert_true(real(o, "output_tokens_s") > 0.99 * tokens / real(o, "seconds"));
    assert_true(real(o, "total_tokens_s") > real(o, "output_tokens_s"));
    assert_true(real(o, "busy") > 0 && real(o, "idle") >= 0);
    double all = real(o, "busy") + real(o, "idle");
    assert_true(all > 0.999 && all < 1.001);
    assert_true(real(o, "bytes_s") > 0 && real(o, "flop_s") > 0);
    assert_true(real(o, "limit_share") > 0);
    const json_t *device = json_object_get(o, "device");
    assert_true(real(device, "copy_bytes_s") > 0 && real(device, "gemm_flop_s") > 0);
    json_int_t steps = number(json_object_get(o, "decode_ms"), "count") +
                       number(json_object_get(o, "mixed_ms"), "count");
    assert_int_equal(steps, number(o, "steps"));
    const json_t *job = json_object_get(o, "job_ms");
    assert_true(real(job, "p50") > 0 && real(job, "p50") <= real(job, "p90"));
    assert_true(real(job, "p90") <= real(job, "p99"));
    const json_t *plan = json_object_get(json_object_get(o, "loop_ms"), "plan");
    assert_int_equal(number(plan, "count"), number(o, "steps"));
}

static void test_counts(void **state) {
    (void)state;
    json_t *o =
        object_of(BENCH "--shape tiny.json --jobs 40 --input 20 --output 12 --rows 8 --json", 0);
    check_sane(o);
    assert_int_equal(number(o, "input_tokens"), 800);
    assert_int_equal(number(o, "output_tokens"), 480);
    assert_int_equal(number(o, "rows"), 8);
    assert_int_equal(number(o, "running_peak") <= 8, 1);
    assert_int_equal(number(o, "loads"), 0);
    assert_true(number(o, "steps") >= 60);
    assert_string_equal(json_string_value(json_object_get(o, "model")), "tiny.json");
    json_decref(o);
}

/* The same seed gives the same jobs; another one others. */
static void test_seeds(void **state) {
    (void)state;
    static const char *const seeds[] = {"7", "7", "8"};
    json_int_t tokens[3];
    for (int i = 0; i < 3; i++) {
        char command[512];
        (void)snprintf(command, sizeof command,
                       BENCH "--shape tiny.json --jobs 30 --input uniform:5:60 "
                             "--output uniform:1:60 --seed %s --json",
                       seeds[i]);
        json_t *o = object_of(command, 0);
        check_sane(o);
        tokens[i] = number(o, "input_tokens") * 100000 + number(o, "output_tokens");
        json_decref(o);
    }
    assert_int_equal(tokens[0], tokens[1]);
    assert_int_not_equal(tokens[0], tokens[2]);
}

/* Ranks that are no multiples of 8, columns that are none of 64; eight adapters, room for two. */
static void test_adapters(void **state) {
    (void)state;
    json_t *o = object_of(BENCH "--shape tiny.json --jobs 48 --input 10 --output 8 --rows 6 "
                                "--adapter-count 8 --rank 3,16,40 --room 2 --json",
                          0);
    check_sane(o);
    assert_int_equal(number(o, "output_tokens"), 48 * 8);
    assert_int_equal(number(o, "adapters_used"), 8);
    assert_true(number(o, "loads") >= 6);     /* two may be there from the start */
    assert_true(number(o, "evictions") >= 2); /* small ones fit beside one another */
    assert_true(number(o, "load_bytes") > 0 && number(o, "adapter_bytes_read") > 0);
    assert_true(number(o, "pages_peak") <= number(json_object_get(o, "device"), "pages"));
    json_decref(o);

    /* Pages for all, but no more than one resident: each change of adapter is a load. */
    o = object_of(BENCH "--shape tiny.json --jobs 48 --input 10 --output 8 --rows 6 "
                        "--adapter-count 8 --resident 1 --json",
                  0);
    check_sane(o);
    assert_int_equal(number(o, "loads"), 7);
    assert_int_equal(number(o, "evictions"), 7);
    json_decref(o);

    o = object_of(BENCH "--shape tiny.json --jobs 48 --input 10 --output 8 --adapter-count 8 "
                        "--targets qkvo --order power:0.5 --json",
                  0);
    check_sane(o);
    assert_int_equal(number(o, "loads"), 0); /* the warm-up left them there */
    json_decref(o);
}

/* A pool of a size, whole and in parts, by adapter and in the order of arrival. */
static void test_pools(void **state) {
    (void)state;
    static const char *const flags[] = {"", "--split 50", "--split 50 --arrival", "--arrival"};
    json_int_t loads[4];
    for (size_t i = 0; i < 4; i++) {
        char command[512];
        (void)snprintf(command, sizeof command,
                       BENCH "--shape tiny.json --jobs 60 --input 10 --output 8 --rows 6 "
                             "--adapter-count 12 --rank 8 --order random --pool-tokens 800 %s "
                             "--json",
                       flags[i]);
        json_t *o = object_of(command, 0);
        check_sane(o);
        assert_int_equal(number(o, "output_tokens"), 60 * 8);
        const json_t *workload = json_object_get(o, "workload");
        assert_int_equal(number(workload, "pool_tokens"), 800);
        assert_int_equal(number(workload, "split"), i == 1 || i == 2 ? 50 : 0);
        assert_true(json_is_boolean(json_object_get(workload, "arrival")));
        loads[i] = number(o, "loads");
        json_decref(o);
    }
    assert_true(loads[0] > 0 && loads[1] > 0); /* not all fit */
    assert_true(loads[2] > loads[1] && loads[3] > loads[0]);
}

/* One adapter's steps run merged where that is asked for. */
static void test_merged(void **state) {
    (void)state;
    for (int merged = 0; merged < 2; merged++) {
        char command[512];
        (void)snprintf(command, sizeof command,
                       BENCH "--shape tiny.json --jobs 24 --input 10 --output 50 --rows 8 "
                             "--adapter-count 1 --rank 16 %s --json",
                       merged ? "--merged" : "");
        json_t *o = object_of(command, 0);
        check_sane(o);
        assert_int_equal(number(o, "merged_steps") > number(o, "steps") / 2, merged);
        assert_int_equal(number(o, "merged_steps") == 0, !merged);
        json_decref(o);
    }
}

/* A case named for churn has room for so many adapters and no more than its rows' KV beside. */
static void test_churn(void **state) {
    (void)state;
    static const char command[] = BENCH "--case churn:8,churn:2,slots:2 --shape tiny --jobs 96 "
                                        "--input 60 --output 60 --rows 24 --step-tokens 512 --json";
    for (int i = 0; i < 3; i++) {
        json_t *o = object_of(command, i);
        check_sane(o);
        const json_t *workload = json_object_get(o, "workload");
        assert_int_equal(number(workload, "room"), i == 0 ? 8 : 2);
        assert_int_equal(number(workload, "resident"), i == 2 ? 2 : 0);
        assert_true(i == 0 ? number(o, "loads") == 0 : number(o, "loads") >= 6);
        assert_true(i == 0 ? number(o, "evictions") == 0 : number(o, "evictions") > 0);
        json_decref(o);
    }
}

/* First loads come from files: all of unknown hash at first; what the store kept is not fetched. */
static void test_firstload(void **state) {
    (void)state;
    json_t *o = object_of(BENCH "--case firstload:5 --shape tiny --jobs 3 --input 8 --output 9 "
                                "--rows 8 --store.bytes 16M --json",
                          0);
    static const char *const runs[] = {"new", "known", "beside"};
    for (size_t i = 0; i < sizeof runs / sizeof runs[0]; i++) {
        const json_t *run = json_object_get(o, runs[i]);
        assert_int_equal(number(run, "fetches"), i == 0 ? 5 : 0);
        assert_true(real(run, "first_token_ms") > 0);
        assert_true((real(run, "fetch_ms") > 0) == (i == 0));
    }
    assert_true(real(json_object_get(o, "known"), "resident_first_token_ms") > 0);
    assert_true(real(json_object_get(o, "alone"), "step_ms") > 0);
    json_decref(o);
}

/* A slice: as many layers as asked for, and an adapter's bytes with them. */
static void test_layers(void **state) {
    (void)state;
    json_int_t bytes[2];
    for (int layers = 1; layers <= 2; layers++) {
        char command[512];
        (void)snprintf(command, sizeof command,
                       BENCH "--shape tiny.json --layers %d --jobs 4 --input 9 --output 5 --json",
                       layers);
        json_t *o = object_of(command, 0);
        assert_int_equal(number(json_object_get(o, "workload"), "layers"), layers);
        bytes[layers - 1] = number(json_object_get(o, "device"), "page_bytes");
        json_decref(o);
    }
    assert_int_equal(bytes[1], 2 * bytes[0]);
}

/* Several cases in one process, whose shape and sizes are overridden. */
static void test_cases(void **state) {
    (void)state;
    static const char command[] = BENCH "--repeat 1 --case A1,E1,B1:3,D1:5,G16a:7,F:9,churn:1 "
                                        "--shape tiny.json --jobs 24 --input 9 "
                                        "--output 7 --rows 6 --json";
    static const char *const names[] = {"A1", "E1", "B1:3", "D1:5", "G16a:7", "F:9", "churn:1"};
    static const json_int_t adapters[] = {0, 8, 3, 5, 7, 9, 8};
    for (int i = 0; i < 7; i++) {
        json_t *o = object_of(command, i);
        check_sane(o);
        assert_string_equal(json_string_value(json_object_get(o, "case")), names[i]);
        assert_int_equal(number(o, "output_tokens"), 24 * 7);
        assert_int_equal(number(json_object_get(o, "workload"), "adapters"), adapters[i]);
        json_decref(o);
    }
}

static void test_rate(void **state) {
    (void)state;
    json_t *o =
        object_of(BENCH "--shape tiny.json --jobs 20 --input 5 --output 3 --rate 100 --json", 0);
    check_sane(o);
    assert_true(real(o, "seconds") > 0.05); /* twenty at a hundred a second */
    assert_true(real(o, "idle") > 0.1);
    json_decref(o);
}

static void test_refusals(void **state) {
    (void)state;
    static const char *const wrong[] = {
        "--shape nope",
        "--case nope",
        "--case A1:5",
        "--case B1:x",
        "--shape tiny.json --input 100 --output 29", /* one above the context */
        "--shape tiny.json --input 0",
        "--shape tiny.json --output uniform:9:9",
        "--shape tiny.json --rank 513 --adapter-count 1",
        "--shape tiny.json --order sideways",
        "--shape tiny.json --popularity some",
        "--shape tiny.json --targets some",
        "--shape tiny.json --room 1",
        "--shape tiny.json --layers 3", /* it has two */
        "--shape tiny.json --rate 0",
        "--shape tiny.json --split 100",
        "--shape tiny.json --room 1 --pool-tokens 900 --adapter-count 4",
        "--shape tiny.json --pool-tokens 900 --adapter-count 4 --split 1", /* none fits */
        "--shape tiny.json --adapter-count 9 --room 9 --rows 9000",
        "extra",
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        char command[512];
        (void)snprintf(command, sizeof command, BENCH "%s >/dev/null 2>&1", wrong[i]);
        int status = system(command); /* NOLINT(cert-env33-c): ours */
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 2) {
            fail_msg("%s: %d", wrong[i], status);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counts),   cmocka_unit_test(test_seeds),
        cmocka_unit_test(test_adapters), cmocka_unit_test(test_cases),
        cmocka_unit_test(test_pools),    cmocka_unit_test(test_rate),
        cmocka_unit_test(test_merged),   cmocka_unit_test(test_churn),
        cmocka_unit_test(test_layers),   cmocka_unit_test(test_firstload),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, enter, scratch_leave);
}
