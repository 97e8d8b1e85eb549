/* Adapters on their way into the store: the bad ones of the goldens, images, folders, ids. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/model.h"
#include "tests/unit/model/files.h"

#define TINY GOLDEN "tiny-llama"

struct fixture {
    struct model *model;
    struct pool_store *store;
    struct model_adapter_options options;
};

static int setup(void **state) {
    static struct fixture f;
    struct err_text why = {0};
    struct pool_store_options store = {.bytes = 64 << 20, .chunk_bytes = 8 << 20};
    f.options = (struct model_adapter_options){
        .root = TINY "/adapters", .page_tokens = 16, .elem = KERN_F32, .page_count_max = 4096};
    if (model_open(&f.model, TINY "/model", &why) != ERR_OK ||
        pool_store_open(&f.store, &store) != ERR_OK) {
        print_error("%s\n", why.message);
        return -1;
    }
    *state = &f;
    return 0;
}

static int teardown(void **state) {
    struct fixture *f = *state;
    pool_store_close(f->store);
    model_close(f->model);
    return 0;
}

static enum err load(struct fixture *f, const char *root, const char *id, struct pool_image **image,
                     struct err_text *why) {
    struct model_adapter_facts facts;
    struct model_adapter_options options = f->options;
    options.root = root;
    return model_adapter_load(model_facts(f->model), &options, id, f->store, image, &facts, why);
}

/* ---- bad adapters ------------------------------------------------------------------------- */

static void demand_words(const char *id, const char *message, const json_t *words) {
    size_t i = 0;
    const json_t *word = NULL;
    json_array_foreach(words, i, word) {
        if (strstr(message, json_string_value(word)) == NULL) {
            fail_msg("%s: \"%s\" does not hold \"%s\"", id, message, json_string_value(word));
        }
    }
}

static void refuses_bad(struct fixture *f, const json_t *one) {
    const char *id = json_string_value(json_object_get(one, "adapter"));
    const char *error = json_string_value(json_object_get(one, "error"));
    struct model_adapter_options options = f->options;
    struct err_text why = {0};
    struct err_text again = {0};
    struct pool_image *image = NULL;
    struct model_adapter_facts facts;
    options.root = TINY "/bad";
    enum err e = load(f, options.root, id, &image, &why);
    if (strcmp(err_name(e), error) != 0) {
        fail_msg("%s: %s, not %s: %s", id, err_name(e), error, why.message);
    }
    assert_null(image);
    assert_int_equal(model_adapter_check(model_facts(f->model), &options, id, &facts, &again), e);
    assert_string_equal(why.message, again.message);
    demand_words(id, why.message, json_object_get(one, "words"));
    assert_true(why.field[0] != '\0');
}

/* Each gives its own error, whose text holds the words; check() and load() agree; nothing is left
 * in the store. */
static void test_bad_adapters_are_refused_by_name(void **state) {
    struct fixture *f = *state;
    json_t *list = json_read(TINY, "bad.json");
    assert_true(json_array_size(list) > 60);
    size_t i = 0;
    const json_t *one = NULL;
    json_array_foreach(list, i, one) {
        refuses_bad(f, one);
    }
    json_decref(list);
    assert_int_equal(pool_store_counts(f->store).bytes_used, 0);
}

#define COPY "base_model.model.lm_head.base_layer.weight"

/* ---- images ------------------------------------------------------------------------------- */

/* Reads one element of a matrix out of an image by the rules of kernels.h. */
static float element(const struct pool_image *image, uint32_t layer, const struct kern_lora *lora,
                     bool is_b, uint32_t columns, uint32_t r, uint32_t column) {
    uint32_t block = r / KERN_BLOCK_RANKS;
    uint32_t ranks = lora->rank - block * KERN_BLOCK_RANKS;
    ranks = ranks < KERN_BLOCK_RANKS ? ranks : KERN_BLOCK_RANKS;
    uint64_t tile = kern_tile_begin(image->page_elems, is_b ? lora->b : lora->a, lora->rank,
                                    columns, block, column / KERN_TILE_COLUMNS);
    uint32_t in_rank = r % KERN_BLOCK_RANKS;
    uint32_t in_column = column % KERN_TILE_COLUMNS;
    uint64_t at = is_b ? (uint64_t)in_column * ranks + in_rank
                       : (uint64_t)in_rank * KERN_TILE_COLUMNS + in_column;
    const float *elements = image->elements;
    return elements[(uint64_t)layer * image->page_count * image->page_elems + tile + at];
}

/* The adapter's own file, read with nothing but its offsets. */
struct raw_file {
    char *data;
    uint64_t header_bytes;
    json_t *header;
};

static float raw_f32(const struct raw_file *raw, const char *name, uint64_t index) {
    const json_t *entry = json_object_get(raw->header, name);
    assert_non_null(entry);
    assert_string_equal(json_string_value(json_object_get(entry, "dtype")), "F32");
    json_int_t begin =
        json_integer_value(json_array_get(json_object_get(entry, "data_offsets"), 0));
    float value = 0;
    memcpy(&value, raw->data + 8 + raw->header_bytes + begin + 4 * index, sizeof value);
    return value;
}

/* One half of a down_proj of true rank 3: padded ranks are zero, all others the file's. */
static void compare_down(const struct pool_image *image, const struct raw_file *raw, uint32_t layer,
                         bool is_b, uint32_t columns) {
    const struct kern_lora *lora = &image->lora[layer * KERN_MODULES + KERN_DOWN];
    char name[128];
    (void)snprintf(name, sizeof name,
                   "base_model.model.model.layers.%u.mlp.down_proj.lora_%c.weight", layer,
                   is_b ? 'B' : 'A');
    assert_int_equal(lora->rank, 8);
    assert_true(lora->scale == (float)(7.0 / 3.0));
    for (uint32_t r = 0; r < 8; r++) {
        for (uint32_t c = 0; c < columns; c++) {
            uint64_t index = is_b ? (uint64_t)c * 3 + r : (uint64_t)r * columns + c;
            float want = r < 3 ? raw_f32(raw, name, index) : 0.0F;
            assert_true(element(image, layer, lora, is_b, columns, r, c) == want);
        }
    }
}

static void test_an_image_holds_the_tensors(void **state) {
    struct fixture *f = *state;
    struct err_text why = {0};
    struct pool_image *image = NULL;
    struct model_adapter_facts facts;
    if (model_adapter_load(model_facts(f->model), &f->options, "r3-down", f->store, &image, &facts,
                           &why) != ERR_OK) {
        fail_msg("%s", why.message);
    }
    const struct kern_shape *shape = &model_facts(f->model)->shape;
    assert_int_equal(image->rank_max, 3);
    assert_int_equal(image->layers, shape->layers);
    assert_string_equal(image->id, "r3-down");
    assert_int_equal(facts.modules, shape->layers);
    assert_int_equal(facts.rank_max, 3);
    assert_int_equal(facts.image_bytes, image->bytes);
    assert_int_equal(facts.page_count, image->page_count);
    size_t bytes = 0;
    struct raw_file raw = {
        .data = file_read(TINY "/adapters/r3-down", "adapter_model.safetensors", &bytes)};
    assert_int_equal(facts.file_bytes, bytes);
    memcpy(&raw.header_bytes, raw.data, 8);
    raw.header = json_loadb(raw.data + 8, raw.header_bytes, 0, NULL);
    for (uint32_t layer = 0; layer < shape->layers; layer++) {
        for (enum kern_module m = 0; m < KERN_DOWN; m++) {
            assert_int_equal(image->lora[layer * KERN_MODULES + m].rank, 0);
        }
        compare_down(image, &raw, layer, false, shape->intermediate);
        compare_down(image, &raw, layer, true, shape->hidden);
    }
    json_decref(raw.header);
    free(raw.data);
    pool_store_drop(f->store, image);
}

/* One bit of the last element of the head's copy, and it is none. */
static void test_a_copy_with_another_bit_is_refused(void **state) {
    struct fixture *f = *state;
    char dir[PATH_BYTES];
    char path[PATH_BYTES];
    struct pool_image *image = NULL;
    struct model_adapter_facts facts;
    struct model_adapter_options options = f->options;
    struct err_text why = {0};
    assert_int_equal(load(f, f->options.root, "copies", &image, &why), ERR_OK);
    pool_store_drop(f->store, image);
    image = NULL;
    scratch_make(dir);
    path_join(path, dir, "changed");
    assert_int_equal(mkdir(path, 0700), 0);
    file_copy(TINY "/adapters/copies", path, "adapter_config.json");
    size_t bytes = 0;
    char *data = file_read(TINY "/adapters/copies", "adapter_model.safetensors", &bytes);
    const char *place = strstr(data + 8, COPY);
    assert_non_null(place);
    place = strstr(place, "data_offsets\":[");
    assert_non_null(place);
    char *end = NULL;
    (void)strtoull(place + strlen("data_offsets\":["), &end, 10);
    uint64_t header_bytes = 0;
    memcpy(&header_bytes, data, 8);
    data[8 + header_bytes + strtoull(end + 1, NULL, 10) - 2] ^= 1; /* of its last element */
    file_write(path, "adapter_model.safetensors", data, bytes);
    free(data);
    options.root = dir;
    assert_int_equal(load(f, dir, "changed", &image, &why), ERR_UNSUPPORTED_ADAPTER);
    assert_string_equal(why.field, COPY);
    assert_non_null(strstr(why.message, "differs"));
    assert_int_equal(model_adapter_check(model_facts(f->model), &options, "changed", &facts, NULL),
                     ERR_UNSUPPORTED_ADAPTER);
    assert_null(image);
    scratch_remove(dir);
}

static void test_loading_twice_gives_one_image(void **state) {
    struct fixture *f = *state;
    struct pool_image *first = NULL;
    struct pool_image *second = NULL;
    assert_int_equal(load(f, f->options.root, "rslora", &first, NULL), ERR_OK);
    uint64_t images = pool_store_counts(f->store).images;
    assert_int_equal(load(f, f->options.root, "rslora", &second, NULL), ERR_OK);
    assert_ptr_equal(first, second);
    assert_int_equal(pool_store_counts(f->store).images, images);
    pool_store_drop(f->store, first);
    pool_store_drop(f->store, second);
}

static void test_limits_of_size(void **state) {
    struct fixture *f = *state;
    struct fixture small = *f;
    struct pool_image *image = NULL;
    struct err_text why = {0};
    small.options.page_count_max = 2; /* r64 needs more, and its file is checked after that */
    assert_int_equal(load(&small, f->options.root, "r64", &image, &why), ERR_UNSUPPORTED_ADAPTER);
    assert_non_null(strstr(why.message, "pages, one may have 2"));
    struct pool_store_options tiny = {.bytes = 4096, .chunk_bytes = 4096};
    small = *f;
    assert_int_equal(pool_store_open(&small.store, &tiny), ERR_OK);
    assert_int_equal(load(&small, f->options.root, "r1", &image, &why), ERR_UNSUPPORTED_ADAPTER);
    pool_store_close(small.store);
    assert_null(image);
}

/* A sparse file far larger than any adapter that fits is refused before it is read. */
static void test_a_huge_file_is_not_read(void **state) {
    struct fixture *f = *state;
    char dir[PATH_BYTES];
    char path[PATH_BYTES];
    scratch_make(dir);
    path_join(path, dir, "huge");
    assert_int_equal(mkdir(path, 0700), 0);
    file_copy(TINY "/adapters/r1", path, "adapter_config.json");
    file_write(path, "adapter_model.safetensors", "x", 1);
    path_join(path, dir, "huge/adapter_model.safetensors");
    assert_int_equal(truncate(path, (off_t)1 << 40), 0);
    struct pool_image *image = NULL;
    struct err_text why = {0};
    assert_int_equal(load(f, dir, "huge", &image, &why), ERR_UNSUPPORTED_ADAPTER);
    assert_non_null(strstr(why.message, "larger"));
    scratch_remove(dir);
}

/* ---- folders ------------------------------------------------------------------------------ */

static void test_ids(void **state) {
    (void)state;
    static const char *const bad[] = {"",    ".",   "..", ".hidden", "a/b",   "../a", "a b",
                                      "a\n", "a#b", "é",  "a\\b",    "a%2fb", "a\x7f"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_false(model_adapter_id_valid(bad[i], strlen(bad[i])));
    }
    static const char *const good[] = {"a", "A.b-c_d:e@f", "-", "a..b", "0"};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        assert_true(model_adapter_id_valid(good[i], strlen(good[i])));
    }
    assert_false(model_adapter_id_valid("a\0b", 3));
    char longest[130];
    memset(longest, 'x', sizeof longest);
    assert_true(model_adapter_id_valid(longest, 128));
    assert_false(model_adapter_id_valid(longest, 129));
}

static void test_what_is_not_there(void **state) {
    struct fixture *f = *state;
    struct pool_image *image = NULL;
    struct err_text why = {0};
    struct model_adapter_stamp stamp;
    assert_int_equal(load(f, f->options.root, "nobody", &image, &why), ERR_UNKNOWN_ADAPTER);
    assert_non_null(strstr(why.message, "nobody"));
    assert_int_equal(load(f, f->options.root, "../adapters/r1", &image, &why), ERR_UNKNOWN_ADAPTER);
    assert_int_equal(load(f, f->options.root, "..", &image, &why), ERR_UNKNOWN_ADAPTER);
    assert_int_equal(load(f, "/nonexistent", "r1", &image, &why), ERR_ADAPTER_UNREADABLE);
    assert_int_equal(model_adapter_stat(f->options.root, "nobody", &stamp, &why),
                     ERR_UNKNOWN_ADAPTER);
    assert_int_equal(model_adapter_stat("/nonexistent", "r1", &stamp, &why),
                     ERR_ADAPTER_UNREADABLE);
    /* a file of that name is no adapter */
    assert_int_equal(load(f, TINY, "bad.json", &image, &why), ERR_UNKNOWN_ADAPTER);
}

/* Root may read everything, so another user tries. */
static void test_what_may_not_be_read_now(void **state) {
    struct fixture *f = *state;
    char dir[PATH_BYTES];
    char path[PATH_BYTES];
    scratch_make(dir);
    path_join(path, dir, "a");
    assert_int_equal(mkdir(path, 0700), 0);
    file_copy(TINY "/adapters/r1", path, "adapter_config.json");
    file_copy(TINY "/adapters/r1", path, "adapter_model.safetensors");
    path_join(path, dir, "a/adapter_model.safetensors");
    assert_int_equal(chmod(path, 0), 0);
    struct pool_image *image = NULL;
    struct err_text why = {0};
    if (geteuid() == 0) {
        assert_int_equal(chmod(dir, 0755), 0);
        path_join(path, dir, "a");
        assert_int_equal(chmod(path, 0755), 0);
        path_join(path, dir, "a/adapter_config.json");
        assert_int_equal(chmod(path, 0644), 0);
        assert_int_equal(seteuid(65534), 0);
    }
    enum err e = load(f, dir, "a", &image, &why);
    if (getuid() == 0) {
        assert_int_equal(seteuid(0), 0);
    }
    assert_int_equal(e, ERR_ADAPTER_UNREADABLE);
    assert_string_equal(why.field, "adapter_model.safetensors");
    scratch_remove(dir);
}

/* Folders may be links; files may not be devices or FIFOs. */
static void test_links_and_fifos(void **state) {
    struct fixture *f = *state;
    char dir[PATH_BYTES];
    char path[PATH_BYTES];
    struct pool_image *image = NULL;
    struct err_text why = {0};
    scratch_make(dir);
    path_join(path, dir, "linked");
    assert_int_equal(symlink(TINY "/adapters/r1", path), 0);
    assert_int_equal(load(f, dir, "linked", &image, &why), ERR_OK);
    assert_string_equal(image->id, "linked");
    pool_store_drop(f->store, image);
    path_join(path, dir, "fifo");
    assert_int_equal(mkdir(path, 0700), 0);
    path_join(path, dir, "fifo/adapter_config.json");
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(load(f, dir, "fifo", &image, &why), ERR_BAD_ADAPTER);
    assert_non_null(strstr(why.message, "not a regular file"));
    scratch_remove(dir);
}

static void test_the_revision_and_the_stamp_follow_the_bytes(void **state) {
    struct fixture *f = *state;
    char dir[PATH_BYTES];
    char path[PATH_BYTES];
    struct pool_image *image = NULL;
    struct model_adapter_stamp before;
    struct model_adapter_stamp after;
    scratch_make(dir);
    path_join(path, dir, "a");
    assert_int_equal(mkdir(path, 0700), 0);
    file_copy(TINY "/adapters/r1", path, "adapter_config.json");
    file_copy(TINY "/adapters/r1", path, "adapter_model.safetensors");
    assert_int_equal(load(f, dir, "a", &image, NULL), ERR_OK);
    char first[POOL_REVISION_BYTES];
    memcpy(first, image->revision, sizeof first);
    assert_int_equal(strlen(first), 64);
    pool_store_drop(f->store, image);
    assert_int_equal(model_adapter_stat(dir, "a", &before, NULL), ERR_OK);
    assert_int_equal(model_adapter_stat(dir, "a", &after, NULL), ERR_OK);
    assert_memory_equal(&before, &after, sizeof before);

    /* one byte more in either file is another revision and another stamp */
    size_t bytes = 0;
    char *config = file_read(path, "adapter_config.json", &bytes);
    config[bytes] = '\n';
    file_write(path, "adapter_config.json", config, bytes + 1);
    free(config);
    assert_int_equal(load(f, dir, "a", &image, NULL), ERR_OK);
    assert_string_not_equal(image->revision, first);
    pool_store_drop(f->store, image);
    assert_int_equal(model_adapter_stat(dir, "a", &after, NULL), ERR_OK);
    assert_memory_not_equal(&before, &after, sizeof before);
    assert_int_equal(after.bytes, before.bytes + 1);
    scratch_remove(dir);
}

struct listing {
    char text[512];
};

static void note(void *context, const char *name, bool valid) {
    struct listing *l = context;
    size_t at = strlen(l->text);
    (void)snprintf(l->text + at, sizeof l->text - at, "%s%s ", valid ? "" : "!", name);
}

static void test_the_list_is_sorted_and_has_folders_only(void **state) {
    (void)state;
    static const char *const folders[] = {"b", "A", "with space", ".tmp", "a"};
    char dir[PATH_BYTES];
    char path[PATH_BYTES];
    struct listing l = {0};
    scratch_make(dir);
    for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++) {
        path_join(path, dir, folders[i]);
        assert_int_equal(mkdir(path, 0700), 0);
    }
    file_write(dir, "README", "x", 1);
    path_join(path, dir, "link");
    assert_int_equal(symlink("a", path), 0);
    assert_int_equal(model_adapter_list(dir, note, &l, NULL), ERR_OK);
    assert_string_equal(l.text, "!.tmp A a b link !with space ");
    scratch_remove(dir);
    assert_int_equal(model_adapter_list(dir, note, &l, NULL), ERR_ADAPTER_UNREADABLE);
}

/* The images of the three element types hold the same matrices in the same places. */
static void test_images_of_sixteen_bits(void **state) {
    struct fixture *f = *state;
    struct err_text why = {0};
    struct pool_image *wide = NULL;
    assert_int_equal(load(f, f->options.root, "r64", &wide, &why), ERR_OK);
    static const enum kern_dtype types[] = {KERN_BF16, KERN_F16};
    for (size_t i = 0; i < 2; i++) {
        struct fixture half = *f;
        struct pool_store_options options = {.bytes = 64 << 20, .chunk_bytes = 8 << 20};
        struct pool_image *image = NULL;
        half.options.elem = types[i];
        assert_int_equal(pool_store_open(&half.store, &options), ERR_OK);
        assert_int_equal(load(&half, f->options.root, "r64", &image, &why), ERR_OK);
        assert_int_equal(image->bytes * 2, wide->bytes);
        uint16_t *converted = malloc(image->bytes);
        assert_non_null(converted);
        kern_convert(converted, types[i], wide->elements, KERN_F32, image->bytes / 2);
        assert_memory_equal(converted, image->elements, image->bytes);
        free(converted);
        pool_store_drop(half.store, image);
        pool_store_close(half.store);
    }
    pool_store_drop(f->store, wide);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_adapters_are_refused_by_name),
        cmocka_unit_test(test_an_image_holds_the_tensors),
        cmocka_unit_test(test_a_copy_with_another_bit_is_refused),
        cmocka_unit_test(test_loading_twice_gives_one_image),
        cmocka_unit_test(test_limits_of_size),
        cmocka_unit_test(test_a_huge_file_is_not_read),
        cmocka_unit_test(test_ids),
        cmocka_unit_test(test_what_is_not_there),
        cmocka_unit_test(test_what_may_not_be_read_now),
        cmocka_unit_test(test_images_of_sixteen_bits),
        cmocka_unit_test(test_links_and_fifos),
        cmocka_unit_test(test_the_revision_and_the_stamp_follow_the_bytes),
        cmocka_unit_test(test_the_list_is_sorted_and_has_folders_only),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
