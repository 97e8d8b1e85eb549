/* How adapters are loaded: into memory that held other things, by several threads in any order, and
 * without a hash where the files are known. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "model/model.h"
#include "tests/unit/model/files.h"

#define TINY GOLDEN "tiny-llama"

enum { STORE_BYTES = 32 << 20 };

static struct model *model;
static const struct model_adapter_options usual = {
    .root = TINY "/adapters", .page_tokens = 16, .elem = KERN_F32, .page_count_max = 4096};

static int setup(void **state) {
    (void)state;
    struct err_text why = {0};
    if (model_open(&model, TINY "/model", &why) != ERR_OK) {
        print_error("%s\n", why.message);
        return -1;
    }
    return 0;
}

static int teardown(void **state) {
    (void)state;
    model_close(model);
    return 0;
}

/* A store whose memory holds `byte` everywhere. */
static struct pool_store *store_open(int byte) {
    struct pool_store *s = NULL;
    struct pool_store_options o = {.bytes = STORE_BYTES, .chunk_bytes = STORE_BYTES};
    assert_int_equal(pool_store_open(&s, &o), ERR_OK);
    struct pool_image all = {
        .id = "all", .layers = 1, .page_count = 1, .page_elems = STORE_BYTES - 4096};
    struct pool_image *image = NULL;
    assert_int_equal(pool_store_reserve(s, &all, 1, &image, NULL), ERR_OK);
    memset(image->elements, byte, image->bytes);
    pool_store_abort(s, image);
    return s;
}

static struct pool_image *load(struct pool_store *s, const struct model_adapter_options *o,
                               const char *id, struct model_adapter_facts *facts) {
    struct pool_image *image = NULL;
    struct err_text why = {0};
    if (model_adapter_load(model_facts(model), o, id, s, &image, facts, &why) != ERR_OK) {
        fail_msg("%s: %s", id, why.message);
    }
    return image;
}

static void images_equal(const struct pool_image *a, const struct pool_image *b) {
    assert_string_equal(a->revision, b->revision);
    assert_int_equal(strlen(a->revision), 64);
    assert_int_equal(a->bytes, b->bytes);
    assert_memory_equal(a->elements, b->elements, a->bytes);
    uint32_t count = kern_lora_count(a->layers);
    for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(a->lora[i].rank, b->lora[i].rank);
        assert_int_equal(a->lora[i].a, b->lora[i].a);
        assert_int_equal(a->lora[i].b, b->lora[i].b);
        assert_int_equal(a->lora[i].bias, b->lora[i].bias);
        assert_true(a->lora[i].scale == b->lora[i].scale);
    }
}

/* ---- memory and threads ------------------------------------------------------------------- */

enum { CREW = 4 };

struct work {
    void (*part)(void *argument, uint32_t index);
    void *argument;
    _Atomic uint32_t left;
};

static void *work_main(void *argument) {
    struct work *w = argument;
    for (uint32_t i = atomic_load(&w->left); i > 0;) { /* the last first */
        if (atomic_compare_exchange_weak(&w->left, &i, i - 1)) {
            w->part(w->argument, i - 1);
            i = atomic_load(&w->left);
        }
    }
    return NULL;
}

static void crew_run(void *context, uint32_t count, void (*part)(void *argument, uint32_t index),
                     void *argument) {
    atomic_fetch_add((_Atomic uint32_t *)context, 1);
    struct work w = {.part = part, .argument = argument};
    atomic_init(&w.left, count);
    pthread_t threads[CREW];
    for (int i = 0; i < CREW; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, work_main, &w), 0);
    }
    for (int i = 0; i < CREW; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    }
}

static void loads_the_same(const char *id, enum kern_dtype elem) {
    struct pool_store *clean = store_open(0), *used = store_open(0xff);
    struct model_adapter_facts facts, again;
    _Atomic uint32_t runs = 0;
    struct model_adapter_options o = usual;
    o.elem = elem;
    struct pool_image *a = load(clean, &o, id, &facts);
    o.crew = (struct model_crew){.run = crew_run, .context = &runs};
    struct pool_image *b = load(used, &o, id, &again);
    assert_true(atomic_load(&runs) > 0);
    assert_string_equal(facts.revision, again.revision);
    images_equal(a, b);
    pool_store_drop(clean, a);
    pool_store_drop(used, b);
    pool_store_close(clean);
    pool_store_close(used);
}

static void load_one(void *context, const char *name, bool valid) {
    (void)context;
    assert_true(valid);
    loads_the_same(name, KERN_F32);
    loads_the_same(name, KERN_BF16);
}

/* What the memory held, and who does which part when, changes nothing. */
static void test_images_are_of_the_files_alone(void **state) {
    (void)state;
    assert_int_equal(model_adapter_list(usual.root, load_one, NULL, NULL), ERR_OK);
}

/* Whoever finds it, the first bad tensor is named. */
static void test_a_crew_refuses_as_one_alone(void **state) {
    (void)state;
    json_t *list = json_read(TINY, "bad.json");
    struct pool_store *s = store_open(0);
    size_t i = 0;
    const json_t *one = NULL;
    _Atomic uint32_t runs = 0;
    json_array_foreach(list, i, one) {
        const char *id = json_string_value(json_object_get(one, "adapter"));
        struct model_adapter_options o = usual;
        struct model_adapter_facts facts;
        struct pool_image *image = NULL;
        struct err_text alone = {0}, together = {0};
        o.root = TINY "/bad";
        enum err e = model_adapter_load(model_facts(model), &o, id, s, &image, &facts, &alone);
        o.crew = (struct model_crew){.run = crew_run, .context = &runs};
        assert_int_equal(
            model_adapter_load(model_facts(model), &o, id, s, &image, &facts, &together), e);
        assert_string_equal(alone.message, together.message);
        assert_null(image);
    }
    json_decref(list);
    assert_int_equal(pool_store_counts(s).bytes_used, 0);
    pool_store_close(s);
}

/* ---- known files -------------------------------------------------------------------------- */

/* A root with one adapter "a", made now. */
static void root_make(char dir[PATH_BYTES]) {
    char path[PATH_BYTES];
    scratch_make(dir);
    path_join(path, dir, "a");
    assert_int_equal(mkdir(path, 0700), 0);
    file_copy(TINY "/adapters/r4-qv", path, "adapter_config.json");
    file_copy(TINY "/adapters/r4-qv", path, "adapter_model.safetensors");
}

static void test_files_that_are_known_are_not_hashed(void **state) {
    (void)state;
    struct pool_store *s = store_open(0);
    struct model_adapter_facts facts, again;
    struct model_adapter_options o = usual;
    static const struct model_adapter_stamp none;
    struct model_adapter_stamp stamp;
    pool_store_drop(s, load(s, &o, "r4-qv", &facts)); /* of the repository: old files */
    assert_int_equal(model_adapter_stat(o.root, "r4-qv", &stamp, NULL), ERR_OK);
    assert_true(model_adapter_stamp_equal(&facts.stamp, &stamp));
    assert_false(model_adapter_stamp_equal(&facts.stamp, &none));
    struct model_adapter_known known = {.stamp = facts.stamp};
    memset(known.revision, 'e', sizeof known.revision - 1); /* nobody asks what it would be */
    o.known = &known;
    struct pool_image *image = load(s, &o, "r4-qv", &again);
    assert_string_equal(image->revision, known.revision);
    assert_string_equal(again.revision, known.revision);
    pool_store_drop(s, image);
    known.stamp.mtime_ns -= 1; /* other files */
    image = load(s, &o, "r4-qv", &again);
    assert_string_equal(image->revision, facts.revision);
    pool_store_drop(s, image);
    pool_store_close(s);
}

/* A write within the tick of the file system's clock would not show: such files get no stamp. */
static void test_fresh_files_get_no_stamp(void **state) {
    (void)state;
    char dir[PATH_BYTES];
    root_make(dir);
    struct pool_store *s = store_open(0);
    struct model_adapter_facts facts;
    static const struct model_adapter_stamp none;
    struct model_adapter_options o = usual;
    struct model_adapter_known known = {0};
    memset(known.revision, 'e', sizeof known.revision - 1);
    o.root = dir;
    o.known = &known; /* of nothing: zeros match no files */
    struct pool_image *image = load(s, &o, "a", &facts);
    assert_true(model_adapter_stamp_equal(&facts.stamp, &none));
    assert_string_not_equal(image->revision, known.revision);
    pool_store_drop(s, image);
    pool_store_close(s);
    scratch_remove(dir);
}

/* The same bytes under another stamp, and no room for a second image: the first serves. */
static void test_a_full_store_still_finds_the_bytes(void **state) {
    (void)state;
    struct pool_store *s = store_open(0);
    struct model_adapter_facts facts, again;
    struct pool_image *first = load(s, &usual, "r64", &facts), *held = NULL;
    struct pool_image rest = {.id = "rest", .layers = 1, .page_count = 1};
    struct pool_store_counts c = pool_store_counts(s);
    rest.page_elems = c.bytes_budget - c.bytes_used - 4096;
    assert_int_equal(pool_store_reserve(s, &rest, 1, &held, NULL), ERR_OK);
    struct pool_image *second = load(s, &usual, "r64", &again);
    assert_ptr_equal(first, second);
    assert_string_equal(facts.revision, again.revision);
    pool_store_drop(s, first);
    pool_store_drop(s, second);
    pool_store_abort(s, held);
    pool_store_close(s);
}

/* ---- folders that are replaced ------------------------------------------------------------ */

/* Makes the weights so large, by blanks behind the header, that a crew reads them. */
static void weights_pad(const char *folder) {
    enum { BLANKS = 4 << 20 };
    size_t bytes = 0;
    uint64_t header = 0;
    char *old = file_read(folder, "adapter_model.safetensors", &bytes);
    char *padded = malloc(bytes + BLANKS);
    assert_non_null(padded);
    memcpy(&header, old, sizeof header);
    size_t head = sizeof header + header;
    header += BLANKS;
    memcpy(padded, &header, sizeof header);
    memcpy(padded + sizeof header, old + sizeof header, head - sizeof header);
    memset(padded + head, ' ', BLANKS);
    memcpy(padded + head + BLANKS, old + head, bytes - head);
    file_write(folder, "adapter_model.safetensors", padded, bytes + BLANKS);
    free(padded);
    free(old);
}

/* What becomes of a folder while its weights are read. */
struct fate {
    char at[PATH_BYTES];    /* the folder */
    char aside[PATH_BYTES]; /* goes there; "" = stays */
    char next[PATH_BYTES];  /* takes its place; "" = none does */
    bool met;
};

static void fate_run(void *context, uint32_t count, void (*part)(void *argument, uint32_t index),
                     void *argument) {
    struct fate *f = context;
    for (uint32_t i = 0; i < count; i++) {
        part(argument, i);
    }
    if (f->met) {
        return;
    }
    f->met = true; /* a byte more makes what was read worthless, as a deleted file does */
    char path[PATH_BYTES];
    path_join(path, f->at, "adapter_model.safetensors");
    FILE *file = fopen(path, "ab");
    assert_non_null(file);
    assert_int_equal(fputc(' ', file), ' ');
    assert_int_equal(fclose(file), 0);
    assert_true(f->aside[0] == '\0' || rename(f->at, f->aside) == 0);
    assert_true(f->next[0] == '\0' || rename(f->next, f->at) == 0);
}

/* Loads an adapter that meets its fate; what is known of the one found on ERR_OK. */
static enum err load_fated(bool goes, bool replaced, struct model_adapter_facts *facts,
                           struct err_text *why) {
    char root[PATH_BYTES], beside[PATH_BYTES];
    struct fate fate = {0};
    struct pool_store *s = store_open(0);
    struct pool_image *image = NULL;
    struct model_adapter_options o = usual;
    root_make(root);
    root_make(beside);
    path_join(fate.at, root, "a");
    weights_pad(fate.at);
    if (goes) {
        path_join(fate.aside, beside, "old");
    }
    if (replaced) {
        path_join(fate.next, beside, "a");
    }
    o.root = root;
    o.crew = (struct model_crew){.run = fate_run, .context = &fate};
    enum err e = model_adapter_load(model_facts(model), &o, "a", s, &image, facts, why);
    assert_true(fate.met);
    if (e == ERR_OK) {
        pool_store_drop(s, image);
    }
    assert_true(e == ERR_OK || image == NULL);
    pool_store_close(s);
    scratch_remove(root);
    scratch_remove(beside);
    return e;
}

/* Whoever replaces a folder deletes the old one: a load that was at it reads the new one. */
static void test_a_folder_that_is_replaced_while_it_is_read(void **state) {
    (void)state;
    struct model_adapter_facts facts, found;
    struct err_text why = {0};
    struct pool_store *s = store_open(0);
    pool_store_drop(s, load(s, &usual, "r4-qv", &facts));
    pool_store_close(s);
    assert_int_equal(load_fated(true, true, &found, &why), ERR_OK);
    assert_string_equal(found.revision, facts.revision); /* not that of the padded one */
    assert_string_equal(why.message, "");
    assert_int_equal(load_fated(true, false, &found, &why), ERR_UNKNOWN_ADAPTER);
    assert_int_equal(load_fated(false, false, &found, &why), ERR_ADAPTER_UNREADABLE);
    assert_non_null(strstr(why.message, "changed while it was read"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_images_are_of_the_files_alone),
        cmocka_unit_test(test_a_crew_refuses_as_one_alone),
        cmocka_unit_test(test_files_that_are_known_are_not_hashed),
        cmocka_unit_test(test_fresh_files_get_no_stamp),
        cmocka_unit_test(test_a_full_store_still_finds_the_bytes),
        cmocka_unit_test(test_a_folder_that_is_replaced_while_it_is_read),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
