/* The sizes of a worker by device: what 0 stands for, a GPU's pool out of what is free, refusals
 * with figures. The GPU is one that has memory and nothing else. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "worker/worker.h"

static uint64_t room;

static uint64_t fake_room(struct kern_device *d) {
    (void)d;
    return room;
}

static const struct kern_ops gpu = {.name = "gpu", .pool_room = fake_room};

/* Llama 3.1 8B: pages of 16 tokens have 2 MiB over all layers. */
static const struct model_facts model = {.shape = {.layers = 32,
                                                   .hidden = 4096,
                                                   .heads = 32,
                                                   .kv_heads = 8,
                                                   .head_dim = 128,
                                                   .intermediate = 14336,
                                                   .vocab = 128256,
                                                   .positions = 131072,
                                                   .dtype = KERN_BF16},
                                         .weight_bytes = UINT64_C(16060522496)};

enum { PAGE_BYTES = 2 << 20 };

static struct config *config_of(char *a, char *b) {
    char *arguments[] = {a, b, NULL};
    char *none[] = {NULL};
    const char *const files[] = {NULL};
    struct config_input input = {.argc = a == NULL   ? 0
                                         : b == NULL ? 1
                                                     : 2,
                                 .argv = arguments,
                                 .environ = none,
                                 .files = files};
    struct config *c = NULL;
    struct err_text why = {0};
    int rest = 0;
    assert_int_equal(config_open(&c, &input, NULL, &rest, &why), ERR_OK);
    return c;
}

/* Plans both halves. */
static enum err plan_with(char *a, char *b, struct worker_plan *plan, struct err_text *why) {
    struct config *c = config_of(a, b);
    enum err e = worker_plan(c, &gpu, &model, plan, why);
    if (e == ERR_OK) {
        e = worker_plan_pool(c, &gpu, NULL, &model, plan, why);
    }
    config_close(c);
    return e;
}

static void test_gpu(void **state) {
    (void)state;
    struct worker_plan p = {0};
    struct err_text why = {0};
    room = UINT64_C(100000) << 20;
    assert_int_equal(plan_with(NULL, NULL, &p, &why), ERR_OK);
    assert_int_equal(p.rows, 1024);
    assert_int_equal(p.step_tokens, 8192);
    assert_int_equal(p.chunk_tokens, 8192);
    assert_int_equal(p.elem, KERN_BF16);
    assert_int_equal(p.page_bytes, PAGE_BYTES);
    assert_int_equal(p.page_count, 46000); /* 92% */
    assert_int_equal(p.pool_bytes, p.page_count * (uint64_t)PAGE_BYTES);
    assert_int_equal(p.slot_pages, 8192);
    assert_int_equal(p.adapter_pages, 4096);
    assert_true(p.weight_bytes == model.weight_bytes);
    assert_true(p.step_us_fixed > 1000 && p.step_us_fixed < 20000);
    assert_true(p.step_us_row > 5 && p.step_us_row < 100);
    assert_true(p.load_us_page > 0.1 && p.load_us_page < 10);
}

/* The sum that is printed at start follows what the backlog may hold. */
static void test_memory_follows_the_backlog(void **state) {
    (void)state;
    struct worker_plan p = {0};
    struct worker_plan q = {0};
    struct err_text why = {0};
    room = UINT64_C(100000) << 20;
    assert_int_equal(plan_with("--backlog.jobs=1000", "--backlog.bytes=1M", &p, &why), ERR_OK);
    assert_int_equal(plan_with("--backlog.jobs=17384", "--backlog.bytes=1M", &q, &why), ERR_OK);
    assert_int_equal(q.memory_bytes - p.memory_bytes, 16384 * 6144);
    assert_int_equal(plan_with("--backlog.jobs=1000", "--backlog.bytes=3M", &q, &why), ERR_OK);
    assert_int_equal(q.memory_bytes - p.memory_bytes, 2 * (2 << 20)); /* and their tokens */
}

static void test_gpu_as_told(void **state) {
    (void)state;
    struct worker_plan p = {0};
    struct err_text why = {0};
    room = UINT64_C(100000) << 20;
    assert_int_equal(plan_with("--pool.pages=300", "--scheduler.step_tokens=100", &p, &why),
                     ERR_OK);
    assert_int_equal(p.page_count, 300);
    assert_int_equal(p.slot_pages, 300); /* no sequence is longer than the pool */
    assert_int_equal(p.adapter_pages, 300);
    assert_int_equal(p.step_tokens, 100);
    assert_int_equal(p.chunk_tokens, 100);
    assert_int_equal(plan_with("--device.memory=0.5", "--scheduler.rows=7", &p, &why), ERR_OK);
    assert_int_equal(p.page_count, 25000);
    assert_int_equal(p.rows, 7);
    struct config *c = config_of(NULL, NULL);
    struct kern_limits l = worker_limits(c, &p);
    assert_int_equal(l.slots, 7);
    assert_int_equal(l.step_samples, 7);
    p.rows = 9000;
    l = worker_limits(c, &p);
    assert_int_equal(l.step_samples, 8192); /* never more than tokens */
    config_close(c);
}

/* The store may be smaller than a GPU's pool. On the CPU it may not. */
static void test_store(void **state) {
    (void)state;
    struct worker_plan p = {0};
    struct err_text why = {0};
    room = UINT64_C(100000) << 20;
    assert_int_equal(plan_with("--store.bytes=1M", NULL, &p, &why), ERR_OK);
    struct config *c = config_of("--store.bytes=1M", NULL);
    assert_int_equal(worker_plan(c, kern_cpu(), &model, &p, &why), ERR_BAD_CONFIG);
    assert_string_equal(why.field, "store.bytes");
    config_close(c);
}

static void test_cpu(void **state) {
    (void)state;
    struct worker_plan p = {0};
    struct err_text why = {0};
    struct config *c = config_of(NULL, NULL);
    assert_int_equal(worker_plan(c, kern_cpu(), &model, &p, &why), ERR_OK);
    assert_int_equal(p.rows, 32);
    assert_int_equal(p.step_tokens, 128);
    assert_int_equal(p.chunk_tokens, 64);
    assert_int_equal(p.elem, KERN_F32);
    assert_int_equal(p.page_bytes, 2 * PAGE_BYTES);
    assert_int_equal(p.page_count, 256);
    assert_true(p.weight_bytes == 2 * model.weight_bytes);
    uint32_t pages = p.page_count;
    assert_int_equal(worker_plan_pool(c, kern_cpu(), NULL, &model, &p, &why), ERR_OK);
    assert_int_equal(p.page_count, pages); /* it is known already */
    config_close(c);
}

/* scheduler.merged: the projections once more, on the device. */
static void test_merged(void **state) {
    (void)state;
    const uint64_t elements = 32 * (4096 * (UINT64_C(6144) + 4096) + 3 * UINT64_C(4096) * 14336);
    struct worker_plan p = {0}, q = {0};
    struct err_text why = {0};
    struct config *off = config_of(NULL, NULL), *on = config_of("--scheduler.merged", NULL);
    assert_int_equal(worker_plan(off, &gpu, &model, &p, &why), ERR_OK);
    assert_int_equal(worker_plan(on, &gpu, &model, &q, &why), ERR_OK);
    assert_int_equal(p.merge_bytes, 0);
    assert_int_equal(q.merge_bytes, 2 * elements);
    assert_int_equal(q.memory_bytes, p.memory_bytes); /* the host's */
    assert_true(q.merge_us > 5000 && q.merge_us < 15000);
    assert_false(worker_limits(off, &p).merging);
    assert_true(worker_limits(on, &q).merging);
    assert_int_equal(worker_plan(off, kern_cpu(), &model, &p, &why), ERR_OK);
    assert_int_equal(worker_plan(on, kern_cpu(), &model, &q, &why), ERR_OK);
    assert_int_equal(q.memory_bytes - p.memory_bytes, 4 * elements);
    config_close(on);
    config_close(off);
}

static void test_state_dir(void **state) {
    (void)state;
    char folder[] = "/tmp/lorry-test-XXXXXX";
    char flag[256];
    char path[128];
    struct stat s;
    assert_non_null(mkdtemp(folder));
    (void)snprintf(path, sizeof path, "%s/a/b", folder);
    (void)snprintf(flag, sizeof flag, "--state.dir=%s", path);
    struct config *c = config_of(flag, NULL);
    for (int i = 0; i < 2; i++) {
        worker_state_dir(c);
        assert_int_equal(stat(path, &s), 0);
        assert_true(S_ISDIR(s.st_mode));
    }
    struct worker_plan p = {.rows = 1};
    assert_string_equal(worker_limits(c, &p).cache_dir, path);
    config_close(c);
    c = config_of("--state.dir=/dev/null/a", NULL); /* only said */
    worker_state_dir(c);
    config_close(c);
    assert_int_equal(rmdir(path), 0);
    (void)snprintf(path, sizeof path, "%s/a", folder);
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(rmdir(folder), 0);
}

static void test_refusals(void **state) {
    (void)state;
    struct worker_plan p = {0};
    struct err_text why = {0};
    room = 60 * (uint64_t)PAGE_BYTES; /* 55 pages of 92%, 64 are the least */
    assert_int_equal(plan_with(NULL, NULL, &p, &why), ERR_NO_MEMORY);
    assert_non_null(strstr(why.message, "125829120 bytes are free"));
    assert_non_null(strstr(why.message, "16060522496 of weights"));
    assert_non_null(strstr(why.message, "1024 rows"));
    assert_int_equal(plan_with("--pool.pages=61", NULL, &p, &why), ERR_NO_MEMORY);
    assert_int_equal(plan_with("--pool.pages=60", NULL, &p, &why), ERR_OK); /* who asks gets it */
    assert_int_equal(plan_with("--pool.pages=1", NULL, &p, &why), ERR_BAD_CONFIG);
    assert_string_equal(why.field, "pool.pages");
    room = 0;
    assert_int_equal(plan_with(NULL, NULL, &p, &why), ERR_NO_MEMORY);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gpu),
        cmocka_unit_test(test_gpu_as_told),
        cmocka_unit_test(test_memory_follows_the_backlog),
        cmocka_unit_test(test_store),
        cmocka_unit_test(test_cpu),
        cmocka_unit_test(test_merged),
        cmocka_unit_test(test_state_dir),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
