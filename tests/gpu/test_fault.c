/* A fault on the device, here a page list that points nowhere: the step that meets it is not read,
 * ERR_DEVICE is the answer to all that follows, and close() returns. Each test runs in a process of
 * its own, since after a fault CUDA is of no use to the process. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/check.h"
#include "tests/gpu/peek.h"
#include "tests/unit/kernels/rig.h"

static const struct kern_shape shape = {.layers = 2,
                                        .hidden = 128,
                                        .heads = 2,
                                        .kv_heads = 2,
                                        .head_dim = 64,
                                        .intermediate = 128,
                                        .vocab = 128,
                                        .positions = 256,
                                        .norm_eps = 1e-5f,
                                        .rope_scale = 1,
                                        .dtype = KERN_BF16};

static struct rig rig;

/* One decode step up to its first error. */
static enum err step(void) {
    struct rig_batch *b = rig_batch(&rig, (const struct rig_part[]){{0, 1, true}}, 1);
    uint64_t ticket = 0;
    enum err e = rig.ops->step_begin(rig.device, &b->step);
    if (e == ERR_OK) {
        rig_blocks(&rig, NULL);
        e = rig.ops->step_end(rig.device, &ticket);
    }
    if (e == ERR_OK) {
        e = rig.ops->step_read(rig.device, ticket, rig.results, 1);
    }
    free(b);
    return e;
}

/* In the child: no cmocka here, a failed CHECK ends it. */
static void fault(bool warm) {
    const struct rig_options options = {
        .ops = kern_cuda(), .page_tokens = 16, .warm = warm, .pages = 1024};
    uint64_t event = 0;
    rig_open_with(&rig, &shape, &options);
    rig_adapter(&rig, 0, (const uint32_t[KERN_MODULES]){8, 8, 8, 8, 8, 8, 8}, ~0u);
    rig_sequence(&rig, 0, 0);
    rig_step(&rig, (const struct rig_part[]){{0, 5, true}}, 1);
    CHECK(step() == ERR_OK);
    peek_cuda_break(rig.device);
    CHECK(step() == ERR_DEVICE);
    CHECK(step() == ERR_DEVICE);
    CHECK(rig.ops->load(rig.device, rig.images[0], rig.adapter_pages[0], 1, &event) == ERR_DEVICE);
    CHECK(step() == ERR_DEVICE);
    rig.ops->close(rig.device);
}

static void in_a_child(bool warm) {
    (void)fflush(NULL);
    pid_t child = fork(); /* before this process meets CUDA */
    assert_true(child >= 0);
    if (child == 0) {
        (void)alarm(120);
        fault(warm);
        _exit(err_exit_code(ERR_DEVICE));
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), EXIT_DEVICE);
}

static void test_fault_of_an_eager_step(void **state) {
    (void)state;
    in_a_child(false);
}

static void test_fault_in_a_graph(void **state) {
    (void)state;
    in_a_child(true);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fault_of_an_eager_step),
        cmocka_unit_test(test_fault_in_a_graph),
    };
    cmocka_set_test_filter(getenv("LORRY_TEST"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
