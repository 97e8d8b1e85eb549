/* The publish thread against a source that records what it gets and answers as it is told. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <jansson.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "worker/publish.h"

#define MODEL LORRY_SOURCE_DIR "/tests/golden/tiny-llama/model"

enum { MESSAGES_MAX = 256, WAIT_MS = 5000, EPOCH = 7 };

struct source { /* all under the lock */
    pthread_mutex_t lock;
    struct {
        enum source_output output;
        char *value;
        size_t bytes;
        char headers[8][64];
        uint32_t header_count;
    } messages[MESSAGES_MAX];
    uint32_t count;
    void *tags[MESSAGES_MAX];
    size_t tag_bytes[MESSAGES_MAX]; /* of the value it came with */
    uint32_t tag_count;
    size_t bytes_max;      /* larger values are reported too large */
    bool refuse_at_once;   /* by produce itself, not by a report */
    uint32_t full_answers; /* so many times the queue is full */
};

static struct source source = {.lock = PTHREAD_MUTEX_INITIALIZER};

static enum err fake_produce(struct source *s, const struct source_message *m,
                             struct err_text *why) {
    (void)why;
    enum err e = ERR_OK;
    (void)pthread_mutex_lock(&s->lock);
    if (s->full_answers > 0) {
        s->full_answers--;
        e = ERR_NO_SPACE;
    } else if (s->refuse_at_once && m->value_bytes > s->bytes_max) {
        e = ERR_TOO_LARGE;
    } else {
        uint32_t i = s->count++;
        assert_true(i < MESSAGES_MAX);
        s->messages[i].output = m->output;
        s->messages[i].value = calloc(1, m->value_bytes + 1);
        memcpy(s->messages[i].value, m->value, m->value_bytes);
        s->messages[i].bytes = m->value_bytes;
        s->messages[i].header_count = m->header_count < 8 ? m->header_count : 8;
        for (uint32_t h = 0; h < s->messages[i].header_count; h++) {
            (void)snprintf(s->messages[i].headers[h], 64, "%s", m->headers[h].name);
        }
        if (m->tag != NULL) {
            s->tag_bytes[s->tag_count] = m->value_bytes;
            s->tags[s->tag_count++] = m->tag;
        }
    }
    (void)pthread_mutex_unlock(&s->lock);
    return e;
}

static uint32_t fake_reports(struct source *s, struct source_report *reports, uint32_t room,
                             uint32_t timeout_ms) {
    (void)timeout_ms;
    uint32_t count = 0;
    (void)pthread_mutex_lock(&s->lock);
    for (; count < room && count < s->tag_count; count++) {
        bool large = s->tag_bytes[count] > s->bytes_max;
        reports[count] =
            (struct source_report){.tag = s->tags[count], .error = large ? ERR_TOO_LARGE : ERR_OK};
    }
    memmove(s->tags, s->tags + count, (s->tag_count - count) * sizeof s->tags[0]);
    memmove(s->tag_bytes, s->tag_bytes + count, (s->tag_count - count) * sizeof s->tag_bytes[0]);
    s->tag_count -= count;
    (void)pthread_mutex_unlock(&s->lock);
    return count;
}

static const char *fake_topic_name(const struct source *s, uint32_t topic) {
    (void)s;
    (void)topic;
    return "jobs";
}

static const struct source_ops fake_ops = {
    .name = "fake",
    .produce = fake_produce,
    .reports = fake_reports,
    .topic_name = fake_topic_name,
};

struct fixture {
    struct text *text;
    struct registry *registry;
    struct metrics *metrics;
    struct publish *publish;
    _Atomic uint32_t epochs[1];
    _Atomic uint32_t done, delivered, fatal;
    struct source_record record;
    struct job job;
};

static void registry_hands_on(void *context, struct job *job) {
    struct fixture *f = context;
    publish_job(f->publish, job, JOB_ATTEMPT);
}

static void changed(void *context) {
    (void)context;
}

static void is_done(void *context, struct job *job, bool delivered) {
    struct fixture *f = context;
    assert_ptr_equal(job, &f->job);
    atomic_fetch_add(&f->delivered, delivered ? 1 : 0);
    atomic_fetch_add(&f->done, 1);
}

static void is_fatal(void *context, enum err e, const struct err_text *why) {
    (void)e;
    (void)why;
    struct fixture *f = context;
    atomic_fetch_add(&f->fatal, 1);
}

static int setup(void **state) {
    struct fixture *f = calloc(1, sizeof *f);
    struct err_text why = {0};
    assert_non_null(f);
    assert_int_equal(text_open(&f->text, MODEL, &why), ERR_OK);
    assert_int_equal(metrics_open(&f->metrics, 4), ERR_OK);
    struct registry_options registry = {.url = "",
                                        .metrics = f->metrics,
                                        .looked = registry_hands_on,
                                        .started = registry_hands_on,
                                        .changed = changed,
                                        .context = f};
    assert_int_equal(registry_open(&f->registry, &registry, &why), ERR_OK);
    atomic_store(&f->epochs[0], EPOCH);
    struct publish_options options = {.source = &source,
                                      .ops = &fake_ops,
                                      .text = f->text,
                                      .registry = f->registry,
                                      .metrics = f->metrics,
                                      .worker_id = "w",
                                      .group = "g",
                                      .jobs_max = 4,
                                      .frame_interval_ms = 1,
                                      .epochs = f->epochs,
                                      .done = is_done,
                                      .fatal = is_fatal,
                                      .context = f};
    source.count = 0;
    source.tag_count = 0;
    source.bytes_max = SIZE_MAX;
    source.refuse_at_once = false;
    source.full_answers = 0;
    assert_int_equal(publish_open(&f->publish, &options), ERR_OK);
    job_reset(&f->job, 0);
    f->record = (struct source_record){.value = "raw bytes", .value_bytes = 9, .key = "k"};
    f->job.record = &f->record;
    f->job.epoch = EPOCH;
    f->job.wire.encoding = WIRE_JSON;
    (void)snprintf(f->job.id, sizeof f->job.id, "j1");
    f->job.received_us = clock_mono_us();
    f->job.stream = true;
    *state = f;
    return 0;
}

static int teardown(void **state) {
    struct fixture *f = *state;
    publish_close(f->publish);
    registry_close(f->registry);
    metrics_close(f->metrics);
    text_close(f->text);
    job_reset(&f->job, 0);
    for (uint32_t i = 0; i < source.count; i++) {
        free(source.messages[i].value);
    }
    free(f);
    return 0;
}

/* As the loop does: starts, samples the tokens of `text` one by one, ends. */
static void run_job(struct fixture *f, const char *text, enum job_outcome outcome) {
    struct err_text why = {0};
    size_t count = 0;
    f->job.output = calloc(128, sizeof *f->job.output);
    assert_int_equal(
        text_encode(f->text, text, strlen(text), false, f->job.output, 128, &count, &why), ERR_OK);
    f->job.started_us = clock_mono_us();
    publish_job(f->publish, &f->job, 0);
    for (uint32_t i = 1; i <= count; i++) {
        atomic_store(&f->job.output_count, i);
        publish_job(f->publish, &f->job, 0);
        if (i % 4 == 0) {
            clock_sleep_ms(2);
        }
    }
    f->job.ended_us = clock_mono_us();
    f->job.outcome = outcome;
    publish_job(f->publish, &f->job, JOB_ENDED);
}

static void wait_done(struct fixture *f) {
    for (int ms = 0; atomic_load(&f->done) == 0 && ms < WAIT_MS; ms++) {
        clock_sleep_ms(1);
    }
    assert_int_equal(atomic_load(&f->done), 1);
    assert_int_equal(atomic_load(&f->fatal), 0);
}

/* The last final; NULL: none. */
static json_t *last_final(void) {
    for (uint32_t i = source.count; i > 0; i--) {
        if (source.messages[i - 1].output == SOURCE_FINAL) {
            return json_loads(source.messages[i - 1].value, 0, NULL);
        }
    }
    return NULL;
}

static uint32_t count_of(enum source_output output) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < source.count; i++) {
        count += source.messages[i].output == output;
    }
    return count;
}

static const char *field(const json_t *object, const char *name) {
    return json_string_value(json_object_get(object, name));
}

/* Frames: start, tokens, end; their text and tokens together are the final's (invariant 8). */
static void test_frames_equal_final(void **state) {
    struct fixture *f = *state;
    static const char text[] = "Frames come while the job runs, then the end";
    run_job(f, text, JOB_LENGTH);
    wait_done(f);
    assert_int_equal(atomic_load(&f->delivered), 1);
    json_t *final = last_final();
    assert_string_equal(field(final, "text"), text);
    assert_string_equal(field(final, "finish_reason"), "length");
    assert_int_equal(json_integer_value(json_object_get(final, "attempt")), 1);
    char joined[256] = "";
    size_t tokens = 0;
    uint32_t frames = 0;
    int64_t seq = 0;
    for (uint32_t i = 0; i < source.count; i++) {
        if (source.messages[i].output != SOURCE_FRAME) {
            continue;
        }
        json_t *frame = json_loads(source.messages[i].value, 0, NULL);
        assert_int_equal(json_integer_value(json_object_get(frame, "seq")), seq++);
        assert_int_equal(json_integer_value(json_object_get(frame, "pos")), tokens);
        assert_string_equal(field(frame, "run"), field(final, "run"));
        (void)strncat(joined, field(frame, "text") != NULL ? field(frame, "text") : "",
                      sizeof joined - strlen(joined) - 1);
        tokens += json_array_size(json_object_get(frame, "tokens"));
        bool first = seq == 1;
        bool last = ++frames == count_of(SOURCE_FRAME);
        assert_string_equal(field(frame, "kind"), first ? "start" : last ? "end" : "tokens");
        json_decref(frame);
    }
    assert_string_equal(joined, text);
    assert_int_equal(tokens, json_array_size(json_object_get(final, "tokens")));
    json_decref(final);
}

static void test_no_frames_unless_wanted(void **state) {
    struct fixture *f = *state;
    f->job.stream = false;
    run_job(f, "quiet", JOB_STOPPED);
    wait_done(f);
    assert_int_equal(count_of(SOURCE_FRAME), 0);
    assert_int_equal(count_of(SOURCE_FINAL), 1);
}

/* Too large for the broker: first the tokens go, by a report or at once. */
static void too_large(struct fixture *f, bool at_once) {
    source.bytes_max = 560;
    source.refuse_at_once = at_once;
    f->job.stream = false;
    run_job(f, "aaaaaaaa bbbbbbbb cccccccc dddddddd eeeeeeee ffffffff", JOB_LENGTH);
    wait_done(f);
    assert_int_equal(atomic_load(&f->delivered), 1);
    json_t *final = last_final();
    assert_string_equal(field(final, "status"), "succeeded");
    assert_non_null(field(final, "text"));
    assert_int_equal(json_array_size(json_object_get(final, "tokens")), 0);
    json_decref(final);
}

static void test_too_large_by_report(void **state) {
    too_large(*state, false);
}

static void test_too_large_at_once(void **state) {
    too_large(*state, true);
}

static void ask_logprobs(struct fixture *f) {
    f->job.sampling.logprobs = true;
    f->job.sampling.top_logprobs = 2;
    f->job.logprobs = calloc(128, sizeof *f->job.logprobs);
    f->job.top = calloc((size_t)128 * 2, sizeof *f->job.top);
    assert_non_null(f->job.logprobs);
    assert_non_null(f->job.top);
    if (f->job.top == NULL) {
        return; /* the analyzer does not know that the line above does */
    }
    for (size_t i = 0; i < 128; i++) {
        f->job.logprobs[i] = (struct wire_logprob){.token = (uint32_t)i, .logprob = -(float)i};
        f->job.top[2 * i] = (struct wire_logprob){.token = 1000 + (uint32_t)i, .logprob = -1};
        f->job.top[2 * i + 1] = (struct wire_logprob){.token = 2000 + (uint32_t)i, .logprob = -2};
    }
}

/* The frames' together are the final's. */
static void test_logprobs(void **state) {
    struct fixture *f = *state;
    ask_logprobs(f);
    run_job(f, "every token has its logprobs in a frame", JOB_LENGTH);
    wait_done(f);
    json_t *final = last_final();
    json_t *all = json_object_get(final, "logprobs");
    size_t count = json_array_size(json_object_get(final, "tokens"));
    assert_int_equal(json_array_size(all), count);
    json_t *third =
        json_loads("{\"token\":2,\"logprob\":-2,\"top\":[[1002,-1],[2002,-2]]}", 0, NULL);
    assert_true(json_equal(json_array_get(all, 2), third));
    json_decref(third);
    json_t *joined = json_array();
    for (uint32_t i = 0; i < source.count; i++) {
        if (source.messages[i].output == SOURCE_FRAME) {
            json_t *frame = json_loads(source.messages[i].value, 0, NULL);
            json_t *some = json_object_get(frame, "logprobs");
            assert_true(strcmp(field(frame, "kind"), "tokens") == 0 || json_is_null(some));
            assert_int_equal(json_array_size(some),
                             json_array_size(json_object_get(frame, "tokens")));
            (void)json_array_extend(joined, some);
            json_decref(frame);
        }
    }
    assert_true(json_equal(joined, all));
    json_decref(joined);
    json_decref(final);
}

/* The log-probabilities go first, while the tokens stay. */
static void test_too_large_without_logprobs(void **state) {
    struct fixture *f = *state;
    ask_logprobs(f);
    source.bytes_max = 900;
    f->job.stream = false;
    run_job(f, "aaaaaaaa bbbbbbbb cccccccc dddddddd eeeeeeee ffffffff", JOB_LENGTH);
    wait_done(f);
    json_t *final = last_final();
    assert_string_equal(field(final, "status"), "succeeded");
    assert_true(json_is_null(json_object_get(final, "logprobs")));
    assert_true(json_array_size(json_object_get(final, "tokens")) > 0);
    json_decref(final);
}

/* Then the job has failed, and the final still comes. */
static void test_too_large_without_tokens(void **state) {
    struct fixture *f = *state;
    source.bytes_max = 640;
    f->job.stream = false;
    char text[900];
    memset(text, 'a', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    f->job.text = strdup(text); /* as if decoded: more text than the tokens below give */
    f->job.text_bytes = f->job.text_room = sizeof text - 1;
    run_job(f, "b", JOB_LENGTH);
    wait_done(f);
    json_t *final = last_final();
    assert_string_equal(field(final, "status"), "failed");
    assert_string_equal(field(json_object_get(final, "error"), "code"), "result_too_large");
    json_decref(final);
}

static void test_rejected_has_a_dead_letter(void **state) {
    struct fixture *f = *state;
    f->job.error = err_set_field(&f->job.why, ERR_BAD_FIELD, "prompt", "the prompt is empty");
    f->job.dead_letter = true;
    f->job.outcome = JOB_REJECTED;
    f->job.ended_us = clock_mono_us();
    publish_job(f->publish, &f->job, JOB_ENDED);
    wait_done(f);
    assert_int_equal(count_of(SOURCE_DEAD), 1);
    assert_int_equal(count_of(SOURCE_FINAL), 1);
    for (uint32_t i = 0; i < source.count; i++) {
        if (source.messages[i].output == SOURCE_DEAD) {
            assert_int_equal(source.messages[i].bytes, 9);
            assert_memory_equal(source.messages[i].value, "raw bytes", 9);
            assert_memory_equal(source.messages[i].headers[0], "__dlq.errors.", 13);
        }
    }
    json_t *final = last_final();
    assert_string_equal(field(json_object_get(final, "error"), "field"), "prompt");
    assert_int_equal(json_integer_value(json_object_get(final, "attempt")), 0);
    json_decref(final);
}

/* A dropped job, or one whose partition went, has no final. */
static void test_dropped(void **state) {
    struct fixture *f = *state;
    run_job(f, "never seen as a whole", JOB_DROPPED);
    wait_done(f);
    assert_int_equal(atomic_load(&f->delivered), 0);
    assert_int_equal(count_of(SOURCE_FINAL), 0);
}

static void test_partition_went(void **state) {
    struct fixture *f = *state;
    atomic_store(&f->epochs[0], EPOCH + 1);
    run_job(f, "late", JOB_STOPPED);
    wait_done(f);
    assert_int_equal(atomic_load(&f->delivered), 0);
    assert_int_equal(count_of(SOURCE_FINAL), 0);
}

static void test_full_queue_is_waited_for(void **state) {
    struct fixture *f = *state;
    source.full_answers = 20;
    run_job(f, "patience", JOB_STOPPED);
    wait_done(f);
    assert_int_equal(atomic_load(&f->delivered), 1);
    assert_int_equal(count_of(SOURCE_FINAL), 1);
}

static void test_finish_waits_for_deliveries(void **state) {
    struct fixture *f = *state;
    run_job(f, "the last one", JOB_STOPPED);
    assert_true(publish_finish(f->publish, WAIT_MS));
    assert_int_equal(atomic_load(&f->delivered), 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_frames_equal_final),
        TEST(test_no_frames_unless_wanted),
        TEST(test_too_large_by_report),
        TEST(test_too_large_at_once),
        TEST(test_logprobs),
        TEST(test_too_large_without_logprobs),
        TEST(test_too_large_without_tokens),
        TEST(test_rejected_has_a_dead_letter),
        TEST(test_dropped),
        TEST(test_partition_went),
        TEST(test_full_queue_is_waited_for),
        TEST(test_finish_waits_for_deliveries),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
