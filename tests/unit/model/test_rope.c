/* Rotary frequencies in every form that config.json has for them. The tables are transformers'
 * (5.23, torch on a CPU). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>

#include "model/rope.h"

static enum err parse(const char *text, uint32_t head_dim, float **freq, struct err_text *why) {
    json_t *object = json_loads(text, 0, NULL);
    assert_non_null(object);
    const struct model_json j = {object, {"config.json", ERR_BAD_MODEL}, why};
    const struct kern_shape shape = {.head_dim = head_dim};
    enum err e = model_rope_read(&j, &shape, freq);
    json_decref(object);
    return e;
}

static void gives(const char *text, uint32_t head_dim, const float *wanted) {
    float *freq = NULL;
    struct err_text why = {0};
    if (parse(text, head_dim, &freq, &why) != ERR_OK) {
        fail_msg("%s: %s", text, why.message);
    }
    for (uint32_t i = 0; i < head_dim / 2; i++) { /* pow() may differ in the last bit */
        if (fabsf(freq[i] - wanted[i]) > 1.2e-7F * wanted[i]) {
            fail_msg("%s: frequency %u is %a, not %a", text, i, (double)freq[i], (double)wanted[i]);
        }
    }
    free(freq);
}

static void refuses(const char *text, const char *field, const char *words) {
    float *freq = NULL;
    struct err_text why = {0};
    assert_int_equal(parse(text, 64, &freq, &why), ERR_BAD_MODEL);
    assert_null(freq);
    if (strcmp(why.field, field) != 0 || strstr(why.message, words) == NULL) {
        fail_msg("%s: field \"%s\", message \"%s\"", text, why.field, why.message);
    }
}

static const float llama31[] = {
    0x1p+0F,         0x1.a11582p-1F,  0x1.53c38cp-1F,  0x1.14c708p-1F,  0x1.c2ef78p-2F,
    0x1.6f56fap-2F,  0x1.2b3dc6p-2F,  0x1.e788c2p-3F,  0x1.8d276p-3F,   0x1.43874p-3F,
    0x1.078d4p-3F,   0x1.ad6338p-4F,  0x1.5dc95ap-4F,  0x1.1cf13p-4F,   0x1.d03ccep-5F,
    0x1.7a2d08p-5F,  0x1.34119p-5F,   0x1.f5ea7ep-6F,  0x1.98de92p-6F,  0x1.4d1272p-6F,
    0x1.0f5386p-6F,  0x1.ba0dd8p-7F,  0x1.681adap-7F,  0x1.2558fep-7F,  0x1.ddee9ep-8F,
    0x1.8554ecp-8F,  0x1.3d2804p-8F,  0x1.025c6ap-8F,  0x1.a4ee4p-9F,   0x1.1bfa0cp-9F,
    0x1.67a23ap-10F, 0x1.c12f3cp-11F, 0x1.132ba4p-11F, 0x1.47e21p-12F,  0x1.765ba4p-13F,
    0x1.90d10cp-14F, 0x1.46831ap-14F, 0x1.09fb7ep-14F, 0x1.b15902p-15F, 0x1.610332p-15F,
    0x1.1f91fp-15F,  0x1.d484dep-16F, 0x1.7da9e8p-16F, 0x1.36e8eap-16F, 0x1.fa8b86p-17F,
    0x1.9ca3eap-17F, 0x1.5024d6p-17F, 0x1.11d41ep-17F, 0x1.be2188p-18F, 0x1.6b6d0ep-18F,
    0x1.280d96p-18F, 0x1.e257p-19F,   0x1.88ec2p-19F,  0x1.4014d2p-19F, 0x1.04be68p-19F,
    0x1.a8d01p-20F,  0x1.5a0f4ep-20F, 0x1.19e8p-20F,   0x1.cb4a9ap-21F, 0x1.76258ep-21F,
    0x1.30c94ep-21F, 0x1.f09184p-22F, 0x1.94836p-22F,  0x1.4985fep-22F};
static const float llama32[] = {0x1p+0F,         0x1.53c38cp-1F,  0x1.c2ef78p-2F,  0x1.2b3dc6p-2F,
                                0x1.8d276p-3F,   0x1.078d4p-3F,   0x1.5dc95ap-4F,  0x1.d03ccep-5F,
                                0x1.34119p-5F,   0x1.98de92p-6F,  0x1.0f5386p-6F,  0x1.681adap-7F,
                                0x1.ddee9ep-8F,  0x1.3d2804p-8F,  0x1.a4ee4p-9F,   0x1.524f36p-10F,
                                0x1.c26c4p-12F,  0x1.9731eep-14F, 0x1.46831ap-16F, 0x1.b15902p-17F,
                                0x1.1f91fp-17F,  0x1.7da9e8p-18F, 0x1.fa8b86p-19F, 0x1.5024d6p-19F,
                                0x1.be2188p-20F, 0x1.280d96p-20F, 0x1.88ec2p-21F,  0x1.04be68p-21F,
                                0x1.5a0f4ep-22F, 0x1.cb4a9ap-23F, 0x1.30c94ep-23F, 0x1.94836p-24F};
static const float linear[] = {
    0x1.555556p-2F,  0x1.0f2176p-2F,  0x1.aebbc8p-3F,  0x1.5624dp-3F,   0x1.0fc646p-3F,
    0x1.afc19ep-4F,  0x1.56f4cap-4F,  0x1.106b7ap-4F,  0x1.b0c81p-5F,   0x1.57c546p-5F,
    0x1.111112p-5F,  0x1.b1cf22p-6F,  0x1.589638p-6F,  0x1.11b70ep-6F,  0x1.b2d6d8p-7F,
    0x1.5967b2p-7F,  0x1.125d6ep-7F,  0x1.b3df26p-8F,  0x1.5a39aap-8F,  0x1.130438p-8F,
    0x1.b4e81ap-9F,  0x1.5b0c2p-9F,   0x1.13ab62p-9F,  0x1.b5f1b2p-10F, 0x1.5bdf0ap-10F,
    0x1.1452f6p-10F, 0x1.b6fbeap-11F, 0x1.5cb282p-11F, 0x1.14faeep-11F, 0x1.b806b6p-12F,
    0x1.5d867ep-12F, 0x1.15a34ep-12F, 0x1.b91236p-13F, 0x1.5e5af6p-13F, 0x1.164c0ap-13F,
    0x1.ba1e56p-14F, 0x1.5f2ffp-14F,  0x1.16f536p-14F, 0x1.bb2b16p-15F, 0x1.60056p-15F};

#define BANDS                                               \
    "\"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0, " \
    "\"original_max_position_embeddings\": 8192"
#define LLAMA32 "\"rope_type\": \"llama3\", \"factor\": 32.0, " BANDS

static void test_equals_transformers(void **state) {
    (void)state;
    gives("{\"rope_theta\": 500000.0, "
          "\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8.0, " BANDS "}}",
          128, llama31);
    gives("{\"rope_theta\": 500000.0, \"rope_scaling\": {" LLAMA32 "}}", 64, llama32);
    gives("{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 3.0}}", 80, linear);
}

/* Old, new, and both as long as they agree. */
static void test_forms(void **state) {
    (void)state;
    gives("{\"rope_parameters\": {\"rope_theta\": 5e5, " LLAMA32 "}}", 64, llama32);
    gives("{\"rope_theta\": 5e5, \"rope_parameters\": {" LLAMA32 "}, \"rope_scaling\": null}", 64,
          llama32);
    gives("{\"rope_parameters\": {\"rope_theta\": 5e5, " LLAMA32 "}, "
          "\"rope_scaling\": {\"type\": \"llama3\", " LLAMA32 "}}",
          64, llama32);
    gives("{\"original_max_position_embeddings\": 8192, "
          "\"rope_parameters\": {\"rope_theta\": 5e5, " LLAMA32 "}}",
          64, llama32);
    gives("{\"rope_parameters\": {\"rope_type\": \"linear\", \"factor\": 3, "
          "\"rope_theta\": 10000, \"partial_rotary_factor\": 1.0, \"attention_factor\": null}}",
          80, linear);
}

static void test_refuses_by_name(void **state) {
    (void)state;
    static const char *const types[] = {"dynamic", "yarn", "longrope", "su", "mrope"};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        char text[128];
        (void)snprintf(text, sizeof text, "{\"rope_scaling\": {\"type\": \"%s\", \"factor\": 2}}",
                       types[i]);
        refuses(text, "rope_scaling", types[i]);
    }
    static const char *const cases[][3] = {
        {"{\"rope_scaling\": {\"type\": 7}}", "rope_scaling", "default, linear and llama3 are"},
        {"{\"rope_scaling\": {\"type\": \"linear\", \"rope_type\": \"llama3\"}}", "rope_scaling",
         "rope_type and type differ"},
        {"{\"rope_scaling\": {\"factor\": 2.0}}", "rope_scaling", "factor is not supported"},
        {"{\"rope_scaling\": {\"type\": \"linear\"}}", "factor",
         "config.json: rope_scaling: factor is missing"},
        {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 0.5}}", "factor", "0.5"},
        {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": \"2\"}}", "factor", "number"},
        {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2, \"low_freq_factor\": 1}}",
         "rope_scaling", "low_freq_factor"},
        {"{\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8}}", "low_freq_factor",
         "missing"},
        {"{\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1}}",
         "high_freq_factor", "missing"},
        {"{\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4, "
         "\"high_freq_factor\": 4, \"original_max_position_embeddings\": 8192}}",
         "high_freq_factor", "exceed"},
        {"{\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1, "
         "\"high_freq_factor\": 4}}",
         "original_max_position_embeddings", "missing"},
        {"{\"original_max_position_embeddings\": 4096, \"rope_scaling\": {" LLAMA32 "}}",
         "original_max_position_embeddings", "twice"},
        {"{\"rope_scaling\": {" LLAMA32 ", \"mscale\": 1}}", "rope_scaling", "mscale"},
        {"{\"rope_parameters\": {\"rope_type\": \"default\"}, \"rope_scaling\": {" LLAMA32 "}}",
         "rope_scaling", "differ"},
        {"{\"rope_parameters\": {\"rope_theta\": 1}, \"rope_scaling\": {\"rope_theta\": 2}}",
         "rope_theta", "twice"},
        {"{\"rope_scaling\": [1]}", "rope_scaling", "object"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        refuses(cases[i][0], cases[i][1], cases[i][2]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_equals_transformers),
        cmocka_unit_test(test_forms),
        cmocka_unit_test(test_refuses_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
