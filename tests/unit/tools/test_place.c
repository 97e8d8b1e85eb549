/* test_place.c - adapters go into and out of the root whole, or not at all. */
#include "tests/unit/tools/test.h"

#include <dirent.h>

#include "tools/place.h"

/* A PEFT folder whose weights are `text`. */
static void make_folder(const char *path, const char *text) {
    char file[256];
    assert_int_equal(mkdir(path, 0777), 0);
    (void)snprintf(file, sizeof file, "%s/adapter_config.json", path);
    file_write(file, "{}", 2);
    (void)snprintf(file, sizeof file, "%s/adapter_model.safetensors", path);
    file_write(file, text, strlen(text));
}

static void assert_weights(const char *path, const char *text) {
    char file[256];
    char found[64];
    (void)snprintf(file, sizeof file, "%s/adapter_model.safetensors", path);
    assert_int_equal(file_read(file, found, sizeof found), strlen(text));
    assert_string_equal(found, text);
}

static int entries(const char *path) {
    int count = 0;
    DIR *dir = opendir(path);
    assert_non_null(dir);
    for (struct dirent *d = readdir(dir); d != NULL; d = readdir(dir)) {
        count += strcmp(d->d_name, ".") != 0 && strcmp(d->d_name, "..") != 0;
    }
    (void)closedir(dir);
    return count;
}

static enum err add(const char *from, const char *id, bool replace, bool *replaced,
                    struct err_text *why) {
    struct place p = {0};
    enum err e = place_open(&p, "root", why);
    if (e == ERR_OK) {
        e = place_copy(&p, from, id, why);
    }
    if (e == ERR_OK) {
        e = place_in(&p, id, replace, replaced, why);
    }
    assert_true(place_close(&p));
    return e;
}

static void goes_in_and_out(void **state) {
    (void)state;
    struct err_text why = {0};
    struct place p = {0};
    bool replaced = true;
    assert_int_equal(mkdir("root", 0777), 0);
    make_folder("one", "first");
    file_write("one/optimizer.pt", "big", 3);
    assert_int_equal(add("one", "a", false, &replaced, &why), ERR_OK);
    assert_false(replaced);
    assert_weights("root/a", "first");
    assert_int_equal(entries("root/a"), 2); /* only what a worker reads */
    assert_int_equal(entries("root"), 1);   /* nothing hidden stays */

    assert_int_equal(place_open(&p, "root", &why), ERR_OK);
    assert_int_equal(place_out(&p, "a", &why), ERR_OK);
    assert_int_equal(place_out(&p, "a", &why), ERR_UNKNOWN_ADAPTER);
    assert_true(place_close(&p));
    assert_int_equal(entries("root"), 0);
    assert_weights("one", "first");
}

static void is_replaced_only_when_asked(void **state) {
    (void)state;
    struct err_text why = {0};
    bool replaced = false;
    make_folder("two", "second");
    assert_int_equal(add("one", "a", false, &replaced, &why), ERR_OK);
    assert_int_equal(add("two", "a", false, &replaced, &why), ERR_BAD_CONFIG);
    assert_non_null(strstr(why.message, "--replace"));
    assert_weights("root/a", "first");
    assert_int_equal(add("two", "a", true, &replaced, &why), ERR_OK);
    assert_true(replaced);
    assert_weights("root/a", "second");
    assert_int_equal(add("two", "b", true, &replaced, &why), ERR_OK);
    assert_false(replaced);
    assert_int_equal(entries("root"), 2);
}

/* A root may hold links to folders elsewhere: the link goes, not what it names. */
static void links_are_not_followed_out(void **state) {
    (void)state;
    struct err_text why = {0};
    struct place p = {0};
    assert_int_equal(symlink("../two", "root/linked"), 0);
    assert_int_equal(place_open(&p, "root", &why), ERR_OK);
    assert_int_equal(place_out(&p, "linked", &why), ERR_OK);
    assert_true(place_close(&p));
    assert_weights("two", "second");
    assert_int_equal(access("root/linked", F_OK), -1);
}

static void what_is_missing_is_named(void **state) {
    (void)state;
    struct err_text why = {0};
    struct place p = {0};
    bool replaced = false;
    int before = entries("root");
    assert_int_equal(add("nowhere", "c", false, &replaced, &why), ERR_BAD_CONFIG);
    assert_non_null(strstr(why.message, "nowhere"));
    assert_int_equal(mkdir("half", 0777), 0);
    assert_int_equal(add("half", "c", false, &replaced, &why), ERR_BAD_CONFIG);
    assert_string_equal(why.field, "adapter_config.json");
    file_write("half/adapter_config.json", "{}", 2);
    assert_int_equal(add("half", "c", false, &replaced, &why), ERR_BAD_CONFIG);
    assert_string_equal(why.field, "adapter_model.safetensors");
    file_write("half/adapter_model.bin", "x", 1);
    assert_int_equal(add("half", "c", false, &replaced, &why), ERR_UNSUPPORTED_ADAPTER);
    assert_non_null(strstr(why.message, "pickle"));
    assert_int_equal(mkfifo("half/adapter_model.safetensors", 0666), 0); /* must not hang */
    assert_int_equal(add("half", "c", false, &replaced, &why), ERR_BAD_CONFIG);
    assert_int_equal(entries("root"), before);
    assert_int_equal(place_open(&p, "no/root", &why), ERR_BAD_CONFIG);
    assert_string_equal(why.field, "adapters.dir");
    assert_true(place_close(&p));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(goes_in_and_out),
        cmocka_unit_test(is_replaced_only_when_asked),
        cmocka_unit_test(links_are_not_followed_out),
        cmocka_unit_test(what_is_missing_is_named),
    };
    return cmocka_run_group_tests(tests, scratch_enter, scratch_leave);
}
