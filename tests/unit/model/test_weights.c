/* A model's folder: single and sharded, and each way in which its files can be wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/check.h"
#include "model/model.h"
#include "tests/unit/model/files.h"

#define LLAMA GOLDEN "tiny-llama/model"
#define QWEN2 GOLDEN "tiny-qwen2/model"

static void opens(const char *dir, struct model **m) {
    struct err_text why = {0};
    if (model_open(m, dir, &why) != ERR_OK) {
        fail_msg("%s", why.message);
    }
}

static void refuses(const char *dir, const char *word) {
    struct model *m = NULL;
    struct err_text why = {0};
    assert_int_equal(model_open(&m, dir, &why), ERR_BAD_MODEL);
    assert_null(m);
    if (strstr(why.message, word) == NULL || strstr(why.message, dir) == NULL) {
        fail_msg("\"%s\" does not hold \"%s\"", why.message, word);
    }
}

/* ---- a device that counts ----------------------------------------------------------------- */

struct kern_device {
    uint32_t count[KERN_K_NORM + 1];
    uint64_t elements;
    uint64_t progress_done, progress_all;
};

static enum err weight_count(struct kern_device *d, const struct kern_weight *w,
                             struct err_text *why) {
    (void)why;
    d->count[w->tensor]++;
    d->elements += w->rows * w->columns;
    uint8_t sum = 0; /* every byte can be read */
    const uint8_t *bytes = w->data;
    for (uint64_t i = 0; i < w->rows * w->columns * (w->dtype == KERN_F32 ? 4 : 2); i++) {
        sum ^= bytes[i];
    }
    (void)sum;
    return ERR_OK;
}

static void progress_note(void *context, uint64_t done, uint64_t all) {
    struct kern_device *d = context;
    assert_true(done > d->progress_done);
    d->progress_done = done;
    d->progress_all = all;
}

static const struct kern_ops COUNTING = {.name = "counting", .weight = weight_count};

static void test_hands_over_every_weight_once(void **state) {
    (void)state;
    struct model *m = NULL;
    opens(QWEN2, &m);
    const struct model_facts *f = model_facts(m);
    struct kern_device d = {0};
    assert_int_equal(model_weights(m, &COUNTING, &d, progress_note, &d, NULL), ERR_OK);
    uint32_t layers = f->shape.layers;
    assert_int_equal(f->shape.dtype, KERN_BF16);
    assert_int_equal(d.count[KERN_EMBED], 1);
    assert_int_equal(d.count[KERN_LM_HEAD], 1);
    assert_int_equal(d.count[KERN_FINAL_NORM], 1);
    assert_int_equal(d.count[KERN_INPUT_NORM], layers);
    assert_int_equal(d.count[KERN_POST_NORM], layers);
    assert_int_equal(d.count[KERN_WEIGHT], 7 * layers);
    assert_int_equal(d.count[KERN_BIAS], 3 * layers);
    assert_int_equal(d.elements * 2, f->weight_bytes); /* bf16 */
    assert_int_equal(d.progress_done, f->weight_bytes);
    assert_int_equal(d.progress_all, f->weight_bytes);
    model_close(m);
    model_close(NULL);
}

static enum err weight_fail(struct kern_device *d, const struct kern_weight *w,
                            struct err_text *why) {
    (void)d;
    (void)w;
    return err_set(why, ERR_NO_SPACE, "full");
}

static void test_passes_on_what_the_device_says(void **state) {
    (void)state;
    struct model *m = NULL;
    opens(LLAMA, &m);
    struct kern_ops ops = {.weight = weight_fail};
    struct kern_device d = {0};
    assert_int_equal(model_weights(m, &ops, &d, NULL, NULL, NULL), ERR_NO_SPACE);
    model_close(m);
}

static void test_facts_of_the_folder(void **state) {
    (void)state;
    struct model *llama = NULL;
    struct model *qwen2 = NULL;
    opens(LLAMA "///", &llama);
    opens(QWEN2 "/.", &qwen2);
    assert_string_equal(model_facts(llama)->name, "model");
    assert_string_equal(model_facts(qwen2)->name, "model");
    assert_true(model_facts(llama)->tied);
    assert_int_equal(model_facts(llama)->eos_count, 2);
    assert_int_equal(strlen(model_facts(llama)->hash), 64);
    assert_string_not_equal(model_facts(llama)->hash, model_facts(qwen2)->hash);
    model_close(llama);
    model_close(qwen2);
}

/* ---- folders that are wrong --------------------------------------------------------------- */

/* Replaces the first `from` in a file by `to`, of the same length. */
static void patch(const char *dir, const char *name, const char *from, const char *to) {
    size_t bytes = 0;
    char *data = file_read(dir, name, &bytes);
    size_t length = strlen(from);
    assert_int_equal(length, strlen(to));
    char *at = memmem(data, bytes, from, length);
    assert_non_null(at);
    for (size_t i = 0; i < length; i++) {
        at[i] = to[i];
    }
    file_write(dir, name, data, bytes);
    free(data);
}

/* Adds a tensor of `bytes` bytes of bf16 at the end of model.safetensors. */
static void append(const char *dir, const char *name, const char *shape, const void *raw,
                   size_t raw_bytes) {
    size_t bytes = 0;
    char *data = file_read(dir, "model.safetensors", &bytes);
    uint64_t header = 0;
    memcpy(&header, data, 8);
    uint64_t end = bytes - 8 - header;
    char *entry = NULL;
    int length =
        asprintf(&entry, "{\"%s\":{\"dtype\":\"BF16\",\"shape\":%s,\"data_offsets\":[%llu,%llu]},",
                 name, shape, (unsigned long long)end, (unsigned long long)end + raw_bytes);
    CHECK(length > 0);
    size_t total = bytes + (size_t)length - 1 + raw_bytes;
    char *out = malloc(total);
    CHECK(out != NULL);
    uint64_t longer = header + (uint64_t)length - 1;
    memcpy(out, &longer, 8);
    memcpy(out + 8, entry, (size_t)length);
    memcpy(out + 8 + length, data + 9, bytes - 9); /* without its { */
    memcpy(out + total - raw_bytes, raw, raw_bytes);
    file_write(dir, "model.safetensors", out, total);
    free(out);
    free(entry);
    free(data);
}

static void copy_llama(char dir[PATH_BYTES]) {
    scratch_make(dir);
    file_copy(LLAMA, dir, "config.json");
    file_copy(LLAMA, dir, "model.safetensors");
}

static void test_missing_files(void **state) {
    (void)state;
    char dir[PATH_BYTES];
    char file[PATH_BYTES];
    refuses("/nonexistent/model", "cannot be opened");
    refuses(LLAMA "/config.json", "Not a directory");
    scratch_make(dir);
    refuses(dir, "config.json");
    file_copy(LLAMA, dir, "config.json");
    refuses(dir, "model.safetensors.index.json");
    path_join(file, dir, "model.safetensors");
    assert_int_equal(mkfifo(file, 0600), 0); /* must not wait for a writer */
    refuses(dir, "not a regular file");
    assert_int_equal(unlink(file), 0);
    file_write(dir, "model.safetensors", "", 0);
    refuses(dir, "empty");
    file_write(dir, "model.safetensors", "cut", 3);
    refuses(dir, "model.safetensors");
    scratch_remove(dir);
}

static void test_tensors_that_do_not_fit(void **state) {
    (void)state;
    char dir[PATH_BYTES];
    copy_llama(dir);
    patch(dir, "model.safetensors", "\"model.norm.weight\"", "\"model.nurm.weight\"");
    refuses(dir, "model.norm.weight is missing");
    patch(dir, "model.safetensors", "\"model.nurm.weight\"", "\"model.norm.weight\"");
    patch(dir, "config.json", "\"vocab_size\": 320", "\"vocab_size\": 321");
    refuses(dir, "tensor model.embed_tokens.weight is [320, 96], not [321, 96]");
    patch(dir, "config.json", "\"vocab_size\": 321", "\"vocab_size\": 320");
    patch(dir, "config.json", "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 2");
    refuses(dir, "model.layers.2.");
    patch(dir, "config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 4");
    refuses(dir, "model.layers.3.input_layernorm.weight is missing");
    patch(dir, "config.json", "\"num_hidden_layers\": 4", "\"num_hidden_layers\": 3");
    patch(dir, "model.safetensors", "\"BF16\"", "\"I16\" ");
    refuses(dir, "type I16");
    scratch_remove(dir);
}

static void test_leftovers(void **state) {
    (void)state;
    char dir[PATH_BYTES];
    const uint16_t raw[4] = {0};
    struct model *m = NULL;
    copy_llama(dir);
    append(dir, "model.layers.0.self_attn.rotary_emb.inv_freq", "[4]", raw, sizeof raw);
    opens(dir, &m);
    model_close(m);
    append(dir, "model.layers.0.self_attn.q_norm.weight", "[4]", raw, sizeof raw);
    refuses(dir, "q_norm.weight has no place");
    scratch_remove(dir);
}

/* With tie_word_embeddings a stored head is fine if it is the embedding's copy. */
static void test_a_stored_head_of_a_tied_model(void **state) {
    (void)state;
    char dir[PATH_BYTES];
    size_t bytes = 0;
    struct model *m = NULL;
    copy_llama(dir);
    char *data = file_read(dir, "model.safetensors", &bytes);
    uint64_t header = 0;
    memcpy(&header, data, 8);
    char *text = strndup(data + 8, header);
    json_t *root = json_loads(text, 0, NULL);
    json_t *offsets =
        json_object_get(json_object_get(root, "model.embed_tokens.weight"), "data_offsets");
    char *embed = data + 8 + header + json_integer_value(json_array_get(offsets, 0));
    append(dir, "lm_head.weight", "[320, 96]", embed, (size_t)320 * 96 * 2);
    opens(dir, &m);
    assert_true(model_facts(m)->tied);
    model_close(m);
    file_write(dir, "model.safetensors", data, bytes);
    embed[100] = (char)(embed[100] ^ 1);
    append(dir, "lm_head.weight", "[320, 96]", embed, (size_t)320 * 96 * 2);
    refuses(dir, "lm_head.weight differs from the embedding");
    json_decref(root);
    free(text);
    free(data);
    scratch_remove(dir);
}

#define INDEX "model.safetensors.index.json"

/* Writes the index of tiny-qwen2 with one entry changed, or taken out where `file` is NULL. */
static void write_index(const char *dir, const char *tensor, const char *file) {
    json_t *root = json_read(QWEN2, INDEX);
    json_t *map = json_object_get(root, "weight_map");
    if (file == NULL) {
        (void)json_object_del(map, tensor);
    } else {
        (void)json_object_set_new(map, tensor, json_string(file));
    }
    char path[PATH_BYTES];
    path_join(path, dir, INDEX);
    assert_int_equal(json_dump_file(root, path, 0), 0);
    json_decref(root);
}

static void test_shards(void **state) {
    (void)state;
    char dir[PATH_BYTES];
    scratch_make(dir);
    file_copy(QWEN2, dir, "config.json");
    file_copy(QWEN2, dir, INDEX);
    json_t *root = json_read(QWEN2, INDEX);
    const char *tensor = NULL;
    const json_t *file = NULL;
    json_object_foreach(json_object_get(root, "weight_map"), tensor, file) {
        file_copy(QWEN2, dir, json_string_value(file));
    }
    struct model *m = NULL;
    opens(dir, &m);
    model_close(m);
    const char *norm = "model.norm.weight";
    const char *shard =
        json_string_value(json_object_get(json_object_get(root, "weight_map"), norm));
    static const char *const outside[] = {"../config.safetensors", "/etc/x.safetensors",
                                          ".x.safetensors",        "x.bin",
                                          ".safetensors",          ""};
    for (size_t i = 0; i < sizeof outside / sizeof outside[0]; i++) {
        write_index(dir, norm, outside[i]);
        refuses(dir, "weight_map: model.norm.weight");
    }
    write_index(dir, norm, "model-99.safetensors");
    refuses(dir, "model-99.safetensors: No such file");
    write_index(dir, norm, NULL);
    refuses(dir, "model.norm.weight");
    write_index(dir, "model.more.weight", shard);
    refuses(dir, "weight_map lists");
    file_write(dir, INDEX, "{}", 2);
    refuses(dir, "weight_map must be");
    file_write(dir, INDEX, "{\"weight_map\": {}}", 18);
    refuses(dir, "model.embed_tokens.weight is missing");
    json_decref(root);
    scratch_remove(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hands_over_every_weight_once),
        cmocka_unit_test(test_passes_on_what_the_device_says),
        cmocka_unit_test(test_facts_of_the_folder),
        cmocka_unit_test(test_missing_files),
        cmocka_unit_test(test_tensors_that_do_not_fit),
        cmocka_unit_test(test_leftovers),
        cmocka_unit_test(test_a_stored_head_of_a_tied_model),
        cmocka_unit_test(test_shards),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
