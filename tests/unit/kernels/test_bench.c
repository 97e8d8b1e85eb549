/* What benchmarks ask of a device: weights from a seed, spans, peaks; and which device it is. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/checks.h"
#include "kernels/cpu/cpu.h"
#include "kernels/random_weights.h"

/* Odd sizes: rows that begin in the middle of a Philox's four. */
static const struct kern_shape tiny = {.layers = 2,
                                       .hidden = 33,
                                       .heads = 2,
                                       .kv_heads = 2,
                                       .head_dim = 32,
                                       .intermediate = 45,
                                       .vocab = 50,
                                       .positions = 256,
                                       .norm_eps = 1e-5f,
                                       .rope_scale = 1};

static struct kern_device *tiny_open(void) {
    static const float freq[16] = {1};
    const struct kern_limits limits = {.slots = 2,
                                       .adapters = 1,
                                       .step_tokens = 8,
                                       .step_samples = 2,
                                       .slot_pages = 4,
                                       .adapter_pages = 4,
                                       .page_tokens = 16,
                                       .threads = 2};
    struct kern_shape shape = tiny;
    struct kern_device *d = NULL;
    struct err_text why = {0};
    shape.qkv_bias = true;
    shape.rope_freq = freq;
    assert_int_equal(kern_cpu()->open(&d, &shape, &limits, &why), ERR_OK);
    return d;
}

static float expected(uint64_t seed, uint32_t tensor, uint64_t element) {
    float values[RANDOM_WEIGHTS_LANES];
    random_weights(seed, tensor, element / RANDOM_WEIGHTS_LANES, values);
    return values[element % RANDOM_WEIGHTS_LANES];
}

static void test_values(void **state) {
    (void)state;
    double sum = 0, squares = 0, fourth = 0, odd = 0;
    const uint32_t groups = 250000;
    for (uint32_t g = 0; g < groups; g++) {
        float values[RANDOM_WEIGHTS_LANES];
        random_weights(7, 3, g, values);
        for (int i = 0; i < RANDOM_WEIGHTS_LANES; i++) {
            double v = values[i];
            uint16_t half[2] = {0};
            float back[2] = {0};
            kern_convert(&half[0], KERN_BF16, &values[i], KERN_F32, 1);
            kern_convert(&half[1], KERN_F16, &values[i], KERN_F32, 1);
            kern_convert(&back[0], KERN_F32, &half[0], KERN_BF16, 1);
            kern_convert(&back[1], KERN_F32, &half[1], KERN_F16, 1);
            assert_true(back[0] == values[i] && back[1] == values[i]);
            odd += half[0] & 1;
            sum += v;
            squares += v * v;
            fourth += v * v * v * v;
        }
    }
    double count = (double)groups * RANDOM_WEIGHTS_LANES;
    assert_true(fabs(sum / count) < 1e-4);
    assert_true(fabs(sqrt(squares / count) - 0.02) < 3e-4);
    double kurtosis = fourth / count / (squares / count * squares / count);
    assert_true(kurtosis > 2.57 && kurtosis < 2.63); /* three uniforms: 3 − 6/15; a normal's is 3 */
    assert_true(fabs(odd / count - 0.5) < 0.05);     /* the last bit of the mantissa is used */
    assert_true(fabsf(random_weight_of(0) + 0.06f) < 3e-4f);
    assert_true(fabsf(random_weight_of(UINT32_MAX) - 0.06f) < 3e-4f);
    assert_true(expected(7, 3, 5) == expected(7, 3, 5));
    int same = 0;
    for (uint64_t i = 0; i < 1000; i++) {
        same += expected(7, 3, i) == expected(8, 3, i);
        same += expected(7, 3, i) == expected(7, 4, i);
        same += expected(7, 3, i) == expected(7, 3, i + (1ULL << 34));
    }
    assert_true(same < 90); /* by chance some 7 in 1,000 */
}

static void test_device_has_them(void **state) {
    (void)state;
    struct kern_device *d = tiny_open();
    struct err_text why = {0};
    assert_int_equal(kern_cpu()->weights_random(d, 99, &why), ERR_OK);
    const struct {
        const struct cpu_matrix *m;
        uint32_t slot;
    } table[] = {
        {&d->embed, kern_tensor_slot(&tiny, KERN_EMBED, 0, KERN_Q)},
        {&d->lm_head, kern_tensor_slot(&tiny, KERN_LM_HEAD, 0, KERN_Q)},
        {&d->layers[1].module[KERN_K], kern_tensor_slot(&tiny, KERN_WEIGHT, 1, KERN_K)},
        {&d->layers[0].module[KERN_DOWN], kern_tensor_slot(&tiny, KERN_WEIGHT, 0, KERN_DOWN)},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        float row[64];
        for (uint32_t r = 0; r < table[i].m->out; r++) {
            cpu_matrix_row(table[i].m, r, row);
            for (uint32_t k = 0; k < table[i].m->in; k++) {
                float value = expected(99, table[i].slot, (uint64_t)r * table[i].m->in + k);
                assert_true(row[k] == value);
            }
        }
    }
    assert_true(d->final_norm.elements[32] == 1 && d->layers[1].post_norm.elements[0] == 1);
    assert_true(d->layers[1].bias[KERN_V].elements[3] == 0);
    assert_int_equal(kern_cpu()->pool(d, 4, &why), ERR_OK); /* nothing is missing */
    kern_cpu()->close(d);
}

static void test_peaks(void **state) {
    (void)state;
    struct kern_device *d = tiny_open();
    struct kern_peaks peaks = {0};
    assert_int_equal(kern_cpu()->peaks(d, &peaks), ERR_OK);
    assert_true(peaks.copy_bytes_s > 1e7 && peaks.copy_bytes_s < 1e13);
    assert_true(peaks.gemm_flop_s > 1e7 && peaks.gemm_flop_s < 1e15);
    assert_true(peaks.pinned_bytes_s == 0);
    kern_cpu()->close(d);
}

static void test_find(void **state) {
    (void)state;
    struct err_text why = {0};
    assert_ptr_equal(kern_find("cpu", &why), kern_cpu());
    const struct kern_ops *cuda = kern_find("cuda", &why);
    if (cuda == NULL) {
        assert_string_equal(why.field, "device.kind");
        assert_true(why.message[0] != '\0');
    }
    assert_ptr_equal(kern_find("auto", &why), cuda != NULL ? cuda : kern_cpu());
}

/* In a process that sees no GPU, whatever the machine has: CUDA reads the variable once. */
static int find_blind(void) {
    struct err_text why = {0};
    if (setenv("CUDA_VISIBLE_DEVICES", "", 1) != 0 || kern_find("cuda", &why) != NULL ||
        kern_find("auto", NULL) != kern_cpu()) {
        return 1;
    }
#ifdef LORRY_CUDA
    static const char said[] = "no GPU answers: ";
#else
    static const char said[] = "this build has no CUDA device";
#endif
    return strcmp(why.field, "device.kind") != 0 ||
           strncmp(why.message, said, sizeof said - 1) != 0;
}

static void test_find_without_a_gpu(void **state) {
    (void)state;
    (void)fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        _exit(find_blind());
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_find_without_a_gpu), /* first: before this process asks CUDA */
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_device_has_them),
        cmocka_unit_test(test_peaks),
        cmocka_unit_test(test_find),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
