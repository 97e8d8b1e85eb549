#include "tests/unit/wire/support.h"

#include <jansson.h>
#include <math.h>
#include <msgpack.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- JSON to msgpack ------------------------------------------------------------------------ */

static void pack(msgpack_packer *p, json_t *json) {
    const char *key = NULL;
    json_t *value = NULL;
    size_t index = 0;
    switch (json_typeof(json)) {
    case JSON_OBJECT:
        msgpack_pack_map(p, json_object_size(json));
        json_object_foreach(json, key, value) {
            msgpack_pack_str(p, strlen(key));
            msgpack_pack_str_body(p, key, strlen(key));
            pack(p, value);
        }
        break;
    case JSON_ARRAY:
        msgpack_pack_array(p, json_array_size(json));
        json_array_foreach(json, index, value) {
            pack(p, value);
        }
        break;
    case JSON_STRING:
        msgpack_pack_str(p, json_string_length(json));
        msgpack_pack_str_body(p, json_string_value(json), json_string_length(json));
        break;
    case JSON_INTEGER:
        msgpack_pack_int64(p, json_integer_value(json));
        break;
    case JSON_REAL:
        msgpack_pack_double(p, json_real_value(json));
        break;
    case JSON_TRUE:
        msgpack_pack_true(p);
        break;
    case JSON_FALSE:
        msgpack_pack_false(p);
        break;
    case JSON_NULL:
        msgpack_pack_nil(p);
        break;
    }
}

char *support_msgpack(const char *json, size_t *bytes) {
    json_error_t error;
    json_t *root = json_loads(json, JSON_ALLOW_NUL | JSON_DECODE_ANY, &error);
    if (root == NULL) {
        fprintf(stderr, "test case is no JSON: %s\n%s\n", error.text, json);
        abort();
    }
    msgpack_sbuffer buffer;
    msgpack_packer packer;
    msgpack_sbuffer_init(&buffer);
    msgpack_packer_init(&packer, &buffer, msgpack_sbuffer_write);
    pack(&packer, root);
    json_decref(root);
    *bytes = buffer.size;
    return msgpack_sbuffer_release(&buffer);
}

enum err support_decode(struct wire_job *job, const char *json, enum wire_encoding encoding,
                        const struct wire_options *options, struct err_text *why) {
    if (encoding == WIRE_JSON) {
        return wire_job_decode(job, json, strlen(json), NULL, options, why);
    }
    size_t bytes = 0;
    char *packed = support_msgpack(json, &bytes);
    enum err e = wire_job_decode(job, packed, bytes, NULL, options, why);
    free(packed);
    return e;
}

void support_refused(const struct support_refusal *all, size_t count,
                     const struct wire_options *options) {
    for (size_t i = 0; i < count; i++) {
        for (int encoding = WIRE_MSGPACK; encoding <= WIRE_JSON; encoding++) {
            struct wire_job job;
            struct err_text why = {0};
            enum err e =
                support_decode(&job, all[i].json, (enum wire_encoding)encoding, options, &why);
            bool good = e == all[i].e && strcmp(why.field, all[i].field) == 0 &&
                        strstr(why.message, all[i].message) != NULL &&
                        job.encoding == (enum wire_encoding)encoding;
            wire_job_deinit(&job);
            if (!good) {
                fprintf(stderr,
                        "encoding %d: %s\n  wanted %s, field \"%s\", \"…%s…\"\n"
                        "  got    %s, field \"%s\", \"%s\"\n",
                        encoding, all[i].json, err_name(all[i].e), all[i].field, all[i].message,
                        err_name(e), why.field, why.message);
                abort();
            }
        }
    }
}

/* ---- equality ------------------------------------------------------------------------------- */

bool support_str_is(struct wire_str s, const char *text) {
    if (text == NULL || s.data == NULL) {
        return (text == NULL) == (s.data == NULL);
    }
    return s.bytes == strlen(text) && memcmp(s.data, text, s.bytes) == 0;
}

static bool str_same(struct wire_str a, struct wire_str b) {
    if (a.data == NULL || b.data == NULL) {
        return a.data == NULL && b.data == NULL;
    }
    return a.bytes == b.bytes && memcmp(a.data, b.data, a.bytes) == 0;
}

static bool int_same(struct wire_int a, struct wire_int b) {
    return a.given == b.given && a.value == b.value;
}

static bool real_same(struct wire_real a, struct wire_real b) {
    return a.given == b.given && !(a.value < b.value) && !(a.value > b.value);
}

static bool u32s_same(const uint32_t *a, size_t a_count, const uint32_t *b, size_t b_count) {
    bool same = a_count == b_count;
    for (size_t i = 0; i < a_count && same; i++) {
        same = a[i] == b[i];
    }
    return same;
}

static bool logprobs_same(const struct wire_logprobs *a, const struct wire_logprobs *b) {
    if (a->chosen == NULL || b->chosen == NULL) {
        return a->chosen == b->chosen;
    }
    bool same = a->count == b->count;
    same = same && (a->count == 0 || a->top_count == b->top_count);
    for (size_t i = 0; i < a->count && same; i++) {
        same = a->chosen[i].token == b->chosen[i].token &&
               a->chosen[i].logprob == b->chosen[i].logprob;
    }
    for (size_t i = 0; i < a->count * a->top_count && same; i++) {
        same = a->top[i].token == b->top[i].token && a->top[i].logprob == b->top[i].logprob;
    }
    return same;
}

static bool strs_same(const struct wire_str *a, size_t a_count, const struct wire_str *b,
                      size_t b_count) {
    bool same = a_count == b_count;
    for (size_t i = 0; i < a_count && same; i++) {
        same = str_same(a[i], b[i]);
    }
    return same;
}

/* The order of pairs says nothing: msgpack's come sorted. */
static bool pairs_same(const struct wire_pair *a, size_t a_count, const struct wire_pair *b,
                       size_t b_count) {
    bool same = a_count == b_count;
    for (size_t i = 0; i < a_count && same; i++) {
        bool found = false;
        for (size_t j = 0; j < b_count && !found; j++) {
            found = str_same(a[i].key, b[j].key) && str_same(a[i].value, b[j].value);
        }
        same = found;
    }
    return same;
}

static bool input_same(const struct wire_job *a, const struct wire_job *b) {
    bool same = a->input == b->input && str_same(a->prompt, b->prompt) &&
                u32s_same(a->tokens, a->token_count, b->tokens, b->token_count) &&
                a->message_count == b->message_count;
    for (size_t i = 0; i < a->message_count && same; i++) {
        same = str_same(a->messages[i].role, b->messages[i].role) &&
               str_same(a->messages[i].content, b->messages[i].content);
    }
    return same;
}

struct comparison {
    const char *name;
    bool same;
};

static const char *first_difference(const struct comparison *all, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (!all[i].same) {
            return all[i].name;
        }
    }
    return NULL;
}

#define STR(m) \
    { #m, str_same(a->m, b->m) }
#define INT(m) \
    { #m, int_same(a->m, b->m) }
#define REAL(m) \
    { #m, real_same(a->m, b->m) }
#define SAME(m) \
    { #m, a->m == b->m }
#define PAIRS \
    { "metadata", pairs_same(a->metadata, a->metadata_count, b->metadata, b->metadata_count) }
#define TOKENS \
    { "tokens", u32s_same(a->tokens, a->token_count, b->tokens, b->token_count) }

const char *support_job_differs(const struct wire_job *a, const struct wire_job *b) {
    const struct comparison all[] = {
        STR(id),
        STR(custom_id),
        STR(batch_id),
        STR(adapter),
        STR(tenant),
        STR(reply_topic),
        SAME(generation),
        {"input", input_same(a, b)},
        INT(max_tokens),
        INT(top_k),
        INT(seed),
        INT(logprobs),
        INT(deadline_ms),
        INT(ttl_ms),
        INT(ttft_slo_ms),
        REAL(temperature),
        REAL(top_p),
        REAL(min_p),
        REAL(repetition_penalty),
        REAL(presence_penalty),
        REAL(frequency_penalty),
        {"stop", strs_same(a->stop, a->stop_count, b->stop, b->stop_count)},
        {"stop_token_ids",
         u32s_same(a->stop_token_ids, a->stop_token_count, b->stop_token_ids, b->stop_token_count)},
        INT(stream),
        SAME(ignore_eos),
        SAME(priority),
        PAIRS,
    };
    return first_difference(all, sizeof all / sizeof all[0]);
}

const char *support_frame_differs(const struct wire_frame *a, const struct wire_frame *b) {
    const struct comparison all[] = {
        STR(id),
        SAME(attempt),
        {"run", strcmp(a->run, b->run) == 0},
        SAME(seq),
        SAME(pos),
        SAME(kind),
        {"text",
         a->text.bytes == b->text.bytes &&
             (a->text.bytes == 0 || memcmp(a->text.data, b->text.data, a->text.bytes) == 0)},
        TOKENS,
        {"logprobs", logprobs_same(&a->logprobs, &b->logprobs)},
    };
    return first_difference(all, sizeof all / sizeof all[0]);
}

/* Absent is any negative number; the wire keeps microseconds. */
static bool duration_same(double a, double b) {
    return (a < 0 && b < 0) || fabs(a - b) <= 0.0005 + fabs(a) * 1e-12;
}

const char *support_final_differs(const struct wire_final *a, const struct wire_final *b) {
    bool coded = a->error_code != NULL && b->error_code != NULL;
    const struct comparison all[] = {
        STR(id),
        STR(custom_id),
        STR(batch_id),
        STR(adapter),
        STR(revision),
        SAME(generation),
        SAME(attempt),
        {"run", strcmp(a->run, b->run) == 0},
        SAME(status),
        SAME(finish),
        {"error_code",
         coded ? strcmp(a->error_code, b->error_code) == 0 : a->error_code == b->error_code},
        STR(error_message),
        STR(error_field),
        STR(text),
        TOKENS,
        {"logprobs", logprobs_same(&a->logprobs, &b->logprobs)},
        SAME(prompt_tokens),
        SAME(completion_tokens),
        SAME(cached_tokens),
        {"queued", duration_same(a->timing.queued, b->timing.queued)},
        {"first_token", duration_same(a->timing.first_token, b->timing.first_token)},
        {"total", duration_same(a->timing.total, b->timing.total)},
        STR(worker),
        STR(topic),
        SAME(partition),
        SAME(offset),
        PAIRS,
    };
    return first_difference(all, sizeof all / sizeof all[0]);
}
