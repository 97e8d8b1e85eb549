/* test_property.c - random jobs, frames and finals: equal in both encodings and after a round trip.
 *
 * LORRY_SEED replays one run. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/wire/cmocka_all.h"
#include "tests/unit/wire/support.h"

enum { ROUNDS = 3000, POOL_BYTES = 4096, MANY = 40 };

struct source {
    uint64_t random;
    char pool[POOL_BYTES]; /* of the strings of one record */
    size_t used;
    uint32_t numbers[2][MANY];
    struct wire_str strings[WIRE_STOPS_MAX];
    struct wire_message messages[MANY];
    struct wire_pair pairs[WIRE_METADATA_MAX];
};

static uint64_t next(struct source *s) { /* splitmix64 */
    uint64_t z = s->random += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return z ^ z >> 31;
}

static size_t below(struct source *s, size_t bound) {
    return (size_t)(next(s) % bound);
}

static struct wire_str make(struct source *s, const char *const *parts, size_t count,
                            size_t least) {
    struct wire_str text = {s->pool + s->used, 0};
    for (size_t n = least + below(s, 8); n > 0; n--) {
        const char *part = parts[below(s, count)];
        size_t bytes = part[0] == '\0' ? 1 : strlen(part); /* "" stands for NUL */
        assert_true(s->used + bytes <= POOL_BYTES);
        memcpy(s->pool + s->used, part, bytes);
        s->used += bytes;
        text.bytes += bytes;
    }
    return text;
}

static struct wire_str any_text(struct source *s, size_t least) {
    static const char *const parts[] = {
        "a",    "\"", "\\",   "\n", "\x01", "", "\xC3\xA4", "\xE4\xB8\x96", "\xF0\x9F\x8C\x8D",
        "</s>", "\t", "\x7f", "{",  "[",    " "};
    return make(s, parts, sizeof parts / sizeof parts[0], least);
}

/* Absent half of the time. */
static struct wire_str maybe_id(struct source *s) {
    static const char *const parts[] = {"a", "Z", "0", ".", "_", ":", "-"};
    struct wire_str id = make(s, parts, sizeof parts / sizeof parts[0], 1);
    bool usable = id.data[0] != '.' && below(s, 2) == 0;
    return usable ? id : (struct wire_str){0};
}

static struct wire_int maybe_int(struct source *s, int64_t min, int64_t max) {
    int64_t value =
        min + (int64_t)below(s, (size_t)(max - min) + 1) / (int64_t)(1 + below(s, 1000));
    return below(s, 2) == 0 ? (struct wire_int){value, true} : (struct wire_int){0};
}

static size_t fill_numbers(struct source *s, uint32_t *numbers, size_t least, size_t most) {
    size_t count = least + below(s, most - least + 1);
    for (size_t i = 0; i < count; i++) {
        numbers[i] = (uint32_t)(next(s) & INT32_MAX) >> below(s, 31);
    }
    return count;
}

static size_t fill_pairs(struct source *s) {
    static const char *const parts[] = {"a", "\xC3\xA4", ".", " "};
    size_t count = below(s, 5);
    for (size_t i = 0; i < count; i++) {
        s->pairs[i].key = make(s, parts, 4, 1);
        s->pool[s->used++] = (char)('0' + i); /* so that no two are equal */
        s->pairs[i].key.bytes++;
        s->pairs[i].value = any_text(s, 0);
    }
    return count;
}

static struct wire_job random_job(struct source *s) {
    struct wire_job job = {.id = maybe_id(s),
                           .custom_id = maybe_id(s),
                           .batch_id = maybe_id(s),
                           .adapter = maybe_id(s),
                           .tenant = maybe_id(s),
                           .generation = (uint32_t)next(s),
                           .input = (enum wire_input)below(s, 3),
                           .max_tokens = maybe_int(s, 1, INT32_MAX),
                           .top_k = maybe_int(s, -1, INT32_MAX),
                           .seed = {(int64_t)next(s), true},
                           .ttft_slo_ms = maybe_int(s, 1, 1 << 20),
                           .stream = maybe_int(s, 0, 1),
                           .ignore_eos = below(s, 2) == 0,
                           .priority = (int32_t)next(s)};
    if (below(s, 2) == 0) {
        job.deadline_ms = maybe_int(s, 0, (INT64_C(1) << 53) - 1);
    } else {
        job.ttl_ms = maybe_int(s, 0, (INT64_C(1) << 53) - 1);
    }
    if (below(s, 2) == 0) {
        job.temperature = (struct wire_real){(double)(next(s) >> 11) * 0x1p-51, true};
        job.min_p = (struct wire_real){(double)(next(s) >> 11) * 0x1p-53, true};
        job.repetition_penalty = (struct wire_real){1 + (double)below(s, 100) / 7, true};
        job.presence_penalty = (struct wire_real){(double)below(s, 401) / 100 - 2, true};
        job.frequency_penalty = (struct wire_real){(double)below(s, 401) / 100 - 2, true};
        job.logprobs = (struct wire_int){(int64_t)below(s, 21), true};
        job.top_p = (struct wire_real){1 - (double)(next(s) >> 11) * 0x1p-53, true};
    }
    if (job.input == WIRE_PROMPT) {
        job.prompt = any_text(s, 1);
    } else if (job.input == WIRE_TOKENS) {
        job.token_count = fill_numbers(s, s->numbers[0], 1, MANY);
        job.tokens = s->numbers[0];
    } else {
        job.message_count = 1 + below(s, MANY);
        job.messages = s->messages;
        for (size_t i = 0; i < job.message_count; i++) {
            s->messages[i] = (struct wire_message){{"user", 4}, any_text(s, 0)};
        }
    }
    job.stop_count = below(s, WIRE_STOPS_MAX);
    job.stop = s->strings;
    for (size_t i = 0; i < job.stop_count; i++) {
        s->strings[i] = any_text(s, 1);
    }
    job.stop_token_ids = s->numbers[1];
    job.stop_token_count = fill_numbers(s, s->numbers[1], 0, WIRE_STOP_TOKENS_MAX);
    job.metadata_count = fill_pairs(s);
    job.metadata = s->pairs;
    return job;
}

static struct wire_final random_final(struct source *s) {
    struct wire_final f = {.id = {"id", 2},
                           .custom_id = maybe_id(s),
                           .batch_id = maybe_id(s),
                           .adapter = maybe_id(s),
                           .revision = maybe_id(s),
                           .generation = (uint32_t)next(s),
                           .attempt = (uint32_t)next(s),
                           .status = (enum wire_status)below(s, 5),
                           .text = any_text(s, 0),
                           .tokens = s->numbers[0],
                           .token_count = fill_numbers(s, s->numbers[0], 0, MANY),
                           .prompt_tokens = (uint32_t)next(s),
                           .completion_tokens = (uint32_t)next(s),
                           .cached_tokens = (uint32_t)next(s),
                           .timing = {-1, (double)(next(s) >> 30) / 1e3, 0},
                           .worker = maybe_id(s),
                           .topic = maybe_id(s),
                           .partition = (int32_t)(next(s) & INT32_MAX),
                           .offset = (int64_t)(next(s) >> 1),
                           .metadata = s->pairs,
                           .metadata_count = fill_pairs(s)};
    uint8_t bytes[10] = {(uint8_t)next(s), (uint8_t)next(s)};
    wire_ulid(f.run, (int64_t)(next(s) >> 16), bytes);
    if (f.status == WIRE_SUCCEEDED) {
        f.finish = (enum wire_finish)below(s, 3);
    } else if (below(s, 2) == 0) {
        f.error_code = "internal";
        f.error_message = any_text(s, 0);
        f.error_field = maybe_id(s);
    }
    return f;
}

static uint64_t seed_of_run(void) {
    const char *text = getenv("LORRY_SEED");
    uint64_t seed = text != NULL ? strtoull(text, NULL, 10) : 20;
    print_message("seed %" PRIu64 "\n", seed);
    return seed;
}

static void same(const char *field) {
    assert_string_equal(field == NULL ? "" : field, "");
}

static void jobs(void **state) {
    struct source s = {.random = seed_of_run()};
    const struct wire_options strict = {.strict = true};
    (void)state;
    for (int round = 0; round < ROUNDS; round++) {
        struct wire_job back[2];
        s.used = 0;
        struct wire_job job = random_job(&s);
        for (int encoding = WIRE_MSGPACK; encoding <= WIRE_JSON; encoding++) {
            struct wire_buffer out = {0};
            struct err_text why = {0};
            assert_int_equal(wire_job_encode(&job, (enum wire_encoding)encoding, &out), ERR_OK);
            enum err e = wire_job_decode(&back[encoding], out.data, out.bytes, NULL, &strict, &why);
            assert_string_equal(why.message, "");
            assert_int_equal(e, ERR_OK);
            wire_buffer_deinit(&out); /* a job owns what it says */
            same(support_job_differs(&job, &back[encoding]));
        }
        same(support_job_differs(&back[WIRE_MSGPACK], &back[WIRE_JSON]));
        wire_job_deinit(&back[0]);
        wire_job_deinit(&back[1]);
    }
}

static void finals(void **state) {
    struct source s = {.random = seed_of_run()};
    (void)state;
    for (int round = 0; round < ROUNDS; round++) {
        struct wire_final back[2];
        s.used = 0;
        struct wire_final f = random_final(&s);
        for (int encoding = WIRE_MSGPACK; encoding <= WIRE_JSON; encoding++) {
            struct wire_buffer out = {0};
            struct err_text why = {0};
            assert_int_equal(wire_final_encode(&f, (enum wire_encoding)encoding, &out), ERR_OK);
            assert_int_equal(wire_final_decode(&back[encoding], out.data, out.bytes, &why), ERR_OK);
            wire_buffer_deinit(&out);
            same(support_final_differs(&f, &back[encoding]));
        }
        same(support_final_differs(&back[WIRE_MSGPACK], &back[WIRE_JSON]));
        wire_final_deinit(&back[0]);
        wire_final_deinit(&back[1]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(jobs),
        cmocka_unit_test(finals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
