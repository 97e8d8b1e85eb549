/* test_ops.c - bench_ops: what it counts, how it spreads rows over adapters, and that a run on the
 * CPU prints every line with finite numbers. */
#include "tests/unit/tools/test.h"

#include <math.h>
#include <stdbool.h>
#include <sys/wait.h>

#include <jansson.h>

#include "tools/ops/cases.h"
#include "tools/ops/shapes.h"

static const struct ops_batch one_row = {{{1, 1, 1023}}}, chunk = {{{1, 4, 4}}};

static struct kern_shape llama(float rope_freq[KERN_HEAD_DIM_MAX / 2]) {
    struct kern_shape shape;
    assert_true(ops_shape("llama-3.1-8b", &shape, rope_freq));
    return shape;
}

/* The figures that anyone can work out for this model: 436 MB a layer, 128 KiB of KV a token. */
static void bytes_and_flops_are_counted_from_shapes(void **state) {
    (void)state;
    float rope_freq[KERN_HEAD_DIM_MAX / 2];
    const struct kern_shape s = llama(rope_freq);
    const struct ops_batch none = {0};
    double weights = 0;
    for (int b = OPS_QKV; b <= OPS_DOWN; b++) {
        weights += ops_work(&s, 2, &none, (enum ops_block)b).bytes;
    }
    assert_true(weights == 2.0 * (4096.0 * (4096 + 2048 + 4096) + 3.0 * 4096 * 14336));
    assert_true(ops_work(&s, 2, &none, OPS_PASS).bytes ==
                32 * weights + 2.0 * s.vocab * 4096); /* the table is only looked up */

    struct ops_work attention = ops_work(&s, 2, &one_row, OPS_ATTENTION);
    assert_true(attention.bytes == 1024.0 * 4096 + 2 * 2 * 4096.0);
    assert_true(attention.flops == 4.0 * 1024 * 4096);
    attention = ops_work(&s, 2, &chunk, OPS_ATTENTION); /* 5 + 6 + 7 + 8 pairs */
    assert_true(attention.flops == 4.0 * 26 * 4096);
    struct kern_shape windowed = s;
    windowed.window = 4;
    attention = ops_work(&windowed, 2, &chunk, OPS_ATTENTION);
    assert_true(attention.flops == 4.0 * 16 * 4096);
    assert_true(attention.bytes == 7.0 * 4096 + 2 * 4 * 2 * 4096.0);

    struct ops_work head = ops_work(&s, 2, &one_row, OPS_HEAD);
    assert_true(head.flops == 2.0 * 4096 * s.vocab);
    assert_true(head.bytes == 2.0 * 4096 * s.vocab + 2 * 4096 + 4.0 * s.vocab);

    /* 84 MB of rank 16 in all layers */
    double adapter = 0;
    for (int b = 0; b < OPS_BLOCKS; b++) {
        adapter += 32 * ops_lora_work(&s, 2, (enum ops_block)b, 16, 1, 1).bytes;
    }
    assert_true(adapter == 83886080);
}

static void rows_are_spread_over_adapters(void **state) {
    (void)state;
    static struct ops_lora lora;
    struct ops_batch batch;
    for (uint32_t i = 0; ops_batch_at(i, true, &batch); i++) {
        assert_true(ops_tokens(&batch) <= OPS_TOKENS_MAX);
        assert_true(ops_samples(&batch) <= OPS_CHUNKS_MAX);
        for (int m = 0; m < OPS_MIXES; m++) {
            (void)ops_lora_mix(&batch, (enum ops_mix)m, 16, &lora);
            uint32_t rows = 0;
            for (uint32_t k = 0; k < lora.segments; k++) {
                assert_true(lora.adapter[k] < lora.adapters);
                rows += lora.rows[k];
            }
            if (batch.groups[0].chunks >= 8 || m != OPS_EIGHT) {
                assert_int_equal(rows, ops_tokens(&batch));
            }
        }
    }
    batch = (struct ops_batch){{{512, 1, 0}}};
    assert_true(ops_lora_mix(&batch, OPS_ZIPF, 16, &lora)); /* 512 / H(512) = 75 to the first */
    assert_int_equal(lora.rows[0], 75);
    assert_int_equal(lora.rows[1], 38);
    assert_true(lora.adapters > 100 && lora.adapters < 512);
    assert_false(ops_lora_mix(&one_row, OPS_ZIPF, 16, &lora));
}

static void every_batch_has_a_name_of_its_own(void **state) {
    (void)state;
    char names[64][OPS_NAME_BYTES];
    struct ops_batch batch;
    uint32_t count = 0;
    for (; ops_batch_at(count, false, &batch); count++) {
        ops_batch_name(&batch, names[count]);
        for (uint32_t i = 0; i < count; i++) {
            assert_string_not_equal(names[i], names[count]);
        }
    }
    assert_string_equal(names[0], "decode-1@1024");
    assert_string_equal(names[count - 1], "mixed-256@1024+1x2048@0");
}

/* ---- the program -------------------------------------------------------------------------- */

static int run(const char *arguments, const char *into) {
    char command[512];
    (void)snprintf(command, sizeof command,
                   "%s/tools/bench_ops --device cpu --shape tiny --threads 1 --rounds 1 "
                   "--round-us 200 %s >%s 2>&1 </dev/null",
                   LORRY_BINARY_DIR, arguments, into);
    int status = system(command);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static json_t *results_of(const char *path, json_t **document) {
    *document = json_load_file(path, 0, NULL);
    assert_non_null(*document);
    assert_string_equal(json_string_value(json_object_get(*document, "device")), "cpu");
    json_t *results = json_object_get(*document, "results");
    assert_true(json_is_array(results));
    return results;
}

/* How many results have this kind and batch, and this block unless it is NULL; all numbers of all
 * results are finite (JSON has no others; what is none is null) and times are there. */
static int count(const json_t *results, const char *kind, const char *batch, const char *block) {
    size_t i;
    const json_t *one = NULL;
    int found = 0;
    json_array_foreach(results, i, one) {
        const char *key = NULL;
        json_t *value = NULL;
        json_object_foreach((json_t *)(uintptr_t)one, key, value) {
            assert_false(json_is_null(value));
        }
        assert_true(json_is_number(json_object_get(one, "us")));
        const char *is = json_string_value(json_object_get(one, "block"));
        found += strcmp(json_string_value(json_object_get(one, "kind")), kind) == 0 &&
                 strcmp(json_string_value(json_object_get(one, "batch")), batch) == 0 &&
                 (block == NULL || (is != NULL && strcmp(is, block) == 0));
    }
    return found;
}

static void blocks_are_timed(void **state) {
    (void)state;
    static const char *const blocks[] = {
        "embed", "qkv",    "attention", "attn_out",       "gate_up",        "down",
        "head",  "sample", "pass",      "sample top-p+k", "sample logprobs"};
    json_t *document;
    assert_int_equal(run("--case decode-16@200 --json ops.json", "ops.txt"), 0);
    const json_t *results = results_of("ops.json", &document);
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) {
        assert_int_equal(count(results, "block", "decode-16@200", blocks[i]), 1);
    }
    assert_int_equal(count(results, "step", "decode-16@200", NULL), 1);
    assert_int_equal(json_array_size(results), sizeof blocks / sizeof blocks[0] + 1);
    json_decref(document);

    assert_int_equal(run("--case 64x128 --layers 1 --json ops.json", "ops.txt"), 0);
    results = results_of("ops.json", &document);
    assert_int_equal(count(results, "step", "prefill-64x128@0", NULL), 1);
    json_decref(document);
    assert_int_equal(system("grep -q '^prefill-64x128@0 .*step, 2 layers:' ops.txt"), 0);
    assert_int_equal(system("grep -qi nan ops.txt"), 256); /* none is printed */
}

static void adapters_are_timed(void **state) {
    (void)state;
    json_t *document;
    assert_int_equal(run("--lora --case decode-16@ --case zipf --json ops.json", "ops.txt"), 0);
    const json_t *results = results_of("ops.json", &document);
    for (uint32_t i = 0; ops_rank_at(i) != 0; i++) {
        char name[OPS_NAME_BYTES];
        (void)snprintf(name, sizeof name, "decode-16@1024 zipf r%u", ops_rank_at(i));
        assert_int_equal(count(results, "lora", name, "gate_up"), 1);
        assert_int_equal(count(results, "lora", name, "attention"), 0);
        assert_int_equal(count(results, "lora_step", name, NULL), 1);
    }
    json_decref(document);
}

static void mistakes_are_refused(void **state) {
    (void)state;
    assert_int_equal(run("--shape none", "ops.txt"), 2);
    assert_int_equal(run("--case none", "ops.txt"), 2);
    assert_int_equal(run("--rounds 0", "ops.txt"), 2);
    assert_int_equal(run("--device none", "ops.txt"), 2);
    assert_int_equal(run("--case decode-1@200 --json /none/ops.json", "ops.txt"), 2);
    assert_int_equal(run("--list --lora --case r16", "ops.txt"), 0);
    assert_int_equal(run("--help", "ops.txt"), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_and_flops_are_counted_from_shapes),
        cmocka_unit_test(rows_are_spread_over_adapters),
        cmocka_unit_test(every_batch_has_a_name_of_its_own),
        cmocka_unit_test(blocks_are_timed),
        cmocka_unit_test(adapters_are_timed),
        cmocka_unit_test(mistakes_are_refused),
    };
    return cmocka_run_group_tests(tests, scratch_enter, scratch_leave);
}
